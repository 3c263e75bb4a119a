"""Encoders as published: architectures, modules after them, prompts, presets; refusals."""

from __future__ import annotations

import json
import pickle
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
import transformers
from bfloat16 import emulate_folder
from checkpoints import (
    ENCODERS,
    LONGEST,
    QWEN_END,
    corpus,
    edit_json,
    encoder_checkpoint,
    exported_encoder,
    publish_gte,
    read_parity,
    save_encoder,
    save_st_files,
)
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, normalizers

from xqg_qdrant.cli import main
from xqg_qdrant.errors import InputError, ModelError
from xqg_qdrant.export import ENCODER_OPTIONS, GENERATOR_OPTIONS, export_checkpoint
from xqg_qdrant.export.checkpoint import build_encoder, fetch_checkpoint
from xqg_qdrant.export.pooling import Head
from xqg_qdrant.export.quantise import Sample
from xqg_qdrant.export.reference import Reference
from xqg_qdrant.export.rotary import translate_config
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.inference.session import Session
from xqg_qdrant.languages import LANGUAGES
from xqg_qdrant.model_folders import read_model_folder
from xqg_qdrant.model_folders.presets import PRESETS, find_preset

Array = npt.NDArray[Any]
TEXTS = [text[: 1 + 5 * number] for number, text in enumerate(corpus()[40:52])] + list(corpus()[60:90:2])
POOLINGS = {"gte": "cls", "xlm-roberta": "cls", "qwen3": "last"}


@cache
def read_ids(name: str) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(encoder_checkpoint(name) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    return [encoding.ids for encoding in tokenizer.encode_batch(TEXTS)]


def pad(rows: list[list[int]], side: str) -> dict[str, Array]:
    """Return a batch padded on one side, with a word's id."""
    longest = max(map(len, rows))
    ids, mask = np.full((len(rows), longest), 9), np.zeros((len(rows), longest), dtype=np.int64)
    for place, row in enumerate(rows):
        where = slice(None, len(row)) if side == "right" else slice(longest - len(row), None)
        ids[place, where], mask[place, where] = row, 1
    return {"input_ids": ids.astype(np.int64), "attention_mask": mask}


def encode_alone(model: Any, rows: list[list[int]], pooling: str) -> Array:  # noqa: ANN401
    """Return transformers' vectors of unpadded texts, run one by one and pooled in float64."""
    vectors = []
    for row in rows:
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([row])).last_hidden_state[0].double().numpy()
        vectors.append({"cls": hidden[0], "mean": hidden.mean(axis=0), "last": hidden[-1]}[pooling])
    return np.stack(vectors)


def lowest_cosine(left: Array, right: Array) -> float:
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / lengths).min())


def plain_encoder(name: str, dtype: str = "float32") -> Path:
    return exported_encoder(name, dtype, pooling=POOLINGS.get(name, "mean"), normalise=False)


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_on_either_side_does_not_change_a_vector(name: str) -> None:
    folder, pooling = plain_encoder(name), POOLINGS.get(name, "mean")
    model = transformers.AutoModel.from_pretrained(encoder_checkpoint(name)).eval()
    rows = read_ids(name)
    expected = encode_alone(model, rows, pooling)
    session = Session(folder / "model.onnx", "cpu", threads=1)
    for side in ("right", "left"):
        [found] = session.run(pad(rows, side))
        assert lowest_cosine(expected, found) >= 0.9999, side
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=5e-5)
    assert len({len(row) for row in rows}) > 8
    assert lowest_cosine(expected[:-1], expected[1:]) < 0.95


# Half precision walks the same branches in both types.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("gte", "int8"), ("qwen3", "int8"), ("gemma3", "int8"),
        ("gte", "bfloat16"), ("qwen3", "float16"), ("gemma3", "bfloat16"),
    ],
)  # fmt: skip
def test_other_dtypes_of_the_newer_architectures_stay_close(name: str, dtype: str, tmp_path: Path) -> None:
    folder = plain_encoder(name, dtype)
    lowest = {"int8": 0.99, "float16": 0.9999, "bfloat16": 0.999}[dtype]
    if dtype == "bfloat16":
        emulate_folder(folder, "encoder", tmp_path / "emulated")
        folders = (plain_encoder(name), tmp_path / "emulated")
        expected, found = (Encoder(path, "cpu").encode_passages(TEXTS).astype(float) for path in folders)
        sizes = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
        assert lowest < ((expected * found).sum(axis=1) / sizes).mean() < 0.9999999
    else:
        assert lowest < read_parity(folder)[dtype]["mean_cosine"] < 0.9999999
    graph = onnx.load(folder / "model.onnx").graph
    half = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16, "int8": onnx.TensorProto.INT8}
    matrices = [tensor for tensor in graph.initializer if len(tensor.dims) == 2 and min(tensor.dims) > 1]
    assert {tensor.data_type for tensor in matrices} == {half[dtype]}
    assert ("attention_mask" in [value.name for value in graph.input]) == (dtype != "int8")
    attentions = [node.attribute for node in graph.node if node.op_type == "Attention"]
    precisions = [field.i for attributes in attentions for field in attributes if field.name == "softmax_precision"]
    assert precisions == ([onnx.TensorProto.FLOAT] * len(attentions) if dtype != "int8" else [])


def test_a_few_wide_channels_do_not_spoil_the_others_in_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = save_encoder(tmp_path / "in", "qwen3")
    weights = load_file(checkpoint / "model.safetensors")
    # an equivalent model: the norms scale two channels up, the products after them scale them down
    for name, weight in weights.items():
        if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
            weight[3:5] *= 60
        elif name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")):
            weight[:, 3:5] /= 60
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    even = export_checkpoint(str(checkpoint), tmp_path / "even", dtype="int8", pooling="last").parity

    def keep_channels(seen: Sample, weight: Array) -> Array:
        return np.ones(len(seen.low), np.float32)

    monkeypatch.setattr("xqg_qdrant.export.quantise.choose_factors", keep_channels)
    uneven = export_checkpoint(str(checkpoint), tmp_path / "uneven", dtype="int8", pooling="last").parity
    assert even["int8"]["mean_cosine"] > 0.999 > 0.99 > uneven["int8"]["mean_cosine"]


def enlarge(checkpoint: Path, ending: str, factor: float) -> None:
    """Multiply the weights of a checkpoint whose names have this ending."""
    weights = load_file(checkpoint / "model.safetensors")
    larger = {name: value * np.float32(factor if name.endswith(ending) else 1) for name, value in weights.items()}
    save_file(larger, checkpoint / "model.safetensors", {"format": "pt"})


def test_sums_and_inner_layers_beyond_float16_do_no_harm(tmp_path: Path) -> None:
    checkpoint = save_encoder(tmp_path / "in", "qwen3")
    enlarge(checkpoint, "up_proj.weight", 4e4)
    done = export_checkpoint(str(checkpoint), tmp_path / "out", dtype="float16", pooling="mean")
    assert done.parity["float16"]["lowest_cosine"] > 0.9999


def test_an_attention_beyond_float16_is_not_written(tmp_path: Path) -> None:
    checkpoint = save_encoder(tmp_path / "in", "qwen3")
    enlarge(checkpoint, "v_proj.weight", 4e4)
    with pytest.raises(ModelError, match=r"in overflows the type .* Cure: choose --dtype bfloat16 or float32\."):
        export_checkpoint(str(checkpoint), tmp_path / "out", dtype="float16", pooling="mean")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# published name → architecture, pooling, dense layers, prompts
PUBLISHED: dict[str, tuple[str, str, list[tuple[int, int, bool, str]], dict[str, str]]] = {
    "labse": ("bert", "cls_token", [(32, 32, True, "torch.nn.modules.activation.Tanh")], {}),
    "embeddinggemma": (
        "gemma3", "mean_tokens",
        [(32, 64, False, "torch.nn.modules.linear.Identity"), (64, 32, False, "torch.nn.modules.linear.Identity")],
        {"query": "task: search result | query: ", "document": "title: none | text: "},
    ),
    "qwen3-embedding": ("qwen3", "lasttoken", [], {"query": "Instruct: Find it\nQuery:", "document": ""}),
    "arctic-m": ("gte", "cls_token", [], {"query": "query: "}),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_layout_returns_the_vectors_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    architecture, pooling, dense, prompts = PUBLISHED[name]
    checkpoint = save_st_files(save_encoder(tmp_path / "in", architecture), pooling, *dense, prompts=prompts)
    edit_json(checkpoint / "sentence_bert_config.json", {"max_seq_length": 30})
    # decoders are padded on the left
    side = "left" if architecture in ("qwen3", "gemma3") else "right"
    edit_json(checkpoint / "tokenizer_config.json", {"padding_side": side})
    encoder = Encoder(export_checkpoint(str(checkpoint), tmp_path / "out").folder, "cpu", threads=1)
    reference = library.SentenceTransformer(str(checkpoint), device="cpu")
    for side, encode in (("query", encoder.encode_queries), ("document", encoder.encode_passages)):
        prompt = prompts.get(side, "")
        expected = reference.encode(TEXTS, prompt=prompt, batch_size=9, show_progress_bar=False)
        found = encode(TEXTS)
        assert lowest_cosine(expected, found) >= 0.9999
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-5)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert encoder.dim == 32


def test_a_dense_layer_sets_the_dimension_of_a_vector(tmp_path: Path) -> None:
    checkpoint = save_encoder(tmp_path / "in", "bert")
    save_st_files(checkpoint, "mean_tokens", (32, 20, True, "torch.nn.modules.activation.Tanh"), normalise=False)
    folder = export_checkpoint(str(checkpoint), tmp_path / "out").folder
    model = transformers.AutoModel.from_pretrained(checkpoint).eval()
    weights = load_file(checkpoint / "2_Dense" / "model.safetensors")
    pooled = encode_alone(model, read_ids("bert"), "mean")
    expected = np.tanh(pooled @ weights["linear.weight"].T.astype(np.float64) + weights["linear.bias"])
    np.testing.assert_allclose(Encoder(folder, "cpu").encode_passages(TEXTS), expected, rtol=1e-3, atol=2e-5)
    assert read_model_folder(folder, "encoder").description["dim"] == 20


def test_the_end_token_of_a_tokenizer_file_is_kept() -> None:
    tokenizer = Tokenizer.from_file(str(plain_encoder("qwen3") / "tokenizer.json"))
    assert [tokenizer.encode(text).tokens[-1] for text in ("", "the", "Дунай")] == [QWEN_END] * 3


def test_a_tokenizer_file_is_used_as_it_is_where_transformers_would_build_another(tmp_path: Path) -> None:
    checkpoint = save_encoder(tmp_path / "in", "qwen3")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    theirs: Any = transformers.AutoTokenizer.from_pretrained(checkpoint)
    folder = export_checkpoint(str(checkpoint), tmp_path / "out", pooling="last").folder
    found = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("The The").ids
    assert found == tokenizer.encode("the the").ids != theirs("The The")["input_ids"]


@pytest.mark.parametrize("lowercase", [True, False])
def test_the_configuration_beside_a_bert_tokenizer_decides_whether_it_lowercases(
    lowercase: bool, tmp_path: Path
) -> None:
    checkpoint = save_encoder(tmp_path / "in", "bert")
    # as on the hub: this file has the setting, tokenizer.json the vocabulary
    changes = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}
    edit_json(checkpoint / "tokenizer_config.json", changes)
    tokenizer = Reference(fetch_checkpoint(str(checkpoint))).tokenizer()
    assert (tokenizer.encode("Lake Titicaca").ids == tokenizer.encode("lake titicaca").ids) == lowercase


def test_padding_and_truncation_in_a_tokenizer_file_are_removed(tmp_path: Path) -> None:
    checkpoint = save_encoder(tmp_path / "in", "minilm")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8, pad_id=1, pad_token="<pad>")
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    folder = export_checkpoint(str(checkpoint), tmp_path / "out", pooling="mean", normalise=False).folder
    model = transformers.AutoModel.from_pretrained(checkpoint).eval()
    expected = encode_alone(model, read_ids("minilm"), "mean")
    written = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for found in (written, Reference(fetch_checkpoint(str(checkpoint))).tokenizer()):
        assert found.padding is None
        assert found.truncation is None
    np.testing.assert_allclose(Encoder(folder, "cpu").encode_passages(TEXTS), expected, rtol=1e-3, atol=5e-5)


@cache
def gte() -> Any:  # noqa: ANN401
    return transformers.AutoModel.from_pretrained(encoder_checkpoint("gte")).eval()


def test_a_published_gte_is_read_without_its_code_and_rotates_as_its_code_does(tmp_path: Path) -> None:
    scaling = {"type": "ntk", "factor": 8.0}
    checkpoint = publish_gte(tmp_path / "in", gte(), rope_theta=20.0, rope_scaling=scaling)
    folder = export_checkpoint(str(checkpoint), tmp_path / "out", pooling="cls", normalise=False).folder
    # NTK scaling as the authors define it: a larger base, and frequencies divided by the factor's share of a pair
    model: Any = transformers.AutoModel.from_pretrained(encoder_checkpoint("gte")).eval()
    pairs = torch.arange(0, 8, 2) / 8
    model.rotary_emb.inv_freq = (20.0 * 8.0) ** -pairs / 8.0 ** (2 / 8)
    expected = encode_alone(model, read_ids("gte"), "cls")
    found = Encoder(folder, "cpu").encode_passages(TEXTS)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-5)
    unscaled = encode_alone(gte(), read_ids("gte"), "cls")
    assert lowest_cosine(unscaled, found) < 0.999  # the scaling has an effect
    assert read_model_folder(folder, "encoder").description["source"] == "in"


@pytest.mark.parametrize(
    ("prefix", "config"),
    [
        ("new.", {"rope_scaling": None}),
        (
            "",
            {
                "model_type": "gte",
                "rope_scaling": None,
                "unpad_inputs": "true",
                "use_memory_efficient_attention": "true",
            },
        ),
    ],
)
def test_a_published_gte_without_scaling_rotates_by_its_base(
    prefix: str, config: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = publish_gte(tmp_path / "in", gte(), prefix, rope_theta=30.0, **config)
    folder = export_checkpoint(str(checkpoint), tmp_path / "out", pooling="cls", normalise=False).folder
    expected = encode_alone(gte(), read_ids("gte"), "cls")
    np.testing.assert_allclose(Encoder(folder, "cpu").encode_passages(TEXTS), expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"position_embedding_type": "absolute"},
            "unsupported position_embedding_type 'absolute' .* Cure: export a checkpoint with .*_type 'rope'",
        ),
        ({"layer_norm_type": "rms_norm"}, "unsupported layer_norm_type 'rms_norm'"),
        ({"pack_qkv": False}, "unsupported pack_qkv False .* Cure: export a checkpoint with pack_qkv True"),
        ({"logn_attention_scale": True}, "unsupported logn_attention_scale True"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "unsupported rope_scaling .* of type 'ntk'"),
        (
            {"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.6}},
            "unsupported rope_scaling .* without mixed_b",
        ),
    ],
)
def test_what_transformers_own_gte_does_not_support_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        translate_config({"hidden_size": 32, "num_attention_heads": 4, "rope_theta": 20.0, **changes})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gte", {"hidden_act": "relu"}, "unsupported activation 'relu' in a gte. Cure: export .* activation gelu"),
        ("qwen3", {"hidden_act": "gelu"}, "unsupported activation 'gelu' in a qwen3. Cure: export .* activation silu"),
        ("gemma3", {"hidden_activation": "silu"}, "unsupported activation 'silu' in a gemma3_text"),
        ("gemma3", {"attn_logit_softcapping": 30.0}, "unsupported attn_logit_softcapping. Cure: export"),
        (
            "qwen3",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 50.0, "factor": 2.0}},
            "unsupported rotary positions of type 'dynamic'. Cure: export a checkpoint with rope_type default or",
        ),
    ],
)
def test_a_part_that_a_newer_graph_does_not_support_is_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    checkpoint = save_encoder(tmp_path / "in", name)
    edit_json(checkpoint / "config.json", changes)
    reference = Reference(fetch_checkpoint(str(checkpoint)))
    with pytest.raises(InputError, match=message):
        build_encoder(reference.weights(), reference.config, Head("mean", normalise=False), LONGEST, "float32", {})


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_a_window_in_which_tokens_see_those_before_them_alone(name: str, tmp_path: Path) -> None:
    changes = {
        "qwen3": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        "gemma3": {"use_bidirectional_attention": False, "sliding_window": 5},
    }
    checkpoint = save_encoder(tmp_path / "in", name, **changes[name])
    folder = export_checkpoint(str(checkpoint), tmp_path / "out", pooling="last", normalise=False).folder
    rows = read_ids(name)
    expected = encode_alone(transformers.AutoModel.from_pretrained(checkpoint).eval(), rows, "last")
    session = Session(folder / "model.onnx", "cpu", threads=1)
    for side in ("right", "left"):
        np.testing.assert_allclose(session.run(pad(rows, side))[0], expected, rtol=2e-3, atol=5e-5)


def test_weights_that_can_run_code_are_not_read(tmp_path: Path) -> None:
    edit_json(tmp_path / "in" / "config.json", {"model_type": "bert"})
    refused = partial(export_checkpoint, str(tmp_path / "in"), tmp_path / "out", pooling="cls")
    with pytest.raises(
        InputError, match=r"in holds no weights \(\*\.safetensors\)\. Cure: download the whole checkpoint"
    ):
        refused()
    for name in ("weights.pt", "model.h5", "flax_model.msgpack"):
        (tmp_path / "in" / name).touch()
        message = rf"holds its weights as {name}, which is not read.* Cure: export a version in safetensors"
        with pytest.raises(InputError, match=message):
            refused()
        (tmp_path / "in" / name).unlink()


class _Code:
    """Unpickled by a loader that runs code, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def pickle_weights(folder: Path) -> dict[str, npt.NDArray[Any]]:
    weights = load_file(folder / "model.safetensors")
    torch.save({name: torch.from_numpy(value) for name, value in weights.items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return weights


def test_a_pickle_of_weights_gives_the_vectors_of_its_safetensors_and_these_are_written(tmp_path: Path) -> None:
    checkpoint = save_encoder(tmp_path / "in", "bert")
    save_st_files(checkpoint, "cls_token", (32, 32, True, "torch.nn.modules.activation.Tanh"))
    expected = Encoder(export_checkpoint(str(checkpoint), tmp_path / "expected").folder, "cpu", 1)
    weights = pickle_weights(checkpoint)
    pickle_weights(checkpoint / "2_Dense")
    exported = export_checkpoint(str(checkpoint), tmp_path / "out")
    assert exported.pickled
    found = Encoder(exported.folder, "cpu", 1)
    np.testing.assert_array_equal(found.encode_passages(["a lake"]), expected.encode_passages(["a lake"]))
    beside = load_file(checkpoint / "model.safetensors")
    assert all(np.array_equal(beside[name], value) for name, value in weights.items())


@pytest.mark.parametrize("part", ["", "2_Dense"])
@pytest.mark.parametrize("form", ["code", "code of torch", "text", "a list"])
def test_a_pickle_that_holds_code_is_refused_and_runs_nothing(part: str, form: str, tmp_path: Path) -> None:
    checkpoint = save_encoder(tmp_path / "in", "bert")
    save_st_files(checkpoint, "cls_token", (32, 32, True, "torch.nn.modules.activation.Tanh"))
    path, ran = checkpoint / part / "pytorch_model.bin", tmp_path / "ran"
    (checkpoint / part / "model.safetensors").unlink()
    match form:
        case "code":
            path.write_bytes(pickle.dumps({"weight": _Code(ran)}))
        case "code of torch":
            torch.save({"linear.weight": _Code(ran)}, path)
        case "text":
            path.write_text("no pickle")
        case _:
            torch.save([torch.zeros(3)], path)
    with pytest.raises(InputError):
        export_checkpoint(str(checkpoint), tmp_path / "out")
    assert not ran.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"activation_function": "torch.nn.modules.activation.GELU"},
            r"in/2_Dense has the activation 'torch\.nn\.modules\.activation\.GELU'; xqg supports .* Cure: correct that",
        ),
        (
            {"activation_function": "torch.nn.modules.activation.ReLU"},
            r"unsupported activation 'ReLU' \(Dense module of in\)\. Cure: export .* have activation Identity, Tanh",
        ),
        (
            {"use_residual": True},
            r"in/2_Dense adds its input \(use_residual\), which xqg does not support\. Cure: correct",
        ),
        (
            {"module_input_name": "token_embeddings"},
            "in/2_Dense works on 'token_embeddings', not on sentence_embedding",
        ),
        (
            {"module_output_name": "token_embeddings"},
            "in/2_Dense works on 'token_embeddings', not on sentence_embedding",
        ),
        ({"bias": False}, r"in/2_Dense holds \['linear.bias', 'linear.weight'\], but \['linear.weight'\] is needed"),
    ],
)
def test_a_dense_layer_of_another_form_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint = save_encoder(tmp_path / "in", "bert")
    save_st_files(checkpoint, "cls_token", (32, 32, True, "torch.nn.modules.activation.Tanh"))
    edit_json(checkpoint / "2_Dense" / "config.json", changes)
    with pytest.raises(InputError, match=message):
        export_checkpoint(str(checkpoint), tmp_path / "out")


def test_an_error_about_unreadable_weights_names_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = save_encoder(tmp_path / "in", "gte")
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"transformers cannot load in: .*Cure: check its files, or download it again"):
        export_checkpoint(str(checkpoint), tmp_path / "out", pooling="cls")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_architecture_that_transformers_is_too_old_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = SimpleNamespace(__version__="5.1", AutoModel=transformers.AutoModel)
    monkeypatch.setattr("xqg_qdrant.export.reference.transformers", older)
    with pytest.raises(InputError, match=r"transformers 5\.1 lacks the architecture of gte\. Cure: upgrade it: pip"):
        export_checkpoint(str(encoder_checkpoint("gte")), tmp_path / "out", pooling="cls")


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    checkpoint = save_encoder(tmp_path / "in", "gte")
    weights = load_file(checkpoint / "model.safetensors")
    name = next(name for name in weights if name.endswith("down_proj.bias"))
    del weights[name]
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    message = r"in lacks 1 of the weights of a gte, such as layers\.0\.mlp\.down_proj\.bias\. Cure: export a complete"
    with pytest.raises(InputError, match=message):
        export_checkpoint(str(checkpoint), tmp_path / "out", pooling="cls")


def test_options_override_a_preset(tmp_path: Path) -> None:
    given: dict[str, Any] = {"passage_prefix": "", "normalise": False, "max_query_tokens": 9}
    source = str(encoder_checkpoint("minilm"))
    done = export_checkpoint(source, tmp_path / "out", preset="e5-small", **given)
    about = read_model_folder(done.folder, "encoder").description
    assert (about["pooling"], about["normalise"]) == ("mean", False)
    assert (about["query_prefix"], about["passage_prefix"]) == ("query: ", "")
    assert (about["max_query_tokens"], about["max_passage_tokens"]) == (9, LONGEST)


def test_a_task_is_filled_into_the_query_prefix(tmp_path: Path) -> None:
    checkpoint = str(encoder_checkpoint("qwen3"))
    folder = export_checkpoint(checkpoint, tmp_path / "out", preset="qwen3-embedding-0.6b", task="Find it").folder
    about = read_model_folder(folder, "encoder").description
    assert (about["query_prefix"], about["passage_prefix"]) == ("Instruct: Find it\nQuery:", "")
    assert "task" not in about
    message = r"prefix 'query: ' has no \{task\} for the task 'Find it'\. Cure: put \{task\} into --query-prefix"
    with pytest.raises(InputError, match=message):
        export_checkpoint(checkpoint, tmp_path / "no", preset="e5-small", task="Find it")
    with pytest.raises(InputError, match=r"the query prefix '\{task\}: ' asks for a task\. Cure: give --task\."):
        export_checkpoint(checkpoint, tmp_path / "no", pooling="last", query_prefix="{task}: ")


def test_presets_name_each_a_checkpoint_and_options_that_exist() -> None:
    assert len({preset.source for preset in PRESETS.values()}) == len(PRESETS)
    for name, preset in PRESETS.items():
        known = ENCODER_OPTIONS if preset.kind == "encoder" else GENERATOR_OPTIONS
        assert preset.options.keys() <= set(known), name
        assert set(preset.options.get("languages", ())) <= LANGUAGES.keys()
        assert ("{task}" in preset.options.get("query_prefix", "")) == ("task" in preset.options)
    with pytest.raises(InputError, match=r"unknown preset 'e6-small'\. Cure: choose one that `xqg export --list` sh"):
        find_preset("e6-small")


def test_a_preset_of_another_kind_is_refused(tmp_path: Path) -> None:
    message = r"the preset is for a model of kind 'generator', not 'encoder' \(.*bert\)\. Cure: choose a preset of k"
    with pytest.raises(InputError, match=message):
        export_checkpoint(str(encoder_checkpoint("bert")), tmp_path / "out", preset="xqg-paper")
    with pytest.raises(
        InputError, match=r"no checkpoint given\. Cure: name a local folder, a hub id or a preset of `xqg ex"
    ):
        export_checkpoint(None, tmp_path / "out")


def test_a_preset_alone_asks_the_hub_for_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(source: str, **given: Any) -> str:
        asked.append((source, given["revision"], given["allow_patterns"]))
        return str(encoder_checkpoint("minilm"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    done = export_checkpoint(None, preset="e5-small")
    assert done.folder == Path("onnx/multilingual-e5-small")
    [(source, revision, patterns)] = asked
    assert (source, revision) == ("intfloat/multilingual-e5-small", None)
    assert not {"*.py", "*.bin", "*"} & set(patterns)
    about = json.loads((done.folder / "xqg.json").read_text(encoding="utf-8"))
    assert about["source"] == "intfloat/multilingual-e5-small"
    assert (about["pooling"], about["normalise"]) == ("mean", True)
    assert (about["query_prefix"], about["passage_prefix"]) == ("query: ", "passage: ")
    assert (about["max_query_tokens"], about["max_passage_tokens"]) == (LONGEST, LONGEST)


@pytest.mark.parametrize(("given", "expected"), [(None, "refs/pr/3"), ("main", "main")])
def test_a_preset_names_the_revision_that_has_safetensors(
    given: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(source: str, **given: Any) -> str:
        asked.append((source, given["revision"]))
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(InputError, match=r"hub did not return it: no network here\. Cure: check the name and the"):
        export_checkpoint(None, tmp_path / "out", preset="doc2query-14langs", revision=given)
    assert asked == [("doc2query/msmarco-14langs-mt5-base-v1", expected)]


def test_the_command_lists_presets_and_exports_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # eager: a mistake elsewhere in the command does not matter
    listed = CliRunner().invoke(main, ["export", "--preset", "qwen4", "--list"])
    assert listed.exit_code == 0
    lines = listed.output.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert all(preset.source in line for line, preset in zip(lines, PRESETS.values(), strict=True))
    command = ["export", str(encoder_checkpoint("qwen3")), "--preset", "qwen3-embedding-0.6b", "--task", "Find it"]
    done = CliRunner().invoke(main, [*command, "--max-passage-tokens", "20"])
    assert done.exit_code == 0, done.output
    about = read_model_folder(tmp_path / "onnx" / "qwen3", "encoder").description
    assert (about["query_prefix"], about["max_passage_tokens"]) == ("Instruct: Find it\nQuery:", 20)
    refused = CliRunner().invoke(main, ["export", "--preset", "qwen4"])
    assert refused.exit_code == 2
    assert "'qwen4' is not one of 'xqg-paper'" in refused.output
    nothing = CliRunner().invoke(main, ["export"])
    assert nothing.exit_code == 2
    assert "Give a CHECKPOINT or --preset; --list shows the presets." in nothing.output
    assert CliRunner().invoke(main, ["presets"]).exit_code == 2
