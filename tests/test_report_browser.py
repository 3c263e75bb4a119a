"""The report in a real browser: it asks for nothing, complains of nothing, fits a phone and can be read in both themes.

Needs Chromium; without one these tests are skipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import COLOURS, NEEDS_BROWSER, Browser, contrast, luminance
from results_folders import demo_questions, write_evaluation, write_hostile_evaluation, write_pilot, write_robustness

from xqg_qdrant.evaluation.results import read_results
from xqg_qdrant.pages.report import render_report

pytestmark = NEEDS_BROWSER
THEMES = ("light", "dark")
PHONE = 360
A4 = 794


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    results = [
        write_evaluation(folder / "first"),
        write_evaluation(folder / "second", 2),
        write_pilot(folder / "pilot"),
        write_robustness(folder / "robustness"),
    ]
    (folder / "report.html").write_text(render_report([read_results(one) for one in results]), encoding="utf-8")
    return folder / "report.html"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    results = read_results(write_hostile_evaluation(folder / "hostile"))
    (folder / "report.html").write_text(render_report([results]), encoding="utf-8")
    return folder / "report.html"


@pytest.mark.parametrize("width", [PHONE, 1280])
@pytest.mark.parametrize("name", ["report", "hostile"])
def test_the_page_asks_for_nothing_runs_nothing_and_never_scrolls_sideways(
    chromium: Browser, request: pytest.FixtureRequest, name: str, width: int
) -> None:
    path = request.getfixturevalue(name)
    chromium.open(path, width)
    assert chromium.requests() == [path.as_uri()]
    assert chromium.complaints() == []
    assert chromium.evaluate("window.hacked === undefined && document.scripts.length === 0")
    assert chromium.evaluate("document.querySelectorAll('details').forEach(found => found.open = true)") is None
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.evaluate("window.innerWidth") == width


def test_the_policy_of_the_page_stops_a_script_that_got_in(chromium: Browser, report: Path) -> None:
    planted = report.with_name("planted.html")
    html = report.read_text(encoding="utf-8")
    planted.write_text(
        html.replace("<h1>", "<script>window.hacked=1</script><img src='https://example.org/x.png'><h1>"),
        encoding="utf-8",
    )
    chromium.open(planted)
    assert chromium.evaluate("window.hacked === undefined")
    said = " ".join(str(entry) for entry in chromium.complaints())
    assert "script-src" in said
    assert "img-src" in said


def test_arabic_runs_from_right_to_left(chromium: Browser, report: Path) -> None:
    chromium.open(report)
    found = chromium.evaluate(
        "[...document.querySelectorAll('[lang=ar]')].map(e => [getComputedStyle(e).direction, e.textContent])"
    )
    asked = {row["text"] for row in demo_questions() if row["lang"] == "ar"}
    assert found
    assert {direction for direction, _ in found} == {"rtl"}
    assert {text for _, text in found} <= asked
    others = chromium.evaluate("[...document.querySelectorAll('[lang=te]')].map(e => getComputedStyle(e).direction)")
    assert set(others) == {"ltr"}


INKS = (
    "[...document.querySelectorAll('svg .mark, svg .line')].map(e => getComputedStyle(e)).map(s => [s.fill, s.stroke])"
)


@pytest.mark.parametrize("theme", THEMES)
def test_every_text_stands_out_from_what_is_behind_it(chromium: Browser, report: Path, theme: str) -> None:
    chromium.open(report, theme=theme)
    found = chromium.evaluate(COLOURS)
    assert len(found) > 500
    assert [(ink, behind, where) for ink, behind, where in found if contrast(ink, behind) < 4.5] == []
    page = chromium.evaluate("getComputedStyle(document.body).backgroundColor")
    marks = {stroke if fill == "none" else fill for fill, stroke in chromium.evaluate(INKS)}
    assert len(marks) >= 2
    assert [fill for fill in marks if contrast(fill, page) < 3] == []


def test_the_two_themes_are_light_and_dark(chromium: Browser, report: Path) -> None:
    seen = {}
    for theme in THEMES:
        chromium.open(report, theme=theme)
        style = "getComputedStyle(document.body)"
        seen[theme] = [luminance(chromium.evaluate(f"{style}.{name}")) for name in ("backgroundColor", "color")]
    assert seen["light"][0] > 0.9 > 0.1 > seen["light"][1]
    assert seen["dark"][0] < 0.1 < 0.7 < seen["dark"][1]


def test_paper_is_white_holds_folded_tables_and_only_the_questions_that_are_open(
    chromium: Browser, report: Path
) -> None:
    chromium.open(report, width=A4, theme="dark", media="print")
    assert luminance(chromium.evaluate("getComputedStyle(document.body).backgroundColor")) == 1.0
    tables = "[...document.querySelectorAll('details:not(.change) table')]"
    assert chromium.evaluate(f"{tables}.every(e => e.checkVisibility({{contentVisibilityAuto: true}}))")
    assert chromium.evaluate(f"{tables}.some(e => !e.closest('details').open)")
    assert chromium.evaluate("Math.max(...[...document.querySelectorAll('table')].map(e => e.scrollWidth))") < A4
    shown = "[...document.querySelectorAll('details.change .runs')].filter(e => e.checkVisibility()).length"
    assert chromium.evaluate(shown) == chromium.evaluate("document.querySelectorAll('details.change[open]').length")


@pytest.mark.parametrize("width", [PHONE, 1280])
def test_the_letters_of_the_charts_can_be_read(chromium: Browser, report: Path, width: int) -> None:
    chromium.open(report, width)
    heights = chromium.evaluate(
        "[...document.querySelectorAll('details[open] svg text, .charts svg text')].map(e => e.getScreenCTM().d * "
        "parseFloat(getComputedStyle(e).fontSize))"
    )
    # A text that stands upright has a matrix without d.
    assert all(10 <= height <= 18 for height in heights if height > 0.1)
    assert len([height for height in heights if height > 0.1]) > 20


def test_charts_draw_within_their_frame(chromium: Browser, report: Path) -> None:
    chromium.open(report)
    outside = chromium.evaluate(
        """[...document.querySelectorAll('svg[role=img]')].filter(svg => svg.checkVisibility()).flatMap(svg => {
          const frame = svg.getBoundingClientRect();
          return [...svg.querySelectorAll('text, path, circle, rect')].filter(e => {
            const box = e.getBoundingClientRect();
            return box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
              || box.bottom > frame.bottom + 1;
          }).map(e => e.outerHTML);
        })"""
    )
    assert outside == []
