"""Prepare saved sweeps and pilots for the report: charts of the measure by setting, their table, the best setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from xqg_qdrant.evaluation.comparison import Comparison, Difference, Report, Values
from xqg_qdrant.evaluation.sweep.settings import name_languages
from xqg_qdrant.pages.charts import (
    LineChart,
    Point,
    Row,
    RowChart,
    Series,
    describe_point,
    draw_lines,
    draw_rows,
)
from xqg_qdrant.pages.evaluations import Evaluation, view_evaluation

Json = Mapping[str, Any]

# Curves over a number: the name of the curve → the field, the label of its axis, the name of the axis in titles, and
# the other fields that vary along it.
NUMBERS = {
    "queries": ("queries_per_language", "generated queries in each language", "the number of queries", ()),
    "alpha": ("alpha", "alpha (logarithmic)", "alpha", ()),
    "filter": ("percentile", "percent of the queries left out", "the filter", ("min_score",)),
    "gamma": ("gamma", "gamma", "the weight of the calibration, gamma", ("renormalise",)),
}
# Settings are named by the fields in which they differ, in this order.
NAMES = {
    "fusion": "{}",
    "alpha": "alpha {:g}",
    "renormalise": "renormalised",
    "queries_per_language": "{} a language",
    "min_score": "min-score {:.3g}",
    "percentile": "{}% left out",
    "gamma": "gamma {:g}",
}


class Pilot(NamedTuple):
    """What the page shows of a pilot besides its sweep: the verdict and the cost of the whole corpus."""

    verdict: str
    cost: str
    held_back: bool


class Tried(NamedTuple):
    """A row of the table: a setting and its values."""

    setting: str
    value: Point
    per_language: Mapping[str, float]
    chosen: bool


class Sweep(NamedTuple):
    """What the page shows of a sweep."""

    measure: str
    questions: tuple[int, int]
    charts: Sequence[tuple[str, LineChart | RowChart]]
    languages: Sequence[str]
    plain: Tried
    tried: Sequence[Tried]
    chosen: str
    reported: Evaluation


def view_sweep(sweep: Json) -> Sweep:
    """Prepare a sweep, given as the value of `sweep.json`."""
    points = sweep["points"]
    plain = sweep["plain"]
    chosen = sweep["chosen"]["setting"]
    charts: list[tuple[str, LineChart | RowChart]] = []
    for curve, places in sweep["curves"].items():
        tried = [points[place] for place in places]
        if curve == "alpha":
            # Zero is the plain vector and does not fit on a logarithmic axis. Sum needs a smaller alpha than mean.
            for fusion in dict.fromkeys(one["setting"]["fusion"] for one in tried):
                of_fusion = [o for o in tried if o["setting"]["fusion"] == fusion and o["setting"]["alpha"] > 0]
                if of_fusion:
                    charts.append(
                        ("line", _line_chart(sweep["measure"], curve, of_fusion, plain, f", {fusion} fusion"))
                    )
        elif curve in NUMBERS and tried:
            charts.append(("line", _line_chart(sweep["measure"], curve, tried, plain)))
        elif tried:
            charts.append(("row", _row_chart(sweep["measure"], curve, tried, plain)))
    everywhere = [point["setting"] for point in points]
    halves = sweep["halves"]
    measure = sweep["measure"]
    # The measure of the choice comes first.
    report = {run: dict(sorted(of.items(), key=lambda one: one[0] != measure)) for run, of in sweep["report"].items()}
    return Sweep(
        sweep["measure"],
        (len(halves["chosen_on"]), len(halves["reported_on"])),
        charts,
        sorted(plain["per_language"]),
        Tried("plain vectors", _point(plain), plain["per_language"], False),
        [
            Tried(
                name_setting(point["setting"], everywhere),
                _point(point),
                point["per_language"],
                point["setting"] == chosen,
            )
            for point in points
        ],
        name_setting(chosen, [*everywhere, {}]),
        view_evaluation(load_report(report), {}, content=_load_content(sweep)),
    )


def view_pilot(pilot: Json) -> Pilot:
    """Prepare a pilot, given as the value of `pilot.json`."""
    cost = pilot["cost"]
    price = "" if cost["price"] is None else f", and cost {cost['price']:,.2f}"
    took = timedelta(seconds=round(cost["seconds"]))
    return Pilot(
        pilot["verdict"],
        f"The whole corpus of {cost['passages']:,} passages would take about {took} (hours:minutes:seconds) and "
        f"{cost['bytes'] / 1e6:,.0f} MB of disk{price}. Measured: {cost['measured']['passages']:,} of them in "
        f"{cost['measured']['seconds']:.1f} s.",
        pilot["held_back"],
    )


def name_setting(setting: Json, among: Sequence[Json], without: Sequence[str] = ()) -> str:
    """Return the fields in which a setting differs from others, as text; its fusion if there are none."""
    all_languages = max((one.get("languages") or [] for one in among), key=len, default=[])
    parts = []
    if setting.get("alpha") == 0 and "alpha" not in without and any(other.get("alpha") != 0 for other in among):
        parts.append("no queries")
    for field, form in NAMES.items():
        value = setting.get(field)
        differs = any(other.get(field) != value for other in among)
        if field not in without and differs and value not in (None, False):
            parts.append(form.format(value))
    languages = setting.get("languages")
    if languages and "languages" not in without and any(other.get("languages") != languages for other in among):
        parts.append(name_languages(languages, all_languages))
    return ", ".join(parts) or str(setting.get("fusion", ""))


def _point(found: Json, x: float = 0.0) -> Point:
    low, high = found["interval"]
    return Point(found["macro"], low, high, x)


def _line_chart(measure: str, curve: str, tried: Sequence[Json], plain: Json, which: str = "") -> LineChart:
    field, axis, name, along = NUMBERS[curve]
    settings = [one["setting"] for one in tried]
    named = [name_setting(setting, settings, (field, *along)) for setting in settings]
    series: dict[str, list[Point]] = {}
    for one, name_of_one in zip(tried, named, strict=True):
        series.setdefault(name_of_one, []).append(_point(one, one["setting"][field] or 0))
    best, name_of_best = max(zip(tried, named, strict=True), key=lambda found: float(found[0]["macro"]))
    where = f"{best['setting'][field] or 0:g}{f' ({name_of_best})' if len(series) > 1 else ''}"
    return draw_lines(
        f"{measure} against {name}{which}",
        f"Best: {describe_point(_point(best))} at {where}; plain vectors {describe_point(_point(plain))}.",
        axis,
        f"{measure}, percent",
        [Series(one, points) for one, points in series.items()],
        log=field == "alpha",
        whole=field == "queries_per_language",
        baseline=("plain", _point(plain)),
    )


def _row_chart(measure: str, curve: str, tried: Sequence[Json], plain: Json) -> RowChart:
    settings = [one["setting"] for one in tried]
    best = max(tried, key=lambda one: float(one["macro"]))
    return draw_rows(
        f"{measure} by {curve}",
        f"Best: {name_setting(best['setting'], settings)}, {describe_point(_point(best))}; the line is plain "
        f"vectors, {describe_point(_point(plain))}.",
        f"{measure}, percent",
        ["augmented"],
        [Row(name_setting(one["setting"], settings), [_point(one)]) for one in tried],
        baseline=("plain", _point(plain)),
    )


def load_report(saved: Json, notes: Sequence[str] = ()) -> Report:
    """Return a report on several runs from its JSON values, which lack the values of single questions."""
    values = {
        run: {measure: Values(of["macro"], of["per_language"], {}) for measure, of in measures.items()}
        for run, measures in saved.items()
        if run != "comparison"
    }
    comparisons = {
        run: {measure: _load_comparison(of) for measure, of in measures.items()}
        for run, measures in saved["comparison"].items()
    }
    of_languages = [found.per_language for measures in comparisons.values() for found in measures.values()]
    questions = {language: of.won + of.lost + of.tied for found in of_languages for language, of in found.items()}
    return Report(questions, values, comparisons, tuple(notes))


def _load_content(sweep: Json) -> Difference | None:
    """Return the gain over the control, if it is that of the chosen setting."""
    content = sweep.get("content")
    return _load_difference(content) if content and sweep["chosen"]["setting"]["alpha"] else None


def _load_comparison(saved: Json) -> Comparison:
    per_language = {language: _load_difference(of) for language, of in saved["per_language"].items()}
    return Comparison(_load_difference(saved), per_language)


def _load_difference(saved: Json) -> Difference:
    low, high = saved["interval"]
    return Difference(
        saved["difference"], saved["won"], saved["lost"], saved["tied"], (low, high), saved["p"], saved["p_holm"]
    )
