"""A part of the demo corpus as a folder of the same files, for tests that need no more."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

from xqg_qdrant.demo import DEMO_FOLDER, read_demo_passages, read_demo_qrels, read_demo_queries


def write_part_of_demo(folder: Path, questions: int, distractors: int = 0) -> Path:
    """Write the first `questions` in all languages, their passages, and other passages: first those of questions."""
    shutil.copytree(DEMO_FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__", "lexicon*"))
    asked = {query.query_id for query in read_demo_queries()[: 7 * questions]}
    answers = {qrel.passage_id for qrel in read_demo_qrels() if qrel.query_id in asked}
    judged = dict.fromkeys(qrel.passage_id for qrel in read_demo_qrels())
    others = [
        name for name in judged | dict.fromkeys(p.passage_id for p in read_demo_passages()) if name not in answers
    ]
    kept = asked | answers | set(others[:distractors])
    for name, field in (("corpus.jsonl", "_id"), ("generated_queries.jsonl.gz", "id"), ("queries.jsonl", "id")):
        data = (folder / name).read_bytes()
        lines = (gzip.decompress(data) if name.endswith("gz") else data).splitlines(keepends=True)
        data = b"".join(line for line in lines if json.loads(line)[field] in kept)
        (folder / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    header, *rows = (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    judgements = header + "".join(row for row in rows if row.split()[0] in asked)
    (folder / "qrels" / "test.tsv").write_text(judgements, encoding="utf-8")
    return folder
