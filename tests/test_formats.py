"""Which files of the world are read, and as what: tables, JSON of every shape, compression, Parquet's types."""

from __future__ import annotations

import gzip
import io
import json
import sys
import uuid
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shared_data import shared_file
from writing import Write, lines_of

from xqg_qdrant.corpus.passages import read_passages, read_queried_passages
from xqg_qdrant.corpus.questions import read_queries
from xqg_qdrant.errors import InputError
from xqg_qdrant.records import GeneratedQuery, Passage, QueriedPassage, Query, Reject

TWO = lines_of({"id": "a", "text": "The Danube."}, {"id": "b", "text": "Oulu."})
READ = ["a=The Danube.", "b=Oulu."]


def read(path: str, **options: Any) -> list[str]:
    """Each passage as `id=text`, each reject as its line and reason."""
    return [
        f"{row.line}: {row.reason}" if isinstance(row, Reject) else f"{row.passage_id}={row.text}"
        for row in read_passages(path, **options)
    ]


# Tables


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("suffix", "separator"), [("tsv", "\t"), ("csv", ","), ("csv", ";"), ("csv", "\t")])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["a|D|x y", "b|E|z"], ["a=x y", "b=z"]),
        (['a|D|"x', 'y"', "b|E|z"], ["a=x\ny", "b=z"]),
        (['a|D|"x', "", 'y"', "b|E|z"], ["a=x\n\ny", "b=z"]),
        (['a|"D', 'E"|x', "b|E|z"], ["a=x", "b=z"]),
        (['a|"D', 'E"|"x', 'y"', "b|E|z"], ["a=x\ny", "b=z"]),
        (['a|D|"say ""x""."', "b|E|z"], ['a=say "x".', "b=z"]),
        (['a|D|"say ""x""', '."', "b|E|z"], ['a=say "x"\n.', "b=z"]),
        (['a|D|"x|y"', "b|E|z"], ["a=x{s}y", "b=z"]),
        (["a|D|5' 3\" tall", "b|E|z"], ["a=5' 3\" tall", "b=z"]),
        (["a|D", "b|E|z"], ["2: 2 columns where there should be 3", "b=z"]),
        (["a|D|x|y", "b|E|z"], ["2: 4 columns where there should be 3", "b=z"]),
    ],
)
def test_a_quoted_cell_may_hold_line_breaks_separators_and_quotes(
    write: Write, end: str, suffix: str, separator: str, rows: list[str], expected: list[str]
) -> None:
    content = end.join(line.replace("|", separator) for line in ["id|title|text", *rows, ""])
    assert read(write(content, f"c.{suffix}")) == [line.replace("{s}", separator) for line in expected]


UNCLOSED = "a quoted cell is not closed, or holds a quote that is not doubled"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # In TSV a quote may be text: nothing after it is swallowed.
        (['a\t"x', "b\tz"], ['a="x', "b=z"]),
        (['a\t"x', 'b\t"z'], ['a="x', 'b="z']),
        (['a\t"x" y', "b\tz"], ['a="x" y', "b=z"]),
        (['a\t"x', "", "b\tz"], ['a="x', "b=z"]),
        (['a\t"x'], ['a="x']),
        # A cell of several lines that is not closed: half of it must not be stored.
        (['a\t"x', "y", "b\tz"], [f"2: {UNCLOSED}", "b=z"]),
        (['a\t"x', 'y" y', "b\tz"], [f"2: {UNCLOSED}", "b=z"]),
        (['a\t"x', "y"], [f"2: {UNCLOSED}"]),
    ],
)
def test_a_quote_in_tsv_that_is_not_closed_spoils_no_other_row(
    write: Write, rows: list[str], expected: list[str]
) -> None:
    assert read(write("\n".join(["id\ttext", *rows]), "c.tsv")) == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (['a,"x', 'b,"z"'], [f"2: {UNCLOSED}", "b=z"]),
        (['a,"x', "b,z"], [f"2: {UNCLOSED}", "b=z"]),
        (['a,"x" y', "b,z"], [f"2: {UNCLOSED}", "b=z"]),
        (['a,"x \\"y\\""', "b,z"], [f"2: {UNCLOSED}", "b=z"]),
    ],
)
def test_a_quote_in_csv_that_is_not_closed_rejects_its_line_alone(
    write: Write, rows: list[str], expected: list[str]
) -> None:
    assert read(write("\n".join(["id,text", *rows]), "c.csv")) == expected


@pytest.mark.parametrize(("name", "rows"), [("multi", 3), ("multi2", 2)])
def test_tables_whose_cells_hold_line_breaks_are_read_whole(name: str, rows: int) -> None:
    path = shared_file(f"../cases/tsv-line-break-in-cell/{name}.tsv")
    found = read(str(path))
    assert len(found) == rows
    assert found[0] == "a=The Danube is a river.\nIt ends in the Black Sea."


def test_a_quote_that_nothing_closes_is_read_in_linear_time(write: Write) -> None:
    rows = [f'{number},"x' for number in range(50_000)]
    assert read(write("\n".join(["id,text", *rows]), "c.csv")).count(f"2: {UNCLOSED}") == 1


def test_questions_of_csv_are_read(write: Write) -> None:
    path = write('id,question\nq1,"Where is Oulu, really?"\n', "questions.csv")
    assert read_queries(path) == [Query("q1", "Where is Oulu, really?", "", ())]


# JSON

ROW = {"id": "a", "text": "x"}
OTHER = {"id": "b", "text": "y"}


@pytest.mark.parametrize("name", ["c.json", "c.jsonl", "-"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (json.dumps([ROW, OTHER]), ["a=x", "b=y"]),
        (json.dumps([ROW, OTHER], indent=2), ["a=x", "b=y"]),
        ("\ufeff \n[\n" + json.dumps(ROW) + "\n,\n" + json.dumps(OTHER) + "\n]\n\n", ["a=x", "b=y"]),
        (json.dumps([ROW, 7, "s", OTHER]), ["a=x", "2: not a JSON object", "3: not a JSON object", "b=y"]),
        (f'[{{"id": 1, "id": 2}}, {json.dumps(OTHER)}]', ["1: the field 'id' occurs twice", "b=y"]),
        (json.dumps(ROW) + "\n" + json.dumps(OTHER), ["a=x", "b=y"]),
        (json.dumps({**ROW, "data": "1998"}) + "\n" + json.dumps({**OTHER, "data": [1]}), ["a=x", "b=y"]),
        (json.dumps({**ROW, "data": ["1"]}), ["a=x"]),
    ],
)  # fmt: skip
def test_json_lines_and_arrays_are_told_apart_by_their_content(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str, content: str, expected: list[str]
) -> None:
    path = name
    if name == "-":
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    else:
        path = write(content, name)
    assert read(path) == expected


def test_a_first_line_that_is_damaged_does_not_make_json_lines_a_document(write: Write) -> None:
    path = write('{"id": "a", "te\n' + json.dumps(OTHER), "c.json")
    rejected, passage = read(path)
    assert rejected.startswith("1: malformed JSON")
    assert passage == "b=y"


@pytest.mark.parametrize("indent", [None, 1])
def test_squad_is_told_from_json_lines_with_a_field_data(write: Write, indent: int | None) -> None:
    squad = {"version": "1.1", "data": [{"title": "D", "paragraphs": [{"context": "The Danube.", "qas": []}]}]}
    [passage] = read_passages(write(json.dumps(squad, indent=indent), "train.json"))
    assert isinstance(passage, Passage)
    assert (passage.title, passage.text) == ("D", "The Danube.")


def test_a_large_array_is_read_one_row_at_a_time(write: Write) -> None:
    rows = [{"id": str(number), "text": "Ω" * number} for number in range(1, 3000)]
    path = write(json.dumps(rows, ensure_ascii=False), "c.json")
    assert [row.text for row in read_passages(path) if isinstance(row, Passage)] == [row["text"] for row in rows]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"id": "a", "text": "x"}, {"id": "b", "te', "after row 1"),
        ('[{"id": "a", "text": "x"} {"id": "b"}]', "after row 0"),
        ('[{"id": "a", "text": "x"},\n {"id": "b", "text": "y"}\n', "after row 1"),
        ('[{"id": "a", "text": "x"}]\n{"id": "b", "text": "y"}', "something follows"),
        ('[{"id": "a", "text": "x"},]', "after row 1"),
    ],
)
def test_a_damaged_array_is_an_error_after_its_whole_rows(write: Write, content: str, message: str) -> None:
    rows: list[object] = []
    path = write(content, "c.json")
    with pytest.raises(InputError, match=message):
        rows.extend(read_passages(path))
    assert [type(row) for row in rows] == [Passage] * (0 if "row 0" in message else 1)


# Compression


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.jsonl.zst", "c.json.gz", "c.ndjson", "C.JSONL.GZ", "-"])
@pytest.mark.parametrize("pack", [gzip.compress, zstd, bytes])
def test_what_a_file_is_compressed_with_shows_in_its_content_whatever_its_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    pack: Any,  # noqa: ANN401
) -> None:
    content, path = pack(TWO.encode()), tmp_path / name
    path.write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert read(name if name == "-" else str(path)) == READ


def test_a_compressed_table_and_a_compressed_folder_are_read(write: Write, tmp_path: Path) -> None:
    assert read(write(zstd(b"id,text\na,The Danube.\nb,Oulu.\n"), "c.csv.zst")) == READ
    write(zstd(TWO.encode()), "corpus.jsonl.zst")
    assert read(str(tmp_path)) == READ


def test_a_truncated_zstd_file_is_an_error(write: Write) -> None:
    path = write(zstd(b'{"id": "1", "text": "a"}\n' * 10_000)[:-9], "c.jsonl.zst")
    with pytest.raises(InputError, match="cannot be read"):
        read(path)


# Fields


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"pid": "p1", "docid": "d1", "passage": "x"}, Passage("p1", "x", "", {"docid": "d1"})),
        ({"docid": "d1", "text": "x"}, Passage("d1", "x")),
        ({"id": "1", "pid": "p1", "text": "x"}, Passage("1", "x", "", {"pid": "p1"})),
    ],
)
def test_passages_of_ms_marco_v2_have_their_own_ids(write: Write, row: dict[str, str], expected: Passage) -> None:
    assert list(read_passages(write(lines_of(row)))) == [expected]


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv"])
def test_the_text_may_be_in_a_field_that_the_user_names(write: Write, name: str) -> None:
    content = lines_of({"id": "a", "body": "x", "text": "y"}) if name == "c.jsonl" else "id,body,text\na,x,y\n"
    assert list(read_passages(write(content, name), text_field="body")) == [Passage("a", "x", "", {"text": "y"})]


def test_the_queries_of_doct5query_are_read(write: Write) -> None:
    path = write(lines_of({"id": "a", "text": "x", "predicted_queries": ["what is x", "who"]}))
    queries = (GeneratedQuery("", "what is x"), GeneratedQuery("", "who"))
    assert list(read_queried_passages(path)) == [QueriedPassage(Passage("a", "x"), queries)]
    with pytest.raises(InputError, match="has predicted_queries, which only --queries corpus uses"):
        list(read_passages(path))


# Parquet

DAY, MOMENT = date(2024, 1, 2), datetime(2024, 1, 2, 3, 4, tzinfo=UTC)
ID = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (pa.date32(), DAY, "2024-01-02"),
        (pa.timestamp("s"), datetime(2024, 1, 2, 3, 4), "2024-01-02 03:04:00.000"),
        (pa.timestamp("s", "UTC"), MOMENT, "2024-01-02 03:04:00.000Z"),
        (pa.time32("s"), time(3, 4), "03:04:00.000"),
        (pa.decimal128(5, 2), Decimal("1.50"), "1.50"),
        (pa.list_(pa.date32()), [DAY, None], ["2024-01-02", None]),
        (pa.large_list(pa.date32()), [DAY], ["2024-01-02"]),
        (pa.list_(pa.date32(), 1), [DAY], ["2024-01-02"]),
        (pa.list_(pa.list_(pa.decimal128(5, 2))), [[Decimal("1.50")]], [["1.50"]]),
        (pa.struct([("at", pa.date32())]), {"at": DAY}, {"at": "2024-01-02"}),
        (pa.list_(pa.struct([("at", pa.date32())])), [{"at": DAY}], [{"at": "2024-01-02"}]),
        (pa.uuid(), ID.bytes, str(ID)),
        (pa.map_(pa.string(), pa.int64()), [("k", 1)], {"k": 1}),
        (pa.map_(pa.string(), pa.int64()), [], {}),
        (pa.map_(pa.int64(), pa.date32()), [(1, DAY)], {"1": "2024-01-02"}),
        (pa.map_(pa.date32(), pa.string()), [(DAY, "x")], {"2024-01-02": "x"}),
        (pa.map_(pa.string(), pa.list_(pa.decimal128(5, 2))), [("k", [Decimal("1.50")])], {"k": ["1.50"]}),
        (pa.list_(pa.map_(pa.string(), pa.string())), [[("k", "x")], None], [{"k": "x"}, None]),
        (pa.struct([("of", pa.map_(pa.string(), pa.string()))]), {"of": [("k", "x")]}, {"of": {"k": "x"}}),
    ],
    ids=str,
)
def test_each_type_of_parquet_becomes_json(tmp_path: Path, kind: Any, value: Any, expected: Any) -> None:  # noqa: ANN401
    path = tmp_path / "c.parquet"
    columns = {"id": ["a", "b"], "text": ["x", "y"], "of": pa.array([value, None], kind)}
    pq.write_table(pa.table(columns), path)
    passages = [Passage("a", "x", "", {"of": expected}), Passage("b", "y", "", {"of": None})]
    assert list(read_passages(str(path))) == passages


def test_ids_may_be_uuids_and_a_map_with_one_key_twice_rejects_its_row(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    maps = pa.array([[("k", 1), ("k", 2)], [("k", 1)]], pa.map_(pa.string(), pa.int64()))
    ids = pa.array([uuid.UUID(int=1).bytes, ID.bytes], pa.uuid())
    pq.write_table(pa.table({"id": ids, "text": ["x", "y"], "of": maps}), path)
    assert read(str(path)) == ["1: a value that cannot be read: a map with two entries of one key", f"{ID}=y"]


@pytest.mark.parametrize("name", ["struct-ts", "list-date", "struct-decimal"])
def test_no_row_is_rejected_for_a_date_inside_a_value(name: str) -> None:
    rows = list(read_passages(str(shared_file(f"../cases/parquet-nested-dates/{name}.parquet"))))
    assert rows
    assert all(isinstance(row, Passage) for row in rows)
