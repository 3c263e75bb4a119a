"""Questions → ranked passages.

Knows which vectors to compare, and which generated query speaks for a hit. Knows nothing of engines or measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from xqg_qdrant.encoder import Encoder
from xqg_qdrant.errors import InputError
from xqg_qdrant.fingerprint import refuse_mismatch
from xqg_qdrant.records import FloatArray, GeneratedQuery, ScoredPassage
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
    stored = store.read_fingerprint(collection)
    if stored is None:
        others = ", ".join(store.collections()) or "none"
        raise InputError(
            f"there is no collection {collection!r} in {store.location} (there: {others}). "
            f"Make it with: xqg ingest FILE --collection {collection}"
        )
    wanted = {f"encoder.{name}": value for name, value in encoder.describe().items()}
    refuse_mismatch(collection, stored, wanted, part="encoder")


def search(
    store: Store, collection: str, encoder: Encoder, queries: Sequence[str], limit: int, vector_names: Sequence[str]
) -> dict[str, list[list[ScoredPassage]]]:
    """Return for each named vector and each question the `limit` best passages, best first."""
    vectors = encoder.encode_queries(queries)
    return {name: store.search(collection, vectors, name, limit) for name in vector_names}


def explain(encoder: Encoder, query: str, found: Sequence[ScoredPassage]) -> list[Hit]:
    """Add to each hit the generated query whose vector is nearest (dot product) to the question's."""
    query_vector = encoder.encode_queries([query])[0]
    return [Hit(scored, _find_best_query(encoder, query_vector, scored)) for scored in found]


def _find_best_query(encoder: Encoder, query_vector: FloatArray, scored: ScoredPassage) -> GeneratedQuery | None:
    if not scored.generated_queries:
        return None
    vectors = encoder.encode_queries([query.text for query in scored.generated_queries])
    return scored.generated_queries[int((vectors @ query_vector).argmax())]
