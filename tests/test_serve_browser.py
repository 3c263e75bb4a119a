"""The search page in a real browser: what anybody may have written into a collection does no harm, and can be read.

Needs Chromium; without one these tests are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote, unquote

import pytest
from browser import COLOURS, NEEDS_BROWSER, Browser, contrast, luminance
from results_folders import HOSTILE
from serving import Served, demo_rows, fill, serving

from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.pages.search import Finder, SearchPage
from xqg_qdrant.records import GeneratedQuery, Passage, QueriedPassage
from xqg_qdrant.stores import open_store

pytestmark = NEEDS_BROWSER
THEMES = ("light", "dark")
PHONE = 360
WIDTHS = (PHONE, 1280)
ROWS = demo_rows(12)
ASKED = {query.language: query.text for query in ROWS[0].queries}
# Besides what is hostile to the page: words without an end, and marks that pile up over a letter.
PAYLOADS = (*HOSTILE, "w" * 3000, "o" + "\u0301" * 2000, "\u202e" + "abc " * 50, "ا" * 400)


@pytest.fixture(scope="module")
def served(demo_encoder: Encoder) -> Iterator[Served]:
    store = open_store(":memory:")
    fill(store, "docs", demo_encoder, ROWS, sparse=True)
    with serving(Finder(store, "docs", demo_encoder)) as running:
        yield running
    store.close()


@pytest.fixture(scope="module")
def hostile(demo_encoder: Encoder) -> Iterator[Served]:
    store = open_store(":memory:")
    rows = [
        QueriedPassage(
            Passage(f"{text} {number}", f"{text} {text}", text, {text: text}),
            tuple(GeneratedQuery(language, text, number) for number, language in enumerate((text[:40], "ar", ""))),
        )
        for number, text in enumerate(PAYLOADS)
    ]
    fill(store, "docs", demo_encoder, rows)
    with serving(Finder(store, "docs", demo_encoder)) as running:
        yield running
    store.close()


def address(served: Served, question: str, limit: int = 5) -> str:
    return f"{served.url}/?q={quote(question)}&limit={limit}"


@pytest.mark.parametrize("width", WIDTHS)
def test_whatever_a_collection_and_a_question_hold_the_page_runs_nothing_and_never_scrolls_sideways(
    chromium: Browser, hostile: Served, width: int
) -> None:
    for question in ("".join(HOSTILE)[:900], "w" * 900):
        chromium.open(address(hostile, question, 50), width)
        assert {unquote(url.partition("?")[0]) for url in chromium.requests()} == {
            f"{hostile.url}/",
            f"{hostile.url}/style.css",
        }
        assert len(chromium.requests()) == 2
        assert chromium.complaints() == []
        assert chromium.evaluate("window.hacked === undefined && document.scripts.length === 0")
        assert chromium.evaluate("document.querySelectorAll('.hit').length") == 2 * len(PAYLOADS)
        assert chromium.evaluate("document.querySelectorAll('details').forEach(found => found.open = true)") is None
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width
        assert chromium.evaluate("document.body.textContent.match(/[\\u202a-\\u202e\\u2066-\\u2069]/)") is None


def test_marks_that_pile_up_stay_within_their_passage(chromium: Browser, hostile: Served) -> None:
    chromium.open(address(hostile, "o", 50))
    assert chromium.evaluate(
        "[...document.querySelectorAll('.hit')].every(e => getComputedStyle(e).overflow == 'clip')"
    )


def test_the_policy_stops_a_script_that_got_in(
    chromium: Browser, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = SearchPage.render
    planted = (
        "<script>window.hacked=1</script><img src='https://example.org/x.png' onerror='window.hacked=1'>"
        "<iframe src='/'></iframe><h1"
    )
    monkeypatch.setattr(SearchPage, "render", lambda *given: render(*given).replace("<h1", planted, 1))
    chromium.open(f"{served.url}/")
    assert chromium.evaluate("window.hacked === undefined")
    said = " ".join(str(entry) for entry in chromium.complaints())
    for blocked in ("script", "image", "frame"):
        assert blocked in said


@pytest.mark.parametrize("language", ["ar", "te", "ja"])
def test_a_question_typed_into_the_form_is_answered_on_both_sides(
    chromium: Browser, served: Served, language: str
) -> None:
    chromium.open(f"{served.url}/")
    chromium.evaluate("document.querySelector('#q').focus()")
    chromium.events.clear()
    chromium.call("Input.insertText", text=ASKED[language])
    chromium.evaluate("document.forms[0].requestSubmit()")
    chromium.wait_for("Page.loadEventFired")
    assert chromium.evaluate("document.querySelector('#q').value") == ASKED[language]
    assert chromium.evaluate("[...document.querySelectorAll('h3')].map(e => e.textContent)") == [
        "Without augmentation",
        "With augmentation",
        "With terms, too",
    ]
    title = ROWS[0].passage.title
    columns = chromium.evaluate(
        "[...document.querySelectorAll('.runs > section')].map(c => [...c.querySelectorAll('.hit')].map("
        "h => [h.querySelector('strong').textContent, h.querySelector('.query-text')?.textContent,"
        " h.querySelector('.query-text')?.lang]))"
    )
    assert [title, None, None] in columns[0]
    # The question is itself a query of this passage.
    assert [title, ASKED[language], language] in columns[1]


def test_arabic_runs_from_right_to_left_and_other_scripts_do_not(chromium: Browser, served: Served) -> None:
    chromium.open(address(served, ASKED["ar"]))
    styles = "[...document.querySelectorAll('{}')].map(e => getComputedStyle(e).direction)"
    assert chromium.evaluate(styles.format("#q, h2 span")) == ["rtl", "rtl"]
    assert set(chromium.evaluate(styles.format(".query-text[lang=ar]"))) == {"rtl"}
    assert set(chromium.evaluate(styles.format(".hit > p[dir], .hit > details"))) == {"ltr"}
    chromium.open(address(served, ASKED["te"]))
    assert chromium.evaluate(styles.format("#q, h2 span")) == ["ltr", "ltr"]
    assert set(chromium.evaluate(styles.format(".query-text[lang=te]"))) == {"ltr"}


@pytest.mark.parametrize("theme", THEMES)
def test_every_text_stands_out_from_what_is_behind_it(chromium: Browser, served: Served, theme: str) -> None:
    chromium.open(address(served, ASKED["ja"]), theme=theme)
    page = luminance(chromium.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert page > 0.9 if theme == "light" else page < 0.1
    found = chromium.evaluate(COLOURS)
    assert len(found) > 50
    assert [(ink, behind, where) for ink, behind, where in found if contrast(ink, behind) < 4.5] == []
    query, panel = (
        chromium.evaluate(f"getComputedStyle(document.querySelector('{name}')).backgroundColor")
        for name in (".hit .query", "body")
    )
    assert query != panel


@pytest.mark.parametrize("width", WIDTHS)
def test_the_rankings_stand_side_by_side_where_there_is_room(chromium: Browser, served: Served, width: int) -> None:
    chromium.open(address(served, ASKED["ja"]), width)
    tops = chromium.evaluate(
        "[...document.querySelectorAll('.runs > section')].map(e => e.getBoundingClientRect().top)"
    )
    assert len(set(tops)) == (1 if width > PHONE else 3)
    # A finger needs room.
    heights = chromium.evaluate("[...document.querySelectorAll('form input, form button')].map(e => e.offsetHeight)")
    assert min(heights) >= 36


def test_every_field_has_a_label_and_the_first_is_ready_to_type(chromium: Browser, served: Served) -> None:
    chromium.open(f"{served.url}/")
    assert chromium.evaluate("[...document.querySelectorAll('input')].every(e => e.labels.length === 1)")
    assert chromium.evaluate("document.querySelector('[autofocus]').id") == "q"
