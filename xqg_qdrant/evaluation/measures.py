"""Measure rankings: recall, MRR and nDCG by trec_eval, and how much two rankings agree.

All values are between 0 and 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from xqg_qdrant.evaluation.files import ranked
from xqg_qdrant.records import Qrel

PERSISTENCE = 0.9
"""The weight of a rank in rank-biased overlap relative to the rank before; the first ten have 86% of the total."""
OVERLAP_AT = 10
LARGEST_LEVEL = 1000
"""The largest relevance that trec_eval is given."""


def per_query_values(
    qrels: Iterable[Qrel],
    run: Mapping[str, Sequence[tuple[str, float]]],
    *,
    recall_at: Sequence[int] = (),
    mrr_at: Sequence[int] = (),
    ndcg_at: Sequence[int] = (),
) -> dict[str, dict[str, float]]:
    """Measure a run on each judged question; a question that the run lacks scores zero.

    Args:
        qrels: The judgements; a relevance of 1 or more is relevant, and is the gain in nDCG.
        run: For each query id the passage ids and scores. Equal scores rank in the order given.
        recall_at: The ranks k for recall@k: the share of the relevant passages among the first k.
        mrr_at: The ranks k for MRR@k: one over the rank of the first relevant passage, 0 beyond k.
        ndcg_at: The ranks k for nDCG@k.

    Returns:
        For each measure, by its name, the value of each judged question.
    """
    # Importing it takes longer than most commands run.
    import pytrec_eval

    judged: dict[str, dict[str, int]] = defaultdict(dict)
    for qrel in qrels:
        judged[qrel.query_id][qrel.passage_id] = qrel.relevance
    found = {query_id: dict(ranked(results, query_id)) for query_id, results in run.items() if query_id in judged}
    gains = judged
    if max((relevance for one in judged.values() for relevance in one.values()), default=0) > LARGEST_LEVEL:
        # trec_eval allocates an array as long as the largest relevance, of which only nDCG uses the size.
        judged = {query_id: {name: min(value, 1) for name, value in one.items()} for query_id, one in judged.items()}
        own = {
            f"nDCG@{k}": {query_id: ndcg(one, list(found.get(query_id, ())), k) for query_id, one in gains.items()}
            for k in ndcg_at
        }
        ndcg_at = ()
    else:
        own = {}
    names = {f"recall@{k}": (f"recall_{k}", 0) for k in recall_at}
    names |= {f"MRR@{k}": ("recip_rank", k) for k in mrr_at}
    names |= {f"nDCG@{k}": (f"ndcg_cut_{k}", 0) for k in ndcg_at}
    if not names:
        return own
    asked = {"recip_rank"} if mrr_at else set()
    asked |= {f"recall.{','.join(map(str, recall_at))}"} if recall_at else set()
    asked |= {f"ndcg_cut.{','.join(map(str, ndcg_at))}"} if ndcg_at else set()
    results = pytrec_eval.RelevanceEvaluator(dict(judged), asked).evaluate(found)
    return {
        name: {query_id: _cut(results.get(query_id, {}).get(key, 0.0), k) for query_id in judged}
        for name, (key, k) in names.items()
    } | own


def ndcg(relevance: Mapping[str, int], ranking: Sequence[str], k: int) -> float:
    """Return nDCG@k as trec_eval computes it: the relevance is the gain, discounted by the logarithm of the rank."""

    def gain(levels: Iterable[int]) -> float:
        return sum(max(level, 0) / math.log2(rank + 1) for rank, level in enumerate(list(levels)[:k], start=1))

    best = gain(sorted(relevance.values(), reverse=True))
    return gain(relevance.get(name, 0) for name in ranking) / best if best else 0.0


def rank_biased_overlap(first: Sequence[str], second: Sequence[str], persistence: float = PERSISTENCE) -> float:
    """Return how much two rankings of equal length agree, with the most weight on the first ranks.

    This is the extrapolated form, RBO_ext: the agreement is assumed to stay the same beyond the last rank. See Webber,
    Moffat and Zobel 2010, "A similarity measure for indefinite rankings".

    >>> round(rank_biased_overlap(["a", "b", "c"], ["a", "c", "b"]), 6)
    0.955
    """
    if not first:
        return 1.0
    seen: tuple[set[str], set[str]] = (set(), set())
    shared, weight, total, agreement = 0, 1.0, 0.0, 0.0
    for depth, (one, other) in enumerate(zip(first, second, strict=True), start=1):
        seen[0].add(one)
        seen[1].add(other)
        shared += (one in seen[1]) + (other in seen[0]) - (one == other)
        agreement = shared / depth
        total += weight * agreement
        weight *= persistence
    return (1 - persistence) * total + weight * agreement


def overlap(first: Sequence[str], second: Sequence[str], k: int = OVERLAP_AT) -> float:
    """Return the share of passages among the first k of both rankings.

    >>> overlap(["a", "b", "c"], ["c", "d", "a"], 2)
    0.0
    """
    k = min(k, len(first))
    return len(set(first[:k]) & set(second[:k])) / k if k else 1.0


def _cut(value: float, k: int) -> float:
    """Return a reciprocal rank, or 0 where the rank is beyond k; other values (k = 0) as they are."""
    return value if not k or round(1 / max(value, 1e-9)) <= k else 0.0
