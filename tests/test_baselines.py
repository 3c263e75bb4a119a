"""The baselines of an evaluation: the figures of numpy on made-up vectors, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation import baselines
from xqg_qdrant.evaluation.baselines import search_baseline
from xqg_qdrant.records import AugmentedPassage, FloatArray, GeneratedQuery, Passage, Query, ScoredPassage
from xqg_qdrant.stores import Store, open_store

FINGERPRINT = {"queries": "given", "recipe.alpha": 0.25, "recipe.fusion": "mean", "recipe.renormalise": True}
# d and b tie for every question
PLAIN = {"d": (3, 4, 0), "a": (0, 5, 0), "c": (-4, 0, 3), "b": (3, 4, 0)}
QUERIES = {"d": ("long", "short"), "a": (), "c": ("short",), "b": ("deep",)}
VECTORS = {
    "long": (8, 0, 4), "short": (0, 2, 0), "deep": (0, 0, -6),
    "where": (1, 2, 0), "missä": (-1, 0, 2), "milloin": (0, 1, 1), "kuka": (2, -1, 0),
}  # fmt: skip
QUESTIONS = [
    Query("q1", "where", "en"), Query("q2", "missä", "fi"), Query("q3", "milloin", "fi"), Query("q4", "kuka", "fi"),
]  # fmt: skip


class Counter:
    """A progress bar that counts."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, n: int, /) -> None:
        self.count += n


class StubEncoder:
    """Looks vectors up."""

    dim = 3

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        return vectors_of(texts).astype(np.float32)


def vectors_of(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    return np.array([VECTORS[text] for text in texts], dtype=np.float64)


def fill(store: Store, queries: dict[str, Any], **fields: Any) -> None:
    store.create_collection("docs", 3, {**FINGERPRINT, **fields})
    points = []
    for name, plain in PLAIN.items():
        vectors = {"passage": np.array(plain, dtype=np.float32), "xqg": np.ones(3, dtype=np.float32)}
        own = tuple(GeneratedQuery("fi", text, number) for number, text in enumerate(queries[name]))
        points.append(AugmentedPassage(Passage(name, f"Text {name}"), own, vectors, "", ""))
    store.upsert("docs", points)


@pytest.fixture
def store() -> Iterator[Store]:
    with open_store(":memory:") as opened:
        yield opened


def search(store: Store, name: str, limit: int = 10, bar: Counter | None = None) -> dict[str, list[ScoredPassage]]:
    encoder: Any = StubEncoder()
    return search_baseline(name, store, "docs", encoder, QUESTIONS, limit, lambda *_: nullcontext(bar or Counter()))


def assert_ranked(
    found: dict[str, list[ScoredPassage]], passages: npt.NDArray[np.float64], questions: npt.NDArray[np.float64]
) -> None:
    """Compare a run with the scores of vectors in the order a, b, c, d; ties go to the first."""
    assert list(found) == ["q1", "q2", "q3", "q4"]
    for query, question in zip(QUESTIONS, questions, strict=True):
        scores = dict(zip("abcd", np.round(passages @ question, 9), strict=True))
        hits = found[query.query_id]
        assert [hit.passage.passage_id for hit in hits] == sorted("abcd", key=lambda name: (-scores[name], name))
        np.testing.assert_allclose([hit.score for hit in hits], sorted(scores.values(), reverse=True), atol=1e-5)


def unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return result


@pytest.mark.parametrize("at_once", [1, 3, 256])
def test_the_control_gives_every_passage_the_mean_query(
    store: Store, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(baselines, "QUESTIONS_AT_ONCE", at_once)
    fill(store, QUERIES)
    plain = np.array([PLAIN[name] for name in "abcd"], dtype=np.float64)
    # (8 + 0 + 0 + 0)/4, (0 + 2 + 2 + 0)/4, (4 + 0 + 0 - 6)/4
    fused = 0.75 * plain + 0.25 * np.array([2, 1, -0.5])
    # every plain vector has length 5
    assert_ranked(search(store, "control"), 5 * unit(fused), vectors_of([query.text for query in QUESTIONS]))


def test_the_control_fuses_as_the_collection_was(store: Store) -> None:
    fill(store, QUERIES, **{"recipe.fusion": "sum", "recipe.renormalise": False, "recipe.alpha": 0.5})
    plain = np.array([PLAIN[name] for name in "abcd"], dtype=np.float64)
    fused = 0.5 * plain + 0.5 * np.array([2, 1, -0.5])
    assert_ranked(search(store, "control"), fused, vectors_of([query.text for query in QUESTIONS]))


def test_the_mean_query_is_that_of_an_even_sample(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "SAMPLED_QUERIES", 2)
    fill(store, {"a": ("deep",), "b": ("long", "long"), "c": ("short",), "d": ("long",)})
    plain = np.array([PLAIN[name] for name in "abcd"], dtype=np.float64)
    # Every third of deep, long, long, short, long: the mean of deep and short is (0, 1, -3).
    fused = 0.75 * plain + 0.25 * np.array([0, 1, -3])
    assert_ranked(search(store, "control"), 5 * unit(fused), vectors_of([query.text for query in QUESTIONS]))


def test_centred_subtracts_the_means_of_the_passages_and_of_each_languages_questions(store: Store) -> None:
    fill(store, QUERIES)
    plain = np.array([PLAIN[name] for name in "abcd"], dtype=np.float64)
    # the passages' mean is ((0 + 3 - 4 + 3)/4, (5 + 4 + 0 + 4)/4, 3/4)
    passages = unit(plain - np.array([0.5, 3.25, 0.75]))
    # The mean of the three in fi is (1/3, 0, 1); the one in en is its own mean.
    questions = vectors_of([query.text for query in QUESTIONS]) - np.array([[1, 2, 0], *3 * [[1 / 3, 0, 1]]])
    found = search(store, "centred")
    assert_ranked(found, passages, questions)
    assert [hit.score for hit in found["q1"]] == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["control", "centred"])
def test_hits_carry_their_passage_and_queries_and_ties_go_to_the_lower_id(store: Store, name: str) -> None:
    fill(store, QUERIES)
    bar = Counter()
    found = search(store, name, limit=3, bar=bar)
    assert bar.count == 4
    assert {len(hits) for hits in found.values()} == {3}
    hits = {hit.passage.passage_id: hit for hits in search(store, name).values() for hit in hits}
    assert hits["d"].passage == Passage("d", "Text d")
    assert hits["d"].generated_queries == (GeneratedQuery("fi", "long", 0), GeneratedQuery("fi", "short", 1))
    for ranked in search(store, name).values():
        order = [hit.passage.passage_id for hit in ranked]
        assert order.index("b") < order.index("d")


def test_a_collection_too_large_for_memory_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, QUERIES)
    monkeypatch.setattr(baselines, "MOST_PASSAGES", 4)
    search(store, "centred")
    monkeypatch.setattr(baselines, "MOST_PASSAGES", 3)
    with pytest.raises(InputError, match=r"'docs' has 4 passages, too many for control in memory\. Cure: leave out co"):
        search(store, "control")


def test_a_control_without_generated_queries_is_refused(store: Store) -> None:
    fill(store, dict.fromkeys(QUERIES, ()))
    with pytest.raises(InputError, match=r"no generated queries to take the mean of\. Cure: leave out control"):
        search(store, "control")
    assert len(search(store, "centred")) == 4
