"""Collections behind qdrant-client: a server or a cluster, and the client's own local mode.

Knows qdrant-client and what it takes to write safely to a server; the fingerprint is the collection's metadata.
Knows nothing of the embedded engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient, models

from xqg_qdrant.errors import MismatchError, StoreError
from xqg_qdrant.records import XQG_VECTOR, AugmentedPassage, FloatArray, ScoredPassage, StoredPassage
from xqg_qdrant.stores import points as layout
from xqg_qdrant.stores.protocol import Indexing
from xqg_qdrant.stores.wire import NotFoundError, Wire, check_key, check_url

FINGERPRINT_KEY = "xqg_fingerprint"
FIRST_VERSION = (1, 16)  # the first server that keeps a collection's metadata

UPSERT_BATCH = 256
UPSERT_BYTES = 16 * 2**20  # half of what a server takes in one request
FLOAT_BYTES = 24  # the longest float32 in JSON, with its comma
SCROLL_BATCH = 256
READ_BATCH = 1000
SEARCH_BATCH = 32

REQUEST_SECONDS = 60


class ClientStore:
    """A server, a cluster, or the client's local mode; see `Store` for what the methods promise."""

    def __init__(self, location: str, api_key: str | None = None) -> None:
        self.location = location
        self._remote = location.startswith(("http://", "https://"))
        self._api_key = check_key(api_key) if self._remote else None
        if self._remote:
            check_url(location)
        self._wire = Wire(location, self._api_key, remote=self._remote)
        self._dims: dict[str, int] = {}
        try:
            self._client = self._connect()
        except Exception as error:
            raise self._wire.explain(error, "open the store") from error

    def collections(self) -> list[str]:
        """Return the names of the collections, sorted."""
        answer = self._wire.ask("list the collections", self._client.get_collections)
        return sorted(description.name for description in answer.collections)

    def create_collection(self, collection: str, dim: int, fingerprint: Mapping[str, Any]) -> None:
        """Create an empty collection with the fingerprint as its metadata."""
        metadata = {FINGERPRINT_KEY: layout.check_creation(collection, dim, fingerprint)}
        if self._read_info(collection) is not None:
            raise StoreError(f"collection {collection!r} already exists in {self.location}. Cure: choose another name.")
        if self._remote:
            self._check_version()
        action = f"create collection {collection!r}"
        vector = models.VectorParams(size=dim, distance=models.Distance.DOT)
        try:
            self._wire.ask(
                action,
                self._client.create_collection,
                collection_name=collection,
                vectors_config=dict.fromkeys(layout.VECTOR_NAMES, vector),
                metadata=metadata,
            )
        except StoreError:
            # Where only the answer was lost, the second request fails, yet the collection is ours.
            info = self._read_info(collection)
            if info is None or info.config.metadata != metadata:
                raise
        if self._remote:
            self._wire.ask(
                action,
                self._client.create_payload_index,
                collection_name=collection,
                field_name="passage_id",
                field_schema=models.PayloadSchemaType.KEYWORD,
                wait=True,
            )

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
        for ids in layout.batched(passage_ids, READ_BATCH):
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
        checked = layout.check_points(points, dim)
        for batch in _split(checked, dim):
            result = self._wire.ask(
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
        layout.check_search(vectors, self._read_dim(collection), vector_name, limit)
        rescoring = models.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=layout.OVERSAMPLING)
        # The local mode is always exact, and warns of every parameter that it ignores.
        params = models.SearchParams(exact=exact, quantization=rescoring) if self._remote else None

        def fetch(batch: Sequence[FloatArray], count: int) -> list[list[models.ScoredPoint]]:
            answers = self._wire.ask(
                f"search collection {collection!r}",
                self._client.query_batch_points,
                collection_name=collection,
                requests=[
                    models.QueryRequest(
                        query=vector.tolist(), using=vector_name, limit=count, with_payload=True, params=params
                    )
                    for vector in batch
                ],
            )
            return [answer.points for answer in answers]

        return layout.search_in_batches(fetch, vectors, limit, SEARCH_BATCH)

    def read_points(self, collection: str, passage_ids: Sequence[str]) -> dict[str, AugmentedPassage]:
        """Return each of these passages that is stored, with its vectors."""
        self._read_dim(collection)
        found = {}
        for ids in layout.batched(map(layout.make_point_id, passage_ids), SCROLL_BATCH):
            records = self._wire.ask(
                f"read collection {collection!r}",
                self._client.retrieve,
                collection_name=collection,
                ids=ids,
                with_payload=True,
                with_vectors=list(layout.VECTOR_NAMES),
            )
            for record in records:
                point = layout.read_point(record.payload or {}, record.vector)
                found[point.passage.passage_id] = point
        return found

    def scroll(self, collection: str) -> Iterator[AugmentedPassage]:
        """Yield every point with its vectors, a few at a time."""
        for record in self._scroll(collection, SCROLL_BATCH, True, list(layout.VECTOR_NAMES)):
            yield layout.read_point(record.payload or {}, record.vector)

    def scroll_stored(self, collection: str) -> Iterator[StoredPassage]:
        """Yield what made each point, a few at a time."""
        for record in self._scroll(collection, READ_BATCH, list(StoredPassage._fields), False):
            yield layout.read_stored_passage(record.payload or {})

    def delete(self, collection: str, passage_ids: Sequence[str]) -> None:
        """Delete points in requests that a server accepts; each is acknowledged as applied."""
        self._read_dim(collection)
        for ids in layout.batched(map(layout.make_point_id, passage_ids), READ_BATCH):
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
        action = f"delete collection {collection!r}"
        # Where only the answer was lost, the second request finds nothing: what counts is that it is gone.
        self._wire.ask(action, self._client.delete_collection, collection_name=collection)
        del self._dims[collection]
        if self._read_info(collection) is not None:
            raise StoreError(f"cannot {action} in {self.location}: it is still there. Cure: try again.")

    def count(self, collection: str) -> int:
        """Return the exact number of points."""
        self._read_dim(collection)
        action = f"count collection {collection!r}"
        return self._wire.ask(action, self._client.count, collection_name=collection, exact=True).count

    def optimise(self, collection: str, above: int = 0) -> Iterator[Indexing]:
        """Do nothing: a server does it by itself, and the local mode has no index."""
        self._read_dim(collection)
        yield from ()

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

    def close(self) -> None:
        """Close the connections, or unlock the directory."""
        self._client.close()

    def _check_applied(self, result: models.UpdateResult, collection: str) -> None:
        if result.status != models.UpdateStatus.COMPLETED:
            cure = "Cure: run the same again later, what is sent twice is done once"
            raise StoreError(f"{self.location} took a change of {collection!r} but did not apply it. {cure}.")

    def _scroll(
        self, collection: str, limit: int, payload: bool | list[str], vectors: bool | list[str]
    ) -> Iterator[models.Record]:
        self._read_dim(collection)
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
            # The client's own check of versions needs a thread and a connection before anything was asked.
            return QdrantClient(
                url=self.location, api_key=self._api_key, timeout=REQUEST_SECONDS, check_compatibility=False
            )
        if self.location == ":memory:":
            return QdrantClient(location=":memory:")
        directory = Path(self.location.removeprefix("local:")).expanduser()
        return QdrantClient(path=str(directory), force_disable_check_same_thread=True)

    def _check_version(self) -> None:
        version = self._wire.ask("read the version", self._client.info).version
        numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
        if numbers < FIRST_VERSION:
            cure = "Cure: upgrade the server, or use the embedded store edge:DIR"
            raise StoreError(f"{self.location} is Qdrant {version}, which keeps no fingerprint; 1.16 does. {cure}.")

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
        if isinstance(fingerprint, dict) and isinstance(vectors, dict) and set(layout.VECTOR_NAMES) <= set(vectors):
            return fingerprint, vectors[XQG_VECTOR].size
        cure = "Cure: choose another collection name"
        raise MismatchError(
            f"collection {collection!r} in {self.location} was not created by xqg. {cure}. Nothing was changed."
        )

    def _read_dim(self, collection: str) -> int:
        """Return the length of a collection's vectors, asking for it once; makes sure that the collection is ours."""
        if collection not in self._dims:
            info = self._read_info(collection)
            if info is None:
                known = ", ".join(self.collections()) or "none"
                cure = "Cure: check the name, or ingest first"
                raise StoreError(f"no collection {collection!r} in {self.location}, which has: {known}. {cure}.")
            self._dims[collection] = self._read_ours(collection, info)[1]
        return self._dims[collection]


def _split(
    points: Mapping[str, tuple[AugmentedPassage, dict[str, Any]]], dim: int
) -> Iterator[list[models.PointStruct]]:
    """Yield the points in lists that are short and small enough for one request."""
    batch: list[models.PointStruct] = []
    filled = 0
    for point_id, (point, payload) in points.items():
        size = len(json.dumps(payload)) + len(point.vectors) * dim * FLOAT_BYTES
        if batch and (len(batch) == UPSERT_BATCH or filled + size > UPSERT_BYTES):
            yield batch
            batch, filled = [], 0
        vector: models.VectorStruct = {name: values.tolist() for name, values in point.vectors.items()}
        batch.append(models.PointStruct(id=point_id, vector=vector, payload=payload))
        filled += size
    if batch:
        yield batch
