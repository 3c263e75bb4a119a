"""Write the graphs of encoders with rotary positions: GTE, and decoders turned encoders.

Such a decoder is causal Qwen3, or Gemma 3, which attends in both directions: Zhang et al. 2025 (arXiv 2506.05176) and
Vera et al. 2025 (2509.20354), as transformers computes them. Rotary positions: Su et al. 2021 (2104.09864); grouped
heads: Ainslie et al. 2023 (2305.13245). A text's result does not depend on where the text begins, so padding may be on
either side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto, helper

from xqg_qdrant.errors import InputError
from xqg_qdrant.export.graph import HALVES, Array, Graph
from xqg_qdrant.export.pooling import Head, write_vectors
from xqg_qdrant.export.quantise import Products, Sample

GTE_TYPES = ("new", "gte")
DECODER_TYPES = ("qwen3", "gemma3_text")
MODEL_TYPES = (*GTE_TYPES, *DECODER_TYPES)
SLIDING = "sliding_attention"
# Options of the published GTE code with the only value that transformers' own version supports.
FIXED = {
    "position_embedding_type": "rope",
    "layer_norm_type": "layer_norm",
    "pack_qkv": True,
    "logn_attention_scale": False,
}
OURS = ("auto_map", "model_type", "architectures", "rope_scaling", "rope_theta", "rope_parameters", *FIXED)


class Heads(NamedTuple):
    """Attention heads: number for queries, number for keys and values, size, scale of scores."""

    queries: int
    keys: int
    size: int
    scale: float


class Angles(NamedTuple):
    """Cosines and sines of each position, `(tokens, head_size / 2)`; positions, `(batch, tokens)`."""

    cosines: str
    sines: str
    places: str


def read_frequencies(parameters: Mapping[str, Any], head_size: int) -> Array:
    """Return the frequency of each pair of channels, float32 of shape `(head_size / 2,)`.

    Raises:
        InputError: their scaling is not supported.
    """
    kind = parameters.get("rope_type", "default")
    if kind not in ("default", "linear"):
        raise InputError(
            f"unsupported rotary positions of type {kind!r}.", "export a checkpoint with rope_type default or linear"
        )
    factor = parameters["factor"] if kind == "linear" else 1.0
    frequencies: Array = parameters["rope_theta"] ** -(np.arange(0, head_size, 2) / head_size) / factor
    return frequencies.astype(np.float32)


def write_angles(graph: Graph, ids: str, frequencies: Array) -> Angles:
    """Write the angles of every position of the input ids."""
    places = graph.count(graph.node("Shape", ids, start=1, end=2))
    places_column = graph.node("Unsqueeze", graph.node("Cast", places, to=TensorProto.FLOAT), graph.ints(1))
    angles = graph.node("Mul", places_column, graph.constant(frequencies))
    everywhere = graph.node("Expand", places, graph.node("Shape", ids))
    return Angles(graph.node("Cos", angles), graph.node("Sin", angles), everywhere)


def write_visible(graph: Graph, ids: str, mask: str, window: int = 0, causal: bool = False) -> str:
    """Write the mask of keys that each query attends to, for `attend`.

    `mask` is the input `attention_mask`, which excludes padding, or empty. A window excludes keys `window` or more
    tokens away. The result is empty if neither excludes anything.
    """
    length = graph.node("Shape", ids, start=1, end=2)
    visible = ""
    if mask:
        visible = graph.node("Cast", graph.node("Unsqueeze", mask, graph.ints(1, 2)), to=TensorProto.BOOL)
        # The runtime's Attention broadcasts a mask over batch and heads, but not over queries.
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
    """Write the attention of projections `(batch, tokens, heads * size)`.

    It runs in half precision if `dtype` is float16 or bfloat16.
    """
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


def translate_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a configuration of model type `new` to transformers' own GTE.

    Raises:
        InputError: it has an option that transformers' GTE does not support.
    """
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise InputError(
                f"unsupported {name} {config[name]!r} in a model of type 'new'.",
                f"export a checkpoint with {name} {value!r}",
            )
    theta, scaling = config.get("rope_theta", 10_000.0), config.get("rope_scaling")
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": float(theta)}
    if scaling:
        if scaling.get("type") != "ntk" or scaling.get("mixed_b") is not None:
            raise InputError(
                f"unsupported rope_scaling {scaling!r} in a model of type 'new'.",
                "export a checkpoint with rope_scaling of type 'ntk' and without mixed_b",
            )
        # NTK scaling, at any length: multiply the base by the factor, and divide frequencies by its share of a pair.
        factor = float(scaling["factor"])
        head_size = config["hidden_size"] // config["num_attention_heads"]
        parameters = {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / head_size)}
    kept = {name: value for name, value in config.items() if name not in OURS}
    return {**kept, "rope_parameters": parameters}


def build_gte(
    weights: Mapping[str, Array],
    config: Mapping[str, Any],
    head: Head,
    dtype: str = "float32",
    samples: Mapping[str, Sample] | None = None,
) -> Graph:
    """Write the encoder's graph; see `build_bert` for inputs, output and `samples`.

    Half precision is for products and attention only.

    Raises:
        InputError: the checkpoint has a part that this graph does not support.
    """
    if config["hidden_act"] != "gelu":
        raise InputError(
            f"unsupported activation {config['hidden_act']!r} in a gte.", "export a checkpoint with activation gelu"
        )
    graph = Graph("encoder", dtype)
    size, eps = config["hidden_size"], config["layer_norm_eps"]
    heads_count = config["num_attention_heads"]
    head_size = size // heads_count
    heads = Heads(heads_count, heads_count, head_size, head_size**-0.5)
    ids = graph.input("input_ids", np.int64, ["batch", "tokens"])
    mask = graph.input("attention_mask", np.int64, ["batch", "tokens"]) if dtype != "int8" else ""
    angles = write_angles(graph, ids, read_frequencies(config["rope_parameters"], head_size))
    visible = write_visible(graph, ids, mask)
    by_text = graph.node("Concat", graph.node("Shape", ids), graph.ints(-1), axis=0)

    def norm(value: str, name: str) -> str:
        scale, shift = (graph.constant(weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return graph.node("LayerNormalization", value, scale, shift, axis=-1, epsilon=eps)

    products = Products(graph, weights, samples or {})
    words = graph.look_up(graph.reshape(ids, -1), graph.table(weights["embeddings.word_embeddings.weight"]))
    if config["type_vocab_size"]:
        # A single segment: one row serves every token.
        words = graph.node("Add", words, graph.constant(weights["embeddings.token_type_embeddings.weight"][0]))
    hidden = norm(words, "embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        name = f"layers.{layer}"
        projected = products.multiply(hidden, *(f"{name}.self_attn.{part}_proj" for part in "qkv"))
        query, key, value = (graph.node("Reshape", part, by_text) for part in projected)
        attended = graph.reshape(attend(graph, query, key, value, heads, angles, visible, dtype), -1, size)
        [update] = products.multiply(attended, f"{name}.self_attn.o_proj")
        hidden = norm(graph.node("Add", update, hidden), f"{name}.post_attention_layernorm")
        gate, up = products.multiply(hidden, f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj")
        [update] = products.multiply(graph.node("Mul", graph.node("Gelu", gate), up), f"{name}.mlp.down_proj")
        hidden = norm(graph.node("Add", update, hidden), f"{name}.post_mlp_layernorm")
    write_vectors(graph, graph.node("Reshape", hidden, by_text), mask, head, size)
    return graph


def build_decoder_encoder(
    weights: Mapping[str, Array],
    config: Mapping[str, Any],
    head: Head,
    dtype: str = "float32",
    samples: Mapping[str, Sample] | None = None,
) -> Graph:
    """Write the encoder's graph; see `build_bert` for inputs, output and `samples`.

    Half precision is for products and attention only: Gemma's sums need fp32.

    Raises:
        InputError: the checkpoint has a part that this graph does not support.
    """
    return _DecoderEncoder(weights, config, dtype, samples or {}).write(head)


class _DecoderEncoder:
    def __init__(
        self, weights: Mapping[str, Array], config: Mapping[str, Any], dtype: str, samples: Mapping[str, Sample]
    ) -> None:
        self._graph, self._weights, self._config, self._dtype = Graph("encoder", dtype), weights, config, dtype
        self._multiply = Products(self._graph, weights, samples).multiply
        self._is_gemma = config["model_type"] == "gemma3_text"
        _check_decoder(config, self._is_gemma)
        self._causal = not config.get("use_bidirectional_attention", False)
        size = config["head_dim"]
        scale = (config["query_pre_attn_scalar"] if self._is_gemma else size) ** -0.5
        self._heads = Heads(config["num_attention_heads"], config["num_key_value_heads"], size, scale)

    def write(self, head: Head) -> Graph:
        graph, config, size = self._graph, self._config, self._config["hidden_size"]
        ids = graph.input("input_ids", np.int64, ["batch", "tokens"])
        mask = graph.input("attention_mask", np.int64, ["batch", "tokens"]) if self._dtype != "int8" else ""
        self._by_text = graph.node("Concat", graph.node("Shape", ids), graph.ints(-1), axis=0)
        # Shared by the layers of a type.
        angles, visible = {}, {}
        for kind in dict.fromkeys(config["layer_types"]):
            rope = config["rope_parameters"]
            rope = rope[kind] if self._is_gemma else rope
            angles[kind] = write_angles(graph, ids, read_frequencies(rope, self._heads.size))
            visible[kind] = write_visible(graph, ids, mask, self._window() if kind == SLIDING else 0, self._causal)

        hidden = graph.look_up(graph.reshape(ids, -1), graph.table(self._weights["embed_tokens.weight"]))
        if self._is_gemma:
            hidden = graph.node("Mul", hidden, graph.constant(np.float32(size) ** np.float32(0.5)))
        for layer, kind in enumerate(config["layer_types"]):
            name = f"layers.{layer}"
            rows = self._norm(hidden, f"{name}.input_layernorm")
            update = self._attention(rows, f"{name}.self_attn", angles[kind], visible[kind])
            if self._is_gemma:
                update = self._norm(update, f"{name}.post_attention_layernorm")
            hidden = graph.node("Add", update, hidden)
            before = "pre_feedforward_layernorm" if self._is_gemma else "post_attention_layernorm"
            update = self._feed_forward(self._norm(hidden, f"{name}.{before}"), f"{name}.mlp")
            if self._is_gemma:
                update = self._norm(update, f"{name}.post_feedforward_layernorm")
            hidden = graph.node("Add", update, hidden)
        hidden = graph.node("Reshape", self._norm(hidden, "norm"), self._by_text)
        write_vectors(graph, hidden, mask, head, size)
        return graph

    def _window(self) -> int:
        window = int(self._config["sliding_window"])
        # transformers splits the window of a bidirectional layer evenly between both sides.
        return window if self._causal else window // 2 + 1

    def _attention(self, hidden: str, name: str, angles: Angles, visible: str) -> str:
        graph, heads = self._graph, self._heads
        query, key, value = self._multiply(hidden, *(f"{name}.{part}_proj" for part in "qkv"))
        query, key = self._norm_heads(query, f"{name}.q_norm"), self._norm_heads(key, f"{name}.k_norm")
        value = graph.node("Reshape", value, self._by_text)
        attended = attend(graph, query, key, value, heads, angles, visible, self._dtype, self._causal)
        [update] = self._multiply(graph.reshape(attended, -1, heads.queries * heads.size), f"{name}.o_proj")
        return update

    def _norm_heads(self, rows: str, name: str) -> str:
        by_head = self._graph.reshape(rows, -1, self._heads.size)
        return self._graph.node("Reshape", self._norm(by_head, name), self._by_text)

    def _feed_forward(self, hidden: str, name: str) -> str:
        graph = self._graph
        gate, up = self._multiply(hidden, f"{name}.gate_proj", f"{name}.up_proj")
        if self._is_gemma:
            gate = graph.node("Gelu", gate, approximate="tanh")
        else:
            gate = graph.node("Mul", gate, graph.node("Sigmoid", gate))
        [update] = self._multiply(graph.node("Mul", gate, up), f"{name}.down_proj")
        return update

    def _norm(self, value: str, name: str) -> str:
        weight = self._weights[f"{name}.weight"]
        # Gemma stores norm weights as offsets from 1.
        weight = weight + 1 if self._is_gemma else weight
        eps = self._config["rms_norm_eps"]
        return self._graph.node("RMSNormalization", value, self._graph.constant(weight), axis=-1, epsilon=eps)


def _check_decoder(config: Mapping[str, Any], is_gemma: bool) -> None:
    name, known = ("hidden_activation", "gelu_pytorch_tanh") if is_gemma else ("hidden_act", "silu")
    if config[name] != known:
        raise InputError(
            f"unsupported activation {config[name]!r} in a {config['model_type']}.",
            f"export a checkpoint with activation {known}",
        )
    if config.get("attn_logit_softcapping"):
        raise InputError("unsupported attn_logit_softcapping.", "export a checkpoint without attn_logit_softcapping")
