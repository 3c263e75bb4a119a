"""The tests, corrections and intervals against scipy and statsmodels, and against arithmetic by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product
from operator import mul

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import permutation_test

from xqg_qdrant.evaluation.significance import (
    adjust_by_holm,
    bootstrap_interval,
    bootstrap_means,
    is_hit_or_miss,
    mcnemar_test,
    paired_randomisation_test,
    paired_t_test,
)


def scipy_p(first: list[float], second: list[float], rounds: float) -> float:
    result = permutation_test(
        (np.array(first), np.array(second)),
        lambda a, b, axis: np.mean(b - a, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=rounds,
        rng=np.random.default_rng(1),
    )
    return float(result.pvalue)


def test_three_questions_won_and_none_lost_are_not_significant() -> None:
    # Of the 8 ways to choose three signs, two are as extreme: all won and all lost.
    assert paired_randomisation_test([0, 0, 0], [1, 1, 1]) == 2 / 8
    assert paired_randomisation_test([0, 0, 0, 5, 5], [1, 1, 1, 5, 5]) == 2 / 8


def test_no_difference_has_a_p_value_of_one() -> None:
    assert paired_randomisation_test([0.5, 1], [0.5, 1]) == 1
    assert paired_randomisation_test([0, 1], [1, 0]) == 1
    assert paired_randomisation_test([], []) == 1
    assert paired_randomisation_test([0, 1] * 500, [1, 0] * 500) == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 2), min_size=2, max_size=9))
def test_few_questions_give_the_exact_p_value_of_scipy(pairs: list[tuple[float, float]]) -> None:
    # Quarters, whose sums are exact: scipy takes sums that differ in the last bit for different ones.
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    assert paired_randomisation_test(first, second) == pytest.approx(scipy_p(first, second, np.inf))


def exact_p(pairs: Sequence[tuple[Fraction, Fraction]]) -> float:
    differences = [second - first for first, second in pairs]
    sums = [abs(sum(map(mul, signs, differences))) for signs in product((1, -1), repeat=len(differences))]
    return float(np.mean([total >= abs(sum(differences)) for total in sums]))


# The sum of these differences is 0, but not in floating point.
WON_AND_LOST = [(Fraction(), Fraction(1, 3))] * 2 + [(Fraction(), Fraction(1, 2)), (Fraction(1, 2), Fraction())] + [
    (Fraction(1, 2), Fraction()), (Fraction(1, 2), Fraction(1, 3))
]  # fmt: skip


@settings(max_examples=25, deadline=None)
@example(WON_AND_LOST)
@given(
    st.lists(
        st.tuples(*[st.sampled_from([Fraction(), *(Fraction(1, rank) for rank in range(1, 11))])] * 2),
        min_size=2,
        max_size=9,
    )
)
def test_reciprocal_ranks_give_the_p_value_of_exact_fractions(pairs: list[tuple[Fraction, Fraction]]) -> None:
    first, second = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    assert paired_randomisation_test(first, second) == pytest.approx(exact_p(pairs))


@pytest.mark.parametrize("draw", ["hits", "values"])
def test_many_questions_give_the_p_value_of_scipy_within_chance(draw: str) -> None:
    rng = np.random.default_rng(3)
    columns: dict[str, Callable[[], list[float]]] = {
        "hits": lambda: [float(x) for x in rng.random(300) < 0.5],
        "values": lambda: [float(x) for x in rng.random(300)],
    }
    first = columns[draw]()
    second = [min(1.0, a + 0.05) if draw == "values" else a for a in first]
    other = columns[draw]()
    second = [b if number % 2 else c for number, (b, c) in enumerate(zip(second, other, strict=True))]
    ours = paired_randomisation_test(first, second, rounds=20_000)
    theirs = scipy_p(first, second, 20_000)
    assert 0.01 < theirs < 0.99
    assert ours == pytest.approx(theirs, abs=4 * (2 * theirs * (1 - theirs) / 20_000) ** 0.5)


def test_the_observed_signs_count_so_that_no_p_value_is_zero() -> None:
    assert paired_randomisation_test([0] * 100, [1] * 100, rounds=999) == 1 / 1000


def test_the_same_seed_gives_the_same_p_value_whichever_system_is_first() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(50), rng.random(50)
    assert paired_randomisation_test(first, second, seed=4) == paired_randomisation_test(first, second, seed=4)
    assert paired_randomisation_test(first, second, seed=4) == paired_randomisation_test(second, first, seed=4)


# Student's t


@pytest.mark.parametrize("n", [2, 3, 10, 120, 1928])
@pytest.mark.parametrize("shift", [0.0, 0.001, 0.1, 1.0, 5.0])
def test_the_t_test_is_that_of_scipy(n: int, shift: float) -> None:
    rng = np.random.default_rng(n)
    first, second = rng.random(n), rng.random(n) + shift
    expected = float(stats.ttest_rel(second, first).pvalue)
    assert paired_t_test(first, second) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 100 / 3, 50.0, 100.0])] * 2), min_size=2, max_size=30))
def test_the_t_test_of_values_as_measures_have_them_is_that_of_scipy(pairs: list[tuple[float, float]]) -> None:
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    if np.ptp(np.subtract(second, first)) < 1e-9:  # scipy divides by zero
        return
    assert paired_t_test(first, second) == pytest.approx(float(stats.ttest_rel(second, first).pvalue), rel=1e-9)


def test_the_t_test_where_every_question_differs_alike() -> None:
    assert paired_t_test([1, 2, 3], [1, 2, 3]) == 1
    assert paired_t_test([], []) == paired_t_test([0], [1]) == 1
    assert paired_t_test([0, 0, 0], [1, 1, 1]) == 0


# McNemar


@pytest.mark.parametrize(
    ("won", "lost", "p"),  # the p-values that statsmodels 0.15.0 gives
    [
        (0, 0, 1.0),
        (0, 6, 0.03125),
        (4, 3, 1.0),
        (12, 2, 0.012939453125),
        (40, 61, 0.046044066929342785),
        (700, 600, 0.0060157938610449395),
    ],
)
def test_mcnemars_test_is_that_of_statsmodels_and_of_scipy(won: int, lost: int, p: float) -> None:
    first = [0.0] * won + [100.0] * lost + [0.0] * 20 + [100.0] * 30
    second = [100.0] * won + [0.0] * lost + [0.0] * 20 + [100.0] * 30
    assert mcnemar_test(first, second) == pytest.approx(p, rel=1e-9)
    if won + lost:
        assert mcnemar_test(first, second) == pytest.approx(stats.binomtest(won, won + lost).pvalue, rel=1e-9)


def test_mcnemars_test_by_hand() -> None:
    # Of five coins, none or one falls on heads in 6 of 32 cases, and as often on tails.
    assert mcnemar_test([0, 0, 0, 0, 1], [1, 1, 1, 1, 0]) == 12 / 32


def test_mcnemars_test_refuses_values_between_hits_and_misses() -> None:
    assert is_hit_or_miss([0, 0], [0, 100])
    assert is_hit_or_miss([0], [0])
    assert not is_hit_or_miss([0, 50], [0, 100])
    assert not is_hit_or_miss([0], [-1, 1])
    with pytest.raises(ValueError, match="hits and misses"):
        mcnemar_test([0, 50], [0, 100])


# Holm


@pytest.mark.parametrize(
    ("p_values", "adjusted"),  # the values that statsmodels 0.15.0 gives
    [
        ([0.5, 0.01, 0.02, 0.03], [0.5, 0.04, 0.06, 0.06]),
        ([0.0011, 0.049, 0.2, 0.012, 0.9, 0.012, 0.04], [0.0077, 0.16, 0.4, 0.072, 0.9, 0.072, 0.16]),
        ([0.6, 0.7], [1, 1]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holms_correction_is_that_of_statsmodels(p_values: list[float], adjusted: list[float]) -> None:
    assert adjust_by_holm(p_values) == pytest.approx(adjusted)


# The bootstrap


@pytest.mark.parametrize(("n", "hits"), [(20, 7), (120, 92), (300, 3)])
def test_the_interval_of_hits_is_that_of_the_binomial_distribution(n: int, hits: int) -> None:
    # The mean of resampled hits and misses is a binomial draw, whose quantiles are known.
    expected = stats.binom.ppf([0.025, 0.975], n, hits / n) / n
    assert bootstrap_interval([[0.0] * (n - hits) + [1.0] * hits], rounds=100_000) == pytest.approx(expected)


@pytest.mark.parametrize("sizes", [(30,), (40, 25), (12, 30, 50)])
def test_the_interval_is_that_of_scipy_within_chance(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(8)
    groups = [rng.choice([-1.0, -0.5, 0.0, 0.0, 0.3, 0.7, 1.0], size) for size in sizes]

    def macro(*samples: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
        means: npt.NDArray[np.float64] = np.stack([sample.mean(axis=axis) for sample in samples]).mean(axis=0)
        return means

    theirs = stats.bootstrap(groups, macro, method="percentile", n_resamples=50_000, batch=5000, rng=3)
    expected = theirs.confidence_interval
    # A quantile at 2.5% of 50,000 draws has a standard error of below 2% of a standard deviation.
    tolerance = 4 * 2**0.5 * 0.02 * float(theirs.standard_error)
    assert bootstrap_interval(groups, rounds=50_000) == pytest.approx(
        (float(expected.low), float(expected.high)), abs=tolerance
    )


def test_each_language_weighs_the_same_in_the_interval_of_a_macro_average() -> None:
    # The hundred questions of one language never vary; the two of the other give a mean of 0, 50 or 100.
    assert bootstrap_interval([[100.0] * 100, [0.0, 100.0]]) == (50, 100)
    assert bootstrap_interval([[7.0, 7.0]]) == (7, 7)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [list(np.random.default_rng(1).random(40))]
    assert bootstrap_interval(values) == bootstrap_interval(values, seed=0)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    assert bootstrap_means(values, rounds=7).shape == (1, 7)
