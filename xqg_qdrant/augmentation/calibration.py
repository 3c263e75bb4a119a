"""Calibrate vectors with a bank of questions about anything.

Adding `gamma * mean`, the mean vector of the bank, before the last scaling shortens what makes passages hubs, which
answer every question a little (Radovanović, Nanopoulos and Ivanović 2010; query banks: Bogolin et al. 2022, arXiv
2112.12777). On the question's side, half the offset between the bank's means in the question's and in the passages'
language is subtracted (centring by language: Libovický et al. 2020).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from xqg_qdrant.corpus.fields import LANGUAGE_FIELDS
from xqg_qdrant.corpus.formats import json_rows
from xqg_qdrant.errors import InputError
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.languages import can_identify, identify, standard_code
from xqg_qdrant.machine import find_cache
from xqg_qdrant.records import FloatArray
from xqg_qdrant.text import is_blank

SHIPPED_BANK = Path(__file__).with_name("question_bank.jsonl.gz")
LEAST_QUESTIONS = 10
DEFAULT_GAMMA = 0.5
NARROW_LENGTH = 0.65
"""Encoders with a longer bank mean gain: 0.85 (E5) gained 2 to 7 points of MRR@10, 0.48 and 0.31 nothing."""
OFFSET = 0.5
MOST_UNKNOWN = 0.1
"""A language with a larger share of unknown pieces takes no part."""


class QuestionBank(NamedTuple):
    """Questions by language, and the SHA-256 of them all."""

    questions: Mapping[str, tuple[str, ...]]
    sha256: str


class BankMeans(NamedTuple):
    """The mean vectors of an encoded bank, float32 of shape `(dim,)`, unscaled: of all, and by language."""

    overall: FloatArray
    languages: Mapping[str, FloatArray]
    sha256: str

    def of(self, language: str, otherwise: FloatArray) -> FloatArray:
        """Return the mean of a language, named by any of its codes, or another vector if the bank lacks it."""
        return self._by_code().get(standard_code(language), otherwise)

    def has(self, language: str) -> bool:
        """Return whether the bank has a language."""
        return standard_code(language) in self._by_code()

    def _by_code(self) -> dict[str, FloatArray]:
        return {standard_code(name): mean for name, mean in self.languages.items()}

    @property
    def narrow(self) -> bool:
        """Return whether the encoder's vectors lie in a narrow cone, so that calibration is known to help."""
        return float(np.linalg.norm(self.overall)) >= NARROW_LENGTH


class AskedLanguage(NamedTuple):
    """The language of a question, empty if unknown; whether it was identified, and whether the bank has it."""

    code: str
    identified: bool
    in_bank: bool


def read_bank(path: Path | None = None) -> QuestionBank:
    """Read a bank of rows `{"lang", "question"}` in JSONL, or the one that ships.

    Raises:
        InputError: a row cannot be used, or there are fewer than `LEAST_QUESTIONS`.
    """
    path = path or SHIPPED_BANK
    questions: dict[str, list[str]] = {}
    for row in json_rows(str(path)):
        language = next((row.fields[name] for name in LANGUAGE_FIELDS if name in row.fields), None)
        text = next((row.fields[name] for name in ("question", "query", "text") if name in row.fields), None)
        problem = row.problem
        if not problem and not (isinstance(language, str) and language.strip()):
            problem = "no language"
        if not problem and not (isinstance(text, str) and not is_blank(text)):
            problem = "no question"
        if problem:
            raise InputError(
                f"{path}, line {row.line}: {problem}.", 'write each row as {"lang": "fi", "question": "…"}'
            )
        questions.setdefault(str(language).strip(), []).append(str(text))
    count = sum(map(len, questions.values()))
    if count < LEAST_QUESTIONS:
        raise InputError(
            f"{path} holds {count} questions, too few for a mean.",
            f"give {LEAST_QUESTIONS} or more, best 50 a language",
        )
    ordered = {language: tuple(questions[language]) for language in sorted(questions)}
    content = json.dumps(ordered, ensure_ascii=False, sort_keys=True)
    return QuestionBank(ordered, hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest())


def encode_bank(bank: QuestionBank, encoder: TextEncoder) -> BankMeans:
    """Return the means of a bank; they are kept beside the model or in the user's cache, and computed once.

    Raises:
        InputError: the encoder can read no language of the bank.
    """
    name = f"question-bank-{encoder.sha256()[:16]}-{bank.sha256[:16]}.npz"
    cached = find_cache() / name
    for path in (encoder.folder.path / name, cached):
        with suppress(OSError, ValueError, KeyError, EOFError, BadZipFile):
            return _load_means(path, bank, encoder.dim)
    languages = {
        language: encoder.encode_queries(texts).astype(np.float64).mean(axis=0).astype(np.float32)
        for language, texts in choose_readable(bank, encoder).items()
    }
    sizes = [len(bank.questions[language]) for language in languages]
    overall = np.average(np.stack(list(languages.values())).astype(np.float64), axis=0, weights=sizes)
    means = BankMeans(overall.astype(np.float32), languages, bank.sha256)
    with suppress(OSError):
        save_means(cached, means)
    return means


def choose_readable(bank: QuestionBank, encoder: TextEncoder) -> dict[str, tuple[str, ...]]:
    """Return the questions of a bank by language, without languages that the encoder cannot read.

    Those are languages in which more than `MOST_UNKNOWN` of the pieces are unknown to it.

    Raises:
        InputError: the encoder can read no language of the bank.
    """
    readable = {
        language: texts for language, texts in bank.questions.items() if encoder.unknown_share(texts) <= MOST_UNKNOWN
    }
    if not readable:
        raise InputError(
            "the encoder can read no language of the question bank.", "use --no-calibrate, or another bank"
        )
    return readable


def save_means(path: Path, means: BankMeans) -> None:
    """Write means to a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, overall=means.overall, **_by_language(means))
    part.replace(path)


def _load_means(path: Path, bank: QuestionBank, dim: int) -> BankMeans:
    with np.load(path, allow_pickle=False) as stored:
        languages = {name.removeprefix("lang "): stored[name] for name in stored.files if name.startswith("lang ")}
        means = BankMeans(stored["overall"], languages, bank.sha256)
    vectors = np.stack([means.overall, *languages.values()])
    if vectors.shape[1:] != (dim,) or not np.isfinite(vectors).all():
        raise ValueError(f"{path} holds no means of {dim} numbers")
    return means


def _by_language(means: BankMeans) -> dict[str, FloatArray]:
    return {f"lang {language}": vector for language, vector in means.languages.items()}


def pack_mean(mean: FloatArray) -> str:
    """Return a vector as text for a fingerprint: base64 of little-endian float32."""
    return base64.b64encode(mean.astype("<f4").tobytes()).decode("ascii")


@cache
def unpack_mean(packed: str) -> FloatArray:
    """Return the vector of `pack_mean` as float64."""
    return np.frombuffer(base64.b64decode(packed), "<f4").astype(np.float64)


def find_languages(questions: Sequence[str], languages: Sequence[str], means: BankMeans) -> list[AskedLanguage]:
    """Return the language of each question: the given one or, where that is empty, the one that its text is in.

    Without the package that identifies languages, what is not given stays unknown.
    """
    unnamed = [question for question, language in zip(questions, languages, strict=True) if not language]
    identified = iter(identify(unnamed, means.languages) if unnamed and can_identify() else [None] * len(unnamed))
    found = [(language, False) if language else (next(identified) or "", True) for language in languages]
    return [AskedLanguage(code, bool(code) and was_identified, means.has(code)) for code, was_identified in found]


def subtract_offsets(
    vectors: FloatArray, languages: Sequence[str], means: BankMeans, passages: str = "en", calibrated: bool = True
) -> FloatArray:
    """Subtract from each question the offset of its language.

    For calibrated passages that is half of `mean(language) - mean(passages)`. A question in the passages' own language
    stays as it is, and so does one in a language that the bank lacks. For plain passages it is half of the language's
    mean, or of the overall mean if the bank lacks the language.

    Args:
        vectors: of the questions, shape `(n, dim)`.
        languages: of the same questions; empty where unknown.
        means: of a bank, by the same encoder.
        passages: the language of the passages.
        calibrated: whether the passages' vectors are calibrated.

    Returns:
        float32 array of shape `(n, dim)`, not scaled.
    """
    own = means.of(passages, means.overall)
    offsets = [
        means.of(language, own) - own if calibrated else means.of(language, means.overall) for language in languages
    ]
    shifted: FloatArray = (vectors - OFFSET * np.stack(offsets)).astype(np.float32)
    return shifted
