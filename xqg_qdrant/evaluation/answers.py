"""Whether the answers to questions are in the texts that a run found: R@kt, by the rules of `official`.

A question for which a run found nothing is a miss. Knows nothing of judgements and languages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from xqg_qdrant.evaluation import official
from xqg_qdrant.records import Query, ScoredPassage

Found: TypeAlias = Mapping[str, Sequence[ScoredPassage]]
"""A run: for each query id the passages found, best first. One without an id, or without a text, is of a system that
does not tell it: such a run has no recall, or no R@kt."""


def find_answer_hits(
    queries: Iterable[Query],
    run: Found,
    token_budgets: Sequence[int],
    rules: official.WordRules,
    lenient: bool = False,
) -> dict[str, dict[str, float]]:
    """Return for each measure R@kt and each question 1 where an answer is among the tokens found, and 0 elsewhere."""
    hits: dict[str, dict[str, float]] = {}
    for query in queries:
        texts = (found.passage.text for found in run.get(query.query_id, ()))
        answers = official.span_answers(query)
        if lenient:
            answers = official.add_tokenised(answers, rules)
        found = official.answer_hits(texts, answers, token_budgets, rules)
        for budget, hit in zip(token_budgets, found, strict=True):
            hits.setdefault(official.measure_name(budget, lenient), {})[query.query_id] = float(hit)
    return hits


def note_short_results(
    name: str,
    queries: Sequence[Query],
    run: Found,
    hits: Mapping[str, Mapping[str, float]],
    token_budgets: Sequence[int],
    rules: official.WordRules,
) -> list[str]:
    """Say where misses may come from too few results: R@5kt of ten passages is R@1kt under another name."""
    notes = []
    for budget in token_budgets:
        measure = official.measure_name(budget)
        short = 0
        for query in queries:
            texts = (found.passage.text for found in run.get(query.query_id, ()))
            if not hits[measure][query.query_id] and official.token_count(texts, budget, rules) < budget:
                short += 1
        if short:
            notes.append(
                f"{measure} of {name}: {short} of the questions missed have results of fewer than {budget:,} tokens; "
                "search with a higher limit"
            )
    return notes
