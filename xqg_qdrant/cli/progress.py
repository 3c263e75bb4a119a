"""The long loops of the command line: their progress bars and summaries, on stderr, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from threading import Event
from types import FrameType
from typing import NoReturn, TypeVar

from tqdm import tqdm

from xqg_qdrant.augmentation.pipeline import PointStore, Progress, Row, Totals, ingest
from xqg_qdrant.augmentation.recipe import Recipe
from xqg_qdrant.cli.terminal import echo
from xqg_qdrant.corpus.dead_letters import DeadLetters
from xqg_qdrant.errors import INTERRUPTED_EXIT_CODE, InUseError
from xqg_qdrant.evaluation.robustness import Agreement, Pair, compare_rankings
from xqg_qdrant.fingerprint import Fingerprint
from xqg_qdrant.generation import Generator
from xqg_qdrant.inference import Reading, TextEncoder
from xqg_qdrant.lifecycle.copying import copy_collection
from xqg_qdrant.lifecycle.models import update_models
from xqg_qdrant.lifecycle.retune import Plan, retune
from xqg_qdrant.lifecycle.status import Status, read_sample, read_status
from xqg_qdrant.lifecycle.verify import Verification, verify
from xqg_qdrant.printing import format_left_out, format_seconds, format_totals, format_unread
from xqg_qdrant.stores import Store, read_existing_fingerprint
from xqg_qdrant.stores.protocol import Indexing
from xqg_qdrant.streams import Bars, count_workers
from xqg_qdrant.text import count_of

T = TypeVar("T")


def run_ingest(
    rows: Iterable[Row],
    total: int | None,
    store: PointStore,
    collection: str,
    encoder: TextEncoder,
    generator: Generator | None,
    recipe: Recipe,
    threads: int,
    dead_letters: DeadLetters,
    quiet: bool,
    fingerprint: Fingerprint | None = None,
) -> Totals:
    """Ingest with a progress bar and a summary; write rejected rows to the dead-letter file at once.

    Raises:
        SystemExit: 130, after Ctrl-C, once the chunks in work are stored.
    """
    workers = count_workers(encoder.device, threads)
    begin = partial(ingest, rows, store, collection, encoder, generator, recipe, workers, fingerprint=fingerprint)
    totals = run_engine(begin, total, dead_letters, quiet)
    if not quiet:
        echo_unread(encoder.reading, None if generator is None else generator.reading)
    return totals


def echo_unread(*readings: Reading | None) -> None:
    """Print how much of the texts the models did not read, if any."""
    for line in filter(None, map(format_unread, readings)):
        echo(line, err=True)


def run_engine(
    begin: Callable[[Event], abc.Generator[Progress, None, None]],
    total: int | None,
    dead_letters: DeadLetters,
    quiet: bool,
) -> Totals:
    """Run any engine as `run_ingest` does; `begin` starts it with the event that Ctrl-C sets."""
    totals, start = Totals(), time.perf_counter()
    try:
        with (
            dead_letters,
            Interruption() as interrupted,
            _make_bar(total, " passages", quiet) as bar,
            closing(begin(interrupted)) as steps,
        ):
            for progress in steps:
                totals.add(progress)
                dead_letters.write(progress.rejects)
                bar.update(progress.rows)
                queries = (totals.asked or totals.kept).total()
                bar.set_postfix_str(f"{queries / (time.perf_counter() - start):.0f} queries/s", refresh=False)
            dead_letters.write(())
    finally:
        # Also after an error: everything before it is stored or rejected.
        if not quiet and (totals.rows or sys.exc_info()[0] is None):
            echo(format_totals(totals, time.perf_counter() - start), err=True)
    _exit_if(interrupted)
    return totals


def run_optimise(store: Store, collection: str, above: int, quiet: bool) -> bool:
    """Index a collection of more than `above` points, with a clock; return whether anything changed."""
    last = Indexing(0)
    points = store.count(collection)
    with _make_bar(None, "", quiet, f"Indexing {count_of(points, 'point')}: {{elapsed}}") as bar:
        for last in store.optimise(collection, above):  # noqa: B007
            bar.update(0)
    if last.changed and not quiet:
        echo(f"{count_of(points, 'point')} indexed in {format_seconds(last.seconds)}.", err=True)
    return last.changed


def run_status(store: Store, collection: str, quiet: bool) -> Status:
    """Count a collection's points with a progress bar."""
    read_existing_fingerprint(store, collection)
    try:
        total: int | None = store.count(collection)
    except InUseError:
        total = None
    with _make_bar(total, " passages", quiet) as bar:
        for status in read_status(store, collection):
            bar.update(status.passages - bar.n)
    if status.in_use or status.points is not None:
        return status
    return status._replace(reading=read_sample(store, collection))


def run_verify(store: Store, collection: str, quiet: bool) -> Verification:
    """Verify a collection with a progress bar."""
    read_existing_fingerprint(store, collection)
    with _make_bar(store.count(collection), " passages", quiet) as bar:
        for found in verify(store, collection):
            bar.update(found.points - bar.n)
    return found


def run_copy(source: Store, collection: str, target: Store, name: str, quiet: bool) -> None:
    """Copy a collection with progress bars and a summary.

    Raises:
        SystemExit: 130, after Ctrl-C, once the batch in work is stored.
    """
    start = time.perf_counter()
    read = written = verified = rounded = 0
    read_existing_fingerprint(source, collection)
    total = source.count(collection)
    with (
        Interruption() as interrupted,
        _make_bar(total, " points", quiet) as copying,
        _make_bar(total, " points verified", quiet) as verifying,
        closing(copy_collection(source, collection, target, name, interrupted)) as steps,
    ):
        for step in steps:
            read, written = read + step.read, written + step.written
            verified, rounded = verified + step.verified, rounded + step.rounded
            copying.update(step.read)
            verifying.update(step.verified)
    update_models(target, name, source.read_models(collection))
    if not quiet:
        counts = f"{count_of(written, 'point')} written, {read - written} already there"
        echo(f"{counts}, {verified} verified, in {format_seconds(time.perf_counter() - start)}.", err=True)
    _exit_if(interrupted)
    if rounded:
        points = count_of(rounded, "point")
        echo(f"Qdrant changed the last digit of numbers of more than 15 digits in the payload of {points}.", err=True)


def run_retune(store: Store, plan: Plan, encoder: TextEncoder, threads: int, quiet: bool) -> None:
    """Retune with a progress bar and a summary.

    Raises:
        SystemExit: 130, after Ctrl-C, once the chunks in work are stored.
    """
    passages = queries = left_out = 0
    start = time.perf_counter()
    with (
        Interruption() as interrupted,
        _make_bar(plan.passages, " passages", quiet) as bar,
        closing(retune(store, plan, encoder, count_workers(encoder.device, threads), interrupted)) as steps,
    ):
        for done in steps:
            passages, queries, left_out = passages + done.passages, queries + done.queries, left_out + done.left_out
            bar.update(done.passages)
    if not quiet:
        took = format_seconds(time.perf_counter() - start)
        encoded = count_of(queries, "query", "queries")
        echo(f"{count_of(passages, 'passage')} retuned, {encoded} encoded, in {took}.", err=True)
        if left_out:
            echo(format_left_out(left_out, queries), err=True)
    _exit_if(interrupted, f"finish it with: xqg retune --collection {plan.collection}")


def _exit_if(interrupted: Event, cure: str = "run the same command again to resume.") -> None:
    if interrupted.is_set():
        echo(f"Interrupted; {cure}", err=True)
        sys.exit(INTERRUPTED_EXIT_CODE)


class Interruption:
    """The first Ctrl-C sets an event; a second one ends the process at once and loses the chunks in work."""

    def __init__(self) -> None:
        self._event = Event()

    def __enter__(self) -> Event:
        self._previous = signal.signal(signal.SIGINT, self._remember)
        return self._event

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _remember(self, _signal: int, _frame: FrameType | None) -> None:
        if self._event.is_set():
            # An exception would wait for the computing threads. A kill loses no more, and is safe at any moment.
            echo("Interrupted.", err=True)
            os._exit(INTERRUPTED_EXIT_CODE)
        self._event.set()
        echo("\nFinishing the chunks in work; press Ctrl-C again to stop at once.", err=True)


def make_bars(quiet: bool) -> Bars:
    """Return what opens a progress bar for a total and a unit."""
    return partial(_make_bar, quiet=quiet)


def count_read(rows: Iterable[T], total: int | None, quiet: bool) -> Iterator[T]:
    """Yield the rows of a corpus, with a progress bar."""
    with _make_bar(total, " rows read", quiet) as bar:
        for row in rows:
            yield row
            bar.update(1)


def run_robustness(
    store: Store, collection: str, encoder: TextEncoder, pairs: Sequence[Pair], quiet: bool
) -> Iterator[Agreement]:
    """Yield the agreement of the rankings of each pair, with a progress bar."""
    with _make_bar(len(pairs), " pairs", quiet) as bar:
        for agreement in compare_rankings(store, collection, encoder, pairs):
            bar.update()
            yield agreement


def _make_bar(total: int | None, unit: str, quiet: bool, bar_format: str | None = None) -> tqdm[NoReturn]:
    """Return a bar that appears after two seconds; where stderr is a log, it writes a line every half minute."""
    seconds = 0.1 if sys.stderr.isatty() else 30
    return tqdm(total=total, unit=unit, disable=quiet, delay=2, mininterval=seconds, bar_format=bar_format)
