"""Read passages from the points of other programs, as pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol
from uuid import UUID

from xqg_qdrant.corpus.fields import Json
from xqg_qdrant.records import GeneratedQuery, Passage, PayloadLayout, ScoredPassage
from xqg_qdrant.stores.points import MAKE_QUERY, QUERY_FIELDS
from xqg_qdrant.stores.protocol import RawHit
from xqg_qdrant.text import is_blank

# The one field of another program's payload that xqg writes.
FOREIGN_KEY = "xqg"


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
    if not name or name in payload:
        return payload[name] if name else None
    value: Json = payload
    for part in name.split("."):
        fields = _parse_object(value) if isinstance(value, str) else value
        value = fields.get(part) if isinstance(fields, Mapping) else None
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
        queries = tuple(
            map(MAKE_QUERY, map(QUERY_FIELDS, get_field(payload, f"{FOREIGN_KEY}.generated_queries") or ()))
        )
    except (KeyError, TypeError):  # not ours, or no longer
        queries = ()
    return passage, queries


def read_foreign_hit(hit: RawForeignHit, layout: PayloadLayout) -> ScoredPassage:
    """Return an engine's hit in another program's collection as a record."""
    passage, queries = read_foreign_payload(hit.id, hit.payload or {}, layout)
    return ScoredPassage(passage, hit.score, queries)


def find_problem(fields: Mapping[str, Any], payload_layout: PayloadLayout) -> str:
    """Return why a point holds no passage, empty if it holds one."""
    text, title = (get_field(fields, name) for name in (payload_layout.text, payload_layout.title))
    if text is None:
        return f"no field {payload_layout.text}"
    if not isinstance(text, str):
        return f"{payload_layout.text} is not a string"
    if is_blank(text):
        return f"{payload_layout.text} is empty"
    if title is not None and not isinstance(title, str):
        return f"{payload_layout.title} is not a string"
    if any("\ud800" <= char <= "\udfff" for char in text + (title or "")):
        return "the text or the title holds a lone surrogate, half a character"
    if payload_layout.id:
        own_id = get_field(fields, payload_layout.id)
        if isinstance(own_id, bool) or not isinstance(own_id, str | int) or not str(own_id).strip():
            return f"{payload_layout.id} is neither a string nor a whole number"
    if FOREIGN_KEY in fields and get_field(fields, f"{FOREIGN_KEY}.content_hash") is None:
        return f"the field {FOREIGN_KEY} is taken: xqg did not write it"
    return ""
