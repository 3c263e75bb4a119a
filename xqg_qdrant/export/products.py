"""The products of an encoder's layers, by the names of their weights: those of one input together.

In int8 each row of an input has a scale, and a few channels that are much wider than the others would leave those no
levels. So each channel is divided by a factor, which its column of the weights is multiplied with (SmoothQuant, Xiao et
al. 2022, arXiv 2211.10438). What the inputs are like is seen on sample texts; a text unlike them loses more, and is not
cut off.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from xqg_qdrant.export.graph import Array, Graph
from xqg_qdrant.export.quantise import Sample

# Between the input alone (1) and the weights alone (0), which of the two gets the even channels.
SMOOTHING = 0.5


class Products:
    """Writes products into a graph; `samples` holds, for int8, the inputs by the name of the first that has them."""

    def __init__(self, graph: Graph, weights: Mapping[str, Array], samples: Mapping[str, Sample]) -> None:
        self._graph, self._weights, self._samples = graph, weights, samples

    def multiply(self, rows: str, *names: str) -> list[str]:
        """Multiply rows, shape `(rows, in)`, by each of these weights, and add their biases where they have one."""
        graph = self._graph
        matrices = [self._weights[f"{name}.weight"] for name in names]
        if names[0] in self._samples:
            factors = choose_factors(self._samples[names[0]], np.concatenate(matrices))
            rows = graph.node("Mul", rows, graph.constant(1 / factors))
            matrices = [matrix * factors for matrix in matrices]
        quantised = graph.quantise(rows)
        biases = [self._weights.get(f"{name}.bias") for name in names]
        return [graph.linear(quantised, matrix, bias) for matrix, bias in zip(matrices, biases, strict=True)]


def choose_factors(seen: Sample, weight: Array) -> Array:
    """Choose what each channel of an input is divided by, float32 of shape `(in,)`; `weight` is `(out, in)`."""
    reach = np.maximum(np.maximum(np.abs(seen.low), np.abs(seen.high)), 1e-4)
    columns = np.maximum(np.abs(weight).max(axis=0), 1e-4)
    factors: Array = (reach**SMOOTHING / columns ** (1 - SMOOTHING)).astype(np.float32)
    return factors
