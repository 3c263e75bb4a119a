"""Random command lines over odd paths and values: each ends with a documented exit code, none as a bug in xqg.

Each seed runs forty of them, in this process; fifty seeds are two thousand.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import socket
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from xqg_qdrant.cli import main
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder

LINES = 40
DOCUMENTED = {0, 2, 3, 4, 5, 6, 7}
# These work for minutes, or until Ctrl-C, with arguments that are right.
LEFT_OUT = {"demo", "doctor", "serve", "export", "pilot", "estimate", "sweep"}
FEW = ("--languages", "fi", "--queries-per-language", "1", "--max-new-tokens", "4")
GENERATING = {"ingest", "augment", "generate", "sync"}
ROWS = [
    {"id": name, "text": text, "generated_queries": [f"{text}?"]} for name, text in (("a", "Rivers."), ("b", "Seas."))
]
WORDS = (
    *("", " ", "-", "--", "docs", "nosuch", "x" * 300, "a/b", "../x", "é\u202e", "\x00", "a\x00b", "\x1b[2J", "\ud8ff"),
    *("1e999", "-1", "nan", "0", "99999999999999999999", "ja,fi", "zz", "=", "a=b=c", "%s{}", "corpus", "xqg,passage"),
)
STORES = (
    *(
        "store",
        "./store",
        "edge:store",
        "local:local",
        "local:",
        ":memory:",
        "edge:",
        "file.txt",
        "store/docs",
        "~nosuch",
    ),
    *(
        "http://127.0.0.1:1",
        "http://",
        "http://a:b",
        "http://u:p@h",
        "HTTP://x",
        "htp://x",
        "nowhere/deep",
        "/dev/null",
    ),
    *("damaged", "local:damaged", "", "x" * 300, "link"),
)
PATHS = (
    *("corpus.jsonl", "corpus.jsonl.gz", "cut.jsonl.gz", "beir", "parts", "empty", "file.txt", "empty.jsonl", "binary"),
    *("questions.jsonl", "qrels.tsv", "run.trec", "results", "lexicon.tsv", "deep.json", "nosuch", "/", ".", "", "-"),
    *("/dev/null", "store", "store/docs/collection.json", "damaged", "link", "loop", "pipe", "socket", "x" * 300),
    *("\x00", "\udcff.jsonl", "s3://k:s@b/f", "s3://", "x://y", "file://nosuch", "file:///dev/null", "ir_datasets:"),
    *("a=run.trec", "=", "report.html", "new", "nosuch/deep/new", "read-only/new", "corpus.jsonl/x"),
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    for name in ("beir", "parts", "empty", "results", "damaged/docs", "store", "read-only"):
        (folder / name).mkdir(parents=True)
    for name, content in {
        "corpus.jsonl": text,
        "beir/corpus.jsonl": text,
        "file.txt": "no rows\n",
        "empty.jsonl": "",
        "questions.jsonl": '{"id": "q", "lang": "fi", "text": "Rivers?", "answers": ["Rivers"]}\n',
        "qrels.tsv": "query-id\tcorpus-id\tscore\nq\ta\t1\n",
        "run.trec": "q Q0 a 1 0.5 mine\n",
        "lexicon.tsv": "fi\trivers\tjoet\n",
        "deep.json": "[" * 100_000,
        "results/manifest.json": '{"kind": "evaluation"}',
        "damaged/docs/collection.json": '{"dim": 1e999, "fingerprint": {}}',
        "damaged/docs/edge_config.json": "{",
        "damaged/meta.json": '{"collections',
    }.items():
        (folder / name).write_text(content)
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(text.encode() * 99)[:-20])
    (folder / "binary").write_bytes(bytes(range(256)) * 9)
    (folder / "parts" / "a.parquet").write_bytes(b"PAR1 and no more")
    (folder / "link").symlink_to("nosuch")
    (folder / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(folder / "socket"))
    (folder / "read-only").chmod(0o500)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, place: Path, demo_encoder: Encoder, demo_generator: QueryGenerator) -> None:
    from xqg_qdrant.cli import collections, compare, evaluation, ingest, retrieval, shared

    real = shared.load_encoder
    for module in (collections, compare, evaluation, ingest, retrieval):
        monkeypatch.setattr(module, "load_encoder", lambda path, *rest: real(path, *rest) if path else demo_encoder)
    generator = shared.load_generator
    monkeypatch.setattr(
        ingest, "load_generator", lambda path, *rest: generator(path, *rest) if path else demo_generator
    )
    monkeypatch.setattr("xqg_qdrant.stores.server.requests.FIRST_PATIENCE_SECONDS", 0.0)
    monkeypatch.chdir(place)


def draw_value(parameter: click.Parameter, chance: random.Random) -> str:
    if isinstance(parameter.type, click.Choice) and chance.random() < 0.8:
        return str(chance.choice(list(parameter.type.choices)))
    name = parameter.name or ""
    if name in ("location", "source_location", "target_location"):
        return "store" if chance.random() < 0.3 else chance.choice(STORES)
    if name == "collection" and chance.random() < 0.7:
        return "docs"
    if name == "queries" and chance.random() < 0.5:
        return "corpus"
    if name == "device":
        return chance.choice(["cpu", "cuda:99", "x"])
    if isinstance(parameter.type, click.Path) or name in ("files", "file", "queries", "run_files", "prediction_files"):
        return chance.choice(PATHS)
    if isinstance(parameter.type, (click.types.IntParamType, click.types.FloatParamType)):
        return chance.choice(["1", "0", "0.5", "-1", "nan", "inf", "1e999", "x", "99999999999999999999"])
    return chance.choice(WORDS)


def draw_line(chance: random.Random) -> list[str]:
    name = chance.choice(sorted(set(main.commands) - LEFT_OUT))
    command = main.commands[name]
    line: list[str] = [*(["-v"] if chance.random() < 0.2 else []), name]
    for parameter in command.params:
        wanted = parameter.required or chance.random() < (0.3 if isinstance(parameter, click.Option) else 0.9)
        if name in GENERATING and parameter.name in ("languages", "queries_per_language", "max_new_tokens", "engine"):
            wanted = False
        if not wanted or parameter.name in ("help", "device", "yes"):
            continue
        if isinstance(parameter, click.Option):
            value = [] if parameter.is_flag else [draw_value(parameter, chance)]
            line += [chance.choice([*parameter.opts, *parameter.secondary_opts]), *value]
        else:
            line.append(draw_value(parameter, chance))
    known = {option for parameter in command.params for option in parameter.opts}
    line += FEW if name in GENERATING and "--max-new-tokens" in known else ()
    line += ["--device", "cpu"] if "--device" in known else []
    return line + (["--yes"] if "--yes" in known else [])


def run(line: list[str]) -> Any:  # noqa: ANN401
    return CliRunner().invoke(main, line, input="q\n\xff\n" if len(line) % 2 else "", env={"XQG_STORE": "store"})


@pytest.mark.usefixtures("quick")
def test_no_command_line_is_a_bug(seed: int, place: Path) -> None:
    assert run(["ingest", "corpus.jsonl", "--collection", "docs", "--queries", "corpus"]).exit_code == 0
    chance = random.Random(f"lines {seed}")
    for _ in range(LINES):
        line = draw_line(chance)
        found = run(line)
        told = f"{line}\n{found.output}"
        assert found.exit_code in DOCUMENTED, told
        assert found.exception is None or isinstance(found.exception, SystemExit), told
        assert "bug in xqg" not in found.output, told
        assert ("Traceback" in found.output) <= ("-v" in line), told
        if found.exit_code not in (0, 3):
            assert "Cure: " in found.output or "Error: " in found.output, told
