"""Write rejected rows to the dead-letter file, JSONL of `{source, line, reason, row}`, and count the reasons."""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from xqg_qdrant.errors import InputError
from xqg_qdrant.records import Reject
from xqg_qdrant.secrets import hide

try:
    import fcntl
except ImportError:  # on Windows two ingests of one folder must name two files
    fcntl = None  # type: ignore[assignment]

# In characters: enough to recognise a row; one of megabytes must not be written in full.
LONGEST_ROW_KEPT = 10_000
OTHER_FILE = "name another file with --dead-letters"

# Differ between rows rejected for the same reason.
VALUES = re.compile(r"""'[^']*'|"[^"]*"|\d+|byte 0x\w+""")
MOST_KINDS = 1000
SHOWN_KINDS = 3


class Reasons:
    """Why rows were rejected: how many for each kind of reason, and the first row of each kind."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, Reject] = {}

    def add(self, reject: Reject) -> None:
        """Count a reject; beyond `MOST_KINDS`, new kinds are left out."""
        kind = VALUES.sub("", reject.reason)
        if kind in self._counts or len(self._counts) < MOST_KINDS:
            self._counts[kind] += 1
            self._first.setdefault(kind, reject)

    def commonest(self) -> list[tuple[int, Reject]]:
        """Return the counts of the commonest kinds, each with its first reject."""
        return [(count, self._first[kind]) for kind, count in self._counts.most_common(SHOWN_KINDS)]

    def suggest_cure(self) -> str:
        """Return what probably helps if all rows were rejected; empty if nothing is known."""
        return _suggest_cure(self.commonest()[0][1]) if self._counts else ""


def _suggest_cure(reject: Reject) -> str:
    if reject.reason.startswith(("malformed JSON", "not a JSON object")):
        return "write one JSON object per line, a JSON array of objects, or a table with a header line (.csv, .tsv)"
    try:
        fields = json.loads(reject.row)
    except (ValueError, RecursionError):
        fields = {}
    fields = fields if isinstance(fields, dict) else {}
    if reject.reason.startswith(("no text", "no field")):
        texts = {name: len(value) for name, value in fields.items() if isinstance(value, str)}
        return f"name the field of the text: --text-field {max(texts, key=texts.__getitem__) if texts else 'FIELD'}"
    if reject.reason.startswith("no id"):
        names = [name for name, value in fields.items() if isinstance(value, str | int) and "id" in name.lower()]
        return f"name the field of the passage id: --id-field {names[0] if names else 'FIELD'}"
    return "convert the file to UTF-8, such as with iconv" if reject.reason.startswith("not UTF-8") else ""


class DeadLetters:
    """The dead-letter file of one run.

    The file of an earlier run is replaced by the first reject, or removed if the run ends without any. Runs that share
    the file at the same time add to it, and none removes what another wrote.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        """Remember the file and its state; it is opened by the first reject.

        Raises:
            InputError: something else has the file's name, and `overwrite` is false; or it is a symbolic link.
        """
        self.path = path
        self._count = 0
        try:
            self._before = _identify(path)
            self._regular = self._before is None or path.is_file()
            if self._regular and path.is_symlink():
                raise InputError(f"{path} is a symbolic link.", OTHER_FILE)
            if not path.parent.is_dir() or path.is_dir():
                raise InputError(f"cannot write rejected rows to {path}: no such file or folder.", OTHER_FILE)
            if self._regular and self._before and not overwrite and not is_dead_letters(path):
                cure = f"{OTHER_FILE}, or replace it with --overwrite"
                raise InputError(f"{path} exists and holds no rejected rows.", cure)
        except (OSError, ValueError) as error:
            raise self._explain(error) from error

    def __enter__(self) -> DeadLetters:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and not self._count and self._regular:
            self._remove_earlier()

    def write(self, rejects: Iterable[Reject]) -> None:
        """Append rejects and flush them, so that killing this process cannot lose them.

        Raises:
            InputError: the file cannot be written.
        """
        lines = [hide(json.dumps(_shorten(reject)._asdict())) for reject in rejects]
        if not lines:
            return
        try:
            with self._opened() as file:
                if not self._count and self._regular and self._before and _identify(self.path) == self._before:
                    os.ftruncate(file, 0)
                left = "".join(f"{line}\n" for line in lines).encode("ascii")
                while left:
                    left = left[os.write(file, left) :]
        except OSError as error:
            raise self._explain(error) from error
        self._count += len(lines)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the file to append, locked against other runs."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (getattr(os, "O_NOFOLLOW", 0) if self._regular else 0)
        while True:
            file = os.open(self.path, flags, 0o644)
            try:
                if fcntl is not None and self._regular:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    # Another run may have removed it between opening and locking.
                    if not _is_at(file, self.path):
                        continue
                yield file
                return
            finally:
                os.close(file)

    def _remove_earlier(self) -> None:
        try:
            if self._before and _identify(self.path) == self._before:
                self.path.unlink()
        except OSError as error:
            raise self._explain(error) from error

    def _explain(self, error: OSError | ValueError) -> InputError:
        cure = "free space or name another file with --dead-letters, then run the command again"
        what = getattr(error, "strerror", None) or error
        return InputError(f"cannot write rejected rows to {self.path} ({what}).", cure)


def is_dead_letters(path: Path) -> bool:
    """Return whether a file is empty or begins like a file of rejected rows."""
    with path.open("rb") as file:
        first = file.readline(20 * LONGEST_ROW_KEPT)
    try:
        row = json.loads(first) if first else dict.fromkeys(Reject._fields)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and tuple(row) == Reject._fields


def _identify(path: Path) -> tuple[int, int, int, int] | None:
    """Return what changes when a file is replaced or written to; None if there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _is_at(file: int, path: Path) -> bool:
    try:
        here, there = os.fstat(file), path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(there.st_mode) and (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _shorten(reject: Reject) -> Reject:
    if len(reject.row) <= LONGEST_ROW_KEPT:
        return reject
    reason = f"{reject.reason} (row: its first {LONGEST_ROW_KEPT:,} characters)"
    return reject._replace(reason=reason, row=reject.row[:LONGEST_ROW_KEPT])
