"""What every place that can hold a collection promises.

Knows records. Knows nothing of Qdrant: `edge` and `client` do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from xqg_qdrant.errors import StoreError
from xqg_qdrant.records import AugmentedPassage, FloatArray, ScoredPassage, StoredPassage
from xqg_qdrant.stores.points import OUR_NAMES, VECTOR_NAMES, Names, check_vector, read_payload, rename
from xqg_qdrant.streams import batched


class Indexing(NamedTuple):
    """How far an index is: the seconds it took so far, and in the end whether anything `changed`."""

    seconds: float
    changed: bool = False


class Sharding(NamedTuple):
    """How a server spreads the collections that it creates over its nodes; what is None is left to the server."""

    shard_number: int | None = None
    replication_factor: int | None = None
    write_consistency_factor: int | None = None


class Snapshot(NamedTuple):
    """A collection as it was, kept by the server: `name` is that of a file, `collection` never an alias."""

    name: str
    collection: str


class Store(Protocol):
    """Collections of passages; every method raises `StoreError` when the engine cannot do what was asked."""

    location: str

    def collections(self) -> list[str]:
        """Return the names of the collections, sorted."""

    def create_collection(self, collection: str, dim: int, fingerprint: Mapping[str, Any]) -> None:
        """Create an empty collection with the named vectors `xqg` and `passage` (dot product, float32).

        Where the fingerprint says so it also has the sparse vector `terms`.

        The fingerprint (JSON values) is kept with the collection. Raises `StoreError` where it already exists.
        """

    def read_fingerprint(self, collection: str) -> dict[str, Any] | None:
        """Return the fingerprint that the collection was created with, None where there is no such collection.

        Raises:
            MismatchError: there is a collection of this name, but xqg did not create it.
        """

    def write_fingerprint(self, collection: str, fingerprint: Mapping[str, Any]) -> None:
        """Replace the fingerprint of a collection, wholly or not at all."""

    def read_dim(self, collection: str) -> int:
        """Return the length of a collection's vectors."""

    def read_content_hashes(self, collection: str, passage_ids: Sequence[str]) -> dict[str, str]:
        """Return the content hash of each of these passages that is stored."""

    def upsert(self, collection: str, points: Sequence[AugmentedPassage]) -> None:
        """Store the points; when this returns they survive a kill. An existing point is replaced whole.

        Raises:
            StoreError: also for a vector that is not finite or has another length; then nothing is written.
        """

    def search(
        self, collection: str, vectors: FloatArray, vector_name: str, limit: int, exact: bool = False
    ) -> list[list[ScoredPassage]]:
        """Return for each query vector, shape `(n, dim)`, the `limit` best passages, best first.

        Scores that the engine gives as equal are ordered by passage id. `exact` compares with every stored vector,
        also where the engine has an index that is faster and nearly as good.
        """

    def search_terms(self, collection: str, terms: Sequence[Sequence[int]], limit: int) -> list[list[ScoredPassage]]:
        """Return for each query, the ids of its terms, the `limit` best passages that share any with it, best first.

        A passage's score is the sum over the shared terms of `ln(1 + (n - d + 0.5) / (d + 0.5))`, where d of the n
        passages hold the term. Equal scores are ordered by passage id; where the limit would cut between some, none of
        these is returned.

        Raises:
            StoreError: also where the collection has no sparse vector.
        """

    def bulk_load(self, collection: str, fast: bool) -> AbstractContextManager[None]:
        """Make a collection ready for many upserts, and end them well whatever happens.

        What a server's limits would refuse later is refused here. Where points come `fast` and the collection is
        empty, a server indexes none before all are there. The other stores need nothing.
        """

    def optimise(self, collection: str, above: int = 0) -> Iterator[Indexing]:
        """Index a collection of more than `above` points; yield while it goes on.

        Servers index by themselves, and are waited for; the client's local mode has no index.
        """

    def quantise(self, collection: str) -> None:
        """Have the index made over int8 codes of the vectors, from the next time that it is made; cannot be undone.

        The vectors stay: the best candidates by code are scored again with them. The client's local mode takes no
        notice.
        """

    def read_points(self, collection: str, passage_ids: Sequence[str]) -> dict[str, AugmentedPassage]:
        """Return each of these passages that is stored, with its vectors."""

    def scroll(self, collection: str) -> Iterator[AugmentedPassage]:
        """Yield every point with its vectors, in the order of the point ids.

        Points may be replaced meanwhile.
        """

    def scroll_stored(self, collection: str) -> Iterator[StoredPassage]:
        """Yield what made each point, in the order of the point ids; reads no vector and no text.

        Points may be deleted meanwhile.
        """

    def delete(self, collection: str, passage_ids: Sequence[str]) -> None:
        """Delete the points of these passages, where they are; when this returns they are gone for good."""

    def delete_collection(self, collection: str) -> None:
        """Delete a collection that xqg created, with all its points.

        Raises:
            StoreError: there is none, or another process uses it.
        """

    def count(self, collection: str) -> int:
        """Return the exact number of points."""

    def read_aliases(self) -> dict[str, str] | None:
        """Return the collection that each alias names, None where the engine has no aliases.

        Where it has some, an alias may stand in the place of a collection's name, but to create or to delete it.
        """

    def switch_alias(self, alias: str, collection: str) -> None:
        """Have an alias name this collection, and no other one any more, from one moment to the next."""

    def create_snapshot(self, collection: str) -> Snapshot | None:
        """Have the collection kept as it is now, None where the engine does not do that.

        Raises:
            StoreError: it could not be, or not the whole of it.
        """

    def __enter__(self) -> Store:
        """Return the store, which is closed when the block ends."""

    def __exit__(self, *_: object) -> None:
        """Close the store."""

    def close(self) -> None:
        """Release what is held; the store cannot be used afterwards."""


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
        raise StoreError(f"the limit of a search must be at least 1, was {limit}.", "ask for 1 or more.")


def check_term_search(collection: str, sparse: bool, limit: int) -> None:
    """Refuse a search for terms in a collection that has none.

    Raises:
        StoreError: says so, and the cure.
    """
    check_limit(limit)
    if not sparse:
        cure = "ingest into a new collection with --sparse"
        raise StoreError(f"collection {collection!r} has no sparse vector, which a search for terms needs.", cure)


def check_search(vectors: FloatArray, dim: int, vector_name: str, limit: int) -> None:
    """Refuse a search that no collection of ours can answer.

    Raises:
        StoreError: names the argument, its value, and what is possible.
    """
    if vector_name not in VECTOR_NAMES:
        raise StoreError(f"there is no vector {vector_name!r}.", f"search {' or '.join(VECTOR_NAMES)}.")
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
