"""Points that another program wrote, as pure functions: where in their payload a passage stands, and whether one does.

Knows layouts, and the one field that is ours. Knows nothing of engines, files or the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

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
    """Return the id of the point that a passage was read from: a number, or a UUID with its hyphens."""
    return int(passage_id) if passage_id.isdecimal() else passage_id


def get_field(payload: Mapping[str, Any], name: str) -> Json:
    """Return a field of a payload by its name, or by the names on the way to it with dots between; else None."""
    if not name or name in payload:
        return payload[name] if name else None
    value: Json = payload
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def read_foreign_payload(
    point_id: int | str, payload: Mapping[str, Any], layout: PayloadLayout
) -> tuple[Passage, tuple[GeneratedQuery, ...]]:
    """Return the passage and the generated queries of a point that another program wrote, whatever state it is in.

    What is neither text, title, id nor ours is the metadata.
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
    """Return a search engine's hit in another program's collection as a record."""
    passage, queries = read_foreign_payload(hit.id, hit.payload or {}, layout)
    return ScoredPassage(passage, hit.score, queries)


def find_problem(fields: Mapping[str, Any], payload_layout: PayloadLayout) -> str:
    """Say why a point holds no passage; empty where it does."""
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
