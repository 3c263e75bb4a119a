"""The orders in which passages can be given for a question.

    passage   by plain vectors
    xqg       by augmented vectors
    hybrid    by augmented vectors and by terms, half and half
    max-sim   as xqg, the passages found then ordered by the nearest of their plain vector and their queries' vectors

The halves of hybrid are made comparable as in Bruch, Gai, Ingber, "An Analysis of Fusion Functions for Hybrid
Retrieval", TOIS 2023. Knows which searches a ranking takes. Knows nothing of engines or measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from xqg_qdrant.encoder import Encoder
from xqg_qdrant.errors import InputError
from xqg_qdrant.records import PASSAGE_VECTOR, XQG_VECTOR, FloatArray, ScoredPassage
from xqg_qdrant.stores.protocol import Store
from xqg_qdrant.words import find_term_ids

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
            raise InputError(f"there is no ranking {ranking!r}. Cure: take one of {', '.join(RANKINGS)}.")


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
