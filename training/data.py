"""The training data: where each kind of pair lies in the data folder, and the guard around what is held out.

Knows file names and columns. Knows nothing of models or tokenizers.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LANGUAGES = ("ar", "bn", "fi", "ja", "ko", "ru", "te")
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


class PassageQuestion(NamedTuple):
    """An English passage, or a sentence without title, and a question that it answers."""

    title: str
    passage: str
    question: str


class QuestionedPassage(NamedTuple):
    """An English passage, and two questions about it in each language, written from the passage alone."""

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
    with gzip.open(data / name, "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield line.rstrip("\n")


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


def read_passage_questions(data: Path) -> Iterator[PassageQuestion]:
    """Yield English passages with an English question each, then single English sentences with theirs."""
    for line in open_training_file(data, "train/english_passage_question.jsonl.gz"):
        row = json.loads(line)
        yield PassageQuestion(row["title"], row["text"], row["question"])
    for line in open_training_file(data, "train/english_sentence_question.tsv.gz"):
        sentence, question = line.split("\t")
        yield PassageQuestion("", sentence.strip(), question.strip())


def read_questioned_passages(data: Path) -> Iterator[QuestionedPassage]:
    """Yield English passages with their questions in all of `LANGUAGES`."""
    for line in open_training_file(data, "train/passage_questions_llm.jsonl.gz"):
        row = json.loads(line)
        yield QuestionedPassage(row["title"], row["text"], row["questions"])
