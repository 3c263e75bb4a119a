"""Run models: the protocol of encoders, and who follows it.

`encoder` runs a graph, `remote_encoder` asks an HTTP endpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from xqg_qdrant.model_folders import ModelFolder
from xqg_qdrant.model_folders.description import read_endpoint
from xqg_qdrant.records import FloatArray

# The fields of an encoder's description that decide its vectors, besides its files.
DESCRIBED = (
    *("pooling", "normalise", "query_prefix", "passage_prefix"),
    *("max_query_tokens", "max_passage_tokens", "dtype"),
)
ENCODER, GENERATOR = "encoder", "generator"


class Reading(NamedTuple):
    """How much of its texts a model has read.

    Attributes:
        model: `ENCODER` or `GENERATOR`.
        noun: What the texts are, such as `passage`.
        longest: The number of tokens that the model reads of a text.
        texts: The number of texts.
        cut: The number of texts that were truncated.
        tokens: The number of tokens that were read, without special ones.
        unread: The number of tokens beyond the model's limit.
    """

    model: str
    noun: str
    longest: int
    texts: int = 0
    cut: int = 0
    tokens: int = 0
    unread: int = 0

    @property
    def share_unread(self) -> float:
        """Return the share of the texts' tokens that was not read."""
        return self.unread / max(1, self.tokens + self.unread)

    def plus(self, *counts: int) -> Reading:
        """Return the sum with other counts of texts, cut ones, tokens and unread ones."""
        return Reading(*self[:3], *(one + other for one, other in zip(self[3:], counts, strict=True)))


def add_readings(readings: Sequence[Reading | None]) -> Reading | None:
    """Return the sum of what several copies of a model have read; None if there is none."""
    known = [reading for reading in readings if reading is not None]
    return reduce(lambda total, other: total.plus(*other[3:]), known) if known else None


class TextEncoder(Protocol):
    """Encodes texts into vectors; several threads may call it at once."""

    dim: int
    device: str
    folder: ModelFolder

    @property
    def source(self) -> str:
        """Return the model's name at its source."""

    @property
    def reading(self) -> Reading | None:
        """Return how much of the passages was read so far; None if that cannot be found out."""

    def sha256(self) -> str:
        """Return one checksum of all that decides the vectors."""

    def describe(self) -> dict[str, Any]:
        """Return the settings that decide the vectors, for a fingerprint."""

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Return the share of the texts' pieces that the model does not know; 0 if that cannot be found out."""

    def encode_passages(self, texts: Sequence[str], prefix: str | None = None) -> FloatArray:
        """Encode passages into float32 of shape `(len(texts), dim)`; a prefix replaces the model's own."""

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Encode questions into float32 of shape `(len(texts), dim)`."""


def open_encoder(
    folder: str | Path | None = None, device: str = "auto", threads: int = 0, key: str | None = None
) -> TextEncoder:
    """Open the encoder that a folder holds or describes, or the demo encoder that ships.

    Args:
        folder: a model folder, or the description of an endpoint by `xqg describe URL`.
        device: of a model folder.
        threads: of a model folder.
        key: of an endpoint; None takes that of the environment.

    Raises:
        ModelError: the folder, the device or the endpoint cannot be used.
    """
    about = None if folder is None else read_endpoint(Path(folder))
    if folder is not None and about is not None:
        from xqg_qdrant.inference.remote_encoder import RemoteEncoder

        return RemoteEncoder(Path(folder), about, api_key=key)
    from xqg_qdrant.inference.encoder import Encoder

    return Encoder(folder, device, threads)
