"""A row of a file, its line as text, and the problems that rows of every format can have."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xqg_qdrant.corpus.files import LONGEST_ROW, is_cut
from xqg_qdrant.errors import InputError

WHITE_SPACE = " \t\n\r\v\f"
MARK = "\ufeff"
JOINED = "begins with a byte order mark, as in joined files"


class FileRow(NamedTuple):
    """A row of a file; `problem` says why `fields` could not be read, or is empty."""

    line: int
    raw: str
    fields: Mapping[str, Any]
    problem: str = ""


def too_long(longest: int) -> str:
    """Return the problem of a row of more than `longest` bytes."""
    return f"longer than {longest:,} bytes"


def decode_line(line: bytes, longest: int = LONGEST_ROW) -> tuple[str, str]:
    """Return a line as text, and the problem if it cannot be used."""
    problem = too_long(longest) if is_cut(line, longest) else ""
    try:
        return line.decode("utf-8"), problem
    except UnicodeDecodeError as error:
        return line.decode("utf-8", "backslashreplace"), problem or not_utf8(error)


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return where a text is not UTF-8."""
    problem = f"not UTF-8: byte {error.object[error.start]:#04x} at position {error.start}"
    utf_16 = error.start == 0 and error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return problem + ("; it begins like UTF-16" if utf_16 else "")


def refuse_repeated(path: str, columns: Sequence[str]) -> None:
    """Raise an InputError if two columns have one name."""
    repeated = [name for name in columns if columns.count(name) > 1]
    if repeated:
        raise InputError(f"{path}: two columns are named {repeated[0]!r}.", "rename one of them")
