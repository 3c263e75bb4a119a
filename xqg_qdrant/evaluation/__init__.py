"""Measure how good a search is: judgements, runs, measures, significance, saved results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

FEWEST_QUESTIONS = 100
"""For a verdict without a caveat."""
EVALUATION_DEPTH = 100
"""The default number of passages retrieved for each question."""


class Bar(Protocol):
    """A progress bar."""

    def update(self, n: int, /) -> object:
        """Advance by n steps."""


Bars: TypeAlias = Callable[[int | None, str], AbstractContextManager[Bar]]
"""Opens a progress bar for a total (None: unknown) and a unit such as ` passages`."""
