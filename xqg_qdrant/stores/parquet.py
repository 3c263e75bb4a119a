"""Points as a folder of Parquet files that Qdrant's Spark connector loads as the same points.

    DIR/part-00000.parquet, …   a few thousand points each, in corpus order; a part is written whole or not at all
    DIR/_xqg/                   the fingerprint and the lock; Spark skips names that begin with `_`

A folder belongs to one ingest, which can be resumed but not changed.
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

from xqg_qdrant.atomic import sync
from xqg_qdrant.corpus.parquet import PASSAGE_COLUMNS
from xqg_qdrant.errors import InputError
from xqg_qdrant.records import AugmentedPassage, Passage
from xqg_qdrant.stores.checksums import CHECKSUM_FIELD
from xqg_qdrant.stores.edge.index import (
    SIDECAR,
    Sidecar,
    lock_collection,
    read_sidecar,
    release_lock,
    write_sidecar,
)
from xqg_qdrant.stores.points import VECTOR_NAMES, check_points
from xqg_qdrant.streams import batched
from xqg_qdrant.text import show

OURS = "_xqg"
UNFINISHED = "_unfinished.parquet"
POINT_ID = "point_id"
# A kill loses the points of the unwritten part, so parts are limited in size and age.
PART_POINTS = 4096
PART_SECONDS = 300.0
READ_BATCH = 1000
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1

# The type of a JSON value: a name, an object's fields, or a list holding its item type; None while all are empty.
Kind = Any


@contextmanager
def _readable(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        cure = "delete the file and run the command again, or name a new folder"
        raise InputError(f"{path} is damaged ({error}).", cure) from error


class ParquetFolder:
    """A write-only stand-in for a store in `pipeline.ingest`."""

    def __init__(self, folder: Path, metadata: Kind, sparse: bool) -> None:
        """Prepare a folder, which need not exist yet.

        Args:
            folder: the folder of the parts.
            metadata: the metadata type of all passages, from `find_metadata_kind`.
            sparse: whether the points have terms.
        """
        self._folder = folder
        self.location = str(folder)
        self._schema = _make_schema(to_arrow(metadata), sparse)
        self._points: list[AugmentedPassage] = []
        self._since = time.monotonic()
        self._lock: int | None = None
        # A temporary file, as millions of points may be written already; SQLite deletes it with the connection.
        self._written = sqlite3.connect("", isolation_level=None)
        self._written.execute("CREATE TABLE points (id TEXT PRIMARY KEY, hash TEXT) WITHOUT ROWID")

    def read_fingerprint(self, _name: str) -> dict[str, Any] | None:
        """Return the fingerprint of the points, None if there is no folder.

        Raises:
            InputError: the folder holds other files.
        """
        if (self._folder / OURS / SIDECAR).exists():
            return read_sidecar(self._folder / OURS).fingerprint
        if self._folder.exists() and any(path.name != OURS for path in self._folder.iterdir()):
            raise InputError(f"{self._folder} holds something else.", "name a new folder")
        return None

    def create_collection(self, _name: str, dim: int, fingerprint: Mapping[str, Any]) -> None:
        """Create the folder with its sidecar."""
        (self._folder / OURS).mkdir(parents=True, exist_ok=True)
        write_sidecar(self._folder / OURS, Sidecar(dim, dict(fingerprint)))

    def read_models(self, _name: str) -> dict[str, Any]:
        """Return nothing: the folder does not keep where the models were."""
        return {}

    @contextmanager
    def bulk_load(self, _name: str, fast: bool) -> Iterator[None]:
        """Lock the folder, load what is already written, and flush the last part on exit."""
        self._lock = lock_collection(self._folder / OURS)
        try:
            self._read_written()
            yield
        finally:
            try:
                self._write_part()
            finally:
                release_lock(self._lock)

    def read_content_hashes(self, _name: str, passage_ids: Sequence[str]) -> dict[str, str]:
        """Return the content hash of each written passage."""
        found: dict[str, str] = {}
        for ids in batched(passage_ids, READ_BATCH):
            marks = ",".join("?" * len(ids))
            found.update(self._written.execute(f"SELECT id, hash FROM points WHERE id IN ({marks})", ids))
        return found

    def upsert(self, _name: str, points: Sequence[AugmentedPassage]) -> None:
        """Collect points; write them to disk once their part is full or old.

        Raises:
            InputError: a passage was written before with other content.
        """
        known = self.read_content_hashes(_name, [point.passage.passage_id for point in points])
        if known:
            raise InputError(
                f"passage {next(iter(known))!r} changed since it was written to {self._folder}, where nothing can be "
                "replaced.",
                "name a new folder",
            )
        self._points += points
        if len(self._points) >= PART_POINTS or time.monotonic() - self._since > PART_SECONDS:
            self._write_part()

    def _read_written(self) -> None:
        for path in self._parts():
            with _readable(path) as file:
                if not file.schema_arrow.equals(self._schema):
                    raise InputError(f"the columns differ from those of these passages ({path}).", "name a new folder")
                for batch in file.iter_batches(columns=["passage_id", "content_hash"]):
                    self._remember(zip(*(column.to_pylist() for column in batch.columns), strict=True))

    def _remember(self, hashes: Iterable[tuple[str, str]]) -> None:
        """Remember which passages are on the disk, with their content hashes."""
        self._written.executemany("INSERT OR REPLACE INTO points VALUES (?, ?)", hashes)

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
        sync(self._folder)
        self._remember((point.passage.passage_id, point.content_hash) for point in points)

    def _make_rows(self, points: Sequence[AugmentedPassage]) -> Iterator[Mapping[str, Any]]:
        dim = len(points[0].vectors[VECTOR_NAMES[0]])
        for point_id, (point, payload) in check_points(points, dim, points[0].terms is not None).items():
            row = {POINT_ID: point_id, **payload, **point.vectors, "metadata": payload["metadata"] or None}
            if point.terms is not None:
                # Spark has no unsigned integers; its connector passes the same 32 bits on as unsigned.
                row["terms_indices"] = np.array(point.terms, np.uint32).view(np.int32)
                row["terms_values"] = np.ones(len(point.terms), np.float32)
            yield row

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("part-*.parquet"))


def find_metadata_kind(passages: Iterable[Passage]) -> Kind:
    """Return the type of the metadata of all passages; a Parquet column has only one.

    Raises:
        InputError: a field has values of incompatible types; names both and the passage.
    """
    kind: Kind = None
    for passage in passages:
        kind = _merge(kind, passage.metadata, f"passage {passage.passage_id!r}: metadata")
    return kind


def to_arrow(kind: Kind) -> pyarrow.DataType | None:
    """Return the Arrow type of a kind, None if it is empty everywhere, which Parquet cannot hold."""
    if isinstance(kind, list):
        item = to_arrow(kind[0])
        return None if item is None else pyarrow.list_(item)
    if isinstance(kind, dict):
        fields = [(name, to_arrow(value)) for name, value in kind.items()]
        filled = [(name, value) for name, value in fields if value is not None]
        return pyarrow.struct(filled) if filled else None
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
    if isinstance(value, int) and not MIN_INTEGER <= value <= MAX_INTEGER:
        raise InputError(f"{where} is {value}, larger than the integers of Spark.", "store it as text, or remove it")
    if kind in (None, found):
        return found
    before = "an object" if isinstance(kind, dict) else "a list" if isinstance(kind, list) else kind
    cure = "give the field values of one type, or remove it"
    raise InputError(f"{where} is {show(value)}, and was {before} before: Parquet wants one type.", cure)


def _make_schema(metadata: pyarrow.DataType | None, sparse: bool) -> pyarrow.Schema:
    text, vector = pyarrow.string(), pyarrow.list_(pyarrow.float32())
    query = pyarrow.struct([("language", text), ("text", text), ("number", pyarrow.int32())])
    passage = [("passage_id", text), ("text", text), ("title", text)]
    passage += [] if metadata is None else [("metadata", metadata)]
    passage.append(("generated_queries", pyarrow.list_(query)))
    made = [
        ("content_hash", text),
        ("recipe", text),
        (CHECKSUM_FIELD, text),
        *((name, vector) for name in VECTOR_NAMES),
    ]
    terms = [("terms_indices", pyarrow.list_(pyarrow.int32())), ("terms_values", vector)] if sparse else []
    names = ",".join(name for name, _ in passage)
    return pyarrow.schema([(POINT_ID, text), *passage, *made, *terms], {PASSAGE_COLUMNS: names.encode()})
