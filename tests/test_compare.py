"""`xqg compare`: saved runs and files of any systems, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from xqg_qdrant.cli import main

QUESTIONS = """\
{"id": "1", "question": "Missä?", "lang": "fi", "answers": ["Oulu"]}
{"id": "2", "question": "어디?", "lang": "ko", "answers": ["Turku"]}
{"id": "3", "question": "언제?", "lang": "ko"}
"""
QRELS = "1 0 oulu 1\n2 0 turku 1\n3 0 year 1\n"


@pytest.fixture(autouse=True)
def in_the_folder_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_text(QUESTIONS)
    Path("qrels.txt").write_text(QRELS)
    # The second run wins question 2 and loses question 3.
    Path("old.trec").write_text("1 Q0 oulu 1 9 a\n2 Q0 oulu 1 9 a\n2 Q0 turku 2 8 a\n3 Q0 year 1 9 a\n")
    Path("new.trec").write_text("1 Q0 oulu 1 9 a\n2 Q0 turku 1 9 a\n3 Q0 oulu 1 9 a\n")


def xqg(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def save(folder: str, run: str, *options: str, questions: str = "q.jsonl") -> None:
    given = ("--questions", questions, "--qrels", "qrels.txt", "--run", f"xqg={run}", "--save", folder)
    result = xqg("score", *given, *options)
    assert result.exit_code == 0, result.output


def compared(*arguments: object) -> dict[str, Any]:
    result = xqg("compare", *arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_two_folders_are_compared_language_by_language() -> None:
    save("monday", "old.trec")
    save("tuesday", "new.trec")
    found = compared("monday", "tuesday")
    assert list(found) == ["monday/xqg", "tuesday/xqg", "comparison"]
    difference = found["comparison"]["tuesday/xqg"]["recall@1"]
    assert (difference["difference"], difference["won"], difference["lost"], difference["tied"]) == (0, 1, 1, 1)
    assert difference["per_language"]["ko"] == {
        **{"difference": 0, "won": 1, "lost": 1, "tied": 0, "interval": [-100, 100], "p": 1, "p_holm": 1},
    }
    # Only the languages' means vary: fi is tied, ko is -100, 0 or 100, and weighs a half.
    assert difference["interval"] == [-50, 50]
    assert compared("monday", "tuesday", "--test", "t")["comparison"]["tuesday/xqg"]["recall@1"]["p"] == 1


def test_a_saved_comparison_is_that_of_the_files_themselves() -> None:
    save("monday", "old.trec")
    save("tuesday", "new.trec")
    saved = compared("monday", "tuesday")["comparison"]["tuesday/xqg"]
    direct = compared("old.trec", "new.trec", "--questions", "q.jsonl", "--qrels", "qrels.txt")
    assert {name: direct["comparison"]["new.trec"][name] for name in saved} == saved


def test_questions_won_and_lost_are_listed_with_their_hits() -> None:
    result = xqg("compare", "old.trec", "new.trec", "--questions", "q.jsonl", "--qrels", "qrels.txt", "--list")
    assert result.stdout.endswith(
        "\nwon  2 (ko)  recall@1 0.00 to 100.00\n"
        "     어디?\n"
        "     answers: Turku\n"
        "     old.trec\n"
        "         1  [oulu]\n"
        "         2  [turku]  relevant\n"
        "     new.trec\n"
        "         1  [turku]  relevant\n"
        "\nlost 3 (ko)  recall@1 100.00 to 0.00\n"
        "     언제?\n"
        "     old.trec\n"
        "         1  [year]  relevant\n"
        "     new.trec\n"
        "         1  [oulu]\n"
    )
    changes = compared("old.trec", "new.trec", "--questions", "q.jsonl", "--qrels", "qrels.txt", "--list")["changes"]
    assert [(change["id"], change["after"]) for change in changes] == [("2", 100), ("3", 0)]


def test_runs_of_a_folder_are_chosen_by_their_names() -> None:
    given = ("--questions", "q.jsonl", "--qrels", "qrels.txt")
    assert xqg("score", *given, "--run", "old.trec", "--run", "new.trec", "--save", "r").exit_code == 0
    found = compared("r", "r", "--runs", "old,new")
    assert list(found) == ["old", "new", "comparison"]
    for runs, message in (
        ("old,x", "no run 'x'.\nCure: choose from old, new."),
        ("new,new", "with itself.\nCure: name two"),
    ):
        result = xqg("compare", "r", "r", "--runs", runs)
        assert (result.exit_code, message in result.stderr) == (2, True)


def test_the_augmented_run_is_compared_where_no_other_is_named() -> None:
    given = ("--questions", "q.jsonl", "--qrels", "qrels.txt", "--run", "xqg=old.trec", "--run", "new.trec")
    for folder in ("a", "b"):
        assert xqg("score", *given, "--save", folder).exit_code == 0
    assert list(compared("a", "b")) == ["a/xqg", "b/xqg", "comparison"]


def test_runs_on_other_data_are_refused_with_the_field_both_values_and_the_cure() -> None:
    save("monday", "old.trec")
    Path("q2.jsonl").write_text(QUESTIONS.replace("Missä?", "Missä se on?"))
    save("questions", "new.trec", questions="q2.jsonl")
    result = xqg("compare", "monday", "questions")
    assert result.exit_code == 2
    assert "data.questions: q.jsonl (3 rows, sha256 " in result.stderr
    assert ", now q2.jsonl (3 rows, sha256 " in result.stderr
    assert "Cure: evaluate both with the same --questions, --qrels and --word-rules." in result.stderr
    Path("qrels.txt").write_text(QRELS + "3 0 oulu 1\n")
    save("judgements", "new.trec")
    result = xqg("compare", "monday", "judgements")
    assert "data.qrels: qrels.txt (3 rows, sha256 " in result.stderr
    assert ", now qrels.txt (4 rows, sha256 " in result.stderr
    Path("qrels.txt").write_text(QRELS)
    save("words", "new.trec", "--word-rules", "published")
    assert "settings.word_rules: 'installed', now 'published'" in xqg("compare", "monday", "words").stderr


def test_the_same_data_in_another_file_or_order_is_the_same_data() -> None:
    save("monday", "old.trec")
    Path("sorted.jsonl").write_text("".join(line + "\n" for line in reversed(QUESTIONS.splitlines())))
    save("tuesday", "new.trec", questions="sorted.jsonl")
    difference = compared("monday", "tuesday")["comparison"]["tuesday/xqg"]["recall@1"]
    assert (difference["won"], difference["lost"], difference["tied"]) == (1, 1, 1)


def test_what_made_the_two_differ_is_told() -> None:
    for folder, alpha in (("monday", 0.01), ("tuesday", 0.1)):
        save(folder, "old.trec", "--test", "t" if alpha == 0.1 else "mcnemar")
        manifest = json.loads(Path(folder, "manifest.json").read_text())
        manifest["fingerprint"] = {"recipe.alpha": alpha, "recipe.fusion": "sum"}
        Path(folder, "manifest.json").write_text(json.dumps(manifest))
    table = xqg("compare", "monday", "tuesday").stdout
    assert "Note: recipe.alpha is 0.01 in the first and 0.1 in the second." in table
    assert "recipe.fusion" not in table
    assert "mcnemar" not in table  # both are tested anew


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["old.trec", "new.trec"], "is not a results folder"),
        (["old.trec", "nowhere.trec", "--questions", "q.jsonl"], "nowhere.trec: there is no such file"),
        (["old.trec", "old.trec", "--questions", "q.jsonl", "--qrels", "qrels.txt"], "are one file"),
        (["a", "b", "--qrels", "qrels.txt"], "--qrels goes with --questions"),
        (["a", "b", "--runs", "x,y", "--questions", "q.jsonl"], "--questions is for files"),
        (["a", "b", "--runs", "x"], "two names separated by a comma"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments: list[str], message: str) -> None:
    result = xqg("compare", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_results_of_another_kind_have_no_runs_to_compare() -> None:
    save("monday", "old.trec")
    manifest = json.loads(Path("monday/manifest.json").read_text()) | {"kind": "sweep"}
    Path("monday/manifest.json").write_text(json.dumps(manifest))
    Path("monday/values.json").unlink()
    result = xqg("compare", "monday", "monday")
    assert (
        "monday: holds the results of a sweep, which has no runs.\nCure: give a folder written by xqg evaluate"
        in result.stderr
    )
