from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
from click.testing import CliRunner
from writing import Write

from xqg_qdrant.cli import main
from xqg_qdrant.demo import DEMO_FOLDER
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.measures import overlap, rank_biased_overlap
from xqg_qdrant.evaluation.results import make_manifest, read_results
from xqg_qdrant.evaluation.robustness import (
    Agreement,
    Pair,
    compare_areas,
    read_pairs,
    report_agreements,
    save_robustness,
)
from xqg_qdrant.evaluation.significance import place
from xqg_qdrant.records import Query

MEASURES = ("RBO", "overlap@10")
HEAD = "id\tsentence1\tsentence2\tlabel\n"


# Pairs


def test_pairs_are_read_in_the_language_of_their_folder_and_those_not_translated_are_counted(write: Write) -> None:
    german = write(
        HEAD + '1\tEr kam.\tEr traf ein.\t1\n2\tNS\tx\t0\n3\t"a" b\tNS \t1\n4\tA "b"\tb A\t0\n', "de/test_2k.tsv"
    )
    other = write(HEAD + "1\tHän tuli.\tHän saapui.\t1\n", "pairs.tsv")
    assert read_pairs([german, other], "fi") == (
        [
            Pair(f"{german}, line 2", "de", "Er kam.", "Er traf ein.", True),
            Pair(f"{german}, line 5", "de", 'A "b"', "b A", False),
            Pair(f"{other}, line 2", "fi", "Hän tuli.", "Hän saapui.", True),
        ],
        2,
    )
    assert read_pairs([other])[0][0].language == "und"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("2\ta\tb\t2", r"line 3: the label is '2', neither 0 nor 1"),
        ("2\ta\tb\t", r"line 3: the label is '', neither 0 nor 1"),
        ("2\ta\t \t1", r"line 3: a sentence is empty"),
        ("2\ta\t1", r"line 3: 3 columns where there should be 4"),
    ],
)
def test_a_pair_that_cannot_be_used_is_an_error_with_its_line(write: Write, row: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"p\.tsv, {reason}\. Cure: "):
        read_pairs([write(HEAD + f"1\ta\tb\t1\n{row}\n", "p.tsv")])


@pytest.mark.parametrize(
    ("content", "reason"), [(HEAD, "no pairs"), ("1\ta\tb\t1\n", "the first line names no id and text columns")]
)
def test_a_file_without_pairs_is_an_error(write: Write, content: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"p\.tsv: {reason}.* Cure: "):
        read_pairs([write(content, "p.tsv")])


# How much two rankings agree


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("abc", "abc", 1.0),
        ("abc", "def", 0.0),
        # Agreement 1/1, 1/2, 3/3: 0.5 (1 + 0.5 * 1/2 + 0.25 * 1) + 0.125 * 1
        ("abc", "acb", 0.875),
        # 0/1, 2/2, 2/3: 0.5 (0 + 0.5 * 1 + 0.25 * 2/3) + 0.125 * 2/3
        ("abc", "bad", 5 / 12),
        # 0/1, 0/2, 1/3: 0.5 (0.25 / 3) + 0.125 / 3
        ("abc", "cde", 1 / 12),
        ("", "", 1.0),
    ],
)
def test_rank_biased_overlap_is_that_of_webber_moffat_and_zobel(first: str, second: str, expected: float) -> None:
    assert rank_biased_overlap(first, second, 0.5) == pytest.approx(expected, abs=1e-12)
    assert rank_biased_overlap(second, first, 0.5) == pytest.approx(expected, abs=1e-12)


def test_the_first_ten_ranks_have_86_percent_of_the_weight() -> None:
    # As Webber, Moffat and Zobel say of p = 0.9. All that two rankings of a hundred share is the first ten, which the
    # extrapolation continues with 10/100.
    first, second = ([f"{i}" if i < 10 else f"{name}{i}" for i in range(100)] for name in "ab")
    rest = sum(0.1 * 0.9 ** (d - 1) * 10 / d for d in range(11, 101)) + 0.9**100 * 0.1
    found = rank_biased_overlap(first, second)
    assert found == pytest.approx(1 - 0.9**10 + rest, abs=1e-12)
    assert round(found, 2) == 0.86


def test_overlap_counts_the_passages_that_both_have_among_the_first_ten() -> None:
    assert overlap("abcdefghijk", "kjihgfedcba") == 0.9
    assert overlap("abcd", "bcde") == 0.75
    assert overlap("", "") == 1.0


# The report


def agreement(pair_id: str, language: str, is_paraphrase: bool, passage: float, xqg: float) -> Agreement:
    pair = Pair(pair_id, language, "a", "b", is_paraphrase)
    return Agreement(pair, {"passage": {"RBO": passage, "overlap@10": passage}, "xqg": {"RBO": xqg, "overlap@10": xqg}})


GERMAN = [
    agreement("1", "de", True, 0.5, 0.9),
    agreement("2", "de", True, 0.7, 0.8),
    agreement("3", "de", False, 0.5, 0.4),
    agreement("4", "de", False, 0.6, 0.6),
    agreement("5", "de", False, 0.1, 0.2),
]
KOREAN = [
    agreement("6", "ko", True, 0.2, 0.1),
    agreement("7", "ko", True, 0.4, 0.4),
    agreement("8", "ko", False, 0.3, 0.3),
    agreement("9", "ko", False, 0.1, 0.3),
]


def test_paraphrases_and_near_misses_are_averaged_apart_for_each_language() -> None:
    report = report_agreements(chain(GERMAN, KOREAN), 3)
    assert report.questions == {"de": 5, "ko": 4}
    for measure in MEASURES:
        plain, augmented = (report.values[name] for name in ("passage", "xqg"))
        assert plain[f"{measure} of paraphrases"].per_language == pytest.approx({"de": 60, "ko": 30})
        assert augmented[f"{measure} of paraphrases"].per_language == pytest.approx({"de": 85, "ko": 25})
        assert plain[f"{measure} of near-misses"].per_language == pytest.approx({"de": 40, "ko": 20})
        assert augmented[f"{measure} of near-misses"].per_language == pytest.approx({"de": 40, "ko": 30})
        assert plain[f"{measure} of paraphrases"].macro == pytest.approx(45)
        difference = report.comparisons["xqg"][f"{measure} of paraphrases"].overall
        assert difference.points == pytest.approx(10)
        assert (difference.won, difference.lost, difference.tied) == (2, 1, 1)
    assert "pairs left out because a sentence is NS, not translated: 3" in report.notes


def test_the_area_under_the_curve_is_the_share_of_near_misses_below_a_paraphrase() -> None:
    report = report_agreements(chain(GERMAN, KOREAN))
    plain, augmented = (report.values[name]["AUC of RBO"] for name in ("passage", "xqg"))
    # de: 0.5 beats 0.1 and ties with 0.5, 0.7 beats three: (1.5 + 3) / 6. ko: 0.2 beats 0.1, 0.4 beats both: 3 / 4.
    assert plain.per_language == pytest.approx({"de": 75, "ko": 75})
    # de: both beat three. ko: 0.1 beats none, 0.4 both.
    assert augmented.per_language == pytest.approx({"de": 100, "ko": 50})
    assert [plain.macro, augmented.macro] == pytest.approx([75, 75])


def test_areas_are_compared_as_delong_does() -> None:
    difference = report_agreements(GERMAN).comparisons["xqg"]["AUC of RBO"].per_language["de"]
    # Shares of near-misses below: 50, 100 plain, 100, 100 augmented: gains 50, 0, mean 25, variance 1250.
    # Shares of paraphrases above: plain 75 (a tie and one above), 50, 100, augmented 100 each: gains 25, 50, 0,
    # variance 625. Standard error sqrt(1250 / 2 + 625 / 3) = 28.8675, z = 0.866025, p = 0.386476.
    assert difference.points == pytest.approx(25)
    assert difference.interval == pytest.approx((25 - 1.959964 * 28.867513, 25 + 1.959964 * 28.867513))
    assert difference.p == pytest.approx(0.386476, abs=1e-6)
    assert (difference.won, difference.lost, difference.tied) == (3, 0, 2)
    overall = report_agreements([*GERMAN, *KOREAN]).comparisons["xqg"]["AUC of RBO"].overall
    # ko: gains -50, 0 and 0, -50, so its variance is 1250 / 2 + 1250 / 2, that of de 833.33. Of the mean of two
    # languages it is a quarter of the sum: sqrt(2083.33 / 4) = 22.821773. The differences are 25 and -25.
    assert (overall.points, overall.p) == (0, 1)
    assert overall.interval == pytest.approx((-1.959964 * 22.821773, 1.959964 * 22.821773))


def test_the_test_of_areas_holds_what_it_promises_where_nothing_differs() -> None:
    import numpy as np

    random = np.random.default_rng(0)
    below = 0
    for _ in range(200):
        values = {
            name: [{str(i): value for i, value in enumerate(row)} for row in (random.random(20), random.random(40))]
            for name in ("passage", "xqg")
        }
        found = compare_areas({"de": {name: place(same, other) for name, (same, other) in values.items()}}).overall
        below += found.p is not None and found.p < 0.05
    assert 2 <= below <= 20  # 10 are expected; either bound is some three standard deviations away


def test_vectors_that_rank_alike_differ_in_nothing() -> None:
    report = report_agreements(
        [row._replace(values=dict.fromkeys(("passage", "xqg"), row.values["xqg"])) for row in GERMAN]
    )
    for comparison in report.comparisons["xqg"].values():
        assert (comparison.overall.points, comparison.overall.p, comparison.overall.interval) == (0, 1, (0, 0))


def test_a_language_with_one_kind_of_pairs_has_no_area() -> None:
    report = report_agreements([*GERMAN, *KOREAN[:2]])
    assert set(report.values["xqg"]["AUC of RBO"].per_language) == {"de"}
    assert "AUC of RBO" not in report_agreements(GERMAN[:2]).values["xqg"]
    assert report_agreements(GERMAN[:2]).values["xqg"]["RBO of paraphrases"].macro == pytest.approx(85)


def test_saved_figures_are_read_again_without_areas(tmp_path: Path) -> None:
    report = report_agreements(GERMAN)
    manifest = make_manifest("robustness", ["xqg"], {}, {})
    save_robustness(tmp_path / "saved", manifest, [row.pair for row in GERMAN], report)
    saved = read_results(tmp_path / "saved")
    assert saved.queries[0] == Query("1", "a\nb", "de")
    assert set(saved.values["xqg"]) == {f"{m} of {kind}" for m in MEASURES for kind in ("paraphrases", "near-misses")}
    assert saved.values["xqg"]["RBO of paraphrases"] == report.values["xqg"]["RBO of paraphrases"]
    found = json.loads((tmp_path / "saved" / "robustness.json").read_text("utf-8"))
    assert found["report"]["xqg"]["AUC of RBO"]["macro"] == pytest.approx(100)
    assert found["notes"] == list(report.notes)


def test_rankings_are_compared_in_a_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "store"
    pair = "Mikä on maailman syvin järvi?\tMikä järvi on maailman syvin?\t1"
    (tmp_path / "fi").mkdir()
    # The second pair is one sentence twice, whose rankings cannot differ.
    (tmp_path / "fi" / "test_2k.tsv").write_text(f"{HEAD}1\t{pair}\n2\tKuka?\tKuka?\t0\n3\tNS\tNS\t1\n", "utf-8")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join((DEMO_FOLDER / "corpus.jsonl").read_text("utf-8").splitlines(keepends=True)[:20]), "utf-8"
    )
    options = ("--collection", "docs", "--store", str(store))
    made = ("--languages", "fi", "--queries-per-language", "1", "--alpha", "0.5", "--fusion", "mean")
    runner = CliRunner()
    assert runner.invoke(main, ["ingest", str(corpus), *options, *made], catch_exceptions=False).exit_code == 0
    saved = tmp_path / "saved"
    asked = ["robustness", "--pairs", str(tmp_path / "fi" / "test_2k.tsv"), "--save", str(saved), "--json", *options]
    result = runner.invoke(main, asked, catch_exceptions=False)
    figures = json.loads(result.stdout)
    for name in ("passage", "xqg"):
        assert figures[name]["RBO of near-misses"]["per_language"] == {"fi": pytest.approx(100)}
        assert 0 < figures[name]["RBO of paraphrases"]["macro"] < 100
    results = read_results(saved)
    assert (results.manifest["kind"], results.manifest["data"]["pairs"]["rows"]) == ("robustness", 2)


def test_without_pairs_there_is_no_report() -> None:
    with pytest.raises(InputError, match=r"all 4 are NS, not translated\. Cure: "):
        report_agreements([], 4)
