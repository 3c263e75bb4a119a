"""Recall, MRR and nDCG of a run, for each question, through trec_eval.

Knows runs and judgements; values are between 0 and 1. A judged question that the run lacks scores zero and is counted.
Knows nothing of languages or texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from xqg_qdrant.evaluation.files import ranked
from xqg_qdrant.records import Qrel


def per_query_values(
    qrels: Iterable[Qrel],
    run: Mapping[str, Sequence[tuple[str, float]]],
    *,
    recall_at: Sequence[int] = (),
    mrr_at: Sequence[int] = (),
    ndcg_at: Sequence[int] = (),
) -> dict[str, dict[str, float]]:
    """Measure a run on each judged question.

    Args:
        qrels: Judgements; a relevance of 1 or more is relevant, and nDCG takes it as the gain.
        run: For each query id the passage ids and scores. Equal scores rank in the order given.
        recall_at: The ranks k for recall@k: the share of the relevant passages among the first k.
        mrr_at: The ranks k for MRR@k: one over the rank of the first relevant passage, 0 beyond k.
        ndcg_at: The ranks k for nDCG@k.

    Returns:
        For each measure, by its name, the value of each judged question.
    """
    # Loading it takes longer than most commands run.
    import pytrec_eval

    judged: dict[str, dict[str, int]] = defaultdict(dict)
    for qrel in qrels:
        judged[qrel.query_id][qrel.passage_id] = qrel.relevance
    names = {f"recall@{k}": (f"recall_{k}", 0) for k in recall_at}
    names |= {f"MRR@{k}": ("recip_rank", k) for k in mrr_at}
    names |= {f"nDCG@{k}": (f"ndcg_cut_{k}", 0) for k in ndcg_at}
    if not names:
        return {}
    asked = {"recip_rank"} if mrr_at else set()
    asked |= {f"recall.{','.join(map(str, recall_at))}"} if recall_at else set()
    asked |= {f"ndcg_cut.{','.join(map(str, ndcg_at))}"} if ndcg_at else set()
    found = {query_id: dict(ranked(results, query_id)) for query_id, results in run.items() if query_id in judged}
    results = pytrec_eval.RelevanceEvaluator(dict(judged), asked).evaluate(found)
    return {
        name: {query_id: _cut(results.get(query_id, {}).get(key, 0.0), k) for query_id in judged}
        for name, (key, k) in names.items()
    }


def _cut(value: float, k: int) -> float:
    """Return a reciprocal rank, or 0 where the rank is beyond k; other values (k = 0) as they are."""
    return value if not k or round(1 / max(value, 1e-9)) <= k else 0.0
