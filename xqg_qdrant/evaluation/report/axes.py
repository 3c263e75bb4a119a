"""Values → pixels, linear or logarithmic, and the round values that are written on an axis.

Knows numbers alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Tick(NamedTuple):
    """A place on an axis, and what is written there."""

    at: float
    label: str


class Axis(NamedTuple):
    """Values from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return where a value stands, to a tenth of a pixel.

        >>> Axis(0.01, 1.0, 0, 100, log=True).at(0.1)
        50.0
        """
        low, high, value = (math.log(v) for v in (self.low, self.high, value)) if self.log else (*self[:2], value)
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[Tick]:
        """Return the round values of the axis: at most seven, or 1, 2 and 5 of every power of ten."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            digits = (1, 2, 5) if len(powers) <= 3 else (1,)
            values = [digit * 10.0**power for power in powers for digit in digits]
        else:
            step = tick_step(self.high - self.low)
            values = [round(n * step, 10) for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        slack = 1e-9 * (self.high - self.low)
        shown = [value for value in values if self.low - slack <= value <= self.high + slack]
        return [Tick(self.at(value), f"{value:g}") for value in shown]


def tick_step(span: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that parts a span into at most six.

    >>> tick_step(10), tick_step(0.7), tick_step(100)
    (2.0, 0.2, 20.0)
    """
    power = 10.0 ** math.floor(math.log10(span / 6))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= span / 6 * (1 - 1e-9))
