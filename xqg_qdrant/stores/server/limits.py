"""What fits into one request to a server: what it takes anyway, and less where its strict mode says so.

Knows the fields of strict mode, and what each request costs of them. Sends nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from qdrant_client import models

from xqg_qdrant.errors import StoreError
from xqg_qdrant.records import TERMS_VECTOR, AugmentedPassage

UPSERT_BATCH = 256
UPSERT_BYTES = 16 * 2**20  # half of what a server takes in one request
FLOAT_BYTES = 24  # the longest float32 in JSON, with its comma
TERM_BYTES = 15  # the same of an index and the value 1.0
STORED_FLOAT_BYTES = 4


def read_strict_mode(info: models.CollectionInfo) -> models.StrictModeConfigOutput:
    """Return a collection's strict mode, without any limit where it is not enabled."""
    strict = info.config.strict_mode_config
    return strict if strict is not None and strict.enabled else models.StrictModeConfigOutput()


def fit(wanted: int, *limits: int | None) -> int:
    """Return the least of what is wanted and what is allowed, at least 1: what a request of nothing does not help."""
    return max(1, min([wanted, *(limit for limit in limits if limit is not None)]))


def check_write(where: str, info: models.CollectionInfo, dim: int, indexed_fields: frozenset[str]) -> None:
    """Refuse a collection that a limit closes to new points, or to the payload indexes that we need.

    Raises:
        StoreError: names the limit, its value, and what it would have to be.
    """
    strict = read_strict_mode(info)
    points = info.points_count or 0
    vectors = info.config.params.vectors
    floats = points * dim * (len(vectors) if isinstance(vectors, dict) else 1)
    indexes = len(indexed_fields | set(info.payload_schema))
    full = "is full"
    for field, limit, needed, what in (
        ("max_points_count", strict.max_points_count, points + 1, full),
        (
            "max_collection_vector_size_bytes",
            strict.max_collection_vector_size_bytes,
            floats * STORED_FLOAT_BYTES + 1,
            full,
        ),
        ("max_payload_index_count", strict.max_payload_index_count, indexes, "lacks an index that xqg needs"),
    ):
        if limit is not None and limit < needed:
            cure = f"let the owner of the server raise {field} to {needed} or more"
            raise StoreError(f"{where} {what}: its strict mode sets {field} to {limit}.", cure)


def check_search(where: str, strict: models.StrictModeConfigOutput, limit: int, exact: bool) -> None:
    """Refuse a search that a limit forbids.

    Raises:
        StoreError: names the limit, its value, and the cure.
    """
    most = strict.max_query_limit
    if most is not None and limit > most:
        what = f"{where} does not give {limit} passages at once: its strict mode sets max_query_limit to {most}"
        raise StoreError(f"{what}.", f"ask for at most {most}.")
    if exact and strict.search_allow_exact is False:
        cure = "search without exact comparison, or let the owner of the server allow it"
        raise StoreError(f"{where} has no exact search: its strict mode sets search_allow_exact to false.", cure)


def split_points(
    points: Mapping[Any, tuple[AugmentedPassage, dict[str, Any]]], dim: int, strict: models.StrictModeConfigOutput
) -> Iterator[list[models.PointStruct]]:
    """Yield the points, given by their ids, in lists that are short and small enough for one request."""
    length = fit(UPSERT_BATCH, strict.upsert_max_batchsize, strict.write_rate_limit)
    batch: list[models.PointStruct] = []
    filled = 0
    for point_id, (point, payload) in points.items():
        terms = point.terms or ()
        size = len(json.dumps(payload)) + len(point.vectors) * dim * FLOAT_BYTES + len(terms) * TERM_BYTES
        if batch and (len(batch) == length or filled + size > UPSERT_BYTES):
            yield batch
            batch, filled = [], 0
        vectors: dict[str, models.Vector] = {name: values.tolist() for name, values in point.vectors.items()}
        if point.terms is not None:
            vectors[TERMS_VECTOR] = models.SparseVector(indices=list(terms), values=[1.0] * len(terms))
        batch.append(models.PointStruct(id=point_id, vector=vectors, payload=payload))
        filled += size
    if batch:
        yield batch
