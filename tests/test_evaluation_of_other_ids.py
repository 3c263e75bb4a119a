"""An evaluation over ids that do not belong together is refused, not 0.00; what is not judged is not measured."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from shared_data import shared_case

from xqg_qdrant.cli import main
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation import measures
from xqg_qdrant.evaluation.measures import per_query_values
from xqg_qdrant.evaluation.runs import check_collection_is_judged
from xqg_qdrant.records import Qrel


def score(*words: object) -> Result:
    return CliRunner().invoke(main, ["score", *map(str, words)])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write(tmp_path / "q.jsonl", "".join(f'{{"id": "q{n}", "lang": "en", "text": "who?"}}\n' for n in (1, 2, 3)))


def test_a_run_without_a_judged_passage_is_refused(questions: Path, tmp_path: Path) -> None:
    qrels = write(tmp_path / "x.qrels", "q1 d1 1\nq2 d2 1\n")
    run = write(tmp_path / "run.trec", "q1 Q0 doc-1 1 2.0 s\nq2 Q0 doc-2 1 2.0 s\n")
    done = score("--run", run, "--questions", questions, "--qrels", qrels)
    assert done.exit_code == InputError.exit_code
    assert "none of the 2 judged passages is in the run run: it has 'doc-1', the judgements have 'd1'" in done.stderr


def test_a_run_of_unjudged_questions_is_refused(questions: Path, tmp_path: Path) -> None:
    qrels = write(tmp_path / "x.qrels", "q1 d1 1\n")
    run = write(tmp_path / "run.trec", "q3 Q0 d1 1 2.0 s\n")
    done = score("--run", run, "--questions", questions, "--qrels", qrels)
    assert done.exit_code == InputError.exit_code
    assert "no results for any of the questions" in done.stderr


def test_unjudged_questions_are_left_out_and_counted(questions: Path, tmp_path: Path) -> None:
    qrels = write(tmp_path / "x.qrels", "q1 d1 1\n")
    run = write(tmp_path / "run.trec", "q1 Q0 d1 1 2.0 s\n")
    done = score("--run", run, "--questions", questions, "--qrels", qrels)
    assert done.exit_code == 0, done.output
    assert "2 of the 3 questions left out, without judgements" in done.output
    assert "count as misses" not in done.output


def test_a_collection_without_a_judged_passage_is_refused() -> None:
    class Store:
        def read_fingerprint(self, collection: str) -> dict[str, object]:
            return {}

        def read_points(self, collection: str, ids: list[str]) -> dict[str, object]:
            return {name: object() for name in ids if name == "d150"}

    judged = [Qrel("q", f"d{number}", 1) for number in range(200)]
    check_collection_is_judged(Store(), "docs", judged)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"the only judged passage is not in the collection 'docs': the judgements have 'x'"
    ):
        check_collection_is_judged(Store(), "docs", [Qrel("q", "x", 1)])  # type: ignore[arg-type]


def test_ndcg_is_trec_evals(monkeypatch: pytest.MonkeyPatch) -> None:
    qrels = [Qrel("q", name, value) for name, value in {"a": 3, "b": 0, "c": 1, "d": -1, "e": 2}.items()]
    run = {"q": [("c", 9.0), ("d", 8.0), ("x", 7.0), ("a", 6.0), ("b", 5.0)]}
    asked = {"recall_at": (1, 5), "mrr_at": (10,), "ndcg_at": (3, 10)}
    expected = per_query_values(qrels, run, **asked)
    monkeypatch.setattr(measures, "LARGEST_LEVEL", 0)
    found = per_query_values(qrels, run, **asked)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name]["q"] == pytest.approx(values["q"]), name


def test_a_large_relevance_takes_no_memory() -> None:
    qrels = [Qrel("q", "a", 2**31 - 1), Qrel("q", "b", 1)]
    found = per_query_values(qrels, {"q": [("b", 2.0), ("a", 1.0)]}, recall_at=(1,), mrr_at=(10,), ndcg_at=(10,))
    assert found["recall@1"]["q"] == 0.5
    assert found["MRR@10"]["q"] == 1
    gain = 2**31 - 1
    assert found["nDCG@10"]["q"] == pytest.approx((1 + gain / math.log2(3)) / (gain + 1 / math.log2(3)))


@pytest.mark.parametrize(
    ("case", "words", "code", "said"),
    [
        ("run-7-columns", ["--run", "spaces.trec", "--qrels", "qrels.tsv"], 2, "spaces.trec, line 1: 7 columns"),
        ("run-7-columns", ["--run", "nbsp.trec", "--qrels", "nbsp-qrels.tsv"], 0, "recall@1 nbsp 100.00"),
        ("qrels-huge-relevance", ["--run", "neg.trec", "--qrels", "ms.tsv"], 2, "ms.tsv, line 1: the relevance"),
        ("qrels-huge-relevance", ["--run", "neg.trec", "--qrels", "huge2.tsv"], 2, "huge2.tsv, line 1: the relevance"),
        ("unjudged-questions", ["--run", "sys.trec"], 0, "4 of the 5 questions left out, without judgements"),
    ],
)
def test_reported_files_are_measured_or_refused(
    case: str, words: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared_case(case)
    monkeypatch.chdir(folder)
    done = score(*words, "--questions", "beir" if case == "unjudged-questions" else "q.jsonl")
    assert done.exit_code == code, done.output
    assert " ".join(said.split()) in " ".join(done.output.split())
