from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xqg_qdrant.augmentation.fusion import (
    FUSIONS,
    PUBLISHED_ALPHA,
    Fusion,
    augment_passage,
    check_fusion,
    fuse,
    keep_relevant,
)
from xqg_qdrant.errors import InputError
from xqg_qdrant.records import FloatArray

values = st.floats(-1000, 1000, width=32)
shapes = st.tuples(st.integers(2, 9), st.integers(1, 6))
matrices = shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=values))
ONE = np.array([1, 2], dtype=np.float32)
TWO = np.array([[10, 20], [30, 60]], dtype=np.float32)
NONE = np.empty((0, 2), dtype=np.float32)


@given(rows=matrices, alpha=st.floats(0, 1), fusion=st.sampled_from(FUSIONS))
def test_fusion_is_the_published_formula_in_double_precision(rows: FloatArray, alpha: float, fusion: str) -> None:
    passage, queries = rows[0].astype(np.float64), rows[1:].astype(np.float64)
    weight = alpha if fusion == "sum" else alpha / len(queries)
    expected = (1 - alpha) * passage
    for query in queries:
        expected = expected + weight * query
    fused = fuse(rows[0], rows[1:], Fusion(alpha, fusion))
    assert fused.dtype == np.float32
    assert fused.shape == (rows.shape[1],)
    np.testing.assert_allclose(fused, expected, rtol=1e-6, atol=1e-9 * (1 + np.abs(rows).sum()))


def test_fusion_by_hand() -> None:
    assert PUBLISHED_ALPHA == 0.01
    # 0.75·(1, 2) + 0.25·(40, 80), and with the mean 0.25·(20, 40)
    assert fuse(ONE, TWO, Fusion(0.25)).tolist() == [10.75, 21.5]
    assert fuse(ONE, TWO, Fusion(0.25, "mean")).tolist() == [5.75, 11.5]


def test_renormalised_the_result_has_the_length_of_the_passage_and_its_own_direction() -> None:
    passage = np.array([3, 4], dtype=np.float32)
    queries = np.array([[0, 20], [0, 0]], dtype=np.float32)
    # the mean fusion with 0.5 is (1.5, 7), of length √51.25; the passage's is 5
    expected = np.array([1.5, 7]) * 5 / np.sqrt(51.25)
    np.testing.assert_allclose(fuse(passage, queries, Fusion(0.5, "mean", renormalise=True)), expected, rtol=1e-6)
    assert fuse(passage, -passage[None], Fusion(0.5, renormalise=True)).tolist() == [0, 0]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_alpha_0_is_the_passage_and_alpha_1_its_queries(fusion: str) -> None:
    assert fuse(ONE, TWO, Fusion(0, fusion)).tolist() == [1, 2]
    assert fuse(ONE, TWO, Fusion(1, fusion)).tolist() == ([40, 80] if fusion == "sum" else [20, 40])


def test_without_queries_the_sum_shrinks_the_passage_and_the_mean_leaves_it() -> None:
    assert fuse(ONE, NONE, Fusion(0.25)).tolist() == [0.75, 1.5]
    assert fuse(ONE, NONE, Fusion(0.25, "mean")).tolist() == [1, 2]


def test_fusion_leaves_its_inputs_alone() -> None:
    passage, queries = ONE.copy(), TWO.copy()
    fuse(passage, queries, Fusion(0.5))
    assert passage.tolist() == ONE.tolist()
    assert queries.tolist() == TWO.tolist()


def test_queries_below_the_least_score_are_left_out() -> None:
    # (1, 2)·(10, 20) = 50, (1, 2)·(30, 60) = 150, (1, 2)·(-1, 0) = -1
    queries = np.array([[10, 20], [30, 60], [-1, 0]], dtype=np.float32)
    assert keep_relevant(ONE, queries, 51).tolist() == [[30, 60]]
    assert keep_relevant(ONE, queries, 50).tolist() == [[10, 20], [30, 60]]
    assert keep_relevant(ONE, queries, -1).tolist() == queries.tolist()
    assert keep_relevant(ONE, queries, 151).shape == (0, 2)
    assert keep_relevant(ONE, NONE, 0).shape == (0, 2)


def test_without_a_least_score_all_queries_take_part() -> None:
    assert keep_relevant(ONE, -TWO, None).tolist() == [[-10, -20], [-30, -60]]


def test_a_passage_is_fused_with_its_relevant_queries_alone() -> None:
    settings = Fusion(0.25, "mean", renormalise=True, min_score=51)
    fused, filtered = augment_passage(ONE, TWO, settings)
    assert fused.tolist() == fuse(ONE, TWO[1:], settings).tolist()
    assert filtered == 1
    assert augment_passage(ONE, TWO, Fusion(0.25))[1] == 0


def test_a_score_does_not_depend_on_the_other_queries_in_any_bit() -> None:
    rows = np.random.default_rng(0).standard_normal((36, 64)).astype(np.float32)
    passage, queries = rows[0], rows[1:]
    for query in queries.astype(np.float64):
        min_score = float(query @ passage.astype(np.float64))
        alone = [keep_relevant(passage, other[None], min_score) for other in queries]
        assert keep_relevant(passage, queries, min_score).tolist() == np.concatenate(alone).tolist()


@pytest.mark.parametrize("min_score", [float("nan"), float("inf"), float("-inf")])
def test_a_least_score_that_is_no_number_is_refused(min_score: float) -> None:
    with pytest.raises(InputError, match=f"min_score must be a finite number, was: {min_score}"):
        check_fusion(Fusion(0.5, min_score=min_score))


@pytest.mark.parametrize("alpha", [-0.01, 1.01, float("nan"), float("inf")])
def test_an_alpha_out_of_range_is_refused_with_its_value(alpha: float) -> None:
    with pytest.raises(InputError, match=rf"alpha must be between 0 and 1 \(inclusive\), was: {alpha}"):
        fuse(ONE, TWO, Fusion(alpha))


def test_an_unknown_fusion_is_refused_with_its_value() -> None:
    with pytest.raises(InputError, match="fusion must be one of sum, mean, was: 'max'"):
        fuse(ONE, TWO, Fusion(0.5, "max"))
