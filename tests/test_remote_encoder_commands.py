"""Every command takes an encoder behind an endpoint, and so does Python; Ray's test is with Ray's.

The endpoint gives each text a direction of its own, so a passage is found by the very questions that its queries are.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from click.testing import CliRunner
from scripted_chat import ScriptedChat, scripted
from test_own_space_commands import answer, question
from writing import write_rows

from xqg_qdrant import open_encoder, open_store, search
from xqg_qdrant.cli import main
from xqg_qdrant.errors import InputError
from xqg_qdrant.inference.remote_encoder import RemoteEncoder, describe_endpoint

CLI = Path(__file__).parent.parent / "cli.py"
PASSAGES = 24
ASK = ["--questions", "questions.jsonl", "--qrels", "qrels.tsv"]
# Command → its arguments besides the encoder, and what it prints.
COMMANDS = {
    "query": (["--collection", "docs", question(3)], "[k3]"),
    "evaluate": (["--collection", "docs", *ASK], "MRR@10"),
    "sweep": (["--collection", "docs", *ASK], "settings on 12 questions"),
    "robustness": (["--collection", "docs", "--pairs", "pairs.tsv"], "AUC"),
    "hubs": (["--collection", "docs", "--questions", "questions.jsonl"], "N10"),
    "sync": (["more.jsonl", "--collection", "docs", "--generator", "URL", "--model", "m"], "1 new"),
    "estimate": (["rivers.jsonl", "--generator", "URL", "--model", "m", "--languages", "fi"], "all of them: about"),
    "pilot": (["rivers.jsonl", *ASK, "--generator", "URL", "--model", "m", "--languages", "fi"], "Best on these"),
    "generate": (
        ["rivers.jsonl", "--out", "out", "--generator", "URL", "--model", "m", "--languages", "fi"],
        "24 passages stored",
    ),
    "retune": (["--collection", "docs", "--alpha", "0.3"], "passages retuned, "),
    "enrich": (["--collection", "bare", "--generator", "URL", "--model", "m", "--languages", "fi"], "24 passages"),
    "reencode": (["--collection", "docs", "--to", "copy"], "passages stored, 0 unchanged"),
}
ELSEWHERE = {"ingest", "serve", "augment", "doctor", "status"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[ScriptedChat]:
    with scripted(answer) as running:
        yield running


@pytest.fixture(scope="module")
def folder(endpoint: ScriptedChat, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ingest a corpus with queries, and without; stand beside what the commands read."""
    folder = tmp_path_factory.mktemp("commands")
    rows = [{"id": f"k{number}", "text": f"The river number {number} is long."} for number in range(PASSAGES + 1)]
    asked = [{"id": f"q{number}", "language": "fi", "text": question(number)} for number in range(PASSAGES)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_rows(Path("rivers.jsonl"), rows[:-1])
        write_rows(Path("more.jsonl"), rows)
        write_rows(Path("questions.jsonl"), asked)
        Path("qrels.tsv").write_text("".join(f"q{number}\tk{number}\t1\n" for number in range(PASSAGES)))
        pairs = "".join(f"{number}\t{question(number)}\t{question(number)}\t{number % 2}\n" for number in range(4))
        Path("pairs.tsv").write_text(f"id\tsentence1\tsentence2\tlabel\n{pairs}")
        describe_endpoint(endpoint.url, folder / "encoder", "e", price_per_million=1.0)
        for collection, options in (("docs", LANGUAGE_MODEL), ("bare", ["--plain"])):
            command = ["rivers.jsonl", "--collection", collection, "--no-calibrate", *options]
            assert "tokens encoded at the endpoint, which cost" in run(endpoint, "ingest", command)[1]
        yield folder


LANGUAGE_MODEL = ["--generator", "URL", "--model", "m", "--languages", "fi"]


def run(endpoint: ScriptedChat, command: str, arguments: list[str]) -> tuple[str, str]:
    """Run a command with the encoder; return what it printed to both streams."""
    words = [endpoint.url if word == "URL" else word for word in arguments]
    result = CliRunner().invoke(main, [command, *words, "--encoder", "encoder"])
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_the_table_has_every_command_with_an_encoder() -> None:
    taking = {
        name
        for name, command in main.commands.items()
        if {"encoder_folder", "encoder_folders"} & {str(parameter.name) for parameter in command.params}
    }
    assert taking == COMMANDS.keys() | ELSEWHERE


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_an_encoder_behind_an_endpoint_and_tells_its_tokens(
    command: str, folder: Path, endpoint: ScriptedChat
) -> None:
    endpoint.reset(answer)
    arguments, printed = COMMANDS[command]
    out, told = run(endpoint, command, arguments)
    assert printed in out + told
    assert re.search(r"\d+ tokens encoded at the endpoint, which cost ", told)
    assert any("input" in call.body for call in endpoint.calls)


def test_the_search_page_and_python_find_by_it_what_the_command_finds(folder: Path, endpoint: ScriptedChat) -> None:
    out, _ = run(endpoint, "query", ["--collection", "docs", "--json", "--limit", "3", question(5)])
    wanted = [hit["passage_id"] for hit in json.loads(out)["hits"]]
    command = [sys.executable, str(CLI), "serve", "--collection", "docs", "--encoder", "encoder", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        [url] = re.findall(r"http://\S+", process.stderr.readline())
        with urlopen(f"{url}api/search?q={quote(question(5))}&limit=3") as answered:
            rankings = json.load(answered)["rankings"]
    finally:
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert "tokens encoded at the endpoint" in told
    assert [hit["passage_id"] for hit in rankings["xqg"]] == wanted

    encoder = open_encoder(folder / "encoder")
    assert isinstance(encoder, RemoteEncoder)
    with open_store("xqg_data") as store:
        found = search(question(5), store, "docs", encoder, limit=3)
    encoder.close()
    assert [hit.passage.passage_id for hit in found] == wanted


@pytest.mark.parametrize("stranger", ["owns the file", "may write to the folder"])
def test_nothing_is_sent_to_a_host_that_another_user_can_name(
    stranger: str, folder: Path, endpoint: ScriptedChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection remembers the folder; texts and key go to the URL in it."""
    words = ["query", "--collection", "docs", question(3)]
    try:
        if stranger == "may write to the folder":
            (folder / "encoder").chmod(0o777)
        elif os.getuid() == 0:
            os.chown(folder / "encoder" / "xqg.json", 12345, -1)
        else:
            monkeypatch.setattr(os, "getuid", lambda: 12345)
        endpoint.reset(answer)
        refused = CliRunner().invoke(main, words)
        assert (refused.exit_code, endpoint.calls) == (InputError.exit_code, [])
        assert "is at '127.0.0.1', as " in refused.stderr
        assert "name the folder: --encoder " in refused.stderr
        assert "[k3]" in run(endpoint, words[0], words[1:])[0], "it is named"
    finally:
        (folder / "encoder").chmod(0o755)
        os.chown(folder / "encoder" / "xqg.json", -1 if os.getuid() else 0, -1)
    assert "[k3]" in CliRunner().invoke(main, words).stdout, "it is remembered"
