"""Have a language model write queries through a batch API: a file of requests, and later a file of results.

A request is recognised by the id of its passage and a hash of the passage's content, so results of an edited passage or
of another corpus are left over, not mixed up.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from xqg_qdrant.corpus.formats import jsonl_rows
from xqg_qdrant.errors import InputError
from xqg_qdrant.fingerprint import hash_json
from xqg_qdrant.generation.answers import read_answer
from xqg_qdrant.generation.checks import check_queries
from xqg_qdrant.generation.llm import ChatSampling, LanguageModelGenerator
from xqg_qdrant.generation.replies import read_reply
from xqg_qdrant.languages import LANGUAGES, can_identify
from xqg_qdrant.records import GeneratedQuery, Passage, QueriedPassage, Reject

MOST_QUERIES = 100
"""Of one language in a result, which does not state how many were asked for."""


def make_custom_id(passage: Passage) -> str:
    """Return the id of a passage's request."""
    return f"{passage.passage_id}#{hash_json([passage.title, passage.text])[:16]}"


def write_batch(
    rows: Iterable[Passage | QueriedPassage | Reject],
    file: IO[str],
    generator: LanguageModelGenerator,
    languages: Sequence[str],
    count: int,
    seed: int,
    sampling: ChatSampling,
) -> Iterator[Reject | None]:
    """Write one request a passage, as a line of OpenAI's batch format; yield each rejected row, None for a written one.

    Args:
        rows: of the corpus.
        file: open for writing.
        generator: of the model; nothing is sent to it.
        languages: codes of the languages to write in.
        count: queries for each passage and language.
        seed: of the sampling.
        sampling: from the generator.
    """
    path = urlsplit(generator.endpoint.url).path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
    for row in rows:
        if not isinstance(row, Passage):
            yield row if isinstance(row, Reject) else None
            continue
        body = generator.make_request(row, languages, count, seed, sampling)
        request = {"custom_id": make_custom_id(row), "method": "POST", "url": path, "body": body}
        file.write(json.dumps(request) + "\n")
        yield None


def is_batch_result(path: str) -> bool:
    """Return whether the first line of a file is a result of a batch."""
    if path == "-" or not Path(path).is_file():
        return False
    first = next(iter(jsonl_rows(path)), None)
    return first is not None and "custom_id" in first.fields and bool({"response", "error"} & first.fields.keys())


class BatchResults:
    """The results of a batch, in any order.

    Attributes:
        missing: Passages without a result.
        failed: Results that are errors, or hold no usable question.
        left_over: Results of no passage of the corpus, and second ones of a passage.
    """

    def __init__(self, path: str) -> None:
        """Remember the file; it is read with the first passage."""
        self.path = path
        self.missing = self.failed = self.left_over = 0

    def join(self, rows: Iterable[Passage | QueriedPassage | Reject]) -> Iterator[QueriedPassage | Reject]:
        """Yield the rows of a corpus with the queries of their results; a bad result is yielded as a reject.

        Raises:
            InputError: a row has queries of its own.
        """
        with closing(sqlite3.connect("", isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("CREATE TABLE results (id TEXT, line INTEGER, raw TEXT)")
            database.execute("BEGIN")
            for found in jsonl_rows(self.path):
                if found.problem or not isinstance(found.fields.get("custom_id"), str):
                    yield Reject(self.path, found.line, found.problem or "no custom_id", found.raw)
                else:
                    self.left_over += 1
                    entry = (found.fields["custom_id"], found.line, found.raw)
                    database.execute("INSERT INTO results VALUES (?, ?, ?)", entry)
            database.execute("CREATE INDEX by_id ON results (id)")
            for row in rows:
                if isinstance(row, QueriedPassage):
                    raise InputError(f"passage {row.passage.passage_id!r} has queries of its own.", "leave one out")
                if isinstance(row, Reject):
                    yield row
                else:
                    select = "SELECT line, raw FROM results WHERE id = ? ORDER BY line"
                    yield from self._read(row, database.execute(select, (make_custom_id(row),)).fetchall())

    def _read(self, passage: Passage, results: Sequence[tuple[int, str]]) -> Iterator[QueriedPassage | Reject]:
        queries: tuple[GeneratedQuery, ...] = ()
        self.missing += not results
        self.left_over -= bool(results)
        reasons = []
        for line, raw in results:
            queries, reason = read_result(json.loads(raw), passage)
            if queries:
                break
            reasons.append(Reject(self.path, line, reason, raw))
        if not queries:
            self.failed += bool(results)
            yield from reasons[:1]
        yield QueriedPassage(passage, queries)

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.missing} passages without a result, {self.failed} results that failed, "
            f"{self.left_over} of other passages or repeated"
        )


def read_result(result: dict[str, Any], passage: Passage) -> tuple[tuple[GeneratedQuery, ...], str]:
    """Return the queries in a line of results, or why there are none."""
    error, response = result.get("error"), result.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    if isinstance(error, dict) and not body:
        return (), f"the batch has no answer: {error.get('message') or error.get('code')}"
    if not isinstance(body, dict):
        return (), "the batch has no answer"
    reply = read_answer(body, str)
    if reply.rejected or reply.truncated:
        return (), reply.rejected or "the reply was cut off (raise --max-new-tokens)"
    read = read_reply(reply.content, dict.fromkeys(LANGUAGES, MOST_QUERIES), passage, set())
    written = [GeneratedQuery(code, text) for code, texts in read.questions.items() for text in texts]
    queries = check_queries(written, can_identify()).queries
    return queries, "" if queries else "the model wrote no usable question"
