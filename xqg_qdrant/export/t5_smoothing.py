"""A T5's weights, made ready for int8 with one fixed step for the input of each product.

A scale for each row of a product's input costs four passes over the input and one over the output; a fixed one costs
none, if no channel is much wider than the others. So each channel is divided by a factor where it is made, which is
exact, and multiplied where it is used (SmoothQuant, Xiao et al. 2022, arXiv 2211.10438): in the norm before a product,
in the values before an attention's output projection, in the way into a feed-forward layer before the way out of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xqg_qdrant.export.graph import Array
from xqg_qdrant.export.quantise import Sample

# Between the input alone (1) and the weights alone (0), which of the two gets the even channels.
SMOOTHING = 0.5
# What a text beyond the sample may add to a channel's reach before it is cut off.
HEADROOM = 1.1


class Smoothed(NamedTuple):
    """Weights that compute the same, and the step of the int8 input of each product by the name of its weight."""

    weights: dict[str, Array]
    steps: dict[str, float]


class _Room(NamedTuple):
    """An input of products: the weight that scales its channels, whether by rows, and the weights that use them."""

    maker: str
    makes_rows: bool
    users: Sequence[str]


def smooth_t5(weights: Mapping[str, Array], config: Mapping[str, Any], seen: Mapping[str, Sample]) -> Smoothed:
    """Scale the channels of every product's input but the output projection's.

    `seen` holds what the inputs were on sample texts, by the name of the first weight that uses them.
    """
    smoothed = dict(weights)
    steps: dict[str, float] = {}
    for room in _rooms(config):
        sample = seen[room.users[0].removesuffix(".weight")]
        reach = np.maximum(np.maximum(np.abs(sample.low), np.abs(sample.high)), 1e-6) * HEADROOM
        columns = np.max([np.abs(weights[name]).max(axis=0) for name in room.users], axis=0)
        factors = (reach**SMOOTHING / np.maximum(columns, 1e-6) ** (1 - SMOOTHING)).astype(np.float32)
        maker = smoothed[room.maker]
        smoothed[room.maker] = maker / (factors[:, None] if room.makes_rows else factors)
        for name in room.users:
            smoothed[name] = smoothed[name] * factors
            steps[name] = float((reach / factors).max()) / 127
    return Smoothed(smoothed, steps)


def _rooms(config: Mapping[str, Any]) -> Iterator[_Room]:
    gated = config["feed_forward_proj"].startswith("gated")
    for side, layers in (("encoder", config["num_layers"]), ("decoder", config["num_decoder_layers"])):
        for layer in range(layers):
            name = f"{side}.block.{layer}.layer"
            yield _Room(
                f"{name}.0.layer_norm.weight", False, [f"{name}.0.SelfAttention.{part}.weight" for part in "qkv"]
            )
            yield _Room(f"{name}.0.SelfAttention.v.weight", True, [f"{name}.0.SelfAttention.o.weight"])
            if side == "decoder":
                yield _Room(f"{name}.1.layer_norm.weight", False, [f"{name}.1.EncDecAttention.q.weight"])
                yield _Room(f"{name}.1.EncDecAttention.v.weight", True, [f"{name}.1.EncDecAttention.o.weight"])
            wide = f"{name}.{2 if side == 'decoder' else 1}"
            ways_in = ("wi_0", "wi_1") if gated else ("wi",)
            yield _Room(
                f"{wide}.layer_norm.weight", False, [f"{wide}.DenseReluDense.{part}.weight" for part in ways_in]
            )
            yield _Room(f"{wide}.DenseReluDense.{ways_in[-1]}.weight", True, [f"{wide}.DenseReluDense.wo.weight"])
    crosses = [
        f"decoder.block.{layer}.layer.1.EncDecAttention.{part}.weight"
        for layer in range(config["num_decoder_layers"])
        for part in "kv"
    ]
    yield _Room("encoder.final_layer_norm.weight", False, crosses)
