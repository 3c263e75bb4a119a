"""Read the rows of tables: TSV and CSV, with line breaks inside quoted cells.

In CSV a quote at the beginning of a cell always opens a quoted one. In TSV it may as well be text, which must not
swallow the next rows: there a cell with line breaks ends before the next line that is a whole row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing

from xqg_qdrant.corpus.files import LONGEST_ROW, file_lines, kind_of
from xqg_qdrant.corpus.rows import JOINED, MARK, WHITE_SPACE, FileRow, decode_line, refuse_repeated
from xqg_qdrant.errors import InputError
from xqg_qdrant.text import count_of

TAB = "\t"
SEPARATORS = {".tsv": TAB, ".csv": ",;\t"}
QUOTED = re.compile(r'[^"]*+(?:""[^"]*+)*+')
UNCLOSED = "a quoted cell is not closed, or holds a quote that is not doubled"


def is_table(path: str) -> bool:
    """Return whether a file name is that of a TSV or CSV file."""
    return kind_of(path) in SEPARATORS


def table_rows(
    path: str,
    id_fields: Sequence[str],
    text_fields: Sequence[str],
    no_header: tuple[str, ...] = (),
    longest: int = LONGEST_ROW,
) -> Iterator[FileRow]:
    """Yield the rows of a TSV or CSV file; a file of another name is TSV.

    The cells of CSV are separated by commas, semicolons or tabs, as its header shows. `no_header` names the columns of
    a file whose first line is not a header.

    Raises:
        InputError: the header is missing or names a column twice.
    """
    with closing(file_lines(path, longest)) as lines:
        yield from _rows(
            path, _Lines(lines, longest), SEPARATORS.get(kind_of(path), TAB), id_fields, text_fields, no_header
        )


def _rows(
    path: str,
    lines: _Lines,
    separators: str,
    id_fields: Sequence[str],
    text_fields: Sequence[str],
    no_header: tuple[str, ...],
) -> Iterator[FileRow]:
    header: list[str] = []
    separator = separators[0]
    for number, raw, problem in lines:
        if problem:
            yield FileRow(number, raw, {}, problem)
            continue
        if not header:
            found = _find_header(path, raw, separators, id_fields, text_fields, required=not no_header)
            header, separator = found or (list(no_header), separator)
            if found:
                continue
        cells, raw, problem = lines.take_row(raw, separator, len(header), is_csv=separators != TAB)
        if not problem and len(cells) != len(header):
            problem = f"{count_of(len(cells), 'column')} where there should be {len(header)}"
        yield FileRow(number, raw, {} if problem else dict(zip(header, cells, strict=True)), problem)


class _Lines:
    """The numbered lines of a file that are not blank; some may be put back."""

    def __init__(self, lines: Iterator[bytes], longest: int) -> None:
        self._lines = enumerate((decode_line(line, longest) for line in lines), start=1)
        self._longest = longest
        self._put_back: list[tuple[int, str, str]] = []

    def __iter__(self) -> Iterator[tuple[int, str, str]]:
        while (line := self._next()) is not None:
            if line[1].strip(WHITE_SPACE) or line[2]:
                yield line

    def take_row(self, raw: str, separator: str, expected: int, *, is_csv: bool) -> tuple[list[str], str, str]:
        """Return the cells of the row that begins with this line, its lines, and the problem.

        Lines after a quote that nothing closes are put back, except those of TSV that are no rows themselves.
        """
        if '"' not in raw:
            return raw.split(separator), raw, ""
        cells = (_quoted_cells(raw, separator) or []) if is_csv else _plain_cells(raw, expected)
        inside = _ends_inside(raw, separator, inside=False)
        if not inside:
            return cells, raw, UNCLOSED if is_csv and not cells else ""
        taken: list[tuple[int, str, str]] = []
        size = len(raw)
        while inside and size <= self._longest and (line := self._next()) is not None:
            is_row = not is_csv and len(_plain_cells(line[1], expected)) == expected
            if line[2] or is_row:
                self._put_back.append(line)
                break
            taken.append(line)
            size += len(line[1])
            inside = _ends_inside(line[1], separator, inside=True)
        joined = "\n".join([raw, *(line for _, line, _ in taken)])
        if inside is False and len(whole := _quoted_cells(joined, separator) or []) == expected:
            return whole, joined, ""
        if not is_csv and any(line.strip(WHITE_SPACE) for _, line, _ in taken):
            return [], joined, UNCLOSED
        self._put_back += reversed(taken)
        return cells, raw, UNCLOSED if is_csv else ""

    def _next(self) -> tuple[int, str, str] | None:
        if self._put_back:
            return self._put_back.pop()
        found = next(self._lines, None)
        if found is None:
            return None
        number, (raw, problem) = found
        raw = raw.rstrip("\r\n")
        return number, raw, problem or (f"the row {JOINED}" if raw.startswith(MARK) else "")


def _find_header(
    path: str,
    raw: str,
    separators: str,
    id_fields: Sequence[str],
    text_fields: Sequence[str],
    *,
    required: bool,
) -> tuple[list[str], str] | None:
    """Return the columns and the separator of a header; None if a line is none and need not be."""
    for separator in separators:
        cells = [cell.strip(WHITE_SPACE) for cell in _quoted_cells(raw, separator) or ()]
        if not set(cells).isdisjoint(id_fields) and not set(cells).isdisjoint(text_fields):
            refuse_repeated(path, cells)
            return cells, separator
    if not required:
        return None
    name = "tabs" if separators == TAB else "commas"
    raise InputError(
        f"{path}: the first line names no id and text columns.",
        f"begin the file with a line such as {id_fields[0]}, {text_fields[0]}, title, separated by {name}, or name its "
        "columns with --id-field and --text-field",
    )


def _plain_cells(line: str, expected: int) -> list[str]:
    """Split a line at its tabs; unquote a cell only if the quotes inside it are doubled.

    DPR quotes its cells, others do not.
    """
    cells = line.split(TAB)
    if len(cells) > expected > 0 and '"' in line:  # tabs within quotes
        quoted = _quoted_cells(line, TAB)
        if quoted is not None and len(quoted) == expected:
            return quoted
    return [_unquoted(cell) for cell in cells]


def _unquoted(cell: str) -> str:
    inner = cell[1:-1]
    if len(cell) < 2 or cell[0] != '"' or cell[-1] != '"' or '"' in inner.replace('""', ""):
        return cell
    return inner.replace('""', '"')


def _quoted_cells(text: str, separator: str) -> list[str] | None:
    """Split a text at separators outside quotes; None if a quote is not closed or not doubled."""
    cells, at = [], 0
    while True:
        if text.startswith('"', at):
            quoted = QUOTED.match(text, at + 1)
            end = quoted.end() + 1 if quoted else 0
            if end > len(text) or text[end : end + 1] not in ("", separator):
                return None
            cells.append(text[at + 1 : end - 1].replace('""', '"'))
        else:
            end = text.find(separator, at)
            end = len(text) if end < 0 else end
            cells.append(text[at:end])
        if end >= len(text):
            return cells
        at = end + 1


def _ends_inside(line: str, separator: str, *, inside: bool) -> bool | None:
    """Return whether a line ends inside a quoted cell; None if a quote is followed by something else than a separator.

    `inside` says whether the line begins inside one.
    """
    at = 0
    while True:
        if inside:
            quoted = QUOTED.match(line, at)
            at = quoted.end() if quoted else len(line)
            if at == len(line):
                return True
            if line[at + 1 : at + 2] not in ("", separator):
                return None
            inside = False
        elif line.startswith('"', at):
            inside, at = True, at + 1
            continue
        at = line.find(separator, at)
        if at < 0:
            return False
        at += 1
