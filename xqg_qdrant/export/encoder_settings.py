"""What an encoder's checkpoint says of itself in sentence-transformers' files: pooling, dense layers, prompts, lengths.

Knows those files. Knows nothing of graphs, and nothing of architectures but how many positions they have.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.numpy import load_file

from xqg_qdrant.errors import InputError
from xqg_qdrant.export.checkpoint import Checkpoint, read_json, refuse_weights
from xqg_qdrant.export.encoders import count_positions
from xqg_qdrant.export.pooling import DENSE_ACTIVATIONS, Dense
from xqg_qdrant.model_description import POOLINGS
from xqg_qdrant.sentence_modules import find_pooling, name_module

LONGEST_DEFAULT = 512
TASK = "{task}"
# The modules that the graph has, in the order in which it has them.
MODULES = re.compile(r"(Transformer( Pooling( Dense)*( Normalize)?)?)?")


class EncoderSettings(NamedTuple):
    """How an encoder turns tokens into a vector, and what it puts before a text."""

    pooling: str
    normalise: bool
    query_prefix: str
    passage_prefix: str
    max_query_tokens: int
    max_passage_tokens: int


class _Module(NamedTuple):
    name: str
    folder: Path


def read_encoder_settings(checkpoint: Checkpoint, **given: Any) -> EncoderSettings:
    """Read pooling, normalisation, prefixes and lengths; what is given wins, and a task fills in `{task}`.

    Raises:
        InputError: nothing tells the pooling, or the checkpoint has modules that cannot be exported.
    """
    path = checkpoint.path
    modules = _read_modules(checkpoint)
    transformer = read_json(path / "sentence_bert_config.json") or {}
    if transformer.get("do_lower_case"):
        raise InputError(
            f"{checkpoint.source} lowercases texts outside its tokenizer (do_lower_case), which the export does not "
            "support; put a Lowercase normaliser into its tokenizer.json, and set do_lower_case to false"
        )
    pooling_config = _read_pooling_config(modules)
    pooling = given["pooling"] or find_pooling(pooling_config)
    if pooling is None:
        raise InputError(f"{checkpoint.source} does not say how it pools; give --pooling cls, mean or last")
    if pooling not in POOLINGS:
        raise InputError(f"pooling must be {', '.join(POOLINGS)}, was: {pooling!r}")
    normalises = any(module.name == "Normalize" for module in modules)
    prompts = (read_json(path / "config_sentence_transformers.json") or {}).get("prompts") or {}

    def first_given(value: str | None, *fallbacks: str) -> str:
        return value if value is not None else next((prompts[name] for name in fallbacks if prompts.get(name)), "")

    query_prefix = _fill_task(first_given(given["query_prefix"], "query"), given["task"])
    passage_prefix = first_given(given["passage_prefix"], "passage", "document")
    if not pooling_config.get("include_prompt", True) and (query_prefix or passage_prefix):
        raise InputError(
            f"{checkpoint.source} leaves the prompt out of its pooling (include_prompt), which the export does not "
            "support; without prompts it can be exported: --query-prefix '' --passage-prefix ''"
        )
    positions = count_positions(checkpoint.config)
    tokenizer = read_json(path / "tokenizer_config.json") or {}
    # Newer releases of sentence-transformers keep the length with the tokenizer, as transformers does.
    longest = transformer.get("max_seq_length") or tokenizer.get("model_max_length") or LONGEST_DEFAULT
    return EncoderSettings(
        pooling=pooling,
        normalise=given["normalise"] if given["normalise"] is not None else normalises,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
        max_query_tokens=min(given["max_query_tokens"] or longest, positions),
        max_passage_tokens=min(given["max_passage_tokens"] or longest, positions),
    )


def read_dense(checkpoint: Checkpoint) -> tuple[Dense, ...]:
    """Read the dense layers behind the pooling.

    Raises:
        InputError: a layer is of a form that cannot be exported, or has no weights in safetensors.
    """
    return tuple(
        _read_dense(checkpoint.source, module.folder) for module in _read_modules(checkpoint) if module.name == "Dense"
    )


def _read_dense(source: str, folder: Path) -> Dense:
    config = read_json(folder / "config.json") or {}
    # The default is sentence-transformers' own.
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh").rsplit(".", 1)[-1]
    if activation not in DENSE_ACTIVATIONS:
        raise InputError(
            f"the Dense module of {source} has the activation {activation!r}; known: {', '.join(DENSE_ACTIVATIONS)}"
        )
    elsewhere = [
        config[name]
        for name in ("module_input_name", "module_output_name")
        if config.get(name) not in (None, "sentence_embedding")
    ]
    if config.get("use_residual") or elsewhere:
        raise InputError(f"the Dense module of {source} adds to its input or reads another one, which is not supported")
    if not (folder / "model.safetensors").is_file():
        refuse_weights(f"{source}/{folder.name}", folder)
    weights = load_file(folder / "model.safetensors")
    bias = weights.get("linear.bias")
    return Dense(
        weights["linear.weight"].astype("float32"), None if bias is None else bias.astype("float32"), activation
    )


def _read_modules(checkpoint: Checkpoint) -> list[_Module]:
    listed = read_json(checkpoint.path / "modules.json") or []
    modules = [_Module(name_module(module["type"]), checkpoint.path / module["path"]) for module in listed]
    names = " ".join(module.name for module in modules)
    if not MODULES.fullmatch(names):
        raise InputError(
            f"{checkpoint.source} has the modules {names.replace(' ', ', ')}, which the export does not support; it "
            "knows Transformer, Pooling, any number of Dense, and Normalize, in this order"
        )
    return modules


def _read_pooling_config(modules: list[_Module]) -> dict[str, Any]:
    folder = next((module.folder for module in modules if module.name == "Pooling"), None)
    found: dict[str, Any] | None = read_json(folder / "config.json") if folder else None
    return found or {}


def _fill_task(prefix: str, task: str | None) -> str:
    if task is not None and TASK not in prefix:
        raise InputError(f"there is no {TASK} in the query prefix {prefix!r} that the task {task!r} could fill in")
    if task is None and TASK in prefix:
        raise InputError(f"the query prefix {prefix!r} asks for a task; give --task")
    return prefix.replace(TASK, task or "")
