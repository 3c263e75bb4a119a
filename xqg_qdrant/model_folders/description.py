"""Read and check `xqg.json`, the description of a model.

A model folder may come from anywhere. A wrong type, an unknown language or a number out of bounds is reported here with
its field, instead of surfacing later as an unrelated exception.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xqg_qdrant.errors import ModelError
from xqg_qdrant.languages import LANGUAGES
from xqg_qdrant.model_folders.files import (
    DATA_SUFFIX,
    FOREIGN_DATA_SUFFIX,
    GRAPH_SUFFIX,
    SAFETENSORS_SUFFIX,
    export_again,
    export_it,
    hash_file,
    is_file_name,
    is_plain_name,
    read_json,
    suffix_of,
)
from xqg_qdrant.text import show

DESCRIPTION_FILE = "xqg.json"
TOKENIZER_FILE = "tokenizer.json"
GRAPH_FILES = {"encoder": ("model.onnx",), "generator": ("encoder.onnx", "decoder.onnx", "head.onnx")}
FORMAT = 1
# An encoder behind a URL, of which a folder holds the description alone.
ENDPOINT = "endpoint"

POOLINGS = ("cls", "mean", "last")
# Ids that another program's decoder reads before the first id of each row, if there are any.
DECODER_PREFIX = "decoder_prefix_ids"
# The pooling of another program's graph that returns whole vectors; how it makes them is not visible.
IN_GRAPH = "in graph"
DTYPES = ("float32", "int8", "float16", "bfloat16")
FULL_VOCABULARY = "full"
RESTRICTED_VOCABULARY = "restricted"
VOCABULARIES = (FULL_VOCABULARY, RESTRICTED_VOCABULARY)

# In bytes. A description is a page of text; a thousand times that still parses at once.
LARGEST_DESCRIPTION = 1 << 20
# With the vectors of its probes.
LARGEST_ENDPOINT = 16 << 20
# The longest vector that Qdrant takes.
LARGEST_DIM = 65_536
# Beyond any text's length and any vocabulary; the real limit is the graph's.
LARGEST_COUNT = 1 << 20
LARGEST_ID = (1 << 31) - 1
# Below, one token is certain; above, all are equally likely.
LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 0.001, 1000
LISTED_SUFFIXES = frozenset({GRAPH_SUFFIX, DATA_SUFFIX, ".json"})
FOREIGN_SUFFIXES = LISTED_SUFFIXES | {FOREIGN_DATA_SUFFIX, SAFETENSORS_SUFFIX}
# Of `tokenizer`, which is there if a setting takes precedence over `tokenizer.json`.
TOKENIZER_SETTINGS = frozenset({"truncation_side", "lowercase", "bert_normaliser"})
SIDES = ("left", "right")
NORMALISER_FIELDS = frozenset({"lowercase", "strip_accents", "handle_chinese_chars"})
PROMPT_FIELDS = frozenset({"{language}", "{title}", "{text}"})


class _Rule(NamedTuple):
    """What a field must be, as a test and in words."""

    is_met: Callable[[Any], bool]
    wanted: str


def unknown_prompt_fields(prompt: str) -> list[str]:
    """Return the fields in braces in a prompt that nothing fills in."""
    return [found for found in re.findall(r"\{[^{}]*\}", prompt) if found not in PROMPT_FIELDS]


def head_file(language: str) -> str:
    """Return the name of the graph that chooses among one language's tokens."""
    return f"head-{language}.onnx"


def read_description(path: Path, kind: str) -> dict[str, Any]:
    """Read an `xqg.json` that describes a model of this kind, `encoder` or `generator`.

    Raises:
        ModelError: it is not JSON of this format, describes another kind, or has an invalid field.
    """
    again = export_again(path.parent)
    about = read_json(path, LARGEST_DESCRIPTION)
    if not isinstance(about, dict) or type(about.get("format")) is not int or about["format"] != FORMAT:
        raise ModelError(f"{path} is not of format {FORMAT}.", again)
    if about.get("kind") != kind:
        raise wrong_kind(path.parent, about.get("kind"), kind)
    try:
        check_description(about, kind)
    except ValueError as error:
        raise ModelError(f"{path} {error}.", again) from error
    return about


def read_endpoint(folder: Path) -> dict[str, Any] | None:
    """Read the `xqg.json` of an encoder at an endpoint, None if it describes a model of another kind.

    Raises:
        ModelError: a field is invalid.
    """
    path = folder / DESCRIPTION_FILE
    if not path.is_file() or path.stat().st_size > LARGEST_ENDPOINT:
        return None
    about = read_json(path, LARGEST_ENDPOINT)
    if not isinstance(about, dict) or about.get("kind") != ENDPOINT:
        return None
    about = {"max_cost": 0, **about}
    try:
        _check_fields(about, ENDPOINT_RULES)
        if about["max_cost"] and not about["price_per_million"]:
            raise ValueError("has max_cost, but no price_per_million")
    except ValueError as error:
        cure = f"describe it again: xqg describe URL --model NAME --out {folder}"
        raise ModelError(f"{path} {error}.", cure) from error
    return about


def _can_be_sent(fields: object) -> bool:
    if not isinstance(fields, dict) or {"input", "model"} & fields.keys():
        return False
    try:
        json.dumps(fields, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def wrong_kind(folder: Path, found: object, wanted: str) -> ModelError:
    """Return the error for a folder that holds a model of another kind."""
    return ModelError(
        f"{folder} holds a model of kind {show(found)}, but {wanted!r} is needed here.",
        f"name a folder with a model of kind {wanted!r}",
    )


def complete_description(path: Path, about: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the description of another program's model, with the checksums of the named files.

    Raises:
        ModelError: a field is invalid.
    """
    kind = about["kind"]
    try:
        check_description({**about, "files": dict.fromkeys(names, "0" * 64)}, kind)
    except ValueError as error:
        raise ModelError(
            f"the files of {path} describe no usable {kind}: its description {error}.", export_it(path)
        ) from error
    return {**about, "files": {name: hash_file(path / name) for name in names}}


def check_prefix(name: str, prefix: object) -> None:
    """Check `query_prefix` or `passage_prefix`.

    Raises:
        ValueError: it is not text.
    """
    _check_fields({name: prefix}, {name: RULES["encoder"][name]})


def check_generation(generation: Mapping[str, Any]) -> None:
    """Check the fields of a `generation_config.json` that are used.

    Raises:
        ValueError: one is invalid.
    """
    _check_fields(generation, {name: rule for name, rule in GENERATION_RULES.items() if generation.get(name)})


def check_description(about: Mapping[str, Any], kind: str) -> None:
    """Check every field of a description.

    Raises:
        ValueError: one is invalid; the text continues a sentence that begins with the file.
    """
    foreign = is_foreign(about)
    _check_fields(about, (FOREIGN_RULES if foreign else RULES)[kind])
    if kind == "generator":
        _check_generator(about)
    if not are_tokenizer_settings(about.get("tokenizer", {})):
        raise ValueError(f"has invalid tokenizer settings {show(about['tokenizer'])}")
    _check_files(about, kind, foreign)


def are_tokenizer_settings(settings: object) -> bool:
    """Return whether these are settings for `tokenizer` of a description."""
    if not isinstance(settings, Mapping) or settings.keys() - TOKENIZER_SETTINGS:
        return False
    bert = settings.get("bert_normaliser", {})
    return (
        settings.get("truncation_side", "left") in SIDES
        and isinstance(settings.get("lowercase", True), bool)
        and isinstance(bert, dict)
        and bert.keys() <= NORMALISER_FIELDS
        and all(isinstance(bert.get(field, True), bool) for field in ("lowercase", "handle_chinese_chars"))
        and bert.get("strip_accents") in (None, True, False)
    )


def is_foreign(about: Mapping[str, Any]) -> bool:
    """Return whether a description is of a model in another program's layout."""
    return "graph" in about


def find_graph(about: Mapping[str, Any]) -> str:
    """Return the name of the graph that reads a text's tokens."""
    graph: str = about.get("graph", GRAPH_FILES[about["kind"]][0])
    return graph


def dense_files(folder: str) -> tuple[str, str]:
    """Return the names of a dense layer's settings and weights."""
    return f"{folder}/config.json", f"{folder}/model{SAFETENSORS_SUFFIX}"


def _check_fields(about: Mapping[str, Any], rules: Mapping[str, _Rule], parent: str = "") -> None:
    for name, rule in rules.items():
        if name not in about:
            raise ValueError(f"lacks the field {parent + name!r}")
        if not rule.is_met(about[name]):
            raise ValueError(f"has {parent + name} = {show(about[name])}; it must be {rule.wanted}")


def _check_generator(about: Mapping[str, Any]) -> None:
    sampling, languages = about["sampling"], about["languages"]
    for name in sampling.keys() - SAMPLING_RULES.keys():
        raise ValueError(f"has an unknown field {show(name)} in sampling")
    _check_fields(sampling, SAMPLING_RULES, "sampling.")
    if sampling["max_new_tokens"] > about["max_output_tokens"]:
        raise ValueError(
            f"has sampling.max_new_tokens = {sampling['max_new_tokens']}, more than max_output_tokens = "
            f"{about['max_output_tokens']}"
        )
    if not _IDS.is_met(about.get(DECODER_PREFIX, [])):
        raise ValueError(f"has {DECODER_PREFIX} = {show(about[DECODER_PREFIX])}; it must be {_IDS.wanted}")
    for name in ("language_tokens", "restricted_languages"):
        others = [language for language in about[name] if language not in languages]
        if others:
            raise ValueError(f"names {show(others[0])} in {name}, but not in languages")


def _check_files(about: Mapping[str, Any], kind: str, foreign: bool) -> None:
    files = about.get("files")
    if not isinstance(files, dict):
        raise ValueError(f"has files = {show(files)}; it must be an object of names and checksums")
    suffixes = FOREIGN_SUFFIXES if foreign else LISTED_SUFFIXES
    for name, checksum in files.items():
        if not (is_file_name if foreign else is_plain_name)(name):
            raise ValueError(f"names a file outside its folder: {show(name)}")
        if suffix_of(name) not in suffixes:
            raise ValueError(f"lists {show(name)}; the files of a model end in {', '.join(sorted(suffixes))}")
        if not isinstance(checksum, str) or not re.fullmatch(r"[0-9a-f]{64}", checksum):
            raise ValueError(f"has files.{name} = {show(checksum)}; it must be a SHA-256 in hexadecimal")
    for name in (*_needed_files(about, kind, foreign), TOKENIZER_FILE):
        if name not in files:
            raise ValueError(f"lists too few files for a model of kind {kind!r}: {name} is missing in files")


def _needed_files(about: Mapping[str, Any], kind: str, foreign: bool) -> list[str]:
    if foreign:
        dense = (name for folder in about.get("dense", ()) for name in dense_files(folder))
        return [about["graph"], *about.get("decoder_graphs", ()), *dense]
    heads = [head_file(language) for language in about.get("restricted_languages", ())] if kind == "generator" else []
    return [*GRAPH_FILES[kind], *heads]


def _is_text(value: object) -> bool:
    # JSON can hold halves of surrogate pairs, which no tokenizer accepts.
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _is_whole(least: int, largest: int) -> _Rule:
    return _Rule(
        lambda value: type(value) is int and least <= value <= largest, f"a whole number from {least} to {largest}"
    )


def _is_one_of(*choices: str) -> _Rule:
    return _Rule(lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}")


def _is_list_of(is_met: Callable[[Any], bool], wanted: str) -> _Rule:
    return _Rule(lambda value: isinstance(value, list) and all(map(is_met, value)), f"a list of {wanted}")


def _are_languages(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(code, str) and code in LANGUAGES for code in value)


def _is_prompt(value: object) -> bool:
    return isinstance(value, str) and _is_text(value) and "{text}" in value and not unknown_prompt_fields(value)


def _are_language_tokens(value: object) -> bool:
    return isinstance(value, dict) and all(_ID.is_met(number) for number in value.values())


def _is_graph(value: object) -> bool:
    return isinstance(value, str) and is_file_name(value) and value.endswith(GRAPH_SUFFIX)


_COUNT = _is_whole(1, LARGEST_COUNT)
# A tokenizer adds two tokens of its own, and something must be left to read.
_LENGTH = _is_whole(4, LARGEST_COUNT)
_ID = _is_whole(0, LARGEST_ID)
_IDS = _is_list_of(_ID.is_met, f"ids, from 0 to {LARGEST_ID}")
_GRAPH = _Rule(_is_graph, f"the name of a file that ends in {GRAPH_SUFFIX}")
_TEXT = _Rule(_is_text, "a text that UTF-8 can hold")
_DTYPE = _is_one_of(*DTYPES)

RULES: dict[str, dict[str, _Rule]] = {
    "encoder": {
        "dim": _is_whole(1, LARGEST_DIM),
        "dtype": _DTYPE,
        "pooling": _is_one_of(*POOLINGS),
        "normalise": _Rule(lambda value: isinstance(value, bool), "true or false"),
        "query_prefix": _TEXT,
        "passage_prefix": _TEXT,
        "max_query_tokens": _LENGTH,
        "max_passage_tokens": _LENGTH,
    },
    "generator": {
        "prompt": _Rule(_is_prompt, "a text with {text} in it, and no other braces than {title} and {language}"),
        "dtype": _DTYPE,
        "languages": _Rule(
            lambda value: _are_languages(value) and 0 < len(value) == len(set(value)),
            f"a list of different codes of {', '.join(LANGUAGES)}",
        ),
        "language_tokens": _Rule(
            _are_language_tokens, f"an object of languages and their tokens, from 0 to {LARGEST_ID}"
        ),
        "decoder_start_id": _ID,
        "end_id": _ID,
        "max_input_tokens": _LENGTH,
        "max_output_tokens": _COUNT,
        "restricted_languages": _Rule(_are_languages, "a list of language codes"),
        "sampling": _Rule(lambda value: isinstance(value, dict), "an object"),
    },
}
# For another program's layout: its graphs and tensors have names of their own, and the graph decides the dimension.
FOREIGN_RULES: dict[str, dict[str, _Rule]] = {
    "encoder": {
        **{name: rule for name, rule in RULES["encoder"].items() if name != "dim"},
        "dtype": _TEXT,
        "pooling": _is_one_of(*POOLINGS, IN_GRAPH),
        "graph": _GRAPH,
        "output": _Rule(lambda value: _is_text(value) and bool(value), "the name of an output of the graph"),
        "dense": _is_list_of(lambda name: isinstance(name, str) and is_plain_name(name), "folders"),
    },
    "generator": {
        **RULES["generator"],
        "dtype": _TEXT,
        "graph": _GRAPH,
        # The graph of the first step, which makes the caches, and that of the later steps.
        "decoder_graphs": _Rule(
            lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_graph, value)),
            f"a list of two names of files that end in {GRAPH_SUFFIX}",
        ),
        "suppressed_ids": _IDS,
        "restricted_languages": _Rule(lambda value: value == [], "an empty list"),
    },
}
FIELDS_RULE = _Rule(_can_be_sent, "a JSON object of finite numbers and whole characters, without input and model")
_AMOUNT = _Rule(lambda value: type(value) in (int, float) and 0 <= value < float("inf"), "a number of at least 0")
ENDPOINT_RULES: dict[str, _Rule] = {
    "format": _is_whole(FORMAT, FORMAT),
    "url": _TEXT,
    "model": _TEXT,
    "query_fields": FIELDS_RULE,
    "passage_fields": FIELDS_RULE,
    # Of a text, in characters; 0 is no limit.
    "max_characters": _is_whole(0, LARGEST_COUNT),
    "price_per_million": _AMOUNT,
    "max_tokens": _AMOUNT,
    "max_cost": _AMOUNT,
    "probes": _is_list_of(_is_text, "vectors in base64"),
    **{name: RULES["encoder"][name] for name in ("dim", "normalise", "query_prefix", "passage_prefix")},
}
SAMPLING_RULES = {
    "top_k": _COUNT,
    "temperature": _Rule(
        lambda value: type(value) in (int, float) and LEAST_TEMPERATURE <= value <= LARGEST_TEMPERATURE,
        f"a number from {LEAST_TEMPERATURE} to {LARGEST_TEMPERATURE}",
    ),
    "max_new_tokens": _COUNT,
    "vocabulary": _is_one_of(*VOCABULARIES),
}
GENERATION_RULES = {
    "lang_to_id": RULES["generator"]["language_tokens"],
    "suppress_tokens": _IDS,
    **{name: SAMPLING_RULES[name] for name in ("top_k", "temperature", "max_new_tokens")},
}
