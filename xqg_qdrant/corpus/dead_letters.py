"""Write rejected rows to the dead-letter file: JSONL of `{source, line, reason, row}`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO

from xqg_qdrant.errors import InputError
from xqg_qdrant.records import Reject

# In characters: enough to recognise a row; one of megabytes must not be written in full.
LONGEST_ROW_KEPT = 10_000


class DeadLetters:
    """The dead-letter file of one run.

    The file of an earlier run stays until the first `write`. On exit, a file without rejects is removed.
    """

    def __init__(self, path: Path, *inputs: str | None) -> None:
        """Remember the path; the file is opened by the first `write`.

        Raises:
            InputError: the path is one of the `inputs`.
        """
        self.path = path
        self._file: IO[str] | None = None
        self._empty = True
        for name in filter(None, inputs):
            if os.path.exists(path) and os.path.exists(name) and os.path.samefile(path, name):
                cure = "name another file with --dead-letters"
                raise InputError(f"{name} is both an input and the file for rejected rows.", cure)

    def __enter__(self) -> DeadLetters:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is None:
            return
        try:
            self._file.close()
            if self._empty and self.path.is_file():
                self.path.unlink()
        except OSError as damage:
            if error is None:
                raise self._explain(damage) from damage

    def write(self, rejects: Iterable[Reject]) -> None:
        """Append rejects and flush them, so that killing this process cannot lose them.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            if self._file is None:
                self._file = self.path.open("w", encoding="ascii")
            for reject in rejects:
                self._file.write(json.dumps(_shorten(reject)._asdict()) + "\n")
                self._empty = False
            self._file.flush()
        except OSError as error:
            raise self._explain(error) from error

    def _explain(self, error: OSError) -> InputError:
        cure = "free space or name another file with --dead-letters, then run the command again"
        return InputError(f"cannot write rejected rows to {self.path} ({error.strerror or error}).", cure)


def _shorten(reject: Reject) -> Reject:
    if len(reject.row) <= LONGEST_ROW_KEPT:
        return reject
    reason = f"{reject.reason} (row: its first {LONGEST_ROW_KEPT:,} characters)"
    return reject._replace(reason=reason, row=reject.row[:LONGEST_ROW_KEPT])
