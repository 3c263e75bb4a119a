"""What `xqg.json` may say: every field that something later relies on, with what it must be.

A model folder comes from anywhere. So a value of another type, a code that is no language or a number out of all
bounds is told here, by its field, instead of surfacing later as an exception of something else.

Knows the fields and their limits. Knows nothing of the other files of the folder, besides their names.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from xqg_qdrant.errors import ModelError
from xqg_qdrant.languages import LANGUAGES

DESCRIPTION_FILE = "xqg.json"
TOKENIZER_FILE = "tokenizer.json"
GRAPH_FILES = {"encoder": ("model.onnx",), "generator": ("encoder.onnx", "decoder.onnx", "head.onnx")}
FORMAT = 1

POOLINGS = ("cls", "mean", "last")
DTYPES = ("float32", "int8", "float16", "bfloat16")
FULL_VOCABULARY = "full"
RESTRICTED_VOCABULARY = "restricted"
VOCABULARIES = (FULL_VOCABULARY, RESTRICTED_VOCABULARY)

# A description is a page of text; a thousand times that is still nothing to parse.
LARGEST_DESCRIPTION = 1 << 20
# The longest vector that Qdrant takes.
LARGEST_DIM = 65_536
# Beyond any text's length and any vocabulary; what a model really takes its graph knows.
LARGEST_COUNT = 1 << 20
LARGEST_ID = (1 << 31) - 1
# Below, one token is certain; above, all are alike.
LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 0.001, 1000
# Such names mean the same on every system: no separator, no drive, no device, nothing hidden.
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
LISTED_SUFFIXES = frozenset({".onnx", ".data", ".json"})
PROMPT_FIELDS = frozenset({"{language}", "{title}", "{text}"})


class _Rule(NamedTuple):
    """What a field must be: a test, and the same in words."""

    is_met: Callable[[Any], bool]
    wanted: str


def unknown_prompt_fields(prompt: str) -> list[str]:
    """Return what stands in braces in a prompt and is not filled in."""
    return [found for found in re.findall(r"\{[^{}]*\}", prompt) if found not in PROMPT_FIELDS]


def head_file(language: str) -> str:
    """Return the name of the graph that chooses among the tokens of one language."""
    return f"head-{language}.onnx"


def is_plain_name(name: str) -> bool:
    """Tell whether this can only be the name of a file directly in a folder."""
    return FILE_NAME.fullmatch(name) is not None


def read_description(path: Path, kind: str) -> dict[str, Any]:
    """Read an `xqg.json`, which must describe a model of this kind.

    Raises:
        ModelError: it is no JSON of this format, describes another kind, or a field is not what it must be.
    """
    again = f"Cure: export it again: xqg export CHECKPOINT {path.parent}"
    with path.open("rb") as file:
        content = file.read(LARGEST_DESCRIPTION + 1)
    if len(content) > LARGEST_DESCRIPTION:
        raise ModelError(f"{path} is larger than {LARGEST_DESCRIPTION} bytes. {again}")
    try:
        about = json.loads(content.decode("utf-8"), object_pairs_hook=_refuse_twins, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ModelError(f"{path} is nested too deep. {again}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}. {again}") from error
    if not isinstance(about, dict) or type(about.get("format")) is not int or about["format"] != FORMAT:
        raise ModelError(f"{path} is not of format {FORMAT}. {again}")
    if about.get("kind") != kind:
        raise ModelError(
            f"{path.parent} holds a model of kind {_show(about.get('kind'))}, but {kind!r} is needed here. "
            f"Cure: name a folder that holds one of kind {kind!r}"
        )
    try:
        _check_fields(about, RULES[kind])
        if kind == "generator":
            _check_generator(about)
        _check_files(about, kind)
    except ValueError as error:
        raise ModelError(f"{path} {error}. {again}") from error
    return about


def _check_fields(about: Mapping[str, Any], rules: Mapping[str, _Rule], parent: str = "") -> None:
    for name, rule in rules.items():
        if name not in about:
            raise ValueError(f"lacks the field {parent + name!r}")
        if not rule.is_met(about[name]):
            raise ValueError(f"says of {parent + name}: {_show(about[name])}, which must be {rule.wanted}")


def _check_generator(about: Mapping[str, Any]) -> None:
    sampling, languages = about["sampling"], about["languages"]
    for name in sampling.keys() - SAMPLING_RULES.keys():
        raise ValueError(f"has in sampling the field {_show(name)}, which is none")
    _check_fields(sampling, SAMPLING_RULES, "sampling.")
    if sampling["max_new_tokens"] > about["max_output_tokens"]:
        raise ValueError(
            f"says of sampling.max_new_tokens: {sampling['max_new_tokens']}, which is more than max_output_tokens, "
            f"{about['max_output_tokens']}"
        )
    for name in ("language_tokens", "restricted_languages"):
        others = [language for language in about[name] if language not in languages]
        if others:
            raise ValueError(f"names in {name} {_show(others[0])}, which is none of its languages")


def _check_files(about: Mapping[str, Any], kind: str) -> None:
    files = about.get("files")
    if not isinstance(files, dict):
        raise ValueError(f"says of files: {_show(files)}, which must be an object of names and checksums")
    for name, checksum in files.items():
        if not is_plain_name(name):
            raise ValueError(f"names a file outside its folder: {_show(name)}")
        if Path(name).suffix not in LISTED_SUFFIXES:
            raise ValueError(f"lists {_show(name)}, but a model has no files but {', '.join(sorted(LISTED_SUFFIXES))}")
        if not isinstance(checksum, str) or not re.fullmatch(r"[0-9a-f]{64}", checksum):
            raise ValueError(f"says of files.{name}: {_show(checksum)}, which must be a SHA-256 in hexadecimal")
    heads = [head_file(language) for language in about.get("restricted_languages", ())] if kind == "generator" else []
    for name in (*GRAPH_FILES[kind], *heads, TOKENIZER_FILE):
        if name not in files:
            raise ValueError(f"does not list every file of a model of kind {kind!r}: {name} is missing in files")


def _show(value: object) -> str:
    """Return a value as one short line, with no control characters, however long or deep it is."""
    short = reprlib.Repr()
    short.maxstring = 80
    return short.repr(value).encode("ascii", "backslashreplace").decode()


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two fields of one name each reader takes another one.
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"the field {_show(name)} stands there twice")
        fields[name] = value
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _is_text(value: object) -> bool:
    # JSON can hold halves of surrogate pairs, which no tokenizer takes.
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _is_whole(least: int, largest: int) -> _Rule:
    return _Rule(
        lambda value: type(value) is int and least <= value <= largest, f"a whole number from {least} to {largest}"
    )


def _is_one_of(*choices: str) -> _Rule:
    return _Rule(lambda value: isinstance(value, str) and value in choices, f"one of {', '.join(choices)}")


def _are_languages(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(code, str) and code in LANGUAGES for code in value)


def _is_prompt(value: object) -> bool:
    return isinstance(value, str) and _is_text(value) and "{text}" in value and not unknown_prompt_fields(value)


def _are_ids(value: object) -> bool:
    return isinstance(value, dict) and all(_ID.is_met(number) for number in value.values())


_COUNT = _is_whole(1, LARGEST_COUNT)
# A tokenizer adds two tokens of its own, and something must be left to read.
_LENGTH = _is_whole(4, LARGEST_COUNT)
_ID = _is_whole(0, LARGEST_ID)
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
        "prompt": _Rule(_is_prompt, "a text with {text} in it, and in braces nothing else but {title} and {language}"),
        "dtype": _DTYPE,
        "languages": _Rule(
            lambda value: _are_languages(value) and 0 < len(value) == len(set(value)),
            f"a list of different codes of {', '.join(LANGUAGES)}",
        ),
        "language_tokens": _Rule(_are_ids, f"an object of languages and their tokens, from 0 to {LARGEST_ID}"),
        "decoder_start_id": _ID,
        "end_id": _ID,
        "max_input_tokens": _LENGTH,
        "max_output_tokens": _COUNT,
        "restricted_languages": _Rule(_are_languages, "a list of language codes"),
        "sampling": _Rule(lambda value: isinstance(value, dict), "an object"),
    },
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
