"""What the ingest promises about its steps running side by side. The models are stand-ins that tests can hold up."""

from __future__ import annotations

import itertools
import threading
from collections import abc, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from xqg_qdrant.augmentation.pipeline import CHEAP_CHUNK_SIZE, CHUNK_SIZE, Progress, Totals, ingest
from xqg_qdrant.augmentation.recipe import Recipe
from xqg_qdrant.errors import InputError, MismatchError, ModelError, StoreError
from xqg_qdrant.generation import FAST, SLOW, Generation, Generator
from xqg_qdrant.generation.checks import Dropped
from xqg_qdrant.generation.onnx import Sampling
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import AugmentedPassage, FloatArray, GeneratedQuery, Passage, QueriedPassage, Reject
from xqg_qdrant.stores import Store
from xqg_qdrant.streams import ITEMS_IN_FLIGHT

RECIPE = Recipe(languages=("fi", "ru"), sampling=Sampling(1, 1.0, 8), queries_per_language=1)
PATIENCE = 30


class FakeEncoder:
    """Makes vectors of two numbers from the lengths of texts."""

    dim = 2

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def describe(self) -> dict[str, Any]:
        return {"sha256": "e"}

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        self.calls.append(list(texts))
        return np.array([[len(text), 1] for text in texts], dtype=np.float32).reshape(-1, 2)

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        return self.encode_passages(texts)


class FakeGenerator:
    """Writes a query in each language, after `before` was called with the passages."""

    pace = SLOW
    concurrency = 0
    journal = None
    sampling = Sampling(1, 1.0, 8)

    def __init__(
        self, before: Callable[[Sequence[Passage]], object] = lambda _: None, replies: Path | None = None
    ) -> None:
        self._before, self.replies = before, replies

    def describe(self) -> dict[str, Any]:
        return {"sha256": "g"}

    def generate(
        self,
        passages: Sequence[Passage],
        languages: Sequence[str],
        count: int,
        seed: int,
        sampling: Sampling,
        identify: bool = False,
    ) -> list[Generation]:
        self._before(passages)
        return [
            Generation(
                tuple(GeneratedQuery(code, f"{code} {passage.text}") for code in languages),
                count,
                {Dropped(languages[0], "wrong_script"): 1},
                replies=() if self.replies is None else (self.replies / passage.passage_id,),
            )
            for passage in passages
        ]


class FakeStore:
    """Keeps points and the sizes of writes in lists, and notices when two threads are in it."""

    location = "fake"

    def __init__(self, before_upsert: Callable[[], object] = lambda: None) -> None:
        self.points: list[AugmentedPassage] = []
        self.writes: list[int] = []
        self.threads: set[int] = set()
        self._fingerprint: dict[str, Any] | None = None
        self._before_upsert = before_upsert

    def read_fingerprint(self, collection: str) -> dict[str, Any] | None:
        self.threads.add(threading.get_ident())
        return self._fingerprint

    def read_models(self, collection: str) -> dict[str, Any]:
        return {}

    def create_collection(self, collection: str, dim: int, fingerprint: Mapping[str, Any]) -> None:
        self._fingerprint = dict(fingerprint)

    def read_content_hashes(self, collection: str, passage_ids: Sequence[str]) -> dict[str, str]:
        self.threads.add(threading.get_ident())
        wanted = set(passage_ids)
        return {p.passage.passage_id: p.content_hash for p in self.points if p.passage.passage_id in wanted}

    def bulk_load(self, collection: str, fast: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def upsert(self, collection: str, points: Sequence[AugmentedPassage]) -> None:
        self.threads.add(threading.get_ident())
        self._before_upsert()
        self.writes.append(len(points))
        self.points.extend(points)


def passages(count: int) -> list[Passage]:
    return [Passage(f"p{number}", "x" * (1 + number % 7)) for number in range(count)]


class Corpus:
    """Passages without end, and how many of them were read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[Passage]:
        while True:
            self.read += 1
            yield Passage(f"p{self.read}", "text")


def run(
    rows: Any,  # noqa: ANN401
    store: FakeStore,
    generator: FakeGenerator | None,
    workers: int = 1,
    stop: threading.Event | None = None,
    encoder: FakeEncoder | None = None,
) -> abc.Generator[Progress, None, None]:
    recipe = RECIPE if generator else Recipe()
    models = cast(Encoder, encoder or FakeEncoder()), cast(Generator, generator)
    return ingest(rows, cast(Store, store), "docs", *models, recipe, workers, stop)


def threads_of_the_ingest() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("xqg")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads_of_the_ingest() == []


def test_points_and_progress_come_in_the_order_of_the_corpus_whichever_worker_is_first() -> None:
    rows: list[Passage | Reject] = [*passages(11 * CHUNK_SIZE + 5)]
    rows[70] = Reject("corpus", 71, "bad", "")
    expected = FakeStore()
    alone = list(run(rows, expected, FakeGenerator()))

    delays = itertools.cycle([0.02, 0, 0.01, 0])
    wait = threading.Event().wait
    store = FakeStore()
    together = list(run(rows, store, FakeGenerator(lambda _: wait(next(delays))), workers=4))
    assert together == alone
    assert [step.rows for step in alone] == [CHUNK_SIZE] * 11 + [5]
    assert [point.passage for point in store.points] == [row for row in rows if isinstance(row, Passage)]
    for point, other in zip(store.points, expected.points, strict=True):
        assert replace(point, vectors={}) == replace(other, vectors={})
        for name, vector in point.vectors.items():
            np.testing.assert_array_equal(vector, other.vectors[name])


def test_as_many_chunks_are_generated_at_once_as_there_are_workers() -> None:
    # Broken unless three threads wait here together.
    barrier = threading.Barrier(3, timeout=PATIENCE)
    assert (
        len(list(run(passages(6 * CHUNK_SIZE), FakeStore(), FakeGenerator(lambda _: barrier.wait()), workers=3))) == 6
    )


def test_the_yield_of_each_language_is_told_with_what_was_dropped_and_why() -> None:
    totals = Totals()
    for progress in run(passages(CHUNK_SIZE + 2), FakeStore(), FakeGenerator()):
        totals.add(progress)
    first, *others = RECIPE.languages
    per_passage = RECIPE.queries_per_language
    n = CHUNK_SIZE + 2
    told = {
        "asked": n * per_passage,
        "kept": n,
        "empty": 0,
        "malformed": 0,
        "duplicate": 0,
        "wrong_script": 0,
        "wrong_language": 0,
    }
    assert totals.yields() == {first: {**told, "wrong_script": n}} | dict.fromkeys(others, told)


def test_no_more_is_read_ahead_than_the_chunks_in_flight() -> None:
    corpus, gate, at_the_gate = Corpus(), threading.Event(), threading.Semaphore(0)

    def hold(_: object) -> None:
        at_the_gate.release()
        assert gate.wait(PATIENCE)

    steps = run(corpus, FakeStore(), FakeGenerator(hold), workers=2)
    consumer = threading.Thread(target=lambda: next(steps))
    consumer.start()
    for _ in range(2):
        assert at_the_gate.acquire(timeout=PATIENCE)
    gate.set()
    consumer.join(PATIENCE)
    assert corpus.read == 2 * ITEMS_IN_FLIGHT * CHUNK_SIZE
    # What is written makes room for as much again, and no more.
    for _ in range(20):
        next(steps)
    steps.close()
    assert corpus.read <= (21 + 2 * ITEMS_IN_FLIGHT) * CHUNK_SIZE


def test_the_store_is_used_by_the_consuming_thread_alone() -> None:
    store = FakeStore()
    list(run(passages(20 * CHUNK_SIZE), store, FakeGenerator(), workers=4))
    assert store.threads == {threading.get_ident()}


def test_chunks_that_wait_are_written_together_and_told_only_then() -> None:
    store, later = FakeStore(), threading.Semaphore(0)
    in_flight = 2 * ITEMS_IN_FLIGHT

    def be_last_with_the_first(chunk: Sequence[Passage]) -> None:
        if chunk[0].passage_id != "p0":
            later.release()
            return
        for _ in range(in_flight - 1):
            assert later.acquire(timeout=PATIENCE)

    told = 0
    for step in run(passages(in_flight * CHUNK_SIZE), store, FakeGenerator(be_last_with_the_first), workers=2):
        told += step.stored
        assert told <= len(store.points)
    # Half of the chunks in flight at once: the workers are at the other half meanwhile.
    assert store.writes[0] == in_flight // 2 * CHUNK_SIZE
    assert told == sum(store.writes) == in_flight * CHUNK_SIZE


def fail(error: Exception, at: str) -> Callable[[Sequence[Passage]], None]:
    def check(chunk: Sequence[Passage]) -> None:
        if any(passage.passage_id == at for passage in chunk):
            raise error

    return check


def test_an_error_of_the_generator_surfaces_ends_the_reading_and_leaves_a_whole_beginning() -> None:
    corpus, store = Corpus(), FakeStore()
    generator = FakeGenerator(fail(ModelError("out of memory"), f"p{5 * CHUNK_SIZE}"))
    with pytest.raises(ModelError, match="out of memory"):
        list(run(corpus, store, generator, workers=2))
    assert [point.passage.passage_id for point in store.points] == [f"p{i + 1}" for i in range(len(store.points))]
    assert len(store.points) <= 4 * CHUNK_SIZE
    assert corpus.read <= (5 + 2 * ITEMS_IN_FLIGHT) * CHUNK_SIZE
    read = corpus.read
    assert threads_of_the_ingest() == []
    assert corpus.read == read


@pytest.mark.parametrize("side", ["encode_passages", "encode_queries"])
def test_an_error_of_the_encoder_surfaces(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object, texts: Sequence[str]) -> FloatArray:
        raise ModelError(f"{len(texts)} texts are too many")

    monkeypatch.setattr(FakeEncoder, side, refuse)
    store = FakeStore()
    with pytest.raises(ModelError, match="texts are too many"):
        list(run(Corpus(), store, FakeGenerator(), workers=3))
    assert store.points == []


def test_an_error_of_the_store_surfaces() -> None:
    def refuse() -> None:
        raise StoreError("the disk is full")

    corpus = Corpus()
    with pytest.raises(StoreError, match="the disk is full"):
        list(run(corpus, FakeStore(refuse), FakeGenerator(), workers=2))
    assert corpus.read == 2 * ITEMS_IN_FLIGHT * CHUNK_SIZE


def test_an_ingest_that_another_one_forestalls_at_the_creation_goes_on() -> None:
    forestalled = FakeStore()
    list(run(passages(1), forestalled, FakeGenerator()))
    hidden = [None]
    read_fingerprint = forestalled.read_fingerprint

    def read_late(collection: str) -> dict[str, Any] | None:
        return hidden.pop() if hidden else read_fingerprint(collection)

    def refuse(*_: object) -> None:
        raise StoreError("it already exists")

    forestalled.read_fingerprint = read_late  # type: ignore[method-assign]
    forestalled.create_collection = refuse  # type: ignore[method-assign, assignment]
    assert sum(progress.stored for progress in run(passages(3), forestalled, FakeGenerator())) == 3


def test_a_run_that_stores_nothing_creates_nothing() -> None:
    rejects = [Reject("corpus", line, "bad", "") for line in range(CHUNK_SIZE + 1)]
    store = FakeStore()
    assert [step.rows for step in run(rejects, store, FakeGenerator())] == [CHUNK_SIZE, 1]
    assert store.read_fingerprint("docs") is None

    class Broken(FakeEncoder):
        def encode_passages(self, texts: Sequence[str]) -> FloatArray:
            return np.full((len(texts), 2), np.nan, dtype=np.float32)

    assert sum(len(step.rejects) for step in run(passages(3), store, FakeGenerator(), encoder=Broken())) == 3
    assert store.read_fingerprint("docs") is None

    def fail(_: object) -> None:
        raise StoreError("no memory")

    with pytest.raises(StoreError, match="no memory"):
        list(run(passages(3), store, FakeGenerator(fail)))
    assert store.read_fingerprint("docs") is None
    assert sum(step.stored for step in run([*rejects, *passages(3)], store, FakeGenerator())) == 3
    assert store.read_fingerprint("docs") is not None


def test_an_ingest_ends_when_somebody_changes_the_recipe_meanwhile() -> None:
    store = FakeStore()

    def retune() -> None:
        store._fingerprint = {**(store._fingerprint or {}), "recipe.alpha": 0.5}

    store._before_upsert = retune
    with pytest.raises(MismatchError, match=r"recipe\.alpha: stored 0\.5, now 0\.01"):
        list(run(passages(9 * CHUNK_SIZE), store, FakeGenerator()))
    assert len(store.writes) == 1


def test_a_change_of_the_recipe_during_the_last_write_is_told() -> None:
    store = FakeStore()

    def retune() -> None:
        store._fingerprint = {**(store._fingerprint or {}), "recipe.alpha": 0.5}

    store._before_upsert = retune
    with pytest.raises(MismatchError, match=r"recipe\.alpha: stored 0\.5, now 0\.01"):
        list(run(passages(1), store, FakeGenerator()))


def test_an_ingest_ends_when_somebody_deletes_the_collection_meanwhile() -> None:
    store = FakeStore()

    def delete() -> None:
        store._fingerprint = None

    store._before_upsert = delete
    with pytest.raises(StoreError, match=r"was deleted during the ingest\. Cure: "):
        list(run(passages(9 * CHUNK_SIZE), store, FakeGenerator()))
    assert len(store.writes) == 1


def test_damage_of_the_corpus_surfaces_when_the_rows_before_it_are_stored_and_told() -> None:
    def damaged() -> Iterator[Passage | Reject]:
        yield from passages(3 * CHUNK_SIZE)
        yield Reject("corpus", 49, "bad", "")
        raise InputError("the gzip file is damaged")

    store = FakeStore()
    told: deque[Progress] = deque()
    with pytest.raises(InputError, match="the gzip file is damaged"):
        told.extend(run(damaged(), store, FakeGenerator(), workers=2))
    assert [reject for step in told for reject in step.rejects] == [Reject("corpus", 49, "bad", "")]
    assert [point.passage for point in store.points] == passages(3 * CHUNK_SIZE)


def test_no_collection_is_made_for_a_corpus_that_fails_at_its_first_row() -> None:
    def broken() -> Iterator[Passage]:
        raise InputError("no columns")
        yield

    store = FakeStore()
    with pytest.raises(InputError, match="no columns"):
        list(run(broken(), store, FakeGenerator()))
    assert store.read_fingerprint("docs") is None


def test_closing_the_iterator_ends_every_thread_and_what_was_told_is_stored() -> None:
    corpus, store = Corpus(), FakeStore()
    steps = run(corpus, store, FakeGenerator(), workers=3)
    told = sum(next(steps).stored for _ in range(5))
    steps.close()
    assert threads_of_the_ingest() == []
    assert told == 5 * CHUNK_SIZE <= len(store.points)
    read = corpus.read
    with pytest.raises(StopIteration):
        next(steps)
    assert corpus.read == read


def test_asked_to_stop_it_finishes_what_workers_are_at_and_drops_what_waits() -> None:
    corpus, store, stop = Corpus(), FakeStore(), threading.Event()
    started, lock = 0, threading.Lock()
    go_on = threading.Semaphore(2 * 3)  # three chunks for each worker, then they wait for the stop

    def work(_: object) -> None:
        nonlocal started
        with lock:
            started += 1
        while not go_on.acquire(timeout=0.01):
            if stop.is_set():
                return

    told = 0
    for number, step in enumerate(run(corpus, store, FakeGenerator(work), workers=2, stop=stop)):
        told += step.stored
        if number == 3:
            stop.set()
    assert told == len(store.points) == started * CHUNK_SIZE
    assert corpus.read > told
    # What was dropped was neither lost nor stored: another run goes on there.
    assert [point.passage.passage_id for point in store.points] == [f"p{i + 1}" for i in range(told)]


def test_each_model_is_called_once_a_chunk() -> None:
    encoder, rows = FakeEncoder(), passages(CHUNK_SIZE + 1)
    list(run(rows, FakeStore(), FakeGenerator(), encoder=encoder))
    assert encoder.calls == [
        [passage.text for passage in rows[:CHUNK_SIZE]],
        [f"{code} {passage.text}" for passage in rows[:CHUNK_SIZE] for code in ("fi", "ru")],
        [rows[-1].text],
        [f"fi {rows[-1].text}", f"ru {rows[-1].text}"],
    ]


def test_chunks_are_larger_where_passages_are_cheap() -> None:
    rows = [QueriedPassage(passage, ()) for passage in passages(CHEAP_CHUNK_SIZE + 1)]
    assert [step.rows for step in run(rows, FakeStore(), None)] == [CHEAP_CHUNK_SIZE, 1]
    generator = FakeGenerator()
    generator.pace = FAST
    steps = run([row.passage for row in rows], FakeStore(), generator)
    assert [step.rows for step in steps] == [CHEAP_CHUNK_SIZE, 1]


def test_a_passage_that_another_client_deletes_does_not_keep_the_replies_of_later_ones(tmp_path: Path) -> None:
    store = FakeStore()
    for passage in passages(40):
        (tmp_path / passage.passage_id).touch()
    for number, _ in enumerate(run(passages(40), store, FakeGenerator(replies=tmp_path))):
        if number == 0:
            del store.points[0]
    assert store.points[0].passage.passage_id == "p1"
    assert {path.name for path in tmp_path.iterdir()} <= {f"p{number}" for number in range(16)}
