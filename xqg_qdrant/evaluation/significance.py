"""Test whether a difference between two systems could be chance, and estimate its interval.

Paired tests on two sequences of values, one value per question; Holm's correction for several tests; bootstrap
intervals; areas under ROC curves. Pure numpy: the one tail of Student's distribution that is needed is computed by a
continued fraction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import erfc, exp, inf, lgamma, log, sqrt
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Column: TypeAlias = Sequence[float] | npt.NDArray[np.float64]
TestName: TypeAlias = Literal["randomisation", "t", "mcnemar"]
Shares: TypeAlias = dict[str, float]
"""Percentages by id."""

EXACT_LIMIT = 15
"""With at most this many questions that differ, all 2**n signs are tried."""

CONFIDENCE = 0.95
ROUNDS = 10_000


STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


def paired_randomisation_test(first: Column, second: Column, *, rounds: int = ROUNDS, seed: int = 0) -> float:
    """Return the two-sided p-value of a difference between the means of paired values.

    If the systems were equally good, the sign of each question's difference would be random. The p-value is the share
    of random signs under which the mean difference is at least as large as the observed one, in either direction.

    Args:
        first: The values of one system, shape `(n,)`.
        second: The values of the other for the same questions, shape `(n,)`.
        rounds: How many random choices of signs to draw. The observed signs count as one more, so no p-value is 0.
        seed: The seed of the draw. The same values and seed give the same p-value.
    """
    differences = _differences(first, second)
    differences = differences[differences != 0]  # their sign changes nothing
    n = len(differences)
    if n == 0:
        return 1.0
    # Sums of the same numbers in another order can differ in the last bits.
    observed = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    if n <= EXACT_LIMIT:
        signs = 1 - 2 * (np.arange(1 << n)[:, None] >> np.arange(n) & 1)
        return float(np.mean(np.abs(signs @ differences) >= observed))
    # Among questions that differ by the same amount, the number of positive signs is a binomial draw.
    amounts, counts = np.unique(np.abs(differences), return_counts=True)
    draws = np.random.default_rng(seed).binomial(counts, 0.5, size=(rounds, len(counts)))
    extreme = int(np.sum(np.abs((2 * draws - counts) @ amounts) >= observed))
    return (extreme + 1) / (rounds + 1)


def paired_t_test(first: Column, second: Column) -> float:
    """Return the two-sided p-value of Student's t-test on paired values.

    The result is 1 if no question differs, and 0 if all differ by the same amount or t exceeds the range of floats.
    """
    differences = _differences(first, second)
    n = len(differences)
    if n < 2 or not differences.any():
        return 1.0
    deviation = float(differences.std(ddof=1))
    t = float(differences.mean()) / (deviation / sqrt(n)) if deviation else inf
    freedom = n - 1
    return _regularised_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def mcnemar_test(first: Column, second: Column) -> float:
    """Return the exact two-sided p-value of McNemar's test on paired hits and misses.

    Only questions that exactly one system answers count: if the systems were equally good, each would be won or lost
    with equal probability.

    Raises:
        ValueError: The values are not hits and misses; see `is_hit_or_miss`.
    """
    if not is_hit_or_miss(first, second):
        raise ValueError("McNemar's test needs hits and misses, but there are other values")
    differences = _differences(first, second)
    n = int(np.count_nonzero(differences))
    fewer = min(int(np.sum(differences > 0)), int(np.sum(differences < 0)))
    # Integers: only the final ratio is rounded, however many questions there are.
    ways = term = 1
    for k in range(1, fewer + 1):
        term = term * (n - k + 1) // k
        ways += term
    p: float = 2 * ways / 2**n
    return min(1.0, p)


def is_hit_or_miss(first: Column, second: Column) -> bool:
    """Return whether all values are misses, which are 0, or hits, which are all equal."""
    return len(set(np.unique(np.concatenate([first, second])).tolist()) - {0.0}) <= 1


TESTS: dict[TestName, Callable[[Column, Column], float]] = {
    "randomisation": paired_randomisation_test,
    "t": paired_t_test,
    "mcnemar": mcnemar_test,
}


def adjust_by_holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm: below 0.05, the chance of any false one is below 5%.

    >>> adjust_by_holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def bootstrap_interval(groups: Sequence[Column], *, rounds: int = ROUNDS, seed: int = 0) -> tuple[float, float]:
    """Return the 95% interval of the mean of the groups' means, by the percentile bootstrap.

    One group per language gives the interval of a macro average; a single group gives that of a mean.
    """
    return percentile_interval(bootstrap_means(groups, rounds=rounds, seed=seed).mean(axis=0))


def bootstrap_means(groups: Sequence[Column], *, rounds: int = ROUNDS, seed: int = 0) -> npt.NDArray[np.float64]:
    """Return the means of resampled groups, shape `(groups, rounds)`.

    Each sample draws as many questions from a group as it has, with replacement.

    Args:
        groups: The values of the questions of each group, shape `(n,)` each.
        rounds: The number of samples.
        seed: The seed of the draw. The same values and seed give the same means.
    """
    draw = np.random.default_rng(seed)
    means = np.empty((len(groups), rounds))
    for number, group in enumerate(groups):
        # The counts of each distinct value in a sample are one draw from a multinomial distribution.
        values, counts = np.unique(np.asarray(group, dtype=np.float64), return_counts=True)
        means[number] = draw.multinomial(counts.sum(), counts / counts.sum(), size=rounds) @ values / counts.sum()
    return means


def percentile_interval(means: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the central 95% interval of resampled means, shape `(rounds,)`."""
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def place(same: Mapping[str, float], other: Mapping[str, float]) -> tuple[Shares, Shares]:
    """Return for each of `same` the share of `other` below it, and for each of `other` the share of `same` above it.

    In percent; equal values count half. The mean of either is the area under the ROC curve.
    """

    def shares_below(values: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> list[float]:
        ordered = np.sort(others)
        found = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
        return [float(share) for share in 50 * found / len(others)]

    above, below = (np.round(list(of.values()), 9) for of in (same, other))
    return (
        dict(zip(same, shares_below(above, below), strict=True)),
        dict(zip(other, shares_below(-below, -above), strict=True)),
    )


def normal_test(mean: float, variance: float) -> tuple[tuple[float, float], float]:
    """Return the 95% interval of a normally distributed mean, and the two-sided p-value of its difference to 0."""
    error = sqrt(variance)
    p = erfc(abs(mean) / error / sqrt(2)) if error else float(mean == 0)
    return (mean - 1.959964 * error, mean + 1.959964 * error), p


def _differences(first: Column, second: Column) -> npt.NDArray[np.float64]:
    return np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)


def _regularised_beta(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), by Lentz's evaluation of its continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges slowly here
        return 1 - _regularised_beta(1 - x, b, a)
    front = exp(a * log(x) + b * log(1 - x) + lgamma(a + b) - lgamma(a) - lgamma(b)) / a
    tiny = 1e-300  # replaces a zero divisor
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    fraction = d
    for m in range(1, 10_000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + numerator * d or tiny)
            c = 1 + numerator / c or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction


def stars_of(p: float | None) -> str:
    """Return the stars that mark a p-value.

    >>> stars_of(0.049), stars_of(0.05)
    ('*', '')
    """
    return "" if p is None else next((stars for limit, stars in STARS if p < limit), "")
