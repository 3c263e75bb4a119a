"""Questions → ranked passages.

Knows which generated query speaks for a hit. Knows nothing of engines or measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from xqg_qdrant.encoder import Encoder
from xqg_qdrant.fingerprint import refuse_mismatch
from xqg_qdrant.ranking import Ranker
from xqg_qdrant.records import FloatArray, GeneratedQuery, ScoredPassage
from xqg_qdrant.status import read_existing_fingerprint
from xqg_qdrant.stores.protocol import Store


class Hit(NamedTuple):
    """A passage that was found, and its generated query that is nearest to the question (None where it has none)."""

    found: ScoredPassage
    best_query: GeneratedQuery | None


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


def answer(store: Store, collection: str, encoder: Encoder, question: str, limit: int, ranking: str) -> list[Hit]:
    """Return the `limit` best passages, each with the generated query whose vector is nearest to the question's."""
    vector = encoder.encode_queries([question])
    found = Ranker(store, collection, encoder).rank([question], vector, ranking, limit)[0]
    return [Hit(*pair) for pair in zip(found, match_queries(encoder, vector[0], found), strict=True)]


def match_queries(encoder: Encoder, vector: FloatArray, found: Sequence[ScoredPassage]) -> list[GeneratedQuery | None]:
    """Return for each passage found its generated query nearest to the question's vector, shape `(dim,)`."""
    # All at once, and each text once: passages on the same subject share queries.
    texts = list({query.text: None for scored in found for query in scored.generated_queries})
    nearness = dict(zip(texts, encoder.encode_queries(texts) @ vector, strict=True)) if texts else {}
    return [max(scored.generated_queries, key=lambda query: nearness[query.text], default=None) for scored in found]
