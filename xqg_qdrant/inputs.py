"""The files of one ingest: what is to be read, so that any process can read it.

Knows which reader a choice of files needs. Knows nothing of formats (`corpus`) and of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xqg_qdrant.corpus import read_generated_queries, read_passages, read_queried_passages
from xqg_qdrant.query_index import QueryIndex
from xqg_qdrant.records import Passage, QueriedPassage, Reject
from xqg_qdrant.rows import count_rows

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
