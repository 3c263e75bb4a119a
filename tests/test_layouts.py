"""Collections whose text, metadata and vector have the names that other programs look for: everything goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from qdrant_client import QdrantClient
from rest_qdrant import RestQdrant
from serving import demo_rows, fill

from xqg_qdrant.augmentation.recipe import read_recipe
from xqg_qdrant.cli import main
from xqg_qdrant.errors import InputError, MismatchError
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.lifecycle.copying import copy_collection
from xqg_qdrant.lifecycle.retune import plan_retune, retune
from xqg_qdrant.model_folders import DEMO_ENCODER, shipped_model
from xqg_qdrant.records import AugmentedPassage
from xqg_qdrant.stores import Store, open_store
from xqg_qdrant.stores.points import LAYOUTS, make_names, make_point_id
from xqg_qdrant.text import find_term_ids

pytestmark = pytest.mark.usefixtures("opened_once")
ROWS = [
    row._replace(passage=replace(row.passage, metadata={"year": 1900 + number}), queries=row.queries[:2])
    for number, row in enumerate(demo_rows(4))
]
FIRST = ROWS[0].passage
# What mcp-server-qdrant 0.8.1 and qdrant-haystack 13.1.0 read.
WRITTEN = {
    "mcp": {"text": "document", "metadata": "metadata", "xqg": "fast-multilingual-e5-small"},
    "haystack": {"text": "content", "metadata": "meta", "xqg": "text-dense"},
}
NEVER = Event()
NAMES = {layout: make_names(layout, "intfloat/multilingual-e5-small") for layout in LAYOUTS}


@pytest.fixture(params=["edge", "local", "server"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "server":
        location = request.getfixturevalue("rest").url
    else:
        location = f"{request.param}:{tmp_path / 'store'}"
    opened = open_store(location)
    yield opened
    opened.close()


def points_of(store: Store, collection: str) -> dict[str, AugmentedPassage]:
    return {point.passage.passage_id: point for point in store.scroll(collection)}


def without_recipe(point: AugmentedPassage) -> tuple[Any, ...]:
    vectors = {name: vector.tolist() for name, vector in point.vectors.items()}
    return point.passage, point.generated_queries, vectors, point.terms, dict(point.other_fields)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_collection_of_another_layout_holds_and_finds_the_same(
    store: Store, demo_encoder: Encoder, layout: str
) -> None:
    fill(store, "plain", demo_encoder, ROWS, sparse=True)
    fill(store, "named", demo_encoder, ROWS, sparse=True, names=NAMES[layout])
    plain, named = points_of(store, "plain"), points_of(store, "named")
    assert list(named) == list(plain)
    for passage_id, point in plain.items():
        assert without_recipe(named[passage_id]) == without_recipe(point)
    some = list(plain)[:2]
    assert store.read_points("named", some).keys() == set(some)
    assert {**store.read_content_hashes("named", some)} == {name: named[name].content_hash for name in some}
    questions = ["Where does the river end?", FIRST.title]
    vectors = demo_encoder.encode_queries(questions)
    for name in ("xqg", "passage"):
        assert store.search("named", vectors, name, 3) == store.search("plain", vectors, name, 3)
    terms = [find_term_ids([question]) for question in questions]
    assert store.search_terms("named", terms, 3) == store.search_terms("plain", terms, 3)
    assert store.search_terms("named", terms, 3)[1]
    store.delete("named", some)
    assert store.count("named") == len(ROWS) - 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_points_are_called_what_the_other_program_calls_them(
    tmp_path: Path, rest: RestQdrant, demo_encoder: Encoder, layout: str
) -> None:
    written = WRITTEN[layout]
    for location in (f"local:{tmp_path / 'store'}", rest.url):
        store = open_store(location)
        fill(store, "named", demo_encoder, ROWS, names=NAMES[layout])
        store.close()
    local = QdrantClient(path=str(tmp_path / "store"))
    for client in (local, rest.client):
        (record,) = client.retrieve("named", [make_point_id(FIRST.passage_id)], with_vectors=True)
        assert set(record.payload or {}) == {
            written["text"],
            written["metadata"],
            *("passage_id", "title", "generated_queries", "content_hash", "recipe", "checksum"),
        }
        assert (record.payload or {})[written["text"]] == FIRST.text
        assert (record.payload or {})[written["metadata"]] == {"year": 1900}
        assert isinstance(record.vector, dict)
        assert set(record.vector) == {written["xqg"], "passage"}
        config = client.get_collection("named").config.params.vectors
        assert isinstance(config, dict)
        assert set(config) == {written["xqg"], "passage"}
    local.close()


def test_the_same_passages_are_not_done_again_and_another_layout_is_refused(
    store: Store, demo_encoder: Encoder
) -> None:
    fill(store, "named", demo_encoder, ROWS, names=NAMES["mcp"])
    before = points_of(store, "named")
    store.delete("named", [FIRST.passage_id])
    fill(store, "named", demo_encoder, ROWS, names=NAMES["mcp"])
    assert {name: without_recipe(point) for name, point in points_of(store, "named").items()} == {
        name: without_recipe(point) for name, point in before.items()
    }
    for other in ({}, {"names": NAMES["haystack"]}):
        with pytest.raises(MismatchError, match=r"recipe\.names") as caught:
            fill(store, "named", demo_encoder, ROWS, **other)
        assert "'document'" in str(caught.value)
        assert "repeat the setting" in str(caught.value)


def test_a_retune_keeps_the_layout(store: Store, demo_encoder: Encoder) -> None:
    fill(store, "named", demo_encoder, ROWS, names=NAMES["haystack"], alpha=0.5)
    for _ in retune(store, plan_retune(store, "named", demo_encoder, {"alpha": 0.2}), demo_encoder):
        pass
    fill(store, "expected", demo_encoder, ROWS, names=NAMES["haystack"], alpha=0.2)
    assert {name: (without_recipe(point), point.content_hash) for name, point in points_of(store, "named").items()} == {
        name: (without_recipe(point), point.content_hash) for name, point in points_of(store, "expected").items()
    }
    fingerprint = store.read_fingerprint("named") or {}
    assert fingerprint["recipe.names"] == NAMES["haystack"]
    assert read_recipe(fingerprint).names == NAMES["haystack"]


def test_a_copy_has_the_layout_in_every_place(tmp_path: Path, rest: RestQdrant, demo_encoder: Encoder) -> None:
    stores = [open_store(location) for location in (f"edge:{tmp_path / 'a'}", rest.url, f"local:{tmp_path / 'b'}")]
    fill(stores[0], "named", demo_encoder, ROWS, sparse=True, names=NAMES["mcp"])
    for source, target in pairwise(stores):
        for _ in copy_collection(source, "named", target, "named", stop=NEVER):
            pass
        assert {n: without_recipe(p) for n, p in points_of(target, "named").items()} == {
            n: without_recipe(p) for n, p in points_of(source, "named").items()
        }
    (record,) = rest.client.retrieve("named", [make_point_id(FIRST.passage_id)])
    assert (record.payload or {})["document"] == FIRST.text
    for store in stores:
        store.close()


def test_a_field_that_another_program_adds_under_our_name_stays(rest: RestQdrant, demo_encoder: Encoder) -> None:
    store = open_store(rest.url)
    fill(store, "named", demo_encoder, ROWS, names=NAMES["mcp"])
    rest.client.set_payload("named", {"text": "theirs"}, points=[make_point_id(FIRST.passage_id)])
    for _ in retune(store, plan_retune(store, "named", demo_encoder, {"alpha": 0.2}), demo_encoder):
        pass
    (record,) = rest.client.retrieve("named", [make_point_id(FIRST.passage_id)])
    assert ((record.payload or {})["text"], (record.payload or {})["document"]) == ("theirs", FIRST.text)
    store.close()


def test_an_embedded_collection_of_another_layout_is_indexed_and_quantised(
    tmp_path: Path, demo_encoder: Encoder
) -> None:
    store = open_store(f"edge:{tmp_path}")
    fill(store, "named", demo_encoder, ROWS, names=NAMES["mcp"])
    vectors = demo_encoder.encode_queries([FIRST.title])
    before = store.search("named", vectors, "xqg", 3)
    store.quantise("named")
    for _ in store.optimise("named"):
        pass
    after = store.search("named", vectors, "xqg", 3)
    assert [hit.passage for hit in after[0]] == [hit.passage for hit in before[0]]
    assert np.allclose([hit.score for hit in after[0]], [hit.score for hit in before[0]])
    store.close()


@pytest.mark.parametrize(
    ("model", "vector"),
    [
        ("sentence-transformers/all-MiniLM-L6-v2", "fast-all-minilm-l6-v2"),
        ("demo-encoder", "fast-demo-encoder"),
        ("/models/E5-Small/", "fast-e5-small"),
    ],
)
def test_the_vector_of_mcp_is_named_after_the_model(model: str, vector: str) -> None:
    # mcp-server-qdrant: "fast-" and what follows the last slash of the model's name, in small letters.
    assert make_names("mcp", model)["xqg"] == vector


def test_a_layout_that_there_is_not_is_named() -> None:
    with pytest.raises(InputError, match=r"unknown payload layout 'page'\. Cure: use mcp or haystack"):
        make_names("page", "demo-encoder")


def test_every_command_goes_on_with_such_a_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(ROWS_AS_JSON)
    ingested = xqg("ingest", "corpus.jsonl", "--queries", "corpus", "--sparse", "--payload-layout", "mcp")
    assert "4 passages stored" in ingested
    status = json.loads(xqg("status", "--json"))
    assert status["fingerprint"]["recipe.names"] == {"text": "document", "xqg": "fast-multilingual-e5-small"}
    assert status["recipes"] == {next(iter(status["recipes"])): 4}
    for ranking in ("xqg", "passage", "hybrid", "max-sim"):
        (hit,) = json.loads(xqg("query", ROWS[0].queries[0].text, "--json", "--limit", "1", "--rank", ranking))["hits"]
        assert (hit["passage_id"], hit["text"]) == (FIRST.passage_id, FIRST.text)
    write_corpus([*ROWS_AS_JSON[:2], {**ROWS_AS_JSON[2], "text": "Another text."}])
    synced = xqg("sync", "corpus.jsonl", "--queries", "corpus", "--delete")
    assert "0 new, 1 changed, 2 unchanged, 0 rejected rows, 1 stored that the corpus does not hold" in synced
    assert "1 passage deleted" in synced
    assert "3 unchanged" in xqg("ingest", "corpus.jsonl", "--queries", "corpus", "--sparse", "--payload-layout", "mcp")
    xqg("retune", "--alpha", "0.05")
    xqg("optimise")
    xqg("copy", "--to", "local:copy", store="--from")
    client = QdrantClient(path="copy")
    (record,) = client.retrieve("docs", [make_point_id(ROWS[2].passage.passage_id)])
    assert (record.payload or {})["document"] == "Another text."
    client.close()


def test_a_model_that_does_not_tell_its_source_is_called_what_its_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(shipped_model(DEMO_ENCODER), tmp_path / "E5-Tiny")
    about = json.loads((folder / "xqg.json").read_text())
    del about["source"]
    (folder / "xqg.json").write_text(json.dumps(about))
    write_corpus(ROWS_AS_JSON[:1])
    xqg("ingest", "corpus.jsonl", "--queries", "corpus", "--encoder", "E5-Tiny", "--payload-layout", "mcp")
    assert json.loads(xqg("status", "--json"))["fingerprint"]["recipe.names"]["xqg"] == "fast-e5-tiny"


ROWS_AS_JSON = [
    {
        "id": row.passage.passage_id,
        "title": row.passage.title,
        "text": row.passage.text,
        "generated_queries": [{"language": query.language, "text": query.text} for query in row.queries],
    }
    for row in ROWS
]


def write_corpus(rows: list[dict[str, Any]]) -> None:
    Path("corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def xqg(*arguments: str, store: str = "--store") -> str:
    result = CliRunner().invoke(main, [*arguments, "--collection", "docs", store, "edge:store"])
    assert result.exit_code == 0, result.output
    return result.stdout if "--json" in arguments else result.output
