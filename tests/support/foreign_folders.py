"""Models as other programs lay them out: sentence-transformers' own files, and graphs that torch traced.

Each shared folder is made once a test run, and only read.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import transformers
from checkpoints import LONGEST, encoder_checkpoint, generator_checkpoint
from onnx import TensorProto, helper, numpy_helper
from sentence_transformers import SentenceTransformer, SimilarityFunction
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

PROMPTS = {"query": "query: ", "document": "passage: "}
DIM, DENSE_DIM = 32, 24
# name → checkpoint, sentence-transformers' pooling, with a Dense layer, normalised
PIPELINES: dict[str, tuple[str, str, bool, bool]] = {
    "e5": ("xlm-roberta", "mean", False, True),
    "labse": ("bert", "cls", True, True),
    "last": ("bert", "lasttoken", False, False),
}
OPTIMUM_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


GENERATOR_FILES = (*OPTIMUM_FILES, "generation_config.json")
ENCODER_GRAPH, DECODER_GRAPH, PAST_GRAPH = "encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"


class _Traced(torch.nn.Module):
    """A model whose outputs are tensors by name, as a trace wants them."""

    def __init__(self, model: Any, pipeline: SentenceTransformer | None = None) -> None:  # noqa: ANN401
        super().__init__()
        self.model, self.pipeline = model, pipeline

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features: dict[str, Any] = dict(zip(self.model.input_names, inputs, strict=True))
        tokens = self.model(**features).last_hidden_state
        if self.pipeline is None:
            return (tokens,)
        features["token_embeddings"] = tokens
        for module in list(self.pipeline)[1:]:
            features = module(features)
        return tokens, features["sentence_embedding"]


class _TracedDecoder(torch.nn.Module):
    """A T5's decoder that makes its caches, or that takes and gives them, as tensors."""

    def __init__(self, model: Any, takes_caches: bool) -> None:  # noqa: ANN401
        super().__init__()
        self.model, self.takes_caches = model, takes_caches

    def forward(self, mask: torch.Tensor, ids: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
        config = self.model.config
        own: Any = DynamicCache()
        cross: Any = DynamicCache()
        if self.takes_caches:
            for layer in range(config.num_decoder_layers):
                own.update(*others[4 * layer : 4 * layer + 2], layer)
                cross.update(*others[4 * layer + 2 : 4 * layer + 4], layer)
            # Only that there are some counts, where their keys and values come from the caches.
            hidden = torch.zeros_like(mask, dtype=torch.float32)[..., None].expand(-1, -1, config.d_model)
        else:
            [hidden] = others
        logits = self.model(
            encoder_outputs=BaseModelOutput(hidden), attention_mask=mask, decoder_input_ids=ids,
            past_key_values=EncoderDecoderCache(own, cross),
        ).logits  # fmt: skip
        caches = [own] if self.takes_caches else [own, cross]
        layers = [cache.layers[layer] for layer in range(config.num_decoder_layers) for cache in caches]
        return logits, *(part for layer in layers for part in (layer.keys, layer.values))


def trace_generator(checkpoint: str, folder: Path) -> None:
    """Write the three graphs that optimum would, of which the one with caches computes no cross-attention's keys."""
    model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        generator_checkpoint(checkpoint), attn_implementation="eager"
    )
    config = model.eval().config
    encoder = model.get_encoder()
    encoder.input_names = ["input_ids", "attention_mask"]
    text, ids = torch.ones((2, 7), dtype=torch.long), torch.ones((2, 1), dtype=torch.long)
    hidden = torch.ones((2, 7, config.d_model))
    parts = [
        (f"{layer}.{side}.{part}", torch.ones((2, config.num_heads, 3 if side == "decoder" else 7, config.d_kv)))
        for layer in range(config.num_decoder_layers)
        for side in ("decoder", "encoder")
        for part in ("key", "value")
    ]
    pasts = {f"past_key_values.{name}": tensor for name, tensor in parts}
    asked = {"encoder_attention_mask": text, "input_ids": ids}
    presents = [f"present.{name}" for name, _ in parts]
    own = [name for name in presents if ".decoder." in name]
    _write_graph(
        _Traced(encoder), folder / ENCODER_GRAPH, {"input_ids": text, "attention_mask": text}, ["last_hidden_state"]
    )
    first = {**asked, "encoder_hidden_states": hidden}
    _write_graph(_TracedDecoder(model, False), folder / DECODER_GRAPH, first, ["logits", *presents])
    _write_graph(_TracedDecoder(model, True), folder / PAST_GRAPH, {**asked, **pasts}, ["logits", *own])


def _write_graph(model: torch.nn.Module, graph: Path, inputs: dict[str, torch.Tensor], outputs: list[str]) -> None:
    lengths = {"past_key_values": 2, "present": 2}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, tuple(inputs.values()), str(graph), input_names=list(inputs), output_names=outputs,
            opset_version=17, dynamo=False,
            dynamic_axes={
                name: {0: "batch_size", lengths.get(name.partition(".")[0], 1): f"length of {name}"}
                for name in [*inputs, *outputs]
            },
        )  # fmt: skip


def trace(checkpoint: str, graph: Path, pipeline: SentenceTransformer | None = None) -> None:
    """Write the graph that optimum would: token vectors, and behind a pipeline its vectors too."""
    model: Any = transformers.AutoModel.from_pretrained(encoder_checkpoint(checkpoint), attn_implementation="eager")
    model.eval().input_names = ["input_ids", "attention_mask", *(["token_type_ids"] if checkpoint == "bert" else [])]
    outputs = ["token_embeddings", "sentence_embedding"] if pipeline else ["last_hidden_state"]
    example = torch.ones((2, 7), dtype=torch.long)
    axes = {name: {0: "batch_size", 1: "sequence_length"} for name in [*model.input_names, outputs[0]]}
    graph.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter that optimum uses is on its way out, and says so.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Traced(model, pipeline), tuple(example * (name != "token_type_ids") for name in model.input_names),
            str(graph), input_names=model.input_names, output_names=outputs, opset_version=17, dynamo=False,
            dynamic_axes=axes | ({"sentence_embedding": {0: "batch_size"}} if pipeline else {}),
        )  # fmt: skip


def make_pipeline(name: str) -> SentenceTransformer:
    """Return a pipeline of sentence-transformers with random weights."""
    checkpoint, pooling, has_dense, normalised = PIPELINES[name]
    # Left alone, sentence-transformers reads as many tokens as there are positions, of which XLM-R leaves some free.
    transformer = Transformer(str(encoder_checkpoint(checkpoint)), max_seq_length=LONGEST)
    modules: list[torch.nn.Module] = [transformer, Pooling(DIM, pooling)]
    if has_dense:
        torch.manual_seed(5)
        modules.append(Dense(DIM, DENSE_DIM, activation_function=torch.nn.Tanh()))
    if normalised:
        modules.append(Normalize())
    similarity = SimilarityFunction.COSINE if normalised else SimilarityFunction.DOT_PRODUCT
    return SentenceTransformer(modules=modules, prompts=PROMPTS, similarity_fn_name=similarity, device="cpu")


@cache
def _shelf() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="xqg-foreign-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def sentence_transformers_folder(name: str) -> Path:
    """Return a folder as sentence-transformers writes one that runs on ONNX, with the weights of torch beside it."""
    folder = _shelf() / name
    make_pipeline(name).save_pretrained(str(folder), create_model_card=False)
    trace(PIPELINES[name][0], folder / "onnx" / "model.onnx")
    return folder


@cache
def optimum_folder(checkpoint: str) -> Path:
    """Return a folder as optimum writes one: the graph, the configuration, the tokenizer."""
    folder = _shelf() / f"optimum {checkpoint}"
    trace(checkpoint, folder / "model.onnx")
    for name in OPTIMUM_FILES:
        shutil.copy(encoder_checkpoint(checkpoint) / name, folder)
    return folder


@cache
def whole_folder(name: str) -> Path:
    """Return what optimum makes of a whole pipeline of sentence-transformers: it gives the text's vector itself."""
    folder = _shelf() / f"whole {name}"
    trace(PIPELINES[name][0], folder / "model.onnx", make_pipeline(name))
    for file in OPTIMUM_FILES:
        shutil.copy(encoder_checkpoint(PIPELINES[name][0]) / file, folder)
    return folder


@cache
def optimum_generator(checkpoint: str) -> Path:
    """Return a folder as optimum writes one of a generator."""
    folder = _shelf() / f"optimum generator {checkpoint}"
    folder.mkdir()
    trace_generator(checkpoint, folder)
    for name in GENERATOR_FILES:
        shutil.copy(generator_checkpoint(checkpoint) / name, folder)
    return folder


def write_counting_graph(path: Path, ids: int, vectors: int) -> None:
    """Write a graph by hand whose vector of a token is `[id, position, 1]`, in the types of ONNX that are given."""
    inputs = ("input_ids", "attention_mask", "position_ids")
    columns = {"id": "input_ids", "position": "position_ids", "one": "input_ids"}
    nodes = [
        *(helper.make_node("Cast", [name], [f"{name} f"], to=TensorProto.FLOAT) for name in inputs),
        *(helper.make_node("Unsqueeze", [f"{name} f", "last"], [column]) for column, name in columns.items()),
        helper.make_node("Mul", ["one", "nothing"], ["zeros"]),
        helper.make_node("Add", ["zeros", "unit"], ["ones"]),
        helper.make_node("Concat", ["id", "position", "ones"], ["rows"], axis=2),
        helper.make_node("Cast", ["rows"], ["last_hidden_state"], to=vectors),
    ]
    constants = {"last": np.array([2]), "nothing": np.zeros(1, np.float32), "unit": np.ones(1, np.float32)}
    graph = helper.make_graph(
        nodes,
        "counting",
        [helper.make_tensor_value_info(name, ids, ["batch", "tokens"]) for name in inputs],
        [helper.make_tensor_value_info("last_hidden_state", vectors, ["batch", "tokens", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def assert_refusal(error: Exception, folder: Path, said: str) -> None:
    """Make sure that an error says this, names the folder, and gives one cure."""
    assert said in str(error)
    assert str(error).count("Cure: ") == 1
    assert str(folder) in str(error)
