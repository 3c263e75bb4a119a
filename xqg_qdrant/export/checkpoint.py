"""A Hugging Face checkpoint on disk, found or downloaded: its configuration, its licence, how a generator is asked.

Knows the file layout of transformers. Knows nothing of ONNX, nor what sentence-transformers' files say.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from xqg_qdrant.errors import InputError
from xqg_qdrant.export import encoders, t5
from xqg_qdrant.model_description import unknown_prompt_fields

WEIGHTS = "*.safetensors"
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
DOWNLOADED = [WEIGHTS, "*.json", "*.txt", "*.model", "README.md"]
ELSEWHERE = ["onnx/*", "openvino/*"]


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
    config = read_json(path / "config.json")
    if not config:
        raise InputError(f"{source} holds no config.json: it is not a transformers checkpoint")
    supported = (*encoders.MODEL_TYPES, *t5.MODEL_TYPES)
    if config.get("model_type") not in supported:
        raise InputError(f"{source} is of type {config.get('model_type')!r}; supported are {', '.join(supported)}")
    if not any(path.glob(WEIGHTS)):
        refuse_weights(source, path)
    return Checkpoint(path, path.name if Path(source).is_dir() else source, revision or "", config)


def read_generator_settings(checkpoint: Checkpoint, **given: Any) -> GeneratorSettings:
    """Read language tokens and sampling from `generation_config.json`; what is given wins.

    Raises:
        InputError: nothing tells the prompt or the languages.
    """
    generation = read_json(checkpoint.path / "generation_config.json") or {}
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
    if len(languages) > 1 and not language_tokens and "{language}" not in prompt:
        raise InputError(
            f"nothing tells {checkpoint.source} which of the languages {', '.join(languages)} to write: the prompt "
            f"{prompt!r} has no {{language}}. Cure: give the one language that it writes: --languages {languages[0]}"
        )
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


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Return what a JSON file holds, `None` without one."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_licence(path: Path) -> str:
    """Return the licence that the model card's front matter names, `unknown` without one."""
    card = path / "README.md"
    found = re.search(r"^licen[cs]e:\s*(\S+)", card.read_text(encoding="utf-8"), re.M) if card.is_file() else None
    return found.group(1) if found else "unknown"


def refuse_weights(source: str, folder: Path) -> NoReturn:
    """Say why weights without safetensors are not read.

    Raises:
        InputError: always.
    """
    other = sorted(file.name for pattern in OTHER_WEIGHTS for file in folder.glob(pattern))
    if not other:
        raise InputError(f"{source} holds no weights: there is no {WEIGHTS} in it")
    raise InputError(
        f"{source} holds its weights as {other[0]}, which is not read: such a file can run code when it is loaded. "
        "Cure: export a version in safetensors. https://huggingface.co/spaces/safetensors/convert makes one of a "
        "public model, as a pull request: --revision refs/pr/NUMBER; docs/how-to/own-models.md converts a folder"
    )


def _download(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Code and pickles do not even come here.
        path = snapshot_download(source, revision=revision, allow_patterns=DOWNLOADED, ignore_patterns=ELSEWHERE)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"there is no local folder {source!r}, and the hub did not give a checkpoint of that name: {error}"
        ) from error
    return Path(path)
