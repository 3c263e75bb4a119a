"""Write the graph of a BERT-like encoder (BERT, MiniLM, XLM-R): ids and mask → pooled vector.

Architecture: Devlin et al. 2019 (arXiv 1810.04805); positions of XLM-R as in RoBERTa (1907.11692).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from onnx import TensorProto

from xqg_qdrant.errors import InputError
from xqg_qdrant.export.graph import Array, Graph
from xqg_qdrant.export.pooling import Head, write_vectors
from xqg_qdrant.export.quantise import (
    REPEATED_COLUMNS,
    Channels,
    Sample,
    count_copies,
    find_wide_neurons,
    fold_sample,
    fold_weight,
    multiply,
    multiply_after_gelu,
    multiply_terms,
    plan_channels,
    plan_plain,
    quantise_once,
    quantise_twice,
    repeat_columns,
)

MODEL_TYPES = ("bert", "xlm-roberta", "roberta")
PROJECTIONS = ("query", "key", "value")
FLOATS = {"float16": np.dtype(np.float16)}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Large enough that every form of GELU returns it unchanged.
STEADY = np.float32(16)
ACTIVATIONS = {"gelu": {}, "gelu_new": {"approximate": "tanh"}, "gelu_pytorch_tanh": {"approximate": "tanh"}}


def first_position(config: Mapping[str, Any]) -> int:
    """Return the first token's row in the position table; XLM-R starts after the padding id."""
    return 0 if config["model_type"] == "bert" else int(config["pad_token_id"]) + 1


def build_bert(
    weights: Mapping[str, Array],
    config: Mapping[str, Any],
    head: Head,
    max_tokens: int,
    dtype: str = "float32",
    samples: Mapping[str, Sample] | None = None,
) -> Graph:
    """Write the encoder's graph.

    Inputs `input_ids` and `attention_mask` are int64 of shape `(batch, tokens)`, with at most `max_tokens` tokens.
    The int8 graph has no mask: the texts of its batches have one length. Output `vectors` is float32 of shape
    `(batch, dim)`. For int8, `samples` describes the input of each product on sample texts, by the name of the
    product. For bfloat16, word embeddings, products and attention are narrow; sums, layer norms, activations, pooling
    and what follows it stay in fp32.

    Raises:
        InputError: the checkpoint has a part that this graph does not support.
    """
    if config["hidden_act"] not in ACTIVATIONS:
        raise InputError(
            f"unsupported activation {config['hidden_act']!r}.",
            f"export a checkpoint with activation {', '.join(ACTIVATIONS)}",
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(
            f"unsupported position embeddings {config['position_embedding_type']!r}.",
            "export a checkpoint with absolute position embeddings",
        )
    graph = Graph("encoder", "int8" if dtype == "int8" else "float32", FLOATS.get(dtype, np.dtype(np.float32)))
    ids = graph.input("input_ids", np.int64, ["batch", "tokens"])
    # int8 runs on CPUs, where padding never pays: the texts of a batch have one length.
    mask = graph.input("attention_mask", np.int64, ["batch", "tokens"]) if dtype != "int8" else ""

    first = first_position(config)
    positions = weights["embeddings.position_embeddings.weight"][first : first + max_tokens]
    # A single segment: one row of type embeddings serves every token.
    positions = positions + weights["embeddings.token_type_embeddings.weight"][0]
    length = graph.node("Shape", ids, start=1, end=2)
    if mask:
        # Padding may be on either side and does not count as a position.
        counted = graph.node("Sub", graph.node("CumSum", mask, graph.constant(1, np.int64)), graph.ints(1))
        places = graph.node("Max", counted, graph.ints(0))
        position_rows = graph.node("Gather", graph.constant(positions), places)
    else:
        position_rows = graph.node("Slice", graph.constant(positions), graph.ints(0), length, graph.ints(0))
    table = weights["embeddings.word_embeddings.weight"]
    if dtype == "bfloat16":
        words = _widen(graph, graph.node("Gather", graph.constant(table, BFLOAT16), ids))
    else:
        words = graph.look_up(ids, graph.table(table))
    total = graph.reshape(graph.node("Add", words, position_rows), -1, config["hidden_size"])
    by_text = graph.node("Concat", graph.node("Shape", ids), graph.ints(-1), axis=0)

    visible = [_visible(graph, mask, length)] if mask else []
    heads = config["num_attention_heads"]
    precision: dict[str, Any] = {"softmax_precision": TensorProto.FLOAT} if dtype == "bfloat16" else {}

    def attend(*projected: str) -> str:
        parts = (graph.node("Reshape", rows, by_text) for rows in projected)
        attended = graph.node("Attention", *parts, *visible, q_num_heads=heads, kv_num_heads=heads, **precision)
        return graph.reshape(attended, -1, config["hidden_size"])

    layers = _Layers(graph, weights, config, attend, samples)
    write_layer = {"int8": layers.int8, "bfloat16": layers.bfloat16}.get(dtype, layers.plain)
    norm = "embeddings.LayerNorm"
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        total = write_layer(total, norm, name)
        norm = f"{name}.output.LayerNorm"
    hidden = layers.layer_norm(total, norm)

    hidden = graph.node("Reshape", hidden, by_text)
    if dtype == "float16":
        # Sums over tokens and squares would lose too much in float16.
        hidden = _widen(graph, hidden)
    write_vectors(graph, hidden, mask, head, config["hidden_size"])
    return graph


class _Layers:
    """A writer of layers.

    A layer takes the sum before a layer norm and the name of that norm; it returns the sum before the next norm.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Array],
        config: Mapping[str, Any],
        attend: Callable[..., str],
        samples: Mapping[str, Sample] | None,
    ) -> None:
        self._graph, self._weights, self._attend = graph, weights, attend
        self._samples: Mapping[str, Sample] = samples or {}
        self._eps = config["layer_norm_eps"]
        self._gelu: Mapping[str, Any] = ACTIVATIONS[config["hidden_act"]]

    def layer_norm(self, value: str, name: str, channels: Channels | None = None) -> str:
        """Write a layer norm; with `channels`, its output is centred and scaled for a product."""
        scale, shift = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        if channels is not None:
            scale, shift = scale / channels.scale, (shift - channels.centre) / channels.scale
        graph = self._graph
        return graph.node(
            "LayerNormalization", value, graph.constant(scale), graph.constant(shift), axis=-1, epsilon=self._eps
        )

    def plain(self, total: str, norm: str, name: str) -> str:
        """Write a layer in one floating-point type."""
        graph = self._graph
        hidden = self.layer_norm(total, norm)
        parts = (self._linear(hidden, f"{name}.attention.self.{part}") for part in PROJECTIONS)
        projected = self._linear(self._attend(*parts), f"{name}.attention.output.dense")
        hidden = self.layer_norm(graph.node("Add", projected, hidden), f"{name}.attention.output.LayerNorm")
        wide = graph.node("Gelu", self._linear(hidden, f"{name}.intermediate.dense"), **self._gelu)
        return graph.node("Add", self._linear(wide, f"{name}.output.dense"), hidden)

    def bfloat16(self, total: str, norm: str, name: str) -> str:
        """Write a layer with products and attention in bfloat16, the rest in fp32."""
        graph = self._graph
        hidden = self.layer_norm(total, norm)
        rows = _narrow(graph, hidden)
        parts = (self._product_bfloat16(rows, f"{name}.attention.self.{part}") for part in PROJECTIONS)
        projected = self._product_bfloat16(self._attend(*parts), f"{name}.attention.output.dense")
        total = graph.node("Add", _widen(graph, projected), hidden)
        hidden = self.layer_norm(total, f"{name}.attention.output.LayerNorm")
        wide = self._product_bfloat16(_narrow(graph, hidden), f"{name}.intermediate.dense")
        wide = graph.node("Gelu", _widen(graph, wide), **self._gelu)
        narrow = self._product_bfloat16(_narrow(graph, wide), f"{name}.output.dense")
        return graph.node("Add", _widen(graph, narrow), hidden)

    def int8(self, total: str, norm: str, name: str) -> str:
        """Write a layer with products in int8."""
        graph = self._graph
        inputs = [self._of(f"{name}.attention.self.{part}") for part in PROJECTIONS]
        seen = self._samples[f"{name}.attention.self.query"]
        channels = plan_channels(seen, np.concatenate([weight for weight, _ in inputs]))
        products = fold_sample(seen, channels)
        rows = self.layer_norm(total, norm, channels)
        first = quantise_once(graph, rows, channels)
        query, key, value = (fold_weight(*pair, channels) for pair in inputs)
        attended = self._attend(
            multiply(graph, first, *query, channels, products),
            multiply(graph, first, *key, channels, products),
            multiply_terms(graph, quantise_twice(graph, rows, first, channels), *value, channels),
        )
        weight, bias = self._of(f"{name}.attention.output.dense")
        seen = self._samples[f"{name}.attention.output.dense"]
        plain = plan_plain(seen)
        residual = graph.node("Mul", rows, graph.constant(channels.scale))
        bias = bias + channels.centre
        projected = multiply(graph, quantise_once(graph, attended, plain), weight, bias, plain, seen.products)
        total = graph.node("Add", projected, residual)

        norm = f"{name}.attention.output.LayerNorm"
        weight, bias = self._of(f"{name}.intermediate.dense")
        out_weight, out_bias = self._of(f"{name}.output.dense")
        seen, out_seen = self._samples[f"{name}.intermediate.dense"], self._samples[f"{name}.output.dense"]
        channels = plan_channels(seen, weight)
        wide = find_wide_neurons(out_seen)
        kept = np.delete(np.arange(len(weight)), wide)
        weight, bias = fold_weight(weight, bias, channels)
        rows = self.layer_norm(total, norm, channels)
        counts = count_copies(weight[kept], REPEATED_COLUMNS)
        repeated = repeat_columns(graph, quantise_once(graph, rows, channels), counts)
        products = fold_sample(seen, channels)
        many = multiply(graph, repeated, weight[kept], bias[kept], channels, products, counts)
        many = graph.node("Gelu", many, **self._gelu)
        narrow = multiply_after_gelu(graph, many, out_weight[:, kept], out_seen.products[np.ix_(kept, kept)])

        # The widest neurons in fp32, and one whose value is always STEADY: its outgoing weight is the bias.
        residual = graph.node("Mul", rows, graph.constant(channels.scale))
        into = np.append(weight[wide], np.zeros_like(weight[:1]), axis=0)
        few = graph.node("Gemm", rows, graph.constant(into.T), graph.constant(np.append(bias[wide], STEADY)))
        out = np.append(out_weight[:, wide].T, (out_bias + channels.centre)[None] / STEADY, axis=0)
        few = graph.node("Gemm", graph.node("Gelu", few, **self._gelu), graph.constant(out), residual)
        return graph.node("Add", narrow, few)

    def _linear(self, value: str, name: str) -> str:
        return self._graph.linear(value, *self._of(name))

    def _product_bfloat16(self, rows: str, name: str) -> str:
        # Gemm adds the bias before it rounds, so the sum is rounded once.
        weight, bias = (self._graph.constant(value, BFLOAT16) for value in self._of(name))
        return self._graph.node("Gemm", rows, weight, bias, transB=1)

    def _of(self, name: str) -> tuple[Array, Array]:
        return self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]


def _narrow(graph: Graph, value: str) -> str:
    return graph.node("Cast", value, to=TensorProto.BFLOAT16)


def _widen(graph: Graph, value: str) -> str:
    return graph.node("Cast", value, to=TensorProto.FLOAT)


def _visible(graph: Graph, mask: str, length: str) -> str:
    visible = graph.node("Cast", graph.node("Unsqueeze", mask, graph.ints(1, 2)), to=TensorProto.BOOL)
    # The runtime's Attention broadcasts a mask over batch and heads, but not over queries.
    return graph.node("Expand", visible, graph.node("Concat", graph.ints(1, 1), length, graph.ints(1), axis=0))
