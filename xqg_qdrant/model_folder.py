"""A model folder explains itself: `xqg.json` beside the graphs and the tokenizer.

Knows the folder's layout, its checksums, and where the models that ship with the package lie. Runs nothing.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xqg_qdrant.errors import ModelError

DESCRIPTION_FILE = "xqg.json"
TOKENIZER_FILE = "tokenizer.json"
GRAPH_FILES = {"encoder": ("model.onnx",), "generator": ("encoder.onnx", "decoder.onnx")}
FIELDS = {
    "encoder": (
        "dim", "dtype", "pooling", "normalise", "query_prefix", "passage_prefix", "max_query_tokens",
        "max_passage_tokens",
    ),
    "generator": (
        "prompt", "dtype", "languages", "language_tokens", "decoder_start_id", "end_id", "max_input_tokens",
        "max_output_tokens", "sampling",
    ),
}  # fmt: skip
FORMAT = 1

DEMO_ENCODER = "demo-encoder"
DEMO_GENERATOR = "demo-generator"


class ModelFolder(NamedTuple):
    """A model's folder: its path and what its `xqg.json` says."""

    path: Path
    description: Mapping[str, Any]

    def sha256(self) -> str:
        """Return one checksum for all files that decide what the model computes."""
        files = self.description["files"]
        return hashlib.sha256("".join(f"{name}:{files[name]};" for name in sorted(files)).encode()).hexdigest()


def read_model_folder(path: Path, kind: str) -> ModelFolder:
    """Read and verify a folder of the given kind (`encoder` or `generator`).

    Raises:
        ModelError: the folder is missing, half written, of another kind, or a file differs from its checksum.
    """
    folder = read_description(path, kind)
    verify_files(folder)
    return folder


def read_description(path: Path, kind: str) -> ModelFolder:
    """Read a folder of the given kind without looking at its files: `verify_files` must follow.

    Raises:
        ModelError: the folder is missing, half written, or of another kind.
    """
    if not path.is_dir():
        raise ModelError(f"there is no model folder {path}. Make one with: xqg export CHECKPOINT {path}")
    description_path = path / DESCRIPTION_FILE
    again = f"Export it again: xqg export CHECKPOINT {path}"
    try:
        description = json.loads(description_path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} holds no {DESCRIPTION_FILE}: not a model folder, or half written. {again}") from error
    except ValueError as error:
        raise ModelError(f"{description_path} is not valid JSON: {error}. {again}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ModelError(f"{description_path} is not of format {FORMAT}. {again}")
    if description.get("kind") != kind:
        raise ModelError(f"{path} holds a model of kind {description.get('kind')!r}, but {kind!r} is needed here")
    absent = [name for name in FIELDS[kind] if name not in description]
    if absent:
        raise ModelError(f"{description_path} lacks the field {absent[0]!r}. {again}")
    files = description.get("files")
    if not isinstance(files, dict) or not {*GRAPH_FILES[kind], TOKENIZER_FILE} <= files.keys():
        raise ModelError(f"{description_path} does not list every file of a model of kind {kind!r}. {again}")
    return ModelFolder(path, description)


def verify_files(folder: ModelFolder) -> None:
    """Compare every file with its checksum.

    Raises:
        ModelError: a file is missing or differs.
    """
    path, again = folder.path, f"Export it again: xqg export CHECKPOINT {folder.path}"
    description_path = path / DESCRIPTION_FILE
    for name, expected in folder.description["files"].items():
        if Path(name).name != name:
            raise ModelError(f"{description_path} names a file outside its folder: {name!r}")
        if not (path / name).is_file():
            raise ModelError(f"{path} lacks {name}: it is half written. {again}")
        found = hash_file(path / name)
        if found != expected:
            raise ModelError(f"{path / name} has sha256 {found}, but {DESCRIPTION_FILE} says {expected}. {again}")


def write_description(path: Path, kind: str, fields: Mapping[str, Any]) -> None:
    """Write `xqg.json` with the checksum of every file in the folder; written last, it makes the folder whole."""
    files = {file.name: hash_file(file) for file in sorted(path.iterdir()) if _decides_results(file)}
    description = {"format": FORMAT, "kind": kind, **fields, "files": files}
    text = json.dumps(description, ensure_ascii=False, indent=2)
    (path / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    if not path.stat().st_size:
        return hashlib.sha256().hexdigest()
    # Mapped, it is hashed in one call, which lets other threads run; piece by piece, each would wait for the other.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return hashlib.sha256(content).hexdigest()


def shipped_model(name: str) -> Path:
    """Return the folder of a model that ships with the package: inside the wheel, or in the checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "models" / name
    return installed if installed.is_dir() else package.parent / "onnx" / name


def _decides_results(file: Path) -> bool:
    return file.suffix in {".onnx", ".data"} or file.name == TOKENIZER_FILE
