"""Describe encoders that other programs laid out: optimum, sentence-transformers, fastembed, transformers.js.

Beside a graph (`model.onnx`, or one in `onnx/`) and `tokenizer.json` lie `config.json` of transformers and, at best,
sentence-transformers' files: the modules after the graph, the pooling, prompts, lengths. This module is the only reader
of those files; inference and the export use it too. What decides a vector is read there or given by the user, and never
guessed: a wrong pooling gives vectors that look fine.

Nothing here runs a model, and no file of a model folder is opened before `files` has checked it.
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
    are_tokenizer_settings,
    check_prefix,
    complete_description,
    dense_files,
    wrong_kind,
)
from xqg_qdrant.model_folders.files import (
    GRAPH_SUFFIX,
    LARGEST_FILES,
    check_file,
    check_graph,
    export_it,
    is_plain_name,
    read_checked,
    read_object,
)
from xqg_qdrant.model_folders.onnx_scan import read_outputs
from xqg_qdrant.text import show

CONFIG_FILE = "config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
MODULES_FILE = "modules.json"
# sentence-transformers reads the first of these that is not empty; it writes the first name only.
TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
PROMPTS_FILE = "config_sentence_transformers.json"
WEIGHTS_FILE, PICKLE_FILE = "model.safetensors", "pytorch_model.bin"
GRAPH_FOLDERS = ("", "onnx/")
DECODER_GRAPH, MERGED_DECODER_GRAPH = "decoder_model.onnx", "decoder_model_merged.onnx"
# Of several graphs the one of this name is the model; the others are variants of it.
USUAL_GRAPH = "model.onnx"
TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
TEXT_OUTPUT = "sentence_embedding"
# transformers writes a far larger number for a tokenizer without a limit.
LONGEST_TEXT = 1 << 20
# The positions of these start after the padding token's id.
OFFSET_MODEL_TYPES = ("camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl", "xmod")
POOLING_MODES = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}
IDENTITY, RELU, TANH = "Identity", "ReLU", "Tanh"
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": IDENTITY,
    "torch.nn.modules.activation.ReLU": RELU,
    "torch.nn.modules.activation.Tanh": TANH,
}
# sentence-transformers' own default.
DEFAULT_ACTIVATION = "torch.nn.modules.activation.Tanh"
QUERY_PROMPTS = ("query",)
PASSAGE_PROMPTS = ("document", "passage", "corpus")
# Arguments for transformers that change no vector beyond its last digits.
HARMLESS_ARGUMENTS = frozenset({
    "add_pooling_layer", "attn_implementation", "clean_up_tokenization_spaces", "device_map", "dtype",
    "low_cpu_mem_usage", "padding_side", "torch_dtype", "trust_remote_code", "unpad_inputs", "use_fast",
    "use_memory_efficient_attention", "use_safetensors",
})  # fmt: skip
# Fields of the transformer's settings → the values with which vectors are computed here.
COMPUTED_HERE: dict[str, tuple[object, ...]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "query_expansion": (None,),
}
READ_HERE = {"method": "forward", "method_output_name": "last_hidden_state"}

# transformers gives these a normaliser with the settings of `tokenizer_config.json`, or their defaults.
BERT_MODEL_TYPES = ("bert", "convbert", "distilbert", "electra", "funnel", "mobilebert", "mpnet", "squeezebert")
# Padding at the left moves the positions of these.
ABSOLUTE_POSITIONS = frozenset(BERT_MODEL_TYPES) - {"funnel", "mpnet"}
BERT_TOKENIZERS = frozenset(f"{name}tokenizer{ending}" for name in BERT_MODEL_TYPES for ending in ("", "fast"))
# Fields of `tokenizer_config.json` → those of the normaliser, and transformers' defaults.
BERT_FIELDS = {
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}


class EncoderOverrides(NamedTuple):
    """What a user says of an encoder's folder; None where the folder's files decide."""

    graph: str | None = None
    pooling: str | None = None
    normalise: bool | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None
    max_query_tokens: int | None = None
    max_passage_tokens: int | None = None


class Modules(NamedTuple):
    """What sentence-transformers does after the transformer.

    `pooling` is None where `pooling_modes`, as the file names them, are not exactly one supported mode. `dense` are the
    folders of the dense layers.
    """

    pooling: str | None
    pooling_modes: list[Any]
    includes_prompt: bool
    dense: tuple[str, ...]
    normalise: bool


class Transformer(NamedTuple):
    """How sentence-transformers feeds the transformer: limits in tokens, None where there is none; lowercasing."""

    max_length: int | None = None
    query_length: int | None = None
    passage_length: int | None = None
    lowercase: bool = False


class DenseSettings(NamedTuple):
    """A dense layer's settings: its activation (`Identity`, `ReLU` or `Tanh`) and the names of its tensors."""

    activation: str
    tensors: frozenset[str]


def is_foreign_folder(path: Path) -> bool:
    """Return whether a folder has transformers' configuration and no `xqg.json`."""
    return not os.path.lexists(path / DESCRIPTION_FILE) and os.path.lexists(path / CONFIG_FILE)


def holds_generator(path: Path) -> bool:
    """Return whether a folder has a decoder's graph in optimum's layout."""
    names = (f"{folder}{name}" for folder in GRAPH_FOLDERS for name in (DECODER_GRAPH, MERGED_DECODER_GRAPH))
    return any(os.path.lexists(path / name) for name in names)


def describe_foreign_encoder(path: Path, overrides: EncoderOverrides) -> dict[str, Any]:
    """Check the files of an encoder's folder and return its description.

    Raises:
        ModelError: a file is unsound, or neither the folder nor the overrides say what decides the vectors.
    """
    if holds_generator(path):
        raise wrong_kind(path, "generator", "encoder")
    graph = overrides.graph or _choose_graph(path)
    names = [*check_graph(path, graph), TOKENIZER_FILE]
    check_file(path, TOKENIZER_FILE)
    settings = _read_settings(path, graph, read_modules(path), overrides)
    for folder in settings["dense"]:
        _refuse_pickle(path / folder)
        for name in dense_files(folder):
            check_file(path, name)
            names.append(name)
        read_dense_settings(path, folder)
    return complete_description(path, {"format": FORMAT, "kind": "encoder", "graph": graph, **settings}, names)


def read_modules(path: Path, links_allowed: bool = False) -> Modules | None:
    """Read `modules.json` and the pooling's settings; return None if there is no `modules.json`.

    Args:
        path: a folder with sentence-transformers' files.
        links_allowed: skip the checks of a model folder's files; the hub's cache holds symbolic links.

    Raises:
        ModelError: the modules are not Transformer, Pooling, any number of Dense, Normalize, or work on other vectors.
    """
    if not os.path.lexists(path / MODULES_FILE):
        return None
    kinds, folders = [], []
    listed = read_checked(path, MODULES_FILE, links_allowed)
    for module in listed if isinstance(listed, list) else [None]:
        kind, folder = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(folder, str) or (folder and not is_plain_name(folder)):
            raise ModelError(f"{path / MODULES_FILE} has a malformed module {show(module)}.", export_it(path))
        kinds.append(_name_module(kind))
        folders.append(folder)
    dense = tuple(folder for kind, folder in zip(kinds, folders, strict=True) if kind == "Dense")
    normalise = ["Normalize"] * ("Normalize" in kinds)
    if kinds != ["Transformer", "Pooling", *["Dense"] * len(dense), *normalise] or folders[0]:
        raise ModelError(
            f"{path} is a pipeline of {show(', '.join(kinds))}; xqg supports Transformer, Pooling, Dense and "
            "Normalize, in this order.",
            export_it(path),
        )
    for kind, folder in zip(kinds, folders, strict=True):
        if kind in ("Dense", "Normalize"):
            config = read_object(path, f"{folder}/{CONFIG_FILE}", links_allowed)
            taken = config.get("module_input_name", TEXT_OUTPUT)
            for name in (taken, config.get("module_output_name") or taken):
                if name != TEXT_OUTPUT:
                    raise ModelError(f"{path / folder} works on {show(name)}, not on {TEXT_OUTPUT}.", export_it(path))
    pooling = read_object(path, f"{folders[1]}/{CONFIG_FILE}", links_allowed)
    modes = _pooling_modes(pooling)
    found = [POOLING_MODES.get(mode, mode) if isinstance(mode, str) else None for mode in modes]
    supported = found[0] if len(found) == 1 and found[0] in POOLINGS else None
    return Modules(supported, modes, pooling.get("include_prompt", True) is True, dense, bool(normalise))


def read_dense_settings(path: Path, folder: str, links_allowed: bool = False) -> DenseSettings:
    """Read the settings of a dense layer.

    Raises:
        ModelError: the layer adds its input, or has another activation.
    """
    config = read_object(path, f"{folder}/{CONFIG_FILE}", links_allowed)
    activation = config.get("activation_function", DEFAULT_ACTIVATION)
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ModelError(
            f"{path / folder} has the activation {show(activation)}; xqg supports {', '.join(ACTIVATIONS)}.",
            "use another model",
        )
    if config.get("use_residual"):
        raise ModelError(f"{path / folder} adds its input (use_residual), which xqg does not support.", export_it(path))
    bias = ["linear.bias"] if config.get("bias", True) else []
    return DenseSettings(ACTIVATIONS[activation], frozenset(["linear.weight", *bias]))


def read_transformer(path: Path, links_allowed: bool = False) -> Transformer:
    """Read how sentence-transformers feeds the transformer.

    Raises:
        ModelError: a setting decides vectors that are not computed here.
    """
    for file in TRANSFORMER_FILES:
        settings = read_object(path, file, links_allowed)
        if settings:
            break
    for name, known in COMPUTED_HERE.items():
        if settings.get(name, known[0]) not in known:
            raise _not_obeyed(path, file, name, settings[name])
    modalities = settings.get("modality_config", {"text": READ_HERE})
    text = modalities.get("text") if isinstance(modalities, dict) else None
    # A model with messages gets a text through its chat template.
    if (
        not isinstance(text, dict)
        or "message" in modalities
        or any(text.get(name) != value for name, value in READ_HERE.items())
    ):
        raise _not_obeyed(path, file, "modality_config", modalities)
    for kind in ("model", "tokenizer", "processor", "config"):
        for name in (f"{kind}_args", f"{kind}_kwargs"):
            _check_arguments(path, file, name, settings.get(name))
    _check_arguments(path, file, "processing_kwargs", settings.get("processing_kwargs"))
    return Transformer(
        _whole(settings.get("max_seq_length")),
        _whole(settings.get("query_length")),
        _whole(settings.get("document_length")),
        bool(settings.get("do_lower_case")),
    )


def is_compared_by_cosine(path: Path, links_allowed: bool = False) -> bool:
    """Return whether vectors are compared by cosine, and therefore normalised for a dot product.

    sentence-transformers 3 and newer write null where their default, cosine, applies. Older releases write no such
    field; then the modules alone decide.

    Raises:
        ModelError: vectors are compared or shortened in a way that is not supported.
    """
    settings = read_object(path, PROMPTS_FILE, links_allowed)
    similarity = settings.get("similarity_fn_name", "dot")
    if similarity not in ("cosine", "dot", None):
        raise _not_obeyed(path, PROMPTS_FILE, "similarity_fn_name", similarity)
    if settings.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise _not_obeyed(path, PROMPTS_FILE, "model_type", settings["model_type"])
    if settings.get("truncate_dim") is not None:
        raise _not_obeyed(path, PROMPTS_FILE, "truncate_dim", settings["truncate_dim"])
    return bool(similarity != "dot")


def read_tokenizer_settings(path: Path, lowercase: bool = False, links_allowed: bool = False) -> dict[str, Any]:
    """Return the settings that take precedence over `tokenizer.json`; empty if there are none.

    Args:
        path: the folder.
        lowercase: whether sentence-transformers lowercases texts.
        links_allowed: accept symbolic links, which the hub's cache consists of.

    Returns:
        `truncation_side`: `left` or `right`; `lowercase`: true; `bert_normaliser`: the settings of a WordPiece
        tokenizer's normaliser.

    Raises:
        ModelError: the file is unsound, or a setting is invalid.
    """
    config = read_object(path, TOKENIZER_CONFIG_FILE, links_allowed)
    found: dict[str, Any] = {"lowercase": True} if lowercase else {}
    if "truncation_side" in config:
        found["truncation_side"] = config["truncation_side"]
    model = read_object(path, CONFIG_FILE, links_allowed)
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    is_bert = str(name).lower() in BERT_TOKENIZERS if name else model.get("model_type") in BERT_MODEL_TYPES
    if is_bert and (config or lowercase):
        found["bert_normaliser"] = {field: config.get(name, default) for name, (field, default) in BERT_FIELDS.items()}
    if model.get("model_type") in ABSOLUTE_POSITIONS:
        _refuse_left_padding(path, config, links_allowed)
    if not are_tokenizer_settings(found):
        raise ModelError(f"{path / TOKENIZER_CONFIG_FILE} has invalid settings {show(found)}.", "correct that file")
    return found


def _refuse_left_padding(path: Path, config: Mapping[str, Any], links_allowed: bool) -> None:
    file, side = TOKENIZER_CONFIG_FILE, config.get("padding_side")
    if side is None and (path / TOKENIZER_FILE).exists():
        padding = read_checked(path, TOKENIZER_FILE, links_allowed, LARGEST_FILES[".json"])
        padding = padding.get("padding") if isinstance(padding, dict) else None
        file, side = TOKENIZER_FILE, padding.get("direction") if isinstance(padding, dict) else None
    if str(side).lower() == "left":
        raise ModelError(
            f"{path / file} pads at the left (padding_side), where a text's vector depends on the others in its batch.",
            f"set padding_side to right in {path / TOKENIZER_CONFIG_FILE}, for vectors of texts without padding",
        )


def read_prefixes(
    path: Path, query_prefix: str | None, passage_prefix: str | None, links_allowed: bool = False
) -> dict[str, str]:
    """Return `query_prefix` and `passage_prefix`: the overrides, else the prompts of `encode_query`, `encode_document`.

    Raises:
        ModelError: a prompt is not text, or only the default prompt, which these two do not use, is set.
    """
    settings = read_object(path, PROMPTS_FILE, links_allowed)
    prompts = {} if settings.get("prompts") is None else settings["prompts"]
    named = isinstance(prompts, dict) and {*QUERY_PROMPTS, *PASSAGE_PROMPTS}.intersection(prompts)
    default = settings.get("default_prompt_name")
    if default is not None and not named and None in (query_prefix, passage_prefix):
        raise ModelError(
            f"{path / PROMPTS_FILE} has default_prompt_name = {show(default)}, and no prompt for queries or passages.",
            f"set both: xqg describe {path} --query-prefix TEXT --passage-prefix TEXT, or the same of xqg export",
        )
    return {
        "query_prefix": _choose_prompt(path, prompts, "query_prefix", query_prefix, QUERY_PROMPTS),
        "passage_prefix": _choose_prompt(path, prompts, "passage_prefix", passage_prefix, PASSAGE_PROMPTS),
    }


def _choose_prompt(path: Path, prompts: object, field: str, override: str | None, names: Sequence[str]) -> str:
    if override is not None:
        return override
    found: Any = [prompts]
    if isinstance(prompts, dict):
        # A prompt may be empty on purpose.
        found = next((prompts[name] for name in names if prompts.get(name) is not None), "")
    try:
        check_prefix(field, found)
    except ValueError as error:
        raise ModelError(f"{path / PROMPTS_FILE} {error}.", "correct the prompts in that file") from error
    return str(found)


def _check_arguments(path: Path, file: str, name: str, arguments: object) -> None:
    if arguments and not (isinstance(arguments, dict) and HARMLESS_ARGUMENTS.issuperset(arguments)):
        raise _not_obeyed(path, file, name, arguments)


def _not_obeyed(path: Path, file: str, name: str, value: object) -> ModelError:
    return ModelError(
        f"{path / file} has {name} = {show(value)}, which xqg does not support.",
        f"use another model; or remove {name} from that file, if you want vectors without it",
    )


def _name_module(kind: str) -> str:
    """Return a module's kind without its package; another package's module is code of its own, and keeps its name."""
    return kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind


def _pooling_modes(config: Mapping[str, Any]) -> list[Any]:
    # The old form has a flag for each mode; several that are set are concatenated, which is not supported.
    prefix = "pooling_mode_"
    flags = [name.removeprefix(prefix) for name, value in config.items() if name.startswith(prefix) and value]
    if "pooling_mode" not in config:
        return flags
    mode = config["pooling_mode"]
    return mode if isinstance(mode, list) and len(mode) == 1 else [mode]


def _refuse_pickle(folder: Path) -> None:
    if os.path.lexists(folder / PICKLE_FILE) and not os.path.lexists(folder / WEIGHTS_FILE):
        raise ModelError(
            f"{folder / PICKLE_FILE} is a pickle, which can run any code, and is never opened.",
            f"save the model as {WEIGHTS_FILE}, with sentence-transformers where you trust the file: "
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


def _read_settings(path: Path, graph: str, modules: Modules | None, overrides: EncoderOverrides) -> dict[str, Any]:
    """Return all fields of a description but the files."""
    if modules and modules.pooling is None:
        raise ModelError(
            f"{path} pools by {show(modules.pooling_modes)}; xqg supports {', '.join(POOLINGS)}.",
            f"use another model, or one whose graph returns {TEXT_OUTPUT}",
        )
    output = _choose_output(
        path, graph, read_outputs(path / graph), pooled=modules is not None or overrides.pooling is not None
    )
    if output == TEXT_OUTPUT:
        if overrides.pooling is not None:
            raise ModelError(f"{path / graph} pools inside.", "leave out --pooling, and if need be give --normalise")
        pooling, normalise = IN_GRAPH, overrides.normalise
        if normalise is None:
            normalise = is_compared_by_cosine(path)
    else:
        pooling, normalise = _read_pooling(path, graph, modules, overrides)
    transformer = read_transformer(path)
    tokenizer = read_tokenizer_settings(path, transformer.lowercase)
    longest_query, longest_passage = _read_lengths(path, transformer, overrides)
    prefixes = read_prefixes(path, overrides.query_prefix, overrides.passage_prefix)
    if modules and not modules.includes_prompt and output != TEXT_OUTPUT and any(prefixes.values()):
        raise ModelError(
            f"{path} leaves its prompts out of the pooling (include_prompt), which xqg does not support.",
            f"use another model, or this one without prompts: xqg describe {path} --query-prefix '' "
            "--passage-prefix ''",
        )
    return {
        # Only the graph itself says what it computes in.
        "dtype": "as exported",
        "pooling": pooling,
        "normalise": normalise,
        **prefixes,
        "max_query_tokens": longest_query,
        "max_passage_tokens": longest_passage,
        "output": output,
        "dense": list(modules.dense) if modules and output != TEXT_OUTPUT else [],
        **({"tokenizer": tokenizer} if tokenizer else {}),
    }


def _choose_output(path: Path, graph: str, outputs: Sequence[str], pooled: bool) -> str:
    """Return the output to take: token vectors where the pooling is known, else whole vectors."""
    wanted = (*TOKEN_OUTPUTS, TEXT_OUTPUT) if pooled else (TEXT_OUTPUT, *TOKEN_OUTPUTS)
    for name in wanted:
        if name in outputs:
            return name
    raise ModelError(
        f"{path / graph} is not a text encoder: it returns {show(', '.join(outputs))}, not {' or '.join(wanted)}.",
        export_it(path),
    )


def _read_pooling(path: Path, graph: str, modules: Modules | None, overrides: EncoderOverrides) -> tuple[str, bool]:
    pooling = overrides.pooling or (modules.pooling if modules else None)
    normalise = overrides.normalise
    if normalise is None and modules:
        normalise = is_compared_by_cosine(path) or modules.normalise
    if pooling is None or normalise is None:
        raise ModelError(
            f"{path} does not say how the token vectors of {graph} become one vector, nor whether that is normalised: "
            f"it has no {MODULES_FILE} of sentence-transformers.",
            f"look it up on the model's card, and run xqg describe {path} --pooling cls, mean or last, with "
            "--normalise or --no-normalise",
        )
    return pooling, normalise


def _read_lengths(path: Path, transformer: Transformer, overrides: EncoderOverrides) -> tuple[int | None, int | None]:
    """Return how many tokens a query and a passage may have."""
    config = read_object(path, CONFIG_FILE)
    positions = _whole(config.get("max_position_embeddings"))
    if positions is not None and config.get("model_type") in OFFSET_MODEL_TYPES:
        positions -= 1 + (_whole(config.get("pad_token_id")) or 0)
    longest = transformer.max_length or _whole(read_object(path, TOKENIZER_CONFIG_FILE).get("model_max_length"))
    lengths = []
    for override, own in (
        (overrides.max_query_tokens, transformer.query_length),
        (overrides.max_passage_tokens, transformer.passage_length),
    ):
        found = [length for length in (own or longest, positions) if length is not None]
        if not found and override is None:
            raise ModelError(
                f"{path} does not say how many tokens a text may have.",
                f"set it: xqg describe {path} --max-query-tokens 512 --max-passage-tokens 512",
            )
        lengths.append(override or min(found))
    return lengths[0], lengths[1]


def _whole(value: object) -> int | None:
    return value if type(value) is int and 0 < value <= LONGEST_TEXT else None
