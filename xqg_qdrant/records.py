"""The records that travel through the system, all frozen.

Knows names and types. Knows nothing of files, models or databases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]

XQG_VECTOR = "xqg"
PASSAGE_VECTOR = "passage"
TERMS_VECTOR = "terms"


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage of a corpus, as its file gives it."""

    passage_id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


class GeneratedQuery(NamedTuple):
    """A question that a generator wrote for a passage.

    `number` counts from 0 what the generator wrote for the passage in this language; some of it may have been dropped.
    Of a query that was given it means nothing, and the language may be unknown, then it is empty.
    """

    language: str
    text: str
    number: int = 0


class QueriedPassage(NamedTuple):
    """A passage whose generated queries were made before: its file gives them, or another one."""

    passage: Passage
    queries: tuple[GeneratedQuery, ...]


class Query(NamedTuple):
    """A question of an evaluation set; `language` and `answers` are empty where the file has none."""

    query_id: str
    text: str
    language: str = ""
    answers: tuple[str, ...] = ()


class Qrel(NamedTuple):
    """A judgement: how relevant a passage is for a query (0 is not relevant)."""

    query_id: str
    passage_id: str
    relevance: int


@dataclass(frozen=True, slots=True)
class AugmentedPassage:
    """What becomes a point: a passage, its generated queries, and its vectors.

    `vectors` maps a named vector to a float32 array of shape `(dim,)`; `terms` are the ids of the terms in the passage
    and its queries, ascending, None in a collection without a sparse vector. `content_hash` covers the passage and the
    recipe: a stored point with the same hash needs no work. `recipe` is the recipe's own hash. `other_fields` is what
    other programs added to a stored point's payload.
    """

    passage: Passage
    generated_queries: tuple[GeneratedQuery, ...]
    vectors: Mapping[str, FloatArray]
    content_hash: str
    recipe: str
    other_fields: Mapping[str, Any] = field(default_factory=dict)
    terms: tuple[int, ...] | None = None


class StoredPassage(NamedTuple):
    """What a store tells of a point without its text and vectors: what made it, as hashes."""

    passage_id: str
    content_hash: str
    recipe: str


class PayloadLayout(NamedTuple):
    """The fields of a payload that another program wrote, where a passage stands; `a.b` is the field b of a.

    An empty one is not used; without `id` a passage is called what its point is.
    """

    text: str
    title: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class ScoredPassage:
    """A passage that a search found."""

    passage: Passage
    score: float
    generated_queries: tuple[GeneratedQuery, ...] = ()


class Reject(NamedTuple):
    """A row of an input file that cannot be used: where it stands, why, and what it held.

    Where no row is at fault but the vector that an encoder made of it, `source` is the passage's id and `line` is 0.
    """

    source: str
    line: int
    reason: str
    row: str
