"""A kill at any moment costs only the chunks in flight: run again, a command ends where an uninterrupted one does.

Each case ends the command one to three times, by SIGKILL, at calls of a named function that the seed draws, then lets
it run to its end. All that it leaves must be equal: points (bit for bit), fingerprints, dead letters.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pytest
from forked import Forks

from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.records import AugmentedPassage, Passage
from xqg_qdrant.stores import Store, open_store

FEW_QUERIES = ["--languages", "fi,ru", "--queries-per-language", "1", "--max-new-tokens", "4"]
PASSAGES = 24
INDEX_DIM, INDEX_POINTS = 4096, 700

EDGE = "xqg_qdrant.stores.edge.store"
# name of a point → the function at which the process ends, before or after its work
POINTS = {
    "reading": ("xqg_qdrant.augmentation.pipeline", "look_up", "before"),
    "generated": ("xqg_qdrant.generation.onnx", "QueryGenerator.generate", "after"),
    "passages encoded": ("xqg_qdrant.inference.encoder", "Encoder.encode_passages", "after"),
    "queries encoded": ("xqg_qdrant.inference.encoder", "Encoder.encode_queries", "after"),
    "before an upsert": (EDGE, "EdgeStore.upsert", "before"),
    "within an upsert": (EDGE, "engine.UpdateOperation.upsert_points", "before"),
    "after an upsert": (EDGE, "EdgeStore.upsert", "after"),
    "before dead letters": ("xqg_qdrant.corpus.dead_letters", "DeadLetters.write", "before"),
    "before the fingerprint": (EDGE, "write_sidecar", "before"),
    "before the fingerprint has its name": ("pathlib", "Path.replace", "before"),
    "after the fingerprint": (EDGE, "EdgeStore.write_fingerprint", "after"),
    "before a collection has its name": ("pathlib", "Path.rename", "before"),
    "after a collection has its name": ("pathlib", "Path.rename", "after"),
    "before a deletion": (EDGE, "EdgeStore.delete", "before"),
    "after a deletion": (EDGE, "EdgeStore.delete", "after"),
    "indexing": ("xqg_qdrant.stores.edge.index", "Indexing", "before"),
    "before a copy is read again": ("xqg_qdrant.lifecycle.copying", "_verify", "before"),
}
WRITES = ("before an upsert", "within an upsert", "after an upsert")
FINGERPRINT = ("before the fingerprint", "before the fingerprint has its name")
NAMES = ("before a collection has its name", "after a collection has its name")


# Runs a command in a folder; returns its exit code and what it said.
Run: TypeAlias = Callable[[Path, tuple[str, ...]], tuple[int, str]]


class Scenario(NamedTuple):
    """What lies in the folder beforehand, the command, where it is killed, and its exit code when it is not.

    `done_code` is that of the command once there is nothing left to do.
    """

    prepare: Callable[[Path, Run], None]
    arguments: tuple[str, ...]
    points: tuple[str, ...]
    exit_code: int = 0
    done_code: int = 0


def to_row(passage: Passage, **changes: Any) -> str:
    return json.dumps({"id": passage.passage_id, "title": passage.title, "text": passage.text, **changes}) + "\n"


def write_corpus(folder: Path, _: Run | None = None) -> None:
    """Write passages of one sentence and a few rows that are rejected."""
    rows = [to_row(p, text=p.text.split(". ")[0]) for p in read_demo_passages()[:PASSAGES]]
    for place in (3, 10, 20):
        rows.insert(place, '{"id": "no text"}\n')
    (folder / "corpus.jsonl").write_text("".join(rows))


def write_edited_corpus(folder: Path, run: Run) -> None:
    """Store a corpus, then take passages out of it, change some, and add others."""
    passages = read_demo_passages()
    text = {p.passage_id: p.text.split(". ")[0] for p in passages}
    old = [to_row(p, text=text[p.passage_id]) for p in passages[:PASSAGES]]
    (folder / "corpus.jsonl").write_text("".join(old))
    run(folder, ("ingest", "corpus.jsonl", "--collection", "docs", *FEW_QUERIES))
    changed = [to_row(p, text=f"{text[p.passage_id]}, so they say") for p in passages[6:15]]
    new = [to_row(p, text=text[p.passage_id]) for p in passages[PASSAGES : PASSAGES + 12]]
    (folder / "corpus.jsonl").write_text("".join([*changed, *old[15:], *new]))


def store_corpus(folder: Path, run: Run) -> None:
    write_corpus(folder)
    run(folder, ("ingest", "corpus.jsonl", "--collection", "docs", *FEW_QUERIES))
    (folder / "docs.rejected.jsonl").unlink()


def store_plain(folder: Path, run: Run) -> None:
    write_corpus(folder)
    run(folder, ("ingest", "corpus.jsonl", "--collection", "docs", "--plain"))
    (folder / "docs.rejected.jsonl").unlink()


def store_unindexed(folder: Path, _: Run) -> None:
    store = open_store(str(folder / "xqg_data"))
    store.create_collection("docs", INDEX_DIM, {})
    vectors = np.random.default_rng(0).standard_normal((INDEX_POINTS, INDEX_DIM)).astype(np.float32)
    store.upsert(
        "docs",
        [
            AugmentedPassage(Passage(str(number), "text"), (), {"xqg": vector, "passage": -vector}, "", "")
            for number, vector in enumerate(vectors)
        ],
    )
    store.close()


def save_checkpoint(folder: Path, _: Run) -> None:
    from checkpoints import save_encoder  # it needs torch, which takes its time

    save_encoder(folder / "checkpoint", "minilm")


SCENARIOS = {
    "ingest": Scenario(
        write_corpus,
        ("ingest", "corpus.jsonl", "--collection", "docs", *FEW_QUERIES),
        (
            *("reading", "generated", "passages encoded", "queries encoded", "before dead letters"),
            *(*WRITES, *FINGERPRINT, *NAMES),
        ),
        exit_code=3,
        done_code=3,
    ),
    "enrich": Scenario(
        store_plain,
        ("enrich", "--collection", "docs", *FEW_QUERIES),
        ("generated", "queries encoded", *WRITES, *FINGERPRINT, "after the fingerprint"),
    ),
    "reencode": Scenario(
        store_corpus,
        ("reencode", "--collection", "docs", "--to", "again", "--recipe", "paper"),
        ("passages encoded", "queries encoded", *WRITES, *FINGERPRINT, *NAMES),
    ),
    "sync": Scenario(
        write_edited_corpus,
        ("sync", "corpus.jsonl", "--collection", "docs", "--delete"),
        ("before an upsert", "after an upsert", "before a deletion", "after a deletion"),
    ),
    "retune": Scenario(
        store_corpus,
        ("retune", "--collection", "docs", "--alpha", "0.3", "--languages", "fi", "--min-score", "0.3", "--yes"),
        ("queries encoded", *WRITES, *FINGERPRINT, "after the fingerprint"),
    ),
    "copy": Scenario(
        store_corpus,
        ("copy", "--collection", "docs", "--from", "edge:xqg_data", "--to", "edge:copied"),
        (*WRITES, *FINGERPRINT, *NAMES, "before a copy is read again"),
    ),
    "optimise": Scenario(store_unindexed, ("optimise", "--collection", "docs"), ("indexing",)),
    # Once the folder has its name, it is not exported again.
    "export": Scenario(save_checkpoint, ("export", "checkpoint", "exported", "--pooling", "mean"), NAMES, done_code=2),
}


def run_xqg(forks: Forks, folder: Path, arguments: tuple[str, ...], point: str = "", call: int = 0) -> tuple[int, str]:
    """Run the command in a folder; return its exit code and what it said."""
    return forks.run(folder, *arguments, setup=f"import killed; killed.prepare({POINTS}, {point!r}, {call})")


def read_points(store: Store, collection: str) -> dict[str, Any]:
    """Return everything that a collection holds, its vectors as their bits."""
    return {
        point.passage.passage_id: (
            point.passage,
            point.generated_queries,
            point.content_hash,
            point.recipe,
            {vector: values.tobytes() for vector, values in point.vectors.items()},
        )
        for point in store.scroll(collection)
    }


def read_state(folder: Path) -> dict[str, Any]:
    """Return everything that a command has left in its folder."""
    state: dict[str, Any] = {}
    for place in ("xqg_data", "copied"):
        store = open_store(str(folder / place))
        for name in store.collections():
            state[f"{place}/{name}"] = (store.read_fingerprint(name), store.count(name), read_points(store, name))
        store.close()
    for file in (*folder.glob("*.rejected.jsonl"), *folder.glob("exported/*")):
        state[file.name] = file.read_bytes()
    return state


class Reference(NamedTuple):
    """The folder before the command, what the command leaves when nobody kills it, and how often it passes a point."""

    before: Path
    state: dict[str, Any]
    calls: dict[str, int]


@pytest.fixture(scope="module")
def reference_of(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    @cache
    def make(name: str) -> Reference:
        scenario = SCENARIOS[name]
        before = tmp_path_factory.mktemp("before")
        scenario.prepare(before, partial(run_xqg, forks))
        folder = tmp_path_factory.mktemp("after") / "folder"
        shutil.copytree(before, folder)
        code, said = run_xqg(forks, folder, (*scenario.arguments, *threads_of(name, 0)))
        assert code == scenario.exit_code, said
        return Reference(before, read_state(folder), json.loads(said.splitlines()[-1]))

    return make


def threads_of(name: str, seed: int) -> tuple[str, ...]:
    return ("--threads", str(1 + seed % 2)) if name in ("ingest", "sync", "retune") else ()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With one seed kill each command at every fifth of its points, and no export, whose every run imports torch."""
    if "point" in metafunc.fixturenames:
        whole = metafunc.config.getoption("--seeds") > 1
        scenarios = {name: scenario for name, scenario in SCENARIOS.items() if whole or name != "export"}
        step = 1 if whole else 5
        cases = [(name, point) for name, scenario in scenarios.items() for point in scenario.points[::step]]
        metafunc.parametrize(("name", "point"), cases)


def test_a_command_that_is_killed_and_run_again_ends_where_an_uninterrupted_one_does(
    name: str, point: str, seed: int, forks: Forks, reference_of: Callable[[str], Reference], tmp_path: Path
) -> None:
    scenario, reference = SCENARIOS[name], reference_of(name)
    calls = reference.calls[point]
    assert calls > 0, "the command does not pass this point"
    draw = random.Random(f"{name} {point} {seed}")
    folder = tmp_path / "folder"
    arguments = (*scenario.arguments, *threads_of(name, seed))

    # The first kill always strikes: where a point is passed by the clock, if need be at an earlier call.
    # A later run may have less to do than the call that was drawn.
    for call in range(draw.randint(1, calls), 0, -1):
        shutil.copytree(reference.before, folder)
        code, said = run_xqg(forks, folder, arguments, point, call)
        if code == -signal.SIGKILL or point != "indexing":
            break
        shutil.rmtree(folder)
    assert code == -signal.SIGKILL, said
    for _ in range(draw.randint(0, 2) if seed else 0):
        code, said = run_xqg(forks, folder, arguments, point, draw.randint(1, calls))
        assert code in (-signal.SIGKILL, scenario.exit_code, scenario.done_code), said
    code, said = run_xqg(forks, folder, arguments)
    assert code in (scenario.exit_code, scenario.done_code), said
    assert read_state(folder) == reference.state
