"""Test that a count and the words that go with it agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from xqg_qdrant.augmentation.pipeline import Totals
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.comparison import Difference
from xqg_qdrant.evaluation.sweep.bench import halve
from xqg_qdrant.evaluation.sweep.summary import judge
from xqg_qdrant.fingerprint import hash_recipe
from xqg_qdrant.inference import Reading
from xqg_qdrant.lifecycle.status import Status
from xqg_qdrant.lifecycle.sync import Comparison
from xqg_qdrant.printing import format_status, format_totals, format_unread
from xqg_qdrant.records import Query
from xqg_qdrant.text import agree, count_of

NO_GAIN = Difference(0.0, 1, 1, 0, (-1.0, 1.0), 0.9)
MESSAGES: dict[str, Callable[[int], str]] = {
    "stored": lambda count: format_totals(_totals(stored=count), 1.0),
    "rejected": lambda count: format_totals(_totals(rejected=count), 1.0),
    "bare": lambda count: format_totals(_totals(stored=3, bare=count), 1.0),
    "status": lambda count: format_status(Status("s", "c", {}, Counter({hash_recipe({}): count}))),
    "sync": lambda count: str(Comparison(rejected=count)),
    "few": lambda count: judge("MRR@10", NO_GAIN, count),
    "unread": lambda count: format_unread(Reading("encoder", "passage", 512, count, count, 9, 1)),
}


def _totals(**counts: int) -> Totals:
    totals = Totals()
    for name, count in counts.items():
        setattr(totals, name, count)
    return totals


@pytest.mark.parametrize(
    ("message", "none", "one", "two"),
    [
        ("stored", "0 passages stored", "1 passage stored", "2 passages stored"),
        ("rejected", "0 rows rejected", "1 row rejected", "2 rows rejected"),
        ("bare", "", "1 of the stored passages has no query.", "2 of the stored passages have no query."),
        ("status", ": 0 passages", ": 1 passage", ": 2 passages"),
        ("sync", "0 rejected rows", "1 rejected row,", "2 rejected rows,"),
        ("few", "0 questions are too few", "1 question is too few", "2 questions are too few"),
        ("unread", "", "1 of 1 passage.", "2 of 2 passages."),
    ],
)
def test_plurals_agree(message: str, none: str, one: str, two: str) -> None:
    assert all(text in MESSAGES[message](count) for count, text in enumerate((none, one, two)))


@pytest.mark.parametrize(
    ("count", "noun", "word"), [(0, "0 queries", "have"), (1, "1 query", "has"), (2, "2 queries", "have")]
)
def test_a_noun_and_its_verb_agree_with_a_number(count: int, noun: str, word: str) -> None:
    assert count_of(count, "query", "queries") == noun
    assert agree(count, "has", "have") == word


def test_questions_that_cannot_be_halved_are_counted() -> None:
    asked = [Query("1", "Missä?", "fi"), Query("2", "Where?", "en")]
    with pytest.raises(InputError, match=r"^only 1 question can be measured, so there are no two halves"):
        halve(asked[:1], seed=0)
    with pytest.raises(InputError, match=r"^the 2 questions that can be measured are all in different languages"):
        halve(asked, seed=0)
