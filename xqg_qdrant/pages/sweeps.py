"""What `xqg sweep` and `xqg pilot` found → charts of the measure over each setting, their table, and the choice.

Knows the names of the settings. Knows nothing of HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from xqg_qdrant.evaluation.comparison import Comparison, Difference, Report, Values
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

# A setting that is one number: the curve's name → the field, the axis, and what else may differ along it.
NUMBERS = {
    "queries": ("queries_per_language", "generated queries in each language", "the number of queries", ()),
    "alpha": ("alpha", "alpha (logarithmic)", "alpha", ()),
    "filter": ("percentile", "percent of the queries left out", "the filter", ("min_score",)),
}
# The published number of languages and the like are told apart by what differs, in this order.
NAMES = {
    "fusion": "{}",
    "alpha": "alpha {:g}",
    "renormalise": "renormalised",
    "queries_per_language": "{} a language",
    "min_score": "min-score {:.3g}",
    "percentile": "{}% left out",
}


class Pilot(NamedTuple):
    """What the page shows of a pilot beside its sweep: is it worth it, and what would it take."""

    verdict: str
    cost: str
    held_back: bool


class Tried(NamedTuple):
    """A row of the table: a setting and what it came to."""

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
    """Return what the page shows of a sweep; `sweep` is what `sweep.json` holds."""
    points = sweep["points"]
    plain = sweep["plain"]
    chosen = sweep["chosen"]["setting"]
    charts: list[tuple[str, LineChart | RowChart]] = []
    for curve, places in sweep["curves"].items():
        tried = [points[place] for place in places]
        if curve == "alpha":
            # Zero is the plain vector, and has no place on a logarithmic axis. A sum needs a smaller alpha than a mean.
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
    # The measure that was chosen by comes first.
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
        view_evaluation(load_report(report), {}),
    )


def view_pilot(pilot: Json) -> Pilot:
    """Return what the page shows of a pilot; `pilot` is what `pilot.json` holds."""
    cost = pilot["cost"]
    price = "" if cost["price"] is None else f", and cost {cost['price']:,.2f}"
    took = timedelta(seconds=round(cost["seconds"]))
    return Pilot(
        pilot["verdict"],
        f"The whole corpus of {cost['passages']:,} passages would take about {took} (hours:minutes:seconds) and "
        f"{cost['bytes'] / 1e6:,.0f} MB of disk{price}, by {cost['measured']['passages']:,} of them that took "
        f"{cost['measured']['seconds']:.1f} s.",
        pilot["held_back"],
    )


def name_setting(setting: Json, among: Sequence[Json], without: Sequence[str] = ()) -> str:
    """Return what tells a setting from those that it is among; where nothing does, its fusion."""
    all_languages = max((one.get("languages") or [] for one in among), key=len, default=[])
    parts = []
    for field, form in NAMES.items():
        value = setting.get(field)
        differs = any(other.get(field) != value for other in among)
        if field not in without and differs and value not in (None, False):
            parts.append(form.format(value))
    languages = setting.get("languages")
    if languages and "languages" not in without and any(other.get("languages") != languages for other in among):
        parts.append(_name_languages(languages, all_languages))
    return ", ".join(parts) or str(setting.get("fusion", ""))


def _name_languages(languages: Sequence[str], known: Sequence[str]) -> str:
    missing = [language for language in known if language not in languages]
    if not missing:
        return "all languages"
    if len(missing) == 1 and len(known) > 2:
        return f"all but {missing[0]}"
    return f"{languages[0]} alone" if len(languages) == 1 else ",".join(languages)


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
        f"Best: {name_setting(best['setting'], settings)}, {describe_point(_point(best))}; the line is that of plain "
        f"vectors, {describe_point(_point(plain))}.",
        f"{measure}, percent",
        ["augmented"],
        [Row(name_setting(one["setting"], settings), [_point(one)]) for one in tried],
        baseline=("plain", _point(plain)),
    )


def load_report(saved: Json, notes: Sequence[str] = ()) -> Report:
    """Return a report on several runs from its JSON; the values of single questions are not in there."""
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


def _load_comparison(saved: Json) -> Comparison:
    per_language = {language: _load_difference(of) for language, of in saved["per_language"].items()}
    return Comparison(_load_difference(saved), per_language)


def _load_difference(saved: Json) -> Difference:
    low, high = saved["interval"]
    return Difference(
        saved["difference"], saved["won"], saved["lost"], saved["tied"], (low, high), saved["p"], saved["p_holm"]
    )
