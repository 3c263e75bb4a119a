"""The files of one ingest: what is to be read, so that any process can read it.

Knows which reader a choice of files needs. Knows nothing of formats (`corpus`) and of models.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from xqg_qdrant.corpus.formats import count_rows
from xqg_qdrant.corpus.passages import read_generated_queries, read_passages, read_queried_passages
from xqg_qdrant.records import GeneratedQuery, Passage, QueriedPassage, Reject

CORPUS = "corpus"


class Inputs:
    """Files of passages, and where the queries of the passages come from.

    `left_over` is how many queries of a file of their own belong to no passage, known when all rows were read.
    """

    def __init__(self, files: Sequence[str], queries: str | None = None, id_field: str | None = None) -> None:
        """Take names; nothing is opened yet.

        Args:
            files: of passages, as `corpus.read_passages` takes them.
            queries: None where they are to be generated, `corpus` where the passages bring them, or their file.
            id_field: the field of the passage id, where it has no usual name.
        """
        self.files = tuple(files)
        self.queries = queries
        self.id_field = id_field
        self.left_over = 0

    def __str__(self) -> str:
        return " ".join(self.files)

    def read(self) -> Iterator[Passage | QueriedPassage | Reject]:
        """Return the rows of all files in their order."""
        if self.queries == CORPUS:
            return read_queried_passages(*self.files, id_field=self.id_field)
        passages = read_passages(*self.files, id_field=self.id_field)
        return passages if self.queries is None else self._join(passages, self.queries)

    def _join(self, passages: Iterator[Passage | Reject], queries: str) -> Iterator[QueriedPassage | Reject]:
        index = QueryIndex(read_generated_queries(queries, id_field=self.id_field))
        yield from index.join(passages)
        self.left_over = index.left_over

    def count(self) -> int | None:
        """Count the rows without parsing them, None where that cannot be done."""
        counts = [count_rows(file) for file in self.files]
        return None if None in counts else sum(filter(None, counts))


Entry = tuple[str, tuple[GeneratedQuery, ...]]


class QueryIndex:
    """Joins passages with the queries of a file.

    `left_over` is how many queries belong to no passage that was met, known when all passages were.
    """

    def __init__(self, entries: Iterable[Entry | Reject]) -> None:
        """Take what `corpus.read_generated_queries` gives; it is read when the first passage is asked for."""
        self._entries = entries
        self.left_over = 0

    def join(self, rows: Iterable[Passage | Reject]) -> Iterator[QueriedPassage | Reject]:
        """Yield the rejects of the file, then the rows, each passage with its queries in the order of the file."""
        # An empty name is a database in a nameless file: in the directory of TMPDIR, and gone with the connection.
        with closing(sqlite3.connect("", isolation_level=None)) as database:
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("CREATE TABLE entries (passage TEXT, queries TEXT)")
            database.execute("BEGIN")
            for entry in self._entries:
                if isinstance(entry, Reject):
                    yield entry
                else:
                    passage_id, queries = entry
                    self.left_over += len(queries)
                    database.execute("INSERT INTO entries VALUES (?, ?)", (passage_id, json.dumps(queries)))
            # Sorted once at the end, which is one pass over the disk however large the file.
            database.execute("CREATE INDEX by_passage ON entries (passage)")
            for row in rows:
                if isinstance(row, Reject):
                    yield row
                else:
                    queries = tuple(_look_up(database, row.passage_id))
                    self.left_over -= len(queries)
                    yield QueriedPassage(row, queries)


def _look_up(database: sqlite3.Connection, passage_id: str) -> Iterator[GeneratedQuery]:
    found = database.execute("SELECT queries FROM entries WHERE passage = ? ORDER BY rowid", (passage_id,))
    for (queries,) in found:
        yield from (GeneratedQuery(*query) for query in json.loads(queries))
