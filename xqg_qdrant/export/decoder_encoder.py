"""Write the graph of a decoder turned encoder: causal Qwen3, or Gemma 3, which attends in both directions.

Architectures: Zhang et al. 2025 (arXiv 2506.05176) and Vera et al. 2025 (2509.20354), as transformers computes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xqg_qdrant.errors import InputError
from xqg_qdrant.export.graph import Array, Graph
from xqg_qdrant.export.pooling import Head, write_vectors
from xqg_qdrant.export.quantise import Products, Sample
from xqg_qdrant.export.rotary import Angles, Heads, attend, read_frequencies, write_angles, write_visible

MODEL_TYPES = ("qwen3", "gemma3_text")
SLIDING = "sliding_attention"


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
        _check_config(config, self._is_gemma)
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


def _check_config(config: Mapping[str, Any], is_gemma: bool) -> None:
    name, known = ("hidden_activation", "gelu_pytorch_tanh") if is_gemma else ("hidden_act", "silu")
    if config[name] != known:
        raise InputError(
            f"unsupported activation {config[name]!r} in a {config['model_type']}.",
            f"export a checkpoint with activation {known}",
        )
    if config.get("attn_logit_softcapping"):
        raise InputError("unsupported attn_logit_softcapping.", "export a checkpoint without attn_logit_softcapping")
