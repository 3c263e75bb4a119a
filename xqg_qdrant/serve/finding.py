"""A question → what each ranking of a collection finds, side by side.

Several threads may ask at once; the store meets one at a time. Knows nothing of HTTP and HTML.
"""

from __future__ import annotations

from threading import Lock

from xqg_qdrant.encoder import Encoder
from xqg_qdrant.errors import InputError
from xqg_qdrant.fingerprint import is_sparse
from xqg_qdrant.ranking import HYBRID, Ranker
from xqg_qdrant.records import PASSAGE_VECTOR, XQG_VECTOR
from xqg_qdrant.retrieval import Hit, check_collection, match_queries
from xqg_qdrant.status import read_existing_fingerprint
from xqg_qdrant.stores.protocol import Store


class Finder:
    """One collection and the encoder that it was made with."""

    def __init__(self, store: Store, collection: str, encoder: Encoder) -> None:
        """Make sure that the collection can be searched.

        Raises:
            InputError: there is no such collection.
            MismatchError: it was made with another encoder.
        """
        check_collection(store, collection, encoder)
        sparse = is_sparse(read_existing_fingerprint(store, collection))
        self.collection = collection
        self.location = store.location
        self._rankings = (PASSAGE_VECTOR, XQG_VECTOR, *([HYBRID] if sparse else []))
        self._store = store
        self._encoder = encoder
        self._ranker = Ranker(store, collection, encoder)
        self._lock = Lock()

    def find(self, question: str, limit: int) -> dict[str, list[Hit]]:
        """Return the `limit` best passages of each ranking, each with its query that is nearest to the question.

        The ranking by plain vectors comes first.
        """
        vector = self._encoder.encode_queries([question])
        with self._lock:
            found = {name: self._ranker.rank([question], vector, name, limit)[0] for name in self._rankings}
        # All at once: the rankings find many of the same passages.
        matched = iter(match_queries(self._encoder, vector[0], [scored for hits in found.values() for scored in hits]))
        return {name: [Hit(scored, next(matched)) for scored in hits] for name, hits in found.items()}


def choose_collection(store: Store) -> str:
    """Return the only collection of a store.

    Raises:
        InputError: there is none, or there are several.
    """
    there = store.collections()
    if len(there) != 1:
        cure = "name one with --collection" if there else "make one with xqg ingest"
        raise InputError(f"{store.location} has the collections: {', '.join(there) or 'none'}. Cure: {cure}.")
    return there[0]
