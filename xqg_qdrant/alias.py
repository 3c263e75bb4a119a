"""A name that searches go by, taken over by a new collection when that is complete.

Knows what an alias can be. Knows nothing of engines.
"""

from __future__ import annotations

from typing import NamedTuple

from xqg_qdrant.errors import InputError
from xqg_qdrant.stores.points import check_collection_name
from xqg_qdrant.stores.protocol import Store


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
        cure = "Cure: leave out --alias, or use a Qdrant server (--store)"
        raise InputError(f"{store.location} has no aliases. {cure}.")
    check_collection_name(alias)
    if collection in aliases:
        cure = f"Cure: a new name, or that of the collection itself: --collection {aliases[collection]}"
        raise InputError(f"{collection!r} in {store.location} is itself an alias, of {aliases[collection]!r}. {cure}.")
    if alias == collection or alias in store.collections():
        cure = "Cure: another --alias; a collection keeps its name, so searches by it cannot go over to another one"
        raise InputError(f"{alias!r} is the name of a collection in {store.location}, so no alias can have it. {cure}.")


def switch_alias(store: Store, alias: str, collection: str) -> Switch | None:
    """Have an alias name a collection that is complete; return what changed, None where it was so before.

    Raises:
        InputError: the collection is empty; then the alias stays where it is.
    """
    passages = store.count(collection)
    if not passages:
        raise InputError(
            f"collection {collection!r} in {store.location} holds no passage, so alias {alias!r} stays as it is. "
            "Cure: ingest passages first."
        )
    before = (store.read_aliases() or {}).get(alias)
    if before == collection:
        return None
    passages_before = store.count(before) if before else 0
    store.switch_alias(alias, collection)
    return Switch(alias, collection, passages, before, passages_before)
