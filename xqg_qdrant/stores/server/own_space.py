"""Collections of other programs, augmented in the space of a vector that their points have.

    added      the augmented vector is xqg; theirs is the plain one and stays
    replaced   the augmented vector has the name of theirs, which is kept as passage

No passage is encoded again. When a vector is replaced, each step leaves enough to tell a plain vector from one of ours:
the plain one is kept, then the payload says what will be written, then it is written. So a run that is killed and run
again, or undone, finds every plain vector, bit for bit.

A point that has changed since it was read is not written. Points that wait for a model are read a second time for that;
those of a page that came within the last `RECENT_SECONDS` are not, so a page without model calls costs one request to
read it and one to write it.
"""

from __future__ import annotations

import difflib
import json
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

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
from xqg_qdrant.stores.server.answers import Record
from xqg_qdrant.stores.server.client import SCROLL_BATCH
from xqg_qdrant.stores.server.foreign import Addition, ForeignStore, set_ours, update_vectors
from xqg_qdrant.stores.server.foreign_points import (
    FOREIGN_KEY,
    WRITTEN,
    as_named,
    find_plain,
    find_problem,
    get_ours,
    has_mark,
    is_written,
    parse_point_id,
    read_foreign_payload,
    read_own_id,
    read_passage,
    shorten,
)
from xqg_qdrant.stores.server.limits import FINGERPRINT_KEY, fit, list_params
from xqg_qdrant.stores.server.requests import NotFoundError
from xqg_qdrant.streams import batched

READ_PAYLOAD = {"exclude": [f"{FOREIGN_KEY}.generated_queries"]}
ID_BATCH = 4096
COMPARABLE = (models.Distance.COSINE, models.Distance.DOT)
# Another program that writes a point within this time, as within that of a request, may lose its change.
RECENT_SECONDS = 2.0
RECENT_PAGES = 16


class VectorSpace(NamedTuple):
    """The length of a vector, and whether it is compared by cosine or else by dot product."""

    dim: int
    cosine: bool


class OwnSpaceStore(ForeignStore):
    """A store that augments in the space of one of the collection's vectors."""

    def __init__(self, location: str, api_key: str | None, payload_layout: PayloadLayout, space: Space) -> None:
        super().__init__(location, api_key, payload_layout)
        self.space = space
        self._added = (space.added,)
        self._names = [space.vector, PASSAGE_VECTOR] if space.replaced else [space.vector]
        self._recent = RecentPages()
        self._marks = {**self._marks, **describe_space(space)}

    def read_space(self, collection: str) -> VectorSpace:
        """Return how the vector is compared.

        Raises:
            InputError: there is no such vector, or it cannot be augmented.
        """
        info = self._require_info(collection)
        known, name = list_params(info), self.space.vector
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
        if self.space.replaced and params.datatype not in (None, "float32", "float16"):
            raise InputError(
                f"vector {name!r} of {where} is stored as {params.datatype}, which cannot hold augmented vectors.",
                "leave out --replace",
            )
        return VectorSpace(params.size, params.distance == models.Distance.COSINE)

    def read_passages(self, collection: str) -> Iterator[QueriedPassage | Reject]:
        """Yield the passage of each point with its plain vector, or a `Reject` if the point lacks either."""
        kept = self.space.replaced and PASSAGE_VECTOR in list_params(self._require_info(collection))
        names = self._names if kept else [self.space.vector]
        for records in self._scroll_pages(collection, SCROLL_BATCH, READ_PAYLOAD, names):
            yield from self._read_rows(collection, records, time.monotonic())

    def read_ids(self, collection: str) -> Iterator[int | str]:
        """Yield the id of each point, in the order of `read_passages`."""
        return (record.id for record in self._scroll(collection, ID_BATCH, False, False))

    def read_rows(self, collection: str, ids: Sequence[int | str]) -> list[QueriedPassage | Reject]:
        """Return what `read_passages` yields of these points, without those that are deleted.

        The vectors are added to the collection already.
        """
        strict = self._open(collection, also_foreign=True).strict
        rows: list[QueriedPassage | Reject] = []
        for part in batched(ids, fit(SCROLL_BATCH, strict.max_query_limit, strict.read_rate_limit)):
            asked = time.monotonic()
            found = {record.id: record for record in self._retrieve(collection, part, READ_PAYLOAD, self._names)}
            rows += self._read_rows(collection, [found[point_id] for point_id in part if point_id in found], asked)
        return rows

    def is_rate_limited(self, collection: str) -> bool:
        """Return whether the server limits how much is read or written a minute."""
        strict = self._open(collection, also_foreign=True).strict
        return strict.read_rate_limit is not None or strict.write_rate_limit is not None

    def _read_rows(self, collection: str, records: Sequence[Record], read: float) -> Iterator[QueriedPassage | Reject]:
        if self._remote:
            self._recent.add(collection, records, read)
        return (self._read_row(collection, record) for record in records)

    def _read_row(self, collection: str, record: Record) -> QueriedPassage | Reject:
        fields = record.payload or {}
        vector = find_plain(as_named(record.vector), fields, self.space)
        problem = find_problem(fields, self._payload_layout)
        if problem or vector is None:
            problem = problem or f"no vector {self.space.vector!r}"
            source = f"{self.location}, collection {collection!r}, point {record.id}"
            return Reject(source, 0, problem, json.dumps(fields))
        passage = read_passage(record.id, fields, self._payload_layout)
        return QueriedPassage(passage, (), vector, read_own_id(fields, self._payload_layout))

    def read_vectors(self, collection: str) -> Iterator[tuple[Passage, FloatArray]]:
        """Yield the plain vector of each point that has one, with its title and id; read no text.

        Where xqg replaced the vector, that is the one it kept.
        """
        stored = (self._require_info(collection).config.metadata or {}).get(FINGERPRINT_KEY)
        replaced = isinstance(stored, dict) and read_space(stored) == Space(self.space.vector, replaced=True)
        space = Space(self.space.vector, replaced)
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
        point_ids = {parse_point_id(passage_id): passage_id for passage_id in passage_ids}
        recent = self._recent.find(collection, point_ids)
        bare = {point_id for point_id, record in recent.items() if not _get_content_hash(record)}
        read = {
            point_id: record
            for point_id, record in recent.items()
            if self.space.replaced and point_id not in bare and PASSAGE_VECTOR in as_named(record.vector)
        }
        known = bare | read.keys()
        asked = [passage_id for point_id, passage_id in point_ids.items() if point_id not in known]
        hashes = super().read_content_hashes(collection, asked) if asked else {}
        if not self.space.replaced:
            return hashes
        again = self._read_again(collection, [*map(parse_point_id, hashes)])
        hashes |= {str(point_id): _get_content_hash(record) for point_id, record in read.items()}
        ours = {str(point_id) for point_id, record in (read | again).items() if self._is_ours(record)}
        return {point_id: content for point_id, content in hashes.items() if point_id in ours}

    def _is_ours(self, record: Record) -> bool:
        vector = as_named(record.vector).get(self.space.vector)
        return vector is not None and is_written(np.asarray(vector, np.float32), record.payload or {})

    def _configure(self, collection: str, dim: int) -> dict[str, models.DenseVectorConfig]:
        space = self.read_space(collection)
        # A kept vector must come back bit by bit, and cosine would scale it.
        cosine = space.cosine and not self.space.replaced
        distance = models.Distance.COSINE if cosine else models.Distance.DOT
        return {self.space.added: models.DenseVectorConfig(size=dim, distance=distance)}

    def _write(self, collection: str, additions: Sequence[Addition]) -> None:
        """Add vectors and fields, in parts that the server takes."""
        self._send(additions, partial(self._write_part, collection))

    def _write_part(self, collection: str, additions: Sequence[Addition]) -> None:
        """Add vectors and fields; leave a point that changed since it was read to another run."""
        ids = [addition.id for addition in additions]
        records = self._recent.find(collection, ids)
        try:
            self._add(collection, additions, records | self._read_again(collection, set(ids) - records.keys()))
        except NotFoundError:
            if not records:
                raise
            # A point was deleted since its page was read.
            self._add(collection, additions, self._read_again(collection, ids))
        finally:
            self._recent.forget(collection, ids)

    def _read_again(self, collection: str, ids: Collection[int | str]) -> dict[int | str, Record]:
        records = self._retrieve(collection, [*ids], [f"{FOREIGN_KEY}.{WRITTEN}"], self._names) if ids else []
        return {record.id: record for record in records}

    def _add(self, collection: str, additions: Sequence[Addition], records: Mapping[int | str, Record]) -> None:
        """Add to those points whose plain vector is still the one that was read."""
        name = self.space.vector if self.space.replaced else XQG_VECTOR
        kept: dict[int | str, Mapping[str, FloatArray]] = {}
        written: dict[int | str, Mapping[str, FloatArray]] = {}
        before, after = [], []
        for addition in additions:
            record = records.get(addition.id)
            if record is None:
                continue
            vectors, payload, ours = as_named(record.vector), record.payload or {}, addition.ours
            plain, fused = addition.vectors[PASSAGE_VECTOR], addition.vectors[XQG_VECTOR]
            stored = find_plain(vectors, payload, self.space)
            if stored is None or not (stored is plain or np.array_equal(stored, plain)):
                continue
            written[addition.id] = {name: fused}
            if self.space.replaced:
                kept[addition.id] = {PASSAGE_VECTOR: plain}
                mark, present = shorten(fused), np.asarray(vectors[name], np.float32)
                ours = {**ours, WRITTEN: [mark]}
                is_ours = is_written(present, payload)
                if not is_ours and not has_mark(present, [mark]):
                    # The mark alone tells that the vector is still to be written.
                    before.append(set_ours(addition.id, ours))
                    continue
                marks = [*get_ours(payload, WRITTEN), mark] if is_ours else [mark]
                before.append(set_ours(addition.id, {**ours, "content_hash": "", WRITTEN: marks}))
            after.append(set_ours(addition.id, ours))
        self._apply(collection, [*update_vectors(kept), *before, *update_vectors(written), *after])


class RecentPages:
    """The points of the last pages, for as long as they need not be read again before they are written."""

    def __init__(self) -> None:
        self._pages: deque[tuple[float, str, dict[int | str, Record]]] = deque(maxlen=RECENT_PAGES)

    def add(self, collection: str, records: Sequence[Record], read: float) -> None:
        """Remember the points of a page that was read at a time of the monotonic clock; forget those of old pages."""
        while self._pages and self._pages[0][0] <= time.monotonic() - RECENT_SECONDS:
            self._pages.popleft()
        self._pages.append((read, collection, {record.id: record for record in records}))

    def find(self, collection: str, ids: Collection[int | str]) -> dict[int | str, Record]:
        """Return those of the points that were read within `RECENT_SECONDS`, as they were read last."""
        oldest, wanted, found = time.monotonic() - RECENT_SECONDS, set(ids), dict[int | str, Record]()
        for read, of, page in self._pages:
            if of == collection and read > oldest:
                found |= {point_id: page[point_id] for point_id in page.keys() & wanted}
        return found

    def forget(self, collection: str, ids: Collection[int | str]) -> None:
        """Forget points that were written."""
        for _, of, page in self._pages:
            if of == collection:
                for point_id in page.keys() & ids:
                    del page[point_id]


def _get_content_hash(record: Record) -> str:
    return str(get_ours(record.payload or {}, "content_hash") or "")
