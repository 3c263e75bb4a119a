"""Write the graphs of a T5, T5 1.1 or mT5, which share one file with the embedding table.

Architecture: Raffel et al. 2020 (arXiv 1910.10683), Xue et al. 2021 (2010.11934).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto

from xqg_qdrant.errors import InputError
from xqg_qdrant.export.generator import (
    EMBEDDING_FILE,
    DecoderStep,
    Heads,
    Projection,
    additive_mask,
    write_cross,
    write_head,
)
from xqg_qdrant.export.graph import Array, Graph, QuantisedRows, Table
from xqg_qdrant.export.quantise import Sample
from xqg_qdrant.model_folders.generator_settings import LONGEST_INPUT, LONGEST_OUTPUT

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

    def heads(self) -> Heads:
        """Return the heads of its attention."""
        return Heads(self.config["num_heads"], self.config["d_kv"], self.dtype == "int8")


def build_t5_encoder(model: Model) -> Graph:
    """Write the encoder's graph.

    Inputs `input_ids` and `attention_mask` are int64 of shape `(batch, tokens)`. Outputs for every decoder layer are
    those of `write_cross`.
    """
    graph, weights, config = model.graph("encoder"), model.weights, model.config
    heads, head_dim = config["num_heads"], config["d_kv"]
    ids = graph.input("input_ids", np.int64, ["batch", "tokens"])
    mask = graph.input("attention_mask", np.int64, ["batch", "tokens"])
    hidden = graph.look_up(graph.reshape(ids, -1), _shared_table(graph, weights))
    by_text = graph.node("Concat", graph.node("Shape", ids), graph.ints(-1), axis=0)
    tokens = graph.node("Shape", ids, start=1, end=2)
    bias = graph.node("Add", _encoder_bias(graph, weights, config, tokens), additive_mask(graph, mask))

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
            write_cross(graph, projected, f"cross_{part}", layer, model.heads(), tokens)
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


def build_t5_decoder(model: Model, scaled_head: bool) -> Graph:
    """Write the graph of one decoder step up to the output projection.

    Inputs and further outputs are those of `DecoderStep`. Output `hidden` is float32 of shape `(rows, d_model)`.
    """
    graph, weights, config = model.graph("decoder"), model.weights, model.config
    layers = config["num_decoder_layers"]
    distances = np.arange(1 - LONGEST_OUTPUT, 1)
    step = DecoderStep(graph, model.heads(), layers, _relative_bias(weights, config, "decoder", distances, False))

    hidden = graph.look_up(step.ids, _shared_table(graph, weights))
    blocks = [f"decoder.block.{layer}.layer" for layer in range(layers)]
    norms = [weights[f"{name}.0.layer_norm.weight"] for name in blocks]
    # Fold the scale of a tied output projection into the last norm, where it costs nothing.
    norms.append(
        weights["decoder.final_layer_norm.weight"] * np.float32(config["d_model"] ** -0.5 if scaled_head else 1)
    )
    normed = _rms_norm(graph, hidden, norms[0], config)
    for layer, name in enumerate(blocks):
        rows = _quantise(graph, model, normed, f"{name}.0.SelfAttention.q.weight")
        parts = (graph.linear(rows, weights[f"{name}.0.SelfAttention.{part}.weight"]) for part in "qkv")
        attended = step.attend_past(layer, *parts)
        update = _linear(graph, model, attended, f"{name}.0.SelfAttention.o.weight")
        normed, hidden = _add_and_norm(graph, hidden, update, weights[f"{name}.1.layer_norm.weight"], config)

        query = _linear(graph, model, normed, f"{name}.1.EncDecAttention.q.weight")
        attended = step.attend_passage(layer, query)
        update = _linear(graph, model, attended, f"{name}.1.EncDecAttention.o.weight")
        normed, hidden = _add_and_norm(graph, hidden, update, weights[f"{name}.2.layer_norm.weight"], config)

        update = _feed_forward(graph, model, normed, f"{name}.2.DenseReluDense")
        normed, hidden = _add_and_norm(graph, hidden, update, norms[layer + 1], config)
    graph.output(normed, "hidden", np.float32, ["rows", config["d_model"]])
    return graph


def build_t5_head(model: Model, suppressed_ids: Sequence[int] = (), only_ids: Array | None = None) -> Graph:
    """Write the graph of the output projection and of the choice of the next ids, see `write_head`."""
    head = model.weights["lm_head.weight"]
    tied = np.shares_memory(model.weights["shared.weight"], head)
    return write_head(model.graph("head"), Projection(head, tied), suppressed_ids, only_ids)


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
