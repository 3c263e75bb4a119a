"""Prepare saved evaluations and hubness for the report: tables, charts, and all runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xqg_qdrant.evaluation.baselines import CONTROL
from xqg_qdrant.evaluation.comparison import (
    Comparison,
    Difference,
    Report,
    Values,
    compare_values,
    describe_content,
    is_gain,
    make_report,
)
from xqg_qdrant.evaluation.significance import TestName, bootstrap_interval, stars_of
from xqg_qdrant.pages.charts import Point, Row, RowChart, describe_point, draw_rows
from xqg_qdrant.records import XQG_VECTOR

MACRO = "average"
TESTS = {"randomisation": "randomisation test", "t": "t-test", "mcnemar": "McNemar test"}


class Gain(NamedTuple):
    """A run's difference from the first run: points with interval and p-value, and the questions won and lost."""

    points: float
    low: float
    high: float
    p: float | None
    stars: str
    won: int
    lost: int


class Line(NamedTuple):
    """A row of a table: a language, or their average, with each run's value and each compared run's gain."""

    language: str
    questions: int
    values: Sequence[float | None]
    gains: Sequence[Gain | None]


class MeasureTable(NamedTuple):
    """A measure by language; `compared` are the runs with gains over the first of `runs`."""

    measure: str
    runs: Sequence[str]
    compared: Sequence[str]
    lines: Sequence[Line]
    total: Line


class Evaluation(NamedTuple):
    """What the page shows of an evaluation; `counted` is the unit of the figures, `questions` or `pairs`."""

    counted: str
    explained: str
    lead: Sequence[str]
    tables: Sequence[MeasureTable]
    charts: Sequence[RowChart]


class RunLine(NamedTuple):
    """A run of one of several evaluations; `gain` is over the first of all runs."""

    source: str
    run: str
    macro: Point
    best: bool
    per_language: Mapping[str, float]
    gain: Gain | None


class SideBySide(NamedTuple):
    """The runs of several evaluations of the same questions, in one measure."""

    measure: str
    questions: int
    languages: Sequence[str]
    lines: Sequence[RunLine]
    chart: RowChart


def view_evaluation(
    report: Report,
    languages: Mapping[str, str],
    test: TestName = "randomisation",
    content: Difference | None = None,
) -> Evaluation:
    """Prepare the tables and charts of a report.

    Args:
        report: The report. One that was saved as JSON has no values of single questions.
        languages: The language of each question.
        test: The test of the p-values.
        content: The gain of `xqg` over its control, if the report has no values of single questions.
    """
    tables = [_table(report, measure, languages) for measure in report.measures]
    first = tables[0]
    owed = _content_sentence(report, first.measure, languages, content, test)
    return Evaluation(
        "questions",
        f"p is from a paired {TESTS[test]}; per-language p-values are Holm-corrected.",
        [*(_sentence(first, number) for number in range(len(first.compared))), *owed],
        tables,
        [*_gain_chart(first), _value_chart(report, first, languages)],
    )


def view_robustness(report: Report) -> Evaluation:
    """Prepare the tables and charts of the agreement of pairs, where more is not always better."""
    tables = [_table(report, measure, {}) for measure in report.measures]
    tests = "p is from a paired randomisation test, for AUC from DeLong's"
    explained = f"{tests}; per-language p-values are Holm-corrected."
    charts = [*_gain_chart(tables[0]), _value_chart(report, tables[0], {})]
    return Evaluation("pairs", explained, report.notes, tables, charts)


def view_side_by_side(
    runs: Sequence[tuple[str, str, Values]], measure: str, languages: Mapping[str, str], test: TestName
) -> SideBySide:
    """Prepare runs on the same questions, each given as the name of its evaluation, its name, and its values."""
    report = make_report(languages, {str(n): {measure: values} for n, (_, _, values) in enumerate(runs)}, test)
    best = max(values.macro for _, _, values in runs)
    lines = []
    for number, (source, run, values) in enumerate(runs):
        gain = _gain(report.comparisons[str(number)][measure].overall) if number else None
        macro = _macro_point(values, languages)
        lines.append(RunLine(source, run, macro, values.macro == best, values.per_language, gain))
    first = lines[0]
    chart = draw_rows(
        f"{measure} of all runs",
        f"Average over the languages, with 95% intervals; the line is {first.run} of {first.source}.",
        f"{measure}, percent",
        ["runs"],
        [Row(f"{line.run} · {line.source}", [line.macro], line.gain.stars if line.gain else "") for line in lines],
        baseline=(f"{first.run} of {first.source}", Point(first.macro.y)),
    )
    values = runs[0][2]
    return SideBySide(measure, len(values.per_query), list(values.per_language), lines, chart)


def _table(report: Report, measure: str, languages: Mapping[str, str]) -> MeasureTable:
    """Return a measure by language, without the runs that lack it."""
    values = {run: measures[measure] for run, measures in report.values.items() if measure in measures}
    comparisons = {run: found[measure] for run, found in report.comparisons.items() if measure in found}
    reference = next(iter(values.values()))
    counts = dict.fromkeys(reference.per_language, 0)
    for query_id in reference.per_query:
        counts[languages[query_id]] += 1
    if not reference.per_query:
        of_languages = next(iter(comparisons.values())).per_language
        counts = {language: of.won + of.lost + of.tied for language, of in of_languages.items()}
    lines = [
        Line(
            language,
            count,
            [of.per_language.get(language) for of in values.values()],
            [_language_gain(comparison, language) for comparison in comparisons.values()],
        )
        for language, count in counts.items()
    ]
    total = Line(
        MACRO,
        sum(counts.values()),
        [of.macro for of in values.values()],
        [_gain(comparison.overall) for comparison in comparisons.values()],
    )
    return MeasureTable(measure, list(values), list(comparisons), lines, total)


def _language_gain(comparison: Comparison, language: str) -> Gain | None:
    difference = comparison.per_language.get(language)
    return difference and _gain(difference)


def _gain(difference: Difference) -> Gain:
    """Return a difference; for a language, the stars are those of the Holm-corrected p-value."""
    p = difference.p if difference.p_holm is None else difference.p_holm
    return Gain(difference.points, *difference.interval, p, stars_of(p), difference.won, difference.lost)


def _sentence(table: MeasureTable, number: int) -> str:
    """Compare a run with the first, as a sentence or two."""
    run = table.compared[number]
    gain = table.total.gains[number]
    if gain is None:
        return ""
    values = dict(zip(table.runs, table.total.values, strict=True))
    p = "" if gain.p is None else f", p = {gain.p:.4f}"
    text = (
        f"{table.measure}: {run} {values[run]:.2f}, {table.runs[0]} {values[table.runs[0]]:.2f}, a difference of "
        f"{gain.points:+.2f} (95% interval {gain.low:+.2f} to {gain.high:+.2f}{p})."
    )
    if gain.p is not None and not gain.stars:
        text += " This could be chance."
    if len(table.lines) > 1 and gain.p is not None:
        stars = [(line.language, line.gains[number]) for line in table.lines]
        better = [language for language, found in stars if found and found.stars and found.points > 0]
        worse = [language for language, found in stars if found and found.stars and found.points < 0]
        text += f" Significantly better in {', '.join(better) or 'no language'}, worse in {', '.join(worse) or 'none'}."
    return text


def _content_sentence(
    report: Report, measure: str, languages: Mapping[str, str], content: Difference | None, test: TestName
) -> list[str]:
    """Return how much of a significant gain of `xqg` its queries' content gives, if the control was measured."""
    gained = report.comparisons.get(XQG_VECTOR, {}).get(measure)
    control = report.values.get(CONTROL, {}).get(measure)
    if gained is None or control is None or not is_gain(gained.overall):
        return []
    if control.per_query:
        content = compare_values(control, report.values[XQG_VECTOR][measure], languages, test).overall
    return [describe_content(gained.overall, content)] if content else []


def _gain_chart(table: MeasureTable) -> list[RowChart]:
    if not table.compared:
        return []
    rows = [
        Row(
            line.language,
            [gain and Point(gain.points, gain.low, gain.high) for gain in line.gains],
            # With several runs it would be unclear whose stars they are; the table has them.
            line.gains[0].stars if len(line.gains) == 1 and line.gains[0] else "",
        )
        for line in _lines(table)
    ]
    return [
        draw_rows(
            f"{table.measure}: differences from {table.runs[0]}",
            "Differences with 95% bootstrap intervals; the line is no difference.",
            "percentage points",
            table.compared,
            rows,
            zero=True,
        )
    ]


def _value_chart(report: Report, table: MeasureTable, languages: Mapping[str, str]) -> RowChart:
    macro = {run: _macro_point(report.values[run][table.measure], languages) for run in table.runs}
    return draw_rows(
        f"{table.measure} by language",
        "; ".join(f"{run} {describe_point(point)}" for run, point in macro.items()) + " on average.",
        f"{table.measure}, percent",
        table.runs,
        [
            Row(line.language, [None if value is None else Point(value) for value in line.values])
            for line in _lines(table)
        ],
    )


def _lines(table: MeasureTable) -> list[Line]:
    return [*table.lines, table.total] if len(table.lines) > 1 else [*table.lines]


def _macro_point(values: Values, languages: Mapping[str, str]) -> Point:
    if not values.per_query:
        return Point(values.macro)
    groups: dict[str, list[float]] = {}
    for query_id, value in values.per_query.items():
        groups.setdefault(languages[query_id], []).append(value)
    return Point(values.macro, *bootstrap_interval(list(groups.values())))


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
    worst = [(vector, [_hub_row(hub, list(vectors)) for hub in of["hubs"]]) for vector, of in vectors.items()]
    chart = _hub_chart(name, passages, vectors)
    return HubsView(passages, questions, saved["neighbours"], list(vectors), figures, worst, chart)


def _hub_row(saved: Mapping[str, Any], vectors: Sequence[str]) -> Figure:
    counts = [str(saved["found"][name]) for name in vectors]
    return Figure(saved["title"] or saved["passage_id"], saved["passage_id"], counts)


def _hub_chart(name: str, passages: int, vectors: Mapping[str, Any]) -> RowChart:
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
