"""Read a collection and encode its queries once, then compute the augmented vectors of any recipe.

The passages, the texts of their queries, and at most three vectors per passage are in memory; the vectors of the
queries are in a temporary file.
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

from xqg_qdrant.augmentation.fusion import augment_passage, check_vectors, fuse, keep_relevant, score_queries
from xqg_qdrant.augmentation.recipe import Recipe, read_recipe
from xqg_qdrant.errors import InputError
from xqg_qdrant.fingerprint import RETUNING_FIELD
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.lifecycle.retune import is_kept
from xqg_qdrant.records import PASSAGE_VECTOR, FloatArray, GeneratedQuery, Passage
from xqg_qdrant.retrieval import check_collection
from xqg_qdrant.stores import read_existing_fingerprint
from xqg_qdrant.stores.protocol import Store
from xqg_qdrant.streams import Bars, batched, count_workers, work_in_order
from xqg_qdrant.text import count_of

TEXTS_AT_ONCE = 1024
POINTS_AT_ONCE = 256


def check_sweepable(store: Store, collection: str, encoder: TextEncoder) -> Recipe:
    """Return the recipe of a collection that can be swept.

    Raises:
        InputError: There is no such collection, it is empty, or a retune is unfinished: then some queries may be gone.
        MismatchError: It was made with another encoder.
    """
    check_collection(store, collection, encoder)
    fingerprint = read_existing_fingerprint(store, collection)
    if RETUNING_FIELD in fingerprint:
        raise InputError(
            f"the retune of collection {collection!r} is unfinished, so its passages have queries of two recipes.",
            f"finish it with: xqg retune --collection {collection}",
        )
    if not store.count(collection):
        raise InputError(
            f"collection {collection!r} holds no passages.", f"run: xqg ingest FILE --collection {collection}"
        )
    return read_recipe(fingerprint)


class StoredVectors:
    """The passages of a collection in the order of their ids, with their vectors and those of their queries."""

    def __init__(self, directory: Path) -> None:
        """Start empty; the file with the vectors of the queries goes into this directory."""
        self.passages: list[Passage] = []
        self.queries: list[tuple[GeneratedQuery, ...]] = []
        self.plain: FloatArray = np.empty((0, 0), dtype=np.float32)
        self._directory = directory
        self._texts: dict[str, int] = {}
        self._rows: list[npt.NDArray[np.int64]] = []
        self._vectors: FloatArray = np.empty((0, 0), dtype=np.float32)

    @property
    def distinct_queries(self) -> int:
        """Return the number of distinct query texts, which is how many are encoded."""
        return len(self._texts)

    def load(self, store: Store, collection: str, encoder: TextEncoder, threads: int, bars: Bars) -> None:
        """Read a collection and encode its queries, with progress bars; 0 threads is one per core.

        Raises:
            InputError: The vectors of the queries do not fit on the disk.
        """
        with bars(store.count(collection), " passages read") as bar:
            for count in self.read(store, collection):
                bar.update(count)
        workers = count_workers(encoder.device, threads)
        with bars(self.distinct_queries, " queries") as bar, closing(self.encode(encoder, workers)) as steps:
            for count in steps:
                bar.update(count)

    def read(self, store: Store, collection: str) -> Iterator[int]:
        """Read all points; yield the number of points in each batch."""
        plain = []
        for batch in batched(store.scroll(collection), POINTS_AT_ONCE):
            for point in batch:
                self.passages.append(point.passage)
                self.queries.append(point.generated_queries)
                plain.append(point.vectors[PASSAGE_VECTOR])
            yield len(batch)
        # Stores break ties by id, and so does a search over passages in this order.
        order = sorted(range(len(plain)), key=lambda place: self.passages[place].passage_id)
        self.passages = [self.passages[place] for place in order]
        self.queries = [self.queries[place] for place in order]
        self.plain = np.stack([plain[place] for place in order])
        for queries in self.queries:
            rows = [self._texts.setdefault(query.text, len(self._texts)) for query in queries]
            self._rows.append(np.array(rows, dtype=np.int64))

    def encode(self, encoder: TextEncoder, workers: int) -> abc.Generator[int, None, None]:
        """Encode each distinct query text once; yield the number of texts in each batch.

        Raises:
            InputError: The vectors do not fit on the disk.
        """
        if not self._texts:
            return
        shape = (len(self._texts), encoder.dim)
        needed, free = 4 * shape[0] * shape[1], shutil.disk_usage(self._directory).free
        if needed > free:
            raise InputError(
                f"the vectors of {count_of(shape[0], 'query', 'queries')} need {needed >> 20} MiB, but only "
                f"{free >> 20} MiB are free ({self._directory}).",
                "set TMPDIR to a folder on a larger disk, or try a sample of the corpus with xqg pilot",
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

    def fuse_control(self, recipe: Recipe) -> FloatArray | None:
        """Return the vectors of `fuse` with each query replaced by the mean of all; None if there are no queries."""
        settings = recipe.fusion_settings
        total, counts = np.zeros(self.plain.shape[1]), []
        for plain, queries in self._pairs(recipe):
            relevant = keep_relevant(plain, queries, settings.min_score)
            total += relevant.astype(np.float64).sum(axis=0)
            counts.append(len(relevant))
        if not any(counts):
            return None
        mean = (total / sum(counts)).astype(np.float32)
        pairs = zip(self.plain, counts, strict=True)
        return np.stack([fuse(plain, np.tile(mean, (count, 1)), settings) for plain, count in pairs])

    def score_queries(self, recipe: Recipe) -> npt.NDArray[np.float64]:
        """Return the dot product of each query the recipe keeps with its passage's plain vector."""
        return np.concatenate([np.empty(0), *(score_queries(*pair) for pair in self._pairs(recipe))])

    def _pairs(self, recipe: Recipe) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Yield each plain vector, shape `(dim,)`, with those of the queries the recipe keeps, shape `(n, dim)`."""
        none = np.empty((0, self.plain.shape[1]), dtype=np.float32)
        for plain, queries, rows in zip(self.plain, self.queries, self._rows, strict=True):
            kept = [row for row, query in zip(rows, queries, strict=True) if is_kept(query, recipe)]
            yield plain, np.asarray(self._vectors[kept]) if kept else none


@contextmanager
def opened_vectors() -> Iterator[StoredVectors]:
    """Yield empty `StoredVectors`, whose temporary file is removed on exit."""
    with tempfile.TemporaryDirectory(prefix="xqg-sweep-") as directory:
        yield StoredVectors(Path(directory))


def _encode(texts: Sequence[str], encoder: TextEncoder) -> FloatArray:
    return check_vectors(encoder.encode_queries(texts), len(texts), encoder.dim)
