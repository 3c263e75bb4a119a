"""Layouts of points for programs that read only their own: what they call a passage's text, metadata and vector.

    mcp       document, metadata, fast-MODEL    mcp-server-qdrant
    haystack  content, meta, text-dense         qdrant-haystack

Names are exchanged: where the text is called `document`, what another program adds as `text` keeps that name. They are
part of the recipe, so the fingerprint tells them. Knows names. Knows nothing of engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from xqg_qdrant.errors import InputError
from xqg_qdrant.records import XQG_VECTOR

Names: TypeAlias = Mapping[str, str]
T = TypeVar("T")

NAMES_FIELD = "recipe.names"
OUR_NAMES: Names = MappingProxyType({})
LAYOUTS = ("mcp", "haystack")


def make_names(payload_layout: str, model: str) -> dict[str, str]:
    """Return how a layout calls what xqg calls otherwise.

    Args:
        payload_layout: one of `LAYOUTS`.
        model: the encoder's source, such as `intfloat/multilingual-e5-small`; mcp-server-qdrant looks for the vector
            by the name of its own model.

    Raises:
        InputError: there is no such layout.
    """
    if payload_layout == "mcp":
        return {"text": "document", XQG_VECTOR: f"fast-{model.rstrip('/').split('/')[-1].lower()}"}
    if payload_layout == "haystack":
        return {"text": "content", "metadata": "meta", XQG_VECTOR: "text-dense"}
    raise InputError(f"there is no payload layout {payload_layout!r}. Cure: use {' or '.join(LAYOUTS)}.")


def read_names(fingerprint: Mapping[str, Any]) -> Names:
    """Return for each name that a collection exchanges the other one, in both directions."""
    names = fingerprint.get(NAMES_FIELD) or OUR_NAMES
    return {**names, **{theirs: ours for ours, theirs in names.items()}}


def rename(fields: Mapping[str, T], names: Names) -> dict[str, T]:
    """Return the fields by their other names; doing it twice gives them back.

    >>> rename({"text": 1, "title": 2}, {"text": "document", "document": "text"})
    {'document': 1, 'title': 2}
    """
    return {names.get(name, name): value for name, value in fields.items()}
