"""Parse files into rows: JSONL, TSV, Parquet, SQuAD's JSON, and topics of TREC and CLEF.

A malformed row is returned with its problem; the fields' meaning is left to the callers.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from xqg_qdrant.corpus.files import (
    CATALOGUE,
    LONGEST_ROW,
    corpus_files,
    file_lines,
    is_cut,
    is_remote,
    open_remote,
    opened_file,
)
from xqg_qdrant.errors import InputError
from xqg_qdrant.text import show

PARQUET_BATCH = 1024
# Metadata key of files from `xqg generate`: names the columns of passages and queries; the others are derived.
PASSAGE_COLUMNS = b"xqg_passage_columns"
WHITE_SPACE = " \t\n\r\v\f"
MARK = "\ufeff"
JOINED = "begins with a byte order mark, as in joined files"
NO_OBJECT = "not a JSON object"
TOO_LONG = f"longer than {LONGEST_ROW:,} bytes"
TOPIC = re.compile(r"<top\b[^>]*>(.*?)</top>", re.DOTALL | re.IGNORECASE)
NUMBER = re.compile(r"<num>(?:\s*Number:)?\s*([^<]*)", re.IGNORECASE)
# CLEF writes the language into the tag: <FI-title>.
TITLE = re.compile(r"<(?:([A-Z]{2})-)?title>(?:\s*Topic:)?\s*([^<]*)", re.IGNORECASE)


class FileRow(NamedTuple):
    """A row of a file; `problem` says why `fields` could not be read, or is empty."""

    line: int
    raw: str
    fields: Mapping[str, Any]
    problem: str = ""


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


def is_tsv(path: str) -> bool:
    """Return whether a file name is that of a TSV file."""
    return path.endswith((".tsv", ".tsv.gz"))


def jsonl_rows(path: str) -> Iterator[FileRow]:
    """Yield the rows of a JSONL file; blank lines and white space around a line are ignored."""
    parse = json.JSONDecoder(object_pairs_hook=_to_fields).decode
    for number, line in enumerate(file_lines(path), start=1):
        raw, problem = _decode(line)
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


def tsv_rows(
    path: str, id_fields: Sequence[str], text_fields: Sequence[str], no_header: tuple[str, ...] = ()
) -> Iterator[FileRow]:
    """Yield the rows of a TSV file.

    `no_header` names the columns of a file whose first line is not a header.

    Raises:
        InputError: the header is missing or names a column twice.
    """
    header: list[str] = []
    for number, line in enumerate(file_lines(path), start=1):
        raw, problem = _decode(line)
        raw = raw.rstrip("\r\n")
        if problem or raw.startswith(MARK):
            yield FileRow(number, raw, {}, problem or f"the row {JOINED}")
            continue
        if not raw.strip(WHITE_SPACE):
            continue
        cells = _cells(raw, len(header))
        if not header:
            is_header = not set(cells).isdisjoint(id_fields) and not set(cells).isdisjoint(text_fields)
            if is_header or not no_header:
                header = _checked_header(path, cells, is_header, id_fields, text_fields)
                continue
            header = list(no_header)
        if len(cells) == len(header):
            yield FileRow(number, raw, dict(zip(header, cells, strict=True)))
        else:
            yield FileRow(number, raw, {}, f"{len(cells)} columns where there should be {len(header)}")


def parquet_rows(path: str, id_fields: Sequence[str]) -> Iterator[FileRow]:
    """Yield the rows of a Parquet file; dates, times and decimals become strings, as JSON has none of them.

    Raises:
        InputError: pyarrow is not installed, the file cannot be read, or its columns cannot be used.
    """
    pa, pq = _import_pyarrow(path)
    try:
        with pq.ParquetFile(open_remote(path) if is_remote(path) else path) as file:
            names = file.schema_arrow.names
            if set(id_fields).isdisjoint(names):
                cure = "name the column of the ids with --id-field"
                raise InputError(f"{path}: no column is named {' or '.join(id_fields)}.", cure)
            _refuse_repeated(path, names)
            kept = (file.schema_arrow.metadata or {}).get(PASSAGE_COLUMNS)
            columns = kept.decode().split(",") if kept else None
            batches = file.iter_batches(batch_size=PARQUET_BATCH, columns=columns)
            found = chain.from_iterable(_parquet_fields(pa, _decode_dictionaries(pa, batch)) for batch in batches)
            for number, (fields, problem) in enumerate(found, start=1):
                yield FileRow(number, "", fields, problem)
    except (pa.ArrowException, OSError) as error:
        cure = "download or write it again"
        raise InputError(f"{path}: not a readable Parquet file ({error}).", cure) from error


def is_squad(path: str) -> bool:
    """Return whether a file has SQuAD's layout: `.json`, one object with the field `data`.

    Other `.json` files are read as JSONL, which many data sets publish under that name. A first line that is not
    valid JSON by itself is the start of a multi-line document.
    """
    if not path.endswith((".json", ".json.gz")):
        return False
    first = next((line for line in file_lines(path) if line.strip()), b"")
    try:
        document = json.loads(first) if not is_cut(first) else None
    except (ValueError, RecursionError):
        return True
    return document is None or (isinstance(document, dict) and "data" in document)


def squad_rows(path: str) -> Iterator[FileRow]:
    """Yield one row `{title, context, qas}` per paragraph, numbered instead of by line.

    Raises:
        InputError: the file does not have SQuAD's layout.
    """
    try:
        with opened_file(path) as file:
            articles = json.loads(file.read())["data"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        cure = "use a JSON file of SQuAD, MLQA or XQuAD, or one JSON object per line"
        raise InputError(f"{path}: neither SQuAD's JSON nor JSONL ({error!r:.200}).", cure) from error
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


def _decode(line: bytes) -> tuple[str, str]:
    """Return a line as text, and the problem if it cannot be used."""
    problem = TOO_LONG if is_cut(line) else ""
    try:
        return line.decode("utf-8"), problem
    except UnicodeDecodeError as error:
        return line.decode("utf-8", "backslashreplace"), problem or _not_utf8(error)


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


def _not_utf8(error: UnicodeDecodeError) -> str:
    problem = f"not UTF-8: byte {error.object[error.start]:#04x} at position {error.start}"
    utf_16 = error.start == 0 and error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return problem + ("; it begins like UTF-16" if utf_16 else "")


def _checked_header(
    path: str, cells: list[str], is_header: bool, id_fields: Sequence[str], text_fields: Sequence[str]
) -> list[str]:
    if not is_header:
        raise InputError(
            f"{path}: the first line names no id and text columns.",
            f"begin the file with a line such as {id_fields[0]}, {text_fields[0]}, title, separated by tabs",
        )
    _refuse_repeated(path, cells)
    return cells


def _refuse_repeated(path: str, columns: Sequence[str]) -> None:
    repeated = [name for name in columns if columns.count(name) > 1]
    if repeated:
        raise InputError(f"{path}: two columns are named {repeated[0]!r}.", "rename one of them")


def _cells(line: str, expected: int) -> list[str]:
    """Split a line at its tabs; unquote a cell only if the quotes inside it are doubled.

    DPR quotes its cells, others do not. A text that merely begins with a quotation mark must not swallow the next
    lines, as it would in a CSV parser.
    """
    cells = line.split("\t")
    if len(cells) > expected > 0 and '"' in line:  # tabs within quotes
        with suppress(csv.Error):
            quoted = next(csv.reader([line], delimiter="\t"))
            if len(quoted) == expected:
                return quoted
    return [_unquoted(cell) for cell in cells]


def _unquoted(cell: str) -> str:
    inner = cell[1:-1]
    if len(cell) < 2 or cell[0] != '"' or cell[-1] != '"' or '"' in inner.replace('""', ""):
        return cell
    return inner.replace('""', '"')


def _count_file_rows(path: str) -> int | None:
    if path.endswith(".parquet"):
        return _count_parquet_rows(path)
    # A pipe can be read only once, remote files are not worth reading twice, and SQuAD's rows are not lines.
    if not Path(path).is_file() or path.endswith((".json", ".json.gz")):
        return None
    try:
        rows = sum(1 for line in file_lines(path) if not line.isspace())
    except InputError:
        return None
    return max(0, rows - 1) if is_tsv(path) else rows


def _count_parquet_rows(path: str) -> int | None:
    pa, pq = _import_pyarrow(path)
    try:
        return int(pq.read_metadata(open_remote(path) if is_remote(path) else path).num_rows)
    except (pa.ArrowException, OSError):
        return None


def _import_pyarrow(path: str) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        cure = "pip install 'xqg-qdrant[parquet]'"
        raise InputError(f"{path}: pyarrow, which reads Parquet, is not installed.", cure) from error
    return pyarrow, pyarrow.parquet


def _decode_dictionaries(pa: Any, batch: Any) -> Any:  # noqa: ANN401
    # Otherwise the whole dictionary would count towards the size of each slice.
    kinds = zip(batch.schema.types, batch.columns, strict=True)
    columns = [column.dictionary_decode() if pa.types.is_dictionary(kind) else column for kind, column in kinds]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _parquet_fields(pa: Any, batch: Any) -> list[tuple[dict[str, Any], str]]:  # noqa: ANN401
    """Return the rows of a record batch as dicts, each with its problem or an empty string."""
    problem, names = TOO_LONG, batch.schema.names
    if batch.nbytes <= LONGEST_ROW:
        try:
            rows = zip(*(_to_values(pa, column) for column in batch.columns), strict=True)
            return [(dict(zip(names, row, strict=True)), "") for row in rows]
        except UnicodeDecodeError as error:
            problem = _not_utf8(error)
        except (ValueError, ArithmeticError, LookupError, NotImplementedError) as error:
            problem = f"a value that cannot be read: {error}"
    if batch.num_rows == 1:
        return [({}, problem)]
    half = batch.num_rows // 2
    return _parquet_fields(pa, batch.slice(0, half)) + _parquet_fields(pa, batch.slice(half))


def _to_values(pa: Any, column: Any) -> list[Any]:  # noqa: ANN401
    kind = _to_json_type(pa, column.type)
    values: list[Any] = (column if kind == column.type else column.cast(kind)).to_pylist()
    if pa.types.is_temporal(column.type) and any(value and value.startswith("<") for value in values):
        raise ValueError("a date or time out of range")
    return values


def _to_json_type(pa: Any, kind: Any) -> Any:  # noqa: ANN401
    """Return a column's type with text for dates, times and decimals, at any depth."""
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return pa.string()
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _to_json_type(pa, field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _to_json_type(pa, kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        item = _to_json_type(pa, kind.value_type)
        return kind if item == kind.value_type else pa.list_(item)
    return kind
