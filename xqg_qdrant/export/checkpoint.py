"""A Hugging Face checkpoint on disk, found or downloaded: its configuration, its weights, its licence.

Knows the file layout of transformers. Knows nothing of ONNX, nor what sentence-transformers' files say.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from xqg_qdrant.errors import InputError
from xqg_qdrant.export import encoders
from xqg_qdrant.generator_settings import MODEL_TYPES

WEIGHTS = "*.safetensors"
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
DOWNLOADED = [WEIGHTS, "*.json", "*.txt", "*.model", "README.md"]
ELSEWHERE = ["onnx/*", "openvino/*"]


class Checkpoint(NamedTuple):
    """A checkpoint on disk, with its origin."""

    path: Path
    source: str
    revision: str
    config: dict[str, Any]

    @property
    def kind(self) -> str:
        """`encoder` or `generator`, from the model type."""
        return "generator" if self.config["model_type"] in MODEL_TYPES else "encoder"


def fetch_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Find a local folder, or download a hub id (the only network access of the package).

    Raises:
        InputError: there is no such checkpoint, or its architecture is not supported.
    """
    path = Path(source)
    if not path.is_dir():
        path = _download(source, revision)
        revision = path.name
    config = read_json(path / "config.json")
    if not config:
        raise InputError(f"{source} holds no config.json: it is not a transformers checkpoint")
    supported = (*encoders.MODEL_TYPES, *MODEL_TYPES)
    if config.get("model_type") not in supported:
        raise InputError(f"{source} is of type {config.get('model_type')!r}; supported are {', '.join(supported)}")
    if not any(path.glob(WEIGHTS)):
        refuse_weights(source, path)
    return Checkpoint(path, path.name if Path(source).is_dir() else source, revision or "", config)


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Return what a JSON file holds, `None` without one."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_licence(path: Path) -> str:
    """Return the licence that the model card's front matter names, `unknown` without one."""
    card = path / "README.md"
    found = re.search(r"^licen[cs]e:\s*(\S+)", card.read_text(encoding="utf-8"), re.M) if card.is_file() else None
    return found.group(1) if found else "unknown"


def refuse_weights(source: str, folder: Path) -> NoReturn:
    """Say why weights without safetensors are not read.

    Raises:
        InputError: always.
    """
    other = sorted(file.name for pattern in OTHER_WEIGHTS for file in folder.glob(pattern))
    if not other:
        raise InputError(f"{source} holds no weights: there is no {WEIGHTS} in it")
    raise InputError(
        f"{source} holds its weights as {other[0]}, which is not read: such a file can run code when it is loaded. "
        "Cure: export a version in safetensors. https://huggingface.co/spaces/safetensors/convert makes one of a "
        "public model, as a pull request: --revision refs/pr/NUMBER; docs/how-to/own-models.md converts a folder"
    )


def _download(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Code and pickles do not even come here.
        path = snapshot_download(source, revision=revision, allow_patterns=DOWNLOADED, ignore_patterns=ELSEWHERE)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"there is no local folder {source!r}, and the hub did not give a checkpoint of that name: {error}"
        ) from error
    return Path(path)
