"""What lies beside the engine's files of an embedded collection: its fingerprint, and a note of who holds it.

    collection.json   dim and fingerprint; replaced whole or not at all
    holder.json       locked by the process that has the collection open, which it names

Knows files and JSON. Knows nothing of the engine.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from xqg_qdrant.errors import StoreError

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
        cure = "Cure: restore it from a backup, or ingest into a new collection"
        raise StoreError(f"cannot read {path / SIDECAR}: {error!r}. {cure}.") from error


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
    cure = "Cure: wait for it or end it, or use a Qdrant server, which many can share"
    return StoreError(f"collection {path.name!r} in edge:{path.parent} is in use by {describe_holder(path)}. {cure}.")


def describe_holder(path: Path) -> str:
    """Return who has the collection open, for a message."""
    try:
        note = json.loads((path / HOLDER).read_text(encoding="utf-8"))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(note["since"]))
        return f"process {note['pid']} on {note['host']} ({note['command']}) since {since}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "another process"
