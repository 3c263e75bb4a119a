"""Let a generator ask about English passages, and keep the questions that the encoder finds nearest their passage.

Of `--samples` questions in each language, those count that are in its script, repeat no word and lie nearer their
passage than any other of `BATCH`; the nearest `--kept` of them are kept. To train on them: `train_generator.py
--distilled`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from data import LANGUAGES, EnglishPassage, in_script, read_english_passages

from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import Passage

BATCH = 128
LONGEST = 1800
"""Characters of a passage that are read."""
TEMPERATURE = 0.7
"""Above the shipped generator's: the best of varied questions are wanted."""


def is_usable(language: str, text: str) -> bool:
    """Tell whether a question is in its language's script and repeats nothing."""
    words = text.rstrip("?؟").split()
    foreign = language != "fi" and re.search("[A-Za-z]{4}", text)
    repeated = any(one == other for one, other in pairwise(words))
    joined = text.replace(" ", "")
    stuttered = re.search(r"(.{3,8}?)\1", joined) or re.search(r"(.{2,})\1\1", joined)
    short = len(text) < 8 or (language != "ja" and len(words) < 2)
    return in_script(language, text, 0.85) and not (foreign or repeated or stuttered or short)


def choose(
    passages: Sequence[EnglishPassage], asked: Sequence[Sequence[tuple[str, str]]], encoder: Encoder, kept: int
) -> list[dict[str, list[str]]]:
    """Return for each passage the kept questions by language; `asked` holds languages and texts of its questions."""
    vectors = encoder.encode_passages([f"{passage.title} {passage.text}" for passage in passages])
    rows = [
        (place, language, text)
        for place, questions in enumerate(asked)
        for language, text in dict.fromkeys(questions)
        if is_usable(language, text)
    ]
    scores = encoder.encode_queries([text for _, _, text in rows]) @ vectors.T
    found: list[dict[str, list[tuple[float, str]]]] = [defaultdict(list) for _ in passages]
    for (place, language, text), row in zip(rows, scores, strict=True):
        if np.argmax(row) == place:
            found[place][language].append((float(row[place]), text))
    return [
        {language: [text for _, text in sorted(near[language], reverse=True)[:kept]] for language in sorted(near)}
        for near in found
    ]


def main() -> None:
    """Write a JSON line for each passage that has a question left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the training data")
    parser.add_argument("--generator", type=Path, required=True, help="exported generator that asks")
    parser.add_argument("--out", type=Path, required=True, help="JSONL file to write")
    parser.add_argument("--samples", type=int, default=16, help="questions in each language to choose from")
    parser.add_argument("--kept", type=int, default=2, help="questions in each language to keep")
    parser.add_argument("--limit", type=int, help="read only so many passages")
    given = parser.parse_args()
    generator, encoder = QueryGenerator(given.generator), Encoder()
    sampling = generator.sampling._replace(temperature=TEMPERATURE)
    passages = read_english_passages(given.data)[: given.limit]
    with given.out.open("w", encoding="utf-8") as file:
        for start in range(0, len(passages), BATCH):
            batch = passages[start : start + BATCH]
            rows = [Passage(str(place), passage.text[:LONGEST], passage.title) for place, passage in enumerate(batch)]
            written = generator.generate(rows, LANGUAGES, given.samples, start, sampling)
            asked = [[(query.language, query.text) for query in found.queries] for found in written]
            for row, questions in zip(rows, choose(batch, asked, encoder, given.kept), strict=True):
                if questions:
                    kept = {"title": row.title, "text": row.text, "questions": questions}
                    file.write(json.dumps(kept, ensure_ascii=False) + "\n")
            file.flush()
            sys.stderr.write(f"{start + len(batch)} of {len(passages)} passages\n")


if __name__ == "__main__":
    main()
