"""Compare a collection with its checksums and its recorded number of points, to notice damage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from xqg_qdrant.errors import DamageError
from xqg_qdrant.fingerprint import read_layout
from xqg_qdrant.lifecycle.status import count_missing
from xqg_qdrant.stores import read_existing_fingerprint
from xqg_qdrant.stores.inspection import Inspected
from xqg_qdrant.stores.protocol import Store
from xqg_qdrant.streams import batched

BATCH = 256


class Verification(NamedTuple):
    """What was found in a collection.

    Attributes:
        store: Location of the store.
        collection: Its name.
        points: Number of points looked at.
        unchecked: Number of points without a checksum, of which only the passage was compared with its hash.
        damaged: Points that are not as xqg stored them.
        missing: Number of points that are no longer there.
        unrecorded: Number of points above the recorded one, whose loss would not be noticed.
        foreign: Whether another program made the collection, so that only what xqg added was looked at.
    """

    store: str
    collection: str
    points: int = 0
    unchecked: int = 0
    damaged: tuple[Inspected, ...] = ()
    missing: int = 0
    unrecorded: int = 0
    foreign: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the findings as JSON values."""
        damaged = [{"id": point.passage_id, "faults": list(point.faults)} for point in self.damaged]
        return {**self._asdict(), "damaged": damaged}


def verify(store: Store, collection: str) -> Iterator[Verification]:
    """Inspect every point; yield the findings so far, and last all of them.

    Raises:
        InputError: there is no such collection.
    """
    foreign = read_layout(read_existing_fingerprint(store, collection)) is not None
    found = Verification(store.location, collection, foreign=foreign)
    for batch in batched(store.inspect(collection), BATCH):
        found = found._replace(
            points=found.points + len(batch),
            unchecked=found.unchecked + sum(not point.checked for point in batch),
            damaged=found.damaged + tuple(point for point in batch if point.faults),
        )
        yield found
    recorded = store.read_recorded(collection) or 0
    yield found._replace(
        missing=count_missing(store, collection, found.points),
        unrecorded=0 if foreign else max(0, found.points - recorded),
    )


def refuse_damage(found: Verification) -> None:
    """Raise an error if a collection is damaged.

    Raises:
        DamageError: says how many points are, and what helps.
    """
    counts = {"damaged": len(found.damaged), "missing": found.missing}
    wrong = " and ".join(f"{count} {what}" for what, count in counts.items() if count)
    if not wrong:
        return
    cure = "ingest the same corpus again, which stores what is missing"
    if found.damaged:
        cure = f"delete the damaged passages (xqg delete --collection {found.collection} ID…), and ingest them again"
    if not all(point.named for point in found.damaged):
        cure = "restore it from a backup, or ingest the corpus into a new collection"
    if found.foreign:
        again = "if that does not help, have its own program write these points again before"
        cure = f"run the same xqg augment again; {again}"
    what = f"collection {found.collection!r} in {found.store} is damaged: of {found.points + found.missing} passages"
    raise DamageError(f"{what}, {wrong}.", cure)
