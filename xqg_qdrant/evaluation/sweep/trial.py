"""Run a sweep: measure every setting on one half of the questions, report the best one on the other half."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from xqg_qdrant.evaluation.comparison import Difference, Report, Values, languages_of
from xqg_qdrant.evaluation.significance import bootstrap_means, percentile_interval
from xqg_qdrant.evaluation.sweep.bench import Bench, halve
from xqg_qdrant.evaluation.sweep.settings import Setting, combine, make_axes, make_base
from xqg_qdrant.streams import Bars


class Measured(NamedTuple):
    """The values of some vectors on the first half, and the 95% bootstrap interval of the macro average."""

    values: Values
    interval: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON values."""
        per_language = dict(self.values.per_language)
        return {"macro": self.values.macro, "per_language": per_language, "interval": list(self.interval)}


class Sweep(NamedTuple):
    """The outcome of a sweep.

    Attributes:
        measure: The measure that settings are compared by.
        halves: The ids of the questions that the best setting was chosen on, and of those that it is reported on.
        base: The setting of the collection; the others vary it.
        plain: The plain vectors, on the first half.
        points: Every setting, on the first half, in the order in which they were measured.
        curves: The settings of each axis.
        chosen: The best setting.
        report: The chosen setting against the plain vectors on the second half, by several measures.
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
        """Return the gain of the chosen setting over the plain vectors on the second half."""
        return self.report.comparisons["xqg"][self.measure].overall

    def to_json(self) -> dict[str, Any]:
        """Return the sweep as JSON values; `curves` holds indices into `points`."""
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
    """A sweep in progress: `run` measures the settings, `conclude` returns the outcome."""

    def __init__(self, bench: Bench, seed: int) -> None:
        """Halve the questions by this seed, list the settings, and measure the plain vectors."""
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
        """Return the largest possible number of settings; the combinations are only known at the end."""
        return len({self._base, *(setting for curve in self._curves.values() for setting in curve)}) + len(self._curves)

    def run(self) -> Iterator[Setting]:
        """Measure the base, every axis, and combinations of the best of each axis; yield each setting.

        The combination starts from the best setting so far. Axis by axis, the axis with the best value first, it takes
        over that axis's best value and keeps it if the result is better.
        """
        yield from self._try(self._base)
        for curve in self._curves.values():
            for setting in curve:
                yield from self._try(setting)
        best = {axis: self._best(curve) for axis, curve in self._curves.items()}
        for axis in sorted(best, key=lambda axis: -self._points[best[axis]].values.macro):
            yield from self._try(combine(self._best(self._points), axis, best[axis]))

    def conclude(self) -> Sweep:
        """Return the outcome; the second half is searched only here."""
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
        """Return the setting with the highest macro average; the first of equal ones."""
        return max(settings, key=lambda setting: self._points[setting].values.macro)


def run_sweep(bench: Bench, seed: int, bars: Bars) -> Sweep:
    """Measure every setting with a progress bar, and return the outcome."""
    trial = Trial(bench, seed)
    with bars(trial.settings, " settings") as bar:
        for _ in trial.run():
            bar.update(1)
    return trial.conclude()
