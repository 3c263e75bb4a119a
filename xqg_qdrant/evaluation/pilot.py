"""Try xQG on a random sample of a corpus: what it gains, and what the whole corpus would cost."""

from __future__ import annotations

import heapq
import tempfile
import time
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple, TypeAlias

from xqg_qdrant.augmentation.pipeline import Progress, StoredRow, describe
from xqg_qdrant.augmentation.pipeline import ingest as ingest_rows
from xqg_qdrant.augmentation.recipe import Recipe
from xqg_qdrant.corpus.inputs import DOCUMENT_ID
from xqg_qdrant.corpus.seen_ids import TextSet
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation import EVALUATION_DEPTH
from xqg_qdrant.evaluation.comparison import Difference, compare_values, describe_content, is_gain, languages_of
from xqg_qdrant.evaluation.results import make_manifest
from xqg_qdrant.evaluation.sweep.bench import Bench, make_bench
from xqg_qdrant.evaluation.sweep.summary import describe_gain, judge_sweep, save_sweep
from xqg_qdrant.evaluation.sweep.trial import Sweep, run_sweep
from xqg_qdrant.evaluation.sweep.vectors import opened_vectors
from xqg_qdrant.fingerprint import Fingerprint
from xqg_qdrant.generation import Endpoint, Usage
from xqg_qdrant.generation import Generator as QueryWriter
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.records import AugmentedPassage, GeneratedQuery, Passage, Qrel, QueriedPassage, Query, Reject
from xqg_qdrant.stores import Store, open_store
from xqg_qdrant.streams import Bars
from xqg_qdrant.text import count_of

TRIAL = "trial"
"""The name of the temporary collection."""

# A GPU may ingest this many in a minute; in memory they are some tens of megabytes.
PASSAGES_OF_A_MINUTE = 20_000
# Each is a paid call of a language model.
PASSAGES_OF_CALLS = 40
MINUTE = 60.0

# The engine's journal grows with the points to two files of 32 MiB at most, and is emptied again and again.
JOURNAL = "wal"
LARGEST_JOURNAL = 64 << 20
BLOCK_BYTES = 512

HELD_BACK = """\
No questions were given, so generated queries are asked: the last query of each passage and language is left out of the
vectors and asked as a question, whose only right answer is its passage. Such questions flatter the augmentation: the
model that wrote them also wrote the queries in the vectors, in the same words and with the same mistakes. People ask
differently. So a gain here shows little, and the best alpha here is likely too large for people. No gain shows more."""

SMALL = (
    "Passages are found more easily in a sample than in the whole corpus, so all figures are higher here than there."
)

Ingest: TypeAlias = Callable[..., Generator[Progress, None, None]]
"""`ingest` with all arguments set but the rows, the store, the collection and `stop`."""


class Sample(NamedTuple):
    """Passages in a random order, with their vectors if they have some, and the passages and rejects of the corpus."""

    passages: tuple[Passage | QueriedPassage, ...]
    corpus: int
    rejected: int


class Cost(NamedTuple):
    """The size of a corpus, and what ingesting part of it took: seconds, bytes on disk, bytes in the journal."""

    corpus: int
    measured: int
    seconds: float
    stored_bytes: int
    journal_bytes: int
    usage: Usage = Usage()

    @property
    def total_usage(self) -> Usage:
        """Return the calls and tokens of a language model for the whole corpus."""
        return Usage(*(round(number * self.corpus / self.measured) for number in self.usage))

    @property
    def total_seconds(self) -> float:
        """Return how long the whole corpus takes."""
        return self.seconds * self.corpus / self.measured

    @property
    def total_bytes(self) -> int:
        """Return the size of the whole collection on disk, without an index."""
        larger = self.corpus / self.measured
        return round(self.stored_bytes * larger + min(self.journal_bytes * larger, LARGEST_JOURNAL))

    def price(self, price_per_hour: float) -> float:
        """Return the price of ingesting the whole corpus on a machine of this price."""
        return self.total_seconds / 3600 * price_per_hour

    def to_json(self, price_per_hour: float | None, source: object = None) -> dict[str, Any]:
        """Return the cost as JSON values; `source` is the generator's, with the prices of a language model."""
        price = None if price_per_hour is None else self.price(price_per_hour)
        return {
            "passages": self.corpus,
            "measured": {"passages": self.measured, "seconds": self.seconds, "bytes": self.stored_bytes},
            "seconds": self.total_seconds,
            "bytes": self.total_bytes,
            "price": price,
        } | self._calls_to_json(source)

    def _calls_to_json(self, source: object) -> dict[str, Any]:
        if not self.usage.calls:
            return {}
        price = source.price(self.total_usage) if isinstance(source, Endpoint) else None
        return {"language_model": {"measured": self.usage._asdict(), **self.total_usage._asdict(), "price": price}}


class Pilot(NamedTuple):
    """The outcome of a pilot.

    Attributes:
        held_back: Whether the questions are generated queries that were held back.
        verdict: Whether xQG is worth it, as text.
        cost: The cost of ingesting the sample.
        bench: The questions and the vectors of the sample.
        sweep: The settings tried on the sample.
        fingerprint: The fingerprint of the temporary collection.
        recipe: The recipe that the sample was ingested with.
    """

    held_back: bool
    verdict: str
    cost: Cost
    bench: Bench
    sweep: Sweep
    fingerprint: Fingerprint | None
    recipe: Recipe

    def to_json(self, price_per_hour: float | None) -> dict[str, Any]:
        """Return the pilot as JSON values."""
        return {
            "held_back": self.held_back,
            "verdict": self.verdict,
            "cost": self.cost.to_json(price_per_hour),
            "sweep": self.sweep.to_json(),
        }


class Rival(NamedTuple):
    """A pilot of an encoder among several, and its gain over the first one on the same questions; None for itself."""

    encoder: str
    dim: int
    pilot: Pilot
    gained: Difference | None

    def to_json(self) -> dict[str, Any]:
        """Return the measured values of both vectors, the gain and the cost of encoding the corpus as JSON values."""
        measure, values = self.pilot.sweep.measure, self.pilot.sweep.report.values
        return {
            "encoder": self.encoder,
            "dim": self.dim,
            "measure": measure,
            "passage": values["passage"][measure].macro,
            "xqg": values["xqg"][measure].macro,
            "gained": self.gained and self.gained._asdict(),
            "cost": self.pilot.cost.to_json(None),
        }


def make_rival(encoder: TextEncoder, pilot: Pilot, first: Pilot) -> Rival:
    """Return a pilot beside the first one; both asked the same questions, and each reports its best setting."""
    gained = None
    if pilot is not first:
        measure = first.sweep.measure
        values, before = (one.sweep.report.values["xqg"][measure] for one in (pilot, first))
        gained = compare_values(before, values, languages_of(first.bench.queries)).overall
    return Rival(encoder.source, encoder.dim, pilot, gained)


def make_ingest_again(
    first: Pilot, encoder: TextEncoder, generator: QueryWriter, recipe: Recipe, workers: int
) -> Ingest:
    """Return an ingest of the first pilot's passages and queries with another encoder; nothing is generated again."""
    vectors = first.bench.vectors
    queries = {passage.passage_id: found for passage, found in zip(vectors.passages, vectors.queries, strict=True)}
    fingerprint = describe(encoder, generator, recipe)

    def ingest(
        passages: Iterable[Passage], store: Store, collection: str, stop: Event
    ) -> Generator[Progress, None, None]:
        known = (passage for passage in passages if passage.passage_id in queries)
        points = (AugmentedPassage(passage, queries[passage.passage_id], {}, "", "") for passage in known)
        rows = (StoredRow(point, point.generated_queries) for point in points)
        return ingest_rows(rows, store, collection, encoder, None, recipe, workers, stop, fingerprint)

    return ingest


def name_as_shown(rows: Iterable[Passage | QueriedPassage | Reject]) -> Iterator[QueriedPassage | Reject]:
    """Yield the points of another program's collection with the ids that users see; only the first one of each id."""
    seen = TextSet()
    for row in rows:
        if isinstance(row, Reject):
            yield row
            continue
        queried = row if isinstance(row, QueriedPassage) else QueriedPassage(row)
        shown = queried.own_id or queried.passage.passage_id
        if seen.add(shown):
            yield queried._replace(passage=replace(queried.passage, passage_id=shown), own_id="")
        else:
            yield Reject("", 0, f"the id {shown!r} occurred before", "")


def draw_sample(
    rows: Iterable[Passage | QueriedPassage | Reject], size: int, seed: int, wanted: Container[str] = ()
) -> Sample:
    """Draw passages at random, the wanted ones before all others.

    The choice and its order depend on the ids and the seed alone. At most `size` passages are in memory.

    Raises:
        InputError: The corpus holds no usable passage.
    """
    corpus = rejected = 0
    drawn: list[tuple[bool, int, str, Passage | QueriedPassage]] = []  # a heap, with the first to be dropped on top
    for row in rows:
        if isinstance(row, Reject):
            rejected += 1
            continue
        corpus += 1
        passage = row.passage if isinstance(row, QueriedPassage) else row
        asked = passage.passage_id in wanted or passage.metadata.get(DOCUMENT_ID) in wanted
        item = (asked, -_shuffle(passage.passage_id, seed), passage.passage_id, row)
        if len(drawn) < size:
            heapq.heappush(drawn, item)
        elif item > drawn[0]:
            heapq.heapreplace(drawn, item)
    if not drawn:
        raise InputError(
            f"the corpus holds no usable passage (rejected rows: {rejected}).",
            "check the file, or name its id field with --id-field",
        )
    # In this order any prefix is a random sample too, where no passage is wanted.
    return Sample(tuple(passage for *_, passage in sorted(drawn, reverse=True)), corpus, rejected)


def choose_questions(
    queries: Sequence[Query], qrels: Iterable[Qrel], passages: int, seed: int
) -> tuple[list[Query], set[str]]:
    """Choose random questions whose relevant passages fit into a sample of this size.

    Returns:
        The questions, and the ids of their relevant passages.

    Raises:
        InputError: No question has a relevant passage.
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
            f"no question has a relevant passage ({len(queries)} given), so no sample can be chosen.",
            "give their judgements with --qrels, or leave out --questions",
        )
    chosen, wanted = [], set[str]()
    for query in judged:
        together = wanted | relevant[query.query_id]
        if len(together) <= passages:
            chosen.append(query)
            wanted = together
    return chosen, wanted


def keep_answered(queries: Sequence[Query], qrels: Iterable[Qrel], passages: Iterable[Passage]) -> list[Query]:
    """Return the questions with a relevant passage in the sample; the others may be of another corpus."""
    ids = {name for passage in passages for name in (passage.passage_id, passage.metadata.get(DOCUMENT_ID))}
    answered = {qrel.query_id for qrel in qrels if qrel.relevance > 0 and qrel.passage_id in ids}
    return [query for query in queries if query.query_id in answered]


def hold_back(
    passages: Sequence[Passage], queries: Sequence[Sequence[GeneratedQuery]], number: int
) -> tuple[list[Query], list[Qrel]]:
    """Return the queries of this number as questions, each with its own passage as the relevant one."""
    questions, qrels = [], []
    for passage, generated in zip(passages, queries, strict=True):
        for query in generated:
            if query.number == number:
                question = Query(f"{passage.passage_id}-{query.language}", query.text, query.language)
                questions.append(question)
                qrels.append(Qrel(question.query_id, passage.passage_id, 1))
    return questions, qrels


def judge_held_back(measure: str, gained: Difference, found_plain: float, content: Difference | None = None) -> str:
    """Return what a gain on held-back questions is worth, as text.

    Args:
        measure: The name of the measure.
        gained: The gain over the plain vectors.
        found_plain: The percentage of the questions that the plain vectors answer among the first ten.
        content: The gain over the control, if it was measured.
    """
    gain = describe_gain(measure, gained)
    own = (
        f"The plain vectors find the passage of {found_plain:.0f}% of these questions among the first ten. A low "
        "figure means that the generated queries have little to do with their passages."
    )
    if is_gain(gained):
        owed = f" {describe_content(gained, content)}" if content else ""
        return (
            f"Held-back questions gain: {gain}.{owed} Only people's questions can show whether they gain too: give "
            f"some hundred with --questions and --qrels. {own}"
        )
    return f"Not even held-back questions gain: {gain}. xQG is hardly worth it here. {own}"


def estimate_cost(sample: Sample, ingest: Ingest, bars: Bars) -> Cost:
    """Ingest the sample for up to a minute into a temporary collection, and return the cost.

    Raises:
        InputError: No passage could be stored.
    """
    with _ingested(sample, ingest, MINUTE, bars) as (_, cost):
        return cost


def run_pilot(
    sample: Sample,
    asked: tuple[Sequence[Query], Sequence[Qrel]] | None,
    ingest: Ingest,
    recipe: Recipe,
    encoder: TextEncoder,
    threads: int,
    measure: str | None,
    seed: int,
    bars: Bars,
) -> Pilot:
    """Ingest the sample into a temporary collection and sweep the settings over it.

    Args:
        sample: The passages.
        asked: The questions and their judgements; None asks the last generated query of each language.
        ingest: Ingests with the encoder and the recipe.
        recipe: The recipe. Without questions, one query per language fewer goes into the vectors.
        encoder: The encoder.
        threads: The number of CPU threads; 0 is one per core.
        measure: The measure that settings are compared by; None is `default_measure`.
        seed: Decides which half of the sweep a question falls into.
        bars: Opens progress bars.

    Raises:
        InputError: No passage could be stored, or too few questions can be measured.
    """
    with _ingested(sample, ingest, None, bars) as (store, cost), opened_vectors() as vectors:
        vectors.load(store, TRIAL, encoder, threads, bars)
        fingerprint = store.read_fingerprint(TRIAL)
        if asked is None:
            recipe = recipe._replace(queries_per_language=recipe.queries_per_language - 1)
            queries, qrels = hold_back(vectors.passages, vectors.queries, recipe.queries_per_language)
        else:
            qrels = list(asked[1])
            queries = keep_answered(asked[0], qrels, vectors.passages)
        bench = make_bench(vectors, recipe, encoder, queries, qrels, measure, EVALUATION_DEPTH)
        sweep = run_sweep(bench, seed, bars)
    if asked is None:
        plain = sweep.report.values["passage"]["recall@10"].macro
        content = sweep.content.overall if sweep.content and sweep.chosen.alpha else None
        verdict = judge_held_back(sweep.measure, sweep.gained, plain, content)
    else:
        verdict = judge_sweep(sweep)
    return Pilot(asked is None, verdict, cost, bench, sweep, fingerprint, recipe)


def save_pilot(
    folder: Path,
    command: Sequence[str],
    data: Mapping[str, Mapping[str, Any]],
    pilot: Pilot,
    price_per_hour: float | None,
    seed: int,
    device: str,
) -> None:
    """Write the results folder of a pilot; the arguments are those of `make_manifest`.

    Raises:
        InputError: Something else has the folder's name.
    """
    passages = len(pilot.bench.vectors.passages)
    settings = {"measure": pilot.sweep.measure, "limit": EVALUATION_DEPTH, "passages": passages}
    manifest = make_manifest("pilot", command, data, settings, seed=seed, fingerprint=pilot.fingerprint, device=device)
    save_sweep(folder, manifest, pilot.bench, pilot.sweep, pilot.to_json(price_per_hour))


@contextmanager
def _ingested(sample: Sample, ingest: Ingest, seconds: float | None, bars: Bars) -> Iterator[tuple[Store, Cost]]:
    """Ingest a sample into a collection that is removed on exit; yield its store and the cost."""
    with (
        tempfile.TemporaryDirectory(prefix="xqg-pilot-") as directory,
        open_store(f"edge:{directory}") as store,
    ):
        stored, took, usage = ingest_sample(sample.passages, store, TRIAL, ingest, seconds, bars)
        yield store, Cost(sample.corpus, stored, took, *measure_disk(Path(directory) / TRIAL), usage)


def ingest_sample(
    passages: Sequence[Passage | QueriedPassage],
    store: Store,
    collection: str,
    ingest: Ingest,
    seconds: float | None,
    bars: Bars,
) -> tuple[int, float, Usage]:
    """Ingest passages for at most `seconds`, but at least one chunk.

    Returns:
        The number of passages stored, the seconds it took, and the calls of a language model.

    Raises:
        InputError: No passage could be stored.
    """
    usage = Usage()
    stored, start, stop = 0, time.perf_counter(), Event()
    with (
        bars(len(passages), " passages") as bar,
        closing(ingest(passages, store, collection, stop=stop)) as steps,
    ):
        for progress in steps:
            stored += progress.stored
            usage = usage.plus(progress.usage)
            bar.update(progress.rows)
            if seconds is not None and time.perf_counter() - start >= seconds:
                stop.set()
    if not stored:
        raise InputError(
            f"every row of the sample was rejected ({count_of(len(passages), 'passage')}).",
            "ingest a few of them with xqg ingest to see why",
        )
    return stored, time.perf_counter() - start, usage


def measure_disk(collection: Path) -> tuple[int, int]:
    """Return the bytes that an embedded collection occupies on disk: its points, and its journal."""
    sizes = [0, 0]
    for path in collection.rglob("*"):
        if path.is_file():
            # Blocks instead of lengths: the engine's files are sparse.
            sizes[JOURNAL in path.relative_to(collection).parts] += path.stat().st_blocks * BLOCK_BYTES
    return sizes[0], sizes[1]


def format_bytes(size: int) -> str:
    """Return a size with its unit.

    >>> format_bytes(1536)
    '1.5 KiB'
    """
    amount = float(size)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.4g} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def _shuffle(name: str, seed: int) -> int:
    return int.from_bytes(blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest(), "big")
