"""Each row of any file is stored unchanged, or written to the dead letters with its line and reason.

The rows of `hostile_rows` are shuffled among good ones and ingested by the command, into the real engine, with the real
encoder. With `--seeds N` it is some 1,000 N rows, and as many again by each other way into the command.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hostile_rows import ESCAPES, KINDS, TURNS, Line, as_json, good, stored

from xqg_qdrant.cli import main
from xqg_qdrant.stores import open_store

pytestmark = pytest.mark.usefixtures("opened_once")
VARIANTS = 6
GOOD = 200
KEPT = 10_000
CONTROLS = {chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cc"} - {"\n", "\t"}
UNSAFE = CONTROLS | {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("QDRANT_URL", "QDRANT_API_KEY", "XQG_STORE"):
        monkeypatch.delenv(name, raising=False)


def xqg(*arguments: object, stdin: bytes | None = None) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)
    # A progress bar returns to the beginning of its line; nothing else may.
    shown = set(re.sub(r"\r *(\d+%\|[^|]*\| )?[\d?]+[/ ]\S* ?\S*? ?\[[^\r\n]*", "", result.output))
    assert not UNSAFE & shown, [hex(ord(character)) for character in UNSAFE & shown]
    assert "bug in xqg" not in result.output, result.output
    return result


def ingest(source: str, *options: object, stdin: bytes | None = None) -> Result:
    return xqg("ingest", source, "--collection", "docs", "--threads", 1, *options, stdin=stdin)


def canonical(value: Any) -> str:  # noqa: ANN401
    return json.dumps(value, sort_keys=True)


def read_stored() -> dict[str, Any]:
    with closing(open_store("xqg_data")) as store:
        points = list(store.scroll("docs"))
    found = {
        point.passage.passage_id: {
            "id": point.passage.passage_id,
            "text": point.passage.text,
            "title": point.passage.title,
            "metadata": dict(point.passage.metadata),
            "queries": [[query.language, query.text] for query in point.generated_queries],
        }
        for point in points
    }
    assert len(found) == len(points)
    return found


def read_dead_letters() -> list[Any]:
    path = Path("docs.rejected.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()] if path.exists() else []


def assert_all_accounted_for(source: str, lines: Sequence[Line], first_line: int = 1) -> None:
    """Check that each line is stored as expected or rejected with its place and reason, and nothing else is."""
    expected = {line.stored["id"]: line.stored for line in lines if line.stored is not None}
    found = read_stored()
    assert found.keys() == expected.keys()
    for name, passage in expected.items():
        assert canonical(found[name]) == canonical(passage)
    dead_letters = {reject["line"]: reject for reject in read_dead_letters()}
    assert len(dead_letters) == len(read_dead_letters())
    wanted = {number: line for number, line in enumerate(lines, start=first_line) if line.reason}
    assert dead_letters.keys() == wanted.keys()
    for number, line in wanted.items():
        reject = dead_letters[number]
        assert reject.keys() == {"source", "line", "reason", "row"}
        assert reject["source"] == source
        assert reject["reason"].startswith(line.reason), (reject["reason"], line.reason)
        whole = line.data.decode("utf-8", "backslashreplace").strip(" \t\n\r\v\f")
        assert reject["row"] == whole[:KEPT]
        assert reject["reason"].endswith("(row: its first 10,000 characters)") == (len(whole) > KEPT)


def shuffled(seed: int) -> list[Line]:
    """Return variants of all kinds among good rows, in random order; the lines of one kind stay together."""
    random = Random(seed)
    groups = [
        kind(f"{number:x}z{variant}", random)
        for variant in range(VARIANTS)
        for number, kind in enumerate(KINDS.values())
    ]
    groups += [good(f"good{number}", random) for number in range(GOOD)]
    groups += [[Line(blank)] for blank in (b"", b"\r", b" \t") for _ in range(5)]
    groups.append([Line(as_json(id="large", text="word " * 200_000), stored("large", "word " * 200_000))])
    random.shuffle(groups)
    lines = [line for group in groups for line in group]
    if seed % 2:
        lines[0] = lines[0]._replace(data=b"\xef\xbb\xbf" + lines[0].data) if lines[0].stored else lines[0]
    return lines


def test_there_are_kinds_enough() -> None:
    assert len(KINDS) >= 60


def test_every_row_is_stored_as_it_is_or_written_down_with_its_line_and_reason(seed: int) -> None:
    lines = shuffled(seed)
    Path("corpus.jsonl").write_bytes(b"\n".join(line.data for line in lines) + (b"\n" if seed % 3 else b""))
    result = ingest("corpus.jsonl", "--queries", "corpus")
    assert result.exit_code == 3, result.output
    assert_all_accounted_for("corpus.jsonl", lines)
    rejects = sum(bool(line.reason) for line in lines)
    passages = sum(line.stored is not None for line in lines)
    assert f"{passages} passages stored, 0 unchanged, {rejects} rows rejected" in result.stderr
    assert f"docs.rejected.jsonl lists {rejects} rejected row" in result.stderr
    # All that is stored is shown, and steers no terminal.
    for options in ([], ["--json"]):
        shown = xqg("query", "--collection", "docs", "--limit", passages, *options, f"What is {ESCAPES}{TURNS}?")
        assert shown.exit_code == 0, shown.output
        if options:
            hits = json.loads(shown.stdout)["hits"]
            assert len(hits) == passages
            assert {hit["passage_id"] for hit in hits} == {line.stored["id"] for line in lines if line.stored}
        else:
            assert len(re.findall(r"^ {0,2}\d+  -?\d\.\d{4}  ", shown.stdout, re.MULTILINE)) == passages
    again = ingest("corpus.jsonl", "--queries", "corpus")
    assert f"0 passages stored, {passages} unchanged, {rejects} rows rejected" in again.stderr


@pytest.mark.parametrize("source", ["corpus.jsonl.gz", "-"])
def test_a_compressed_file_and_the_standard_input_give_the_same_rows(source: str, seed: int) -> None:
    lines = shuffled(seed)[:60]
    data = b"\n".join(line.data for line in lines)
    if source != "-":
        Path(source).write_bytes(gzip.compress(data, 1))
    result = ingest(source, "--queries", "corpus", stdin=data if source == "-" else None)
    assert result.exit_code == 3, result.output
    assert_all_accounted_for(source, lines)


def test_the_generator_takes_whatever_is_a_text(seed: int) -> None:
    random = Random(seed)
    names = [name for name in KINDS if "quer" not in name]
    lines = [line for name in random.sample(names, 40) for line in KINDS[name](f"x{names.index(name)}", random)]
    Path("corpus.jsonl").write_bytes(b"\n".join(line.data for line in lines))
    result = ingest("corpus.jsonl", "--languages", "fi", "--queries-per-language", 1, "--max-new-tokens", 4)
    assert result.exit_code == 3, result.output
    found = {name: {**passage, "queries": []} for name, passage in read_stored().items()}
    assert canonical(found) == canonical({line.stored["id"]: line.stored for line in lines if line.stored})
    assert [reject["line"] for reject in read_dead_letters()] == [
        number for number, line in enumerate(lines, start=1) if line.reason
    ]


# Files of queries


def test_every_row_of_a_file_of_queries_is_joined_or_written_down() -> None:
    rows = [
        Line(as_json(id="1", text="q", language="fi")),
        Line(b"{broken", None, "malformed JSON"),
        Line(b'{"id": "\\ud800", "text": "q"}', None, "id holds a lone surrogate"),
        Line(as_json(id="1", text=ESCAPES + "q")),
        Line(as_json(id=1, generated_queries=[])),
        Line(as_json(id="1" * 1025, text="q"), None, "id is longer than 1024 bytes"),
        Line(as_json(id="\0", text="q"), None, "id is empty"),
        Line(as_json(id="1", text=["q"]), None, "a query without a text"),
        Line(b"\xff\xfeq", None, "not UTF-8"),
        Line(b"[]", None, "not a JSON object"),
        Line(b'{"id": "1", "text": "q", "text": "r"}', None, "the field 'text' occurs twice"),
        Line(as_json(id="nobody", text=TURNS)),
    ]
    Path("q.jsonl").write_bytes(b"\n".join(row.data for row in rows))
    Path("corpus.jsonl").write_bytes(as_json(id="1", text="a"))
    result = ingest("corpus.jsonl", "--queries", "q.jsonl")
    assert result.exit_code == 3
    assert "Queries of q.jsonl that belong to no passage of corpus.jsonl: 1" in result.stderr
    kept = stored("1", "a", queries=[["fi", "q"], ["", ESCAPES + "q"]])
    assert read_stored() == {"1": kept}
    assert [(reject["source"], reject["line"]) for reject in read_dead_letters()] == [
        ("q.jsonl", number) for number, row in enumerate(rows, start=1) if row.reason
    ]
    for reject, row in zip(read_dead_letters(), [row for row in rows if row.reason], strict=True):
        assert reject["reason"].startswith(row.reason)


# TSV

TSV = [
    Line(b"1\ta\tb", stored("1", "a", "b")),
    Line(b'2\t"a ""b"""\t"""c"""', stored("2", 'a "b"', '"c"')),
    Line(b'3\t"Hello," he said.\tt', stored("3", '"Hello," he said.', "t")),
    Line(b'4\t"a\tb"\tt', stored("4", "a\tb", "t")),
    Line(b"5\ta", None, "2 columns where there should be 3"),
    Line(b"6\ta\tb\tc", None, "4 columns where there should be 3"),
    Line(b"", None),
    Line(b"\t\t", None),
    Line(b"7\ta\tt\r", stored("7", "a", "t")),
    Line(b"8\ta\rb\tt", stored("8", "a\rb", "t")),
    Line(b"9\t\x1b[2Ja\x07\tt\x9b".decode("latin-1").encode(), stored("9", "\x1b[2Ja\x07", "t\x9b")),
    Line(b"10\ta\x00b\tt", stored("10", "a\0b", "t")),
    Line(b"11\t\t", None, "text is empty"),
    Line(b"\ta\tt", None, "id is empty"),
    Line(b" 12 \t a \tt", stored(" 12 ", " a ", "t")),
    Line(b"13\t\xe9\tt", None, "not UTF-8: byte 0xe9 at position 3"),
    Line(b"1\tagain\tt", None, "the id '1' occurred before"),
    Line(b"\xef\xbb\xbf14\ta\tt", None, "the row begins with a byte order mark"),
    Line(b"15\t'a'\t\\N", stored("15", "'a'", "\\N")),
    Line(b'16\t"\t"', stored("16", '"', '"')),
    Line(b"=cmd|' /C calc'!A0\ta\tt", stored("=cmd|' /C calc'!A0", "a", "t")),
]


@pytest.mark.parametrize("name", ["c.tsv", "c.tsv.gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_row_of_a_tsv_file_is_stored_or_written_down(name: str, mark: bytes) -> None:
    data = mark + b"\n".join([b"id\ttext\ttitle", *(line.data for line in TSV)])
    Path(name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert ingest(name, "--queries", "corpus").exit_code == 3
    found = {reject["line"]: reject for reject in read_dead_letters()}
    assert found.keys() == {number for number, line in enumerate(TSV, start=2) if line.reason}
    for number, line in enumerate(TSV, start=2):
        if line.reason:
            assert found[number]["reason"].startswith(line.reason)
            assert found[number]["row"] == line.data.decode("utf-8", "backslashreplace")
    assert read_stored() == {line.stored["id"]: line.stored for line in TSV if line.stored}


# Parquet


def test_every_row_of_a_parquet_file_is_stored_or_written_down() -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    from datetime import UTC, date, datetime
    from decimal import Decimal

    invalid = pa.array([b"a", None, b"\xff", b"", b"\x1b[2Ja", b"a", b"a", b"a", b"x" * (4 << 20)]).view(pa.string())
    columns = {
        "id": pa.array([1, 2, 3, 4, 5, None, 7, 1, 9]),
        "text": invalid,
        "day": pa.array([date(2023, 4, 5)] + [None] * 8),
        "at": pa.array([datetime(2023, 4, 5, 6, 7, tzinfo=UTC)] + [None] * 8, pa.timestamp("s", "UTC")),
        "price": pa.array([Decimal("1.50")] + [None] * 8),
        "blob": pa.array([None] * 6 + [b"x", None, None]),
        "tree": pa.array([{"a": [1, {"b": None}][:1]}] + [None] * 8),
        "kind": pa.array(["k"] * 9).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), "c.parquet")
    assert ingest("c.parquet", "--queries", "corpus").exit_code == 3
    assert [(reject["line"], reject["reason"].split(" (")[0]) for reject in read_dead_letters()] == [
        (2, "no text"),
        (3, "not UTF-8: byte 0xff at position 0"),
        (4, "text is empty"),
        (6, "no id"),
        (7, "metadata.blob is a bytes, which JSON does not have"),
        (8, "the id '1' occurred before"),
        (9, "longer than 4,194,304 bytes"),
    ]
    found = read_stored()
    assert found.keys() == {"1", "5"}
    assert found["5"]["text"] == "\x1b[2Ja"
    metadata = {
        "day": "2023-04-05",
        "at": "2023-04-05 06:07:00.000Z",
        "price": "1.50",
        "blob": None,
        "tree": {"a": [1]},
    }
    assert found["1"]["metadata"] == {**metadata, "kind": "k"}


# Whole files


def whole_files() -> Iterator[tuple[str, bytes, int, int, str]]:
    """Yield name, content, counts of stored passages and rejected rows, and part of the message."""
    rows = [as_json(id=str(number), text="a é") for number in range(50)]
    lines = b"\n".join(rows) + b"\n"
    noise = Random(1).randbytes(20_000)
    long = b"x" * (5 << 20)
    nothing = "holds no passage, so no collection was created"
    yield "empty.jsonl", b"", -2, 0, nothing
    yield "blank.jsonl", b"\n \r\n\n\t", -2, 0, nothing
    yield "empty.tsv", b"", -2, 0, nothing
    yield "header.tsv", b"id\ttext\n", -2, 0, nothing
    yield "mark.jsonl", b"\xef\xbb\xbf" + lines, 50, 0, "50 passages stored"
    yield "crlf.jsonl", lines.replace(b"\n", b"\r\n"), 50, 0, "50 passages stored"
    yield "no-end.jsonl", lines[:-1], 50, 0, "50 passages stored"
    yield "cut.jsonl", lines[:-9], 49, 1, "49 passages stored, 0 unchanged, 1 row rejected"
    yield "cr.jsonl", lines.replace(b"\n", b"\r"), 0, 1, "1 row rejected"
    yield (
        "long.jsonl",
        lines + b'{"id": "l", "text": "' + long + b'"}\n' + as_json(id="z", text="b"),
        51,
        1,
        "51 passages",
    )
    yield "long-end.jsonl", lines + long, 50, 1, "50 passages stored, 0 unchanged, 1 row rejected"
    yield "noise.jsonl", noise, 0, sum(1 for line in noise.split(b"\n") if line.strip()), "rows rejected"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "utf-7", "cp037", "latin-1"):
        coded = lines.decode().encode(encoding)
        count = sum(1 for line in coded.split(b"\n") if line.strip())
        stored_too = 50 if encoding == "utf-7" else 0  # all of it is ASCII, and so is UTF-8
        yield f"{encoding}.jsonl", coded, stored_too, count - stored_too, f"{stored_too} passages stored"
    zipped = gzip.compress(lines)
    damaged = "the gzip file is damaged"
    yield "members.jsonl.gz", gzip.compress(rows[0] + b"\n") + gzip.compress(rows[1]), 2, 0, "2 passages stored"
    yield "garbage.jsonl.gz", zipped + b"garbage", 50, 0, damaged
    yield "cut.jsonl.gz", gzip.compress(b"\n".join(rows), 0)[:-400], -1, 0, damaged
    yield "plain.jsonl.gz", lines, 50, 0, "50 passages stored"
    yield "nothing.jsonl.gz", b"", -2, 0, nothing
    yield "empty.jsonl.gz", gzip.compress(b""), -2, 0, nothing
    yield (
        "bomb.jsonl.gz",
        gzip.compress(lines + bytes(100 << 20) + b"\n" + as_json(id="z", text="b"), 1),
        51,
        1,
        "51 pass",
    )
    yield "header.tsv", lines, -2, 0, "the first line names no id and text columns"
    yield "twice.tsv", b"id\ttext\ttext\n1\ta\tb\n", -2, 0, "two columns are named 'text'"
    yield "no.parquet", lines, -2, 0, "not a readable Parquet file"
    yield "header.csv", lines, -2, 0, "the first line names no id and text columns"
    yield "unknown.txt", lines, -2, 0, "unknown kind of file"
    yield "first.jsonl", as_json(id="1", text="a", generated_queries=["q"]), 1, 0, "1 passage stored"


@pytest.mark.parametrize(
    ("name", "data", "count", "rejects", "says"), [pytest.param(*f, id=f[0]) for f in whole_files()]
)
def test_a_whole_file_that_is_not_what_it_should_be_is_reported(
    name: str, data: bytes, count: int, rejects: int, says: str
) -> None:
    Path(name).write_bytes(data)
    result = ingest(name, "--queries", "corpus")
    assert says in result.stderr
    damaged = says.startswith(("the gzip", "the first", "two columns", "not a", "unknown", "holds no"))
    assert result.exit_code == (2 if damaged else 3 if rejects else 0), result.output
    assert len(read_dead_letters()) == rejects
    if count in (-2, 0):  # no passage could be read: then no collection is made
        assert not Path("xqg_data/docs").exists()
    elif count == -1:
        assert 30 < len(read_stored()) < 50
    else:
        assert len(read_stored()) == count


def test_a_path_that_is_no_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    secret = tmp_path / "secret.jsonl"
    secret.write_text("{}")
    (tmp_path / "dangling.jsonl").symlink_to("nowhere")
    (tmp_path / "round.jsonl").symlink_to("round.jsonl")
    for name, says in {
        "folder.jsonl": "the folder holds no corpus.jsonl",
        "none.jsonl": "there is no such file",
        "dangling.jsonl": "there is no such file",
        "round.jsonl": "there is no such file",
        "x" * 300 + ".jsonl": "File name too long",
        "secret.jsonl/c.jsonl": "there is no such file",
        f"{ESCAPES}.jsonl": "there is no such file",
    }.items():
        result = ingest(name, "--queries", "corpus")
        assert result.exit_code == 2, (name, result.output)
        assert says in result.stderr
