"""What `xqg verify` and `xqg status` notice in every store, and that they give no false alarm."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from qdrant_client import QdrantClient, models
from rest_qdrant import RestQdrant
from stored_points import KINDS, opened_kind, read_points

from xqg_qdrant.cli import main
from xqg_qdrant.errors import DamageError
from xqg_qdrant.fingerprint import hash_content
from xqg_qdrant.lifecycle.status import delete_passages, read_status
from xqg_qdrant.lifecycle.verify import Verification, refuse_damage, verify
from xqg_qdrant.printing import format_verification
from xqg_qdrant.records import (
    AugmentedPassage,
    GeneratedQuery,
    Passage,
    PayloadLayout,
    QueriedPassage,
    Reject,
    Space,
)
from xqg_qdrant.stores import Store, open_foreign_store, open_own_space_store, open_store
from xqg_qdrant.stores.inspection import inspect
from xqg_qdrant.stores.points import make_payload, make_point_id, read_point
from xqg_qdrant.stores.server.answers import Record

DIM = 5
METADATA: list[dict[str, Any]] = [
    {},
    {"third": 1 / 3, "long": 0.1 + 0.2, "tiny": 5e-324, "noise": 12345.000000000002, "whole": 2.0},
    {"none": None, "empty": [], "deep": {"a": [1, None, {"b": {}}]}, "id": 2**62 + 1, "yes": True},
]


def make_point(number: int) -> AugmentedPassage:
    passage = Passage(f"p{number}", f"Text {number}\0.", "Otsikko 🌋", METADATA[number % len(METADATA)])
    augmented, plain = np.random.default_rng(number).normal(size=(2, DIM)).astype(np.float32)
    content = hash_content(passage, "recipe")
    queries = (GeneratedQuery("fi", f"Kysymys {number}?", number), GeneratedQuery("", "??", 0))
    both = {"xqg": augmented, "passage": plain}
    return AugmentedPassage(passage, queries, both, content, "recipe", {"theirs": 1.5}, terms=(number, 2**32 - 1))


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with opened_kind(request.param, tmp_path) as store:
        store.create_collection("docs", DIM, {"recipe.sparse": True})
        load(store, 6)
        yield store


def load(store: Store, count: int) -> None:
    with store.bulk_load("docs", fast=True):
        store.upsert("docs", [make_point(number) for number in range(count)])


def look(store: Store) -> Verification:
    *_, found = verify(store, "docs")
    return found


def count_missing(store: Store) -> int:
    *_, status = read_status(store, "docs")
    return status.missing


def test_what_was_stored_is_as_stored(store: Store) -> None:
    found = look(store)
    assert found == Verification(store.location, "docs", points=6)
    refuse_damage(found)
    # Rewritten as a retune or a copy does it.
    store.upsert("docs", [replace(point, recipe="other") for point in store.scroll("docs")])
    assert look(store) == found


def test_a_lower_count_than_recorded_is_noticed_until_the_passages_are_stored_again(store: Store) -> None:
    assert store.read_recorded("docs") == 6
    forget_points(store, ["p1", "p2"])
    assert look(store).missing == count_missing(store) == 2
    with pytest.raises(DamageError, match=r"of 6 passages, 2 missing\. Cure: ingest the same corpus again"):
        refuse_damage(look(store))
    load(store, 6)
    assert look(store).missing == count_missing(store) == 0


def forget_points(store: Store, passage_ids: list[str]) -> None:
    """Delete points without a word to anyone, as damage or another client does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "read_recorded", lambda _: None)
        patch.setattr("xqg_qdrant.stores.server.load.read_recorded", lambda _: None)
        store.delete("docs", passage_ids)


def test_passages_that_xqg_deleted_are_not_missing(store: Store) -> None:
    assert delete_passages(store, "docs", ["p0", "p5", "unknown"], lambda: None).passages == 2
    assert store.read_recorded("docs") == 4
    assert count_missing(store) == 0


def test_an_ingest_or_a_deletion_that_is_killed_gives_no_false_alarm(store: Store) -> None:
    with suppress(KeyboardInterrupt), store.bulk_load("docs", fast=True):
        store.upsert("docs", [make_point(number) for number in range(8)])
        raise KeyboardInterrupt
    assert (store.read_recorded("docs"), count_missing(store)) == (6, 0)
    with pytest.MonkeyPatch.context() as patch:

        def die(_: object) -> str:
            raise KeyboardInterrupt

        patch.setattr("xqg_qdrant.stores.points.make_point_id", die)
        with pytest.raises(KeyboardInterrupt):
            store.delete("docs", ["p0"])
    assert (store.read_recorded("docs"), count_missing(store)) == (5, 0)
    # Of eight points a loss of three would not be noticed, which is said until a command ends.
    assert look(store).unrecorded == 3
    assert "3 of them are not in the recorded number" in format_verification(look(store))
    store.delete("docs", ["p0", "unknown"])
    assert (store.read_recorded("docs"), look(store).unrecorded) == (7, 0)


@pytest.fixture
def shared(rest: RestQdrant) -> Iterator[tuple[Store, QdrantClient]]:
    """A store on a server, and another client of it."""
    with open_store(rest.url) as store:
        store.create_collection("docs", DIM, {"recipe.sparse": True})
        load(store, 6)
        yield store, rest.client


Change = Callable[[QdrantClient, str], object]
CHANGES: dict[str, tuple[Change, str]] = {
    "text": (lambda client, point: client.set_payload("docs", {"text": "Text 2"}, [point]), "payload"),
    "queries": (lambda client, point: client.set_payload("docs", {"generated_queries": []}, [point]), "payload"),
    "content hash": (lambda client, point: client.set_payload("docs", {"content_hash": "0"}, [point]), "payload"),
    "payload": (lambda client, point: client.clear_payload("docs", [point]), "id, payload"),
    "another id": (lambda client, point: client.set_payload("docs", {"passage_id": "p3"}, [point]), "id, payload"),
    "vector": (lambda client, point: change_vectors(client, point, xqg=[1.0] * DIM), "vectors"),
    "swapped vectors": (lambda client, point: swap_vectors(client, point), "vectors"),
    "terms": (lambda client, point: change_terms(client, point, [2, 3], [1.0, 1.0]), "vectors"),
    "weights": (lambda client, point: change_terms(client, point, [2, 2**32 - 1], [1.0, 0.5]), "vectors"),
    "lost vector": (lambda client, point: client.delete_vectors("docs", ["passage"], [point]), "vectors"),
}


def change_vectors(client: QdrantClient, point: int | str, **vectors: Any) -> None:
    client.update_vectors("docs", [models.PointVectors(id=point, vector=vectors)])


def swap_vectors(client: QdrantClient, point: str) -> None:
    [record] = client.retrieve("docs", [point], with_vectors=["xqg", "passage"])
    assert isinstance(record.vector, dict)
    change_vectors(client, point, xqg=record.vector["passage"], passage=record.vector["xqg"])


def change_terms(client: QdrantClient, point: str, indices: list[int], values: list[float]) -> None:
    change_vectors(client, point, terms=models.SparseVector(indices=indices, values=values))


@pytest.mark.parametrize("change", CHANGES)
def test_a_point_that_is_not_as_xqg_stored_it_is_named(change: str, shared: tuple[Store, QdrantClient]) -> None:
    store, client = shared
    apply, faults = CHANGES[change]
    apply(client, make_point_id("p2"))
    [damaged] = look(store).damaged
    assert ", ".join(damaged.faults) == faults
    assert damaged.passage_id == ("p2" if damaged.named else make_point_id("p2"))
    cure = "Cure: delete the damaged passages" if damaged.named else "Cure: restore it from a backup"
    with pytest.raises(DamageError, match=f"of 6 passages, 1 damaged. {cure}"):
        refuse_damage(look(store))


def test_damage_outlives_a_rewriting_of_the_point(shared: tuple[Store, QdrantClient]) -> None:
    store, client = shared
    client.set_payload("docs", {"generated_queries": []}, [make_point_id("p2")])
    for _ in range(2):
        store.upsert("docs", [replace(point, recipe="other") for point in store.scroll("docs")])
        assert [point.passage_id for point in look(store).damaged] == ["p2"]
    change_vectors(client, make_point_id("p2"), passage=[1.0] * DIM)
    with pytest.raises(DamageError, match="'p2' has vectors that are damaged"):
        list(store.scroll("docs"))


def test_what_other_programs_add_and_the_rounding_of_a_server_are_no_damage(shared: tuple[Store, QdrantClient]) -> None:
    store, client = shared
    rounded = {name: float(np.nextafter(value, np.inf)) for name, value in METADATA[1].items() if value > 1e-300}
    client.set_payload("docs", {"theirs": "new", "metadata": rounded | {"tiny": 0.0}}, [make_point_id("p1")])
    client.set_payload(
        "docs", {"metadata": {"id": 2**62 + 1, "yes": True, "deep": {"a": [1, None, {}]}}}, [make_point_id("p2")]
    )
    assert look(store).damaged == ()
    client.set_payload("docs", {"metadata": {"id": 2**62, "yes": True}}, [make_point_id("p2")])
    assert [point.passage_id for point in look(store).damaged] == ["p2"]


def test_metadata_deeper_than_xqg_stores_are_named(shared: tuple[Store, QdrantClient]) -> None:
    store, _ = shared
    [point] = store.read_points("docs", ["p2"]).values()
    payload, deep = make_payload(point), dict[str, Any]()
    for _ in range(5000):
        deep = {"a": deep}
    vectors = {**point.vectors, "terms": models.SparseVector(indices=[2, 2**32 - 1], values=[1.0, 1.0])}
    for more in ({}, {"checksum": None}):
        changed = payload | {"metadata": deep} | more
        assert inspect(make_point_id("p2"), changed, vectors, True, {}).faults == ("payload",)
    assert read_point(payload | {"metadata": deep}, vectors, True).edited


def test_of_points_without_a_checksum_the_texts_are_compared(shared: tuple[Store, QdrantClient]) -> None:
    store, client = shared
    for name in read_points(store):
        client.delete_payload("docs", ["checksum"], [make_point_id(name)])
    found = look(store)
    assert (found.unchecked, found.damaged) == (6, ())
    client.set_payload("docs", {"title": "Another"}, [make_point_id("p0")])
    assert [point.passage_id for point in look(store).damaged] == ["p0"]
    assert [point.passage.passage_id for point in store.scroll("docs")] == sorted(read_points(store), key=make_point_id)


def test_a_point_that_is_written_while_it_is_read_is_not_damaged(
    shared: tuple[Store, QdrantClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = shared
    scroll = store._scroll  # type: ignore[attr-defined]

    def half_written(*arguments: object) -> Iterator[Record]:
        for record in scroll(*arguments):
            yield record._replace(vector={"xqg": [1.0] * DIM, "passage": [1.0] * DIM})

    monkeypatch.setattr(store, "_scroll", half_written)
    assert look(store) == Verification(store.location, "docs", points=6)


def test_a_deletion_by_another_process_while_a_load_records_its_count_is_no_loss(rest: RestQdrant) -> None:
    with open_store(rest.url) as first, open_store(rest.url) as second:
        first.create_collection("docs", DIM, {"recipe.sparse": True})
        load(first, 6)
        ask = first._wire.ask  # type: ignore[attr-defined]

        def delete_before_the_record(action: str, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            if action.startswith("record") and second.count("docs") == 8:
                second.delete("docs", ["p0", "p1"])
            return ask(action, *arguments, **named)

        first._wire.ask = delete_before_the_record  # type: ignore[attr-defined]
        load(first, 8)
        assert second.count("docs") == first.read_recorded("docs") == 6


def xqg(*line: str) -> Result:
    return CliRunner().invoke(main, ["-q", *line])


def test_the_command_lists_ten_damaged_passages_and_ends_with_exit_code_7(tmp_path: Path) -> None:
    place = ["--collection", "docs", "--store", str(tmp_path)]
    with open_store(str(tmp_path)) as store:
        store.create_collection("docs", DIM, {"recipe.sparse": True})
        load(store, 14)
    assert xqg("verify", *place).output == f"collection 'docs' in edge:{tmp_path}: 14 passages, as stored\n"
    with open_store(str(tmp_path)) as store:
        store.upsert("docs", [replace(make_point(number), edited=True) for number in range(12)])
        forget_points(store, ["p13"])
    found = xqg("verify", *place)
    assert found.exit_code == 7
    assert found.stdout.count(": payload\n") == 10
    assert "  and 2 more: --json lists all" in found.stdout
    assert "of 14 passages, 12 damaged and 1 missing" in found.stderr
    listed = json.loads(xqg("verify", *place, "--json").stdout)
    assert (len(listed["damaged"]), listed["missing"], listed["points"]) == (12, 1, 13)
    assert "1 passage that xqg stored is missing: xqg verify --collection docs" in xqg("status", *place).output
    assert "1 passage that xqg stored is missing" in xqg("status", "--store", str(tmp_path)).output
    assert json.loads(xqg("status", "--store", str(tmp_path), "--json").output)["missing"] == {"docs": 1}
    assert xqg("verify", "--collection", "other", "--store", str(tmp_path)).exit_code == 2


def augment_theirs(rest: RestQdrant, space: Space | None, distance: models.Distance) -> None:
    """Augment another program's two points; a third one stays as it is."""
    rest.version = "1.18.0"
    config = {"dense": models.VectorParams(size=DIM, distance=distance)}
    rest.client.create_collection("docs", config, metadata={"owner": "another program"})
    points = [make_point(number) for number in range(3)]
    rest.client.upsert(
        "docs",
        [
            models.PointStruct(id=number, vector={"dense": point.vectors["passage"].tolist()}, payload={"text": "a"})
            for number, point in enumerate(points)
        ],
    )
    layout = PayloadLayout("text")
    store = open_foreign_store(rest.url, None, layout)
    if space is not None:
        store = open_own_space_store(rest.url, None, layout, space)
    with closing(store):
        store.create_collection("docs", DIM, {})
        rows = [row for row in store.read_passages("docs") if not isinstance(row, Reject)]
        ours = []
        for row, point in zip(rows[:2], points, strict=False):
            passage = row.passage if isinstance(row, QueriedPassage) else row
            theirs = row.vector if isinstance(row, QueriedPassage) else None
            vectors = {**point.vectors, **({} if theirs is None else {"passage": theirs})}
            ours.append(replace(point, passage=passage, vectors=vectors, terms=None))
        store.upsert("docs", ours)


@pytest.mark.parametrize(
    ("space", "distance", "kept"),
    [
        (None, models.Distance.COSINE, "xqg"),
        (Space("dense"), models.Distance.DOT, "xqg"),
        (Space("dense"), models.Distance.COSINE, ""),
        (Space("dense", replaced=True), models.Distance.COSINE, "passage"),
    ],
)
def test_what_was_added_to_another_programs_points_is_verified(
    space: Space | None, distance: models.Distance, kept: str, rest: RestQdrant
) -> None:
    augment_theirs(rest, space, distance)
    with open_store(rest.url) as store:
        assert look(store) == Verification(rest.url, "docs", points=3, foreign=True)
        # Their own fields and vectors are theirs.
        rest.client.set_payload("docs", {"text": "another"}, [0])
        assert look(store).damaged == ()
        [record] = rest.client.retrieve("docs", [0])
        ours = (record.payload or {})["xqg"]
        rest.client.set_payload("docs", {"xqg": {**ours, "generated_queries": []}}, [0])
        if kept:
            change_vectors(rest.client, 1, **{kept: [1.0] * DIM})
        found = {point.passage_id: point.faults for point in look(store).damaged}
        assert found == {"0": ("payload",)} | ({"1": ("vectors",)} if kept else {})
        with pytest.raises(DamageError, match="Cure: run the same xqg augment again"):
            refuse_damage(look(store))


def test_another_program_that_writes_a_point_anew_does_no_damage(rest: RestQdrant) -> None:
    augment_theirs(rest, None, models.Distance.DOT)
    [record] = rest.client.retrieve("docs", [0])
    rest.client.upsert("docs", [models.PointStruct(id=0, vector={"dense": [1.0] * DIM}, payload=record.payload)])
    with open_store(rest.url) as store:
        assert look(store).damaged == ()
