"""Which prompts share a run: by the lengths of the prompts, and the bytes that their rows take.

Knows sizes. Knows nothing of texts, graphs or ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

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
