"""Prepare saved hubness for the report: its figures by vector, a chart of N10, the passages found most often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xqg_qdrant.pages.charts import Point, Row, RowChart, draw_rows


class Figure(NamedTuple):
    """A row of a table: its label, an id if it is a passage, and a value for each vector."""

    label: str
    passage_id: str
    values: Sequence[str]


class HubsView(NamedTuple):
    """What the page shows of hubness; `worst` has the passages found most often by each vector."""

    passages: int
    questions: int
    neighbours: int
    vectors: Sequence[str]
    figures: Sequence[Figure]
    worst: Sequence[tuple[str, Sequence[Figure]]]
    chart: RowChart


def view_hubs(saved: Mapping[str, Any]) -> HubsView:
    """Prepare hubness, given as the value of `hubs.json`."""
    passages, questions, vectors = saved["passages"], saved["questions"], saved["vectors"]
    name = f"N{saved['neighbours']}"
    never, most, skewness = ([of[field] for of in vectors.values()] for field in ("never", "most", "skewness"))
    figures = [
        Figure("Passages never found", "", [f"{value} ({value / passages:.1%})" for value in never]),
        Figure(f"Greatest {name}", "", [f"{value} ({value / questions:.1%})" for value in most]),
        Figure(f"Skewness of {name}", "", [f"{value:.2f}" for value in skewness]),
    ]
    worst = [(vector, [_hub(hub, list(vectors)) for hub in of["hubs"]]) for vector, of in vectors.items()]
    chart = _chart(name, passages, vectors)
    return HubsView(passages, questions, saved["neighbours"], list(vectors), figures, worst, chart)


def _hub(saved: Mapping[str, Any], vectors: Sequence[str]) -> Figure:
    counts = [str(saved["found"][name]) for name in vectors]
    return Figure(saved["title"] or saved["passage_id"], saved["passage_id"], counts)


def _chart(name: str, passages: int, vectors: Mapping[str, Any]) -> RowChart:
    """Return the share of the passages in each class of N10, whose bounds double."""
    histograms = [of["histogram"] for of in vectors.values()]
    rows = [
        Row(
            _class_name(bits),
            [Point(100 * histogram[bits] / passages if bits < len(histogram) else 0.0) for histogram in histograms],
        )
        for bits in range(max(map(len, histograms)))
    ]
    never = ", ".join(f"{100 * of['never'] / passages:.1f}% by {vector}" for vector, of in vectors.items())
    return draw_rows(
        f"How many questions find a passage ({name})",
        f"Share of the passages in each class; never found are {never}.",
        "passages, percent",
        list(vectors),
        rows,
    )


def _class_name(bits: int) -> str:
    """Return the counts with so many binary digits, in words."""
    if bits < 2:
        return ("never", "once")[bits]
    return f"{1 << (bits - 1)} to {(1 << bits) - 1}"
