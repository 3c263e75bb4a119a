"""Search a collection: rank passages by one or more vectors, and match each hit with its nearest generated query."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from xqg_qdrant.augmentation.calibration import (
    AskedLanguage,
    BankMeans,
    encode_bank,
    find_languages,
    read_bank,
    subtract_offsets,
)
from xqg_qdrant.augmentation.pipeline import name_encoders
from xqg_qdrant.errors import InputError
from xqg_qdrant.fingerprint import refuse_mismatch
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.records import PASSAGE_VECTOR, XQG_VECTOR, FloatArray, GeneratedQuery, Passage, Query, ScoredPassage
from xqg_qdrant.stores import read_existing_fingerprint
from xqg_qdrant.stores.protocol import Store, describe_pause
from xqg_qdrant.streams import batched
from xqg_qdrant.text import find_term_ids, show

LOGGER = logging.getLogger(__name__)

HYBRID = "hybrid"
MAX_SIM = "max-sim"
# With the offset of the question's language subtracted: by augmented vectors, and by plain ones.
OFFSET, PASSAGE_OFFSET = "offset", "passage-offset"
OFFSET_RANKINGS = (OFFSET, PASSAGE_OFFSET)
RANKINGS = (PASSAGE_VECTOR, XQG_VECTOR, HYBRID, MAX_SIM, OFFSET, PASSAGE_OFFSET)

QUERIES_AT_ONCE = 64
# `hybrid` fuses this many results of each search, or the limit if that is higher.
CANDIDATES = 200
# `max-sim` caches this many vectors of generated queries between questions: 150 MB at 384 dimensions.
MOST_CACHED = 100_000


class Hit(NamedTuple):
    """A passage, and the generated query of it that is nearest to the question; None if it has no queries."""

    found: ScoredPassage
    best_query: GeneratedQuery | None

    @property
    def passage(self) -> Passage:
        """Return the passage."""
        return self.found.passage

    @property
    def score(self) -> float:
        """Return its score: a dot product, or what the ranking computes from it."""
        return self.found.score


def check_rankings(rankings: Iterable[str]) -> None:
    """Refuse unknown rankings.

    Raises:
        InputError: a ranking is unknown.
    """
    for ranking in rankings:
        if ranking not in RANKINGS:
            raise InputError(f"unknown ranking {ranking!r}.", f"choose one of {', '.join(RANKINGS)}")


def check_collection(store: Store, collection: str, encoder: TextEncoder) -> None:
    """Refuse a collection whose passages another encoder embedded; warn if its indexing is paused.

    Raises:
        InputError: there is no such collection.
        MismatchError: the collection was made with another encoder.
    """
    stored = read_existing_fingerprint(store, collection)
    wanted = {f"encoder.{name}": value for name, value in encoder.describe().items()}
    find_encoders = partial(name_encoders, store, collection, encoder)
    refuse_mismatch(collection, stored, wanted, part="encoder", find_encoders=find_encoders)
    if store.is_paused(collection):
        LOGGER.warning("%s; %s.", *describe_pause(collection))


def search(
    store: Store, collection: str, encoder: TextEncoder, questions: Sequence[str], limit: int, rankings: Sequence[str]
) -> dict[str, list[list[ScoredPassage]]]:
    """Return the `limit` best passages by ranking and question, best first."""
    return Ranker(store, collection, encoder).search(questions, limit, rankings)


def search_runs(
    store: Store,
    collection: str,
    encoder: TextEncoder,
    queries: Sequence[Query],
    limit: int,
    rankings: Sequence[str],
    advance: Callable[[int], object],
) -> dict[str, dict[str, list[ScoredPassage]]]:
    """Return the run of each ranking: the `limit` best passages by query id.

    All hits of a passage share one record of it. `advance` is called with the number of questions after each batch.
    """
    ranker = Ranker(store, collection, encoder)
    runs: dict[str, dict[str, list[ScoredPassage]]] = {name: {} for name in rankings}
    known: dict[str, ScoredPassage] = {}

    def share(hit: ScoredPassage) -> ScoredPassage:
        first = known.setdefault(hit.passage.passage_id, hit)
        return ScoredPassage(first.passage, hit.score, first.generated_queries)

    for batch in batched(queries, QUERIES_AT_ONCE):
        ids = [query.query_id for query in batch]
        languages = [query.language for query in batch]
        for name, lists in ranker.search([query.text for query in batch], limit, rankings, languages).items():
            runs[name].update(zip(ids, ([share(hit) for hit in found] for found in lists), strict=True))
        advance(len(batch))
    return runs


def search_hits(
    store: Store,
    collection: str,
    encoder: TextEncoder,
    questions: Sequence[str],
    limit: int,
    ranking: str,
    language: str = "",
) -> list[list[Hit]]:
    """Return for each question, of one language, the `limit` best passages with their nearest queries, best first."""
    return Ranker(store, collection, encoder).find_hits(questions, limit, ranking, [language] * len(questions))


def match_queries(
    encoder: TextEncoder, vector: FloatArray, found: Sequence[ScoredPassage]
) -> list[GeneratedQuery | None]:
    """Return each passage's generated query nearest to the question's vector, shape `(dim,)`."""
    # One call, each text once: passages on the same subject share queries.
    texts = list({query.text: None for scored in found for query in scored.generated_queries})
    nearness = dict(zip(texts, encoder.encode_queries(texts) @ vector, strict=True)) if texts else {}
    return [max(scored.generated_queries, key=lambda query: nearness[query.text], default=None) for scored in found]


class Ranker:
    """The rankings of one collection; caches the vectors of generated queries, which no store keeps."""

    def __init__(self, store: Store, collection: str, encoder: TextEncoder) -> None:
        self._store = store
        self._collection = collection
        self._encoder = encoder
        self._cached: dict[str, FloatArray] = {}

    def encode(self, questions: Sequence[str]) -> FloatArray:
        """Return the questions' vectors, shape `(n, dim)`.

        Raises:
            InputError: the encoder finds no token in a question, or its vector is not finite.
        """
        vectors = self._encoder.encode_queries(questions)
        for question, vector in zip(questions, vectors, strict=True):
            if not vector.any() or not np.isfinite(vector).all():
                raise InputError(
                    f"the encoder cannot read the question {show(question)}.", "ask in words that it knows"
                )
        return vectors

    def search(
        self, questions: Sequence[str], limit: int, rankings: Sequence[str], languages: Sequence[str] = ()
    ) -> dict[str, list[list[ScoredPassage]]]:
        """Return the `limit` best passages by ranking and question, best first; encode each question once."""
        vectors = self.encode(questions)
        return {name: self.rank(questions, vectors, name, limit, languages) for name in rankings}

    def rank(
        self, questions: Sequence[str], vectors: FloatArray, ranking: str, limit: int, languages: Sequence[str] = ()
    ) -> list[list[ScoredPassage]]:
        """Return for each question the `limit` best passages, best first.

        Args:
            questions: as text.
            vectors: of the same questions, shape `(n, dim)`.
            ranking: one of `RANKINGS`.
            limit: number of passages for each question.
            languages: of the same questions, for `offset` and `passage-offset`; identified where empty.

        Raises:
            StoreError: the search fails; for `hybrid` also if the collection has no sparse vector.
        """
        if ranking == HYBRID:
            candidates = max(limit, CANDIDATES)
            by_vector = self._store.search(self._collection, vectors, XQG_VECTOR, candidates)
            terms = [find_term_ids([question]) for question in questions]
            by_terms = self._store.search_terms(self._collection, terms, candidates)
            return [fuse_scores(*lists, limit) for lists in zip(by_vector, by_terms, strict=True)]
        if ranking == MAX_SIM:
            found = self._store.search(self._collection, vectors, XQG_VECTOR, limit)
            return [self._rescore(vector, hits) for vector, hits in zip(vectors, found, strict=True)]
        if ranking in OFFSET_RANKINGS:
            known = [asked.code for asked in self.find_languages(questions, languages)]
            shifted = subtract_offsets(vectors, known, self._bank_means, calibrated=ranking == OFFSET)
            return self._store.search(
                self._collection, shifted, XQG_VECTOR if ranking == OFFSET else PASSAGE_VECTOR, limit
            )
        return self._store.search(self._collection, vectors, ranking, limit)

    def find_hits(
        self, questions: Sequence[str], limit: int, ranking: str, languages: Sequence[str] = ()
    ) -> list[list[Hit]]:
        """Return for each question the `limit` best passages with their nearest queries, best first."""
        vectors = self.encode(questions)
        lists = self.rank(questions, vectors, ranking, limit, languages)
        return [
            [Hit(*pair) for pair in zip(found, match_queries(self._encoder, vector, found), strict=True)]
            for vector, found in zip(vectors, lists, strict=True)
        ]

    def find_languages(self, questions: Sequence[str], languages: Sequence[str] = ()) -> list[AskedLanguage]:
        """Return the languages whose offsets are subtracted from the questions: the given ones, or identified."""
        return find_languages(questions, languages or [""] * len(questions), self._bank_means)

    @cached_property
    def _bank_means(self) -> BankMeans:
        return encode_bank(read_bank(), self._encoder)

    def _rescore(self, question: FloatArray, hits: Sequence[ScoredPassage]) -> list[ScoredPassage]:
        """Sort hits by the highest dot product of a passage or its queries with the question, shape `(dim,)`."""
        self._cache(query.text for hit in hits for query in hit.generated_queries)
        points = self._store.read_points(self._collection, [hit.passage.passage_id for hit in hits])
        rescored = []
        for hit in hits:
            plain = points[hit.passage.passage_id].vectors[PASSAGE_VECTOR]
            candidates = (plain, *(self._cached[query.text] for query in hit.generated_queries))
            score = max(float(vector @ question) for vector in candidates)
            rescored.append(replace(hit, score=score))
        return sorted(rescored, key=lambda hit: (-hit.score, hit.passage.passage_id))

    def _cache(self, texts: Iterable[str]) -> None:
        wanted = dict.fromkeys(texts)
        if len(self._cached) > MOST_CACHED:
            self._cached.clear()
        missing = [text for text in wanted if text not in self._cached]
        self._cached.update(zip(missing, self._encoder.encode_queries(missing), strict=True))


def fuse_scores(
    by_vector: Sequence[ScoredPassage], by_terms: Sequence[ScoredPassage], limit: int
) -> list[ScoredPassage]:
    """Merge two result lists by the mean of their scores, each scaled to 0…1.

    By vector, the best result has 1 and the last 0. By terms, the best has 1, and a passage that shares no term has 0.
    A passage missing from one list gets 0 for it. Equal scores are ordered by passage id.
    """
    scores: dict[str, float] = {}
    found = {hit.passage.passage_id: hit for hit in (*by_terms, *by_vector)}
    for hits, least in ((by_vector, by_vector[-1].score if len(by_vector) > 1 else 0.0), (by_terms, 0.0)):
        span = hits[0].score - least if hits else 0.0
        for hit in hits:
            share = (hit.score - least) / span if span else 1.0
            scores[hit.passage.passage_id] = scores.get(hit.passage.passage_id, 0.0) + share / 2
    best = sorted(scores, key=lambda passage_id: (-scores[passage_id], passage_id))[:limit]
    return [replace(found[passage_id], score=scores[passage_id]) for passage_id in best]
