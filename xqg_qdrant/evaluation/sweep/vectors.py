"""What a collection holds, read and encoded once, and the augmented vectors that any recipe would make of it.

In memory are the passages, the texts of their queries, and three vectors a passage at most; the vectors of the queries
lie in a temporary file. Knows stores and the fusion. Knows nothing of questions and measures.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import abc
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xqg_qdrant.augmentation.fusion import augment_passage, check_vectors, score_queries
from xqg_qdrant.augmentation.recipe import Recipe, read_recipe
from xqg_qdrant.errors import InputError
from xqg_qdrant.fingerprint import RETUNING_FIELD
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.lifecycle.retune import is_kept
from xqg_qdrant.records import PASSAGE_VECTOR, FloatArray, GeneratedQuery, Passage
from xqg_qdrant.retrieval import check_collection
from xqg_qdrant.stores import read_existing_fingerprint
from xqg_qdrant.stores.protocol import Store
from xqg_qdrant.streams import batched, work_in_order

TEXTS_AT_ONCE = 1024
POINTS_AT_ONCE = 256


def check_sweepable(store: Store, collection: str, encoder: Encoder) -> Recipe:
    """Return the recipe of a collection that can be swept.

    Raises:
        InputError: there is no such collection, it is empty, or being retuned: then some queries may be gone.
        MismatchError: it was made with another encoder.
    """
    check_collection(store, collection, encoder)
    fingerprint = read_existing_fingerprint(store, collection)
    if RETUNING_FIELD in fingerprint:
        raise InputError(
            f"collection {collection!r} is being retuned, so its passages differ in their queries.",
            f"finish it: xqg retune --collection {collection}",
        )
    if not store.count(collection):
        raise InputError(f"collection {collection!r} holds no passages.", "ingest first.")
    return read_recipe(fingerprint)


class StoredVectors:
    """The passages of a collection in the order of their ids, with their plain vectors and those of their queries."""

    def __init__(self, directory: Path) -> None:
        """Begin with nothing; the vectors of the queries are to lie in this directory."""
        self.passages: list[Passage] = []
        self.queries: list[tuple[GeneratedQuery, ...]] = []
        self.plain: FloatArray = np.empty((0, 0), dtype=np.float32)
        self._directory = directory
        self._texts: dict[str, int] = {}
        self._rows: list[npt.NDArray[np.int64]] = []
        self._vectors: FloatArray = np.empty((0, 0), dtype=np.float32)

    @property
    def distinct_queries(self) -> int:
        """Return how many different texts the queries have: so many are encoded."""
        return len(self._texts)

    def read(self, store: Store, collection: str) -> Iterator[int]:
        """Read all points; yield how many of them at a time."""
        plain = []
        for batch in batched(store.scroll(collection), POINTS_AT_ONCE):
            for point in batch:
                self.passages.append(point.passage)
                self.queries.append(point.generated_queries)
                plain.append(point.vectors[PASSAGE_VECTOR])
            yield len(batch)
        # Stores give equal scores in the order of the ids; so does whatever goes through passages that are in it.
        order = sorted(range(len(plain)), key=lambda place: self.passages[place].passage_id)
        self.passages = [self.passages[place] for place in order]
        self.queries = [self.queries[place] for place in order]
        self.plain = np.stack([plain[place] for place in order])
        for queries in self.queries:
            rows = [self._texts.setdefault(query.text, len(self._texts)) for query in queries]
            self._rows.append(np.array(rows, dtype=np.int64))

    def encode(self, encoder: Encoder, workers: int) -> abc.Generator[int, None, None]:
        """Encode each different text of a query once; yield how many of them at a time.

        Raises:
            InputError: their vectors do not fit on the disk.
        """
        if not self._texts:
            return
        shape = (len(self._texts), encoder.dim)
        needed, free = 4 * shape[0] * shape[1], shutil.disk_usage(self._directory).free
        if needed > free:
            raise InputError(
                f"the vectors of {shape[0]} queries take {needed >> 20} MiB, and in {self._directory} {free >> 20} MiB "
                "are free.",
                "set TMPDIR to a larger disk, or try a sample of the corpus with xqg pilot.",
            )
        self._vectors = np.memmap(self._directory / "queries", dtype=np.float32, mode="w+", shape=shape)
        done = 0
        work = partial(_encode, encoder=encoder)
        with closing(work_in_order(work, batched(self._texts, TEXTS_AT_ONCE), workers)) as batches:
            for encoded in (vectors for batch in batches for vectors in batch):
                self._vectors[done : done + len(encoded)] = encoded
                done += len(encoded)
                yield len(encoded)

    def fuse(self, recipe: Recipe) -> FloatArray:
        """Return the vectors that an ingest with this recipe stores, shape `(passages, dim)`."""
        fused, settings = np.empty_like(self.plain), recipe.fusion_settings
        for place, (plain, queries) in enumerate(self._pairs(recipe)):
            fused[place], _ = augment_passage(plain, queries, settings)
        return fused

    def score_queries(self, recipe: Recipe) -> npt.NDArray[np.float64]:
        """Return the dot product of each query that the recipe keeps with its passage's plain vector."""
        return np.concatenate([np.empty(0), *(score_queries(*pair) for pair in self._pairs(recipe))])

    def _pairs(self, recipe: Recipe) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Yield each plain vector, shape `(dim,)`, with those of the queries that the recipe keeps, `(n, dim)`."""
        none = np.empty((0, self.plain.shape[1]), dtype=np.float32)
        for plain, queries, rows in zip(self.plain, self.queries, self._rows, strict=True):
            kept = [row for row, query in zip(rows, queries, strict=True) if is_kept(query, recipe)]
            yield plain, np.asarray(self._vectors[kept]) if kept else none


@contextmanager
def opened_vectors() -> Iterator[StoredVectors]:
    """Make a place for a collection's vectors, whose temporary file is removed in the end."""
    with tempfile.TemporaryDirectory(prefix="xqg-sweep-") as directory:
        yield StoredVectors(Path(directory))


def _encode(texts: Sequence[str], encoder: Encoder) -> FloatArray:
    return check_vectors(encoder.encode_queries(texts), len(texts), encoder.dim)
