"""Split text of any script into words and sparse-vector terms, and make texts and values safe to print.

The result is the same on every machine and uses no language's rules: in scripts without spaces, a run of letters is
one word.
"""

from __future__ import annotations

import math
import re
import reprlib
import sys
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache

# Control characters except tab and line feed, other line ends, characters that embed, override or isolate a writing
# direction, and lone surrogates, which cannot be printed. Joiners and directional marks are part of words.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u206f\ud800-\udfff]")
UNSAFE_IN_A_LINE = re.compile(f"[\t\n]|{UNSAFE.pattern}")
# Zero-width joiners change the shape of letters, not the word.
JOINERS = str.maketrans("", "", "\u200c\u200d\u00ad")

# Thai, Lao, Burmese, Khmer, kana, hanzi and Hangul: words are written without spaces, or with their particles.
TOGETHER = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\U00020000-\U0003ffff]+)"
)
STEM_LETTERS = 5


def split_words(text: str) -> list[str]:
    """Return the words of a text in order: case-folded runs of letters, digits and marks.

    >>> split_words("Ｔhe Nile's SOURCE, 1858")
    ['the', 'nile', 's', 'source', '1858']
    """
    return _word().findall(unicodedata.normalize("NFKC", text).casefold().translate(JOINERS))


def split_terms(text: str) -> Iterator[str]:
    """Yield the terms of a text: the first five letters of each word, or letter pairs.

    Pairs of neighbouring letters replace words in scripts without spaces. Five letters serve as a stemmer for any
    language: Can et al., "Information Retrieval on Turkish Texts", 2008.

    >>> list(split_terms("Reading ナイル2"))
    ['readi', 'ナイ', 'イル', '2']
    """
    for word in split_words(text):
        for index, run in enumerate(TOGETHER.split(word)):
            if index % 2:
                yield from (run[start : start + 2] for start in range(max(1, len(run) - 1)))
            elif run:
                yield run[:STEM_LETTERS]


def find_term_ids(texts: Iterable[str]) -> tuple[int, ...]:
    """Return the ids of all terms of the texts, ascending and without repeats.

    An id is the CRC-32 of the term's UTF-8, which any client can compute.
    """
    return tuple(sorted({zlib.crc32(term.encode()) for text in texts for term in split_terms(text)}))


@cache
def _word() -> re.Pattern[str]:
    # Python's \w excludes marks, which are the vowels of many scripts.
    marks = (char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char)[0] == "M")
    return re.compile(rf"[^\W_](?:[^\W_]|[{''.join(marks)}])*")


def visible(text: str) -> str:
    r"""Return a text with each unsafe character escaped.

    >>> visible("a\tb\x1b[2J")
    'a\tb\\u001b[2J'
    """
    return UNSAFE.sub(_escape, text)


def one_line(text: str) -> str:
    r"""Escape tabs and line feeds too, so that the text cannot pass for two fields.

    >>> one_line("a\nb")
    'a\\u000ab'
    """
    return UNSAFE_IN_A_LINE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:
            return f"<an integer of {x.bit_length()} bits>"


def show(value: object, longest: int = 80) -> str:
    """Return a value as Python writes it, cut to `longest` characters, however long or deep it is.

    >>> show("aaaaaaaa", 5)
    "'aaaa…"
    """
    try:
        text = repr(value)
    except Exception:
        text = _Short().repr(value)
    return text if len(text) <= longest else f"{text[:longest]}…"


def is_blank(text: str) -> bool:
    """Return whether a text is empty or only white space, control and format characters."""
    if text[:1].isalnum():
        return False
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in text)


def count_of(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, such as `1 row` or `2 rows`; the plural is the noun with an s by default."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def agree(number: int, one: str, many: str) -> str:
    """Return the form of a word that goes with a number, such as `has` or `have`."""
    return one if number == 1 else many


def read_retry_after(value: str) -> float:
    """Return the seconds of a Retry-After header, a number or a date; 0 if it states none.

    >>> read_retry_after("1.5"), read_retry_after("soon"), read_retry_after("-3")
    (1.5, 0.0, 0.0)
    """
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError, OverflowError):  # TypeError for a date without a time zone
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
