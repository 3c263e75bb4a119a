"""Languages by code: their English name, for prompts, and the scripts they are written in, for checking.

A language that is known is never detected: the check only asks whether a text is written in the right script.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from xqg_qdrant.errors import InputError


class Language(NamedTuple):
    """A language's English name and the scripts of its letters, as Unicode character names begin."""

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
    """Read a comma-separated list of language codes, in the order given.

    Raises:
        InputError: a code is not among those known, or is given twice.
    """
    languages = tuple(code.strip() for code in codes.split(",") if code.strip())
    for code in languages:
        if code not in known:
            raise InputError(f"unknown language {code!r}: this generator writes {', '.join(known)}")
    if not languages or len(set(languages)) < len(languages):
        raise InputError(f"languages {codes!r}: name each language once, such as {','.join(known[:3])}")
    return languages


def is_written_in(text: str, code: str) -> bool:
    """Tell whether at least half of the letters are of the language's script, and kana occur where it is Japanese."""
    scripts = [_script(character) for character in text if character.isalpha()]
    wanted = LANGUAGES[code].scripts
    if 2 * sum(script in wanted for script in scripts) < max(1, len(scripts)):
        return False
    return code != "ja" or any(script in KANA for script in scripts)


def can_write(character: str, code: str) -> bool:
    """Tell whether a character is no letter, or one of a script of the language that no other language shares.

    Of Latin letters each language uses its own, which a script does not tell.
    """
    if not (character.isalpha() or unicodedata.combining(character) or unicodedata.category(character)[0] == "M"):
        return True
    return _script(character) in LANGUAGES[code].scripts - {"LATIN"}


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    return unicodedata.name(character, "").split(" ")[0]
