from __future__ import annotations

import gzip
import io
import json
import sys
import tracemalloc
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import shared_file

from xqg_qdrant import corpus
from xqg_qdrant.corpus import count_rows, read_passages, read_queries, write_dead_letters
from xqg_qdrant.errors import InputError
from xqg_qdrant.records import Passage, Query, Reject

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str | bytes, name: str = "corpus.jsonl") -> str:
        data = content if isinstance(content, bytes) else content.encode("utf-8")
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return write


def lines_of(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def passages_of(source: str, **options: str) -> list[Passage]:
    rows = list(read_passages(source, **options))
    assert not [row for row in rows if isinstance(row, Reject)]
    return [row for row in rows if isinstance(row, Passage)]


# Passages


def test_a_line_becomes_a_passage_and_other_fields_its_metadata(write: Write) -> None:
    path = write(lines_of({"id": "7", "title": "Oulu", "text": "A city.", "year": 1605, "tags": ["x", None]}))
    assert passages_of(path) == [Passage("7", "A city.", "Oulu", {"year": 1605, "tags": ["x", None]})]


@pytest.mark.parametrize("id_field", ["id", "_id", "passage_id", "docid"])
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
        (b'["1", "a"]', "not a JSON object"),
        (b"null", "not a JSON object"),
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
        (b'{"id": "1", "text": "a", "x": {"\\ud800": 1}}', "metadata holds a lone surrogate"),
        (b'{"id": "1", "text": "\xff\xfe"}', "not UTF-8: byte 0xff at position 21"),
        (b'{"id": "1", "text": "a", "x": NaN}', "metadata holds nan"),
        (b'{"id": "1", "text": "a", "x": [-Infinity]}', "metadata holds -inf"),
        (b'{"id": "1", "text": "a", "x": 1e999}', "metadata holds inf"),
        (b'{"id": "1", "text": "a", "x": 9223372036854775808}', "metadata holds a whole number of more than 64 bits"),
        (b'{"id": "1", "text": "a", "x": -9223372036854775809}', "metadata holds a whole number of more than 64 bits"),
        (b'{"id": "1", "text": "a", "x": ' + b"9" * 5000 + b"}", "malformed JSON"),
        (b'{"id": "1", "text": "a", "x": ' + b"[" * 100_000 + b"}", "malformed JSON"),
    ],
)
def test_a_row_that_cannot_be_used_is_rejected_and_the_rest_is_read(write: Write, line: bytes, reason: str) -> None:
    path = write(b'{"id": "first", "text": "a"}\n' + line + b'\n{"id": "last", "text": "b"}\n')
    first, reject, last = read_passages(path)
    assert (first, last) == (Passage("first", "a"), Passage("last", "b"))
    assert isinstance(reject, Reject)
    assert (reject.source, reject.line) == (path, 2)
    assert reject.reason.startswith(reason)
    assert reject.row == line.decode("utf-8", "backslashreplace")


def test_the_largest_numbers_of_64_bits_are_kept(write: Write) -> None:
    numbers = [2**63 - 1, -(2**63), 1e308, True]
    assert passages_of(write(lines_of({"id": "1", "text": "a", "x": numbers})))[0].metadata == {"x": numbers}


def test_metadata_nested_deeper_than_an_engine_can_read_back_is_rejected(write: Write) -> None:
    def nested(levels: int) -> str:
        return '{"id": "a", "text": "b", "tree": ' + "[" * levels + "]" * levels + "}"

    # The metadata itself is the first level.
    (kept,) = read_passages(write(nested(31)))
    assert isinstance(kept, Passage)
    (rejected,) = read_passages(write(nested(32)))
    assert isinstance(rejected, Reject)
    assert rejected.reason == "metadata is nested deeper than 32 levels"


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
    assert (reject.line, reject.reason) == (2, "the id '1' was there before")


def test_the_id_of_a_rejected_row_may_come_again(write: Write) -> None:
    reject, passage = read_passages(write(lines_of({"id": "1", "text": ""}, {"id": "1", "text": "b"})))
    assert isinstance(reject, Reject)
    assert passage == Passage("1", "b")


@given(st.lists(st.text(max_size=3), max_size=60))
def test_first_time_agrees_with_a_set(names: list[str]) -> None:
    is_new, seen = corpus._first_time(), set()
    for name in names:
        assert is_new(name) is (name not in seen)
        seen.add(name)


def test_first_time_is_not_deceived_by_bytes_across_the_border_of_two_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    class Digest:  # the name, in the place of its digest
        def __init__(self, data: bytes, digest_size: int) -> None:
            self.data = data

        def digest(self) -> bytes:
            return self.data

    monkeypatch.setattr(corpus, "blake2b", Digest)
    is_new = corpus._first_time()
    assert is_new("__" + "a" * 7 + "b" * 7)
    assert is_new("__" + "c" * 7 + "d" * 7)
    assert is_new("__" + "b" * 7 + "c" * 7)
    assert not is_new("__" + "b" * 7 + "c" * 7)


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
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(b"\n".join(lines))
    without_mark = [line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line for number, line in enumerate(lines)]
    rows = list(read_passages(str(path)))
    assert [row.line for row in rows if isinstance(row, Reject)] == [
        number for number, line in enumerate(without_mark, start=1) if line.strip()
    ]


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=1).filter(str.strip), max_size=5))
def test_whatever_text_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str]) -> None:
    path = tmp_path_factory.getbasetemp() / "texts.jsonl"
    path.write_text(lines_of(*({"id": f"{name}!", "text": text} for name, text in texts.items())), encoding="utf-8")
    assert passages_of(str(path)) == [Passage(f"{name}!", text) for name, text in texts.items()]


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
        (2, "1 columns where there should be 2"),
        (4, "3 columns where there should be 2"),
        (5, "not UTF-8: byte 0xff at position 0"),
    ]


def test_a_tsv_file_without_a_header_is_an_error_that_shows_one(write: Write) -> None:
    with pytest.raises(InputError, match="first line names no id and text columns; begin the file with a line such as"):
        list(read_passages(write("1\ta text\n", "c.tsv")))


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
    assert third[:3] == (path, 3, "the id '1' was there before")


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
    assert (third.line, third.reason) == (3, "metadata holds a bytes, which is not JSON")


def test_parquet_without_its_extra_names_the_extra(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install xqg-qdrant\[parquet\]"):
        list(read_passages(write("", "c.parquet")))


def test_a_parquet_file_without_an_id_column_or_a_damaged_one_is_an_error(write: Write, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "c.parquet")
    pq.write_table(pa.table({"key": ["1"], "text": ["a"]}), path)
    with pytest.raises(InputError, match="no column is named id or _id or passage_id or docid"):
        list(read_passages(path))
    assert passages_of(path, id_field="key") == [Passage("1", "a")]
    with pytest.raises(InputError, match="not a Parquet file that can be read"):
        list(read_passages(write("no", "d.parquet")))


# Files that cannot be used


def test_a_missing_file_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        read_passages(str(tmp_path / "none.jsonl"))


def test_an_unknown_kind_of_file_is_an_error_that_lists_the_kinds(write: Write) -> None:
    with pytest.raises(InputError, match=r"give a \.jsonl, \.jsonl\.gz, \.tsv, \.tsv\.gz or \.parquet file"):
        read_passages(write("", "corpus.xml"))


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the folder holds no corpus\.jsonl; give the file itself"):
        read_passages(str(tmp_path))


def test_a_damaged_gzip_file_is_an_error(write: Write, tmp_path: Path) -> None:
    whole = Path(write(lines_of(*({"id": n, "text": str(n) * 50} for n in range(2000))), "c.jsonl.gz")).read_bytes()
    for name, damaged in {
        "cut": whole[:-20],
        "none": b"plain",
        "bent": whole[:300] + b"\xff" * 9 + whole[309:],
    }.items():
        (tmp_path / f"{name}.jsonl.gz").write_bytes(damaged)
        with pytest.raises(InputError, match="the gzip file is damaged"):
            list(read_passages(str(tmp_path / f"{name}.jsonl.gz")))


# Dead letters


def test_dead_letters_are_appended_as_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    first, second = Reject("c.jsonl", 3, "no id", '{"text": "ä\u2028"}'), Reject("c.jsonl", 9, "no text", "\\xff")
    assert write_dead_letters(path, [first]) == 1
    assert write_dead_letters(path, iter([second])) == 1
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows == [first._asdict(), second._asdict()]


# Questions


def test_questions_are_read_with_languages_and_answers(write: Write) -> None:
    path = write(
        lines_of(
            {"id": "1", "question": "Missä?", "lang": " fi", "answers": ["Oulu", "in Oulu"], "split": "dev"},
            {"_id": 2, "text": "Where?"},
            {"query_id": "3", "query": "Когда?", "language": "ru", "answers": "1605"},
        )
    )
    assert read_queries(path) == [
        Query("1", "Missä?", "fi", ("Oulu", "in Oulu")),
        Query("2", "Where?"),
        Query("3", "Когда?", "ru", ("1605",)),
    ]


def test_questions_come_from_tsv_with_a_header_or_without(write: Write) -> None:
    assert read_queries(write("q1\twhere?\nq2\twhen?\n", "q.tsv")) == [Query("q1", "where?"), Query("q2", "when?")]
    assert read_queries(write("id\tlang\ttext\nq1\tfi\tmissä?\n", "q.tsv")) == [Query("q1", "missä?", "fi")]


def test_questions_come_from_a_beir_folder(write: Write, tmp_path: Path) -> None:
    write(lines_of({"_id": "q1", "text": "where?", "metadata": {}}), "beir/queries.jsonl")
    assert read_queries(tmp_path / "beir") == [Query("q1", "where?")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "malformed JSON"),
        ('{"text": "a"}', "no id"),
        ('{"id": "2"}', "no text"),
        ('{"id": "1", "text": "again"}', "the id was there before"),
        ('{"id": "2", "text": "a", "lang": 5}', "the language is not a string"),
        ('{"id": "2", "text": "a", "answers": [1605]}', "the answers are not a list of strings"),
        ('{"id": "2", "text": "\\ud800"}', "text holds a lone surrogate"),
    ],
)
def test_a_question_that_cannot_be_used_is_an_error_with_its_line(write: Write, line: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"q\.jsonl, line 3: {reason}"):
        read_queries(write(lines_of({"id": "1", "text": "a"}) + "\n" + line + "\n", "q.jsonl"))


def test_a_file_without_questions_is_an_error(write: Write) -> None:
    with pytest.raises(InputError, match="holds no questions"):
        read_queries(write("\n", "q.jsonl"))


# Real files


def test_the_dev_corpus_is_read_whole() -> None:
    passages = passages_of(str(shared_file("dev/corpus.jsonl.gz")))
    assert len(passages) == 3446
    assert passages[0].title == "Super Bowl 50"


def test_the_languages_of_the_xor_train_file_lose_their_spaces() -> None:
    queries = read_queries(shared_file("xor/train.jsonl.gz"))
    assert len(queries) == 15250
    assert {query.language for query in queries} == {"ar", "bn", "fi", "ja", "ko", "ru", "te"}
