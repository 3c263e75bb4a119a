"""The two graphs of a generator of the T5 kind (T5, T5 1.1, mT5), which share the file of the embedding table.

The encoder graph ends in the keys and values of every decoder layer's cross-attention, so that they are computed once
a passage. The decoder graph is one step: ids and caches → next ids, sampled inside the graph. All samples of a passage
are folded into the query axis of the cross-attention (it has no causal mask), so its keys and values are never copied.

Source of the architecture: Raffel et al. 2020 (arXiv 1910.10683), Xue et al. 2021 (2010.11934).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from xqg_qdrant.errors import InputError
from xqg_qdrant.export.graph import Array, Graph, QuantisedRows, Table

MODEL_TYPES = ("t5", "mt5")
LONGEST_INPUT = 1024
LONGEST_OUTPUT = 256
EMBEDDING_FILE = "embedding.data"
MASKED = np.float32(-1e9)


def build_t5_encoder(weights: Mapping[str, Array], config: Mapping[str, Any], int8: bool) -> Graph:
    """Write the encoder's graph.

    Inputs `input_ids` and `attention_mask` are int64 of shape `(batch, tokens)`. For every decoder layer `i` the
    outputs are `cross_key_i`, float32 of shape `(batch, heads, head_dim, tokens)`, and `cross_value_i`, float32 of
    shape `(batch, heads, tokens, head_dim)`.
    """
    graph = Graph("encoder", int8)
    heads, head_dim = config["num_heads"], config["d_kv"]
    ids = graph.input("input_ids", np.int64, ["batch", "tokens"])
    mask = graph.input("attention_mask", np.int64, ["batch", "tokens"])
    hidden = graph.look_up(graph.reshape(ids, -1), _shared_table(graph, weights))
    by_text = graph.node("Concat", graph.node("Shape", ids), graph.ints(-1), axis=0)

    # (heads, distance) with distances from -(LONGEST_INPUT - 1); the bias of query i and key j lies at j - i
    distances = np.arange(-(LONGEST_INPUT - 1), LONGEST_INPUT)
    bias_table = _relative_bias(weights, config, "encoder", distances, bidirectional=True)
    tokens = graph.node("Shape", ids, start=1, end=2)
    tokens_scalar = graph.node("Squeeze", tokens, graph.ints(0))
    zero, one = graph.constant(np.int64(0), np.int64), graph.constant(np.int64(1), np.int64)
    places = graph.node("Range", zero, tokens_scalar, one)
    offsets = graph.node(
        "Sub", graph.node("Unsqueeze", places, graph.ints(0)), graph.node("Unsqueeze", places, graph.ints(1))
    )
    offsets = graph.node("Add", offsets, graph.constant(np.int64(LONGEST_INPUT - 1), np.int64))
    bias = graph.node("Unsqueeze", graph.node("Gather", graph.constant(bias_table), offsets, axis=1), graph.ints(0))
    bias = graph.node("Add", bias, graph.node("Unsqueeze", _additive_mask(graph, mask), graph.ints(1, 2)))

    for layer in range(config["num_layers"]):
        name = f"encoder.block.{layer}.layer"
        normed = graph.quantise(_rms_norm(graph, hidden, weights[f"{name}.0.layer_norm.weight"], config))
        query, key, value = (
            graph.node("Reshape", graph.linear(normed, weights[f"{name}.0.SelfAttention.{part}.weight"]), by_text)
            for part in "qkv"
        )
        attended = graph.node("Attention", query, key, value, bias, q_num_heads=heads, kv_num_heads=heads, scale=1.0)
        attended = graph.reshape(attended, -1, heads * head_dim)
        hidden = graph.node("Add", hidden, graph.linear(attended, weights[f"{name}.0.SelfAttention.o.weight"]))
        normed = graph.quantise(_rms_norm(graph, hidden, weights[f"{name}.1.layer_norm.weight"], config))
        fed = _feed_forward(graph, normed, weights, f"{name}.1.DenseReluDense", config)
        hidden = graph.node("Add", hidden, fed)
    final = graph.quantise(_rms_norm(graph, hidden, weights["encoder.final_layer_norm.weight"], config))
    by_head = graph.node("Concat", graph.node("Shape", ids), graph.ints(heads, head_dim), axis=0)

    for layer in range(config["num_decoder_layers"]):
        name = f"decoder.block.{layer}.layer.1.EncDecAttention"
        for part, label, order in (("k", "cross_key", (0, 2, 3, 1)), ("v", "cross_value", (0, 2, 1, 3))):
            projected = graph.node("Reshape", graph.linear(final, weights[f"{name}.{part}.weight"]), by_head)
            shape = ["batch", heads, head_dim, "tokens"] if part == "k" else ["batch", heads, "tokens", head_dim]
            graph.output(graph.node("Transpose", projected, perm=order), f"{label}_{layer}", np.float32, shape)
    return graph


def build_t5_decoder(
    weights: Mapping[str, Array],
    config: Mapping[str, Any],
    scaled_head: bool,
    suppressed_ids: Sequence[int],
    int8: bool,
) -> Graph:
    """Write the graph of one decoder step.

    A group is one encoder input; `rows = groups * samples`. Inputs: `ids`, int64 of shape `(groups, samples)`;
    `attention_mask`, int64 of shape `(groups, tokens)`; `temperature`, a float32 scalar; `noise`, float32 of shape
    `(rows, top_k)`, Gumbel noise (zeros and `top_k` 1 decode greedily); `past_key_i` and `past_value_i`, float32 of
    shape `(rows, heads, steps, head_dim)`, with no steps at first; the encoder's `cross_key_i` and `cross_value_i`.
    Outputs: `next_ids`, int64 of shape `(groups, samples)`, and `present_key_i`, `present_value_i`.

    The ids in `suppressed_ids` are never chosen.
    Adding Gumbel noise to the `top_k` best logits and taking the best samples from their softmax (Gumbel-max).
    """
    graph = Graph("decoder", int8)
    heads, head_dim, layers = config["num_heads"], config["d_kv"], config["num_decoder_layers"]
    inner = heads * head_dim
    ids = graph.input("ids", np.int64, ["groups", "samples"])
    mask = graph.input("attention_mask", np.int64, ["groups", "tokens"])
    temperature = graph.input("temperature", np.float32, [])
    noise = graph.input("noise", np.float32, ["rows", "top_k"])
    cache_shape = ["rows", heads, "steps", head_dim]

    cross_bias = graph.node("Unsqueeze", _additive_mask(graph, mask), graph.ints(1, 2))
    group_shape = graph.node("Concat", graph.node("Shape", ids), graph.ints(heads, head_dim), axis=0)
    table = _shared_table(graph, weights)
    hidden = graph.look_up(graph.reshape(ids, -1), table)

    # The newest step attends to keys at distances steps, …, 0: the last columns of the reversed table.
    distances = np.arange(-(LONGEST_OUTPUT - 1), 1)
    bias_table = graph.constant(_relative_bias(weights, config, "decoder", distances, bidirectional=False)[:, None, :])
    self_bias = ""

    for layer in range(layers):
        name = f"decoder.block.{layer}.layer"
        past_key = graph.input(f"past_key_{layer}", np.float32, cache_shape)
        past_value = graph.input(f"past_value_{layer}", np.float32, cache_shape)
        if not self_bias:
            steps = graph.node("Shape", past_key, start=2, end=3)
            first = graph.node("Sub", graph.ints(LONGEST_OUTPUT - 1), steps)
            self_bias = graph.node("Slice", bias_table, first, graph.ints(LONGEST_OUTPUT), graph.ints(2))
        normed = graph.quantise(_rms_norm(graph, hidden, weights[f"{name}.0.layer_norm.weight"], config))
        query, key, value = (
            graph.reshape(
                graph.linear(normed, weights[f"{name}.0.SelfAttention.{part}.weight"]), -1, heads, 1, head_dim
            )
            for part in "qkv"
        )
        keys = graph.node("Concat", past_key, key, axis=2)
        values = graph.node("Concat", past_value, value, axis=2)
        graph.output(keys, f"present_key_{layer}", np.float32, ["rows", heads, "steps + 1", head_dim])
        graph.output(values, f"present_value_{layer}", np.float32, ["rows", heads, "steps + 1", head_dim])
        scores = graph.node("MatMul", query, graph.node("Transpose", keys, perm=(0, 1, 3, 2)))
        attention = graph.node("Softmax", graph.node("Add", scores, self_bias), axis=-1)
        attended = graph.reshape(graph.node("MatMul", attention, values), -1, inner)
        hidden = graph.node("Add", hidden, graph.linear(attended, weights[f"{name}.0.SelfAttention.o.weight"]))

        normed_rows = _rms_norm(graph, hidden, weights[f"{name}.1.layer_norm.weight"], config)
        query = graph.linear(normed_rows, weights[f"{name}.1.EncDecAttention.q.weight"])
        query = graph.node("Transpose", graph.node("Reshape", query, group_shape), perm=(0, 2, 1, 3))
        cross_key = graph.input(f"cross_key_{layer}", np.float32, ["groups", heads, head_dim, "tokens"])
        cross_value = graph.input(f"cross_value_{layer}", np.float32, ["groups", heads, "tokens", head_dim])
        scores = graph.node("Add", graph.node("MatMul", query, cross_key), cross_bias)
        attended = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), cross_value)
        attended = graph.reshape(graph.node("Transpose", attended, perm=(0, 2, 1, 3)), -1, inner)
        hidden = graph.node("Add", hidden, graph.linear(attended, weights[f"{name}.1.EncDecAttention.o.weight"]))

        normed = graph.quantise(_rms_norm(graph, hidden, weights[f"{name}.2.layer_norm.weight"], config))
        fed = _feed_forward(graph, normed, weights, f"{name}.2.DenseReluDense", config)
        hidden = graph.node("Add", hidden, fed)

    hidden = _rms_norm(graph, hidden, weights["decoder.final_layer_norm.weight"], config)
    if scaled_head:
        hidden = graph.node("Mul", hidden, graph.constant(np.float32(config["d_model"] ** -0.5)))
    head = weights["lm_head.weight"]
    logits = graph.linear(hidden, table if table.transposed else head)
    if suppressed_ids:
        bias = np.zeros(len(head), dtype=np.float32)
        bias[list(suppressed_ids)] = MASKED
        logits = graph.node("Add", logits, graph.constant(bias))
    top_k = graph.node("Shape", noise, start=1, end=2)
    best, places = graph.nodes("TopK", logits, top_k, outputs=2, axis=1)
    noisy = graph.node("Add", graph.node("Div", best, temperature), noise)
    chosen = graph.node("ArgMax", noisy, axis=1, keepdims=1)
    next_ids = graph.node("Reshape", graph.node("GatherElements", places, chosen, axis=1), graph.node("Shape", ids))
    graph.output(next_ids, "next_ids", np.int64, ["groups", "samples"])
    return graph


def _shared_table(graph: Graph, weights: Mapping[str, Array]) -> Table:
    """Add the embedding table, which both graphs read from one file, and a tied output projection reads too."""
    tied = np.shares_memory(weights["shared.weight"], weights["lm_head.weight"])
    return graph.table(weights["shared.weight"], transposed=tied, file=EMBEDDING_FILE)


def _rms_norm(graph: Graph, value: str, weight: Array, config: Mapping[str, Any]) -> str:
    eps = config["layer_norm_epsilon"]
    return graph.node("RMSNormalization", value, graph.constant(weight), axis=-1, epsilon=eps)


def _additive_mask(graph: Graph, mask: str) -> str:
    hidden = graph.node("Sub", graph.constant(np.float32(1)), graph.node("Cast", mask, to=TensorProto.FLOAT))
    return graph.node("Mul", hidden, graph.constant(MASKED))


def _feed_forward(
    graph: Graph,
    value: QuantisedRows,
    weights: Mapping[str, Array],
    name: str,
    config: Mapping[str, Any],
) -> str:
    activation = config["feed_forward_proj"]
    if activation == "relu":
        wide = graph.node("Relu", graph.linear(value, weights[f"{name}.wi.weight"]))
    elif activation == "gated-gelu":
        gate = graph.node("Gelu", graph.linear(value, weights[f"{name}.wi_0.weight"]), approximate="tanh")
        wide = graph.node("Mul", gate, graph.linear(value, weights[f"{name}.wi_1.weight"]))
    else:
        raise InputError(f"feed-forward {activation!r} is not supported; relu and gated-gelu are")
    return graph.linear(wide, weights[f"{name}.wo.weight"])


def _relative_bias(
    weights: Mapping[str, Array], config: Mapping[str, Any], side: str, distances: Array, bidirectional: bool
) -> Array:
    """Return the position bias for each distance (key minus query), shape `(heads, len(distances))`."""
    table = weights[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    count = config["relative_attention_num_buckets"]
    buckets = relative_buckets(distances, count, config["relative_attention_max_distance"], bidirectional)
    bias: Array = table[buckets].T
    return bias


def relative_buckets(distances: Array, count: int, max_distance: int, bidirectional: bool) -> Array:
    """Map distances (key minus query) to T5's buckets: half of them exact, the others logarithmic."""
    buckets = np.zeros_like(distances)
    if bidirectional:
        count //= 2
        buckets += (distances > 0) * count
        distances = np.abs(distances)
    else:
        distances = -np.minimum(distances, 0)
    exact = count // 2
    # float32 as in the reference: a boundary can fall the other way in float64
    ratio = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        np.log(max_distance / exact)
    )
    logarithmic = np.minimum(exact + (ratio * np.float32(count - exact)).astype(np.int64), count - 1)
    total: Array = buckets + np.where(distances < exact, distances, logarithmic)
    return total
