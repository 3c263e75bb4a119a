"""The graph of an encoder of the GTE kind: BERT with rotary positions and a gated feed-forward layer.

Its checkpoints call it `new` (with code of their own, which is never run) or `gte` (as transformers does). Source of
the architecture: Zhang et al. 2024 (arXiv 2407.19669).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xqg_qdrant.errors import InputError
from xqg_qdrant.export.graph import Array, Graph
from xqg_qdrant.export.pooling import Head, write_vectors
from xqg_qdrant.export.products import Products
from xqg_qdrant.export.quantise import Sample
from xqg_qdrant.export.rotary import Heads, attend, read_frequencies, write_angles, write_visible

MODEL_TYPES = ("new", "gte")
# What the published code can be told besides, and the only value that transformers' own version of it has.
FIXED = {
    "position_embedding_type": "rope",
    "layer_norm_type": "layer_norm",
    "pack_qkv": True,
    "logn_attention_scale": False,
}
OURS = ("auto_map", "model_type", "architectures", "rope_scaling", "rope_theta", "rope_parameters", *FIXED)


def translate_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration of model type `new` as transformers' own GTE takes it.

    Raises:
        InputError: it asks for what that does not have.
    """
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise InputError(f"{name} {config[name]!r} is not supported in a model of type 'new'; {value!r} is")
    theta, scaling = config.get("rope_theta", 10_000.0), config.get("rope_scaling")
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": float(theta)}
    if scaling:
        if scaling.get("type") != "ntk" or scaling.get("mixed_b") is not None:
            raise InputError(f"rope_scaling {scaling!r} is not supported in a model of type 'new'; type 'ntk' is")
        # At any length: a base that is so many times as large, and frequencies divided by its share of a pair.
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
    """Write the encoder's graph; inputs, output and `samples` are those of `build_bert`.

    In half precision are products and attention, all else in fp32.

    Raises:
        InputError: the checkpoint has a part that this graph does not have.
    """
    if config["hidden_act"] != "gelu":
        raise InputError(f"activation {config['hidden_act']!r} is not supported; known: gelu")
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
        # One row serves every token: a single segment.
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
