"""What the ingest of a whole corpus takes, from a sample of it that was ingested on this machine.

Knows arithmetic and the disk. Knows nothing of models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

# The engine's journal grows with the points to two files of 32 MiB at most, and is emptied again and again.
JOURNAL = "wal"
LARGEST_JOURNAL = 64 << 20
BLOCK_BYTES = 512


class Cost(NamedTuple):
    """A corpus of so many passages, and what so many of them took: seconds, bytes on the disk, and in its journal."""

    corpus: int
    measured: int
    seconds: float
    stored_bytes: int
    journal_bytes: int

    @property
    def total_seconds(self) -> float:
        """Return how long the whole corpus takes."""
        return self.seconds * self.corpus / self.measured

    @property
    def total_bytes(self) -> int:
        """Return what the whole collection takes on the disk, without an index."""
        larger = self.corpus / self.measured
        return round(self.stored_bytes * larger + min(self.journal_bytes * larger, LARGEST_JOURNAL))

    def price(self, price_per_hour: float) -> float:
        """Return what the whole corpus costs on a machine of this price."""
        return self.total_seconds / 3600 * price_per_hour

    def to_json(self, price_per_hour: float | None) -> dict[str, Any]:
        """Return it as JSON."""
        price = None if price_per_hour is None else self.price(price_per_hour)
        return {
            "passages": self.corpus,
            "measured": {"passages": self.measured, "seconds": self.seconds, "bytes": self.stored_bytes},
            "seconds": self.total_seconds,
            "bytes": self.total_bytes,
            "price": price,
        }


def format_bytes(size: int) -> str:
    """Return a size for people.

    >>> format_bytes(1536)
    '1.5 KiB'
    """
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.4g} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def measure_disk(collection: Path) -> tuple[int, int]:
    """Return what the files of an embedded collection really take on the disk: its points, and its journal."""
    sizes = [0, 0]
    for path in collection.rglob("*"):
        if path.is_file():
            # Not their lengths: the engine's files have holes.
            sizes[JOURNAL in path.relative_to(collection).parts] += path.stat().st_blocks * BLOCK_BYTES
    return sizes[0], sizes[1]
