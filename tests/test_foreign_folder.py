"""Encoders that other programs laid out, against those programs; `battery` has the hostile ones."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from checkpoints import LONGEST, corpus, edit_json, encoder_checkpoint
from click.testing import CliRunner
from devices import pad_runs
from foreign_folders import (
    DENSE_DIM,
    DIM,
    PIPELINES,
    PROMPTS,
    assert_refusal,
    make_pipeline,
    optimum_folder,
    sentence_transformers_folder,
    trace,
    whole_folder,
    write_counting_graph,
)
from onnx import TensorProto
from onnxruntime.quantization import quantize_dynamic
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from xqg_qdrant.cli import main
from xqg_qdrant.doctor import examine
from xqg_qdrant.errors import InputError, MismatchError, ModelError
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.inference.pooling import Pooler
from xqg_qdrant.model_folders import DEMO_GENERATOR, shipped_model
from xqg_qdrant.model_folders.files import hash_file
from xqg_qdrant.records import FloatArray
from xqg_qdrant.stores import open_store

# from one word to more than the models read
TEXTS = [text[: 3 + 17 * number] for number, text in enumerate(corpus()[20:40])] + list(corpus()[60:80])


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def describe(folder: Path, *options: str) -> None:
    done = CliRunner().invoke(main, ["describe", str(folder), *options])
    assert done.exit_code == 0, done.output


def assert_same(found: FloatArray, expected: FloatArray) -> None:
    """Compare in direction, which is what a search sees, and in length."""
    lengths = np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1)
    assert found.dtype == np.float32
    assert ((found * expected).sum(axis=1) / lengths[0] / lengths[1]).min() >= 0.99999
    np.testing.assert_allclose(lengths[0], lengths[1], rtol=1e-5)


def pool_with_transformers(checkpoint: str, texts: list[str], pooling: str, longest: int = LONGEST) -> FloatArray:
    """Pool one text after the other, by hand, without a mask that could be wrong."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder_checkpoint(checkpoint))
    model: Any = transformers.AutoModel.from_pretrained(encoder_checkpoint(checkpoint))
    vectors = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=longest)
        with torch.no_grad():
            tokens = model(inputs["input_ids"]).last_hidden_state[0]
        vectors.append({"cls": tokens[0], "mean": tokens.mean(dim=0), "last": tokens[-1]}[pooling].numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_folder_of_sentence_transformers_gives_its_vectors(name: str) -> None:
    folder = sentence_transformers_folder(name)
    encoder, reference = Encoder(folder, "cpu", 1), SentenceTransformer(str(folder), device="cpu")
    assert encoder.dim == (DENSE_DIM if name == "labse" else DIM)
    assert_same(encoder.encode_queries(TEXTS), reference.encode_query(TEXTS))
    assert_same(encoder.encode_passages(TEXTS), reference.encode_document(TEXTS))
    assert not np.allclose(encoder.encode_queries(TEXTS), encoder.encode_passages(TEXTS), atol=0.01)


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_a_folder_of_optimum_is_used_once_its_pooling_is_said(pooling: str, tmp_path: Path) -> None:
    folder = copy_of(optimum_folder("bert"), tmp_path)
    message = (
        r"does not say how the token vectors of model\.onnx become one .* Cure: .* xqg describe .*/model --pooling"
    )
    with pytest.raises(ModelError, match=message):
        Encoder(folder, "cpu", 1)
    describe(folder, "--pooling", pooling, "--no-normalise")
    assert_same(Encoder(folder, "cpu", 1).encode_queries(TEXTS), pool_with_transformers("bert", TEXTS, pooling))


def test_a_folder_of_fastembed_is_used_once_its_pooling_is_said(tmp_path: Path) -> None:
    folder = copy_of(optimum_folder("xlm-roberta"), tmp_path)
    (folder / "model.onnx").rename(folder / "model_optimized.onnx")
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
    with pytest.raises(ModelError, match=r"does not say how the token vectors of model_optimized\.onnx become one"):
        Encoder(folder, "cpu", 1)
    given = ("--pooling", "mean", "--normalise", "--query-prefix", "q: ", "--passage-prefix", "p: ")
    describe(folder, *given, "--max-query-tokens", "12")
    encoder = Encoder(folder, "cpu", 1)
    expected = pool_with_transformers("xlm-roberta", [f"p: {text}" for text in TEXTS], "mean")
    assert_same(encoder.encode_passages(TEXTS), expected / np.linalg.norm(expected, axis=1, keepdims=True))
    long = max(TEXTS, key=len)
    assert np.allclose(encoder.encode_queries([long]), encoder.encode_queries([long[:80]]), atol=0.01) is not False
    assert encoder.describe()["max_query_tokens"] == 12


@pytest.mark.parametrize("name", ["labse", "e5"])
def test_a_graph_that_gives_the_vectors_of_texts_needs_nothing_said(name: str) -> None:
    encoder = Encoder(whole_folder(name), "cpu", 1)
    expected = make_pipeline(name).encode(TEXTS, prompt="")
    assert encoder.dim == expected.shape[1]
    assert_same(encoder.encode_queries(TEXTS), expected)
    assert encoder.describe()["pooling"] == "in graph"


def test_modules_beside_a_graph_that_also_gives_the_vectors_of_texts_are_not_applied_twice(tmp_path: Path) -> None:
    folder = copy_of(sentence_transformers_folder("labse"), tmp_path)
    shutil.copy(whole_folder("labse") / "model.onnx", folder / "onnx" / "model.onnx")
    expected = Encoder(sentence_transformers_folder("labse"), "cpu", 1)
    encoder = Encoder(folder, "cpu", 1)
    assert_same(encoder.encode_queries(TEXTS), expected.encode_queries(TEXTS))
    assert encoder.describe()["pooling"] == "cls"


@pytest.mark.parametrize("name", PIPELINES)
def test_a_text_gets_the_same_vector_to_the_bit_whatever_stands_beside_it(name: str) -> None:
    encoder = Encoder(sentence_transformers_folder(name), "cpu", 1)
    together = encoder.encode_passages(TEXTS)
    np.testing.assert_array_equal(encoder.encode_passages(TEXTS[::-1])[::-1], together)
    np.testing.assert_array_equal(np.concatenate([encoder.encode_passages([text]) for text in TEXTS]), together)


def test_a_graph_with_one_scale_for_a_whole_batch_gives_the_same_vectors_to_the_bit_too(
    tmp_path: Path,
) -> None:
    folder = copy_of(sentence_transformers_folder("e5"), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_dynamic(folder / "onnx" / "model.onnx", folder / "onnx" / "model_quantized.onnx")
    (folder / "onnx" / "model.onnx").unlink()
    encoder = Encoder(folder, "cpu", 1)
    words = ["lake", "sea", "river", "Danube", "the", "of", "a", "in"]
    alone = np.concatenate([encoder.encode_queries([word]) for word in words])
    np.testing.assert_array_equal(encoder.encode_queries(words), alone)


def test_a_mean_of_large_numbers_of_float16_does_not_overflow() -> None:
    tokens = np.full((1, 4, 2), 40_000, dtype=np.float16)
    np.testing.assert_array_equal(Pooler("mean", (), False)(tokens, [4]), [[40_000, 40_000]])


@pytest.mark.parametrize("name", PIPELINES)
def test_padded_runs_as_on_a_gpu_give_nearly_the_same_vectors(name: str) -> None:
    encoder = Encoder(sentence_transformers_folder(name), "cpu", 1)
    alone = encoder.encode_passages(TEXTS)
    pad_runs(encoder)
    assert_same(encoder.encode_passages(TEXTS), alone)


@pytest.mark.parametrize(("ids", "vectors"), [("INT64", "FLOAT"), ("INT32", "FLOAT"), ("INT64", "FLOAT16")])
@pytest.mark.parametrize("padded", [False, True])
def test_each_pooling_is_what_its_name_says(ids: str, vectors: str, padded: bool, tmp_path: Path) -> None:
    folder = copy_of(optimum_folder("bert"), tmp_path)
    write_counting_graph(folder / "model.onnx", getattr(TensorProto, ids), getattr(TensorProto, vectors))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = ["Baikal", "the deepest lake of all", "the lake"]
    rows = [np.array(encoding.ids, dtype=np.float64) for encoding in tokenizer.encode_batch(texts)]
    assert len({len(row) for row in rows}) == 3
    by_hand = {
        "cls": [[row[0], 0, 1] for row in rows],
        "last": [[row[-1], len(row) - 1, 1] for row in rows],
        "mean": [[row.mean(), (len(row) - 1) / 2, 1] for row in rows],
    }
    for pooling, expected in by_hand.items():
        (folder / "xqg.json").unlink(missing_ok=True)
        describe(folder, "--pooling", pooling, "--no-normalise")
        encoder = Encoder(folder, "cpu", 1)
        if padded:
            pad_runs(encoder)
        np.testing.assert_allclose(encoder.encode_queries(texts), expected, rtol=1e-3 if vectors == "FLOAT16" else 1e-6)
    (folder / "xqg.json").unlink()
    describe(folder, "--pooling", "last", "--normalise")
    expected = np.array(by_hand["last"]) / np.linalg.norm(by_hand["last"], axis=1, keepdims=True)
    np.testing.assert_allclose(Encoder(folder, "cpu", 1).encode_queries(texts), expected, rtol=1e-3)


def test_weights_beside_the_graph_are_read_and_belong_to_the_checksum(tmp_path: Path) -> None:
    folder = copy_of(sentence_transformers_folder("e5"), tmp_path)
    expected = Encoder(folder, "cpu", 1)
    model = onnx.load(folder / "onnx" / "model.onnx")
    onnx.save(model, folder / "onnx" / "model.onnx", save_as_external_data=True, location="model.onnx_data")
    encoder = Encoder(folder, "cpu", 1)
    np.testing.assert_array_equal(encoder.encode_queries(TEXTS), expected.encode_queries(TEXTS))
    names = ["onnx/model.onnx", "onnx/model.onnx_data", "tokenizer.json"]
    assert encoder.folder.description["files"] == {name: hash_file(folder / name) for name in names}
    assert encoder.folder.sha256() != expected.folder.sha256()


def test_the_fingerprint_holds_what_decides_the_vectors(tmp_path: Path) -> None:
    folder = copy_of(sentence_transformers_folder("labse"), tmp_path)
    encoder = Encoder(folder, "cpu", 1)
    assert encoder.describe() == {
        "sha256": encoder.folder.sha256(), "pooling": "cls", "normalise": True, "query_prefix": "query: ",
        "passage_prefix": "passage: ", "max_query_tokens": LONGEST, "max_passage_tokens": LONGEST,
        "dtype": "as exported",
    }  # fmt: skip
    # What no field holds is in the checksum: another activation is another model.
    edit_json(folder / "2_Dense" / "config.json", {"activation_function": "torch.nn.modules.activation.ReLU"})
    other = Encoder(folder, "cpu", 1)
    assert other.folder.sha256() != encoder.folder.sha256()
    assert not np.allclose(other.encode_queries(TEXTS), encoder.encode_queries(TEXTS), atol=0.01)


def test_a_description_keeps_what_was_read_and_verifies_the_files_from_then_on(tmp_path: Path) -> None:
    folder = copy_of(sentence_transformers_folder("labse"), tmp_path)
    before = Encoder(folder, "cpu", 1)
    describe(folder)
    after = Encoder(folder, "cpu", 1)
    assert after.describe() == before.describe()
    np.testing.assert_array_equal(after.encode_queries(TEXTS), before.encode_queries(TEXTS))
    with (folder / "2_Dense" / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ModelError, match=r"2_Dense/model\.safetensors has sha256 .* but xqg\.json says"):
        Encoder(folder, "cpu", 1)


def test_a_folder_is_described_once(tmp_path: Path) -> None:
    folder = copy_of(optimum_folder("bert"), tmp_path)
    given = ["describe", str(folder), "--pooling", "cls", "--normalise"]
    assert CliRunner().invoke(main, given).exit_code == 0
    said = (folder / "xqg.json").read_bytes()
    again = CliRunner().invoke(main, given)
    assert again.exit_code == InputError.exit_code
    assert f"Cure: to describe it again, remove {folder / 'xqg.json'}" in again.stderr
    assert (folder / "xqg.json").read_bytes() == said


def test_what_is_given_wins_over_what_the_files_tell(tmp_path: Path) -> None:
    folder = copy_of(sentence_transformers_folder("e5"), tmp_path)
    describe(
        folder, "--pooling", "cls", "--no-normalise", "--query-prefix", "", "--passage-prefix", "x ",
        "--max-query-tokens", "9", "--max-passage-tokens", "11",
    )  # fmt: skip
    assert {name: value for name, value in Encoder(folder, "cpu", 1).describe().items() if name != "sha256"} == {
        "pooling": "cls", "normalise": False, "query_prefix": "", "passage_prefix": "x ", "max_query_tokens": 9,
        "max_passage_tokens": 11, "dtype": "as exported",
    }  # fmt: skip


def test_of_several_graphs_the_usual_one_is_taken_or_the_one_that_is_named(tmp_path: Path) -> None:
    folder = copy_of(sentence_transformers_folder("e5"), tmp_path)
    (folder / "onnx" / "model_quantized.onnx").write_bytes(b"none")
    assert Encoder(folder, "cpu", 1).graph == "onnx/model.onnx"
    (folder / "onnx" / "model.onnx").rename(folder / "onnx" / "model_O3.onnx")
    message = (
        r"several graphs: 'onnx/model_O3.onnx, onnx/model_quantized.onnx'. Cure: name one: xqg describe .* --graph"
    )
    with pytest.raises(ModelError, match=message):
        Encoder(folder, "cpu", 1)
    describe(folder, "--graph", "onnx/model_O3.onnx")
    assert_same(
        Encoder(folder, "cpu", 1).encode_queries(TEXTS),
        Encoder(sentence_transformers_folder("e5"), "cpu", 1).encode_queries(TEXTS),
    )


@pytest.mark.parametrize(
    ("prompts", "name"),
    [
        (PROMPTS, "document"),
        ({"query": "q ", "document": "", "passage": "p "}, "document"),
        ({"query": "q ", "corpus": "c "}, "corpus"),
        ({"passage": "p "}, "passage"),
    ],
)
def test_the_prompts_are_those_that_sentence_transformers_names(
    prompts: dict[str, str], name: str, tmp_path: Path
) -> None:
    folder = copy_of(sentence_transformers_folder("last"), tmp_path)
    edit_json(folder / "config_sentence_transformers.json", {"prompts": prompts})
    encoder, reference = Encoder(folder, "cpu", 1), SentenceTransformer(str(folder), device="cpu")
    assert_same(encoder.encode_queries(TEXTS[:4]), reference.encode_query(TEXTS[:4]))
    assert_same(encoder.encode_passages(TEXTS[:4]), reference.encode(TEXTS[:4], prompt_name=name))


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, LONGEST),
        ({"sentence_bert_config.json": {"max_seq_length": 16}}, 16),
        ({"tokenizer_config.json": {"model_max_length": 20}}, 20),
        ({"tokenizer_config.json": {"model_max_length": 10**30}}, LONGEST),
        ({"config.json": {"max_position_embeddings": 30, "pad_token_id": 3}}, 26),
    ],
)
def test_a_text_is_cut_at_the_least_length_that_the_files_tell(
    changes: dict[str, dict[str, Any]], length: int, tmp_path: Path
) -> None:
    folder = copy_of(sentence_transformers_folder("e5"), tmp_path)
    edit_json(folder / "tokenizer_config.json", {"model_max_length": 10**30})
    for name, fields in changes.items():
        edit_json(folder / name, fields)
    described = Encoder(folder, "cpu", 1).describe()
    assert (described["max_query_tokens"], described["max_passage_tokens"]) == (length, length)


def test_a_length_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    folder = copy_of(sentence_transformers_folder("last"), tmp_path)
    edit_json(folder / "config.json", {"max_position_embeddings": None})
    edit_json(folder / "tokenizer_config.json", {"model_max_length": None})
    with pytest.raises(ModelError, match=r"does not say how many tokens a text may have\. Cure: set it: xqg describe"):
        Encoder(folder, "cpu", 1)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "prompt left out": ("1_Pooling/config.json", {"include_prompt": False}, "leaves its prompts out of the pooling"),
    "pooling by maximum": ("1_Pooling/config.json", {"pooling_mode": "max"}, "pools by ['max']"),
    "no pooling": ("1_Pooling/config.json", {"pooling_mode": None}, "pools by []"),
    "two poolings": ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "pools by [['cls', 'mean']]"),
    "old flags": (
        "1_Pooling/config.json",
        {"pooling_mode": None, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
        "pools by ['cls_token', 'max_tokens']",
    ),
    "layer with another output": (
        "2_Dense/config.json",
        {"module_output_name": "token_embeddings"},
        "'token_embeddings'",
    ),
    "tokens normalised": ("3_Normalize/config.json", {"module_input_name": "token_embeddings"}, "'token_embeddings'"),
    "residual": ("2_Dense/config.json", {"use_residual": True}, "adds its input"),
    "activation": ("2_Dense/config.json", {"activation_function": "os.abort"}, "has the activation 'os.abort'"),
    "no bias": ("2_Dense/config.json", {"bias": False}, "but ['linear.weight'] is needed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_here_is_refused_with_its_cure(name: str, tmp_path: Path) -> None:
    file, changes, said = REFUSED[name]
    folder = copy_of(sentence_transformers_folder("labse"), tmp_path)
    edit_json(folder / file, changes)
    with pytest.raises(ModelError) as caught:
        Encoder(folder, "cpu", 1)
    assert_refusal(caught.value, folder, said)


def test_a_layer_that_names_no_activation_has_the_default_of_sentence_transformers(tmp_path: Path) -> None:
    folder = copy_of(sentence_transformers_folder("labse"), tmp_path)
    config = json.loads((folder / "2_Dense" / "config.json").read_text())
    del config["activation_function"]
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    reference = SentenceTransformer(str(folder), device="cpu")
    assert_same(Encoder(folder, "cpu", 1).encode_queries(TEXTS), reference.encode_query(TEXTS))


def test_the_old_form_of_pooling_is_understood(tmp_path: Path) -> None:
    folder = copy_of(sentence_transformers_folder("labse"), tmp_path)
    flags = {"pooling_mode": None, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    edit_json(folder / "1_Pooling" / "config.json", flags)
    assert Encoder(folder, "cpu", 1).describe()["pooling"] == "cls"


def test_a_pipeline_of_other_modules_is_refused(tmp_path: Path) -> None:
    folder = copy_of(sentence_transformers_folder("e5"), tmp_path)
    modules = json.loads((folder / "modules.json").read_text())
    for kinds in (
        ["custom_st.Transformer", *(module["type"] for module in modules[1:])],
        [module["type"] for module in modules[::-1]],
        [modules[0]["type"]],
    ):
        named = [{"type": kind, "path": module["path"]} for kind, module in zip(kinds, modules, strict=False)]
        (folder / "modules.json").write_text(json.dumps(named))
        with pytest.raises(ModelError, match=r"is a pipeline of .*; xqg supports Transformer, .* Cure"):
            Encoder(folder, "cpu", 1)


def test_a_pooling_that_is_said_of_a_graph_that_pools_is_refused(tmp_path: Path) -> None:
    folder = copy_of(whole_folder("labse"), tmp_path)
    model = onnx.load(folder / "model.onnx")
    del model.graph.output[0]
    onnx.save(model, folder / "model.onnx")
    done = CliRunner().invoke(main, ["describe", str(folder), "--pooling", "cls", "--normalise"])
    assert done.exit_code == ModelError.exit_code
    assert "pools inside.\nCure: leave out --pooling" in done.stderr
    assert not (folder / "xqg.json").exists()


def test_a_checkpoint_without_a_graph_is_sent_to_the_export() -> None:
    with pytest.raises(ModelError, match=r"no graph: it is a checkpoint, or half copied. Cure: export it: xqg export"):
        Encoder(encoder_checkpoint("bert"), "cpu", 1)


def test_the_command_line_ingests_and_asks_with_such_a_folder(tmp_path: Path) -> None:
    folder = str(sentence_transformers_folder("e5"))
    corpus_file, store = tmp_path / "corpus.jsonl", str(tmp_path / "store")
    rows = [{"id": number, "text": text, "generated_queries": [text[:9]]} for number, text in enumerate(TEXTS[20:])]
    corpus_file.write_text("\n".join(map(json.dumps, rows)))
    place = ["--collection", "docs", "--store", store, "--encoder", folder, "--device", "cpu"]
    done = CliRunner().invoke(main, ["-q", "ingest", str(corpus_file), *place, "--queries", "corpus"])
    assert done.exit_code == 0, done.output
    asked = CliRunner().invoke(main, ["query", *place, "--limit", "1", TEXTS[25]])
    assert asked.exit_code == 0, asked.output
    other = str(sentence_transformers_folder("last"))
    refused = CliRunner().invoke(main, ["query", *[other if word == folder else word for word in place], "a question"])
    assert refused.exit_code == MismatchError.exit_code
    for field in ("sha256", "pooling", "normalise"):
        assert f"encoder.{field}: stored" in refused.stderr


def test_doctor_runs_such_a_folder(tmp_path: Path) -> None:
    location = str(tmp_path / "store")
    folders = sentence_transformers_folder("labse"), shipped_model(DEMO_GENERATOR)
    checks = {check.name: check for check in examine(location, lambda: open_store(location), *folders, "cpu")}
    assert checks["encoder"].state == "ok", checks["encoder"].detail
    assert "labse, as exported, sha256" in checks["encoder"].detail
    assert "ran on cpu (model.onnx: " in checks["encoder"].detail
    assert checks["passage"].state in ("ok", "warning"), checks["passage"].detail


def test_a_traced_graph_is_no_folder_of_ours(tmp_path: Path) -> None:
    trace("bert", tmp_path / "model.onnx")
    shutil.copy(encoder_checkpoint("bert") / "tokenizer.json", tmp_path)
    with pytest.raises(ModelError, match=r"lacks xqg.json: it is half written, or not a model folder"):
        Encoder(tmp_path, "cpu", 1)
