"""Merge a generator's prompt, languages and sampling from its checkpoint's settings and the user's options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from xqg_qdrant.errors import InputError
from xqg_qdrant.model_folders.description import FULL_VOCABULARY, unknown_prompt_fields

MODEL_TYPES = ("t5", "mt5")
LONGEST_INPUT = 1024
LONGEST_OUTPUT = 256


class GeneratorSettings(NamedTuple):
    """How a generator is prompted, and how it samples."""

    prompt: str
    languages: tuple[str, ...]
    language_tokens: dict[str, int]
    suppressed_ids: tuple[int, ...]
    max_input_tokens: int
    top_k: int
    temperature: float
    max_new_tokens: int

    def describe(self, vocabulary: str = FULL_VOCABULARY) -> dict[str, Any]:
        """Return the fields of `xqg.json`; `vocabulary` is the default to draw queries from."""
        return {
            "prompt": self.prompt,
            "languages": list(self.languages),
            "language_tokens": self.language_tokens,
            "max_input_tokens": self.max_input_tokens,
            "max_output_tokens": LONGEST_OUTPUT,
            "sampling": {
                "top_k": self.top_k,
                "temperature": self.temperature,
                "max_new_tokens": self.max_new_tokens,
                "vocabulary": vocabulary,
            },
        }


def read_generator_settings(source: str, generation: Mapping[str, Any], **given: Any) -> GeneratorSettings:
    """Read language tokens and sampling; the options override the checkpoint.

    Args:
        source: the checkpoint's name, for errors.
        generation: the content of its `generation_config.json`.
        given: the options; None where the checkpoint or a default decides.

    Raises:
        InputError: the prompt or the languages are neither stored nor given, or do not go together.
    """
    language_tokens = generation.get("lang_to_id") or {}
    prompt = given["prompt"] or ("{title} {text}" if language_tokens else None)
    if prompt is None or "{text}" not in prompt:
        raise InputError(
            f"{source} does not say how it is prompted.",
            "give --prompt with {text} in it, such as "
            "--prompt 'Generate a {language} question for this passage: {title} {text}'",
        )
    unknown = unknown_prompt_fields(prompt)
    if unknown:
        raise InputError(
            f"the prompt {prompt!r} has {unknown[0]}, which nothing fills in.", "use {language}, {title} and {text}"
        )
    if "{language}" in prompt[prompt.index("{text}") :]:
        raise InputError(
            f"the prompt {prompt!r} names the language after the text, where a long passage is truncated.",
            "put {language} before {text}",
        )
    languages = given["languages"] or tuple(language_tokens)
    if not languages:
        raise InputError(f"{source} does not say which languages it writes.", "give --languages ar,bn,…")
    if len(languages) > 1 and not language_tokens and "{language}" not in prompt:
        raise InputError(
            f"the prompt {prompt!r} has no {{language}}, so {source} cannot tell which of {', '.join(languages)} to "
            "write.",
            f"give the one language that it writes: --languages {languages[0]}",
        )
    if language_tokens and not set(languages) <= language_tokens.keys():
        raise InputError(
            f"{source} has tokens only for the languages {', '.join(language_tokens)}.",
            "choose --languages from these",
        )
    return GeneratorSettings(
        prompt=prompt,
        languages=languages,
        language_tokens={language: language_tokens[language] for language in languages if language_tokens},
        suppressed_ids=tuple(generation.get("suppress_tokens") or ()),
        max_input_tokens=min(given["max_input_tokens"] or 256, LONGEST_INPUT),
        top_k=given["top_k"] or generation.get("top_k") or 10,
        temperature=given["temperature"] or generation.get("temperature") or 1.0,
        max_new_tokens=min(given["max_new_tokens"] or generation.get("max_new_tokens") or 32, LONGEST_OUTPUT),
    )
