"""Test which characters reach a terminal, by example and for every character."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from xqg_qdrant.cli import main
from xqg_qdrant.cli.shared import Group
from xqg_qdrant.printing import format_hits, hits_to_json
from xqg_qdrant.records import GeneratedQuery, Passage, ScoredPassage
from xqg_qdrant.retrieval import Hit
from xqg_qdrant.text import one_line, visible

CONTROLS = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cc"]
TURNING = [chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))]
CLEAR = "\x1b[2J\x1b]0;title\x07\x9b31m\x7f\u202e"


def test_control_characters_and_those_that_turn_the_writing_become_escapes() -> None:
    assert len(CONTROLS) == 65
    for character in [*CONTROLS, *TURNING, "\ud800"]:
        escaped = f"\\u{ord(character):04x}"
        assert one_line(f"a{character}b") == f"a{escaped}b"
        assert visible(f"a{character}b") == (f"a{character}b" if character in "\t\n" else f"a{escaped}b")


def test_every_other_character_is_left_alone() -> None:
    # Joiners make words of Persian and Indic languages and families of emoji; marks keep Arabic and Latin apart.
    for text in (
        "می\u200cخواهم",
        "क्\u200dष",
        "👨\u200d👩\u200d👧",
        "שלום\u200f!",
        "\u200ea\u061c",
        "e\u0301",
        "\ufeff",
        "\u00ad",
        "𝒳",
    ):
        assert one_line(text) == text


def test_json_stays_json_that_says_the_same() -> None:
    values = {"text": "".join(chr(code) for code in range(0x3000)) + "\\\x7f\\\\\x9b"}
    shown = visible(json.dumps(values, ensure_ascii=False, indent=2))
    assert json.loads(shown) == values
    assert not set(CONTROLS) - {"\n"} & set(shown)


def test_a_hit_cannot_look_like_two_or_steer_the_terminal() -> None:
    passage = Passage(f"id{CLEAR}\nid", f"text{CLEAR}\n  2  0.9  forged", f"title{CLEAR}\n  2  0.9  forged")
    hit = Hit(ScoredPassage(passage, 0.5), GeneratedQuery(f"fi{CLEAR}\n", f"query{CLEAR}\n"))
    assert visible(format_hits([hit])).count("\n") == 2
    assert json.loads(visible(hits_to_json(CLEAR, "xqg", [hit])))["hits"][0]["title"] == passage.title


def test_an_error_of_click_cannot_steer_the_terminal() -> None:
    @click.group(cls=Group)
    def group() -> None:
        """Nothing."""

    @group.command()
    def fail() -> None:
        """Refuse the arguments."""
        raise click.UsageError(f"no {CLEAR}")

    result = CliRunner().invoke(group, ["fail"])
    assert result.exit_code == 2
    # The first sequence is one of those that click itself drops.
    assert result.stderr.endswith("Error: no \\u001b]0;title\\u0007\\u009b31m\\u007f\\u202e\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [CLEAR],
        [f"--{CLEAR}"],
        ["query", "--limit", CLEAR, "--collection", "c", "q"],
        ["query", "--collection", CLEAR, "q"],
        ["query", "--collection", "c", "--store", f"edge:{CLEAR}", "q"],
        ["query", "--collection", "c", "--store", f"x{CLEAR}:", "q"],
        ["query", "--collection", "c", "--encoder", CLEAR, "q"],
        ["-v", "query", "--collection", "c", "--encoder", CLEAR, "q"],
        ["ingest", f"{CLEAR}.jsonl", "--collection", "c"],
        ["ingest", f"corpus{CLEAR}.jsonl", "--collection", "c", "--languages", CLEAR],
        ["ingest", f"corpus{CLEAR}.jsonl", "--collection", "c", "--fusion", CLEAR],
        ["score", "--predictions", CLEAR, "--gold", CLEAR],
        ["export", CLEAR],
    ],
)
def test_no_argument_reaches_the_terminal_as_it_is(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(f"corpus{CLEAR}.jsonl").write_text('{"id": "1", "text": "a"}\n')
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (2, 5, 6)
    assert "\\x1b[2J" in result.output or "\\u001b[2J" in result.output
    assert not (set(CONTROLS) - {"\n", "\t"} | set(TURNING)) & set(result.output)
