"""Questions → ranked passages.

Knows which generated query speaks for a hit. Knows nothing of engines or measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from xqg_qdrant.encoder import Encoder
from xqg_qdrant.fingerprint import refuse_mismatch
from xqg_qdrant.ranking import Ranker
from xqg_qdrant.records import FloatArray, GeneratedQuery, Passage, Query, ScoredPassage
from xqg_qdrant.status import read_existing_fingerprint
from xqg_qdrant.stores.points import batched
from xqg_qdrant.stores.protocol import Store

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
