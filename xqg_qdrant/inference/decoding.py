"""Run a decoder step by step until every row ends: ids in, ids out.

The caller passes in the step itself, which also samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Noise = npt.NDArray[np.float32]

# Dropping finished rows moves the caches of a few others, which pays off only if enough rows are dropped.
COMPACT_BELOW = 0.9


class Step(Protocol):
    """One step of a decoder, with its caches."""

    def __call__(self, ids: Ids, noise: Noise) -> Ids:
        """Return the next ids, shape `(rows,)`, from ids of that shape and noise `(rows, top_k)`."""

    def keep(self, places: Ids) -> None:
        """Keep only the rows at these positions, in this order; see `fill_holes`."""


def decode(step: Step, first_ids: Ids, noise: Noise, end_id: int) -> list[list[int]]:
    """Run steps until every row has ended.

    Args:
        step: runs one step.
        first_ids: the first decoder input of each row, shape `(rows,)`.
        noise: Gumbel noise of every row and step, shape `(rows, steps, top_k)`; a row gets at most `steps` ids.
        end_id: the id that ends a row.

    Returns:
        the ids of each row, without the first and the end.
    """
    finished: list[list[int]] = [[] for _ in first_ids]
    rows = np.arange(len(first_ids))
    live = np.ones(len(first_ids), dtype=bool)
    ids = first_ids
    for number in range(noise.shape[1]):
        ids = step(ids, noise[rows, number])
        live &= ids != end_id
        for row, token in zip(rows[live].tolist(), ids[live].tolist(), strict=True):
            finished[row].append(token)
        count = int(live.sum())
        if not count:
            break
        if count <= COMPACT_BELOW * len(rows):
            places = fill_holes(live)
            step.keep(places)
            rows, ids, live = rows[places], ids[places], live[places]
    return finished


def fill_holes(live: npt.NDArray[np.bool_]) -> Ids:
    """Return the positions of the live rows, packed: those at the end move into the holes before them."""
    count = int(live.sum())
    places = np.arange(count)
    places[~live[:count]] = np.flatnonzero(live[count:]) + count
    return places


def gumbel_noise(keys: Sequence[bytes], steps: int, top_k: int) -> Noise:
    """Draw Gumbel noise, shape `(len(keys), steps, top_k)`; a row depends only on its 16-byte key."""
    noise = np.empty((len(keys), steps, top_k), dtype=np.float32)
    for row, key in enumerate(keys):
        random = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
        exponential = random.standard_exponential((steps, top_k), dtype=np.float32)
        noise[row] = -np.log(np.maximum(exponential, np.finfo(np.float32).tiny))
    return noise
