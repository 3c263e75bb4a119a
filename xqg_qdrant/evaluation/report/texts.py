"""Texts of the data → what a page shows of them: marked answers, cut to a length.

Knows characters. Knows nothing of HTML; nothing here is escaped, the template does that everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

BEFORE_ANSWER = 100


class Part(NamedTuple):
    """A piece of a text; `marked` where an answer stands."""

    text: str
    marked: bool


def marked_parts(text: str, answers: Sequence[str], longest: int) -> list[Part]:
    """Cut a text into pieces, those marked that hold an answer as the official score looks for it: letter by letter.

    Of a text that is longer than `longest` the surroundings of its first answer are kept, with … for what is left out.

    >>> marked_parts("in 1642 metres", ["1642"], 100)
    [Part(text='in ', marked=False), Part(text='1642', marked=True), Part(text=' metres', marked=False)]
    """
    wanted = sorted((answer for answer in answers if answer.strip() and answer not in ("yes", "no")), key=len)
    found = re.compile("|".join(rf"{_spaced(answer)}" for answer in reversed(wanted)) or r"(?!)")
    before = after = ""
    if len(text) > longest:
        first = found.search(text)
        start = max(0, first.start() - BEFORE_ANSWER) if first else 0
        before, after = ("…" if start else ""), ("…" if start + longest < len(text) else "")
        text = text[start : start + longest]
    parts = [Part(before, False)]
    end = 0
    for match in found.finditer(text):
        parts += [Part(text[end : match.start()], False), Part(match[0], True)]
        end = match.end()
    parts += [Part(text[end:], False), Part(after, False)]
    return [part for part in parts if part.text]


def _spaced(answer: str) -> str:
    """Return a pattern for an answer, whatever white space parts its words."""
    return r"\s+".join(map(re.escape, answer.split()))
