"""What a copy promises: every bit of every point, whatever interrupts it, and else a refusal."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from forked import Forks
from rest_qdrant import RestQdrant

from xqg_qdrant.cli import main
from xqg_qdrant.errors import InputError, MismatchError, StoreError
from xqg_qdrant.lifecycle import copying
from xqg_qdrant.lifecycle.copying import Copying, copy_collection
from xqg_qdrant.records import AugmentedPassage, GeneratedQuery, Passage
from xqg_qdrant.stores import Store, is_same_place, open_store
from xqg_qdrant.stores.edge.store import EdgeStore
from xqg_qdrant.stores.points import make_point_id

DIM = 8
FINGERPRINT = {"encoder.pooling": "mean", "recipe.alpha": 0.01, "recipe.languages": ["ja", "ru"], "recipe.k": None}
KINDS = ("edge", "local", "memory", "rest")
# Where float32 ends at either side, both zeros, the smallest denormal, and what needs all nine digits.
EXTREMES = np.array([3.4028235e38, -1.1754944e-38, 1e-45, -0.0, 0.0, 0.1, 16777217.0, 1.00000012], np.float32)


class Places:
    """Stores of every kind, closed in the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: list[Store] = []
        self._servers: list[RestQdrant] = []

    def locate(self, kind: str, name: str) -> str:
        if kind == "rest":
            self._servers.append(RestQdrant())
            return self._servers[-1].url
        return ":memory:" if kind == "memory" else f"{kind}:{self._folder / name}"

    def open(self, kind: str, name: str = "store") -> Store:
        self._opened.append(open_store(self.locate(kind, name)))
        return self._opened[-1]

    def close(self) -> None:
        for store in self._opened:
            store.close()
        for server in self._servers:
            server.close()


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    places = Places(tmp_path)
    yield places
    places.close()


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "BATCH", 8)


def make_points(count: int, seed: int = 1) -> list[AugmentedPassage]:
    numbers = np.random.default_rng(seed)
    points = []
    for index in range(count):
        # Any bits that are a finite float32, denormals too.
        bits = numbers.integers(0, 2**32, (2, DIM), dtype=np.uint32).view(np.float32)
        xqg, plain = np.where(np.isfinite(bits), bits, EXTREMES)
        passage = Passage(f"passage {index}", f"text {index} Ω\n", "何", {"n": index, "x": [index / 8, {"y": None}]})
        queries = (GeneratedQuery("ja", "何ですか", 0), GeneratedQuery("ru", "что?", 3))
        points.append(AugmentedPassage(passage, queries, {"xqg": xqg, "passage": plain}, f"hash {index}", "recipe"))
    return [
        replace(
            points[0], vectors={"xqg": EXTREMES, "passage": EXTREMES[::-1].copy()}, other_fields={"tags": ["kept"]}
        ),
        *points[1:],
    ]


def fill(store: Store, points: list[AugmentedPassage], collection: str = "docs") -> None:
    store.create_collection(collection, DIM, FINGERPRINT)
    store.upsert(collection, points)


def read_bits(store: Store, collection: str) -> dict[str, tuple[AugmentedPassage, dict[str, bytes]]]:
    return {
        point.passage.passage_id: (
            replace(point, vectors={}),
            {name: vector.tobytes() for name, vector in point.vectors.items()},
        )
        for point in store.scroll(collection)
    }


def run_copy(source: Store, target: Store, collection: str = "docs", name: str = "docs") -> Copying:
    steps = copy_collection(source, collection, target, name, threading.Event())
    return Copying(*map(sum, zip(*steps, strict=True)))


def xqg(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], env=env)


@pytest.mark.parametrize("target_kind", KINDS)
@pytest.mark.parametrize("source_kind", KINDS)
def test_a_copy_has_every_point_to_the_last_bit(source_kind: str, target_kind: str, places: Places) -> None:
    points = make_points(20)
    source, target = places.open(source_kind, "source"), places.open(target_kind, "target")
    fill(source, points)
    assert run_copy(source, target) == Copying(read=20, written=20, verified=20)
    assert target.read_fingerprint("docs") == FINGERPRINT
    expected = {point.passage.passage_id: point for point in points}
    copied = read_bits(target, "docs")
    assert copied == read_bits(source, "docs")
    for passage_id, (point, bits) in copied.items():
        assert point == replace(expected[passage_id], vectors={})
        assert bits == {name: vector.tobytes() for name, vector in expected[passage_id].vectors.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_may_lie_beside_the_original(kind: str, places: Places) -> None:
    store = places.open(kind)
    fill(store, make_points(9))
    run_copy(store, store, name="copy")
    assert store.collections() == ["copy", "docs"]
    assert read_bits(store, "copy") == read_bits(store, "docs")


def test_an_empty_collection_is_copied_with_its_fingerprint_and_its_dim(places: Places) -> None:
    source, target = places.open("memory"), places.open("edge")
    fill(source, [])
    assert run_copy(source, target) == Copying()
    assert (target.read_fingerprint("docs"), target.read_dim("docs")) == (FINGERPRINT, DIM)


def test_a_copy_that_is_run_again_writes_nothing(places: Places) -> None:
    source, target = places.open("edge"), places.open("memory")
    fill(source, make_points(20))
    run_copy(source, target)
    assert run_copy(source, target) == Copying(read=20, written=0, verified=20)


@pytest.mark.parametrize(
    "change",
    [
        {"passage": Passage("passage 3", "text 3 Ω\n", "何", {"n": 3.0, "x": [0.375, {"y": None}]})},
        {"passage": Passage("passage 3", "text 3 Ω\n", "何", {"n": 3, "x": [0.375 + 2**-30, {"y": None}]})},
        {"generated_queries": ()},
        {"content_hash": "other"},
        {"recipe": "other"},
        {"other_fields": {"tags": []}},
        {"vectors": {"xqg": np.full(DIM, 2, np.float32), "passage": np.ones(DIM, np.float32)}},
    ],
    ids=["a float for an integer", "a number", "queries", "hash", "recipe", "others' fields", "vectors"],
)
def test_whatever_of_a_point_differs_it_is_written_again(change: dict[str, Any], places: Places) -> None:
    source, target, points = places.open("edge"), places.open("memory"), make_points(20)
    fill(source, points)
    run_copy(source, target)
    target.upsert("docs", [replace(points[3], **change)])
    assert run_copy(source, target) == Copying(read=20, written=1, verified=20)
    assert read_bits(target, "docs") == read_bits(source, "docs")


def test_a_zero_of_the_other_sign_is_a_difference(places: Places) -> None:
    source, target, [point] = places.open("memory"), places.open("edge"), make_points(1)
    vector = np.eye(1, DIM, dtype=np.float32)[0]
    fill(source, [replace(point, vectors={"xqg": -vector, "passage": vector})])
    fill(target, [replace(point, vectors={"xqg": 0 - vector, "passage": vector})])
    assert run_copy(source, target).written == 1
    assert np.signbit(next(target.scroll("docs")).vectors["xqg"]).all()


def test_a_source_that_grew_is_copied_on(places: Places) -> None:
    source, target, points = places.open("edge"), places.open("memory"), make_points(20)
    fill(source, points[:12])
    run_copy(source, target)
    source.upsert("docs", points)
    assert run_copy(source, target) == Copying(read=20, written=8, verified=20)


def test_an_unfinished_retune_is_copied_as_it_is(places: Places) -> None:
    source, target = places.open("edge"), places.open("memory")
    fill(source, make_points(3))
    retuning = {**FINGERPRINT, "retuning": {"recipe.alpha": 0.5}}
    source.write_fingerprint("docs", retuning)
    run_copy(source, target)
    assert target.read_fingerprint("docs") == retuning


def test_a_target_of_another_recipe_is_refused_with_the_field_and_a_cure(places: Places) -> None:
    source, target = places.open("memory"), places.open("edge")
    fill(source, make_points(3))
    target.create_collection("docs", DIM, {**FINGERPRINT, "recipe.alpha": 0.5})
    with pytest.raises(MismatchError) as caught:
        run_copy(source, target)
    assert "recipe.alpha: stored 0.5, now 0.01" in str(caught.value)
    assert "Cure: choose another name (--as), or delete the target first (xqg delete)" in str(caught.value)
    assert target.count("docs") == 0


def test_passages_that_only_the_target_holds_are_named_before_anything_is_written(places: Places) -> None:
    source, target, points = places.open("memory"), places.open("edge"), make_points(20)
    fill(source, points[:19])
    fill(target, points[19:])
    with pytest.raises(MismatchError, match=r"such as 'passage 19'\. Nothing was changed\. Cure: choose another name"):
        run_copy(source, target)
    assert target.count("docs") == 1


def test_a_collection_is_not_copied_to_itself_nor_where_there_is_none(places: Places) -> None:
    store = places.open("memory")
    fill(store, [])
    with pytest.raises(InputError, match="copied to itself"):
        run_copy(store, store)
    with pytest.raises(InputError, match=r"no collection 'other' in :memory: \(there: docs\)\."):
        run_copy(store, store, collection="other", name="copy")
    assert store.collections() == ["docs"]


class Meddling:
    """A store where something happens before the n-th call of a method."""

    def __init__(self, store: Store, method: str, number: int, meddle: Callable[[], object]) -> None:
        self._store, self._method, self._number, self._meddle = store, method, number, meddle

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name == self._method:
            self._number -= 1
            if self._number == 0:
                self._meddle()
        return getattr(self._store, name)


def test_a_source_that_is_changed_meanwhile_is_an_error(places: Places) -> None:
    store, target, points = places.open("memory"), places.open("edge"), make_points(20)
    fill(store, points[:19])
    for meddle in (
        lambda: store.upsert("docs", [replace(points[0], content_hash="of another program")]),
        lambda: store.delete("docs", ["passage 1"]),
        lambda: store.write_fingerprint("docs", {**FINGERPRINT, "recipe.alpha": 0.5}),
    ):
        source: Any = Meddling(store, "scroll", 2, meddle)
        if store.count("docs") == 18:
            source = Meddling(store, "read_fingerprint", 2, meddle)
            target = places.open("edge", "another")
        with pytest.raises(
            StoreError, match=r"was changed during the copy\. Cure: stop all writes to it, and run the copy again"
        ):
            run_copy(source, target)


@pytest.mark.parametrize(
    ("meddle", "named"),
    [
        (
            lambda store, points: store.delete("docs", ["passage 7"]),
            r"19 points for 20; passages that differ: 1 \('passage 7'\)\.",
        ),
        (
            lambda store, points: store.upsert("docs", [points[20]]),
            r"21 points for 20; passages that differ: 1 \('passage 20'\)\.",
        ),
        (
            lambda store, points: store.upsert("docs", [replace(p, recipe="x") for p in points[:20]]),
            r"20 points for 20; passages that differ: 20 \(('passage \d+', ){4}'passage \d+' …\)\.",
        ),
        (
            lambda store, points: store.upsert("docs", [replace(points[0], vectors=points[1].vectors)]),
            r"20 points for 20; passages that differ: 1 \('passage 0'\)\.",
        ),
    ],
    ids=["lost", "added", "changed", "vectors"],
)
def test_what_is_read_back_otherwise_is_an_error_that_names_it(
    meddle: Callable[[Store, list[AugmentedPassage]], None], named: str, places: Places
) -> None:
    source, store, points = places.open("memory"), places.open("edge"), make_points(21)
    fill(source, points[:20])
    target: Any = Meddling(store, "scroll", 1, lambda: meddle(store, points))
    with pytest.raises(StoreError, match=rf"is not equal to 'docs'.*{named}.*Cure: stop all writes to both, and run"):
        run_copy(source, target)


def test_a_count_that_is_not_that_of_the_points_is_an_error(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = places.open("memory"), places.open("edge")
    fill(source, make_points(20))
    monkeypatch.setattr(target, "count", lambda _: 21)
    with pytest.raises(StoreError, match=r"21 points for 20; passages that differ: 0 \(none\)\. Cure: "):
        run_copy(source, target)


def test_numbers_that_qdrant_rounds_are_told_and_written_once(places: Places) -> None:
    # Of sixteen digits; Qdrant Edge 0.9 gives the float64 below it back.
    number = 0.9870497179280261
    source, target, [point] = places.open("memory"), places.open("edge"), make_points(1)
    fill(source, [replace(point, passage=replace(point.passage, metadata={"score": number}))])
    done = run_copy(source, target)
    [copied] = target.scroll("docs")
    assert copied.passage.metadata["score"] == math.nextafter(number, 0)
    assert done == Copying(read=1, written=1, verified=1, rounded=1)
    assert run_copy(source, target).written == 0


def test_asked_to_stop_it_ends_after_a_batch_and_goes_on_from_there(places: Places) -> None:
    source, target = places.open("memory"), places.open("edge")
    fill(source, make_points(20))
    stop = threading.Event()
    stop.set()
    assert list(copy_collection(source, "docs", target, "docs", stop)) == [Copying(read=8, written=8)]
    assert target.count("docs") == 8
    assert run_copy(source, target) == Copying(read=20, written=12, verified=20)


KILLED = """
import os, signal, threading
from xqg_qdrant.lifecycle import copying
from xqg_qdrant.stores import open_store
copying.BATCH = 8
source, target = open_store("{source}"), open_store("{target}")
method, when = "{moment}".split("-")
calls = {calls}
inner = getattr(target, method)
def outer(*arguments):
    global calls
    calls -= 1
    if calls == 0 and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    answer = inner(*arguments)
    if calls == 0 and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
setattr(target, method, outer)
list(copying.copy_collection(source, "docs", target, "docs", threading.Event()))
"""


@pytest.mark.parametrize("kind", ["edge", "local"])
@pytest.mark.parametrize(
    ("moment", "calls"),
    [
        ("create_collection-after", 1),
        ("upsert-before", 2),
        ("upsert-after", 2),
        ("upsert-after", 3),
        ("count-before", 1),
    ],
)
def test_a_copy_that_is_killed_and_run_again_is_equal(
    kind: str, moment: str, calls: int, tmp_path: Path, forks: Forks
) -> None:
    source, target = f"edge:{tmp_path / 'source'}", f"{kind}:{tmp_path / 'target'}"
    store = open_store(source)
    fill(store, make_points(20))
    store.close()
    killed = KILLED.format(source=source, target=target, moment=moment, calls=calls)
    code, said = forks.run(tmp_path, setup=killed)
    assert code == -signal.SIGKILL, said
    result = xqg("copy", "--collection", "docs", "--from", source, "--to", target)
    assert result.exit_code == 0, result.output
    written = {"create_collection-after": 20, "upsert-before": 12, "upsert-after": 20 - 8 * calls, "count-before": 0}
    assert f"{max(0, written[moment])} points written" in result.stderr
    assert "20 verified" in result.stderr
    stores = [open_store(source), open_store(target)]
    left, right = (read_bits(store, "docs") for store in stores)
    for store in stores:
        store.close()
    assert left == right


# --- the command


def test_the_command_copies_from_the_store_of_the_environment_and_says_what_it_did(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "here"))
    fill(store, make_points(20))
    store.close()
    env = {"XQG_STORE": str(tmp_path / "here")}
    result = xqg("copy", "--collection", "docs", "--to", f"local:{tmp_path / 'there'}", "--as", "copy", env=env)
    assert result.exit_code == 0, result.output
    assert "20 points written, 0 already there, 20 verified, in " in result.stderr
    copied = open_store(f"local:{tmp_path / 'there'}")
    assert copied.collections() == ["copy"]
    copied.close()


def test_ctrl_c_finishes_the_batch_in_work_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "here"))
    fill(store, make_points(20))
    store.close()
    upsert = EdgeStore.upsert

    def interrupted(self: EdgeStore, collection: str, points: list[AugmentedPassage]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        upsert(self, collection, points)

    monkeypatch.setattr(EdgeStore, "upsert", interrupted)
    result = xqg("copy", "--collection", "docs", "--from", tmp_path / "here", "--to", tmp_path / "there")
    assert result.exit_code == 130
    assert "8 points written, 0 already there, 0 verified" in result.stderr
    assert "Interrupted; run the same command again to resume." in result.stderr


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
        (["--from", "here", "--to", "edge:./here"], 2, "'docs' in edge:here would be copied to itself"),
        (["--from", "nowhere", "--to", "there"], 2, "there is no collection 'docs' in edge:nowhere (there: none)"),
        (["--from", "here"], 2, "Missing option '--to'"),
        (["--from", "here", "--to", "ftp://host"], 2, "ftp://host"),
    ],
)
def test_what_cannot_be_copied_is_named_with_its_exit_code(
    options: list[str], exit_code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("here")
    fill(store, [])
    store.close()
    result = xqg("copy", "--collection", "docs", *options)
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert sorted(os.listdir(tmp_path)) == ["here"]


def test_a_server_never_gets_the_key_of_another_one(
    monkeypatch: pytest.MonkeyPatch, places: Places, tmp_path: Path
) -> None:
    given: list[tuple[str, str | None]] = []
    opened = open_store

    def note(location: str, api_key: str | None = None, *_: object, **_more: object) -> Store:
        given.append((location, api_key))
        return opened(location)

    monkeypatch.setattr("xqg_qdrant.stores.open_store", note)
    one, other = places.locate("rest", ""), places.locate("rest", "")
    store = opened(one)
    fill(store, make_points(1))
    store.close()
    env = {"QDRANT_API_KEY": "first", "QDRANT_TARGET_API_KEY": "second"}
    assert xqg("copy", "--collection", "docs", "--from", one, "--to", other, env=env).exit_code == 0
    assert xqg("copy", "--collection", "docs", "--from", one, "--to", tmp_path / "edge", env=env).exit_code == 0
    assert xqg("copy", "--collection", "docs", "--from", tmp_path / "edge", "--to", other, env=env).exit_code == 0
    assert [key for location, key in given if location == one] == ["first", "first"]
    assert [key for location, key in given if location == other] == ["second", "first"]


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("data", "edge:./data", True),
        ("data", "local:data", False),
        ("http://HOST:6333/", "http://host", True),
        ("http://host:6333", "http://host:6334", False),
        ("http://host", "https://host", False),
        ("local:a/../data", "local:data", True),
    ],
)
def test_two_ways_to_write_one_place_are_the_same(left: str, right: str, same: bool) -> None:
    assert is_same_place(left, right) is same


def test_the_point_ids_of_a_copy_are_those_of_the_source(places: Places) -> None:
    source, target = places.open("memory"), places.open("local")
    fill(source, make_points(3))
    run_copy(source, target)
    records, _ = target._client.scroll("docs")  # type: ignore[attr-defined]
    assert {record.id for record in records} == {make_point_id(f"passage {index}") for index in range(3)}


def test_a_server_indexes_a_copy_at_its_end(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = places.open("edge"), places.open("rest")
    fill(source, make_points(20))
    [server] = places._servers
    thresholds = []
    upsert = target.upsert

    def watch(collection: str, points: Sequence[AugmentedPassage]) -> None:
        thresholds.append(server.settings["docs"].indexing_threshold)
        upsert(collection, points)

    monkeypatch.setattr(target, "upsert", watch)
    run_copy(source, target)
    assert set(thresholds) == {0}
    assert server.settings["docs"].indexing_threshold == 10_000
