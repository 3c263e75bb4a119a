"""What a retune promises: the points of an ingest with the new recipe, without the passages and without a generator."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from click.testing import CliRunner, Result
from stored_points import KINDS, opened_kind

from xqg_qdrant.augmentation.pipeline import Row, ingest
from xqg_qdrant.augmentation.recipe import Recipe, make_recipe
from xqg_qdrant.cli import main
from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.errors import InputError, MismatchError, StoreError
from xqg_qdrant.fingerprint import Fingerprint, hash_recipe
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.lifecycle import retune as retune_module
from xqg_qdrant.lifecycle.retune import Plan, Retuned, plan_retune, retune
from xqg_qdrant.records import AugmentedPassage, GeneratedQuery, QueriedPassage
from xqg_qdrant.retrieval import search_hits
from xqg_qdrant.stores import Store, open_store

LANGUAGES, QUERIES_PER_LANGUAGE, PASSAGES = ["fi", "ja", "ru"], 3, 5
# Between the scores of the demo passages' queries.
pytestmark = pytest.mark.usefixtures("opened_once", "remembered")

MIN_SCORE = 0.8
CHANGES: list[dict[str, Any]] = [
    {"alpha": 0.3},
    {"fusion": "mean", "alpha": 0.3},
    {"renormalise": True},
    {"min_score": MIN_SCORE},
    {"min_score": MIN_SCORE, "fusion": "mean", "renormalise": True, "alpha": 0.5},
    {"min_score": 1000.0, "fusion": "mean"},
    {"languages": ("ru", "fi")},
    {"queries_per_language": 1},
    {"languages": ("ja",), "queries_per_language": 2, "alpha": 0.9, "renormalise": True, "min_score": MIN_SCORE},
]
# Every change in one store; in the others those that change everything at once.
CASES = [("edge", changes) for changes in CHANGES] + [
    (name, changes) for name in ("memory", "rest") for changes in (CHANGES[4], CHANGES[8])
]
GIVEN_CHANGES = [changes for changes in CHANGES if not {"languages", "queries_per_language"} & set(changes)]


@cache
def rows() -> list[Row]:
    metadata = {"year": 1984, "weights": [0.1, 1e-7, 3.0], "nested": {"名": None, "b": True}}
    passages = read_demo_passages()[:PASSAGES]
    return [replace(passage, text=passage.text.split(". ")[0], metadata=metadata) for passage in passages]


@cache
def given_rows() -> list[Row]:
    repeated = GeneratedQuery("fi", "Missä Tonava alkaa?")
    queries: list[tuple[GeneratedQuery, ...]] = [
        (repeated, GeneratedQuery("", "where does it begin"), repeated),
        (),
        (GeneratedQuery("ru", "Где начинается Дунай?"), GeneratedQuery("zz", "?", 7)),
    ]
    return [QueriedPassage(row, queries[place % 3]) for place, row in enumerate(rows())]  # type: ignore[arg-type]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with opened_kind(request.param, tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(str(tmp_path / "store"))
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retune_module, "CHUNK_SIZE", 3)


def recipe_of(generator: QueryGenerator | None, **settings: Any) -> Recipe:
    if generator is None:
        return make_recipe(None, **settings)
    generated = {"languages": LANGUAGES, "queries_per_language": QUERIES_PER_LANGUAGE, "max_new_tokens": 8, **settings}
    return make_recipe(generator, **generated)


def fill(store: Store, collection: str, encoder: Encoder, generator: QueryGenerator | None, **settings: Any) -> int:
    """Ingest, and return how many passages were stored."""
    given = rows() if generator else given_rows()
    steps = ingest(given, store, collection, encoder, generator, recipe_of(generator, **settings))
    return sum(step.stored for step in steps)


def run(store: Store, encoder: Encoder, changes: Mapping[str, Any], workers: int = 1) -> list[Retuned]:
    return list(retune(store, plan_retune(store, "docs", encoder, changes), encoder, workers))


def begin(store: Store, encoder: Encoder, changes: Mapping[str, Any]) -> Plan:
    """Retune until something is written, and leave it there."""
    plan = plan_retune(store, "docs", encoder, changes)
    steps = retune(store, plan, encoder)
    next(steps)
    steps.close()
    return plan


def read_points(store: Store, collection: str) -> dict[str, AugmentedPassage]:
    return {point.passage.passage_id: point for point in store.scroll(collection)}


def assert_equal(store: Store, collection: str, other: str) -> None:
    """Compare all that is stored, the vectors bit for bit."""
    assert store.read_fingerprint(collection) == store.read_fingerprint(other)
    found, expected = read_points(store, collection), read_points(store, other)
    assert len(expected) == PASSAGES
    assert found.keys() == expected.keys()
    for passage_id, point in expected.items():
        assert replace(found[passage_id], vectors={}) == replace(point, vectors={})
        assert {name: vector.tobytes() for name, vector in found[passage_id].vectors.items()} == {
            name: vector.tobytes() for name, vector in point.vectors.items()
        }


# What it ends with


@pytest.mark.parametrize(("store", "changes"), CASES, indirect=["store"], ids=str)
def test_a_retuned_collection_is_that_of_an_ingest_with_the_new_recipe(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, changes: dict[str, Any]
) -> None:
    fill(store, "docs", demo_encoder, demo_generator)
    fill(store, "fresh", demo_encoder, demo_generator, **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_generator, "generate", None)
        patch.setattr(demo_encoder, "encode_passages", None)
        steps = run(store, demo_encoder, changes)
    assert sum(step.passages for step in steps) == PASSAGES
    stored = [query for point in read_points(store, "fresh").values() for query in point.generated_queries]
    assert sum(step.queries for step in steps) == len(stored)
    assert (sum(step.left_out for step in steps) > 0) == ("min_score" in changes)
    assert_equal(store, "docs", "fresh")
    assert fill(store, "docs", demo_encoder, demo_generator, **changes) == 0


@pytest.mark.parametrize(
    ("store", "changes"),
    [("edge", changes) for changes in GIVEN_CHANGES] + [("memory", CHANGES[4]), ("rest", CHANGES[4])],
    indirect=["store"],
    ids=str,
)
def test_a_collection_of_given_queries_is_retuned_too(
    store: Store, demo_encoder: Encoder, changes: dict[str, Any]
) -> None:
    fill(store, "docs", demo_encoder, None)
    fill(store, "fresh", demo_encoder, None, **changes)
    run(store, demo_encoder, changes)
    assert_equal(store, "docs", "fresh")
    assert fill(store, "docs", demo_encoder, None, **changes) == 0


@pytest.mark.parametrize("workers", [1, 4])
def test_a_filter_can_be_taken_back_and_any_number_of_workers_gives_the_same(
    edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, workers: int
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator, min_score=MIN_SCORE, alpha=0.4, renormalise=True)
    fill(edge, "fresh", demo_encoder, demo_generator, fusion="mean")
    back = {"min_score": None, "alpha": 0.01, "renormalise": False, "fusion": "mean"}
    run(edge, demo_encoder, back, workers)
    assert_equal(edge, "docs", "fresh")


def test_the_same_recipe_again_is_nothing_to_do(
    edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator)
    before = edge.read_fingerprint("docs")
    changes = {"alpha": 0.01, "languages": LANGUAGES[::-1], "queries_per_language": QUERIES_PER_LANGUAGE}
    plan = plan_retune(edge, "docs", demo_encoder, changes)
    assert (plan.before, plan.after, plan.passages) == (before, before, 0)
    assert list(retune(edge, plan, demo_encoder)) == []
    assert edge.read_fingerprint("docs") == before


def test_a_plan_tells_how_many_queries_it_drops(
    edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator)
    plan = plan_retune(edge, "docs", demo_encoder, {"languages": ["fi", "ja"], "queries_per_language": 2})
    assert (plan.passages, plan.begun, plan.asked) == (PASSAGES, False, (9, 4))
    assert plan_retune(edge, "docs", demo_encoder, {"alpha": 0.5}).asked == (9, 9)
    fill(edge, "given", demo_encoder, None)
    assert plan_retune(edge, "given", demo_encoder, {"alpha": 0.5}).asked == (0, 0)


# While it goes on


def test_meanwhile_both_recipes_are_told_and_each_point_says_which_made_it(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(store, "docs", demo_encoder, demo_generator)
    before = store.read_fingerprint("docs")
    assert before is not None
    plan = begin(store, demo_encoder, {"alpha": 0.3, "languages": ["fi"]})
    after: Fingerprint = {**before, "recipe.alpha": 0.3, "recipe.languages": ["fi"]}
    assert plan.after == after
    assert store.read_fingerprint("docs") == {**before, "retuning": after}
    made = [stored.recipe for stored in store.scroll_stored("docs")]
    assert made == [hash_recipe(after)] * 3 + [hash_recipe(before)] * (PASSAGES - 3)


def test_meanwhile_questions_are_answered(edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator) -> None:
    fill(edge, "docs", demo_encoder, demo_generator)
    begin(edge, demo_encoder, {"alpha": 0.3})
    [hits] = search_hits(edge, "docs", demo_encoder, ["Where does the Danube end?"], PASSAGES, "xqg")
    assert {hit.found.passage.passage_id for hit in hits} == set(read_points(edge, "docs"))


@pytest.mark.parametrize("changes", [{}, {"alpha": 0.3}], ids=["old recipe", "new recipe"])
def test_meanwhile_an_ingest_is_refused_with_the_cure_by_either_recipe(
    edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, changes: dict[str, Any]
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator)
    begin(edge, demo_encoder, {"alpha": 0.3})
    points, fingerprint = read_points(edge, "docs").keys(), edge.read_fingerprint("docs")
    with pytest.raises(MismatchError) as caught:
        fill(edge, "docs", demo_encoder, demo_generator, **changes)
    assert str(caught.value).splitlines() == [
        "collection 'docs' is being retuned:",
        "  recipe.alpha: from 0.01 to 0.3",
        "Nothing was changed.",
        "Cure: wait for it, or if it was interrupted finish it: xqg retune --collection docs.",
    ]
    assert (read_points(edge, "docs").keys(), edge.read_fingerprint("docs")) == (points, fingerprint)


@pytest.mark.parametrize("again", [{}, {"alpha": 0.3, "languages": ["fi"]}], ids=["no settings", "the same"])
def test_an_unfinished_retune_is_finished_and_does_nothing_twice(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, again: dict[str, Any]
) -> None:
    fill(store, "docs", demo_encoder, demo_generator)
    fill(store, "fresh", demo_encoder, demo_generator, alpha=0.3, languages=["fi"])
    begin(store, demo_encoder, {"alpha": 0.3, "languages": ["fi"]})
    plan = plan_retune(store, "docs", demo_encoder, again)
    assert (plan.begun, plan.passages) == (True, PASSAGES - 3)
    assert sum(step.passages for step in retune(store, plan, demo_encoder)) == PASSAGES - 3
    assert_equal(store, "docs", "fresh")


@pytest.mark.parametrize("changes", [{"alpha": 0.4}, {"alpha": 0.01}, {"alpha": 0.3, "fusion": "mean"}], ids=str)
def test_an_unfinished_retune_refuses_another_and_also_the_way_back(
    edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, changes: dict[str, Any]
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator)
    begin(edge, demo_encoder, {"alpha": 0.3})
    with pytest.raises(
        MismatchError, match=r"alpha: from 0\.01 to 0\.3\nNothing was changed\.\nCure: .*xqg retune --collection docs"
    ):
        plan_retune(edge, "docs", demo_encoder, changes)
    run(edge, demo_encoder, {})
    run(edge, demo_encoder, changes)
    fill(edge, "fresh", demo_encoder, demo_generator, **changes)
    assert_equal(edge, "docs", "fresh")


def test_asked_to_stop_it_leaves_whole_chunks_and_stays_unfinished(
    edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator)
    fill(edge, "fresh", demo_encoder, demo_generator, alpha=0.3)
    stop, plan = Event(), plan_retune(edge, "docs", demo_encoder, {"alpha": 0.3})
    steps = retune(edge, plan, demo_encoder, 1, stop)
    next(steps)
    stop.set()
    list(steps)
    assert "retuning" in (edge.read_fingerprint("docs") or {})
    run(edge, demo_encoder, {})
    assert_equal(edge, "docs", "fresh")


def test_what_a_late_ingest_wrote_is_retuned_before_the_end(
    edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator)
    fill(edge, "fresh", demo_encoder, demo_generator, alpha=0.3)
    old = next(iter(edge.scroll("docs")))
    steps = retune(edge, plan_retune(edge, "docs", demo_encoder, {"alpha": 0.3}), demo_encoder)
    next(steps)
    edge.upsert("docs", [old])
    assert sum(step.passages for step in steps) == PASSAGES - 3 + 1
    assert_equal(edge, "docs", "fresh")


def test_a_passage_that_is_deleted_meanwhile_stays_deleted(
    edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator)
    plan = plan_retune(edge, "docs", demo_encoder, {"alpha": 0.3})
    last = list(edge.scroll_stored("docs"))[-1].passage_id
    read = retune_module._find_pending
    with pytest.MonkeyPatch.context() as patch:

        def find_then_delete(store: Store, plan: Plan) -> Iterator[Any]:
            for stored in read(store, plan):
                yield stored
                edge.delete("docs", [last])

        patch.setattr(retune_module, "_find_pending", find_then_delete)
        list(retune(edge, plan, demo_encoder))
    assert len(read_points(edge, "docs")) == PASSAGES - 1
    assert edge.read_fingerprint("docs") == plan.after


def test_a_retune_ends_when_somebody_begins_another_meanwhile(
    edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator)
    plan, other = (plan_retune(edge, "docs", demo_encoder, {"alpha": alpha}) for alpha in (0.3, 0.4))
    steps = retune(edge, plan, demo_encoder)
    next(steps)
    edge.write_fingerprint("docs", other.marked)
    with pytest.raises(MismatchError, match=r"is being retuned:\n  recipe\.alpha: from 0\.01 to 0\.4"):
        list(steps)
    assert [stored.recipe for stored in edge.scroll_stored("docs")].count(hash_recipe(plan.after)) == 3
    # The points of the one are of no use to the other.
    with pytest.raises(MismatchError, match=r"made by another recipe than the collection\. Cure: delete it"):
        list(retune(edge, other, demo_encoder))


def test_at_the_end_it_does_not_overwrite_what_another_retune_has_begun(
    edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator)
    plan, other = (plan_retune(edge, "docs", demo_encoder, {"alpha": alpha}) for alpha in (0.3, 0.4))
    steps, left = retune(edge, plan, demo_encoder), PASSAGES
    while left:
        left -= next(steps).passages
    edge.write_fingerprint("docs", other.marked)
    with pytest.raises(MismatchError, match="is being retuned"):
        next(steps)
    assert edge.read_fingerprint("docs") == other.marked


def test_a_retune_that_another_process_finished_meanwhile_ends_well(
    edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator)
    fill(edge, "fresh", demo_encoder, demo_generator, alpha=0.3)
    plan = plan_retune(edge, "docs", demo_encoder, {"alpha": 0.3})
    steps = retune(edge, plan, demo_encoder)
    next(steps)
    list(retune(edge, plan, demo_encoder))
    list(steps)
    assert_equal(edge, "docs", "fresh")


def test_a_collection_that_is_deleted_meanwhile_ends_it(
    edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator)
    plan = plan_retune(edge, "docs", demo_encoder, {"alpha": 0.3})
    edge.delete_collection("docs")
    with pytest.raises(StoreError, match=r"'docs' was deleted during the retune\. Cure: "):
        list(retune(edge, plan, demo_encoder))


def test_a_passage_whose_payload_was_edited_is_left_for_the_next_ingest(
    edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator)
    fill(edge, "fresh", demo_encoder, demo_generator, alpha=0.3)
    point = read_points(edge, "docs")[rows()[2].passage_id]  # type: ignore[union-attr]
    edge.upsert("docs", [replace(point, passage=replace(point.passage, text="edited"))])
    run(edge, demo_encoder, {"alpha": 0.3})
    assert read_points(edge, "docs")[point.passage.passage_id].content_hash == point.content_hash
    assert fill(edge, "docs", demo_encoder, demo_generator, alpha=0.3) == 1
    assert_equal(edge, "docs", "fresh")


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"languages": ["fi", "ko"]}, "languages of 'docs' cannot be retuned: stored ('fi', 'ja', 'ru'), wanted ('fi'"),
        ({"queries_per_language": 4}, "queries_per_language of 'docs' cannot be retuned: stored 3, wanted 4, which"),
        ({"seed": 1}, "seed of 'docs' cannot be retuned: stored 0, wanted 1, which needs queries that are not stored"),
        ({"temperature": 2.0}, "temperature of 'docs' cannot be retuned: stored 0.6, wanted 2.0"),
        ({"queries_per_language": 0}, "queries_per_language must be at least 1, was: 0"),
        ({"alpha": 1.5}, "alpha must be between 0 and 1 (inclusive), was: 1.5"),
        ({"alpha": 1.0}, "alpha 1 with sum leaves nothing of a passage of 'docs' that has no query. Cure: "),
        ({"fusion": "max"}, "fusion must be one of sum, mean, was: 'max'"),
        ({"min_score": float("nan")}, "min_score must be a finite number, was: nan"),
        ({}, "'docs' has no unfinished retune, and no setting is given. Cure: name a setting to change"),
    ],
)
def test_what_the_stored_queries_do_not_allow_is_refused_with_both_values_and_the_cure(
    edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, changes: dict[str, Any], message: str
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator)
    before, points = edge.read_fingerprint("docs"), read_points(edge, "docs").keys()
    with pytest.raises(InputError) as caught:
        run(edge, demo_encoder, changes)
    assert message in str(caught.value)
    assert (edge.read_fingerprint("docs"), read_points(edge, "docs").keys()) == (before, points)


@pytest.mark.parametrize("changes", [{"languages": ["fi"]}, {"queries_per_language": 1}], ids=str)
def test_of_given_queries_there_are_no_languages_and_numbers(
    edge: Store, demo_encoder: Encoder, changes: dict[str, Any]
) -> None:
    fill(edge, "docs", demo_encoder, None)
    with pytest.raises(
        InputError, match=r"is a setting of the generation, but the queries of 'docs' were given\. Cure: leave it out"
    ):
        run(edge, demo_encoder, changes)


def test_another_encoder_and_an_unknown_collection_are_refused(
    edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator)
    with pytest.raises(InputError, match="there is no collection 'other'"):
        plan_retune(edge, "other", demo_encoder, {"alpha": 0.3})
    described = demo_encoder.describe()
    monkeypatch.setattr(demo_encoder, "describe", lambda: {**described, "pooling": "cls"})
    with pytest.raises(MismatchError, match=r"encoder\.pooling: stored 'mean', now 'cls'"):
        plan_retune(edge, "docs", demo_encoder, {"alpha": 0.3})


# The command


def xqg(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(main, [command, *map(str, arguments), "--collection", "docs", "--store", "store"])


COMMAND = ["corpus.jsonl", "--languages", "fi,ru", "--max-new-tokens", "8", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a corpus and the collection that `COMMAND` made of it."""
    made = tmp_path_factory.mktemp("ingested")
    lines = [json.dumps({"id": p.passage_id, "text": p.title}) for p in read_demo_passages()[:PASSAGES]]
    (made / "corpus.jsonl").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        result = xqg("ingest", *COMMAND, "--queries-per-language", 3)
    assert result.exit_code == 0, result.stderr
    return made


@pytest.fixture
def ingested(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sequence[str]:
    """Go to a copy of the folder, and return the command line that made its collection."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return COMMAND


def test_the_command_retunes_and_tells_what_it_did(ingested: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("xqg_qdrant.generation.onnx.QueryGenerator.__init__", None)
        result = xqg("retune", "--alpha", 0.2, "--fusion", "mean", "--renormalise", "--min-score", 1000)
        assert result.exit_code == 0, result.stderr
        assert f"{PASSAGES} passages retuned, " in result.stderr
        assert "Queries excluded by --min-score: " in result.stderr
        result = xqg("retune", "--no-min-score", "--no-renormalise", "--no-calibrate", "--threads", 2)
        assert result.exit_code == 0, result.stderr
        assert "excluded by --min-score" not in result.stderr
    again = xqg(
        "ingest", *ingested, "--queries-per-language", 3, "--alpha", 0.2, "--fusion", "mean", "--no-renormalise"
    )
    assert f"0 passages stored, {PASSAGES} unchanged" in again.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["--no-calibrate"]),
        (["--no-calibrate"], ["--calibrate"]),
        (["--no-calibrate"], ["--question-bank", "bank.jsonl"]),
        (["--gamma", "0.25"], ["--gamma", "0.5", "--alpha", "0.2"]),
    ],
    ids=" ".join,
)
def test_a_retune_of_the_calibration_is_an_ingest_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: list[str], after: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XQG_CACHE", str(tmp_path / "cache"))
    queries = [[{"language": query.language, "text": query.text} for query in row.queries] for row in given_rows()]  # type: ignore[union-attr]
    lines = [
        json.dumps({"id": row.passage_id, "text": row.text, "generated_queries": own})  # type: ignore[union-attr]
        for row, own in zip(rows(), queries, strict=True)
    ]
    Path("corpus.jsonl").write_text("\n".join(lines))
    bank = [json.dumps({"lang": "fi", "question": f"Kuka on {number}?"}) for number in range(10)]
    Path("bank.jsonl").write_text("\n".join(bank))

    def fill_by_command(collection: str, *options: str) -> None:
        command = ["ingest", "corpus.jsonl", "--queries", "corpus", "--store", "store", "--threads", "1"]
        result = CliRunner().invoke(main, [*command, "--collection", collection, *options])
        assert result.exit_code == 0, result.stderr

    fill_by_command("docs", *before)
    fill_by_command("fresh", *after)
    with closing(open_store("store")) as store:
        old, fresh = read_points(store, "docs"), read_points(store, "fresh")
        gamma = (store.read_fingerprint("fresh") or {}).get("recipe.gamma")
        assert gamma == (None if after == ["--no-calibrate"] else 0.5)
    for passage_id, point in fresh.items():  # those without queries, too
        assert point.vectors["xqg"].tobytes() != old[passage_id].vectors["xqg"].tobytes()
    result = xqg("retune", *after)
    assert result.exit_code == 0, result.stderr
    with closing(open_store("store")) as store:
        assert_equal(store, "docs", "fresh")


def test_queries_are_not_dropped_for_good_without_a_yes(ingested: Sequence[str]) -> None:
    fewer = ["--languages", "fi", "--queries-per-language", 2]
    result = xqg("retune", *fewer)
    assert result.exit_code == 2
    assert f"Drop 4 of the 6 queries generated for each of {PASSAGES} passages, for good? Give --yes" in result.stderr
    assert "recipe.languages: ['fi', 'ru']" in xqg("status").stdout
    assert xqg("retune", *fewer, "--yes").exit_code == 0
    again = xqg("ingest", "corpus.jsonl", *fewer, "--max-new-tokens", 8)
    assert f"0 passages stored, {PASSAGES} unchanged" in again.stderr


def test_an_unfinished_retune_is_told_by_the_status_and_finished_without_asking_again(
    ingested: Sequence[str], demo_encoder: Encoder
) -> None:
    store = open_store("store")
    begin(store, demo_encoder, {"languages": ["fi"], "alpha": 0.3})
    store.close()
    lines = xqg("status").stdout.splitlines()
    assert lines[1:4] == [
        "  3 of them are retuned; finish it: xqg retune --collection docs",
        "    recipe.languages: from ['fi', 'ru'] to ['fi']",
        "    recipe.alpha: from 0.4 to 0.3",
    ]
    assert "retuning" not in "".join(lines)
    assert "another recipe" not in "".join(lines)
    told = json.loads(xqg("status", "--json").stdout)
    assert sorted(told["recipes"].values()) == sorted([3, PASSAGES - 3])
    assert told["fingerprint"]["retuning"]["recipe.alpha"] == 0.3

    for command in (["sync", "corpus.jsonl"], ["status", "--corpus", "corpus.jsonl"], ["ingest", "corpus.jsonl"]):
        result = xqg(*command)
        assert result.exit_code == 4
        assert "if it was interrupted finish it: xqg retune --collection docs" in result.stderr
    result = xqg("retune", "--alpha", 0.4)
    assert result.exit_code == 4

    assert xqg("retune").exit_code == 0
    assert "of them" not in xqg("status").stdout
    settings = ["--languages", "fi", "--alpha", 0.3, "--queries-per-language", 3, "--max-new-tokens", 8]
    again = xqg("ingest", "corpus.jsonl", *settings)
    assert f"0 passages stored, {PASSAGES} unchanged" in again.stderr


def test_ctrl_c_finishes_the_chunks_in_work_and_says_how_to_go_on(
    ingested: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retune_module, "CHUNK_SIZE", 1)
    work = retune_module._retune
    with monkeypatch.context() as patch:

        def interrupt(*arguments: Any, **settings: Any) -> Any:  # noqa: ANN401
            os.kill(os.getpid(), signal.SIGINT)
            return work(*arguments, **settings)

        patch.setattr(retune_module, "_retune", interrupt)
        result = xqg("retune", "--alpha", 0.3, "--threads", 1)
    assert result.exit_code == 130
    assert "Interrupted; finish it with: xqg retune --collection docs" in result.stderr
    assert re.search(r"of them (is|are) retuned", xqg("status").stdout)
    assert xqg("retune").exit_code == 0
    again = xqg("ingest", *ingested, "--queries-per-language", 3, "--alpha", 0.3)
    assert f"0 passages stored, {PASSAGES} unchanged" in again.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--min-score", "1", "--no-min-score"], 2, "Give --min-score or --no-min-score, not both."),
        ([], 2, "'docs' has no unfinished retune"),
        (["--languages", "xx"], 2, "unknown language 'xx'"),
        (["--languages", "ja"], 2, "languages of 'docs' cannot be retuned"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(
    ingested: Sequence[str], options: list[str], code: int, message: str
) -> None:
    result = xqg("retune", *options)
    assert result.exit_code == code
    assert message in result.stderr
