"""Runs the xqg command in this process, which ends itself with SIGKILL at a named point.

The arguments are POINTS NAME CALL ARGUMENT…; POINTS is JSON, {name: [module, function, "before" or "after"]}. The
process ends before or after the work of the function that NAME stands for, when it is called for the CALLth time; never
for 0. At a regular end it tells on stderr how often each was called.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any


def end() -> None:
    """End this process as a power cut would: without a last word."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(module: str, function: str, when: str, call: int) -> itertools.count[int]:
    """Have the process end at a point; return what counts how often it was passed."""
    owner: Any = importlib.import_module(module)
    *parents, name = function.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original = getattr(owner, name)
    passed = itertools.count()

    def counting(*arguments: Any, **settings: Any) -> Any:  # noqa: ANN401
        number = next(passed) + 1
        if number == call and when == "before":
            end()
        result = original(*arguments, **settings)
        if number == call:
            end()
        return result

    setattr(owner, name, counting)
    return passed


def cut_writes() -> None:
    """Give a small collection several writes, and an upsert several parts, each of which the process can end at."""
    import qdrant_edge as engine

    from xqg_qdrant import streams as workers
    from xqg_qdrant.lifecycle import copying, retune
    from xqg_qdrant.stores.edge import store as edge

    copying.BATCH = retune.CHUNK_SIZE = 8
    # Then no two chunks are written at once, however busy the machine is: as often as a point was passed it is again.
    workers.ITEMS_IN_FLIGHT = 1
    edge.UPSERT_BATCH = 5
    # The type itself cannot be changed.
    names = [name for name in dir(engine.UpdateOperation) if not name.startswith("_")]
    operations = {name: getattr(engine.UpdateOperation, name) for name in names}
    engine.UpdateOperation = SimpleNamespace(**operations)  # type: ignore[assignment, misc]


def main(arguments: Sequence[str]) -> None:
    """Run the command; see the module."""
    from xqg_qdrant.cli import main as xqg

    points, name, call, *words = arguments
    cut_writes()
    passed = {
        known: arm(module, function, when, int(call) if known == name else 0)
        for known, (module, function, when) in json.loads(points).items()
    }
    try:
        xqg(words)
    finally:
        sys.stdout.flush()
        sys.stderr.write("\n" + json.dumps({known: next(count) for known, count in passed.items()}))
