"""Encoders that other programs laid out: optimum, sentence-transformers, fastembed, transformers.js.

Beside a graph (`model.onnx`, or one in `onnx/`) and `tokenizer.json` lie `config.json` of transformers and, at best,
what sentence-transformers writes: the modules behind the graph, how token vectors are pooled, prompts, lengths. What
decides a vector is read there or told by the user, and never guessed: a wrong pooling gives vectors that look well.

Knows those layouts. Runs nothing, and opens no file that `model_files` has not judged.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xqg_qdrant.errors import ModelError
from xqg_qdrant.external_data import read_external_data, read_outputs
from xqg_qdrant.model_description import (
    DESCRIPTION_FILE,
    FORMAT,
    IN_GRAPH,
    TOKENIZER_FILE,
    check_description,
    dense_files,
    wrong_kind,
)
from xqg_qdrant.model_files import (
    DATA_SUFFIX,
    FOREIGN_DATA_SUFFIX,
    GRAPH_SUFFIX,
    check_external_data,
    check_file,
    hash_file,
    is_plain_name,
    show,
    suffix_of,
)
from xqg_qdrant.sentence_modules import (
    CONFIG_FILE,
    LENGTH_FILE,
    MODULES_FILE,
    TEXT_OUTPUT,
    Modules,
    export_it,
    find_prompt,
    read_modules,
    read_object,
)

PROMPTS_FILE = "config_sentence_transformers.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
WEIGHTS_FILE, PICKLE_FILE = "model.safetensors", "pytorch_model.bin"
GRAPH_FOLDERS = ("", "onnx/")
DECODER_GRAPH, MERGED_DECODER_GRAPH = "decoder_model.onnx", "decoder_model_merged.onnx"
# Of several graphs the one of this name is the model, the others are variants of it.
USUAL_GRAPH = "model.onnx"
TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
# What transformers writes where a tokenizer has no limit is larger by far.
LONGEST_TEXT = 1 << 20
# These number their positions from behind the padding token's id.
OFFSET_MODEL_TYPES = ("camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl", "xmod")


class Told(NamedTuple):
    """What a user says of a folder; None where it is to be read there."""

    graph: str | None = None
    pooling: str | None = None
    normalise: bool | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None
    max_query_tokens: int | None = None
    max_passage_tokens: int | None = None


def is_foreign_folder(path: Path) -> bool:
    """Tell whether a folder has no description of ours, but a configuration of transformers."""
    return not os.path.lexists(path / DESCRIPTION_FILE) and os.path.lexists(path / CONFIG_FILE)


def holds_generator(path: Path) -> bool:
    """Tell whether a folder has a decoder's graph, as optimum lays one out."""
    names = (f"{folder}{name}" for folder in GRAPH_FOLDERS for name in (DECODER_GRAPH, MERGED_DECODER_GRAPH))
    return any(os.path.lexists(path / name) for name in names)


def describe_foreign_encoder(path: Path, told: Told) -> dict[str, Any]:
    """Return what `xqg.json` would say of such a folder, whose files are sound.

    Raises:
        ModelError: they are not; or neither the folder nor the user tells what decides the vectors.
    """
    if holds_generator(path):
        raise wrong_kind(path, "generator", "encoder")
    graph = told.graph or _choose_graph(path)
    names = [*check_graph(path, graph), TOKENIZER_FILE]
    check_file(path, TOKENIZER_FILE)
    modules = read_modules(path)
    settings = _read_settings(path, graph, modules, told)
    for folder in settings["dense"]:
        _refuse_pickle(path / folder)
        for name in dense_files(folder):
            check_file(path, name)
            names.append(name)
    return complete_description(path, {"format": FORMAT, "kind": "encoder", "graph": graph, **settings}, names)


def check_graph(path: Path, graph: str) -> list[str]:
    """Make sure that a graph and the files that hold its weights are sound; return their names.

    Raises:
        ModelError: they are not.
    """
    sizes = {graph: check_file(path, graph)}
    for name in _name_data(path, graph):
        sizes[name] = check_file(path, name)
    check_external_data(path, graph, sizes)
    return [*sizes]


def complete_description(path: Path, about: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the whole description, with the checksums of these files.

    Raises:
        ModelError: a field is not what it must be.
    """
    kind = about["kind"]
    try:
        check_description({**about, "files": dict.fromkeys(names, "0" * 64)}, kind)
    except ValueError as error:
        raise ModelError(f"what {path} says of itself is no {kind}'s: it {error}. {export_it(path)}") from error
    return {**about, "files": {name: hash_file(path / name) for name in names}}


def _refuse_pickle(folder: Path) -> None:
    if os.path.lexists(folder / PICKLE_FILE) and not os.path.lexists(folder / WEIGHTS_FILE):
        raise ModelError(
            f"{folder / PICKLE_FILE} is a pickle, which can run anything, and is never opened. Cure: save the model as "
            f"{WEIGHTS_FILE}, with sentence-transformers where you trust the file: "
            f"SentenceTransformer({str(folder.parent)!r}).save_pretrained(…)"
        )


def _choose_graph(path: Path) -> str:
    files = [(folder, file) for folder in GRAPH_FOLDERS for file in sorted((path / folder).glob(f"*{GRAPH_SUFFIX}"))]
    found = [f"{folder}{file.name}" for folder, file in files]
    usual = [name for name in found if name.rpartition("/")[2] == USUAL_GRAPH]
    for names in (found, usual):
        if len(names) == 1:
            return names[0]
    if not found:
        raise ModelError(
            f"{path} has no {DESCRIPTION_FILE} and no graph: it is a checkpoint, or half copied. "
            f"Cure: export it: xqg export {path} FOLDER"
        )
    raise ModelError(
        f"{path} holds several graphs: {show(', '.join(found))}. Cure: name one: xqg describe {path} --graph {found[0]}"
    )


def _name_data(path: Path, graph: str) -> list[str]:
    """Return the names of the files that hold a graph's weights, by their ends; others are refused later."""
    beside = graph.rpartition("/")[0]
    locations = {data.location for data in read_external_data(path / graph)}
    return [
        f"{beside}/{location}" if beside else location
        for location in sorted(locations)
        if is_plain_name(location) and suffix_of(location) in (DATA_SUFFIX, FOREIGN_DATA_SUFFIX)
    ]


def _read_settings(path: Path, graph: str, modules: Modules | None, told: Told) -> dict[str, Any]:
    """Return all fields of a description but the files."""
    config = read_object(path, CONFIG_FILE)
    prompts = read_object(path, PROMPTS_FILE).get("prompts") or {}
    output = _choose_output(
        path, graph, read_outputs(path / graph), pooled=modules is not None or told.pooling is not None
    )
    if output == TEXT_OUTPUT and told.pooling is not None:
        raise ModelError(f"{path / graph} pools inside. Cure: leave out --pooling, and if need be give --normalise")
    dense = modules.dense if modules and output != TEXT_OUTPUT else ()
    if output == TEXT_OUTPUT:
        pooling, normalise = IN_GRAPH, bool(told.normalise)
    else:
        pooling = told.pooling or (modules.pooling if modules else "")
        known = told.normalise if told.normalise is not None else modules.normalise if modules else None
        normalise = bool(known)
        if not pooling or known is None:
            raise ModelError(
                f"{path} does not tell how the token vectors of {graph} become one vector, and whether that has "
                f"length 1: it has no {MODULES_FILE} of sentence-transformers. {_say_it(path)}"
            )
    length = _read_length(path, config, told)
    prefixes = {
        "query_prefix": find_prompt(prompts, told.query_prefix, "query"),
        "passage_prefix": find_prompt(prompts, told.passage_prefix, "document", "passage", "corpus"),
    }
    if modules and not modules.includes_prompt and output != TEXT_OUTPUT and any(prefixes.values()):
        raise ModelError(
            f"{path} leaves its prompts out of the pooling (include_prompt), which xqg does not. "
            f"Cure: use another model, or this one without: xqg describe {path} --query-prefix '' --passage-prefix ''"
        )
    return {
        # What a graph computes in, only the graph knows.
        "dtype": "as exported",
        "pooling": pooling,
        "normalise": normalise,
        **prefixes,
        "max_query_tokens": told.max_query_tokens or length,
        "max_passage_tokens": told.max_passage_tokens or length,
        "output": output,
        "dense": list(dense),
    }


def _choose_output(path: Path, graph: str, outputs: Sequence[str], pooled: bool) -> str:
    """Return the output to take: token vectors where it is known how they are pooled, else whole vectors."""
    wanted = (*TOKEN_OUTPUTS, TEXT_OUTPUT) if pooled else (TEXT_OUTPUT, *TOKEN_OUTPUTS)
    for name in wanted:
        if name in outputs:
            return name
    raise ModelError(
        f"{path / graph} gives {show(', '.join(outputs))}, and none of {', '.join(wanted)}: it is no encoder of texts. "
        f"{export_it(path)}"
    )


def _read_length(path: Path, config: Mapping[str, Any], told: Told) -> int | None:
    """Return how many tokens a text may have: the least of what the files tell."""
    positions = _whole(config.get("max_position_embeddings"))
    if positions is not None and config.get("model_type") in OFFSET_MODEL_TYPES:
        positions -= 1 + (_whole(config.get("pad_token_id")) or 0)
    said = (
        positions,
        _whole(read_object(path, LENGTH_FILE).get("max_seq_length")),
        _whole(read_object(path, TOKENIZER_CONFIG_FILE).get("model_max_length")),
    )
    lengths = [length for length in said if length is not None]
    if not lengths and None in (told.max_query_tokens, told.max_passage_tokens):
        raise ModelError(
            f"{path} does not tell how many tokens a text may have. Cure: say it: xqg describe {path} "
            "--max-query-tokens 512 --max-passage-tokens 512"
        )
    return min(lengths, default=None)


def _whole(value: object) -> int | None:
    return value if type(value) is int and 0 < value <= LONGEST_TEXT else None


def _say_it(path: Path) -> str:
    return (
        f"Cure: look it up on the model's card, and say it once: xqg describe {path} --pooling cls, mean or last, "
        "--normalise or --no-normalise"
    )
