"""What a Hugging Face checkpoint says of itself: weights, configuration, pooling, prompts, licence.

Knows the file layouts of transformers and sentence-transformers. Knows nothing of ONNX.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from xqg_qdrant.errors import InputError
from xqg_qdrant.export import bert, t5
from xqg_qdrant.model_description import POOLINGS, unknown_prompt_fields

LONGEST_DEFAULT = 512


class Checkpoint(NamedTuple):
    """A checkpoint on disk, with its origin."""

    path: Path
    source: str
    revision: str
    config: dict[str, Any]

    @property
    def kind(self) -> str:
        """`encoder` or `generator`, from the model type."""
        return "generator" if self.config["model_type"] in t5.MODEL_TYPES else "encoder"


class EncoderSettings(NamedTuple):
    """How an encoder turns tokens into a vector, and what it puts before a text."""

    pooling: str
    normalise: bool
    query_prefix: str
    passage_prefix: str
    max_query_tokens: int
    max_passage_tokens: int


class GeneratorSettings(NamedTuple):
    """How a generator is asked, and how it samples."""

    prompt: str
    languages: tuple[str, ...]
    language_tokens: dict[str, int]
    suppressed_ids: tuple[int, ...]
    max_input_tokens: int
    top_k: int
    temperature: float
    max_new_tokens: int


def fetch_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Find a local folder, or download a hub id (the only network access of the package).

    Raises:
        InputError: there is no such checkpoint, or its architecture is not supported.
    """
    path = Path(source)
    if not path.is_dir():
        path = _download(source, revision)
        revision = path.name
    config = _read_json(path / "config.json")
    if not config:
        raise InputError(f"{source} holds no config.json: it is not a transformers checkpoint")
    supported = (*bert.MODEL_TYPES, *t5.MODEL_TYPES)
    if config.get("model_type") not in supported:
        raise InputError(f"{source} is of type {config.get('model_type')!r}; supported are {', '.join(supported)}")
    return Checkpoint(path, path.name if Path(source).is_dir() else source, revision or "", config)


def read_encoder_settings(checkpoint: Checkpoint, **given: Any) -> EncoderSettings:
    """Read pooling, normalisation, prefixes and lengths from sentence-transformers' files; what is given wins.

    Raises:
        InputError: nothing tells the pooling, or the checkpoint has modules that cannot be exported.
    """
    path = checkpoint.path
    modules = [module["type"].rsplit(".", 1)[-1] for module in _read_json(path / "modules.json") or []]
    for module in modules:
        if module not in ("Transformer", "Pooling", "Normalize"):
            raise InputError(f"{checkpoint.source} has a {module} module, which the export does not support")
    transformer = _read_json(path / "sentence_bert_config.json") or {}
    if transformer.get("do_lower_case"):
        raise InputError(
            f"{checkpoint.source} lowercases texts outside its tokenizer (do_lower_case), which the export does not "
            "support; put a Lowercase normaliser into its tokenizer.json, and set do_lower_case to false"
        )
    pooling = given["pooling"] or _read_pooling(path)
    if pooling is None:
        raise InputError(f"{checkpoint.source} does not say how it pools; give --pooling cls, mean or last")
    if pooling not in POOLINGS:
        raise InputError(f"pooling must be {', '.join(POOLINGS)}, was: {pooling!r}")
    normalise = given["normalise"] if given["normalise"] is not None else "Normalize" in modules
    prompts = (_read_json(path / "config_sentence_transformers.json") or {}).get("prompts") or {}
    positions = checkpoint.config["max_position_embeddings"]
    if checkpoint.config["model_type"] != "bert":
        positions -= checkpoint.config["pad_token_id"] + 1
    tokenizer = _read_json(path / "tokenizer_config.json") or {}
    # Newer releases of sentence-transformers keep the length with the tokenizer, as transformers does.
    longest = transformer.get("max_seq_length") or tokenizer.get("model_max_length") or LONGEST_DEFAULT
    longest = min(longest, positions)

    def first_given(value: str | None, *fallbacks: str) -> str:
        return value if value is not None else next((prompts[name] for name in fallbacks if prompts.get(name)), "")

    query_prefix = first_given(given["query_prefix"], "query")
    passage_prefix = first_given(given["passage_prefix"], "passage", "document")
    includes_prompt = (_read_json(path / "1_Pooling" / "config.json") or {}).get("include_prompt", True)
    if not includes_prompt and (query_prefix or passage_prefix):
        raise InputError(
            f"{checkpoint.source} leaves the prompt out of its pooling (include_prompt), which the export does not "
            "support; without prompts it can be exported: --query-prefix '' --passage-prefix ''"
        )
    return EncoderSettings(
        pooling=pooling,
        normalise=normalise,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
        max_query_tokens=min(given["max_query_tokens"] or longest, positions),
        max_passage_tokens=min(given["max_passage_tokens"] or longest, positions),
    )


def read_generator_settings(checkpoint: Checkpoint, **given: Any) -> GeneratorSettings:
    """Read language tokens and sampling from `generation_config.json`; what is given wins.

    Raises:
        InputError: nothing tells the prompt or the languages.
    """
    generation = _read_json(checkpoint.path / "generation_config.json") or {}
    language_tokens = generation.get("lang_to_id") or {}
    prompt = given["prompt"] or ("{title} {text}" if language_tokens else None)
    if prompt is None or "{text}" not in prompt:
        raise InputError(
            f"{checkpoint.source} does not say how it is prompted; give --prompt with {{text}} in it, such as "
            "--prompt 'Generate a {language} question for this passage: {title} {text}'"
        )
    unknown = unknown_prompt_fields(prompt)
    if unknown:
        raise InputError(f"the prompt {prompt!r} has {unknown[0]}, which nothing fills in; write {{title}}, {{text}}")
    if "{language}" in prompt[prompt.index("{text}") :]:
        raise InputError(
            f"the prompt {prompt!r} names the language behind the text, where a long passage is cut; "
            "put {language} before {text}"
        )
    languages = given["languages"] or tuple(language_tokens)
    if not languages:
        raise InputError(f"{checkpoint.source} does not say which languages it writes; give --languages ar,bn,…")
    if language_tokens and not set(languages) <= language_tokens.keys():
        raise InputError(f"{checkpoint.source} has tokens for the languages {', '.join(language_tokens)} alone")
    return GeneratorSettings(
        prompt=prompt,
        languages=languages,
        language_tokens={language: language_tokens[language] for language in languages if language_tokens},
        suppressed_ids=tuple(generation.get("suppress_tokens") or ()),
        max_input_tokens=min(given["max_input_tokens"] or 256, t5.LONGEST_INPUT),
        top_k=given["top_k"] or generation.get("top_k") or 10,
        temperature=given["temperature"] or generation.get("temperature") or 1.0,
        max_new_tokens=min(given["max_new_tokens"] or generation.get("max_new_tokens") or 32, t5.LONGEST_OUTPUT),
    )


def read_licence(path: Path) -> str:
    """Return the licence that the model card's front matter names, `unknown` without one."""
    card = path / "README.md"
    found = re.search(r"^licen[cs]e:\s*(\S+)", card.read_text(encoding="utf-8"), re.M) if card.is_file() else None
    return found.group(1) if found else "unknown"


def _read_pooling(path: Path) -> str | None:
    config = _read_json(path / "1_Pooling" / "config.json") or {}
    # The old form has one flag for each mode; several that are set are concatenated, which is none of ours.
    prefix = "pooling_mode_"
    flags = [name.removeprefix(prefix) for name, value in config.items() if name.startswith(prefix) and value]
    modes = flags or [str(config.get("pooling_mode"))]
    mode = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}.get(modes[0], modes[0])
    return mode if len(modes) == 1 and mode in POOLINGS else None


def _read_json(path: Path) -> Any:  # noqa: ANN401
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _download(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "*.model", "README.md"]
    elsewhere = ["onnx/*", "openvino/*"]
    try:
        for weights in ("*.safetensors", "*.bin"):
            path = Path(
                snapshot_download(
                    source, revision=revision, allow_patterns=[*patterns, weights], ignore_patterns=elsewhere
                )
            )
            if list(path.glob(weights)):
                return path
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"there is no local folder {source!r}, and the hub did not give a checkpoint of that name: {error}"
        ) from error
    raise InputError(f"{source} holds neither safetensors nor bin weights")
