"""Collections in a local directory, held by Qdrant's own engine inside this process.

    DIR/<collection>/collection.json   dim and fingerprint
    DIR/<collection>/…                 the files of qdrant_edge.EdgeShard

A collection is built under a temporary name and then renamed, so it exists complete or not at all.
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

from xqg_qdrant.atomic import find_home, sync
from xqg_qdrant.errors import ForeignCollectionError, StoreError
from xqg_qdrant.fingerprint import is_sparse
from xqg_qdrant.records import TERMS_VECTOR, AugmentedPassage, FloatArray, ScoredPassage, StoredPassage
from xqg_qdrant.stores import points as layout
from xqg_qdrant.stores.edge.index import (
    SIDECAR,
    Hit,
    Sidecar,
    build_index,
    load_shard,
    lock_collection,
    make_config,
    make_vectors,
    read_models,
    read_sidecar,
    release_lock,
    write_models,
    write_sidecar,
)
from xqg_qdrant.stores.inspection import UNREADABLE, Inspected, inspect
from xqg_qdrant.stores.points import Names, read_names
from xqg_qdrant.stores.protocol import (
    Indexing,
    Sharding,
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
# The engine writes through mapped memory: when the disk is full, the process is killed (SIGBUS).
SPARE_BYTES = 64 * 2**20
UPSERT_BATCH = 256
SCROLL_BATCH = 256
READ_BATCH = 1000
# The engine holds the GIL while it works: a small batch keeps Ctrl-C and progress bars alive.
SEARCH_BATCH = 16


class OpenCollection(NamedTuple):
    """A collection whose engine is loaded."""

    shard: engine.EdgeShard
    dim: int
    sparse: bool
    names: Names


class EdgeStore:
    """A directory of collections, open to one process at a time; `Store` documents the methods."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = find_home(Path(directory))
        self.location = f"edge:{self._directory}"
        self._opened: dict[str, OpenCollection] = {}
        # A lock outlives its record: it stays while the collection is closed to be indexed or deleted.
        self._locks: dict[str, int] = {}
        self._guard = threading.Lock()
        self._closed = False

    def collections(self) -> list[str]:
        """Return the names of the collections, sorted."""
        with self._wrapped("list the collections"):
            if not self._directory.exists():
                return []
            paths = [path for path in self._directory.iterdir() if not path.name.startswith(".")]
            return sorted(path.name for path in paths if any((path / name).exists() for name in (SIDECAR, ENGINE_FILE)))

    def create_collection(self, collection: str, dim: int, fingerprint: Mapping[str, Any]) -> None:
        """Create an empty collection with its fingerprint in a sidecar."""
        path = self._path(collection)
        if self._exists(path):
            raise StoreError(f"collection {collection!r} already exists in {self.location}.", "choose another name")
        kept = layout.check_creation(collection, dim, fingerprint)
        with self._wrapped(f"create collection {collection!r}"):
            self._directory.mkdir(parents=True, exist_ok=True)
            self._check_space()
            unfinished = self._directory / f"{UNFINISHED_PREFIX}{uuid.uuid4().hex}"
            try:
                engine.EdgeShard.create(str(unfinished), make_config(dim, is_sparse(kept), read_names(kept))).close()
                self._sweep(unfinished.stat().st_mtime)
                write_sidecar(unfinished, Sidecar(dim, kept))
                unfinished.rename(path)
                sync(self._directory)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise

    def read_fingerprint(self, collection: str) -> dict[str, Any] | None:
        """Return the fingerprint, None if there is no such collection; takes no lock."""
        sidecar = self._read_sidecar(collection)
        return None if sidecar is None else sidecar.fingerprint

    def write_fingerprint(self, collection: str, fingerprint: Mapping[str, Any]) -> None:
        """Replace the sidecar atomically."""
        kept = layout.check_creation(collection, self._open(collection).dim, fingerprint)
        self._change_sidecar(collection, fingerprint=kept)

    def read_recorded(self, collection: str) -> int | None:
        """Return the recorded number of points."""
        sidecar = self._read_sidecar(collection)
        return None if sidecar is None else sidecar.recorded

    def read_models(self, collection: str) -> dict[str, Any]:
        """Return what `write_models` kept; takes no lock."""
        return read_models(self._path(collection))

    def write_models(self, collection: str, models: Mapping[str, Any]) -> None:
        """Write a file beside the sidecar."""
        with self._wrapped(f"write where the models of {collection!r} are"):
            write_models(self._path(collection), layout.check_models(models))

    def read_dim(self, collection: str) -> int:
        """Return the length of the collection's vectors."""
        return self._open(collection).dim

    def read_content_hashes(self, collection: str, passage_ids: Sequence[str]) -> dict[str, str]:
        """Return the content hash of each stored passage; reads no vectors and no texts."""
        shard = self._open(collection).shard
        hashes = {}
        for ids in batched(passage_ids, READ_BATCH):
            by_point = {layout.make_point_id(passage_id): passage_id for passage_id in ids}
            with self._wrapped(f"read collection {collection!r}"):
                records = shard.retrieve(list(by_point), ["content_hash"], False)
            for record in records:
                hashes[by_point[str(record.id)]] = str((record.payload or {}).get("content_hash", ""))
        return hashes

    def upsert(self, collection: str, points: Sequence[AugmentedPassage]) -> None:
        """Check all points, then store and flush them."""
        shard, dim, sparse, names = self._open(collection)
        checked = layout.check_points(points, dim, sparse, names)
        self._check_space()
        records = (
            engine.Point(point_id, make_vectors(point), payload) for point_id, (point, payload) in checked.items()
        )
        with self._wrapped(f"write to collection {collection!r}"):
            for batch in batched(records, UPSERT_BATCH):
                shard.update(engine.UpdateOperation.upsert_points(batch))
            shard.flush()

    def search(
        self, collection: str, vectors: FloatArray, vector_name: str, limit: int, exact: bool = False
    ) -> list[list[ScoredPassage]]:
        """Return for each query vector the `limit` best passages, best first."""
        opened = self._open(collection)
        check_search(vectors, opened.dim, vector_name, limit)
        rescoring = engine.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=layout.OVERSAMPLING)
        params = engine.SearchParams(exact=exact, quantization=rescoring)
        using = opened.names.get(vector_name, vector_name)

        def fetch(batch: Sequence[FloatArray], count: int) -> list[list[Hit]]:
            nearest = [engine.Query.Nearest(vector.tolist(), using=using) for vector in batch]
            return self._fetch(collection, nearest, count, params)

        return search_in_batches(fetch, vectors, limit, SEARCH_BATCH, partial(read_hit, names=opened.names))

    def search_terms(self, collection: str, terms: Sequence[Sequence[int]], limit: int) -> list[list[ScoredPassage]]:
        """Return for each query's terms the `limit` best passages, best first."""
        opened = self._open(collection)
        check_term_search(collection, opened.sparse, limit)

        def fetch(batch: Sequence[Sequence[int]], count: int) -> list[list[Hit]]:
            vectors = (engine.SparseVector(list(ids), [1.0] * len(ids)) for ids in batch)
            nearest = [engine.Query.Nearest(vector, using=TERMS_VECTOR) for vector in vectors]
            return self._fetch(collection, nearest, count)

        return search_terms_in_batches(fetch, terms, limit, SEARCH_BATCH, partial(read_hit, names=opened.names))

    def read_points(self, collection: str, passage_ids: Sequence[str]) -> dict[str, AugmentedPassage]:
        """Return each stored passage with its vectors."""
        shard, _, sparse, names = self._open(collection)
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
        _, _, sparse, names = self._open(collection)
        for record in self._scroll(collection, SCROLL_BATCH, True, layout.list_vectors(sparse, names)):
            yield layout.read_point(record.payload or {}, record.vector, sparse, names)

    def scroll_stored(self, collection: str) -> Iterator[StoredPassage]:
        """Yield what made each point, a few at a time."""
        for record in self._scroll(collection, READ_BATCH, list(StoredPassage._fields), False):
            yield layout.read_stored_passage(record.payload or {})

    def inspect(self, collection: str) -> Iterator[Inspected]:
        """Inspect every point, a few at a time."""
        for batch in batched(self._scroll(collection, SCROLL_BATCH, False, False), SCROLL_BATCH):
            yield from self._inspect(collection, [record.id for record in batch])

    def delete(self, collection: str, passage_ids: Sequence[str]) -> None:
        """Delete the points and flush."""
        shard = self._open(collection).shard
        recorded = self.read_recorded(collection)
        if recorded is not None:
            # First: a kill in between must not look like a loss.
            self._change_sidecar(collection, recorded=max(0, recorded - len(passage_ids)))
        with self._wrapped(f"delete from collection {collection!r}"):
            for ids in batched(map(layout.make_point_id, passage_ids), READ_BATCH):
                shard.update(engine.UpdateOperation.delete_points([*ids]))
            shard.flush()
        if recorded is not None and (counted := self.count(collection)) > recorded - len(passage_ids):
            self._change_sidecar(collection, recorded=counted)

    def delete_collection(self, collection: str) -> None:
        """Rename the collection out of sight, then remove it."""
        # Opening takes the lock, which keeps other processes out.
        self._open(collection)
        self._close_shard(collection)
        removed = self._directory / f"{UNFINISHED_PREFIX}{uuid.uuid4().hex}"
        with self._wrapped(f"delete collection {collection!r}"):
            path = self._path(collection)
            # Of a symbolic link the link goes, too, whatever it leads to.
            folder = path.resolve()
            if path.is_symlink():
                path.unlink()
                folder.rename(removed := folder.with_name(removed.name))
            else:
                path.rename(removed)
            sync(self._directory)
            shutil.rmtree(removed)
            release_lock(self._locks.pop(collection))

    def read_sharding(self, _collection: str) -> Sharding:
        """Return nothing: the engine has no nodes."""
        return Sharding()

    def count(self, collection: str) -> int:
        """Return the exact number of points."""
        shard = self._open(collection).shard
        with self._wrapped(f"count collection {collection!r}"):
            return shard.count(engine.CountRequest(exact=True))

    def is_paused(self, collection: str) -> bool:
        """Return False: the embedded engine indexes only when asked to."""
        return False

    def read_aliases(self) -> None:
        """Return None: the engine has no aliases."""

    def switch_alias(self, alias: str, collection: str) -> None:
        """Raise a StoreError: the engine has no aliases."""
        cure = "use a Qdrant server, or search the collection by its own name"
        raise StoreError(f"{self.location} has no aliases, so {alias!r} cannot name {collection!r}.", cure)

    def create_snapshot(self, collection: str) -> None:
        """Return None: the owner of a directory can copy it."""

    @contextmanager
    def bulk_load(self, collection: str, fast: bool) -> Iterator[None]:
        """Record the number of points at the end; the index is built only by `optimise`."""
        self._open(collection)
        yield
        self._change_sidecar(collection, recorded=self.count(collection))

    def optimise(self, collection: str, above: int = 0) -> Iterator[Indexing]:
        """Index in a child process, with the collection closed here meanwhile."""
        if self.count(collection) > above:
            self._close_shard(collection)
            yield from build_index(self._path(collection))

    def quantise(self, collection: str) -> None:
        """Write the setting permanently into the engine's configuration."""
        _, dim, sparse, names = self._open(collection)
        config = make_config(dim, sparse, names, quantised=True)
        self._close_shard(collection)
        with self._wrapped(f"quantise collection {collection!r}"):
            engine.EdgeShard.load(str(self._path(collection)), config).close()

    def __enter__(self) -> EdgeStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every collection and release its lock."""
        with self._guard, self._wrapped("close the store"):
            self._closed = True
            while self._opened:
                self._opened.popitem()[1].shard.close()
            while self._locks:
                release_lock(self._locks.popitem()[1])

    def _fetch(
        self,
        collection: str,
        queries: Sequence[engine.Query],
        count: int,
        params: engine.SearchParams | None = None,
    ) -> list[list[Hit]]:
        """Return the `count` best hits of each query."""
        shard = self._open(collection).shard
        requests = [
            engine.QueryRequest(limit=count, query=query, params=params, with_payload=False, with_vector=False)
            for query in queries
        ]
        with self._wrapped(f"search collection {collection!r}"):
            answers = shard.query_batch(engine.QueryBatchRequest(requests))
            # Faster than asking for payloads with the hits: a passage found by many queries is read once.
            # The engine builds a new Python object at every access to `hit.id`.
            scored = [[(hit.id, hit.score) for hit in answer] for answer in answers]
            ids = list({point_id for answer in scored for point_id, _ in answer})
            records = {record.id: record for record in shard.retrieve(ids, True, False)}
        return [[Hit(score, records[point]) for point, score in answer] for answer in scored]

    def _inspect(self, collection: str, ids: list[engine.PointId]) -> list[Inspected]:
        """Inspect points; read one by one those that the engine cannot return together."""
        shard, _, sparse, names = self._open(collection)
        try:
            with self._wrapped(f"read collection {collection!r}"):
                records = shard.retrieve(ids, True, layout.list_vectors(sparse, names))
                found = {str(record.id): (record.payload or {}, record.vector) for record in records}
        except StoreError:
            found = {}
        if not found and len(ids) > 1:
            return [inspected for point in ids for inspected in self._inspect(collection, [point])]
        return [
            inspect(point_id, *found[point_id], sparse, names)
            if point_id in found
            else Inspected(point_id, (UNREADABLE,), named=False)
            for point_id in map(str, ids)
        ]

    def _scroll(
        self, collection: str, limit: int, payload: bool | list[str], vectors: bool | list[str]
    ) -> Iterator[engine.Record]:
        shard = self._open(collection).shard
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
            # An empty directory was made by the user beforehand, or is left of a deleted collection.
            return path.exists() and (not path.is_dir() or any(path.iterdir()))

    def _change_sidecar(self, collection: str, **changes: Any) -> None:
        path = self._path(collection)
        with self._wrapped(f"describe collection {collection!r}"):
            before = read_sidecar(path)
            if (after := before._replace(**changes)) != before:
                write_sidecar(path, after)

    def _read_sidecar(self, collection: str) -> Sidecar | None:
        path = self._path(collection)
        if not self._exists(path):
            return None
        if not (path / SIDECAR).exists():
            cure = "name another collection"
            raise ForeignCollectionError(
                f"{path} was not created by xqg: it has no {SIDECAR}. Nothing was changed.", cure
            )
        return read_sidecar(path)

    def _open(self, collection: str) -> OpenCollection:
        with self._guard:
            if self._closed:
                raise StoreError(f"{self.location} was closed.", "open the store again")
            if collection not in self._opened:
                sidecar = self._read_sidecar(collection)
                if sidecar is None:
                    known = ", ".join(self.collections()) or "none"
                    cure = "check the name, or ingest first"
                    raise StoreError(f"no collection {collection!r} in {self.location}, which has: {known}.", cure)
                path, (dim, fingerprint, _) = self._path(collection), sidecar
                with self._wrapped(f"open collection {collection!r}"):
                    if collection not in self._locks:
                        self._locks[collection] = lock_collection(path)
                    try:
                        shape = dim, is_sparse(fingerprint), read_names(fingerprint)
                        self._opened[collection] = OpenCollection(load_shard(path), *shape)
                    except BaseException:
                        release_lock(self._locks.pop(collection))
                        raise
                # Left of an index by a killed child; we hold the lock, so no other process uses it.
                shutil.rmtree(path / ENGINE_SCRATCH, ignore_errors=True)
            return self._opened[collection]

    def _close_shard(self, collection: str) -> None:
        with self._guard, self._wrapped(f"close collection {collection!r}"):
            self._opened.pop(collection).shard.close()

    def _check_space(self) -> None:
        """Raise a StoreError if the disk has less than `SPARE_BYTES` free."""
        free = shutil.disk_usage(self._directory).free
        if free < SPARE_BYTES:
            raise StoreError(
                f"the disk of {self.location} is nearly full: {free >> 20} MiB free, writing safely needs "
                f"{SPARE_BYTES >> 20} MiB.",
                "free space on the disk or move the store, then run the same command again",
            )

    def _sweep(self, now: float) -> None:
        """Remove the unfinished collections of killed processes.

        Args:
            now: seconds by the file system's clock; other machines that write there may have other clocks.
        """
        for path in self._directory.glob(f"{UNFINISHED_PREFIX}*"):
            # Another process may still be writing a younger one.
            if now - path.stat().st_mtime > UNFINISHED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _wrapped(self, action: str) -> Iterator[None]:
        """Turn errors of the engine and the file system into a `StoreError` that names the action."""
        try:
            yield
        except StoreError:
            raise
        except BaseException as error:
            # The engine raises bare Exceptions; its panics are BaseExceptions of a type that cannot be imported.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            cure = "check the disk's free space and the directory's permissions, or restore it from a backup"
            raise StoreError(f"cannot {action} in {self.location}: {error}.", cure) from error
