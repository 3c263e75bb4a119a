"""A model folder explains itself: `xqg.json` beside the graphs and the tokenizer.

A folder is untrusted input. Before a runtime opens a file of it, all of these are so, or the folder is refused: the
description is sound (`model_description`); the files that it lists are graphs, weights and JSON, lie directly in the
folder as regular files of their own and have the checksums that it says; and the graphs name no other file
(`external_data`). What is not listed is never opened, and nothing is ever run or unpickled.

Files are judged and then opened by their names. Nothing is promised where somebody who may write to the folder swaps
a file between the two: whoever may do that may as well write a folder that is sound, with other weights.

Knows the folder's layout, its checksums, and where the models that ship with the package lie. Runs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xqg_qdrant.errors import ModelError
from xqg_qdrant.external_data import read_external_data
from xqg_qdrant.model_description import DESCRIPTION_FILE, FORMAT, TOKENIZER_FILE, is_plain_name, read_description

GRAPH_SUFFIX = ".onnx"
DATA_SUFFIX = ".data"
# Protobuf reads no message of 2 GiB; tokenizers of 250,000 tokens have some 20 MB; and what outgrows the memory of any
# machine that this is made for need not be hashed to be refused.
LARGEST_FILES = {GRAPH_SUFFIX: (1 << 31) - 1, DATA_SUFFIX: 256 << 30, ".json": 256 << 20}

DEMO_ENCODER = "demo-encoder"
DEMO_GENERATOR = "demo-generator"


class ModelFolder(NamedTuple):
    """A verified folder: its path and what its `xqg.json` says."""

    path: Path
    description: Mapping[str, Any]

    def sha256(self) -> str:
        """Return one checksum for all files that decide what the model computes."""
        files = self.description["files"]
        return hashlib.sha256("".join(f"{name}:{files[name]};" for name in sorted(files)).encode()).hexdigest()


def read_model_folder(path: Path, kind: str) -> ModelFolder:
    """Read and verify a folder of the given kind (`encoder` or `generator`); the folder itself may be a symbolic link.

    Raises:
        ModelError: the folder is missing, half written, of another kind, or holds anything that is not as it must be.
    """
    if not path.is_dir():
        raise ModelError(f"there is no model folder {path}. Cure: make one with: xqg export CHECKPOINT {path}")
    again = f"Cure: export it again: xqg export CHECKPOINT {path}"
    try:
        # Installers such as uv link the files of a package to their cache instead of copying them.
        links_allowed = path.resolve() in {shipped_model(name).resolve() for name in (DEMO_ENCODER, DEMO_GENERATOR)}
        _check_file(path / DESCRIPTION_FILE, links_allowed)
        description = read_description(path / DESCRIPTION_FILE, kind)
        sizes = {name: _check_file(path / name, links_allowed) for name in description["files"]}
        for name, expected in description["files"].items():
            found = hash_file(path / name)
            if found != expected:
                raise ModelError(f"{path / name} has sha256 {found}, but {DESCRIPTION_FILE} says {expected}. {again}")
        for name in sizes:
            if name.endswith(GRAPH_SUFFIX):
                _check_external_data(path / name, sizes)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}. Cure: look at the rights of its files") from error
    return ModelFolder(path, description)


def write_description(path: Path, kind: str, fields: Mapping[str, Any]) -> None:
    """Write `xqg.json` with the checksum of every file in the folder; written last, it makes the folder whole."""
    files = {file.name: hash_file(file) for file in sorted(path.iterdir()) if _decides_results(file)}
    description = {"format": FORMAT, "kind": kind, **fields, "files": files}
    text = json.dumps(description, ensure_ascii=False, indent=2)
    (path / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shipped_model(name: str) -> Path:
    """Return the folder of a model that ships with the package: inside the wheel, or in the checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "models" / name
    return installed if installed.is_dir() else package.parent / "onnx" / name


def _check_file(path: Path, links_allowed: bool) -> int:
    """Make sure, without opening it, that this is a regular file with no other name, of a sane size; return its size.

    Raises:
        ModelError: it is not.
    """
    again = f"Cure: export it again: xqg export CHECKPOINT {path.parent}"
    try:
        found = path.lstat()
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent} lacks {path.name}: it is half written, or no model folder. {again}") from error
    own_files = f"Cure: copy the folder, so that it has files of its own: cp -rL {path.parent} COPY"
    if stat.S_ISLNK(found.st_mode):
        raise ModelError(f"{path} is a symbolic link to {os.readlink(path)!r}, which may lead anywhere. {own_files}")
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"{path} is no regular file. {again}")
    if found.st_nlink > 1 and not links_allowed:
        raise ModelError(f"{path} is a hard link, one of {found.st_nlink} names of a file. {own_files}")
    largest = LARGEST_FILES[path.suffix]
    if found.st_size > largest:
        raise ModelError(f"{path} has {found.st_size} bytes; a {path.suffix} file has at most {largest}. {again}")
    return found.st_size


def _check_external_data(path: Path, sizes: Mapping[str, int]) -> None:
    """Make sure that a graph names no file besides those that are listed, and nothing beyond their ends.

    Raises:
        ModelError: it does, or it is no whole ONNX model.
    """
    for location, offset, length in read_external_data(path):
        where = f"{path} keeps a tensor in {location[:80]!r}"
        again = f"Cure: do not use this folder; export the model yourself: xqg export CHECKPOINT {path.parent}"
        if not is_plain_name(location) or location not in sizes:
            raise ModelError(f"{where}, which is none of the files that {DESCRIPTION_FILE} lists. {again}")
        if offset + (length or 0) > sizes[location]:
            raise ModelError(f"{where} at {offset}, length {length}, beyond its end at {sizes[location]}. {again}")


def _decides_results(file: Path) -> bool:
    return file.suffix in {GRAPH_SUFFIX, DATA_SUFFIX} or file.name == TOKENIZER_FILE
