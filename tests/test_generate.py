"""What `xqg generate` promises: Parquet that Qdrant's Spark connector makes the same points of as an ingest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner, Result
from qdrant_client import models
from rest_qdrant import RestQdrant
from short_passages import short_passages
from writing import write_rows

from xqg_qdrant.cli import main
from xqg_qdrant.errors import InputError
from xqg_qdrant.records import Passage
from xqg_qdrant.stores import open_store
from xqg_qdrant.stores.parquet import find_metadata_kind, to_arrow

FEW = ["--languages", "fi,ru", "--queries-per-language", "1", "--max-new-tokens", "6"]
METADATA = [{"year": 1913, "tags": ["a", "b"], "place": {"name": "Tampere", "size": 1}}, {}]
PASSAGES = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("generate")
    passages = short_passages(PASSAGES)
    write_rows(
        folder / "corpus.jsonl",
        [
            {"id": p.passage_id, "title": p.title, "text": p.text, "metadata": METADATA[number % 2]}
            for number, p in enumerate(passages)
        ],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("generate", "corpus.jsonl", "--out", "out", "--sparse", *FEW).exit_code == 0
        yield folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--device", "cpu"])


def read_as_spark(folder: Path) -> list[models.PointStruct]:
    """Make points of the columns as the connector documents it.

    The options are id_field=point_id, vector_fields=xqg,passage, vector_names=xqg,passage, and for the terms
    sparse_vector_index_fields=terms_indices, sparse_vector_value_fields=terms_values, sparse_vector_names=terms.
    Every column that no option names becomes a field of the payload.
    """
    points = []
    for row in pyarrow.parquet.read_table(folder).to_pylist():
        point_id = row.pop("point_id")
        vectors: dict[str, Any] = {name: row.pop(name) for name in ("xqg", "passage")}
        if "terms_indices" in row:
            indices, values = row.pop("terms_indices"), row.pop("terms_values")
            # Java's int has a sign, the protocol's index has none: the same bits.
            unsigned = np.array(indices, np.int32).view(np.uint32).tolist()
            vectors["terms"] = models.SparseVector(indices=unsigned, values=values)
        points.append(models.PointStruct(id=point_id, vector=vectors, payload=row))
    return points


def read_stored(server: RestQdrant, collection: str) -> dict[str, models.Record]:
    return {str(record.id): record for record in server.client.scroll(collection, limit=1000, with_vectors=True)[0]}


def test_what_spark_loads_is_what_an_ingest_stores(folder: Path, server: RestQdrant) -> None:
    places = ["--store", server.url, *FEW, "--sparse"]
    assert run("ingest", "corpus.jsonl", "--collection", "ingested", *places).exit_code == 0
    # The collection that the connector wants to find is made by an ingest of the first row.
    (folder / "first.jsonl").write_text((folder / "corpus.jsonl").read_text().splitlines()[0])
    assert run("ingest", "first.jsonl", "--collection", "loaded", *places).exit_code == 0
    server.client.upsert("loaded", read_as_spark(folder / "out"))

    loaded, ingested = read_stored(server, "loaded"), read_stored(server, "ingested")
    assert loaded.keys() == ingested.keys()
    for name, record in ingested.items():
        payload = dict(loaded[name].payload or {})
        assert {**payload, "metadata": payload["metadata"] or {}} == record.payload
        assert loaded[name].vector == record.vector
    with open_store(server.url) as store:
        assert [repr(point) for point in store.scroll("loaded")] == [repr(point) for point in store.scroll("ingested")]
    again = run("ingest", "corpus.jsonl", "--collection", "loaded", *places)
    assert f"0 passages stored, {PASSAGES} unchanged" in again.stderr


def test_the_columns_are_of_types_that_the_connector_takes(folder: Path) -> None:
    schema = pyarrow.parquet.read_schema(folder / "out" / "part-00000.parquet")
    assert {name: str(schema.field(name).type) for name in schema.names} == {
        "point_id": "string",
        "passage_id": "string",
        "text": "string",
        "title": "string",
        "metadata": "struct<year: int64, tags: list<element: string>, place: struct<name: string, size: int64>>",
        "generated_queries": "list<element: struct<language: string, text: string, number: int32>>",
        "content_hash": "string",
        "recipe": "string",
        "checksum": "string",
        "xqg": "list<element: float>",
        "passage": "list<element: float>",
        "terms_indices": "list<element: int32>",
        "terms_values": "list<element: float>",
    }
    assert [path.name for path in sorted((folder / "out").iterdir())] == ["_xqg", "part-00000.parquet"]


def test_a_run_that_was_broken_off_is_gone_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xqg_qdrant.stores.parquet.PART_POINTS", 4)
    monkeypatch.setattr("xqg_qdrant.augmentation.pipeline.CHUNK_SIZE", 4)
    rows = (folder / "corpus.jsonl").read_text().splitlines(keepends=True)
    (folder / "grown.jsonl").write_text("".join(rows[:10]))
    first = run("generate", "grown.jsonl", "--out", "parts", *FEW, "--threads", "1")
    assert "10 passages stored, 0 unchanged" in first.stderr
    assert len(list((folder / "parts").glob("*.parquet"))) > 1
    (folder / "grown.jsonl").write_text("".join(rows))
    assert "10 passages stored, 10 unchanged" in run("generate", "grown.jsonl", "--out", "parts", *FEW).stderr
    unsparse = {(point.id, str(point.payload)) for point in read_as_spark(folder / "out")}
    table = pyarrow.parquet.read_table(folder / "parts")
    assert table.num_rows == PASSAGES
    assert set(table["point_id"].to_pylist()) == {point_id for point_id, _ in unsparse}

    other = run("generate", "grown.jsonl", "--out", "parts", *FEW, "--alpha", "0.5")
    assert other.exit_code == 4
    assert "recipe.alpha: stored 0.4, now 0.5" in other.stderr
    (folder / "grown.jsonl").write_text("".join([rows[0].replace('"text": "', '"text": "Now: '), *rows[1:]]))
    edited = run("generate", "grown.jsonl", "--out", "parts", *FEW)
    assert edited.exit_code == 2
    assert "changed since it was written to parts, where nothing can be replaced" in edited.stderr
    assert "\nCure: name a new folder" in edited.stderr


def test_the_queries_of_the_parquet_can_be_given_to_an_ingest(folder: Path) -> None:
    result = run("ingest", "out", "--queries", "corpus", "--collection", "given", "--store", "edge:given")
    assert result.exit_code == 0, result.stderr
    expected = {row.payload["passage_id"]: row.payload for row in read_as_spark(folder / "out") if row.payload}
    with open_store("edge:given") as store:
        points = list(store.scroll("given"))
    assert len(points) == PASSAGES
    for point in points:
        row = expected[point.passage.passage_id]
        assert point.passage == Passage(row["passage_id"], row["text"], row["title"], row["metadata"] or {})
        assert [query.text for query in point.generated_queries] == [
            query["text"] for query in row["generated_queries"]
        ]


def test_a_folder_with_something_else_is_left_alone(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "part-00000.parquet").write_text("mine")
    result = run("generate", "corpus.jsonl", "--out", "other", *FEW)
    assert result.exit_code == 2
    assert "other holds something else" in result.stderr
    assert "\nCure: name a new folder" in result.stderr
    assert (folder / "other" / "part-00000.parquet").read_text() == "mine"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([{"a": 1}, {"b": "x"}], "struct<a: int64, b: string>"),
        ([{"a": 1}, {"a": 0.5}], "struct<a: double>"),
        ([{"a": None}, {"a": True}], "struct<a: bool>"),
        ([{"a": []}, {"a": [[1]]}], "struct<a: list<item: list<item: int64>>>"),
        ([{"a": {}, "b": [], "c": None}], "None"),
        ([{"a": {"b": 1}}, {"a": {"c": 1}}], "struct<a: struct<b: int64, c: int64>>"),
    ],
)
def test_metadata_have_the_type_that_holds_all_of_them(values: list[dict[str, Any]], kind: str) -> None:
    passages = [Passage(str(number), "text", "", value) for number, value in enumerate(values)]
    assert str(to_arrow(find_metadata_kind(passages))) == kind


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (1, "x", "passage '1': metadata.a is 'x', and was int before: Parquet wants one type. Cure: "),
        (True, 1, "metadata.a is 1, and was bool before"),
        ([1], 1, "metadata.a is 1, and was a list before"),
        ([1], ["x"], "metadata.a[] is 'x', and was int before"),
        ({"b": 1}, "x", "metadata.a is 'x', and was an object before"),
        (None, 2**63, "passage '1': metadata.a is 9223372036854775808, larger than the integers of Spark. Cure: "),
    ],
)
def test_metadata_that_have_no_type_in_common_are_refused(left: object, right: object, message: str) -> None:
    passages = [Passage("0", "text", "", {"a": left}), Passage("1", "text", "", {"a": right})]
    with pytest.raises(InputError) as caught:
        find_metadata_kind(passages)
    assert message in str(caught.value)
