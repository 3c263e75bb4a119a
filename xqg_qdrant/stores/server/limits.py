"""The shape and the limits of a collection on a server.

A request must fit the server's own limits and those of the collection's strict mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import orjson
from qdrant_client import models

from xqg_qdrant.errors import StoreError
from xqg_qdrant.fingerprint import is_sparse, read_layout, read_space
from xqg_qdrant.records import TERMS_VECTOR, XQG_VECTOR, AugmentedPassage, FloatArray, PayloadLayout
from xqg_qdrant.stores.points import OVERSAMPLING, VECTOR_NAMES, Names, read_names, rename
from xqg_qdrant.stores.protocol import SearchLimitError

# In a collection's metadata.
FINGERPRINT_KEY = "xqg_fingerprint"
MODELS_KEY = "xqg_models"
SEARCH_BATCH = 32
UPSERT_BATCH = 256
UPSERT_BYTES = 16 * 2**20  # half of what a server accepts in one request
FLOAT_BYTES = 24  # the longest float32 in JSON, with its comma
TERM_BYTES = 15  # the longest term index and its value 1.0 in JSON, with commas
POINT_BYTES = 128  # a point's id, the keys around its parts, and the like
STORED_FLOAT_BYTES = 4

T = TypeVar("T")


class OpenCollection(NamedTuple):
    """A collection as it was when first used.

    `layout` is None unless another program made the collection, and `kept` is what `list_kept` returns for it.
    """

    dim: int
    sparse: bool
    names: Names
    layout: PayloadLayout | None
    strict: models.StrictModeConfigOutput
    kept: tuple[str, ...]


def read_ours(info: models.CollectionInfo) -> tuple[dict[str, Any], int] | None:
    """Return the fingerprint and the vector dimension of a collection, None if xqg did not create it."""
    fingerprint = (info.config.metadata or {}).get(FINGERPRINT_KEY)
    vectors = info.config.params.vectors
    if isinstance(fingerprint, dict) and isinstance(vectors, dict):
        ours = rename(vectors, read_names(fingerprint))
        if set(VECTOR_NAMES) <= set(ours):
            return fingerprint, ours[XQG_VECTOR].size
    return None


def list_params(info: models.CollectionInfo) -> dict[str, models.VectorParams]:
    """Return the dense vectors by name; an unnamed one has the name ""."""
    vectors = info.config.params.vectors
    return {"": vectors} if isinstance(vectors, models.VectorParams) else dict(vectors or {})


def list_kept(info: models.CollectionInfo) -> list[str]:
    """Return which of the vectors that xqg added to another program's collection come back bit by bit.

    Others are scaled by cosine.
    """
    space = read_space((info.config.metadata or {}).get(FINGERPRINT_KEY) or {})
    params = list_params(info)
    added = VECTOR_NAMES if space is None else (space.added,)
    return [name for name in added if name in params and params[name].distance == models.Distance.DOT]


def describe_collection(info: models.CollectionInfo, fingerprint: Mapping[str, Any], dim: int) -> OpenCollection:
    """Return the record of a collection with this fingerprint and vector dimension."""
    own = is_sparse(fingerprint), read_names(fingerprint), read_layout(fingerprint)
    return OpenCollection(dim, *own, read_strict_mode(info), tuple(list_kept(info)))


def read_strict_mode(info: models.CollectionInfo) -> models.StrictModeConfigOutput:
    """Return a collection's strict mode, without limits if it is not enabled."""
    strict = info.config.strict_mode_config
    return strict if strict is not None and strict.enabled else models.StrictModeConfigOutput()


def fit(wanted: int, *limits: int | None) -> int:
    """Return the smallest of the wanted size and the limits, at least 1: an empty request would not help."""
    return max(1, min([wanted, *(limit for limit in limits if limit is not None)]))


def fit_searches(strict: models.StrictModeConfigOutput) -> int:
    """Return how many searches go into one request."""
    return fit(SEARCH_BATCH, strict.search_max_batchsize, strict.read_rate_limit)


def check_write(where: str, info: models.CollectionInfo, dim: int, indexed_fields: frozenset[str]) -> None:
    """Check that strict mode allows new points and the payload indexes that we need.

    Raises:
        StoreError: names the limit, its value, and the value needed.
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
            cure = f"ask the owner of the server to raise {field} to {needed} or more"
            raise StoreError(f"{where} {what}: its strict mode sets {field} to {limit}.", cure)


def check_search(where: str, strict: models.StrictModeConfigOutput, limit: int, exact: bool) -> None:
    """Check that strict mode allows a search.

    Raises:
        SearchLimitError: names the limit and its value.
    """
    most = strict.max_query_limit
    if most is not None and limit > most:
        what = f"{where} does not return {limit} passages at once: its strict mode sets max_query_limit to {most}."
        raise SearchLimitError(what, f"ask for at most {most}")
    if exact and strict.search_allow_exact is False:
        cure = "search without exact comparison, or ask the owner of the server to allow it"
        raise SearchLimitError(f"{where} has no exact search: its strict mode sets search_allow_exact to false.", cure)


def make_search_params(strict: models.StrictModeConfigOutput, exact: bool) -> models.SearchParams:
    """Return the parameters that rescore quantised vectors, or compare with every vector if `exact`."""
    oversampling = min(OVERSAMPLING, strict.search_max_oversampling or OVERSAMPLING)
    rescoring = models.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=oversampling)
    return models.SearchParams(exact=exact, quantization=rescoring)


def split_points(
    points: Mapping[Any, tuple[AugmentedPassage, dict[str, Any]]], dim: int, strict: models.StrictModeConfigOutput
) -> Iterator[list[models.PointStruct]]:
    """Yield points, keyed by id, in lists that each fit one request."""
    sized = (
        (item, measure_point(point.vectors, payload, dim) + len(point.terms or ()) * TERM_BYTES)
        for item in points.items()
        for point, payload in [item[1]]
    )
    for batch in split(sized, strict):
        yield [_make_struct(point_id, *made) for point_id, made in batch]


def split(sized: Iterable[tuple[T, int]], strict: models.StrictModeConfigOutput) -> Iterator[list[T]]:
    """Yield what is to be written, given with its bytes, in lists that each fit one request."""
    length = fit(UPSERT_BATCH, strict.upsert_max_batchsize, strict.write_rate_limit)
    batch: list[T] = []
    filled = 0
    for item, size in sized:
        if batch and (len(batch) == length or filled + size > UPSERT_BYTES):
            yield batch
            batch, filled = [], 0
        batch.append(item)
        filled += size
    if batch:
        yield batch


def measure_point(vectors: Mapping[str, FloatArray], payload: Mapping[str, Any], dim: int) -> int:
    """Return how many bytes vectors and a payload have at most in a request."""
    names = sum(len(orjson.dumps(name)) for name in vectors)
    return POINT_BYTES + names + len(orjson.dumps(payload)) + len(vectors) * dim * FLOAT_BYTES


def _make_struct(point_id: Any, point: AugmentedPassage, payload: dict[str, Any]) -> models.PointStruct:  # noqa: ANN401
    vectors: dict[str, models.Vector] = {name: values.tolist() for name, values in point.vectors.items()}
    if point.terms is not None:
        vectors[TERMS_VECTOR] = models.SparseVector(indices=list(point.terms), values=[1.0] * len(point.terms))
    return models.PointStruct(id=point_id, vector=vectors, payload=payload)
