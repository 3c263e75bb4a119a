"""Read what decides a text's tokens beside its `tokenizer.json`: transformers' `tokenizer_config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xqg_qdrant.errors import ModelError
from xqg_qdrant.model_folders.files import LARGEST_FILES, read_checked, read_object
from xqg_qdrant.text import show

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SIDES = ("left", "right")
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
NORMALISER_FIELDS = frozenset(field for field, _ in BERT_FIELDS.values())


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


def are_tokenizer_settings(settings: object) -> bool:
    """Return whether these are settings as `read_tokenizer_settings` returns them."""
    if not isinstance(settings, Mapping) or settings.keys() - {"truncation_side", "lowercase", "bert_normaliser"}:
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
