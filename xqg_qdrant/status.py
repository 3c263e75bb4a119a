"""What a collection holds, and which recipe made it.

Knows stores and fingerprints. Prints nothing itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from xqg_qdrant.errors import InputError
from xqg_qdrant.fingerprint import RETUNING_FIELD, Fingerprint, hash_recipe
from xqg_qdrant.stores.points import batched
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


def read_existing_fingerprint(store: Store, collection: str) -> Fingerprint:
    """Return the fingerprint of a collection that must be there.

    Raises:
        InputError: it is not; names the collections that are.
    """
    fingerprint = store.read_fingerprint(collection)
    if fingerprint is None:
        others = ", ".join(store.collections()) or "none"
        raise InputError(
            f"there is no collection {collection!r} in {store.location} (there: {others}). "
            f"Make it with: xqg ingest FILE --collection {collection}"
        )
    return fingerprint


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
