"""Texts → vectors.

Knows prefixes, lengths and batches. Pooling and normalisation lie inside the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from xqg_qdrant.model_folder import TOKENIZER_FILE, read_description, verify_files
from xqg_qdrant.records import FloatArray
from xqg_qdrant.session import Session


class Encoder:
    """A multilingual encoder.

    Every text is encoded alone: on a CPU that is as fast as any batch, and a text's vector never depends on its
    neighbours.
    """

    def __init__(self, folder: Path, device: str = "auto", threads: int = 0) -> None:
        """Load a model folder of kind `encoder`.

        Raises:
            ModelError: the folder or the device cannot be used.
        """
        self.folder = read_description(folder, "encoder")
        with ThreadPoolExecutor() as pool:
            # A large tokenizer takes as long to load as a large model, and that as long as its checksum.
            verified = pool.submit(verify_files, self.folder)
            session = pool.submit(Session, folder / "model.onnx", device, threads)
            tokenizer = pool.submit(Tokenizer.from_file, str(folder / TOKENIZER_FILE))
        verified.result()  # first, so that a damaged file is told as such
        about = self.folder.description
        self.dim: int = about["dim"]
        self._query_prefix: str = about["query_prefix"]
        self._passage_prefix: str = about["passage_prefix"]
        self._max_query_tokens: int = about["max_query_tokens"]
        self._max_passage_tokens: int = about["max_passage_tokens"]
        self._tokenizer: Tokenizer = tokenizer.result()
        self._tokenizer.no_padding()
        self._session = session.result()
        self.device = self._session.device

    def describe(self) -> dict[str, Any]:
        """Return what of this model decides the vectors, for a fingerprint."""
        names = (
            "pooling", "normalise", "query_prefix", "passage_prefix", "max_query_tokens", "max_passage_tokens", "dtype"
        )  # fmt: skip
        return {"sha256": self.folder.sha256(), **{name: self.folder.description[name] for name in names}}

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        """Encode passages (title and text joined by the caller); float32 of shape `(len(texts), dim)`."""
        return self._encode([self._passage_prefix + text for text in texts], self._max_passage_tokens)

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Encode questions; float32 of shape `(len(texts), dim)`."""
        return self._encode([self._query_prefix + text for text in texts], self._max_query_tokens)

    def _encode(self, texts: list[str], max_tokens: int) -> FloatArray:
        self._tokenizer.enable_truncation(max_tokens)
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for row, encoding in enumerate(self._tokenizer.encode_batch(texts)):
            ids = np.array([encoding.ids], dtype=np.int64)
            vectors[row] = self._session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]
        return vectors
