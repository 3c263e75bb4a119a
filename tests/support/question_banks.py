"""Write question banks."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_bank(path: Path, questions: Mapping[str, Sequence[str]]) -> None:
    """Write a bank as gzipped JSONL."""
    rows = [json.dumps({"lang": language, "question": text}) for language in questions for text in questions[language]]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("".join(f"{row}\n" for row in rows))
