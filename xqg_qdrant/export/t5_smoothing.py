"""Prepare a T5's weights for int8 with one fixed step for the input of each product.

A scale for each row costs four passes over a product's input and one over its output. A fixed step costs none, but no
channel may be much wider than the others. So each channel is divided by a factor where it is made, which is exact, and
multiplied by it where it is used (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438). It is made by the norm before a
product, by the values before an attention's output projection, or by a feed-forward layer's input projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xqg_qdrant.export.graph import Array
from xqg_qdrant.export.quantise import Sample

# Which operand gets channels of even width: 1 the input, 0 the weights.
SMOOTHING = 0.5
# How far other texts may exceed the sample's range before a channel is clipped.
HEADROOM = 1.1


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
    """Scale the input channels of every product except the output projection.

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
