from __future__ import annotations

from math import log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xqg_qdrant.evaluation.measures import per_query_values
from xqg_qdrant.records import Qrel

QRELS = [
    Qrel("q1", "a", 1),
    Qrel("q1", "b", 1),
    Qrel("q1", "c", 0),
    Qrel("q2", "a", 2),
    Qrel("q2", "d", 1),
    Qrel("q3", "a", 1),
    Qrel("q4", "a", 0),
]
RUN = {
    "q1": [("x", 0.9), ("b", 0.8), ("c", 0.7), ("a", 0.6)],
    "q2": [("d", 3.0), ("a", 2.0)],
    "q4": [("a", 1.0)],
    "q9": [("a", 1.0)],
}


def test_recall_is_the_share_of_the_relevant_passages_found() -> None:
    values = per_query_values(QRELS, RUN, recall_at=[1, 2, 4])
    assert values["recall@1"] == {"q1": 0, "q2": 1 / 2, "q3": 0, "q4": 0}
    assert values["recall@2"] == {"q1": 1 / 2, "q2": 1, "q3": 0, "q4": 0}
    assert values["recall@4"] == {"q1": 1, "q2": 1, "q3": 0, "q4": 0}


def test_mrr_is_one_over_the_first_relevant_rank_up_to_k() -> None:
    values = per_query_values(QRELS, RUN, mrr_at=[1, 2, 10])
    assert values["MRR@1"] == {"q1": 0, "q2": 1, "q3": 0, "q4": 0}
    assert values["MRR@2"] == values["MRR@10"] == {"q1": 1 / 2, "q2": 1, "q3": 0, "q4": 0}


def test_ndcg_takes_the_relevance_as_gain() -> None:
    values = per_query_values(QRELS, RUN, ndcg_at=[1, 10])
    assert values["nDCG@1"]["q2"] == pytest.approx(1 / 2)
    assert values["nDCG@10"]["q2"] == pytest.approx((1 + 2 / log2(3)) / (2 + 1 / log2(3)))
    assert values["nDCG@10"]["q1"] == pytest.approx((1 / log2(3) + 1 / log2(5)) / (1 + 1 / log2(3)))
    assert values["nDCG@10"]["q3"] == 0


def test_a_judged_question_that_the_run_lacks_scores_zero() -> None:
    values = per_query_values(QRELS, {}, recall_at=[5], mrr_at=[5], ndcg_at=[5])
    assert all(value == dict.fromkeys(["q1", "q2", "q3", "q4"], 0.0) for value in values.values())
    assert list(values) == ["recall@5", "MRR@5", "nDCG@5"]


def test_no_measures_asked_are_none_given() -> None:
    assert per_query_values(QRELS, RUN) == {}


def test_equal_scores_rank_as_given_though_trec_eval_would_reorder_them() -> None:
    for order in (["x", "a", "y"], ["y", "a", "x"]):
        run = {"q3": [(name, 0.5) for name in order]}
        assert per_query_values(QRELS, run, mrr_at=[10])["MRR@10"]["q3"] == 1 / 2


names = st.sampled_from("abcdefgh")


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.tuples(st.sampled_from(["q1", "q2", "q3"]), names), st.integers(0, 3), min_size=1),
    st.dictionaries(st.sampled_from(["q1", "q2", "q4"]), st.permutations("abcdefgh"), max_size=3),
)
def test_values_agree_with_ir_measures(judged: dict[tuple[str, str], int], rankings: dict[str, list[str]]) -> None:
    ir_measures = pytest.importorskip("ir_measures")
    run = {query_id: [(name, -float(rank)) for rank, name in enumerate(r)] for query_id, r in rankings.items()}
    qrels = [Qrel(query_id, name, relevance) for (query_id, name), relevance in judged.items()]
    ours = per_query_values(qrels, run, recall_at=[1, 3], mrr_at=[2, 10], ndcg_at=[5])
    theirs = {
        "recall@1": ir_measures.R @ 1,
        "recall@3": ir_measures.R @ 3,
        "MRR@2": ir_measures.RR @ 2,
        "MRR@10": ir_measures.RR @ 10,
        "nDCG@5": ir_measures.nDCG @ 5,
    }
    scored = [ir_measures.ScoredDoc(q, name, score) for q, results in run.items() for name, score in results]
    reference = ir_measures.iter_calc(list(theirs.values()), [ir_measures.Qrel(*qrel) for qrel in qrels], scored)
    expected = {(metric.query_id, metric.measure): metric.value for metric in reference}
    for name, measure in theirs.items():
        for query_id, value in ours[name].items():
            assert value == pytest.approx(expected[query_id, measure]), (name, query_id)
        assert len(ours[name]) == sum(1 for _, other in expected if other == measure)
