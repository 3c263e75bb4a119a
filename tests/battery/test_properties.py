"""Whatever is done to a collection in whatever order, it holds what a dictionary says it should.

A state machine edits a corpus, ingests it, is interrupted, fails, synchronises, deletes, retunes and copies, on the
real engine with the real encoder; a model that knows numpy and no code of ours says what each point must be. With
`--seeds N` it takes 500 N steps.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from xqg_qdrant.augmentation import pipeline
from xqg_qdrant.augmentation.pipeline import ingest
from xqg_qdrant.augmentation.recipe import Recipe, make_recipe, read_recipe
from xqg_qdrant.corpus.seen_ids import TextSet
from xqg_qdrant.errors import MismatchError, StoreError
from xqg_qdrant.fingerprint import RETUNING_FIELD
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.lifecycle import copying
from xqg_qdrant.lifecycle import retune as retune_module
from xqg_qdrant.lifecycle.copying import copy_collection
from xqg_qdrant.lifecycle.retune import plan_retune, retune
from xqg_qdrant.lifecycle.sync import compare, delete_left
from xqg_qdrant.model_folders import DEMO_ENCODER, shipped_model
from xqg_qdrant.records import FloatArray, GeneratedQuery, Passage, QueriedPassage, Reject
from xqg_qdrant.stores import Store, open_store

STEPS_A_RUN = 50
RUNS_A_SEED = 10

IDS = [f"p{number}" for number in range(10)]
TEXTS = [
    "The Danube rises in Germany.",
    "Nile",
    "The Amazon carries most water.",
    "Lake Baikal",
    "長江は中国を流れる。",
]
QUERIES = ["Missä Tonava alkaa?", "Где Нил?", "一番深い湖は？", "Mikä on suurin joki?"]

ids = st.sampled_from(IDS)
texts = st.sampled_from(TEXTS)
queries = st.lists(st.sampled_from(QUERIES), max_size=3).map(tuple)
alphas = st.sampled_from([0.0, 0.01, 0.3, 0.9])
fusions = st.sampled_from(["sum", "mean"])


class RememberingEncoder:
    """The shipped encoder, which encodes a text once."""

    def __init__(self) -> None:
        self._encoder = Encoder(shipped_model(DEMO_ENCODER), "cpu", threads=1)
        self.dim = self._encoder.dim
        self.device = self._encoder.device
        self.describe = self._encoder.describe

    @cache  # noqa: B019 - one encoder lives as long as the tests
    def _passage(self, text: str) -> FloatArray:
        vector: FloatArray = self._encoder.encode_passages([text])[0]
        return vector

    @cache  # noqa: B019
    def _query(self, text: str) -> FloatArray:
        vector: FloatArray = self._encoder.encode_queries([text])[0]
        return vector

    def encode_passages(self, passages: Sequence[str]) -> FloatArray:
        return np.array([self._passage(text) for text in passages], np.float32).reshape(-1, self.dim)

    def encode_queries(self, questions: Sequence[str]) -> FloatArray:
        return np.array([self._query(text) for text in questions], np.float32).reshape(-1, self.dim)


@cache
def encoder() -> Any:  # noqa: ANN401
    return RememberingEncoder()


class FailingStore:
    """A store whose nth write fails, before or after it takes effect."""

    def __init__(self, store: Store, write: int, after: bool) -> None:
        self._store, self._left, self._after = store, write, after

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._store, name)

    def upsert(self, *arguments: Any) -> None:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise StoreError("the connection broke")
        self._store.upsert(*arguments)
        if self._left == 0:
            raise StoreError("the answer was lost")


def expected_vectors(text: str, asked: Sequence[str], recipe: Recipe) -> tuple[FloatArray, FloatArray]:
    """Return the plain and the augmented vector by the published formula, in float64."""
    plain = encoder().encode_passages([text])[0]
    vectors = encoder().encode_queries(asked).astype(np.float64)
    if recipe.fusion == "mean" and not asked:
        return plain, plain
    total = vectors.mean(axis=0) if recipe.fusion == "mean" else vectors.sum(axis=0)
    fused = (1 - recipe.alpha) * plain.astype(np.float64) + recipe.alpha * total
    if recipe.renormalise and np.linalg.norm(fused) > 0:
        fused *= np.linalg.norm(plain.astype(np.float64)) / np.linalg.norm(fused)
    return plain, fused.astype(np.float32)


class Life(RuleBasedStateMachine):
    """A collection, the corpus that it was last given, and what it must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.place = self.folder / "store"
        self.store: Store = open_store(str(self.place))
        self.collection = "docs"
        self.corpus: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.stored: dict[str, tuple[str, tuple[str, ...]]] = {}
        self.recipe = make_recipe(None)
        self.exists = False
        self.copies = 0

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def rows(self) -> Iterator[QueriedPassage | Reject]:
        for passage_id, (text, asked) in sorted(self.corpus.items()):
            yield QueriedPassage(Passage(passage_id, text), tuple(GeneratedQuery("fi", query) for query in asked))

    def steps(self, store: Any = None) -> Any:  # noqa: ANN401
        return ingest(self.rows(), store or self.store, self.collection, encoder(), None, self.recipe)

    @initialize(alpha=alphas, fusion=fusions, renormalise=st.booleans())
    def choose_recipe(self, alpha: float, fusion: str, renormalise: bool) -> None:
        self.recipe = make_recipe(None, alpha=alpha, fusion=fusion, renormalise=renormalise)

    @rule(passages=st.dictionaries(ids, st.tuples(texts, queries), max_size=12))
    def edit(self, passages: dict[str, tuple[str, tuple[str, ...]]]) -> None:
        self.corpus.update(passages)

    @rule(gone=st.sets(ids, max_size=10))
    def take_out(self, gone: set[str]) -> None:
        for passage_id in gone:
            self.corpus.pop(passage_id, None)

    @rule()
    def ingest_all(self) -> None:
        new = sum(progress.stored for progress in self.steps())
        assert new == sum(self.stored.get(passage_id) != row for passage_id, row in self.corpus.items())
        self.stored.update(self.corpus)
        self.exists = self.exists or bool(self.corpus)

    @rule(told=st.integers(0, 2))
    def ingest_and_stop(self, told: int) -> None:
        with closing(self.steps()) as steps:
            list(islice(steps, told))
        self.learn_what_is_stored()

    @rule(write=st.integers(1, 2), after=st.booleans())
    def ingest_and_fail(self, write: int, after: bool) -> None:
        with suppress(StoreError):
            list(self.steps(FailingStore(self.store, write, after)))
        self.learn_what_is_stored()

    def learn_what_is_stored(self) -> None:
        """Read what an interruption left: each passage must be as it was or as it is to be."""
        self.exists = self.store.read_fingerprint(self.collection) is not None
        if not self.exists:
            return
        for point in self.store.scroll(self.collection):
            passage_id = point.passage.passage_id
            row = (point.passage.text, tuple(query.text for query in point.generated_queries))
            assert row in (self.stored.get(passage_id), self.corpus.get(passage_id))
            self.stored[passage_id] = row

    @rule(delete=st.booleans())
    def sync(self, delete: bool) -> None:
        fingerprint = self.store.read_fingerprint(self.collection)
        if fingerprint is None:
            return
        seen = TextSet()
        *_, found = compare(self.rows(), self.store, self.collection, fingerprint, seen)
        changed = [passage_id for passage_id, row in self.corpus.items() if self.stored.get(passage_id, row) != row]
        assert found == (
            len(self.corpus.keys() - self.stored.keys()),
            len(changed),
            len(self.corpus.keys() & self.stored.keys()) - len(changed),
            0,
            len(self.stored.keys() - self.corpus.keys()),
            0,
        )
        assert read_recipe(fingerprint) == self.recipe
        self.ingest_all()
        if delete and self.corpus:
            assert sum(delete_left(self.store, self.collection, seen)) == found.left
            self.stored = dict(self.corpus)

    @rule(gone=st.sets(ids, min_size=1, max_size=5))
    def delete(self, gone: set[str]) -> None:
        if self.exists:
            self.store.delete(self.collection, sorted(gone))
            for passage_id in gone:
                self.stored.pop(passage_id, None)

    @rule(change=st.fixed_dictionaries({}, optional={"alpha": alphas, "fusion": fusions, "renormalise": st.booleans()}))
    def retune(self, change: dict[str, Any]) -> None:
        if not self.exists or not change:
            return
        wanted = self.recipe._replace(**change)
        plan = plan_retune(self.store, self.collection, encoder(), change)
        assert plan.passages == (0 if wanted == self.recipe else len(self.stored))
        list(retune(self.store, plan, encoder()))
        self.recipe = wanted

    @rule(alpha=st.sampled_from([0.2, 0.4]), written=st.integers(0, 2))
    def retune_and_stop(self, alpha: float, written: int) -> None:
        if not self.exists or self.recipe.alpha == alpha:
            return
        plan = plan_retune(self.store, self.collection, encoder(), {"alpha": alpha})
        with closing(retune(self.store, plan, encoder())) as steps:
            list(islice(steps, written))
        self.reopen()
        fingerprint = self.store.read_fingerprint(self.collection) or {}
        if RETUNING_FIELD in fingerprint:
            with pytest.raises(MismatchError, match="is being retuned"):
                list(self.steps())
            list(retune(self.store, plan_retune(self.store, self.collection, encoder(), {}), encoder()))
            fingerprint = self.store.read_fingerprint(self.collection) or {}
        self.recipe = self.recipe._replace(alpha=fingerprint["recipe.alpha"])
        assert not written or self.recipe.alpha == alpha

    @rule(fail=st.booleans())
    def copy_and_move_there(self, fail: bool) -> None:
        if not self.exists:
            return
        self.copies += 1
        there = self.folder / f"store {self.copies}"
        target = open_store(str(there))
        if fail:
            broken: Any = FailingStore(target, 1, after=True)
            with suppress(StoreError):
                list(copy_collection(self.store, self.collection, broken, self.collection, Event()))
        list(copy_collection(self.store, self.collection, target, self.collection, Event()))
        self.store.close()
        self.store, self.place = target, there

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = open_store(str(self.place))

    @rule()
    def delete_all(self) -> None:
        if self.exists and len(self.stored) > 7:
            self.store.delete_collection(self.collection)
            self.stored, self.exists = {}, False

    @invariant()
    def it_holds_what_the_model_says(self) -> None:
        assert (self.store.read_fingerprint(self.collection) is not None) == self.exists
        if not self.exists:
            return
        found = {point.passage.passage_id: point for point in self.store.scroll(self.collection)}
        assert found.keys() == self.stored.keys()
        assert self.store.count(self.collection) == len(found)
        for passage_id, (text, asked) in self.stored.items():
            point = found[passage_id]
            assert point.passage == Passage(passage_id, text)
            assert tuple(query.text for query in point.generated_queries) == asked
            plain, fused = expected_vectors(text, asked, self.recipe)
            np.testing.assert_array_equal(point.vectors["passage"], plain)
            np.testing.assert_allclose(point.vectors["xqg"], fused, rtol=1e-6, atol=1e-9)


def test_a_collection_holds_what_a_dictionary_says(
    seed: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "CHEAP_CHUNK_SIZE", 4)
    monkeypatch.setattr(retune_module, "CHUNK_SIZE", 4)
    monkeypatch.setattr(copying, "BATCH", 4)
    everything = request.config.getoption("--seeds") > 1
    once = settings(
        max_examples=RUNS_A_SEED if everything else 12,
        stateful_step_count=STEPS_A_RUN,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    machine = hypothesis_seed(seed)(Life)
    run_state_machine_as_test(machine, settings=once)
