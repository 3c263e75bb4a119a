"""Small files for tests that read them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path

Write = Callable[..., str]


def writer(folder: Path) -> Write:
    """Return a function that writes a file into a folder and returns its path."""

    def write(content: str | bytes, name: str = "corpus.jsonl") -> str:
        data = content if isinstance(content, bytes) else content.encode("utf-8")
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return write


def lines_of(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_rows(path: Path, rows: Iterable[object]) -> None:
    path.write_text(lines_of(*rows), encoding="utf-8")
