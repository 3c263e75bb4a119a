"""Limit the size of one run of a graph, and retry in smaller runs when a device's memory is exhausted.

The smaller limit holds from then on, and finished items are not run again. Results do not change: no text depends on
those that share its run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from xqg_qdrant.errors import ModelError, OutOfMemoryError
from xqg_qdrant.text import count_of

Cut: TypeAlias = Callable[[Sequence[int], int], Iterable[list[int]]]

# More rows share one pass over the weights; beyond this, larger caches cost more than that saves.
BATCH_ROWS = 320
BATCH_BYTES = 512 << 20
MEMORY_CURE = "free memory of the device (nvidia-smi lists the processes), or use --device cpu"

LOGGER = logging.getLogger(__name__)


class Budget:
    """The largest size of one run; several threads may use one budget."""

    def __init__(self, most: int, unit: str) -> None:
        """Start with the limit `most`; `unit` names what it counts, such as `token`."""
        self.most = most
        self._unit = unit
        self._lock = threading.Lock()

    def work(self, count: int, cut: Cut, size: Callable[[list[int]], int], run: Callable[[list[int]], None]) -> None:
        """Run all items in batches.

        Args:
            count: the number of items, which are numbered from 0.
            cut: splits items into batches of at most a size, each of at least one item.
            size: returns the size of a batch.
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
                        reason = " ".join(error.message.split()).removesuffix(".")
                        raise ModelError(
                            f"out of memory: one run of {count_of(size(batch), self._unit)} does not fit: {reason}.",
                            MEMORY_CURE,
                        ) from error
                    self._halve(size(batch))
                    break
                done.update(batch)
            left = [item for item in left if item not in done]

    def _halve(self, failed: int) -> None:
        """Halve the limit after a failed run, unless another thread has already done so."""
        with self._lock:
            if failed // 2 < self.most:
                self.most = failed // 2
                used = count_of(failed, self._unit)
                LOGGER.warning("out of memory with %s in a run; continuing with %d", used, self.most)


class Sizes(NamedTuple):
    """The size of a prompt with its rows.

    Attributes:
        rows: the rows of one prompt.
        row_bytes: the bytes of a row's caches.
        token_bytes: the bytes of a prompt token's cross-attention.
        alone: no two prompts share a run.
    """

    rows: int
    row_bytes: int
    token_bytes: int
    alone: bool = False

    def bytes_of(self, prompts: int, longest: int) -> int:
        """Return the bytes of `prompts` prompts, padded to `longest` tokens."""
        return prompts * (self.rows * self.row_bytes + longest * self.token_bytes)


def cut_prompts(places: Sequence[int], lengths: Sequence[int], sizes: Sizes, most: int) -> Iterator[list[int]]:
    """Split prompts into batches of bounded rows and bytes, the longest prompts first.

    Args:
        places: the prompts' positions in `lengths`.
        lengths: the length of each prompt, in tokens.
        sizes: the size of a prompt.
        most: the most bytes in a batch; a larger prompt has a batch of its own.
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
