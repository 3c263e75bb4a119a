"""Compare a corpus with a collection, and make the collection match it.

A passage is compared by the content hash that an ingest would store, so nothing is generated or encoded here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from xqg_qdrant.augmentation.pipeline import Row, Totals, find_awaited
from xqg_qdrant.augmentation.recipe import Recipe, read_recipe
from xqg_qdrant.corpus.files import corpus_files, is_remote
from xqg_qdrant.corpus.inputs import CORPUS, Inputs, document_of
from xqg_qdrant.corpus.seen_ids import TextSet
from xqg_qdrant.errors import InputError
from xqg_qdrant.fingerprint import (
    GIVEN,
    PLAIN,
    QUERIES_FIELD,
    SPLIT_FIELDS,
    Fingerprint,
    hash_content,
    hash_plain,
    hash_recipe,
    is_plain,
    is_split,
    refuse_mismatch,
    without_progress,
)
from xqg_qdrant.records import Passage, QueriedPassage, Reject
from xqg_qdrant.stores import Store, read_existing_fingerprint
from xqg_qdrant.streams import Bars, batched
from xqg_qdrant.text import count_of

BATCH = 1000

FileState: TypeAlias = tuple[tuple[str, int, int, int], ...]


class Comparison(NamedTuple):
    """The passages of a corpus and of a collection, counted by state.

    Attributes:
        new: Passages of the corpus that are not stored.
        changed: Passages stored with other content or by another recipe.
        unchanged: Passages stored as an ingest would store them.
        rejected: Rows that cannot be used.
        left: Stored passages that are not in the corpus, without the surplus.
        surplus: Stored passages beyond the last one of a document that became shorter.
    """

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    rejected: int = 0
    left: int = 0
    surplus: int = 0

    @property
    def rows(self) -> int:
        """Return the number of corpus rows compared."""
        return self.new + self.changed + self.unchanged + self.rejected

    @property
    def differs(self) -> bool:
        """Return whether an ingest of the corpus has anything to store or reject."""
        return self.rows > self.unchanged

    @property
    def deletable(self) -> bool:
        """Return whether passages left the corpus; false while rows are rejected, which may be those passages."""
        return self.left > 0 and not self.rejected

    def __str__(self) -> str:
        surplus = f", {self.surplus} surplus of shorter documents" if self.surplus else ""
        return (
            f"{self.new} new, {self.changed} changed, {self.unchanged} unchanged, "
            f"{count_of(self.rejected, 'rejected row')}, {self.left} stored that the corpus does not hold{surplus}"
        )


class SyncPlan(NamedTuple):
    """What a sync of a collection will change.

    Attributes:
        collection: Its name.
        fingerprint: The collection's, whose recipe new passages get.
        found: The comparison with the corpus.
        seen: The ids of the corpus.
        documents: The ids of its documents, if they are split.
        state: What changes when a file of the corpus is written to; of the moment before it was read.
    """

    collection: str
    fingerprint: Fingerprint
    found: Comparison
    seen: TextSet
    state: FileState
    documents: TextSet


class Synced(NamedTuple):
    """What a sync stored and rejected, and how many passages it deleted."""

    totals: Totals
    deleted: int = 0


def plan_sync(
    store: Store,
    collection: str,
    inputs: Inputs,
    total: int | None,
    bars: Bars,
    tell: Callable[[str, str], object] | None = None,
) -> SyncPlan:
    """Compare a corpus with a collection, with a progress bar of `total` rows.

    `tell` is called with `new`, `changed`, `left` or `surplus` and the id of each passage that differs.

    Raises:
        InputError: there is no such collection, or the corpus cannot be read.
        MismatchError: a retune is unfinished, only one of corpus and collection has given queries, or their documents
            are split in different ways.
    """
    fingerprint = read_existing_fingerprint(store, collection)
    wanted = without_progress(fingerprint)
    wanted.pop(QUERIES_FIELD, None)
    if inputs.queries is not None:
        wanted[QUERIES_FIELD] = GIVEN
    elif is_plain(fingerprint):
        wanted[QUERIES_FIELD] = PLAIN
    splitter = inputs.splitter
    wanted.update(zip(SPLIT_FIELDS, (splitter.tokens, splitter.overlap) if splitter else (None, None), strict=True))
    refuse_mismatch(collection, fingerprint, wanted)
    found, seen, documents, state = Comparison(), TextSet(), TextSet(), read_state(inputs)
    with bars(total, " rows compared") as bar:
        for latest in compare(inputs.read(), store, collection, fingerprint, seen, documents, tell):
            bar.update(latest.rows - found.rows)
            found = latest
    return SyncPlan(collection, fingerprint, found, seen, state, documents)


def read_state(inputs: Inputs) -> FileState:
    """Return name, inode, size and time of each local file of a corpus and its queries."""
    sources = [*inputs.files, *([inputs.queries] if inputs.queries not in (None, CORPUS) else [])]
    files = [Path(file) for source in sources if not is_remote(source) for file in corpus_files(source)]
    return tuple((str(file), (at := file.stat()).st_ino, at.st_size, at.st_mtime_ns) for file in files)


class Watched:
    """Another reading of a corpus, compared with the ids of the first one."""

    def __init__(self, seen: TextSet) -> None:
        self._seen = seen
        self.passages = 0
        self.unknown = 0

    def read(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows, and count their passages and those that were not seen before."""
        for row in rows:
            if not isinstance(row, Reject):
                self.passages += 1
                self.unknown += _passage_of(row).passage_id not in self._seen
            yield row

    @property
    def differs(self) -> bool:
        """Return whether the second reading had other ids than the first."""
        return self.unknown > 0 or self.passages != len(self._seen)


def sync(
    store: Store,
    plan: SyncPlan,
    inputs: Inputs,
    ingest: Callable[[Recipe, Iterable[Row]], Totals],
    before_delete: Callable[[], object] | None,
    bars: Bars,
) -> Synced:
    """Make a collection match its corpus; while rows are rejected, nothing is deleted.

    Args:
        store: the store of the collection.
        plan: from `plan_sync`.
        inputs: the corpus.
        ingest: stores the rows of the corpus by a recipe; called only if something differs.
        before_delete: called before anything changes if passages that left the corpus will be deleted; None deletes
            only the surplus.
        bars: opens progress bars.

    Raises:
        InputError: the corpus holds no passage, so everything would be deleted; or it changed while it was read.
    """
    if before_delete is not None and plan.found.deletable:
        before_delete()
    totals, watched = Totals(), Watched(plan.seen)
    if plan.found.differs:
        totals = ingest(read_recipe(plan.fingerprint), watched.read(inputs.read()))
    if totals.rejected or not (before_delete or plan.found.surplus):
        return Synced(totals)
    if (plan.found.differs and watched.differs) or read_state(inputs) != plan.state:
        raise InputError(
            f"{inputs} changed while it was read, so nothing was deleted. Its passages are stored.",
            "wait until it is complete, and run the same command again",
        )
    deleted = 0
    documents = plan.documents if before_delete is None else None
    with bars(plan.found.surplus + (plan.found.left if before_delete else 0), " passages deleted") as bar:
        for count in delete_left(store, plan.collection, plan.seen, documents):
            deleted += count
            bar.update(count)
    return Synced(totals, deleted)


def compare(
    rows: Iterable[Row],
    store: Store,
    collection: str,
    fingerprint: Fingerprint,
    seen: TextSet,
    documents: TextSet | None = None,
    tell: Callable[[str, str], object] | None = None,
) -> Iterator[Comparison]:
    """Compare a corpus with a collection; yield the counts so far, and last the full ones.

    Only the last comparison counts what left the corpus.

    Args:
        rows: of the corpus; with their queries if the collection was made with given ones.
        store: the store of the collection.
        collection: its name.
        fingerprint: the collection's.
        seen: the id of each passage of the corpus is added to it.
        documents: if documents were split, the id of each one is added to it.
        tell: called with the kind of change and the id of each passage that differs.
    """
    given, split = fingerprint.get(QUERIES_FIELD) == GIVEN, is_split(fingerprint)
    documents = TextSet() if documents is None else documents
    recipe_hash = hash_plain(fingerprint) if is_plain(fingerprint) else hash_recipe(fingerprint)
    found = Comparison()
    for batch in batched(rows, BATCH):
        found = _add(found, batch, store, collection, recipe_hash, given, tell)
        for row in batch:
            if not isinstance(row, Reject):
                passage_id = _passage_of(row).passage_id
                seen.add(passage_id)
                if split:
                    documents.add(document_of(passage_id))
        yield found
    left = surplus = 0
    for stored in store.scroll_stored(collection):
        if stored.passage_id not in seen:
            shorter = split and document_of(stored.passage_id) in documents
            surplus, left = surplus + shorter, left + (not shorter)
            if tell is not None:
                tell("surplus" if shorter else "left", stored.passage_id)
    yield found._replace(left=left, surplus=surplus)


def delete_left(store: Store, collection: str, seen: TextSet, documents: TextSet | None = None) -> Iterator[int]:
    """Delete stored passages that are not in `seen`; yield the size of each batch.

    With `documents`, delete only passages of these.

    Raises:
        InputError: `seen` is empty, which would delete everything.
    """
    if not len(seen):
        raise InputError(
            f"the corpus holds no passage, so all of {collection!r} would be deleted.",
            f"check the file, or delete the collection: xqg delete --collection {collection}",
        )
    left = (
        stored.passage_id
        for stored in store.scroll_stored(collection)
        if stored.passage_id not in seen and (documents is None or document_of(stored.passage_id) in documents)
    )
    for passage_ids in batched(left, BATCH):
        store.delete(collection, passage_ids)
        yield len(passage_ids)


def _add(
    found: Comparison,
    rows: Sequence[Row],
    store: Store,
    collection: str,
    recipe_hash: str,
    given: bool,
    tell: Callable[[str, str], object] | None,
) -> Comparison:
    wanted = {}
    kept = find_awaited(rows, store, collection)
    for row in rows:
        if not isinstance(row, Reject):
            passage = _passage_of(row)
            queries = row.queries if given and isinstance(row, QueriedPassage) else None
            queries = kept.get(passage.passage_id, queries)
            wanted[passage.passage_id] = hash_content(passage, recipe_hash, queries)
    stored = store.read_content_hashes(collection, list(wanted))
    differing = [passage_id for passage_id, content_hash in wanted.items() if stored.get(passage_id) != content_hash]
    if tell is not None:
        for passage_id in differing:
            tell("changed" if passage_id in stored else "new", passage_id)
    unchanged = len(wanted) - len(differing)
    return found._replace(
        new=found.new + len(wanted) - len(stored),
        changed=found.changed + len(stored) - unchanged,
        unchanged=found.unchanged + unchanged,
        rejected=found.rejected + len(rows) - len(wanted),
    )


def _passage_of(row: Passage | QueriedPassage) -> Passage:
    return row if isinstance(row, Passage) else row.passage
