"""Has the process of an xqg command end itself with SIGKILL at a named point."""

from __future__ import annotations

import atexit
import importlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Mapping
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


def prepare(points: Mapping[str, tuple[str, str, str]], name: str, call: int) -> None:
    """Have the process end at a point; at a regular end it tells on stderr how often each was passed.

    Args:
        points: module, function, and "before" or "after" its work, by name.
        name: the point.
        call: at which call of the function; 0 is never.
    """
    cut_writes()
    passed = {
        known: arm(module, function, when, call if known == name else 0)
        for known, (module, function, when) in points.items()
    }

    def tell() -> None:
        sys.stdout.flush()
        sys.stderr.write("\n" + json.dumps({known: next(count) for known, count in passed.items()}))

    atexit.register(tell)
