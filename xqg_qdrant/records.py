"""Define the immutable records that all parts of the package exchange."""

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
    """A passage of a corpus, as read from its file."""

    passage_id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


class GeneratedQuery(NamedTuple):
    """A question written for a passage.

    `number` counts from 0 the questions that the generator wrote for the passage in this language; some may have been
    dropped. For a given query, `number` has no meaning and `language` is empty if unknown.
    """

    language: str
    text: str
    number: int = 0


class QueriedPassage(NamedTuple):
    """A passage with what is already there: given queries, and in another program's collection its vector.

    Attributes:
        vector: The plain vector, float32 of shape `(dim,)`; None if the passage is still to be encoded.
        own_id: The id by which a file of queries names the passage, if it is not the passage's id.
        awaited: Whether its queries are still to come; until then a stored passage keeps those that it has.
    """

    passage: Passage
    queries: tuple[GeneratedQuery, ...] = ()
    vector: FloatArray | None = None
    own_id: str = ""
    awaited: bool = False


class Query(NamedTuple):
    """A question of an evaluation set; `language` and `answers` are empty if the file has none."""

    query_id: str
    text: str
    language: str = ""
    answers: tuple[str, ...] = ()


class Qrel(NamedTuple):
    """A judgement: how relevant a passage is to a query; 0 is not relevant."""

    query_id: str
    passage_id: str
    relevance: int


@dataclass(frozen=True, slots=True)
class AugmentedPassage:
    """A point before it is stored: a passage, its generated queries, and its vectors.

    Attributes:
        vectors: Float32 arrays of shape `(dim,)` by vector name.
        content_hash: Hash of the passage and the recipe; a stored point with the same hash is up to date.
        recipe: Hash of the recipe alone.
        other_fields: Fields that other programs added to a stored point's payload.
        terms: Ids of the terms in the passage and its queries, ascending; None without a sparse vector.
        edited: Whether another program changed the stored payload.
    """

    passage: Passage
    generated_queries: tuple[GeneratedQuery, ...]
    vectors: Mapping[str, FloatArray]
    content_hash: str
    recipe: str
    other_fields: Mapping[str, Any] = field(default_factory=dict)
    terms: tuple[int, ...] | None = None
    edited: bool = False


class StoredPassage(NamedTuple):
    """A stored point without text and vectors: its id, and the hashes of its content and recipe."""

    passage_id: str
    content_hash: str
    recipe: str


class PayloadLayout(NamedTuple):
    """The fields that hold a passage in another program's payload; `a.b` is field b of a.

    An empty name means no field. Without `id`, the point's id is the passage's id.
    """

    text: str
    title: str = ""
    id: str = ""


class Space(NamedTuple):
    """A vector of another program's points in whose space they are augmented; the unnamed one has the name "".

    If it is `replaced`, the augmented vector has its name, and the plain one is kept as `passage`. Otherwise the
    augmented vector is added as `xqg`.
    """

    vector: str
    replaced: bool = False

    @property
    def added(self) -> str:
        """Return the name of the vector that is added."""
        return PASSAGE_VECTOR if self.replaced else XQG_VECTOR


@dataclass(frozen=True, slots=True)
class ScoredPassage:
    """A passage found by a search."""

    passage: Passage
    score: float
    generated_queries: tuple[GeneratedQuery, ...] = ()


class Reject(NamedTuple):
    """A rejected row of an input file: its place, the reason, and its content.

    If the row is fine but the encoder's vector is not, `source` is the passage's id and `line` is 0.
    """

    source: str
    line: int
    reason: str
    row: str
