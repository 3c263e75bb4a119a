"""The sweep itself: every setting measured on one half of the questions, the best one reported on the other.

Knows the order of things. Knows nothing of stores, files and terminals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from xqg_qdrant.evaluation.comparison import Difference, Report, Values, languages_of
from xqg_qdrant.evaluation.significance import bootstrap_means, percentile_interval
from xqg_qdrant.evaluation.sweep.bench import Bench, halve
from xqg_qdrant.evaluation.sweep.settings import Setting, combine, make_axes, make_base


class Measured(NamedTuple):
    """What vectors came to on the half that is chosen on, and the 95% bootstrap interval of the macro average."""

    values: Values
    interval: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        per_language = dict(self.values.per_language)
        return {"macro": self.values.macro, "per_language": per_language, "interval": list(self.interval)}


class Sweep(NamedTuple):
    """What was tried, and what came of it.

    Attributes:
        measure: the measure that settings are compared by.
        halves: the ids of the questions that the choice was made on, and of those that it is reported on.
        base: the setting that the others were tried around.
        plain: the plain vectors, on the first half.
        points: every setting, on the first half, in the order in which they were measured.
        curves: the settings of each axis.
        chosen: the best of the settings.
        report: the chosen setting against the plain vectors on the second half, by several measures.
    """

    measure: str
    halves: tuple[Sequence[str], Sequence[str]]
    base: Setting
    plain: Measured
    points: Mapping[Setting, Measured]
    curves: Mapping[str, Sequence[Setting]]
    chosen: Setting
    report: Report

    @property
    def gained(self) -> Difference:
        """Return what the chosen setting gains over the plain vectors on the second half, by the measure."""
        return self.report.comparisons["xqg"][self.measure].overall

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON; `curves` holds places in `points`, and `report` the second half by several measures."""
        places = {setting: place for place, setting in enumerate(self.points)}
        overall, per_language = self.report.comparisons["xqg"][self.measure]
        gained = {"per_language": {name: difference.to_json() for name, difference in per_language.items()}}
        return {
            "measure": self.measure,
            "halves": {"chosen_on": list(self.halves[0]), "reported_on": list(self.halves[1])},
            "base": self.base.to_json(),
            "plain": self.plain.to_json(),
            "points": [{"setting": setting.to_json(), **found.to_json()} for setting, found in self.points.items()],
            "curves": {axis: [places[setting] for setting in settings] for axis, settings in self.curves.items()},
            "chosen": {"setting": self.chosen.to_json(), "on_other_half": overall.to_json() | gained},
            "report": self.report.to_json(),
        }


class Trial:
    """A sweep in work: `run` measures, `conclude` tells what came of it."""

    def __init__(self, bench: Bench, seed: int) -> None:
        """Halve the questions, by this seed, and lay out what is to be tried."""
        self._bench = bench
        self._halves = halve(bench.queries, seed)
        self._first = bench.of(self._halves[0])
        self._base = make_base(bench.recipe)
        scores = bench.vectors.score_queries(bench.recipe)
        self._curves = make_axes(self._base, len(scores) / len(bench.vectors.passages), scores)
        self._plain = self._measure(None)
        self._points: dict[Setting, Measured] = {}

    @property
    def settings(self) -> int:
        """Return how many settings there are at most: which are combined in the end shows on the way."""
        return len({self._base, *(setting for curve in self._curves.values() for setting in curve)}) + len(self._curves)

    def run(self) -> Iterator[Setting]:
        """Measure the base, every axis, and then what the best of the axes come to together; yield each setting.

        The combination begins with the best setting of all, and takes from one axis after the other, the one with the
        best first, what its best has; that stays in it where it is better so.
        """
        yield from self._try(self._base)
        for curve in self._curves.values():
            for setting in curve:
                yield from self._try(setting)
        best = {axis: self._best(curve) for axis, curve in self._curves.items()}
        for axis in sorted(best, key=lambda axis: -self._points[best[axis]].values.macro):
            yield from self._try(combine(self._best(self._points), axis, best[axis]))

    def conclude(self) -> Sweep:
        """Return what came of it; the half that nothing was chosen on is searched here, for the first time."""
        chosen = self._best(self._points)
        vectors = self._bench.vectors.fuse(chosen.apply(self._bench.recipe))
        report = self._bench.of(self._halves[1]).compare(vectors)
        name = self._bench.measure.name
        return Sweep(name, self._halves, self._base, self._plain, self._points, self._curves, chosen, report)

    def _try(self, setting: Setting) -> Iterator[Setting]:
        if setting not in self._points:
            self._points[setting] = self._measure(setting)
            yield setting

    def _measure(self, setting: Setting | None) -> Measured:
        """Measure a setting, or the plain vectors, on the first half."""
        stored = self._bench.vectors
        vectors = stored.plain if setting is None else stored.fuse(setting.apply(self._bench.recipe))
        values = self._first.measure_vectors(vectors)
        grouped: dict[str, list[float]] = {}
        for query_id, language in languages_of(self._first.queries).items():
            grouped.setdefault(language, []).append(values.per_query[query_id])
        return Measured(values, percentile_interval(bootstrap_means(list(grouped.values())).mean(axis=0)))

    def _best(self, settings: Iterable[Setting]) -> Setting:
        """Return the setting with the highest macro average; of equal ones that which comes first."""
        return max(settings, key=lambda setting: self._points[setting].values.macro)
