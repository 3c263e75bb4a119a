"""Collections behind qdrant-client: a server or a cluster, and the client's own local mode.

Knows qdrant-client and what it takes to write safely to a server; the fingerprint is the collection's metadata.
Knows nothing of the embedded engine.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient, models

from xqg_qdrant.errors import InputError, MismatchError, StoreError
from xqg_qdrant.fingerprint import is_sparse, read_layout
from xqg_qdrant.records import (
    TERMS_VECTOR,
    XQG_VECTOR,
    AugmentedPassage,
    FloatArray,
    PayloadLayout,
    ScoredPassage,
    StoredPassage,
)
from xqg_qdrant.stores import points as layout
from xqg_qdrant.stores.points import Names, read_names, rename
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
from xqg_qdrant.stores.server.foreign_points import read_foreign_hit
from xqg_qdrant.stores.server.limits import fit
from xqg_qdrant.stores.server.load import Cluster, ServerLoad, check_sharding
from xqg_qdrant.stores.server.requests import (
    GRPC_PORT,
    GrpcUpserts,
    NotFoundError,
    Wire,
    check_key,
    check_url,
    keep_retry_after,
    read_authorities,
    wait_for_snapshots,
)
from xqg_qdrant.streams import batched

FINGERPRINT_KEY = "xqg_fingerprint"
SCROLL_BATCH = 256
READ_BATCH = 1000
SEARCH_BATCH = 32

REQUEST_SECONDS = 60


class ClientStore:
    """A server, a cluster, or the client's local mode; see `Store` for what the methods promise."""

    def __init__(self, location: str, api_key: str | None = None, sharding: Sharding | None = None) -> None:
        self.location = location
        self._sharding = sharding or Sharding()
        self._remote = location.startswith(("http://", "https://"))
        self._api_key = check_key(api_key) if self._remote else None
        if self._remote:
            check_url(location)
        self._wire = Wire(location, self._api_key, remote=self._remote)
        self._dims: dict[str, int] = {}
        self._sparse: dict[str, bool] = {}
        self._names: dict[str, Names] = {}
        self._layouts: dict[str, PayloadLayout | None] = {}
        self._strict: dict[str, models.StrictModeConfigOutput] = {}
        failed: Exception | None = None
        try:
            self._client = self._connect()
        except Exception as error:
            failed = error
        if failed:  # raised inside of the `except` it would have an exception of the client as its context
            raise self._wire.explain(failed, "open the store")
        self._load = ServerLoad(self._wire, self._client, location)
        self._cluster = Cluster(self._wire, self._client, location)
        self._grpc = GrpcUpserts(self._client, location, REQUEST_SECONDS) if self._remote else None

    def collections(self) -> list[str]:
        """Return the names of the collections, sorted."""
        answer = self._wire.ask("list the collections", self._client.get_collections)
        return sorted(description.name for description in answer.collections)

    def create_collection(self, collection: str, dim: int, fingerprint: Mapping[str, Any]) -> None:
        """Create an empty collection with the fingerprint as its metadata."""
        metadata = {FINGERPRINT_KEY: layout.check_creation(collection, dim, fingerprint)}
        terms = models.SparseVectorParams(modifier=models.Modifier.IDF)
        if self._read_info(collection) is not None:
            raise StoreError(f"collection {collection!r} already exists in {self.location}.", "choose another name.")
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
            # Where only the answer was lost, the second request fails, yet the collection is ours.
            info = self._read_info(collection)
            if info is None or info.config.metadata != metadata:
                raise
        self._prepare(collection)

    def read_fingerprint(self, collection: str) -> dict[str, Any] | None:
        """Return the fingerprint, None where there is no such collection."""
        info = self._read_info(collection)
        return None if info is None else self._read_ours(collection, info)[0]

    def write_fingerprint(self, collection: str, fingerprint: Mapping[str, Any]) -> None:
        """Replace the fingerprint in the collection's metadata; its other keys stay."""
        metadata = {FINGERPRINT_KEY: layout.check_creation(collection, self._read_dim(collection), fingerprint)}
        action = f"write the fingerprint of {collection!r}"
        self._wire.ask(action, self._client.update_collection, collection_name=collection, metadata=metadata)

    def read_dim(self, collection: str) -> int:
        """Return the length of the collection's vectors."""
        return self._read_dim(collection)

    def read_content_hashes(self, collection: str, passage_ids: Sequence[str]) -> dict[str, str]:
        """Return the content hash of each of these passages that is stored; transfers no vector and no text."""
        self._read_dim(collection)
        hashes = {}
        size = fit(READ_BATCH, self._strict[collection].read_rate_limit)
        for ids in batched(passage_ids, size):
            by_point = {layout.make_point_id(passage_id): passage_id for passage_id in ids}
            records = self._wire.ask(
                f"read collection {collection!r}",
                self._client.retrieve,
                collection_name=collection,
                ids=list(by_point),
                with_payload=["content_hash"],
                with_vectors=False,
            )
            for record in records:
                hashes[by_point[str(record.id)]] = str((record.payload or {}).get("content_hash", ""))
        return hashes

    def upsert(self, collection: str, points: Sequence[AugmentedPassage]) -> None:
        """Check all points, then send them in requests that a server accepts; each is acknowledged as applied."""
        dim = self._read_dim(collection)
        checked = layout.check_points(points, dim, self._sparse[collection], self._names[collection])
        self._prepare(collection)
        for batch in limits.split_points(checked, dim, self._strict[collection]):
            result = (self._grpc and self._grpc.try_upsert(collection, batch)) or self._wire.ask(
                f"write to collection {collection!r}",
                self._client.upsert,
                collection_name=collection,
                points=batch,
                wait=True,
            )
            self._check_applied(result, collection)

    def search(
        self, collection: str, vectors: FloatArray, vector_name: str, limit: int, exact: bool = False
    ) -> list[list[ScoredPassage]]:
        """Return for each query vector the `limit` best passages, best first."""
        check_search(vectors, self._read_dim(collection, also_foreign=True), vector_name, limit)
        strict = self._strict[collection]
        limits.check_search(f"collection {collection!r} in {self.location}", strict, limit, exact)
        oversampling = min(layout.OVERSAMPLING, strict.search_max_oversampling or layout.OVERSAMPLING)
        rescoring = models.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=oversampling)
        # The local mode is always exact, and warns of every parameter that it ignores.
        params = models.SearchParams(exact=exact, quantization=rescoring) if self._remote else None

        def fetch(batch: Sequence[FloatArray], count: int) -> list[list[models.ScoredPoint]]:
            return self._fetch(collection, [vector.tolist() for vector in batch], using, count, params)

        names, theirs = self._names[collection], self._layouts[collection]
        using = names.get(vector_name, vector_name)
        read = partial(read_foreign_hit, layout=theirs) if theirs else partial(read_hit, names=names)
        return search_in_batches(fetch, vectors, limit, self._search_batch(collection), read)

    def search_terms(self, collection: str, terms: Sequence[Sequence[int]], limit: int) -> list[list[ScoredPassage]]:
        """Return for each query's terms the `limit` best passages, best first."""
        self._read_dim(collection)
        check_term_search(collection, self._sparse[collection], limit)
        limits.check_search(f"collection {collection!r} in {self.location}", self._strict[collection], limit, False)

        def fetch(batch: Sequence[Sequence[int]], count: int) -> list[list[models.ScoredPoint]]:
            vectors = [models.SparseVector(indices=list(ids), values=[1.0] * len(ids)) for ids in batch]
            return self._fetch(collection, vectors, TERMS_VECTOR, count)

        read = partial(read_hit, names=self._names[collection])
        return search_terms_in_batches(fetch, terms, limit, self._search_batch(collection), read)

    def read_points(self, collection: str, passage_ids: Sequence[str]) -> dict[str, AugmentedPassage]:
        """Return each of these passages that is stored, with its vectors."""
        self._read_dim(collection)
        sparse, names = self._sparse[collection], self._names[collection]
        found = {}
        size = fit(SCROLL_BATCH, self._strict[collection].read_rate_limit)
        for ids in batched(map(layout.make_point_id, passage_ids), size):
            records = self._wire.ask(
                f"read collection {collection!r}",
                self._client.retrieve,
                collection_name=collection,
                ids=ids,
                with_payload=True,
                with_vectors=layout.list_vectors(sparse, names),
            )
            for record in records:
                point = layout.read_point(record.payload or {}, record.vector, sparse, names)
                found[point.passage.passage_id] = point
        return found

    def scroll(self, collection: str) -> Iterator[AugmentedPassage]:
        """Yield every point with its vectors, a few at a time."""
        self._read_dim(collection)
        sparse, names = self._sparse[collection], self._names[collection]
        for record in self._scroll(collection, SCROLL_BATCH, True, layout.list_vectors(sparse, names)):
            yield layout.read_point(record.payload or {}, record.vector, sparse, names)

    def scroll_stored(self, collection: str) -> Iterator[StoredPassage]:
        """Yield what made each point, a few at a time."""
        self._read_dim(collection)
        for record in self._scroll(collection, READ_BATCH, list(StoredPassage._fields), False):
            yield layout.read_stored_passage(record.payload or {})

    def delete(self, collection: str, passage_ids: Sequence[str]) -> None:
        """Delete points in requests that a server accepts; each is acknowledged as applied."""
        self._read_dim(collection)
        size = fit(READ_BATCH, self._strict[collection].write_rate_limit)
        for ids in batched(map(layout.make_point_id, passage_ids), size):
            result = self._wire.ask(
                f"delete from collection {collection!r}",
                self._client.delete,
                collection_name=collection,
                points_selector=models.PointIdsList(points=list(ids)),
                wait=True,
            )
            self._check_applied(result, collection)

    def delete_collection(self, collection: str) -> None:
        """Delete the collection, once it is known to be one of ours."""
        self._read_dim(collection)
        if behind := self._cluster.read_aliases().get(collection):
            cure = f"delete the collection by its own name: --collection {behind}"
            raise InputError(f"{collection!r} in {self.location} is an alias of collection {behind!r}.", cure)
        action = f"delete collection {collection!r}"
        # Where only the answer was lost, the second request finds nothing: what counts is that it is gone.
        self._wire.ask(action, self._client.delete_collection, collection_name=collection)
        del self._dims[collection]
        self._load.forget(collection)
        if self._read_info(collection) is not None:
            raise StoreError(f"cannot {action} in {self.location}: it is still there.", "try again.")

    def count(self, collection: str) -> int:
        """Return the exact number of points."""
        self._read_dim(collection, also_foreign=True)
        if self._strict[collection].search_allow_exact is False:  # forbids exact counts as well
            return sum(1 for _ in self._scroll(collection, READ_BATCH, False, False))
        action = f"count collection {collection!r}"
        return self._wire.ask(action, self._client.count, collection_name=collection, exact=True).count

    def read_aliases(self) -> dict[str, str]:
        """Return the collection that each alias names."""
        return self._cluster.read_aliases()

    def switch_alias(self, alias: str, collection: str) -> None:
        """Have an alias name this collection: both steps of it are one request."""
        layout.check_collection_name(alias)
        self._read_dim(collection)
        self._cluster.switch_alias(alias, collection)

    def create_snapshot(self, collection: str) -> Snapshot | None:
        """Have the server keep the collection; the local mode cannot."""
        self._read_dim(collection)
        return self._cluster.create_snapshot(collection) if self._remote else None

    def optimise(self, collection: str, above: int = 0) -> Iterator[Indexing]:
        """Wait until the server, which indexes by itself, has done so; the local mode has no index."""
        self._read_dim(collection)
        if self._remote:
            self._load.resume(collection)
            if self.count(collection) > above:
                yield from self._load.watch(collection)

    @contextmanager
    def bulk_load(self, collection: str, fast: bool) -> Iterator[None]:
        """Keep the server from indexing what is not there yet; the local mode has no index."""
        self._read_dim(collection)
        self._prepare(collection)
        # What points that come slowly save is not worth slow searches meanwhile.
        if self._remote and fast and self.count(collection) == 0:
            with self._load.paused(collection):
                yield
        else:
            yield

    def quantise(self, collection: str) -> None:
        """Tell the server, which makes the codes by itself; the local mode takes no notice."""
        self._read_dim(collection)
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

    def _check_applied(self, result: models.UpdateResult, collection: str) -> None:
        if result.status != models.UpdateStatus.COMPLETED:
            cure = "run the same again later, what is sent twice is done once"
            raise StoreError(f"{self.location} took a change of {collection!r} but did not apply it.", cure)

    def _search_batch(self, collection: str) -> int:
        strict = self._strict[collection]
        return fit(SEARCH_BATCH, strict.search_max_batchsize, strict.read_rate_limit)

    def _fetch(
        self,
        collection: str,
        queries: Sequence[list[float] | models.SparseVector],
        vector_name: str,
        count: int,
        params: models.SearchParams | None = None,
    ) -> list[list[models.ScoredPoint]]:
        """Return the `count` best points of each query."""
        answers = self._wire.ask(
            f"search collection {collection!r}",
            self._client.query_batch_points,
            collection_name=collection,
            requests=[
                models.QueryRequest(
                    query=query,
                    using=vector_name,
                    limit=fit(count, self._strict[collection].max_query_limit),
                    with_payload=True,
                    params=params,
                )
                for query in queries
            ],
        )
        return [answer.points for answer in answers]

    def _scroll(
        self, collection: str, limit: int, payload: models.WithPayloadInterface, vectors: bool | list[str]
    ) -> Iterator[models.Record]:
        self._read_dim(collection, also_foreign=True)
        limit = fit(limit, self._strict[collection].max_query_limit)
        offset = None
        while True:
            records, offset = self._wire.ask(
                f"read collection {collection!r}",
                self._client.scroll,
                collection_name=collection,
                limit=limit,
                offset=offset,
                with_payload=payload,
                with_vectors=vectors,
            )
            yield from records
            if offset is None:
                return

    def _connect(self) -> QdrantClient:
        if self._remote:
            with warnings.catch_warnings():
                # Whether a key may travel unencrypted is for the command line to say.
                warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
                # The client's own check of versions needs a thread and a connection before anything was asked.
                client = QdrantClient(
                    url=self.location,
                    api_key=self._api_key,
                    timeout=REQUEST_SECONDS,
                    check_compatibility=False,
                    grpc_port=GRPC_PORT,
                    grpc_options=read_authorities(),
                )
            client.http.client.add_middleware(keep_retry_after)
            client.http.client.add_middleware(wait_for_snapshots)
            return client
        if self.location == ":memory:":
            return QdrantClient(location=":memory:")
        directory = Path(self.location.removeprefix("local:")).expanduser()
        return QdrantClient(path=str(directory), force_disable_check_same_thread=True)

    def _prepare(self, collection: str) -> None:
        if self._remote:
            self._load.prepare(collection, self._read_dim(collection))

    def _read_info(self, collection: str) -> models.CollectionInfo | None:
        layout.check_collection_name(collection)
        action = f"look for collection {collection!r}"
        # Only the server's own 404 can be told from other failures, and only its description follows an alias.
        if not self._remote and not self._wire.ask(action, self._client.collection_exists, collection_name=collection):
            return None
        try:
            return self._wire.ask(action, self._client.get_collection, collection_name=collection)
        except NotFoundError:
            return None

    def _read_ours(self, collection: str, info: models.CollectionInfo) -> tuple[dict[str, Any], int]:
        """Return the fingerprint and the vectors' length of a collection that xqg created."""
        fingerprint = (info.config.metadata or {}).get(FINGERPRINT_KEY)
        vectors = info.config.params.vectors
        if isinstance(fingerprint, dict) and isinstance(vectors, dict):
            ours = rename(vectors, read_names(fingerprint))
            if set(layout.VECTOR_NAMES) <= set(ours):
                check_sharding(f"collection {collection!r} in {self.location}", info, self._sharding)
                return fingerprint, ours[XQG_VECTOR].size
        cure = "choose another collection name"
        raise MismatchError(
            f"collection {collection!r} in {self.location} was not created by xqg. Nothing was changed.", cure
        )

    def _read_dim(self, collection: str, also_foreign: bool = False) -> int:
        """Return the length of a collection's vectors, asking for it once.

        Makes sure that the collection is ours, or, where `also_foreign`, that at least the vectors are.
        """
        if collection not in self._dims:
            info = self._require_info(collection)
            fingerprint, self._dims[collection] = self._read_ours(collection, info)
            self._layouts[collection], self._sparse[collection] = read_layout(fingerprint), is_sparse(fingerprint)
            self._names[collection] = read_names(fingerprint)
            self._strict[collection] = limits.read_strict_mode(info)
        if self._layouts[collection] and not also_foreign:
            cure = "use the program that it belongs to, or ingest its passages into a collection of xqg's own"
            raise MismatchError(
                f"collection {collection!r} in {self.location} belongs to another program; xqg only searches it and "
                f"adds to it, with query, evaluate and augment. Nothing was changed.",
                cure,
            )
        return self._dims[collection]

    def _require_info(self, collection: str) -> models.CollectionInfo:
        info = self._read_info(collection)
        if info is None:
            known = self._wire.hide(", ".join(self.collections())) or "none"
            cure = "check the name, or ingest first"
            raise StoreError(f"no collection {collection!r} in {self.location}, which has: {known}.", cure)
        return info
