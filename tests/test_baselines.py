"""The baselines of an evaluation: the figures of numpy on made-up vectors, and what they refuse."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from xqg_qdrant import retrieval
from xqg_qdrant.augmentation import recipe as recipes
from xqg_qdrant.augmentation.calibration import BankMeans, pack_mean
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation import baselines
from xqg_qdrant.evaluation.baselines import BASELINES, search_baselines
from xqg_qdrant.records import AugmentedPassage, FloatArray, GeneratedQuery, Passage, Query, ScoredPassage
from xqg_qdrant.stores import Store, open_store
from xqg_qdrant.text import find_term_ids

FINGERPRINT = {"queries": "given", "recipe.alpha": 0.25, "recipe.fusion": "mean", "recipe.renormalise": True}
# d and b tie for every question
PLAIN = {"d": (3, 4, 0), "a": (0, 5, 0), "c": (-4, 0, 3), "b": (3, 4, 0)}
QUERIES = {"d": ("long", "short"), "a": (), "c": ("short",), "b": ("deep",)}
VECTORS = {
    "long": (8, 0, 4), "short": (0, 2, 0), "deep": (0, 0, -6),
    "where": (1, 2, 0), "missä": (-1, 0, 2), "milloin": (0, 1, 1), "kuka": (2, -1, 0),
    "kuka river": (1, 1, 1), "milloin where": (-1, 1, 0),
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
    normalise = True

    def describe(self) -> dict[str, Any]:
        return {"normalise": self.normalise}

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
    return search_all([name], store, limit, bar)[name]


def search_all(
    names: Sequence[str], store: Store, limit: int = 10, bar: Counter | None = None, encoder: StubEncoder | None = None
) -> dict[str, dict[str, list[ScoredPassage]]]:
    known: Any = encoder or StubEncoder()
    return search_baselines(names, store, "docs", known, QUESTIONS, limit, lambda *_: nullcontext(bar or Counter()))


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
def test_the_control_replaces_every_query_by_the_mean_query(
    store: Store, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(baselines, "QUESTIONS_AT_ONCE", at_once)
    fill(store, QUERIES)
    plain = np.array([PLAIN[name] for name in "abcd"], dtype=np.float64)
    # (8 + 0 + 0 + 0)/4, (0 + 2 + 2 + 0)/4, (4 + 0 + 0 - 6)/4
    fused = 0.75 * plain + 0.25 * np.array([2, 1, -0.5])
    # every plain vector has length 5
    expected = 5 * unit(fused)
    expected[0] = plain[0]  # without a query of its own
    assert_ranked(search(store, "control"), expected, vectors_of([query.text for query in QUESTIONS]))


def test_the_control_weighs_the_mean_as_much_as_the_queries_that_it_replaces(store: Store) -> None:
    fill(store, QUERIES, **{"recipe.fusion": "sum", "recipe.renormalise": False, "recipe.alpha": 0.5})
    plain = np.array([PLAIN[name] for name in "abcd"], dtype=np.float64)
    # a has no query, b and c have one, d has two
    fused = 0.5 * plain + 0.5 * np.array([[0], [1], [1], [2]]) * np.array([2, 1, -0.5])
    assert_ranked(search(store, "control"), fused, vectors_of([query.text for query in QUESTIONS]))


def test_calibrated_adds_the_collections_own_bank_mean_to_the_plain_vectors(store: Store) -> None:
    mean = np.array([0, 2, 0], dtype=np.float32)
    fill(store, QUERIES, **{"recipe.gamma": 0.25, "recipe.question_bank": "own", "recipe.bank_mean": pack_mean(mean)})
    plain = np.array([PLAIN[name] for name in "abcd"], dtype=np.float64)
    expected = 5 * unit(plain / 5 + 0.25 * mean)
    assert_ranked(search(store, "calibrated"), expected, vectors_of([query.text for query in QUESTIONS]))


def test_calibrated_takes_the_shipped_bank_and_the_default_weight_if_the_collection_is_not_calibrated(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, QUERIES, **{"recipe.fusion": "sum", "recipe.renormalise": False})
    mean = np.array([0, 2, 0], dtype=np.float32)
    monkeypatch.setattr(recipes, "encode_bank", lambda *_: BankMeans(mean, {}, "shipped"))
    plain = np.array([PLAIN[name] for name in "abcd"], dtype=np.float64)
    expected = 5 * unit(plain / 5 + 0.5 * mean)
    assert_ranked(search(store, "calibrated"), expected, vectors_of([query.text for query in QUESTIONS]))


def test_vectors_of_a_raw_dot_product_encoder_are_not_calibrated(store: Store) -> None:
    fill(store, QUERIES)
    raw = StubEncoder()
    raw.normalise = False
    with pytest.raises(InputError, match=r"raw dot-product encoder cannot be calibrated\. Cure: leave out calibrated"):
        search_all(["calibrated"], store, encoder=raw)


@pytest.mark.parametrize("limit", [2, 10])
def test_passage_hybrid_is_the_hybrid_search_of_a_collection_without_queries(
    tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More passages share a term than are fetched by terms: of equal scores all are fetched or none.
    monkeypatch.setattr(baselines, "CANDIDATES", 3)
    monkeypatch.setattr(retrieval, "CANDIDATES", 3)
    texts = ["where the river ends", "kuka where", "milloin and where", "where is the end", "missä kuka", "the river"]
    questions = [*QUESTIONS, Query("q5", "kuka river", "fi"), Query("q6", "milloin where", "fi")]
    monkeypatch.setattr(sys.modules[__name__], "QUESTIONS", questions)
    draw = np.random.default_rng(0)
    plain = draw.normal(size=(len(texts), 3)).astype(np.float32)
    queries = [("long", "deep"), (), ("short",), (), (), ("long",)]
    with open_store(f"edge:{tmp_path}") as edge:
        for collection, sparse in (("docs", False), ("bare", True)):
            edge.create_collection(collection, 3, {**FINGERPRINT, **({"recipe.sparse": True} if sparse else {})})
            for number, text in enumerate(texts):
                own = () if sparse else tuple(GeneratedQuery("fi", query) for query in queries[number])
                # Without queries, the augmented vector is the plain one.
                xqg = plain[number] if sparse else np.ones(3, dtype=np.float32)
                terms = find_term_ids([f"Title {number}", text]) if sparse else None
                vectors = {"passage": plain[number], "xqg": xqg}
                passage = Passage(f"p{number}", text, f"Title {number}")
                edge.upsert(collection, [AugmentedPassage(passage, own, vectors, "", "", terms=terms)])
        found = search_all(["passage-hybrid"], edge, limit)["passage-hybrid"]
        encoder: Any = StubEncoder()
        stored = retrieval.search_runs(edge, "bare", encoder, QUESTIONS, limit, ["hybrid"], lambda _: None)["hybrid"]
    for query in questions:
        hits, expected = found[query.query_id], stored[query.query_id]
        assert [hit.passage for hit in hits] == [hit.passage for hit in expected]
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in expected], atol=1e-5)


def test_several_baselines_read_the_collection_once_and_share_its_passages(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, QUERIES, **{"recipe.bank_mean": pack_mean(np.ones(3, dtype=np.float32))})
    bar = Counter()
    runs = search_all(BASELINES, store, bar=bar)
    assert (list(runs), bar.count) == (list(BASELINES), 4)
    assert {len(run) for run in runs.values()} == {4}
    passages = {id(hit.passage) for run in runs.values() for hits in run.values() for hit in hits}
    assert len(passages) == 4


def test_all_hits_of_a_passage_in_a_store_share_one_record_of_it(store: Store) -> None:
    fill(store, QUERIES)
    encoder: Any = StubEncoder()
    runs = retrieval.search_runs(store, "docs", encoder, QUESTIONS, 10, ["passage", "xqg"], lambda _: None)
    hits = [hit for run in runs.values() for found in run.values() for hit in found]
    assert len(hits) == 2 * 4 * 4
    assert (
        len({id(hit.passage) for hit in hits})
        == len({id(hit.generated_queries) for hit in hits if hit.generated_queries}) + 1
    )
    assert {hit.passage.passage_id: len(hit.generated_queries) for hit in hits} == {"a": 0, "b": 1, "c": 1, "d": 2}


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
