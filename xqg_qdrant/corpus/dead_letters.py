"""Where rejected rows are written down: a JSONL file of `{source, line, reason, row}`.

Knows that file. Knows nothing of why a row is rejected.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO

from xqg_qdrant.errors import InputError
from xqg_qdrant.records import Reject

# What is enough to know a row by; a rejected row of megabytes must not be written down whole.
LONGEST_ROW_KEPT = 10_000


class DeadLetters:
    """The dead-letter file of one run.

    What an earlier run left stays until this one has something to say: the first `write`. In the end a file without
    rejects is removed.
    """

    def __init__(self, path: Path, *inputs: str | None) -> None:
        """Take the path of the file; nothing is opened yet.

        Raises:
            InputError: it is one of the files that are read.
        """
        self.path = path
        self._file: IO[str] | None = None
        self._empty = True
        for name in filter(None, inputs):
            if os.path.exists(path) and os.path.exists(name) and os.path.samefile(path, name):
                cure = "name another file with --dead-letters"
                raise InputError(f"{name} is to be read, and is the file that rejected rows are written to.", cure)

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
        """Append rejects and hand them to the operating system, so that a kill of this process cannot lose them.

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
        cure = "free space there or name another file with --dead-letters, and run the same again"
        return InputError(f"cannot write rejected rows to {self.path}: {error.strerror or error}.", cure)


def _shorten(reject: Reject) -> Reject:
    if len(reject.row) <= LONGEST_ROW_KEPT:
        return reject
    reason = f"{reject.reason} (row: its first {LONGEST_ROW_KEPT:,} characters)"
    return reject._replace(reason=reason, row=reject.row[:LONGEST_ROW_KEPT])
