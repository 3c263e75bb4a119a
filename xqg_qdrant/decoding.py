"""Next-token loop and stopping: ids in, ids out.

Knows ids, rows and steps. Knows nothing of text, prompts or ONNX Runtime; the step itself, which samples inside its
graph, is handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Noise = npt.NDArray[np.float32]
State = TypeVar("State")

# Dropping finished rows copies the caches of the others, which pays only when enough rows are dropped.
COMPACT_BELOW = 0.75


class Step(Protocol[State]):
    """One step of a decoder over `groups` encoder inputs with `samples` rows each."""

    def __call__(self, ids: Ids, noise: Noise, state: State) -> tuple[Ids, State]:
        """Return the next ids, shape `(groups, samples)`, from ids of that shape and noise `(rows, top_k)`."""

    def select(self, state: State, rows: Ids) -> State:
        """Keep these rows of the caches; `rows` has shape `(groups, samples)` and counts through all groups."""


class Decoder(Generic[State]):
    """Runs steps until every row has ended."""

    def __init__(self, step: Step[State], end_id: int) -> None:
        self._step = step
        self._end_id = end_id

    def decode(self, first_ids: Ids, noise: Noise, state: State) -> list[list[int]]:
        """Decode every row to its end.

        Args:
            first_ids: the first decoder input of each row, shape `(groups, samples)`.
            noise: Gumbel noise of every row and step, shape `(rows, steps, top_k)`, rows counted through all groups;
                its second dimension is the largest number of ids a row may get.
            state: the caches before the first step.

        Returns:
            for each row its ids, without the first and the end.
        """
        groups, samples = first_ids.shape
        finished: list[list[int]] = [[] for _ in range(groups * samples)]
        live = np.ones(groups * samples, dtype=bool)
        # position in the running batch → row; padding repeats a finished row
        rows = np.arange(groups * samples).reshape(groups, samples)
        ids = first_ids
        for step in range(noise.shape[1]):
            ids, state = self._step(ids, noise[rows.ravel(), step], state)
            for row, token in zip(rows.ravel().tolist(), ids.ravel().tolist(), strict=True):
                if token == self._end_id:
                    live[row] = False
                elif live[row]:
                    finished[row].append(token)
            if not live.any():
                break
            widest = int(live[rows].sum(axis=1).max())
            if widest <= COMPACT_BELOW * rows.shape[1]:
                places = _live_first(live[rows], widest)
                state = self._step.select(state, places + np.arange(groups)[:, None] * rows.shape[1])
                rows, ids = np.take_along_axis(rows, places, axis=1), np.take_along_axis(ids, places, axis=1)
        return finished


def _live_first(live: npt.NDArray[np.bool_], count: int) -> Ids:
    """Return for each group the places of its live rows, filled up with finished ones, shape `(groups, count)`."""
    return np.argsort(~live, axis=1, kind="stable")[:, :count]


def gumbel_noise(keys: Sequence[bytes], steps: int, top_k: int) -> Noise:
    """Draw Gumbel noise, shape `(len(keys), steps, top_k)`: each row depends on its own 16-byte key alone."""
    noise = np.empty((len(keys), steps, top_k), dtype=np.float32)
    for row, key in enumerate(keys):
        random = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
        exponential = random.standard_exponential((steps, top_k), dtype=np.float32)
        noise[row] = -np.log(np.maximum(exponential, np.finfo(np.float32).tiny))
    return noise
