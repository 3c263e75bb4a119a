"""Which graph an encoder's architecture has.

Knows the architectures by their names in configurations. Knows nothing of what is in their graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xqg_qdrant.export import bert, decoder_encoder, gte
from xqg_qdrant.export.graph import Array, Graph
from xqg_qdrant.export.pooling import Head
from xqg_qdrant.export.quantise import Sample

MODEL_TYPES = (*bert.MODEL_TYPES, *gte.MODEL_TYPES, *decoder_encoder.MODEL_TYPES)


def count_positions(config: Mapping[str, Any]) -> int:
    """Return how many tokens the longest text has that a model can read."""
    positions = int(config["max_position_embeddings"])
    return positions - bert.first_position(config) if config["model_type"] in bert.MODEL_TYPES else positions


def build_encoder(
    weights: Mapping[str, Array],
    config: Mapping[str, Any],
    head: Head,
    max_tokens: int,
    dtype: str,
    samples: Mapping[str, Sample],
) -> Graph:
    """Write the graph of an encoder, from weights and configuration as transformers has them.

    Raises:
        InputError: the checkpoint has a part that its graph does not have.
    """
    if config["model_type"] in gte.MODEL_TYPES:
        return gte.build_gte(weights, config, head, dtype, samples)
    if config["model_type"] in decoder_encoder.MODEL_TYPES:
        return decoder_encoder.build_decoder_encoder(weights, config, head, dtype, samples)
    return bert.build_bert(weights, config, head, max_tokens, dtype, samples)
