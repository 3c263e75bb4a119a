"""What a collection holds, and which recipe made it.

Knows stores and fingerprints. Prints nothing itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from xqg_qdrant.errors import InputError, MismatchError
from xqg_qdrant.fingerprint import RETUNING_FIELD, Fingerprint, hash_recipe
from xqg_qdrant.records import XQG_VECTOR
from xqg_qdrant.stores import read_existing_fingerprint
from xqg_qdrant.stores.points import batched, check_collection_name
from xqg_qdrant.stores.protocol import Store

BATCH = 1000


class Status(NamedTuple):
    """A collection: its points by the hash of the recipe that made them, and the fingerprint that new ones get.

    `aliases` are those that name it; where `collection` is an alias, that one, with the name of the collection.
    """

    store: str
    collection: str
    fingerprint: Fingerprint
    recipes: Counter[str]
    aliases: Mapping[str, str] = MappingProxyType({})

    @property
    def passages(self) -> int:
        """Return how many passages are stored."""
        return self.recipes.total()

    @property
    def current(self) -> int:
        """Return how many of them were made by the recipe of the fingerprint."""
        return self.recipes[hash_recipe(self.fingerprint)]

    @property
    def retuned(self) -> int | None:
        """Return how many of them an unfinished retune has reached; None where there is none."""
        wanted = self.fingerprint.get(RETUNING_FIELD)
        return None if wanted is None else self.recipes[hash_recipe(wanted)]

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        return {
            "store": self.store,
            "collection": self.collection,
            "aliases": dict(self.aliases),
            "passages": self.passages,
            "recipes": dict(self.recipes),
            "fingerprint": self.fingerprint,
        }


def read_status(store: Store, collection: str) -> Iterator[Status]:
    """Yield what was counted so far, at last all of it.

    Raises:
        InputError: there is no such collection.
    """
    fingerprint = read_existing_fingerprint(store, collection)
    recipes = Counter[str]()
    named = store.read_aliases() or {}
    aliases = {alias: name for alias, name in named.items() if collection in (alias, name)}
    yield Status(store.location, collection, fingerprint, recipes, aliases)
    for batch in batched(store.scroll_stored(collection), BATCH):
        recipes.update(stored.recipe for stored in batch)
        yield Status(store.location, collection, fingerprint, recipes, aliases)


def count_collections(store: Store) -> dict[str, int | None]:
    """Return the number of passages of each collection; None for one that xqg did not create."""
    counts: dict[str, int | None] = {}
    for name in store.collections():
        try:
            counts[name] = store.count(name)
        except MismatchError:
            counts[name] = None
    return counts


def list_aliases(store: Store, collection: str) -> list[str]:
    """Return the aliases that name a collection."""
    return [alias for alias, name in (store.read_aliases() or {}).items() if name == collection]


class Deleted(NamedTuple):
    """How many passages were deleted, and how many of the given ids are not stored."""

    passages: int
    unknown: int


def delete_passages(
    store: Store, collection: str, passage_ids: Iterable[str], before_first: Callable[[], object]
) -> Deleted:
    """Delete passages by their ids.

    Args:
        store: where the collection is.
        collection: its name.
        passage_ids: read once, in batches.
        before_first: called once, before the first passage is deleted.

    Raises:
        InputError: there is no such collection.
    """
    read_existing_fingerprint(store, collection)
    deleted = unknown = 0
    for batch in batched(passage_ids, BATCH):
        stored = store.read_content_hashes(collection, batch)
        if stored and not deleted:
            before_first()
        store.delete(collection, list(stored))
        deleted += len(stored)
        unknown += len(set(batch)) - len(stored)
    return Deleted(deleted, unknown)


class Switch(NamedTuple):
    """An alias, the collection that it names now, and the one before, each with its number of passages."""

    alias: str
    collection: str
    passages: int
    before: str | None = None
    passages_before: int = 0


def check_alias(store: Store, alias: str, collection: str) -> None:
    """Make sure that an alias can name a collection, which may not be there yet.

    Raises:
        InputError: says why not, and the cure.
        StoreError: nothing can have this name.
    """
    aliases = store.read_aliases()
    if aliases is None:
        cure = "leave out --alias, or use a Qdrant server (--store)"
        raise InputError(f"{store.location} has no aliases.", cure)
    check_collection_name(alias)
    if collection in aliases:
        cure = f"a new name, or that of the collection itself: --collection {aliases[collection]}"
        raise InputError(f"{collection!r} in {store.location} is itself an alias, of {aliases[collection]!r}.", cure)
    if alias == collection or alias in store.collections():
        cure = "another --alias; a collection keeps its name, so searches by it cannot go over to another one"
        raise InputError(f"{alias!r} is the name of a collection in {store.location}, so no alias can have it.", cure)


def switch_alias(store: Store, alias: str, collection: str) -> Switch | None:
    """Have an alias name a collection that is complete; return what changed, None where it was so before.

    Raises:
        InputError: the collection is empty; then the alias stays where it is.
    """
    passages = store.count(collection)
    if not passages:
        raise InputError(
            f"collection {collection!r} in {store.location} holds no passage, so alias {alias!r} stays as it is.",
            "ingest passages first.",
        )
    before = (store.read_aliases() or {}).get(alias)
    if before == collection:
        return None
    passages_before = store.count(before) if before else 0
    store.switch_alias(alias, collection)
    return Switch(alias, collection, passages, before, passages_before)


# Up to so many points the embedded engine compares with every vector in a few milliseconds.
EXACT_UP_TO = 50_000
SAMPLE = 100
DEPTH = 10


class Recall(NamedTuple):
    """The share of the exact best `depth` passages that a search finds, over so many questions."""

    share: float
    depth: int
    questions: int

    def __str__(self) -> str:
        return f"recall@{self.depth} against exact search: {self.share:.3f} ({self.questions} stored vectors)"


def measure_recall(store: Store, collection: str, vector_name: str = XQG_VECTOR) -> Recall:
    """Search with some stored vectors as questions, with the index and without it, and compare.

    Recall is 1 for a collection without points.
    """
    # Points come in the order of their ids, which are hashes: the first ones are a random sample.
    sample = [point.vectors[vector_name] for point in islice(store.scroll(collection), SAMPLE)]
    if not sample:
        return Recall(1.0, DEPTH, 0)
    found, exact = (
        [
            {hit.passage.passage_id for hit in hits}
            for hits in store.search(collection, np.stack(sample), vector_name, DEPTH, exact=exact)
        ]
        for exact in (False, True)
    )
    shares = [len(ours & best) / len(best) for ours, best in zip(found, exact, strict=True)]
    return Recall(float(np.mean(shares)), DEPTH, len(sample))
