"""Damaged files of every kind end with rows stored, rows rejected, or one error: never a traceback or a silent nothing.

Each file is truncated, re-encoded, shuffled, merged and bent at random places, then read by the command, with the real
engine and encoder. With `--seeds N` it is 8 N copies of each kind.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from xqg_qdrant.cli import ingest, main
from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.inference.encoder import Encoder

COPIES = 8
ROWS = [
    {"id": passage.passage_id, "title": passage.title, "text": passage.text[:80]}
    for passage in read_demo_passages()[:6]
]


def to_lines(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def to_table(separator: str) -> bytes:
    lines = [
        list(ROWS[0]),
        *([row["id"], row["title"], f'"{row["text"]}\n{row["title"]}"'] for row in ROWS),
    ]
    return "".join(separator.join(line) + "\n" for line in lines).encode()


def to_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return bytes(sink.getvalue())


def to_squad() -> bytes:
    paragraphs = [{"context": row["text"], "qas": [{"id": row["id"], "question": "?", "answers": []}]} for row in ROWS]
    return json.dumps({"data": [{"title": "Demo", "paragraphs": paragraphs}]}).encode()


CORPORA = {
    "corpus.jsonl": to_lines(*ROWS),
    "corpus.jsonl.gz": gzip.compress(to_lines(*ROWS)),
    "array.json": json.dumps(ROWS, indent=1).encode(),
    "squad.json": to_squad(),
    "corpus.tsv": to_table("\t"),
    "corpus.csv": to_table(","),
    "corpus.parquet": to_parquet(),
    "queried.jsonl": to_lines(*({**row, "generated_queries": ["Mikä?"]} for row in ROWS)),
}
QUESTIONS = {
    "questions.jsonl": to_lines(*({"id": f"q{number}", "question": f"Mikä on {number}?"} for number in range(6))),
    "questions.tsv": "".join(f"q{number}\tMikä on {number}?\n" for number in range(6)).encode(),
    "questions.csv": ("id,question\n" + "".join(f'q{n},"Mikä, on {n}?"\n' for n in range(6))).encode(),
    "qrels.tsv": ("query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\tp{n}\t1\n" for n in range(6))).encode(),
    "run.trec": "".join(f"q{n} Q0 p{n} 1 {9 - n}.5 tag\n" for n in range(6)).encode(),
}


def cut(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data))]


def flip(data: bytes, random: Random) -> bytes:
    bent = bytearray(data)
    for _ in range(random.randint(1, 5)):
        bent[random.randrange(len(bent))] = random.choice(b"\x00\t\n\r \"',;[]{}\xc3\xed\xff\x1b0")
    return bytes(bent)


def merge(data: bytes, random: Random) -> bytes:
    at = random.choice([place for place, byte in enumerate(data) if byte == 10] or [0])
    return data[:at] + data[at + 1 :]


def encode(data: bytes, random: Random) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(random.choice(["utf-16", "utf-16-le", "utf-8-sig", "latin-1", "utf-32", "utf-7"]), "replace")


def end_lines(data: bytes, random: Random) -> bytes:
    return data.replace(b"\n", random.choice([b"\r\n", b"\r", b"\n\n", b"\n\r", "\u2028".encode(), b" \n"]))


def shuffle(data: bytes, random: Random) -> bytes:
    """Shuffle the columns of tables, otherwise the lines."""
    lines = data.split(b"\n")
    separator = next((one for one in (b"\t", b",") if one in lines[0] and not lines[0].startswith(b"{")), b"")
    if not separator:
        random.shuffle(lines)
        return b"\n".join(lines)
    order = list(range(lines[0].count(separator) + 1))
    random.shuffle(order)
    cells = [line.split(separator) for line in lines]
    return b"\n".join(separator.join(row[at] for at in order if at < len(row)) for row in cells)


def repeat(data: bytes, random: Random) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(lines + random.choices(lines, k=2))


def behead(data: bytes, random: Random) -> bytes:
    return data.split(b"\n", 1)[-1][random.choice([0, 1]) :]


def pack(data: bytes, random: Random) -> bytes:
    return gzip.compress(data)[: random.choice([None, -3])]


MUTATIONS: tuple[Callable[[bytes, Random], bytes], ...] = (
    cut, flip, merge, encode, end_lines, shuffle, repeat, behead, pack,
)  # fmt: skip


def mutate(data: bytes, random: Random) -> bytes:
    for mutation in random.sample(MUTATIONS, k=random.choice([1, 1, 2])):
        data = mutation(data, random) if data else data
    return data


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_encoder: Encoder) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("QDRANT_URL", "QDRANT_API_KEY", "XQG_STORE"):
        monkeypatch.delenv(name, raising=False)
    # Opened once for all runs.
    monkeypatch.setattr(ingest, "load_encoder", lambda *_: demo_encoder)
    (tmp_path / "none.jsonl").touch()


def xqg(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (0, 2, 3), (result.output, result.exception)
    assert "bug in xqg" not in result.output
    if result.exit_code == 2:
        assert re.search("^(Error|Usage)", result.stderr, re.MULTILINE), result.stderr
    return result


@pytest.mark.parametrize("name", CORPORA)
def test_a_damaged_corpus_is_stored_rejected_or_an_error(name: str, seed: int) -> None:
    random = Random(f"{name} {seed}")
    queries = "corpus" if name == "queried.jsonl" else "none.jsonl"
    for _ in range(COPIES):
        Path(name).write_bytes(data := mutate(CORPORA[name], random))
        result = xqg(
            *("ingest", name, "--collection", "docs", "--store", ":memory:", "--threads", "1", "--no-calibrate"),
            *("--queries", queries),
        )
        if counts := re.search(r"(\d+) passages? stored, 0 unchanged, (\d+) rows? rejected", result.stderr):
            stored, rejected = map(int, counts.groups())
            assert result.exit_code in (2, 3 if rejected else 0)
            assert stored or rejected or result.exit_code == 2, data
        else:
            assert result.exit_code == 2


def score(questions: str) -> Result:
    return xqg(
        "score", "--run", "run.trec", "--questions", questions, "--qrels", "qrels.tsv", "--language", "fi", "--json"
    )


@pytest.mark.parametrize("name", QUESTIONS)
def test_damaged_questions_judgements_and_runs_are_measured_or_an_error(name: str, seed: int) -> None:
    random = Random(f"{name} {seed}")
    for other, data in QUESTIONS.items():
        Path(other).write_bytes(data)
    questions = name if name.startswith("questions") else "questions.jsonl"
    assert json.loads(score(questions).stdout)["MRR@10"]["macro"] == 100
    for _ in range(COPIES):
        Path(name).write_bytes(data := mutate(QUESTIONS[name], random))
        result = score(questions)
        if result.exit_code == 0:
            # Each question finds its passage first, or is not in a file any more.
            assert json.loads(result.stdout)["MRR@10"]["macro"] > 0, data
