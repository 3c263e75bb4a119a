"""Architectures that xqg has no graph for are traced by optimum, checked against transformers, and quantised.

optimum-onnx wants an older transformers than the other tests, so those that trace run in an environment of their own:

    python -m venv optimum && optimum/bin/pip install '.[optimum]' pytest pytest-xdist hypothesis
    optimum/bin/python -m pytest -o addopts= tests/test_traced.py
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoints import (
    DEFAULT_OPTIONS,
    LONGEST_PROMPT,
    MBART_TOKENS,
    NEW_TOKENS,
    TRACED_ENCODERS,
    TRACED_GENERATORS,
    XLMR_SPECIALS,
    edit_json,
    passages,
    save_st_files,
    save_traced_encoder,
    save_traced_generator,
)
from onnx import TensorProto, helper, numpy_helper

from xqg_qdrant.errors import InputError, ModelError
from xqg_qdrant.export import export_checkpoint
from xqg_qdrant.export.traced import complete_generation, describe_generator, quantise_traced
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.inference.session import Session
from xqg_qdrant.model_folders import read_model_folder
from xqg_qdrant.model_folders.generator_settings import GeneratorSettings

IS_INSTALLED = importlib.util.find_spec("optimum") is not None
with_optimum = pytest.mark.skipif(
    not IS_INSTALLED, reason="optimum-onnx is not installed: it wants an older transformers"
)
# transformers 4.57 compiles parts of two architectures in a way that torch 2.13 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
PROMPTED: dict[str, Any] = {"prompt": "{language}: {title} {text}", "languages": ("fi", "ja", "ru")}
LANGUAGE_IDS = {code[:2]: len(XLMR_SPECIALS) + place for place, code in enumerate(MBART_TOKENS)}


@with_optimum
@pytest.mark.parametrize("model_type", TRACED_ENCODERS)
def test_a_traced_encoder_gives_the_vectors_of_transformers(model_type: str, tmp_path: Path) -> None:
    checkpoint = save_traced_encoder(tmp_path / "in", model_type)
    done = export_checkpoint(str(checkpoint), tmp_path / "out", dtype="int8", **DEFAULT_OPTIONS)
    assert done.kind == "encoder"
    assert done.parity["float32"]["lowest_cosine"] >= 0.9999
    assert done.parity["int8"]["lowest_cosine"] >= 0.97
    encoder = Encoder(done.folder, "cpu")
    texts = [passage.text for passage in passages()]
    assert encoder.encode_passages(texts[:1])[0].tolist() == encoder.encode_passages(texts)[0].tolist()
    assert encoder.source == "in"


@with_optimum
@pytest.mark.parametrize("model_type", TRACED_GENERATORS)
def test_a_traced_generator_writes_the_greedy_queries_of_transformers(model_type: str, tmp_path: Path) -> None:
    checkpoint = save_traced_generator(tmp_path / "in", model_type)
    lengths: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "max_input_tokens": LONGEST_PROMPT - 1}
    done = export_checkpoint(str(checkpoint), tmp_path / "out", dtype="int8", **PROMPTED, **lengths)
    assert done.kind == "generator"
    assert done.parity["float32"]["identical_greedy_queries"] == done.parity["inputs"]
    assert done.parity["int8"]["identical_greedy_queries"] > 0
    generator = QueryGenerator(done.folder, "cpu")
    noise = np.zeros((6, NEW_TOKENS, 1), dtype=np.float32)
    written = generator.generate_ids(passages()[5:7], PROMPTED["languages"], noise)
    assert len({tuple(ids) for ids in written}) > 1
    if model_type == "mbart":
        assert [generator.first_id(language) for language in ("fi", "ja", "ru")] == [*LANGUAGE_IDS.values()]


@with_optimum
def test_dense_layers_and_prompts_of_a_traced_encoder_are_kept(tmp_path: Path) -> None:
    checkpoint = save_traced_encoder(tmp_path / "in", "distilbert")
    tanh = "torch.nn.modules.activation.Tanh"
    save_st_files(checkpoint, "cls_token", (32, 24, True, tanh), prompts={"query": "q: ", "document": "d: "})
    done = export_checkpoint(str(checkpoint), tmp_path / "out")
    assert done.parity["float32"]["lowest_cosine"] >= 0.9999
    about = read_model_folder(done.folder, "encoder").description
    assert (about["pooling"], about["normalise"], about["dense"]) == ("cls", True, ["2_Dense"])
    assert (about["query_prefix"], about["passage_prefix"]) == ("q: ", "d: ")
    assert Encoder(done.folder, "cpu").dim == 24


@with_optimum
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, r"optimum traces is not exported in float16\. Cure: choose --dtype float32 or int8"),
        ({"pooling": None}, r"names no supported pooling\. Cure: give --pooling cls, mean or last"),
    ],
)
def test_what_a_traced_graph_cannot_have_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint = save_traced_encoder(tmp_path / "in", "electra")
    with pytest.raises(InputError, match=message):
        export_checkpoint(str(checkpoint), tmp_path / "out", **{**DEFAULT_OPTIONS, **options})
    assert not (tmp_path / "out").exists()


@with_optimum
def test_a_type_that_optimum_does_not_know_either_is_refused(tmp_path: Path) -> None:
    edit_json(tmp_path / "in" / "config.json", {"model_type": "clevernet"})
    message = r"neither xqg nor optimum exports a model of kind 'encoder' and type 'clevernet' .* Cure: export"
    with pytest.raises(InputError, match=message):
        export_checkpoint(str(tmp_path / "in"), tmp_path / "out")


@pytest.mark.skipif(IS_INSTALLED, reason="optimum-onnx is installed")
def test_without_optimum_the_refusal_names_the_extra_and_its_environment(tmp_path: Path) -> None:
    edit_json(tmp_path / "in" / "config.json", {"model_type": "mpnet"})
    message = r"no graph of its own for the model type 'mpnet' .* Cure: .*python -m venv .* 'xqg-qdrant\[optimum\]'"
    with pytest.raises(InputError, match=message):
        export_checkpoint(str(tmp_path / "in"), tmp_path / "out")


SETTINGS = GeneratorSettings("{text}", ("fi", "ru"), {}, (), 60, 10, 1.0, 12)


@pytest.mark.parametrize(
    ("generation", "tokens", "prefix", "first"),
    [
        ({}, {}, [], 2),
        ({"forced_bos_token_id": 0}, {}, [2], 0),
        # mBART-50 and M2M100: the language follows the decoder's own token.
        ({}, {"fi": 7, "ru": 8}, [2], 2),
        # mBART-25: the language is that token.
        ({"decoder_start_token_id": 9, "forced_bos_token_id": 0}, {"fi": 7, "ru": 9}, [], 0),
    ],
)
def test_a_decoder_begins_as_in_transformers(
    generation: dict[str, Any], tokens: dict[str, int], prefix: list[int], first: int
) -> None:
    said = {"lang_to_id": tokens, **generation}
    config = {"decoder_start_token_id": 2, "max_position_embeddings": 64}
    about = describe_generator(config, said, SETTINGS._replace(language_tokens=tokens))
    assert (about["decoder_prefix_ids"], about["decoder_start_id"], about["max_output_tokens"]) == (prefix, first, 62)


def test_a_decoder_without_a_first_token_is_refused() -> None:
    with pytest.raises(InputError, match=r"names no decoder_start_token_id\. Cure: write it into generation_config"):
        describe_generator({}, {}, SETTINGS)


def test_languages_are_found_by_their_tokens_and_forbidden_tokens_are_suppressed() -> None:
    from tokenizers import Tokenizer, models

    names = ["<s>", "fi_FI", "ja_XX", "__sw__", "__xx__", "ru_RUS", "en"]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<s>"))
    generation = {"bad_words_ids": [[5], [1, 2]], "suppress_tokens": [3]}
    for model_type, found in (("mbart", {"fi": 1, "ja": 2, "sw": 3}), ("bart", {})):
        complete = complete_generation(model_type, generation, tokenizer)
        assert (complete["lang_to_id"], complete["suppress_tokens"]) == (found, [3, 5])


def save_traced_graph(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, Any]) -> None:
    stored = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(
        nodes,
        "traced",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "tokens", 8])],
        stored,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def test_int8_stores_weights_with_one_scale_a_row_and_ignores_the_other_texts(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    # Rows of very different sizes: with one scale for all, the smaller ones would vanish.
    table, inner = random.normal(size=(90, 48)), random.normal(size=(48, 48)) * np.geomspace(0.001, 1, 48)
    outer = random.normal(size=(8, 48))
    path = tmp_path / "model.onnx"
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("MatMul", ["rows", "inner"], ["middle"]),
        helper.make_node("Tanh", ["middle"], ["bent"]),
        helper.make_node("Transpose", ["outer"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["bent", "turned"], ["last_hidden_state"]),
    ]
    save_traced_graph(path, nodes, {"table": table, "inner": inner, "outer": outer})
    plain = path.stat().st_size
    quantise_traced(path)
    assert path.stat().st_size < plain * 0.6
    stored = onnx.load(path).graph
    assert {node.op_type for node in stored.node} & {"MatMul", "Gemm"} == set()
    large = [tensor for tensor in stored.initializer if np.prod(tensor.dims) > 90]
    assert {tensor.data_type for tensor in large} == {TensorProto.INT8}

    ids = random.integers(0, 90, size=(2, 7))
    expected = np.tanh(table[ids] @ inner) @ outer.T
    session = Session(path, "cpu")
    [found] = session.run({"input_ids": ids})
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
    assert session.run({"input_ids": ids[:1]})[0].tolist() == found[:1].tolist()


def test_int8_of_a_graph_without_stored_products_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    save_traced_graph(
        path, [helper.make_node("Gather", ["t", "input_ids"], ["last_hidden_state"])], {"t": np.ones((9, 8))}
    )
    with pytest.raises(InputError, match=r"model.onnx multiplies by no stored weight.* Cure: .* --dtype float32"):
        quantise_traced(path)


@with_optimum
def test_a_damaged_prefix_is_refused_with_its_field(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    lengths: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "max_input_tokens": 20}
    export_checkpoint(str(save_traced_generator(tmp_path / "in", "bart")), folder, **PROMPTED, **lengths)
    about = json.loads((folder / "xqg.json").read_text(encoding="utf-8"))
    assert about["decoder_prefix_ids"] == [2]
    shutil.copy(folder / "xqg.json", tmp_path)
    edit_json(folder / "xqg.json", {"decoder_prefix_ids": [-1]})
    with pytest.raises(ModelError, match=r"decoder_prefix_ids = \[-1\]; it must be a list of ids, from 0 to"):
        QueryGenerator(folder, "cpu")
