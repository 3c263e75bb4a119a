"""Hubness: the figures of hand arithmetic, the same on every store, printed, saved and reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rest_qdrant import RestQdrant

from xqg_qdrant.augmentation.calibration import QuestionBank
from xqg_qdrant.cli import compare, main
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.hubs import Hub, Hubness, Hubs, ask_bank, find_hubs, measure_hubness
from xqg_qdrant.pages.evaluations import view_hubs
from xqg_qdrant.printing import format_hubs
from xqg_qdrant.records import AugmentedPassage, FloatArray, Passage, Query
from xqg_qdrant.stores import Store, open_store

# The plain vectors of passages 0 to 12 are (1, 0) to (13, 0), the augmented ones (0, 1) to (0, 13). By the former `up`
# finds 3 to 12 and `down` 0 to 9, by the latter both find 3 to 12.
PASSAGES = 13
VECTORS = {"up": (1, 1), "down": (-1, 1)}
ASKED = [Query("1", "up", "en"), Query("2", "up", "fi"), Query("3", "down", "fi")]


class StubEncoder:
    """Looks vectors up; cannot read Finnish."""

    device = "cpu"

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        return np.array([VECTORS[text] for text in texts], dtype=np.float32)

    def unknown_share(self, texts: Sequence[str]) -> float:
        return 1.0 if "Missä?" in texts else 0.0

    def describe(self) -> dict[str, Any]:
        return {"sha256": "5"}


def fill(store: Store, passages: int = PASSAGES) -> None:
    store.create_collection("docs", 2, {"encoder.sha256": "5", "queries": "given"})
    store.upsert(
        "docs",
        [
            AugmentedPassage(
                Passage(f"p{number:02}", "Text.", f"Title {number}"),
                (),
                {
                    "passage": np.array([number + 1, 0], dtype=np.float32),
                    "xqg": np.array([0, number + 1], dtype=np.float32),
                },
                "",
                "",
            )
            for number in range(passages)
        ],
    )


def find(store: Store, asked: Sequence[Query] = ASKED) -> Hubs:
    encoder: Any = StubEncoder()
    return find_hubs(store, "docs", encoder, asked, lambda _: None)


@pytest.fixture
def hubs() -> Hubs:
    with open_store(":memory:") as store:
        fill(store)
        return find(store)


# The figures


def test_skewness_by_hand() -> None:
    # Counts 4, 0, 0, 0: the mean is 1, the variance (9 + 1 + 1 + 1)/4 = 3, the third moment (27 - 1 - 1 - 1)/4 = 6.
    found = measure_hubness([4], passages=4)
    assert found.skewness == pytest.approx(6 / sqrt(3) ** 3)
    assert found == Hubness(3, 4, found.skewness, (3, 0, 0, 1))


def test_an_even_spread_has_no_skewness() -> None:
    assert measure_hubness([2, 2, 2], 3) == Hubness(0, 2, 0.0, (0, 0, 3))
    assert measure_hubness([], 5) == Hubness(5, 0, 0.0, (5,))


def test_the_classes_of_the_histogram_double() -> None:
    assert measure_hubness([1, 2, 3, 4, 7, 8, 15, 16], 10).histogram == (2, 1, 2, 2, 2, 1)


@pytest.mark.parametrize("place", ["memory", "edge", "server"])
def test_every_store_finds_the_same_hubs(place: str, tmp_path: Path, server: RestQdrant) -> None:
    location = {"memory": ":memory:", "edge": f"edge:{tmp_path}", "server": server.url}[place]
    with open_store(location) as store:
        fill(store)
        found = find(store)
    # By plain vectors 3 to 9 are found three times, 10 to 12 twice, 0 to 2 once.
    plain, augmented = (found.hubness[name] for name in ("passage", "xqg"))
    assert (plain.never, plain.most, plain.histogram) == (0, 3, (0, 3, 10))
    assert (augmented.never, augmented.most, augmented.histogram) == (3, 3, (3, 0, 10))
    assert [hub.passage.passage_id for hub in found.worst["passage"]] == [f"p{n:02}" for n in range(3, 13)]
    assert found.worst["passage"][7] == Hub(Passage("p10", "Text.", "Title 10"), {"passage": 2, "xqg": 3})


def test_a_collection_that_every_question_finds_whole_is_refused() -> None:
    with open_store(":memory:") as store:
        fill(store, passages=10)
        with pytest.raises(InputError, match="only 10 passages: every question finds all of them"):
            find(store)


def test_the_bank_is_asked_in_languages_that_the_encoder_reads() -> None:
    encoder: Any = StubEncoder()
    bank = QuestionBank({"en": ("Where?", "Who?"), "fi": ("Missä?",)}, "hash")
    assert ask_bank(bank, encoder) == [Query("en-1", "Where?", "en"), Query("en-2", "Who?", "en")]


# What is shown


def test_the_table_shows_both_vectors_side_by_side(hubs: Hubs) -> None:
    lines = format_hubs(hubs).splitlines()
    assert lines[0] == "3 questions, the 10 best passages of each, in 13 passages"
    assert lines[3].split() == ["never", "found", "0", "(0.0%)", "3", "(23.1%)"]
    assert lines[4].split() == ["most", "often", "found", "3", "(100.0%)", "3", "(100.0%)"]
    assert "Title 10                                   2               3  [p10]" in lines
    assert not any(line.startswith("Note") for line in lines)


def test_too_few_questions_to_find_every_passage_are_noted() -> None:
    few = Hubs(100, 3, {"passage": Hubness(80, 2, 1.0, (80, 10, 10))}, {"passage": []})
    assert "so few questions cannot find 70 of the passages by any vector" in format_hubs(few)


def test_the_chart_has_a_row_for_each_class(hubs: Hubs) -> None:
    view = view_hubs(json.loads(json.dumps(hubs.to_json())))
    assert [row.label for row in view.chart.rows] == ["never", "once", "2 to 3"]
    labels = [mark.label for row in view.chart.rows for mark in row.marks if mark]
    assert labels[:2] == ["never, passage: 0.00", "never, xqg: 23.08"]
    assert view.figures[0].values == ["0 (0.0%)", "3 (23.1%)"]


def test_the_command_prints_json_saves_and_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hubs: Hubs
) -> None:
    with open_store(f"edge:{tmp_path / 'data'}") as store:
        fill(store)
    monkeypatch.setattr(compare, "load_encoder", lambda *_: StubEncoder())
    questions = tmp_path / "questions.jsonl"
    rows = [{"id": query.query_id, "lang": query.language, "text": query.text} for query in ASKED]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["--collection", "docs", "--store", str(tmp_path / "data"), "--questions", str(questions)]
    result = CliRunner().invoke(main, ["-q", "hubs", *words, "--json", "--save", str(tmp_path / "saved")])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == hubs.to_json()

    page = tmp_path / "report.html"
    result = CliRunner().invoke(main, ["report", str(tmp_path / "saved"), "--output", str(page)])
    assert result.exit_code == 0, result.output
    text = page.read_text(encoding="utf-8")
    assert "3 questions were searched for in 13 passages" in text
    assert "<td>3 (23.1%)</td>" in text

    (tmp_path / "saved" / "hubs.json").write_text("{}", encoding="utf-8")
    result = CliRunner().invoke(main, ["report", str(tmp_path / "saved"), "--output", str(page)])
    assert result.exit_code == 2
    assert "Cure: run the command again with --save." in result.stderr
