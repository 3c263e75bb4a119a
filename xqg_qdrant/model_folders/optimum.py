"""Describe generators that optimum laid out: the encoder's graph, two of the decoder, a tokenizer, settings.

No file of that layout holds the prompt or the languages: the user gives them, and they are never guessed. Ids and
sampling defaults come from `generation_config.json` and `config.json`. Nothing here runs a model, and no file is opened
before `files` has checked it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from xqg_qdrant.errors import ModelError
from xqg_qdrant.model_folders.description import (
    DESCRIPTION_FILE,
    FORMAT,
    TOKENIZER_FILE,
    check_generation,
    complete_description,
)
from xqg_qdrant.model_folders.files import check_file, check_graph, export_it, read_object
from xqg_qdrant.model_folders.generator_settings import MODEL_TYPES, read_generator_settings
from xqg_qdrant.model_folders.sentence_transformers import (
    CONFIG_FILE,
    DECODER_GRAPH,
    GRAPH_FOLDERS,
    MERGED_DECODER_GRAPH,
    holds_generator,
)
from xqg_qdrant.text import show

GENERATION_FILE = "generation_config.json"
GRAPHS = ("encoder_model.onnx", DECODER_GRAPH, "decoder_with_past_model.onnx")


class GeneratorOverrides(NamedTuple):
    """What a user says of a generator's folder; None where its files or the defaults decide."""

    prompt: str | None = None
    languages: tuple[str, ...] | None = None
    max_input_tokens: int | None = None
    top_k: int | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None


def describe_foreign_generator(path: Path, overrides: GeneratorOverrides) -> dict[str, Any]:
    """Check the files of a generator's folder and return its description.

    Raises:
        ModelError: a file is unsound, or neither the folder nor the overrides say what decides the queries.
        InputError: the overrides contradict each other or the folder.
    """
    if not holds_generator(path):
        raise ModelError(
            f"{path} has no {DESCRIPTION_FILE} and no graph of a decoder: it is a checkpoint, an encoder, or half "
            "copied.",
            export_it(path),
        )
    graph, *decoder_graphs = _find_graphs(path)
    names = dict.fromkeys(name for one in (graph, *decoder_graphs) for name in check_graph(path, one))
    check_file(path, TOKENIZER_FILE)
    config, generation = read_object(path, CONFIG_FILE), read_object(path, GENERATION_FILE)
    if config.get("model_type") not in MODEL_TYPES:
        raise ModelError(
            f"{path} is a generator of unsupported type {show(config.get('model_type'))}.",
            f"use one of type {' or '.join(MODEL_TYPES)}",
        )
    try:
        check_generation(generation)
    except ValueError as error:
        raise ModelError(f"{path / GENERATION_FILE} {error}.", "correct that file") from error
    if not generation.get("lang_to_id") and (overrides.prompt is None or not overrides.languages):
        raise ModelError(
            f"{path} does not say how it is prompted, nor which languages it writes.",
            f"look it up on the model's card, and run xqg describe {path} --prompt 'Generate a {{language}} question "
            "for this passage: {title} {text}' --languages ar,bn,…",
        )
    settings = read_generator_settings(str(path), generation, **overrides._asdict())
    about = {
        "format": FORMAT,
        "kind": "generator",
        "graph": graph,
        "decoder_graphs": decoder_graphs,
        # Only the graph itself says what it computes in.
        "dtype": "as exported",
        **settings.describe(),
        "decoder_start_id": _read_id(path, "decoder_start_token_id"),
        "end_id": _read_id(path, "eos_token_id"),
        "suppressed_ids": list(settings.suppressed_ids),
        "restricted_languages": [],
    }
    return complete_description(path, about, [*names, TOKENIZER_FILE])


def _find_graphs(path: Path) -> list[str]:
    """Return the names of the three graphs, which must lie in one folder."""
    for folder in GRAPH_FOLDERS:
        names = [f"{folder}{name}" for name in GRAPHS]
        if all(os.path.lexists(path / name) for name in names):
            return names
    merged = f" {MERGED_DECODER_GRAPH} alone is not supported." * any(
        os.path.lexists(path / f"{folder}{MERGED_DECODER_GRAPH}") for folder in GRAPH_FOLDERS
    )
    raise ModelError(
        f"{path} does not hold the three graphs {', '.join(GRAPHS)} in one folder.{merged}",
        f"export the checkpoint with xqg export CHECKPOINT {path}-xqg, which is also faster, or again with "
        "optimum-cli export onnx --task text2text-generation-with-past --no-post-process",
    )


def _read_id(path: Path, name: str) -> int:
    """Return an id from the generation settings, else from the configuration."""
    for file in (GENERATION_FILE, CONFIG_FILE):
        found = read_object(path, file).get(name)
        if found is not None:
            break
    [single] = found if isinstance(found, list) and len(found) == 1 else [found]
    if type(single) is not int:
        raise ModelError(
            f"{path} has {name} = {show(found)}; it must be one id.",
            f"write it into {path / GENERATION_FILE}; see the checkpoint's card or its config.json",
        )
    return single
