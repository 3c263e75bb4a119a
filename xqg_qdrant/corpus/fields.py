"""What the fields of a row may hold: ids, texts, metadata.

Knows which values every engine keeps as they are. Knows nothing of files. A function that takes a field returns what
it found and the reason why that cannot be used, which is empty where it can.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from xqg_qdrant.text import is_blank

TEXT_FIELDS = ("text", "contents", "passage")
QUERY_TEXT_FIELDS = ("question", "query", "text")
LANGUAGE_FIELDS = ("lang", "language")
# Qdrant's engines cannot read back what is nested about 127 levels deep, and Edge does not reopen after it.
MAX_METADATA_DEPTH = 32
# Ids stand in messages, runs and requests for many points at once.
MAX_ID_BYTES = 1024


def take_id(fields: dict[str, Any], names: Sequence[str]) -> tuple[str, str]:
    """Take the first of these fields that is there out of the row, as text."""
    name = next((name for name in names if fields.get(name) is not None), None)
    if name is None:
        return "", f"no id (looked for {', '.join(names)})"
    value = fields.pop(name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return "", f"{name} is neither a string nor a whole number"
    text = str(value)
    if is_blank(text):
        return "", f"{name} is empty"
    if len(text) > MAX_ID_BYTES // 4 and len(text.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        return "", f"{name} is longer than {MAX_ID_BYTES} bytes"
    return text, ""


def take_text(fields: dict[str, Any], names: Sequence[str]) -> tuple[str, str]:
    """Take the first of these fields that is there out of the row."""
    name = next((name for name in names if fields.get(name) is not None), None)
    if name is None:
        return "", f"no text (looked for {', '.join(names)})"
    value = fields.pop(name)
    if not isinstance(value, str):
        return "", f"{name} is not a string"
    return ("", f"{name} is empty") if is_blank(value) else (value, "")


def unstorable_field(fields: Mapping[str, Any]) -> str:
    """Name the first field that cannot be stored as JSON, and say why; empty where all can."""
    for name, value in fields.items():
        if problem := _unstorable(value, MAX_METADATA_DEPTH):
            return f"{name} {problem}"
    return ""


def _unstorable(value: Any, depth: int) -> str:  # noqa: ANN401
    """Say why a value cannot be stored as JSON in a payload; empty where it can. Numbers are 64 bits wide there."""
    if depth == 0:
        return f"is nested deeper than {MAX_METADATA_DEPTH} levels"
    match value:
        case None | bool():
            return ""
        case str():
            return "" if value.isascii() or not _has_surrogate(value) else "holds a lone surrogate, half a character"
        case int():
            return "" if -(2**63) <= value < 2**63 else "holds a whole number of more than 64 bits"
        case float():
            return "" if math.isfinite(value) else f"holds {value}, which is no number"
        case list() | tuple():
            return next(filter(None, (_unstorable(item, depth - 1) for item in value)), "")
        case dict():
            items = chain(value.keys(), value.values())
            return next(filter(None, (_unstorable(item, depth - 1) for item in items)), "")
        case _:
            return f"holds a {type(value).__name__}, which is not JSON"


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
