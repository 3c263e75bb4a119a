"""Queries that lie in a file of their own, brought to their passages.

The file may be in any order and larger than memory: it is sorted into a temporary SQLite database on the disk, which
the operating system removes with the process. Knows passage ids. Knows nothing of formats: `corpus` reads the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing

from xqg_qdrant.records import GeneratedQuery, Passage, QueriedPassage, Reject

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
