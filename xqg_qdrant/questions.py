"""Files of questions → queries.

A row that cannot be used is an error, because a figure over half the questions looks like a figure. Knows nothing of
passages, judgements and results.
"""

from __future__ import annotations

from pathlib import Path

from xqg_qdrant.errors import InputError
from xqg_qdrant.fields import LANGUAGE_FIELDS, QUERY_TEXT_FIELDS, take_id, take_text, unstorable_field
from xqg_qdrant.lines import existing_file
from xqg_qdrant.records import Query
from xqg_qdrant.rows import FileRow, is_tsv, jsonl_rows, tsv_rows

QUERY_ID_FIELDS = ("id", "_id", "query_id")


def read_queries(path: str | Path) -> list[Query]:
    """Read questions from a JSONL file, a TSV file (`id` and `text`, with a header or without) or a BEIR folder.

    The text is the first of the fields `question`, `query` and `text` that is there. Language codes lose the spaces
    around them: the XOR-TyDi files hold ` ar`.

    Raises:
        InputError: The file or one of its rows cannot be used, or an id occurs twice.
    """
    file = str(existing_file(path, "queries.jsonl"))
    rows = tsv_rows(file, QUERY_ID_FIELDS, QUERY_TEXT_FIELDS, ("id", "text")) if is_tsv(file) else jsonl_rows(file)
    queries: dict[str, Query] = {}
    for row in rows:
        query, problem = _query(row)
        if query is None or query.query_id in queries:
            problem = problem or "the id was there before"
            raise InputError(f"{file}, line {row.line}: {problem}. Cure: correct or remove this row.")
        queries[query.query_id] = query
    if not queries:
        raise InputError(f"{file}: holds no questions. Cure: give a file with one question a line.")
    return list(queries.values())


def _query(row: FileRow) -> tuple[Query | None, str]:
    rest = dict(row.fields)
    problem = row.problem
    if not problem:
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
