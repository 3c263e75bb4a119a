"""What `xqg augment` promises of a collection that another program made: it adds, and changes nothing else."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from forked import Forks
from qdrant_client import QdrantClient, models
from rest_qdrant import RestQdrant
from short_passages import short_passages

from xqg_qdrant.augmentation.pipeline import CHUNK_SIZE, Progress, ingest
from xqg_qdrant.augmentation.recipe import Recipe, make_recipe
from xqg_qdrant.cli import main
from xqg_qdrant.errors import InputError, MismatchError, StoreError
from xqg_qdrant.fingerprint import refuse_mismatch
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import GeneratedQuery, Passage, PayloadLayout, Reject
from xqg_qdrant.retrieval import search_hits
from xqg_qdrant.stores import open_foreign_store, open_store
from xqg_qdrant.stores.server.client import ClientStore
from xqg_qdrant.stores.server.foreign import ForeignStore
from xqg_qdrant.stores.server.foreign_points import find_problem, get_field, read_foreign_payload
from xqg_qdrant.stores.server.limits import FINGERPRINT_KEY

CLI = Path(__file__).parent.parent / "cli.py"
LAYOUT = PayloadLayout("document", "heading", "meta.doc_id")
FEW_QUERIES = ("--languages", "fi,ru", "--queries-per-language", "2", "--max-new-tokens", "8", "--threads", "1")
FIELDS = ("--text-field", "document", "--title-field", "heading", "--id-field", "meta.doc_id")
COSINE, DOT = models.Distance.COSINE, models.Distance.DOT
UNNAMED = models.VectorParams(size=3, distance=COSINE)
MULTI = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
# What collections of other programs look like: their vectors, and a point's.
SHAPES: Mapping[str, tuple[dict[str, Any], Any]] = {
    "unnamed": ({"vectors_config": UNNAMED}, [1.0, 2.0, 3.0]),
    "named": ({"vectors_config": {"fast-minilm": UNNAMED, "": UNNAMED}}, {"fast-minilm": [1, 2, 3], "": [3, 2, 1]}),
    "multi": (
        {"vectors_config": {"late": models.VectorParams(size=2, distance=DOT, multivector_config=MULTI)}},
        {"late": [[1.0, 2.0], [3.0, 4.0]]},
    ),
    "sparse": (
        {"vectors_config": {"a": UNNAMED}, "sparse_vectors_config": {"bm25": models.SparseVectorParams()}},
        {"a": [1.0, 2.0, 3.0], "bm25": models.SparseVector(indices=[3, 70], values=[0.5, 0.25])},
    ),
}


def make_payload(index: int) -> dict[str, Any]:
    passage = short_passages()[index]
    return {
        "document": passage.text,
        "heading": passage.title,
        "meta": {"doc_id": f"doc-{index}", "score": 0.125, "none": None},
        "tags": ["a", {"b": [index]}],
    }


def make_point_id(index: int) -> int | str:
    return index if index % 2 else f"00000000-0000-4000-8000-{index:012}"


def make_collection(client: QdrantClient, shape: str = "unnamed", count: int = 5, name: str = "theirs") -> None:
    config, vector = SHAPES[shape]
    client.create_collection(name, **config, metadata={"owner": "another program"})
    points = [models.PointStruct(id=make_point_id(i), vector=vector, payload=make_payload(i)) for i in range(count)]
    client.upsert(name, points)


def read_all(client: QdrantClient, name: str = "theirs") -> dict[str, models.Record]:
    return {str(record.id): record for record in client.scroll(name, limit=1000, with_vectors=True)[0]}


def as_named(vector: Any) -> dict[str, Any]:  # noqa: ANN401
    return dict(vector) if isinstance(vector, dict) else {"": vector}


def take_theirs(record: models.Record) -> tuple[str, dict[str, Any]]:
    payload = {name: value for name, value in (record.payload or {}).items() if name != "xqg"}
    vectors = {name: vector for name, vector in as_named(record.vector).items() if name not in ("xqg", "passage")}
    return json.dumps(payload), vectors


def assert_theirs_is_kept(before: Mapping[str, models.Record], after: Mapping[str, models.Record]) -> None:
    assert before.keys() == after.keys()
    for point_id, record in before.items():
        payloads, vectors = zip(*map(take_theirs, (record, after[point_id])), strict=True)
        assert payloads[0] == payloads[1]
        assert vectors[0] == vectors[1]


def share(store: ClientStore, client: QdrantClient) -> None:
    """Let a store in memory use the client of another one."""
    store._client = store._load._client = client


@pytest.fixture
def recipe(demo_generator: QueryGenerator) -> Recipe:
    return make_recipe(demo_generator, ["fi", "ru"], queries_per_language=2, max_new_tokens=8)


@pytest.fixture
def rest() -> Iterator[RestQdrant]:
    server = RestQdrant()
    server.version = "1.18.0"
    yield server
    server.close()


@pytest.fixture(params=["memory", "rest"])
def theirs(request: pytest.FixtureRequest) -> Iterator[tuple[ForeignStore, QdrantClient]]:
    """A store, and the client of the other program."""
    if request.param == "memory":
        store = open_foreign_store(":memory:", None, LAYOUT)
        yield store, store._client
    else:
        rest = request.getfixturevalue("rest")
        store = open_foreign_store(rest.url, None, LAYOUT)
        yield store, rest.client
    store.close()


@pytest.fixture
def memory() -> Iterator[ForeignStore]:
    store = open_foreign_store(":memory:", None, LAYOUT)
    yield store
    store.close()


class Models:
    """The shipped models and a recipe, to augment with."""

    def __init__(self, encoder: Encoder, generator: QueryGenerator, recipe: Recipe) -> None:
        self.encoder, self.generator, self.recipe = encoder, generator, recipe

    def augment(self, store: ForeignStore) -> tuple[int, int, list[Reject]]:
        rows = store.read_passages("theirs")
        steps: list[Progress] = list(ingest(rows, store, "theirs", self.encoder, self.generator, self.recipe))
        rejects = [reject for step in steps for reject in step.rejects]
        return sum(step.stored for step in steps), sum(step.unchanged for step in steps), rejects


@pytest.fixture
def demo(demo_encoder: Encoder, demo_generator: QueryGenerator, recipe: Recipe) -> Models:
    return Models(demo_encoder, demo_generator, recipe)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_field_and_every_vector_of_theirs_stays_and_ours_come_beside(
    shape: str, theirs: tuple[ForeignStore, QdrantClient], demo: Models
) -> None:
    store, client = theirs
    make_collection(client, shape)
    before = read_all(client)
    assert demo.augment(store) == (5, 0, [])
    after = read_all(client)
    assert_theirs_is_kept(before, after)
    for record in after.values():
        assert as_named(record.vector).keys() == as_named(before[str(record.id)].vector).keys() | {"xqg", "passage"}
        assert set((record.payload or {})["xqg"]) == {"generated_queries", "content_hash", "recipe", "checksum"}
    assert client.get_collection("theirs").config.metadata["owner"] == "another program"  # type: ignore[index]


def test_the_vectors_are_those_that_an_ingest_of_the_same_passages_gives(memory: ForeignStore, demo: Models) -> None:
    make_collection(memory._client)
    demo.augment(memory)
    ours = open_store(":memory:")
    passages = [replace(p, passage_id=str(make_point_id(i)), metadata={}) for i, p in enumerate(short_passages(5))]
    list(ingest(passages, ours, "ours", demo.encoder, demo.generator, demo.recipe))
    augmented = read_all(memory._client)
    points = list(ours.scroll("ours"))
    ours.close()
    assert len(points) == len(augmented) == 5
    for point in points:
        passage_id = point.passage.passage_id
        record = augmented[passage_id]
        for name, vector in point.vectors.items():
            np.testing.assert_array_equal(np.float32(as_named(record.vector)[name]), vector)
        queries = (record.payload or {})["xqg"]["generated_queries"]
        assert tuple(GeneratedQuery(**query) for query in queries) == point.generated_queries


def test_a_search_finds_through_our_vector_and_shows_their_fields(
    theirs: tuple[ForeignStore, QdrantClient], demo: Models
) -> None:
    store, client = theirs
    make_collection(client)
    demo.augment(store)
    plain = ClientStore(store.location)
    if store.location == ":memory:":
        share(plain, client)
    assert plain.count("theirs") == 5
    payload = make_payload(2)
    [[hit]] = search_hits(plain, "theirs", demo.encoder, [payload["document"]], 1, "xqg")
    assert hit.found.passage == Passage(
        "doc-2", payload["document"], payload["heading"], {"meta": payload["meta"], "tags": payload["tags"]}
    )
    assert hit.best_query in hit.found.generated_queries


def test_a_layout_without_title_and_id_names_passages_by_their_points(demo: Models) -> None:
    store = open_foreign_store(":memory:", None, PayloadLayout("document"))
    make_collection(store._client, count=2)
    demo.augment(store)
    found = store.search("theirs", np.ones((1, demo.encoder.dim), np.float32), "xqg", 5)[0]
    assert {hit.passage.passage_id for hit in found} == {"1", make_point_id(0)}
    assert {hit.passage.title for hit in found} == {""}
    assert all(set(hit.passage.metadata) == {"heading", "meta", "tags"} for hit in found)
    store.close()


def test_run_again_it_does_only_what_is_new_changed_or_was_replaced(memory: ForeignStore, demo: Models) -> None:
    client = memory._client
    make_collection(client)
    demo.augment(memory)
    first = read_all(client)
    assert demo.augment(memory) == (0, 5, [])
    assert read_all(client) == first
    # Another text; another title; another field alone; a point anew with its old payload; a new point.
    client.set_payload("theirs", {"document": "The Danube ends in the Black Sea."}, points=[make_point_id(0)])
    client.set_payload("theirs", {"heading": "Another title"}, points=[make_point_id(1)])
    client.set_payload("theirs", {"tags": []}, points=[make_point_id(2)])
    again = models.PointStruct(id=3, vector={"": [3.0, 2.0, 1.0]}, payload=dict(first["3"].payload or {}))
    client.upsert("theirs", [again, models.PointStruct(id=77, vector={"": [1.0, 1.0, 1.0]}, payload=make_payload(7))])
    before = read_all(client)
    assert demo.augment(memory) == (4, 2, [])
    after = read_all(client)
    assert_theirs_is_kept(before, after)
    assert after[str(make_point_id(0))].vector != before[str(make_point_id(0))].vector
    assert as_named(after["3"].vector)["xqg"] == as_named(first["3"].vector)["xqg"]
    assert after[str(make_point_id(2))] == before[str(make_point_id(2))]


def test_points_that_hold_no_passage_are_rejected_with_their_id_and_the_reason(
    memory: ForeignStore, demo: Models
) -> None:
    client = memory._client
    make_collection(client, count=1)
    good: dict[str, Any] = {"document": "text", "meta": {"doc_id": 1}}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"meta": {"doc_id": 1}}, "no field document"),
        ({**good, "document": 5}, "document is not a string"),
        ({**good, "document": " \n\u200b"}, "document is empty"),
        ({**good, "document": "half \ud83d"}, "a lone surrogate"),
        ({**good, "heading": ["x"]}, "heading is not a string"),
        ({"document": "text"}, "meta.doc_id is neither a string nor a whole number"),
        ({"document": "text", "meta": {"doc_id": True}}, "meta.doc_id is neither a string nor a whole number"),
        ({**good, "xqg": "theirs"}, "the field xqg is taken"),
        ({**good, "xqg": {"other": 1}}, "the field xqg is taken"),
    ]
    points = [
        models.PointStruct(id=100 + number, vector=[1.0, 1.0, 1.0], payload=payload)
        for number, payload in enumerate([*(payload for payload, _ in bad), good])
    ]
    client.upsert("theirs", points)
    before = read_all(client)
    stored, unchanged, rejects = demo.augment(memory)
    assert (stored, unchanged) == (2, 0)
    assert [reject.source for reject in rejects] == [
        f":memory:, collection 'theirs', point {100 + number}" for number in range(len(bad))
    ]
    for reject, (payload, reason) in zip(rejects, bad, strict=True):
        assert reason in reject.reason
        assert json.loads(reject.row) == payload
    after = read_all(client)
    assert_theirs_is_kept({i: r for i, r in before.items() if i == "109"}, {"109": after["109"]})
    assert all(after[str(number)] == before[str(number)] for number in range(100, 109))


def test_a_point_that_was_deleted_meanwhile_stays_so(memory: ForeignStore, demo: Models) -> None:
    make_collection(memory._client)
    rows = list(memory.read_passages("theirs"))
    memory._client.delete("theirs", models.PointIdsList(points=[1, make_point_id(2)]))
    list(ingest(rows, memory, "theirs", demo.encoder, demo.generator, demo.recipe))
    assert read_all(memory._client).keys() == {str(make_point_id(0)), "3", str(make_point_id(4))}
    assert demo.augment(memory) == (0, 3, [])


def test_points_that_are_not_augmented_yet_are_not_found_and_harm_no_search(memory: ForeignStore, demo: Models) -> None:
    make_collection(memory._client)
    demo.augment(memory)
    memory._client.upsert("theirs", [models.PointStruct(id=50, vector={"": [1.0, 2.0, 3.0]}, payload={"document": 7})])
    [hits] = memory.search("theirs", np.ones((1, demo.encoder.dim), np.float32), "passage", 10)
    assert len(hits) == 5
    # The vectors come first, so that a point may have them alone.
    memory._client.delete_payload("theirs", ["xqg", "document", "meta"], points=[1])
    [hits] = memory.search("theirs", np.ones((1, demo.encoder.dim), np.float32), "passage", 10)
    [bare] = [hit for hit in hits if hit.passage.passage_id == "1"]
    assert (bare.passage.text, bare.generated_queries) == ("", ())
    memory._client.set_payload("theirs", {"xqg": {"generated_queries": ["theirs"]}}, points=[1])
    [hits] = memory.search("theirs", np.ones((1, demo.encoder.dim), np.float32), "passage", 10)
    assert [hit.generated_queries for hit in hits if hit.passage.passage_id == "1"] == [()]


def test_points_whose_ids_are_uuid_objects_are_augmented(memory: ForeignStore, demo: Models) -> None:
    memory._client.create_collection("theirs", UNNAMED)
    points = [models.PointStruct(id=uuid.UUID(int=i), vector=[1.0, 1.0, 1.0], payload=make_payload(i)) for i in (1, 2)]
    memory._client.upsert("theirs", points)
    assert demo.augment(memory) == (2, 0, [])
    assert demo.augment(memory) == (0, 2, [])
    assert all("xqg" in (record.payload or {}) for record in read_all(memory._client).values())


# --- what is refused


def test_an_old_server_is_refused_before_anything_is_changed(rest: RestQdrant, demo: Models) -> None:
    rest.version = "1.17.3"
    make_collection(rest.client)
    before = read_all(rest.client)
    store = open_foreign_store(rest.url, None, LAYOUT)
    with pytest.raises(StoreError, match=r"Qdrant 1\.17\.3; vectors .* need 1\.18 or later\. Cure: upgrade"):
        demo.augment(store)
    store.close()
    assert read_all(rest.client) == before
    assert rest.client.get_collection("theirs").config.metadata == {"owner": "another program"}
    assert {method for method, path, _ in rest.requests if "points" not in path} == {"GET"}


def test_a_vector_of_our_name_that_is_not_ours_is_refused(memory: ForeignStore, demo: Models) -> None:
    for number, config in enumerate(
        (
            {"vectors_config": {"passage": UNNAMED}},
            {"vectors_config": {}, "sparse_vectors_config": {"xqg": models.SparseVectorParams()}},
        )
    ):
        memory._client.delete_collection("theirs")
        memory._client.create_collection("theirs", **config)  # type: ignore[arg-type]
        name = ("passage", "xqg")[number]
        with pytest.raises(
            MismatchError, match=rf"a vector '{name}' that xqg did not add\. Nothing was changed\. Cure: ingest"
        ):
            demo.augment(memory)
        assert memory._client.get_collection("theirs").config.metadata is None


def test_an_embedded_store_and_a_field_without_a_name_are_refused() -> None:
    for location in ("edge:data", "./data", "data"):
        with pytest.raises(InputError, match=r"is embedded: .*Cure: .*xqg ingest"):
            open_foreign_store(location, None, LAYOUT)
    with pytest.raises(InputError, match="unknown store"):
        open_foreign_store("ftp://host", None, LAYOUT)
    with pytest.raises(InputError, match="--text-field"):
        open_foreign_store(":memory:", None, PayloadLayout(""))


def test_an_unknown_collection_is_an_error_that_names_the_known_ones(memory: ForeignStore, demo: Models) -> None:
    make_collection(memory._client)
    with pytest.raises(StoreError, match=r"no collection 'other' .*theirs"):
        memory.read_fingerprint("other")


def test_other_fields_another_recipe_and_a_collection_of_ours_are_refused_each_with_its_cure(
    memory: ForeignStore, demo: Models
) -> None:
    client = memory._client
    make_collection(client)
    demo.augment(memory)
    before = read_all(client)
    other = ForeignStore(":memory:", None, PayloadLayout("body", "heading"))
    share(other, client)
    with pytest.raises(MismatchError) as caught:
        demo.augment(other)
    assert "layout.text: stored 'document', now 'body'\n  layout.id: stored 'meta.doc_id', now ''" in str(caught.value)
    assert "Cure: repeat the fields that it was augmented with (--text-field" in str(caught.value)
    with pytest.raises(
        MismatchError, match=r"recipe\.alpha: stored 0\.01, now 0\.5\nNothing was changed\.\nCure: repeat the setting"
    ):
        Models(demo.encoder, demo.generator, demo.recipe._replace(alpha=0.5)).augment(memory)
    ours = ClientStore(":memory:")
    share(ours, client)
    with pytest.raises(MismatchError) as caught:
        list(ingest([Passage("a", "b")], ours, "theirs", demo.encoder, demo.generator, demo.recipe))
    assert "layout.text: stored 'document', now None" in str(caught.value)
    assert "Cure: use xqg augment, as another program owns the collection" in str(caught.value)
    assert read_all(client) == before
    list(ingest([Passage("a", "b")], ours, "ours", demo.encoder, demo.generator, demo.recipe))
    with pytest.raises(MismatchError, match="Cure: use xqg ingest, as xqg made the collection"):
        memory.read_fingerprint("ours")


def test_the_layout_is_named_alone() -> None:
    with pytest.raises(MismatchError) as caught:
        refuse_mismatch(
            "docs", {"encoder.sha256": "a", "layout.text": "x", "queries": "given"}, {"encoder.sha256": "b"}
        )
    assert "encoder" not in str(caught.value)
    assert "--queries" not in str(caught.value)


def test_nothing_but_searching_counting_and_augmenting_is_done_to_theirs(memory: ForeignStore, demo: Models) -> None:
    make_collection(memory._client)
    demo.augment(memory)
    plain = ClientStore(":memory:")
    share(plain, memory._client)
    before = read_all(plain._client)
    fingerprint = plain.read_fingerprint("theirs") or {}
    asks: list[Callable[[ClientStore], object]] = [
        lambda store: store.delete("theirs", ["1"]),
        lambda store: store.delete_collection("theirs"),
        lambda store: store.write_fingerprint("theirs", {**fingerprint, "retuning": 1}),
        lambda store: list(store.scroll("theirs")),
        lambda store: list(store.scroll_stored("theirs")),
        lambda store: store.read_points("theirs", ["1"]),
        lambda store: store.read_dim("theirs"),
        lambda store: store.quantise("theirs"),
        lambda store: list(store.optimise("theirs")),
        lambda _: plain.upsert("theirs", []),
        lambda _: plain.read_content_hashes("theirs", ["1"]),
    ]
    for store in (plain, memory):
        for ask in asks:
            with pytest.raises(MismatchError, match=r"belongs to another program.*Nothing was changed\. Cure: use"):
                ask(store)
    assert read_all(plain._client) == before
    assert plain.read_fingerprint("theirs") == fingerprint


def test_a_field_is_found_by_its_name_or_on_its_way() -> None:
    payload = {"a": {"b": 1, "c": {"d": 2}}, "a.c": 3, "": 4}
    assert [get_field(payload, name) for name in ("a.b", "a.c", "a.c.d", "a.x", "a.b.x", "x", "")] == [
        1, 3, 2, None, None, None, None,
    ]  # fmt: skip


# --- kills


def xqg(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> dict[str, models.Record]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return finish(forks, folder, make_local(folder))


def make_local(folder: Path) -> list[str]:
    """Make another program's collection in the client's local mode; return the command that augments it."""
    client = QdrantClient(path=str(folder / "theirs"))
    make_collection(client, count=CHUNK_SIZE + 4)
    client.close()
    letters = ("--dead-letters", str(folder / "rejected.jsonl"))
    return [
        "augment",
        "--collection",
        "theirs",
        "--store",
        f"local:{folder / 'theirs'}",
        *letters,
        *FIELDS,
        *FEW_QUERIES,
    ]


def finish(forks: Forks, folder: Path, command: list[str]) -> dict[str, models.Record]:
    code, said = forks.run(folder, *command)
    assert code == 0, said
    client = QdrantClient(path=str(folder / "theirs"))
    points = read_all(client)
    client.close()
    return points


@pytest.mark.parametrize(
    ("moment", "calls"),
    [
        ("update_collection-after", 1),
        ("create_vector_name-before", 2),
        ("create_vector_name-after", 2),
        ("batch_update_points-before", 1),
        ("batch_update_points-after", 1),
        ("batch_update_points-after", 2),
    ],
)
def test_a_run_that_is_killed_and_run_again_ends_with_the_same_points(
    moment: str, calls: int, tmp_path: Path, uninterrupted: dict[str, models.Record], forks: Forks
) -> None:
    arguments = make_local(tmp_path)
    method, when = moment.split("-")
    killed = f"import killed; killed.arm('qdrant_client', 'QdrantClient.{method}', {when!r}, {calls})"
    code, said = forks.run(tmp_path, *arguments, setup=killed)
    assert code == -signal.SIGKILL, said
    assert finish(forks, tmp_path, arguments) == uninterrupted


# --- the command


def test_the_command_augments_tells_of_dead_letters_and_query_prints_their_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    client = QdrantClient(path="theirs")
    make_collection(client, count=3)
    client.upsert("theirs", [models.PointStruct(id=9, vector=[1.0, 1.0, 1.0], payload={"note": "no text"})])
    client.close()
    command = ["augment", "--collection", "theirs", "--store", "local:theirs", *FIELDS, *FEW_QUERIES]
    result = xqg(*command)
    assert result.exit_code == 3, result.output
    assert "3 passages stored, 0 unchanged, 1 row rejected" in result.stderr
    [letter] = [json.loads(line) for line in Path("theirs.rejected.jsonl").read_text().splitlines()]
    assert letter["source"] == "local:theirs, collection 'theirs', point 9"
    assert letter["reason"] == "no field document"
    assert "0 passages stored, 3 unchanged, 1 row rejected" in xqg(*command).stderr
    found = xqg("query", "--collection", "theirs", "--store", "local:theirs", "--json", make_payload(1)["document"])
    assert found.exit_code == 0, found.output
    hit = json.loads(found.stdout)["hits"][0]
    assert (hit["passage_id"], hit["text"]) == ("doc-1", make_payload(1)["document"])
    for refused in (
        ["copy", "--from", "local:theirs", "--to", "there"],
        ["delete", "--store", "local:theirs", "--yes"],
        ["ingest", "corpus.jsonl", "--store", "local:theirs", *FEW_QUERIES],
    ):
        Path("corpus.jsonl").write_text('{"id": "a", "text": "b"}\n')
        result = xqg(*refused, "--collection", "theirs")
        assert result.exit_code == 4, result.output
        assert "another program" in result.stderr
    assert not os.path.exists("there")


def test_what_was_added_can_be_removed_and_nothing_else_is(
    theirs: tuple[ForeignStore, QdrantClient], demo: Models
) -> None:
    store, client = theirs
    make_collection(client, "named", count=2)
    taken: list[dict[str, Any]] = [{"xqg": "theirs"}, {"xqg": {"other": 1}}]
    vector = SHAPES["named"][1]
    client.upsert("theirs", [models.PointStruct(id=90 + i, vector=vector, payload=taken[i]) for i in range(2)])
    before = read_all(client)
    with pytest.raises(InputError, match="was not augmented by xqg"):
        store.remove_added("theirs")
    assert demo.augment(store)[0] == 2
    assert store.remove_added("theirs") == 2
    assert read_all(client) == before
    assert store.read_fingerprint("theirs") is None
    with pytest.raises(InputError, match="was not augmented by xqg"):
        store.remove_added("theirs")


def test_a_mistyped_field_changes_nothing_and_the_right_one_can_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(QdrantClient(path="theirs")) as client:
        make_collection(client, count=2)
    with closing(QdrantClient(path="theirs")) as client:  # what it read from the disk
        before = read_all(client)
    Path("lexicon.tsv").write_text("ja\tvolcano\t火山\nja\triver\t川\n", encoding="utf-8")
    command = ["augment", "--collection", "theirs", "--store", "local:theirs", "--generator", "lexicon.tsv"]
    result = xqg(*command, "--text-field", "documents")
    assert result.exit_code == 3, result.output
    with closing(QdrantClient(path="theirs")) as client:
        assert read_all(client) == before
        assert not (client.get_collection("theirs").config.metadata or {}).get(FINGERPRINT_KEY)
    assert xqg(*command, "--text-field", "document").exit_code == 0
    shown = xqg("status", "--collection", "theirs", "--store", "local:theirs")
    assert "another program's, 2 points" in shown.stdout
    assert "layout.text: document" in shown.stdout
    refused = xqg(*command, "--text-field", "heading")
    assert refused.exit_code == 4
    assert "xqg augment --undo" in refused.stderr
    assert "--yes" in xqg(*command, "--undo").stderr
    undone = xqg(*command, "--undo", "--yes")
    assert (undone.exit_code, undone.stdout) == (0, "What xqg added to 2 points of 'theirs' is removed.\n")
    with closing(QdrantClient(path="theirs")) as client:
        assert read_all(client) == before
    assert xqg(*command, "--text-field", "heading").exit_code == 0


def test_the_text_may_be_in_json_that_is_stored_as_text() -> None:
    node = json.dumps({"text": "The Danube is a river.", "metadata": {"title": "Danube"}})
    payload = {"_node_content": node, "broken": "{no", "list": "[1]"}
    layout = PayloadLayout("_node_content.text", "_node_content.metadata.title")
    assert find_problem(payload, layout) == ""
    passage, _ = read_foreign_payload(7, payload, layout)
    assert (passage.passage_id, passage.text, passage.title) == ("7", "The Danube is a river.", "Danube")
    assert [get_field(payload, name) for name in ("_node_content.x", "broken.text", "list.0")] == [None] * 3


def test_the_fingerprint_in_the_metadata_says_where_the_passages_stand(memory: ForeignStore, demo: Models) -> None:
    make_collection(memory._client)
    demo.augment(memory)
    metadata = memory._client.get_collection("theirs").config.metadata or {}
    fingerprint = metadata[FINGERPRINT_KEY]
    assert fingerprint["layout.text"] == "document"
    assert fingerprint["layout.title"] == "heading"
    assert fingerprint["layout.id"] == "meta.doc_id"
    assert fingerprint["recipe.languages"] == ["fi", "ru"]
