"""Check the files of a model folder before a runtime opens them, and read its JSON files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from xqg_qdrant.errors import ModelError
from xqg_qdrant.model_folders.onnx_scan import read_external_data
from xqg_qdrant.text import show

GRAPH_SUFFIX = ".onnx"
DATA_SUFFIX = ".data"
# Weights beside the graph, as other programs name them; very large ones come in numbered parts.
FOREIGN_DATA_SUFFIX = ".onnx_data"
SAFETENSORS_SUFFIX = ".safetensors"
# In bytes. Protobuf reads no message of 2 GiB; tokenizers of 250,000 tokens have some 20 MB, and the layers after a
# pooling a few. Weights that no supported machine has memory for are refused without hashing them.
LARGEST_FILES = {
    GRAPH_SUFFIX: (1 << 31) - 1,
    DATA_SUFFIX: 256 << 30,
    FOREIGN_DATA_SUFFIX: 256 << 30,
    SAFETENSORS_SUFFIX: 256 << 20,
    ".json": 256 << 20,
}
# In bytes. tokenizer_config.json repeats thousands of added tokens for some models.
LARGEST_JSON = 16 << 20
# Such names mean the same on every system: no separator, no drive, no device, nothing hidden.
PLAIN_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"


def is_plain_name(name: str) -> bool:
    """Return whether this can only name a file directly in a folder."""
    return re.fullmatch(PLAIN_NAME, name) is not None


def is_file_name(name: str) -> bool:
    """Return whether this can only name a file in a folder, at most one folder deeper."""
    return re.fullmatch(f"({PLAIN_NAME}/)?{PLAIN_NAME}", name) is not None


def suffix_of(name: str) -> str:
    """Return the suffix that tells a file's type, without the number of a part."""
    return re.sub(rf"({re.escape(FOREIGN_DATA_SUFFIX)})_[0-9]{{1,3}}$", r"\1", PurePosixPath(name).suffix)


def export_again(folder: Path) -> str:
    """Return the cure for a damaged folder of xqg's own layout."""
    return f"export it again: xqg export CHECKPOINT {folder}"


def export_it(folder: Path) -> str:
    """Return the cure for a folder with something that xqg does not support."""
    return f"export its checkpoint: xqg export CHECKPOINT {folder}-xqg"


def check_file(folder: Path, name: str, links_allowed: bool = False) -> int:
    """Check that a file is regular, has no other name and a sane size; return its size.

    The file is not opened.

    Args:
        folder: the model folder.
        name: the file's name, at most one folder deeper.
        links_allowed: accept hard links, as installers make them; symbolic links never pass.

    Raises:
        ModelError: the check fails, or the folder in between is a symbolic link.
    """
    path = folder / name
    again = export_again(folder)
    own_files = f"copy the folder, so that it has files of its own: cp -rL {folder} COPY"
    for step in [path.parent] * (path.parent != folder) + [path]:
        try:
            found = step.lstat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ModelError(f"{folder} lacks {name}: it is half written, or not a model folder.", again) from error
        if stat.S_ISLNK(found.st_mode):
            raise ModelError(
                f"{step} is a symbolic link to {show(os.readlink(step))}, which may lead anywhere.", own_files
            )
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"{path} is not a regular file.", again)
    if found.st_nlink > 1 and not links_allowed:
        raise ModelError(f"{path} is a hard link, one of {found.st_nlink} names of a file.", own_files)
    largest = LARGEST_FILES[suffix_of(name)]
    if found.st_size > largest:
        raise ModelError(f"{path} has {found.st_size} bytes; a {suffix_of(name)} file has at most {largest}.", again)
    return found.st_size


def check_graph(folder: Path, graph: str) -> list[str]:
    """Check another program's graph and the files that hold its weights; return their names.

    Raises:
        ModelError: one of them is unsound.
    """
    sizes = {graph: check_file(folder, graph)}
    locations = sorted({data.location for data in read_external_data(folder / graph)})
    for location in locations:
        # Files with other names are refused below.
        if is_plain_name(location) and suffix_of(location) in (DATA_SUFFIX, FOREIGN_DATA_SUFFIX):
            name = _beside(graph, location)
            sizes[name] = check_file(folder, name)
    check_external_data(folder, graph, sizes)
    return [*sizes]


def check_external_data(folder: Path, graph: str, sizes: Mapping[str, int]) -> None:
    """Check that a graph reads only from these files, and not beyond their ends.

    Args:
        folder: the model folder.
        graph: the graph's name in it.
        sizes: file name → size in bytes.

    Raises:
        ModelError: it reads from elsewhere, or is not a whole ONNX model.
    """
    for location, offset, length in read_external_data(folder / graph):
        where = f"{folder / graph} keeps a tensor in {show(location)}"
        cure = f"do not use this folder; export the model yourself: xqg export CHECKPOINT {folder}"
        name = _beside(graph, location)
        if name not in sizes:
            raise ModelError(f"{where}, which is not one of its files.", cure)
        if offset + (length or 0) > sizes[name]:
            raise ModelError(f"{where} at {offset}, length {length}, beyond its end at {sizes[name]}.", cure)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_object(folder: Path, name: str, links_allowed: bool = False) -> dict[str, Any]:
    """Read a JSON object; return an empty one if there is no such file.

    Args:
        folder: the folder.
        name: the file's name in it.
        links_allowed: as for `read_checked`.

    Raises:
        ModelError: the file is unsound, or not a JSON object.
    """
    if not os.path.lexists(folder / name):
        return {}
    content = read_checked(folder, name, links_allowed)
    if not isinstance(content, dict):
        raise ModelError(f"{folder / name} is not a JSON object.", export_it(folder))
    return content


def read_checked(folder: Path, name: str, links_allowed: bool = False, largest: int = LARGEST_JSON) -> Any:  # noqa: ANN401
    """Check a JSON file as `check_file` does, and read it.

    With `links_allowed` only the content is checked: the hub's cache of checkpoints consists of symbolic links.

    Raises:
        ModelError: the file is unsound, or not valid JSON.
    """
    if not links_allowed:
        check_file(folder, name)
    return read_json(folder / name, largest)


def read_json(path: Path, largest: int) -> Any:  # noqa: ANN401
    """Read a JSON file of at most `largest` bytes that every parser reads alike.

    Raises:
        ModelError: the file is larger, or not such JSON.
    """
    again = export_again(path.parent)
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ModelError(f"{path} is larger than {largest} bytes.", again)
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_refuse_twins, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ModelError(f"{path} is nested too deeply.", again) from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}.", again) from error


def _beside(graph: str, location: str) -> str:
    """Return the name in the model folder of a file that a graph names."""
    beside = graph.rpartition("/")[0]
    return f"{beside}/{location}" if beside else location


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Parsers disagree about which of two fields of one name counts.
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"duplicate field {show(name)}")
        fields[name] = value
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
