"""Builds the index of an embedded collection, in a child process.

The engine holds Python's GIL until the index is built, which takes minutes: in this process no progress would be shown
and no Ctrl-C heard. Whenever either process is killed the collection is what it was: the engine builds aside, and puts
the new segments into place at once.

Run as a program it is that child.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from xqg_qdrant.errors import StoreError
from xqg_qdrant.stores.protocol import Indexing

POLL_SECONDS = 0.2
NOTHING_TO_DO_EXIT_CODE = 3
NOTHING_LOST = "Nothing was lost: the points are stored and found without the index, only slower."
CURE = "give the disk as much free space as the collection takes, and run xqg optimise"


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
        what = message or f"the process that did it was {how}"
        raise StoreError(f"cannot index {path}: {what}. {NOTHING_LOST}", CURE)
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


try:
    import fcntl
except ImportError:  # not on Windows, where the engine's own lock has to do
    fcntl = None  # type: ignore[assignment]

SIDECAR = "collection.json"
UNFINISHED_SIDECAR = "collection.json.unfinished"
HOLDER = "holder.json"


def read_sidecar(path: Path) -> tuple[int, dict[str, Any]]:
    """Return the length of the vectors and the fingerprint of the collection in a directory.

    Raises:
        StoreError: the file is damaged.
    """
    try:
        sidecar = json.loads((path / SIDECAR).read_text(encoding="utf-8"))
        return int(sidecar["dim"]), dict(sidecar["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        cure = "restore it from a backup, or ingest into a new collection"
        raise StoreError(f"cannot read {path / SIDECAR}: {error!r}.", cure) from error


def write_sidecar(path: Path, dim: int, fingerprint: Mapping[str, Any]) -> None:
    """Write the file or replace it; what is there when the power fails is the old one or the new one."""
    with (path / UNFINISHED_SIDECAR).open("w", encoding="utf-8") as file:
        json.dump({"dim": dim, "fingerprint": fingerprint}, file, ensure_ascii=False, allow_nan=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    (path / UNFINISHED_SIDECAR).replace(path / SIDECAR)
    sync_directory(path)


def sync_directory(path: Path) -> None:
    """Have the names in a directory survive a power failure."""
    if os.name == "posix":  # elsewhere a directory cannot be opened
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def hold(path: Path) -> int:
    """Lock the collection in a directory for this process, and note who has it; return the lock, for `release`.

    The engine's own lock comes too late: it has opened, and may have changed, every segment by then.

    Raises:
        StoreError: somebody else holds it.
    """
    lock = os.open(path / HOLDER, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise in_use(path) from error
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    note = {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": time.time()}
    with suppress(OSError):
        os.truncate(lock, 0)
        os.write(lock, json.dumps(note).encode())
    return lock


def release(lock: int) -> None:
    """Let others have the collection; the file stays, as another process may be about to lock it."""
    with suppress(OSError):
        os.truncate(lock, 0)
    os.close(lock)


def in_use(path: Path) -> StoreError:
    """Return what to raise where somebody else holds a collection."""
    cure = "wait for it or end it, or use a Qdrant server, which many can share"
    return StoreError(f"collection {path.name!r} in edge:{path.parent} is in use by {describe_holder(path)}.", cure)


def describe_holder(path: Path) -> str:
    """Return who has the collection open, for a message."""
    try:
        note = json.loads((path / HOLDER).read_text(encoding="utf-8"))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(note["since"]))
        return f"process {note['pid']} on {note['host']} ({note['command']}) since {since}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "another process"
