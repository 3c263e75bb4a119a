"""Work that goes on while other work is prepared and finished: several items in flight, a worker at each.

Knows threads and order. Knows nothing of what an item is.
"""

from __future__ import annotations

import os
from collections import abc, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# While the one half of the items in flight is finished, the workers are at the other half.
ITEMS_IN_FLIGHT = 4
# For each GPU: one is computed while the results of the other become text.
CUDA_WORKERS = 2


def count_workers(device: str, threads: int = 0) -> int:
    """Return how many workers keep a device busy: on the CPU one for each of the threads, by default for each core.

    There the models are to be opened with one thread each. Several GPUs have their names with commas between.
    """
    if device != "cpu":
        return CUDA_WORKERS * len(device.split(","))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return threads or cores or 1


def work_in_order(
    work: Callable[[T], R], items: Iterable[T], workers: int, stop: Event | None = None
) -> abc.Generator[list[R], None, None]:
    """Yield the results in the order of the items, those that wait together in one list.

    An error in any item ends all of them; so does closing this iterator. Both wait for the items that workers are at.

    Args:
        work: called from `workers` threads at once.
        items: taken in the consuming thread, at most `ITEMS_IN_FLIGHT` times as many ahead as there are workers.
        workers: how many items are in work at once.
        stop: once set, no more is taken, and the items that workers are at are finished.
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
    """Wait for the first item, and take with it those behind it that are done too."""
    done = [in_flight.popleft().result()]
    while in_flight and in_flight[0].done() and len(done) < limit:
        done.append(in_flight.popleft().result())
    return done
