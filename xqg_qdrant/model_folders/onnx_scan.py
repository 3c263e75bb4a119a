"""Find the files that an ONNX graph reads, and its outputs, before a runtime opens it.

An ONNX file may keep a tensor's values in another file, by a path that the runtime would follow. The scan walks the
protobuf messages from the model to every tensor: weights, sparse weights, constants in nodes' attributes, nested
graphs, functions and training. It skips all other fields, and refuses what parsers could read in two ways.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from xqg_qdrant.errors import ModelError

T = TypeVar("T")

# message → its fields that can hold a tensor: number → the message in it
ONNX_FIELDS: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto", 22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}  # fmt: skip
GRAPH, OUTPUT = 7, 12
NAME_OF_OUTPUT = 1
EXTERNAL_DATA, DATA_LOCATION = 13, 14
KEY, VALUE = 1, 2
TENSOR_KEYS = frozenset({"location", "offset", "length", "checksum"})

VARINT, LENGTH_DELIMITED = 0, 2
FIXED_SIZES = {1: 8, 5: 4}
LONGEST_VARINT = 10
LARGEST_TAG = 2**32 - 1
# Levels of nested messages. Protobuf itself stops at 100; xqg's exports need 6.
DEEPEST = 64
# The largest exports have some ten thousand fields on the way to their tensors; many more would only cost time.
MOST_FIELDS = 5_000_000
LONGEST_ENTRY = 1024


class ExternalData(NamedTuple):
    """Where a tensor's values lie: a file, an offset, and a length in bytes (None: as the tensor needs)."""

    location: str
    offset: int
    length: int | None


class Field(NamedTuple):
    """A field of a message: its number, all its bytes, and the bytes of its value."""

    number: int
    whole: bytes
    value: bytes


def read_fields(message: bytes) -> list[Field]:
    """Split a message into its fields, in order.

    Raises:
        ValueError: the bytes are not protobuf's wire format.
    """
    fields, start = [], 0
    for number, _, first, last in _Walk(message).fields(0, len(message)):
        fields.append(Field(number, message[start:last], message[first:last]))
        start = last
    return fields


def read_external_data(path: Path) -> list[ExternalData]:
    """Return the places of all tensor values that lie outside an ONNX file.

    Raises:
        ModelError: the file is not a whole ONNX model, or describes such a place in another way than ONNX.
    """
    return _walk(path, lambda walk: list(walk.model()))


def read_outputs(path: Path) -> list[str]:
    """Return the names of a graph's outputs.

    Raises:
        ModelError: the file is not a whole ONNX model.
    """
    return _walk(path, lambda walk: list(walk.outputs()))


def _walk(path: Path, read: Callable[[_Walk], T]) -> T:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return read(_Walk(data))
    except ValueError as error:
        # mmap raises it too, for an empty file.
        raise ModelError(f"{path} is not a whole ONNX model: {error}.", "export the model again") from error


class _Walk:
    """One pass through a model's bytes; raises `ValueError` for anything but the wire format."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self._data = data
        self._fields_left = MOST_FIELDS

    def model(self) -> Iterator[ExternalData]:
        if not any(number == GRAPH for number, *_ in self.fields(0, len(self._data))):
            raise ValueError("it holds no graph")
        yield from self._message("ModelProto", 0, len(self._data), DEEPEST)

    def outputs(self) -> Iterator[str]:
        places = [(0, len(self._data))]
        for wanted in (GRAPH, OUTPUT, NAME_OF_OUTPUT):
            found = []
            for place in places:
                for number, wire_type, first, last in self.fields(*place):
                    if number == wanted:
                        _check_message(wire_type, first)
                        found.append((first, last))
            places = found
        return (self._text(first, last) for first, last in places)

    def _message(self, name: str, start: int, end: int, depth: int) -> Iterator[ExternalData]:
        if not depth:
            raise ValueError(f"its messages are nested more than {DEEPEST} deep")
        if name == "TensorProto":
            yield from self._tensor(start, end)
            return
        inner = ONNX_FIELDS[name]
        for number, wire_type, first, last in self.fields(start, end):
            if number in inner:
                _check_message(wire_type, first)
                yield from self._message(inner[number], first, last, depth - 1)

    def _tensor(self, start: int, end: int) -> Iterator[ExternalData]:
        entries: dict[str, str] = {}
        external = False
        for number, wire_type, first, last in self.fields(start, end):
            if number == EXTERNAL_DATA:
                _check_message(wire_type, first)
                key, value = self._entry(first, last)
                if key not in TENSOR_KEYS or key in entries:
                    raise ValueError(f"external data has an unknown or duplicate key {key!r}")
                entries[key] = value
            elif number == DATA_LOCATION and wire_type == VARINT:
                # Parsers keep the low 32 bits.
                external = self._varint(first, last)[0] & 0xFFFFFFFF != 0
        # Entries are checked even where the runtime would ignore them because the values are inside.
        if external or entries:
            if "location" not in entries:
                raise ValueError("the values of a tensor lie in a file that is not named")
            length = entries.get("length")
            offset = _parse_bytes(entries.get("offset", "0"))
            yield ExternalData(entries["location"], offset, None if length is None else _parse_bytes(length))

    def _entry(self, start: int, end: int) -> tuple[str, str]:
        texts = {KEY: "", VALUE: ""}
        for number, wire_type, first, last in self.fields(start, end):
            if number in texts:
                _check_message(wire_type, first)
                texts[number] = self._text(first, last)
        return texts[KEY], texts[VALUE]

    def _text(self, start: int, end: int) -> str:
        if end - start > LONGEST_ENTRY:
            raise ValueError(f"a name is {end - start} bytes long")
        return self._data[start:end].decode("utf-8")

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield each field of a message: its number, wire type, and its value's start and end."""
        place = start
        while place < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise ValueError(f"it has more than {MOST_FIELDS} fields")
            tag, first = self._varint(place, end)
            number, wire_type = tag >> 3, tag & 7
            if not number or tag > LARGEST_TAG:
                raise ValueError(f"there is no field at byte {place}")
            if wire_type == LENGTH_DELIMITED:
                size, first = self._varint(first, end)
                last = first + size
            elif wire_type == VARINT:
                last = self._varint(first, end)[1]
            elif wire_type in FIXED_SIZES:
                last = first + FIXED_SIZES[wire_type]
            else:
                raise ValueError(f"the field at byte {place} has the wire type {wire_type}, which ONNX does not use")
            if last > end:
                raise ValueError(f"the field at byte {place} ends after its message")
            yield number, wire_type, first, last
            place = last

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        """Return a number and the position after it."""
        data = self._data
        value = 0
        for shift in range(0, 7 * LONGEST_VARINT, 7):
            if place >= end:
                break
            byte = data[place]
            place += 1
            if byte < 0x80:
                return value | byte << shift, place
            value |= (byte & 0x7F) << shift
        raise ValueError(f"the number before byte {place} does not end")


def _check_message(wire_type: int, place: int) -> None:
    # Some parsers would skip it as unknown, others might not.
    if wire_type != LENGTH_DELIMITED:
        raise ValueError(f"the field before byte {place} has the wire type {wire_type}, but ONNX has a message there")


def _parse_bytes(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise ValueError(f"external data has the offset or length {text!r}")
    return int(text)
