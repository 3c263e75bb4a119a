"""Next-token loop and stopping: ids in, ids out.

Knows ids, rows and steps. Knows nothing of text, prompts or ONNX Runtime; the step itself, which samples inside its
graph, is handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Noise = npt.NDArray[np.float32]

# Dropping finished rows moves the caches of a few others, which pays only when enough rows are dropped.
COMPACT_BELOW = 0.9


class Step(Protocol):
    """One step of a decoder, which holds its caches."""

    def __call__(self, ids: Ids, noise: Noise) -> Ids:
        """Return the next ids, shape `(rows,)`, from ids of that shape and noise `(rows, top_k)`."""

    def keep(self, places: Ids) -> None:
        """Go on with the rows at these places, in this order; see `fill_holes`."""


def decode(step: Step, first_ids: Ids, noise: Noise, end_id: int) -> list[list[int]]:
    """Run steps until every row has ended.

    Args:
        step: what runs one step.
        first_ids: the first decoder input of each row, shape `(rows,)`.
        noise: Gumbel noise of every row and step, shape `(rows, steps, top_k)`; its second dimension is the largest
            number of ids a row may get.
        end_id: the id that ends a row.

    Returns:
        for each row its ids, without the first and the end.
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
    """Return the places of the live ones, those in front where they are and those from behind in the holes."""
    count = int(live.sum())
    places = np.arange(count)
    places[~live[:count]] = np.flatnonzero(live[count:]) + count
    return places


def gumbel_noise(keys: Sequence[bytes], steps: int, top_k: int) -> Noise:
    """Draw Gumbel noise, shape `(len(keys), steps, top_k)`: each row depends on its own 16-byte key alone."""
    noise = np.empty((len(keys), steps, top_k), dtype=np.float32)
    for row, key in enumerate(keys):
        random = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
        exponential = random.standard_exponential((steps, top_k), dtype=np.float32)
        noise[row] = -np.log(np.maximum(exponential, np.finfo(np.float32).tiny))
    return noise
