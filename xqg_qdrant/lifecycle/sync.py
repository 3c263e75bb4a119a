"""Compare a corpus with a collection, and delete stored passages that left the corpus.

A passage is compared by the content hash that an ingest would store, so nothing is generated or encoded here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from xqg_qdrant.augmentation.pipeline import Row
from xqg_qdrant.corpus.seen_ids import TextSet
from xqg_qdrant.errors import InputError
from xqg_qdrant.fingerprint import (
    GIVEN,
    QUERIES_FIELD,
    RETUNING_FIELD,
    Fingerprint,
    hash_content,
    hash_recipe,
    refuse_mismatch,
)
from xqg_qdrant.records import Passage, QueriedPassage, Reject
from xqg_qdrant.stores.protocol import Store
from xqg_qdrant.streams import batched

BATCH = 1000


class Comparison(NamedTuple):
    """The passages of a corpus and of a collection, counted by state.

    Attributes:
        new: Passages of the corpus that are not stored.
        changed: Passages stored with other content or by another recipe.
        unchanged: Passages stored as an ingest would store them.
        rejected: Rows that cannot be used.
        left: Stored passages that are not in the corpus.
    """

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    rejected: int = 0
    left: int = 0

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
        return (
            f"{self.new} new, {self.changed} changed, {self.unchanged} unchanged, {self.rejected} rejected rows, "
            f"{self.left} stored that the corpus does not hold"
        )


def check_comparable(collection: str, fingerprint: Fingerprint, given: bool) -> None:
    """Refuse a collection that cannot be compared with a corpus with or without `given` queries.

    Raises:
        MismatchError: a retune is unfinished, or only one of corpus and collection has given queries.
    """
    wanted = {name: value for name, value in fingerprint.items() if name not in (QUERIES_FIELD, RETUNING_FIELD)}
    refuse_mismatch(collection, fingerprint, wanted | ({QUERIES_FIELD: GIVEN} if given else {}))


def compare(
    rows: Iterable[Row], store: Store, collection: str, fingerprint: Fingerprint, seen: TextSet
) -> Iterator[Comparison]:
    """Compare a corpus with a collection; yield the counts so far, and last the full ones.

    Only the last comparison counts what left the corpus.

    Args:
        rows: of the corpus; with their queries if the collection was made with given ones.
        store: the store of the collection.
        collection: its name.
        fingerprint: the collection's.
        seen: the id of each passage of the corpus is added to it.
    """
    given = fingerprint.get(QUERIES_FIELD) == GIVEN
    recipe_hash = hash_recipe(fingerprint)
    found = Comparison()
    for batch in batched(rows, BATCH):
        found = _add(found, batch, store, collection, recipe_hash, given)
        for row in batch:
            if not isinstance(row, Reject):
                seen.add(_passage_of(row).passage_id)
        yield found
    yield found._replace(left=sum(1 for stored in store.scroll_stored(collection) if stored.passage_id not in seen))


def delete_left(store: Store, collection: str, seen: TextSet) -> Iterator[int]:
    """Delete stored passages that are not in `seen`; yield the size of each batch.

    Raises:
        InputError: `seen` is empty, which would delete everything.
    """
    if not len(seen):
        raise InputError(
            f"the corpus holds no passage, so all of {collection!r} would be deleted.",
            f"check the file, or delete the collection: xqg delete --collection {collection}",
        )
    left = (stored.passage_id for stored in store.scroll_stored(collection) if stored.passage_id not in seen)
    for passage_ids in batched(left, BATCH):
        store.delete(collection, passage_ids)
        yield len(passage_ids)


def _add(
    found: Comparison, rows: Sequence[Row], store: Store, collection: str, recipe_hash: str, given: bool
) -> Comparison:
    wanted = {}
    for row in rows:
        if not isinstance(row, Reject):
            passage = _passage_of(row)
            queries = row.queries if given and isinstance(row, QueriedPassage) else None
            wanted[passage.passage_id] = hash_content(passage, recipe_hash, queries)
    stored = store.read_content_hashes(collection, list(wanted))
    unchanged = sum(stored.get(passage_id) == content_hash for passage_id, content_hash in wanted.items())
    return found._replace(
        new=found.new + len(wanted) - len(stored),
        changed=found.changed + len(stored) - unchanged,
        unchanged=found.unchanged + unchanged,
        rejected=found.rejected + len(rows) - len(wanted),
    )


def _passage_of(row: Passage | QueriedPassage) -> Passage:
    return row if isinstance(row, Passage) else row.passage
