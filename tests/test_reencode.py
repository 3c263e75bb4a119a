"""What `reencode` promises: the points of a fresh ingest with another encoder and the same queries, none generated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from qdrant_client import QdrantClient, models
from question_banks import write_bank
from rest_qdrant import RestQdrant
from stored_points import KINDS, assert_same_points, opened_kind, read_points
from writing import write_rows

from xqg_qdrant.augmentation.calibration import LEAST_QUESTIONS
from xqg_qdrant.augmentation.pipeline import Progress, Row, describe, ingest
from xqg_qdrant.augmentation.recipe import choose_recipe
from xqg_qdrant.cli import main
from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.errors import InputError, MismatchError, StoreError
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.lifecycle.copying import ALL, Part, is_complete, plan_reencoding, read_stored_rows
from xqg_qdrant.model_folders import DEMO_ENCODER, shipped_model
from xqg_qdrant.records import GeneratedQuery, Passage, QueriedPassage
from xqg_qdrant.stores import Sharding, Store, open_store

pytestmark = pytest.mark.usefixtures("opened_once", "remembered")
COUNT = 5
METADATA = {"year": 1984, "nested": {"名": None}}


@cache
def passages() -> list[Passage]:
    return [
        Passage(one.passage_id, one.text.split(". ")[0], one.title, METADATA) for one in read_demo_passages()[:COUNT]
    ]


def queried() -> list[Row]:
    return [
        QueriedPassage(one, tuple(GeneratedQuery("fi", f"Mikä on {one.title}?", n) for n in range(place % 3)))
        for place, one in enumerate(passages())
    ]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of another encoder: the demo's with another prefix."""
    folder = tmp_path_factory.mktemp("models") / "other"
    folder.mkdir()
    for path in shipped_model(DEMO_ENCODER).iterdir():
        if path.name != "xqg.json" and path.suffix != ".npz":
            shutil.copyfile(path, folder / path.name)
    described = json.loads((shipped_model(DEMO_ENCODER) / "xqg.json").read_text())
    described |= {"query_prefix": "question: ", "passage_prefix": "", "source": "made/Other"}
    (folder / "xqg.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(scope="module")
def other_encoder(other: Path) -> Encoder:
    return Encoder(other, "cpu", threads=1)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with opened_kind(request.param, tmp_path) as opened:
        yield opened


def fill(
    store: Store, name: str, encoder: Encoder, generator: QueryGenerator | None, *, plain: bool = False, **settings: Any
) -> None:
    if generator:
        settings = {"queries_per_language": 2, "max_new_tokens": 6, **settings}
    settings = {"calibrate": False, **settings}  # the means of the bank take twenty seconds
    recipe = choose_recipe(encoder, generator, ["fi", "ru"] if generator else (), **settings).recipe
    fingerprint = describe(encoder, generator, recipe, plain)
    rows = passages() if generator or plain else queried()
    list(ingest(rows, store, name, encoder, generator, recipe, fingerprint=fingerprint))


def run(store: Store, encoder: Encoder, part: Part = ALL, **settings: Any) -> Iterator[Progress]:
    suited = choose_recipe(encoder, None, **{"calibrate": False, **settings}).recipe
    plan = plan_reencoding("docs", store.read_fingerprint("docs") or {}, "new", encoder, suited)
    rows = read_stored_rows(store.scroll("docs"), "docs", plan, part)
    return ingest(rows, store, "new", encoder, None, plan.recipe, fingerprint=plan.after)


def assert_fresh(store: Store) -> None:
    assert store.read_fingerprint("new") == store.read_fingerprint("fresh")
    assert len(read_points(store, "new")) == COUNT
    assert_same_points(read_points(store, "new"), read_points(store, "fresh"))


def test_generated_queries_give_the_points_of_an_ingest_with_the_other_encoder(
    store: Store, demo_encoder: Encoder, other_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(store, "docs", demo_encoder, demo_generator, recipe_name="paper", sparse=True, names={"text": "content"})
    assert sum(step.stored for step in run(store, other_encoder)) == COUNT
    fill(store, "fresh", other_encoder, demo_generator, sparse=True, names={"text": "content"})
    assert_fresh(store)


def test_given_queries_and_plain_passages_too(store: Store, demo_encoder: Encoder, other_encoder: Encoder) -> None:
    for plain in (False, True):
        fill(store, "docs", demo_encoder, None, plain=plain)
        list(run(store, other_encoder))
        fill(store, "fresh", other_encoder, None, plain=plain)
        assert_fresh(store)
        for name in ("docs", "new", "fresh"):
            store.delete_collection(name)


def test_parts_and_a_resumed_run_encode_no_passage_twice(
    store: Store, demo_encoder: Encoder, other_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(store, "docs", demo_encoder, demo_generator)
    first = sum(step.stored for step in run(store, other_encoder, Part(1, 2)))
    assert 0 < first < COUNT
    assert not is_complete(COUNT, store, "new", 0, Part(1, 2))
    with pytest.raises(StoreError, match=rf"has {first} passages, not {COUNT}"):
        is_complete(COUNT, store, "new", 0, ALL)
    steps = list(run(store, other_encoder))
    assert sum(step.unchanged for step in steps) == first
    assert sum(step.stored for step in steps) == COUNT - first
    assert is_complete(COUNT, store, "new", 0, ALL)


def test_points_of_an_earlier_recipe_and_the_same_name_are_refused(
    demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    with open_store(":memory:") as store:
        fill(store, "docs", demo_encoder, demo_generator)
        stored = store.read_fingerprint("docs") or {}
        store.write_fingerprint("docs", {**stored, "generator.sha256": "another"})
        with pytest.raises(MismatchError, match=r"by an earlier recipe.*xqg enrich"):
            list(run(store, demo_encoder))
        suited = choose_recipe(demo_encoder, None).recipe
        with pytest.raises(InputError, match="into itself"):
            plan_reencoding("docs", stored, "docs", demo_encoder, suited)


def test_the_layout_of_mcp_names_the_vector_after_the_new_model(demo_encoder: Encoder, other_encoder: Encoder) -> None:
    names = {"text": "document", "xqg": "fast-multilingual-e5-small"}
    suited = choose_recipe(other_encoder, None, calibrate=False).recipe
    stored = describe(demo_encoder, None, choose_recipe(demo_encoder, None, names=names).recipe)
    plan = plan_reencoding("docs", stored, "new", other_encoder, suited)
    assert plan.recipe.names == {"text": "document", "xqg": "fast-other"}


def xqg(*arguments: object) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_keeps_the_shards_and_moves_the_alias_once_all_is_there(
    rest: RestQdrant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": row.passage.passage_id, "text": row.passage.text, "generated_queries": ["Mikä?"]}
            for row in queried() if isinstance(row, QueriedPassage)]  # fmt: skip
    write_rows(Path("c.jsonl"), rows)
    where = ("--store", rest.url, "--threads", 1)
    xqg(
        "ingest",
        "c.jsonl",
        "--collection",
        "docs",
        "--queries",
        "corpus",
        "--shard-number",
        3,
        "--alias",
        "live",
        *where,
    )
    # The means of the shipped bank take twenty seconds.
    write_bank(Path("bank.jsonl.gz"), {"fi": [f"Mikä on joen {number} pituus?" for number in range(LEAST_QUESTIONS)]})
    again = ("reencode", "--collection", "docs", "--to", "new", "--encoder", other, "--alias", "live", *where,
             "--question-bank", "bank.jsonl.gz")  # fmt: skip
    assert "Other parts are not complete yet" in xqg(*again, "--part", "1/2")
    assert "now names 'new' (5 passages); before it named 'docs'" in xqg(*again)
    with open_store(rest.url) as store:
        assert store.read_sharding("new") == store.read_sharding("docs")
        assert store.read_sharding("new") != Sharding()
    assert "question: " in xqg("status", "--collection", "live", "--store", rest.url)


@contextmanager
def their_client(location: str, rest: RestQdrant) -> Iterator[QdrantClient]:
    """Be the other program, which closes its collection before others open it where only one can."""
    if location == rest.url:
        yield rest.client
        return
    with closing(QdrantClient(path=location.removeprefix("local:"))) as client:
        yield client


@pytest.mark.parametrize("kind", ["rest", "local"])
def test_another_programs_collection_becomes_one_of_ours(
    kind: str, rest: RestQdrant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    rest.version = "1.18.0"
    location = {"rest": rest.url, "local": "local:theirs"}[kind]
    points = [
        models.PointStruct(
            id=n, vector={"": [1.0, n]}, payload={"doc": one.text, "key": one.passage_id, "year": 1900 + n}
        )
        for n, one in enumerate(passages())
    ]
    with their_client(location, rest) as client:
        params = models.VectorParams(size=2, distance=models.Distance.COSINE)
        client.create_collection("docs", vectors_config={"": params})
        client.upsert("docs", points[:4])
    fields = ("--text-field", "doc", "--id-field", "key", "--store", location, "--threads", 1)
    few = ("--languages", "fi", "--queries-per-language", 1, "--max-new-tokens", 6)
    xqg("augment", "--collection", "docs", *fields, *few)
    with their_client(location, rest) as client:
        client.upsert("docs", points[4:])
    again = ("reencode", "--collection", "docs", "--to", "new", "--encoder", other, "--no-calibrate")
    done = xqg(*again, "--alias", "live", *fields)
    assert "Alias 'live' now names 'new' (5 passages)." in done
    with open_store(location) as store:
        found = read_points(store, "new")
        assert found.keys() == {one.passage_id for one in passages()}
        assert found[passages()[1].passage_id].passage.metadata == {"year": 1901}
        assert found[passages()[4].passage_id].generated_queries == ()
        assert all(found[one.passage_id].generated_queries for one in passages()[:4])
    assert "1 of them has no queries yet" in xqg("status", "--collection", "new", "--store", location)
