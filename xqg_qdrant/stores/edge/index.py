"""The files of an embedded collection: its sidecar and lock, the engine's settings, and the index.

The index is built in a child process. The engine holds Python's GIL until the index is built, which takes minutes: in
this process it would block progress bars and Ctrl-C. Killing either process leaves the collection unchanged: the
engine builds new segments separately and swaps them in at once.
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
from typing import Any, NamedTuple

import qdrant_edge as engine

from xqg_qdrant.atomic import replaced, sync
from xqg_qdrant.errors import InUseError, StoreError
from xqg_qdrant.machine import prepare_child
from xqg_qdrant.records import TERMS_VECTOR, AugmentedPassage
from xqg_qdrant.stores.points import VECTOR_NAMES, Names, rename
from xqg_qdrant.stores.protocol import Indexing

try:
    import fcntl
except ImportError:  # on Windows only the engine's own lock protects a collection
    fcntl = None  # type: ignore[assignment]

SIDECAR = "collection.json"
MODELS = "models.json"
UNFINISHED_SIDECAR = "collection.json.unfinished"
HOLDER = "holder.json"
POLL_SECONDS = 0.2
NOTHING_TO_DO_EXIT_CODE = 3


class Hit(NamedTuple):
    """A search hit that converts its payload to Python only on access."""

    score: float
    record: engine.Record

    @property
    def payload(self) -> Mapping[str, Any] | None:
        """Return the point's payload."""
        return self.record.payload


class Sidecar(NamedTuple):
    """What is stored beside an embedded collection.

    Attributes:
        dim: Length of the vectors.
        fingerprint: How they were made.
        recorded: Number of points at the end of the last load, less those deleted since; None if never recorded.
    """

    dim: int
    fingerprint: dict[str, Any]
    recorded: int | None = None


def read_sidecar(path: Path) -> Sidecar:
    """Return the sidecar of the collection in a directory.

    Raises:
        StoreError: the file is damaged.
    """
    try:
        sidecar = json.loads((path / SIDECAR).read_text(encoding="utf-8"))
        dim, fingerprint = int(sidecar["dim"]), dict(sidecar["fingerprint"])
        recorded = sidecar.get("recorded")
        return Sidecar(dim, fingerprint, None if recorded is None else int(recorded))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        cure = "restore it from a backup, or ingest into a new collection"
        raise StoreError(f"cannot read {path / SIDECAR}: {error!r}.", cure) from error


def write_sidecar(path: Path, sidecar: Sidecar) -> None:
    """Write or replace the sidecar; a power failure leaves the old file or the new one."""
    (path / UNFINISHED_SIDECAR).unlink(missing_ok=True)
    with (path / UNFINISHED_SIDECAR).open("x", encoding="utf-8") as file:
        json.dump(sidecar._asdict(), file, ensure_ascii=False, allow_nan=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    (path / UNFINISHED_SIDECAR).replace(path / SIDECAR)
    sync(path)


def read_models(path: Path) -> dict[str, Any]:
    """Return where the models of the collection in a directory were found; empty if that is unknown."""
    try:
        found = json.loads((path / MODELS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_models(path: Path, models: Mapping[str, Any]) -> None:
    """Write what `read_models` returns."""
    with replaced(path / MODELS) as unfinished:
        unfinished.write_text(json.dumps(models, ensure_ascii=False, indent=1), encoding="utf-8")


def lock_collection(path: Path) -> int:
    """Lock the collection in a directory for this process and record the holder.

    The engine's own lock comes too late: by then it has opened, and may have changed, every segment.

    Returns:
        The lock, for `release_lock`.

    Raises:
        StoreError: another process holds it.
    """
    holder = path / HOLDER
    # A store from elsewhere may hold a link, whose target would be emptied.
    if holder.is_symlink() or (holder.exists() and holder.stat().st_nlink > 1):
        raise StoreError(f"{holder} is a link to another file.", "delete it; it is made again")
    lock = os.open(holder, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise _make_in_use_error(path) from error
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    note = {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": time.time()}
    with suppress(OSError):
        os.truncate(lock, 0)
        os.write(lock, json.dumps(note).encode())
    return lock


def release_lock(lock: int) -> None:
    """Release a collection's lock; the file stays, as another process may be about to lock it."""
    with suppress(OSError):
        os.truncate(lock, 0)
    os.close(lock)


def load_shard(path: Path) -> engine.EdgeShard:
    """Load the engine of the collection in a directory.

    Raises:
        StoreError: another process has loaded it.
    """
    try:
        return engine.EdgeShard.load(str(path))
    except Exception as error:
        if "WouldBlock" in str(error):
            raise _make_in_use_error(path) from error
        raise


def make_config(dim: int, sparse: bool, names: Names, quantised: bool = False) -> engine.EdgeConfig:
    """Return the engine's configuration for a collection."""
    vector = engine.EdgeVectorParams(size=dim, distance=engine.Distance.Dot)
    codes = engine.ScalarQuantizationConfig(engine.ScalarType.Int8) if quantised else None
    vectors = rename(dict.fromkeys(VECTOR_NAMES, vector), names)
    terms = {TERMS_VECTOR: engine.EdgeSparseVectorParams(modifier=engine.Modifier.Idf)} if sparse else None
    return engine.EdgeConfig(vectors=vectors, sparse_vectors=terms, quantization_config=codes, wal_enabled=True)


def make_vectors(point: AugmentedPassage) -> dict[str, Any]:
    """Return a point's vectors by name, as the engine takes them."""
    vectors: dict[str, Any] = {name: vector.tolist() for name, vector in point.vectors.items()}
    if point.terms is not None:
        vectors[TERMS_VECTOR] = engine.SparseVector(list(point.terms), [1.0] * len(point.terms))
    return vectors


def build_index(path: Path) -> Iterator[Indexing]:
    """Index the points that are not indexed yet; yield progress several times a second.

    The collection must be closed meanwhile. Closing the iterator early kills the child process. The last value says
    whether anything changed.

    Raises:
        StoreError: the engine failed; holds its message.
    """
    command, environment = prepare_child(__name__, path, os.getpid())
    started = time.monotonic()
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output, env=environment
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
        output.seek(0)
        message = output.read().decode(errors="replace").strip()
    code = child.returncode
    if code not in (0, NOTHING_TO_DO_EXIT_CODE):
        ending = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise StoreError(
            f"cannot index {path}: {message or f'the indexing process {ending}'}. Nothing was lost: the points are "
            "stored, and searches work without the index, only slower.",
            "free as much disk space as the collection takes, then run xqg optimise",
        )
    yield Indexing(time.monotonic() - started, changed=code == 0)


def main(path: str, parent: str) -> None:
    """Index the collection at `path`, then exit; the child process of `build_index`.

    Exits with 0 if anything changed, `NOTHING_TO_DO_EXIT_CODE` if not, 1 with the engine's message on failure.
    """
    # Python would handle Ctrl-C only after the engine is done.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _end_with_parent(int(parent))
    try:
        shard = engine.EdgeShard.load(path)
        changed = shard.optimize()
        shard.close()
    except BaseException as error:
        # The engine raises bare Exceptions, and panics of a type that cannot be imported.
        sys.exit(str(error))
    sys.exit(0 if changed else NOTHING_TO_DO_EXIT_CODE)


def _end_with_parent(parent: int) -> None:
    """Let Linux kill this process with its parent; an orphan would lock the collection for minutes."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the parent process is gone")


def _make_in_use_error(path: Path) -> InUseError:
    cure = "wait for it or end it, or use a Qdrant server, which processes can share"
    return InUseError(f"collection {path.name!r} in edge:{path.parent} is in use by {_describe_holder(path)}.", cure)


def _describe_holder(path: Path) -> str:
    try:
        note = json.loads((path / HOLDER).read_text(encoding="utf-8"))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(note["since"]))
        return f"process {note['pid']} on {note['host']} ({note['command']}) since {since}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "another process"
