from __future__ import annotations

import gzip
import io
import json
import math
import re
import sys
import tracemalloc
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from shared_data import shared_file
from writing import Write, lines_of

from xqg_qdrant.corpus.files import GZIP, LONGEST_ROW, ZSTD
from xqg_qdrant.corpus.formats import count_rows
from xqg_qdrant.corpus.passages import check_passages, read_passages
from xqg_qdrant.errors import InputError, StoreError
from xqg_qdrant.records import AugmentedPassage, Passage, Reject
from xqg_qdrant.stores.points import make_payload


def passages_of(source: str, **options: Any) -> list[Passage]:
    rows = list(read_passages(source, **options))
    assert not [row for row in rows if isinstance(row, Reject)]
    return [row for row in rows if isinstance(row, Passage)]


# Passages


def test_a_line_becomes_a_passage_and_other_fields_its_metadata(write: Write) -> None:
    path = write(lines_of({"id": "7", "title": "Oulu", "text": "A city.", "year": 1605, "tags": ["x", None]}))
    assert passages_of(path) == [Passage("7", "A city.", "Oulu", {"year": 1605, "tags": ["x", None]})]


@pytest.mark.parametrize("id_field", ["id", "_id", "passage_id", "pid", "docid"])
@pytest.mark.parametrize("text_field", ["text", "contents", "passage"])
def test_the_usual_names_of_id_and_text_are_known(write: Write, id_field: str, text_field: str) -> None:
    assert passages_of(write(lines_of({id_field: "a", text_field: "b"}))) == [Passage("a", "b")]


def test_the_first_usual_name_wins_and_the_second_is_metadata(write: Write) -> None:
    assert passages_of(write(lines_of({"_id": "x", "id": "a", "text": "b"}))) == [Passage("a", "b", "", {"_id": "x"})]


def test_the_id_may_be_in_a_field_that_the_user_names(write: Write) -> None:
    path = write(lines_of({"key": 5, "id": "other", "text": "b"}))
    assert passages_of(path, id_field="key") == [Passage("5", "b", "", {"id": "other"})]


def test_a_metadata_object_is_merged_and_wins(write: Write) -> None:
    path = write(lines_of({"_id": "a", "text": "b", "year": 1, "metadata": {"year": 2, "deep": {"x": 1.5}}}))
    assert passages_of(path)[0].metadata == {"year": 2, "deep": {"x": 1.5}}
    path = write(lines_of({"_id": "a", "text": "b", "metadata": "a string"}))
    assert passages_of(path)[0].metadata == {"metadata": "a string"}


def test_integer_ids_become_strings_and_a_null_title_is_none(write: Write) -> None:
    assert passages_of(write(lines_of({"id": 12, "text": "b", "title": None}))) == [Passage("12", "b")]


def test_a_byte_order_mark_crlf_and_blank_lines_do_no_harm(write: Write) -> None:
    path = write(b'\xef\xbb\xbf{"id": "1", "text": "a"}\r\n\r\n  \r\n{"id": "2", "text": "b"}\r\nno')
    first, second, reject = read_passages(path)
    assert (first, second) == (Passage("1", "a"), Passage("2", "b"))
    assert isinstance(reject, Reject)
    assert reject.line == 5


def test_a_line_separator_within_a_text_does_not_end_the_line(write: Write) -> None:
    assert passages_of(write(lines_of({"id": "1", "text": "a\u2028b\x85c"})))[0].text == "a\u2028b\x85c"


def test_gzipped_files_are_read(write: Write) -> None:
    assert passages_of(write(lines_of({"id": "1", "text": "a"}), "c.jsonl.gz")) == [Passage("1", "a")]
    assert passages_of(write("id\ttext\n1\ta\n", "c.tsv.gz")) == [Passage("1", "a")]


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b'{"id": "1", "text": "\xc3\xa4"}\n{"id": "2"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
    passage, reject = read_passages("-")
    assert passage == Passage("1", "ä")
    assert isinstance(reject, Reject)
    assert reject.source == "-"


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_a_beir_folder_is_read(write: Write, tmp_path: Path, name: str) -> None:
    write(lines_of({"_id": "d1", "title": "T", "text": "x", "metadata": {}}), f"beir/{name}")
    assert passages_of(str(tmp_path / "beir")) == [Passage("d1", "x", "T")]


# Rejects


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "1", "text": "a"', "malformed JSON"),
        (b'{"id": "1", "text": "a", "text": "b"}', "the field 'text' occurs twice"),
        (b'{"id": "1", "text": "a", "x": [{"y": 1, "y": 1}]}', "the field 'y' occurs twice"),
        (b'{"id": "%s", "text": "a"}' % (b"i" * 1025), "id is longer than 1024 bytes"),
        (b'{"id": "%s", "text": "a"}' % ("é" * 513).encode(), "id is longer than 1024 bytes"),
        (b'{"id": "\\u200b", "text": "a"}', "id is empty"),
        (b'{"id": "1", "text": "\\u0000\\u001b \\u200d\\u202e"}', "text is empty"),
        (b'["1", "a"]', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"\xff\xfe{\x00", "not UTF-8: byte 0xff at position 0; it begins like UTF-16"),
        (
            b'{\x00"\x00',
            r"malformed JSON: .*; it holds NUL bytes",
        ),
        (
            b'\xef\xbb\xbf{"id": "1", "text": "a"}',
            r"malformed JSON: .*; it begins with a byte order mark",
        ),
        (
            b'{"id": "1", "text": "a"}\r{"id": "2", "text": "b"}',
            r"malformed JSON: .*; it holds carriage returns",
        ),
        (b'{"text": "a"}', "no id"),
        (b'{"id": null, "text": "a"}', "no id"),
        (b'{"id": "", "text": "a"}', "id is empty"),
        (b'{"id": " ", "text": "a"}', "id is empty"),
        (b'{"id": 1.0, "text": "a"}', "id is neither a string nor a whole number"),
        (b'{"id": true, "text": "a"}', "id is neither a string nor a whole number"),
        (b'{"id": "1"}', "no text"),
        (b'{"id": "1", "text": null}', "no text"),
        (b'{"id": "1", "text": ""}', "text is empty"),
        (b'{"id": "1", "text": " \\n\\t\\u3000"}', "text is empty"),
        (b'{"id": "1", "text": ["a"]}', "text is not a string"),
        (b'{"id": "1", "text": "a", "title": 5}', "title is not a string"),
        (b'{"id": "1", "text": "a \\ud83d"}', "text holds a lone surrogate"),
        (b'{"id": "\\udc00", "text": "a"}', "id holds a lone surrogate"),
        (b'{"id": "1", "text": "a", "x": {"\\ud800": 1}}', r"metadata.x: the key '\\ud800' holds a lone surrogate"),
        (b'{"id": "1", "text": "\xff\xfe"}', "not UTF-8: byte 0xff at position 21"),
        (b'{"id": "1", "text": "a", "x": NaN}', "metadata.x is nan"),
        (b'{"id": "1", "text": "a", "x": [-Infinity]}', r"metadata.x\[0\] is -inf"),
        (b'{"id": "1", "text": "a", "x": 1e999}', "metadata.x is inf"),
        (b'{"id": "1", "text": "a", "x": 18446744073709551616}', "metadata.x is a whole number of more than 64 bits"),
        (b'{"id": "1", "text": "a", "x": -9223372036854775809}', "metadata.x is a whole number of more than 64 bits"),
        (b'{"id": "1", "text": "a", "x": ' + b"9" * 5000 + b"}", "malformed JSON: a whole number of more"),
        (b'{"id": "1", "text": "a", "x": ' + b"[" * 100_000 + b"}", "malformed JSON: nested too deeply"),
    ],
)
def test_a_row_that_cannot_be_used_is_rejected_and_the_rest_is_read(write: Write, line: bytes, reason: str) -> None:
    path = write(b'{"id": "first", "text": "a"}\n' + line + b'\n{"id": "last", "text": "b"}\n')
    first, reject, last = read_passages(path)
    assert (first, last) == (Passage("first", "a"), Passage("last", "b"))
    assert isinstance(reject, Reject)
    assert (reject.source, reject.line) == (path, 2)
    assert re.match(reason, reject.reason)
    assert reject.row == line.decode("utf-8", "backslashreplace")


def test_the_largest_numbers_of_64_bits_are_kept(write: Write) -> None:
    numbers = [2**64 - 1, -(2**63), 1e308, True]
    assert passages_of(write(lines_of({"id": "1", "text": "a", "x": numbers})))[0].metadata == {"x": numbers}


def test_metadata_nested_deeper_than_an_engine_can_read_back_is_rejected(write: Write) -> None:
    def nested(levels: int) -> str:
        return '{"id": "a", "text": "b", "tree": ' + "[" * levels + "]" * levels + "}"

    (kept,) = read_passages(write(nested(64)))
    assert isinstance(kept, Passage)
    (rejected,) = read_passages(write(nested(65)))
    assert isinstance(rejected, Reject)
    assert rejected.reason == f"metadata.tree{'[0]' * 64} is nested deeper than 64 levels"


def test_a_row_and_a_payload_have_the_same_limits() -> None:
    def nested(levels: int) -> object:
        return json.loads("[" * levels + "]" * levels)

    for value in (2**64 - 1, -(2**63), 1e308, nested(64), "\U0010ffff", {"é": (1, None)}):
        passage = Passage("1", "a", "", {"x": value})
        assert list(check_passages([{"id": "1", "text": "a", "x": value}])) == [passage]
        assert make_payload(point_of(passage))["metadata"] == json.loads(json.dumps({"x": value}))
    for value in (
        2**64,
        -(2**63) - 1,
        math.nan,
        nested(65),
        "\ud800",
        {"\ud800": 1},
        {1: 1},
        b"",
        10**5000,
        {10**5000: 1},
    ):
        (reject,) = check_passages([{"id": "1", "text": "a", "x": value}])
        assert isinstance(reject, Reject)
        with pytest.raises(StoreError) as caught:
            make_payload(point_of(Passage("1", "a", "", {"x": value})))
        assert caught.value.message == f"passage '1': {reject.reason}."
        assert caught.value.cure


class Faulty:
    def __repr__(self) -> str:
        raise RuntimeError


def test_a_row_whose_values_cannot_be_printed_is_rejected() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    values = (10**5000, deep, Faulty())
    rows: list[Any] = [
        *({"id": "1", "text": "a", "x": value} for value in values),
        {"id": 10**5000, "text": "a"},
        *values,
    ]
    rejects = [reject for reject in check_passages(rows) if isinstance(reject, Reject)]
    assert len(rejects) == len(rows)
    assert rejects[0].row == "{'id': '1', 'text': 'a', 'x': <an integer of 16610 bits>}"
    assert rejects[3].reason == "id is longer than 1024 bytes"


def test_the_path_to_a_bad_value_is_short_however_long_the_keys_are() -> None:
    (reject,) = check_passages([{"id": "1", "text": "a", "x" * 10**6: [[{"y" * 10**6: math.nan}]]}])
    assert isinstance(reject, Reject)
    assert len(reject.reason) < 3000


def point_of(passage: Passage) -> AugmentedPassage:
    return AugmentedPassage(passage, (), {}, "hash", "recipe")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", '{"id": 1}\n\n{broken\n'), ("a.jsonl.gz", "{}\n{}"), ("a.tsv", "id\ttext\n1\tx\n2\ty\n")],
)
def test_rows_are_counted_without_being_parsed(write: Write, name: str, content: str) -> None:
    assert count_rows(write(content, name)) == 2


def test_a_whole_pair_of_surrogates_is_one_character(write: Write) -> None:
    assert passages_of(write('{"id": "1", "text": "\\ud83d\\ude00"}'))[0].text == "😀"


def test_an_id_that_was_there_before_is_rejected_also_as_a_number(write: Write) -> None:
    path = write(lines_of({"id": "1", "text": "a"}, {"id": 1, "text": "b"}, {"id": "2", "text": "c"}))
    first, reject, last = read_passages(path)
    assert (first, last) == (Passage("1", "a"), Passage("2", "c"))
    assert isinstance(reject, Reject)
    assert (reject.line, reject.reason) == (2, "the id '1' occurred before")


def test_the_id_of_a_rejected_row_may_come_again(write: Write) -> None:
    reject, passage = read_passages(write(lines_of({"id": "1", "text": ""}, {"id": "1", "text": "b"})))
    assert isinstance(reject, Reject)
    assert passage == Passage("1", "b")


def test_memory_does_not_grow_with_the_corpus(write: Write) -> None:
    path = write("".join(f'{{"id": {number}, "text": "{"word " * 200}"}}\n' for number in range(20_000)))
    tracemalloc.start()
    assert sum(1 for _ in read_passages(path)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert Path(path).stat().st_size > 20_000_000
    assert peak < 8_000_000


@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line), max_size=8))
def test_every_line_that_is_not_blank_becomes_a_passage_or_a_reject(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    assume(not b"".join(lines[:1]).startswith((GZIP, ZSTD)))
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(b"\n".join(lines))
    without_mark = [line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line for number, line in enumerate(lines)]
    rows = list(read_passages(str(path)))
    assert [row.line for row in rows if isinstance(row, Reject)] == [
        number for number, line in enumerate(without_mark, start=1) if line.strip()
    ]


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=5))
def test_whatever_text_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str]) -> None:
    path = tmp_path_factory.getbasetemp() / "texts.jsonl"
    written = {f"{name}!": f"{text}." for name, text in texts.items()}
    path.write_text(lines_of(*({"id": name, "text": text} for name, text in written.items())), encoding="utf-8")
    assert passages_of(str(path)) == [Passage(name, text) for name, text in written.items()]


# TSV


def test_a_dpr_file_is_read_quoted_or_not(write: Write) -> None:
    plain = passages_of(write("id\ttext\ttitle\n1\tHe said hello.\tOulu\n", "c.tsv"))
    quoted = passages_of(write('"id"\t"text"\t"title"\n1\t"He said hello."\t"Oulu"\n', "c.tsv"))
    assert plain == quoted == [Passage("1", "He said hello.", "Oulu")]


def test_doubled_quotes_within_a_quoted_cell_become_single(write: Write) -> None:
    path = write('id\ttext\ttitle\n1\t"He said ""hello"" twice."\t"""Oulu"""\n', "c.tsv")
    assert passages_of(path) == [Passage("1", 'He said "hello" twice.', '"Oulu"')]


def test_a_text_that_merely_begins_with_a_quotation_mark_swallows_nothing(write: Write) -> None:
    path = write('id\ttext\n1\t"Hello," he said.\n2\t5" wide\n3\t"a" and "b"\n4\t"\n', "c.tsv")
    assert [p.text for p in passages_of(path)] == ['"Hello," he said.', '5" wide', '"a" and "b"', '"']


def test_a_tab_within_quotes_is_text(write: Write) -> None:
    assert passages_of(write('id\ttext\n1\t"a\tb"\n', "c.tsv")) == [Passage("1", "a\tb")]


def test_columns_are_found_by_their_names_and_others_are_metadata(write: Write) -> None:
    path = write("title\tyear\tcontents\tdocid\r\nOulu\t1605\ta city\tx1\r\n", "c.tsv")
    assert passages_of(path) == [Passage("x1", "a city", "Oulu", {"year": "1605"})]


def test_a_row_of_another_width_is_rejected(write: Write) -> None:
    path = write(b"id\ttext\n1\n2\tb\n3\tc\td\n\xff\te\n", "c.tsv")
    rows = list(read_passages(path))
    assert rows[1] == Passage("2", "b")
    assert [(row.line, row.reason) for row in rows if isinstance(row, Reject)] == [
        (2, "1 column where there should be 2"),
        (4, "3 columns where there should be 2"),
        (5, "not UTF-8: byte 0xff at position 0"),
    ]


def test_a_tsv_file_without_a_header_is_an_error_that_shows_one(write: Write) -> None:
    with pytest.raises(InputError, match="first line names no id and text columns"):
        list(read_passages(write("1\ta text\n", "c.tsv")))


def test_a_header_that_names_a_column_twice_is_an_error(write: Write) -> None:
    with pytest.raises(InputError, match="two columns are named 'text'"):
        list(read_passages(write("id\ttext\ttext\n1\ta\tb\n", "c.tsv")))


def test_a_byte_order_mark_amid_a_tsv_file_does_not_become_part_of_an_id(write: Write) -> None:
    _, reject = read_passages(write("id\ttext\n1\ta\n\ufeff2\tb\n", "c.tsv"))
    assert isinstance(reject, Reject)
    assert reject.reason == "the row begins with a byte order mark, as in joined files"


# Parquet


def test_a_parquet_file_is_read_with_dates_as_strings(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "c.parquet")
    rows = [
        {"id": 1, "text": "a", "title": None, "day": date(2023, 4, 5), "metadata": {"x": [1, 2]}},
        {"id": 2, "text": None, "title": "t", "day": None, "metadata": None},
        {"id": 1, "text": "again", "title": "t", "day": None, "metadata": None},
        {"id": 3, "text": "c", "title": "t", "day": None, "metadata": {"x": None}},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    first, second, third, last = read_passages(path)
    assert first == Passage("1", "a", "", {"day": "2023-04-05", "x": [1, 2]})
    assert last == Passage("3", "c", "t", {"day": None, "x": None})
    assert isinstance(second, Reject)
    assert isinstance(third, Reject)
    assert second[:3] == (path, 2, "no text (looked for text, contents, passage)")
    assert "'title': 't'" in second.row
    assert third[:3] == (path, 3, "the id '1' occurred before")


def test_a_parquet_row_that_is_not_utf8_or_not_json_is_rejected_alone(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    text = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    table = pa.table({"id": ["1", "2", "3"], "text": text, "raw": pa.array([None, None, b"x"])})
    path = str(tmp_path / "c.parquet")
    pq.write_table(table, path)
    first, second, third = read_passages(path)
    assert first == Passage("1", "a", "", {"raw": None})
    assert isinstance(second, Reject)
    assert isinstance(third, Reject)
    assert (second.line, second.reason) == (2, "not UTF-8: byte 0xff at position 0")
    assert (third.line, third.reason) == (3, "metadata.raw is a bytes, which JSON does not have")


def test_dates_times_and_decimals_of_parquet_are_strings_at_any_depth_and_large_integers_stay(tmp_path: Path) -> None:
    path = str(tmp_path / "c.parquet")
    price = pa.struct([("paid", pa.decimal128(5, 2)), ("on", pa.list_(pa.date32()))])
    columns = {
        "id": pa.array([2**64 - 1], pa.uint64()),
        "text": ["a"],
        "size": pa.array([2**63], pa.uint64()),
        "price": pa.array([{"paid": Decimal("1.50"), "on": [date(2023, 4, 5)]}], price),
        "read": pa.array([[("at", 1)]], pa.map_(pa.string(), pa.timestamp("ns"))),
    }
    pq.write_table(pa.table(columns), path)
    [passage] = passages_of(path)
    assert passage.passage_id == "18446744073709551615"
    assert passage.metadata == {
        "size": 2**63,
        "price": {"paid": "1.50", "on": ["2023-04-05"]},
        "read": {"at": "1970-01-01 00:00:00.000000001"},
    }


def test_a_parquet_value_that_cannot_be_read_rejects_its_row_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "c.parquet")
    day = pa.array([2**30, 1, 1], pa.date32())
    twins = pa.StructArray.from_arrays([pa.array([1, 2, 3])] * 2, ["x", "x"], mask=pa.array([True, False, True]))
    pq.write_table(pa.table({"id": ["1", "2", "3"], "text": ["a", "b", "c"], "day": day, "twins": twins}), path)
    first, second, third = read_passages(path)
    assert isinstance(first, Reject)
    assert isinstance(second, Reject)
    assert first[:3] == (path, 1, "a value that cannot be read: a date or time out of range")
    assert (second.line, second.reason[:52]) == (2, "a value that cannot be read: Converting to Python di")
    assert third == Passage("3", "c", "", {"day": "1970-01-02", "twins": None})


def test_a_time_zone_that_is_unknown_rejects_the_rows_and_does_not_end_the_run(tmp_path: Path) -> None:
    path = str(tmp_path / "c.parquet")
    at = pa.array([1], pa.timestamp("ms", "Mars/Olympus"))
    pq.write_table(pa.table({"id": ["1"], "text": ["a"], "at": at}), path)
    [reject] = read_passages(path)
    assert isinstance(reject, Reject)
    assert "Mars/Olympus" in reject.reason


def test_parquet_without_its_extra_names_the_extra(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'xqg-qdrant\[parquet\]'"):
        list(read_passages(write("", "c.parquet")))


def test_a_parquet_file_without_an_id_column_or_a_damaged_one_is_an_error(write: Write, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "c.parquet")
    pq.write_table(pa.table({"key": ["1"], "text": ["a"]}), path)
    with pytest.raises(InputError, match="no column is named id or _id or passage_id or pid or docid"):
        list(read_passages(path))
    assert passages_of(path, id_field="key") == [Passage("1", "a")]
    with pytest.raises(InputError, match="not a readable Parquet file"):
        list(read_passages(write("no", "d.parquet")))


def test_a_parquet_row_that_is_too_long_is_rejected_alone(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "c.parquet")
    texts = ["a", "b" * 3_000_000, "c" * LONGEST_ROW, "d" * 3_000_000, "e"]
    # The words of a dictionary do not count for every row.
    kinds = pa.array([kind * 900_000 for kind in "vwxyz"]).dictionary_encode()
    pq.write_table(pa.table({"id": [*"12345"], "text": texts, "kind": kinds}), path)
    rows = list(read_passages(path))
    assert [row.passage_id for row in rows if isinstance(row, Passage)] == [*"1245"]
    assert [(row.line, row.reason) for row in rows if isinstance(row, Reject)] == [(3, "longer than 4,194,304 bytes")]


def test_a_parquet_file_that_names_a_column_twice_is_an_error(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "c.parquet")
    pq.write_table(pa.Table.from_arrays([pa.array(["1"])] * 3, names=["id", "text", "text"]), path)
    with pytest.raises(InputError, match="two columns are named 'text'"):
        list(read_passages(path))


# Files that cannot be used


def test_a_missing_file_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        read_passages(str(tmp_path / "none.jsonl"))


def test_an_unknown_kind_of_file_is_an_error_that_lists_the_kinds(write: Write) -> None:
    with pytest.raises(InputError, match=r"use a \.jsonl, \.json, \.tsv, \.csv or \.parquet file"):
        read_passages(write("", "corpus.xml"))


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the folder holds no corpus\.jsonl\. Cure: name the file itself"):
        read_passages(str(tmp_path))


def test_a_damaged_gzip_file_is_an_error(write: Write, tmp_path: Path) -> None:
    whole = Path(write(lines_of(*({"id": n, "text": str(n) * 50} for n in range(2000))), "c.jsonl.gz")).read_bytes()
    for name, damaged in {
        "cut": whole[:-20],
        "bent": whole[:300] + b"\xff" * 9 + whole[309:],
    }.items():
        (tmp_path / f"{name}.jsonl.gz").write_bytes(damaged)
        path = str(tmp_path / f"{name}.jsonl.gz")
        with pytest.raises(InputError, match="the gzip file is damaged"):
            list(read_passages(path))
        assert count_rows(path) is None


# Real files


def test_the_dev_corpus_is_read_whole() -> None:
    passages = passages_of(str(shared_file("dev/corpus.jsonl.gz")))
    assert len(passages) == 3446
    assert passages[0].title == "Super Bowl 50"


def test_files_are_read_one_after_the_other_and_an_id_may_stand_in_one_of_them(write: Write) -> None:
    first = write(lines_of({"id": "1", "text": "a"}), "a.jsonl")
    second = write(lines_of({"id": "2", "text": "b"}, {"id": "1", "text": "c"}), "b.jsonl")
    *passages, reject = read_passages(first, second)
    assert passages == [Passage("1", "a"), Passage("2", "b")]
    assert isinstance(reject, Reject)
    assert (reject.source, reject.line, reject.reason) == (second, 2, "the id '1' occurred before")
    with pytest.raises(InputError, match="there is no such file"):
        read_passages(first, "none.jsonl")


def test_a_folder_of_parquet_files_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, number in (("part-1.parquet", "2"), ("part-0.parquet", "1"), ("part-2.parquet", "1")):
        pq.write_table(pa.table({"id": [number], "text": ["a"]}), tmp_path / name)
    (tmp_path / "_SUCCESS").touch()
    for source in (str(tmp_path), tmp_path.as_uri(), f"{tmp_path.as_uri()}/"):
        *passages, reject = read_passages(source)
        assert passages == [Passage("1", "a"), Passage("2", "a")]
        assert isinstance(reject, Reject)
        assert reject.source.endswith("part-2.parquet")
        assert count_rows(source) == 3


def test_files_of_object_stores_are_read_by_their_urls(write: Write, tmp_path: Path) -> None:
    # pyarrow opens file:// by the same interface as s3:// and gs://, which need a network.
    write(lines_of({"id": "1", "text": "a"}, {"id": "2", "text": ""}), "a.jsonl")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"id": "3", "text": "b"}\n'))
    url = tmp_path.as_uri()
    passage, reject, zipped = read_passages(f"{url}/a.jsonl", f"{url}/b.jsonl.gz")
    assert (passage, zipped) == (Passage("1", "a"), Passage("3", "b"))
    assert isinstance(reject, Reject)
    assert (reject.source, reject.line) == (f"{url}/a.jsonl", 2)
    for name, message in (("none.jsonl", "there is no such file"), ("", "the folder holds no Parquet file")):
        with pytest.raises(InputError, match=message):
            read_passages(f"{url}/{name}")
    with pytest.raises(InputError, match="the URL cannot be opened"):
        read_passages("sftp://somewhere/a.jsonl")
