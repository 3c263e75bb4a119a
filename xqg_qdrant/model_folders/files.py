"""The files of a model folder: what each must be before a runtime opens it.

Knows names, sizes, links, checksums, and that a graph may name other files. Knows nothing of what a model computes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from xqg_qdrant.errors import ModelError
from xqg_qdrant.model_folders.onnx_scan import read_external_data

GRAPH_SUFFIX = ".onnx"
DATA_SUFFIX = ".data"
# Weights beside the graph, as other programs name them; very large ones come in numbered parts.
FOREIGN_DATA_SUFFIX = ".onnx_data"
SAFETENSORS_SUFFIX = ".safetensors"
# Protobuf reads no message of 2 GiB; tokenizers of 250,000 tokens have some 20 MB; the layers behind a pooling have
# a few; and what outgrows the memory of any machine that this is made for need not be hashed to be refused.
LARGEST_FILES = {
    GRAPH_SUFFIX: (1 << 31) - 1,
    DATA_SUFFIX: 256 << 30,
    FOREIGN_DATA_SUFFIX: 256 << 30,
    SAFETENSORS_SUFFIX: 256 << 20,
    ".json": 256 << 20,
}
# Such names mean the same on every system: no separator, no drive, no device, nothing hidden.
PLAIN_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"


def is_plain_name(name: str) -> bool:
    """Tell whether this can only be the name of a file directly in a folder."""
    return re.fullmatch(PLAIN_NAME, name) is not None


def is_file_name(name: str) -> bool:
    """Tell whether this can only be the name of a file in a folder, or in a folder directly in it."""
    return re.fullmatch(f"({PLAIN_NAME}/)?{PLAIN_NAME}", name) is not None


def suffix_of(name: str) -> str:
    """Return the end of a file's name by which it is known; a part's number is none of it."""
    return re.sub(rf"({re.escape(FOREIGN_DATA_SUFFIX)})_[0-9]{{1,3}}$", r"\1", PurePosixPath(name).suffix)


def check_file(folder: Path, name: str, links_allowed: bool = False) -> int:
    """Make sure, without opening it, that this is a regular file with no other name, of a sane size; return its size.

    Raises:
        ModelError: it is not, or the folder in between is a symbolic link.
    """
    path = folder / name
    again = f"export it again: xqg export CHECKPOINT {folder}"
    own_files = f"copy the folder, so that it has files of its own: cp -rL {folder} COPY"
    for step in [path.parent] * (path.parent != folder) + [path]:
        try:
            found = step.lstat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ModelError(f"{folder} lacks {name}: it is half written, or no model folder.", again) from error
        if stat.S_ISLNK(found.st_mode):
            raise ModelError(
                f"{step} is a symbolic link to {show(os.readlink(step))}, which may lead anywhere.", own_files
            )
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"{path} is no regular file.", again)
    if found.st_nlink > 1 and not links_allowed:
        raise ModelError(f"{path} is a hard link, one of {found.st_nlink} names of a file.", own_files)
    largest = LARGEST_FILES[suffix_of(name)]
    if found.st_size > largest:
        raise ModelError(f"{path} has {found.st_size} bytes; a {suffix_of(name)} file has at most {largest}.", again)
    return found.st_size


def check_external_data(folder: Path, graph: str, sizes: Mapping[str, int]) -> None:
    """Make sure that a graph names no file besides those of these sizes, and nothing beyond their ends.

    Raises:
        ModelError: it does, or it is no whole ONNX model.
    """
    beside = graph.rpartition("/")[0]
    for location, offset, length in read_external_data(folder / graph):
        where = f"{folder / graph} keeps a tensor in {show(location)}"
        again = f"do not use this folder; export the model yourself: xqg export CHECKPOINT {folder}"
        name = f"{beside}/{location}" if beside else location
        if name not in sizes:
            raise ModelError(f"{where}, which is none of the files that belong to it.", again)
        if offset + (length or 0) > sizes[name]:
            raise ModelError(f"{where} at {offset}, length {length}, beyond its end at {sizes[name]}.", again)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, largest: int) -> Any:  # noqa: ANN401
    """Read a JSON file of bounded size that every reader understands alike.

    Raises:
        ModelError: it is larger, or no such JSON.
    """
    again = f"export it again: xqg export CHECKPOINT {path.parent}"
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ModelError(f"{path} is larger than {largest} bytes.", again)
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_refuse_twins, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ModelError(f"{path} is nested too deep.", again) from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}.", again) from error


def show(value: object) -> str:
    """Return a value as one short line, with no control characters, however long or deep it is."""
    short = reprlib.Repr()
    short.maxstring = 80
    return short.repr(value).encode("ascii", "backslashreplace").decode()


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two fields of one name each reader takes another one.
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"the field {show(name)} stands there twice")
        fields[name] = value
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
