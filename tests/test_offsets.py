"""The language of a question whose offset is subtracted: given or identified, and told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xqg_qdrant import ingest, open_store, search
from xqg_qdrant.augmentation.calibration import AskedLanguage
from xqg_qdrant.cli import main
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.pages.search import Finder, SearchPage
from xqg_qdrant.printing import format_asked_language, format_asked_languages, hits_to_json
from xqg_qdrant.stores import Store

FINNISH = "Missä maassa Tonava alkaa?"
ROWS: list[dict[str, Any]] = [
    {
        "id": "danube",
        "text": "The Danube rises in Germany.",
        "generated_queries": [{"language": "fi", "text": FINNISH}],
    },
    {"id": "nile", "text": "The Nile flows north through Egypt.", "generated_queries": []},
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, demo_encoder: Encoder) -> Iterator[Store]:
    with open_store(f"local:{tmp_path_factory.mktemp('offsets')}") as opened:
        ingest(ROWS, opened, "calibrated", demo_encoder, None)
        ingest(ROWS, opened, "plain", demo_encoder, None, calibrate=False)
        yield opened


def test_a_search_without_a_language_equals_one_with_the_identified_language(
    store: Store, demo_encoder: Encoder
) -> None:
    def scores(language: str) -> list[float]:
        found = search(FINNISH, store, "calibrated", demo_encoder, ranking="offset", language=language)
        return [hit.score for hit in found]

    assert scores("") == scores("fi") == scores("fi-FI")
    assert scores("") != scores("ja")


def test_the_search_page_shows_the_offset_and_the_language_where_vectors_are_calibrated(
    store: Store, demo_encoder: Encoder
) -> None:
    finder = Finder(store, "calibrated", demo_encoder)
    found, asked = finder.find(FINNISH, 2), finder.find_language(FINNISH)
    assert list(found) == ["passage", "xqg", "offset"]
    assert asked == ("fi", True, True)
    page = SearchPage("calibrated", "here", 9, 9).render(FINNISH, 2, found, None, asked)
    assert "Language: fi (identified)." in page
    plain = Finder(store, "plain", demo_encoder)
    assert list(plain.find(FINNISH, 2)) == ["passage", "xqg"]
    assert plain.find_language(FINNISH) is None


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (AskedLanguage("fi", True, True), "language: fi (identified)"),
        (AskedLanguage("fi", False, True), "language: fi"),
        (AskedLanguage("fo", False, False), "language: fo (not in the question bank)"),
        (AskedLanguage("", False, False), "language: unknown; no language's offset is subtracted"),
    ],
)
def test_how_a_language_is_known_is_told(asked: AskedLanguage, told: str) -> None:
    assert format_asked_language(asked) == told
    assert json.loads(hits_to_json("?", "offset", [], asked))["language"] == asked.code


def test_an_evaluation_tells_how_many_languages_were_identified() -> None:
    found = [AskedLanguage("fi", True, True)] * 2 + [AskedLanguage("ru", True, True), AskedLanguage("", False, False)]
    assert format_asked_languages(found) == "The language is identified for 3 questions (fi 2, ru 1) and unknown for 1."
    assert format_asked_languages([AskedLanguage("fi", False, True)]) == ""


def test_a_command_tells_the_language_it_used(
    demo_encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location = str(tmp_path / "store")
    with open_store(location) as opened:
        ingest(ROWS, opened, "docs", demo_encoder, None)
    main(["query", "--collection", "docs", "--store", location, "--rank", "offset", FINNISH], standalone_mode=False)
    assert "  language: fi (identified)\n" in capsys.readouterr().out
