"""Hubness: the figures of hand arithmetic, the same on every store, printed, saved and reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from qdrant_client import models
from rest_qdrant import RestQdrant

from xqg_qdrant.augmentation.calibration import QuestionBank, encode_bank, read_bank
from xqg_qdrant.cli import compare, main
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.hubs import Hub, Hubness, Hubs, ask_bank, find_hubs, measure_hubness, read_vectors
from xqg_qdrant.inference.encoder import Encoder
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
        with pytest.raises(InputError, match="only 10 passages: every question finds all"):
            find(store)


def test_the_bank_is_asked_in_languages_that_the_encoder_reads() -> None:
    encoder: Any = StubEncoder()
    bank = QuestionBank({"en": ("Where?", "Who?"), "fi": ("Missä?",)}, "hash")
    assert ask_bank(bank, encoder) == [Query("en-1", "Where?", "en"), Query("en-2", "Who?", "en")]


# Before and after a calibration

QUESTIONS = [
    "Where is Oulu?", "Who wrote Kalevala?", "What is a volcano?", "How do birds fly?", "When did the war end?",
    "Why is the sky blue?", "Which river is the longest?",
]  # fmt: skip
POINTS = 40
"""The last of them lies nearest to the middle of all questions."""


@pytest.fixture(scope="module")
def vectors(demo_encoder: Encoder) -> FloatArray:
    mean = encode_bank(read_bank(), demo_encoder).overall
    noise = np.random.default_rng(7).normal(0, 0.04, (POINTS, demo_encoder.dim)).astype(np.float32)
    noise[-1] /= 1.2
    made: FloatArray = mean + noise
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


@pytest.fixture
def asked(tmp_path: Path, demo_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("xqg_qdrant.evaluation.hubs.SCORES_AT_ONCE", 60)  # eight passages at once
    for module in ("compare", "ingest"):
        monkeypatch.setattr(f"xqg_qdrant.cli.{module}.load_encoder", lambda *_: demo_encoder)
    path = tmp_path / "asked.jsonl"
    rows = ({"id": str(number), "lang": "en", "text": text} for number, text in enumerate(QUESTIONS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run_hubs(*options: object) -> Any:  # noqa: ANN401
    result = CliRunner().invoke(main, ["-q", "hubs", "--json", *map(str, options)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def count_exactly(vectors: FloatArray, questions: FloatArray) -> list[int]:
    """Return N10 of each passage."""
    best = np.argsort(-(questions @ vectors.T), axis=1)[:, :10]
    counts: list[int] = np.bincount(best.ravel(), minlength=len(vectors)).tolist()
    return counts


def calibrate(vectors: FloatArray, mean: FloatArray) -> FloatArray:
    moved = vectors + 0.5 * mean
    calibrated: FloatArray = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return calibrated


def fill_theirs(
    server: RestQdrant, vectors: FloatArray, name: str, payloads: Sequence[dict[str, Any]] | None = None
) -> None:
    """Make another program's collection; one point lacks the vector, if that has a name."""
    params = models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE)
    server.client.delete_collection("theirs")
    server.client.create_collection("theirs", {name: params} if name else params)
    points = [
        models.PointStruct(
            id=number,
            vector={name: vector.tolist()} if name else vector.tolist(),
            payload=payloads[number] if payloads else {"about": {"name": f"T{number}"}},
        )
        for number, vector in enumerate(vectors)
    ]
    empty = [models.PointStruct(id=1000, vector={}, payload={})] if name else []
    server.client.upsert("theirs", [*empty, *points])


@pytest.mark.parametrize("place", ["edge", "server", "theirs, named", "theirs, unnamed"])
def test_hubs_of_any_vector_are_counted_before_and_after_a_calibration(
    place: str, vectors: FloatArray, asked: Path, tmp_path: Path, server: RestQdrant, demo_encoder: Encoder
) -> None:
    where: list[object]
    if place.startswith("theirs"):
        name = "dense" if place.endswith(" named") else ""
        fill_theirs(server, vectors, name)
        where = ["--collection", "theirs", "--store", server.url, "--vector", name, "--title-field", "about.name"]
        last = (str(POINTS - 1), f"T{POINTS - 1}")
    else:
        location = f"edge:{tmp_path / 'data'}" if place == "edge" else server.url
        with open_store(location) as store:
            encoder = {f"encoder.{name}": value for name, value in demo_encoder.describe().items()}
            store.create_collection("ours", demo_encoder.dim, {**encoder, "queries": "given"})
            store.upsert(
                "ours",
                [
                    AugmentedPassage(
                        Passage(f"p{number}", "Text.", f"T{number}"), (), {"passage": vector, "xqg": vector}, "", ""
                    )
                    for number, vector in enumerate(vectors)
                ],
            )
        where = ["--collection", "ours", "--store", location, "--vector", "passage"]
        last = (f"p{POINTS - 1}", f"T{POINTS - 1}")
    found = run_hubs(*where, "--questions", asked)
    questions = demo_encoder.encode_queries(QUESTIONS)
    plain = count_exactly(vectors, questions)
    after = count_exactly(calibrate(vectors, encode_bank(read_bank(), demo_encoder).overall), questions)
    assert plain[-1] == len(QUESTIONS) > after[-1]
    assert found["passages"] == POINTS
    assert list(found["vectors"]) == ["plain", "calibrated"]
    for name, counts in (("plain", plain), ("calibrated", after)):
        assert (found["vectors"][name]["never"], found["vectors"][name]["most"]) == (counts.count(0), max(counts))
    hub = next(hub for hub in found["vectors"]["plain"]["hubs"] if hub["passage_id"] == last[0])
    assert hub == {"passage_id": last[0], "title": last[1], "found": {"plain": plain[-1], "calibrated": after[-1]}}


def test_a_replaced_vector_is_compared_as_it_was(asked: Path, demo_encoder: Encoder, tmp_path: Path) -> None:
    texts = [f"Town {number} has a river." for number in range(11)]
    payloads = [{"text": text} for text in texts]
    with closing(RestQdrant()) as server:
        server.version = "1.18.0"
        fill_theirs(server, demo_encoder.encode_passages(texts), "dense", payloads)
        where = ["--collection", "theirs", "--store", server.url, "--vector", "dense"]
        before = run_hubs(*where, "--questions", asked)
        options = ["--text-field", "text", "--dead-letters", str(tmp_path / "bad"), "--replace", "--no-queries"]
        result = CliRunner().invoke(main, ["-q", "augment", *where, *options])
        assert result.exit_code == 3, result.output  # for the point without a text
        assert run_hubs(*where, "--questions", asked) == before


def test_a_vector_that_cannot_be_compared_is_refused(
    asked: Path, vectors: FloatArray, server: RestQdrant, tmp_path: Path, demo_encoder: Encoder
) -> None:
    fill_theirs(server, vectors[:, :10], "dense")
    where = ["hubs", "--collection", "theirs", "--store", server.url, "--questions", str(asked), "--vector"]
    result = CliRunner().invoke(main, [*where, "dense"])
    assert (result.exit_code, "has 10 numbers, and the encoder makes 384" in result.stderr) == (4, True)
    result = CliRunner().invoke(main, [*where, "dens"])
    assert (result.exit_code, "--vector 'dense'" in result.stderr) == (2, True)
    with open_store(f"edge:{tmp_path / 'data'}") as store:
        fill(store)
        with pytest.raises(InputError, match="no vector 'dense'"):
            next(read_vectors(store, "docs", "dense"))


def test_a_collection_is_looked_for_before_the_encoder_is_opened(
    vectors: FloatArray, server: RestQdrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "load_encoder", lambda *_: pytest.fail("the encoder was opened"))
    fill_theirs(server, vectors[:1], "dense")

    def fail(*options: str) -> str:
        result = CliRunner().invoke(main, ["hubs", "--store", server.url, *options])
        assert result.exit_code in (2, 4, 5), result.output
        return result.stderr

    assert "there is no collection 'none'" in fail("--collection", "none")
    assert "no collection 'none'" in fail("--collection", "none", "--vector", "dense")
    assert "Cure: name the vector to look at (--vector NAME)." in fail("--collection", "theirs")


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
