"""Cut streams of items into batches, work on them in order, show how far they are; bound streams from a network."""

from __future__ import annotations

import os
import time
from collections import abc, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from threading import Event
from typing import Any, Protocol, TypeAlias, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Per worker: while the consumer takes one half of the results, the workers compute the other half.
ITEMS_IN_FLIGHT = 4
# Per GPU: one worker computes while the results of the other are decoded to text.
CUDA_WORKERS = 2
# Bytes of an answer before its body: its headers, and answers that announce another one (100 Continue).
MAX_HEAD_BYTES = 2**17
# Read from a connection at once, of a body: each piece takes httpx 0.1 ms.
BODY_BYTES = 2**18


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
    """Wait for the first item; return its result and those right behind it that are finished and did not fail."""
    done = [in_flight.popleft().result()]
    while in_flight and in_flight[0].done() and in_flight[0].exception() is None and len(done) < limit:
        done.append(in_flight.popleft().result())
    return done


class BoundedNetwork:
    """A network backend of httpcore that makes bounded connections.

    httpx bounds only each wait for bytes: an answer that comes one byte at a time would hold a process for days.
    """

    def __init__(self, backend: Any, fail: Callable[[str], Exception]) -> None:  # noqa: ANN401
        self._backend, self._fail = backend, fail

    def connect_tcp(self, *address: Any, **settings: Any) -> BoundedConnection:
        """Connect to a host."""
        return BoundedConnection(self._backend.connect_tcp(*address, **settings), self._fail)

    def sleep(self, seconds: float) -> None:
        """Wait before connecting again."""
        self._backend.sleep(seconds)


class BoundedConnection:
    """A connection that fails if an answer does not end.

    What comes before a body may have `MAX_HEAD_BYTES`, and may take as long from its first byte as a single wait for
    bytes. How long the body may take says `begin_body`.
    """

    def __init__(self, stream: Any, fail: Callable[[str], Exception]) -> None:  # noqa: ANN401
        self._stream, self._fail = stream, fail
        self._in_head, self._bytes, self._since, self._seconds = True, 0, 0.0, 0.0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return the next bytes."""
        if self._in_head and self._bytes > MAX_HEAD_BYTES:
            raise self._fail(f"the answer's headers are larger than {MAX_HEAD_BYTES >> 10} KiB")
        seconds = timeout if self._in_head else self._seconds
        if self._bytes and seconds is not None and time.monotonic() - self._since > seconds:
            part = "answer's headers were" if self._in_head else "answer was"
            raise self._fail(f"the {part} not complete after {seconds:.0f} s")
        received: bytes = self._stream.read(max_bytes if self._in_head else max(max_bytes, BODY_BYTES), timeout)
        self._since = self._since if self._bytes else time.monotonic()
        self._bytes += len(received)
        return received

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send a part of a request; the head of its answer follows."""
        self._in_head, self._bytes = True, 0
        self._stream.write(buffer, timeout)

    def begin_body(self, seconds: float) -> None:
        """Let the rest of the answer take so long."""
        self._in_head, self._since, self._seconds = False, time.monotonic(), seconds

    def start_tls(self, *settings: Any, **more: Any) -> BoundedConnection:
        """Return the encrypted connection."""
        return BoundedConnection(self._stream.start_tls(*settings, **more), self._fail)

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401
        """Return what the connection knows, such as its socket."""
        return self._stream.get_extra_info(info)

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()


def bound_answers(client: Any, fail: Callable[[str], Exception]) -> None:  # noqa: ANN401
    """Bound the answers to an httpx client, also those by way of proxies.

    For each answer, the caller has to call `begin_body` once its headers are there.

    Args:
        client: just made.
        fail: makes the exception for what is wrong.
    """
    # httpx has no public way to set the backend of the connections that it makes by itself.
    for transport in filter(None, [client._transport, *client._mounts.values()]):
        transport._pool._network_backend = BoundedNetwork(transport._pool._network_backend, fail)


def begin_body(response: Any, seconds: float) -> None:  # noqa: ANN401
    """Let the body of an httpx response, whose headers are there, take so long."""
    stream = response.extensions.get("network_stream")
    if isinstance(stream, BoundedConnection):
        stream.begin_body(seconds)
