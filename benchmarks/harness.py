"""Measure several sides in turn, each in its own process, and print their ratios as a table."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeAlias

# One pass over a list of inputs; a side offers several, by the names of their settings.
Pass: TypeAlias = Callable[[Sequence[Any]], Any]


class Side(NamedTuple):
    """One side of a comparison: `prepare(cores, *arguments)` loads it and returns a pass for each setting.

    With `once`, one pass a round is enough, however short.
    """

    name: str
    prepare: Callable[..., Mapping[str, Pass]]
    arguments: tuple[Any, ...] = ()
    once: bool = False


class Measured(NamedTuple):
    """A side's chosen setting; for every round its inputs per second and the result of its last pass."""

    side: Side
    setting: str
    rates: list[float]
    results: list[Any]


def measure(sides: Sequence[Side], inputs: Sequence[Any], cores: int, rounds: int, seconds: float) -> list[Measured]:
    """Measure all sides in turn, `rounds` times.

    Each side has its own process on the first `cores` cores. It uses its fastest setting, and in each round passes over
    all inputs for at least `seconds`.
    """
    # Libraries read these when they are loaded.
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
    """Return the sides whose name matches one of the comma-separated patterns."""
    return [side for side in sides if any(fnmatch(side.name, pattern) for pattern in patterns.split(","))]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return minimum, median and maximum as text."""
    return " – ".join(f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))


def ratios(ours: Measured, rival: Measured) -> list[float]:
    """Return the ratio of our rate to the rival's in each round."""
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
        SystemExit: there are fewer than `count`.
    """
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < count:
        raise SystemExit(f"--cores {count} is more than the {len(usable)} usable cores")
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
        raise SystemExit("a side failed; see its error above") from None


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
                # Warm up: the first pass includes one-time costs.
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
