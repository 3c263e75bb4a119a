"""Calibrate the stored vectors of another program's collection in several processes.

Reading and writing JSON take most of the time, and hold Python's lock. So each child process has a store of its own,
and reads, calibrates and writes the points whose ids it is sent, with the steps of `pipeline`, hence the same points.

    parent ──ids of a chunk──▶ child ──warnings, then Progress or an exception──▶ parent

A child ends with its standard input, so at once if the parent is killed.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import subprocess
import sys
import traceback
from collections import abc
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, BinaryIO, NamedTuple

from xqg_qdrant.augmentation.pipeline import (
    READY_CHUNK_SIZE,
    Progress,
    augment,
    check_unchanged,
    create_collection,
    describe,
    ingest,
    look_up,
    open_collection,
    write,
)
from xqg_qdrant.augmentation.recipe import Recipe
from xqg_qdrant.errors import XqgError
from xqg_qdrant.fingerprint import Fingerprint
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.machine import prepare_child
from xqg_qdrant.records import PayloadLayout, Space
from xqg_qdrant.stores import is_server, open_own_space_store
from xqg_qdrant.stores.server.own_space import OwnSpaceStore
from xqg_qdrant.streams import batched, count_workers, work_in_order

LOGGER = logging.getLogger(__name__)

# A child takes a second to start, in which one process calibrates some 5,000 points.
LEAST_POINTS = 20_000
# While the server works on the chunk of one child, another one computes.
PROCESSES_PER_CORE = 2
MOST_PROCESSES = 8
CHUNK_SIZE = READY_CHUNK_SIZE
# By default the C library returns a chunk's megabytes to the system, and each page of new memory costs a fault.
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}


class Job(NamedTuple):
    """What every process needs; it travels through a pipe, so that no other program sees the key."""

    location: str
    api_key: str | None
    layout: PayloadLayout
    space: Space
    collection: str
    recipe: Recipe


def count_processes(store: OwnSpaceStore, collection: str, points: int, threads: int) -> int:
    """Return how many processes calibrate a collection.

    That is one if the collection is small, if the store takes only one writer, or if the server counts requests: of
    several processes, those that wait would never get their turn.

    Args:
        store: of the collection.
        collection: its name.
        points: its number of points.
        threads: the number of processes that is wanted; 0 leaves the choice.
    """
    if points < LEAST_POINTS or not is_server(store.location) or store.is_rate_limited(collection):
        return 1
    return threads or min(PROCESSES_PER_CORE * count_workers("cpu"), MOST_PROCESSES)


def calibrate(
    job: Job, store: OwnSpaceStore, encoder: TextEncoder, processes: int, stop: Event
) -> abc.Generator[Progress, None, None]:
    """Calibrate the vectors; yield after each chunk is stored, in the order of the points.

    An error in any process ends all of them; so does closing this iterator. Both wait for the chunks in work. After an
    error, chunks behind the failed one may be stored without having been yielded. Several processes start only after
    the vector is added to the collection.

    Args:
        job: the settings.
        store: the job's store, opened in this process.
        encoder: made the vectors, as `own_space.check_space` has found.
        processes: how many work at once; the only one is this.
        stop: once set, no further chunk begins, and those in work are finished.

    Raises:
        MismatchError: the collection was augmented by another recipe.
        XqgError: a process raised it, or died.
    """
    if processes == 1:
        rows = store.read_passages(job.collection)
        with closing(ingest(rows, store, job.collection, encoder, None, job.recipe, stop=stop)) as steps:
            yield from steps
        return
    fingerprint = describe(encoder, None, job.recipe)
    if not open_collection(store, job.collection, fingerprint, encoder):
        create_collection(store, job.collection, encoder.dim, fingerprint)
    with ExitStack() as running:
        idle = SimpleQueue[Child]()
        for _ in range(processes):
            idle.put(running.enter_context(closing(Child(job, fingerprint))))

        def calibrate(ids: Sequence[int | str]) -> Progress:
            child = idle.get()
            try:
                return child.calibrate(ids)
            finally:
                idle.put(child)

        chunks = batched(store.read_ids(job.collection), CHUNK_SIZE)
        for done in running.enter_context(closing(work_in_order(calibrate, chunks, processes, stop))):
            yield from done
    check_unchanged(store, job.collection, fingerprint)


class Child:
    """A process that calibrates chunks."""

    def __init__(self, job: Job, fingerprint: Fingerprint) -> None:
        """Start it, without waiting until it has started."""
        reading, writing = os.pipe()
        command, environment = prepare_child(__name__, writing)
        # Ctrl-C reaches a process group; it is for the parent, which lets the chunks in work be finished. What a child
        # prints goes to standard error, as standard output is the command's.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=2, env=environment | KEPT_MEMORY, process_group=0, pass_fds=[writing]
        )
        os.close(writing)
        self._answers = os.fdopen(reading, "rb")
        self._send((job, fingerprint))

    def calibrate(self, ids: Sequence[int | str]) -> Progress:
        """Calibrate the points with these ids.

        Raises:
            XqgError: the child raised it, or died.
        """
        self._send([*ids])
        try:
            while isinstance(answer := pickle.load(self._answers), str):
                LOGGER.warning("%s", answer)
        except (EOFError, pickle.UnpicklingError):
            raise XqgError(
                f"a process that calibrates points ended with exit code {self._process.wait()}.",
                "use fewer --threads if memory ran out, and run the same command again to resume",
            ) from None
        if isinstance(answer, Exception):
            raise answer
        progress: Progress = answer
        return progress

    def close(self) -> None:
        """Wait until it ends."""
        self._process.communicate()
        self._answers.close()

    def _send(self, request: object) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the missing answer tells
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()


class _Warnings(logging.Handler):
    """Sends what this process logs to the parent."""

    def __init__(self, answers: BinaryIO) -> None:
        super().__init__(logging.WARNING)
        self._answers = answers

    def emit(self, record: logging.LogRecord) -> None:
        """Send one message."""
        pickle.dump(record.getMessage(), self._answers)
        self._answers.flush()


def main(pipe: str) -> None:
    """Calibrate the chunks that the parent sends, then exit; the child process of `Child`.

    Args:
        pipe: the file descriptor for the answers.
    """
    answers, requests = os.fdopen(int(pipe), "wb"), SimpleQueue[Any]()
    logging.captureWarnings(True)
    logging.getLogger().addHandler(_Warnings(answers))
    job: Job
    fingerprint: Fingerprint
    Thread(target=_receive, args=(requests,), daemon=True).start()
    job, fingerprint = requests.get()
    store: OwnSpaceStore | None = None
    # A chunk makes thousands of lists, and hardly any circle: one collection after it is enough.
    gc.disable()
    gc.freeze()
    while True:
        gc.collect()
        ids: list[int | str] = requests.get()
        try:
            if store is None:
                store = open_own_space_store(job.location, job.api_key, job.layout, job.space)
                store.assume_reached()
            answer: object = _calibrate(job, store, fingerprint, ids)
        except XqgError as error:
            answer = error
        except Exception as error:
            answer = RuntimeError(f"{type(error).__name__}: {error}")
            answer.add_note(traceback.format_exc())
        with suppress(BrokenPipeError):
            pickle.dump(answer, answers)
            answers.flush()


def _receive(requests: SimpleQueue[Any]) -> None:
    """Receive what the parent sends until it has all answers, or is killed: then even a retry must end."""
    while True:
        try:
            requests.put(pickle.load(sys.stdin.buffer))
        except (EOFError, pickle.UnpicklingError):
            os._exit(0)


def _calibrate(job: Job, store: OwnSpaceStore, fingerprint: Fingerprint, ids: Sequence[int | str]) -> Progress:
    rows = store.read_rows(job.collection, ids)
    chunk = look_up(rows, store, job.collection, job.recipe, fingerprint)
    augmented = augment(chunk, None, None, job.recipe, fingerprint)
    write([augmented], store, job.collection, fingerprint)
    return augmented.progress
