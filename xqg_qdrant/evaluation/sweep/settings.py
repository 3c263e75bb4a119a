"""Which settings of the fusion are tried: one axis at a time around a base, the rest left as it is.

Not every combination: that would be thousands, and the best of thousands on some hundred questions is the luckiest.
Knows recipes. Knows nothing of vectors and measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xqg_qdrant.augmentation.recipe import Recipe

QUERIES, ALPHA, LANGUAGES, FILTER = "queries", "alpha", "languages", "filter"

# From a weight of the queries that changes little to one that leaves a third of the passage, four steps a decade.
LEAST_MEAN_ALPHA, GREATEST_MEAN_ALPHA = 0.02, 0.7
STEPS = (1, 2, 3, 5)
PERCENTILES = (10, 20, 30, 50, 70, 90)
"""Which share of the queries a filter leaves out, in percent."""


class Setting(NamedTuple):
    """What of a recipe is tried; of given queries there is no number and there are no languages to choose.

    `percentile` is the share of all queries that score below `min_score`, where it was chosen so.
    """

    fusion: str
    alpha: float
    renormalise: bool = False
    queries_per_language: int | None = None
    languages: tuple[str, ...] | None = None
    min_score: float | None = None
    percentile: int | None = None

    def apply(self, recipe: Recipe) -> Recipe:
        """Return a recipe with this setting."""
        changed = recipe._replace(
            fusion=self.fusion, alpha=self.alpha, renormalise=self.renormalise, min_score=self.min_score
        )
        if self.queries_per_language is None or self.languages is None:
            return changed
        return changed._replace(queries_per_language=self.queries_per_language, languages=self.languages)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**self._asdict(), "languages": None if self.languages is None else list(self.languages)}


# What the best of an axis brings into a combination: under sum, fewer queries would also be tried with less weight.
FIELDS: Mapping[str, tuple[str, ...]] = {
    ALPHA: ("fusion", "alpha", "renormalise"),
    QUERIES: ("queries_per_language",),
    LANGUAGES: ("languages",),
    FILTER: ("min_score", "percentile"),
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
    )


def make_axes(
    base: Setting, queries_a_passage: float, scores: npt.NDArray[np.float64]
) -> dict[str, tuple[Setting, ...]]:
    """Return the settings of each axis.

    Under sum each query less is also weight less. So the number of queries is tried under sum and under mean, languages
    and filters under mean alone, each at the alpha at which all the queries of the base weigh what they weigh in it.

    Args:
        base: what stays as it is along an axis.
        queries_a_passage: how many queries take part in the base, on average.
        scores: the dot products of the base's queries with their passages.
    """
    weighed = {
        "sum": base.alpha if base.fusion == "sum" else to_sum(base.alpha, queries_a_passage),
        "mean": base.alpha if base.fusion == "mean" else to_mean(base.alpha, queries_a_passage),
    }
    as_mean = base._replace(fusion="mean", alpha=weighed["mean"])
    least, greatest = (to_sum(alpha, queries_a_passage) for alpha in (LEAST_MEAN_ALPHA, GREATEST_MEAN_ALPHA))
    ranges = {"sum": (least, greatest), "mean": (LEAST_MEAN_ALPHA, GREATEST_MEAN_ALPHA)}
    axes = {
        ALPHA: [
            base._replace(fusion=fusion, renormalise=renormalise, alpha=alpha)
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
    }
    # Sum with alpha 1 leaves nothing of a passage that has no query; no ingest or retune takes it.
    usable = {name: [s for s in settings if s.fusion == "mean" or s.alpha < 1] for name, settings in axes.items()}
    distinct = {name: tuple(dict.fromkeys(settings)) for name, settings in usable.items()}
    return {name: settings for name, settings in distinct.items() if len(settings) > 1}


def combine(setting: Setting, axis: str, best: Setting) -> Setting:
    """Return a setting with what the best one of an axis has along that axis."""
    return setting._replace(**{name: getattr(best, name) for name in FIELDS[axis]})


def to_mean(alpha: float, queries: float) -> float:
    """Return the alpha of mean fusion at which so many queries weigh what they weigh under sum with this alpha."""
    return _rounded(alpha * queries / (1 - alpha + alpha * queries))


def to_sum(alpha: float, queries: float) -> float:
    """Return the alpha of sum fusion at which so many queries weigh what they weigh under mean with this alpha."""
    return _rounded(alpha / (queries * (1 - alpha) + alpha)) if queries else alpha


def spread(low: float, high: float) -> list[float]:
    """Return the round numbers from one to the other, about evenly spread on a logarithmic scale.

    >>> spread(0.02, 0.7)
    [0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    numbers = (float(f"{step}e{decade}") for decade in decades for step in STEPS)
    return [number for number in numbers if low <= number <= high]


def _subsets(languages: Sequence[str]) -> list[tuple[str, ...]]:
    """Return each language alone, and all but one."""
    alone = [(language,) for language in languages]
    others = [tuple(other for other in languages if other != language) for language in languages]
    return [subset for subset in alone + others if subset]


def _filtered(base: Setting, scores: npt.NDArray[np.float64]) -> list[Setting]:
    """Return the base with filters that leave out shares of these queries."""
    if not len(scores):
        return []
    return [
        base._replace(min_score=_rounded(float(np.percentile(scores, share))), percentile=share)
        for share in PERCENTILES
    ]


def _rounded(number: float) -> float:
    """Return a number that is short to write, so that the settings tried are those of the command that applies them."""
    return float(f"{number:.4g}")
