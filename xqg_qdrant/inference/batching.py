"""How much goes into one run of a graph, and what happens where a device's memory ends.

A run that finds no room is cut into smaller ones, which are all that is tried from then on; what has run already is
not run again. Results do not change: no text depends on those that share its run.

Knows sizes. Knows nothing of texts, graphs or devices.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from xqg_qdrant.errors import ModelError, OutOfMemoryError

Cut: TypeAlias = Callable[[Sequence[int], int], Iterable[list[int]]]

LOGGER = logging.getLogger(__name__)


class Budget:
    """The most that one run may hold; several threads may use one."""

    def __init__(self, most: int, unit: str) -> None:
        """Begin with `most`, of a unit such as `tokens`."""
        self.most = most
        self._unit = unit
        self._lock = threading.Lock()

    def work(self, count: int, cut: Cut, size: Callable[[list[int]], int], run: Callable[[list[int]], None]) -> None:
        """Run all of `count` items in batches.

        Args:
            count: how many items there are; they are called by their numbers.
            cut: items and the most that a batch may hold → batches, of one item at least.
            size: what a batch holds.
            run: called with each batch.

        Raises:
            ModelError: a single item does not fit.
        """
        left = list(range(count))
        while left:
            done: set[int] = set()
            for batch in cut(left, self.most):
                try:
                    run(batch)
                except OutOfMemoryError as error:
                    if len(batch) == 1:
                        said = " ".join(str(error).split())
                        raise ModelError(
                            f"a single run of {size(batch)} {self._unit} finds no room: {said}.",
                            "free memory of the device (nvidia-smi tells who has it), or use --device cpu",
                        ) from error
                    self._halve(size(batch))
                    break
                done.update(batch)
            left = [item for item in left if item not in done]

    def _halve(self, failed: int) -> None:
        """Go on with half of what found no room, which another thread may have told already."""
        with self._lock:
            if failed // 2 < self.most:
                self.most = failed // 2
                LOGGER.warning("out of memory with %d %s in a run; going on with %d", failed, self._unit, self.most)


# More rows share the reading of the weights; beyond, caches outgrow what is gained.
BATCH_ROWS = 320
BATCH_BYTES = 512 << 20


class Sizes(NamedTuple):
    """How large a prompt is with its rows: their number, the bytes of a row's caches and of a token's cross-attention.

    With `alone` no two prompts share a run.
    """

    rows: int
    row_bytes: int
    token_bytes: int
    alone: bool = False

    def bytes_of(self, prompts: int, longest: int) -> int:
        """Return the bytes of so many prompts, padded to the longest."""
        return prompts * (self.rows * self.row_bytes + longest * self.token_bytes)


def cut_prompts(places: Sequence[int], lengths: Sequence[int], sizes: Sizes, most: int) -> Iterator[list[int]]:
    """Cut prompts, by their lengths, into batches of bounded rows and bytes; the longest come first.

    A prompt beyond the bounds stands alone.
    """
    batch: list[int] = []
    for place in sorted(places, key=lambda place: -lengths[place]):
        count = len(batch) + 1
        longest = lengths[batch[0] if batch else place]
        full = sizes.alone or count * sizes.rows > BATCH_ROWS or sizes.bytes_of(count, longest) > most
        if batch and full:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
