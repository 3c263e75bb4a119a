from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import shared_file

from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.files import (
    Prediction,
    ranked,
    read_judged_questions,
    read_predictions,
    read_qrels,
    read_run,
    write_predictions,
    write_run,
)
from xqg_qdrant.records import Qrel

QRELS = [Qrel("q1", "d1", 1), Qrel("q1", "d2", 0), Qrel("q2", "d1", 2)]


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    data = text.encode("utf-8")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


# Judgements


@pytest.mark.parametrize(
    "text",
    [
        "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq2\td1\t2\n",
        "q1\td1\t1\r\nq1\td2\t0\r\n\r\nq2\td1\t2\r\n",
        "q1 0 d1 1\nq1 0 d2 0\nq2  0  d1  2\n",
        "q1\t0\td1\t1\nq1\tQ0\td2\t0\nq2\t0\td1\t2",
        "\ufeffquery_id iteration passage_id relevance\nq1 0 d1 1\nq1 0 d1 1\nq1 0 d2 0\nq2 0 d1 2\n",
    ],
)
@pytest.mark.parametrize("name", ["qrels.tsv", "qrels.tsv.gz"])
def test_judgements_are_read_in_three_or_four_columns(tmp_path: Path, name: str, text: str) -> None:
    assert read_qrels(written(tmp_path / name, text)) == QRELS


def test_judgements_come_from_a_beir_folder(tmp_path: Path) -> None:
    written(tmp_path / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq1\td 1\t1\n")
    assert read_qrels(tmp_path) == [Qrel("q1", "d 1", 1)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("q1 d1\n", "line 1: 2 columns"),
        ("q1 d1 1\nq1 d2 high\n", "line 2: the relevance 'high' is not a whole number"),
        ("q1 d1 1\n\nq1 d1 0\n", "line 3: contradicts an earlier judgement of 'd1'"),
        ("query-id corpus-id score\n", "no judgements"),
        ("q1 d1 1700000000000\n", "line 1: the relevance '1700000000000' does not fit into 32 bits"),
        ("q1 d1 1\nq1\td2\t99999999999999999999\n", "line 2: the relevance .* does not fit into 32 bits"),
        ("q1 d1 0.5\n", "line 1: the relevance '0.5' is not a whole number"),
        ("q1 d1 1\nq1 d2 1_0\n", "line 2: the relevance '1_0' is not a whole number"),
        ("q1 d1 1e400\n", "line 1: the relevance '1e400' is not a whole number"),
        ("q1 Q0 Boeing 747 1\n", "line 1: 5 columns"),
    ],
)
def test_judgements_that_cannot_be_used_are_an_error(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"{reason}.* Cure: "):
        read_qrels(written(tmp_path / "qrels.tsv", text))


def test_a_file_of_judgements_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "qrels.tsv").write_bytes(b"q1 d1 1\nq\xff d1 1\n")
    with pytest.raises(InputError, match=r"line 2: .* Cure: save the file as UTF-8"):
        read_qrels(tmp_path / "qrels.tsv")


def test_the_dev_judgements_are_read_whole() -> None:
    assert len(read_qrels(shared_file("dev/qrels.tsv.gz"))) == 612 * 12


def test_a_header_of_any_names_is_no_judgement_and_a_first_line_of_data_is_one(tmp_path: Path) -> None:
    for header in ("qid docid rel", "query-id corpus-id score", "topic\titer\tdoc\trelevance"):
        columns = "q1\t0\td1\t1" if "iter" in header else "q1 d1 1"
        assert read_qrels(written(tmp_path / "qrels.tsv", f"{header}\n{columns}\n")) == [Qrel("q1", "d1", 1)]
    assert read_qrels(written(tmp_path / "qrels.tsv", "q1 d1 1.0\n")) == [Qrel("q1", "d1", 1)]


def test_white_space_that_is_not_ascii_belongs_to_an_id(tmp_path: Path) -> None:
    assert read_qrels(written(tmp_path / "q.tsv", "q1\u3000 Boeing\xa0747 1\n")) == [
        Qrel("q1\u3000", "Boeing\xa0747", 1)
    ]
    assert read_run(written(tmp_path / "r.trec", "q1 Q0 Boeing\xa0747 1 9.5 s\n")) == {"q1": [("Boeing\xa0747", 9.5)]}


@pytest.mark.parametrize("name", ["qrels.tsv", "qrels.tsv.gz", "qrels/test.tsv"])
@pytest.mark.parametrize("named_by", ["file", "folder"])
def test_judgements_beside_the_questions_are_found(name: str, named_by: str, tmp_path: Path) -> None:
    questions = written(tmp_path / "queries.jsonl", '{"id": "q1", "text": "who?"}\n')
    written(tmp_path / name, "query-id\tcorpus-id\tscore\nq1\td1\t1\nq9\td9\t1\n")
    _, qrels = read_judged_questions([questions if named_by == "file" else tmp_path])
    assert qrels == [Qrel("q1", "d1", 1)]


@pytest.mark.parametrize("header", ["qid\tquery", "query-id\ttext", "id\tquestion"])
def test_a_header_of_questions_is_no_question(header: str, tmp_path: Path) -> None:
    queries, _ = read_judged_questions([written(tmp_path / "questions.tsv", f"{header}\nq1\twho?\n")])
    assert [(query.query_id, query.text) for query in queries] == [("q1", "who?")]


# Predictions


@pytest.mark.parametrize("name", ["predictions.json", "predictions.json.gz"])
def test_predictions_come_back_as_they_were_written(tmp_path: Path, name: str) -> None:
    predictions = [Prediction("1", " ar", ("text é", "")), Prediction("2", "ko", ())]
    write_predictions(tmp_path / name, predictions)
    assert read_predictions(tmp_path / name) == predictions


def test_predictions_are_written_as_the_official_script_reads_them(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.json", [Prediction("1", "ar", ("a", "b"))])
    assert json.loads((tmp_path / "p.json").read_text("utf-8")) == [{"id": "1", "lang": "ar", "ctxs": ["a", "b"]}]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"id": "1", "lang": "ar", "ctxs": []}\n{"id": "2"}\n', "not valid JSON"),
        ('{"id": "1", "lang": "ar", "ctxs": []}', "not a JSON list"),
        (
            '[{"id": "1", "lang": "ar", "ctxs": []}, {"id": "2", "lang": "ar"}]',
            "prediction 2: .* Cure: give an id, a lang",
        ),
        ('[{"id": "1", "lang": "ar", "ctxs": [{"text": "a"}]}]', "prediction 1: .* Cure: .* ctxs as a list of texts"),
    ],
)
def test_predictions_that_cannot_be_used_are_an_error(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_predictions(written(tmp_path / "p.json", text))


# Runs


def test_a_run_is_written_with_ranks_from_one_and_ties_parted(tmp_path: Path) -> None:
    write_run(tmp_path / "run.trec", {"q1": [("low", 0.25), ("b", 0.5), ("a", 0.5)], "q2": [("d", -1.0)], "q3": []})
    lines = [line.split(" ") for line in (tmp_path / "run.trec").read_text("utf-8").splitlines()]
    assert [(q, q0, name, rank, tag) for q, q0, name, rank, _, tag in lines] == [
        ("q1", "Q0", "b", "1", "xqg"),
        ("q1", "Q0", "a", "2", "xqg"),
        ("q1", "Q0", "low", "3", "xqg"),
        ("q2", "Q0", "d", "1", "xqg"),
    ]
    # 0.5 is 2**-1, and the next number below it in single precision is smaller by 2**-25.
    assert [float(line[4]) for line in lines] == [0.5, pytest.approx(0.5 - 2**-25, abs=1e-8), 0.25, -1.0]


@given(st.lists(st.sampled_from([0.0, 0.1, 0.1 + 1e-12, 1e-45, -0.1, 1e30, 7.25]) | st.floats(-1e3, 1e3, width=32)))
def test_written_scores_fall_strictly_in_single_precision_and_keep_the_order(scores: list[float]) -> None:
    results = ranked([(str(number), score) for number, score in enumerate(scores)])
    single = [np.float32(f"{score:.9g}") for _, score in results]
    assert all(a > b for a, b in pairwise(single))
    # sorted is stable: equal scores keep their order
    assert [name for name, _ in results] == [str(n) for n in sorted(range(len(scores)), key=lambda n: -scores[n])]
    assert all(abs(score - scores[int(name)]) <= 1e-5 * max(1, abs(score)) for name, score in results)


def test_a_run_comes_back_in_its_order(tmp_path: Path) -> None:
    run = {"q1": [("b", 3.0), ("a", 3.0), ("c", 1.5)], "q2": [("x", 0.1)]}
    write_run(tmp_path / "run.trec.gz", run, tag="mine")
    read = read_run(tmp_path / "run.trec.gz")
    assert {query_id: [name for name, _ in found] for query_id, found in read.items()} == {
        "q1": ["b", "a", "c"],
        "q2": ["x"],
    }
    assert [name for name, _ in ranked(read["q1"])] == ["b", "a", "c"]


def test_a_foreign_run_is_put_in_order_of_score_and_then_rank(tmp_path: Path) -> None:
    path = written(tmp_path / "run.txt", "q1 Q0 low 1 1.0 t\nq1\tQ0\tb\t3\t2.0\tt\nq1 Q0 a 2 2.0 t\n")
    assert read_run(path) == {"q1": [("a", 2.0), ("b", 2.0), ("low", 1.0)]}


@pytest.mark.parametrize(
    "line", ["q1 Q0 d1 1", "q1 Q0 Boeing 747 1 9.5 t", "q1 Q0 d1 1 0.5", "q1 Q0 d1 one 0.5 t", "q1 Q0 d1 1 high t"]
)
def test_a_run_that_cannot_be_used_is_an_error_with_its_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError, match=r"line 2: .* Cure: give query id, Q0, passage id, rank, score and tag"):
        read_run(written(tmp_path / "run.txt", f"q1 Q0 d0 1 0.5 t\n{line}\n"))


@pytest.mark.parametrize("name", ["a b", "a\u3000b", " a", ""])
def test_an_id_with_white_space_cannot_be_in_a_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"is empty or contains white space\. Cure: rename it"):
        write_run(tmp_path / "run.trec", {"q1": [(name, 1.0)]})


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_a_score_that_no_scorer_can_hold_is_an_error(score: float) -> None:
    with pytest.raises(InputError, match=r"the score of 'd' is .*\. Cure: use scores between"):
        ranked([("d", score)], "q1")


def test_a_passage_found_twice_is_an_error() -> None:
    with pytest.raises(InputError, match=r"query 'q1': a passage occurs twice in its results\. Cure: "):
        ranked([("d", 1.0), ("d", 0.5)], "q1")
