"""No store accepts a vector that no search can find, wherever the vector comes from.

Bad are NaN, infinities, also those of a float16 that overflowed, vectors of zeros, and arrays of another length, rank
or type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from rest_qdrant import RestQdrant

from xqg_qdrant.augmentation.pipeline import ingest
from xqg_qdrant.augmentation.recipe import make_recipe
from xqg_qdrant.errors import StoreError, XqgError
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import AugmentedPassage, FloatArray, GeneratedQuery, Passage, QueriedPassage
from xqg_qdrant.stores import Store, open_store

DIM = 8
Array = npt.NDArray[Any]
GOOD = np.linspace(-1, 1, DIM, dtype=np.float32)


def with_one(value: float) -> Array:
    return np.where(np.arange(DIM) == 3, np.float32(value), GOOD)


# A float16 ends at 65,504; what an encoder in float16 gives is only then made a float32.
with np.errstate(over="ignore"):
    OVERFLOWED = with_one(70_000).astype(np.float16).astype(np.float32)

# Of the right shape: their passage is rejected alone.
BAD_VALUES = {
    "NaN": with_one(np.nan),
    "all NaN": np.full(DIM, np.nan, np.float32),
    "infinity": with_one(np.inf),
    "minus infinity": with_one(-np.inf),
    "a float16 that overflowed": OVERFLOWED,
    "zeros": np.zeros(DIM, np.float32),
    "minus zeros": np.full(DIM, -0.0, np.float32),
}
# Of another shape or type: then the encoder is broken.
BAD_ARRAYS = {
    "too short": GOOD[:-1],
    "too long": np.append(GOOD, np.float32(1)),
    "empty": GOOD[:0],
    "a number": GOOD[0],
    "rank 2": GOOD[None],
    "a column": GOOD[:, None],
    "float64": GOOD.astype(np.float64),
    "float16": GOOD.astype(np.float16),
    "whole numbers": np.arange(DIM),
    "complex": GOOD.astype(np.complex64),
}
KEPT = {
    "large": with_one(3e38),
    "beyond float16": with_one(70_000),
    "tiny": np.full(DIM, 1e-45, np.float32),
}


class OddEncoder:
    """Gives a bad vector for texts with the word `bad` on one side, and a good one for the others."""

    dim = DIM
    device = "cpu"

    def __init__(self, side: str, bad: Array, changed: Callable[[Array], Array] = lambda vectors: vectors) -> None:
        self._side, self._bad, self._changed = side, bad, changed

    def describe(self) -> dict[str, Any]:
        return {"sha256": "odd"}

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        return cast(FloatArray, self._encode(texts, "passage"))

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        return cast(FloatArray, self._encode(texts, "query"))

    def _encode(self, texts: Sequence[str], side: str) -> Array:
        rows = [self._bad if side == self._side and "bad" in text else GOOD for text in texts]
        vectors = np.array(rows, dtype=np.float32).reshape(len(texts), DIM)
        return self._changed(vectors) if side == self._side else vectors


@pytest.fixture(params=["edge", "local", "memory", "rest"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    rest = RestQdrant() if request.param == "rest" else None
    location = (
        rest.url if rest else ":memory:" if request.param == "memory" else f"{request.param}:{tmp_path / 'store'}"
    )
    with closing(open_store(location)) as opened:
        yield opened
    if rest:
        rest.close()


def point(passage_id: str, **vectors: Any) -> AugmentedPassage:
    return AugmentedPassage(Passage(passage_id, "a"), (), {"xqg": GOOD, "passage": GOOD, **vectors}, "hash", "recipe")


def stored_ids(store: Store) -> set[str]:
    if store.read_fingerprint("docs") is None:
        return set()
    found = list(store.scroll("docs"))
    for stored in found:
        for vector in stored.vectors.values():
            assert vector.shape == (DIM,)
            assert np.isfinite(vector).all()
            assert vector.any()
    return {stored.passage.passage_id for stored in found}


@pytest.mark.parametrize("name", ["xqg", "passage"])
def test_no_store_takes_a_bad_vector_nor_anything_that_comes_with_it(store: Store, name: str, seed: int) -> None:
    store.create_collection("docs", DIM, {"sha256": "odd"})
    store.upsert("docs", [point("before")])
    for kind, vector in {**BAD_VALUES, **BAD_ARRAYS}.items():
        points = [point("new"), point("before", **{name: vector}), point("bad", **{name: vector})]
        Random(seed).shuffle(points)
        with pytest.raises(StoreError, match=r"passage '(bad|before)'.* Cure: "):
            store.upsert("docs", points)
        assert stored_ids(store) == {"before"}, kind
    for kind, vector in KEPT.items():
        store.upsert("docs", [point(kind, **{name: vector})])
        (kept,) = (stored for stored in store.scroll("docs") if stored.passage.passage_id == kind)
        np.testing.assert_array_equal(kept.vectors[name], vector)


def test_no_store_searches_with_a_bad_vector(store: Store) -> None:
    store.create_collection("docs", DIM, {"sha256": "odd"})
    store.upsert("docs", [point("a")])
    for vector in [*BAD_VALUES.values(), *BAD_ARRAYS.values()]:
        query = np.stack([vector]) if np.ndim(vector) else vector
        with pytest.raises((StoreError, TypeError)):
            store.search("docs", query, "xqg", 1)
    [[hit]] = store.search("docs", GOOD[None], "xqg", 1)
    assert hit.passage.passage_id == "a"


def rows_of(random: Random) -> tuple[list[QueriedPassage], set[str], set[str]]:
    """Return passages in some order, the ids of those with a bad text, and of those with a bad query."""
    rows, texts, queries = [], set(), set()
    for number in range(60):
        name = f"p{number}"
        text = random.choice(["good", "good", "bad"])
        asked = tuple(GeneratedQuery("fi", random.choice(["good", "good", "bad"])) for _ in range(random.randint(0, 3)))
        rows.append(QueriedPassage(Passage(name, f"{text} {number}"), asked))
        if text == "bad":
            texts.add(name)
        if any(query.text == "bad" for query in asked):
            queries.add(name)
    return rows, texts, queries


@pytest.mark.parametrize("side", ["passage", "query"])
@pytest.mark.parametrize("kind", BAD_VALUES)
def test_a_passage_of_which_the_encoder_makes_something_bad_is_rejected_alone(
    tmp_path: Path, side: str, kind: str, seed: int
) -> None:
    rows, texts, queries = rows_of(Random(seed))
    bad = texts if side == "passage" else queries
    encoder = cast(Encoder, OddEncoder(side, BAD_VALUES[kind]))
    for fusion in ("sum", "mean"):
        recipe = make_recipe(None, fusion=fusion, alpha=0.0)  # then nothing of the queries would be seen
        with closing(open_store(f"edge:{tmp_path / fusion}")) as store:
            steps = list(ingest(rows, store, "docs", encoder, None, recipe))
            assert stored_ids(store) == {row.passage.passage_id for row in rows} - bad
        rejects = [reject for step in steps for reject in step.rejects]
        assert {reject.source for reject in rejects} == bad
        assert len(rejects) == len(bad)
        reason = "all zeros" if "zeros" in kind else "not finite"
        assert {reject.reason for reject in rejects} == {f"a vector of the encoder is {reason}"}


@pytest.mark.parametrize(
    ("settings", "factor", "reason"),
    [
        ({"alpha": 1.0, "fusion": "sum"}, 3e38, "the augmented vector is not finite"),
        ({"alpha": 0.5, "fusion": "mean"}, -1.0, "the augmented vector is all zeros"),
    ],
)
def test_an_augmented_vector_that_became_bad_rejects_its_passage_alone(
    tmp_path: Path, settings: dict[str, Any], factor: float, reason: str
) -> None:
    rows = [
        QueriedPassage(Passage("bad", "good"), (GeneratedQuery("fi", "bad"), GeneratedQuery("fi", "bad"))),
        QueriedPassage(Passage("good", "good"), (GeneratedQuery("fi", "good"),)),
    ]
    encoder = cast(Encoder, OddEncoder("query", GOOD * np.float32(factor)))
    with closing(open_store(f"edge:{tmp_path}")) as store:
        steps = list(ingest(rows, store, "docs", encoder, None, make_recipe(None, **settings)))
        assert stored_ids(store) == {"good"}
    assert [(reject.source, reject.reason) for step in steps for reject in step.rejects] == [("bad", reason)]


def test_a_passage_without_queries_is_rejected_where_only_queries_count(tmp_path: Path) -> None:
    encoder = cast(Encoder, OddEncoder("query", GOOD))
    rows = [QueriedPassage(Passage("a", "good"), ())]
    with closing(open_store(f"edge:{tmp_path}")) as store:
        (step,) = ingest(rows, store, "docs", encoder, None, make_recipe(None, alpha=1.0))
        assert stored_ids(store) == set()
    assert [reject.reason for reject in step.rejects] == ["the augmented vector is all zeros"]


CHANGES: dict[str, Callable[[Array], Array]] = {
    "too short": lambda vectors: vectors[:, :-1],
    "too long": lambda vectors: np.hstack([vectors, vectors[:, :1]]),
    "one number each": lambda vectors: vectors[:, :1],
    "one too few": lambda vectors: vectors[:-1],
    "one too many": lambda vectors: np.vstack([vectors, vectors[:1]]),
    "rank 1": lambda vectors: vectors[:, 0],
    "rank 3": lambda vectors: vectors[:, None],
    "a column each": lambda vectors: vectors[:, :, None],
}


@pytest.mark.parametrize("side", ["passage", "query"])
@pytest.mark.parametrize("change", CHANGES)
def test_an_encoder_that_gives_arrays_of_another_shape_ends_the_ingest_with_nothing_stored(
    tmp_path: Path, side: str, change: str
) -> None:
    rows = [QueriedPassage(Passage(f"p{number}", "good"), (GeneratedQuery("fi", "good"),)) for number in range(5)]
    encoder = cast(Encoder, OddEncoder(side, GOOD, CHANGES[change]))
    with closing(open_store(f"edge:{tmp_path}")) as store:
        with pytest.raises(XqgError, match="Cure: "):
            list(ingest(rows, store, "docs", encoder, None, make_recipe(None)))
        assert stored_ids(store) == set()
