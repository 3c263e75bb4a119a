"""Collections of other programs, augmented in the space of a vector that their points have.

    added      the augmented vector is xqg; theirs is the plain one and stays
    replaced   the augmented vector has the name of theirs, which is kept as passage

No passage is encoded again. When a vector is replaced, each step leaves enough to tell a plain vector from one of ours:
the plain one is kept, then the payload says what will be written, then it is written. So a run that is killed and run
again, or undone, finds every plain vector, bit for bit.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from qdrant_client import models

from xqg_qdrant.errors import InputError
from xqg_qdrant.fingerprint import describe_space, read_space
from xqg_qdrant.records import (
    PASSAGE_VECTOR,
    XQG_VECTOR,
    FloatArray,
    Passage,
    PayloadLayout,
    QueriedPassage,
    Reject,
    Space,
)
from xqg_qdrant.stores.server.client import SCROLL_BATCH
from xqg_qdrant.stores.server.foreign import ForeignStore
from xqg_qdrant.stores.server.foreign_points import (
    FOREIGN_KEY,
    WRITTEN,
    as_named,
    find_plain,
    find_problem,
    get_field,
    is_written,
    parse_point_id,
    read_foreign_payload,
    read_own_id,
    read_passage,
    shorten,
)
from xqg_qdrant.stores.server.limits import FINGERPRINT_KEY, list_params

COMPARABLE = (models.Distance.COSINE, models.Distance.DOT)


class VectorSpace(NamedTuple):
    """The length of a vector, and whether it is compared by cosine or else by dot product."""

    dim: int
    cosine: bool


class OwnSpaceStore(ForeignStore):
    """A store that augments in the space of one of the collection's vectors."""

    def __init__(self, location: str, api_key: str | None, payload_layout: PayloadLayout, space: Space) -> None:
        super().__init__(location, api_key, payload_layout)
        self._space = space
        self._added = (space.added,)
        self._marks = {**self._marks, **describe_space(space)}

    def read_space(self, collection: str) -> VectorSpace:
        """Return how the vector is compared.

        Raises:
            InputError: there is no such vector, or it cannot be augmented.
        """
        info = self._require_info(collection)
        known, name = list_params(info), self._space.vector
        where = f"collection {collection!r} in {self.location}"
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.0)
            named = ", ".join(map(repr, known)) or "none"
            sparse = " (it is sparse)" if name in (info.config.params.sparse_vectors or {}) else ""
            cure = f"name one of these, such as --vector {near[0]!r}" if near else "choose another collection"
            raise InputError(f"{where} has no dense vector {name!r}{sparse}; it has: {named}.", cure)
        params = known[name]
        if params.multivector_config is not None:
            raise InputError(f"vector {name!r} of {where} is a multivector.", "name a vector with one row a point")
        if params.distance not in COMPARABLE:
            raise InputError(
                f"vector {name!r} of {where} is compared by {params.distance.value} distance.",
                "name a vector that is compared by cosine or dot product",
            )
        if self._space.replaced and params.datatype not in (None, "float32", "float16"):
            raise InputError(
                f"vector {name!r} of {where} is stored as {params.datatype}, which cannot hold augmented vectors.",
                "leave out --replace",
            )
        return VectorSpace(params.size, params.distance == models.Distance.COSINE)

    def read_passages(self, collection: str) -> Iterator[QueriedPassage | Reject]:
        """Yield the passage of each point with its plain vector, or a `Reject` if the point lacks either."""
        payload = models.PayloadSelectorExclude(exclude=[f"{FOREIGN_KEY}.generated_queries"])
        kept = self._space.replaced and PASSAGE_VECTOR in list_params(self._require_info(collection))
        names = [self._space.vector, PASSAGE_VECTOR] if kept else [self._space.vector]
        for record in self._scroll(collection, SCROLL_BATCH, payload, names):
            fields = record.payload or {}
            vector = find_plain(as_named(record.vector), fields, self._space)
            problem = find_problem(fields, self._payload_layout)
            if vector is None and not problem:
                problem = f"no vector {self._space.vector!r}"
            if problem or vector is None:
                source = f"{self.location}, collection {collection!r}, point {record.id}"
                yield Reject(source, 0, problem, json.dumps(fields))
            else:
                passage = read_passage(record.id, fields, self._payload_layout)
                yield QueriedPassage(passage, (), vector, read_own_id(fields, self._payload_layout))

    def read_vectors(self, collection: str) -> Iterator[tuple[Passage, FloatArray]]:
        """Yield the plain vector of each point that has one, with its title and id; read no text.

        Where xqg replaced the vector, that is the one it kept.
        """
        stored = (self._require_info(collection).config.metadata or {}).get(FINGERPRINT_KEY)
        replaced = isinstance(stored, dict) and read_space(stored) == Space(self._space.vector, replaced=True)
        space = Space(self._space.vector, replaced)
        layout = self._payload_layout._replace(text="")
        paths = [path for path in layout if path]
        fields = list(dict.fromkeys([*paths, *(path.split(".")[0] for path in paths), f"{FOREIGN_KEY}.{WRITTEN}"]))
        names = [space.vector, PASSAGE_VECTOR] if replaced else [space.vector]
        for record in self._scroll(collection, SCROLL_BATCH, fields, names):
            payload = record.payload or {}
            vector = find_plain(as_named(record.vector), payload, space)
            if vector is not None:
                yield read_foreign_payload(record.id, payload, layout)[0], vector

    def read_content_hashes(self, collection: str, passage_ids: Sequence[str]) -> dict[str, str]:
        """Return the content hash of each point that is augmented, and whose vector is the one that xqg wrote."""
        hashes = super().read_content_hashes(collection, passage_ids)
        if not self._space.replaced:
            return hashes
        ours = set()
        for record in self._retrieve(
            collection, [*map(parse_point_id, hashes)], [f"{FOREIGN_KEY}.{WRITTEN}"], [self._space.vector]
        ):
            vector = as_named(record.vector).get(self._space.vector)
            if vector is not None and is_written(np.asarray(vector, np.float32), record.payload or {}):
                ours.add(str(record.id))
        return {point_id: content for point_id, content in hashes.items() if point_id in ours}

    def _configure(self, collection: str, dim: int) -> dict[str, models.DenseVectorConfig]:
        space = self.read_space(collection)
        # A kept vector must come back bit by bit, and cosine would scale it.
        cosine = space.cosine and not self._space.replaced
        distance = models.Distance.COSINE if cosine else models.Distance.DOT
        return {self._space.added: models.DenseVectorConfig(size=dim, distance=distance)}

    def _write(self, collection: str, points: Sequence[models.PointStruct]) -> None:
        """Add the vectors and fields, in parts that the server takes."""
        for _ in self._writes.send(points, partial(self._write_part, collection), lambda point: f"point {point.id}"):
            pass

    def _write_part(self, collection: str, points: Sequence[models.PointStruct]) -> None:
        """Add the vectors and fields; leave a point that changed since it was read to another run."""
        names = [self._space.vector, PASSAGE_VECTOR] if self._space.replaced else [self._space.vector]
        ids = [point.id for point in points]
        records = self._retrieve(collection, ids, [f"{FOREIGN_KEY}.{WRITTEN}"], names)
        found = {str(record.id): record for record in records}
        kept: dict[Any, models.PointVectors] = {}
        written: dict[Any, models.PointVectors] = {}
        before, after = [], []
        for point in points:
            record = found.get(str(point.id))
            if record is None or not isinstance(point.vector, Mapping):
                continue
            vectors: Mapping[str, Any] = point.vector
            plain, fused = vectors[PASSAGE_VECTOR], vectors[XQG_VECTOR]
            stored = find_plain(as_named(record.vector), record.payload or {}, self._space)
            if stored is None or not np.array_equal(stored, np.float32(plain)):
                continue
            name = self._space.vector if self._space.replaced else XQG_VECTOR
            written[point.id] = models.PointVectors(id=point.id, vector={name: fused})
            ours = dict((point.payload or {})[FOREIGN_KEY])
            if self._space.replaced:
                kept[point.id] = models.PointVectors(id=point.id, vector={PASSAGE_VECTOR: plain})
                marks = get_field(record.payload or {}, f"{FOREIGN_KEY}.{WRITTEN}") or []
                pending = {**ours, "content_hash": "", WRITTEN: [*marks, shorten(fused)]}
                before.append(_set_payload(point.id, pending))
                ours[WRITTEN] = [shorten(fused)]
            after.append(_set_payload(point.id, ours))
        self._apply(collection, [*_update_vectors(kept), *before, *_update_vectors(written), *after])


def _set_payload(point_id: Any, ours: Mapping[str, Any]) -> models.SetPayloadOperation:  # noqa: ANN401
    return models.SetPayloadOperation(set_payload=models.SetPayload(payload={FOREIGN_KEY: ours}, points=[point_id]))


def _update_vectors(points: Mapping[Any, models.PointVectors]) -> list[models.UpdateOperation]:
    """Return what writes vectors; nothing if there are none."""
    changes = models.UpdateVectors(points=list(points.values()))
    return [models.UpdateVectorsOperation(update_vectors=changes)] if points else []
