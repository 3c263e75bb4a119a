"""The questions that one run answers better than another, each with what both found.

Knows runs, judgements and values. Knows nothing of models: which generated query speaks for a hit is told to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from xqg_qdrant.evaluation.answers import Found
from xqg_qdrant.evaluation.comparison import Report
from xqg_qdrant.evaluation.official import span_answers
from xqg_qdrant.records import GeneratedQuery, Qrel, Query, ScoredPassage

HITS_SHOWN = 3

MatchQueries: TypeAlias = Callable[[str, Sequence[ScoredPassage]], Sequence[GeneratedQuery | None]]
"""Gives for a question and each passage the generated query nearest to the question, None where there is none."""


def find_changes(
    queries: Iterable[Query],
    qrels: Iterable[Qrel],
    report: Report,
    runs: Mapping[str, Found],
    match_queries: MatchQueries | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield as JSON values each question that the last run wins from the first or loses, in the first measure of both.

    `hits` are of each of the two runs the first three passages found, and the first relevant one where it comes later.
    """
    relevant = {(qrel.query_id, qrel.passage_id) for qrel in qrels if qrel.relevance > 0}
    judged = {query_id for query_id, _ in relevant}
    if not report.comparisons:
        return
    first, *_, last = report.values
    for measure in list(report.comparisons[last])[:1]:
        before, after = (report.values[run][measure].per_query for run in (first, last))
        for query in queries:
            if before.get(query.query_id) == after.get(query.query_id):
                continue

            def is_relevant(found: ScoredPassage, query: Query = query) -> bool:
                if query.query_id in judged:
                    return (query.query_id, found.passage.passage_id) in relevant
                return any(answer in found.passage.text for answer in span_answers(query))

            yield {
                "id": query.query_id,
                "lang": query.language,
                "text": query.text,
                "answers": list(query.answers),
                "measure": measure,
                "before": before[query.query_id],
                "after": after[query.query_id],
                "hits": {
                    run: _first_hits(query.text, runs[run].get(query.query_id, ()), is_relevant, match_queries)
                    for run in (first, last)
                },
            }


def _first_hits(
    question: str,
    found: Sequence[ScoredPassage],
    is_relevant: Callable[[ScoredPassage], bool],
    match_queries: MatchQueries | None,
) -> list[dict[str, Any]]:
    shown = dict(enumerate(found[:HITS_SHOWN], start=1))
    if first := next(((rank, hit) for rank, hit in enumerate(found, start=1) if is_relevant(hit)), None):
        shown |= [first]
    hits = list(shown.values())
    best = match_queries(question, hits) if match_queries else [None] * len(hits)
    return [
        {
            "rank": rank,
            "passage_id": hit.passage.passage_id,
            "score": hit.score,
            "title": hit.passage.title,
            "text": hit.passage.text,
            "relevant": is_relevant(hit),
            "best_query": {"language": query.language, "text": query.text} if query else None,
        }
        for (rank, hit), query in zip(shown.items(), best, strict=True)
    ]
