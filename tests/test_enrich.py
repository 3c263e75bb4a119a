"""What `ingest --plain` and `enrich` promise: a collection that answers at once, and the points of an ingest later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from forked import Forks
from rest_qdrant import RestQdrant
from stored_points import KINDS, assert_same_points, opened_kind, read_points
from writing import write_rows

from xqg_qdrant.augmentation import pipeline
from xqg_qdrant.augmentation.pipeline import Progress, Row, describe, ingest
from xqg_qdrant.augmentation.recipe import choose_recipe
from xqg_qdrant.cli import main
from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.errors import InputError, MismatchError
from xqg_qdrant.fingerprint import hash_plain
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.lifecycle.copying import Part
from xqg_qdrant.lifecycle.enrich import enrich, plan_enrichment
from xqg_qdrant.lifecycle.retune import plan_retune, retune
from xqg_qdrant.lifecycle.status import Status, read_status
from xqg_qdrant.records import AugmentedPassage, GeneratedQuery, Passage, QueriedPassage
from xqg_qdrant.stores import Store, open_store

pytestmark = pytest.mark.usefixtures("opened_once", "remembered")
COUNT = 6
FEW: dict[str, Any] = {"queries_per_language": 2, "max_new_tokens": 6}


@cache
def passages() -> list[Passage]:
    chosen = read_demo_passages()[:COUNT]
    return [
        replace(passage, text=passage.text.split(". ")[0], metadata={"year": 2000 + number % 4})
        for number, passage in enumerate(chosen)
    ]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "CHUNK_SIZE", 2)


@pytest.fixture
def store() -> Iterator[Store]:
    with open_store(":memory:") as opened:
        yield opened


@pytest.fixture(params=KINDS)
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with opened_kind(request.param, tmp_path) as opened:
        yield opened


def run_ingest(
    store: Store,
    encoder: Encoder,
    generator: QueryGenerator | None,
    languages: Sequence[str] = (),
    name: str = "docs",
    rows: Sequence[Row] | None = None,
    plain: bool = False,
    **settings: Any,
) -> list[Progress]:
    settings = {**FEW, **settings} if generator else settings
    recipe = choose_recipe(encoder, generator, languages, stored=store.read_fingerprint(name), **settings).recipe
    fingerprint = describe(encoder, generator, recipe, plain)
    return list(ingest(rows or passages(), store, name, encoder, generator, recipe, fingerprint=fingerprint))


def run_plain(store: Store, encoder: Encoder, name: str = "docs", **settings: Any) -> list[Progress]:
    return run_ingest(store, encoder, None, name=name, plain=True, **settings)


def run_enrich(
    store: Store, encoder: Encoder, generator: QueryGenerator, *languages: str, **settings: Any
) -> list[Progress]:
    own = {"added", "part", "drawing", "named"} & set(settings)
    planned: dict[str, Any] = {name: settings.pop(name) for name in own}
    plan = plan_enrichment(
        store, "docs", encoder, generator, languages=languages,
        **{"drawing": {"max_new_tokens": 6}, "queries_per_language": 2, **planned},
    )  # fmt: skip
    return list(enrich(store, plan, encoder, generator, **settings))


def count(steps: Sequence[Progress], field: str) -> int:
    return sum(getattr(step, field) for step in steps)


def status_of(store: Store) -> Status:
    return list(read_status(store, "docs"))[-1]


def states(store: Store) -> tuple[int, int, int]:
    found = status_of(store)
    return found.plain, found.current, found.earlier


def assert_equal(store: Store, left: str, right: str) -> None:
    assert store.read_fingerprint(left) == store.read_fingerprint(right)
    assert_same_points(read_points(store, left), read_points(store, right))


def test_plain_passages_have_their_plain_vector_under_both_names(store: Store, demo_encoder: Encoder) -> None:
    steps = run_plain(store, demo_encoder, calibrate=False)
    assert (count(steps, "stored"), states(store)) == (COUNT, (COUNT, 0, 0))
    vectors = demo_encoder.encode_passages([f"{one.title} {one.text}" for one in passages()])
    for passage, vector in zip(passages(), vectors, strict=True):
        point = read_points(store)[passage.passage_id]
        assert (point.passage, point.generated_queries) == (passage, ())
        for name in ("xqg", "passage"):
            np.testing.assert_array_equal(point.vectors[name], vector)


@pytest.mark.parametrize("settings", [{}, {"calibrate": True, "sparse": True}, {"recipe_name": "paper"}])
def test_an_ingest_of_plain_passages_gives_the_points_of_a_fresh_one(
    settings: dict[str, Any], store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    run_plain(store, demo_encoder, rows=passages()[:4], **settings)
    run_ingest(store, demo_encoder, demo_generator, ["fi", "ru"], **settings)
    run_ingest(store, demo_encoder, demo_generator, ["fi", "ru"], "fresh", **settings)
    assert_equal(store, "docs", "fresh")
    again = run_plain(store, demo_encoder, **settings)
    assert (count(again, "stored"), count(again, "unchanged")) == (0, COUNT)
    assert_equal(store, "docs", "fresh")


def test_an_enrichment_gives_the_points_of_a_fresh_ingest(
    any_store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_plain(any_store, demo_encoder)
    with monkeypatch.context() as patch:
        patch.setattr(demo_encoder, "encode_passages", None)  # plain vectors are not made again
        steps = run_enrich(any_store, demo_encoder, demo_generator, "fi", "ru")
    assert (count(steps, "stored"), states(any_store)) == (COUNT, (0, COUNT, 0))
    run_ingest(any_store, demo_encoder, demo_generator, ["fi", "ru"], "fresh")
    assert_equal(any_store, "docs", "fresh")
    assert run_enrich(any_store, demo_encoder, demo_generator) == []


def test_new_and_edited_passages_are_plain_beside_enriched_ones(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    run_plain(store, demo_encoder, rows=passages()[:3])
    run_enrich(store, demo_encoder, demo_generator, "fi")
    edited = [replace(passages()[0], text="It is."), *passages()[1:]]
    assert count(run_plain(store, demo_encoder, rows=edited), "stored") == 4
    assert states(store) == (4, 2, 0)
    run_enrich(store, demo_encoder, demo_generator)
    run_ingest(store, demo_encoder, demo_generator, ["fi"], "fresh", edited)
    assert_equal(store, "docs", "fresh")


def test_an_added_language_is_all_that_is_written(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    run_ingest(store, demo_encoder, demo_generator, ["ru"])
    steps = run_enrich(store, demo_encoder, demo_generator, "fi", added=True, drawing={})
    assert sum((Counter(step.asked) for step in steps), Counter()) == {"fi": 2 * COUNT}
    run_ingest(store, demo_encoder, demo_generator, ["fi", "ru"], "fresh")
    assert_equal(store, "docs", "fresh")


def test_another_recipe_replaces_the_queries_while_searches_find_whole_points(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    run_ingest(store, demo_encoder, demo_generator, ["fi"], "docs")
    run_ingest(store, demo_encoder, demo_generator, ["fi"], "after", seed=7)
    before, after = read_points(store), read_points(store, "after")
    plan = plan_enrichment(store, "docs", demo_encoder, demo_generator, drawing={"seed": 7})
    assert (plan.plain, plan.replaced, plan.drops) == (0, COUNT, True)
    with closing(enrich(store, plan, demo_encoder, demo_generator)) as steps:
        next(steps)
        run_plain(store, demo_encoder, rows=[Passage("new", "It is new.")])
        assert states(store) == (1, 2, 4)
        assert "earlier" in (store.read_fingerprint("docs") or {})
        for passage_id, point in read_points(store).items():
            if passage_id != "new":
                sides = before if point.recipe == before[passage_id].recipe else after
                assert_same_points({passage_id: point}, {passage_id: sides[passage_id]})
        with pytest.raises(MismatchError, match=r"still to be replaced.*xqg enrich"):
            plan_retune(store, "docs", demo_encoder, {"alpha": 0.1})
    run_enrich(store, demo_encoder, demo_generator)
    store.delete("docs", ["new"])
    assert_equal(store, "docs", "after")


def test_two_parts_do_every_passage_once_and_an_interruption_resumes(
    any_store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    run_plain(any_store, demo_encoder)
    plans = [
        plan_enrichment(
            any_store,
            "docs",
            demo_encoder,
            demo_generator,
            languages=["fi"],
            queries_per_language=2,
            drawing={"max_new_tokens": 6},
            part=Part(k, 2),
        )
        for k in (1, 2)
    ]
    assert sum(plan.plain for plan in plans) == COUNT
    first, second = (enrich(any_store, plan, demo_encoder, demo_generator) for plan in plans)
    stored = next(first).stored + count(list(second), "stored")
    first.close()
    assert stored < COUNT
    steps = run_enrich(any_store, demo_encoder, demo_generator, drawing={}, part=Part(1, 2))
    assert stored + count(steps, "stored") == COUNT
    assert states(any_store) == (0, COUNT, 0)


def test_processes_at_once_write_each_passage_once_and_end_where_one_does(
    rest: RestQdrant, tmp_path: Path, demo_encoder: Encoder, demo_generator: QueryGenerator,
    monkeypatch: pytest.MonkeyPatch, forks: Forks,
) -> None:  # fmt: skip
    written: Counter[str] = Counter()
    respond = rest.respond

    def note(method: str, path: str, body: Any) -> Any:  # noqa: ANN401
        if (method, path) == ("PUT", "/collections/docs/points"):
            written.update(point["payload"]["passage_id"] for point in body["points"])
        return respond(method, path, body)

    few = ("--languages", "fi,ru", "--queries-per-language", "2", "--max-new-tokens", "6", "--threads", "1")
    command = ["enrich", "--collection", "docs", "--store", rest.url, *few]
    with open_store(rest.url) as store:
        run_plain(store, demo_encoder)
        monkeypatch.setattr(rest, "respond", note)
        parts = [forks.start(tmp_path, *command, "--part", f"{n}/2", output=f"part {n}") for n in (1, 2)]
        codes, said = [part.wait(120) for part in parts], [part.output for part in parts]
        assert codes == [0, 0], said
        begun = [int(said_by.split(" passages without queries")[0].split()[-1]) for said_by in said]
        assert (sum(begun), COUNT in begun) == (COUNT, False)
        assert written == dict.fromkeys((one.passage_id for one in passages()), 1)
        run_ingest(store, demo_encoder, demo_generator, ["fi", "ru"], "fresh")
        assert_equal(store, "docs", "fresh")


def test_the_newest_passages_come_first(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_plain(store, demo_encoder)
    written: list[int] = []
    upsert = store.upsert

    def note_and_upsert(name: str, points: Sequence[AugmentedPassage]) -> None:
        written.extend(one.passage.metadata["year"] for one in points)
        upsert(name, points)

    monkeypatch.setattr(store, "upsert", note_and_upsert)
    run_enrich(store, demo_encoder, demo_generator, "fi", newest_by="year")
    assert written == [2003, 2002, 2001, 2001, 2000, 2000]


def test_passages_that_are_edited_or_deleted_meanwhile_are_left_alone(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_plain(store, demo_encoder)
    deleted, edited = passages()[0], replace(passages()[1], text="It is.")
    generate = demo_generator.generate

    def disturb(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        store.delete("docs", [deleted.passage_id])
        run_plain(store, demo_encoder, rows=[edited])
        return generate(*arguments, **named)

    monkeypatch.setattr(demo_generator, "generate", disturb)
    run_enrich(store, demo_encoder, demo_generator, "fi")
    assert (store.count("docs"), states(store)) == (COUNT - 1, (1, COUNT - 2, 0))
    assert read_points(store)[edited.passage_id].passage == edited


def test_given_queries_replace_none_and_survive_a_plain_ingest(store: Store, demo_encoder: Encoder) -> None:
    rows = [QueriedPassage(one, (GeneratedQuery("fi", f"Mikä on {one.title}?"),)) for one in passages()]
    run_plain(store, demo_encoder)
    run_ingest(store, demo_encoder, None, rows=rows[:4])
    assert count(run_plain(store, demo_encoder), "unchanged") == COUNT
    assert states(store) == (2, 4, 0)
    run_ingest(store, demo_encoder, None, rows=rows)
    run_ingest(store, demo_encoder, None, name="fresh", rows=rows)
    assert_equal(store, "docs", "fresh")


def test_a_retune_calibrates_plain_passages_too(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    run_ingest(store, demo_encoder, demo_generator, ["fi"], rows=passages()[:3], calibrate=False)
    run_plain(store, demo_encoder, calibrate=False)
    run_plain(store, demo_encoder, name="fresh", gamma=0.5)
    for changes in ({"alpha": 0.2}, {"gamma": 0.5}):
        plan = plan_retune(store, "docs", demo_encoder, {k: v for k, v in changes.items() if k == "alpha"},
                           gamma=changes.get("gamma"))  # fmt: skip
        assert plan.passages == (3 if "alpha" in changes else COUNT)
        list(retune(store, plan, demo_encoder))
        assert states(store) == (3, 3, 0)
    plain = {one: point for one, point in read_points(store).items() if not point.generated_queries}
    fresh = read_points(store, "fresh")
    assert_same_points(plain, {passage_id: fresh[passage_id] for passage_id in plain})


def test_what_cannot_be_enriched_is_refused(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_ingest(store, demo_encoder, None, rows=[QueriedPassage(passages()[0], ())])
    with pytest.raises(InputError, match=r"were given.*xqg ingest --queries"):
        run_enrich(store, demo_encoder, demo_generator, "fi")
    store.delete_collection("docs")
    run_ingest(store, demo_encoder, demo_generator, ["fi"])
    fingerprint = store.read_fingerprint("docs") or {}
    store.write_fingerprint("docs", {**fingerprint, "retuning": fingerprint})
    with pytest.raises(MismatchError, match="is being retuned"):
        run_enrich(store, demo_encoder, demo_generator)
    store.write_fingerprint("docs", {**fingerprint, "generator.sha256": "another"})
    with pytest.raises(InputError, match="another generator wrote"):
        run_enrich(store, demo_encoder, demo_generator, named=False)
    with pytest.raises(MismatchError, match=r"recipe.gamma: stored"):
        run_plain(store, demo_encoder, gamma=0.123)


def test_the_hash_of_a_plain_point_is_the_same_whoever_writes_the_queries() -> None:
    made = {"encoder.sha256": "e", "recipe.gamma": 0.5, "recipe.alpha": 0.4, "queries": "plain"}
    later = {**made, "queries": "given", "recipe.alpha": 0.1, "generator.sha256": "g"}
    assert hash_plain(made) == hash_plain(later)
    for field in ("encoder.sha256", "recipe.gamma", "recipe.sparse"):
        assert hash_plain({**made, field: "other"}) != hash_plain(made)


def xqg(*arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_the_commands_store_now_and_write_queries_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(Path("c.jsonl"), [{"id": one.passage_id, "title": one.title, "text": one.text} for one in passages()])
    few = ("--languages", "fi", "--queries-per-language", "2", "--max-new-tokens", "6", "--threads", "1")
    xqg("ingest", "c.jsonl", "--collection", "docs", "--plain", *few)
    assert f"{COUNT} of them have no queries yet" in xqg("status", "--collection", "docs")
    assert f"0 changed, {COUNT} unchanged" in xqg("status", "--collection", "docs", "--corpus", "c.jsonl")
    assert f"{COUNT} unchanged" in xqg("sync", "c.jsonl", "--collection", "docs")
    assert passages()[0].title in xqg("query", "--collection", "docs", passages()[0].title)
    xqg("enrich", "--collection", "docs", *few)
    assert f"0 passages stored, {COUNT} unchanged" in xqg("ingest", "c.jsonl", "--collection", "docs", *few)
    assert f"0 without queries, {COUNT} to be changed" in xqg(
        "enrich", "--collection", "docs", "--languages", "+ru", "--threads", "1"
    ).replace("passages ", "")
