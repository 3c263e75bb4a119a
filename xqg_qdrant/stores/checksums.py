"""The checksum in a point's payload: that of the payload, then that of the vectors."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from xqg_qdrant.records import FloatArray, GeneratedQuery, Passage

CHECKSUM_FIELD = "checksum"
DIGITS = 8
# A store may return smaller numbers as 0.
LEAST = 1e-300
# In the place of a payload's checksum, if another program edited the payload before xqg rewrote the point.
EDITED = "-" * DIGITS


def sum_payload(passage: Passage, queries: Sequence[GeneratedQuery], *hashes: str) -> str:
    """Return the checksum of a payload: a CRC-32 in hex.

    It is the same after a store has rounded the last digits of a float, or left out empty fields of the metadata.

    Args:
        passage: the passage.
        queries: its queries.
        hashes: the content hash and the recipe.
    """
    fields = chain((passage.passage_id, passage.text, passage.title, *hashes), chain.from_iterable(queries))
    try:
        metadata = json.dumps(simplify(passage.metadata), sort_keys=True) if passage.metadata else ""
    except RecursionError:  # xqg stores nothing so deep
        return EDITED
    text = "\0".join(map(str, fields)) + "\0" + metadata
    return f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"


def sum_vectors(vectors: Mapping[str, FloatArray], terms: Sequence[int] | None) -> str:
    """Return the checksum of a point's vectors, bit by bit: a CRC-32 in hex.

    Args:
        vectors: float32, by xqg's own names.
        terms: ids in the sparse vector, ascending; None without one.
    """
    found = 0
    for name in sorted(vectors):
        found = zlib.crc32(vectors[name].astype("<f4", copy=False).tobytes(), found)
    if terms:
        found = zlib.crc32(json.dumps(list(terms)).encode(), found)
    return f"{found:08x}"


def differs(found: str, checksum: object, of_payload: bool) -> bool:
    """Return whether a sum is not the one in a stored point's checksum; False if it has none.

    Args:
        found: the sum of what the store returns.
        checksum: from the payload.
        of_payload: whether it is the payload's; else it is the vectors'.
    """
    if not isinstance(checksum, str):
        return False
    return found != (checksum[:DIGITS] if of_payload else checksum[DIGITS:])


def simplify(value: Any) -> Any:  # noqa: ANN401
    """Return a JSON value without what stores change: empty fields, types of whole numbers, last digits of floats."""
    if isinstance(value, Mapping):
        fields = {name: simplify(item) for name, item in value.items()}
        return {name: item for name, item in fields.items() if item not in (None, [], {})}
    if isinstance(value, list | tuple):
        return [simplify(item) for item in value]
    if isinstance(value, float):
        rounded = float(f"{value:.12g}") if abs(value) > LEAST else 0.0
        return int(rounded) if rounded.is_integer() else f"{value:.4g}"
    return value
