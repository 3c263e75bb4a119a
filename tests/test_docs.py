"""The documentation: its blocks run, its commands exist, its site builds, its table of folders is current.

Plain `bash` and `python` blocks are run, page by page, each page in an empty folder. A block that cannot run everywhere
names its need: `bash {needs=gpu}`, `server`, `hub`, `docker`, `install` or `network`. In it, every `xqg` command must
exist with its options. `console` blocks show output; other blocks are not for typing.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from forked import Forks
from test_architecture import CHECKOUT, MAY_IMPORT

import xqg_qdrant
from xqg_qdrant.cli import main

PAGES = [
    CHECKOUT / "README.md",
    *sorted(path for path in (CHECKOUT / "docs").rglob("*.md") if "_build" not in path.parts),
]
NEEDS = {"docker", "gpu", "hub", "install", "network", "server"}
BLOCK = re.compile(r"^(?P<fence>`{3,})(?P<info>[^`\n]*)\n(?P<text>.*?)^(?P=fence)$", re.MULTILINE | re.DOTALL)
SECONDS = 300


class Block(NamedTuple):
    """A fenced block: its language, what it needs, its text."""

    language: str
    needs: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = []
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        language, _, tail = match["info"].strip().partition(" ")
        needs = re.fullmatch(r"\{needs=(\w+)\}", tail)
        assert not tail or needs, f"{page.name}: {match['info']}"
        found.append(Block(language, needs[1] if needs else "", match["text"]))
    return found


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language in ("bash", "python") and not block.needs]


def name(page: Path) -> str:
    return page.relative_to(CHECKOUT).as_posix()


# Shorten what `xqg demo --write` wrote: the figures on small data do not matter here.
CUTTING = """#!/bin/sh
'{xqg}' "$@" || exit
case "$1 $2" in "demo --write") '{python}' '{program}' "$3";; esac
"""
CUT = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
rows = map(json.loads, (folder / "passages.jsonl").read_text(encoding="utf-8").splitlines()[:12])
short = [{**row, "text": row["text"].split(". ")[0]} for row in rows]
passages = [json.dumps(row, ensure_ascii=False) + "\\n" for row in short]
ids = {row["_id"] for row in short}
header, *judged = (folder / "qrels.tsv").read_text(encoding="utf-8").splitlines(True)
judged = [line for line in judged if line.split("\\t")[1] in ids]
asked = {line.split("\\t")[0] for line in judged}
questions = (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines(True)
questions = [line for line in questions if json.loads(line)["id"] in asked]
for name, lines in (("passages.jsonl", passages), ("qrels.tsv", [header, *judged]), ("questions.jsonl", questions)):
    (folder / name).write_text("".join(lines), encoding="utf-8")
"""


@pytest.fixture
def environment(tmp_path: Path, forks: Forks) -> dict[str, str]:
    """Return the environment of the pages' commands: this one's `xqg`, with a small demo corpus."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "cut.py").write_text(CUT, encoding="utf-8")
    forks.write_shim(commands / "forked")
    cutting = CUTTING.format(xqg=commands / "forked", python=sys.executable, program=commands / "cut.py")
    (commands / "xqg").write_text(cutting, encoding="utf-8")
    (commands / "xqg").chmod(0o755)
    own = Path(sys.executable).parent
    return {**os.environ, "PATH": os.pathsep.join([str(commands), str(own), os.environ["PATH"]])}


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    for block in runnable(page):
        program = ["bash", "-eu", "-o", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*program, block.text], cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each `xqg` command in a script."""
    for line in statements(text):
        words: list[str] = []
        for word in [*split(line), ";"]:
            if not set(word) <= set("|&;<>()"):
                words.append(word)
                continue
            while words and re.fullmatch(r"\w+=.*", words[0]):
                del words[0]
            if words and Path(words[0]).name == "xqg":
                yield words[1:]
            words = []


def split(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    return list(lexer)


def statements(text: str) -> Iterator[str]:
    """Yield statements: lines, joined across quotes and backslashes."""
    begun = ""
    for line in text.replace("\\\n", " ").splitlines():
        begun += line
        try:
            split(begun)
        except ValueError:
            begun += "\n"
            continue
        yield begun
        begun = ""
    assert not begun, begun


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_of_a_page_exists_with_its_options(page: Path) -> None:
    for block in blocks(page):
        assert block.needs in {"", *NEEDS}
        if block.language in ("bash", "sh"):
            for words in commands(block.text):
                check_command(words)


def check_command(words: list[str]) -> None:
    command: click.Command = main
    context = click.Context(main, info_name="xqg")
    while isinstance(command, click.Group):
        _, words, _ = command.make_parser(context).parse_args(args=words)
        if not words:
            return
        assert words[0] in command.commands, words
        command = command.commands[words[0]]
        context, words = click.Context(command, parent=context, info_name=words[0]), words[1:]
    command.make_parser(context).parse_args(args=words)


def test_a_command_that_does_not_exist_is_noticed() -> None:
    for wrong in ("xqg ingst x", "QDRANT_URL=x xqg ingest f --colection docs", "cat x | xqg query --collection"):
        found = list(commands(wrong))
        assert len(found) == 1
        with pytest.raises((AssertionError, click.UsageError)):
            check_command(found[0])
    assert list(commands("xqg query --collection docs 'a; b' # xqg no")) == [["query", "--collection", "docs", "a; b"]]


def test_every_command_is_documented() -> None:
    scripts = [block.text for page in PAGES for block in blocks(page) if block.language in ("bash", "sh")]
    documented = {words[0] for script in scripts for words in commands(script) if words}
    assert sorted(set(main.commands) - documented) == []


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(CHECKOUT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference" / "python.html").read_text(encoding="utf-8")
    assert [name for name in xqg_qdrant.__all__ if f'id="xqg_qdrant.{name}"' not in reference] == []
    reference = (tmp_path / "reference" / "commands.html").read_text(encoding="utf-8")
    assert [command for command in main.commands if f'id="xqg-{command}"' not in reference] == []


def test_the_table_of_folders_is_that_of_the_architecture() -> None:
    page = (CHECKOUT / "docs" / "explanation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|[^|]*\|([^|]*)\|$", page, re.MULTILINE)
    assert {name: set(re.findall(r"\w+", imported)) for name, imported in rows} == MAY_IMPORT | {"cli": {"anything"}}
