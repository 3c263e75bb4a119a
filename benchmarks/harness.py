"""Sides in processes of their own, measured in turn, and the table of their ratios."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeAlias

# One pass over a list of inputs; a side offers several under the name of their settings.
Pass: TypeAlias = Callable[[Sequence[Any]], Any]


class Side(NamedTuple):
    """Something measured: `prepare(cores, *arguments)` loads it, and returns its settings to choose from.

    `once` says that one pass a round is enough, however short.
    """

    name: str
    prepare: Callable[..., Mapping[str, Pass]]
    arguments: tuple[Any, ...] = ()
    once: bool = False


class Measured(NamedTuple):
    """A side's chosen setting, and for every round its inputs per second and what its last pass returned."""

    side: Side
    setting: str
    rates: list[float]
    results: list[Any]


def measure(sides: Sequence[Side], inputs: Sequence[Any], cores: int, rounds: int, seconds: float) -> list[Measured]:
    """Measure all sides in turn, `rounds` times.

    Each side has a process, with its threads and its memory, on the first `cores` cores. It takes its fastest setting,
    and in each round passes over all inputs for at least `seconds`.
    """
    # Read when a library is loaded, so set before.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(cores)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    workers, measured = [], []
    for side in sides:
        workers.append(_start(side, cores))
        measured.append(Measured(side, _ask(workers[-1], ("choose", inputs)), [], []))
        print(f"  {side.name}: {measured[-1].setting}", flush=True)
    for _ in range(rounds):
        for found, worker in zip(measured, workers, strict=True):
            rate, result = _ask(worker, ("measure", inputs, 0.0 if found.side.once else seconds))
            found.rates.append(rate)
            found.results.append(result)
    for worker in workers:
        worker.close()
    return measured


def select(sides: Sequence[Side], patterns: str) -> list[Side]:
    """Return the sides whose name matches one of the patterns, which are separated by commas."""
    return [side for side in sides if any(fnmatch(side.name, pattern) for pattern in patterns.split(","))]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the least, the median and the greatest value."""
    return " – ".join(f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))


def ratios(ours: Measured, rival: Measured) -> list[float]:
    """Return how many times as fast ours was in each round."""
    return [left / right for left, right in zip(ours.rates, rival.rates, strict=True)]


def print_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(f"| {' | '.join(heading)} |\n|{'---|' * len(heading)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def first_cores(count: int) -> set[int]:
    """Return the first cores that this process may use.

    Raises:
        SystemExit: there are not as many.
    """
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < count:
        raise SystemExit(f"{count} cores were asked for, {len(usable)} are at hand")
    return set(usable[:count])


def _start(side: Side, cores: int) -> Connection:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=_serve, args=(theirs, side, cores), daemon=True).start()
    theirs.close()
    return ours


def _ask(worker: Connection, question: tuple[Any, ...]) -> Any:  # noqa: ANN401
    try:
        worker.send(question)
        return worker.recv()
    except (EOFError, OSError):
        raise SystemExit("a side failed; its error stands above") from None


def _serve(connection: Connection, side: Side, cores: int) -> None:
    os.sched_setaffinity(0, first_cores(cores))
    passes = side.prepare(cores, *side.arguments)
    chosen = next(iter(passes))
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        match question:
            case ("choose", inputs):
                # The first pass pays for what is done once.
                passes[chosen](inputs[::4])
                if len(passes) > 1:
                    chosen = min(passes, key=lambda name: _time(passes[name], inputs)[0])
                connection.send(chosen)
            case ("measure", inputs, seconds):
                spent, result = _time(passes[chosen], inputs)
                passed = len(inputs)
                while spent < seconds:
                    took, result = _time(passes[chosen], inputs)
                    spent, passed = spent + took, passed + len(inputs)
                connection.send((passed / spent, result))


def _time(run: Pass, inputs: Sequence[Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run(inputs)
    return time.perf_counter() - start, result
