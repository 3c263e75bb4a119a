"""Measure a setting: an exact search of its vectors, and one measure of the results."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from xqg_qdrant.augmentation.recipe import Recipe, add_bank
from xqg_qdrant.corpus.inputs import DOCUMENT_ID
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation import xor_retrieve as official
from xqg_qdrant.evaluation.comparison import Report, Values, average, evaluate_runs, languages_of
from xqg_qdrant.evaluation.measures import per_query_values
from xqg_qdrant.evaluation.sweep.vectors import StoredVectors
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.records import FloatArray, Passage, Qrel, Query, ScoredPassage
from xqg_qdrant.text import agree

# A block of scores that fits the processor's cache is ranked faster, and bounds the memory for a large corpus.
SCORES_AT_ONCE = 1 << 22
# Where documents are judged, this many passages are ranked for each that is asked for.
PASSAGES_A_DOCUMENT = 10


class Measure(NamedTuple):
    """A measure by its name in a report, and the number of results it looks at.

    R@kt has a `budget` of tokens; for the others, `asked` are the arguments of `per_query_values`.
    """

    name: str
    depth: int
    budget: int = 0
    asked: Mapping[str, Sequence[int]] = MappingProxyType({})


def parse_measure(name: str, limit: int) -> Measure:
    """Return the measure of this name; R@kt looks at `limit` results.

    Raises:
        InputError: There is no such measure.
    """
    if found := re.fullmatch(r"R@([1-9]\d*)(k?)t", name):
        budget = int(found[1]) * (1000 if found[2] else 1)
        return Measure(official.measure_name(budget), limit, budget)
    if found := re.fullmatch(r"(recall|MRR|nDCG)@([1-9]\d*)", name):
        k = int(found[2])
        return Measure(name, k, asked={f"{found[1].lower()}_at": (k,)})
    raise InputError(f"unknown measure {name!r}.", "give one such as R@2kt, recall@10, MRR@10 or nDCG@10")


def default_measure(queries: Sequence[Query]) -> str:
    """Return R@2kt if answers can be searched for, else MRR@10, which is finer than hit or miss."""
    return "R@2kt" if any(map(official.span_answers, queries)) and official.is_available() else "MRR@10"


@dataclass(frozen=True)
class Bench:
    """Questions, and the vectors of a collection to measure on them.

    Attributes:
        vectors: The contents of the collection.
        recipe: The recipe of the collection; if its encoder can be calibrated, with a bank mean.
        queries: The questions.
        query_vectors: Their vectors, shape `(questions, dim)`.
        qrels: The judgements; may be empty.
        measure: The measure that settings are compared by.
        limit: The number of passages per question in a report.
        documents: The document of each passage, if documents were split and are judged; else empty.
    """

    vectors: StoredVectors
    recipe: Recipe
    queries: Sequence[Query]
    query_vectors: FloatArray
    qrels: Sequence[Qrel]
    measure: Measure
    limit: int
    documents: Sequence[str] = ()

    def of(self, query_ids: Sequence[str]) -> Bench:
        """Return a bench with some of the questions."""
        wanted = set(query_ids)
        places = [place for place, query in enumerate(self.queries) if query.query_id in wanted]
        queries = [self.queries[place] for place in places]
        qrels = [qrel for qrel in self.qrels if qrel.query_id in wanted]
        return replace(self, queries=queries, query_vectors=self.query_vectors[places], qrels=qrels)

    def measure_vectors(self, vectors: FloatArray) -> Values:
        """Search these vectors, shape `(passages, dim)`, and measure the results like `evaluate_runs`."""
        passages, measure = self.vectors.passages, self.measure
        found = self._rank(vectors, measure.depth)
        values: dict[str, float] = {}
        if measure.budget:
            for query, (places, _) in zip(self.queries, found, strict=True):
                texts = (passages[place].text for place in places)
                [hit] = official.answer_hits(texts, official.span_answers(query), (measure.budget,))
                values[query.query_id] = float(hit)
        else:
            run = {
                query.query_id: [(self._name(place), score) for place, score in zip(*hits, strict=True)]
                for query, hits in zip(self.queries, found, strict=True)
            }
            values = per_query_values(self.qrels, run, **self.measure.asked)[measure.name]
        return average({query_id: 100 * value for query_id, value in values.items()}, languages_of(self.queries))

    def compare(self, vectors: Mapping[str, FloatArray]) -> Report:
        """Compare vectors with the first ones, by this measure and the standard ones."""
        runs = {name: self.search(found) for name, found in vectors.items()}
        asked = self.measure.asked
        return evaluate_runs(
            self.queries,
            self.qrels,
            runs,
            recall_at=sorted({10, *asked.get("recall_at", ())}),
            mrr_at=sorted({10, *asked.get("mrr_at", ())}),
            ndcg_at=sorted({10, *asked.get("ndcg_at", ())}),
            token_budgets=sorted({*official.TOKEN_BUDGETS, self.measure.budget} - {0}),
        )

    def search(self, vectors: FloatArray) -> dict[str, list[ScoredPassage]]:
        """Return the best passages for each question, in the order and with the scores of a store.

        If documents are judged, it is the best passage of each document, with the document's id.
        """
        limit = max(self.limit, self.measure.depth)
        return {
            query.query_id: [ScoredPassage(self._passage(place), score) for place, score in zip(*hits, strict=True)]
            for query, hits in zip(self.queries, self._rank(vectors, limit), strict=True)
        }

    def _name(self, place: int) -> str:
        return self.documents[place] if self.documents else self.vectors.passages[place].passage_id

    def _passage(self, place: int) -> Passage:
        passage = self.vectors.passages[place]
        return replace(passage, passage_id=self.documents[place]) if self.documents else passage

    def _rank(self, vectors: FloatArray, depth: int) -> Iterator[tuple[list[int], list[float]]]:
        """Yield the indices and scores of the `depth` best passages, or best documents, of each question."""
        if not self.documents:
            yield from rank(vectors, self.query_vectors, depth)
            return
        for places, scores in rank(vectors, self.query_vectors, PASSAGES_A_DOCUMENT * depth):
            best: dict[str, tuple[int, float]] = {}
            for place, score in zip(places, scores, strict=True):
                best.setdefault(self.documents[place], (place, score))
            kept = list(best.values())[:depth]
            yield [place for place, _ in kept], [score for _, score in kept]


def make_bench(
    vectors: StoredVectors,
    recipe: Recipe,
    encoder: TextEncoder,
    queries: Sequence[Query],
    qrels: Sequence[Qrel],
    measure: str | None,
    limit: int,
) -> Bench:
    """Encode the questions that can be measured.

    Raises:
        InputError: There are fewer than two such questions, or no such measure.
    """
    chosen = parse_measure(measure or default_measure(queries), limit)
    if chosen.budget:
        usable = [query for query in queries if official.span_answers(query)]
        lacking = "answers to search for"
        official.load_tokenizer()
    else:
        judged = {qrel.query_id for qrel in qrels}
        usable = [query for query in queries if query.query_id in judged]
        lacking = "judgements"
    if len(usable) < 2:
        raise InputError(
            f"{chosen.name} needs two questions with {lacking}, but only {len(usable)} of {len(queries)} can be used.",
            "give --qrels or questions with answers, or choose another --measure",
        )
    encoded = encoder.encode_queries([query.text for query in usable])
    ids = {query.query_id for query in usable}
    if encoder.describe()["normalise"]:
        recipe = add_bank(recipe, encoder)
    judgements = [qrel for qrel in qrels if qrel.query_id in ids]
    documents = _find_documents(vectors.passages, judgements)
    return Bench(vectors, recipe, usable, encoded, judgements, chosen, limit, documents)


def _find_documents(passages: Sequence[Passage], qrels: Iterable[Qrel]) -> Sequence[str]:
    """Return the document of each passage if the judgements name documents."""
    documents = [str(passage.metadata.get(DOCUMENT_ID, passage.passage_id)) for passage in passages]
    split = {document for document, passage in zip(documents, passages, strict=True) if document != passage.passage_id}
    return documents if split & {qrel.passage_id for qrel in qrels} else ()


def rank(vectors: FloatArray, queries: FloatArray, limit: int) -> Iterator[tuple[list[int], list[float]]]:
    """Yield for each question the indices of the highest dot products, best first, and the products.

    Ties are broken by index.

    Args:
        vectors: The vectors of the passages in the order of their ids, which is how stores break ties, shape
            `(passages, dim)`.
        queries: The vectors of the questions, shape `(questions, dim)`.
        limit: The number of passages per question.
    """
    # In a matrix product the last bits of a column depend on its position. Equal vectors must tie, as in a store.
    first: dict[bytes, int] = {}
    digests = (blake2b(vector.tobytes(), digest_size=16).digest() for vector in vectors)
    same = np.array([first.setdefault(digest, len(first)) for digest in digests], dtype=np.int64)
    distinct = vectors if len(first) == len(vectors) else vectors[np.unique(same, return_index=True)[1]]
    rows = max(1, SCORES_AT_ONCE // len(vectors))
    limit = min(limit, len(vectors))
    for start in range(0, len(queries), rows):
        scores = queries[start : start + rows] @ distinct.T
        if len(distinct) < len(vectors):
            scores = scores[:, same]
        lowest = -np.partition(-scores, limit - 1, axis=1)[:, limit - 1]
        for row, least in zip(scores, lowest, strict=True):
            candidates = np.flatnonzero(row >= least)
            best = candidates[np.argsort(-row[candidates], kind="stable")[:limit]]
            yield best.tolist(), row[best].tolist()


def halve(queries: Sequence[Query], seed: int) -> tuple[list[str], list[str]]:
    """Split the questions of each language into two halves, and return the ids of both.

    The split depends on the seed and on the ids of the questions.

    Raises:
        InputError: No language has two questions.
    """
    by_language: dict[str, list[str]] = {}
    for query in queries:
        by_language.setdefault(query.language, []).append(query.query_id)
    first, second = [], []
    for _, ids in sorted(by_language.items()):
        shuffled = sorted(ids, key=lambda query_id: blake2b(f"{seed}\0{query_id}".encode()).digest())
        middle = (len(shuffled) + 1) // 2
        first += shuffled[:middle]
        second += shuffled[middle:]
    if not second:
        raise InputError(
            f"{_no_two_of(len(queries))}, so there are no two halves.",
            "give at least two questions in one language",
        )
    return first, second


def _no_two_of(questions: int) -> str:
    several = f"the {questions} questions that can be measured are all in different languages"
    return agree(questions, "only 1 question can be measured", several)
