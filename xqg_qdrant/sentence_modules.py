"""What sentence-transformers' files say: the modules behind a model, how it pools, what stands before a text.

Knows those files' fields. Runs nothing, and opens no file that `model_files` has not judged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xqg_qdrant.errors import ModelError
from xqg_qdrant.model_description import POOLINGS, TOKENIZER_FILE
from xqg_qdrant.model_files import check_file, is_plain_name, read_json, show

CONFIG_FILE = "config.json"
MODULES_FILE = "modules.json"
LENGTH_FILE = "sentence_bert_config.json"
TEXT_OUTPUT = "sentence_embedding"
# tokenizer_config.json repeats thousands of added tokens for some models.
LARGEST_JSON = 16 << 20


class Modules(NamedTuple):
    """What sentence-transformers does behind the graph."""

    pooling: str
    includes_prompt: bool
    dense: tuple[str, ...]
    normalise: bool


def read_modules(path: Path) -> Modules | None:
    """Return what sentence-transformers' files tell, None where there are none.

    Raises:
        ModelError: a module is of a kind, or in a place, that is not one of ours.
    """
    if not os.path.lexists(path / MODULES_FILE):
        return None
    kinds, folders = [], []
    check_file(path, MODULES_FILE)
    listed = read_json(path / MODULES_FILE, LARGEST_JSON)
    for module in listed if isinstance(listed, list) else [None]:
        kind, folder = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(folder, str) or (folder and not is_plain_name(folder)):
            raise ModelError(f"{path / MODULES_FILE} has a module {show(module)}, which is none. {export_it(path)}")
        kinds.append(name_module(kind))
        folders.append(folder)
    dense = tuple(folder for kind, folder in zip(kinds, folders, strict=True) if kind == "Dense")
    normalise = ["Normalize"] * ("Normalize" in kinds)
    if kinds != ["Transformer", "Pooling", *["Dense"] * len(dense), *normalise] or folders[0]:
        raise ModelError(
            f"{path} is a pipeline of {show(', '.join(kinds))}; xqg knows Transformer, Pooling, Dense and Normalize, "
            f"in this order. {export_it(path)}"
        )
    if read_object(path, LENGTH_FILE).get("do_lower_case"):
        raise ModelError(
            f"{path} lowercases texts outside its tokenizer (do_lower_case), which xqg does not. "
            f"Cure: put a Lowercase normaliser into its {TOKENIZER_FILE}, and set do_lower_case to false"
        )
    for kind, folder in zip(kinds, folders, strict=True):
        if kind in ("Dense", "Normalize"):
            taken = read_object(path, f"{folder}/{CONFIG_FILE}").get("module_input_name", TEXT_OUTPUT)
            if taken != TEXT_OUTPUT:
                raise ModelError(f"{path / folder} works on {show(taken)}, not on {TEXT_OUTPUT}. {export_it(path)}")
    pooling = read_object(path, f"{folders[1]}/{CONFIG_FILE}")
    includes_prompt = pooling.get("include_prompt", True) is True
    return Modules(_read_pooling(path, pooling), includes_prompt, dense, bool(normalise))


def name_module(kind: str) -> str:
    """Return a module's kind without its package; another package's module is code of its own, and keeps its name."""
    return kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind


def find_pooling(config: Mapping[str, Any]) -> str | None:
    """Return the pooling that a module's configuration tells, None where it is none of ours."""
    names = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}
    found = [names.get(mode, mode) if isinstance(mode, str) else None for mode in _pooling_modes(config)]
    return found[0] if len(found) == 1 and found[0] in POOLINGS else None


def _pooling_modes(config: Mapping[str, Any]) -> list[Any]:
    # The old form has one flag for each mode; several that are set are concatenated, which is none of ours.
    prefix = "pooling_mode_"
    flags = [name.removeprefix(prefix) for name, value in config.items() if name.startswith(prefix) and value]
    return [config["pooling_mode"]] if "pooling_mode" in config else flags


def _read_pooling(path: Path, config: Mapping[str, Any]) -> str:
    found = find_pooling(config)
    if found is None:
        raise ModelError(
            f"{path} pools by {show(_pooling_modes(config))}; xqg knows {', '.join(POOLINGS)}. "
            f"Cure: use another model, or one whose graph gives {TEXT_OUTPUT}"
        )
    return found


def find_prompt(prompts: object, told: str | None, *names: str) -> Any:  # noqa: ANN401
    """Return the text before a query or a passage, as sentence-transformers would choose it."""
    if told is not None:
        return told
    # Of another type it is handed on as it is, for the check of all fields to refuse.
    return (
        [prompts] if not isinstance(prompts, dict) else next((prompts[name] for name in names if prompts.get(name)), "")
    )


def read_object(path: Path, name: str) -> dict[str, Any]:
    """Read a JSON object; a file that is not there says nothing."""
    if not os.path.lexists(path / name):
        return {}
    check_file(path, name)
    content = read_json(path / name, LARGEST_JSON)
    if not isinstance(content, dict):
        raise ModelError(f"{path / name} is no JSON object. {export_it(path)}")
    return content


def export_it(path: Path) -> str:
    """Return the cure for what xqg does not do with a folder."""
    return f"Cure: export its checkpoint: xqg export CHECKPOINT {path}-xqg"
