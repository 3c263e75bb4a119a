"""A random sample of a corpus that is read once, in whatever order it comes.

Knows passages and questions. Knows nothing of files and models.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from xqg_qdrant.errors import InputError
from xqg_qdrant.records import Passage, Qrel, Query, Reject


class Sample(NamedTuple):
    """Passages in a random order, and how many passages and rejected rows the corpus holds."""

    passages: tuple[Passage, ...]
    corpus: int
    rejected: int


def draw_sample(rows: Iterable[Passage | Reject], size: int, seed: int, wanted: Container[str] = ()) -> Sample:
    """Draw passages at random, those that are wanted before all others.

    Which ones are drawn, and in which order, depends on their ids and the seed alone. In memory are at most `size`.

    Raises:
        InputError: the corpus holds no passage that can be used.
    """
    corpus = rejected = 0
    drawn: list[tuple[bool, int, str, Passage]] = []  # a heap, with the first to be dropped on top
    for row in rows:
        if isinstance(row, Reject):
            rejected += 1
            continue
        corpus += 1
        item = (row.passage_id in wanted, -_shuffle(row.passage_id, seed), row.passage_id, row)
        if len(drawn) < size:
            heapq.heappush(drawn, item)
        elif item > drawn[0]:
            heapq.heapreplace(drawn, item)
    if not drawn:
        raise InputError(f"the corpus holds no passage that can be used ({rejected} rows rejected). Cure: look at it.")
    # Whoever measures the first of them, where none is wanted, shall measure any.
    return Sample(tuple(passage for *_, passage in sorted(drawn, reverse=True)), corpus, rejected)


def choose_questions(
    queries: Sequence[Query], qrels: Iterable[Qrel], passages: int, seed: int
) -> tuple[list[Query], set[str]]:
    """Choose questions at random whose relevant passages fit into a sample of this size; return these passages, too.

    Raises:
        InputError: no question has a relevant passage.
    """
    relevant: dict[str, set[str]] = {}
    for qrel in qrels:
        if qrel.relevance > 0:
            relevant.setdefault(qrel.query_id, set()).add(qrel.passage_id)
    judged = sorted(
        (query for query in queries if query.query_id in relevant), key=lambda query: _shuffle(query.query_id, seed)
    )
    if not judged:
        raise InputError(
            f"none of the {len(queries)} questions has a passage that is judged relevant, so nobody knows what belongs "
            "into a sample. Cure: give --qrels for these questions, or no questions."
        )
    chosen, wanted = [], set[str]()
    for query in judged:
        together = wanted | relevant[query.query_id]
        if len(together) <= passages:
            chosen.append(query)
            wanted = together
    return chosen, wanted


def keep_answered(queries: Sequence[Query], qrels: Iterable[Qrel], passages: Iterable[Passage]) -> list[Query]:
    """Return the questions of which a relevant passage is in the sample: others may be of another corpus."""
    ids = {passage.passage_id for passage in passages}
    answered = {qrel.query_id for qrel in qrels if qrel.relevance > 0 and qrel.passage_id in ids}
    return [query for query in queries if query.query_id in answered]


def _shuffle(name: str, seed: int) -> int:
    return int.from_bytes(blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest(), "big")
