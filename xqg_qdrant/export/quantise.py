"""Write int8 products that stay close to fp32, for BERT and, as `Products`, for the newer encoders.

A plain int8 product keeps 8 bits of its input and 8 of its weights. On BERT's trained weights that is too coarse in
four places:

- A few channels of a layer norm's output are ten times as wide as the others. Centre and scale each channel, which the
  layer norm does at no cost (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438).
- Scaling widens a few columns of the weights. Repeat these columns, each copy with a part of the weight (outlier
  channel splitting, Zhao et al. 2019, 1901.09504).
- One or two neurons of a feed-forward layer far exceed the rest. Compute the widest in fp32 (LLM.int8(), Dettmers et
  al. 2022, 2208.07339).
- The attention's values need more than 8 bits. A second int8 term holds the rounding error of the first.

Steps come from ranges in sample texts or from the row alone, never from the batch: a text's neighbours do not matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from xqg_qdrant.export.graph import MICROSOFT, Array, Graph, quantise_rows

# Which operand gets channels of even width: 1 the input, 0 the weights.
SMOOTHING = 0.85
LAYER_SMOOTHING = 0.5
REPEATED_COLUMNS = 16
WIDE_NEURONS = 16
DAMPING = 0.05
BLOCK = 128
# GELU never falls below -0.17, so its negative side needs few of the 256 levels.
GELU_FLOOR = 0.1701
GELU_ZERO = 20
SECOND_TERM = 254.0


class Sample(NamedTuple):
    """Statistics of a product's input on sample texts.

    The lowest, highest and mean value of each channel, shape `(in,)`, and the mean products of channels, `(in, in)`.
    """

    low: Array
    high: Array
    mean: Array
    products: Array


class Channels(NamedTuple):
    """Centre and scale of a product's input channels, shape `(in,)`, and the int8 step."""

    centre: Array
    scale: Array
    step: float


class Terms(NamedTuple):
    """Rows as two int8 terms, shape `(rows, in)`: coarse values and their rounding errors."""

    first: str
    second: str


class Products:
    """A writer of products; for int8, `samples` holds each input by the name of its first product."""

    def __init__(self, graph: Graph, weights: Mapping[str, Array], samples: Mapping[str, Sample]) -> None:
        self._graph, self._weights, self._samples = graph, weights, samples

    def multiply(self, rows: str, *names: str) -> list[str]:
        """Multiply rows, shape `(rows, in)`, by each named weight, and add its bias if there is one."""
        graph = self._graph
        matrices = [self._weights[f"{name}.weight"] for name in names]
        if names[0] in self._samples:
            factors = choose_factors(self._samples[names[0]], np.concatenate(matrices))
            rows = graph.node("Mul", rows, graph.constant(1 / factors))
            matrices = [matrix * factors for matrix in matrices]
        quantised = graph.quantise(rows)
        biases = [self._weights.get(f"{name}.bias") for name in names]
        return [graph.linear(quantised, matrix, bias) for matrix, bias in zip(matrices, biases, strict=True)]


def plan_channels(seen: Sample, weight: Array) -> Channels:
    """Choose centre, scale and step of a product's input channels; `weight` is `(out, in)`."""
    centre = (seen.high + seen.low) / 2
    reach = np.maximum((seen.high - seen.low) / 2, 1e-4)
    columns = np.maximum(np.abs(weight).max(axis=0), 1e-4)
    scale = (reach**SMOOTHING / columns ** (1 - SMOOTHING)).astype(np.float32)
    return Channels(centre.astype(np.float32), scale, float((reach / scale).max()) / 127)


def plan_plain(seen: Sample) -> Channels:
    """Choose one step for all channels, without centring or scaling."""
    width = len(seen.low)
    reach = max(float(np.abs(seen.low).max()), float(np.abs(seen.high).max()), 1e-4)
    return Channels(np.zeros(width, np.float32), np.ones(width, np.float32), reach / 127)


def plan_centred(seen: Sample) -> Channels:
    """Centre each channel and choose one step for all, without scaling."""
    reach = max(float((seen.high - seen.low).max()) / 2, 1e-4)
    centre = ((seen.high + seen.low) / 2).astype(np.float32)
    return Channels(centre, np.ones(len(centre), np.float32), reach / 127)


def fold_weight(weight: Array, bias: Array, channels: Channels) -> tuple[Array, Array]:
    """Return the equivalent weight and bias for centred and scaled rows."""
    return weight * channels.scale, bias + weight @ channels.centre


def fold_sample(seen: Sample, channels: Channels) -> Array:
    """Return the mean products of centred and scaled channels."""
    cross = np.outer(channels.centre, seen.mean)
    centred = seen.products - cross - cross.T + np.outer(channels.centre, channels.centre)
    result: Array = centred / np.outer(channels.scale, channels.scale)
    return result


def quantise_once(graph: Graph, rows: str, channels: Channels) -> str:
    """Quantise centred and scaled rows to one term."""
    return graph.node("QuantizeLinear", rows, graph.constant(np.float32(channels.step)), _middle(graph))


def quantise_twice(graph: Graph, rows: str, first: str, channels: Channels) -> Terms:
    """Quantise the rounding error of the first term of rows."""
    coarse = graph.node("DequantizeLinear", first, graph.constant(np.float32(channels.step)), _middle(graph))
    finer = graph.constant(np.float32(channels.step / SECOND_TERM))
    return Terms(first, graph.node("QuantizeLinear", graph.node("Sub", rows, coarse), finer, _middle(graph)))


def repeat_columns(graph: Graph, rows: str, counts: Array) -> str:
    """Repeat columns of int8 rows: column `i` occurs `counts[i]` times."""
    places = np.repeat(np.arange(len(counts)), counts - 1)
    return graph.node("Concat", rows, graph.node("Gather", rows, graph.ints(*places), axis=1), axis=1)


def multiply(
    graph: Graph,
    rows: str,
    weight: Array,
    bias: Array,
    channels: Channels,
    products: Array,
    counts: Array | None = None,
) -> str:
    """Multiply int8 rows by a weight of shape `(out, in)`.

    With `counts`, the rows come from `repeat_columns`.
    """
    if counts is None:
        counts = np.ones(weight.shape[1], dtype=np.int64)
    values, scales = round_weight(weight, products, counts)
    return _product(graph, rows, split_columns(values, counts), scales * np.float32(channels.step), bias)


def multiply_terms(graph: Graph, terms: Terms, weight: Array, bias: Array, channels: Channels) -> str:
    """Multiply rows and a weight in two terms each, omitting the product of the second terms."""
    first, second, scales = quantise_terms(weight)
    scales = scales * np.float32(channels.step)
    coarse = _product(graph, terms.first, first, scales, bias)
    both = graph.node("Concat", terms.first, terms.second, axis=1)
    fine = _product(graph, both, np.concatenate([second, first], axis=1), scales / np.float32(SECOND_TERM), None)
    return graph.node("Add", coarse, fine)


def multiply_after_gelu(graph: Graph, value: str, weight: Array, products: Array) -> str:
    """Multiply GELU's output by a weight of shape `(out, in)`, with one scale a row."""
    largest = graph.node("ReduceMax", value, graph.ints(1), keepdims=1)
    steps = graph.node("Mul", largest, graph.constant(1 / (255 - GELU_ZERO)))
    steps = graph.node("Max", steps, graph.constant(GELU_FLOOR / GELU_ZERO))
    flat = graph.node("Squeeze", steps, graph.ints(1))
    zero = graph.constant(np.uint8(GELU_ZERO), np.uint8)
    rows = graph.node("QuantizeLinear", value, flat, graph.node("Expand", zero, graph.node("Shape", flat)), axis=0)
    values, scales = round_weight(weight, products, np.ones(weight.shape[1], dtype=np.int64))
    return graph.node("Mul", _product(graph, rows, values, scales, None, zero=zero), steps)


def count_copies(weight: Array, budget: int) -> Array:
    """Choose how often each column of a weight is repeated, so that its rows get the finest scales.

    `budget` columns are added; int64 of shape `(in,)`.
    """
    counts = np.ones(weight.shape[1], dtype=np.int64)
    sizes = np.abs(weight)
    for _ in range(budget):
        parts = sizes / counts
        widest = parts.argmax(axis=1)
        worth = np.bincount(widest, parts.max(axis=1) ** 2, minlength=len(counts))
        counts[worth.argmax()] += 1
    return counts


def round_weight(weight: Array, products: Array, counts: Array) -> tuple[Array, Array]:
    """Round a weight to integers, up to 127 for each copy of a column, with one scale a row.

    Later columns compensate the rounding error of earlier ones, as far as their channels correlate in the sample (GPTQ,
    Frantar et al. 2022, arXiv 2210.17323).
    """
    scales = (np.maximum((np.abs(weight) / counts).max(axis=1), 1e-12) / 127).astype(np.float32)
    order = np.argsort(-np.diagonal(products), kind="stable")
    limits = 127 * counts[order]
    left = (weight / scales[:, None]).astype(np.float64)[:, order]
    damped = products.astype(np.float64)[np.ix_(order, order)]
    damped += np.eye(len(damped)) * max(float(np.diagonal(damped).mean()) * DAMPING, 1e-12)
    # The upper Cholesky factor of the inverse.
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    values = np.empty_like(left)
    for start in range(0, len(order), BLOCK):
        end = min(start + BLOCK, len(order))
        errors = np.empty((len(left), end - start))
        for column in range(start, end):
            values[:, column] = np.clip(np.rint(left[:, column]), -limits[column], limits[column])
            errors[:, column - start] = (left[:, column] - values[:, column]) / factor[column, column]
            left[:, column:end] -= np.outer(errors[:, column - start], factor[column, column:end])
        left[:, end:] -= errors @ factor[start:end, end:]
    return values[:, np.argsort(order)], scales


def split_columns(values: Array, counts: Array) -> Array:
    """Split each column of an integer weight into its copies; int8 of shape `(out, sum(counts))`.

    The first copies come in the order of the columns, the others after them.
    """
    left, divisor = values.copy(), counts.copy()
    copies = []
    for column in (*range(len(counts)), *np.repeat(np.arange(len(counts)), counts - 1)):
        # Even shares; the last copy takes the remainder.
        part = np.rint(left[:, column] / divisor[column])
        left[:, column] -= part
        divisor[column] -= 1
        copies.append(part)
    return np.stack(copies, axis=1)


def quantise_terms(weight: Array) -> tuple[Array, Array, Array]:
    """Quantise a weight to two int8 terms with one scale a row; the second is `SECOND_TERM` times finer."""
    first, scales = quantise_rows(weight)
    left = weight / scales[:, None] - first
    return first, np.clip(np.rint(left * SECOND_TERM), -127, 127).astype(np.int8), scales


def find_wide_neurons(seen: Sample) -> Array:
    """Return the sorted indices of the widest inputs of a feed-forward layer's output projection."""
    reach = np.maximum(np.abs(seen.low), np.abs(seen.high))
    return np.sort(np.argsort(-reach, kind="stable")[:WIDE_NEURONS])


def choose_factors(seen: Sample, weight: Array) -> Array:
    """Choose the divisor of each input channel, float32 of shape `(in,)`; `weight` is `(out, in)`."""
    reach = np.maximum(np.maximum(np.abs(seen.low), np.abs(seen.high)), 1e-4)
    columns = np.maximum(np.abs(weight).max(axis=0), 1e-4)
    factors: Array = (reach**LAYER_SMOOTHING / columns ** (1 - LAYER_SMOOTHING)).astype(np.float32)
    return factors


def _product(graph: Graph, rows: str, values: Array, scales: Array, bias: Array | None, zero: str | None = None) -> str:
    one = graph.constant(np.float32(1))
    weight, scales_name = graph.constant(values.T, np.int8), graph.constant(scales)
    given = [] if bias is None else ["", graph.constant(bias)]
    zero = zero or _middle(graph)
    return graph.node("MatMulIntegerToFloat", rows, weight, one, scales_name, zero, *given, domain=MICROSOFT)


def _middle(graph: Graph) -> str:
    return graph.constant(np.uint8(128), np.uint8)
