"""What lies beside the engine's files of an embedded collection: its fingerprint, and a note of who holds it.

    collection.json   dim and fingerprint; replaced whole or not at all
    holder.json       the process that has the collection open; only for a message, the lock is the engine's

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


def note_holder(path: Path) -> None:
    """Write down that this process has the collection open; where that fails the message is shorter."""
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    note = {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": time.time()}
    with suppress(OSError):
        (path / HOLDER).write_text(json.dumps(note), encoding="utf-8")


def forget_holder(path: Path) -> None:
    """Remove the note of this process."""
    with suppress(OSError):
        (path / HOLDER).unlink()


def describe_holder(path: Path) -> str:
    """Return who has the collection open, for a message."""
    try:
        note = json.loads((path / HOLDER).read_text(encoding="utf-8"))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(note["since"]))
        return f"process {note['pid']} on {note['host']} ({note['command']}) since {since}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "another process"
