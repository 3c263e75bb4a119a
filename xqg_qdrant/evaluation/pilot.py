"""A random sample of a corpus that is read once, in whatever order it comes.

Knows passages and questions. Knows nothing of files and models.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.comparison import Difference
from xqg_qdrant.evaluation.sweep.summary import describe_gain, is_sure
from xqg_qdrant.records import GeneratedQuery, Passage, Qrel, Query, Reject


class Sample(NamedTuple):
    """Passages in a random order, and how many passages and rejected rows the corpus holds."""

    passages: tuple[Passage, ...]
    corpus: int
    rejected: int


def draw_sample(rows: Iterable[Passage | Reject], size: int, seed: int, wanted: Container[str] = ()) -> Sample:
    """Draw passages at random, those that are wanted before all others.

    Which ones are drawn, and in which order, depends on their ids and the seed alone. In memory are at most `size`.

    Raises:
        InputError: the corpus holds no passage that can be used.
    """
    corpus = rejected = 0
    drawn: list[tuple[bool, int, str, Passage]] = []  # a heap, with the first to be dropped on top
    for row in rows:
        if isinstance(row, Reject):
            rejected += 1
            continue
        corpus += 1
        item = (row.passage_id in wanted, -_shuffle(row.passage_id, seed), row.passage_id, row)
        if len(drawn) < size:
            heapq.heappush(drawn, item)
        elif item > drawn[0]:
            heapq.heapreplace(drawn, item)
    if not drawn:
        raise InputError(f"the corpus holds no passage that can be used ({rejected} rows rejected).", "look at it.")
    # Whoever measures the first of them, where none is wanted, shall measure any.
    return Sample(tuple(passage for *_, passage in sorted(drawn, reverse=True)), corpus, rejected)


def choose_questions(
    queries: Sequence[Query], qrels: Iterable[Qrel], passages: int, seed: int
) -> tuple[list[Query], set[str]]:
    """Choose questions at random whose relevant passages fit into a sample of this size; return these passages, too.

    Raises:
        InputError: no question has a relevant passage.
    """
    relevant: dict[str, set[str]] = {}
    for qrel in qrels:
        if qrel.relevance > 0:
            relevant.setdefault(qrel.query_id, set()).add(qrel.passage_id)
    judged = sorted(
        (query for query in queries if query.query_id in relevant), key=lambda query: _shuffle(query.query_id, seed)
    )
    if not judged:
        raise InputError(
            f"none of the {len(queries)} questions has a passage that is judged relevant, so nobody knows what belongs "
            "into a sample.",
            "give --qrels for these questions, or no questions.",
        )
    chosen, wanted = [], set[str]()
    for query in judged:
        together = wanted | relevant[query.query_id]
        if len(together) <= passages:
            chosen.append(query)
            wanted = together
    return chosen, wanted


def keep_answered(queries: Sequence[Query], qrels: Iterable[Qrel], passages: Iterable[Passage]) -> list[Query]:
    """Return the questions of which a relevant passage is in the sample: others may be of another corpus."""
    ids = {passage.passage_id for passage in passages}
    answered = {qrel.query_id for qrel in qrels if qrel.relevance > 0 and qrel.passage_id in ids}
    return [query for query in queries if query.query_id in answered]


def _shuffle(name: str, seed: int) -> int:
    return int.from_bytes(blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest(), "big")


# The engine's journal grows with the points to two files of 32 MiB at most, and is emptied again and again.
JOURNAL = "wal"
LARGEST_JOURNAL = 64 << 20
BLOCK_BYTES = 512


class Cost(NamedTuple):
    """A corpus of so many passages, and what so many of them took: seconds, bytes on the disk, and in its journal."""

    corpus: int
    measured: int
    seconds: float
    stored_bytes: int
    journal_bytes: int

    @property
    def total_seconds(self) -> float:
        """Return how long the whole corpus takes."""
        return self.seconds * self.corpus / self.measured

    @property
    def total_bytes(self) -> int:
        """Return what the whole collection takes on the disk, without an index."""
        larger = self.corpus / self.measured
        return round(self.stored_bytes * larger + min(self.journal_bytes * larger, LARGEST_JOURNAL))

    def price(self, price_per_hour: float) -> float:
        """Return what the whole corpus costs on a machine of this price."""
        return self.total_seconds / 3600 * price_per_hour

    def to_json(self, price_per_hour: float | None) -> dict[str, Any]:
        """Return it as JSON."""
        price = None if price_per_hour is None else self.price(price_per_hour)
        return {
            "passages": self.corpus,
            "measured": {"passages": self.measured, "seconds": self.seconds, "bytes": self.stored_bytes},
            "seconds": self.total_seconds,
            "bytes": self.total_bytes,
            "price": price,
        }


def format_bytes(size: int) -> str:
    """Return a size for people.

    >>> format_bytes(1536)
    '1.5 KiB'
    """
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.4g} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def measure_disk(collection: Path) -> tuple[int, int]:
    """Return what the files of an embedded collection really take on the disk: its points, and its journal."""
    sizes = [0, 0]
    for path in collection.rglob("*"):
        if path.is_file():
            # Not their lengths: the engine's files have holes.
            sizes[JOURNAL in path.relative_to(collection).parts] += path.stat().st_blocks * BLOCK_BYTES
    return sizes[0], sizes[1]


HELD_BACK = """\
No questions were given, so generated ones are asked: of each passage and language the last query is left out of the
vectors and asked as a question, whose one right answer is its passage. Such questions flatter the augmentation: who
wrote them wrote the queries in the vectors, too, in the same words and with the same mistakes. People ask otherwise. So
a gain here shows little, and the best alpha here is likely too large for people; that nothing is gained shows more."""

SMALL = (
    "In a sample a passage is found more easily than in the whole corpus, so all figures are higher here than there."
)


def hold_back(
    passages: Sequence[Passage], queries: Sequence[Sequence[GeneratedQuery]], number: int
) -> tuple[list[Query], list[Qrel]]:
    """Return the queries of this number as questions, each with its own passage as the one that is relevant."""
    questions, qrels = [], []
    for passage, generated in zip(passages, queries, strict=True):
        for query in generated:
            if query.number == number:
                question = Query(f"{passage.passage_id}-{query.language}", query.text, query.language)
                questions.append(question)
                qrels.append(Qrel(question.query_id, passage.passage_id, 1))
    return questions, qrels


def judge_held_back(measure: str, gained: Difference, found_plain: float) -> str:
    """Say what a gain on held-back questions is worth, of which the plain vectors find so many percent."""
    told = describe_gain(measure, gained)
    own = (
        f"The plain vectors find the passage of {found_plain:.0f}% of these questions among the first ten: the less it "
        "is, the less the generator writes what its passages answer."
    )
    if is_sure(gained) and gained.points > 0:
        return (
            f"Held-back questions gain: {told}. Whether people's questions do, only those can tell: give some hundred "
            f"with --questions and --qrels. {own}"
        )
    return f"Not even held-back questions gain: {told}. xQG is hardly worth it here. {own}"
