"""Runs and predictions of other systems, measured by the rules of our own runs or by the official script's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from xqg_qdrant.cli import main
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation import xor_retrieve as official
from xqg_qdrant.evaluation.runs import read_system_predictions, read_system_run, with_passages
from xqg_qdrant.records import Passage, ScoredPassage

needs_nltk = pytest.mark.skipif(not official.is_available(), reason="the tokenizer of R@kt is not installed")

QUESTIONS = """\
{"id": "1", "question": "?", "lang": "ar", "answers": ["Oulu"]}
{"id": "2", "question": "?", "lang": "ar", "answers": ["Turku"]}
{"id": "3", "question": "?", "lang": "ko", "answers": ["$5"]}
{"id": "4", "question": "?", "lang": "ko", "answers": ["yes"]}
"""
QRELS = "1 0 oulu 1\n2 0 turku 1\n3 0 prices 1\n"
# The second finds what the first finds, and one more; neither finds anything for question 3.
FIRST = "1 Q0 oulu 1 9 bm25\n2 Q0 oulu 1 9 bm25\n99 Q0 oulu 1 9 bm25\n"
SECOND = "1 Q0 oulu 1 0.9 x\n2 Q0 turku 1 0.9 x\n"


@pytest.fixture(autouse=True)
def in_the_folder_of_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_text(QUESTIONS)
    Path("qrels.txt").write_text(QRELS)
    Path("bm25.trec").write_text(FIRST)
    Path("other.trec").write_text(SECOND)


def xqg(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def measured(*arguments: object) -> dict[str, Any]:
    result = xqg("score", "--json", *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def predict(name: str, *items: tuple[str | int, str, list[str]]) -> None:
    Path(name).write_text(json.dumps([{"id": id_, "lang": lang, "ctxs": texts} for id_, lang, texts in items]))


# Reading


def test_a_run_becomes_passages_without_texts_which_a_collection_may_know() -> None:
    run = read_system_run(Path("bm25.trec"), {"1", "2", "3"})
    assert run == {"1": [ScoredPassage(Passage("oulu", ""), 9)], "2": [ScoredPassage(Passage("oulu", ""), 9)]}
    known = Passage("oulu", "Oulu lies in the north.", "Oulu")
    assert with_passages(run, {"oulu": known})["1"] == [ScoredPassage(known, 9)]
    assert with_passages(run, {}) == run


def test_predictions_become_passages_without_ids_in_the_order_of_their_contexts() -> None:
    predict("cora.json", (1, " ar", ["b", "a"]), ("99", "ar", ["c"]), ("2", "ar", []))
    run = read_system_predictions(Path("cora.json"), {"1", "2", "3"})
    assert [hit.passage.text for hit in run["1"]] == ["b", "a"]
    assert run["1"][0].score > run["1"][1].score
    assert run.keys() == {"1", "2"}
    assert run["2"] == []


def test_what_cannot_be_a_systems_results_is_an_error_with_the_file() -> None:
    Path("twice.trec").write_text("1 Q0 oulu 1 9 t\n1 Q0 oulu 2 8 t\n")
    with pytest.raises(InputError, match=r"twice\.trec: query '1': a passage occurs twice in its results\. Cure: "):
        read_system_run(Path("twice.trec"), {"1"})
    with pytest.raises(InputError, match=r"bm25\.trec: no results for any of the questions\. Cure: "):
        read_system_run(Path("bm25.trec"), {"a"})
    predict("twice.json", ("1", "ar", ["a"]), ("1", "ar", ["b"]))
    with pytest.raises(InputError, match=r"twice\.json: two predictions for question '1'\. Cure: .* xqg score --gold"):
        read_system_predictions(Path("twice.json"), {"1"})
    predict("none.json", ("99", "ar", ["a"]))
    with pytest.raises(InputError, match=r"none\.json: no results for any of the questions"):
        read_system_predictions(Path("none.json"), {"1"})


# Measuring


def test_runs_of_two_systems_are_measured_and_compared_and_what_they_lack_is_a_miss() -> None:
    found = measured(*("--questions", "q.jsonl", "--qrels", "qrels.txt", "--run", "bm25.trec", "--run", "x=other.trec"))
    assert list(found) == ["bm25", "x", "comparison"]
    # Three questions are judged: of ar the first run has one of two, of ko none has the one.
    assert found["bm25"]["recall@1"] == {"macro": 25, "per_language": {"ar": 50, "ko": 0}}
    assert found["x"]["recall@1"] == {"macro": 50, "per_language": {"ar": 100, "ko": 0}}
    difference = found["comparison"]["x"]["recall@1"]
    assert (difference["difference"], difference["won"], difference["lost"], difference["tied"]) == (25, 1, 0, 2)
    # One of two questions is won: drawn twice, it is 0, 50 or 100, and half of it in the macro average.
    assert difference["interval"] == [0, 50]
    assert "R@2kt" not in found["x"]
    table = xqg("score", "--questions", "q.jsonl", "--qrels", "qrels.txt", "--run", "bm25.trec").stdout
    assert "Note: bm25: 1 of the 3 questions has no results and counts as a miss." in table
    assert "texts of its passages are unknown" in table


@needs_nltk
def test_predictions_count_missing_questions_as_misses_beside_questions_and_leave_them_out_beside_gold() -> None:
    predict("cora.json", ("1", "ar", ["in Oulu"]), ("3", "ko", ["it was $5"]))
    predict("sentri.json", ("1", "ar", ["in Turku"]), ("2", "ar", ["in Turku"]), ("3", "ko", []))
    files = ("--predictions", "cora.json", "--predictions", "sentri.json")
    by_script = measured(*files, "--gold", "q.jsonl")
    assert by_script["cora"]["R@2kt"] == {"macro": 50, "per_language": {"ar": 100, "ko": 0}}
    assert by_script["sentri"]["R@2kt"] == {"macro": 25, "per_language": {"ar": 50, "ko": 0}}
    assert by_script["comparison"] == {}
    ours = measured(*files, "--questions", "q.jsonl")
    assert ours["cora"]["R@2kt"] == {"macro": 25, "per_language": {"ar": 50, "ko": 0}}
    assert ours["sentri"]["R@2kt"] == {"macro": 25, "per_language": {"ar": 50, "ko": 0}}
    assert (ours["comparison"]["sentri"]["R@2kt"]["won"], ours["comparison"]["sentri"]["R@2kt"]["lost"]) == (1, 1)
    lenient = measured(*files, "--questions", "q.jsonl", "--lenient")
    assert lenient["cora"]["R@2kt"] == ours["cora"]["R@2kt"]
    assert lenient["cora"]["lenient@2kt"] == {"macro": 75, "per_language": {"ar": 50, "ko": 100}}
    table = xqg("score", *files, "--gold", "q.jsonl").stdout
    assert "Note: cora: 1 question has no prediction and is not counted, as in the official script." in table


def test_the_test_is_chosen_by_its_name() -> None:
    Path("q7.jsonl").write_text("".join(f'{{"id": "{n}", "question": "?", "lang": "fi"}}\n' for n in range(7)))
    Path("qrels7.txt").write_text("".join(f"{n} 0 a 1\n" for n in range(7)))
    Path("bad.trec").write_text("".join(f"{n} Q0 b 1 1 t\n" for n in range(7)))
    Path("good.trec").write_text("".join(f"{n} Q0 {'a' if n else 'b'} 1 1 t\n" for n in range(7)))
    given = ("--questions", "q7.jsonl", "--qrels", "qrels7.txt", "--run", "bad.trec", "--run", "good.trec")
    p = {
        test: measured(*given, "--test", test)["comparison"]["good"]["recall@1"]["p"]
        for test in ("randomisation", "mcnemar", "t")
    }
    # Six won and none lost: 2 of 64. With a mean of 6/7 and a variance of 1/7, t is 6 at 6 degrees of freedom.
    assert p["randomisation"] == p["mcnemar"] == 2 / 64
    assert p["t"] == pytest.approx(0.000965, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--run' or '--predictions'."),
        (["--run", "bm25.trec"], "Missing option '--questions', or '--gold'."),
        (["--predictions", "p.json"], "Missing option '--questions', or '--gold'."),
        (["--gold", "q.jsonl"], "Missing option '--run' or '--predictions'."),
        (["--gold", "q.jsonl", "--predictions", "p.json", "--questions", "q.jsonl"], "--gold goes with --predictions"),
        (["--gold", "q.jsonl", "--predictions", "p.json", "--qrels", "qrels.txt"], "--gold goes with --predictions"),
        (["--gold", "q.jsonl", "--predictions", "p.json", "--run", "bm25.trec"], "--gold goes with --predictions"),
        (["--gold", "q.jsonl", "--predictions", "p.json", "--lenient"], "--gold goes with --predictions alone"),
        (["--gold", "q.jsonl", "--predictions", "p.json", "--save", "r"], "--gold goes with --predictions alone"),
        (["--questions", "q.jsonl", "--run", "bm25.trec", "--run", "bm25.trec"], "The name 'bm25' is taken"),
        (["--questions", "q.jsonl", "--run", "bm25.trec", "--predictions", "bm25.json"], "The name 'bm25' is taken"),
        (["--questions", "q.jsonl", "--run", "../x=bm25.trec"], "'../x' cannot name a run"),
        (["--questions", "q.jsonl", "--run", "comparison=bm25.trec"], "The name 'comparison' is taken"),
        (["--questions", "q.jsonl", "--run", "nowhere.trec"], "nowhere.trec: there is no such file"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: list[str], message: str) -> None:
    result = xqg("score", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--questions", "q.jsonl", "--run", "bm25.trec"], "Missing option '--collection'. To measure files without"),
        (["--collection", "c", "--run", "bm25.trec"], "Missing option '--questions'."),
        (["--collection", "c", "--gold", "q.jsonl"], "--gold"),
        (["--questions", "q.jsonl", "--run", "xqg=bm25.trec", "--collection", "c"], "The name 'xqg' is taken"),
        (["--questions", "q.jsonl", "--run", "nowhere.trec", "--collection", "c"], "nowhere.trec: there is no such"),
    ],
)
def test_evaluate_refuses_what_does_not_go_with_a_collection(arguments: list[str], message: str) -> None:
    result = xqg("evaluate", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_runs_of_other_systems_are_saved_with_their_files_checksums() -> None:
    given = ("--questions", "q.jsonl", "--qrels", "qrels.txt", "--run", "bm25.trec", "--run", "x=other.trec")
    assert xqg("score", *given, "--save", "r").exit_code == 0
    manifest = json.loads(Path("r/manifest.json").read_text())
    assert manifest["command"] == ["xqg", "score", *given, "--save", "r"]
    assert manifest["data"]["questions"]["rows"] == 4
    assert manifest["data"]["run x"]["path"] == "other.trec"
    assert len(manifest["data"]["run x"]["sha256"]) == 64
    assert Path("r/x.trec").read_text() == "1\tQ0\toulu\t1\t0.899999976\tx\n2\tQ0\tturku\t1\t0.899999976\tx\n"


def test_a_folder_of_something_else_is_refused_before_anything_is_read() -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("")
    result = xqg("score", "--questions", "q.jsonl", "--run", "nowhere.trec", "--save", "mine")
    assert result.exit_code == 2
    assert "mine exists and is not a results folder of xqg" in result.stderr
