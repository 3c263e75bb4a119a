"""What every store does alike with searches, as pure functions: what may be asked, the order of hits, ties included.

Knows hits and limits. Knows nothing of engines or the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

from xqg_qdrant.errors import StoreError
from xqg_qdrant.records import FloatArray, ScoredPassage
from xqg_qdrant.stores.layouts import OUR_NAMES, Names, rename
from xqg_qdrant.stores.points import VECTOR_NAMES, batched, check_vector, read_payload

# A tie wider than this is cut where the engine cuts it; looking for its end could read a whole collection.
MAX_TIES = 10_000


class RawHit(Protocol):
    """A hit as a store's engine gives it."""

    @property
    def score(self) -> float:
        """Return the score."""

    @property
    def payload(self) -> Mapping[str, Any] | None:
        """Return the payload."""


H = TypeVar("H", bound=RawHit)
Q = TypeVar("Q")
Fetch: TypeAlias = Callable[[Sequence[Q], int], Sequence[Sequence[H]]]


def check_limit(limit: int) -> None:
    """Refuse a search for nothing.

    Raises:
        StoreError: says what is possible.
    """
    if limit < 1:
        raise StoreError(f"the limit of a search must be at least 1, was {limit}. Cure: ask for 1 or more.")


def check_term_search(collection: str, sparse: bool, limit: int) -> None:
    """Refuse a search for terms in a collection that has none.

    Raises:
        StoreError: says so, and the cure.
    """
    check_limit(limit)
    if not sparse:
        cure = "Cure: ingest into a new collection with --sparse"
        raise StoreError(f"collection {collection!r} has no sparse vector, which a search for terms needs. {cure}.")


def check_search(vectors: FloatArray, dim: int, vector_name: str, limit: int) -> None:
    """Refuse a search that no collection of ours can answer.

    Raises:
        StoreError: names the argument, its value, and what is possible.
    """
    if vector_name not in VECTOR_NAMES:
        raise StoreError(f"there is no vector {vector_name!r}. Cure: search {' or '.join(VECTOR_NAMES)}.")
    check_limit(limit)
    check_vector(vectors, (len(vectors), dim), "the array of query vectors")


def read_hit(hit: RawHit, names: Names = OUR_NAMES) -> ScoredPassage:
    """Return a search engine's hit as a record."""
    payload = hit.payload or {}
    passage, queries = read_payload(rename(payload, names) if names else payload)
    return ScoredPassage(passage, hit.score, queries)


def search_terms_in_batches(
    fetch: Fetch[Sequence[int], H],
    terms: Iterable[Sequence[int]],
    limit: int,
    batch_size: int,
    read: Callable[[H], ScoredPassage] = read_hit,
) -> list[list[ScoredPassage]]:
    """Return the at most `limit` best hits of each query's terms, equal scores ordered by passage id.

    Of hits with equal scores all are returned or none: terms that more passages share than can be returned do not tell
    which of them are meant, and looking for the end of such a tie could read a whole collection.
    """
    found = []
    for queries in batched(terms, batch_size):
        for hits in fetch(queries, limit + 1):
            cut = hits[limit].score if len(hits) > limit else -math.inf
            best = [read(hit) for hit in hits if hit.score > cut]
            found.append(sorted(best, key=lambda hit: (-hit.score, hit.passage.passage_id)))
    return found


def search_in_batches(
    fetch: Fetch[Q, H], vectors: Iterable[Q], limit: int, batch_size: int, read: Callable[[H], ScoredPassage] = read_hit
) -> list[list[ScoredPassage]]:
    """Return the `limit` best hits of each query, equal scores ordered by passage id, also across the limit.

    Args:
        fetch: asks the engine for some queries' hits, best first.
        vectors: the queries: vectors of shape `(dim,)`, or the ids of their terms.
        limit: how many hits are wanted for each query.
        batch_size: how many queries are asked at once.
        read: makes a record of a hit.
    """
    found = []
    for queries in batched(vectors, batch_size):
        for query, hits in zip(queries, fetch(queries, limit + 1), strict=True):
            asked = limit + 1
            # The hit after the last one ties with it: which of them belong to the result only their ids can say.
            while len(hits) == asked and hits[limit - 1].score == hits[-1].score and asked < limit + MAX_TIES:
                asked *= 2
                [hits] = fetch([query], asked)
            # Of the others the payloads are not worth reading.
            lowest = hits[limit - 1].score if len(hits) >= limit else -math.inf
            best = [read(hit) for hit in hits if hit.score >= lowest]
            found.append(sorted(best, key=lambda hit: (-hit.score, hit.passage.passage_id))[:limit])
    return found
