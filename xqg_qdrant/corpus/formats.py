"""Parse files into rows: JSONL, JSON arrays, SQuAD's JSON, and topics of TREC and CLEF.

A malformed row is returned with its problem; the fields' meaning is left to the callers.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

from xqg_qdrant.corpus.files import (
    CATALOGUE,
    LONGEST_ROW,
    corpus_files,
    file_lines,
    is_cut,
    kind_of,
    opened_file,
    read_lines,
)
from xqg_qdrant.corpus.parquet import count_parquet_rows
from xqg_qdrant.corpus.rows import JOINED, MARK, WHITE_SPACE, FileRow, decode_line, too_long
from xqg_qdrant.corpus.tables import is_table
from xqg_qdrant.errors import InputError
from xqg_qdrant.text import show

NO_OBJECT = "not a JSON object"
PEEKED = 4096
# One JSON array of objects.
ARRAY = re.compile(rb"\s*\[\s*\{")
NO_WHITE_SPACE = re.compile(r"[^ \t\n\r]")
TOPIC = re.compile(r"<top\b[^>]*>(.*?)</top>", re.DOTALL | re.IGNORECASE)
NUMBER = re.compile(r"<num>(?:\s*Number:)?\s*([^<]*)", re.IGNORECASE)
# CLEF writes the language into the tag: <FI-title>.
TITLE = re.compile(r"<(?:([A-Z]{2})-)?title>(?:\s*Topic:)?\s*([^<]*)", re.IGNORECASE)


class _RepeatedFieldError(ValueError):
    """An object has two fields of one name; JSON parsers silently drop the first."""


def count_rows(source: str) -> int | None:
    """Return the number of rows of a corpus, unparsed, for a progress bar.

    None if counting would consume the input, or if a file cannot be read to its end: the reader of the rows reports
    that, after the rows before the damage.
    """
    if source == "-" or source.startswith(CATALOGUE):
        return None
    counts = [_count_file_rows(path) for path in corpus_files(source)]
    return None if None in counts else sum(filter(None, counts))


def json_rows(path: str, longest: int = LONGEST_ROW) -> Iterator[FileRow]:
    """Yield the objects of a JSONL file, or of one JSON array; blank lines and white space around a line are ignored.

    Raises:
        InputError: the file cannot be read to its end.
    """
    with opened_file(path) as file:
        if ARRAY.match(file.peek(PEEKED).removeprefix(codecs.BOM_UTF8)):
            yield from _array_rows(path, file, longest)
        else:
            yield from _line_rows(file, longest)


def _line_rows(file: IO[bytes], longest: int) -> Iterator[FileRow]:
    parse = json.JSONDecoder(object_pairs_hook=_to_fields).decode
    for number, line in enumerate(read_lines(file, longest), start=1):
        raw, problem = decode_line(line, longest)
        raw = raw.strip(WHITE_SPACE)
        if problem:
            yield FileRow(number, raw, {}, problem)
            continue
        if not raw:
            continue
        try:
            fields = parse(raw)
        except json.JSONDecodeError as error:
            yield FileRow(number, raw, {}, f"malformed JSON: {error}{_guess(raw)}")
        except _RepeatedFieldError as error:
            yield FileRow(number, raw, {}, str(error))
        except RecursionError:
            yield FileRow(number, raw, {}, "malformed JSON: nested too deeply to be read")
        except ValueError:
            yield FileRow(number, raw, {}, "malformed JSON: a whole number of more digits than can be read")
        else:
            yield FileRow(number, raw, fields) if isinstance(fields, dict) else FileRow(number, raw, {}, NO_OBJECT)


class _ArrayText:
    """The text of a JSON array, of which only the value at hand is in memory."""

    def __init__(self, file: IO[bytes], longest: int) -> None:
        # A byte that is not UTF-8 becomes a lone surrogate, which rejects its row alone.
        self._reader = codecs.getreader("utf-8-sig")(file, "surrogateescape")
        self._text, self._at, self._longest = "", 0, longest
        self.line = 1

    def take(self) -> str:
        """Return the next character that is no white space, and pass it; empty at the end."""
        found = self._peek(self._at)
        self._pass(found + 1)
        return self._text[found : found + 1]

    def take_value(self) -> tuple[str, Any]:
        """Return the next value as text and parsed.

        Raises:
            ValueError: it is malformed, too long, or not followed by a comma or a bracket.
        """
        self._pass(self._peek(self._at))
        while True:
            try:
                value, end = _decode_value(self._text, self._at)
                following = self._peek(end)
                if self._text[following : following + 1] in (",", "]"):
                    break
                raise ValueError("a value that neither a comma nor a bracket follows")
            except ValueError:
                if len(self._text) - self._at > self._longest:
                    raise ValueError(f"a row that is malformed or {too_long(self._longest)}") from None
                if not self._read_more():
                    raise
        raw = self._text[self._at : end]
        self._pass(end)
        return raw, value

    def _peek(self, at: int) -> int:
        """Return where, from a position on, the next character is that is no white space."""
        while True:
            found = NO_WHITE_SPACE.search(self._text, at)
            if found:
                return found.start()
            at = len(self._text)
            if not self._read_more():
                return at

    def _pass(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _read_more(self) -> bool:
        """Double the text from the position on; return False at the end of the file."""
        more = self._reader.read(max(PEEKED, len(self._text) - self._at))
        self._text += more
        return bool(more)

    def forget(self) -> None:
        """Drop the text that was passed."""
        self._text, self._at = self._text[self._at :], 0


def _array_rows(path: str, file: IO[bytes], longest: int) -> Iterator[FileRow]:
    text, follows = _ArrayText(file, longest), ","
    text.take()
    rows = 0
    try:
        while follows == ",":
            raw, value = text.take_value()
            rows += 1
            if isinstance(value, _RepeatedFieldError):
                yield FileRow(rows, raw, {}, str(value))
            else:
                yield FileRow(rows, raw, value) if isinstance(value, dict) else FileRow(rows, raw, {}, NO_OBJECT)
            follows = text.take()
            text.forget()
        rest = text.take()
    except (ValueError, RecursionError) as error:
        cure = "correct the file, or write one JSON object per line"
        raise InputError(
            f"{path}: after row {rows} (line {text.line}), the JSON array is damaged: {error}.", cure
        ) from error
    if rest:
        cure = "write one array, or one JSON object per line"
        raise InputError(f"{path}: something follows the end of the JSON array (line {text.line}).", cure)


def _decode_value(text: str, at: int) -> tuple[Any, int]:
    """Return the JSON value at a position and where it ends; a repeated field is returned as the error."""
    try:
        return json.JSONDecoder(object_pairs_hook=_to_fields).raw_decode(text, at)
    except _RepeatedFieldError as error:
        return error, json.JSONDecoder().raw_decode(text, at)[1]


def is_squad(path: str) -> bool:
    """Return whether a file has SQuAD's layout: `.json`, one object with the field `data`, a list of articles.

    Other `.json` files are read as JSONL, which many data sets publish under that name, or as a JSON array. If neither
    of the first two lines is an object by itself, they begin a document of several lines. An empty file is neither.
    """
    if kind_of(path) != ".json":
        return False
    lines = list(islice((line for line in file_lines(path) if line.strip()), 2))
    if not lines:
        return True
    if ARRAY.match(b"".join(lines)):
        return False
    first, *others = map(_object_of, lines)
    if first is None:
        return not any(other is not None for other in others)
    data = first.get("data")
    if not isinstance(data, list) or not all(isinstance(article, dict) for article in data):
        return False
    return len(lines) == 1 or any("paragraphs" in article for article in data)


def _object_of(line: bytes) -> dict[str, Any] | None:
    """Return the object that is a line by itself, None if it is none."""
    try:
        value = None if is_cut(line) else json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def squad_rows(path: str) -> Iterator[FileRow]:
    """Yield one row `{title, context, qas}` per paragraph, numbered instead of by line.

    Raises:
        InputError: the file does not have SQuAD's layout.
    """
    try:
        with opened_file(path) as file:
            articles = json.loads(file.read())["data"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        cure = "use a JSON file of SQuAD, MLQA or XQuAD, a JSON array of objects, or one JSON object per line"
        raise InputError(f"{path}: neither SQuAD's JSON nor an array nor JSONL ({error!r:.200}).", cure) from error
    number = 0
    for article in articles if isinstance(articles, list) else (articles,):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            cure = "give the article a list of paragraphs, or remove it"
            raise InputError(f"{path}: after paragraph {number}, an article without paragraphs.", cure)
        for paragraph in paragraphs:
            number += 1
            if isinstance(paragraph, dict):
                # Titles are written as in URLs: Super_Bowl_50, Beyonc%C3%A9.
                title = unquote(str(article.get("title") or "")).replace("_", " ")
                yield FileRow(number, "", {"title": title, "context": None, "qas": []} | paragraph)
            else:
                yield FileRow(number, show(paragraph), {}, "the paragraph is not an object")


def is_topics(path: str) -> bool:
    """Return whether a file begins with a tag, as TREC's topics do.

    Always False for a pipe, which can be read only once.
    """
    return Path(path).is_file() and next((line for line in file_lines(path) if line.strip()), b"").lstrip()[:1] == b"<"


def topic_rows(path: str) -> Iterator[FileRow]:
    """Yield one row `{id, text, lang}` per topic: its number, title and title language.

    Raises:
        InputError: the file is not UTF-8, or holds no topic.
    """
    with opened_file(path) as file:
        data = file.read()
    try:
        document = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error}).", "convert it with iconv") from error
    found = list(TOPIC.finditer(document))
    if not found:
        cure = "write topics as <top> … </top> with <num> and <title>, or use a TSV file of id and text"
        raise InputError(f"{path}: begins with a tag but holds no <top> … </top>.", cure)
    for topic in found:
        fields: dict[str, Any] = {}
        if number := NUMBER.search(topic[1]):
            fields["id"] = number[1].strip()
        if title := TITLE.search(topic[1]):
            fields |= {"lang": (title[1] or "").lower(), "text": " ".join(title[2].split())}
        yield FileRow(document.count("\n", 0, topic.start()) + 1, topic[0], fields)


def _to_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise _RepeatedFieldError(f"the field {repeated[:100]!r} occurs twice")
    return fields


def _guess(raw: str) -> str:
    """Return the probable reason why a line is malformed."""
    if "\0" in raw:
        return "; it holds NUL bytes, as UTF-16 read as UTF-8 does"
    if raw.startswith(MARK):
        return f"; it {JOINED}"
    if "\r" in raw:
        return "; it holds carriage returns, which do not end a line"
    return ""


def _count_file_rows(path: str) -> int | None:
    if kind_of(path) == ".parquet":
        return count_parquet_rows(path)
    # A pipe can be read only once, remote files are not worth reading twice, and the rows of JSON are not lines.
    if not Path(path).is_file() or kind_of(path) == ".json":
        return None
    try:
        rows = sum(1 for line in file_lines(path) if not line.isspace())
    except InputError:
        return None
    return max(0, rows - 1) if is_table(path) else rows
