"""What shells get to complete the words of a command with, by the scripts that the README names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    # zsh tells the number of the word, fish the word itself.
    asked = {"COMP_WORDS": "xqg ing", "COMP_CWORD": "1" if shell == "zsh" else "ing"}
    answer = run("xqg", env={**environment, **asked, "_XQG_COMPLETE": f"{shell}_complete"})
    assert "ingest" in answer
    assert "Store the passages of FILE" in answer
    assert "robustness" not in answer
