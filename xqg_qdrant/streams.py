"""Cut streams of items into batches, process them in worker threads in order, and show how far they are."""

from __future__ import annotations

import os
from collections import abc, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from threading import Event
from typing import Protocol, TypeAlias, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Per worker: while the consumer takes one half of the results, the workers compute the other half.
ITEMS_IN_FLIGHT = 4
# Per GPU: one worker computes while the results of the other are decoded to text.
CUDA_WORKERS = 2


class Bar(Protocol):
    """A progress bar."""

    def update(self, n: int, /) -> object:
        """Advance by n steps."""


Bars: TypeAlias = Callable[[int | None, str], AbstractContextManager[Bar]]
"""Opens a progress bar for a total (None: unknown) and a unit such as ` passages`."""


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of `size`; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def count_workers(device: str, threads: int = 0) -> int:
    """Return how many workers keep a device busy.

    On the CPU that is one per thread, by default one per core; open the models with one thread each there. Names of
    several GPUs are separated by commas.
    """
    if device != "cpu":
        return CUDA_WORKERS * len(device.split(","))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return threads or cores or 1


def work_in_order(
    work: Callable[[T], R], items: Iterable[T], workers: int, stop: Event | None = None
) -> abc.Generator[list[R], None, None]:
    """Yield the results in the order of the items, finished ones together in a list.

    An error in any item, or closing this iterator, stops everything after the items already running have finished.

    Args:
        work: called from `workers` threads at once.
        items: taken in the consuming thread, at most `ITEMS_IN_FLIGHT` per worker ahead.
        workers: how many items run at once.
        stop: once set, no further item is taken; items already running are finished.
    """
    source = iter(items)
    in_flight: deque[Future[R]] = deque()
    taking = True
    pool = ThreadPoolExecutor(workers, "xqg")
    try:
        while taking or in_flight:
            if stop is not None and stop.is_set():
                taking = False
                while in_flight and in_flight[-1].cancel():
                    in_flight.pop()
            if taking and len(in_flight) < ITEMS_IN_FLIGHT * workers:
                try:
                    in_flight.append(pool.submit(work, next(source)))
                except StopIteration:
                    taking = False
            elif in_flight:
                yield _take_done(in_flight, ITEMS_IN_FLIGHT * workers // 2)
    finally:
        pool.shutdown(cancel_futures=True)


def _take_done(in_flight: deque[Future[R]], limit: int) -> list[R]:
    """Wait for the first item; return its result and those of the finished items right behind it."""
    done = [in_flight.popleft().result()]
    while in_flight and in_flight[0].done() and len(done) < limit:
        done.append(in_flight.popleft().result())
    return done
