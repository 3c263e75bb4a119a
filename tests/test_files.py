from __future__ import annotations

import gzip
import io
import sys
import tracemalloc
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest
from writing import Write

from xqg_qdrant.corpus.files import LONGEST_ROW, file_lines, is_cut
from xqg_qdrant.corpus.passages import read_passages
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.files import read_predictions, read_qrels
from xqg_qdrant.records import Passage, Reject

MEGABYTE = 2**20


class Stream(io.RawIOBase):
    """A stream whose bytes are made while they are read, without memory or disk."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._rest = self._rest or next(self._parts, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def pour(parts: Iterator[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace standard input with these bytes."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Stream(parts))))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_the_longest_row_is_read_and_one_byte_more_is_cut(write: Write, mark: bytes, end: bytes) -> None:
    lines = list(file_lines(write(mark + b"a" * LONGEST_ROW + end)))
    assert lines == [b"a" * LONGEST_ROW + end]
    assert not is_cut(lines[0])
    cut, last = file_lines(write(mark + b"a" * (LONGEST_ROW + 1) + b"\nlast" + end))
    assert (cut, last) == (b"a" * (LONGEST_ROW + 1), b"last" + end)
    assert is_cut(cut)


def test_a_line_of_gigabytes_is_skipped_in_bounded_memory_and_the_next_one_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block = b"x" * MEGABYTE
    rows = [b'{"id": "1", "text": "a"}\n', *repeat(block, 300), b'\n{"id": "2", "text": "b"}\n', *repeat(block, 50)]
    pour(chain(rows), monkeypatch)
    tracemalloc.start()
    first, long, second, unended = read_passages("-")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (first, second) == (Passage("1", "a"), Passage("2", "b"))
    for reject, line in ((long, 2), (unended, 4)):
        assert isinstance(reject, Reject)
        assert (reject.line, reject.reason) == (line, "longer than 4,194,304 bytes")
    assert peak < 64 * MEGABYTE


def test_a_small_file_that_unpacks_to_a_huge_line_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(200):
            file.write(bytes(MEGABYTE))
        file.write(b'\n{"id": "1", "text": "a"}')
    tracemalloc.start()
    reject, passage = read_passages(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(reject, Reject)
    assert passage == Passage("1", "a")
    assert path.stat().st_size < MEGABYTE
    assert peak < 64 * MEGABYTE


def test_a_long_line_of_white_space_is_not_taken_for_a_blank_one(write: Write) -> None:
    (reject,) = read_passages(write(b" " * (LONGEST_ROW + 1) + b'{"id": "1", "text": "a"}\n'))
    assert isinstance(reject, Reject)


def test_members_of_a_gzip_file_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(gzip.compress(b"a\nb") + gzip.compress(b"c\n") + bytes(8))
    assert list(file_lines(str(path))) == [b"a\n", b"bc\n"]


def test_what_comes_before_the_damage_of_a_gzip_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(gzip.compress(b"a\nb\n") + b"garbage")
    lines = file_lines(str(path))
    assert [next(lines), next(lines)] == [b"a\n", b"b\n"]
    with pytest.raises(InputError, match="the gzip file is damaged"):
        next(lines)


def test_standard_input_that_is_closed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input is closed"):
        next(read_passages("-"))


def test_a_file_that_went_away_is_an_error(write: Write) -> None:
    path = write("{}")
    rows = read_passages(path)
    Path(path).unlink()
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\)"):
        next(rows)


def test_a_path_that_no_file_can_have_is_an_error() -> None:
    for path in ("a\0b.jsonl", "a" * 5000 + ".jsonl"):
        with pytest.raises(InputError, match=r"no such file|cannot be accessed"):
            read_passages(path)


def test_a_file_of_predictions_may_be_one_long_line_but_judgements_may_not(write: Write) -> None:
    text = "x" * LONGEST_ROW
    (prediction,) = read_predictions(write(f'[{{"id": "1", "lang": "fi", "ctxs": ["{text}"]}}]', "p.json"))
    assert prediction.contexts == (text,)
    with pytest.raises(InputError, match="line 2: the line has 4,194,305 bytes or more"):
        read_qrels(write(f"1\t2\t1\n{text}{text}\t2\t1\n", "q.tsv"))
