"""Compute the coordinates of charts: lines with bands, rows of marks with intervals.

The templates draw them. A chart is about as wide as a phone, because scaling a drawing down would shrink its text.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from xqg_qdrant.text import one_line

WIDTH = 360.0
LINE_HEIGHT = 260.0
ROW_STEP = 12.0
TOP, RIGHT, BOTTOM = 12.0, 16.0, 46.0
LETTER = 6.9
LONGEST_LABEL = 20


class Point(NamedTuple):
    """A measured value with its interval, if any; `x` is unused in a chart of rows."""

    y: float
    low: float | None = None
    high: float | None = None
    x: float = 0.0


class Series(NamedTuple):
    """Points drawn in one colour and with one kind of mark."""

    name: str
    points: Sequence[Point]


class Row(NamedTuple):
    """A row of a chart: one point for each series (None if missing), and a word on the right."""

    label: str
    points: Sequence[Point | None]
    note: str = ""


class Mark(NamedTuple):
    """A drawn point: its position, the ends of its interval along the value axis, and its label."""

    x: float
    y: float
    low: float | None
    high: float | None
    label: str


class Curve(NamedTuple):
    """A drawn series: the paths of its line and of its band (empty if there is none), and its marks."""

    name: str
    line: str
    band: str
    marks: Sequence[Mark]


class Baseline(NamedTuple):
    """A value that others are compared with: the position of its line, and its band from `start` over `length`."""

    name: str
    at: float
    start: float
    length: float


class LineChart(NamedTuple):
    """A chart of values over a number."""

    title: str
    description: str
    x_label: str
    y_label: str
    left: float
    width: float
    height: float
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    curves: Sequence[Curve]
    baseline: Baseline | None


class DrawnRow(NamedTuple):
    """A drawn row; `span` is the line between marks without intervals."""

    y: float
    label: str
    full_label: str
    marks: Sequence[Mark | None]
    span: tuple[float, float] | None
    note: str


class RowChart(NamedTuple):
    """A chart of values in rows, for things without an order."""

    title: str
    description: str
    x_label: str
    left: float
    width: float
    height: float
    x_ticks: Sequence[Tick]
    names: Sequence[str]
    rows: Sequence[DrawnRow]
    baseline: Baseline | None


def draw_lines(
    title: str,
    description: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    *,
    log: bool = False,
    whole: bool = False,
    baseline: tuple[str, Point] | None = None,
) -> LineChart:
    """Draw values over a number, with bands if every point of a series has an interval.

    Args:
        title: The title, in a few words.
        description: A text alternative, with the main result.
        x_label: The label of the number.
        y_label: The label of the value.
        series: The lines.
        log: Use a logarithmic axis for the number, which must be positive.
        whole: The number is an integer: no ticks between 1 and 2.
        baseline: The name and value of something that does not depend on the number.
    """
    points = [point for one in series for point in one.points]
    y = _value_axis([*points, baseline[1]] if baseline else points, LINE_HEIGHT - BOTTOM, TOP)
    y_ticks = y.ticks()
    left = 28 + LETTER * max(len(tick.label) for tick in y_ticks)
    numbers = [point.x for point in points]
    low, high = min(numbers), max(numbers)
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
    x = Axis(low, high, left + 8, WIDTH - RIGHT, log)
    x_ticks = [tick for tick in x.ticks() if not whole or "." not in tick.label]
    curves = [_curve(one, x, y, x_label) for one in series]
    drawn = None
    if baseline:
        name, point = baseline
        top, bottom = (y.at(point.y if end is None else end) for end in (point.high, point.low))
        drawn = Baseline(f"{name}: {point.y:.2f}", y.at(point.y), top, bottom - top)
    return LineChart(title, description, x_label, y_label, left, WIDTH, LINE_HEIGHT, x_ticks, y_ticks, curves, drawn)


def draw_rows(
    title: str,
    description: str,
    x_label: str,
    names: Sequence[str],
    rows: Sequence[Row],
    *,
    zero: bool = False,
    baseline: tuple[str, Point] | None = None,
) -> RowChart:
    """Draw rows, each with a mark for each series.

    Args:
        title: The title, in a few words.
        description: A text alternative, with the main result.
        x_label: The label of the values.
        names: The names of the series, in the order of the points of each row.
        rows: The rows from top to bottom.
        zero: The values are differences: draw a line at zero.
        baseline: The name and value of something that all are compared with.
    """
    points = [point for row in rows for point in row.points if point is not None]
    if zero:
        baseline = ("no difference", Point(0.0))
    labels = [shorten_label(row.label) for row in rows]
    left = 14 + LETTER * max(map(_columns, labels))
    note = 12 + LETTER * max(len(row.note) for row in rows)
    x = _value_axis([*points, baseline[1]] if baseline else points, left + 6, WIDTH - max(RIGHT, note))
    # Intervals on one line would overlap; values without intervals are easier to compare on one line.
    apart = ROW_STEP if any(point.low is not None for point in points) else 0.0
    step = max(2 * ROW_STEP, apart * len(names) + ROW_STEP / 2)
    drawn = []
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        middle = TOP + (number + 0.5) * step
        marks = []
        for at, point in enumerate(row.points):
            y = middle + (at - (len(row.points) - 1) / 2) * apart
            marks.append(
                point
                and Mark(x.at(point.y), y, *_ends(point, x), f"{row.label}, {names[at]}: {describe_point(point, zero)}")
            )
        places = [mark.x for mark in marks if mark] if not apart else []
        span = (min(places), max(places)) if places else None
        drawn.append(DrawnRow(middle, label, row.label, marks, span, row.note))
    band = None
    if baseline:
        name, point = baseline
        start, end = (x.at(point.y if side is None else side) for side in (point.low, point.high))
        band = Baseline(name if zero else f"{name}: {point.y:.2f}", x.at(point.y), start, end - start)
    height = TOP + step * len(rows) + BOTTOM
    return RowChart(title, description, x_label, left, WIDTH, height, x.ticks(), names, drawn, band)


def describe_point(point: Point, signed: bool = False) -> str:
    """Return a value with its interval, as text.

    >>> describe_point(Point(46.25, 45.0, 47.5))
    '46.25 (45.00 to 47.50)'
    """
    sign = "+" if signed else ""
    interval = "" if point.low is None or point.high is None else f" ({point.low:{sign}.2f} to {point.high:{sign}.2f})"
    return f"{point.y:{sign}.2f}{interval}"


def shorten_label(label: str) -> str:
    """Truncate a label to leave room for the drawing, after control characters have become escapes."""
    label = one_line(label)
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"


def _columns(label: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in label)


def _value_axis(points: Sequence[Point], start: float, end: float) -> Axis:
    """Return an axis that covers every value and interval, with some room at both ends."""
    values = [value for point in points for value in (point.y, point.low, point.high) if value is not None]
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 1.0
    return Axis(low - room, high + room, start, end)


def _ends(point: Point, axis: Axis) -> tuple[float | None, float | None]:
    if point.low is None or point.high is None:
        return None, None
    return axis.at(point.low), axis.at(point.high)


def _curve(series: Series, x: Axis, y: Axis, x_label: str) -> Curve:
    points = sorted(series.points, key=lambda point: point.x)
    marks = [
        Mark(x.at(p.x), y.at(p.y), *_ends(p, y), f"{series.name}, {x_label} {p.x:g}: {describe_point(p)}")
        for p in points
    ]
    band = ""
    if all(mark.low is not None for mark in marks):
        band = _path([(mark.x, mark.high) for mark in marks] + [(mark.x, mark.low) for mark in marks[::-1]]) + "Z"
    return Curve(series.name, _path([(mark.x, mark.y) for mark in marks]), band, marks)


def _path(corners: Sequence[tuple[float, float | None]]) -> str:
    return "M" + "L".join(f"{x},{y}" for x, y in corners)


class Tick(NamedTuple):
    """A position on an axis, and its label."""

    at: float
    label: str


class Axis(NamedTuple):
    """A mapping of values from `low` to `high` to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the position of a value, rounded to a tenth of a pixel.

        >>> Axis(0.01, 1.0, 0, 100, log=True).at(0.1)
        50.0
        """
        low, high, value = (math.log(v) for v in (self.low, self.high, value)) if self.log else (*self[:2], value)
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self) -> list[Tick]:
        """Return the ticks: at most seven, or 1, 2 and 5 times each power of ten."""
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
    """Return the smallest of 1, 2 and 5 times a power of ten that divides a span into at most six steps.

    >>> tick_step(10), tick_step(0.7), tick_step(100)
    (2.0, 0.2, 20.0)
    """
    power = 10.0 ** math.floor(math.log10(span / 6))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= span / 6 * (1 - 1e-9))
