"""Read questions, and the judgements in the same files.

A row that cannot be used is an error: a score over half the questions would look like any other score. Separate files
of judgements are read by `evaluation.files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from xqg_qdrant.corpus import datasets
from xqg_qdrant.corpus.datasets import QuestionRow, language_in_name, question_rows
from xqg_qdrant.corpus.fields import LANGUAGE_FIELDS, QUERY_TEXT_FIELDS, take_id, take_text, unstorable_field
from xqg_qdrant.corpus.files import existing_file, kind_of
from xqg_qdrant.corpus.formats import is_squad, is_topics, json_rows, squad_rows, topic_rows
from xqg_qdrant.corpus.rows import FileRow
from xqg_qdrant.corpus.tables import is_table, table_rows
from xqg_qdrant.errors import InputError
from xqg_qdrant.records import Qrel, Query

QUERY_ID_FIELDS = ("id", "_id", "query_id", "qid", "query-id", "question_id", "topic_id")
JSON_KINDS = (".jsonl", ".ndjson", ".json")


class QuestionSet(NamedTuple):
    """Questions, the judgements in their files, and the files' own ids by query id."""

    queries: list[Query]
    qrels: list[Qrel]
    file_ids: dict[str, str]


def read_queries(path: str | Path) -> list[Query]:
    """Read the questions of one file like `read_questions`."""
    return read_questions([path]).queries


def read_questions(sources: Sequence[str | Path], language: str = "") -> QuestionSet:
    """Read questions, and the judgements in their files.

    Args:
        sources: Each a JSONL file, a TSV or CSV file (`id` and `text`, with or without a header), a BEIR folder, a JSON
            file of SQuAD, MLQA or XQuAD, topics of TREC, or `ir_datasets:` and an id. The text of a row is the first of
            `question`, `query` and `text`; see `datasets` for the rows of known data sets. With several sources, if a
            data set uses the same ids in each language, a query's id is the file's id and the language.
        language: The language of questions if neither the row nor the file name has one. Codes are stripped of spaces:
            the XOR-TyDi files hold ` ar`.

    Raises:
        InputError: A file or one of its rows cannot be used, or an id occurs twice.
    """
    queries: dict[str, Query] = {}
    qrels: list[Qrel] = []
    file_ids: dict[str, str] = {}
    for source in sources:
        file, unit, rows = _rows(source)
        fallback = language_in_name(file) or language
        count = len(queries)
        for row in rows:
            where = f"{file}, {unit} {row.line}"
            for question, query in _queries(row, where):
                query_id, language_code = query.query_id, query.language or fallback
                if question.is_id_shared and len(sources) > 1 and language_code:
                    query_id = f"{query_id}-{language_code}"
                if query_id in queries:
                    cure = "correct or remove this row, or evaluate the files one by one"
                    raise InputError(f"{where}: the id {query_id!r} occurred before.", cure)
                queries[query_id] = query._replace(query_id=query_id, language=language_code)
                file_ids[query_id] = query.query_id
                qrels += (Qrel(query_id, name, relevance) for name, relevance in question.relevant.items())
        if len(queries) == count:
            raise InputError(f"{file}: holds no questions.", "use a file with one question per line")
        if datasets.is_catalogued(source):
            qrels += datasets.catalogued_judgements(str(source), required=False)
    return QuestionSet(list(queries.values()), qrels, file_ids)


def may_hold_questions(source: str | Path) -> bool:
    """Return whether a file of judgements may hold the questions, too."""
    return kind_of(source) in JSON_KINDS


def _rows(source: str | Path) -> tuple[str, str, Iterator[FileRow]]:
    """Return the file of a source, the word for its rows in messages, and the rows."""
    if datasets.is_catalogued(source):
        return str(source), "question", datasets.catalogued_questions(str(source))
    file = str(existing_file(source, "queries.jsonl"))
    if is_squad(file):
        return file, "paragraph", squad_rows(file)
    if kind_of(file) in JSON_KINDS:
        return file, "line", json_rows(file)
    if not is_table(file) and is_topics(file):
        return file, "line", topic_rows(file)
    if is_table(file) or kind_of(file) == ".txt":
        return file, "line", table_rows(file, QUERY_ID_FIELDS, QUERY_TEXT_FIELDS, ("id", "text"))
    return file, "line", json_rows(file)


def _queries(row: FileRow, where: str) -> Iterator[tuple[QuestionRow, Query]]:
    problem = row.problem
    try:
        for question in question_rows(row.fields) if not problem else ():
            query, problem = _query(question)
            if query is None:
                break
            yield question, query
    except ValueError as error:
        problem = str(error)
    if problem:
        raise InputError(f"{where}: {problem}.", "correct or remove this row")


def _query(question: QuestionRow) -> tuple[Query | None, str]:
    rest = dict(question.fields)
    if "title" in rest and "text" in rest and not any(rest.get(name) for name in ("question", "query")):
        return None, "a passage with a title and a text, where a question should be"
    query_id, problem = take_id(rest, QUERY_ID_FIELDS)
    if not problem:
        text, problem = take_text(rest, QUERY_TEXT_FIELDS)
    if problem:
        return None, problem
    language = next((rest[name] for name in LANGUAGE_FIELDS if rest.get(name) is not None), "")
    answers = rest.get("answers") or ()
    answers = (answers,) if isinstance(answers, str) else answers
    if not isinstance(language, str):
        return None, "the language is not a string"
    if not isinstance(answers, list | tuple) or not all(isinstance(answer, str) for answer in answers):
        return None, "the answers are not a list of strings"
    problem = unstorable_field({"id": query_id, "text": text, "language": language, "answers": answers})
    return (None, problem) if problem else (Query(query_id, text, language.strip(), tuple(answers)), "")
