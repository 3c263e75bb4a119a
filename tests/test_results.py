"""A results folder: written whole or not at all, read back as it was, never in the place of something else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.comparison import evaluate_runs
from xqg_qdrant.evaluation.results import (
    CHANGES,
    PASSAGES,
    check_folder,
    describe_file,
    make_manifest,
    new_results,
    read_results,
    save_evaluation,
)
from xqg_qdrant.machine import integer_instructions
from xqg_qdrant.records import GeneratedQuery, Passage, Qrel, Query, ScoredPassage

QUERIES = [Query("a1", "أين؟", "ar", ("1605",)), Query("a2", "?", "ar"), Query("k 1", "어디?", "ko", ("Turku",))]
QRELS = [Qrel("a1", "oulu", 1), Qrel("a2", "turku", 2), Qrel("k 1", "the gulf", 1), Qrel("k 1", "oulu", 0)]
PASSAGES_ = {
    "oulu": Passage("oulu", "Oulu was founded in 1605. " + "x" * 300, "Oulu"),
    "turku": Passage("turku", "Turku was founded in 1229.", "Turku"),
    "the gulf": Passage("the gulf", "The Gulf of Bothnia.", ""),
    "rovaniemi": Passage("rovaniemi", "Rovaniemi lies at the Arctic Circle.", ""),
    "vaasa": Passage("vaasa", "Vaasa is a city on the coast.", ""),
}
MANIFEST = make_manifest("evaluation", ["xqg", "evaluate"], {}, {"limit": 10})


def found(*names: str) -> list[ScoredPassage]:
    return [
        ScoredPassage(PASSAGES_[name], 0.5 - rank / 8, (GeneratedQuery("fi", f"mikä on {name}?"),))
        for rank, name in enumerate(names)
    ]


RUNS = {
    "passage": {"a1": found("turku", "vaasa", "rovaniemi", "the gulf", "oulu"), "a2": found("turku"), "k 1": found()},
    "xqg": {"a1": found("oulu", "turku"), "a2": found("turku"), "k 1": found("the gulf")},
}


def save(folder: Path, **manifest: Any) -> None:
    report = evaluate_runs(QUERIES, QRELS, RUNS, recall_at=[1], mrr_at=[10], ndcg_at=[], token_budgets=[])

    def match(question: str, hits: Sequence[ScoredPassage]) -> list[GeneratedQuery | None]:
        return [hit.generated_queries[0] if question == "أين؟" else None for hit in hits]

    save_evaluation(folder, MANIFEST | manifest, QUERIES, QRELS, report, RUNS, match)


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    save(tmp_path / "r")
    results = read_results(tmp_path / "r")
    names = sorted(path.name for path in (tmp_path / "r").iterdir())
    runs = ["passage.trec", "xqg.trec"]
    assert names == sorted(["manifest.json", "questions.jsonl", "qrels.tsv", "values.json", PASSAGES, CHANGES, *runs])
    assert results.manifest == {**MANIFEST, "files": [name for name in names if name != "manifest.json"]}
    assert results.queries == QUERIES
    assert results.qrels == QRELS
    assert list(results.values) == ["passage", "xqg"]
    assert results.values["passage"]["MRR@10"].per_query == {"a1": 20, "a2": 100, "k 1": 0}
    assert results.values["passage"]["MRR@10"].per_language == {"ar": 60, "ko": 0}
    assert results.values["xqg"]["recall@1"].macro == 100
    # Names with spaces, which other programs' runs cannot hold, are parted by tabs.
    assert results.read_run("xqg") == {
        "a1": [("oulu", 0.5), ("turku", 0.375)],
        "a2": [("turku", 0.5)],
        "k 1": [("the gulf", 0.5)],
    }
    assert results.read_run("another") == {}
    shown = {row["id"]: row for row in results.read_rows(PASSAGES)}
    assert shown.keys() == {"turku", "vaasa", "rovaniemi", "oulu", "the gulf"}
    assert shown["oulu"] == {"id": "oulu", "title": "Oulu", "text": PASSAGES_["oulu"].text}


def test_questions_won_and_lost_are_kept_with_the_first_hits_and_the_first_relevant_one(tmp_path: Path) -> None:
    save(tmp_path / "r")
    first, second = read_results(tmp_path / "r").read_rows(CHANGES)
    assert (first["id"], first["lang"], first["measure"], first["before"], first["after"]) == (
        *("a1", "ar", "recall@1"),
        *(0, 100),
    )
    plain, augmented = first["hits"]["passage"], first["hits"]["xqg"]
    assert [(hit["rank"], hit["passage_id"], hit["relevant"]) for hit in plain] == [
        (1, "turku", False),
        (2, "vaasa", False),
        (3, "rovaniemi", False),
        (5, "oulu", True),
    ]
    assert [(hit["rank"], hit["relevant"]) for hit in augmented] == [(1, True), (2, False)]
    assert augmented[0]["best_query"] == {"language": "fi", "text": "mikä on oulu?"}
    assert (augmented[0]["title"], augmented[0]["score"]) == ("Oulu", 0.5)
    assert (second["id"], second["hits"]["passage"]) == ("k 1", [])
    assert second["hits"]["xqg"][0]["best_query"] is None


def test_of_several_runs_the_last_is_held_against_the_first(tmp_path: Path) -> None:
    runs = RUNS | {"hybrid": {"a1": found("turku"), "a2": found("oulu"), "k 1": found()}}
    report = evaluate_runs(QUERIES, QRELS, runs, recall_at=[1], mrr_at=[], ndcg_at=[], token_budgets=[])
    save_evaluation(tmp_path / "r", MANIFEST, QUERIES, QRELS, report, runs)
    (change,) = read_results(tmp_path / "r").read_rows(CHANGES)
    assert (change["id"], change["before"], change["after"]) == ("a2", 100, 0)
    assert list(change["hits"]) == ["passage", "hybrid"]


def test_without_judgements_a_hit_is_relevant_that_holds_an_answer(tmp_path: Path) -> None:
    report = evaluate_runs(QUERIES, QRELS, RUNS, recall_at=[1], mrr_at=[], ndcg_at=[], token_budgets=[])
    save_evaluation(tmp_path / "r", MANIFEST, QUERIES, [], report, RUNS)
    first = read_results(tmp_path / "r").read_rows(CHANGES)[0]
    assert [hit["relevant"] for hit in first["hits"]["xqg"]] == [True, False]
    assert read_results(tmp_path / "r").qrels == []


def test_a_run_that_tells_no_passage_ids_is_kept_by_its_values_alone(tmp_path: Path) -> None:
    bare = {"a1": [ScoredPassage(Passage("", "Oulu was founded in 1605."), 1.0)]}
    report = evaluate_runs(QUERIES, QRELS, RUNS, recall_at=[1], mrr_at=[], ndcg_at=[], token_budgets=[])
    save_evaluation(tmp_path / "r", MANIFEST, QUERIES, QRELS, report, RUNS | {"cora": bare})
    assert sorted(path.name for path in (tmp_path / "r").glob("*.trec")) == ["passage.trec", "xqg.trec"]


def test_results_are_replaced_by_results_and_nothing_else_ever_is(tmp_path: Path) -> None:
    save(tmp_path / "r", seed=1)
    save(tmp_path / "r", seed=2)
    assert read_results(tmp_path / "r").manifest["seed"] == 2
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "r")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"kind": "extension"}')
    for name in ("mine", "file", "link", "other"):
        with pytest.raises(InputError, match=f"{name} exists and is not a results folder of xqg. Cure: "):
            check_folder(tmp_path / name)
        with pytest.raises(InputError, match="is not a results folder"):
            save(tmp_path / name)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "link", "mine", "other", "r"]


def test_what_fails_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        with new_results(folder, MANIFEST, QUERIES) as final:
            (final / "sweep.json").write_text("{}")
            raise RuntimeError

    save(tmp_path / "r", seed=1)
    for name in ("r", "new"):
        with pytest.raises(RuntimeError):
            fail(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    assert read_results(tmp_path / "r").manifest["seed"] == 1


def test_other_kinds_of_results_add_files_of_their_own(tmp_path: Path) -> None:
    with new_results(tmp_path / "s", MANIFEST | {"kind": "sweep"}, QUERIES, QRELS) as final:
        (final / "sweep.json").write_text("{}")
    results = read_results(tmp_path / "s")
    assert (results.manifest["kind"], results.values, results.queries) == ("sweep", {}, QUERIES)
    assert results.read_rows(CHANGES) == []
    assert (tmp_path / "s" / "sweep.json").exists()


def test_the_manifest_tells_what_made_the_figures(tmp_path: Path) -> None:
    file = tmp_path / "qrels.tsv"
    file.write_text("q1 d1 1\n")
    data = {"qrels": describe_file(file, 1)}
    # printf 'q1 d1 1\n' | sha256sum
    checksum = "4ef82c9c262f9b590bcf8f143088bac3efb20a14e3bb3a6acc0557803f242ede"
    manifest = make_manifest("evaluation", ["xqg", "evaluate", "--limit", "5"], data, {"limit": 5}, device="cpu")
    assert manifest["data"]["qrels"] == {"path": "qrels.tsv", "sha256": checksum, "rows": 1}
    assert manifest["command"] == ["xqg", "evaluate", "--limit", "5"]
    assert {"python", "xqg-qdrant", "numpy", "qdrant-client"} <= manifest["versions"].keys()
    assert manifest["machine"]["device"] == "cpu"
    assert manifest["machine"]["processor"]
    assert manifest["machine"]["instructions"] == integer_instructions()
    assert manifest["created"].endswith("+00:00")
    assert json.loads(json.dumps(manifest)) == manifest


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("manifest.json", "{", "is damaged"),
        ("manifest.json", '{"kind": "poem"}', "the kind of results is missing or unknown"),
        ("questions.jsonl", '{"id": "a1"}\n', "questions or values are damaged"),
        ("questions.jsonl", '{"id": \n', "line 1 is damaged"),
        ("values.json", '{"xqg": {"recall@1": {"unknown": 1}}}', "questions or values are damaged"),
        ("values.json", "[]", "questions or values are damaged"),
    ],
)
def test_damaged_results_are_refused_with_the_cure(tmp_path: Path, file: str, text: str, reason: str) -> None:
    save(tmp_path / "r")
    (tmp_path / "r" / file).write_text(text)
    with pytest.raises(InputError, match=f"{reason}.*Cure: run the command again with --save"):
        read_results(tmp_path / "r")


def test_a_folder_of_something_else_is_no_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a results folder: there is no manifest\.json\. Cure: "):
        read_results(tmp_path)
