"""Read and compare the points of collections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from rest_qdrant import RestQdrant

from xqg_qdrant.records import AugmentedPassage
from xqg_qdrant.stores import Store, open_store

KINDS = ("edge", "memory", "rest")


@contextmanager
def opened_kind(kind: str, folder: Path) -> Iterator[Store]:
    """Open an empty store of one of `KINDS`: embedded in the folder, in memory, or on a server of its own."""
    if kind == "rest":
        with closing(RestQdrant()) as rest, open_store(rest.url) as store:
            yield store
        return
    with open_store({"edge": f"edge:{folder}", "memory": ":memory:"}[kind]) as store:
        yield store


def read_points(store: Store, collection: str = "docs") -> dict[str, AugmentedPassage]:
    return {point.passage.passage_id: point for point in store.scroll(collection)}


def assert_same_points(left: dict[str, AugmentedPassage], right: dict[str, AugmentedPassage]) -> None:
    assert left.keys() == right.keys()
    for passage_id, point in left.items():
        other = right[passage_id]
        assert replace(point, vectors={}) == replace(other, vectors={})
        for name in ("xqg", "passage"):
            np.testing.assert_array_equal(point.vectors[name], other.vectors[name])
