"""Generators that optimum laid out: an encoder's graph, two of the decoder, a tokenizer, transformers' settings.

What a generator is asked, and for which languages, no file of that layout tells: the user says it, and it is never
guessed. Ids and defaults of sampling are read from `generation_config.json` and `config.json`.

Knows that layout. Runs nothing, and opens no file that `model_files` has not judged.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from xqg_qdrant.errors import ModelError
from xqg_qdrant.model_folders.description import DESCRIPTION_FILE, FORMAT, TOKENIZER_FILE, check_generation
from xqg_qdrant.model_folders.files import check_file, show
from xqg_qdrant.model_folders.generator_settings import MODEL_TYPES, read_generator_settings
from xqg_qdrant.model_folders.sentence_transformers import (
    CONFIG_FILE,
    DECODER_GRAPH,
    GRAPH_FOLDERS,
    MERGED_DECODER_GRAPH,
    check_graph,
    complete_description,
    export_it,
    holds_generator,
    read_object,
)

GENERATION_FILE = "generation_config.json"
GRAPHS = ("encoder_model.onnx", DECODER_GRAPH, "decoder_with_past_model.onnx")


class ToldOfGenerator(NamedTuple):
    """What a user says of a folder; None where it is to be read there."""

    prompt: str | None = None
    languages: tuple[str, ...] | None = None
    max_input_tokens: int | None = None
    top_k: int | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None


def describe_foreign_generator(path: Path, told: ToldOfGenerator) -> dict[str, Any]:
    """Return what `xqg.json` would say of such a folder, whose files are sound.

    Raises:
        ModelError: they are not; or neither the folder nor the user tells what decides the queries.
        InputError: what the user tells contradicts itself.
    """
    if not holds_generator(path):
        raise ModelError(
            f"{path} has no {DESCRIPTION_FILE} and no graph of a decoder: it is a checkpoint, an encoder, or half "
            f"copied. {export_it(path)}"
        )
    graph, *decoder_graphs = _find_graphs(path)
    names = dict.fromkeys(name for one in (graph, *decoder_graphs) for name in check_graph(path, one))
    check_file(path, TOKENIZER_FILE)
    config, generation = read_object(path, CONFIG_FILE), read_object(path, GENERATION_FILE)
    if config.get("model_type") not in MODEL_TYPES:
        raise ModelError(
            f"{path} is of type {show(config.get('model_type'))}, and how to ask such a generator is not known here.",
            f"use one of type {' or '.join(MODEL_TYPES)}",
        )
    try:
        check_generation(generation)
    except ValueError as error:
        raise ModelError(f"{path / GENERATION_FILE} {error}.", "correct it there") from error
    if not generation.get("lang_to_id") and (told.prompt is None or not told.languages):
        raise ModelError(
            f"{path} does not tell how it is prompted, and which languages it writes.",
            "look it up on the model's "
            f"card, and say it once: xqg describe {path} --prompt 'Generate a {{language}} question for this passage: "
            "{title} {text}' --languages ar,bn,…",
        )
    settings = read_generator_settings(str(path), generation, **told._asdict())
    about = {
        "format": FORMAT,
        "kind": "generator",
        "graph": graph,
        "decoder_graphs": decoder_graphs,
        # What a graph computes in, only the graph knows.
        "dtype": "as exported",
        **settings.describe(),
        "decoder_start_id": _read_id(path, "decoder_start_token_id"),
        "end_id": _read_id(path, "eos_token_id"),
        "suppressed_ids": list(settings.suppressed_ids),
        "restricted_languages": [],
    }
    return complete_description(path, about, [*names, TOKENIZER_FILE])


def _find_graphs(path: Path) -> list[str]:
    """Return the names of the three graphs, which lie in one folder."""
    for folder in GRAPH_FOLDERS:
        names = [f"{folder}{name}" for name in GRAPHS]
        if all(os.path.lexists(path / name) for name in names):
            return names
    merged = f" {MERGED_DECODER_GRAPH} alone is not run." * any(
        os.path.lexists(path / f"{folder}{MERGED_DECODER_GRAPH}") for folder in GRAPH_FOLDERS
    )
    raise ModelError(
        f"{path} does not hold the three graphs {', '.join(GRAPHS)} in one folder.{merged}",
        "export the checkpoint "
        f"with xqg export CHECKPOINT {path}-xqg, which is also faster, or again with optimum-cli export onnx --task "
        "text2text-generation-with-past --no-post-process",
    )


def _read_id(path: Path, name: str) -> int:
    """Return the id that the settings of generation tell, or else the configuration."""
    for file in (GENERATION_FILE, CONFIG_FILE):
        found = read_object(path, file).get(name)
        if found is not None:
            break
    [single] = found if isinstance(found, list) and len(found) == 1 else [found]
    if type(single) is not int:
        raise ModelError(
            f"{path} says of {name}: {show(found)}, where xqg needs one id.",
            f"write it into {path / GENERATION_FILE}; the checkpoint's card or its config.json tells it",
        )
    return single
