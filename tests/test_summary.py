"""What an evaluation prints: the summary of its main measures, and the conclusion in words."""

from __future__ import annotations

import pytest

from xqg_qdrant.evaluation.comparison import Comparison, Difference, Report, Values
from xqg_qdrant.printing import format_conclusion, format_summary


def difference(points: float, p: float | None, p_holm: float | None = None) -> Difference:
    return Difference(points, 6, 2, 92, (points - 1, points + 1), p, p_holm)


def compare(points: float, p: float | None, fi: float | None = None, ja: float | None = None) -> Comparison:
    """Return a comparison; the p-values of the languages are before and after Holm's correction."""
    return Comparison(difference(points, p), {"fi": difference(points, 0.0001, fi), "ja": difference(points, ja)})


def report_of(points: float = 2.5, p: float | None = 0.004, questions: int = 60, notes: tuple[str, ...] = ()) -> Report:
    """Report three runs on two languages by three measures."""
    values = {
        run: {
            "recall@1": Values(1, {"fi": 1, "ja": 1}, {}),
            "MRR@10": Values(40 + plus, {"fi": 30 + plus, "ja": 50 + plus}, {}),
            "R@2kt": Values(60.04, {"fi": 60.04}, {}),
        }
        for run, plus in (("passage", 0.0), ("control", 1.0), ("xqg", points))
    }
    comparisons = {
        "control": {"MRR@10": compare(1, 0.2), "R@2kt": compare(0, None)},
        "xqg": {"MRR@10": compare(points, p, fi=0.02, ja=0.0009), "R@2kt": compare(0, 0.0499)},
    }
    return Report({"fi": questions, "ja": questions}, values, comparisons, notes)


def test_the_summary_has_a_head_and_a_line_a_run_for_each_of_two_measures() -> None:
    lines = format_summary(report_of()).splitlines()
    assert lines == [
        "                    macro        fi        ja",
        "MRR@10  passage   40.0      30.0      50.0   ",
        # without Holm's correction p itself counts
        "        control   41.0      31.0***   51.0   ",
        "        xqg       42.5**    32.5*     52.5***",
        "R@2kt   passage   60.0      60.0         -   ",
        "        control   60.0      60.0***      -   ",
        "        xqg       60.0*     60.0***      -   ",
    ]
    assert len({len(line) for line in lines}) == 1


def test_the_summary_shows_the_measures_it_is_asked_for_and_the_notes() -> None:
    report = report_of(notes=("xqg: 3 of the 120 questions have no results and count as misses",))
    lines = format_summary(report, ["recall@1", "nDCG@10"]).splitlines()
    assert [line[:15].split() for line in lines[1:4]] == [["recall@1passage"], ["control"], ["xqg"]]
    assert lines[4:] == ["Note: xqg: 3 of the 120 questions have no results and count as misses."]


def test_a_run_without_a_measure_has_no_line_for_it() -> None:
    report = report_of()
    del report.values["control"]["MRR@10"]  # type: ignore[attr-defined]
    lines = format_summary(report, ["MRR@10"]).splitlines()
    assert [line.split()[:-2] for line in lines[1:]] == [["MRR@10", "passage", "40.0"], ["xqg", "42.5**"]]


@pytest.mark.parametrize(
    ("p", "stars"), [(0.0009, "***"), (0.001, "**"), (0.0099, "**"), (0.01, "*"), (0.049, "*"), (0.05, ""), (None, "")]
)
def test_stars_mark_how_small_p_is(p: float | None, stars: str) -> None:
    line = format_summary(report_of(p=p)).splitlines()[3]
    assert line[15:25] == f"   42.5{stars:<3}"


CONTENT = compare(1.5, 0.03)
CONTROL = (
    " The content of the queries gives +1.5 of +2.5 (p = 0.0300); the control, with the same mean query for every "
    "passage, gives the rest."
)
NO_CONTENT = (
    " The content of the queries gives +0.2 of +2.5, which could be chance (p = 0.0500): the control, with the same "
    "mean query for every passage, does about as well."
)


@pytest.mark.parametrize(
    ("points", "p", "content", "expected"),
    [
        (2.5, 0.004, None, "xqg lifts MRR@10 from 40.0 to 42.5 (+2.5, p = 0.0040)."),
        (2.5, 0.0499, CONTENT, f"xqg lifts MRR@10 from 40.0 to 42.5 (+2.5, p = 0.0499).{CONTROL}"),
        (2.5, 0.004, compare(0.2, 0.05), f"xqg lifts MRR@10 from 40.0 to 42.5 (+2.5, p = 0.0040).{NO_CONTENT}"),
        (-2.5, 0.004, CONTENT, "xqg lowers MRR@10 from 40.0 to 37.5 (-2.5, p = 0.0040)."),
        (2.5, 0.05, CONTENT, "xqg against passage: MRR@10 40.0 and 42.5, no difference beyond chance (p = 0.0500)."),
        (2.5, None, CONTENT, "xqg against passage: MRR@10 40.0 and 42.5, no difference beyond chance (untested)."),
    ],
)
def test_the_conclusion_says_what_is_gained(
    points: float, p: float | None, content: Comparison | None, expected: str
) -> None:
    assert format_conclusion(report_of(points, p), "xqg", "MRR@10", content) == expected


def test_fewer_than_100_questions_are_too_few_to_tell() -> None:
    few = " 98 questions are too few to tell; ask 100 or more."
    assert format_conclusion(report_of(questions=49), "xqg", "MRR@10", None) == (
        f"xqg lifts MRR@10 from 40.0 to 42.5 (+2.5, p = 0.0040).{few}"
    )
    assert format_conclusion(report_of(p=0.3, questions=49), "xqg", "MRR@10", None) == (
        f"xqg against passage: MRR@10 40.0 and 42.5, no verdict (p = 0.3000).{few}"
    )
    assert "too few" not in format_conclusion(report_of(questions=50), "xqg", "MRR@10", None)


@pytest.mark.parametrize(("run", "measure"), [("passage", "MRR@10"), ("hybrid", "MRR@10"), ("xqg", "nDCG@10")])
def test_what_is_not_compared_has_no_conclusion(run: str, measure: str) -> None:
    assert format_conclusion(report_of(), run, measure, CONTENT) == ""
