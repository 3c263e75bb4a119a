"""Whether a difference between two systems could be chance: the paired randomisation test.

Pure numpy on two arrays of values, one for each question. Knows nothing of measures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

EXACT_LIMIT = 15
"""With at most so many questions that differ, all 2**n signs are tried."""


def paired_randomisation_test(
    first: Sequence[float] | npt.NDArray[np.float64],
    second: Sequence[float] | npt.NDArray[np.float64],
    *,
    rounds: int = 10_000,
    seed: int = 0,
) -> float:
    """Return the two-sided p-value of a difference between the means of paired values.

    If the systems were equally good, each question's difference could as well have the other sign. The p-value is the
    share of random signs under which the mean difference is as large as the one observed, in either direction.

    Args:
        first: The values of one system, shape `(n,)`.
        second: The values of the other for the same questions, shape `(n,)`.
        rounds: How many random choices of signs to draw. The observed signs count as one more, so that no p-value is
            ever 0.
        seed: The seed of the draw. The same values and seed give the same p-value.
    """
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    differences = differences[differences != 0]  # their sign changes nothing
    n = len(differences)
    if n == 0:
        return 1.0
    # Sums of the same numbers in another order differ in the last bits.
    observed = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    if n <= EXACT_LIMIT:
        signs = 1 - 2 * (np.arange(1 << n)[:, None] >> np.arange(n) & 1)
        return float(np.mean(np.abs(signs @ differences) >= observed))
    # Questions that differ by the same amount are alike: how many of them fall to one side is a binomial draw.
    amounts, counts = np.unique(np.abs(differences), return_counts=True)
    draws = np.random.default_rng(seed).binomial(counts, 0.5, size=(rounds, len(counts)))
    extreme = int(np.sum(np.abs((2 * draws - counts) @ amounts) >= observed))
    return (extreme + 1) / (rounds + 1)
