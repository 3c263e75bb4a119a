"""What the command says to somebody who mistypes: the word that was meant, not a riddle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import httpx
import pytest
from click.testing import CliRunner, Result
from qdrant_client.http.exceptions import UnexpectedResponse

from xqg_qdrant.cli import main
from xqg_qdrant.corpus.questions import read_queries
from xqg_qdrant.errors import InputError, StoreError
from xqg_qdrant.languages import LANGUAGES, parse_languages
from xqg_qdrant.stores.server.requests import Wire

CLI = Path(__file__).parent.parent / "cli.py"


def xqg(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner(env={"XQG_STORE": None, "QDRANT_URL": None, **(env or {})}).invoke(main, arguments)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("search", "query"), ("list", "status"), ("rm", "delete"), ("index", "ingest"), ("evalute", "evaluate")],
)
def test_an_unknown_command_suggests_the_one_that_is_meant(typed: str, meant: str) -> None:
    result = xqg(typed, "x")
    assert result.exit_code == 2
    assert f"No such command {typed!r}. Did you mean {meant!r}?" in result.stderr


@pytest.mark.parametrize("typed", ["jp", "JA", "Japanese", "ja-JP", "JP"])
def test_an_unknown_language_suggests_the_code_that_is_meant(typed: str) -> None:
    with pytest.raises(InputError, match=r"Cure: write ja, or choose from"):
        parse_languages(typed, tuple(LANGUAGES))


def test_a_language_that_the_generator_does_not_write_is_not_suggested() -> None:
    with pytest.raises(InputError, match=r"Cure: choose from fi, ru"):
        parse_languages("jp", ("fi", "ru"))


@pytest.mark.parametrize("typed", ["", " \t"])
def test_an_empty_question_is_a_usage_error(typed: str) -> None:
    result = xqg("query", "--collection", "c", typed)
    assert (result.exit_code, "A QUESTION is empty" in result.stderr) == (2, True)


def test_every_option_has_a_variable_with_its_own_name() -> None:
    for command in main.commands.values():
        for option in command.params:
            if isinstance(option, click.Option):
                name = f"XQG_{command.name}_{option.opts[0].removeprefix('--')}".upper().replace("-", "_")
                assert name in (option.envvar or ())


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("XQG_QUERY_ENCODER", "none", "there is no model folder none"),
        ("XQG_QUERY_STORE", "other", "in edge:other"),
        ("XQG_STORE", "third", "in edge:third"),
        ("XQG_QUERY_JSON", "maybe", "not a valid boolean"),
    ],
)
def test_an_option_is_set_by_its_variable(variable: str, value: str, told: str) -> None:
    assert told in xqg("query", "--collection", "c", "x", env={variable: value}).stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_characters_that_an_encoding_lacks_are_escaped(encoding: str) -> None:
    command = [sys.executable, str(CLI), "query", "--collection", "日本𠀀é", "x"]
    env = {**os.environ, "PYTHONIOENCODING": encoding, "XQG_STORE": "none"}
    result = subprocess.run(command, capture_output=True, env=env, check=False)
    told = result.stderr.decode(encoding)
    assert result.returncode == 2
    name = told.split("'")[1]
    assert json.loads(f'"{name}"') == "日本𠀀é"
    assert ("日" in name, "é" in name) == (encoding == "utf-8", encoding != "ascii")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "told"),
    [
        (["export"], 2, "Give a CHECKPOINT or --preset"),
        (["export", "./no/such/folder"], 2, "the checkpoint ./no/such/folder does not exist"),
        (["export", "a/b/c"], 2, "the checkpoint a/b/c does not exist"),
        (["query", "--collection", "c", "--encoder", "intfloat/multilingual-e5-small", "x"], 6,
         "xqg export intfloat/multilingual-e5-small onnx/multilingual-e5-small"),
        (["query", "--collection", "c", "--encoder", "onnx/a/b", "x"], 6, "xqg export CHECKPOINT onnx/a/b"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_there_is_told_with_the_right_cure(arguments: list[str], exit_code: int, told: str) -> None:
    result = xqg(*arguments)
    assert (result.exit_code, told in result.stderr) == (exit_code, True), result.stderr


@pytest.mark.parametrize(
    ("key", "cure"), [(None, "set QDRANT_API_KEY to the server's key"), ("wrong", "correct QDRANT_API_KEY")]
)
def test_a_wrong_key_is_told_from_a_missing_one(key: str | None, cure: str) -> None:
    def refuse() -> None:
        raise UnexpectedResponse(401, "Unauthorized", b"Invalid API key", httpx.Headers())

    with pytest.raises(StoreError, match=f"HTTP 401.*Cure: {cure}"):
        Wire("http://host", key, remote=True).ask("read", refuse)


def test_a_corpus_is_not_taken_for_questions() -> None:
    Path("corpus.jsonl").write_text('{"_id": "a", "title": "Danube", "text": "A river.", "metadata": {}}\n')
    with pytest.raises(InputError, match="line 1: a passage with a title and a text, where a question should be"):
        read_queries("corpus.jsonl")


def test_a_dry_run_lists_what_would_change() -> None:
    Path("lexicon.tsv").write_text("fi\triver\tjoki\n")
    Path("corpus.jsonl").write_text("".join(f'{{"id": "{name}", "text": "A river."}}\n' for name in "abc"))
    common = ("--collection", "c", "--generator", "lexicon.tsv")
    assert xqg("ingest", "corpus.jsonl", *common, "--threads", "1").exit_code == 0
    Path("corpus.jsonl").write_text("".join(f'{{"id": "{name}", "text": "A river, {name}."}}\n' for name in "bd"))
    result = xqg("sync", "corpus.jsonl", *common, "--dry-run", "--list")
    assert result.stdout.splitlines() == [
        *("changed\tb", "new\td"), *sorted(["left\ta", "left\tc"], key=result.stdout.index),
        "1 new, 1 changed, 0 unchanged, 0 rejected rows, 2 stored that the corpus does not hold",
    ]  # fmt: skip
