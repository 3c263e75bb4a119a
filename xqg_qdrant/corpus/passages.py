"""Read passages, and their generated queries, from files.

Passages stream: memory grows by about 20 bytes per passage, the trace of its id that detects duplicates. A row that
cannot be used becomes a `Reject`, and reading continues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, cast

from xqg_qdrant.corpus.datasets import (
    catalogued_passages,
    generated_query_fields,
    is_catalogued,
    is_id_derived,
    passage_fields,
)
from xqg_qdrant.corpus.dead_letters import LONGEST_ROW_KEPT
from xqg_qdrant.corpus.fields import (
    LANGUAGE_FIELDS,
    QUERY_TEXT_FIELDS,
    TEXT_FIELDS,
    take_id,
    take_text,
    unstorable_field,
)
from xqg_qdrant.corpus.files import LONGEST_ROW, corpus_files, existing_file, kind_of
from xqg_qdrant.corpus.formats import is_squad, json_rows, squad_rows
from xqg_qdrant.corpus.parquet import parquet_rows
from xqg_qdrant.corpus.rows import FileRow
from xqg_qdrant.corpus.seen_ids import TextSet
from xqg_qdrant.corpus.tables import is_table, table_rows
from xqg_qdrant.errors import InputError
from xqg_qdrant.records import GeneratedQuery, Passage, QueriedPassage, Reject
from xqg_qdrant.text import is_blank, show

# In the rows of MS MARCO v2 `docid` is the document's, `pid` the passage's.
ID_FIELDS = ("id", "_id", "passage_id", "pid", "docid")
GENERATED_QUERIES_FIELD = "generated_queries"
# docT5query's name of the same.
GENERATED_QUERIES_FIELDS = (GENERATED_QUERIES_FIELD, "predicted_queries")
JSON_KINDS = (".jsonl", ".ndjson", ".json")


def read_passages(
    *sources: str, id_field: str | None = None, text_field: str | None = None, longest: int = LONGEST_ROW
) -> Iterator[Passage | Reject]:
    """Read the passages of a corpus, one at a time.

    Args:
        sources: Read in order; ids must be unique across all of them. Each is a file of JSONL, a JSON array of objects,
            TSV or CSV (with a header line), plain or compressed with gzip or zstd; a Parquet file; a BEIR folder, or a
            folder of Parquet files; a JSON file of SQuAD, MLQA or XQuAD, whose paragraphs are the passages; the URL of
            any of these in an object store; `ir_datasets:` and an id; or `-` for JSONL on standard input.
        id_field: The field of the passage id, if not `id`, `_id`, `passage_id`, `pid` or `docid`.
        text_field: The field of the text, if not `text`, `contents` or `passage`.
        longest: Bytes of the longest row.

    Returns:
        An iterator of passages, with a `Reject` for each row that cannot be used. Fields other than id, text and title
        become metadata. So do the fields of an object named `metadata`, which override others of the same name.

    Raises:
        InputError: A file is missing, damaged or of an unknown format, or its first row has `generated_queries`, which
            only `read_queried_passages` uses.
    """
    rows = _read_rows(sources, id_field, text_field, queried=False, longest=longest)
    return cast("Iterator[Passage | Reject]", rows)


def read_queried_passages(
    *sources: str, id_field: str | None = None, text_field: str | None = None
) -> Iterator[QueriedPassage | Reject]:
    """Read passages like `read_passages`, each with the queries in its `generated_queries`.

    The field, which docT5query calls `predicted_queries`, is a list of strings, or of objects with a text (`question`,
    `query` or `text`) and optionally a language (`lang` or `language`). Queries are kept unchanged, except that empty
    ones are dropped. A passage without the field has no queries.
    """
    rows = _read_rows(sources, id_field, text_field, queried=True)
    return cast("Iterator[QueriedPassage | Reject]", rows)


def check_passages(
    rows: Iterable[Mapping[str, Any]], *, id_field: str | None = None, queried: bool = False
) -> Iterator[Passage | QueriedPassage | Reject]:
    """Turn rows in memory into passages, like `read_passages`.

    With `queried`, works like `read_queried_passages`. The line of a `Reject` is the number of the row, from 1.
    """
    numbered = (
        FileRow(number, "", row)
        if isinstance(row, Mapping)
        else FileRow(number, show(row, LONGEST_ROW_KEPT), {}, "not a mapping")
        for number, row in enumerate(rows, start=1)
    )
    names = _Names((id_field,) if id_field else ID_FIELDS, TEXT_FIELDS)
    return _passages(numbered, "rows", names, queried, TextSet().add)


def read_generated_queries(
    path: str | Path, *, id_field: str | None = None
) -> Iterator[tuple[str, tuple[GeneratedQuery, ...]] | Reject]:
    """Read passage ids and their queries from a JSONL file, plain or `.gz`, row by row.

    A row holds an id like the corpus, and either one query in the form that `read_queried_passages` accepts or a list
    of them in `generated_queries`. A passage may have many rows. A row that cannot be used becomes a `Reject`.

    Raises:
        InputError: The file is missing, or its name is not one of JSONL.
    """
    if kind_of(path) not in JSON_KINDS:
        raise InputError(f"{path}: unknown kind of file of queries.", "use a .jsonl file, which may be compressed")
    file = str(existing_file(path, ""))
    return _generated_queries(file, (id_field, *ID_FIELDS) if id_field else ID_FIELDS)


class _Names(NamedTuple):
    """The fields that may hold the id and the text of a passage."""

    id: tuple[str, ...]
    text: tuple[str, ...]


def _read_rows(
    sources: Sequence[str], id_field: str | None, text_field: str | None, queried: bool, longest: int = LONGEST_ROW
) -> Iterator[Passage | QueriedPassage | Reject]:
    """Open all sources before reading the first, so that a misspelt name fails at once."""
    is_new = TextSet().add
    names = _Names((id_field,) if id_field else ID_FIELDS, (text_field,) if text_field else TEXT_FIELDS)
    opened = [part for source in sources for part in _open_source(source, names, longest)]
    return chain.from_iterable(_passages(rows, path, found, queried, is_new) for rows, path, found in opened)


def _open_source(source: str, names: _Names, longest: int) -> list[tuple[Iterator[FileRow], str, _Names]]:
    """Return rows, path and field names of each file of a source."""
    if is_catalogued(source):
        return [(catalogued_passages(source), source, _Names(ID_FIELDS, TEXT_FIELDS))]
    paths = ["-"] if source == "-" else corpus_files(source)
    return [(_open_file(path, names, longest), path, names) for path in paths]


def _open_file(path: str, names: _Names, longest: int) -> Iterator[FileRow]:
    if kind_of(path) == ".parquet":
        return parquet_rows(path, names.id, longest)
    if is_table(path):
        return table_rows(path, names.id, names.text, longest=longest)
    if is_squad(path):
        return squad_rows(path)
    if path == "-" or kind_of(path) in JSON_KINDS:
        return json_rows(path, longest)
    cure = "use a .jsonl, .json, .tsv, .csv or .parquet file; all but the last may be compressed (.gz, .zst)"
    raise InputError(f"{path}: unknown kind of file.", cure)


def _passages(
    rows: Iterator[FileRow], source: str, names: _Names, queried: bool, is_new: Callable[[str], bool]
) -> Iterator[Passage | QueriedPassage | Reject]:
    for index, row in enumerate(rows):
        fields, problem = dict(row.fields), row.problem
        queries: tuple[GeneratedQuery, ...] = ()
        queries_field = _queries_field(fields)
        if not queried and fields.get(queries_field) is not None:
            problem = f"has {queries_field}, which only --queries corpus uses"
            if not index:  # then most likely every row has them
                cure = "ingest with --queries corpus, or remove the field"
                raise InputError(f"{source}, line {row.line}: {problem}.", cure)
        if queried and not problem:
            queries, problem = _take_queries(fields.pop(queries_field, None))
        passage, problem = (None, problem) if problem else _passage(fields, names)
        if passage is not None and not is_new(passage.passage_id):
            if is_id_derived(row.fields):
                continue  # the same text again, with other questions
            problem = f"the id {passage.passage_id!r} occurred before"
        if passage is None or problem:
            yield Reject(source, row.line, problem, row.raw or show(dict(row.fields), LONGEST_ROW_KEPT))
        else:
            yield QueriedPassage(passage, queries) if queried else passage


def _generated_queries(
    path: str, id_fields: Sequence[str]
) -> Iterator[tuple[str, tuple[GeneratedQuery, ...]] | Reject]:
    for row in json_rows(path):
        fields, passage_id, problem = dict(row.fields), "", row.problem
        queries: tuple[GeneratedQuery, ...] = ()
        if not problem:
            passage_id, problem = take_id(fields, id_fields)
            problem = problem or unstorable_field({"id": passage_id})
        if not problem:
            many = fields.get(_queries_field(fields))
            queries, problem = _take_queries([generated_query_fields(row.fields)] if many is None else many)
        yield Reject(path, row.line, problem, row.raw) if problem else (passage_id, queries)


def _queries_field(fields: Mapping[str, Any]) -> str:
    """Return the first name that a row uses for its queries."""
    return next((name for name in GENERATED_QUERIES_FIELDS if fields.get(name) is not None), GENERATED_QUERIES_FIELD)


def _take_queries(value: object) -> tuple[tuple[GeneratedQuery, ...], str]:
    """Return the non-empty queries of a list, and the problem if it cannot be used."""
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
        if problem := unstorable_field({"text": text, "language": language}):
            return (), f"a query's {problem}"
        if not is_blank(text):
            queries.append(GeneratedQuery(language.strip(), text))
    return tuple(queries), ""


def _passage(fields: Mapping[str, Any], names: _Names) -> tuple[Passage | None, str]:
    """Return the passage of a row, or None and the problem."""
    try:
        rest = passage_fields(fields)
    except ValueError as error:
        return None, str(error)
    derived = is_id_derived(fields)
    passage_id, problem = take_id(rest, ("id",) if derived else names.id)
    if problem:
        return None, problem
    text, problem = take_text(rest, TEXT_FIELDS if derived else names.text)
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
    problem = unstorable_field({"id": passage_id, "text": text, "title": title} | {"metadata": rest})
    return (None, problem) if problem else (Passage(passage_id, text, title or "", rest), "")
