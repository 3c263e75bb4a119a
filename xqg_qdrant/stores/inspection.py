"""What is wrong with a stored point, as a pure function."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from xqg_qdrant.errors import MismatchError
from xqg_qdrant.fingerprint import hash_content
from xqg_qdrant.stores.checksums import CHECKSUM_FIELD, differs, simplify, sum_payload
from xqg_qdrant.stores.points import Names, make_point_id, read_payload, read_stored_passage, read_vectors, rename

ID, PAYLOAD, VECTORS, UNREADABLE = "id", "payload", "vectors", "unreadable"


class Inspected(NamedTuple):
    """A stored point after its inspection.

    Attributes:
        passage_id: The passage's id; the point's id if the former is lost.
        faults: What is not as xqg stored it: `id`, `payload`, `vectors`, or `unreadable` if the engine returns nothing.
        checked: Whether the point has a checksum.
        named: Whether `passage_id` is the passage's.
    """

    passage_id: str
    faults: tuple[str, ...]
    checked: bool = True
    named: bool = True


def inspect(point_id: str, payload: Mapping[str, Any], vectors: object, sparse: bool, names: Names) -> Inspected:
    """Compare a stored point with its checksum; without one, compare the passage with its content hash."""
    own = rename(payload, names)
    passage_id, checksum = own.get("passage_id"), own.get(CHECKSUM_FIELD)
    named = isinstance(passage_id, str) and make_point_id(passage_id) == point_id
    found = {
        ID: not named,
        PAYLOAD: not _is_payload_whole(own),
        VECTORS: not isinstance(vectors, Mapping) or read_vectors(rename(vectors, names), sparse, checksum) is None,
    }
    faults = tuple(fault for fault, is_found in found.items() if is_found)
    return Inspected(str(passage_id) if named else point_id, faults, checksum is not None, named)


def _is_payload_whole(payload: Mapping[str, Any]) -> bool:
    try:
        passage, queries = read_payload(payload)
        _, content, recipe = read_stored_passage(payload)
    except MismatchError:
        return False
    checksum = payload.get(CHECKSUM_FIELD)
    if checksum is not None:
        return not differs(sum_payload(passage, queries, content, recipe), checksum, of_payload=True)
    try:
        # If the store may have changed these values a little, the content hash says nothing.
        exact = json.dumps(simplify(passage.metadata)) == json.dumps(passage.metadata)
        return not exact or content in (hash_content(passage, recipe), hash_content(passage, recipe, queries))
    except RecursionError:  # xqg stores nothing so deep
        return False
