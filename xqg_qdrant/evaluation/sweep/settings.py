"""List the settings that a sweep tries: one axis at a time around a base.

Trying every combination would mean thousands, and the best of thousands on some hundred questions is just the luckiest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xqg_qdrant.augmentation.calibration import DEFAULT_GAMMA
from xqg_qdrant.augmentation.recipe import Recipe

QUERIES, ALPHA, LANGUAGES, FILTER, GAMMA = "queries", "alpha", "languages", "filter", "gamma"

# From a weight of the queries that changes little to one that leaves a third of the passage, four steps per decade.
LEAST_MEAN_ALPHA, GREATEST_MEAN_ALPHA = 0.02, 0.7
STEPS = (1, 2, 3, 5)
PERCENTILES = (10, 20, 30, 50, 70, 90)
"""The shares of the queries that filters leave out, in percent."""
GAMMAS = (0.0, 0.25, DEFAULT_GAMMA, 1.0)


class Setting(NamedTuple):
    """The settings of a recipe that a sweep varies.

    `queries_per_language` and `languages` are None for given queries. `percentile` is the share of all queries that
    score below `min_score`, if it was chosen that way. With `alpha` 0 no query takes part.
    """

    fusion: str
    alpha: float
    renormalise: bool = False
    queries_per_language: int | None = None
    languages: tuple[str, ...] | None = None
    min_score: float | None = None
    percentile: int | None = None
    gamma: float = 0.0

    def apply(self, recipe: Recipe) -> Recipe:
        """Return a recipe with this setting."""
        changed = recipe._replace(
            fusion=self.fusion,
            alpha=self.alpha,
            renormalise=self.renormalise,
            min_score=self.min_score,
            gamma=self.gamma,
        )
        if self.queries_per_language is None or self.languages is None:
            return changed
        return changed._replace(queries_per_language=self.queries_per_language, languages=self.languages)

    def to_json(self) -> dict[str, Any]:
        """Return the setting as JSON values."""
        return {**self._asdict(), "languages": None if self.languages is None else list(self.languages)}


# The fields that a combination takes from the best of an axis. Not alpha for QUERIES: under sum, fewer queries also
# weigh less.
FIELDS: Mapping[str, tuple[str, ...]] = {
    ALPHA: ("fusion", "alpha", "renormalise"),
    QUERIES: ("queries_per_language",),
    LANGUAGES: ("languages",),
    FILTER: ("min_score", "percentile"),
    GAMMA: ("renormalise", "gamma"),
}


def make_base(recipe: Recipe) -> Setting:
    """Return the setting that a collection was made with."""
    given = recipe.given
    return Setting(
        recipe.fusion,
        recipe.alpha,
        recipe.renormalise,
        None if given else recipe.queries_per_language,
        None if given else recipe.languages,
        recipe.min_score,
        gamma=recipe.gamma,
    )


def without_queries(setting: Setting, gamma: float) -> Setting:
    """Return a setting for calibrated plain vectors."""
    return setting._replace(fusion="mean", alpha=0.0, renormalise=True, min_score=None, percentile=None, gamma=gamma)


def with_gamma(setting: Setting, gamma: float) -> Setting:
    """Return a setting with this weight of the calibration, which needs vectors of one length."""
    return setting._replace(renormalise=setting.renormalise or gamma > 0, gamma=gamma)


def make_axes(
    base: Setting, queries_a_passage: float, scores: npt.NDArray[np.float64], calibrated: bool = False
) -> dict[str, tuple[Setting, ...]]:
    """Return the settings of each axis.

    Under sum, fewer queries also weigh less. So the number of queries is tried under sum and mean, languages and
    filters under mean only, each at the alpha that gives all queries of the base their weight in the base.

    Args:
        base: The setting that the axes vary.
        queries_a_passage: The mean number of queries per passage that are used in the base.
        scores: The dot products of the base's queries with their passages.
        calibrated: Whether vectors of this encoder can be calibrated.
    """
    weighed = {
        "sum": base.alpha if base.fusion == "sum" else to_sum(base.alpha, queries_a_passage),
        "mean": base.alpha if base.fusion == "mean" else to_mean(base.alpha, queries_a_passage),
    }
    as_mean = base._replace(fusion="mean", alpha=weighed["mean"])
    gammas = sorted({*GAMMAS, base.gamma}) if calibrated else []
    least, greatest = (to_sum(alpha, queries_a_passage) for alpha in (LEAST_MEAN_ALPHA, GREATEST_MEAN_ALPHA))
    ranges = {"sum": (least, greatest), "mean": (LEAST_MEAN_ALPHA, GREATEST_MEAN_ALPHA)}
    axes = {
        ALPHA: [
            base._replace(fusion=fusion, renormalise=renormalise, alpha=alpha, gamma=base.gamma if renormalise else 0.0)
            for fusion, (low, high) in ranges.items()
            for renormalise in (False, True)
            for alpha in sorted({*spread(low, high), weighed[fusion]})
        ],
        QUERIES: [
            base._replace(fusion=fusion, alpha=alpha, queries_per_language=count)
            for fusion, alpha in weighed.items()
            for count in range(1, (base.queries_per_language or 0) + 1)
        ],
        LANGUAGES: [as_mean, *(as_mean._replace(languages=languages) for languages in _subsets(base.languages or ()))],
        FILTER: [as_mean._replace(min_score=None), *_filtered(as_mean, scores)],
        GAMMA: [
            *(with_gamma(base, gamma) for gamma in gammas),
            *(without_queries(base, gamma) for gamma in gammas if gamma),
        ],
    }
    # Sum with alpha 1 would reduce a passage without queries to zero; ingest and retune refuse it.
    usable = {name: [s for s in settings if s.fusion == "mean" or s.alpha < 1] for name, settings in axes.items()}
    distinct = {name: tuple(dict.fromkeys(settings)) for name, settings in usable.items()}
    return {name: settings for name, settings in distinct.items() if len(settings) > 1}


def combine(setting: Setting, axis: str, best: Setting) -> Setting:
    """Return a setting with the fields of an axis taken from the best one of that axis."""
    combined = setting._replace(**{name: getattr(best, name) for name in FIELDS[axis]})
    return combined if combined.renormalise else combined._replace(gamma=0.0)


def to_mean(alpha: float, queries: float) -> float:
    """Return the alpha of mean fusion that gives this many queries their weight under sum."""
    return _rounded(alpha * queries / (1 - alpha + alpha * queries))


def to_sum(alpha: float, queries: float) -> float:
    """Return the alpha of sum fusion that gives this many queries their weight under mean."""
    return _rounded(alpha / (queries * (1 - alpha) + alpha)) if queries else alpha


def spread(low: float, high: float) -> list[float]:
    """Return round numbers between two numbers, about evenly spaced on a logarithmic scale.

    >>> spread(0.02, 0.7)
    [0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    numbers = (float(f"{step}e{decade}") for decade in decades for step in STEPS)
    return [number for number in numbers if low <= number <= high]


def name_languages(languages: Sequence[str], every: Sequence[str]) -> str:
    """Return some of the languages in words: `all languages`, `all but ja`, `ja alone`, or their codes."""
    missing = [language for language in every if language not in languages]
    if not missing:
        return "all languages"
    if len(missing) == 1 and len(every) > 2:
        return f"all but {missing[0]}"
    return f"{languages[0]} alone" if len(languages) == 1 else ", ".join(languages)


def _subsets(languages: Sequence[str]) -> list[tuple[str, ...]]:
    """Return each language alone, and all languages but one."""
    alone = [(language,) for language in languages]
    others = [tuple(other for other in languages if other != language) for language in languages]
    return [subset for subset in alone + others if subset]


def _filtered(base: Setting, scores: npt.NDArray[np.float64]) -> list[Setting]:
    """Return the base with filters that leave out shares of the scored queries."""
    if not len(scores):
        return []
    return [
        base._replace(min_score=_rounded(float(np.percentile(scores, share))), percentile=share)
        for share in PERCENTILES
    ]


def _rounded(number: float) -> float:
    """Round to four digits, so that the command that applies a setting can repeat it exactly."""
    return float(f"{number:.4g}")
