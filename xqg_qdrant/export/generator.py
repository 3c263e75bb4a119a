"""Write what the graphs of all generators share: cross-attention, the inputs of a decoder step, the choice of ids.

The encoder graph also computes the keys and values of every decoder layer's cross-attention, once a passage. The
decoder graph is one step: ids and caches → hidden states. All samples of a passage are folded into the query axis of
the cross-attention (it has no causal mask), so its keys and values are never copied. The head graph samples the next
ids from hidden states; there is one for the whole vocabulary, and one for each restricted vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from xqg_qdrant.export.graph import Array, Graph, Table
from xqg_qdrant.model_folders.generator_settings import LONGEST_OUTPUT

EMBEDDING_FILE = "embedding.data"
MASKED = np.float32(-1e9)
TOP_K_CHUNKS = (256, 128, 64)


class Heads(NamedTuple):
    """The attention of a decoder: the number of its heads, their size, and whether its graph is in int8."""

    number: int
    dim: int
    int8: bool


def write_cross(graph: Graph, projected: str, label: str, layer: int, heads: Heads, tokens: str) -> None:
    """Write the keys or values of one layer's cross-attention, from `(batch, tokens, heads * head_dim)`.

    Outputs are `cross_key_i` of shape `(batch, heads, head_dim, tokens)` and `cross_value_i` of shape
    `(batch, heads, tokens, head_dim)`. Both are float32. In an int8 model they are int8, with a scale for each channel
    of a text: `cross_key_scale_i` and `cross_value_scale_i`, float32 of shape `(batch, heads, 1, head_dim)`.
    """
    count, dim, int8 = heads
    turned = graph.node("Transpose", projected, perm=(0, 2, 1))
    if int8:
        by_channel = graph.node("Reshape", turned, graph.node("Concat", graph.ints(-1), tokens, axis=0))
        scales = graph.row_scales(by_channel)
        turned = graph.node("QuantizeLinear", by_channel, scales, axis=0, output_dtype=TensorProto.INT8)
        shape: list[int | str] = ["batch", count, 1, dim]
        graph.output(graph.reshape(scales, -1, count, 1, dim), f"{label}_scale_{layer}", np.float32, shape)
    by_head = graph.node("Concat", graph.ints(-1, count, dim), tokens, axis=0)
    cross = graph.node("Reshape", turned, by_head)
    shape = ["batch", count, dim, "tokens"]
    if label == "cross_value":
        cross, shape = graph.node("Transpose", cross, perm=(0, 1, 3, 2)), ["batch", count, "tokens", dim]
    graph.output(cross, f"{label}_{layer}", np.int8 if int8 else np.float32, shape)


class DecoderStep:
    """The inputs of one decoder step, and its attentions.

    A group is one encoder input with any number of rows. Inputs:

    - `ids`, int64 of shape `(rows,)`;
    - `step`, int64 of shape `(1,)`, counted from 0;
    - `places`, int64 of shape `(groups, width)`: the rows of each group, padded with any row;
    - `row_places`, int64 of shape `(rows,)`: the index of each row in `places`, flattened;
    - `attention_mask`, int64 of shape `(groups, tokens)`;
    - the encoder's outputs;
    - `past_key_i` and `past_value_i`, float32 of shape `(rows, heads, capacity, head_dim)`, the first `step` entries
      in use.

    Outputs are `present_key_i` and `present_value_i`: the past ones with one more entry. Bound to the same memory they
    cost no copy.
    """

    def __init__(self, graph: Graph, heads: Heads, layers: int, bias: Array) -> None:
        """Declare the inputs.

        `bias` is added to the scores of the newest token and each earlier one. It holds a value for each head (or one
        for all) and each distance from `1 - LONGEST_OUTPUT` to 0, shape `(heads or 1, LONGEST_OUTPUT)`.
        """
        self._graph, self._heads = graph, heads
        self.ids = graph.input("ids", np.int64, ["rows"])
        self.step = graph.input("step", np.int64, [1])
        self._places = graph.input("places", np.int64, ["groups", "width"])
        self._row_places = graph.input("row_places", np.int64, ["rows"])
        mask = graph.input("attention_mask", np.int64, ["groups", "tokens"])
        self._caches: list[int | str] = ["rows", heads.number, "capacity", heads.dim]
        self._pasts = {
            f"{part}_{layer}": graph.input(f"past_{part}_{layer}", np.float32, self._caches)
            for layer in range(layers)
            for part in ("key", "value")
        }
        self._here = graph.node("Expand", self.step, graph.node("Shape", self.ids))
        self._past_bias = self._write_bias(bias, graph.node("Shape", self._pasts["key_0"], start=2, end=3))
        self._cross_bias = additive_mask(graph, mask)
        size = graph.ints(heads.number, heads.dim)
        self._by_place = graph.node("Concat", graph.node("Shape", self._places), size, axis=0)

    def _write_bias(self, bias: Array, capacity: str) -> str:
        """Return the bias of the newest token and each cache entry, `(1, heads or 1, 1, capacity)`."""
        graph = self._graph
        # Later entries hold nothing yet.
        line = np.pad(bias, ((0, 0), (0, LONGEST_OUTPUT - 1)), constant_values=MASKED)
        first = graph.node("Sub", graph.ints(LONGEST_OUTPUT - 1), self.step)
        last = graph.node("Add", first, capacity)
        return graph.node("Slice", graph.constant(line[None, :, None, :]), first, last, graph.ints(3))

    def attend_past(self, layer: int, query: str, key: str, value: str) -> str:
        """Write the attention of the newest token to all so far, over rows `(rows, heads * head_dim)`."""
        graph, (count, dim, _) = self._graph, self._heads
        query, key, value = (graph.reshape(part, -1, count, 1, dim) for part in (query, key, value))
        keys, values = (
            graph.output(
                graph.node("TensorScatter", self._pasts[f"{part}_{layer}"], new, self._here, axis=2),
                f"present_{part}_{layer}", np.float32, self._caches,
            )
            for part, new in (("key", key), ("value", value))
        )  # fmt: skip
        scores = graph.node("MatMul", query, graph.node("Transpose", keys, perm=(0, 1, 3, 2)))
        attention = graph.node("Softmax", graph.node("Add", scores, self._past_bias), axis=-1)
        return graph.reshape(graph.node("MatMul", attention, values), -1, count * dim)

    def attend_passage(self, layer: int, query: str) -> str:
        """Write the attention of the newest token to the passage, over rows `(rows, heads * head_dim)`."""
        graph, (count, dim, int8) = self._graph, self._heads
        query = graph.node("Reshape", graph.node("Gather", query, self._places, axis=0), self._by_place)
        query = graph.node("Transpose", query, perm=(0, 2, 1, 3))
        attended = (self._attend_int8 if int8 else self._attend)(query, layer)
        attended = graph.node("Transpose", attended, perm=(0, 2, 1, 3))
        return graph.node("Gather", graph.reshape(attended, -1, count * dim), self._row_places, axis=0)

    def _attend(self, query: str, layer: int) -> str:
        """Write the cross-attention of `(groups, heads, width, head_dim)`."""
        graph, (count, dim, _) = self._graph, self._heads
        key = graph.input(f"cross_key_{layer}", np.float32, ["groups", count, dim, "tokens"])
        value = graph.input(f"cross_value_{layer}", np.float32, ["groups", count, "tokens", dim])
        scores = graph.node("Add", graph.node("MatMul", query, key), self._cross_bias)
        return graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)

    def _attend_int8(self, query: str, layer: int) -> str:
        """Write the cross-attention with keys and values in int8, a quarter of what a step has to read.

        The weights of the attention have two terms of 8 bits: whole 255ths of the largest, and 255ths of these. Where
        one token gets much of the attention, the many others would be rounded away by one term. They are divided by
        the sum of the rounded ones, which as a sum of integers does not depend on padding.
        """
        graph, (count, dim, _) = self._graph, self._heads
        key = graph.input(f"cross_key_{layer}", np.int8, ["groups", count, dim, "tokens"])
        value = graph.input(f"cross_value_{layer}", np.int8, ["groups", count, "tokens", dim])
        key_scale, value_scale = (
            graph.input(f"cross_{part}_scale_{layer}", np.float32, ["groups", count, 1, dim])
            for part in ("key", "value")
        )
        middle = graph.constant(np.uint8(128), np.uint8)
        query = graph.node("Mul", query, key_scale)
        shape = graph.node("Shape", query)
        rows = graph.quantise(graph.reshape(query, -1, dim))
        scores = graph.node("MatMulInteger", graph.node("Reshape", rows.values, shape), key, middle)
        by_row = graph.node("Concat", graph.node("Slice", shape, graph.ints(0), graph.ints(3)), graph.ints(1), axis=0)
        scores = graph.node(
            "Mul", graph.node("Cast", scores, to=TensorProto.FLOAT), graph.node("Reshape", rows.scales, by_row)
        )
        scores = graph.node("Add", scores, self._cross_bias)
        largest = graph.node("ReduceMax", scores, graph.ints(3), keepdims=1)
        below = graph.node("Sub", largest, graph.constant(np.float32(np.log(255))))
        weights = graph.node("Exp", graph.node("Sub", scores, below))
        whole = graph.node("Cast", weights, to=TensorProto.UINT8)
        counted = graph.node("Cast", whole, to=TensorProto.FLOAT)
        step = graph.constant(np.float32(1 / 255))
        rest = graph.node("QuantizeLinear", graph.node("Sub", weights, counted), step, graph.constant(0, np.uint8))

        def add_terms(coarse: str, fine: str) -> str:
            return graph.node("Add", coarse, graph.node("Mul", fine, step))

        def add_tokens(term: str) -> str:
            return graph.node("ReduceSum", term, graph.ints(3), keepdims=1)

        def attend(term: str) -> str:
            return graph.node("Cast", graph.node("MatMulInteger", term, value), to=TensorProto.FLOAT)

        total = add_terms(add_tokens(counted), add_tokens(graph.node("Cast", rest, to=TensorProto.FLOAT)))
        return graph.node("Mul", graph.node("Div", add_terms(attend(whole), attend(rest)), total), value_scale)


def additive_mask(graph: Graph, mask: str) -> str:
    """Return the additive mask of padding for scores, shape `(batch, 1, 1, tokens)`."""
    hidden = graph.node("Sub", graph.constant(np.float32(1)), graph.node("Cast", mask, to=TensorProto.FLOAT))
    return graph.node("Unsqueeze", graph.node("Mul", hidden, graph.constant(MASKED)), graph.ints(1, 2))


class Projection(NamedTuple):
    """The output projection of a decoder.

    Attributes:
        weight: shape `(tokens, hidden_size)`.
        tied: whether the weight is the table of `EMBEDDING_FILE`.
        bias: a value for each token; without one, a row's scale is applied to the best tokens only.
        step: the int8 step of the hidden states; without one, each row has a scale.
    """

    weight: Array
    tied: bool
    bias: Array | None = None
    step: float | None = None


def write_head(
    graph: Graph, projection: Projection, suppressed_ids: Sequence[int] = (), only_ids: Array | None = None
) -> Graph:
    """Write the output projection and the choice of the next ids.

    Inputs: `hidden`, float32 of shape `(all_rows, hidden_size)`; `chosen_rows`, int64 of shape `(rows,)`, the rows to
    choose ids for; `temperature`, a float32 scalar; `noise`, float32 of shape `(rows, top_k)`. Output: `next_ids`,
    int64 of shape `(rows,)`. With Gumbel noise, the best of the `top_k` best logits is a sample from their softmax
    (Gumbel-max). Zeros and `top_k` 1 decode greedily.

    Ids in `suppressed_ids` are never chosen. With `only_ids`, sorted, all others are suppressed and not computed.
    """
    weight, tied, bias, step = projection
    hidden = graph.input("hidden", np.float32, ["all_rows", weight.shape[1]])
    chosen_rows = graph.input("chosen_rows", np.int64, ["rows"])
    temperature = graph.input("temperature", np.float32, [])
    noise = graph.input("noise", np.float32, ["rows", "top_k"])
    rows = graph.quantise(graph.node("Gather", hidden, chosen_rows, axis=0), step)
    table: Array | Table
    if only_ids is None:
        count, places = len(weight), ""
        table = graph.transpose(graph.table(weight, EMBEDDING_FILE)) if tied else weight
    else:
        count, places = len(only_ids), graph.constant(only_ids, np.int64)
        shared = graph.rows_of_table(weight, EMBEDDING_FILE, only_ids, places) if tied else None
        table = graph.transpose(shared) if shared else weight[only_ids]
        bias = None if bias is None else bias[only_ids]
    logits, scales = graph.product(rows, table), rows.scales
    if bias is not None:
        logits, scales = graph.scale(logits, scales), ""
    if suppressed_ids and only_ids is None:
        bias = np.zeros(count, dtype=np.float32) if bias is None else bias.copy()
        bias[list(suppressed_ids)] = MASKED
    if bias is not None:
        logits = graph.node("Add", logits, graph.constant(bias))
    best, found = _top_k(graph, logits, count, graph.node("Shape", noise, start=1, end=2))
    # A row's scale does not change the order of its logits: apply it when few are left.
    noisy = graph.node("Add", graph.node("Div", graph.scale(best, scales), temperature), noise)
    next_ids = graph.node("GatherElements", found, graph.node("ArgMax", noisy, axis=1, keepdims=1), axis=1)
    next_ids = graph.reshape(next_ids, -1)
    if only_ids is not None:
        next_ids = graph.node("Gather", places, next_ids)
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
