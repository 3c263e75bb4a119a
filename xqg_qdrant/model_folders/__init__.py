"""Read and verify model folders: `xqg.json` beside the graphs and the tokenizer.

A folder is untrusted input. It is refused unless all of this holds before a runtime opens one of its files:

- the description is valid (`description`);
- the files that it lists are graphs, weights and JSON, lie directly in the folder as regular files of their own, and
  match its checksums (`files`);
- the graphs read from no other file (`onnx_scan`).

A file that is not listed is never opened, and nothing is run or unpickled. In another program's layout
(`sentence_transformers`, `optimum`) some files lie one folder deeper and checksums are optional; the rest applies too.

Files are checked, then opened by name. There is no protection from someone who can write to the folder and swaps a file
in between: they could as well write a valid folder with other weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xqg_qdrant.errors import InputError, ModelError
from xqg_qdrant.model_folders.description import (
    DESCRIPTION_FILE,
    FORMAT,
    TOKENIZER_FILE,
    dense_files,
    is_foreign,
    read_description,
)
from xqg_qdrant.model_folders.files import (
    DATA_SUFFIX,
    GRAPH_SUFFIX,
    check_external_data,
    check_file,
    check_graph,
    export_again,
    hash_file,
)
from xqg_qdrant.model_folders.optimum import GeneratorOverrides, describe_foreign_generator
from xqg_qdrant.model_folders.sentence_transformers import (
    EncoderOverrides,
    describe_foreign_encoder,
    holds_generator,
    is_foreign_folder,
)

DEMO_ENCODER = "demo-encoder"
DEMO_GENERATOR = "demo-generator"


class ModelFolder(NamedTuple):
    """A verified folder and its description."""

    path: Path
    description: Mapping[str, Any]

    def sha256(self) -> str:
        """Return one checksum for all files that decide what the model computes."""
        files = self.description["files"]
        return hashlib.sha256("".join(f"{name}:{files[name]};" for name in sorted(files)).encode()).hexdigest()


def read_model_folder(path: Path, kind: str) -> ModelFolder:
    """Read and verify a model folder of the given kind.

    Args:
        path: the folder, which may be a symbolic link.
        kind: `encoder` or `generator`.

    Raises:
        ModelError: the folder is missing, half written, of another kind, or otherwise invalid.
    """
    if not path.is_dir():
        if path.exists():
            raise ModelError(f"{path} is a file, not a model folder.", "name the folder that holds it")
        # A hub id such as intfloat/multilingual-e5-small, not a path.
        is_hub_id = not path.is_absolute() and len(path.parts) == 2 and not path.parent.exists()
        made = f"{path} onnx/{path.name}, and name that folder" if is_hub_id else f"CHECKPOINT {path}"
        raise ModelError(f"there is no model folder {path}.", f"make one with: xqg export {made}")
    try:
        if is_foreign_folder(path):
            overrides = EncoderOverrides() if kind == "encoder" else GeneratorOverrides()
            return ModelFolder(path, _describe_foreign_folder(path, overrides))
        # Installers such as uv hard-link the files of a package to their cache instead of copying them.
        links_allowed = path.resolve() in {shipped_model(name).resolve() for name in (DEMO_ENCODER, DEMO_GENERATOR)}
        check_file(path, DESCRIPTION_FILE, links_allowed)
        description = read_description(path / DESCRIPTION_FILE, kind)
        sizes = {name: check_file(path, name, links_allowed) for name in description["files"]}
        for name, expected in description["files"].items():
            found = hash_file(path / name)
            if found != expected:
                raise ModelError(
                    f"{path / name} has sha256 {found}, but {DESCRIPTION_FILE} says {expected}.", export_again(path)
                )
        for name in sizes:
            if name.endswith(GRAPH_SUFFIX):
                check_external_data(path, name, sizes)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}.", "check the permissions of its files") from error
    return ModelFolder(path, description)


def write_description(path: Path, kind: str, fields: Mapping[str, Any]) -> None:
    """Write `xqg.json` with the checksum of every file that decides results.

    It is written last: a folder without it is incomplete.
    """
    names = _list_foreign(path, fields) if is_foreign(fields) else _list_own(path)
    files = {name: hash_file(path / name) for name in names}
    description = {"format": FORMAT, "kind": kind, **fields, "files": files}
    text = json.dumps(description, ensure_ascii=False, indent=2)
    (path / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")


def describe_in_place(path: Path, **given: Any) -> Mapping[str, Any]:
    """Write the `xqg.json` of a folder that another program laid out; return its content.

    Args:
        path: the folder.
        given: fields of `EncoderOverrides` for an encoder, of `GeneratorOverrides` for a generator.

    Raises:
        InputError: the folder is missing or already described, or holds another kind of model than these.
        ModelError: the folder cannot be used, or its files and the options do not decide every result.
    """
    if not is_foreign_folder(path):
        raise InputError(
            f"{path} is not a folder with a config.json and without {DESCRIPTION_FILE}.",
            f"to describe it again, remove {path / DESCRIPTION_FILE}",
        )
    kind, wanted = ("generator", GeneratorOverrides) if holds_generator(path) else ("encoder", EncoderOverrides)
    misplaced = [name for name in given if name not in wanted._fields]
    if misplaced:
        option = f"--{misplaced[0].replace('_', '-')}"
        raise InputError(f"{path} holds a model of kind {kind!r}, which has no {misplaced[0]}.", f"leave out {option}")
    description = _describe_foreign_folder(path, wanted(**given))
    unfinished = path / f".{DESCRIPTION_FILE}.unfinished"
    unfinished.write_text(json.dumps(description, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path / DESCRIPTION_FILE)
    return description


def shipped_model(name: str) -> Path:
    """Return the folder of a model that ships in the wheel or the checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "models" / name
    return installed if installed.is_dir() else package.parent / "onnx" / name


def _describe_foreign_folder(path: Path, overrides: EncoderOverrides | GeneratorOverrides) -> dict[str, Any]:
    if isinstance(overrides, GeneratorOverrides):
        return describe_foreign_generator(path, overrides)
    return describe_foreign_encoder(path, overrides)


def _list_own(path: Path) -> list[str]:
    """Return the files that decide results, in xqg's layout."""
    files = sorted(path.iterdir())
    return [file.name for file in files if file.suffix in {GRAPH_SUFFIX, DATA_SUFFIX} or file.name == TOKENIZER_FILE]


def _list_foreign(path: Path, fields: Mapping[str, Any]) -> list[str]:
    graphs = (fields["graph"], *fields.get("decoder_graphs", ()))
    beside = (name for folder in fields.get("dense", ()) for name in dense_files(folder))
    return [*dict.fromkeys(name for graph in graphs for name in check_graph(path, graph)), *beside, TOKENIZER_FILE]
