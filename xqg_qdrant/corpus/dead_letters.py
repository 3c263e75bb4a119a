"""Write rejected rows to the dead-letter file, JSONL of `{source, line, reason, row}`, and count the reasons."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO

from xqg_qdrant.errors import InputError
from xqg_qdrant.records import Reject

# In characters: enough to recognise a row; one of megabytes must not be written in full.
LONGEST_ROW_KEPT = 10_000

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
