"""Look up languages by code: their English name, for prompts, and their scripts, for checks.

The language of a text is never detected; the checks only ask whether a text is in the right script.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from xqg_qdrant.errors import InputError


class Language(NamedTuple):
    """A language's English name and its scripts, each the first word of its letters' Unicode names."""

    name: str
    scripts: frozenset[str]


def _language(name: str, *scripts: str) -> Language:
    return Language(name, frozenset(scripts))


LANGUAGES = {
    "ar": _language("Arabic", "ARABIC"),
    "bn": _language("Bengali", "BENGALI"),
    "de": _language("German", "LATIN"),
    "el": _language("Greek", "GREEK"),
    "en": _language("English", "LATIN"),
    "es": _language("Spanish", "LATIN"),
    "fa": _language("Persian", "ARABIC"),
    "fi": _language("Finnish", "LATIN"),
    "fr": _language("French", "LATIN"),
    "he": _language("Hebrew", "HEBREW"),
    "hi": _language("Hindi", "DEVANAGARI"),
    "id": _language("Indonesian", "LATIN"),
    "it": _language("Italian", "LATIN"),
    "ja": _language("Japanese", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK"),
    "ko": _language("Korean", "HANGUL"),
    "nl": _language("Dutch", "LATIN"),
    "pl": _language("Polish", "LATIN"),
    "pt": _language("Portuguese", "LATIN"),
    "ru": _language("Russian", "CYRILLIC"),
    "sv": _language("Swedish", "LATIN"),
    "sw": _language("Swahili", "LATIN"),
    "te": _language("Telugu", "TELUGU"),
    "th": _language("Thai", "THAI"),
    "tr": _language("Turkish", "LATIN"),
    "uk": _language("Ukrainian", "CYRILLIC"),
    "vi": _language("Vietnamese", "LATIN"),
    "zh": _language("Chinese", "CJK"),
}

KANA = frozenset({"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"})


def parse_languages(codes: str, known: Sequence[str]) -> tuple[str, ...]:
    """Parse a comma-separated list of language codes, keeping their order.

    Raises:
        InputError: a code is not in `known` or occurs twice, or the list is empty.
    """
    languages = tuple(code.strip() for code in codes.split(",") if code.strip())
    for code in languages:
        if code not in known:
            raise InputError(f"unknown language {code!r}.", f"choose from {', '.join(known)}")
    if not languages or len(set(languages)) < len(languages):
        problem = "name a language twice" if languages else "name no language"
        raise InputError(f"the languages {codes!r} {problem}.", f"name each once, such as {','.join(known[:3])}")
    return languages


def is_written_in(text: str, code: str) -> bool:
    """Return whether at least half of the letters are in the language's script.

    Japanese must also contain kana.
    """
    scripts = [_script(character) for character in text if character.isalpha()]
    wanted = LANGUAGES[code].scripts
    if 2 * sum(script in wanted for script in scripts) < max(1, len(scripts)):
        return False
    return code != "ja" or any(script in KANA for script in scripts)


def can_write(character: str, code: str) -> bool:
    """Return whether a text in this language may contain the character.

    True for characters other than letters and marks, and for those of the language's scripts. Latin letters are
    always False: each language uses its own subset, which the script does not show.
    """
    if not (character.isalpha() or unicodedata.combining(character) or unicodedata.category(character)[0] == "M"):
        return True
    return _script(character) in LANGUAGES[code].scripts - {"LATIN"}


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    return unicodedata.name(character, "").split(" ")[0]
