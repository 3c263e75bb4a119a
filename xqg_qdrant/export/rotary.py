"""Attention with rotary positions, as the graphs of the GTE kind and of decoders have it.

Source: Su et al. 2021 (arXiv 2104.09864); grouped heads: Ainslie et al. 2023 (2305.13245). A text's result does not
depend on where it begins, so padding may stand on either side.

Knows heads, positions, windows and what of them a graph computes once. Knows nothing of layers or of configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto, helper

from xqg_qdrant.errors import InputError
from xqg_qdrant.export.graph import HALVES, Array, Graph


class Heads(NamedTuple):
    """The heads of an attention: how many, for how many keys and values, of which size, and the scale of scores."""

    queries: int
    keys: int
    size: int
    scale: float


class Angles(NamedTuple):
    """Cosines and sines of each place, `(tokens, head_size / 2)`, and the places of a batch, `(batch, tokens)`."""

    cosines: str
    sines: str
    places: str


def read_frequencies(parameters: Mapping[str, Any], head_size: int) -> Array:
    """Return the frequency of each pair of channels, float32 of shape `(head_size / 2,)`.

    Raises:
        InputError: they are scaled in a way that is not supported.
    """
    kind = parameters.get("rope_type", "default")
    if kind not in ("default", "linear"):
        raise InputError(f"rotary positions of type {kind!r} are not supported; default and linear are")
    factor = parameters["factor"] if kind == "linear" else 1.0
    frequencies: Array = parameters["rope_theta"] ** -(np.arange(0, head_size, 2) / head_size) / factor
    return frequencies.astype(np.float32)


def write_angles(graph: Graph, ids: str, frequencies: Array) -> Angles:
    """Write the angles of every place of the input ids."""
    places = graph.count(graph.node("Shape", ids, start=1, end=2))
    places_column = graph.node("Unsqueeze", graph.node("Cast", places, to=TensorProto.FLOAT), graph.ints(1))
    angles = graph.node("Mul", places_column, graph.constant(frequencies))
    everywhere = graph.node("Expand", places, graph.node("Shape", ids))
    return Angles(graph.node("Cos", angles), graph.node("Sin", angles), everywhere)


def write_visible(graph: Graph, ids: str, mask: str, window: int = 0, causal: bool = False) -> str:
    """Write which keys each query may see, for `attend`: empty where it is all, or all before it.

    Of the input `attention_mask` padding is not seen; with a window, nothing that stands `window` or more away.
    """
    length = graph.node("Shape", ids, start=1, end=2)
    visible = ""
    if mask:
        visible = graph.node("Cast", graph.node("Unsqueeze", mask, graph.ints(1, 2)), to=TensorProto.BOOL)
        # The runtime's Attention broadcasts a mask over batch and heads, but not over the queries.
        square = graph.node("Concat", graph.ints(1, 1), length, graph.ints(1), axis=0)
        visible = graph.node("Expand", visible, square)
    if window:
        places = graph.count(length)
        away = graph.node(
            "Sub", graph.node("Unsqueeze", places, graph.ints(1)), graph.node("Unsqueeze", places, graph.ints(0))
        )
        away = away if causal else graph.node("Abs", away)
        near = graph.node("Less", away, graph.constant(window, np.int64))
        near = graph.node("Unsqueeze", near, graph.ints(0, 1))
        visible = graph.node("And", visible, near) if visible else near
    return visible


def attend(
    graph: Graph,
    query: str,
    key: str,
    value: str,
    heads: Heads,
    angles: Angles,
    visible: str,
    dtype: str,
    causal: bool = False,
) -> str:
    """Write the attention of projections `(batch, tokens, heads * size)`, in half precision where `dtype` is one."""
    query = graph.node("RotaryEmbedding", query, *angles, num_heads=heads.queries)
    key = graph.node("RotaryEmbedding", key, *angles, num_heads=heads.keys)
    attributes: dict[str, Any] = {"q_num_heads": heads.queries, "kv_num_heads": heads.keys, "scale": heads.scale}
    given = [query, key, value]
    if dtype in HALVES:
        half = helper.np_dtype_to_tensor_dtype(HALVES[dtype])
        given = [graph.node("Cast", part, to=half) for part in given]
        attributes["softmax_precision"] = TensorProto.FLOAT
    attended = graph.node("Attention", *given, *([visible] if visible else []), is_causal=int(causal), **attributes)
    return graph.node("Cast", attended, to=TensorProto.FLOAT) if dtype in HALVES else attended
