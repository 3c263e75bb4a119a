"""A model folder explains itself: `xqg.json` beside the graphs and the tokenizer.

A folder is untrusted input. Before a runtime opens a file of it, all of these are so, or the folder is refused: the
description is sound (`model_description`); the files that it lists are graphs, weights and JSON, lie directly in the
folder as regular files of their own and have the checksums that it says (`model_files`); and the graphs name no other
file (`external_data`). What is not listed is never opened, and nothing is ever run or unpickled. In the layout of
another program (`foreign_folder`) some files lie one folder deeper, and nobody need say checksums; the rest is so, too.

Files are judged and then opened by their names. Nothing is promised where somebody who may write to the folder swaps
a file between the two: whoever may do that may as well write a folder that is sound, with other weights.

Knows the folder's layout, its checksums, and where the models that ship with the package lie. Runs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xqg_qdrant.errors import InputError, ModelError
from xqg_qdrant.model_folders.description import DESCRIPTION_FILE, FORMAT, TOKENIZER_FILE, read_description
from xqg_qdrant.model_folders.files import DATA_SUFFIX, GRAPH_SUFFIX, check_external_data, check_file, hash_file
from xqg_qdrant.model_folders.optimum import ToldOfGenerator, describe_foreign_generator
from xqg_qdrant.model_folders.sentence_transformers import (
    Told,
    describe_foreign_encoder,
    holds_generator,
    is_foreign_folder,
)

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
        raise ModelError(f"there is no model folder {path}.", f"make one with: xqg export CHECKPOINT {path}")
    again = f"export it again: xqg export CHECKPOINT {path}"
    try:
        if is_foreign_folder(path):
            told = Told() if kind == "encoder" else ToldOfGenerator()
            return ModelFolder(path, _describe_foreign_folder(path, told))
        # Installers such as uv link the files of a package to their cache instead of copying them.
        links_allowed = path.resolve() in {shipped_model(name).resolve() for name in (DEMO_ENCODER, DEMO_GENERATOR)}
        check_file(path, DESCRIPTION_FILE, links_allowed)
        description = read_description(path / DESCRIPTION_FILE, kind)
        sizes = {name: check_file(path, name, links_allowed) for name in description["files"]}
        for name, expected in description["files"].items():
            found = hash_file(path / name)
            if found != expected:
                raise ModelError(f"{path / name} has sha256 {found}, but {DESCRIPTION_FILE} says {expected}.", again)
        for name in sizes:
            if name.endswith(GRAPH_SUFFIX):
                check_external_data(path, name, sizes)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}.", "look at the rights of its files") from error
    return ModelFolder(path, description)


def write_description(path: Path, kind: str, fields: Mapping[str, Any]) -> None:
    """Write `xqg.json` with the checksum of every file in the folder; written last, it makes the folder whole."""
    files = {file.name: hash_file(file) for file in sorted(path.iterdir()) if _decides_results(file)}
    description = {"format": FORMAT, "kind": kind, **fields, "files": files}
    text = json.dumps(description, ensure_ascii=False, indent=2)
    (path / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")


def describe_in_place(path: Path, **given: Any) -> Mapping[str, Any]:
    """Write the `xqg.json` of a folder that another program laid out; return what it says.

    Args:
        path: the folder.
        given: what a user tells: the fields of `Told` for an encoder, of `ToldOfGenerator` for a generator.

    Raises:
        InputError: there is one already, no such folder, or it holds a model of another kind than what is told.
        ModelError: the folder cannot be used, or even so not all is known that decides what it gives.
    """
    if not is_foreign_folder(path):
        raise InputError(
            f"{path} is no folder with a config.json and without {DESCRIPTION_FILE}.",
            f"to describe it anew, remove {path / DESCRIPTION_FILE}",
        )
    kind, wanted = ("generator", ToldOfGenerator) if holds_generator(path) else ("encoder", Told)
    misplaced = [name for name in given if name not in wanted._fields]
    if misplaced:
        raise InputError(f"{path} holds a model of kind {kind!r}, which has no {misplaced[0]}.", "leave it out")
    description = _describe_foreign_folder(path, wanted(**given))
    unfinished = path / f".{DESCRIPTION_FILE}.unfinished"
    unfinished.write_text(json.dumps(description, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path / DESCRIPTION_FILE)
    return description


def shipped_model(name: str) -> Path:
    """Return the folder of a model that ships with the package: inside the wheel, or in the checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "models" / name
    return installed if installed.is_dir() else package.parent / "onnx" / name


def _describe_foreign_folder(path: Path, told: Told | ToldOfGenerator) -> dict[str, Any]:
    if isinstance(told, ToldOfGenerator):
        return describe_foreign_generator(path, told)
    return describe_foreign_encoder(path, told)


def _decides_results(file: Path) -> bool:
    return file.suffix in {GRAPH_SUFFIX, DATA_SUFFIX} or file.name == TOKENIZER_FILE
