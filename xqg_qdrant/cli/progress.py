"""The long loops of the command line, with their progress bars, and what Ctrl-C does to them.

Knows the terminal. Everything it shows goes to stderr.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from threading import Event
from types import FrameType
from typing import NoReturn, TypeVar

from tqdm import tqdm

from xqg_qdrant.augmentation.pipeline import PointStore, Progress, Row, ingest
from xqg_qdrant.augmentation.recipe import Recipe
from xqg_qdrant.cli.terminal import echo
from xqg_qdrant.corpus.dead_letters import DeadLetters
from xqg_qdrant.corpus.seen_ids import TextSet
from xqg_qdrant.errors import INTERRUPTED_EXIT_CODE
from xqg_qdrant.evaluation import Bars
from xqg_qdrant.evaluation.robustness import Agreement, Pair, compare_rankings
from xqg_qdrant.fingerprint import Fingerprint
from xqg_qdrant.generation.lexicon import Lexicon
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.lifecycle.copying import copy_collection
from xqg_qdrant.lifecycle.retune import Plan, retune
from xqg_qdrant.lifecycle.status import Status, read_status
from xqg_qdrant.lifecycle.sync import Comparison, compare, delete_left
from xqg_qdrant.printing import Totals, format_left_out, format_seconds
from xqg_qdrant.stores import Store, read_existing_fingerprint
from xqg_qdrant.stores.protocol import Indexing
from xqg_qdrant.streams import count_workers

T = TypeVar("T")


def run_ingest(
    rows: Iterable[Row],
    total: int | None,
    store: PointStore,
    collection: str,
    encoder: Encoder,
    generator: QueryGenerator | Lexicon | None,
    recipe: Recipe,
    threads: int,
    letters: DeadLetters,
    quiet: bool,
) -> Totals:
    """Ingest with a progress bar and a summary; rejected rows go to the dead-letter file as they come.

    Raises:
        SystemExit: 130, after Ctrl-C, when the chunks that workers were at are stored.
    """
    workers = count_workers(encoder.device, threads)
    begin = partial(ingest, rows, store, collection, encoder, generator, recipe, workers)
    return run_engine(begin, total, letters, quiet)


def run_engine(
    begin: Callable[[Event], Generator[Progress, None, None]], total: int | None, letters: DeadLetters, quiet: bool
) -> Totals:
    """Do as `run_ingest` with any engine: `begin` starts it, and gets what is set by Ctrl-C."""
    totals, start = Totals(), time.perf_counter()
    try:
        with (
            letters,
            Interruption() as asked,
            _make_bar(total, " passages", quiet) as bar,
            closing(begin(asked)) as steps,
        ):
            for progress in steps:
                totals.add(progress)
                letters.write(progress.rejects)
                bar.update(progress.rows)
                queries = (totals.asked or totals.kept).total()
                bar.set_postfix_str(f"{queries / (time.perf_counter() - start):.0f} queries/s", refresh=False)
            letters.write(())
    finally:
        # Also where an error ends it: what came before that is stored or rejected.
        if not quiet and (totals.rows or sys.exc_info()[0] is None):
            echo(totals.summary(time.perf_counter() - start), err=True)
    if asked.is_set():
        echo("Interrupted; the same command goes on from here.", err=True)
        sys.exit(INTERRUPTED_EXIT_CODE)
    return totals


def run_optimise(store: Store, collection: str, above: int, quiet: bool) -> bool:
    """Index a collection of more than `above` points with a running clock; return whether anything changed."""
    last = Indexing(0)
    points = store.count(collection)
    with _make_bar(None, "", quiet, f"Indexing {points} points: {{elapsed}}") as bar:
        for last in store.optimise(collection, above):  # noqa: B007
            bar.update(0)
    if last.changed and not quiet:
        echo(f"{points} points indexed in {format_seconds(last.seconds)}.", err=True)
    return last.changed


def run_status(store: Store, collection: str, quiet: bool) -> Status:
    """Count a collection's points with a progress bar."""
    read_existing_fingerprint(store, collection)
    with _make_bar(store.count(collection), " passages", quiet) as bar:
        for status in read_status(store, collection):
            bar.update(status.passages - bar.n)
    return status


def run_compare(
    rows: Iterable[Row],
    total: int | None,
    store: Store,
    collection: str,
    fingerprint: Fingerprint,
    seen: TextSet,
    quiet: bool,
) -> Comparison:
    """Compare a corpus with a collection, with a progress bar."""
    found = Comparison()
    with _make_bar(total, " rows compared", quiet) as bar:
        for found in compare(rows, store, collection, fingerprint, seen):
            bar.update(found.rows - bar.n)
    return found


def run_delete_left(store: Store, collection: str, seen: TextSet, total: int, quiet: bool) -> int:
    """Delete what left the corpus with a progress bar; return how many passages went."""
    deleted = 0
    with _make_bar(total, " passages deleted", quiet) as bar:
        for count in delete_left(store, collection, seen):
            deleted += count
            bar.update(count)
    return deleted


def run_copy(source: Store, collection: str, target: Store, name: str, quiet: bool) -> None:
    """Copy a collection with progress bars and a summary.

    Raises:
        SystemExit: 130, after Ctrl-C, when the batch in work is stored.
    """
    start = time.perf_counter()
    read = written = verified = rounded = 0
    read_existing_fingerprint(source, collection)
    total = source.count(collection)
    with (
        Interruption() as asked,
        _make_bar(total, " points", quiet) as copying,
        _make_bar(total, " points verified", quiet) as verifying,
        closing(copy_collection(source, collection, target, name, asked)) as steps,
    ):
        for step in steps:
            read, written = read + step.read, written + step.written
            verified, rounded = verified + step.verified, rounded + step.rounded
            copying.update(step.read)
            verifying.update(step.verified)
    if not quiet:
        counts = f"{written} points written, {read - written} already there"
        echo(f"{counts}, {verified} verified, in {format_seconds(time.perf_counter() - start)}.", err=True)
    if asked.is_set():
        echo("Interrupted; the same command goes on from here.", err=True)
        sys.exit(INTERRUPTED_EXIT_CODE)
    if rounded:
        echo(
            f"Of {rounded} points the payload holds numbers of more than 15 digits, whose last one Qdrant changed.",
            err=True,
        )


def run_retune(store: Store, plan: Plan, encoder: Encoder, threads: int, quiet: bool) -> None:
    """Retune with a progress bar and a summary.

    Raises:
        SystemExit: 130, after Ctrl-C, when the chunks that workers were at are stored.
    """
    passages = queries = left_out = 0
    start = time.perf_counter()
    with (
        Interruption() as asked,
        _make_bar(plan.passages, " passages", quiet) as bar,
        closing(retune(store, plan, encoder, count_workers(encoder.device, threads), asked)) as steps,
    ):
        for done in steps:
            passages, queries, left_out = passages + done.passages, queries + done.queries, left_out + done.left_out
            bar.update(done.passages)
    if not quiet:
        took = format_seconds(time.perf_counter() - start)
        echo(f"{passages} passages retuned, {queries} queries encoded, in {took}.", err=True)
        if left_out:
            echo(format_left_out(left_out, queries), err=True)
    if asked.is_set():
        echo(f"Interrupted; finish it with: xqg retune --collection {plan.collection}", err=True)
        sys.exit(INTERRUPTED_EXIT_CODE)


class Interruption:
    """The first Ctrl-C sets an event; a second one ends the process at once, at the cost of what is in flight."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def __enter__(self) -> threading.Event:
        self._previous = signal.signal(signal.SIGINT, self._remember)
        return self._asked

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _remember(self, _signal: int, _frame: FrameType | None) -> None:
        if self._asked.is_set():
            # An exception would wait for threads that compute; a kill costs the same, and is safe at any moment.
            echo("Interrupted.", err=True)
            os._exit(INTERRUPTED_EXIT_CODE)
        self._asked.set()
        echo("\nFinishing the chunks in work; press Ctrl-C again to end at once.", err=True)


def make_bars(quiet: bool) -> Bars:
    """Return what opens a progress bar for a total and a unit."""
    return partial(_make_bar, quiet=quiet)


def count_read(rows: Iterable[T], total: int | None, quiet: bool) -> Iterator[T]:
    """Yield the rows of a corpus with a progress bar."""
    with _make_bar(total, " rows read", quiet) as bar:
        for row in rows:
            yield row
            bar.update(1)


def run_robustness(
    store: Store, collection: str, encoder: Encoder, pairs: Sequence[Pair], quiet: bool
) -> Iterator[Agreement]:
    """Yield how much the rankings of each pair agree, with a progress bar."""
    with _make_bar(len(pairs), " pairs", quiet) as bar:
        for agreement in compare_rankings(store, collection, encoder, pairs):
            bar.update()
            yield agreement


def _make_bar(total: int | None, unit: str, quiet: bool, bar_format: str | None = None) -> tqdm[NoReturn]:
    """Show nothing in the first two seconds; where stderr is a log, write a line every half minute."""
    seconds = 0.1 if sys.stderr.isatty() else 30
    return tqdm(total=total, unit=unit, disable=quiet, delay=2, mininterval=seconds, bar_format=bar_format)
