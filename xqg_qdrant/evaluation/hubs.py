"""Measure hubness: how the ten best passages of many questions spread over a collection.

A hub is among the ten best of very many questions, an anti-hub of none. `N10` is how many questions find a passage
among their ten best; the skewness of its distribution measures hubness (Radovanović, Nanopoulos and Ivanović 2010,
"Hubs in Space").
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from xqg_qdrant.augmentation.calibration import (
    DEFAULT_GAMMA,
    QuestionBank,
    choose_readable,
    encode_bank,
    pack_mean,
    read_bank,
)
from xqg_qdrant.augmentation.fusion import Fusion, fuse
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.results import new_results
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.records import PASSAGE_VECTOR, XQG_VECTOR, FloatArray, Passage, Query
from xqg_qdrant.stores.protocol import Store
from xqg_qdrant.streams import batched
from xqg_qdrant.text import count_of

VECTORS = (PASSAGE_VECTOR, XQG_VECTOR)
PLAIN, CALIBRATED = "plain", "calibrated"
NEIGHBOURS = 10
HUBS_SHOWN = 10
QUESTIONS_AT_ONCE = 64
SCORES_AT_ONCE = 1 << 22
HUBS_FILE = "hubs.json"

K = TypeVar("K", str, int)


class Hubness(NamedTuple):
    """The distribution of N10 over all passages, by one vector.

    Attributes:
        never: How many passages are among the ten best of no question.
        most: The greatest N10.
        skewness: Of N10; 0 is an even spread.
        histogram: How many passages have N10 of 0, 1, 2 to 3, 4 to 7 and so on.
    """

    never: int
    most: int
    skewness: float
    histogram: tuple[int, ...]


class Hub(NamedTuple):
    """A passage, and how many questions find it among their ten best, by vector."""

    passage: Passage
    found: Mapping[str, int]


class Hubs(NamedTuple):
    """The hubness of a collection, and the passages found most often, most first; both by vector."""

    passages: int
    questions: int
    hubness: Mapping[str, Hubness]
    worst: Mapping[str, Sequence[Hub]]

    def to_json(self) -> dict[str, Any]:
        """Return all figures as JSON values; a hub has its id, its title, and N10 by vector."""
        return {
            "passages": self.passages,
            "questions": self.questions,
            "neighbours": NEIGHBOURS,
            "vectors": {
                name: {
                    **of._asdict(),
                    "histogram": list(of.histogram),
                    "hubs": [
                        {"passage_id": hub.passage.passage_id, "title": hub.passage.title, "found": dict(hub.found)}
                        for hub in self.worst[name]
                    ],
                }
                for name, of in self.hubness.items()
            },
        }


def ask_bank(bank: QuestionBank, encoder: TextEncoder) -> list[Query]:
    """Return the questions of a bank in the languages that an encoder can read."""
    return [
        Query(f"{language}-{number}", text, language)
        for language, texts in choose_readable(bank, encoder).items()
        for number, text in enumerate(texts, start=1)
    ]


def find_hubs(
    store: Store, collection: str, encoder: TextEncoder, queries: Sequence[Query], advance: Callable[[int], object]
) -> Hubs:
    """Search for all questions by each vector, and count how often each passage is among the ten best.

    `advance` is called with the number of questions after each batch.

    Raises:
        InputError: The collection has no more passages than each question finds.
    """
    passages = store.count(collection)
    _check_size(collection, passages)
    found: dict[str, Counter[str]] = {name: Counter() for name in VECTORS}
    known: dict[str, Passage] = {}
    for batch in batched(queries, QUESTIONS_AT_ONCE):
        vectors = encoder.encode_queries([query.text for query in batch])
        for name in VECTORS:
            for hits in store.search(collection, vectors, name, NEIGHBOURS):
                found[name].update(hit.passage.passage_id for hit in hits)
                known |= {hit.passage.passage_id: hit.passage for hit in hits}
        advance(len(batch))
    hubness = {name: measure_hubness(list(counts.values()), passages) for name, counts in found.items()}
    worst = {
        name: [Hub(known[id_], {of: found[of][id_] for of in VECTORS}) for id_, _ in _most_found(counts)]
        for name, counts in found.items()
    }
    return Hubs(passages, len(queries), hubness, worst)


def read_vectors(store: Store, collection: str, vector: str) -> Iterator[tuple[Passage, FloatArray]]:
    """Yield the passages of a collection of xqg's own, each with one of its vectors.

    Raises:
        InputError: there is no such vector.
    """
    if vector not in VECTORS:
        raise InputError(f"collection {collection!r} has no vector {vector!r}.", f"name {' or '.join(VECTORS)}")
    for point in store.scroll(collection):
        yield point.passage, point.vectors[vector]


def find_hubs_before_and_after(
    rows: Iterable[tuple[Passage, FloatArray]],
    collection: str,
    encoder: TextEncoder,
    queries: Sequence[Query],
    advance: Callable[[int], object],
) -> Hubs:
    """Count how often each passage is among the ten best by its plain vector, and by the same vector calibrated.

    All questions are compared with all passages here. Nothing is written.

    Args:
        rows: passages, each with its plain vector, shape `(dim,)`.
        collection: their collection, for messages.
        encoder: made the vectors.
        queries: the questions to ask.
        advance: called with the number of passages after each batch.

    Raises:
        InputError: there are no more passages than each question finds.
    """
    bank_mean = pack_mean(encode_bank(read_bank(), encoder).overall)
    settings = Fusion(0.0, "mean", renormalise=True, gamma=DEFAULT_GAMMA, bank_mean=bank_mean)
    none = np.empty((0, encoder.dim), dtype=np.float32)
    asked = encoder.encode_queries([query.text for query in queries])
    nearest = {name: _Nearest(asked) for name in (PLAIN, CALIBRATED)}
    passages: list[Passage] = []
    for batch in batched(rows, max(1, SCORES_AT_ONCE // len(queries))):
        passages += [passage for passage, _ in batch]
        nearest[PLAIN].add(np.stack([vector for _, vector in batch]))
        nearest[CALIBRATED].add(np.stack([fuse(vector, none, settings) for _, vector in batch]))
        advance(len(batch))
    _check_size(collection, len(passages))
    found = {name: of.count() for name, of in nearest.items()}
    hubness = {name: measure_hubness(list(counts.values()), len(passages)) for name, counts in found.items()}
    worst = {
        name: [Hub(passages[place], {of: found[of][place] for of in found}) for place, _ in _most_found(counts)]
        for name, counts in found.items()
    }
    return Hubs(len(passages), len(queries), hubness, worst)


class _Nearest:
    """The ten best passages of each question among those added so far."""

    def __init__(self, questions: FloatArray) -> None:
        self._questions = questions
        self._added = 0
        self._scores = np.full((len(questions), NEIGHBOURS), -np.inf, dtype=np.float32)
        self._places = np.full((len(questions), NEIGHBOURS), -1)

    def add(self, vectors: FloatArray) -> None:
        """Add passages, given as vectors of shape `(n, dim)`."""
        places = np.arange(self._added, self._added + len(vectors))
        self._added += len(vectors)
        scores = np.hstack([self._scores, self._questions @ vectors.T])
        known = np.hstack([self._places, np.tile(places, (len(scores), 1))])
        best = np.argpartition(-scores, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        self._scores = np.take_along_axis(scores, best, axis=1)
        self._places = np.take_along_axis(known, best, axis=1)

    def count(self) -> Counter[int]:
        """Return how many questions have each passage among their best, by its place."""
        return Counter(self._places[self._places >= 0].tolist())


def _check_size(collection: str, passages: int) -> None:
    if passages <= NEIGHBOURS:
        raise InputError(
            f"collection {collection!r} has only {count_of(passages, 'passage')}: every question finds all.",
            f"ingest more than {NEIGHBOURS}",
        )


def measure_hubness(found: Sequence[int], passages: int) -> Hubness:
    """Return the distribution of N10.

    Args:
        found: N10 of the passages that any question finds.
        passages: How many passages there are; N10 of the others is 0.
    """
    counts = np.zeros(passages)
    counts[: len(found)] = found
    deviations = counts - counts.mean()
    spread = float(np.sqrt((deviations**2).mean()))
    skewness = float((deviations**3).mean()) / spread**3 if spread else 0.0
    histogram = np.bincount([count.bit_length() for count in found], minlength=1)
    histogram[0] = passages - len(found)
    return Hubness(passages - len(found), max(found, default=0), skewness, tuple(histogram.tolist()))


def _most_found(counts: Counter[K]) -> list[tuple[K, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:HUBS_SHOWN]


def save_hubs(folder: Path, manifest: Mapping[str, Any], queries: Sequence[Query], hubs: Hubs) -> None:
    """Write a results folder with the figures in `hubs.json`.

    Raises:
        InputError: Something else has the folder's name.
    """
    with new_results(folder, manifest, queries) as final:
        text = json.dumps(hubs.to_json(), ensure_ascii=False, indent=2)
        (final / HUBS_FILE).write_text(text + "\n", encoding="utf-8")
