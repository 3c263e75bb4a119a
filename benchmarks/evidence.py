"""Measure recipes by exact searches in memory, with the package's own fusion, ranking, measures and tests.

A corpus is encoded once for all rows. No store takes part.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xqg_qdrant.augmentation.calibration import encode_bank, pack_mean, read_bank, subtract_offsets
from xqg_qdrant.augmentation.fusion import PUBLISHED_ALPHA, Fusion, fuse
from xqg_qdrant.augmentation.pipeline import find_terms
from xqg_qdrant.corpus.questions import read_questions
from xqg_qdrant.evaluation.comparison import Comparison, Values, average, compare_values, languages_of
from xqg_qdrant.evaluation.files import read_qrels
from xqg_qdrant.evaluation.hubs import NEIGHBOURS, Hubness, measure_hubness
from xqg_qdrant.evaluation.measures import per_query_values
from xqg_qdrant.evaluation.sweep.bench import rank
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.records import FloatArray, GeneratedQuery, Passage, Qrel, Query, ScoredPassage
from xqg_qdrant.retrieval import CANDIDATES, fuse_scores
from xqg_qdrant.text import find_term_ids

MEASURE, DEPTH = "MRR@10", 10
QUERIES_A_LANGUAGE = 2
"""Queries a language of every passage in `read_large`: those of Wikipedia have no more."""
LEVELS = 127
"""Qdrant's int8 codes have 7 bits."""


class Corpus(NamedTuple):
    """Passages in the order of their ids, the queries of each, and judged questions."""

    passages: Sequence[Passage]
    queries: Sequence[Sequence[GeneratedQuery]]
    questions: Sequence[Query]
    qrels: Sequence[Qrel]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a gzipped JSONL file."""
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()]


def read_dev(data: Path, languages: Sequence[str]) -> Corpus:
    """Read half of XQuAD: the 120 passages with given queries, and people's questions."""
    folder = data / "dev"
    queries: dict[str, list[GeneratedQuery]] = {}
    for row in read_rows(folder / "queries_llm.jsonl.gz"):
        own = queries.setdefault(row["id"], [])
        number = sum(query.language == row["language"] for query in own)
        own.append(GeneratedQuery(row["language"], row["text"], number))
    rows = sorted(read_rows(folder / "corpus.jsonl.gz"), key=lambda row: str(row["id"]))
    passages = [Passage(row["id"], row["text"], row.get("title", "")) for row in rows if row["id"] in queries]
    questions = read_questions([folder / f"queries.{language}.jsonl.gz" for language in languages]).queries
    asked = {question.query_id for question in questions}
    qrels = [qrel for qrel in read_qrels(folder / "qrels.tsv.gz") if qrel.query_id in asked]
    return Corpus(passages, [queries[passage.passage_id] for passage in passages], questions, qrels)


def read_wikipedia(data: Path, languages: Sequence[str]) -> Corpus:
    """Read the passages of Wikipedia: the first question in each language is a query, the second is asked."""
    rows = _read_wikipedia_rows(data)
    passages = [Passage(f"{number:05}", row["text"], row["title"]) for number, row in enumerate(rows)]
    queries = [[GeneratedQuery(language, row["questions"][language][0]) for language in languages] for row in rows]
    questions, qrels = [], []
    for passage, row in zip(passages, rows, strict=True):
        for language in languages:
            query = Query(f"{passage.passage_id}-{language}", row["questions"][language][1], language)
            questions.append(query)
            qrels.append(Qrel(query.query_id, passage.passage_id, 1))
    return Corpus(passages, queries, questions, qrels)


def read_large(data: Path, languages: Sequence[str]) -> Corpus:
    """Read half of XQuAD among the passages of Wikipedia; every passage has two queries each in Arabic and Russian."""
    dev = read_dev(data, languages)
    kept = [[query for query in queries if query.number < QUERIES_A_LANGUAGE] for queries in dev.queries]
    passages, queries = list(dev.passages), list(kept)
    for number, row in enumerate(_read_wikipedia_rows(data)):
        passages.append(Passage(f"zz-wikipedia-{number:05}", row["text"], row["title"]))
        queries.append([
            GeneratedQuery(language, text, place)
            for language in ("ar", "ru")
            for place, text in enumerate(row["questions"][language][:QUERIES_A_LANGUAGE])
        ])  # fmt: skip
    return Corpus(passages, queries, dev.questions, dev.qrels)


def _read_wikipedia_rows(data: Path) -> list[dict[str, Any]]:
    return read_rows(data / "train" / "passage_questions_llm.jsonl.gz")


class Evidence:
    """The vectors of a corpus, its queries and its questions by one encoder, and what any recipe finds with them."""

    def __init__(self, encoder: TextEncoder, corpus: Corpus) -> None:
        """Encode everything."""
        self.encoder, self.corpus = encoder, corpus
        self.means = encode_bank(read_bank(), encoder)
        self.plain = encoder.encode_passages([f"{one.title} {one.text}".strip() for one in corpus.passages])
        texts = list(dict.fromkeys(query.text for queries in corpus.queries for query in queries))
        self._queries = dict(zip(texts, encoder.encode_queries(texts), strict=True))
        self.questions = encoder.encode_queries([question.text for question in corpus.questions])

    def fuse(self, alpha: float, gamma: float, keep: Callable[[GeneratedQuery], bool] = lambda _: True) -> FloatArray:
        """Return vectors of the default recipe with another alpha and gamma, and with some of the queries."""
        return self._fuse(self._settings(alpha, gamma), keep)

    def publish(self) -> FloatArray:
        """Return vectors of the published recipe: a sum with alpha 0.01."""
        return self._fuse(Fusion(PUBLISHED_ALPHA, "sum"), lambda _: True)

    def _fuse(self, settings: Fusion, keep: Callable[[GeneratedQuery], bool]) -> FloatArray:
        none = np.empty((0, self.plain.shape[1]), dtype=np.float32)
        fused = []
        for plain, queries in zip(self.plain, self.corpus.queries, strict=True):
            kept = [self._queries[query.text] for query in queries if keep(query)]
            fused.append(fuse(plain, np.stack(kept) if kept else none, settings))
        return np.stack(fused)

    def control(self, alpha: float, gamma: float) -> FloatArray:
        """Return vectors fused with the mean of all queries in place of the passage's own."""
        mean = np.stack(list(self._queries.values())).astype(np.float64).mean(axis=0).astype(np.float32)
        settings = self._settings(alpha, gamma)
        return np.stack([fuse(plain, mean[None], settings) for plain in self.plain])

    def offset(self, calibrated: bool) -> FloatArray:
        """Return the questions' vectors without the offset of their language."""
        languages = [question.language for question in self.corpus.questions]
        return subtract_offsets(self.questions, languages, self.means, calibrated=calibrated)

    def measure(self, passages: FloatArray, questions: FloatArray | None = None) -> Values:
        """Search exactly, and return MRR@10 in percent."""
        ids = [passage.passage_id for passage in self.corpus.passages]
        found = rank(passages, self.questions if questions is None else questions, DEPTH)
        return self._values([(ids[place], score) for place, score in zip(*hits, strict=True)] for hits in found)

    def measure_hybrid(self, passages: FloatArray, with_queries: bool = True) -> Values:
        """Rank by vectors and terms as `--rank hybrid` does, and return MRR@10 in percent.

        The corpus must have at most `CANDIDATES` passages: then both searches return all that match.
        """
        corpus = self.corpus
        owned = [
            set(find_terms(passage, queries if with_queries else ()))
            for passage, queries in zip(corpus.passages, corpus.queries, strict=True)
        ]
        count, holders = len(owned), Counter(term for terms in owned for term in terms)
        weights = {term: log(1 + (count - held + 0.5) / (held + 0.5)) for term, held in holders.items()}
        ranked = []
        for question, hits in zip(corpus.questions, rank(passages, self.questions, CANDIDATES), strict=True):
            asked = set(find_term_ids([question.text]))
            scores = [sum(weights[term] for term in sorted(asked & terms)) for terms in owned]
            by_vector = [ScoredPassage(corpus.passages[place], score) for place, score in zip(*hits, strict=True)]
            by_terms = [ScoredPassage(corpus.passages[place], score) for place, score in enumerate(scores) if score]
            by_terms.sort(key=lambda hit: (-hit.score, hit.passage.passage_id))
            ranked.append(fuse_scores(by_vector, by_terms, DEPTH))
        return self._values([(hit.passage.passage_id, hit.score) for hit in found] for found in ranked)

    def measure_hubness(self, passages: FloatArray) -> Hubness:
        """Return how the ten best passages of the questions spread over the corpus."""
        counts = Counter(place for places, _ in rank(passages, self.questions, NEIGHBOURS) for place in places)
        return measure_hubness(list(counts.values()), len(passages))

    def compare(self, first: Values, second: Values) -> Comparison:
        """Compare two measured recipes."""
        return compare_values(first, second, self._languages)

    def _settings(self, alpha: float, gamma: float) -> Fusion:
        return Fusion(alpha, "mean", renormalise=True, gamma=gamma, bank_mean=pack_mean(self.means.overall))

    def _values(self, found: Iterable[Sequence[tuple[str, float]]]) -> Values:
        run = {question.query_id: list(hits) for question, hits in zip(self.corpus.questions, found, strict=True)}
        per_query = per_query_values(self.corpus.qrels, run, mrr_at=(DEPTH,))[MEASURE]
        return average({query_id: 100 * value for query_id, value in per_query.items()}, self._languages)

    @cached_property
    def _languages(self) -> dict[str, str]:
        return languages_of(self.corpus.questions)


def quantise(vectors: FloatArray) -> FloatArray:
    """Return vectors as Qdrant's int8 codes keep them: 128 levels from the smallest to the largest number of all."""
    low = float(vectors.min())
    step = (float(vectors.max()) - low) / LEVELS
    return (np.round((vectors - low) / step) * step + low).astype(np.float32)
