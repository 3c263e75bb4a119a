"""Builds the index of an embedded collection, in a child process.

The engine holds Python's GIL until the index is built, which takes minutes: in this process no progress would be shown
and no Ctrl-C heard. Whenever either process is killed the collection is what it was: the engine builds aside, and puts
the new segments into place at once.

Run as a program it is that child.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from xqg_qdrant.errors import StoreError
from xqg_qdrant.stores.protocol import Indexing

POLL_SECONDS = 0.2
NOTHING_TO_DO_EXIT_CODE = 3
CURE = (
    "Nothing was lost: the points are stored, and are found without the index, only slower. Cure: give the disk as "
    "much free space as the collection takes, and run xqg optimise"
)


def build_index(path: Path) -> Iterator[Indexing]:
    """Index what is not yet indexed; yield several times a second, at last with what came of it.

    The collection must be closed meanwhile. When the iterator is closed before its end, the child is killed.

    Raises:
        StoreError: says what the engine said, and the cure.
    """
    # The child must find this package and the engine wherever this process found them.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-P", "-m", __name__, str(path), str(os.getpid())]
    started = time.monotonic()
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, env=environment
        ) as child,
    ):
        try:
            while child.poll() is None:
                yield Indexing(time.monotonic() - started)
                try:
                    child.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            child.kill()
        said.seek(0)
        message = said.read().decode(errors="replace").strip()
    if child.returncode not in (0, NOTHING_TO_DO_EXIT_CODE):
        how = f"ended by signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
        raise StoreError(f"cannot index {path}: {message or f'the process that did it was {how}'}. {CURE}.")
    yield Indexing(time.monotonic() - started, changed=child.returncode == 0)


def main(path: str, parent: str) -> None:
    """Index the collection at `path` for the process `parent`, and exit with the code that says what came of it."""
    import qdrant_edge as engine

    # Python would hear Ctrl-C only when the engine has done.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _end_with_parent(int(parent))
    try:
        shard = engine.EdgeShard.load(path)
        changed = shard.optimize()
        shard.close()
    except BaseException as error:
        # The engine raises bare Exceptions, and panics of a type without a home.
        sys.exit(str(error))
    sys.exit(0 if changed else NOTHING_TO_DO_EXIT_CODE)


def _end_with_parent(parent: int) -> None:
    """Let Linux kill this process with its parent: left alone, it would keep the collection locked for minutes."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the process that asked for the index is gone")


if __name__ == "__main__":
    main(*sys.argv[1:])
