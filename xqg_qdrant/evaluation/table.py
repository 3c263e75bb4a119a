"""A report as a plain table for people: a column for each language, a row for each measure and run.

Knows reports. Knows nothing of how they were measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import fill

from xqg_qdrant.evaluation.comparison import Comparison, Report

DIFFERENCE_ROWS = ("difference", "95% from", "95% to", "p, Holm")


def format_table(report: Report) -> str:
    """Set a report as a plain table; a run that is compared has its difference to the first run below it."""
    languages = list(report.questions)
    measure_width = max(10, *map(len, report.measures))
    width = max(map(len, (*DIFFERENCE_ROWS, *report.values)))
    head = f"{'measure':<{measure_width}} {'run':<{width}} " + "".join(f"{name:>7}" for name in ("macro", *languages))
    lines = [head + ("   won  lost      p" if report.comparisons else "")]
    lines.append("-" * len(lines[0]))
    counts = "".join(f"{report.questions[language]:>7}" for language in languages)
    lines.append(f"{'questions':<{measure_width}} {'':<{width}} {sum(report.questions.values()):>7}{counts}")
    for measure in report.measures:
        rows: list[tuple[str, str]] = []
        for run, measures in report.values.items():
            if measure in measures:
                found = measures[measure]
                cells = [found.macro, *map(found.per_language.get, languages)]
                rows.append((run, "".join(map(_cell, cells))))
            if comparison := report.comparisons.get(run, {}).get(measure):
                rows += zip(DIFFERENCE_ROWS, _compared(comparison, languages), strict=True)
        lines += [
            f"{'' if number else measure:<{measure_width}} {name:<{width}} {cells}".rstrip()
            for number, (name, cells) in enumerate(rows)
        ]
    lines += [fill(f"Note: {note}.", width=100, subsequent_indent="  ") for note in report.notes]
    return "\n".join(lines) + "\n"


def _compared(comparison: Comparison, languages: Iterable[str]) -> tuple[str, str, str, str]:
    """Return the cells of the rows that tell of a difference."""
    overall = comparison.overall
    found = [comparison.per_language.get(language) for language in languages]
    tail = f"{overall.won:>6}{overall.lost:>6}" + _p(overall.p)
    return (
        _cell(overall.points, "+") + "".join(_cell(d and d.points, "+") for d in found) + tail,
        "".join(_cell(d and d.interval[0], "+", 1) for d in (overall, *found)),
        "".join(_cell(d and d.interval[1], "+", 1) for d in (overall, *found)),
        " " * 7 + "".join(_p(d and d.p_holm) for d in found),
    )


def _cell(value: float | None, sign: str = "-", digits: int = 2) -> str:
    return f"{'-':>7}" if value is None else f"{value:{sign}7.{digits}f}"


def _p(value: float | None) -> str:
    return f"{'-':>7}" if value is None else f"{value:>7.4f}"
