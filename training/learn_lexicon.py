"""A lexicon for `xqg ingest --generator lexicon.tsv`, learnt from the parallel texts: IBM Model 1 in both directions.

Brown, Della Pietra, Della Pietra, Mercer, "The Mathematics of Statistical Machine Translation", 1993. A word's
translation is the one with the highest product of the two probabilities, which function words do not win.
Knows words and counts. Knows nothing of models.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from data import LANGUAGES, read_parallel

from xqg_qdrant.text import split_words

Counts = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

ROUNDS = 5
# Of English words, the most frequent ones ask or join rather than say what a passage is about.
FUNCTION_WORDS = 100
MOST_WORDS = 40
JAPANESE = re.compile(r"[\u3400-\u9fff々]+|[ァ-ヺー]+")
CHINESE = re.compile(r"(?=([\u3400-\u9fff]{2}))")


class Translation(NamedTuple):
    """An English word, its translation, and the product of their probabilities in both directions."""

    english: str
    other: str
    score: float


def split_other(text: str, language: str) -> list[str]:
    """Return the words; where they are written together, the runs of kanji or katakana, or all pairs of hanzi."""
    if language == "ja":
        return JAPANESE.findall(text)
    if language == "zh":
        return CHINESE.findall(text)
    return split_words(text)


def learn(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> list[Translation]:
    """Return the translation of each English word that occurs in at least two of these pairs of texts, as words."""
    english, other = _number(left for left, _ in pairs), _number(right for _, right in pairs)
    cells, texts = [], []
    for number, (left, right) in enumerate(pairs):
        places = [(english[e], other[o]) for e in dict.fromkeys(left) for o in dict.fromkeys(right)]
        cells += places
        texts += [number] * len(places)
    left_of, right_of = np.array(cells, dtype=np.int64).reshape(-1, 2).T
    text_of = np.array(texts, dtype=np.int64)
    kinds, cell_of = np.unique(left_of * len(other) + right_of, return_inverse=True)
    left_kinds, right_kinds = np.divmod(kinds, len(other))
    forth = _estimate(cell_of, left_kinds, text_of * len(other) + right_of)
    back = _estimate(cell_of, right_kinds, text_of * len(english) + left_of)
    score = forth * back
    often = np.bincount(left_kinds, np.bincount(cell_of) > 1) > 0
    left_names, right_names = list(english), list(other)
    best: dict[int, Translation] = {}
    for place in np.argsort(-score, kind="stable").tolist():
        left_kind = int(left_kinds[place])
        if left_kind not in best and often[left_kind]:
            best[left_kind] = Translation(left_names[left_kind], right_names[right_kinds[place]], float(score[place]))
    return list(best.values())


def _number(texts: Iterator[Sequence[str]]) -> dict[str, int]:
    return {word: place for place, word in enumerate(dict.fromkeys(word for text in texts for word in text))}


def _estimate(cell_of: Places, source_kinds: Places, target_of: Places) -> Counts:
    """Return the probability of each kind of cell's target given its source, by expectation and maximisation.

    Args:
        cell_of: the kind of each cell, a pair of words in one pair of texts; shape `(cells,)`.
        source_kinds: the source word of each kind, shape `(kinds,)`.
        target_of: a number of each cell's target word in its text, shape `(cells,)`.
    """
    _, target_of = np.unique(target_of, return_inverse=True)
    probability = np.ones(len(source_kinds))
    for _ in range(ROUNDS):
        weight = probability[cell_of]
        weight /= np.bincount(target_of, weight)[target_of]
        count = np.bincount(cell_of, weight)
        probability = count / np.bincount(source_kinds, count)[source_kinds]
    return probability


def read_words(data: Path, language: str, most: int | None) -> list[tuple[list[str], list[str]]]:
    """Return the first parallel texts of a language as words, without the most frequent ones in English."""
    pairs = [
        (split_words(pair.english)[:MOST_WORDS], split_other(pair.other, language)[:MOST_WORDS])
        for pair in islice(read_parallel(data, (language,)), most)
    ]
    frequent = {
        word for word, _ in Counter(word for left, _ in pairs for word in set(left)).most_common(FUNCTION_WORDS)
    }
    return [([word for word in left if word not in frequent], right) for left, right in pairs]


def main() -> None:
    """Write the lexicon of each language into one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--languages", default=",".join(LANGUAGES))
    parser.add_argument("--least", type=float, default=0.01, help="Least product of the two probabilities.")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    with arguments.out.open("w", encoding="utf-8") as lines:
        for language in arguments.languages.split(","):
            pairs = read_words(arguments.data, language, 500 if arguments.smoke else None)
            found = [entry for entry in learn(pairs) if entry.score >= arguments.least]
            lines.writelines(f"{language}\t{entry.english}\t{entry.other}\n" for entry in found)
            print(f"{language}: {len(found)} words from {len(pairs)} pairs")


if __name__ == "__main__":
    main()
