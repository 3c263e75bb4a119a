"""Read and compare the points of collections."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xqg_qdrant.records import AugmentedPassage
from xqg_qdrant.stores import Store


def read_points(store: Store, collection: str = "docs") -> dict[str, AugmentedPassage]:
    return {point.passage.passage_id: point for point in store.scroll(collection)}


def assert_same_points(left: dict[str, AugmentedPassage], right: dict[str, AugmentedPassage]) -> None:
    assert left.keys() == right.keys()
    for passage_id, point in left.items():
        other = right[passage_id]
        assert replace(point, vectors={}) == replace(other, vectors={})
        for name in ("xqg", "passage"):
            np.testing.assert_array_equal(point.vectors[name], other.vectors[name])
