"""Write the graphs of a generator (T5, T5 1.1, mT5), which share one file with the embedding table.

The encoder graph also computes the keys and values of every decoder layer's cross-attention, once a passage. The
decoder graph is one step: ids and caches → hidden states. All samples of a passage are folded into the query axis of
the cross-attention (it has no causal mask), so its keys and values are never copied. The head graph samples the next
ids from hidden states; there is one for the whole vocabulary, and one for each restricted vocabulary.

Architecture: Raffel et al. 2020 (arXiv 1910.10683), Xue et al. 2021 (2010.11934).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto

from xqg_qdrant.errors import InputError
from xqg_qdrant.export.graph import Array, Graph, QuantisedRows, Table
from xqg_qdrant.export.quantise import Sample
from xqg_qdrant.model_folders.generator_settings import LONGEST_INPUT, LONGEST_OUTPUT

EMBEDDING_FILE = "embedding.data"
MASKED = np.float32(-1e9)
TOP_K_CHUNKS = (256, 128, 64)
# Which operand gets channels of even width: 1 the input, 0 the weights.
SMOOTHING = 0.5
# How far other texts may exceed the sample's range before a channel is clipped.
HEADROOM = 1.1


class Model(NamedTuple):
    """The source of the graphs; for int8, `weights` and input `steps` come from `smooth_t5`."""

    weights: Mapping[str, Array]
    config: Mapping[str, Any]
    dtype: str = "float32"
    steps: Mapping[str, float] = {}

    def graph(self, name: str) -> Graph:
        """Begin a graph with products in the model's dtype."""
        return Graph(name, self.dtype)


def build_t5_encoder(model: Model) -> Graph:
    """Write the encoder's graph.

    Inputs `input_ids` and `attention_mask` are int64 of shape `(batch, tokens)`. Outputs for every decoder layer `i`
    are `cross_key_i` of shape `(batch, heads, head_dim, tokens)` and `cross_value_i` of shape
    `(batch, heads, tokens, head_dim)`. Both are float32. In an int8 model they are int8, with a scale for each channel
    of a text: `cross_key_scale_i` and `cross_value_scale_i`, float32 of shape `(batch, heads, 1, head_dim)`.
    """
    graph, weights, config = model.graph("encoder"), model.weights, model.config
    heads, head_dim = config["num_heads"], config["d_kv"]
    ids = graph.input("input_ids", np.int64, ["batch", "tokens"])
    mask = graph.input("attention_mask", np.int64, ["batch", "tokens"])
    hidden = graph.look_up(graph.reshape(ids, -1), _shared_table(graph, weights))
    by_text = graph.node("Concat", graph.node("Shape", ids), graph.ints(-1), axis=0)
    tokens = graph.node("Shape", ids, start=1, end=2)
    bias = graph.node("Add", _encoder_bias(graph, weights, config, tokens), _additive_mask(graph, mask))

    blocks = [f"encoder.block.{layer}.layer" for layer in range(config["num_layers"])]
    norms = [weights[f"{name}.0.layer_norm.weight"] for name in blocks] + [weights["encoder.final_layer_norm.weight"]]
    normed = _rms_norm(graph, hidden, norms[0], config)
    for layer, name in enumerate(blocks):
        rows = _quantise(graph, model, normed, f"{name}.0.SelfAttention.q.weight")
        query, key, value = (
            graph.node("Reshape", graph.linear(rows, weights[f"{name}.0.SelfAttention.{part}.weight"]), by_text)
            for part in "qkv"
        )
        attended = graph.node("Attention", query, key, value, bias, q_num_heads=heads, kv_num_heads=heads, scale=1.0)
        attended = graph.reshape(attended, -1, heads * head_dim)
        update = _linear(graph, model, attended, f"{name}.0.SelfAttention.o.weight")
        normed, hidden = _add_and_norm(graph, hidden, update, weights[f"{name}.1.layer_norm.weight"], config)
        update = _feed_forward(graph, model, normed, f"{name}.1.DenseReluDense")
        normed, hidden = _add_and_norm(graph, hidden, update, norms[layer + 1], config)

    # Zero the keys and values of padding, so that in int8 they affect no scale.
    visible = graph.reshape(graph.node("Cast", mask, to=TensorProto.FLOAT), -1, 1)
    normed = graph.node("Mul", normed, visible)
    rows = _quantise(graph, model, normed, "decoder.block.0.layer.1.EncDecAttention.k.weight")
    for layer in range(config["num_decoder_layers"]):
        for part in ("key", "value"):
            weight = weights[f"decoder.block.{layer}.layer.1.EncDecAttention.{part[0]}.weight"]
            projected = graph.node("Reshape", graph.linear(rows, weight), by_text)
            _write_cross(graph, projected, f"cross_{part}", layer, model, tokens)
    return graph


def _encoder_bias(graph: Graph, weights: Mapping[str, Array], config: Mapping[str, Any], tokens: str) -> str:
    """Return the position bias of every query and key, shape `(1, heads, tokens, tokens)`."""
    # The bias of query i and key j depends on j - i alone. Repeat a line of 2n biases, for distances 0 to n-1 and -n to
    # -1, n times and cut it into rows of 2n-1: each row starts one place earlier in the line. Looking up every distance
    # takes ten times as long.
    distances = np.arange(-LONGEST_INPUT, LONGEST_INPUT)
    table = graph.constant(_relative_bias(weights, config, "encoder", distances, bidirectional=True))
    middle, one = graph.ints(LONGEST_INPUT), graph.ints(1)
    ahead = graph.node("Slice", table, middle, graph.node("Add", middle, tokens), one)
    behind = graph.node("Slice", table, graph.node("Sub", middle, tokens), middle, one)
    line = graph.node("Unsqueeze", graph.node("Concat", ahead, behind, axis=1), one)
    lines = graph.node("Expand", line, graph.node("Concat", one, tokens, one, axis=0))
    width = graph.node("Sub", graph.node("Add", tokens, tokens), one)
    flat = graph.node(
        "Slice", graph.node("Flatten", lines, axis=1), graph.ints(0), graph.node("Mul", tokens, width), one
    )
    rows = graph.node("Reshape", flat, graph.node("Concat", graph.ints(1, config["num_heads"], -1), width, axis=0))
    return graph.node("Slice", rows, graph.ints(0), tokens, graph.ints(3))


def _write_cross(graph: Graph, projected: str, label: str, layer: int, model: Model, tokens: str) -> None:
    """Write the keys or values of one layer's cross-attention, from `(batch, tokens, heads * head_dim)`."""
    heads, head_dim = model.config["num_heads"], model.config["d_kv"]
    int8 = model.dtype == "int8"
    turned = graph.node("Transpose", projected, perm=(0, 2, 1))
    if int8:
        by_channel = graph.node("Reshape", turned, graph.node("Concat", graph.ints(-1), tokens, axis=0))
        scales = graph.row_scales(by_channel)
        turned = graph.node("QuantizeLinear", by_channel, scales, axis=0, output_dtype=TensorProto.INT8)
        shape: list[int | str] = ["batch", heads, 1, head_dim]
        graph.output(graph.reshape(scales, -1, heads, 1, head_dim), f"{label}_scale_{layer}", np.float32, shape)
    by_head = graph.node("Concat", graph.ints(-1, heads, head_dim), tokens, axis=0)
    cross = graph.node("Reshape", turned, by_head)
    shape = ["batch", heads, head_dim, "tokens"]
    if label == "cross_value":
        cross, shape = graph.node("Transpose", cross, perm=(0, 1, 3, 2)), ["batch", heads, "tokens", head_dim]
    graph.output(cross, f"{label}_{layer}", np.int8 if int8 else np.float32, shape)


def build_t5_decoder(model: Model, scaled_head: bool) -> Graph:
    """Write the graph of one decoder step up to the output projection.

    A group is one encoder input with any number of rows. Inputs:

    - `ids`, int64 of shape `(rows,)`;
    - `step`, int64 of shape `(1,)`, counted from 0;
    - `places`, int64 of shape `(groups, width)`: the rows of each group, padded with any row;
    - `row_places`, int64 of shape `(rows,)`: the index of each row in `places`, flattened;
    - `attention_mask`, int64 of shape `(groups, tokens)`;
    - the encoder's outputs;
    - `past_key_i` and `past_value_i`, float32 of shape `(rows, heads, capacity, head_dim)`, the first `step` entries
      in use.

    Outputs are `hidden`, float32 of shape `(rows, d_model)`, and `present_key_i` and `present_value_i`: the past ones
    with one more entry. Bound to the same memory they cost no copy.
    """
    graph, weights, config = model.graph("decoder"), model.weights, model.config
    heads, head_dim, layers = config["num_heads"], config["d_kv"], config["num_decoder_layers"]
    ids = graph.input("ids", np.int64, ["rows"])
    step = graph.input("step", np.int64, [1])
    places = graph.input("places", np.int64, ["groups", "width"])
    row_places = graph.input("row_places", np.int64, ["rows"])
    mask = graph.input("attention_mask", np.int64, ["groups", "tokens"])
    caches: list[int | str] = ["rows", heads, "capacity", head_dim]
    pasts = {
        f"{part}_{layer}": graph.input(f"past_{part}_{layer}", np.float32, caches)
        for layer in range(layers)
        for part in ("key", "value")
    }
    here = graph.node("Expand", step, graph.node("Shape", ids))
    self_bias = _decoder_bias(graph, weights, config, step, graph.node("Shape", pasts["key_0"], start=2, end=3))
    cross_bias = _additive_mask(graph, mask)
    by_place = graph.node("Concat", graph.node("Shape", places), graph.ints(heads, head_dim), axis=0)

    hidden = graph.look_up(ids, _shared_table(graph, weights))
    blocks = [f"decoder.block.{layer}.layer" for layer in range(layers)]
    norms = [weights[f"{name}.0.layer_norm.weight"] for name in blocks]
    # Fold the scale of a tied output projection into the last norm, where it costs nothing.
    norms.append(
        weights["decoder.final_layer_norm.weight"] * np.float32(config["d_model"] ** -0.5 if scaled_head else 1)
    )
    normed = _rms_norm(graph, hidden, norms[0], config)
    for layer, name in enumerate(blocks):
        rows = _quantise(graph, model, normed, f"{name}.0.SelfAttention.q.weight")
        query, key, value = (
            graph.reshape(graph.linear(rows, weights[f"{name}.0.SelfAttention.{part}.weight"]), -1, heads, 1, head_dim)
            for part in "qkv"
        )
        keys, values = (
            graph.output(
                graph.node("TensorScatter", pasts[f"{part}_{layer}"], new, here, axis=2),
                f"present_{part}_{layer}", np.float32, caches,
            )
            for part, new in (("key", key), ("value", value))
        )  # fmt: skip
        scores = graph.node("MatMul", query, graph.node("Transpose", keys, perm=(0, 1, 3, 2)))
        attention = graph.node("Softmax", graph.node("Add", scores, self_bias), axis=-1)
        attended = graph.reshape(graph.node("MatMul", attention, values), -1, heads * head_dim)
        update = _linear(graph, model, attended, f"{name}.0.SelfAttention.o.weight")
        normed, hidden = _add_and_norm(graph, hidden, update, weights[f"{name}.1.layer_norm.weight"], config)

        query = _linear(graph, model, normed, f"{name}.1.EncDecAttention.q.weight")
        query = graph.node("Reshape", graph.node("Gather", query, places, axis=0), by_place)
        query = graph.node("Transpose", query, perm=(0, 2, 1, 3))
        attend = _attend_int8 if model.dtype == "int8" else _attend
        attended = graph.node("Transpose", attend(graph, query, cross_bias, layer, config), perm=(0, 2, 1, 3))
        attended = graph.node("Gather", graph.reshape(attended, -1, heads * head_dim), row_places, axis=0)
        update = _linear(graph, model, attended, f"{name}.1.EncDecAttention.o.weight")
        normed, hidden = _add_and_norm(graph, hidden, update, weights[f"{name}.2.layer_norm.weight"], config)

        update = _feed_forward(graph, model, normed, f"{name}.2.DenseReluDense")
        normed, hidden = _add_and_norm(graph, hidden, update, norms[layer + 1], config)
    graph.output(normed, "hidden", np.float32, ["rows", config["d_model"]])
    return graph


def _decoder_bias(graph: Graph, weights: Mapping[str, Array], config: Mapping[str, Any], step: str, keys: str) -> str:
    """Return the position bias of the newest token and each cache entry, `(1, heads, 1, capacity)`."""
    distances = np.arange(-(LONGEST_OUTPUT - 1), LONGEST_OUTPUT)
    table = _relative_bias(weights, config, "decoder", distances, bidirectional=False)
    table[:, distances > 0] = MASKED
    first = graph.node("Sub", graph.ints(LONGEST_OUTPUT - 1), step)
    return graph.node(
        "Slice", graph.constant(table[None, :, None, :]), first, graph.node("Add", first, keys), graph.ints(3)
    )


def _attend(graph: Graph, query: str, bias: str, layer: int, config: Mapping[str, Any]) -> str:
    """Write the cross-attention of `(groups, heads, width, head_dim)`."""
    heads, head_dim = config["num_heads"], config["d_kv"]
    key = graph.input(f"cross_key_{layer}", np.float32, ["groups", heads, head_dim, "tokens"])
    value = graph.input(f"cross_value_{layer}", np.float32, ["groups", heads, "tokens", head_dim])
    scores = graph.node("Add", graph.node("MatMul", query, key), bias)
    return graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)


def _attend_int8(graph: Graph, query: str, bias: str, layer: int, config: Mapping[str, Any]) -> str:
    """Write the cross-attention with keys and values in int8, a quarter of what a step has to read.

    The weights of the attention are rounded to whole 255ths of the largest, and divided by the sum of the rounded ones.
    """
    heads, head_dim = config["num_heads"], config["d_kv"]
    key = graph.input(f"cross_key_{layer}", np.int8, ["groups", heads, head_dim, "tokens"])
    value = graph.input(f"cross_value_{layer}", np.int8, ["groups", heads, "tokens", head_dim])
    key_scale, value_scale = (
        graph.input(f"cross_{part}_scale_{layer}", np.float32, ["groups", heads, 1, head_dim])
        for part in ("key", "value")
    )
    middle = graph.constant(np.uint8(128), np.uint8)
    query = graph.node("Mul", query, key_scale)
    shape = graph.node("Shape", query)
    rows = graph.quantise(graph.reshape(query, -1, head_dim))
    scores = graph.node("MatMulInteger", graph.node("Reshape", rows.values, shape), key, middle)
    by_row = graph.node("Concat", graph.node("Slice", shape, graph.ints(0), graph.ints(3)), graph.ints(1), axis=0)
    scores = graph.node(
        "Mul", graph.node("Cast", scores, to=TensorProto.FLOAT), graph.node("Reshape", rows.scales, by_row)
    )
    scores = graph.node("Add", scores, bias)
    weights = graph.node("Exp", graph.node("Sub", scores, graph.node("ReduceMax", scores, graph.ints(3), keepdims=1)))
    whole = graph.node("QuantizeLinear", weights, graph.constant(1 / 255.0), graph.constant(np.uint8(0), np.uint8))
    total = graph.node("ReduceSum", graph.node("Cast", whole, to=TensorProto.FLOAT), graph.ints(3), keepdims=1)
    attended = graph.node("Cast", graph.node("MatMulInteger", whole, value), to=TensorProto.FLOAT)
    return graph.node("Mul", graph.node("Div", attended, total), value_scale)


def build_t5_head(model: Model, suppressed_ids: Sequence[int] = (), only_ids: Array | None = None) -> Graph:
    """Write the graph of the output projection and of the choice of the next ids.

    Inputs: `hidden`, float32 of shape `(all_rows, d_model)`; `chosen_rows`, int64 of shape `(rows,)`, the rows to
    choose ids for; `temperature`, a float32 scalar; `noise`, float32 of shape `(rows, top_k)`. Output: `next_ids`,
    int64 of shape `(rows,)`. With Gumbel noise, the best of the `top_k` best logits is a sample from their softmax
    (Gumbel-max). Zeros and `top_k` 1 decode greedily.

    Ids in `suppressed_ids` are never chosen. With `only_ids`, sorted, all others are suppressed and not computed.
    """
    graph = model.graph("head")
    head = model.weights["lm_head.weight"]
    hidden = graph.input("hidden", np.float32, ["all_rows", head.shape[1]])
    chosen_rows = graph.input("chosen_rows", np.int64, ["rows"])
    temperature = graph.input("temperature", np.float32, [])
    noise = graph.input("noise", np.float32, ["rows", "top_k"])
    rows = graph.quantise(graph.node("Gather", hidden, chosen_rows, axis=0))
    if only_ids is None:
        tied = np.shares_memory(model.weights["shared.weight"], head)
        # A row's scale does not change the order of its logits: apply it when few are left.
        logits = graph.product(rows, graph.transpose(_shared_table(graph, model.weights)) if tied else head)
        if suppressed_ids:
            bias = np.zeros(len(head), dtype=np.float32)
            bias[list(suppressed_ids)] = MASKED
            logits = graph.node("Add", logits, graph.constant(bias))
    else:
        logits = graph.product(rows, head[only_ids])
    top_k = graph.node("Shape", noise, start=1, end=2)
    best, places = _top_k(graph, logits, len(head) if only_ids is None else len(only_ids), top_k)
    noisy = graph.node("Add", graph.node("Div", graph.scale(best, rows.scales), temperature), noise)
    next_ids = graph.node("GatherElements", places, graph.node("ArgMax", noisy, axis=1, keepdims=1), axis=1)
    next_ids = graph.reshape(next_ids, -1)
    if only_ids is not None:
        next_ids = graph.node("Gather", graph.constant(only_ids, np.int64), next_ids)
    graph.output(next_ids, "next_ids", np.int64, ["rows"])
    return graph


def _top_k(graph: Graph, values: str, count: int, top_k: str) -> list[str]:
    """Return the `top_k` best of each row of `count` values, and their indices.

    They lie in the `top_k` chunks with the largest maxima; finding those takes one fast pass over all values.
    """
    chunk = next((size for size in TOP_K_CHUNKS if count % size == 0), 0)
    if not chunk:
        return graph.nodes("TopK", values, top_k, outputs=2, axis=1)
    chunks = graph.reshape(values, -1, count // chunk, chunk)
    largest = graph.node("ReduceMax", chunks, graph.ints(2), keepdims=0)
    kept = graph.node("Min", top_k, graph.ints(count // chunk))
    _, chunk_places = graph.nodes("TopK", largest, kept, outputs=2, axis=1)
    few = graph.node("GatherND", chunks, graph.node("Unsqueeze", chunk_places, graph.ints(2)), batch_dims=1)
    best, places = graph.nodes("TopK", graph.node("Flatten", few, axis=1), top_k, outputs=2, axis=1)
    size = graph.constant(np.int64(chunk), np.int64)
    start = graph.node("GatherElements", chunk_places, graph.node("Div", places, size), axis=1)
    return [best, graph.node("Add", graph.node("Mul", start, size), graph.node("Mod", places, size))]


def _shared_table(graph: Graph, weights: Mapping[str, Array]) -> Table:
    """Add the embedding table, stored in a file that the graphs share."""
    return graph.table(weights["shared.weight"], file=EMBEDDING_FILE)


def _rms_norm(graph: Graph, value: str, weight: Array, config: Mapping[str, Any]) -> str:
    eps = config["layer_norm_epsilon"]
    return graph.node("RMSNormalization", value, graph.constant(weight), axis=-1, epsilon=eps)


def _add_and_norm(graph: Graph, hidden: str, update: str, weight: Array, config: Mapping[str, Any]) -> tuple[str, str]:
    """Add an update to the residual stream; return the normed sum and the sum."""
    # Two nodes: on a CPU the runtime's fused node takes twice as long.
    hidden = graph.node("Add", hidden, update)
    return _rms_norm(graph, hidden, weight, config), hidden


def _additive_mask(graph: Graph, mask: str) -> str:
    """Return the additive mask of padding for scores, shape `(batch, 1, 1, tokens)`."""
    hidden = graph.node("Sub", graph.constant(np.float32(1)), graph.node("Cast", mask, to=TensorProto.FLOAT))
    return graph.node("Unsqueeze", graph.node("Mul", hidden, graph.constant(MASKED)), graph.ints(1, 2))


def _feed_forward(graph: Graph, model: Model, value: str, name: str) -> str:
    activation = model.config["feed_forward_proj"]
    if activation == "relu":
        wide = graph.node("Relu", _linear(graph, model, value, f"{name}.wi.weight"))
    elif activation == "gated-gelu":
        rows = _quantise(graph, model, value, f"{name}.wi_0.weight")
        gate = graph.node("Gelu", graph.linear(rows, model.weights[f"{name}.wi_0.weight"]), approximate="tanh")
        wide = graph.node("Mul", gate, graph.linear(rows, model.weights[f"{name}.wi_1.weight"]))
    else:
        raise InputError(
            f"unsupported feed-forward {activation!r}.", "export a checkpoint with feed_forward_proj relu or gated-gelu"
        )
    return _linear(graph, model, wide, f"{name}.wo.weight")


def _linear(graph: Graph, model: Model, value: str, name: str) -> str:
    return graph.linear(_quantise(graph, model, value, name), model.weights[name])


def _quantise(graph: Graph, model: Model, value: str, user: str) -> QuantisedRows:
    """Prepare rows for the product with the weight `user`, and others that share its input."""
    return graph.quantise(value, model.steps.get(user))


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
    """Map distances (key minus query) to T5's buckets, half exact and half logarithmic."""
    buckets = np.zeros_like(distances)
    if bidirectional:
        count //= 2
        buckets += (distances > 0) * count
        distances = np.abs(distances)
    else:
        distances = -np.minimum(distances, 0)
    exact = count // 2
    # float32 as in transformers: float64 can move a distance across a boundary.
    ratio = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        np.log(max_distance / exact)
    )
    logarithmic = np.minimum(exact + (ratio * np.float32(count - exact)).astype(np.int64), count - 1)
    total: Array = buckets + np.where(distances < exact, distances, logarithmic)
    return total


class Smoothed(NamedTuple):
    """Equivalent weights, and the int8 step of each product's input by the name of its weight."""

    weights: dict[str, Array]
    steps: dict[str, float]


class _Input(NamedTuple):
    """An input of products: the weight that makes its channels (as rows or not), and the weights that use them."""

    maker: str
    makes_rows: bool
    users: Sequence[str]


def smooth_t5(weights: Mapping[str, Array], config: Mapping[str, Any], seen: Mapping[str, Sample]) -> Smoothed:
    """Scale the input channels of every product except the output projection, for int8 with one fixed step an input.

    A scale for each row costs four passes over a product's input and one over its output. A fixed step costs none, but
    no channel may be much wider than the others. So each channel is divided by a factor where it is made, which is
    exact, and multiplied by it where it is used (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438). It is made by the
    norm before a product, by the values before an attention's output projection, or by a feed-forward layer's input
    projection.

    `seen` describes the inputs on sample texts, by the name of the first weight that uses them.
    """
    smoothed = dict(weights)
    steps: dict[str, float] = {}
    for shared in _inputs(config):
        sample = seen[shared.users[0].removesuffix(".weight")]
        reach = np.maximum(np.maximum(np.abs(sample.low), np.abs(sample.high)), 1e-6) * HEADROOM
        columns = np.max([np.abs(weights[name]).max(axis=0) for name in shared.users], axis=0)
        factors = (reach**SMOOTHING / np.maximum(columns, 1e-6) ** (1 - SMOOTHING)).astype(np.float32)
        maker = smoothed[shared.maker]
        smoothed[shared.maker] = maker / (factors[:, None] if shared.makes_rows else factors)
        for name in shared.users:
            smoothed[name] = smoothed[name] * factors
            steps[name] = float((reach / factors).max()) / 127
    return Smoothed(smoothed, steps)


def _inputs(config: Mapping[str, Any]) -> Iterator[_Input]:
    gated = config["feed_forward_proj"].startswith("gated")
    for side, layers in (("encoder", config["num_layers"]), ("decoder", config["num_decoder_layers"])):
        for layer in range(layers):
            name = f"{side}.block.{layer}.layer"
            yield _Input(
                f"{name}.0.layer_norm.weight", False, [f"{name}.0.SelfAttention.{part}.weight" for part in "qkv"]
            )
            yield _Input(f"{name}.0.SelfAttention.v.weight", True, [f"{name}.0.SelfAttention.o.weight"])
            if side == "decoder":
                yield _Input(f"{name}.1.layer_norm.weight", False, [f"{name}.1.EncDecAttention.q.weight"])
                yield _Input(f"{name}.1.EncDecAttention.v.weight", True, [f"{name}.1.EncDecAttention.o.weight"])
            wide = f"{name}.{2 if side == 'decoder' else 1}"
            projections = ("wi_0", "wi_1") if gated else ("wi",)
            yield _Input(
                f"{wide}.layer_norm.weight", False, [f"{wide}.DenseReluDense.{part}.weight" for part in projections]
            )
            yield _Input(f"{wide}.DenseReluDense.{projections[-1]}.weight", True, [f"{wide}.DenseReluDense.wo.weight"])
    crosses = [
        f"decoder.block.{layer}.layer.1.EncDecAttention.{part}.weight"
        for layer in range(config["num_decoder_layers"])
        for part in "kv"
    ]
    yield _Input("encoder.final_layer_norm.weight", False, crosses)
