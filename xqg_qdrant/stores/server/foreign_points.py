"""Read passages from the points of other programs, as pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import sub
from typing import Any, Protocol
from uuid import UUID

import numpy as np

from xqg_qdrant.corpus.fields import Json, has_surrogate
from xqg_qdrant.records import (
    PASSAGE_VECTOR,
    FloatArray,
    GeneratedQuery,
    Passage,
    PayloadLayout,
    ScoredPassage,
    Space,
)
from xqg_qdrant.stores.checksums import CHECKSUM_FIELD, DIGITS, differs, sum_payload, sum_vectors
from xqg_qdrant.stores.inspection import PAYLOAD, VECTORS, Inspected
from xqg_qdrant.stores.points import MAKE_QUERY, QUERY_FIELDS
from xqg_qdrant.stores.protocol import RawHit
from xqg_qdrant.text import is_blank

# The one field of another program's payload that xqg writes.
FOREIGN_KEY = "xqg"
# In that field, if vectors are replaced: the first numbers of each vector that xqg wrote or was about to write.
WRITTEN = "written"
MARK_LENGTH = 16
# Vectors may be stored in 16 bits.
MARK_TOLERANCE = 2e-3
NO_PASSAGE = Passage("", "")


class RawForeignHit(RawHit, Protocol):
    """A hit in another program's collection."""

    @property
    def id(self) -> int | str:
        """Return the point's id."""


def parse_point_id(passage_id: str) -> int | str:
    """Return the point id of a passage: a number, or a UUID with hyphens."""
    return int(passage_id) if passage_id.isdecimal() else passage_id


def get_field(payload: Mapping[str, Any], name: str) -> Json:
    """Return a payload field by its name or its dotted path, None if it is missing.

    A path also leads into an object that is stored as JSON text, such as LlamaIndex's `_node_content`.
    """
    if name in payload or "." not in name:
        return payload.get(name) if name else None
    first, *others = name.split(".")
    value: Json = payload.get(first)
    for part in others:
        fields = _parse_object(value) if isinstance(value, str) else value
        value = fields.get(part) if isinstance(fields, dict) else None
    return value


def _parse_object(text: str) -> Json:
    try:
        return json.loads(text) if text.startswith("{") else None
    except (ValueError, RecursionError):
        return None


def read_foreign_payload(
    point_id: int | str | UUID, payload: Mapping[str, Any], layout: PayloadLayout
) -> tuple[Passage, tuple[GeneratedQuery, ...]]:
    """Return the passage and the generated queries of another program's point, even a malformed one.

    The metadata is every field except the text, the title, the id and ours.
    """
    used = {FOREIGN_KEY, *filter(None, layout)}
    text, title = get_field(payload, layout.text), get_field(payload, layout.title)
    own_id = get_field(payload, layout.id)
    metadata = {name: value for name, value in payload.items() if name not in used}
    passage = Passage(
        str(point_id if own_id is None else own_id),
        text if isinstance(text, str) else "",
        title if isinstance(title, str) else "",
        metadata,
    )
    try:
        queries = tuple(map(MAKE_QUERY, map(QUERY_FIELDS, get_ours(payload, "generated_queries") or ())))
    except (KeyError, TypeError):  # not ours, or no longer
        queries = ()
    return passage, queries


def read_passage(point_id: object, fields: Mapping[str, Any], layout: PayloadLayout) -> Passage:
    """Return the passage of a payload in which `find_problem` finds none, with the point's id."""
    text, title = get_field(fields, layout.text), get_field(fields, layout.title)
    return Passage(str(point_id), str(text), str(title or ""))


def get_ours(payload: Mapping[str, Any], name: str) -> Json:
    """Return a field of those that xqg added to a payload, None if it is missing."""
    ours = payload.get(FOREIGN_KEY)
    return ours.get(name) if isinstance(ours, dict) else None


def read_own_id(fields: Mapping[str, Any], layout: PayloadLayout) -> str:
    """Return the passage's id in a payload; empty if the point's id is the passage's."""
    return str(get_field(fields, layout.id)) if layout.id else ""


def as_named(vector: object) -> Mapping[str, Any]:
    """Return a record's vectors by name; an unnamed one has the name ""."""
    return vector if isinstance(vector, dict) else {} if vector is None else {"": vector}


def shorten(vector: FloatArray) -> FloatArray:
    """Return what marks a vector as written by us: its first numbers."""
    return vector[:MARK_LENGTH]


def is_written(vector: FloatArray, payload: Mapping[str, Any]) -> bool:
    """Return whether xqg wrote a vector, by the marks in the payload."""
    marks = get_ours(payload, WRITTEN)
    return isinstance(marks, list) and has_mark(vector, marks)


def has_mark(vector: FloatArray, marks: Sequence[Sequence[float] | FloatArray]) -> bool:
    """Return whether a vector has one of the marks that `shorten` makes."""
    start = vector[:MARK_LENGTH].tolist()
    most = MARK_TOLERANCE * max(map(abs, start))
    return any(len(mark) == len(start) and max(map(abs, map(sub, start, mark))) <= most for mark in marks)


def find_plain(vectors: Mapping[str, Any], payload: Mapping[str, Any], space: Space) -> FloatArray | None:
    """Return the plain vector of a point, float32; None if the point has none.

    Where vectors are replaced that is the kept one, unless the point's program has written the vector anew.
    """
    if space.vector not in vectors:
        return None
    present: FloatArray = np.asarray(vectors[space.vector], dtype=np.float32)
    if space.replaced and PASSAGE_VECTOR in vectors and is_written(present, payload):
        return np.asarray(vectors[PASSAGE_VECTOR], dtype=np.float32)
    return present


def read_foreign_hit(hit: RawForeignHit, layout: PayloadLayout) -> ScoredPassage:
    """Return an engine's hit in another program's collection as a record."""
    passage, queries = read_foreign_payload(hit.id, hit.payload or {}, layout)
    return ScoredPassage(passage, hit.score, queries)


def sum_added(fields: Mapping[str, Any], vectors: Mapping[str, FloatArray]) -> str:
    """Return the checksum of what xqg added to a point: of its fields, and of the vectors that come back bit by bit."""
    queries = tuple(map(MAKE_QUERY, map(QUERY_FIELDS, fields["generated_queries"])))
    return sum_payload(NO_PASSAGE, queries, fields["content_hash"], fields["recipe"]) + sum_vectors(vectors, None)


def inspect_added(point_id: str, payload: Mapping[str, Any], vectors: object, kept: Sequence[str]) -> Inspected:
    """Compare what xqg added to a point with its checksum.

    Args:
        point_id: the point's id, which is the passage's.
        payload: the point's payload.
        vectors: its vectors, by name.
        kept: names of those in the checksum.
    """
    fields = payload.get(FOREIGN_KEY)
    if not isinstance(fields, Mapping) or not fields.get("content_hash"):
        return Inspected(point_id, ())  # not augmented, or a run ended within its writing
    checksum, named = fields.get(CHECKSUM_FIELD), as_named(vectors)
    if checksum is None:
        return Inspected(point_id, (), checked=False)
    if not set(kept) <= set(named):
        return Inspected(point_id, ())  # written anew by its program, and to be augmented again
    try:
        found = sum_added(fields, {name: np.asarray(named[name], np.float32) for name in kept})
    except (KeyError, TypeError, ValueError):
        return Inspected(point_id, (PAYLOAD,))
    faults = {PAYLOAD: differs(found[:DIGITS], checksum, True), VECTORS: differs(found[DIGITS:], checksum, False)}
    return Inspected(point_id, tuple(fault for fault, is_found in faults.items() if is_found))


def find_problem(fields: Mapping[str, Any], payload_layout: PayloadLayout) -> str:
    """Return why a point holds no passage, empty if it holds one."""
    text, title = get_field(fields, payload_layout.text), get_field(fields, payload_layout.title)
    if text is None:
        return f"no field {payload_layout.text}"
    if not isinstance(text, str):
        return f"{payload_layout.text} is not a string"
    if is_blank(text):
        return f"{payload_layout.text} is empty"
    if title is not None and not isinstance(title, str):
        return f"{payload_layout.title} is not a string"
    if has_surrogate(text) or has_surrogate(title or ""):
        return "the text or the title holds a lone surrogate, half a character"
    if payload_layout.id:
        own_id = get_field(fields, payload_layout.id)
        if isinstance(own_id, bool) or not isinstance(own_id, str | int) or not str(own_id).strip():
            return f"{payload_layout.id} is neither a string nor a whole number"
    if FOREIGN_KEY in fields and get_ours(fields, "content_hash") is None:
        return f"the field {FOREIGN_KEY} is taken: xqg did not write it"
    return ""
