"""Encode texts into vectors.

xqg's own graphs pool and normalise inside; for other programs' graphs `pooling` does it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from xqg_qdrant.errors import ModelError, OutOfMemoryError
from xqg_qdrant.inference import DESCRIBED, ENCODER, Reading
from xqg_qdrant.inference.batching import Budget
from xqg_qdrant.inference.pooling import Pooler, read_dense
from xqg_qdrant.inference.session import AUTO, CPU, Array, Session, find_devices, join_devices
from xqg_qdrant.inference.tokenizer import (
    ReadCount,
    Tokenizer,
    apply_settings,
    count_readable_ids,
    encode_ids,
    open_tokenizer,
    replace_unreadable,
    unknown_id,
)
from xqg_qdrant.model_folders import DEMO_ENCODER, read_model_folder, shipped_model
from xqg_qdrant.model_folders.description import IN_GRAPH, TOKENIZER_FILE, find_graph, is_foreign
from xqg_qdrant.model_folders.files import export_again
from xqg_qdrant.records import FloatArray

# Short texts run faster together, longer ones do not: a CPU's caches are small.
CPU_TOKENS_A_RUN = 128
CUDA_TOKENS_A_RUN = 16_384
OWN_INPUTS = frozenset({"input_ids", "attention_mask"})
FOREIGN_INPUTS = OWN_INPUTS | {"token_type_ids", "position_ids"}
# Another program's graph may be quantised with one scale for a batch, or sum in an order that depends on it.
FOREIGN_TOKENS_A_RUN = 1


class Encoder:
    """A multilingual encoder; several threads may use one.

    On a CPU only texts of the same length in tokens share a run, without padding. That is fastest, and a text's vector
    is bit-identical whatever else is in the batch. Another program's graph may not ensure that, so each text has a run
    of its own there. On a GPU texts of similar length share a large padded run, and the last bits may depend on the
    batch.
    """

    def __init__(self, folder: str | Path | None = None, device: str = "auto", threads: int = 0) -> None:
        """Load a model folder of kind `encoder`, or the demo encoder that ships.

        Args:
            folder: the layout of `xqg export`, optimum, sentence-transformers or fastembed.
            device: `cpu`, `cuda` (all GPUs), `cuda:N` or `auto`; the GPU choices fail if CUDA does not run.
            threads: CPU threads for one text; 0 takes every core, which is best for questions; 1 is best for ingests.

        Raises:
            ModelError: the folder or the device cannot be used; a model in bfloat16 needs a GPU.
        """
        folder = Path(folder) if folder is not None else shipped_model(DEMO_ENCODER)
        self.folder = read_model_folder(folder, "encoder")
        about = self.folder.description
        self.graph = find_graph(about)
        self._query_prefix: str = about["query_prefix"]
        self._passage_prefix: str = about["passage_prefix"]
        self._max_query_tokens: int = about["max_query_tokens"]
        self._max_passage_tokens: int = about["max_passage_tokens"]
        self._passages_read = ReadCount(ENCODER, "passage", self._max_passage_tokens)
        self._tokenizers: dict[int, Tokenizer] = {}
        self._tokenizer_settings: dict[str, Any] = {}
        self._lock = threading.Lock()
        with ThreadPoolExecutor() as pool:
            # A large tokenizer takes as long to load as a large model, so load both at once.
            opened = [
                pool.submit(Session, folder / self.graph, name, threads, optional=device == AUTO)
                for name in find_devices(device)
            ]
            pool.submit(self._tokenizer, self._max_query_tokens).result()
        self._sessions = [session.result() for session in opened]
        self._session = self._sessions[0]
        self._turns = itertools.count()
        self.device = join_devices(session.device for session in self._sessions)
        self._padded = self.device != CPU and "attention_mask" in self._session.input_names
        self._foreign = is_foreign(about)
        self._output: str = about["output"] if self._foreign else self._session.output_names[0]
        self._pool = self._make_pooler()
        self._check_graph()
        most = CUDA_TOKENS_A_RUN if self._padded else FOREIGN_TOKENS_A_RUN if self._foreign else CPU_TOKENS_A_RUN
        self._budget = Budget(most, "token")
        tokenizer = self._tokenizer(self._max_query_tokens)
        try:
            # No file of another program states the dimension reliably, so run the graph once.
            self.dim: int = self._run(self._session, [[0, 0]]).shape[1] if self._foreign else about["dim"]
            self._readable = count_readable_ids(tokenizer, lambda number: self._run(self._session, [[number]]))
        except OutOfMemoryError:
            raise
        except ModelError as error:
            raise ModelError(f"{self.folder.path / self.graph}: {error.message}", export_again(folder)) from error
        self._unknown = -1 if self._readable is None else unknown_id(tokenizer)

    @property
    def source(self) -> str:
        """Return the model's name at its source; that of the folder if the folder does not state it."""
        return str(self.folder.description.get("source") or self.folder.path.resolve().name)

    @property
    def reading(self) -> Reading:
        """Return how much of the passages was read so far."""
        return self._passages_read.reading

    def describe(self) -> dict[str, Any]:
        """Return the settings that decide the vectors, for a fingerprint."""
        return {
            "sha256": self.folder.sha256(),
            **{name: self.folder.description[name] for name in DESCRIBED},
            **({"tokenizer": self._tokenizer_settings} if self._tokenizer_settings else {}),
        }

    def sha256(self) -> str:
        """Return one checksum of all that decides the vectors."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Return the share of the texts' pieces that the tokenizer does not know."""
        tokenizer = self._tokenizer(self._max_query_tokens)
        unknown = unknown_id(tokenizer)
        rows = encode_ids(tokenizer, texts)
        return sum(row.count(unknown) for row in rows) / max(1, sum(map(len, rows)))

    def encode_passages(self, texts: Sequence[str], prefix: str | None = None) -> FloatArray:
        """Encode passages into float32 of shape `(len(texts), dim)`; the caller joins title and text.

        A text without a token has a vector of zeros.

        Args:
            texts: the passages.
            prefix: in the place of the model's own, to find out how vectors were made.
        """
        prefix = self._passage_prefix if prefix is None else prefix
        return self._encode([prefix + text for text in texts], self._max_passage_tokens, self._passages_read)

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """Encode questions into float32 of shape `(len(texts), dim)`; zeros where a text has no token."""
        return self._encode([self._query_prefix + text for text in texts], self._max_query_tokens)

    def _make_pooler(self) -> Pooler | None:
        """Return what runs after the graph, None for xqg's own graphs."""
        path, about = self.folder.path, self.folder.description
        if not self._foreign:
            return None
        dense = [read_dense(path, folder) for folder in about["dense"]]
        return Pooler(about["pooling"], dense, about["normalise"])

    def _check_graph(self) -> None:
        inputs, shape = set(self._session.input_names), self._session.output_shapes.get(self._output, ())
        if self._foreign:
            known, wanted = FOREIGN_INPUTS, "texts"
            fits = len(shape) == (2 if self.folder.description["pooling"] == IN_GRAPH else 3)
        else:
            dim = self.folder.description["dim"]
            known, wanted, fits = OWN_INPUTS, f"dim {dim}", shape[1:] == (dim,)
        if "input_ids" not in inputs or inputs - known or not fits:
            raise ModelError(
                f"{self.folder.path / self.graph} is not an encoder of {wanted}: it returns {list(shape)} from "
                f"{sorted(inputs)}.",
                export_again(self.folder.path),
            )
        texts, *tokens = self._session.input_shapes["input_ids"]
        if any(isinstance(size, int) for size in tokens) or (isinstance(texts, int) and texts != 1):
            raise ModelError(
                f"{self.folder.path / self.graph} takes only inputs of shape {[texts, *tokens]}, not texts of any "
                "length.",
                f"export it with dynamic axes, or its checkpoint with xqg export CHECKPOINT {self.folder.path}-xqg",
            )

    def _encode(self, texts: list[str], max_tokens: int, count: ReadCount | None = None) -> FloatArray:
        ids = encode_ids(self._tokenizer(max_tokens), texts, count)
        rows = replace_unreadable(ids, self._readable, self._unknown)
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        filled = [place for place, row in enumerate(rows) if row]
        vectors[filled] = self._encode_rows([rows[place] for place in filled])
        return vectors

    def _encode_rows(self, rows: Sequence[Sequence[int]]) -> FloatArray:
        vectors = np.empty((len(rows), self.dim), dtype=np.float32)
        # Workers take the GPUs in turn.
        session = self._sessions[next(self._turns) % len(self._sessions)]

        def cut(places: Sequence[int], most: int) -> Iterator[list[int]]:
            for batch in cut_batches([len(rows[place]) for place in places], most, self._padded):
                yield [places[number] for number in batch]

        def run(places: list[int]) -> None:
            vectors[places] = self._run(session, [rows[place] for place in places])

        self._budget.work(len(rows), cut, lambda places: len(places) * len(rows[places[0]]), run)
        return vectors

    def _run(self, session: Session, rows: Sequence[Sequence[int]]) -> FloatArray:
        [result] = session.run(make_feeds(session, rows), [self._output])
        return self._pool(result, [len(row) for row in rows]) if self._pool else result

    def _tokenizer(self, max_tokens: int) -> Tokenizer:
        """Return the tokenizer that truncates at a length: one for each, because threads may use both at once."""
        with self._lock:
            if max_tokens not in self._tokenizers:
                tokenizer = open_tokenizer(self.folder.path / TOKENIZER_FILE, max_tokens)
                self._tokenizer_settings = apply_settings(tokenizer, self.folder.description.get("tokenizer", {}))
                self._tokenizers[max_tokens] = tokenizer
            return self._tokenizers[max_tokens]


def make_feeds(session: Session, rows: Sequence[Sequence[int]]) -> dict[str, Array]:
    """Return a graph's inputs for rows of ids, padded at the right; `(rows, tokens)` each."""
    shape = len(rows), max(map(len, rows))
    ids, mask = np.zeros((2, *shape), dtype=np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = row, 1
    feeds = {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": np.zeros(shape, dtype=np.int64),
        "position_ids": np.broadcast_to(np.arange(shape[1]), shape),
    }
    return {name: feeds[name].astype(session.input_dtypes[name], order="C") for name in session.input_names}


def cut_batches(lengths: Sequence[int], budget: int, padded: bool) -> Iterator[list[int]]:
    """Split texts into batches of at most `budget` tokens, the longest texts first.

    Args:
        lengths: the length of each text, in tokens.
        budget: the most tokens in a batch, with padding; a longer text has a batch of its own.
        padded: allow texts of different lengths in a batch.

    Yields:
        positions in `lengths`, the longest of a batch first.
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch:
            longest = lengths[batch[0]]
            if longest * (len(batch) + 1) > budget or (not padded and lengths[place] != longest):
                yield batch
                batch = []
        batch.append(place)
    if batch:
        yield batch
