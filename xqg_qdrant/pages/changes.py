"""Prepare questions won and lost for the report: the passages of both runs, the answers, the decisive query."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

BEFORE_ANSWER = 100


class Part(NamedTuple):
    """A piece of a text; `marked` if it is an answer."""

    text: str
    marked: bool


def marked_parts(text: str, answers: Sequence[str], longest: int) -> list[Part]:
    """Split a text into pieces, and mark the answers, matched exactly like in the official score.

    A text longer than `longest` is truncated to the surroundings of its first answer, with … for omissions.

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
    """Return a pattern for an answer with any white space between its words."""
    return r"\s+".join(map(re.escape, answer.split()))


Json = Mapping[str, Any]

SHOWN_A_LANGUAGE = 10
"""More of hundreds of questions would not be read; all are in the folder."""
SHOWN_CHARACTERS = 900
SHOWN_OF_OTHERS = 260
"""For passages that are neither relevant nor decisive: enough to see what they are about."""


class Hit(NamedTuple):
    """A passage found; `decisive` if the question was won or lost because of it."""

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
    """A question that one of the runs answers better, with the hits of both."""

    query_id: str
    language: str
    question: str
    answers: Sequence[str]
    before: float
    after: float
    ranks: Sequence[str]
    runs: Sequence[tuple[str, Sequence[Hit]]]


class Changes(NamedTuple):
    """The questions won, or those lost; `total` is their number in the folder."""

    title: str
    shown: Sequence[Change]
    total: int


def view_changes(rows: Sequence[Json]) -> list[Changes]:
    """Prepare the questions won and those lost, some of each language."""
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
    """Return the rank of the passage that decided a question, or None if it is not among the saved ones.

    A question is won by a relevant passage that rose, and lost by an irrelevant one that rose.
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
