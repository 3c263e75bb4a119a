"""Questions → ranked passages.

Knows which generated query speaks for a hit. Knows nothing of engines or measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from xqg_qdrant.errors import InputError
from xqg_qdrant.fingerprint import refuse_mismatch
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import PASSAGE_VECTOR, XQG_VECTOR, FloatArray, GeneratedQuery, Passage, Query, ScoredPassage
from xqg_qdrant.stores import read_existing_fingerprint
from xqg_qdrant.stores.protocol import Store
from xqg_qdrant.streams import batched
from xqg_qdrant.text import find_term_ids

QUERIES_AT_ONCE = 64


class Hit(NamedTuple):
    """A passage that was found, and its generated query that is nearest to the question (None where it has none)."""

    found: ScoredPassage
    best_query: GeneratedQuery | None

    @property
    def passage(self) -> Passage:
        """Return the passage."""
        return self.found.passage

    @property
    def score(self) -> float:
        """Return its score: a dot product, or what the ranking makes of it."""
        return self.found.score


def check_collection(store: Store, collection: str, encoder: Encoder) -> None:
    """Make sure that questions and passages are embedded alike.

    Raises:
        InputError: there is no such collection.
        MismatchError: the collection was made with another encoder.
    """
    stored = read_existing_fingerprint(store, collection)
    wanted = {f"encoder.{name}": value for name, value in encoder.describe().items()}
    refuse_mismatch(collection, stored, wanted, part="encoder")


def search(
    store: Store, collection: str, encoder: Encoder, queries: Sequence[str], limit: int, rankings: Sequence[str]
) -> dict[str, list[list[ScoredPassage]]]:
    """Return for each ranking and each question the `limit` best passages, best first."""
    return search_with(Ranker(store, collection, encoder), encoder, queries, limit, rankings)


def search_with(
    ranker: Ranker, encoder: Encoder, queries: Sequence[str], limit: int, rankings: Sequence[str]
) -> dict[str, list[list[ScoredPassage]]]:
    """Do the same with a ranker that remembers what it needed before."""
    vectors = encoder.encode_queries(queries)
    return {name: ranker.rank(queries, vectors, name, limit) for name in rankings}


def search_runs(
    store: Store, collection: str, encoder: Encoder, queries: Sequence[Query], limit: int, rankings: Sequence[str]
) -> Iterator[dict[str, dict[str, list[ScoredPassage]]]]:
    """Yield for each ranking a part of its run, by the ids of some questions, until all are answered."""
    ranker = Ranker(store, collection, encoder)
    for batch in batched(queries, QUERIES_AT_ONCE):
        found = search_with(ranker, encoder, [query.text for query in batch], limit, rankings)
        ids = [query.query_id for query in batch]
        yield {name: dict(zip(ids, lists, strict=True)) for name, lists in found.items()}


def answer(store: Store, collection: str, encoder: Encoder, question: str, limit: int, ranking: str) -> list[Hit]:
    """Return the `limit` best passages, each with the generated query whose vector is nearest to the question's."""
    return answer_all(store, collection, encoder, [question], limit, ranking)[0]


def answer_all(
    store: Store, collection: str, encoder: Encoder, questions: Sequence[str], limit: int, ranking: str
) -> list[list[Hit]]:
    """Do the same for several questions."""
    vectors = encoder.encode_queries(questions)
    lists = Ranker(store, collection, encoder).rank(questions, vectors, ranking, limit)
    return [
        [Hit(*pair) for pair in zip(found, match_queries(encoder, vector, found), strict=True)]
        for vector, found in zip(vectors, lists, strict=True)
    ]


def match_queries(encoder: Encoder, vector: FloatArray, found: Sequence[ScoredPassage]) -> list[GeneratedQuery | None]:
    """Return for each passage found its generated query nearest to the question's vector, shape `(dim,)`."""
    # All at once, and each text once: passages on the same subject share queries.
    texts = list({query.text: None for scored in found for query in scored.generated_queries})
    nearness = dict(zip(texts, encoder.encode_queries(texts) @ vector, strict=True)) if texts else {}
    return [max(scored.generated_queries, key=lambda query: nearness[query.text], default=None) for scored in found]


HYBRID = "hybrid"
MAX_SIM = "max-sim"
RANKINGS = (PASSAGE_VECTOR, XQG_VECTOR, HYBRID, MAX_SIM)

# So many of each search are put together, or the limit where it is higher.
CANDIDATES = 200
# Of so many generated queries the vectors are remembered from question to question: 150 MB of 384 dimensions.
MOST_REMEMBERED = 100_000


def check_rankings(rankings: Iterable[str]) -> None:
    """Make sure that there are such rankings.

    Raises:
        InputError: there is not; names those that there are.
    """
    for ranking in rankings:
        if ranking not in RANKINGS:
            raise InputError(f"there is no ranking {ranking!r}.", f"take one of {', '.join(RANKINGS)}.")


class Ranker:
    """The rankings of one collection; remembers the vectors of generated queries, as no store keeps them."""

    def __init__(self, store: Store, collection: str, encoder: Encoder) -> None:
        self._store = store
        self._collection = collection
        self._encoder = encoder
        self._known: dict[str, FloatArray] = {}

    def rank(
        self, questions: Sequence[str], vectors: FloatArray, ranking: str, limit: int
    ) -> list[list[ScoredPassage]]:
        """Return for each question the `limit` best passages, best first.

        Args:
            questions: as text.
            vectors: of the same questions, shape `(n, dim)`.
            ranking: `passage`, `xqg`, `hybrid` or `max-sim`.
            limit: how many passages are wanted.

        Raises:
            StoreError: also for `hybrid` where the collection has no sparse vector.
        """
        if ranking == HYBRID:
            candidates = max(limit, CANDIDATES)
            near = self._store.search(self._collection, vectors, XQG_VECTOR, candidates)
            terms = [find_term_ids([question]) for question in questions]
            alike = self._store.search_terms(self._collection, terms, candidates)
            return [fuse_scores(*lists, limit) for lists in zip(near, alike, strict=True)]
        if ranking == MAX_SIM:
            found = self._store.search(self._collection, vectors, XQG_VECTOR, limit)
            return [self._rescore(vector, hits) for vector, hits in zip(vectors, found, strict=True)]
        return self._store.search(self._collection, vectors, ranking, limit)

    def _rescore(self, question: FloatArray, hits: Sequence[ScoredPassage]) -> list[ScoredPassage]:
        """Order what was found by the highest dot product with the question, a vector of shape `(dim,)`."""
        self._remember(query.text for hit in hits for query in hit.generated_queries)
        points = self._store.read_points(self._collection, [hit.passage.passage_id for hit in hits])
        rescored = []
        for hit in hits:
            plain = points[hit.passage.passage_id].vectors[PASSAGE_VECTOR]
            near = (plain, *(self._known[query.text] for query in hit.generated_queries))
            score = max(float(vector @ question) for vector in near)
            rescored.append(replace(hit, score=score))
        return sorted(rescored, key=lambda hit: (-hit.score, hit.passage.passage_id))

    def _remember(self, texts: Iterable[str]) -> None:
        wanted = dict.fromkeys(texts)
        if len(self._known) > MOST_REMEMBERED:
            self._known.clear()
        unknown = [text for text in wanted if text not in self._known]
        self._known.update(zip(unknown, self._encoder.encode_queries(unknown), strict=True))


def fuse_scores(near: Sequence[ScoredPassage], alike: Sequence[ScoredPassage], limit: int) -> list[ScoredPassage]:
    """Put together what was found by vectors and by terms: the mean of both scores, each brought to 0…1.

    By vectors the best has 1 and the last found 0, by terms the best has 1 and who shares none 0; whoever a search did
    not find has 0 of it. Equal scores are ordered by passage id.
    """
    scores: dict[str, float] = {}
    found = {hit.passage.passage_id: hit for hit in (*alike, *near)}
    for hits, least in ((near, near[-1].score if len(near) > 1 else 0.0), (alike, 0.0)):
        span = hits[0].score - least if hits else 0.0
        for hit in hits:
            share = (hit.score - least) / span if span else 1.0
            scores[hit.passage.passage_id] = scores.get(hit.passage.passage_id, 0.0) + share / 2
    best = sorted(scores, key=lambda passage_id: (-scores[passage_id], passage_id))[:limit]
    return [replace(found[passage_id], score=scores[passage_id]) for passage_id in best]
