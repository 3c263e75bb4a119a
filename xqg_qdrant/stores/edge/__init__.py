"""Collections in a directory of this machine, in Qdrant's own engine, in this process.

    DIR/<collection>/collection.json   dim and fingerprint
    DIR/<collection>/…                 what qdrant_edge.EdgeShard keeps

A collection is built aside and renamed into its place: it is there complete, or not at all. Knows qdrant-edge-py,
which besides it only `edge_index` imports. Knows nothing of servers.
"""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import qdrant_edge as engine

from xqg_qdrant.errors import MismatchError, StoreError
from xqg_qdrant.fingerprint import is_sparse
from xqg_qdrant.records import TERMS_VECTOR, AugmentedPassage, FloatArray, ScoredPassage, StoredPassage
from xqg_qdrant.stores import points as layout
from xqg_qdrant.stores.edge.index import (
    SIDECAR,
    build_index,
    hold,
    in_use,
    read_sidecar,
    release,
    sync_directory,
    write_sidecar,
)
from xqg_qdrant.stores.points import Names, read_names, rename
from xqg_qdrant.stores.protocol import (
    Indexing,
    check_search,
    check_term_search,
    read_hit,
    search_in_batches,
    search_terms_in_batches,
)
from xqg_qdrant.streams import batched

ENGINE_FILE = "edge_config.json"
ENGINE_SCRATCH = "temp_segments"
UNFINISHED_PREFIX = ".unfinished-"
UNFINISHED_SECONDS = 3600.0
# The engine writes through mapped memory: where the disk has no more room for it, the process is killed (SIGBUS).
SPARE_BYTES = 64 * 2**20
UPSERT_BATCH = 256
SCROLL_BATCH = 256
READ_BATCH = 1000
# The engine holds the GIL while it works: a small batch keeps Ctrl-C and progress bars alive.
SEARCH_BATCH = 16


class EdgeStore:
    """A directory of collections, open to one process at a time; see `Store` for what the methods promise."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory).expanduser()
        self.location = f"edge:{self._directory}"
        self._shards: dict[str, tuple[engine.EdgeShard, int]] = {}
        self._sparse: dict[str, bool] = {}
        self._names: dict[str, Names] = {}
        self._locks: dict[str, int] = {}
        self._lock = threading.Lock()
        self._closed = False

    def collections(self) -> list[str]:
        """Return the names of the collections, sorted."""
        with self._wrapped("list the collections"):
            if not self._directory.exists():
                return []
            paths = [path for path in self._directory.iterdir() if not path.name.startswith(".")]
            return sorted(path.name for path in paths if any((path / name).exists() for name in (SIDECAR, ENGINE_FILE)))

    def create_collection(self, collection: str, dim: int, fingerprint: Mapping[str, Any]) -> None:
        """Create an empty collection and keep its fingerprint beside it."""
        path = self._path(collection)
        if self._exists(path):
            raise StoreError(f"collection {collection!r} already exists in {self.location}.", "choose another name.")
        kept = layout.check_creation(collection, dim, fingerprint)
        with self._wrapped(f"create collection {collection!r}"):
            self._directory.mkdir(parents=True, exist_ok=True)
            self._check_space()
            unfinished = self._directory / f"{UNFINISHED_PREFIX}{uuid.uuid4().hex}"
            try:
                engine.EdgeShard.create(str(unfinished), _make_config(dim, is_sparse(kept), read_names(kept))).close()
                self._sweep(unfinished.stat().st_mtime)
                write_sidecar(unfinished, dim, kept)
                unfinished.rename(path)
                sync_directory(self._directory)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise

    def read_fingerprint(self, collection: str) -> dict[str, Any] | None:
        """Return the fingerprint, None where there is no such collection; needs no lock."""
        sidecar = self._read_sidecar(collection)
        return None if sidecar is None else sidecar[1]

    def write_fingerprint(self, collection: str, fingerprint: Mapping[str, Any]) -> None:
        """Replace the sidecar by a whole new one."""
        _, dim = self._open(collection)
        kept = layout.check_creation(collection, dim, fingerprint)
        with self._wrapped(f"write the fingerprint of {collection!r}"):
            write_sidecar(self._path(collection), dim, kept)

    def read_dim(self, collection: str) -> int:
        """Return the length of the collection's vectors."""
        return self._open(collection)[1]

    def read_content_hashes(self, collection: str, passage_ids: Sequence[str]) -> dict[str, str]:
        """Return the content hash of each of these passages that is stored; reads no vector and no text."""
        shard, _ = self._open(collection)
        hashes = {}
        for ids in batched(passage_ids, READ_BATCH):
            by_point = {layout.make_point_id(passage_id): passage_id for passage_id in ids}
            with self._wrapped(f"read collection {collection!r}"):
                records = shard.retrieve(list(by_point), ["content_hash"], False)
            for record in records:
                hashes[by_point[str(record.id)]] = str((record.payload or {}).get("content_hash", ""))
        return hashes

    def upsert(self, collection: str, points: Sequence[AugmentedPassage]) -> None:
        """Check all points, then store them; they are on the disk when this returns."""
        shard, dim = self._open(collection)
        checked = layout.check_points(points, dim, self._sparse[collection], self._names[collection])
        self._check_space()
        records = (
            engine.Point(point_id, _make_vectors(point), payload) for point_id, (point, payload) in checked.items()
        )
        with self._wrapped(f"write to collection {collection!r}"):
            for batch in batched(records, UPSERT_BATCH):
                shard.update(engine.UpdateOperation.upsert_points(batch))
            shard.flush()

    def search(
        self, collection: str, vectors: FloatArray, vector_name: str, limit: int, exact: bool = False
    ) -> list[list[ScoredPassage]]:
        """Return for each query vector the `limit` best passages, best first."""
        _, dim = self._open(collection)
        check_search(vectors, dim, vector_name, limit)
        rescoring = engine.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=layout.OVERSAMPLING)
        params = engine.SearchParams(exact=exact, quantization=rescoring)
        names = self._names[collection]
        using = names.get(vector_name, vector_name)

        def fetch(batch: Sequence[FloatArray], count: int) -> list[list[_Hit]]:
            nearest = [engine.Query.Nearest(vector.tolist(), using=using) for vector in batch]
            return self._fetch(collection, nearest, count, params)

        return search_in_batches(fetch, vectors, limit, SEARCH_BATCH, partial(read_hit, names=names))

    def search_terms(self, collection: str, terms: Sequence[Sequence[int]], limit: int) -> list[list[ScoredPassage]]:
        """Return for each query's terms the `limit` best passages, best first."""
        self._open(collection)
        check_term_search(collection, self._sparse[collection], limit)

        def fetch(batch: Sequence[Sequence[int]], count: int) -> list[list[_Hit]]:
            vectors = (engine.SparseVector(list(ids), [1.0] * len(ids)) for ids in batch)
            nearest = [engine.Query.Nearest(vector, using=TERMS_VECTOR) for vector in vectors]
            return self._fetch(collection, nearest, count)

        read = partial(read_hit, names=self._names[collection])
        return search_terms_in_batches(fetch, terms, limit, SEARCH_BATCH, read)

    def read_points(self, collection: str, passage_ids: Sequence[str]) -> dict[str, AugmentedPassage]:
        """Return each of these passages that is stored, with its vectors."""
        shard, _ = self._open(collection)
        sparse, names = self._sparse[collection], self._names[collection]
        found = {}
        for ids in batched(map(layout.make_point_id, passage_ids), SCROLL_BATCH):
            with self._wrapped(f"read collection {collection!r}"):
                records = shard.retrieve([*ids], True, layout.list_vectors(sparse, names))
            for record in records:
                point = layout.read_point(record.payload or {}, record.vector, sparse, names)
                found[point.passage.passage_id] = point
        return found

    def scroll(self, collection: str) -> Iterator[AugmentedPassage]:
        """Yield every point with its vectors, a few at a time."""
        self._open(collection)
        sparse, names = self._sparse[collection], self._names[collection]
        for record in self._scroll(collection, SCROLL_BATCH, True, layout.list_vectors(sparse, names)):
            yield layout.read_point(record.payload or {}, record.vector, sparse, names)

    def scroll_stored(self, collection: str) -> Iterator[StoredPassage]:
        """Yield what made each point, a few at a time."""
        for record in self._scroll(collection, READ_BATCH, list(StoredPassage._fields), False):
            yield layout.read_stored_passage(record.payload or {})

    def delete(self, collection: str, passage_ids: Sequence[str]) -> None:
        """Delete points; that they are gone is on the disk when this returns."""
        shard, _ = self._open(collection)
        with self._wrapped(f"delete from collection {collection!r}"):
            for ids in batched(map(layout.make_point_id, passage_ids), READ_BATCH):
                shard.update(engine.UpdateOperation.delete_points([*ids]))
            shard.flush()

    def delete_collection(self, collection: str) -> None:
        """Put the collection aside, then remove it: it is there complete, or not at all."""
        # Only whoever holds the lock knows that nobody else is at it.
        self._open(collection)
        self._release(collection)
        removed = self._directory / f"{UNFINISHED_PREFIX}{uuid.uuid4().hex}"
        with self._wrapped(f"delete collection {collection!r}"):
            self._path(collection).rename(removed)
            sync_directory(self._directory)
            shutil.rmtree(removed)
            release(self._locks.pop(collection))

    def count(self, collection: str) -> int:
        """Return the exact number of points."""
        shard, _ = self._open(collection)
        with self._wrapped(f"count collection {collection!r}"):
            return shard.count(engine.CountRequest(exact=True))

    def read_aliases(self) -> None:
        """Return None: the engine knows no aliases."""

    def switch_alias(self, alias: str, collection: str) -> None:
        """Refuse it."""
        cure = "use a Qdrant server, or search the collection by its own name"
        raise StoreError(f"{self.location} has no aliases, so {alias!r} cannot name {collection!r}.", cure)

    def create_snapshot(self, collection: str) -> None:
        """Return None: of a directory whoever owns it can keep a copy."""

    @contextmanager
    def bulk_load(self, collection: str, fast: bool) -> Iterator[None]:
        """Do nothing: the index is made when it is asked for."""
        self._open(collection)
        yield

    def optimise(self, collection: str, above: int = 0) -> Iterator[Indexing]:
        """Index in a child process; the collection is closed until then."""
        if self.count(collection) > above:
            self._release(collection)
            yield from build_index(self._path(collection))

    def quantise(self, collection: str) -> None:
        """Write the setting into the engine's configuration, where it stays."""
        _, dim = self._open(collection)
        config = _make_config(dim, self._sparse[collection], self._names[collection], quantised=True)
        self._release(collection)
        with self._wrapped(f"quantise collection {collection!r}"):
            engine.EdgeShard.load(str(self._path(collection)), config).close()

    def __enter__(self) -> EdgeStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every collection, so that another process can open it."""
        with self._lock, self._wrapped("close the store"):
            self._closed = True
            while self._shards:
                self._shards.popitem()[1][0].close()
            while self._locks:
                release(self._locks.popitem()[1])

    def _fetch(
        self,
        collection: str,
        queries: Sequence[engine.Query],
        count: int,
        params: engine.SearchParams | None = None,
    ) -> list[list[_Hit]]:
        """Return the `count` best hits of each query."""
        shard, _ = self._open(collection)
        requests = [
            engine.QueryRequest(limit=count, query=query, params=params, with_payload=False, with_vector=False)
            for query in queries
        ]
        with self._wrapped(f"search collection {collection!r}"):
            answers = shard.query_batch(engine.QueryBatchRequest(requests))
            # Faster than payloads that come with the hits, and a passage that many questions find is read once.
            # The engine makes an id anew, in Python, whenever it is asked for it.
            scored = [[(hit.id, hit.score) for hit in answer] for answer in answers]
            ids = list({point_id for answer in scored for point_id, _ in answer})
            records = {record.id: record for record in shard.retrieve(ids, True, False)}
        return [[_Hit(score, records[point]) for point, score in answer] for answer in scored]

    def _scroll(
        self, collection: str, limit: int, payload: bool | list[str], vectors: bool | list[str]
    ) -> Iterator[engine.Record]:
        shard, _ = self._open(collection)
        offset: engine.PointId | None = None
        while True:
            request = engine.ScrollRequest(offset=offset, limit=limit, with_payload=payload, with_vector=vectors)
            with self._wrapped(f"read collection {collection!r}"):
                records, offset = shard.scroll(request)
            yield from records
            if offset is None:
                return

    def _path(self, collection: str) -> Path:
        layout.check_collection_name(collection)
        return self._directory / collection

    def _exists(self, path: Path) -> bool:
        with self._wrapped("look for a collection"):
            # An empty directory is what a user makes beforehand, or what is left of a deleted collection.
            return path.exists() and (not path.is_dir() or any(path.iterdir()))

    def _read_sidecar(self, collection: str) -> tuple[int, dict[str, Any]] | None:
        path = self._path(collection)
        if not self._exists(path):
            return None
        if not (path / SIDECAR).exists():
            cure = "choose another collection name"
            raise MismatchError(f"{path} was not created by xqg: it has no {SIDECAR}. Nothing was changed.", cure)
        return read_sidecar(path)

    def _open(self, collection: str) -> tuple[engine.EdgeShard, int]:
        with self._lock:
            if self._closed:
                raise StoreError(f"{self.location} was closed.", "open the store again.")
            if collection not in self._shards:
                sidecar = self._read_sidecar(collection)
                if sidecar is None:
                    known = ", ".join(self.collections()) or "none"
                    cure = "check the name, or ingest first"
                    raise StoreError(f"no collection {collection!r} in {self.location}, which has: {known}.", cure)
                path = self._path(collection)
                with self._wrapped(f"open collection {collection!r}"):
                    if collection not in self._locks:
                        self._locks[collection] = hold(path)
                    self._sparse[collection], self._names[collection] = is_sparse(sidecar[1]), read_names(sidecar[1])
                    try:
                        self._shards[collection] = (_load(path), sidecar[0])
                    except BaseException:
                        release(self._locks.pop(collection))
                        raise
                # What a killed child left of an index; the lock is ours, so nobody is at it.
                shutil.rmtree(path / ENGINE_SCRATCH, ignore_errors=True)
            return self._shards[collection]

    def _release(self, collection: str) -> None:
        with self._lock, self._wrapped(f"close collection {collection!r}"):
            self._shards.pop(collection)[0].close()

    def _check_space(self) -> None:
        """Refuse to write to a disk that is nearly full.

        Raises:
            StoreError: says how much is free, and how much there should be.
        """
        free = shutil.disk_usage(self._directory).free
        if free < SPARE_BYTES:
            cure = "make room, or move the store, and run the same again"
            raise StoreError(
                f"the disk of {self.location} is nearly full: {free >> 20} MiB are free, to write safely takes "
                f"{SPARE_BYTES >> 20} MiB.",
                cure,
            )

    def _sweep(self, now: float) -> None:
        """Remove what killed processes left of collections that never came to be.

        `now` is the time of the file system: other machines that write there may have other clocks.
        """
        for path in self._directory.glob(f"{UNFINISHED_PREFIX}*"):
            # A younger one may be another process at work.
            if now - path.stat().st_mtime > UNFINISHED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _wrapped(self, action: str) -> Iterator[None]:
        """Turn whatever the engine or the file system raises into a `StoreError` that says what was tried."""
        try:
            yield
        except StoreError:
            raise
        except BaseException as error:
            # The engine raises bare Exceptions; a panic in it arrives as a BaseException of a type without a home.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            cure = "check the disk's free space and the directory's permissions, or restore it from a backup"
            raise StoreError(f"cannot {action} in {self.location}: {error}.", cure) from error


class _Hit(NamedTuple):
    """A hit whose payload becomes Python's only when it is asked for."""

    score: float
    record: engine.Record

    @property
    def payload(self) -> Mapping[str, Any] | None:
        return self.record.payload


def _load(path: Path) -> engine.EdgeShard:
    try:
        return engine.EdgeShard.load(str(path))
    except Exception as error:
        if "WouldBlock" in str(error):
            raise in_use(path) from error
        raise


def _make_vectors(point: AugmentedPassage) -> dict[str, Any]:
    vectors: dict[str, Any] = {name: vector.tolist() for name, vector in point.vectors.items()}
    if point.terms is not None:
        vectors[TERMS_VECTOR] = engine.SparseVector(list(point.terms), [1.0] * len(point.terms))
    return vectors


def _make_config(dim: int, sparse: bool, names: Names, quantised: bool = False) -> engine.EdgeConfig:
    vector = engine.EdgeVectorParams(size=dim, distance=engine.Distance.Dot)
    codes = engine.ScalarQuantizationConfig(engine.ScalarType.Int8) if quantised else None
    vectors = rename(dict.fromkeys(layout.VECTOR_NAMES, vector), names)
    terms = {TERMS_VECTOR: engine.EdgeSparseVectorParams(modifier=engine.Modifier.Idf)} if sparse else None
    return engine.EdgeConfig(vectors=vectors, sparse_vectors=terms, quantization_config=codes, wal_enabled=True)
