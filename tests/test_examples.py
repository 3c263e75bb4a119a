"""The examples: each program finds what xqg finds, or is skipped if its package is not installed."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from rest_qdrant import RestQdrant
from serving import demo_rows, fill

from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.model_folders import DEMO_ENCODER, shipped_model
from xqg_qdrant.records import ScoredPassage
from xqg_qdrant.stores import open_store
from xqg_qdrant.stores.points import make_names

EXAMPLES = Path(__file__).parent.parent / "examples"
JAVASCRIPT = EXAMPLES / "javascript"
MODEL = str(shipped_model(DEMO_ENCODER))
ROWS = [row._replace(queries=row.queries[:7]) for row in demo_rows(8)]
QUESTION = next(query.text for query in ROWS[0].queries if query.language == "ja")
# How much of a passage the programs print.
SHOWN_CHARACTERS = 60

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (JAVASCRIPT / "node_modules").is_dir(),
    reason="needs Node, and `npm ci` in examples/javascript",
)


class Ingested(NamedTuple):
    """A store with the same passages in xqg's and Haystack's payload layout, and what xqg finds in it."""

    folder: Path
    found: list[ScoredPassage]

    def check(self, output: str, scored: bool = True) -> None:
        lines = [line.split("\t") for line in output.splitlines()]
        assert [line[-1] for line in lines] == [hit.passage.text[:SHOWN_CHARACTERS] for hit in self.found]
        if scored:
            assert [float(line[0]) for line in lines] == pytest.approx([hit.score for hit in self.found], abs=1e-4)
            assert [line[1] for line in lines] == [hit.passage.title for hit in self.found]


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory, demo_encoder: Encoder) -> Ingested:
    folder = tmp_path_factory.mktemp("examples") / "store"
    store = open_store(f"local:{folder}")
    fill(store, "docs", demo_encoder, ROWS)
    fill(store, "haystack", demo_encoder, ROWS, names=make_names("haystack", DEMO_ENCODER))
    [found] = store.search("docs", demo_encoder.encode_queries([QUESTION]), "xqg", 3)
    store.close()
    return Ingested(folder, found)


def run(*command: str, text: str | None = None) -> str:
    environment = {**os.environ, "HAYSTACK_TELEMETRY_ENABLED": "False"}
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("example", "package", "collection", "needs_model"),
    [
        ("plain_client", "qdrant_client", "docs", True),
        ("langchain_retriever", "langchain_qdrant", "docs", False),
        ("llamaindex_retriever", "llama_index.vector_stores", "docs", False),
        ("haystack_retriever", "haystack_integrations", "haystack", False),
        ("fastembed_documents", "fastembed", "docs", True),
    ],
)
def test_a_program_finds_what_xqg_finds(
    ingested: Ingested, example: str, package: str, collection: str, needs_model: bool
) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed; see examples/{example}.py")
    arguments = ([MODEL] if needs_model else []) + [str(ingested.folder), collection, QUESTION]
    output = run(sys.executable, str(EXAMPLES / f"{example}.py"), *arguments)
    ingested.check(output, scored=example != "langchain_retriever")


@needs_node
def test_javascript_finds_what_xqg_finds(ingested: Ingested, rest: RestQdrant, demo_encoder: Encoder) -> None:
    store = open_store(rest.url)
    fill(store, "docs", demo_encoder, ROWS)
    store.close()
    ingested.check(run("node", str(JAVASCRIPT / "search.mjs"), MODEL, rest.url, "docs", QUESTION))


@needs_node
def test_javascript_makes_the_same_vectors(demo_encoder: Encoder) -> None:
    texts = [query.text for row in ROWS[:4] for query in row.queries]
    texts += ["", " a  b\n", "Ｆｕｌｌ ﬁ İ ẞ", "🙂\u200d", "[CLS] [MASK]", "w" * 500, ROWS[0].passage.text * 5]
    program = (
        f"import {{ openEncoder }} from {json.dumps((JAVASCRIPT / 'encoder.mjs').as_uri())};"
        "import { readFileSync } from 'node:fs';"
        "const encoder = await openEncoder(process.argv[1]);"
        "for (const text of JSON.parse(readFileSync(0, 'utf8')))"
        " console.log(JSON.stringify(await encoder.encodeQuery(text)));"
    )
    lines = run("node", "--input-type=module", "-e", program, MODEL, text=json.dumps(texts)).splitlines()
    vectors = np.array([json.loads(line) for line in lines])
    assert vectors.shape == (len(texts), demo_encoder.dim)
    assert np.abs(vectors - demo_encoder.encode_queries(texts)).max() < 1e-4


def test_the_packages_of_the_javascript_are_pinned_and_name_no_registry() -> None:
    wanted = json.loads((JAVASCRIPT / "package.json").read_text())["dependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    locked = json.loads((JAVASCRIPT / "package-lock.json").read_text())["packages"]
    for name, package in locked.items():
        if name:
            assert package["integrity"].startswith("sha512-")
            assert "resolved" not in package
    assert {name: locked[f"node_modules/{name}"]["version"] for name in wanted} == wanted


def test_the_plain_client_does_not_import_xqg() -> None:
    tree = ast.parse((EXAMPLES / "plain_client.py").read_text(encoding="utf-8"))
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert [name for name in names if name.startswith("xqg")] == []


def test_the_index_names_every_example() -> None:
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in (*EXAMPLES.glob("*.py"), *JAVASCRIPT.glob("*.mjs")):
        assert f"]({path.relative_to(EXAMPLES).as_posix()})" in index
