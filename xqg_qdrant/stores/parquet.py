"""Points as a folder of Parquet files, in the columns that Qdrant's Spark connector makes the same points of.

    DIR/part-00000.parquet, …   some thousand points each, in the order of the corpus; there whole, or not at all
    DIR/_xqg/                   the fingerprint, and who is writing; Spark passes over names that begin with `_`

A folder is one ingest's: it can be gone on with, not changed. Knows Parquet. Knows nothing of Spark and of servers.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from xqg_qdrant.corpus.formats import PASSAGE_COLUMNS
from xqg_qdrant.errors import InputError
from xqg_qdrant.records import AugmentedPassage, Passage
from xqg_qdrant.stores.edge.index import SIDECAR, hold, read_sidecar, release, sync_directory, write_sidecar
from xqg_qdrant.stores.points import VECTOR_NAMES, check_points
from xqg_qdrant.streams import batched

OURS = "_xqg"
UNFINISHED = "_unfinished.parquet"
POINT_ID = "point_id"
# What a kill costs: the points of the part that is being filled.
PART_POINTS = 4096
PART_SECONDS = 300.0
READ_BATCH = 1000
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1

# The type of a JSON value: a name, the fields of an object, the type of a list's items; None of what is empty so far.
Kind = Any


class ParquetFolder:
    """Where `pipeline.ingest` can put points, in the place of a store; to be closed, which writes the last part."""

    def __init__(self, folder: Path, metadata: Kind, sparse: bool) -> None:
        """Open a folder, or name one that is to be created.

        Args:
            folder: where the parts are.
            metadata: the type of the metadata of all passages, of `find_metadata_kind`.
            sparse: whether the points have terms.
        """
        self._folder = folder
        self._schema = _make_schema(to_arrow(metadata), sparse)
        self._points: list[AugmentedPassage] = []
        self._since = time.monotonic()
        self._lock: int | None = None
        # In a nameless file, which is gone with the connection: what is written already may be millions.
        self._written = sqlite3.connect("", isolation_level=None)
        self._written.execute("CREATE TABLE points (id TEXT PRIMARY KEY, hash TEXT) WITHOUT ROWID")

    def read_fingerprint(self, _name: str) -> dict[str, Any] | None:
        """Return what made the points that are there, None where there is no folder.

        Raises:
            InputError: there is one, but it is not of ours.
        """
        if (self._folder / OURS / SIDECAR).exists():
            return read_sidecar(self._folder / OURS)[1]
        if self._folder.exists() and any(path.name != OURS for path in self._folder.iterdir()):
            raise InputError(f"{self._folder} holds something else.", "name a new folder.")
        return None

    def create_collection(self, _name: str, dim: int, fingerprint: Mapping[str, Any]) -> None:
        """Create the folder."""
        (self._folder / OURS).mkdir(parents=True, exist_ok=True)
        write_sidecar(self._folder / OURS, dim, fingerprint)

    @contextmanager
    def bulk_load(self, _name: str, fast: bool) -> Iterator[None]:
        """Hold the folder, find out what is written, and in the end write what is left, whatever happens."""
        self._lock = hold(self._folder / OURS)
        try:
            self._read_written()
            yield
        finally:
            try:
                self._write_part()
            finally:
                release(self._lock)

    def read_content_hashes(self, _name: str, passage_ids: Sequence[str]) -> dict[str, str]:
        """Return the content hash of each of these passages that is written."""
        found: dict[str, str] = {}
        for ids in batched(passage_ids, READ_BATCH):
            marks = ",".join("?" * len(ids))
            found.update(self._written.execute(f"SELECT id, hash FROM points WHERE id IN ({marks})", ids))
        return found

    def upsert(self, _name: str, points: Sequence[AugmentedPassage]) -> None:
        """Take points; they are on the disk when their part is full, old, or the last.

        Raises:
            InputError: a passage was written before, with other content.
        """
        known = self.read_content_hashes(_name, [point.passage.passage_id for point in points])
        if known:
            raise InputError(
                f"passage {next(iter(known))!r} changed since it was written to {self._folder}, where nothing can be "
                "replaced.",
                "name a new folder.",
            )
        self._points += points
        if len(self._points) >= PART_POINTS or time.monotonic() - self._since > PART_SECONDS:
            self._write_part()

    def _read_written(self) -> None:
        for path in self._parts():
            with pyarrow.parquet.ParquetFile(path) as file:
                if not file.schema_arrow.equals(self._schema):
                    cure = "name a new folder"
                    raise InputError(f"{path} has other columns than the passages now need.", cure)
                for batch in file.iter_batches(columns=["passage_id", "content_hash"]):
                    rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
                    self._written.executemany("INSERT OR REPLACE INTO points VALUES (?, ?)", rows)

    def _write_part(self) -> None:
        points, self._points, self._since = self._points, [], time.monotonic()
        if not points:
            return
        table = pyarrow.Table.from_pylist([*map(dict, self._make_rows(points))], self._schema)
        number = max((int(path.stem.removeprefix("part-")) for path in self._parts()), default=-1) + 1
        unfinished = self._folder / UNFINISHED
        pyarrow.parquet.write_table(table, unfinished)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(self._folder / f"part-{number:05}.parquet")
        sync_directory(self._folder)

    def _make_rows(self, points: Sequence[AugmentedPassage]) -> Iterator[Mapping[str, Any]]:
        dim = len(points[0].vectors[VECTOR_NAMES[0]])
        for point_id, (point, payload) in check_points(points, dim, points[0].terms is not None).items():
            row = {POINT_ID: point_id, **payload, **point.vectors, "metadata": payload["metadata"] or None}
            if point.terms is not None:
                # Spark has no unsigned integers; its connector hands the same 32 bits on as unsigned.
                row["terms_indices"] = np.array(point.terms, np.uint32).view(np.int32)
                row["terms_values"] = np.ones(len(point.terms), np.float32)
            yield row

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("part-*.parquet"))


def find_metadata_kind(passages: Iterable[Passage]) -> Kind:
    """Return the one type that the metadata of all passages have in Parquet, which has no other way.

    Raises:
        InputError: a field has values of types that do not go together; names both, and the passage.
    """
    kind: Kind = None
    for passage in passages:
        kind = _merge(kind, passage.metadata, f"passage {passage.passage_id!r}: metadata")
    return kind


def to_arrow(kind: Kind) -> pyarrow.DataType | None:
    """Return a type as Parquet has it; None of what is empty everywhere, which Parquet cannot hold."""
    if isinstance(kind, list):
        item = to_arrow(kind[0])
        return None if item is None else pyarrow.list_(item)
    if isinstance(kind, dict):
        fields = [(name, to_arrow(value)) for name, value in kind.items()]
        held = [(name, value) for name, value in fields if value is not None]
        return pyarrow.struct(held) if held else None
    simple = {"int": pyarrow.int64(), "float": pyarrow.float64(), "bool": pyarrow.bool_(), "str": pyarrow.string()}
    return simple.get(kind)


def _merge(kind: Kind, value: object, where: str) -> Kind:
    if value is None:
        return kind
    if isinstance(value, Mapping) and isinstance(kind, dict | None):
        merged = dict(kind or {})
        for name, item in value.items():
            merged[name] = _merge(merged.get(name), item, f"{where}.{name}")
        return merged
    if isinstance(value, list | tuple) and isinstance(kind, list | None):
        item_kind = kind[0] if kind else None
        for item in value:
            item_kind = _merge(item_kind, item, f"{where}[]")
        return [item_kind]
    found = type(value).__name__
    if (kind, found) in (("int", "float"), ("float", "int")):
        return "float"
    if kind in (None, found) and (found != "int" or MIN_INTEGER <= int(str(value)) <= MAX_INTEGER):
        return found
    before = "an object" if isinstance(kind, dict) else "a list" if isinstance(kind, list) else kind
    cure = "give the field values of one type everywhere, or leave it out"
    raise InputError(f"{where} is {value!r:.80}, and was {before} before: Parquet wants one type.", cure)


def _make_schema(metadata: pyarrow.DataType | None, sparse: bool) -> pyarrow.Schema:
    text, vector = pyarrow.string(), pyarrow.list_(pyarrow.float32())
    query = pyarrow.struct([("language", text), ("text", text), ("number", pyarrow.int32())])
    passage = [("passage_id", text), ("text", text), ("title", text)]
    passage += [] if metadata is None else [("metadata", metadata)]
    passage.append(("generated_queries", pyarrow.list_(query)))
    made = [("content_hash", text), ("recipe", text), *((name, vector) for name in VECTOR_NAMES)]
    terms = [("terms_indices", pyarrow.list_(pyarrow.int32())), ("terms_values", vector)] if sparse else []
    names = ",".join(name for name, _ in passage)
    return pyarrow.schema([(POINT_ID, text), *passage, *made, *terms], {PASSAGE_COLUMNS: names.encode()})
