"""Run models: the protocol of encoders, and who follows it.

`encoder` runs a graph, `remote_encoder` asks an HTTP endpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from xqg_qdrant.model_folders import ModelFolder
from xqg_qdrant.model_folders.description import read_endpoint
from xqg_qdrant.records import FloatArray


class TextEncoder(Protocol):
    """Encodes texts into vectors; several threads may call it at once."""

    dim: int
    device: str
    folder: ModelFolder

    @property
    def source(self) -> str:
        """Return the model's name at its source."""

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
