"""Two to eight ingests of one collection at once, on clocks a day apart: one state in the end, or a clear refusal."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from forked import Command, Forks
from rest_qdrant import RestQdrant
from test_kill_9 import read_points

from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.stores import Store, open_store

FEW_QUERIES = ["--languages", "fi", "--queries-per-language", "1", "--max-new-tokens", "4", "--threads", "1"]
PASSAGES = 24
DAY = 24 * 3600
CLOCK = """
import time
right, right_ns = time.time, time.time_ns
time.time = lambda: right() + {seconds}
time.time_ns = lambda: right_ns() + {seconds} * 10**9
"""
OK, ROWS_REJECTED, MISMATCH, IN_USE = 0, 3, 4, 5


@contextmanager
def opened_place(kind: str, folder: Path) -> Iterator[str]:
    """Yield the location of an empty store that several processes can open."""
    if kind != "rest":
        yield f"{kind}:{folder / kind}"
        return
    rest = RestQdrant()
    try:
        yield rest.url
    finally:
        rest.close()


def write_corpus(folder: Path) -> Path:
    rows = [
        json.dumps({"id": p.passage_id, "title": p.title, "text": p.text.split(". ")[0]}) + "\n"
        for p in read_demo_passages()[:PASSAGES]
    ]
    path = folder / "corpus.jsonl"
    path.write_text("".join(rows))
    return path


def start(forks: Forks, corpus: Path, location: str, clock: int, number: int, *options: str) -> Command:
    folder = corpus.parent / str(number)
    folder.mkdir()
    arguments = ["ingest", str(corpus), "--collection", "docs", "--store", location, *FEW_QUERIES, *options]
    return forks.start(folder, *arguments, setup=CLOCK.format(seconds=clock))


def end(command: Command) -> tuple[int, str]:
    return command.wait(240), command.output


def read_all(location: str) -> dict[str, Any]:
    with opened(location) as store:
        points = read_points(store, "docs")
        assert store.count("docs") == len(points)
    return points


def read_alpha(location: str) -> float:
    with opened(location) as store:
        fingerprint = store.read_fingerprint("docs")
    assert fingerprint is not None
    return float(fingerprint["recipe.alpha"])


@contextmanager
def opened(location: str) -> Iterator[Store]:
    store = open_store(location)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> dict[float, dict[str, Any]]:
    """Return what one ingest alone stores, for each of two recipes."""
    states = {}
    for alpha in (0.1, 0.2):
        folder = tmp_path_factory.mktemp("alone")
        code, said = end(start(forks, write_corpus(folder), f"edge:{folder / 'data'}", 0, 0, "--alpha", str(alpha)))
        assert code == OK, said
        states[alpha] = read_all(f"edge:{folder / 'data'}")
    return states


@pytest.mark.parametrize("kind", ["edge", "local", "rest"])
def test_ingests_of_one_recipe_end_in_one_state_or_say_who_holds_the_collection(
    kind: str, seed: int, expected: dict[float, dict[str, Any]], tmp_path: Path, forks: Forks
) -> None:
    draw = random.Random(f"{kind} {seed}")
    corpus, count = write_corpus(tmp_path), 2 + (seed + 1) % 7
    with opened_place(kind, tmp_path) as location:
        processes = [
            start(forks, corpus, location, draw.choice([-DAY, 0, DAY]), number, "--alpha", "0.1")
            for number in range(count)
        ]
        ends = [end(process) for process in processes]
        assert OK in [code for code, _ in ends], ends
        for code, said in ends:
            if code != OK:
                assert kind != "rest", said
                assert code == IN_USE, said
                assert "in use by " in said, said
                assert "Cure: " in said, said
        assert read_all(location) == expected[0.1]


@pytest.mark.parametrize("kind", ["edge", "rest"])
def test_ingests_of_two_recipes_end_in_one_of_them(
    kind: str, seed: int, expected: dict[float, dict[str, Any]], tmp_path: Path, forks: Forks
) -> None:
    draw = random.Random(f"two {kind} {seed}")
    corpus, count = write_corpus(tmp_path), 2 + seed % 7
    with opened_place(kind, tmp_path) as location:
        alphas = [0.1, 0.2, *draw.choices([0.1, 0.2], k=count - 2)]
        processes = [
            start(forks, corpus, location, draw.choice([-DAY, 0, DAY]), number, "--alpha", str(alpha))
            for number, alpha in enumerate(alphas)
        ]
        ends = [end(process) for process in processes]
        alpha = read_alpha(location)
        for asked, (code, said) in zip(alphas, ends, strict=True):
            if asked != alpha:
                assert code in ((MISMATCH,) if kind == "rest" else (MISMATCH, IN_USE)), said
                assert "Cure: " in said, said
        assert OK in [code for asked, (code, _) in zip(alphas, ends, strict=True) if asked == alpha], ends
        assert read_all(location) == expected[alpha]


def test_ingests_from_one_folder_keep_each_others_dead_letters(tmp_path: Path, forks: Forks) -> None:
    """The ingest without rejected rows begins first and ends last."""
    passages = read_demo_passages()[:8]
    good = [json.dumps({"id": p.passage_id, "text": p.text, "queries": ["Mikä?"]}) + "\n" for p in passages]
    (tmp_path / "good.jsonl").write_text("".join(good[1:]))
    (tmp_path / "bad.jsonl").write_text('{"id": "no text"}\n' + good[0])
    with opened_place("rest", tmp_path) as location:
        given = ["--collection", "docs", "--store", location, "--queries", "corpus"]
        first = forks.start(tmp_path, "ingest", "good.jsonl", *given, output="first")
        second = forks.start(tmp_path, "ingest", "bad.jsonl", *given, output="second")
        (second_code, second_said), (first_code, first_said) = end(second), end(first)
    assert (first_code, second_code) == (OK, ROWS_REJECTED), first_said + second_said
    [row] = (tmp_path / "docs.rejected.jsonl").read_text().splitlines()
    assert json.loads(row)["line"] == 1


def test_a_collection_in_use_is_not_served(tmp_path: Path, demo_encoder: Encoder, forks: Forks) -> None:
    with open_store(str(tmp_path / "store")) as store:
        made_by = {f"encoder.{name}": value for name, value in demo_encoder.describe().items()}
        store.create_collection("docs", demo_encoder.dim, made_by)
        assert store.count("docs") == 0
        code, said = forks.run(tmp_path, "serve", "--store", "store", "--port", "0")
    assert code == IN_USE
    assert "is in use by process" in said
    assert "Serving" not in said
