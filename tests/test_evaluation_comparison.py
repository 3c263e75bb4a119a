from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence

import pytest
from shared_data import shared_file

from xqg_qdrant.corpus.passages import read_passages
from xqg_qdrant.corpus.questions import read_queries
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation import xor_retrieve as official
from xqg_qdrant.evaluation.comparison import (
    Difference,
    evaluate_runs,
    report_predictions,
)
from xqg_qdrant.evaluation.files import Prediction, read_qrels
from xqg_qdrant.evaluation.measures import per_query_values
from xqg_qdrant.evaluation.runs import predictions_of_run
from xqg_qdrant.evaluation.significance import paired_randomisation_test
from xqg_qdrant.printing import format_table
from xqg_qdrant.records import Passage, Qrel, Query, ScoredPassage

needs_nltk = pytest.mark.skipif(not official.is_available(), reason="the tokenizer of R@kt is not installed")

PASSAGES = {
    "oulu": Passage("oulu", "Oulu was founded in 1605.", "Founding"),
    "turku": Passage("turku", "Turku was founded in 1229.", "1605"),
    "rovaniemi": Passage("rovaniemi", "Rovaniemi lies at the Arctic Circle.", ""),
}
QUERIES = [
    Query("a1", "?", "ar", ("1605",)),
    Query("a2", "?", "ar", ("1229",)),
    Query("a3", "?", "ar", ("Arctic",)),
    Query("k1", "?", "ko", ("1605", "yes")),
    Query("k2", "?", "ko", ("yes",)),
]
QRELS = [
    Qrel("a1", "oulu", 1),
    Qrel("a2", "turku", 1),
    Qrel("a3", "rovaniemi", 1),
    Qrel("k1", "oulu", 1),
    Qrel("other", "oulu", 1),
]


def run_of(**found: str) -> dict[str, list[ScoredPassage]]:
    """Return a run from the passage ids of each question, best first, parted by spaces."""
    return {
        query_id: [ScoredPassage(PASSAGES[name], 1 - rank / 10) for rank, name in enumerate(names.split())]
        for query_id, names in found.items()
    }


PLAIN = run_of(a1="turku oulu", a2="turku", a3="oulu turku", k1="turku", k2="oulu")
AUGMENTED = run_of(a1="oulu turku", a2="oulu turku", a3="rovaniemi", k1="turku oulu", k2="oulu", other="oulu")


def test_one_run_is_averaged_over_questions_and_then_languages() -> None:
    report = evaluate_runs(
        QUERIES, QRELS, {"passage": PLAIN}, recall_at=[1, 2], mrr_at=[2], ndcg_at=[], token_budgets=[]
    )
    # In ar: a1 is second, a2 first, a3 missing. In ko: k1 is missing, and k2 has no judgement.
    assert report.to_json() == {
        "recall@1": {"macro": pytest.approx(50 / 3), "per_language": {"ar": pytest.approx(100 / 3), "ko": 0}},
        "recall@2": {"macro": pytest.approx(100 / 3), "per_language": {"ar": pytest.approx(200 / 3), "ko": 0}},
        "MRR@2": {"macro": pytest.approx(25), "per_language": {"ar": pytest.approx(50), "ko": 0}},
    }
    assert report.values["passage"]["MRR@2"].per_query == {"a1": 50, "a2": 100, "a3": 0, "k1": 0}
    assert report.questions == {"ar": 3, "ko": 2}
    assert report.comparisons == {}


def test_two_runs_are_compared_question_by_question() -> None:
    report = evaluate_runs(
        QUERIES, QRELS, {"passage": PLAIN, "xqg": AUGMENTED}, recall_at=[1], mrr_at=[], ndcg_at=[], token_budgets=[]
    )
    overall, per_language = report.comparisons["xqg"]["recall@1"]
    # a1 and a3 are won, a2 is lost, k1 is missed by both; of the 8 ways to choose three signs all have |sum| >= 1.
    assert overall.points == pytest.approx(50 / 3)
    assert (overall.won, overall.lost, overall.tied, overall.p, overall.p_holm) == (2, 1, 1, 1.0, None)
    assert per_language["ar"].points == pytest.approx(100 / 3)
    # Of the 27 ways to draw three of +1, +1 and -1 one has only losses: its mean of -1 lies beyond 2.5% of them.
    assert per_language["ar"].interval == (-100, 100)
    assert per_language["ar"][1:4] == (2, 1, 0)
    assert per_language["ko"] == Difference(0, won=0, lost=0, tied=1, interval=(0, 0), p=1.0, p_holm=1.0)
    # ko adds nothing, and halves what ar adds.
    assert overall.interval == (-50, 50)
    found = report.to_json()
    assert list(found) == ["passage", "xqg", "comparison"]
    assert found["xqg"]["recall@1"]["macro"] == pytest.approx(100 / 3)
    assert found["comparison"]["xqg"]["recall@1"]["difference"] == pytest.approx(50 / 3)
    assert found["comparison"]["xqg"]["recall@1"]["interval"] == [-50, 50]
    assert found["comparison"]["xqg"]["recall@1"]["per_language"]["ko"]["tied"] == 1
    assert json.loads(json.dumps(found)) == found


@needs_nltk
def test_answers_are_looked_for_in_texts_without_titles_and_a_question_without_results_is_a_miss() -> None:
    run = run_of(a1="turku", a2="oulu turku", k1="oulu", k2="oulu")  # a3 has no results
    report = evaluate_runs(QUERIES, [], {"xqg": run}, token_budgets=[6, 2000])
    values = report.values["xqg"]
    assert list(values) == ["R@6t", "R@2kt"]
    assert values["R@6t"].per_query == {"a1": 0, "a2": 0, "a3": 0, "k1": 100}
    assert values["R@2kt"].per_query == {"a1": 0, "a2": 100, "a3": 0, "k1": 100}
    assert values["R@2kt"].macro == pytest.approx((100 / 3 + 100) / 2)


@needs_nltk
def test_the_official_score_leaves_out_what_the_report_counts_as_a_miss() -> None:
    predictions = predictions_of_run(QUERIES, PLAIN)
    assert predictions[0] == Prediction("a1", "ar", ("Turku was founded in 1229.", "Oulu was founded in 1605."))
    report = report_predictions({"cora": predictions[:2]}, QUERIES)
    assert report.to_json()["R@2kt"] == {"macro": 100, "per_language": {"ar": 100}}
    assert report.questions == {"ar": 2}
    assert report.notes == ("cora: 2 questions have no prediction and are not counted, as in the official script",)
    assert "R@5kt      cora " in format_table(report)
    assert report_predictions({"cora": predictions}, QUERIES).notes == ()


@needs_nltk
def test_a_report_over_all_questions_agrees_with_the_official_score() -> None:
    passages = [p for p in read_passages(str(shared_file("dev/corpus.jsonl.gz"))) if isinstance(p, Passage)][:300]
    choose = random.Random(2)
    queries = [q for lang in ("ar", "ru") for q in read_queries(shared_file(f"dev/queries.{lang}.jsonl.gz"))[:80]]
    run = {q.query_id: [ScoredPassage(p, -n) for n, p in enumerate(choose.sample(passages, 50))] for q in queries}
    report = evaluate_runs(queries, [], {"xqg": run})
    scores = official.score_predictions(predictions_of_run(queries, run), queries)
    for name in ("R@2kt", "R@5kt"):
        assert report.values["xqg"][name].macro == pytest.approx(scores[name]["macro"])
        assert report.values["xqg"][name].per_language == pytest.approx(scores[name]["per_language"])
    assert scores["R@2kt"]["questions"] == {"ar": 80, "ru": 80}


def test_real_judgements_give_the_mean_of_the_measures_values() -> None:
    queries = [q for lang in ("de", "th") for q in read_queries(shared_file(f"dev/queries.{lang}.jsonl.gz"))]
    qrels = read_qrels(shared_file("dev/qrels.tsv.gz"))
    choose = random.Random(1)
    runs: dict[str, dict[str, list[ScoredPassage]]] = {"passage": {}, "xqg": {}}
    for qrel in qrels:
        for name, luck in (("passage", 5), ("xqg", 4)):
            order = [f"other{n}" for n in range(9)]
            order.insert(choose.randrange(luck), qrel.passage_id)
            runs[name][qrel.query_id] = [ScoredPassage(Passage(p, "text"), -rank) for rank, p in enumerate(order)]
    report = evaluate_runs(queries, qrels, runs, token_budgets=())
    values = {
        name: per_query_values(
            qrels, {q: [(hit.passage.passage_id, hit.score) for hit in found] for q, found in run.items()}, mrr_at=[10]
        )["MRR@10"]
        for name, run in runs.items()
    }
    for language in ("de", "th"):
        mean = sum(values["xqg"][q.query_id] for q in queries if q.language == language) / 612
        assert report.values["xqg"]["MRR@10"].per_language[language] == pytest.approx(100 * mean)
    before, after = ([values[name][q.query_id] for q in queries] for name in ("passage", "xqg"))
    overall = report.comparisons["xqg"]["MRR@10"].overall
    assert overall.won == sum(b > a for a, b in zip(before, after, strict=True))
    assert overall.won + overall.lost + overall.tied == 1224
    assert overall.p is not None
    assert overall.p == pytest.approx(paired_randomisation_test(before, after), abs=0.01)
    assert overall.p < 0.01
    assert 0 < overall.interval[0] < overall.points < overall.interval[1]


def test_without_the_tokenizer_the_token_measures_are_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official, "is_available", lambda: False)
    report = evaluate_runs(QUERIES, QRELS, {"xqg": AUGMENTED}, recall_at=[1], mrr_at=[], ndcg_at=[])
    assert list(report.values["xqg"]) == ["recall@1"]
    assert report.notes == (
        "R@kt is left out: its tokenizer is not installed; install it with: pip install xqg-qdrant[xor]",
    )
    with pytest.raises(InputError, match=r"pip install xqg-qdrant\[xor\]"):
        evaluate_runs(QUERIES, [], {"xqg": AUGMENTED})


def test_nothing_to_measure_by_is_an_error() -> None:
    with pytest.raises(InputError, match=r"no question has judgements or answers \(1 given\)"):
        evaluate_runs([Query("z", "?")], QRELS, {"xqg": AUGMENTED})


def test_questions_without_a_language_are_reported_as_undetermined() -> None:
    report = evaluate_runs([Query("a1", "?")], QRELS, {"xqg": AUGMENTED}, recall_at=[1], mrr_at=[], ndcg_at=[])
    assert report.to_json() == {"recall@1": {"macro": 100, "per_language": {"und": 100}}}


THIRD = run_of(a1="oulu", a2="turku", a3="rovaniemi", k1="oulu", k2="oulu")


def test_every_run_is_compared_with_the_first() -> None:
    runs = {"passage": PLAIN, "xqg": AUGMENTED, "third": THIRD}
    report = evaluate_runs(QUERIES, QRELS, runs, recall_at=[1], mrr_at=[], ndcg_at=[], token_budgets=[])
    assert list(report.comparisons) == ["xqg", "third"]
    overall = report.comparisons["third"]["recall@1"].overall
    # All four judged questions are found first; of them the plain run finds a2 alone.
    assert overall.points == pytest.approx(250 / 3)
    assert (overall.won, overall.lost, overall.tied) == (3, 0, 1)
    alone = evaluate_runs(
        QUERIES, QRELS, {"p": PLAIN, "t": THIRD}, recall_at=[1], mrr_at=[], ndcg_at=[], token_budgets=[]
    )
    assert alone.comparisons["t"] == report.comparisons["third"]
    assert [line.split()[0] for line in format_table(report).splitlines()[3:]].count("difference") == 2


def test_p_values_of_languages_allow_for_their_number() -> None:
    # Six questions won and none lost: 2 of the 64 choices of signs are as extreme.
    queries = [Query(f"{lang}{n}", "?", lang) for lang in ("ar", "ko", "te") for n in range(6)]
    qrels = [Qrel(query.query_id, "oulu", 1) for query in queries]
    plain = run_of(**{query.query_id: "oulu" if query.language == "te" else "turku" for query in queries})
    better = run_of(**{query.query_id: "oulu" for query in queries})
    runs = {"passage": plain, "xqg": better}
    report = evaluate_runs(queries, qrels, runs, recall_at=[1], mrr_at=[], ndcg_at=[], token_budgets=[])
    found = report.comparisons["xqg"]["recall@1"].per_language
    assert {language: difference.p for language, difference in found.items()} == {"ar": 1 / 32, "ko": 1 / 32, "te": 1}
    assert {lang: difference.p_holm for lang, difference in found.items()} == {"ar": 3 / 32, "ko": 3 / 32, "te": 1}


def test_mcnemars_test_has_no_p_for_measures_with_values_between() -> None:
    runs = {"passage": PLAIN, "xqg": AUGMENTED}
    settings = {"recall_at": [1], "mrr_at": [2], "ndcg_at": [], "token_budgets": []}
    report = evaluate_runs(QUERIES, QRELS, runs, **settings, test="mcnemar")  # type: ignore[arg-type]
    # Two won and one lost: all 8 ways that three coins fall are as extreme.
    assert report.comparisons["xqg"]["recall@1"].overall.p == 1
    without = report.comparisons["xqg"]["MRR@2"]
    assert {without.overall.p, without.per_language["ar"].p, without.per_language["ar"].p_holm} == {None}
    assert report.notes == ("McNemar's test needs hits and misses; no p for MRR@2",)
    [line] = [line for line in format_table(report).splitlines() if line.endswith("3     1      -")]
    assert line.split()[0] == "difference"
    json.dumps(report.to_json())


def test_a_run_without_texts_has_no_answers_to_look_for_and_one_without_ids_no_recall() -> None:
    texts = {
        name: [ScoredPassage(Passage("", hit.passage.text), hit.score) for hit in run] for name, run in PLAIN.items()
    }
    ids = {
        name: [ScoredPassage(Passage(hit.passage.passage_id, ""), 1 / n) for n, hit in enumerate(run, 1)]
        for name, run in PLAIN.items()
    }
    runs = {"passage": PLAIN, "predicted": texts, "trec": ids}
    report = evaluate_runs(QUERIES, QRELS, runs, recall_at=[1], mrr_at=[], ndcg_at=[], token_budgets=[2000])
    assert {name: list(measures) for name, measures in report.values.items()} == {
        "passage": ["R@2kt", "recall@1"],
        "predicted": ["R@2kt"],
        "trec": ["recall@1"],
    }
    assert report.values["predicted"]["R@2kt"] == report.values["passage"]["R@2kt"]
    assert report.values["trec"]["recall@1"] == report.values["passage"]["recall@1"]
    assert "trec: R@kt is left out, because the texts of its passages are unknown" in report.notes
    assert list(report.comparisons["predicted"]) == ["R@2kt"]
    rows = [line for line in format_table(report).splitlines() if " trec " in line]
    assert len(rows) == 1


@needs_nltk
def test_the_lenient_measure_finds_answers_that_tokenising_changes_under_a_name_of_its_own() -> None:
    hit = {"q": [ScoredPassage(Passage("p", 'It cost $5 in Tokyo, Japan, as "they" say.'), 1.0)]}
    for answer in ("$5", "Tokyo, Japan", '"they"'):
        query = Query("q", "?", "ja", (answer,))
        measured = evaluate_runs([query], [], {"xqg": hit}, lenient=True).values["xqg"]
        assert list(measured) == ["R@2kt", "R@5kt", "lenient@2kt", "lenient@5kt"]
        assert (measured["R@2kt"].macro, measured["lenient@2kt"].macro) == (0, 100)
    missing = evaluate_runs([Query("q", "?", "ja", ("$6",))], [], {"xqg": {}}, lenient=True).values["xqg"]
    assert missing["lenient@2kt"].per_query == {"q": 0}


def test_results_too_few_for_a_measure_are_noted() -> None:
    report = evaluate_runs(
        QUERIES, QRELS, {"xqg": AUGMENTED}, recall_at=[1, 3], mrr_at=[], ndcg_at=[], token_budgets=[]
    )
    assert report.notes == ("xqg: no question has more than 2 results, so figures beyond that rank are too low",)


@needs_nltk
def test_results_of_too_few_tokens_are_noted() -> None:
    report = evaluate_runs(QUERIES, [], {"xqg": AUGMENTED}, token_budgets=[2, 2000])
    # Missed with both budgets is none but in 2 tokens, of which all results have enough.
    assert report.notes == ()
    report = evaluate_runs(QUERIES, [], {"xqg": run_of(a1="oulu", a3="turku")}, token_budgets=[2000])
    assert report.notes == (
        "xqg: 3 of the 5 questions have no results and count as misses",
        "R@2kt of xqg: 3 missed questions have results of fewer than 2,000 tokens; search with a higher limit",
    )


# The table


def table_of(runs: Mapping[str, Mapping[str, Sequence[ScoredPassage]]]) -> str:
    return format_table(evaluate_runs(QUERIES, QRELS, runs, recall_at=[1], mrr_at=[2], ndcg_at=[], token_budgets=[]))


def test_a_table_of_two_runs_shows_gains_and_losses() -> None:
    assert table_of({"passage": PLAIN, "xqg": AUGMENTED}) == (
        "measure    run          macro     ar     ko   won  lost      p\n"
        "--------------------------------------------------------------\n"
        "questions                   5      3      2\n"
        "recall@1   passage      16.67  33.33   0.00\n"
        "           xqg          33.33  66.67   0.00\n"
        "           difference  +16.67 +33.33  +0.00     2     1 1.0000\n"
        "           95% from     -50.0 -100.0   +0.0\n"
        "           95% to       +50.0 +100.0   +0.0\n"
        "           p, Holm            1.0000 1.0000\n"
        "MRR@2      passage      25.00  50.00   0.00\n"
        "           xqg          66.67  83.33  50.00\n"
        "           difference  +41.67 +33.33 +50.00     3     1 0.5000\n"
        "           95% from      +0.0  -50.0  +50.0\n"
        "           95% to       +75.0 +100.0  +50.0\n"
        "           p, Holm            1.0000 1.0000\n"
    )
    # MRR@2 gains 0.5, -0.5, 1 and 0.5, in all 1.5: so do 4 of the 16 choices of signs, and 4 lose as much. In ar the
    # worst of 27 draws is three times -0.5, the best three times 1; ko adds half of its 0.5 to half of each.


def test_a_table_of_one_run_has_no_differences() -> None:
    assert table_of({"xqg": AUGMENTED}) == (
        "measure    run          macro     ar     ko\n"
        "-------------------------------------------\n"
        "questions                   5      3      2\n"
        "recall@1   xqg          33.33  66.67   0.00\n"
        "MRR@2      xqg          66.67  83.33  50.00\n"
    )


def test_a_language_that_a_measure_lacks_is_a_dash() -> None:
    queries = [*QUERIES, Query("f1", "?", "fi")]
    report = evaluate_runs(queries, QRELS, {"p": PLAIN, "x": AUGMENTED}, recall_at=[1], mrr_at=[], ndcg_at=[])
    line = next(line for line in format_table(report).splitlines() if line.startswith("recall@1"))
    assert line.split() == ["recall@1", "p", "16.67", "33.33", "-", "0.00"]


@needs_nltk
def test_a_table_of_seven_languages_fits_a_hundred_columns() -> None:
    languages = ["ar", "bn", "fi", "ja", "ko", "ru", "te"]
    queries = [Query(f"{lang}{n}", "?", lang, ("1605",)) for lang in languages for n in range(2)]
    qrels = [Qrel(query.query_id, "oulu", 1) for query in queries]
    runs = {
        "passage": run_of(**{query.query_id: "turku" for query in queries}),
        "xqg": run_of(**{query.query_id: "oulu" for query in queries}),
    }
    table = format_table(evaluate_runs(queries, qrels, runs))
    assert "+100.00" in table
    assert "R@5kt" in table
    assert "recall@100" in table
    assert "Note: " in table
    assert max(map(len, table.splitlines())) <= 100
    assert table == format_table(evaluate_runs(queries, qrels, runs))
