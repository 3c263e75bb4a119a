"""Collections of other programs, to which vectors and generated queries are added in place.

    vectors    xqg and passage, beside the points' other vectors
    payload    one field xqg: {generated_queries, content_hash, recipe, checksum}
    metadata   the fingerprint, with the payload layout

Points are never upserted: that would drop every field not sent. Here a passage's id is its point's id; searches read
the id that users see from its payload field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from qdrant_client import models

from xqg_qdrant.errors import InputError, MismatchError, StoreError
from xqg_qdrant.fingerprint import (
    LAYOUT_PREFIX,
    SPACE_PREFIX,
    describe_layout,
    describe_space,
    hash_content,
    read_layout,
    read_space,
    refuse_mismatch,
)
from xqg_qdrant.records import (
    PASSAGE_VECTOR,
    AugmentedPassage,
    FloatArray,
    Passage,
    PayloadLayout,
    QueriedPassage,
    Reject,
    Space,
)
from xqg_qdrant.stores import points as layout
from xqg_qdrant.stores.checksums import CHECKSUM_FIELD
from xqg_qdrant.stores.points import VECTOR_NAMES
from xqg_qdrant.stores.server.answers import Record, check_asked
from xqg_qdrant.stores.server.client import READ_BATCH, SCROLL_BATCH, ClientStore, list_records
from xqg_qdrant.stores.server.foreign_points import (
    FOREIGN_KEY,
    WRITTEN,
    as_named,
    find_plain,
    find_problem,
    get_field,
    get_ours,
    parse_point_id,
    read_foreign_payload,
    read_own_id,
    read_passage,
    sum_added,
)
from xqg_qdrant.stores.server.limits import (
    FINGERPRINT_KEY,
    MODELS_KEY,
    describe_collection,
    fit,
    list_params,
    measure_point,
    split,
)
from xqg_qdrant.streams import batched

FIRST_VERSION = (1, 18)  # of the server, for adding vectors to an existing collection
CONDITIONS = 1 + len(VECTOR_NAMES)  # of the filter for points that have our vectors
# A change of points, as in a request.
Operation: TypeAlias = dict[str, Any]
OUR_FIELDS = ("generated_queries", "content_hash", "recipe")


class Addition(NamedTuple):
    """What is to be added to a point: our vectors by our names, and our payload field."""

    id: int | str
    vectors: Mapping[str, FloatArray]
    ours: dict[str, Any]


class ForeignStore(ClientStore):
    """A store for ingests into other programs' collections; of the other `Store` methods only search and count work."""

    def __init__(self, location: str, api_key: str | None, payload_layout: PayloadLayout) -> None:
        super().__init__(location, api_key)
        self._payload_layout = payload_layout
        self._added: tuple[str, ...] = VECTOR_NAMES
        self._marks = describe_layout(payload_layout)

    def read_passages(self, collection: str) -> Iterator[Passage | QueriedPassage | Reject]:
        """Yield the passage of each point, or a `Reject` if the point holds none."""
        payload = {"exclude": [f"{FOREIGN_KEY}.generated_queries"]}
        for record in self._scroll(collection, SCROLL_BATCH, payload, False):
            fields = record.payload or {}
            if problem := find_problem(fields, self._payload_layout):
                source = f"{self.location}, collection {collection!r}, point {record.id}"
                yield Reject(source, 0, problem, json.dumps(fields))
            else:
                passage = read_passage(record.id, fields, self._payload_layout)
                own_id = read_own_id(fields, self._payload_layout)
                yield QueriedPassage(passage, own_id=own_id) if own_id else passage

    def adopt_space(self, collection: str) -> None:
        """Read the collection as it was augmented: in a space of its own, or in that of one of its vectors."""
        space = self._read_space(collection)
        if space is not None:
            self._added = (space.added,)
            self._marks = {**self._marks, **describe_space(space)}

    def read_augmented(self, collection: str) -> Iterator[AugmentedPassage | Reject]:
        """Yield each point's passage and queries without vectors, or a `Reject` if the point holds none.

        Unlike in `read_passages`, a passage has the id that users see, and the other fields as its metadata. The recipe
        of a point that is new, or whose text or own vector has changed, is empty.
        """
        space = self._read_space(collection)
        names = [space.vector, *([PASSAGE_VECTOR] if space.replaced else [])] if space else False
        for record in self._scroll(collection, SCROLL_BATCH, True, names):
            fields = record.payload or {}
            if problem := find_problem(fields, self._payload_layout):
                source = f"{self.location}, collection {collection!r}, point {record.id}"
                yield Reject(source, 0, problem, json.dumps(fields))
                continue
            passage, queries = read_foreign_payload(str(record.id), fields, self._payload_layout)
            content, recipe = (str(get_ours(fields, name) or "") for name in OUR_FIELDS[1:])
            augmented = replace(passage, passage_id=str(record.id), metadata={})
            plain = find_plain(as_named(record.vector), fields, space) if space else None
            known = content in [hash_content(augmented, recipe, given, plain) for given in (None, queries)]
            yield AugmentedPassage(passage, queries if known else (), {}, content, recipe if known else "")

    def _read_space(self, collection: str) -> Space | None:
        stored = (self._require_info(collection).config.metadata or {}).get(FINGERPRINT_KEY)
        return read_space(stored) if isinstance(stored, dict) else None

    def read_fingerprint(self, collection: str) -> dict[str, Any] | None:
        """Return the models and the recipe that augmented the collection, None if it was not augmented.

        Raises:
            StoreError: there is no such collection, or the server cannot add vectors.
            MismatchError: xqg created it, it was augmented from other fields, or it has a vector named like ours.
        """
        info = self._require_info(collection)
        stored = (info.config.metadata or {}).get(FINGERPRINT_KEY)
        found = _vector_names(info) & set(self._added)
        if isinstance(stored, dict):
            for prefix in (LAYOUT_PREFIX, SPACE_PREFIX):
                refuse_mismatch(collection, stored, self._marks, part=prefix.rstrip("."))
            if len(found) == len(self._added):
                marks = (LAYOUT_PREFIX, SPACE_PREFIX)
                return {name: value for name, value in stored.items() if not name.startswith(marks)}
        elif found:
            raise MismatchError(
                f"collection {collection!r} in {self.location} has a vector {min(found)!r} that xqg did not add. "
                "Nothing was changed.",
                "ingest its passages into a collection of xqg's own",
            )
        if self._remote:
            self._load.require_version("vectors that are added to a collection", FIRST_VERSION)
        # Also after a run that ended while it added the vectors.
        return None

    def create_collection(self, collection: str, dim: int, fingerprint: Mapping[str, Any]) -> None:
        """Add the fingerprint to the metadata, keeping its other keys, then the named vectors.

        The fingerprint comes first: it shows a later run that the vectors are ours.
        """
        kept = layout.check_creation(collection, dim, {**fingerprint, **self._marks})
        action = f"add vectors to collection {collection!r}"
        metadata = {FINGERPRINT_KEY: kept}
        self._wire.ask(action, self._client.update_collection, collection_name=collection, metadata=metadata)
        for name, config in self._configure(collection, dim).items():
            # If the vector exists with the same length, the server does nothing.
            self._wire.ask(
                action,
                self._client.create_vector_name,
                collection_name=collection,
                vector_name=name,
                vector_name_config=models.DenseVectorNameConfig(dense=config),
            )
        info = self._require_info(collection)
        if not set(self._added) <= _vector_names(info):
            raise StoreError(f"{self.location} did not {action}.", "run the same command again")
        self._opened[collection] = describe_collection(info, *self._read_ours(collection, info))

    def remove_added(self, collection: str) -> int:
        """Remove our vectors, payload field and fingerprint, and nothing else; return the number of augmented points.

        Replaced vectors are given back before, bit by bit.

        The fingerprint goes last: until then the removal can be repeated.

        Raises:
            InputError: the collection was not augmented.
            MismatchError: xqg created it.
        """
        info = self._require_info(collection)
        stored = (info.config.metadata or {}).get(FINGERPRINT_KEY)
        if not isinstance(stored, dict):
            cure = "check the name with xqg status"
            raise InputError(f"collection {collection!r} in {self.location} was not augmented by xqg.", cure)
        if read_layout(stored) is None:
            cure = f"delete it with: xqg delete --collection {collection}"
            raise MismatchError(f"collection {collection!r} is xqg's own. Nothing was changed.", cure)
        action = f"remove what was added to collection {collection!r}"
        space = read_space(stored)
        added = VECTOR_NAMES if space is None else (space.added,)
        if space is not None and space.replaced and PASSAGE_VECTOR in _vector_names(info):
            self._restore(collection, space)
        # The owner may have a field of the same name: only a point with our content hash holds ours.
        hashes = self._scroll(collection, SCROLL_BATCH, [f"{FOREIGN_KEY}.content_hash"], False)
        ours = (record.id for record in hashes if get_ours(record.payload or {}, "content_hash") is not None)
        count = 0
        for ids in batched(ours, READ_BATCH):
            result = self._wire.ask(
                action,
                self._client.delete_payload,
                collection_name=collection,
                keys=[FOREIGN_KEY],
                points=list(ids),
                wait=True,
            )
            self._check_applied(result, collection)
            count += len(ids)
        for name in _vector_names(info) & set(added):
            self._wire.ask(action, self._client.delete_vector_name, collection_name=collection, vector_name=name)
        kept = info.config.metadata or {}
        metadata: dict[str, Any] = {name: None for name in (FINGERPRINT_KEY, MODELS_KEY) if name in kept}
        self._wire.ask(action, self._client.update_collection, collection_name=collection, metadata=metadata)
        self._opened.pop(collection, None)
        return count

    def read_content_hashes(self, collection: str, passage_ids: Sequence[str]) -> dict[str, str]:
        """Return the content hash of each point that has our vectors.

        The program that owns the points may have replaced them, keeping their payload and only its own vectors.
        """
        field = f"{FOREIGN_KEY}.content_hash"
        strict = self._open(collection, also_foreign=True).strict
        most = strict.filter_max_conditions
        read, size = self._filter_augmented, READ_BATCH
        if most is not None and most < CONDITIONS:
            read, size = self._retrieve_augmented, SCROLL_BATCH
        hashes: dict[str, str] = {}
        for ids in batched(
            map(parse_point_id, passage_ids),
            fit(size, strict.max_query_limit, strict.read_rate_limit, strict.condition_max_size),
        ):
            records = read(collection, ids, field)
            check_asked((record.id for record in records), ids, self.location)
            hashes |= {str(record.id): str(get_field(record.payload or {}, field)) for record in records}
        return hashes

    def _filter_augmented(self, collection: str, ids: Sequence[models.ExtendedPointId], field: str) -> list[Record]:
        """Return those of the points that have our vectors, with one field."""
        vectors = [models.HasVectorCondition(has_vector=name) for name in self._added]
        records, _ = self._wire.ask(
            f"read collection {collection!r}",
            self._client.scroll,
            collection_name=collection,
            scroll_filter=models.Filter(must=[models.HasIdCondition(has_id=[*ids]), *vectors]),
            limit=len(ids),
            with_payload=[field],
            with_vectors=False,
        )
        return list_records(records)

    def _retrieve_augmented(self, collection: str, ids: Sequence[models.ExtendedPointId], field: str) -> list[Record]:
        """Do the same where no filter may have so many conditions; this transfers the vectors."""
        records = self._retrieve(collection, ids, [field], [*self._added])
        return [
            record for record in records if isinstance(record.vector, dict) and set(self._added) <= set(record.vector)
        ]

    @contextmanager
    def bulk_load(self, collection: str, fast: bool) -> Iterator[None]:
        """Do nothing: the collection's own program searches it meanwhile."""
        yield

    def upsert(self, collection: str, points: Sequence[AugmentedPassage]) -> None:
        """Add our vectors and fields to existing points; skip points deleted meanwhile.

        The payload comes last: its content hash marks a point as done.
        """
        opened = self._open(collection, also_foreign=True)
        additions = {}
        for point in layout.check_vectors(points, opened.dim):
            fields = layout.make_added(point)
            fields[CHECKSUM_FIELD] = sum_added(fields, {name: point.vectors[name] for name in opened.kept})
            point_id = parse_point_id(point.passage.passage_id)
            addition = Addition(point_id, point.vectors, fields)
            additions[point_id] = addition, measure_point(point.vectors, fields, opened.dim)
        for batch in split(additions.values(), opened.strict):
            self._write(collection, batch)

    def _configure(self, collection: str, dim: int) -> dict[str, models.DenseVectorConfig]:
        """Return the vectors to add to a collection."""
        return dict.fromkeys(self._added, models.DenseVectorConfig(size=dim, distance=models.Distance.DOT))

    def _write(self, collection: str, additions: Sequence[Addition]) -> None:
        """Add vectors and fields to those points that still exist."""

        def send(part: Sequence[Addition]) -> None:
            self._apply(collection, update_vectors({each.id: each.vectors for each in part}))
            self._apply(collection, [set_ours(each.id, each.ours) for each in part])

        alive = self._retrieve(collection, [addition.id for addition in additions], False, False)
        ids = {str(record.id) for record in alive}
        self._send([addition for addition in additions if str(addition.id) in ids], send)

    def _send(self, additions: Sequence[Addition], send: Callable[[Sequence[Addition]], None]) -> None:
        """Send additions in requests that the server accepts."""
        for _ in self._writes.send(additions, send, lambda addition: f"point {addition.id}"):
            pass

    def _restore(self, collection: str, space: Space) -> None:
        """Give the points their plain vectors back where these were replaced."""
        names = [space.vector, PASSAGE_VECTOR]
        records = self._scroll(collection, SCROLL_BATCH, [f"{FOREIGN_KEY}.{WRITTEN}"], names)
        strict = self._open(collection, also_foreign=True).strict
        for batch in batched(records, fit(SCROLL_BATCH, strict.upsert_max_batchsize, strict.write_rate_limit)):
            plain = {}
            for record in batch:
                vectors = as_named(record.vector)
                vector = find_plain(vectors, record.payload or {}, space)
                if vector is not None and not np.array_equal(vector, np.float32(vectors[space.vector])):
                    plain[record.id] = {space.vector: vector}
            self._apply(collection, update_vectors(plain))

    def _apply(self, collection: str, operations: Sequence[Operation]) -> None:
        """Send changes of points in one request, which the server applies in order."""
        if operations:
            results = self._wire.ask(f"write to collection {collection!r}", self._update, collection, operations)
            for result in results:
                self._check_applied(result, collection)

    def _read_ours(self, collection: str, info: models.CollectionInfo) -> tuple[dict[str, Any], int]:
        """Return our marks as the fingerprint, so that inherited methods see a foreign collection."""
        params = list_params(info).get(self._added[0])
        return self._marks, params.size if params else 0


def update_vectors(vectors: Mapping[int | str, Mapping[str, FloatArray]]) -> list[Operation]:
    """Return what writes vectors, given by the points' ids and by name; nothing if there are none."""
    points = [{"id": point_id, "vector": named} for point_id, named in vectors.items()]
    return [{"update_vectors": {"points": points}}] if points else []


def set_ours(point_id: int | str, ours: Mapping[str, Any]) -> Operation:
    """Return what writes our payload field of a point."""
    return {"set_payload": {"payload": {FOREIGN_KEY: ours}, "points": [point_id]}}


def _vector_names(info: models.CollectionInfo) -> set[str]:
    """Return the names of all vectors, leaving out an unnamed one."""
    vectors = info.config.params.vectors
    return {*(vectors if isinstance(vectors, dict) else ()), *(info.config.params.sparse_vectors or ())}
