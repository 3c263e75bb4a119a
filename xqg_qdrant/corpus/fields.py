"""Check what the fields of a row hold: ids, texts, and the JSON that a payload may hold.

`take_id` and `take_text` return the value and a problem, which is empty if the value can be used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from xqg_qdrant.errors import StoreError
from xqg_qdrant.text import is_blank, show

Json: TypeAlias = Any

TEXT_FIELDS = ("text", "contents", "passage")
QUERY_TEXT_FIELDS = ("question", "query", "text")
LANGUAGE_FIELDS = ("lang", "language")
# Ids appear in messages, in runs, and many at a time in requests.
MAX_ID_BYTES = 1024
# Edge accepts deeper values, but its readers stop near 128 levels: then neither the point nor the directory opens.
MAX_DEPTH = 64
# Qdrant's JSON has signed and unsigned integers of 64 bits.
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1
# Longest part of a path shown in a message: a key may be megabytes long.
LONGEST_PATH = 2000


def take_id(fields: dict[str, Any], names: Sequence[str]) -> tuple[str, str]:
    """Remove the first of these fields from a row; return it as text, and the problem."""
    name = next((name for name in names if fields.get(name) is not None), None)
    if name is None:
        return "", f"no id (looked for {', '.join(names)})"
    value = fields.pop(name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return "", f"{name} is neither a string nor a whole number"
    too_long = f"{name} is longer than {MAX_ID_BYTES} bytes"
    if isinstance(value, int) and value.bit_length() > 4 * MAX_ID_BYTES:  # a digit has 3.3 bits
        return "", too_long
    text = str(value)
    if is_blank(text):
        return "", f"{name} is empty"
    if len(text) > MAX_ID_BYTES // 4 and len(text.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        return "", too_long
    return text, ""


def take_text(fields: dict[str, Any], names: Sequence[str]) -> tuple[str, str]:
    """Remove the first of these fields from a row; return it, and the problem."""
    name = next((name for name in names if fields.get(name) is not None), None)
    if name is None:
        return "", f"no text (looked for {', '.join(names)})"
    value = fields.pop(name)
    if not isinstance(value, str):
        return "", f"{name} is not a string"
    return ("", f"{name} is empty") if is_blank(value) else (value, "")


def unstorable_field(fields: Mapping[str, Any]) -> str:
    """Return why the first field that cannot be stored cannot; empty if all can."""
    for name, value in fields.items():
        try:
            to_json(value, name)
        except StoreError as error:
            return error.message.removesuffix(".")
    return ""


def to_json(value: object, where: str, depth: int = MAX_DEPTH) -> Json:
    """Return a value as JSON keeps it: lists for tuples, dicts for mappings, otherwise unchanged.

    This is the one rule for payloads. It applies to what is written; reading accepts whatever is stored.

    Args:
        value: any Python value.
        where: its path, such as `metadata.year`, for the message.
        depth: how many levels of lists and mappings are allowed.

    Raises:
        StoreError: the value, or one in it, does not come back unchanged from every engine.
    """
    if depth < 0:
        raise StoreError(f"{_shorten(where)} is nested deeper than {MAX_DEPTH} levels.", "flatten it")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if not value.isascii() and has_surrogate(value):
            cure = "read the file as UTF-8, or replace the character"
            raise StoreError(f"{_shorten(where)} holds a lone surrogate, half a character.", cure)
        return value
    if isinstance(value, int):
        if not MIN_INTEGER <= value <= MAX_INTEGER:
            raise StoreError(f"{_shorten(where)} is a whole number of more than 64 bits.", "store it as text")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise StoreError(f"{_shorten(where)} is {value}, which JSON does not have.", "use null or leave it out")
        return value
    where = _shorten(where)  # a long key would otherwise be copied for each value below it
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise StoreError(f"{where} has the key {show(key)}, which is not a string.", "use strings as keys")
            to_json(key, f"{where}: the key {show(key)}")
        return {key: to_json(item, f"{where}.{key}", depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item, f"{where}[{index}]", depth - 1) for index, item in enumerate(value)]
    cure = "convert it to text, a number, a list or a mapping"
    raise StoreError(f"{where} is a {type(value).__name__}, which JSON does not have.", cure)


def _shorten(where: str) -> str:
    return where if len(where) <= LONGEST_PATH else f"{where[:LONGEST_PATH]}…"


def has_surrogate(text: str) -> bool:
    """Return whether a text holds half of a surrogate pair, which UTF-8 does not have."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
