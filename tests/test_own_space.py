"""What `xqg augment --vector` promises: better vectors where an application searches already, and every bit back."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from click.testing import CliRunner, Result
from qdrant_client import QdrantClient, models
from rest_qdrant import RestQdrant, answer, hang
from short_passages import short_passages
from stored_points import assert_same_points, read_points
from writing import write_rows

from xqg_qdrant.augmentation import processes
from xqg_qdrant.augmentation.calibration import pack_mean
from xqg_qdrant.augmentation.fusion import Fusion, fuse
from xqg_qdrant.augmentation.pipeline import Progress, ingest
from xqg_qdrant.augmentation.recipe import Recipe
from xqg_qdrant.cli import main
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import FloatArray, GeneratedQuery, PayloadLayout, QueriedPassage, Space
from xqg_qdrant.stores import open_own_space_store, open_store
from xqg_qdrant.stores.server import own_space as own_space_module
from xqg_qdrant.stores.server.answers import Record
from xqg_qdrant.stores.server.client import SCROLL_BATCH
from xqg_qdrant.stores.server.own_space import OwnSpaceStore

PASSAGES = short_passages(8)
COSINE, DOT = models.Distance.COSINE, models.Distance.DOT
LAYOUT = PayloadLayout("text", "title", "id")
FIELDS = ("--text-field", "text", "--title-field", "title", "--id-field", "id")
MEAN = Recipe(alpha=0.4, fusion="mean", renormalise=True)


@pytest.fixture(scope="module")
def plain(demo_encoder: Encoder) -> FloatArray:
    return demo_encoder.encode_passages([f"{passage.title} {passage.text}" for passage in PASSAGES])


@pytest.fixture(autouse=True)
def _one_encoder(demo_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the encoder once for all commands."""
    for module in ("ingest", "collections", "retrieval"):
        monkeypatch.setattr(f"xqg_qdrant.cli.{module}.load_encoder", lambda *_: demo_encoder)


@pytest.fixture
def rest() -> Iterator[RestQdrant]:
    server = RestQdrant()
    server.version = "1.18.0"
    yield server
    server.close()


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "queries.jsonl"
    rows = ({"id": passage.passage_id, "language": "fi", "text": f"Mikä on {passage.title}?"} for passage in PASSAGES)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fill(client: QdrantClient, vectors: FloatArray, name: str = "", distance: models.Distance = COSINE) -> None:
    """Make another program's collection; the last point has no text."""
    params = models.VectorParams(size=vectors.shape[1], distance=distance)
    client.create_collection("theirs", {name: params} if name else params, metadata={"owner": "another program"})
    payloads = [{"id": p.passage_id, "title": p.title, "text": p.text, "tags": [1]} for p in PASSAGES]
    payloads[-1] = {"note": "a picture"}
    points = [
        models.PointStruct(id=number, vector={name: vector.tolist()} if name else vector.tolist(), payload=payload)
        for number, (vector, payload) in enumerate(zip(vectors, payloads, strict=True))
    ]
    client.upsert("theirs", points)


def read_all(client: QdrantClient) -> dict[Any, tuple[dict[str, Any] | None, dict[str, Any]]]:
    records = client.scroll("theirs", limit=1000, with_vectors=True)[0]
    return {r.id: (r.payload, r.vector if isinstance(r.vector, dict) else {"": r.vector}) for r in records}


def xqg(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def augment(rest: RestQdrant, *options: object) -> Result:
    return xqg("augment", "--collection", "theirs", "--store", rest.url, *options)


@pytest.mark.parametrize("name", ["", "dense"])
@pytest.mark.parametrize("replace", [(), ("--replace",)])
def test_the_stored_vector_is_the_plain_one_and_undo_gives_back_every_bit(
    name: str, replace: tuple[str, ...], rest: RestQdrant, plain: FloatArray, queries: Path, tmp_path: Path,
    demo_encoder: Encoder,
) -> None:  # fmt: skip
    fill(rest.client, plain, name)
    before = read_all(rest.client)
    options = ("--vector", name, *replace, "--queries", queries, "--no-calibrate", "--dead-letters", tmp_path / "bad")
    result = augment(rest, *FIELDS, *options)
    assert result.exit_code == 3, result.output
    assert "the prefix 'passage: ' and '{title} {text}'" in result.stderr
    assert "7 passages stored, 0 unchanged, 1 row rejected" in result.stderr
    after = read_all(rest.client)
    assert after.pop(7) == before[7]
    augmented, kept = (name, "passage") if replace else ("xqg", name)
    asked = demo_encoder.encode_queries([f"Mikä on {passage.title}?" for passage in PASSAGES])
    for number, (payload, vectors) in after.items():
        assert vectors.keys() == {augmented, kept}
        assert vectors[kept] == before[number][1][name]
        expected = fuse(np.array(vectors[kept], np.float32), asked[number : number + 1], Fusion(0.4, "mean", True))
        np.testing.assert_allclose(vectors[augmented], expected, atol=1e-7)
        assert {key: value for key, value in (payload or {}).items() if key != "xqg"} == before[number][0]
    again = augment(rest, *FIELDS, *options)
    assert "0 passages stored, 7 unchanged, 1 row rejected" in again.stderr
    undone = augment(rest, "--undo", "--yes")
    assert undone.exit_code == 0, undone.output
    assert read_all(rest.client) == before
    assert rest.client.get_collection("theirs").config.metadata == {"owner": "another program"}
    nothing = augment(rest, "--undo", "--yes")
    assert (nothing.exit_code, "was not augmented" in nothing.stderr) == (2, True)


def test_an_application_that_searches_their_vector_finds_the_augmented_one(
    rest: RestQdrant, plain: FloatArray, queries: Path, tmp_path: Path, demo_encoder: Encoder
) -> None:
    fill(rest.client, plain, "dense")
    [asked] = demo_encoder.encode_queries([f"Mikä on {PASSAGES[5].title}?"]).tolist()

    def search() -> float:  # the application's own code, before and after
        [best] = rest.client.query_points("theirs", asked, using="dense", limit=1).points
        assert best.id == 5
        return best.score

    before = search()
    options = ("--vector", "dense", "--replace", "--queries", queries, "--dead-letters", tmp_path / "bad")
    augment(rest, *FIELDS, *options)
    assert search() > before + 0.03
    found = xqg("query", "--collection", "theirs", "--store", rest.url, "--json", f"Mikä on {PASSAGES[5].title}?")
    assert found.exit_code == 0, found.output
    [hit, *_] = json.loads(found.stdout)["hits"]
    assert hit["passage_id"] == PASSAGES[5].passage_id
    augment(rest, "--undo", "--yes")
    assert search() == before


@pytest.mark.parametrize("distance", [COSINE, DOT])
def test_no_queries_only_calibrates_what_is_stored(
    distance: models.Distance, rest: RestQdrant, plain: FloatArray, tmp_path: Path, demo_encoder: Encoder
) -> None:
    fill(rest.client, plain, "dense", distance)
    options = ("--vector", "dense", "--replace", "--no-queries", "--dead-letters", tmp_path / "bad")
    result = augment(rest, *FIELDS, *options)
    assert result.exit_code == 3, result.output
    assert "no queries, " in result.stderr
    metadata = rest.client.get_collection("theirs").config.metadata or {}
    mean = np.frombuffer(__import__("base64").b64decode(metadata["xqg_fingerprint"]["recipe.bank_mean"]), "<f4")
    for number, (_, vectors) in read_all(rest.client).items():
        if number < 7:
            calibrated = np.float64(vectors["passage"]) + 0.5 * mean
            np.testing.assert_allclose(vectors["dense"], calibrated / np.linalg.norm(calibrated), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--vector", "dens"), "no dense vector 'dens'; it has: 'dense'.\nCure: name one of these, such as --vector"),
        (("--vector", "xqg"), "no dense vector 'xqg'"),
        (("--vector", "dense", "--text-field", "title"), "did not make vector 'dense': at best cosine 0.8"),
        (("--vector", "dense", "--text-field", "nothing"), "no point has both a text and the vector 'dense'"),
    ],
)
def test_what_cannot_be_augmented_is_refused_before_anything_is_written(
    options: Sequence[str], message: str, rest: RestQdrant, plain: FloatArray
) -> None:
    fill(rest.client, plain, "dense")
    before = read_all(rest.client)
    result = augment(rest, *FIELDS, *options, "--no-queries", "--replace")
    assert result.exit_code in (2, 4), result.output
    assert message in result.stderr
    assert read_all(rest.client) == before
    assert rest.client.get_collection("theirs").config.metadata == {"owner": "another program"}


def test_the_prefix_and_the_template_of_other_programs_are_found(
    rest: RestQdrant, tmp_path: Path, demo_encoder: Encoder
) -> None:
    fill(rest.client, demo_encoder.encode_passages([passage.text for passage in PASSAGES], "query: "))
    result = augment(rest, *FIELDS, "--vector", "", "--no-queries", "--dead-letters", tmp_path / "bad")
    assert result.exit_code == 3, result.output
    assert "cosine 1.0000 (median), 1.0000 (lowest) over 7 passages, with the prefix 'query: ' and '{text}'" in (
        result.stderr
    )


def test_vectors_of_another_length_are_refused(rest: RestQdrant) -> None:
    fill(rest.client, np.ones((8, 8), np.float32))
    result = augment(rest, *FIELDS, "--vector", "", "--no-queries")
    assert result.exit_code == 4
    assert "has 8 numbers, and the encoder makes 384. Nothing was changed." in result.stderr


# --- interruptions and other writers


class CutError(Exception):
    """The server ends within a request."""


def open_memory(vectors: FloatArray) -> OwnSpaceStore:
    store = open_own_space_store(":memory:", None, LAYOUT, Space("dense", replaced=True))
    # By dot product, as the emulation changes bits where it compares by cosine.
    fill(store._client, vectors, "dense", DOT)
    return store


def run(store: OwnSpaceStore, encoder: Encoder, recipe: Recipe = MEAN) -> None:
    query = GeneratedQuery("", "Where does the Danube end?")
    rows = (
        row._replace(queries=(query,)) if isinstance(row, QueriedPassage) else row
        for row in store.read_passages("theirs")
    )
    list(ingest(rows, store, "theirs", encoder, None, recipe))


def undo(store: OwnSpaceStore) -> None:
    store.remove_added("theirs")


def cut(store: OwnSpaceStore, applied: int) -> None:
    """Have the server apply so many changes of the next request, then end."""
    whole = store._client.batch_update_points

    def batch_update_points(collection_name: str, update_operations: Sequence[Any], **settings: Any) -> Any:  # noqa: ANN401
        store._client.batch_update_points = whole  # type: ignore[method-assign]
        whole(collection_name, update_operations[:applied], **settings)
        raise CutError

    store._client.batch_update_points = batch_update_points  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize("applied", [1, 2, 8, 9, 10, 15])
@pytest.mark.parametrize("edited", [False, True])
def test_a_server_that_ends_within_a_write_loses_no_plain_vector(
    applied: int, edited: bool, plain: FloatArray, demo_encoder: Encoder
) -> None:
    whole, store, undone = (open_memory(plain) for _ in range(3))
    before = read_all(undone._client)
    for each in (whole, store, undone):
        if edited:  # the vectors that are replaced now are ours
            run(each, demo_encoder)
            each._client.set_payload("theirs", {"tags": [2], "text": "Another text."}, points=list(range(7)))
        if each is not whole:
            cut(each, applied)
            with pytest.raises(Exception, match="CutError"):
                run(each, demo_encoder)
    run(whole, demo_encoder)
    run(store, demo_encoder)
    assert read_all(store._client) == read_all(whole._client)
    undo(undone)
    after = read_all(undone._client)
    assert [vectors for _, vectors in after.values()] == [vectors for _, vectors in before.values()]
    assert all("xqg" not in (payload or {}) for payload, _ in after.values())


def test_a_vector_that_hardly_changes_is_written_by_the_next_run_too(plain: FloatArray, demo_encoder: Encoder) -> None:
    whole, store = open_memory(plain), open_memory(plain)
    recipe = MEAN._replace(alpha=1e-4)
    cut(store, 8)  # all before the vectors themselves
    with pytest.raises(Exception, match="CutError"):
        run(store, demo_encoder, recipe)
    for each in (whole, store):
        run(each, demo_encoder, recipe)
    after = read_all(store._client)
    assert after == read_all(whole._client)
    assert after[0][1]["dense"] != after[0][1]["passage"]


def test_a_vector_that_its_program_writes_anew_is_the_plain_one_from_then_on(
    plain: FloatArray, demo_encoder: Encoder
) -> None:
    store = open_memory(plain)
    run(store, demo_encoder)
    first = read_all(store._client)
    fresh = demo_encoder.encode_passages(["The Danube ends in the Black Sea."])[0]
    store._client.update_vectors("theirs", [models.PointVectors(id=3, vector={"dense": fresh.tolist()})])
    # The same vector as before, and a point written whole.
    store._client.update_vectors("theirs", [models.PointVectors(id=4, vector={"dense": first[4][1]["passage"]})])
    whole = models.PointStruct(id=5, vector={"dense": first[5][1]["passage"]}, payload=dict(first[5][0] or {}))
    store._client.upsert("theirs", [whole])
    anew = read_all(store._client)[3][1]["dense"]
    run(store, demo_encoder)
    second = read_all(store._client)
    assert second[3][1]["passage"] == anew
    assert second[3][1]["dense"] not in (anew, first[3][1]["dense"])
    assert {number: second[number] for number in second if number != 3} == {
        number: first[number] for number in first if number != 3
    }
    store._client.update_vectors("theirs", [models.PointVectors(id=6, vector={"dense": fresh.tolist()})])
    undo(store)
    last = read_all(store._client)
    assert last[3][1]["dense"] == last[6][1]["dense"] == anew
    assert last[4][1]["dense"] == first[4][1]["passage"]


def test_a_point_that_changes_between_reading_and_writing_is_left_to_the_next_run(
    plain: FloatArray, demo_encoder: Encoder
) -> None:
    store = open_memory(plain)
    rows = list(store.read_passages("theirs"))
    fresh = demo_encoder.encode_passages(["The Danube ends in the Black Sea."])[0].tolist()
    store._client.update_vectors("theirs", [models.PointVectors(id=3, vector={"dense": fresh})])
    store._client.delete("theirs", models.PointIdsList(points=[2]))
    anew = read_all(store._client)[3]
    list(ingest(rows, store, "theirs", demo_encoder, None, MEAN))
    after = read_all(store._client)
    assert after[3] == anew
    assert 2 not in after
    run(store, demo_encoder)
    assert read_all(store._client)[3][1]["passage"] == anew[1]["dense"]


# --- pages of points, which wait for no model


CALIBRATED = Recipe(fusion="mean", renormalise=True, gamma=0.5, bank_mean=pack_mean(np.full(384, 0.05, np.float32)))
PAGES = 2 * SCROLL_BATCH + 5


@pytest.fixture(scope="module")
def many() -> FloatArray:
    """Return vectors of lengths between 1 and 3."""
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((PAGES, 384))
    lengths = rng.uniform(1, 3, (PAGES, 1))
    scaled: FloatArray = (lengths * vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def fill_many(client: QdrantClient, vectors: FloatArray, distance: models.Distance) -> None:
    client.create_collection("theirs", {"dense": models.VectorParams(size=384, distance=distance)})
    points = [
        models.PointStruct(
            id=number, vector={"dense": vector.tolist()}, payload={"id": number, "text": f"Text {number}."}
        )
        for number, vector in enumerate(vectors)
    ]
    client.upsert("theirs", points)


def open_rest(rest: RestQdrant, replaced: bool = True) -> OwnSpaceStore:
    return open_own_space_store(rest.url, None, LAYOUT, Space("dense", replaced))


def calibrate_all(store: OwnSpaceStore, encoder: Encoder) -> int:
    """Calibrate the collection; return how many points were written."""
    rows = store.read_passages("theirs")
    return sum(progress.stored for progress in ingest(rows, store, "theirs", encoder, None, CALIBRATED))


def count_requests(rest: RestQdrant) -> Counter[str]:
    """Return the requests on points since the last call, by path."""
    paths = Counter(path.partition("?")[0] for _, path, _ in rest.requests)
    rest.requests.clear()
    return Counter({path.rpartition("theirs/")[2]: paths[path] for path in paths if "/points" in path})


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("distance", [COSINE, DOT])
def test_a_page_of_points_costs_one_request_to_read_and_one_to_write(
    distance: models.Distance, replaced: bool, rest: RestQdrant, many: FloatArray, demo_encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(own_space_module, "RECENT_SECONDS", 300.0)  # on a busy machine
    fill_many(rest.client, many, distance)
    before = read_all(rest.client)
    with closing(open_rest(rest, replaced)) as store:
        assert calibrate_all(store, demo_encoder) == PAGES
        assert count_requests(rest) == {"points/scroll": 3, "points/batch": 3}
        after = read_all(rest.client)
        augmented, kept = ("dense", "passage") if replaced else ("xqg", "dense")
        stored = np.array([after[number][1][augmented] for number in range(PAGES)], np.float64)
        plain = np.array([before[number][1]["dense"] for number in range(PAGES)], np.float64)
        lengths = np.linalg.norm(plain, axis=1, keepdims=True)
        expected = plain / lengths + 0.5 * np.float64(np.float32(0.05))
        expected *= lengths / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(stored, expected, rtol=1e-5, atol=1e-6)
        assert [after[number][1][kept] for number in range(PAGES)] == [
            before[number][1]["dense"] for number in range(PAGES)
        ]
        assert calibrate_all(store, demo_encoder) == 0
        assert count_requests(rest)["points/batch"] == 0
        store.remove_added("theirs")
    assert read_all(rest.client) == before


def test_points_that_are_deleted_while_their_page_waits_hold_up_no_other(
    rest: RestQdrant, many: FloatArray, demo_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_space_module, "RECENT_SECONDS", 300.0)  # on a busy machine
    fill_many(rest.client, many[:20], DOT)
    with closing(open_rest(rest)) as store:
        rows = list(store.read_passages("theirs"))
        rest.client.delete("theirs", models.PointIdsList(points=[3, 4]))
        done = ingest(rows, store, "theirs", demo_encoder, None, CALIBRATED)
        assert sum(progress.stored for progress in done) == 20
        after = read_all(rest.client)
    assert after.keys() == set(range(20)) - {3, 4}
    assert all(vectors.keys() == {"dense", "passage"} for _, vectors in after.values())


def test_points_are_read_again_if_their_page_has_waited(
    rest: RestQdrant, many: FloatArray, demo_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_space_module, "RECENT_SECONDS", 0.0)
    fill_many(rest.client, many[:20], DOT)
    with closing(open_rest(rest)) as store:
        rows = list(store.read_passages("theirs"))
        rest.client.update_vectors("theirs", [models.PointVectors(id=3, vector={"dense": many[30].tolist()})])
        list(ingest(rows, store, "theirs", demo_encoder, None, CALIBRATED))
        assert count_requests(rest)["points"] == 1
        assert read_all(rest.client)[3][1] == {"dense": many[30].tolist()}
        assert calibrate_all(store, demo_encoder) == 1
        assert read_all(rest.client)[3][1]["passage"] == many[30].tolist()


@pytest.mark.parametrize("options", [(), ("--vector", "dense"), ("--vector", "dense", "--replace")])
def test_a_reencoding_takes_over_given_queries_whatever_space_they_were_fused_in(
    options: tuple[str, ...], rest: RestQdrant, plain: FloatArray, queries: Path, tmp_path: Path
) -> None:
    fill(rest.client, plain, "dense")
    bad = ("--dead-letters", tmp_path / "bad")
    assert augment(rest, *FIELDS, *options, "--queries", queries, *bad).exit_code == 3
    where = ("--store", rest.url, *bad)
    done = xqg("reencode", "--collection", "theirs", "--to", "new", *FIELDS, *where, "--alias", "live")
    assert done.exit_code == 3, done.output
    assert "Alias 'live' now names 'new' (7 passages)." in done.stderr
    rows = [{"id": p.passage_id, "title": p.title, "text": p.text, "metadata": {"tags": [1]}} for p in PASSAGES[:-1]]
    write_rows(tmp_path / "corpus.jsonl", rows)
    fresh = xqg("ingest", tmp_path / "corpus.jsonl", "--queries", queries, "--collection", "fresh", *where)
    assert fresh.exit_code == 0, fresh.output
    with open_store(rest.url) as store:
        points = read_points(store, "new")
        assert all(len(point.generated_queries) == 1 for point in points.values())
        assert_same_points(points, read_points(store, "fresh"))


# --- several processes


@pytest.fixture
def _in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have several processes calibrate even a small collection, ten points at a time."""
    monkeypatch.setattr(processes, "LEAST_POINTS", 1)
    monkeypatch.setattr(processes, "CHUNK_SIZE", 10)


def calibrate_command(rest: RestQdrant, letters: Path, *options: object) -> Result:
    return augment(rest, *FIELDS, "--vector", "dense", "--no-queries", "--dead-letters", letters, *options)


def fill_with_gaps(rest: RestQdrant, demo_encoder: Encoder) -> None:
    """Make a collection of 53 points, of which every seventh has no text, with numbers and UUIDs as ids."""
    passages = short_passages(53)
    vectors = demo_encoder.encode_passages([f"{passage.title} {passage.text}" for passage in passages])
    rest.client.create_collection("theirs", {"dense": models.VectorParams(size=384, distance=DOT)})
    rest.client.upsert("theirs", [
        models.PointStruct(
            id=number if number % 2 else str(UUID(int=number)), vector={"dense": vector.tolist()},
            payload={"note": number} if number % 7 == 3 else {
                "id": passage.passage_id, "title": passage.title, "text": passage.text
            },
        )
        for number, (passage, vector) in enumerate(zip(passages, vectors, strict=True))
    ])  # fmt: skip


@pytest.mark.usefixtures("_in_small_chunks")
def test_several_processes_make_the_points_of_one(rest: RestQdrant, tmp_path: Path, demo_encoder: Encoder) -> None:
    fill_with_gaps(rest, demo_encoder)
    before = read_all(rest.client)
    found, letters, said = [], [tmp_path / "one.jsonl", tmp_path / "two.jsonl"], "45 passages stored, 0 unchanged"
    for threads, path in zip((1, 2), letters, strict=True):
        result = calibrate_command(rest, path, "--replace", "--threads", threads)
        assert result.exit_code == 3, result.output
        assert f"{said}, 8 rows rejected" in result.stderr
        found.append(read_all(rest.client))
        if threads == 1:
            assert augment(rest, "--undo", "--yes").exit_code == 0
            assert read_all(rest.client) == before
    assert found[0] == found[1] != before
    assert letters[0].read_bytes() == letters[1].read_bytes()
    again = calibrate_command(rest, letters[1], "--replace", "--threads", 2)
    assert "0 passages stored, 45 unchanged, 8 rows rejected" in again.stderr


@pytest.mark.parametrize(
    ("points", "threads", "strict", "several"),
    [
        (19_999, 4, {}, False),
        (20_000, 4, {}, True),
        (20_000, 0, {}, True),
        (20_000, 1, {}, False),
        (20_000, 4, {"max_query_limit": 100}, True),
        (20_000, 4, {"read_rate_limit": 100_000}, False),
        (20_000, 4, {"write_rate_limit": 100_000}, False),
    ],
)
def test_several_processes_take_a_large_collection_of_a_server_that_counts_no_requests(
    points: int, threads: int, strict: dict[str, Any], several: bool, rest: RestQdrant, plain: FloatArray
) -> None:
    fill(rest.client, plain, "dense")
    rest.settings["theirs"].strict_mode = models.StrictModeConfigOutput(enabled=True, **strict)
    with closing(open_rest(rest)) as store:
        assert (processes.count_processes(store, "theirs", points, threads) > 1) == several
    memory = open_memory(plain)
    assert processes.count_processes(memory, "theirs", points, threads) == 1


def test_a_point_that_changes_while_the_rest_of_its_chunk_is_read_is_left_alone(
    rest: RestQdrant, many: FloatArray, demo_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_space_module, "RECENT_SECONDS", 0.4)
    fill_many(rest.client, many[:20], DOT)
    with closing(open_rest(rest)) as store:
        assert calibrate_all(store, demo_encoder) == 20
        retrieve = OwnSpaceStore._retrieve

        def retrieve_slowly(store: OwnSpaceStore, *arguments: Any) -> list[Record]:
            time.sleep(0.3)
            return retrieve(store, *arguments)

        monkeypatch.setattr(own_space_module, "SCROLL_BATCH", 10)
        monkeypatch.setattr(OwnSpaceStore, "_retrieve", retrieve_slowly)
        for number in (0, 15):  # read before the pause, and after it
            rest.client.set_payload("theirs", {"text": "Another text."}, points=[number])
        rows = store.read_rows("theirs", range(20))
        rest.client.update_vectors("theirs", [models.PointVectors(id=0, vector={"dense": many[30].tolist()})])
        list(ingest(rows, store, "theirs", demo_encoder, None, CALIBRATED))
    assert read_all(rest.client)[0][1]["dense"] == many[30].tolist()


def act_before_chunks(
    monkeypatch: pytest.MonkeyPatch, actions: Mapping[int, Callable[[processes.Child], object]]
) -> None:
    """Do something before chunks, by their number, are given to a process."""
    whole, calls = processes.Child.calibrate, itertools.count()

    def calibrate(child: processes.Child, ids: Sequence[int | str]) -> Progress:
        act = actions.get(next(calls))
        if act is not None:
            act(child)
        return whole(child, ids)

    monkeypatch.setattr(processes.Child, "calibrate", calibrate)


@pytest.mark.usefixtures("_in_small_chunks")
def test_a_process_that_dies_ends_the_command_and_the_next_run_does_the_rest(
    rest: RestQdrant, tmp_path: Path, demo_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_with_gaps(rest, demo_encoder)
    act_before_chunks(monkeypatch, {2: lambda child: child._process.kill()})
    result = calibrate_command(rest, tmp_path / "bad", "--replace", "--threads", 2)
    assert result.exit_code == 1, result.output
    assert "a process that calibrates points ended with exit code -9." in result.stderr
    assert "use fewer --threads if memory ran out, and run the same command again to resume" in result.stderr
    stored = sum(vectors.keys() > {"dense"} for _, vectors in read_all(rest.client).values())
    assert 0 < stored < 45
    monkeypatch.undo()
    rest_of_it = calibrate_command(rest, tmp_path / "bad", "--replace")
    assert f"{45 - stored} passages stored, {stored} unchanged, 8 rows rejected" in rest_of_it.stderr


@pytest.mark.usefixtures("_in_small_chunks")
def test_an_error_and_the_warnings_of_any_process_are_those_of_the_command(
    rest: RestQdrant, tmp_path: Path, demo_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_with_gaps(rest, demo_encoder)
    other = {"xqg_fingerprint": {"format": 0}}
    act_before_chunks(
        monkeypatch,
        {
            1: lambda _: rest.script.append(answer(503, "starting")),
            3: lambda _: rest.client.update_collection("theirs", metadata=other),
        },
    )
    result = calibrate_command(rest, tmp_path / "bad", "--threads", 2)
    assert result.exit_code == 4, result.output
    assert "starting. Trying again for up to 300 s." in result.stderr
    assert "collection 'theirs'" in result.stderr
    assert "Traceback" not in result.stderr


def start_augment(rest: RestQdrant, letters: Path, program: str) -> subprocess.Popen[str]:
    """Start the command in a process group of its own, with `Child.calibrate` replaced."""
    setup = f"""
import os, signal, time
from xqg_qdrant.augmentation import processes
from xqg_qdrant.cli import main

processes.LEAST_POINTS, processes.CHUNK_SIZE, whole = 1, 10, processes.Child.calibrate
{program}
processes.Child.calibrate = replaced
main()
"""
    where = ("--collection", "theirs", "--store", rest.url, "--dead-letters", str(letters))
    options = ("--vector", "dense", "--replace", "--no-queries", "--threads", "2")
    arguments = [sys.executable, "-c", setup, "augment", *where, *FIELDS, *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def test_no_process_outlives_a_command_that_is_killed_not_even_one_that_waits_for_the_server(
    rest: RestQdrant, tmp_path: Path, demo_encoder: Encoder
) -> None:
    fill_with_gaps(rest, demo_encoder)
    hanging = tmp_path / "hanging"
    program = f"""
def replaced(child, ids):
    done = whole(child, ids)
    print(child._process.pid, flush=True)
    while not os.path.exists({str(hanging)!r}):
        time.sleep(0.05)
    return done
"""
    with start_augment(rest, tmp_path / "bad", program) as command:
        assert command.stdout is not None
        children = [int(command.stdout.readline()) for _ in range(2)]
        assert all(map(is_running, children))
        rest.script += [hang] * 2
        hanging.touch()
        wait_until(lambda: not rest.script)
        assert all(map(is_running, children))
        command.kill()
    wait_until(lambda: not any(map(is_running, children)))


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait, for less time than `hang` does."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_ends_no_process_in_the_middle_not_even_one_that_is_starting(
    rest: RestQdrant, tmp_path: Path, demo_encoder: Encoder
) -> None:
    fill_with_gaps(rest, demo_encoder)
    program = """
def replaced(child, ids):
    os.killpg(0, signal.SIGINT)
    processes.Child.calibrate = whole
    return whole(child, ids)
"""
    with start_augment(rest, tmp_path / "bad", program) as command:
        said = command.communicate()[1]
    assert command.returncode == 130, said
    assert "Interrupted; run the same command again to resume." in said
    assert "ended with exit code" not in said


def is_running(process: int) -> bool:
    """Return whether a process lives, also if its parent will never ask for its end."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return state.stdout.strip()[:1] not in ("", "Z")
