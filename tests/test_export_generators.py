"""Generators as published: SentencePiece tokenizers, prompts without a language, presets."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from checkpoints import NEW_TOKENS, T5_END, corpus, edit_json, generator_checkpoint, passages, save_t5

from xqg_qdrant.errors import InputError
from xqg_qdrant.export import export_checkpoint
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.tokenizer import open_tokenizer
from xqg_qdrant.model_folders import read_model_folder


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
