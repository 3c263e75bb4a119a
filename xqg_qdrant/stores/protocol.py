"""The `Store` protocol, and the searches that every store shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from xqg_qdrant.errors import StoreError
from xqg_qdrant.records import AugmentedPassage, FloatArray, ScoredPassage, StoredPassage
from xqg_qdrant.stores.inspection import Inspected
from xqg_qdrant.stores.points import OUR_NAMES, VECTOR_NAMES, Names, check_vector, read_payload, rename
from xqg_qdrant.streams import batched


class SearchLimitError(StoreError):
    """The settings of the collection forbid such a search."""


class Indexing(NamedTuple):
    """Progress of an index: seconds so far, and at the end whether anything `changed`."""

    seconds: float
    changed: bool = False


class Sharding(NamedTuple):
    """How a server spreads new collections over its nodes; None leaves a setting to the server."""

    shard_number: int | None = None
    replication_factor: int | None = None
    write_consistency_factor: int | None = None


class Snapshot(NamedTuple):
    """A snapshot kept by the server: `name` is a file name, `collection` is never an alias."""

    name: str
    collection: str


class Store(Protocol):
    """Collections of passages; every method raises `StoreError` if the engine fails."""

    location: str

    def collections(self) -> list[str]:
        """Return the names of the collections, sorted."""

    def create_collection(self, collection: str, dim: int, fingerprint: Mapping[str, Any]) -> None:
        """Create an empty collection with the named vectors `xqg` and `passage` (dot product, float32).

        It also has the sparse vector `terms` if the fingerprint says so.

        The fingerprint (JSON values) is stored with the collection.

        Raises:
            StoreError: also if the collection already exists.
        """

    def read_fingerprint(self, collection: str) -> dict[str, Any] | None:
        """Return the fingerprint of a collection, None if there is no such collection.

        Raises:
            MismatchError: xqg did not create the collection.
        """

    def write_fingerprint(self, collection: str, fingerprint: Mapping[str, Any]) -> None:
        """Replace the fingerprint of a collection atomically."""

    def read_recorded(self, collection: str) -> int | None:
        """Return the number of points at the end of the last load, less those deleted since; None if unknown.

        A collection with fewer points has lost some. After a kill the recorded number may be too low, never too high.
        """

    def read_models(self, collection: str) -> dict[str, Any]:
        """Return where the models of a collection were found, as `write_models` kept it; empty if nothing is kept."""

    def write_models(self, collection: str, models: Mapping[str, Any]) -> None:
        """Keep JSON values on where the models were found, beside the fingerprint; they identify nothing."""

    def read_dim(self, collection: str) -> int:
        """Return the dimension of a collection's vectors."""

    def read_sharding(self, collection: str) -> Sharding:
        """Return how a server spreads a collection over its nodes; nothing for other stores."""

    def read_content_hashes(self, collection: str, passage_ids: Sequence[str]) -> dict[str, str]:
        """Return the content hash of each stored passage, by id; omit the others."""

    def upsert(self, collection: str, points: Sequence[AugmentedPassage]) -> None:
        """Store the points, replacing existing ones; once this returns they survive a kill.

        Raises:
            StoreError: also if a vector is not finite or has another length; then nothing is written.
        """

    def search(
        self, collection: str, vectors: FloatArray, vector_name: str, limit: int, exact: bool = False
    ) -> list[list[ScoredPassage]]:
        """Return the `limit` best passages for each query vector, shape `(n, dim)`, best first.

        Equal scores are ordered by passage id. `exact` compares with every stored vector instead of using an index,
        which is faster and nearly as good.
        """

    def search_terms(self, collection: str, terms: Sequence[Sequence[int]], limit: int) -> list[list[ScoredPassage]]:
        """Return the `limit` best passages for each query's term ids, best first.

        Only passages that share a term are returned. A passage's score is the sum over the shared terms of
        `ln(1 + (n - d + 0.5) / (d + 0.5))`, where d of the n passages hold the term. Equal scores are ordered by
        passage id; if the limit falls inside a tie, the whole tie is left out.

        Raises:
            StoreError: also if the collection has no sparse vector.
        """

    def bulk_load(self, collection: str, fast: bool) -> AbstractContextManager[None]:
        """Prepare a collection for many upserts; restore it on exit.

        Record the number of points on a regular exit.
        Raises early what a server's limits would refuse later. If points come `fast` and the collection is empty, a
        server starts to index only when all points are stored. Other stores need no preparation.
        """

    def optimise(self, collection: str, above: int = 0) -> Iterator[Indexing]:
        """Index a collection of more than `above` points; yield progress meanwhile.

        For servers, which index by themselves, this only waits. The client's local mode has no index.
        """

    def is_paused(self, collection: str) -> bool:
        """Return whether a load that is running, or was killed, keeps a server from indexing the collection."""

    def quantise(self, collection: str) -> None:
        """Build the index from int8 codes from the next indexing on; cannot be undone.

        The vectors stay: they rescore the best candidates by code. The client's local mode ignores the setting.
        """

    def read_points(self, collection: str, passage_ids: Sequence[str]) -> dict[str, AugmentedPassage]:
        """Return each stored passage with its vectors, by id; omit the others."""

    def scroll(self, collection: str) -> Iterator[AugmentedPassage]:
        """Yield every point with its vectors, ordered by point id.

        Points may be replaced meanwhile.
        """

    def inspect(self, collection: str) -> Iterator[Inspected]:
        """Yield what is wrong with each point, in any order; points may be replaced meanwhile."""

    def scroll_stored(self, collection: str) -> Iterator[StoredPassage]:
        """Yield the id, content hash and recipe of each point, ordered by point id; read no vectors and no texts.

        Points may be deleted meanwhile.
        """

    def delete(self, collection: str, passage_ids: Sequence[str]) -> None:
        """Delete the points of these passages, if stored; once this returns they are gone for good."""

    def delete_collection(self, collection: str) -> None:
        """Delete a collection that xqg created, with all its points.

        Raises:
            StoreError: there is no such collection, or another process uses it.
        """

    def count(self, collection: str) -> int:
        """Return the exact number of points."""

    def read_aliases(self) -> dict[str, str] | None:
        """Return each alias with the collection it names, None if the engine has no aliases.

        An alias can replace a collection's name everywhere except in creation and deletion.
        """

    def switch_alias(self, alias: str, collection: str) -> None:
        """Point an alias at this collection atomically, taking it from any other."""

    def create_snapshot(self, collection: str) -> Snapshot | None:
        """Take a snapshot of the collection; return None if the engine cannot.

        Raises:
            StoreError: the snapshot failed or would be incomplete.
        """

    def __enter__(self) -> Store:
        """Return the store; the end of the block closes it."""

    def __exit__(self, *_: object) -> None:
        """Close the store."""

    def close(self) -> None:
        """Release locks and connections; the store cannot be used afterwards."""


# A wider tie is cut where the engine cuts it; finding its end could read a whole collection.
MAX_TIES = 10_000


def describe_pause(collection: str) -> tuple[str, str]:
    """Return what a collection whose indexing is paused means for searches, and the cure."""
    what = f"collection {collection!r} is not being indexed: an ingest or a copy into it is running, or was killed"
    return f"{what}. Meanwhile searches may be slow", f"if none is running: xqg optimise --collection {collection}"


class RawHit(Protocol):
    """A hit as an engine returns it."""

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
    """Raise a StoreError if the limit of a search is below 1."""
    if limit < 1:
        raise StoreError(f"the limit of a search must be at least 1, was {limit}.", "ask for 1 or more")


def check_term_search(collection: str, sparse: bool, limit: int) -> None:
    """Check a search for terms.

    Raises:
        StoreError: the collection has no sparse vector, or the limit is below 1.
    """
    check_limit(limit)
    if not sparse:
        cure = "ingest into a new collection with --sparse"
        raise StoreError(f"collection {collection!r} has no sparse vector, which term search needs.", cure)


def check_search(vectors: FloatArray, dim: int, vector_name: str, limit: int) -> None:
    """Check the arguments of a vector search.

    Raises:
        StoreError: names the bad argument and its value.
    """
    if vector_name not in VECTOR_NAMES:
        raise StoreError(f"no vector {vector_name!r}.", f"search {' or '.join(VECTOR_NAMES)}")
    check_limit(limit)
    check_vector(vectors, (len(vectors), dim), "the array of query vectors")


def read_hit(hit: RawHit, names: Names = OUR_NAMES) -> ScoredPassage:
    """Return an engine's hit as a record."""
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
    """Return up to `limit` best hits for each query's terms, equal scores ordered by passage id.

    Of hits with equal scores, all are returned or none. Terms shared by more passages than the limit cannot rank
    them, and finding the end of such a tie could read a whole collection.
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
        fetch: asks the engine for the hits of some queries, best first.
        vectors: the queries, as vectors of shape `(dim,)` or as term ids.
        limit: the number of hits per query.
        batch_size: the number of queries per call of `fetch`.
        read: turns a hit into a record.
    """
    found = []
    for queries in batched(vectors, batch_size):
        for query, hits in zip(queries, fetch(queries, limit + 1), strict=True):
            asked = limit + 1
            # The hit after the last one ties with it: fetch the whole tie, as ids decide which hits are returned.
            while len(hits) == asked and hits[limit - 1].score == hits[-1].score and asked < limit + MAX_TIES:
                asked *= 2
                [hits] = fetch([query], asked)
            # Reading the payloads of lower hits would be wasted.
            lowest = hits[limit - 1].score if len(hits) >= limit else -math.inf
            best = [read(hit) for hit in hits if hit.score >= lowest]
            found.append(sorted(best, key=lambda hit: (-hit.score, hit.passage.passage_id))[:limit])
    return found
