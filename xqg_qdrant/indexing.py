"""When a collection is worth an index, and what the index costs in recall.

Knows stores by their protocol alone.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import numpy as np

from xqg_qdrant.records import XQG_VECTOR
from xqg_qdrant.stores.protocol import Store

# Up to so many points the embedded engine compares with every vector in a few milliseconds.
EXACT_UP_TO = 50_000
SAMPLE = 100
DEPTH = 10


class Recall(NamedTuple):
    """The share of the exact best `depth` passages that a search finds, over so many questions."""

    share: float
    depth: int
    questions: int

    def __str__(self) -> str:
        return f"recall@{self.depth} against exact search: {self.share:.3f} ({self.questions} stored vectors)"


def measure_recall(store: Store, collection: str, vector_name: str = XQG_VECTOR) -> Recall:
    """Search with some stored vectors as questions, with the index and without it, and compare.

    Recall is 1 for a collection without points.
    """
    # Points come in the order of their ids, which are hashes: the first ones are a random sample.
    sample = [point.vectors[vector_name] for point in islice(store.scroll(collection), SAMPLE)]
    if not sample:
        return Recall(1.0, DEPTH, 0)
    found, exact = (
        [
            {hit.passage.passage_id for hit in hits}
            for hits in store.search(collection, np.stack(sample), vector_name, DEPTH, exact=exact)
        ]
        for exact in (False, True)
    )
    shares = [len(ours & best) / len(best) for ours, best in zip(found, exact, strict=True)]
    return Recall(float(np.mean(shares)), DEPTH, len(sample))
