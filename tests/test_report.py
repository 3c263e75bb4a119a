"""The report: what stands in the file, that nothing in the data can leave its place, and the geometry of the charts."""

from __future__ import annotations

import json
import re
import shlex
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner
from results_folders import (
    HOSTILE,
    LANGUAGES,
    demo_questions,
    write_evaluation,
    write_hostile_evaluation,
    write_json,
    write_pilot,
    write_robustness,
    write_sweep,
)
from writing import lines_of

from xqg_qdrant.cli import main
from xqg_qdrant.evaluation.results import read_results
from xqg_qdrant.evaluation.significance import stars_of
from xqg_qdrant.pages.changes import marked_parts, view_changes
from xqg_qdrant.pages.charts import Axis, Point, Row, Series, draw_lines, draw_rows, tick_step
from xqg_qdrant.pages.report import render_report
from xqg_qdrant.pages.sweeps import name_setting
from xqg_qdrant.pages.templates import direction, language_tag

VOID = {"meta", "link", "path", "circle", "rect", "br"}


class Page(HTMLParser):
    """Every element with its attributes and the text within, as a browser would part them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), (tag, attrs)
        if tag in ("td", "th"):
            self.handle_data(" ")
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for place in self._open:
            self.elements[place][2].append(data)

    def texts(self, tag: str, **attributes: str) -> list[str]:
        return [
            " ".join("".join(inner).split())
            for name, found, inner in self.elements
            if name == tag and all(found.get(key.rstrip("_")) == value for key, value in attributes.items())
        ]


def rendered(*folders: Path) -> str:
    return render_report([read_results(folder) for folder in folders])


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_evaluation(tmp_path_factory.mktemp("results") / "demo")


@pytest.fixture(scope="module")
def page(evaluation: Path) -> Page:
    return Page(rendered(evaluation))


def test_the_table_has_a_row_for_each_language_with_stars_and_intervals(page: Page) -> None:
    rows = page.texts("tr")
    # Of twelve questions in each of six languages 6 and 8 are answered; 18 won and 6 lost of 72 in all. The exact
    # p-value of 18 against 6 is 0.0227 by the binomial distribution; the test draws.
    assert "ar 12 50.00 66.67 +16.67" in " ".join(rows)
    total = next(row for row in rows if row.startswith("average 72 50.00 66.67 +16.67*"))
    assert re.fullmatch(r"average 72 50.00 66.67 \+16.67\* \+\d+\.\d\d to \+\d+\.\d\d 0\.02\d\d 18 6", total)
    assert [row.split()[0] for row in rows if " 12 50.00" in row] == list(LANGUAGES)


def test_stars_say_how_unlikely_chance_is() -> None:
    assert [stars_of(p) for p in (0.0009, 0.001, 0.0099, 0.01, 0.0499, 0.05, 1.0, None)] == [
        "***", "**", "**", "*", "*", "", "", "",
    ]  # fmt: skip


def test_a_question_won_shows_its_passage_with_the_answer_marked_and_the_query_that_decided(page: Page) -> None:
    first = demo_questions()[0]
    assert first["lang"] == "ar"
    assert "Questions won: 18" in page.texts("h3")
    assert "Questions lost: 6" in page.texts("h3")
    assert set(first["answers"]) <= set(page.texts("mark"))
    decisive = page.texts("p", class_="query decisive")
    assert len(decisive) == 18 + 6
    assert decisive[0] == f"generated query (ar): {first['text']}"


def test_what_is_won_is_decided_by_the_right_passage_and_what_is_lost_by_the_one_before_it(page: Page) -> None:
    hits = [
        (found["class"], "".join(inner)) for tag, found, inner in page.elements if tag == "div" and "class" in found
    ]
    decided = [(name, text) for name, text in hits if name in ("hit", "hit relevant")]
    order = [tag_class for tag_class, _ in decided]
    # In each of the 24: the run before and the run after, two passages each.
    assert len(order) == 4 * 24
    assert order[:4] == ["hit", "hit relevant", "hit relevant", "hit"]
    assert order[-4:] == ["hit relevant", "hit", "hit", "hit relevant"]


def test_foreign_text_carries_its_language_and_its_direction(page: Page) -> None:
    for row in demo_questions():
        found = [
            (attributes["lang"], attributes["dir"])
            for tag, attributes, inner in page.elements
            if tag == "span" and "".join(inner) == row["text"]
        ]
        assert set(found) <= {(row["lang"], "rtl" if row["lang"] == "ar" else "auto")}
    assert any(attributes.get("lang") == "ar" for _, attributes, _ in page.elements)
    assert page.elements[0][1]["lang"] == "en"


def test_the_command_and_the_manifest_are_there_to_repeat_it(page: Page, evaluation: Path) -> None:
    command = json.loads((evaluation / "manifest.json").read_text())["command"]
    assert [shlex.split(text) for text in page.texts("pre")] == [command]
    rows = page.texts("tr")
    for fact in ("data.questions.sha256 " + "1" * 64, "seed 0", "machine.cores 2", "versions.python 3.11.7"):
        assert fact in rows


def test_yields_and_what_was_dropped_are_told_by_language(page: Page) -> None:
    assert "te 400 290 72.5% 3.8% – – 1.2% –" in page.texts("tr")


def test_every_heading_table_and_drawing_can_be_read_aloud(tmp_path: Path, evaluation: Path) -> None:
    page = Page(rendered(evaluation, write_evaluation(tmp_path / "second"), write_pilot(tmp_path / "pilot")))
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(found.get("scope") in ("col", "row") for tag, found, _ in page.elements if tag == "th")
    ids = [found["id"] for _, found, _ in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    drawings = [found for tag, found, _ in page.elements if tag == "svg" and "aria-hidden" not in found]
    assert drawings
    for found in drawings:
        assert found["role"] == "img"
        assert set(str(found["aria-labelledby"]).split()) <= set(ids)


def test_the_file_asks_for_nothing_and_runs_nothing(page: Page) -> None:
    policy = next(found["content"] for tag, found, _ in page.elements if found.get("http-equiv"))
    assert policy is not None
    assert policy.split("; ")[:3] == ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"]
    for tag, found, _ in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "img", "form", "base")
        assert not [name for name in found if name.startswith("on") or name in ("src", "style")]
        assert str(found.get("href", "#")).startswith(("#", "data:,"))
    [style] = page.texts("style")
    assert "url(" not in style
    assert "@import" not in style


def test_nothing_in_the_data_leaves_its_place(tmp_path: Path) -> None:
    html = rendered(write_hostile_evaluation(tmp_path / "hostile"))
    hostile = Page(html)
    harmless = Page(rendered(write_evaluation(tmp_path / "demo")))
    assert {tag for tag, _, _ in hostile.elements} <= {tag for tag, _, _ in harmless.elements} | {"br"}
    names = {name for _, found, _ in hostile.elements for name in found}
    assert names <= {name for _, found, _ in harmless.elements for name in found} | {"colspan"}
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u206f]", html)
    assert "<!--" not in html
    text = "".join(hostile.elements[0][2])
    for payload in HOSTILE:
        shown = payload.encode("ascii", "backslashreplace").decode().replace("\\x9b", "\\u009b")
        shown = shown.replace("\x00", "\\u0000").replace("\x1b", "\\u001b")
        assert shown in text
    # A language that is no language has no tag; it stands there as text only.
    assert {found["lang"] for _, found, _ in hostile.elements if "lang" in found} == {"en", ""}


def test_a_text_with_half_a_character_can_be_written(tmp_path: Path) -> None:
    folder = write_hostile_evaluation(tmp_path / "hostile")
    facts = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", facts | {"collection": "half \ud83d"})
    output = tmp_path / "report.html"
    result = CliRunner().invoke(main, ["report", str(folder), "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert "half \\ud83d" in output.read_text(encoding="utf-8")


def test_evaluations_of_the_same_questions_stand_side_by_side(tmp_path: Path, evaluation: Path) -> None:
    second = write_evaluation(tmp_path / "other", shift=2)
    rows = Page(rendered(evaluation, second)).texts("tr")
    of_first_measure = [row for row in rows if re.match(r"(passage|xqg) (demo|other) ", row)][:4]
    assert [" ".join(row.split()[:3]) for row in of_first_measure] == [
        "passage demo 50.00", "xqg demo 66.67", "passage other 50.00", "xqg other 66.67",
    ]  # fmt: skip
    assert "+16.67*" in of_first_measure[1]


def test_each_of_several_runs_is_compared_with_the_first_by_the_measures_that_both_have(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "demo")
    values = json.loads((folder / "values.json").read_text())
    values["hybrid"] = {"R@2kt": dict.fromkeys(values["passage"]["R@2kt"], 100.0)}
    write_json(folder / "values.json", values)
    page = Page(rendered(folder))
    rows = page.texts("tr")
    total = next(row for row in rows if row.startswith("average 72 50.00 66.67 100.00 +16.67*"))
    assert " +50.00*** " in total
    assert any(row.startswith("average 72 25.00 33.33 +8.33*") for row in rows)
    assert len(page.texts("p", class_="lead")) == 2


@pytest.mark.parametrize(("found", "gives"), [(0, "+16.7 of +16.7 (p = 0.02"), (2, "+0.0 of +16.7, which could be ch")])
def test_where_the_control_was_measured_the_report_says_what_the_content_gives(
    tmp_path: Path, found: int, gives: str
) -> None:
    folder = write_evaluation(tmp_path / "demo")
    values = json.loads((folder / "values.json").read_text())
    # The control answers as many as the plain vectors, or two more of each language's twelve, as xqg does.
    ids = list(values["passage"]["R@2kt"])
    hits = {name: 100.0 if number % 12 >= 6 - found else 0.0 for number, name in enumerate(ids)}
    values = {"passage": values["passage"], "control": {"R@2kt": hits}, "xqg": values["xqg"]}
    write_json(folder / "values.json", values)
    page = Page(rendered(folder))
    *_, sentence = page.texts("p", class_="lead")
    assert sentence.startswith(f"The content of the queries gives {gives}")
    assert any(row.startswith(f"average 72 50.00 {50 + 100 * found / 12:.2f} 66.67") for row in page.texts("tr"))


def test_of_a_run_that_does_not_gain_nothing_is_owed_to_content(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "demo")
    values = json.loads((folder / "values.json").read_text())
    write_json(folder / "values.json", dict.fromkeys(("passage", "control", "xqg"), values["passage"]))
    assert not [text for text in Page(rendered(folder)).texts("p") if "content of the queries" in text]


def test_a_single_run_has_its_values_and_no_differences(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "demo")
    values = json.loads((folder / "values.json").read_text())
    write_json(folder / "values.json", {"xqg": values["xqg"]})
    (folder / "changes.jsonl").unlink()
    page = Page(rendered(folder))
    assert "average 72 66.67" in page.texts("tr")
    assert page.texts("p", class_="lead") == []
    assert "Difference" not in " ".join(page.texts("th"))


def test_evaluations_of_other_questions_are_not_compared(tmp_path: Path, evaluation: Path) -> None:
    second = write_evaluation(tmp_path / "other")
    rows = demo_questions()
    rows[0]["text"] += "?"
    (second / "questions.jsonl").write_text(lines_of(*rows), encoding="utf-8")
    assert "Side by side" not in Page(rendered(evaluation, second)).texts("h2")


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path: Path, evaluation: Path) -> None:
    second = write_evaluation(tmp_path / "demo")
    headings = Page(rendered(evaluation, second)).texts("h2")
    assert headings == ["Side by side", f"{evaluation} evaluation", f"{second} evaluation"]


def test_of_many_changes_some_of_each_language_are_shown_and_the_number_of_all(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "demo")
    rows = [json.loads(line) for line in (folder / "changes.jsonl").read_text(encoding="utf-8").splitlines()]
    many = [row | {"id": f"{row['id']}-{n}"} for row in rows for n in range(5)]
    (folder / "changes.jsonl").write_text(lines_of(*many), encoding="utf-8")
    page = Page(rendered(folder))
    assert "Questions won: 90" in page.texts("h3")
    assert "60 of them are shown, the first of each language; all are in changes.jsonl in the folder." in page.texts(
        "p"
    )


def test_a_sweep_shows_a_chart_for_each_axis_and_what_was_chosen(tmp_path: Path) -> None:
    page = Page(rendered(write_sweep(tmp_path / "sweep")))
    titles = [inner for tag, found, inner in page.elements if tag == "title" and "id" in found]
    assert ["".join(inner) for inner in titles] == [
        "R@2kt: differences from passage",
        "R@2kt by language",
        "R@2kt against alpha, mean fusion",
        "R@2kt against alpha, sum fusion",
        "R@2kt against the number of queries",
        "R@2kt by languages",
        "R@2kt against the filter",
    ]
    lead, gained = page.texts("p", class_="lead")
    assert lead.startswith("Chosen on 210 questions: mean, alpha 0.1, 5 a language, all languages.")
    assert lead.endswith("is measured on the other 212 questions.")
    assert gained.startswith("R@2kt: xqg 46.50, passage 44.00, a difference of +2.50 (95% interval +1.50 to +3.50")
    assert "Significantly better in ar, bn, fi, ja, ko, te, worse in none." in gained
    # In a language it is Holm's p that counts.
    assert "ar 50 44.00 46.50 +2.50** +0.50 to +4.50 0.0060 30 12" in page.texts("tr")
    assert "plain vectors 44.00 41.50 to 46.40" in " ".join(page.texts("tr"))
    assert len([row for row in page.texts("tr") if row.startswith("✓")]) >= 1


def test_a_sweep_shows_what_the_content_gives_and_the_weights_of_the_calibration(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep")
    sweep = json.loads((folder / "sweep.json").read_text())
    assert "content of the queries" not in rendered(folder)  # saved before controls were measured
    for gamma in (0.0, 0.5):
        for alpha in (0.1, 0.0):
            changed = {"gamma": gamma, "alpha": alpha, "renormalise": gamma > 0}
            sweep["curves"].setdefault("gamma", []).append(len(sweep["points"]))
            sweep["points"].append(sweep["points"][0] | {"setting": sweep["base"] | changed})
    sweep["report"] |= {"control": sweep["report"]["xqg"]}
    sweep["content"] = sweep["chosen"]["on_other_half"] | {"difference": 1.5, "p": 0.03}
    write_json(folder / "sweep.json", sweep)
    page = Page(rendered(folder))
    assert page.texts("p", class_="lead")[-1].startswith("The content of the queries gives +1.5 of +2.5 (p = 0.0300)")
    titles = ["".join(inner) for tag, found, inner in page.elements if tag == "title" and "id" in found]
    assert "R@2kt against the weight of the calibration, gamma" in titles
    assert any("no queries" in row and "gamma 0.5" in row for row in page.texts("tr"))


def test_a_pilot_says_what_the_whole_corpus_would_take(tmp_path: Path) -> None:
    paragraphs = Page(rendered(write_pilot(tmp_path / "pilot"))).texts("p")
    assert "Worth it: significantly better." in paragraphs
    assert (
        "The whole corpus of 100,000 passages would take about 3:20:00 (hours:minutes:seconds) and 400 MB of disk, and "
        "cost 4.00. Measured: 500 of them in 60.0 s."
    ) in paragraphs
    assert any(text.startswith("No questions were given") for text in paragraphs)
    assert any(text.startswith("Chosen on 210 questions") for text in paragraphs)


def test_of_robustness_more_is_not_called_better(tmp_path: Path) -> None:
    page = Page(rendered(write_robustness(tmp_path / "robustness")))
    assert "paraphrases should agree much and near-misses little" in page.texts("p", class_="note")
    assert "average 300 44.00 45.00 +1.00* +0.00 to +2.00 0.0180 30 12" in page.texts("tr")
    assert not [found for _, found, _ in page.elements if found.get("class") in ("up", "down")]
    assert not [heading for heading in page.texts("h3") if heading.startswith("Questions")]


def test_a_folder_without_its_file_or_with_another_layout_is_named(tmp_path: Path) -> None:
    damaged: list[tuple[str, dict[str, object] | None]] = [
        ("sweep.json", None),
        ("sweep.json", {"points": []}),
        ("changes.jsonl", {"id": 1}),
        ("manifest.json", {}),
    ]
    for number, (name, content) in enumerate(damaged):
        folder = (write_sweep if name == "sweep.json" else write_evaluation)(tmp_path / str(number))
        if content is None:
            (folder / name).unlink()
        else:
            kind = {"kind": "evaluation"} if name == "manifest.json" else {}
            write_json(folder / name, content | kind)
        result = CliRunner().invoke(main, ["report", str(folder), "--output", str(tmp_path / "report.html")])
        assert result.exit_code == 2, result.output
        assert str(folder) in result.stderr
        assert "Cure: " in result.stderr
    assert not (tmp_path / "report.html").exists()


def test_a_question_lost_to_a_passage_that_is_not_among_those_saved_has_no_query_framed() -> None:
    def hit(rank: int, name: str, relevant: bool = False) -> dict[str, object]:
        query = {"language": "fi", "text": f"about {name}"}
        found = {"rank": rank, "passage_id": name, "relevant": relevant, "best_query": query}
        return found | {"score": 1 - rank / 100, "title": name, "text": name}

    row = {"id": "q", "lang": "fi", "text": "?", "answers": [], "before": 100.0, "after": 0.0}
    above = [hit(1, "a"), hit(2, "b"), hit(3, "c")]
    lost = row | {"hits": {"passage": [*above, hit(15, "right", True)], "xqg": [*above, hit(17, "right", True)]}}
    risen = [hit(1, "a"), hit(2, "new"), hit(3, "b"), hit(17, "right", True)]
    passed = row | {"hits": {"passage": [*above, hit(15, "right", True)], "xqg": risen}}
    two = [hit(1, "right", True), hit(2, "new"), hit(3, "second", True)]
    between = row | {"hits": {"passage": [hit(1, "right", True), hit(2, "second", True), hit(3, "new")], "xqg": two}}
    _, changes = view_changes([lost, passed, between])
    framed = [[found.title for _, hits in change.runs for found in hits if found.decisive] for change in changes.shown]
    assert framed == [[], ["new"], ["new"]]


def test_a_setting_is_called_by_what_tells_it_from_the_others() -> None:
    first = {"fusion": "mean", "alpha": 0.1, "renormalise": True, "languages": ["ar", "fi", "ja"]}
    only = first | {"languages": ["fi"]}
    without = first | {"languages": ["ar", "ja"]}
    other = first | {"fusion": "sum", "alpha": 0.01}
    assert name_setting(first, [first, only, without]) == "all languages"
    assert name_setting(only, [first, only, without]) == "fi alone"
    assert name_setting(without, [first, only, without]) == "all but fi"
    assert name_setting(other, [first, other]) == "sum, alpha 0.01"
    assert name_setting(other, [first, other], ("alpha",)) == "sum"
    assert name_setting(first, [first]) == "mean"


def test_a_chart_places_its_values_on_its_axes() -> None:
    axis = Axis(40.0, 50.0, 200.0, 100.0)
    assert [axis.at(value) for value in (40, 42.5, 50)] == [200.0, 175.0, 100.0]
    assert [tick.label for tick in axis.ticks()] == ["40", "42", "44", "46", "48", "50"]
    log = Axis(0.001, 0.1, 0.0, 100.0, log=True)
    assert [log.at(value) for value in (0.001, 0.01, 0.1)] == [0.0, 50.0, 100.0]
    assert [tick.label for tick in log.ticks()] == ["0.001", "0.002", "0.005", "0.01", "0.02", "0.05", "0.1"]
    assert [tick_step(span) for span in (6, 6.1, 0.06, 30)] == [1.0, 2.0, 0.01, 5.0]


def test_a_line_chart_has_a_band_where_every_point_has_an_interval() -> None:
    with_band = Series("mean", [Point(45, 44, 46, x=2), Point(44, 43, 45, x=1)])
    without = Series("sum", [Point(45, 44, 46, x=1), Point(44, x=2)])
    chart = draw_lines("t", "d", "x", "y", [with_band, without], whole=True, baseline=("plain", Point(44, 43, 45)))
    first, second = chart.curves
    assert [mark.label for mark in first.marks] == [
        "mean, x 1: 44.00 (43.00 to 45.00)",
        "mean, x 2: 45.00 (44.00 to 46.00)",
    ]
    assert first.band.endswith("Z")
    assert first.band.count(",") == 4
    assert second.band == ""
    assert [tick.label for tick in chart.x_ticks] == ["1", "2"]
    assert chart.baseline is not None
    assert chart.baseline.start < chart.baseline.at < chart.baseline.start + chart.baseline.length


def test_a_chart_of_one_value_without_any_width_can_be_drawn() -> None:
    draw_lines("t", "d", "x", "y", [Series("mean", [Point(44, x=0.1)])], log=True)
    chart = draw_rows("t", "d", "x", ["xqg"], [Row("ar", [Point(0.0)]), Row("fi", [None])], zero=True)
    assert [mark.x for row in chart.rows for mark in row.marks if mark] == [chart.baseline and chart.baseline.at]


def test_answers_are_marked_letter_by_letter_and_across_line_breaks() -> None:
    def marked(text: str, *answers: str) -> list[str]:
        parts = marked_parts(text, answers, 1000)
        assert "".join(part.text for part in parts) == text
        return [part.text for part in parts if part.marked]

    assert marked("It is 1642 m deep, 1642.", "1642") == ["1642", "1642"]
    assert marked("in New\n York City", "New York", "New York City") == ["New\n York City"]
    assert marked("a (b) c", "(b)", "") == ["(b)"]
    assert marked("the Don", "don", "yes", "no") == []
    assert marked("バイカル湖は深い", "バイカル湖") == ["バイカル湖"]


def test_of_a_long_text_the_surroundings_of_the_answer_are_shown() -> None:
    parts = marked_parts("a" * 10_000 + "ANSWER" + "b" * 10_000, ["ANSWER"], 500)
    assert [part.text for part in parts if part.marked] == ["ANSWER"]
    assert parts[0].text == parts[-1].text == "…"
    assert sum(len(part.text) for part in parts) == 500 + 2
    assert "".join(part.text for part in marked_parts("c" * 501, ["ANSWER"], 500)) == "c" * 500 + "…"


def test_a_language_is_a_tag_or_nothing() -> None:
    for tag in ("ar", "zh-Hant", "und", "es-419"):
        assert language_tag(tag) == tag
    for text in ("", "<b>", "a", "ar\n", 'en" onclick="x', "x" * 40):
        assert language_tag(text) == ""
    assert [direction(tag) for tag in ("ar", "fa-IR", "he", "UR", "en", "", "arn")] == [
        "rtl", "rtl", "rtl", "rtl", "auto", "auto", "auto",
    ]  # fmt: skip


def test_the_command_writes_the_file_whole_and_replaces_what_was_there(tmp_path: Path, evaluation: Path) -> None:
    output = tmp_path / "report.html"
    output.write_text("old")
    result = CliRunner().invoke(main, ["report", str(evaluation), "--output", str(output)])
    assert "--overwrite" in result.stderr
    assert output.read_text() == "old"
    result = CliRunner().invoke(main, ["report", str(evaluation), "--output", str(output), "--overwrite"])
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert str(output) in result.stderr
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written_is_named_with_its_cure(tmp_path: Path, evaluation: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for output in (tmp_path / "missing" / "report.html", folder):
        result = CliRunner().invoke(main, ["report", str(evaluation), "--output", str(output)])
        assert result.exit_code == 2
        assert str(output) in result.stderr
        assert "Cure: " in result.stderr
    assert list(tmp_path.iterdir()) == [folder]


def test_a_report_without_jinja_names_the_extra(evaluation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    result = CliRunner().invoke(main, ["report", str(evaluation)])
    assert result.exit_code == 2
    assert "pip install 'xqg-qdrant[report]'" in result.stderr
