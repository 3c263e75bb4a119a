from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from xqg_qdrant.inference.decoding import Ids, Noise, decode, fill_holes, gumbel_noise

END = 1
LONGEST = 6


class ScriptedStep:
    """A step that gives every row the ids written down for it, and checks that it is fed its own ids and noise."""

    def __init__(self, scripts: list[list[int]]) -> None:
        self._scripts = scripts
        # What a real decoder's cache stands for: whose it is, and what was fed into it so far.
        self._owners = list(range(len(scripts)))
        self._fed: list[list[int]] = [[] for _ in scripts]
        self.widths: list[int] = []

    def __call__(self, ids: Ids, noise: Noise) -> Ids:
        steps = len(self.widths)
        self.widths.append(ids.size)
        chosen = []
        for place, owner in enumerate(self._owners):
            said = [*self._scripts[owner], *[END] * LONGEST]
            assert noise[place].tolist() == [owner, steps]
            self._fed[place] = [*self._fed[place], int(ids[place])]
            if END not in self._fed[place]:  # a row that is over may be fed anything
                assert self._fed[place] == [100 + owner, *said[:steps]]
            chosen.append(said[steps])
        return np.array(chosen, dtype=np.int64)

    def keep(self, places: Ids) -> None:
        kept = places.tolist()
        # in place: what stays in front has not moved
        assert all(place == number or place >= len(kept) for number, place in enumerate(kept))
        self._owners = [self._owners[place] for place in kept]
        self._fed = [self._fed[place] for place in kept]


def decode_scripts(scripts: list[list[int]], steps: int = LONGEST) -> tuple[list[list[int]], list[int]]:
    """Return what the decoder makes of the scripts, and how many rows each step saw."""
    owners = range(len(scripts))
    step = ScriptedStep(scripts)
    noise = np.array([[[owner, number] for number in range(steps)] for owner in owners], dtype=np.float32)
    rows = decode(step, np.array([100 + owner for owner in owners], dtype=np.int64), noise, END)
    return rows, step.widths


def until_the_end(script: list[int]) -> list[int]:
    return script[: script.index(END)] if END in script else script


@given(st.lists(st.lists(st.integers(0, 4), min_size=LONGEST, max_size=LONGEST), min_size=1, max_size=15))
def test_every_row_gets_its_own_ids_whatever_ends_beside_it(scripts: list[list[int]]) -> None:
    expected = [until_the_end(script) for script in scripts]
    rows, widths = decode_scripts(scripts)
    assert rows == expected
    assert widths == sorted(widths, reverse=True)
    assert len(widths) == min(LONGEST, max(map(len, expected)) + 1)

    reversed_rows, _ = decode_scripts(scripts[::-1])
    assert reversed_rows[::-1] == expected


def test_finished_rows_are_dropped_from_the_steps_that_follow() -> None:
    scripts = [[5, END], [5, 6, 7, 8], [END], [END], [5, END], [5, 6, END], [END], [5, END]]
    # live after the steps: 5 of 8, then 2, then 1
    rows, widths = decode_scripts(scripts, steps=4)
    assert rows == [[5], [5, 6, 7, 8], [], [], [5], [5, 6], [], [5]]
    assert widths == [8, 5, 2, 1]


def test_a_few_finished_rows_stay_as_moving_the_others_would_cost_more() -> None:
    _, widths = decode_scripts([[END], *[[5, 6, 7]] * 19], steps=3)
    assert widths == [20, 20, 20]


def test_holes_are_filled_from_behind() -> None:
    live = np.array([True, False, True, False, False, True, True])
    assert fill_holes(live).tolist() == [0, 5, 2, 6]


def test_decoding_stops_when_every_row_has_ended() -> None:
    rows, widths = decode_scripts([[END], [END]])
    assert rows == [[], []]
    assert widths == [2]


@pytest.mark.parametrize("steps", [1, 3])
def test_no_row_gets_more_ids_than_there_are_steps(steps: int) -> None:
    rows, widths = decode_scripts([[5, 6, 7, 8], [5, END]], steps=steps)
    assert rows == [[5, 6, 7][:steps], [5]]
    assert len(widths) == steps


def keys(count: int) -> list[bytes]:
    return [number.to_bytes(32, "little") for number in range(1, count + 1)]


def test_a_row_of_noise_depends_on_its_key_alone() -> None:
    noise = gumbel_noise(keys(5), steps=7, top_k=3)
    assert noise.shape == (5, 7, 3)
    assert noise.dtype == np.float32
    np.testing.assert_array_equal(gumbel_noise(keys(5)[::-2], steps=7, top_k=3), noise[::-2])
    assert len(np.unique(noise)) == noise.size


def test_a_longer_query_begins_with_the_noise_of_a_shorter_one() -> None:
    np.testing.assert_array_equal(gumbel_noise(keys(2), 9, 3)[:, :4], gumbel_noise(keys(2), 4, 3))


def test_only_the_first_16_bytes_of_a_key_count() -> None:
    first, second, third = gumbel_noise([b"a" * 16 + b"b", b"a" * 16 + b"c", b"a" * 15 + b"b"], 2, 2)
    np.testing.assert_array_equal(first, second)
    assert not np.isin(first, third).any()


def test_noise_follows_the_standard_gumbel_distribution() -> None:
    noise = gumbel_noise(keys(400), steps=5, top_k=10)
    assert np.isfinite(noise).all()
    assert stats.kstest(noise.ravel().astype(np.float64), stats.gumbel_r.cdf).pvalue > 0.01
    # no column, step or row is drawn differently from the others
    for axis in ((0, 1), (0, 2), (1, 2)):
        means = noise.mean(axis=axis, dtype=np.float64)
        spread = np.pi / np.sqrt(6 * noise.size / means.size)
        assert np.abs(means - np.euler_gamma).max() < 5 * spread
