"""What shells complete by the scripts that the README names, what --help shows, and how the command names itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.formatting import wrap_text
from click.testing import CliRunner

from xqg_qdrant.cli import main
from xqg_qdrant.cli.shared import command_name

COMMAND = f"""#!/bin/sh
exec {sys.executable} -c 'import sys; sys.argv[0] = "xqg"; from xqg_qdrant.cli import main; main()' "$@"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which the command is called xqg, as where it is installed."""
    (tmp_path / "xqg").write_text(COMMAND)
    (tmp_path / "xqg").chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}


def run(*command: str, env: dict[str, str]) -> str:
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("xqg ing", "ingest"),
        ("xqg ingest --al", "--alpha --alias"),
        ("xqg ingest --fusion ''", "sum mean"),
        ("xqg copy --write-con", "--write-consistency-factor"),
    ],
)
def test_bash_completes_commands_options_and_choices(words: str, expected: str, environment: dict[str, str]) -> None:
    script = f"""
        eval "$(_XQG_COMPLETE=bash_source xqg)"
        complete -p xqg >/dev/null
        COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _xqg_completion xqg
        echo "${{COMPREPLY[@]}}"
    """
    assert run("bash", "-ec", script, env=environment) == f"{expected}\n"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_and_the_same_words(shell: str, environment: dict[str, str]) -> None:
    script = run("xqg", env={**environment, "_XQG_COMPLETE": f"{shell}_source"})
    assert f"_XQG_COMPLETE={shell}_complete" in script
    # zsh passes the number of the word, fish the word itself.
    asked = {"COMP_WORDS": "xqg ing", "COMP_CWORD": "1" if shell == "zsh" else "ing"}
    answer = run("xqg", env={**environment, **asked, "_XQG_COMPLETE": f"{shell}_complete"})
    assert "ingest" in answer
    assert "Store the passages of FILE" in answer
    assert "robustness" not in answer


# Their options are still explained at length.
LONG_HELP = {"compare", "demo", "evaluate", "pilot", "robustness", "score", "sweep"}
NARROWEST_HELP = 80 - 2 - 30 - 4  # columns, beside the longest name of an option that click keeps on the same line


@pytest.mark.parametrize("name", sorted(main.commands.keys() - LONG_HELP))
def test_the_help_of_an_option_fits_two_lines(name: str) -> None:
    command = main.commands[name]
    context = click.Context(command, info_name=name)
    records = [parameter.get_help_record(context) for parameter in command.params]
    lines = {record[0]: wrap_text(record[1], NARROWEST_HELP).splitlines() for record in records if record}
    assert {option: wrapped for option, wrapped in lines.items() if len(wrapped) > 2} == {}


def test_the_help_of_ingest_shows_every_option_below_one_heading() -> None:
    headings, shown = [], []
    for line in CliRunner().invoke(main, ["ingest", "--help"]).stdout.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            headings.append(line)
        elif headings and line.startswith("  -"):
            shown.append(line.split()[0])
    assert headings == ["Source:", "Models:", "Language model:", "Queries:", "Vectors:", "Store:", "Engine:", "Other:"]
    options = [parameter.opts[0] for parameter in main.commands["ingest"].params if isinstance(parameter, click.Option)]
    assert sorted(shown) == sorted([*options, "-h,"])
    assert shown[-1] == "-h,"  # nothing else is without a heading


def test_the_name_of_the_command_is_the_path_by_which_it_was_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "a venv/bin"
    folder.mkdir(parents=True)
    (folder / "xqg").write_text("#!/bin/sh\n")
    (folder / "xqg").chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    for called, name in {
        "xqg": "xqg",
        ".venv/bin/xqg": ".venv/bin/xqg",
        "a venv/bin/xqg": "'a venv/bin/xqg'",
        "/opt/cli.py": "xqg",
    }.items():
        monkeypatch.setattr(sys, "argv", [called])
        assert command_name() == name
    # A shell that finds the command by its name passes its path, too.
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "argv", [str(folder / "xqg")])
    assert command_name() == "xqg"
