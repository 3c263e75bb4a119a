"""Write the head of an encoder's graph: pooling, dense layers and normalisation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from onnx import TensorProto
from safetensors.numpy import save_file

from xqg_qdrant.export.graph import Array, Graph
from xqg_qdrant.model_folders.description import dense_files
from xqg_qdrant.model_folders.sentence_transformers import ACTIVATIONS, IDENTITY, TANH

DENSE_ACTIVATIONS = (IDENTITY, TANH)


class Dense(NamedTuple):
    """A dense layer after the pooling: weight `(out, in)`, bias `(out,)` or none, and activation."""

    weight: Array
    bias: Array | None
    activation: str


class Head(NamedTuple):
    """How hidden states become a vector: pooling, dense layers in order, normalisation to length 1."""

    pooling: str
    normalise: bool
    dense: tuple[Dense, ...] = ()

    def dim(self, hidden_size: int) -> int:
        """Return the length of the vector."""
        return len(self.dense[-1].weight) if self.dense else hidden_size


def dense_names(head: Head) -> list[str]:
    """Return the folders of the dense layers, as sentence-transformers names them."""
    return [f"{place}_Dense" for place in range(2, 2 + len(head.dense))]


def save_dense(head: Head, folder: Path) -> None:
    """Write the dense layers beside a graph that lacks them, as sentence-transformers does."""
    kinds = {short: full for full, short in ACTIVATIONS.items()}
    for name, layer in zip(dense_names(head), head.dense, strict=True):
        config, weights = (folder / file for file in dense_files(name))
        config.parent.mkdir()
        outer, inner = layer.weight.shape
        settings = {"in_features": inner, "out_features": outer, "bias": layer.bias is not None}
        config.write_text(json.dumps({**settings, "activation_function": kinds[layer.activation]}), encoding="utf-8")
        tensors = {"linear.weight": layer.weight, "linear.bias": layer.bias}
        save_file({key: value for key, value in tensors.items() if value is not None}, weights)


def write_vectors(graph: Graph, hidden: str, mask: str, head: Head, hidden_size: int) -> None:
    """Write the output `vectors`, float32 of shape `(batch, dim)`.

    `hidden` is float32 of shape `(batch, tokens, hidden_size)`. `mask` is the input `attention_mask`, or empty if there
    is no padding, which may be on either side.
    """
    vectors = _pool(graph, hidden, mask, head.pooling)
    for layer in head.dense:
        bias = [graph.constant(layer.bias, np.float32)] if layer.bias is not None else []
        vectors = graph.node("Gemm", vectors, graph.constant(layer.weight, np.float32), *bias, transB=1)
        if layer.activation == "Tanh":
            vectors = graph.node("Tanh", vectors)
    if head.normalise:
        length = graph.node("ReduceL2", vectors, graph.ints(1), keepdims=1)
        vectors = graph.node("Div", vectors, graph.node("Max", length, graph.constant(1e-12, np.float32)))
    graph.output(vectors, "vectors", np.float32, ["batch", head.dim(hidden_size)])


def _pool(graph: Graph, hidden: str, mask: str, pooling: str) -> str:
    if pooling == "mean":
        return _mean(graph, hidden, mask)
    if not mask:
        place = graph.constant(0 if pooling == "cls" else -1, np.int64)
        return graph.node("Gather", hidden, place, axis=1)
    places = graph.count(graph.node("Shape", mask, start=1, end=2))
    last = graph.node("ReduceMax", graph.node("Mul", mask, places), graph.ints(1), keepdims=1)
    if pooling == "last":
        return graph.node("GatherND", hidden, last, batch_dims=1)
    behind = graph.node("Sub", graph.node("ReduceSum", mask, graph.ints(1), keepdims=1), graph.ints(1))
    return graph.node("GatherND", hidden, graph.node("Sub", last, behind), batch_dims=1)


def _mean(graph: Graph, hidden: str, mask: str) -> str:
    # Sum over tokens by MatMul: the runtime's ReduceSum adds in another order when a text is alone in its batch.
    if mask:
        weights = graph.node("Cast", mask, to=TensorProto.FLOAT)
    else:
        ones = graph.constant(1, np.float32)
        weights = graph.node("Expand", ones, graph.node("Shape", hidden, start=0, end=2))
    total = graph.node("MatMul", graph.node("Unsqueeze", weights, graph.ints(1)), hidden)
    total = graph.node("Squeeze", total, graph.ints(1))
    return graph.node("Div", total, graph.node("ReduceSum", weights, graph.ints(1), keepdims=1))
