"""What a question gets back: its passages, each with the generated query that speaks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import AugmentedPassage, FloatArray, GeneratedQuery, Passage
from xqg_qdrant.retrieval import search_hits
from xqg_qdrant.stores import open_store

VECTORS = {"question": [1, 0], "near": [0.9, 0.1], "nearer": [0.95, 0], "far": [0, 1], "first": [1, 0], "last": [0, 1]}


class Lookup:
    """An encoder that knows a few texts, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        self.asked.append(list(texts))
        return np.array([VECTORS[text] for text in texts], dtype=np.float32)


def make_point(name: str, *queries: str) -> AugmentedPassage:
    vector = np.array(VECTORS[name], dtype=np.float32)
    generated = tuple(GeneratedQuery("fi", query) for query in queries)
    return AugmentedPassage(Passage(name, "text"), generated, {"xqg": vector, "passage": vector[::-1]}, "", "")


def ask(*points: AugmentedPassage, vector_name: str = "xqg", limit: int = 5) -> tuple[list[Any], list[list[str]]]:
    store, encoder = open_store(":memory:"), Lookup()
    store.create_collection("docs", 2, {})
    store.upsert("docs", points)
    [hits] = search_hits(store, "docs", cast(Encoder, encoder), ["question"], limit, vector_name)
    store.close()
    return [(hit.found.passage.passage_id, hit.best_query and hit.best_query.text) for hit in hits], encoder.asked


def test_each_passage_comes_with_the_generated_query_nearest_to_the_question() -> None:
    points = [make_point("last", "far", "near"), make_point("first", "near", "nearer", "far")]
    assert ask(*points)[0] == [("first", "nearer"), ("last", "near")]
    assert ask(*points, vector_name="passage")[0] == [("last", "near"), ("first", "nearer")]


def test_the_question_is_encoded_once_and_each_generated_query_of_the_hits_once() -> None:
    points = [make_point("first", "near", "far"), make_point("near", "far", "nearer"), make_point("last", "last")]
    _, asked = ask(*points, limit=2)
    assert asked == [["question"], ["near", "far", "nearer"]]


def test_a_passage_without_generated_queries_is_found_without_one() -> None:
    assert ask(make_point("first")) == ([("first", None)], [["question"]])
