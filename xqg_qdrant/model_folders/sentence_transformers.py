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
from xqg_qdrant.model_folders.description import (
    DESCRIPTION_FILE,
    FORMAT,
    IN_GRAPH,
    POOLINGS,
    TOKENIZER_FILE,
    check_description,
    dense_files,
    wrong_kind,
)
from xqg_qdrant.model_folders.files import (
    DATA_SUFFIX,
    FOREIGN_DATA_SUFFIX,
    GRAPH_SUFFIX,
    check_external_data,
    check_file,
    hash_file,
    is_plain_name,
    read_json,
    show,
    suffix_of,
)
from xqg_qdrant.model_folders.onnx_scan import read_external_data, read_outputs

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
            f"{folder / PICKLE_FILE} is a pickle, which can run anything, and is never opened.",
            "save the model as "
            f"{WEIGHTS_FILE}, with sentence-transformers where you trust the file: "
            f"SentenceTransformer({str(folder.parent)!r}).save_pretrained(…)",
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
            f"{path} has no {DESCRIPTION_FILE} and no graph: it is a checkpoint, or half copied.",
            f"export it: xqg export {path} FOLDER",
        )
    raise ModelError(
        f"{path} holds several graphs: {show(', '.join(found))}.", f"name one: xqg describe {path} --graph {found[0]}"
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
        raise ModelError(f"{path / graph} pools inside.", "leave out --pooling, and if need be give --normalise")
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
            f"{path} leaves its prompts out of the pooling (include_prompt), which xqg does not.",
            f"use another model, or this one without: xqg describe {path} --query-prefix '' --passage-prefix ''",
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
            f"{path} does not tell how many tokens a text may have.",
            f"say it: xqg describe {path} --max-query-tokens 512 --max-passage-tokens 512",
        )
    return min(lengths, default=None)


def _whole(value: object) -> int | None:
    return value if type(value) is int and 0 < value <= LONGEST_TEXT else None


def _say_it(path: Path) -> str:
    return (
        f"look it up on the model's card, and say it once: xqg describe {path} --pooling cls, mean or last, "
        "--normalise or --no-normalise"
    )


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
            f"{path} lowercases texts outside its tokenizer (do_lower_case), which xqg does not.",
            f"put a Lowercase normaliser into its {TOKENIZER_FILE}, and set do_lower_case to false",
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
            f"{path} pools by {show(_pooling_modes(config))}; xqg knows {', '.join(POOLINGS)}.",
            f"use another model, or one whose graph gives {TEXT_OUTPUT}",
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
    return f"export its checkpoint: xqg export CHECKPOINT {path}-xqg"
