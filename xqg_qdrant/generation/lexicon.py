"""Write pseudo-queries without a model: translate the words of a passage with a lexicon.

A lexicon is a file with lines of this form:

    LANGUAGE<TAB>English words<TAB>their translation

It can be a dictionary, or learnt from parallel texts (`training/learn_lexicon.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from xqg_qdrant.corpus.files import file_lines
from xqg_qdrant.errors import InputError
from xqg_qdrant.generation import INSTANT, Generation
from xqg_qdrant.records import GeneratedQuery, Passage
from xqg_qdrant.text import split_words

LEXICON = "lexicon"
# About as many as in a long question; encoders truncate questions at 32 tokens.
WORDS_A_QUERY = 16
LONGEST_PHRASE = 4

Words = tuple[str, ...]


class Lexicon:
    """Translations by language; a `Generator` without a model.

    A pseudo-query is a row of translated words. Query number i of a language holds the i-th sixteen of the passage's
    words that the lexicon contains, each once, in their order. Longer phrases are matched before shorter ones.
    """

    pace = INSTANT
    concurrency = 0
    reading = None
    journal = None
    writes_sentences = False
    sampling = None

    def __init__(self, path: Path) -> None:
        """Read a file of three columns, gzipped or not; the first of several translations counts.

        Raises:
            InputError: a line does not have three columns, or the file has no line.
        """
        self.path = path
        self._entries: dict[str, dict[Words, str]] = {}
        digest = hashlib.sha256()
        for number, line in enumerate(file_lines(str(path)), 1):
            digest.update(line)
            if line.strip():
                language, words, translation = _read_entry(line, f"{path}:{number}")
                self._entries.setdefault(language, {}).setdefault(words, translation)
        if not self._entries:
            raise InputError(f"the lexicon {path} is empty.", "write lines of language, words and translation into it")
        self._sha256 = digest.hexdigest()
        self.languages: tuple[str, ...] = tuple(sorted(self._entries))

    def describe(self) -> dict[str, Any]:
        """Return the settings that decide the pseudo-queries, for a fingerprint."""
        return {"kind": LEXICON, "sha256": self._sha256, "words_a_query": WORDS_A_QUERY}

    def choose_sampling(self, languages: Sequence[str], settings: Mapping[str, Any]) -> None:
        """Refuse any setting, as nothing is drawn.

        Raises:
            InputError: there is one.
        """
        if settings:
            name = next(iter(settings))
            raise InputError(f"{name} is a setting of a model, but a lexicon is used.", f"leave {name} out")

    def generate(
        self,
        passages: Sequence[Passage],
        languages: Sequence[str],
        count: int,
        seed: int = 0,
        sampling: None = None,
        identify: bool = False,
    ) -> list[Generation]:
        """Return up to `count` pseudo-queries of each passage in each language; they need no seed.

        Raises:
            InputError: the lexicon has no entry for a language.
        """
        for language in languages:
            if language not in self._entries:
                known = ", ".join(self.languages)
                raise InputError(f"{self.path} has no language {language!r}, only {known}.", "choose from these")
        return [Generation(tuple(self._translate(passage, languages, count)), count) for passage in passages]

    def _translate(self, passage: Passage, languages: Sequence[str], count: int) -> Iterator[GeneratedQuery]:
        words = tuple(split_words(f"{passage.title} {passage.text}"))
        for language in languages:
            for number, row in enumerate(islice(_cut(words, self._entries[language]), count)):
                yield GeneratedQuery(language, " ".join(row), number)


def _read_entry(line: bytes, where: str) -> tuple[str, Words, str]:
    try:
        language, english, translation = line.decode("utf-8").strip().split("\t")
    except ValueError as error:  # includes invalid UTF-8
        cure = "write each entry as language, words and translation, separated by tabs"
        raise InputError(f"{where}: not three columns of UTF-8: {line[:80]!r}.", cure) from error
    words, translation = tuple(split_words(english)), " ".join(translation.split())
    if not (language and words and translation) or len(words) > LONGEST_PHRASE:
        cure = f"write a language, 1 to {LONGEST_PHRASE} words and their translation"
        raise InputError(f"{where}: not an entry of a lexicon: {line[:80]!r}.", cure)
    return language, words, translation


def _cut(words: Words, entries: Mapping[Words, str]) -> Iterator[list[str]]:
    translations = iter(dict.fromkeys(_translate(words, entries)))
    while row := list(islice(translations, WORDS_A_QUERY)):
        yield row


def _translate(words: Words, entries: Mapping[Words, str]) -> Iterator[str]:
    place = 0
    while place < len(words):
        for length in range(LONGEST_PHRASE, 0, -1):
            if (translation := entries.get(words[place : place + length])) is not None:
                yield translation
                place += length
                break
        else:
            place += 1
