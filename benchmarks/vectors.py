"""An encoder that keeps every vector in a folder, so that many rows of a table share one encoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import FloatArray

TEXTS_AT_ONCE = 1024


class CachingEncoder(Encoder):
    """An encoder whose vectors are read from a folder where it has written them before."""

    def __init__(self, folder: Path, cache: Path) -> None:
        """Open an encoder, and load the vectors of its earlier runs."""
        super().__init__(folder, "cpu")
        self._kept = cache / self.folder.sha256()[:16]
        self._kept.mkdir(parents=True, exist_ok=True)
        self._vectors: dict[bytes, FloatArray] = {}
        for path in sorted(self._kept.glob("*.npz")):
            with np.load(path, allow_pickle=False) as stored:
                self._vectors.update(zip(map(bytes, stored["keys"]), stored["vectors"], strict=True))

    def encode_passages(self, texts: Sequence[str], prefix: str | None = None) -> FloatArray:
        """Encode passages, each only once for all runs, unless with another prefix."""
        if prefix is not None:
            return super().encode_passages(texts, prefix)
        return self._recall("passage", texts, super().encode_passages)

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Encode questions, each only once for all runs."""
        return self._recall("query", texts, super().encode_queries)

    def _recall(self, side: str, texts: Sequence[str], encode: Callable[[Sequence[str]], FloatArray]) -> FloatArray:
        keys = [sha256(f"{side}\0{text}".encode("utf-8", "surrogatepass")).digest() for text in texts]
        missing = list({key: text for key, text in zip(keys, texts, strict=True) if key not in self._vectors}.items())
        for start in range(0, len(missing), TEXTS_AT_ONCE):
            new, unseen = zip(*missing[start : start + TEXTS_AT_ONCE], strict=True)
            vectors = encode(unseen)
            self._vectors.update(zip(new, vectors, strict=True))
            name = sha256(b"".join(new)).hexdigest()[:16]
            digests = np.frombuffer(b"".join(new), np.uint8).reshape(len(new), -1)
            np.savez(self._kept / f"{name}.npz", allow_pickle=False, keys=digests, vectors=vectors)
        return np.stack([self._vectors[key] for key in keys])
