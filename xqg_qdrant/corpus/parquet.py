"""Read the rows of Parquet files as JSON values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from xqg_qdrant.corpus.files import LONGEST_ROW, is_remote, open_remote
from xqg_qdrant.corpus.rows import FileRow, not_utf8, refuse_repeated, too_long
from xqg_qdrant.errors import InputError

PARQUET_BATCH = 1024
# Metadata key of files from `xqg generate`: names the columns of passages and queries; the others are derived.
PASSAGE_COLUMNS = b"xqg_passage_columns"


def parquet_rows(path: str, id_fields: Sequence[str], longest: int = LONGEST_ROW) -> Iterator[FileRow]:
    """Yield the rows of a Parquet file; dates, times and decimals become strings, as JSON has none of them.

    Raises:
        InputError: pyarrow is not installed, the file cannot be read, or its columns cannot be used.
    """
    pa, pq = _import_pyarrow(path)
    try:
        with pq.ParquetFile(open_remote(path) if is_remote(path) else path) as file:
            names = file.schema_arrow.names
            if set(id_fields).isdisjoint(names):
                cure = "name the column of the ids with --id-field"
                raise InputError(f"{path}: no column is named {' or '.join(id_fields)}.", cure)
            refuse_repeated(path, names)
            kept = (file.schema_arrow.metadata or {}).get(PASSAGE_COLUMNS)
            columns = kept.decode().split(",") if kept else None
            batches = file.iter_batches(batch_size=PARQUET_BATCH, columns=columns)
            found = chain.from_iterable(
                _parquet_fields(pa, _decode_dictionaries(pa, batch), longest) for batch in batches
            )
            for number, (fields, problem) in enumerate(found, start=1):
                yield FileRow(number, "", fields, problem)
    except (pa.ArrowException, OSError) as error:
        cure = "download or write it again"
        raise InputError(f"{path}: not a readable Parquet file ({error}).", cure) from error


def count_parquet_rows(path: str) -> int | None:
    """Return the number of rows of a Parquet file; None if it cannot be read."""
    pa, pq = _import_pyarrow(path)
    try:
        return int(pq.read_metadata(open_remote(path) if is_remote(path) else path).num_rows)
    except (pa.ArrowException, OSError):
        return None


def _import_pyarrow(path: str) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        cure = "pip install 'xqg-qdrant[parquet]'"
        raise InputError(f"{path}: pyarrow, which reads Parquet, is not installed.", cure) from error
    return pyarrow, pyarrow.parquet


def _decode_dictionaries(pa: Any, batch: Any) -> Any:  # noqa: ANN401
    # Otherwise the whole dictionary would count towards the size of each slice.
    kinds = zip(batch.schema.types, batch.columns, strict=True)
    columns = [column.dictionary_decode() if pa.types.is_dictionary(kind) else column for kind, column in kinds]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _parquet_fields(pa: Any, batch: Any, longest: int) -> list[tuple[dict[str, Any], str]]:  # noqa: ANN401
    """Return the rows of a record batch as dicts, each with its problem or an empty string."""
    problem, names = too_long(longest), batch.schema.names
    if batch.nbytes <= longest:
        try:
            rows = zip(*(_to_values(pa, column) for column in batch.columns), strict=True)
            return [(dict(zip(names, row, strict=True)), "") for row in rows]
        except UnicodeDecodeError as error:
            problem = not_utf8(error)
        except (ValueError, ArithmeticError, LookupError, NotImplementedError) as error:
            problem = f"a value that cannot be read: {error}"
    if batch.num_rows == 1:
        return [({}, problem)]
    half = batch.num_rows // 2
    return _parquet_fields(pa, batch.slice(0, half), longest) + _parquet_fields(pa, batch.slice(half), longest)


def _to_values(pa: Any, column: Any) -> list[Any]:  # noqa: ANN401
    kind = _to_json_type(pa, column.type)
    values: list[Any] = (column if kind == column.type else column.cast(kind)).to_pylist()
    if _holds_own_values(pa, column.type):
        values = [_to_json_value(pa, column.type, value) for value in values]
    if pa.types.is_temporal(column.type) and any(value and value.startswith("<") for value in values):
        raise ValueError("a date or time out of range")
    return values


def _holds_own_values(pa: Any, kind: Any) -> bool:  # noqa: ANN401
    """Return whether a type holds UUIDs or maps, which become Python values that JSON does not have."""
    inner = [kind.field(index).type for index in range(kind.num_fields)]
    return pa.types.is_map(kind) or _is_uuid(kind) or any(_holds_own_values(pa, one) for one in inner)


def _is_uuid(kind: Any) -> bool:  # noqa: ANN401
    return getattr(kind, "extension_name", "") == "arrow.uuid"


def _to_json_value(pa: Any, kind: Any, value: Any) -> Any:  # noqa: ANN401
    """Return a value of a column's type with text for UUIDs and objects for maps."""
    if value is None or not _holds_own_values(pa, kind):
        return value
    if _is_uuid(kind):
        return str(value)
    if pa.types.is_struct(kind):
        return {field.name: _to_json_value(pa, field.type, value[field.name]) for field in kind}
    if not pa.types.is_map(kind):
        return [_to_json_value(pa, kind.value_type, item) for item in value]
    fields = {str(key): _to_json_value(pa, kind.item_type, item) for key, item in value}
    if len(fields) < len(value):
        raise ValueError("a map with two entries of one key")
    return fields


def _to_json_type(pa: Any, kind: Any) -> Any:  # noqa: ANN401
    """Return a column's type with text for dates, times and decimals, at any depth."""
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return pa.string()
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _to_json_type(pa, field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_to_json_type(pa, kind.key_type), _to_json_type(pa, kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        item = _to_json_type(pa, kind.value_type)
        return kind if item == kind.value_type else pa.list_(item)
    return kind
