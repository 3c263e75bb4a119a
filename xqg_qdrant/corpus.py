"""Files of passages and of questions, read into records.

Knows the formats: JSONL, TSV, Parquet and BEIR folders. Passages stream: memory grows by some 20 bytes a passage, the
trace of its id by which a duplicate is noticed. A row of a corpus that cannot be used becomes a `Reject` and the rest
is still read; a row of a file of questions that cannot be used is an error, because a figure over half the questions
looks like a figure.

Knows nothing of models, vectors or databases, nor of judgements and results (`evaluation.files`).
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import IO, Any, NamedTuple, cast

from xqg_qdrant.errors import InputError
from xqg_qdrant.records import GeneratedQuery, Passage, QueriedPassage, Query, Reject

ID_FIELDS = ("id", "_id", "passage_id", "docid")
TEXT_FIELDS = ("text", "contents", "passage")
QUERY_ID_FIELDS = ("id", "_id", "query_id")
QUERY_TEXT_FIELDS = ("question", "query", "text")
LANGUAGE_FIELDS = ("lang", "language")
GENERATED_QUERIES_FIELD = "generated_queries"
# Qdrant's engines cannot read back what is nested about 127 levels deep, and Edge does not reopen after it.
MAX_METADATA_DEPTH = 32


class _Row(NamedTuple):
    """A row as its file holds it; `problem` says why `fields` could not be read."""

    line: int
    raw: str
    fields: Mapping[str, Any]
    problem: str = ""


def read_passages(source: str, *, id_field: str | None = None) -> Iterator[Passage | Reject]:
    """Read the passages of a corpus, one at a time.

    Args:
        source: A JSONL, TSV (with a header line) or Parquet file, the first two also as `.gz`; a BEIR folder; or `-`
            for JSONL on standard input.
        id_field: The field that holds the passage id, where it is none of `id`, `_id`, `passage_id` and `docid`.

    Returns:
        An iterator of passages, with a `Reject` in the place of each row that cannot be used. Fields that are neither
        id, text nor title become metadata, and so do the fields of an object named `metadata`, which win over others
        of the same name.

    Raises:
        InputError: There is no such file, its format is not known, or a row brings `generated_queries`, which only
            `read_queried_passages` uses.
    """
    rows = _read_rows(source, id_field, queried=False)
    return cast("Iterator[Passage | Reject]", rows)


def read_queried_passages(source: str, *, id_field: str | None = None) -> Iterator[QueriedPassage | Reject]:
    """Read passages as `read_passages` does, each with the queries in its field `generated_queries`.

    The field is a list of objects with a text (`question`, `query` or `text`) and a language (`lang` or `language`),
    which may be missing, or of strings. Queries are kept as they are, but empty ones are dropped; a passage without the
    field has none.
    """
    rows = _read_rows(source, id_field, queried=True)
    return cast("Iterator[QueriedPassage | Reject]", rows)


def read_generated_queries(
    path: str | Path, *, id_field: str | None = None
) -> Iterator[tuple[str, tuple[GeneratedQuery, ...]] | Reject]:
    """Read queries by passage id from a JSONL file, plain or as `.gz`, a row at a time.

    A row holds an id as the corpus does, and either one query as `read_queried_passages` takes it or a list of them in
    `generated_queries`; a passage may have many rows. A `Reject` stands in the place of a row that cannot be used.

    Raises:
        InputError: There is no such file, or it is none that is read.
    """
    if not str(path).endswith((".jsonl", ".jsonl.gz")):
        raise InputError(f"{path}: unknown kind of file of queries; give a .jsonl or .jsonl.gz file")
    file = str(existing_file(path, ""))
    return _generated_queries(file, (id_field, *ID_FIELDS) if id_field else ID_FIELDS)


def _read_rows(source: str, id_field: str | None, queried: bool) -> Iterator[Passage | QueriedPassage | Reject]:
    path = source if source == "-" else str(existing_file(source, "corpus.jsonl"))
    id_fields = (id_field,) if id_field else ID_FIELDS
    if path.endswith(".parquet"):
        rows = _parquet_rows(path, id_fields)
    elif _is_tsv(path):
        rows = _tsv_rows(path, id_fields, TEXT_FIELDS)
    elif path == "-" or path.endswith((".jsonl", ".jsonl.gz")):
        rows = _jsonl_rows(path)
    else:
        raise InputError(f"{source}: unknown kind of file; give a .jsonl, .jsonl.gz, .tsv, .tsv.gz or .parquet file")
    return _passages(rows, path, id_fields, queried)


def count_rows(source: str) -> int | None:
    """Count the rows of a corpus without parsing them, for a progress bar; None for standard input."""
    if source == "-":
        return None
    path = str(existing_file(source, "corpus.jsonl"))
    if path.endswith(".parquet"):
        return int(_import_pyarrow(path)[1].read_metadata(path).num_rows)
    rows = sum(1 for line in file_lines(path) if not line.isspace())
    return max(0, rows - 1) if _is_tsv(path) else rows


def write_dead_letters(path: str | Path, rejects: Iterable[Reject]) -> int:
    """Append rejects to a JSONL file of `{source, line, reason, row}` rows; return how many there were."""
    count = 0
    with Path(path).open("a", encoding="ascii") as file:
        for reject in rejects:
            file.write(json.dumps(reject._asdict()) + "\n")
            count += 1
    return count


def read_queries(path: str | Path) -> list[Query]:
    """Read questions from a JSONL file, a TSV file (`id` and `text`, with a header or without) or a BEIR folder.

    The text is the first of the fields `question`, `query` and `text` that is there. Language codes lose the spaces
    around them: the XOR-TyDi files hold ` ar`.

    Raises:
        InputError: The file or one of its rows cannot be used, or an id occurs twice.
    """
    file = str(existing_file(path, "queries.jsonl"))
    rows = _tsv_rows(file, QUERY_ID_FIELDS, QUERY_TEXT_FIELDS, ("id", "text")) if _is_tsv(file) else _jsonl_rows(file)
    queries: dict[str, Query] = {}
    for row in rows:
        query, problem = _query(row)
        if query is None or query.query_id in queries:
            raise InputError(f"{file}, line {row.line}: {problem or 'the id was there before'}; correct this row")
        queries[query.query_id] = query
    if not queries:
        raise InputError(f"{file}: holds no questions; give a file with one question a line")
    return list(queries.values())


def _passages(
    rows: Iterator[_Row], source: str, id_fields: Sequence[str], queried: bool
) -> Iterator[Passage | QueriedPassage | Reject]:
    is_new = _first_time()
    for row in rows:
        fields, problem = dict(row.fields), row.problem
        queries: tuple[GeneratedQuery, ...] = ()
        if fields.get(GENERATED_QUERIES_FIELD) is not None and not queried:
            raise InputError(
                f"{source}, line {row.line}: brings {GENERATED_QUERIES_FIELD}; use them with --queries corpus, or "
                "remove the field"
            )
        if queried and not problem:
            queries, problem = _take_queries(fields.pop(GENERATED_QUERIES_FIELD, None))
        passage, problem = (None, problem) if problem else _passage(fields, id_fields)
        if passage is not None and not is_new(passage.passage_id):
            problem = f"the id {passage.passage_id!r} was there before"
        if passage is None or problem:
            yield Reject(source, row.line, problem, row.raw or repr(row.fields))
        else:
            yield QueriedPassage(passage, queries) if queried else passage


def _generated_queries(
    path: str, id_fields: Sequence[str]
) -> Iterator[tuple[str, tuple[GeneratedQuery, ...]] | Reject]:
    for row in _jsonl_rows(path):
        fields, passage_id, problem = dict(row.fields), "", row.problem
        queries: tuple[GeneratedQuery, ...] = ()
        if not problem:
            passage_id, problem = _take_id(fields, id_fields)
        if not problem:
            queries, problem = _take_queries(fields.get(GENERATED_QUERIES_FIELD) or [fields])
        yield Reject(path, row.line, problem, row.raw) if problem else (passage_id, queries)


def _take_queries(value: object) -> tuple[tuple[GeneratedQuery, ...], str]:
    """Return the queries of a list that are not empty, or the reason why it cannot be used."""
    if not isinstance(value, list | tuple | NoneType):
        return (), f"{GENERATED_QUERIES_FIELD} is not a list"
    queries = []
    for item in value or ():
        fields = {"text": item} if isinstance(item, str) else item
        if not isinstance(fields, dict):
            return (), f"{GENERATED_QUERIES_FIELD} holds something that is neither a string nor an object"
        text = next((fields[name] for name in QUERY_TEXT_FIELDS if fields.get(name) is not None), None)
        language = next((fields[name] for name in LANGUAGE_FIELDS if fields.get(name) is not None), "")
        if not isinstance(text, str):
            return (), f"a query without a text (looked for {', '.join(QUERY_TEXT_FIELDS)})"
        if not isinstance(language, str):
            return (), "the language of a query is not a string"
        if problem := _unstorable_field({"text": text, "language": language}):
            return (), f"a query's {problem}"
        if text.strip():
            queries.append(GeneratedQuery(language.strip(), text))
    return tuple(queries), ""


def _passage(fields: Mapping[str, Any], id_fields: Sequence[str]) -> tuple[Passage | None, str]:
    """Return the passage that a row holds, or the reason why it holds none."""
    rest = dict(fields)
    passage_id, problem = _take_id(rest, id_fields)
    if problem:
        return None, problem
    text, problem = _take_text(rest, TEXT_FIELDS)
    if problem:
        return None, problem
    title = rest.pop("title", None)
    if title is not None and not isinstance(title, str):
        return None, "title is not a string"
    nested = rest.pop("metadata", None)
    if isinstance(nested, dict):
        rest.update(nested)
    elif nested is not None:
        rest["metadata"] = nested
    problem = _unstorable_field({"id": passage_id, "text": text, "title": title} | {"metadata": rest})
    return (None, problem) if problem else (Passage(passage_id, text, title or "", rest), "")


def _query(row: _Row) -> tuple[Query | None, str]:
    rest = dict(row.fields)
    problem = row.problem
    if not problem:
        query_id, problem = _take_id(rest, QUERY_ID_FIELDS)
    if not problem:
        text, problem = _take_text(rest, QUERY_TEXT_FIELDS)
    if problem:
        return None, problem
    language = next((rest[name] for name in LANGUAGE_FIELDS if rest.get(name) is not None), "")
    answers = rest.get("answers") or ()
    answers = (answers,) if isinstance(answers, str) else answers
    if not isinstance(language, str):
        return None, "the language is not a string"
    if not isinstance(answers, list | tuple) or not all(isinstance(answer, str) for answer in answers):
        return None, "the answers are not a list of strings"
    problem = _unstorable_field({"id": query_id, "text": text, "language": language, "answers": answers})
    return (None, problem) if problem else (Query(query_id, text, language.strip(), tuple(answers)), "")


def _take_id(fields: dict[str, Any], names: Sequence[str]) -> tuple[str, str]:
    name = next((name for name in names if fields.get(name) is not None), None)
    if name is None:
        return "", f"no id (looked for {', '.join(names)})"
    value = fields.pop(name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return "", f"{name} is neither a string nor a whole number"
    return (str(value), "") if str(value).strip() else ("", f"{name} is empty")


def _take_text(fields: dict[str, Any], names: Sequence[str]) -> tuple[str, str]:
    name = next((name for name in names if fields.get(name) is not None), None)
    if name is None:
        return "", f"no text (looked for {', '.join(names)})"
    value = fields.pop(name)
    if not isinstance(value, str):
        return "", f"{name} is not a string"
    return (value, "") if value.strip() else ("", f"{name} is empty")


def _unstorable_field(fields: Mapping[str, Any]) -> str:
    """Name the first field that cannot be stored as JSON, and say why; empty where all can."""
    for name, value in fields.items():
        if problem := _unstorable(value, MAX_METADATA_DEPTH):
            return f"{name} {problem}"
    return ""


def _unstorable(value: Any, depth: int) -> str:  # noqa: ANN401
    """Say why a value cannot be stored as JSON in a payload; empty where it can. Numbers are 64 bits wide there."""
    if depth == 0:
        return f"is nested deeper than {MAX_METADATA_DEPTH} levels"
    match value:
        case None | bool():
            return ""
        case str():
            return "" if value.isascii() or not _has_surrogate(value) else "holds a lone surrogate, half a character"
        case int():
            return "" if -(2**63) <= value < 2**63 else "holds a whole number of more than 64 bits"
        case float():
            return "" if math.isfinite(value) else f"holds {value}, which is no number"
        case list() | tuple():
            return next(filter(None, (_unstorable(item, depth - 1) for item in value)), "")
        case dict():
            items = chain(value.keys(), value.values())
            return next(filter(None, (_unstorable(item, depth - 1) for item in items)), "")
        case _:
            return f"holds a {type(value).__name__}, which is not JSON"


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _first_time() -> Callable[[str], bool]:
    """Return a function that says whether it meets an id for the first time.

    A set of 16-byte digests would take about 100 bytes an id. Here two bytes of the digest choose a bucket, and the
    bucket holds the other fourteen end to end.
    """
    buckets = [bytearray() for _ in range(1 << 16)]

    def is_new(name: str) -> bool:
        digest = blake2b(name.encode("utf-8"), digest_size=16).digest()
        bucket, trace = buckets[int.from_bytes(digest[:2], "big")], digest[2:]
        at = bucket.find(trace)
        while at >= 0 and at % len(trace):  # found across the border of two others
            at = bucket.find(trace, at + 1)
        if at < 0:
            bucket += trace
        return at < 0

    return is_new


def existing_file(path: str | Path, in_folder: str) -> Path:
    """Return the path of a file or, for a folder, of the file `in_folder` in it, gzipped or not."""
    given = Path(path)
    if not given.is_dir():
        if not given.exists():
            raise InputError(f"{path}: there is no such file; check the path")
        return given
    for file in (given / in_folder, given / f"{in_folder}.gz"):
        if file.is_file():
            return file
    raise InputError(f"{path}: the folder holds no {in_folder}; give the file itself")


def file_lines(path: str) -> Iterator[bytes]:
    """Yield the lines of a file, gzipped or not, or of standard input (`-`), without a byte order mark."""
    try:
        with _opened(path) as file:
            first = file.readline()
            yield from chain((first.removeprefix(codecs.BOM_UTF8),) if first else (), file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: the gzip file is damaged ({error}); make it anew") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check its rights") from error


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    if path == "-":
        yield sys.stdin.buffer
        return
    with open(path, "rb") as file:
        if path.endswith(".gz"):
            with gzip.open(file) as unzipped:
                yield cast("IO[bytes]", unzipped)
        else:
            yield file


def _jsonl_rows(path: str) -> Iterator[_Row]:
    for number, line in enumerate(file_lines(path), start=1):
        line = line.strip()
        if not line:
            continue
        try:
            raw = line.decode("utf-8")
            fields = json.loads(raw)
        except UnicodeDecodeError as error:
            yield _Row(number, line.decode("utf-8", "backslashreplace"), {}, _not_utf8(error))
        except (ValueError, RecursionError) as error:
            yield _Row(number, raw, {}, f"malformed JSON: {error}")
        else:
            yield _Row(number, raw, fields) if isinstance(fields, dict) else _Row(number, raw, {}, "not a JSON object")


def _tsv_rows(
    path: str, id_fields: Sequence[str], text_fields: Sequence[str], no_header: tuple[str, ...] = ()
) -> Iterator[_Row]:
    """Yield the rows of a TSV file; `no_header` names the columns where the first line does not."""
    header: list[str] | None = None
    for number, line in enumerate(file_lines(path), start=1):
        line = line.rstrip(b"\r\n")
        if not line.strip():
            continue
        try:
            raw = line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield _Row(number, line.decode("utf-8", "backslashreplace"), {}, _not_utf8(error))
            continue
        cells = _cells(raw, len(header or ()))
        if header is None:
            is_header = not set(cells).isdisjoint(id_fields) and not set(cells).isdisjoint(text_fields)
            if is_header or not no_header:
                header = cells
                if not is_header:
                    raise InputError(
                        f"{path}: the first line names no id and text columns; begin the file with a line such as "
                        f"{id_fields[0]}, {text_fields[0]}, title, parted by tabs"
                    )
                continue
            header = list(no_header)
        if len(cells) == len(header):
            yield _Row(number, raw, dict(zip(header, cells, strict=True)))
        else:
            yield _Row(number, raw, {}, f"{len(cells)} columns where there should be {len(header)}")


def _cells(line: str, expected: int) -> list[str]:
    """Part a line at its tabs; drop the quotes around a cell only where those inside are doubled.

    DPR quotes its cells, others do not, and a text that merely begins with a quotation mark must not swallow the lines
    that follow, as it would with a reader of CSV.
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


def _parquet_rows(path: str, id_fields: Sequence[str]) -> Iterator[_Row]:
    pa, pq = _import_pyarrow(path)

    def plain(batch: Any) -> Any:  # noqa: ANN401
        """Give dates and decimals as strings: JSON has neither."""
        kinds = [field.type for field in batch.schema]
        columns = [
            column.cast(pa.string()) if pa.types.is_temporal(kind) or pa.types.is_decimal(kind) else column
            for kind, column in zip(kinds, batch.columns, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)

    try:
        with pq.ParquetFile(path) as file:
            if set(id_fields).isdisjoint(file.schema_arrow.names):
                raise InputError(f"{path}: no column is named {' or '.join(id_fields)}; name the one that holds the id")
            batches = map(plain, file.iter_batches(batch_size=1024))
            for number, fields in enumerate(chain.from_iterable(map(_dicts, batches)), start=1):
                if isinstance(fields, UnicodeDecodeError):
                    yield _Row(number, "", {}, _not_utf8(fields))
                else:
                    yield _Row(number, "", fields)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file that can be read ({error}); make it anew") from error


def _import_pyarrow(path: str) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{path}: Parquet needs an extra; install it with: pip install xqg-qdrant[parquet]") from error
    return pyarrow, pyarrow.parquet


def _dicts(batch: Any) -> list[Any]:  # noqa: ANN401
    """Return the rows of a record batch as dicts, the error in the place of a row that is not UTF-8."""
    try:
        return cast("list[Any]", batch.to_pylist())
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [error]
        return list(chain.from_iterable(_dicts(batch.slice(at, 1)) for at in range(batch.num_rows)))


def _is_tsv(path: str) -> bool:
    return path.endswith((".tsv", ".tsv.gz"))


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8: byte {error.object[error.start]:#04x} at position {error.start}"
