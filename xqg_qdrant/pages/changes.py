"""Questions won and lost → what the page shows of them: both runs' passages, the answers and the query that decided.

Knows the rows of `changes.jsonl`. Knows nothing of HTML.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


Json = Mapping[str, Any]

SHOWN_A_LANGUAGE = 10
"""Of hundreds of questions that changed, nobody reads more; all are in the folder."""
SHOWN_CHARACTERS = 900
SHOWN_OF_OTHERS = 260
"""Of passages that are neither right nor moved anything, enough to know what they are about."""


class Hit(NamedTuple):
    """A passage found; `decisive` where the question was won or lost by it."""

    rank: int
    score: float
    title: str
    passage_id: str
    parts: Sequence[Part]
    relevant: bool
    language: str
    query: str
    decisive: bool


class Change(NamedTuple):
    """A question that one of the runs answers better, and what both found."""

    query_id: str
    language: str
    question: str
    answers: Sequence[str]
    before: float
    after: float
    ranks: Sequence[str]
    runs: Sequence[tuple[str, Sequence[Hit]]]


class Changes(NamedTuple):
    """The questions won, or those lost; `total` of them are in the folder."""

    title: str
    shown: Sequence[Change]
    total: int


def view_changes(rows: Sequence[Json]) -> list[Changes]:
    """Return the questions won and those lost, some of each language."""
    won = [row for row in rows if row["after"] > row["before"]]
    lost = [row for row in rows if row["after"] < row["before"]]
    return [_some_of("won", won), _some_of("lost", lost)]


def _some_of(title: str, rows: Sequence[Json]) -> Changes:
    shown: list[Change] = []
    seen: Counter[str] = Counter()
    for row in sorted(rows, key=lambda row: (row["lang"], -abs(row["after"] - row["before"]))):
        seen[row["lang"]] += 1
        if seen[row["lang"]] <= SHOWN_A_LANGUAGE:
            shown.append(_view_change(row))
    return Changes(title, shown, len(rows))


def _view_change(row: Json) -> Change:
    answers = [answer for answer in row["answers"] if answer.strip()]
    (_, before), *_, (last, after) = row["hits"].items()
    risen = _risen(before, after, won=row["after"] > row["before"])
    ranks = []
    runs = []
    for run, hits in row["hits"].items():
        right = next((hit["rank"] for hit in hits if hit["relevant"]), None)
        ranks.append(f"{run}: {'not found' if right is None else f'rank {right}'}")
        runs.append((run, [_view_hit(hit, answers, run == last and hit["rank"] == risen) for hit in hits]))
    return Change(row["id"], row["lang"], row["text"], answers, row["before"], row["after"], ranks, runs)


def _risen(before: Sequence[Json], after: Sequence[Json], won: bool) -> int | None:
    """Return the rank of the passage by which a question was won or lost, None where it is not among those saved.

    Won is a question by a relevant passage that rose, lost by another one that did.
    """
    ranks = {hit["passage_id"]: hit["rank"] for hit in before}
    for hit in after:
        if hit["relevant"] == won and hit["rank"] < ranks.get(hit["passage_id"], math.inf):
            return int(hit["rank"])
    return None


def _view_hit(hit: Json, answers: Sequence[str], decisive: bool) -> Hit:
    query = hit["best_query"] or {"language": "", "text": ""}
    longest = SHOWN_CHARACTERS if hit["relevant"] or decisive else SHOWN_OF_OTHERS
    return Hit(
        hit["rank"],
        hit["score"],
        hit["title"],
        hit["passage_id"],
        marked_parts(hit["text"], answers, longest),
        hit["relevant"],
        query["language"],
        query["text"],
        decisive and bool(query["text"]),
    )
