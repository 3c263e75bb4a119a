"""Run a sweep: measure every setting on one half of the questions, report the best one on the other half."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from xqg_qdrant.augmentation.calibration import DEFAULT_GAMMA
from xqg_qdrant.evaluation.baselines import CALIBRATED, CONTROL
from xqg_qdrant.evaluation.comparison import Comparison, Difference, Report, Values, compare_runs, languages_of
from xqg_qdrant.evaluation.significance import bootstrap_means, percentile_interval
from xqg_qdrant.evaluation.sweep.bench import Bench, halve
from xqg_qdrant.evaluation.sweep.settings import (
    Setting,
    combine,
    make_axes,
    make_base,
    with_gamma,
    without_queries,
)
from xqg_qdrant.streams import Bars

FUSED, FUSED_CALIBRATED = "fused", "fused-calibrated"


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
        report: Runs on the second half, by several measures: the plain vectors; the same calibrated; the best setting
            with queries, not calibrated and calibrated; its control; and the chosen one, which is named `xqg` only.
        content: The best setting with queries against its control; None if there are no queries.
    """

    measure: str
    halves: tuple[Sequence[str], Sequence[str]]
    base: Setting
    plain: Measured
    points: Mapping[Setting, Measured]
    curves: Mapping[str, Sequence[Setting]]
    chosen: Setting
    report: Report
    content: Comparison | None

    @property
    def gained(self) -> Difference:
        """Return the gain of the chosen setting over the plain vectors on the second half."""
        return self.report.comparisons["xqg"][self.measure].overall

    def to_json(self) -> dict[str, Any]:
        """Return the sweep as JSON values; `curves` holds indices into `points`."""
        places = {setting: place for place, setting in enumerate(self.points)}
        gained = self.report.comparisons["xqg"][self.measure].to_json()
        return {
            "measure": self.measure,
            "halves": {"chosen_on": list(self.halves[0]), "reported_on": list(self.halves[1])},
            "base": self.base.to_json(),
            "plain": self.plain.to_json(),
            "points": [{"setting": setting.to_json(), **found.to_json()} for setting, found in self.points.items()],
            "curves": {axis: [places[setting] for setting in settings] for axis, settings in self.curves.items()},
            "chosen": {"setting": self.chosen.to_json(), "on_other_half": gained},
            "report": self.report.to_json(),
            "content": self.content and self.content.to_json(),
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
        self._calibrated = bool(bench.recipe.bank_mean)
        queries_a_passage = len(scores) / len(bench.vectors.passages)
        self._curves = make_axes(self._base, queries_a_passage, scores, self._calibrated)
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
        fused = self._best([setting for setting in self._points if setting.alpha > 0] or [chosen])
        stored, recipe, name = self._bench.vectors, self._bench.recipe, self._bench.measure.name
        control = stored.fuse_control(fused.apply(recipe)) if fused.alpha else None
        runs = {"passage": stored.plain}
        for label, setting in self._variants(chosen, fused).items():
            if setting.alpha == 0 or control is not None:
                runs[label] = stored.fuse(setting.apply(recipe))
        if control is not None:
            runs[CONTROL] = control
        runs["xqg"] = stored.fuse(chosen.apply(recipe))
        second = self._bench.of(self._halves[1])
        report = second.compare(runs)
        against = "xqg" if fused == chosen else FUSED_CALIBRATED if fused.gamma else FUSED
        content = compare_runs(report, CONTROL, against, name, second.queries)
        return Sweep(name, self._halves, self._base, self._plain, self._points, self._curves, chosen, report, content)

    def _variants(self, chosen: Setting, fused: Setting) -> dict[str, Setting]:
        """Return what else is reported: without queries or without calibration, if these are not chosen."""
        gamma = chosen.gamma or fused.gamma or DEFAULT_GAMMA
        variants = {FUSED: with_gamma(fused, 0.0)}
        if self._calibrated:
            variants = {CALIBRATED: without_queries(fused, gamma), **variants}
            variants[FUSED_CALIBRATED] = with_gamma(fused, fused.gamma or gamma)
        return {
            name: setting for name, setting in variants.items() if setting != chosen and (setting.alpha or chosen.alpha)
        }

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
