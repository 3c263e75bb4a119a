"""Collections behind qdrant-client: on a server or a cluster, or in the client's local mode.

The fingerprint is stored in the collection's metadata.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import orjson
from qdrant_client import QdrantClient, models

from xqg_qdrant.errors import ForeignCollectionError, InputError, MismatchError, StoreError, XqgError
from xqg_qdrant.fingerprint import is_sparse
from xqg_qdrant.records import TERMS_VECTOR, AugmentedPassage, FloatArray, ScoredPassage, StoredPassage
from xqg_qdrant.secrets import check_key
from xqg_qdrant.stores import is_server
from xqg_qdrant.stores import points as layout
from xqg_qdrant.stores.inspection import Inspected, inspect
from xqg_qdrant.stores.points import read_names, rename
from xqg_qdrant.stores.protocol import (
    Indexing,
    Sharding,
    Snapshot,
    check_search,
    check_term_search,
    read_hit,
    search_in_batches,
    search_terms_in_batches,
)
from xqg_qdrant.stores.server import limits
from xqg_qdrant.stores.server.answers import (
    Record,
    check_answers,
    check_asked,
    check_count,
    check_page,
    read_page,
    read_records,
    read_results,
)
from xqg_qdrant.stores.server.foreign_points import FOREIGN_KEY, inspect_added, read_foreign_hit
from xqg_qdrant.stores.server.limits import FINGERPRINT_KEY, MODELS_KEY, OpenCollection, describe_collection, fit
from xqg_qdrant.stores.server.load import Cluster, ServerLoad, check_sharding, find_sharding, is_paused, read_recorded
from xqg_qdrant.stores.server.requests import NotFoundError, Parts, TooLargeError, Wire, check_url, connect, post
from xqg_qdrant.streams import batched

SCROLL_BATCH = 256
READ_BATCH = 1000
REQUEST_SECONDS = 60
# Waits before reading a point back; a replica may be a little behind.
READ_BACK_SECONDS = (0.0, 0.5, 2.0)


class ClientStore:
    """A server, a cluster, or the client's local mode; `Store` documents the methods."""

    def __init__(
        self,
        location: str,
        api_key: str | None = None,
        sharding: Sharding | None = None,
        patience: float = math.inf,
    ) -> None:
        self.location = location
        self._patience = patience
        self._sharding = sharding or Sharding()
        self._remote = is_server(location)
        self._api_key = check_key(api_key, "QDRANT_API_KEY") if self._remote else None
        if self._remote:
            check_url(location)
        self._wire = Wire(location, self._api_key, remote=self._remote, patience=patience)
        self._opened: dict[str, OpenCollection] = {}
        self._writes, self._searches = Parts(), Parts()
        self._kept: set[str] = set()
        failed: Exception | None = None
        try:
            self._client = self._connect()
        except XqgError:
            raise
        except Exception as error:
            failed = error
        if failed:  # raised inside the `except`, it would carry the client's exception as its context
            raise self._wire.explain(failed, "open the store")
        self._load = ServerLoad(self._wire, self._client, location)
        self._cluster = Cluster(self._wire, self._client, location)

    def assume_reached(self) -> None:
        """Retry even the first request for as long as any other: another process has reached the server."""
        self._wire.assume_reached()

    def collections(self) -> list[str]:
        """Return the names of the collections, sorted."""
        answer = self._wire.ask("list the collections", self._client.get_collections)
        return sorted(description.name for description in answer.collections)

    def create_collection(self, collection: str, dim: int, fingerprint: Mapping[str, Any]) -> None:
        """Create an empty collection with the fingerprint as its metadata."""
        metadata = {FINGERPRINT_KEY: layout.check_creation(collection, dim, fingerprint)}
        terms = models.SparseVectorParams(modifier=models.Modifier.IDF)
        if self._read_info(collection) is not None:
            raise StoreError(f"collection {collection!r} already exists in {self.location}.", "choose another name")
        if self._remote:
            self._load.require_version("fingerprints", (1, 16))
            self._cluster.check_nodes(self._sharding)
        action = f"create collection {collection!r}"
        vector = models.VectorParams(size=dim, distance=models.Distance.DOT)
        try:
            self._wire.ask(
                action,
                self._client.create_collection,
                collection_name=collection,
                vectors_config=rename(dict.fromkeys(layout.VECTOR_NAMES, vector), read_names(fingerprint)),
                sparse_vectors_config={TERMS_VECTOR: terms} if is_sparse(fingerprint) else None,
                metadata=metadata,
                **self._sharding._asdict(),
            )
        except StoreError:
            # If only the answer was lost, the second request fails although the collection is ours.
            info = self._read_info(collection)
            if info is None or info.config.metadata != metadata:
                raise
        self._prepare(collection)

    def read_fingerprint(self, collection: str) -> dict[str, Any] | None:
        """Return the fingerprint, None if there is no such collection."""
        info = self._read_info(collection)
        return None if info is None else self._read_ours(collection, info)[0]

    def write_fingerprint(self, collection: str, fingerprint: Mapping[str, Any]) -> None:
        """Replace the fingerprint in the collection's metadata; keep its other keys."""
        metadata = {FINGERPRINT_KEY: layout.check_creation(collection, self._open(collection).dim, fingerprint)}
        action = f"write the fingerprint of {collection!r}"
        self._wire.ask(action, self._client.update_collection, collection_name=collection, metadata=metadata)

    def read_recorded(self, collection: str) -> int | None:
        """Return the recorded number of points, from the collection's metadata."""
        return read_recorded(self._require_info(collection))

    def read_models(self, collection: str) -> dict[str, Any]:
        """Return what the collection's metadata keeps on the models."""
        found = (self._require_info(collection).config.metadata or {}).get(MODELS_KEY)
        return found if isinstance(found, dict) else {}

    def write_models(self, collection: str, models: Mapping[str, Any]) -> None:
        """Replace what the collection's metadata keeps on the models; keep its other keys."""
        metadata = {MODELS_KEY: layout.check_models(models)}
        action = f"write where the models of {collection!r} are"
        self._wire.ask(action, self._client.update_collection, collection_name=collection, metadata=metadata)

    def read_dim(self, collection: str) -> int:
        """Return the length of the collection's vectors."""
        return self._open(collection).dim

    def read_sharding(self, collection: str) -> Sharding:
        """Return how a server spreads the collection; nothing in local mode."""
        return find_sharding(self._require_info(collection)) if self._remote else Sharding()

    def read_content_hashes(self, collection: str, passage_ids: Sequence[str]) -> dict[str, str]:
        """Return the content hash of each stored passage; transfers no vectors and no texts."""
        hashes = {}
        size = fit(READ_BATCH, self._open(collection).strict.read_rate_limit)
        for ids in batched(passage_ids, size):
            by_point = {layout.make_point_id(passage_id): passage_id for passage_id in ids}
            for record in self._retrieve(collection, list(by_point), ["content_hash"], False):
                hashes[by_point[str(record.id)]] = str((record.payload or {}).get("content_hash", ""))
        return hashes

    def upsert(self, collection: str, points: Sequence[AugmentedPassage]) -> None:
        """Check all points, then send them in requests within the server's limits and wait until each is applied."""
        opened = self._open(collection)
        checked = layout.check_points(points, opened.dim, opened.sparse, opened.names)
        self._prepare(collection)

        def send(part: Sequence[models.PointStruct]) -> models.UpdateResult:
            action = f"write to collection {collection!r}"
            return self._wire.ask(action, self._client.upsert, collection_name=collection, points=[*part], wait=True)

        def name(point: models.PointStruct) -> str:
            return f"passage {checked[str(point.id)][0].passage.passage_id!r}"

        for batch in limits.split_points(checked, opened.dim, opened.strict):
            for result in self._writes.send(batch, send, name):
                self._check_applied(result, collection)
            self._check_kept(collection, batch[-1])

    def search(
        self, collection: str, vectors: FloatArray, vector_name: str, limit: int, exact: bool = False
    ) -> list[list[ScoredPassage]]:
        """Return for each query vector the `limit` best passages, best first."""
        opened = self._open(collection, also_foreign=True)
        check_search(vectors, opened.dim, vector_name, limit)
        limits.check_search(f"collection {collection!r} in {self.location}", opened.strict, limit, exact)
        # The local mode is always exact, and warns about every parameter that it ignores.
        params = limits.make_search_params(opened.strict, exact) if self._remote else None

        def fetch(batch: Sequence[FloatArray], count: int) -> list[list[models.ScoredPoint]]:
            return self._fetch(collection, [vector.tolist() for vector in batch], using, count, params)

        using = opened.names.get(vector_name, vector_name)
        theirs = opened.layout
        read = partial(read_foreign_hit, layout=theirs) if theirs else partial(read_hit, names=opened.names)
        return search_in_batches(fetch, vectors, limit, limits.fit_searches(opened.strict), read)

    def search_terms(self, collection: str, terms: Sequence[Sequence[int]], limit: int) -> list[list[ScoredPassage]]:
        """Return for each query's terms the `limit` best passages, best first."""
        opened = self._open(collection)
        check_term_search(collection, opened.sparse, limit)
        limits.check_search(f"collection {collection!r} in {self.location}", opened.strict, limit, False)

        def fetch(batch: Sequence[Sequence[int]], count: int) -> list[list[models.ScoredPoint]]:
            vectors = [models.SparseVector(indices=list(ids), values=[1.0] * len(ids)) for ids in batch]
            return self._fetch(collection, vectors, TERMS_VECTOR, count)

        read = partial(read_hit, names=opened.names)
        return search_terms_in_batches(fetch, terms, limit, limits.fit_searches(opened.strict), read)

    def read_points(self, collection: str, passage_ids: Sequence[str]) -> dict[str, AugmentedPassage]:
        """Return each stored passage with its vectors."""
        opened = self._open(collection)
        names = layout.list_vectors(opened.sparse, opened.names)
        found = {}
        size = fit(SCROLL_BATCH, opened.strict.read_rate_limit)
        for ids in batched(map(layout.make_point_id, passage_ids), size):
            for record in self._retrieve(collection, ids, True, names):
                point = layout.read_point(record.payload or {}, record.vector, opened.sparse, opened.names)
                found[point.passage.passage_id] = point
        return found

    def scroll(self, collection: str) -> Iterator[AugmentedPassage]:
        """Yield every point with its vectors, a few at a time."""
        opened = self._open(collection)
        names = layout.list_vectors(opened.sparse, opened.names)
        for record in self._scroll(collection, SCROLL_BATCH, True, names):
            yield layout.read_point(record.payload or {}, record.vector, opened.sparse, opened.names)

    def scroll_stored(self, collection: str) -> Iterator[StoredPassage]:
        """Yield what made each point, a few at a time."""
        self._open(collection)
        for record in self._scroll(collection, READ_BATCH, list(StoredPassage._fields), False):
            yield layout.read_stored_passage(record.payload or {})

    def inspect(self, collection: str) -> Iterator[Inspected]:
        """Inspect every point, a few at a time; of another program's points, what was added to them."""
        opened = self._open(collection, also_foreign=True)
        names = layout.list_vectors(opened.sparse, opened.names)
        payload: bool | list[str] = True
        if opened.layout:
            payload, names = [FOREIGN_KEY], limits.list_kept(self._require_info(collection))

        def look(record: Record) -> Inspected:
            found = str(record.id), record.payload or {}, record.vector
            return inspect_added(*found, names) if opened.layout else inspect(*found, opened.sparse, opened.names)

        size = fit(SCROLL_BATCH, opened.strict.read_rate_limit)
        for records in batched(self._scroll(collection, SCROLL_BATCH, payload, names), size):
            found = [(record, look(record)) for record in records]
            yield from (inspected for _, inspected in found if not inspected.faults)
            # Written between the reading of the payload and that of the vectors, a point looks damaged only once.
            if doubtful := [record.id for record, inspected in found if inspected.faults]:
                yield from map(look, self._retrieve(collection, doubtful, payload, names))

    def delete(self, collection: str, passage_ids: Sequence[str]) -> None:
        """Delete points in requests within the server's limits and wait until each is applied."""
        size = fit(READ_BATCH, self._open(collection).strict.write_rate_limit)
        # First: a kill in between must not look like a loss.
        lowered = self._load.lower_recorded(collection, len(passage_ids))
        for ids in batched(map(layout.make_point_id, passage_ids), size):
            result = self._wire.ask(
                f"delete from collection {collection!r}",
                self._client.delete,
                collection_name=collection,
                points_selector=models.PointIdsList(points=list(ids)),
                wait=True,
            )
            self._check_applied(result, collection)
        if lowered and self._may_count(collection):
            self._load.record(collection, partial(self.count, collection))

    def delete_collection(self, collection: str) -> None:
        """Delete the collection after checking that it is one of ours."""
        self._open(collection)
        if behind := self._cluster.read_aliases().get(collection):
            cure = f"delete the collection by its own name (--collection {behind})"
            raise InputError(f"{collection!r} in {self.location} is an alias of collection {behind!r}.", cure)
        action = f"delete collection {collection!r}"
        # If only the answer was lost, the second request finds nothing; all that counts is that it is gone.
        self._wire.ask(action, self._client.delete_collection, collection_name=collection)
        del self._opened[collection]
        self._load.forget(collection)
        if self._read_info(collection) is not None:
            raise StoreError(f"cannot {action} in {self.location}: it is still there.", "run the same command again")

    def count(self, collection: str) -> int:
        """Return the exact number of points."""
        # This limit forbids exact counts as well.
        if self._open(collection, also_foreign=True).strict.search_allow_exact is False:
            return sum(1 for _ in self._scroll(collection, READ_BATCH, False, False))
        action = f"count collection {collection!r}"
        answer = self._wire.ask(action, self._client.count, collection_name=collection, exact=True)
        return check_count(answer.count, self.location)

    def read_aliases(self) -> dict[str, str]:
        """Return the collection that each alias names."""
        return self._cluster.read_aliases()

    def switch_alias(self, alias: str, collection: str) -> None:
        """Point an alias at this collection in one atomic request."""
        layout.check_collection_name(alias)
        self._open(collection)
        self._cluster.switch_alias(alias, collection)

    def create_snapshot(self, collection: str) -> Snapshot | None:
        """Let the server take a snapshot of the collection; return None in the local mode."""
        self._open(collection)
        return self._cluster.create_snapshot(collection) if self._remote else None

    def optimise(self, collection: str, above: int = 0) -> Iterator[Indexing]:
        """Wait until the server, which indexes by itself, is done; the local mode has no index."""
        self._open(collection)
        if self._remote:
            self._load.resume(collection)
            if self.count(collection) > above:
                yield from self._load.watch(collection)

    @contextmanager
    def bulk_load(self, collection: str, fast: bool) -> Iterator[None]:
        """Pause the server's indexing while an empty collection is filled; the local mode has no index."""
        self._open(collection)
        self._prepare(collection)
        # With points that arrive slowly the gain is not worth slow searches meanwhile.
        pauses = self._remote and fast and self.count(collection) == 0
        with self._load.paused(collection) if pauses else nullcontext():
            yield
        self._record(collection)

    def is_paused(self, collection: str) -> bool:
        """Return whether `bulk_load` paused the indexing, here or in another process."""
        return self._remote and is_paused(self._require_info(collection))

    def quantise(self, collection: str) -> None:
        """Let the server build the codes; the local mode ignores the setting."""
        self._open(collection)
        config = models.ScalarQuantizationConfig(type=models.ScalarType.INT8)
        self._wire.ask(
            f"quantise collection {collection!r}",
            self._client.update_collection,
            collection_name=collection,
            quantization_config=models.ScalarQuantization(scalar=config),
        )

    def __enter__(self) -> ClientStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections, or unlock the directory."""
        self._client.close()

    def _update(self, collection: str, operations: Sequence[Mapping[str, Any]]) -> list[models.UpdateResult]:
        """Send changes of points, which hold JSON values and float32 arrays, in one request."""
        changes = {"operations": operations}
        if self._remote:
            return read_results(post(self._client, collection, "points/batch?wait=true", changes))
        content = orjson.dumps(changes, option=orjson.OPT_SERIALIZE_NUMPY)
        parsed = models.UpdateOperations.model_validate_json(content).operations
        return self._client.batch_update_points(collection, parsed, wait=True)

    def _check_applied(self, result: models.UpdateResult, collection: str) -> None:
        if result.status != models.UpdateStatus.COMPLETED:
            cure = "run the same command again later; repeated writes are harmless"
            raise StoreError(f"{self.location} accepted a change of {collection!r} but did not apply it.", cure)

    def _record(self, collection: str) -> None:
        """Record the number of points after a load."""
        if self._read_info(collection) is not None and self._may_count(collection):
            self._load.record(collection, partial(self.count, collection))

    def _may_count(self, collection: str) -> bool:
        """Return whether the server's limits allow exact counts."""
        return self._open(collection).strict.search_allow_exact is not False

    def _check_kept(self, collection: str, point: models.PointStruct) -> None:
        """Read the first point back that this store writes to a collection.

        Raises:
            StoreError: the server says that it stored the point, and did not.
        """
        wanted = (point.payload or {})["content_hash"]
        for wait in () if collection in self._kept else READ_BACK_SECONDS:
            time.sleep(wait)
            records = self._retrieve(collection, [point.id], ["content_hash"], False)
            if [(record.payload or {}).get("content_hash") for record in records] == [wanted]:
                self._kept.add(collection)
                return
        if collection not in self._kept:
            what = f"{self.location} says that it stored points of {collection!r}, but does not return them."
            raise StoreError(what, "look at the server's log and its disk, and check the proxies in front of it")

    def _fetch(
        self,
        collection: str,
        queries: Sequence[list[float] | models.SparseVector],
        vector_name: str,
        count: int,
        params: models.SearchParams | None = None,
    ) -> list[list[models.ScoredPoint]]:
        """Return the `count` best points of each query."""
        limit = fit(count, self._open(collection, also_foreign=True).strict.max_query_limit)
        using = vector_name or None  # the unnamed vector
        requests = [
            models.QueryRequest(query=query, using=using, limit=limit, with_payload=True, params=params)
            for query in queries
        ]

        def send(part: Sequence[models.QueryRequest]) -> list[models.QueryResponse]:
            action = f"search collection {collection!r}"
            return self._wire.ask(action, self._client.query_batch_points, collection_name=collection, requests=[*part])

        answers = self._searches.send(requests, send, lambda _: "a question's vector")
        found = [answer.points for part in answers for answer in part]
        check_answers(found, len(queries), limit, self.location)
        return found

    def _retrieve(
        self,
        collection: str,
        ids: Sequence[models.ExtendedPointId],
        payload: bool | list[str] | dict[str, Any],
        vectors: bool | list[str],
    ) -> list[Record]:
        def retrieve() -> list[Record]:
            if not self._remote:
                return list_records(self._client.retrieve(collection, ids, select(payload), vectors))
            body = {"ids": [*ids], "with_payload": payload, "with_vector": vectors}
            return read_records(post(self._client, collection, "points", body))

        try:
            records = self._wire.ask(f"read collection {collection!r}", retrieve)
        except TooLargeError:
            if len(ids) == 1:
                raise
            parts = ids[: len(ids) // 2], ids[len(ids) // 2 :]
            return [record for part in parts for record in self._retrieve(collection, part, payload, vectors)]
        check_asked((record.id for record in records), ids, self.location)
        return records

    def _scroll(
        self, collection: str, limit: int, payload: bool | list[str] | dict[str, Any], vectors: bool | list[str]
    ) -> Iterator[Record]:
        for records in self._scroll_pages(collection, limit, payload, vectors):
            yield from records

    def _scroll_pages(
        self, collection: str, limit: int, payload: bool | list[str] | dict[str, Any], vectors: bool | list[str]
    ) -> Iterator[list[Record]]:
        limit = fit(limit, self._open(collection, also_foreign=True).strict.max_query_limit)
        offset, before = None, set[object]()
        while True:
            action = f"read collection {collection!r}"
            try:
                records, offset = self._wire.ask(action, self._read_page, collection, limit, offset, payload, vectors)
            except TooLargeError:
                if limit == 1:
                    raise
                limit //= 2
                continue
            yield records
            if offset is None:
                return
            check_page(len(records), offset, before, self.location)

    def _read_page(
        self,
        collection: str,
        limit: int,
        offset: models.ExtendedPointId | None,
        payload: bool | list[str] | dict[str, Any],
        vectors: bool | list[str],
    ) -> tuple[list[Record], models.ExtendedPointId | None]:
        if self._remote:
            body: dict[str, Any] = {"limit": limit, "with_payload": payload, "with_vector": vectors}
            body |= {} if offset is None else {"offset": offset}
            return read_page(post(self._client, collection, "points/scroll", body))
        options: dict[str, Any] = {"limit": limit, "offset": offset, "with_payload": select(payload)}
        records, following = self._client.scroll(collection, with_vectors=vectors, **options)
        return list_records(records), following

    def _connect(self) -> QdrantClient:
        return connect(self.location, self._api_key, REQUEST_SECONDS, self._patience)

    def _prepare(self, collection: str) -> None:
        if self._remote:
            self._load.prepare(collection, self._open(collection).dim)

    def _read_info(self, collection: str) -> models.CollectionInfo | None:
        layout.check_collection_name(collection)
        action = f"look for collection {collection!r}"
        # Only a server's own 404 is distinct from other failures, and only a server's description follows an alias.
        if not self._remote and not self._wire.ask(action, self._client.collection_exists, collection_name=collection):
            return None
        try:
            return self._wire.ask(action, self._client.get_collection, collection_name=collection)
        except NotFoundError:
            return None

    def _read_ours(self, collection: str, info: models.CollectionInfo) -> tuple[dict[str, Any], int]:
        """Return the fingerprint and the vector dimension of a collection that xqg created.

        Raises:
            MismatchError: xqg did not create it, or it is sharded otherwise than wanted.
        """
        where, ours = f"collection {collection!r} in {self.location}", limits.read_ours(info)
        if ours is None:
            cure = "make it searchable by xqg with xqg augment, or name another collection"
            raise ForeignCollectionError(f"{where} was not created by xqg. Nothing was changed.", cure)
        check_sharding(where, info, self._sharding)
        return ours

    def _open(self, collection: str, also_foreign: bool = False) -> OpenCollection:
        """Return the record of a collection, read from the server once.

        Raises:
            MismatchError: the collection is not ours, or, unless `also_foreign`, only its vectors are.
        """
        if collection not in self._opened:
            info = self._require_info(collection)
            self._opened[collection] = describe_collection(info, *self._read_ours(collection, info))
        opened = self._opened[collection]
        if opened.layout and not also_foreign:
            raise MismatchError(
                f"collection {collection!r} in {self.location} belongs to another program; xqg only searches it and "
                "adds to it, with query, evaluate and augment. Nothing was changed.",
                "use that program, or ingest its passages into a collection of xqg's own",
            )
        return opened

    def _require_info(self, collection: str) -> models.CollectionInfo:
        info = self._read_info(collection)
        if info is None:
            known = self._wire.hide(", ".join(self.collections())) or "none"
            cure = "check the name, or ingest first"
            raise StoreError(f"no collection {collection!r} in {self.location}, which has: {known}.", cure)
        return info


def select(payload: bool | list[str] | dict[str, Any]) -> bool | list[str] | models.PayloadSelectorExclude:
    """Return the fields of a payload to read, as the client takes them."""
    return models.PayloadSelectorExclude(**payload) if isinstance(payload, dict) else payload


def list_records(records: Sequence[models.Record]) -> list[Record]:
    """Return the points of the client's models."""
    return [
        Record(record.id if isinstance(record.id, int) else str(record.id), record.payload, record.vector)
        for record in records
    ]
