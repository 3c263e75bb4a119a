"""The graph of an encoder of the BERT kind (BERT, MiniLM, XLM-R): ids and mask → pooled vector.

Source of the architecture: Devlin et al. 2019 (arXiv 1810.04805); positions of XLM-R as in RoBERTa (1907.11692).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import TensorProto

from xqg_qdrant.errors import InputError
from xqg_qdrant.export.graph import Array, Graph, QuantisedRows

MODEL_TYPES = ("bert", "xlm-roberta", "roberta")
POOLINGS = ("cls", "mean", "last")
ACTIVATIONS = {"gelu": {}, "gelu_new": {"approximate": "tanh"}, "gelu_pytorch_tanh": {"approximate": "tanh"}}


def build_bert(
    weights: Mapping[str, Array],
    config: Mapping[str, Any],
    pooling: str,
    normalise: bool,
    max_tokens: int,
    int8: bool,
) -> Graph:
    """Write the encoder's graph.

    Inputs `input_ids` and `attention_mask` are int64 of shape `(batch, tokens)`, with at most `max_tokens` tokens; the
    output `vectors` is float32 of shape `(batch, dim)`.

    Raises:
        InputError: the checkpoint has a part that this graph does not have.
    """
    if config["hidden_act"] not in ACTIVATIONS:
        raise InputError(f"activation {config['hidden_act']!r} is not supported; known: {', '.join(ACTIVATIONS)}")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"position embeddings {config['position_embedding_type']!r} are not supported; absolute are")
    graph = Graph("encoder", int8)
    ids = graph.input("input_ids", np.int64, ["batch", "tokens"])
    mask = graph.input("attention_mask", np.int64, ["batch", "tokens"])
    eps = config["layer_norm_eps"]

    def layer_norm(value: str, name: str) -> str:
        scale, shift = graph.constant(weights[f"{name}.weight"]), graph.constant(weights[f"{name}.bias"])
        return graph.node("LayerNormalization", value, scale, shift, axis=-1, epsilon=eps)

    def linear(value: str | QuantisedRows, name: str) -> str:
        return graph.linear(value, weights[f"{name}.weight"], weights[f"{name}.bias"])

    # XLM-R counts positions from behind the padding id; passages are padded on the right.
    first_position = config["pad_token_id"] + 1 if config["model_type"] != "bert" else 0
    positions = weights["embeddings.position_embeddings.weight"][first_position : first_position + max_tokens]
    # One row of type embeddings serves every token: a single segment.
    positions = positions + weights["embeddings.token_type_embeddings.weight"][0]
    length = graph.node("Shape", ids, start=1, end=2)
    position_rows = graph.node("Slice", graph.constant(positions), graph.ints(0), length, graph.ints(0))
    words = graph.look_up(ids, graph.table(weights["embeddings.word_embeddings.weight"]))
    hidden = layer_norm(graph.node("Add", words, position_rows), "embeddings.LayerNorm")
    by_text = graph.node("Concat", graph.node("Shape", ids), graph.ints(-1), axis=0)
    hidden = graph.reshape(hidden, -1, config["hidden_size"])

    visible = graph.node("Cast", graph.node("Unsqueeze", mask, graph.ints(1, 2)), to=TensorProto.BOOL)
    # The runtime's Attention broadcasts a mask over batch and heads, but not over the queries.
    square = graph.node("Concat", graph.ints(1, 1), length, graph.ints(1), axis=0)
    visible = graph.node("Expand", visible, square)
    heads = config["num_attention_heads"]
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        rows = graph.quantise(hidden)
        query, key, value = (
            graph.node("Reshape", linear(rows, f"{name}.attention.self.{part}"), by_text)
            for part in ("query", "key", "value")
        )
        attended = graph.node("Attention", query, key, value, visible, q_num_heads=heads, kv_num_heads=heads)
        projected = linear(graph.reshape(attended, -1, config["hidden_size"]), f"{name}.attention.output.dense")
        hidden = layer_norm(graph.node("Add", projected, hidden), f"{name}.attention.output.LayerNorm")
        wide = graph.node("Gelu", linear(hidden, f"{name}.intermediate.dense"), **ACTIVATIONS[config["hidden_act"]])
        narrow = linear(wide, f"{name}.output.dense")
        hidden = layer_norm(graph.node("Add", narrow, hidden), f"{name}.output.LayerNorm")

    pooled = _pool(graph, graph.node("Reshape", hidden, by_text), mask, pooling)
    if normalise:
        length = graph.node("ReduceL2", pooled, graph.ints(1), keepdims=1)
        pooled = graph.node("Div", pooled, graph.node("Max", length, graph.constant(np.float32(1e-12))))
    graph.output(pooled, "vectors", np.float32, ["batch", config["hidden_size"]])
    return graph


def _pool(graph: Graph, hidden: str, mask: str, pooling: str) -> str:
    if pooling == "cls":
        return graph.node("Gather", hidden, graph.constant(np.int64(0), np.int64), axis=1)
    if pooling == "mean":
        weights = graph.node("Unsqueeze", graph.node("Cast", mask, to=TensorProto.FLOAT), graph.ints(2))
        total = graph.node("ReduceSum", graph.node("Mul", hidden, weights), graph.ints(1), keepdims=0)
        return graph.node("Div", total, graph.node("ReduceSum", weights, graph.ints(1), keepdims=0))
    if pooling == "last":
        last = graph.node("Sub", graph.node("ReduceSum", mask, graph.ints(1), keepdims=1), graph.ints(1))
        return graph.node("GatherND", hidden, last, batch_dims=1)
    raise InputError(f"pooling must be cls, mean or last, was: {pooling!r}")
