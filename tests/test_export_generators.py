"""Generators as published: SentencePiece tokenizers, prompts without a language, presets."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import sentencepiece
import torch
import transformers
from checkpoints import (
    LANGUAGE_TOKENS,
    NEW_TOKENS,
    T5_END,
    corpus,
    edit_json,
    exported_generator,
    generator_checkpoint,
    passages,
    read_parity,
    save_t5,
)

from xqg_qdrant.errors import InputError
from xqg_qdrant.export import export_checkpoint
from xqg_qdrant.export.bert import Bert2Bert
from xqg_qdrant.export.checkpoint import fetch_checkpoint
from xqg_qdrant.export.generator import DecoderStep, Heads
from xqg_qdrant.export.graph import Graph
from xqg_qdrant.export.reference import Reference
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.session import Session
from xqg_qdrant.inference.tokenizer import open_tokenizer
from xqg_qdrant.model_folders import read_model_folder
from xqg_qdrant.model_folders.generator_settings import LONGEST_OUTPUT


def save_spiece(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """Replace a T5's tokenizer by a lone `spiece.model`, as in the papers' checkpoints; return it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, vocab_size=1500, model_type="unigram", pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, character_coverage=0.999, hard_vocab_limit=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(model.getvalue())
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<unk>"}))
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def test_a_lone_sentencepiece_model_tokenises_as_sentencepiece_does(tmp_path: Path) -> None:
    checkpoint = save_t5(tmp_path / "in", model_type="mt5", tied=False)
    pieces = save_spiece(checkpoint)
    done = export_checkpoint(str(checkpoint), tmp_path / "out", preset="xqg-paper", max_new_tokens=NEW_TOKENS)
    assert done.parity["float32"] == {"identical_greedy_queries": done.parity["inputs"]}
    tokenizer = open_tokenizer(done.folder / "tokenizer.json", 200)
    texts = [text[:200] for text in corpus()[::7]]
    assert [tokenizer.encode(text).ids for text in texts] == [[*pieces.encode(text), T5_END] for text in texts]


def test_the_papers_preset_sets_the_prompt_of_its_generator(tmp_path: Path) -> None:
    checkpoint = save_t5(tmp_path / "in", model_type="mt5", tied=False)
    done = export_checkpoint(str(checkpoint), tmp_path / "out", preset="xqg-paper-large", languages=("fi", "te"))
    about = read_model_folder(done.folder, "generator").description
    assert about["prompt"] == "Generate a {language} question for this passage: {title} {text}"
    assert about["languages"] == ["fi", "te"]
    assert about["max_input_tokens"] == 256
    assert (about["sampling"]["top_k"], about["sampling"]["max_new_tokens"]) == (10, 32)
    generator = QueryGenerator(done.folder, "cpu", threads=1)
    assert generator.fill_prompt(passages()[1], "te").startswith("Generate a Telugu question for this passage: ")


def test_a_t5_of_the_first_release_with_the_passage_as_its_prompt(tmp_path: Path) -> None:
    checkpoint = save_t5(tmp_path / "in")
    # as in old configurations, without the fields that later releases added
    later = ("feed_forward_proj", "num_decoder_layers", "dense_act_fn", "is_gated_act")
    edit_json(checkpoint / "config.json", dict.fromkeys(later))
    done = export_checkpoint(str(checkpoint), tmp_path / "out", preset="doc2query-t5", max_new_tokens=NEW_TOKENS)
    generator = QueryGenerator(done.folder, "cpu", threads=1)
    assert generator.languages == ("en",)
    model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint).eval()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(checkpoint)
    expected = []
    for passage in passages():
        with torch.no_grad():
            ids = model.generate(
                tokenizer(passage.text, return_tensors="pt")["input_ids"], do_sample=False, max_new_tokens=NEW_TOKENS
            )[0, 1:].tolist()
        expected.append(ids[: ids.index(T5_END)] if T5_END in ids else ids)
    noise = np.zeros((len(expected), NEW_TOKENS, 1), dtype=np.float32)
    assert generator.generate_ids(passages(), ("en",), noise) == expected
    assert len({tuple(row) for row in expected}) > 10


def test_a_generator_without_a_language_in_its_prompt_writes_one(tmp_path: Path) -> None:
    checkpoint = str(generator_checkpoint("t5-1.1"))
    with pytest.raises(InputError, match=r"does not say which languages it writes\. Cure: give --languages"):
        export_checkpoint(checkpoint, tmp_path / "out", preset="doc2query-14langs")
    with pytest.raises(InputError, match=r"has no \{language\}, so t5-1\.1 cannot tell which of de, fr to write"):
        export_checkpoint(checkpoint, tmp_path / "out", preset="doc2query-14langs", languages=("de", "fr"))
    folder = export_checkpoint(checkpoint, tmp_path / "out", preset="doc2query-14langs", languages=("de",)).folder
    about = read_model_folder(folder, "generator").description
    assert (about["prompt"], about["languages"], about["max_input_tokens"]) == ("{text}", ["de"], 320)


def read_passage(folder: Path) -> dict[str, Any]:
    """Return what the encoder of a folder makes of one passage, as float32."""
    encoder = Session(folder / "encoder.onnx", "cpu", threads=1)
    ids = np.array([[11, 200, 35, 900, 41, 1300, 77, T5_END]], dtype=np.int64)
    found = dict(
        zip(encoder.output_names, encoder.run({"input_ids": ids, "attention_mask": np.ones_like(ids)}), strict=True)
    )
    for name in [name for name in found if "_scale_" in name]:
        scale = found.pop(name)
        part = name.replace("_scale", "")
        found[part] = found[part] * (scale.swapaxes(2, 3) if "key" in part else scale)
    return found


def test_int8_keeps_what_a_bert_decoder_reads_of_a_passage() -> None:
    expected, found = (
        read_passage(exported_generator("bert2bert")),
        read_passage(exported_generator("bert2bert", "int8")),
    )
    assert sorted(expected) == sorted(found) == ["cross_key_0", "cross_key_1", "cross_value_0", "cross_value_1"]
    for name, value in expected.items():
        cosine = (value * found[name]).sum() / np.linalg.norm(value) / np.linalg.norm(found[name])
        assert 0.999 < cosine < 0.9999999, name
    parity = read_parity(exported_generator("bert2bert", "int8"))
    # random weights leave the best tokens close together
    assert parity["int8"]["identical_greedy_queries"] > 0.5 * parity["inputs"]


def test_int8_reads_what_many_tokens_hold_beside_one_that_gets_most_of_the_attention(tmp_path: Path) -> None:
    """The first of 400 tokens gets e^8 times the attention of each other, which together get an eighth of it."""
    tokens, dim = 400, 32
    graph = Graph("attention", "int8")
    step = DecoderStep(graph, Heads(1, dim, int8=True), 1, np.zeros((1, LONGEST_OUTPUT), np.float32))
    query = graph.input("query", np.float32, ["rows", dim])
    graph.output(step.attend_passage(0, query), "attended", np.float32, ["rows", dim])
    graph.save(tmp_path / "attention.onnx")
    key, value = np.zeros((1, 1, dim, tokens), np.int8), np.zeros((1, 1, tokens, dim), np.int8)
    key[0, 0, 0, 0], value[0, 0, 0, 0], value[0, 0, 1:, 1] = 127, 127, 127
    feeds = {
        "query": np.eye(1, dim, dtype=np.float32), "ids": np.zeros(1, np.int64), "step": np.zeros(1, np.int64),
        "places": np.zeros((1, 1), np.int64), "row_places": np.zeros(1, np.int64),
        "attention_mask": np.ones((1, tokens), np.int64), "cross_key_0": key, "cross_value_0": value,
        "cross_key_scale_0": np.full((1, 1, 1, dim), 8 / 127, np.float32),
        "cross_value_scale_0": np.full((1, 1, 1, dim), 1 / 127, np.float32),
        "past_key_0": np.zeros((1, 1, 1, dim), np.float32), "past_value_0": np.zeros((1, 1, 1, dim), np.float32),
    }  # fmt: skip
    session = ort.InferenceSession(tmp_path / "attention.onnx", providers=["CPUExecutionProvider"])
    [attended] = session.run(None, {name: feeds[name] for name in (given.name for given in session.get_inputs())})
    others = (tokens - 1) * np.exp(-8)
    assert attended[0, :2] == pytest.approx([1 / (1 + others), others / (1 + others)], abs=0.001)


@pytest.mark.parametrize("equal", [True, False])
def test_equal_tables_of_a_bert_encoder_and_its_decoder_are_written_once(equal: bool, tmp_path: Path) -> None:
    reference = Reference(fetch_checkpoint(str(generator_checkpoint("bert2bert"))))
    weights = reference.weights()
    table = weights["decoder.bert.embeddings.word_embeddings.weight"]
    own = "encoder.embeddings.word_embeddings.weight"
    assert not np.array_equal(weights[own], table)
    if equal:
        weights[own] = table.copy()
    pair = Bert2Bert(weights, reference.config)
    pair.build_encoder(20).save(tmp_path / "encoder.onnx")
    pair.build_decoder().save(tmp_path / "decoder.onnx")
    pair.build_head().save(tmp_path / "head.onnx")
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert sizes["embedding.data"] == table.nbytes
    assert (sizes["encoder.onnx"] < table.nbytes) == equal
    assert max(sizes["decoder.onnx"], sizes["head.onnx"]) < table.nbytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder": {"position_embedding_type": "relative_key"}},
            r"unsupported position embeddings 'relative_key'\. Cure: export a checkpoint with absolute",
        ),
        (
            {"decoder": {"hidden_act": "relu"}},
            r"unsupported activation 'relu'\. Cure: export a checkpoint with activation",
        ),
        (
            {"decoder": {"add_cross_attention": False}},
            r"does not set add_cross_attention\. Cure: export a checkpoint that",
        ),
        ({"decoder": {"is_decoder": False}}, r"does not set is_decoder\. Cure: export a checkpoint that was trained"),
        ({"eos_token_id": [1, 2]}, r"has eos_token_id = \[1, 2\]; it must be one id"),
        ({"decoder": {"model_type": "gpt2"}}, "no graph of its own for the model type 'encoder-decoder'"),
    ],
)
def test_a_pair_of_berts_that_cannot_be_obeyed_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    config = json.loads((generator_checkpoint("bert2bert") / "config.json").read_text(encoding="utf-8"))
    for name, value in changes.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    edit_json(folder / "config.json", config)
    edit_json(folder / "generation_config.json", {"lang_to_id": LANGUAGE_TOKENS})
    (folder / "model.safetensors").touch()
    with pytest.raises(InputError, match=message):
        export_checkpoint(str(folder), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "message"),
    [("decoder_start_token_id", "names no decoder_start_token_id"), ("eos_token_id", "has eos_token_id = None")],
)
def test_a_pair_of_berts_needs_a_token_to_begin_and_one_to_end_with(name: str, message: str, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(generator_checkpoint("bert2bert"), tmp_path / "in")
    for file in ("config.json", "generation_config.json"):
        edit_json(checkpoint / file, {name: None, "lang_to_id": None})
    with pytest.raises(InputError, match=message):
        export_checkpoint(str(checkpoint), tmp_path / "out", prompt="{text}", languages=("fi",))


def test_the_lengths_of_a_pair_of_berts_are_limited_by_its_positions() -> None:
    about = read_model_folder(exported_generator("bert2bert"), "generator").description
    assert about["max_output_tokens"] == 16
    generator = QueryGenerator(exported_generator("bert2bert"), "cpu", threads=1)
    noise = np.zeros((3, 17, 1), dtype=np.float32)
    with pytest.raises(InputError, match=r"max_new_tokens is 17, more than the 16 of .* Cure: set --max-new-tokens"):
        generator.generate_ids(passages()[:1], generator.languages, noise)
    # the last of all positions
    assert max(map(len, generator.generate_ids(passages()[:1], generator.languages, noise[:, :16]))) <= 16
