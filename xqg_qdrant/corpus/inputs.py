"""Describe the inputs of an ingest, so that any process can read them; join passages with queries, split documents.

A document that is split has numbered passages, `DOC#1`, `DOC#2` and so on, even a single one. So the id of a passage
names its document, no id can occur twice, and a document that grows keeps the ids that it has.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Protocol

from xqg_qdrant.corpus.files import LONGEST_DOCUMENT, LONGEST_ROW
from xqg_qdrant.corpus.formats import count_rows
from xqg_qdrant.corpus.passages import read_generated_queries, read_passages, read_queried_passages
from xqg_qdrant.errors import InputError
from xqg_qdrant.records import GeneratedQuery, Passage, QueriedPassage, Reject

CORPUS = "corpus"
# In the metadata of passages that documents were split into.
DOCUMENT_ID = "document_id"
DOCUMENT_FIELDS = (DOCUMENT_ID, "document_start", "document_end")


class TextSplitter(Protocol):
    """Splits texts; its settings are part of the recipe."""

    @property
    def tokens(self) -> int:
        """Return the longest passage, in tokens of the encoder."""

    @property
    def overlap(self) -> int:
        """Return how many tokens of a passage the next one repeats at most."""

    def split(self, text: str, title: str = "") -> Iterator[tuple[int, int, str]]:
        """Return start, end and text of each passage, in characters of the text.

        Raises:
            ValueError: the title leaves no room.
        """


class Inputs:
    """Files of passages, and the source of their queries.

    `unused` says what a separate file of queries holds for no passage, and is empty if that is nothing; it is valid
    once all rows have been read.
    """

    def __init__(
        self,
        files: Sequence[str],
        queries: str | None = None,
        id_field: str | None = None,
        text_field: str | None = None,
    ) -> None:
        """Remember the names; nothing is opened yet.

        Args:
            files: sources of passages, as for `read_passages`.
            queries: None to generate queries, `corpus` to use those in the passages' rows, or a file of queries.
            id_field: the field of the passage id, if not one of the usual names.
            text_field: the field of the text, if not one of the usual names.
        """
        self.files = tuple(files)
        self.queries = queries
        self.id_field = id_field
        self.text_field = text_field
        self.unused = ""
        self.splitter: TextSplitter | None = None

    def split_by(self, splitter: TextSplitter) -> None:
        """Split each row into passages; a row may be longer then.

        Raises:
            InputError: the rows have their queries, which are of whole documents.
        """
        if self.queries == CORPUS:
            raise InputError(
                "the queries in the rows are of whole documents, and --split makes several passages of each.",
                "leave out one of --split and --queries corpus, or give a file of queries with the passages' ids",
            )
        self.splitter = splitter

    def __str__(self) -> str:
        return " ".join(self.files)

    def read(self) -> Iterator[Passage | QueriedPassage | Reject]:
        """Return the rows of all files in order."""
        if self.queries == CORPUS:
            return read_queried_passages(*self.files, id_field=self.id_field, text_field=self.text_field)
        passages = self.read_passages()
        return passages if self.queries is None else self._join(passages, self.queries)

    def read_passages(self) -> Iterator[Passage | Reject]:
        """Return the rows of all files in order, or the passages that they are split into, without queries."""
        longest = LONGEST_ROW if self.splitter is None else LONGEST_DOCUMENT
        passages = read_passages(*self.files, id_field=self.id_field, text_field=self.text_field, longest=longest)
        return passages if self.splitter is None else split_documents(passages, self.splitter)

    def _join(self, passages: Iterator[Passage | Reject], queries: str) -> Iterator[QueriedPassage | Reject]:
        index = QueryIndex(read_generated_queries(queries, id_field=self.id_field))
        yield from index.join(passages)
        if index.left_over:
            self.unused = f"Queries of {queries} that belong to no passage of {self}: {index.left_over}"

    def count(self) -> int | None:
        """Return the number of rows without parsing them; None if that is not possible, or they are split."""
        if self.splitter is not None:
            return None
        counts = [count_rows(file) for file in self.files]
        return None if None in counts else sum(filter(None, counts))


Entry = tuple[str, tuple[GeneratedQuery, ...]]


class QueryIndex:
    """A join of passages with the queries of a file.

    `left_over` is the number of queries that belong to no passage; it is valid once all passages have been read.
    """

    def __init__(self, entries: Iterable[Entry | Reject]) -> None:
        """Take the entries of `read_generated_queries`, which are read with the first passage."""
        self._entries = entries
        self.left_over = 0

    def join(self, rows: Iterable[Passage | QueriedPassage | Reject]) -> Iterator[QueriedPassage | Reject]:
        """Yield the file's rejects, then the rows; each passage has its queries in file order.

        Of a row that is a `QueriedPassage`, the vector is kept, and the queries are found by its `own_id`.
        """
        # An empty name means a temporary database: a file in TMPDIR that disappears with the connection.
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
            # Create the index last: one sort, a single pass over the disk however large the file.
            database.execute("CREATE INDEX by_passage ON entries (passage)")
            for row in rows:
                if isinstance(row, Reject):
                    yield row
                else:
                    queried = row if isinstance(row, QueriedPassage) else QueriedPassage(row)
                    name = queried.own_id or queried.passage.passage_id
                    queries = tuple(_look_up(database, name))
                    self.left_over -= len(queries)
                    yield queried._replace(queries=queries)


def _look_up(database: sqlite3.Connection, passage_id: str) -> Iterator[GeneratedQuery]:
    found = database.execute("SELECT queries FROM entries WHERE passage = ? ORDER BY rowid", (passage_id,))
    for (queries,) in found:
        yield from (GeneratedQuery(*query) for query in json.loads(queries))


def split_documents(rows: Iterable[Passage | Reject], splitter: TextSplitter) -> Iterator[Passage | Reject]:
    """Yield the passages of each document, all with its title and metadata.

    Their metadata also has the document's id, and where the passage starts and ends in the document's text, in
    characters.
    """
    for row in rows:
        if isinstance(row, Reject):
            yield row
            continue
        taken = next((name for name in DOCUMENT_FIELDS if name in row.metadata), None)
        if taken is not None:
            yield Reject(row.passage_id, 0, f"has the field {taken}, which --split writes", row.text)
            continue
        try:
            pieces = splitter.split(row.text, row.title)
        except ValueError as error:
            yield Reject(row.passage_id, 0, str(error), row.text)
            continue
        for number, (start, end, text) in enumerate(pieces, start=1):
            place = dict(zip(DOCUMENT_FIELDS, (row.passage_id, start, end), strict=True))
            yield Passage(f"{row.passage_id}#{number}", text, row.title, {**row.metadata, **place})


def document_of(passage_id: str) -> str:
    """Return the document of a split passage; the id itself if it is none.

    >>> document_of("a#b#12"), document_of("a#b")
    ('a#b', 'a#b')
    """
    document, mark, number = passage_id.rpartition("#")
    return document if mark and number.isascii() and number.isdigit() else passage_id
