"""Writes queries with a language model until it is done or killed: URL, journal, number of passages."""

from __future__ import annotations

import sys
from pathlib import Path

from xqg_qdrant.generation.llm import ChatSampling, LanguageModelGenerator
from xqg_qdrant.records import Passage

LANGUAGES = ("fi",)


def passages(count: int) -> list[Passage]:
    return [Passage(str(number), f"Passage number {number}.") for number in range(count)]


def main(url: str, journal: str, count: str) -> None:
    generator = LanguageModelGenerator(url, "m", concurrency=4, journal=Path(journal))
    generator.generate(passages(int(count)), LANGUAGES, 1, 0, ChatSampling())
    generator.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
