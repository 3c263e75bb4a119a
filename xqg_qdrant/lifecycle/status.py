"""Report on a collection: its points by recipe, its aliases, and the recall of its index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from xqg_qdrant.corpus.inputs import document_of
from xqg_qdrant.errors import InputError, InUseError, MismatchError
from xqg_qdrant.fingerprint import RETUNING_FIELD, Fingerprint, hash_plain, hash_recipe, is_split, read_layout
from xqg_qdrant.inference import Reading
from xqg_qdrant.lifecycle.models import find_encoder
from xqg_qdrant.model_folders import read_model_folder
from xqg_qdrant.model_folders.description import read_endpoint
from xqg_qdrant.records import XQG_VECTOR
from xqg_qdrant.stores import read_existing_fingerprint
from xqg_qdrant.stores.points import check_collection_name
from xqg_qdrant.stores.protocol import SearchLimitError, Store
from xqg_qdrant.streams import batched

BATCH = 1000
# The embedded engine compares a question with this many vectors in a few milliseconds, so no index is needed.
EXACT_UP_TO = 50_000
SAMPLE = 100
SAMPLED_PASSAGES = 1000
DEPTH = 10


class Status(NamedTuple):
    """The state of a collection.

    Attributes:
        store: Location of the store.
        collection: Its name, or an alias of it.
        fingerprint: The one that new points get.
        recipes: Number of points by the hash of their recipe.
        aliases: Aliases of the collection, with its name; if `collection` is an alias, that one alone.
        paused: Whether a load that is running, or was killed, keeps a server from indexing the collection.
        points: Number of points of another program's collection, of which the recipes are not counted.
        models: Where the models of the collection were found; see `models`.
        reading: How much the encoder reads of the passages, or of a sample of them; None if that is unknown.
        in_use: Which process holds the collection, so that nothing could be counted.
        missing: Number of passages that were stored and are no longer there.
    """

    store: str
    collection: str
    fingerprint: Fingerprint
    recipes: Counter[str]
    aliases: Mapping[str, str] = MappingProxyType({})
    paused: bool = False
    points: int | None = None
    models: Mapping[str, Any] = MappingProxyType({})
    reading: Reading | None = None
    in_use: str = ""
    missing: int = 0

    @property
    def passages(self) -> int:
        """Return the number of stored passages."""
        return self.recipes.total() if self.points is None else self.points

    @property
    def current(self) -> int:
        """Return the number of passages made by the fingerprint's recipe."""
        return self.recipes[hash_recipe(self.fingerprint)]

    @property
    def retuned(self) -> int | None:
        """Return the number of passages done by an unfinished retune; None if there is none."""
        wanted = self.fingerprint.get(RETUNING_FIELD)
        if wanted is None:
            return None
        return sum(self.recipes[made_by] for made_by in {hash_recipe(wanted), hash_plain(wanted)} - {self._plain})

    @property
    def plain(self) -> int:
        """Return the number of passages whose queries are still to be written."""
        return self.recipes[self._plain]

    @property
    def earlier(self) -> int:
        """Return the number of passages made by none of these: by an earlier recipe."""
        return self.passages - self.current - self.plain - (self.retuned or 0)

    @property
    def _plain(self) -> str:
        return hash_plain(self.fingerprint)

    def to_json(self) -> dict[str, Any]:
        """Return the status as JSON values."""
        return {
            "store": self.store,
            "collection": self.collection,
            "aliases": dict(self.aliases),
            "passages": None if self.in_use else self.passages,
            "in_use": self.in_use or None,
            "missing": self.missing,
            "recipes": dict(self.recipes),
            "indexing_paused": self.paused,
            "current": self.current,
            "plain": self.plain,
            "earlier": self.earlier,
            "models": dict(self.models),
            "reading": self.reading and self.reading._asdict(),
            "fingerprint": self.fingerprint,
        }


def read_status(store: Store, collection: str) -> Iterator[Status]:
    """Count a collection's points; yield the counts so far, and last the full ones.

    Raises:
        InputError: there is no such collection.
    """
    fingerprint = read_existing_fingerprint(store, collection)
    recipes = Counter[str]()
    named = store.read_aliases() or {}
    aliases = {alias: name for alias, name in named.items() if collection in (alias, name)}
    models = store.read_models(collection)
    status = Status(store.location, collection, fingerprint, recipes, aliases, models=models)
    yield status
    try:
        if read_layout(fingerprint) is not None:
            yield status._replace(points=store.count(collection))
            return
        status = status._replace(paused=store.is_paused(collection))
        for batch in batched(store.scroll_stored(collection), BATCH):
            recipes.update(stored.recipe for stored in batch)
            yield status
        yield status._replace(missing=count_missing(store, collection, status.passages))
    except InUseError as error:
        yield status._replace(in_use=error.message)


def read_sample(store: Store, collection: str) -> Reading | None:
    """Return how much the encoder reads of up to `SAMPLED_PASSAGES` passages; None if its folder is not found."""
    from xqg_qdrant.inference.tokenizer import read_passages

    path = find_encoder(store, collection, demo=True)
    if path is None or read_endpoint(path) is not None:
        return None
    # Points are ordered by their ids, which are hashes, so the first ones are a random sample.
    sample = islice(store.scroll(collection), SAMPLED_PASSAGES)
    texts = [f"{point.passage.title} {point.passage.text}".strip() for point in sample]
    return read_passages(read_model_folder(path, "encoder"), texts)


def count_collections(store: Store) -> dict[str, int | str]:
    """Return the number of passages of each collection, or why they cannot be counted."""
    counts: dict[str, int | str] = {}
    for name in store.collections():
        try:
            counts[name] = store.count(name)
        except MismatchError:
            counts[name] = "not created by xqg"
        except InUseError:
            counts[name] = "in use by another process"
    return counts


def count_missing(store: Store, collection: str, count: int) -> int:
    """Return how many points of a collection are lost, after `count` were found."""
    recorded = store.read_recorded(collection) or 0
    if recorded <= count:
        return 0
    # Others may have stored or deleted points between the two readings.
    return max(0, min(recorded, store.read_recorded(collection) or 0) - max(count, store.count(collection)))


def list_missing(store: Store, counts: Mapping[str, int | str]) -> dict[str, int]:
    """Return those of the counted collections that lost passages, with the number."""
    missing = {name: count_missing(store, name, count) for name, count in counts.items() if isinstance(count, int)}
    return {name: count for name, count in missing.items() if count}


def list_paused(store: Store, collections: Iterable[str]) -> list[str]:
    """Return those of the collections whose indexing is paused."""
    return [name for name in collections if store.is_paused(name)]


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
    """Delete passages by their ids; if documents were split, also all passages of a document by its id.

    An id that a document has does not mean a passage of another document.

    Args:
        store: where the collection is.
        collection: its name.
        passage_ids: read once, in batches.
        before_first: called once, before the first passage is deleted.

    Raises:
        InputError: there is no such collection.
    """
    if is_split(read_existing_fingerprint(store, collection)):
        return _delete_documents(store, collection, set(passage_ids), before_first)
    deleted = unknown = 0
    for batch in batched(passage_ids, BATCH):
        stored = store.read_content_hashes(collection, batch)
        if stored and not deleted:
            before_first()
        store.delete(collection, list(stored))
        deleted += len(stored)
        unknown += len(set(batch)) - len(stored)
    return Deleted(deleted, unknown)


def _delete_documents(store: Store, collection: str, ids: set[str], before_first: Callable[[], object]) -> Deleted:
    """Look at every stored id, because numbers may be missing: passages without a usable vector are not stored.

    A document may be named like a passage of another one. Then the id means the document.
    """
    named = (document_of(passage.passage_id) for passage in store.scroll_stored(collection))
    documents = {document for document in named if document in ids}
    found, passages, deleted = set(documents), ids - documents, 0
    stored = (passage.passage_id for passage in store.scroll_stored(collection))
    meant = (one for one in stored if one in passages or document_of(one) in documents)
    for batch in batched(meant, BATCH):
        if not deleted:
            before_first()
        found |= passages & set(batch)
        store.delete(collection, batch)
        deleted += len(batch)
    return Deleted(deleted, len(ids - found))


class Switch(NamedTuple):
    """The move of an alias from one collection to another, each with its number of passages."""

    alias: str
    collection: str
    passages: int
    before: str | None = None
    passages_before: int = 0


class Recall(NamedTuple):
    """The share of the exact `depth` best passages that a search finds, over a number of questions."""

    share: float
    depth: int
    questions: int

    def __str__(self) -> str:
        return f"recall@{self.depth} against exact search: {self.share:.3f} ({self.questions} stored vectors)"


def check_alias(store: Store, alias: str, collection: str) -> None:
    """Refuse an alias that cannot name this collection, which may not exist yet.

    Raises:
        InputError: the store has no aliases, or one of the names is taken.
        StoreError: the alias is not a valid name.
    """
    aliases = store.read_aliases()
    if aliases is None:
        cure = "leave out --alias, or use a Qdrant server (--store)"
        raise InputError(f"{store.location} has no aliases.", cure)
    check_collection_name(alias)
    if collection in aliases:
        cure = f"choose a new name, or name the collection itself: --collection {aliases[collection]}"
        raise InputError(f"{collection!r} in {store.location} is itself an alias, of {aliases[collection]!r}.", cure)
    if alias == collection or alias in store.collections():
        cure = "choose another --alias: a collection keeps its name, so searches by that name cannot be switched"
        raise InputError(f"{alias!r} is the name of a collection in {store.location}, not of an alias.", cure)


def switch_alias(store: Store, alias: str, collection: str) -> Switch | None:
    """Point an alias at a collection; return the move, or None if nothing changed.

    Raises:
        InputError: the collection is empty; the alias then stays where it is.
    """
    passages = store.count(collection)
    if not passages:
        raise InputError(
            f"collection {collection!r} in {store.location} holds no passage, so alias {alias!r} was not changed.",
            "ingest passages first",
        )
    before = (store.read_aliases() or {}).get(alias)
    if before == collection:
        return None
    passages_before = store.count(before) if before else 0
    store.switch_alias(alias, collection)
    return Switch(alias, collection, passages, before, passages_before)


def describe_recall(store: Store, collection: str) -> str:
    """Return the recall in words, or why it cannot be measured."""
    try:
        return str(measure_recall(store, collection))
    except SearchLimitError as error:
        return f"The recall cannot be measured: {error.message}"


def measure_recall(store: Store, collection: str, vector_name: str = XQG_VECTOR) -> Recall:
    """Compare searches with and without the index, with some stored vectors as questions.

    The recall of an empty collection is 1.
    """
    # Points are ordered by their ids, which are hashes, so the first ones are a random sample.
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
