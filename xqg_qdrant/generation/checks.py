"""Check generated queries; every generator passes what it wrote through here.

A query is dropped if it is empty, holds leftovers of a tokenizer, repeats another of its passage in the same language,
is not in its language's script, or, if asked for, is surely in another language.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from xqg_qdrant.languages import is_surely_not, is_written_in
from xqg_qdrant.records import GeneratedQuery
from xqg_qdrant.text import is_blank

EMPTY, MALFORMED, DUPLICATE, WRONG_SCRIPT, WRONG_LANGUAGE = REASONS = (
    "empty",
    "malformed",
    "duplicate",
    "wrong_script",
    "wrong_language",
)

# What a tokenizer leaves where it cannot decode: special tokens, bytes, half characters, markers of word starts.
LEFTOVERS = re.compile(
    r"<extra_id_\d+>|<0x[0-9A-Fa-f]{2}>|</?s>|<(?:pad|unk|mask|bos|eos)>|\[(?:PAD|UNK|CLS|SEP|MASK)\]"
    "|<\\|[^|<>]{1,40}\\|>|[\ufffd\u2581\u2047\ud800-\udfff]"
)

# Only language models write such: statements, prose around the questions, pieces of the prompt.
NO_QUESTION = "no_question"


class Dropped(NamedTuple):
    """A language and the reason, `NO_QUESTION` or one of `REASONS`, for which a query of it was dropped."""

    language: str
    reason: str


class Checked(NamedTuple):
    """The kept queries, in order, and how many were dropped of each language for each reason."""

    queries: tuple[GeneratedQuery, ...]
    dropped: Mapping[Dropped, int]


def check_queries(candidates: Iterable[GeneratedQuery], identify: bool = False) -> Checked:
    """Keep the usable queries of one passage.

    Args:
        candidates: what a generator wrote for the passage, in any languages.
        identify: whether to drop queries that are surely in another language.

    Raises:
        InputError: `identify` is set, and the package that identifies languages is not installed.
    """
    kept: dict[tuple[str, str], GeneratedQuery] = {}
    dropped = Counter[Dropped]()
    for query in candidates:
        key = (query.language, " ".join(query.text.casefold().split()))
        if reason := _find_fault(query, identify) or (DUPLICATE if key in kept else ""):
            dropped[Dropped(query.language, reason)] += 1
        else:
            kept[key] = query
    return Checked(tuple(kept.values()), dropped)


def _find_fault(query: GeneratedQuery, identify: bool) -> str:
    if is_blank(query.text):
        return EMPTY
    if LEFTOVERS.search(query.text):
        return MALFORMED
    if not is_written_in(query.text, query.language):
        return WRONG_SCRIPT
    return WRONG_LANGUAGE if identify and is_surely_not(query.text, query.language) else ""
