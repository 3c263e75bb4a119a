"""The index of an embedded collection: built aside, safe to kill; what it costs in recall is told."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from xqg_qdrant.cli import main
from xqg_qdrant.errors import StoreError
from xqg_qdrant.lifecycle.status import measure_recall
from xqg_qdrant.records import AugmentedPassage, FloatArray, Passage
from xqg_qdrant.stores import open_store
from xqg_qdrant.stores.edge.index import build_index
from xqg_qdrant.stores.edge.store import ENGINE_SCRATCH, EdgeStore

# The engine indexes what takes more than 10 MB.
DIM = 4096
POINTS = 700


def make_vectors() -> FloatArray:
    return np.random.default_rng(0).standard_normal((POINTS, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a collection that the engine would index, and has not."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    store = open_store(str(folder))
    store.create_collection("docs", DIM, {})
    vectors = [{"xqg": vector, "passage": -vector} for vector in make_vectors()]
    store.upsert("docs", [AugmentedPassage(Passage(str(i), "text"), (), v, "", "") for i, v in enumerate(vectors)])
    store.close()
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "data"))


def read_indexed(folder: Path) -> int:
    store = EdgeStore(folder)
    indexed = store._open("docs").shard.info().indexed_vectors_count
    assert store.count("docs") == POINTS
    vectors = make_vectors()[:20]
    assert [hits[0].passage.passage_id for hits in store.search("docs", vectors, "xqg", 1)] == [*map(str, range(20))]
    store.close()
    return indexed


def test_a_collection_is_indexed_once_and_told_the_time_while_it_goes_on(folder: Path) -> None:
    store = open_store(str(folder))
    steps = list(store.optimise("docs"))
    assert [step.changed for step in steps] == [False] * (len(steps) - 1) + [True]
    assert [step.seconds for step in steps] == sorted(step.seconds for step in steps)
    assert len(steps) > 2
    assert not list(store.optimise("docs"))[-1].changed
    store.close()
    assert read_indexed(folder) == 2 * POINTS


def test_a_collection_below_the_limit_is_left_alone(folder: Path) -> None:
    store = open_store(str(folder))
    assert list(store.optimise("docs", above=POINTS)) == []
    store.close()
    assert read_indexed(folder) == 0


def test_quantised_vectors_are_scored_again_with_the_stored_ones(folder: Path) -> None:
    store = EdgeStore(folder)
    store.quantise("docs")
    list(store.optimise("docs"))
    assert [path for path in folder.rglob("*quantized*") if path.stat().st_size > POINTS * DIM]
    query = make_vectors()[:1]
    [hits] = store.search("docs", query, "xqg", 10)
    scores = {str(i): score for i, score in enumerate(make_vectors() @ query[0])}
    assert np.allclose([hit.score for hit in hits], [scores[hit.passage.passage_id] for hit in hits], rtol=1e-5)
    for point in store.scroll("docs"):
        assert np.array_equal(point.vectors["xqg"], make_vectors()[int(point.passage.passage_id)])
        break
    store.close()


def test_an_indexed_collection_can_be_quantised_later(folder: Path) -> None:
    store = open_store(str(folder))
    list(store.optimise("docs"))
    store.quantise("docs")
    store.close()
    store = open_store(str(folder))  # the setting lasts
    assert list(store.optimise("docs"))[-1].changed
    store.close()


def wait_for_work(folder: Path) -> None:
    """Wait until the engine has begun to write an index."""
    deadline = time.monotonic() + 30
    while not any((folder / "docs" / ENGINE_SCRATCH).glob("*/vector_storage*/*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_child_is_an_error_with_a_cure_and_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def remember(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        children.append(popen(*args, **kwargs))  # type: ignore[call-overload]
        return children[0]

    monkeypatch.setattr("xqg_qdrant.stores.edge.index.subprocess.Popen", remember)
    store = open_store(str(folder))
    steps = store.optimise("docs")
    next(steps)
    wait_for_work(folder)
    os.kill(children[0].pid, signal.SIGKILL)
    with pytest.raises(StoreError, match=r"(?s)cannot index .*docs: .*signal 9.* Nothing was lost.*Cure: "):
        list(steps)
    store.close()
    assert read_indexed(folder) == 0
    assert not (folder / "docs" / ENGINE_SCRATCH).exists()  # what the kill left is gone


def test_an_interruption_ends_the_child_and_the_store_goes_on(folder: Path) -> None:
    store = open_store(str(folder))
    steps = store.optimise("docs")
    next(steps)
    wait_for_work(folder)
    steps.close()  # type: ignore[attr-defined]
    assert store.count("docs") == POINTS
    store.close()
    assert read_indexed(folder) == 0


def test_a_collection_that_could_not_be_opened_is_left_to_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise Exception("Can't init WAL")  # as the engine does

    store = EdgeStore(folder)
    with monkeypatch.context() as patch:
        patch.setattr("xqg_qdrant.stores.edge.store.load_shard", fail)
        with pytest.raises(StoreError):
            store.count("docs")
    assert read_indexed(folder) == 0
    store.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the child goes on to its end")
def test_a_killed_parent_takes_the_child_along(folder: Path) -> None:
    code = "import sys; from xqg_qdrant.stores import open_store; list(open_store(sys.argv[1]).optimise('docs'))"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    wait_for_work(folder)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while True:
        try:
            assert read_indexed(folder) == 0
        except StoreError:  # the child still dies
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return


def test_what_the_engine_says_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=rf"(?s)cannot index {tmp_path}: .*(?i:segment|config).*Cure: "):
        list(build_index(tmp_path))


def test_the_recall_of_an_index_is_measured_against_an_exact_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EdgeStore(folder)
    assert str(measure_recall(store, "docs")) == "recall@10 against exact search: 1.000 (100 stored vectors)"
    search = store.search

    def lose_one(collection: str, vectors: FloatArray, name: str, limit: int, exact: bool = False) -> object:
        return [hits[: 10 if exact else 9] for hits in search(collection, vectors, name, limit, exact)]

    monkeypatch.setattr(store, "search", lose_one)
    assert measure_recall(store, "docs").share == pytest.approx(0.9)
    store.close()


def test_an_empty_collection_has_full_recall(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.create_collection("docs", 8, {})
    assert measure_recall(store, "docs").share == 1
    assert list(store.optimise("docs")) == []
    store.close()


def test_the_command_indexes_quantises_and_prints_the_recall(folder: Path) -> None:
    arguments = ["optimise", "--collection", "docs", "--store", str(folder), "--quantisation", "int8"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith("700 points indexed in ")
    assert result.stdout.startswith("recall@10 against exact search: ")
    assert read_indexed(folder) == 2 * POINTS
