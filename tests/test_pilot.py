"""What a pilot and an estimate promise: a fair sample, honest questions, arithmetic that can be followed."""

from __future__ import annotations

import html
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from writing import lines_of

from xqg_qdrant.augmentation.pipeline import ingest
from xqg_qdrant.augmentation.recipe import Recipe, make_recipe
from xqg_qdrant.cli import main
from xqg_qdrant.cli.pilot import make_command
from xqg_qdrant.cli.progress import make_bars
from xqg_qdrant.demo import DEMO_FOLDER, read_demo_passages, read_demo_qrels, read_demo_queries
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation import pilot as pilots
from xqg_qdrant.evaluation.comparison import Comparison, Difference, Report
from xqg_qdrant.evaluation.pilot import (
    Cost,
    choose_questions,
    draw_sample,
    format_bytes,
    hold_back,
    ingest_sample,
    judge_held_back,
    keep_answered,
    measure_disk,
)
from xqg_qdrant.evaluation.results import read_results
from xqg_qdrant.evaluation.sweep.settings import Setting
from xqg_qdrant.evaluation.sweep.summary import compare_encoders
from xqg_qdrant.evaluation.sweep.trial import Sweep
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.model_folders import DEMO_ENCODER, shipped_model
from xqg_qdrant.records import GeneratedQuery, Passage, Qrel, Query, Reject
from xqg_qdrant.stores import open_store

pytestmark = pytest.mark.usefixtures("opened_once")
PASSAGES = [Passage(f"p{number}", f"text {number}") for number in range(100)]
REJECT = Reject("file", 3, "no text", "{}")
FEW = ("--languages", "fi,ru", "--queries-per-language", 2, "--threads", 1)


def xqg(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for temporary files, which have to be gone afterwards."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    return scratch


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Forty short passages of the demo, and a row that cannot be used."""
    rows = [
        {"id": passage.passage_id, "title": passage.title, "text": passage.text.split(". ")[0]}
        for passage in read_demo_passages()[:40]
    ]
    path = tmp_path / "corpus.jsonl"
    path.write_text(lines_of(*rows, {"id": "empty"}), encoding="utf-8")
    return path


# The sample


def draw(passages: Iterable[Passage | Reject], size: int, seed: int, wanted: Container[str] = ()) -> list[str]:
    drawn = draw_sample(passages, size, seed, wanted).passages
    return [passage.passage_id for passage in drawn if isinstance(passage, Passage)]


def test_a_sample_depends_on_ids_and_seed_not_on_the_order_of_the_corpus() -> None:
    rows: list[Passage | Reject] = [*PASSAGES[:50], REJECT, *PASSAGES[50:]]
    assert draw_sample(rows, 10, 0)[1:] == (100, 1)
    drawn = draw(rows, 10, 0)
    assert len(set(drawn)) == 10
    assert draw(reversed(PASSAGES), 10, 0) == drawn
    assert draw(PASSAGES, 20, 0)[:10] == drawn
    assert set(draw(PASSAGES, 10, 1)) != set(drawn)
    assert sorted(draw(PASSAGES, 1000, 0)) == sorted(passage.passage_id for passage in PASSAGES)


def test_every_passage_is_as_likely_drawn_and_as_likely_first_as_any_other() -> None:
    counts, firsts = Counter[str](), set()
    for seed in range(400):
        drawn = draw(PASSAGES, 10, seed)
        counts.update(drawn)
        firsts.add(drawn[0])
    # Binomial of 400 draws at 0.1: mean 40, deviation 6. Of 100 passages 98 are expected to be first at least once.
    assert len(counts) == 100
    assert 15 < min(counts.values()) <= max(counts.values()) < 65
    assert len(firsts) > 90


def test_what_is_judged_relevant_is_in_the_sample() -> None:
    wanted = {f"p{number}" for number in range(5)}
    for seed in range(30):
        drawn = draw(PASSAGES, 10, seed, wanted)
        assert wanted <= set(drawn)
        assert len(drawn) == 10


def test_a_corpus_without_a_usable_passage_is_refused() -> None:
    with pytest.raises(InputError, match=r"holds no usable passage \(rejected rows: 2\)\. Cure: "):
        draw_sample([REJECT, REJECT], 10, 0)


def test_questions_are_chosen_whose_passages_fit_into_the_sample() -> None:
    queries = [Query(f"q{number}", "?") for number in range(20)]
    qrels = [Qrel(f"q{number}", f"p{number // 2}", 1) for number in range(18)] + [Qrel("q18", "p50", 0)]
    chosen, wanted = choose_questions(queries, qrels, 100, seed=0)
    assert {query.query_id for query in chosen} == {f"q{number}" for number in range(18)}
    assert wanted == {f"p{number}" for number in range(9)}
    chosen, wanted = choose_questions(queries, qrels, 3, seed=0)
    assert len(wanted) == 3
    assert {query.query_id for query in chosen} == {
        qrel.query_id for qrel in qrels if qrel.passage_id in wanted and qrel.relevance
    }
    assert keep_answered(chosen, qrels, [Passage(next(iter(wanted)), "text")]) == [
        query for query in chosen if Qrel(query.query_id, next(iter(wanted)), 1) in qrels
    ]
    with pytest.raises(InputError, match=r"no question has a relevant passage \(20 given\).*Cure: give"):
        choose_questions(queries, [Qrel("q1", "p1", 0)], 10, 0)


# Questions that are held back


def test_the_last_query_of_each_language_is_asked_and_its_own_passage_is_right() -> None:
    queries = [
        (GeneratedQuery("fi", "a", 0), GeneratedQuery("fi", "b", 1), GeneratedQuery("ru", "c", 1)),
        (GeneratedQuery("ru", "d", 0),),
    ]
    questions, qrels = hold_back(PASSAGES[:2], queries, 1)
    assert questions == [Query("p0-fi", "b", "fi"), Query("p0-ru", "c", "ru")]
    assert qrels == [Qrel("p0-fi", "p0", 1), Qrel("p0-ru", "p0", 1)]


@pytest.mark.parametrize(
    ("points", "p", "begins"),
    [(2.0, 0.01, "Held-back questions gain: MRR@10 +2.00"), (2.0, 0.2, "Not even held-back questions gain: MRR@10"),
     (-2.0, 0.01, "Not even held-back questions gain: MRR@10 -2.00")],
)  # fmt: skip
def test_a_gain_on_held_back_questions_never_makes_it_worth_it(points: float, p: float, begins: str) -> None:
    told = judge_held_back("MRR@10", Difference(points, 5, 1, 10, (-1, 3), p), 8.4)
    assert told.startswith(begins)
    assert "xQG is worth it" not in told
    assert "find the passage of 8% of these questions" in told


# The cost


def test_a_corpus_takes_what_its_sample_took_times_how_much_larger_it_is() -> None:
    cost = Cost(corpus=18_000, measured=90, seconds=60.0, stored_bytes=900_000, journal_bytes=1_000)
    assert cost.total_seconds == 12_000
    assert cost.total_bytes == 180_200_000
    assert cost._replace(journal_bytes=1 << 20).total_bytes == 180_000_000 + (64 << 20)
    assert cost.price(3.0) == 10.0
    assert cost.to_json(3.0) == {
        "passages": 18_000, "measured": {"passages": 90, "seconds": 60.0, "bytes": 900_000},
        "seconds": 12_000.0, "bytes": 180_200_000, "price": 10.0,
    }  # fmt: skip
    assert cost.to_json(None)["price"] is None


def test_of_files_with_holes_what_is_really_taken_counts_and_the_journal_apart(tmp_path: Path) -> None:
    points, journal = tmp_path / "segments" / "vectors", tmp_path / "wal" / "open-1"
    for path, size in ((points, 1 << 16), (journal, 1 << 14)):
        path.parent.mkdir()
        with path.open("wb") as file:
            file.truncate(32 << 20)
            file.write(b"\1" * size)
            os.fsync(file.fileno())
    stored, journal_bytes = measure_disk(tmp_path)
    assert 1 << 16 <= stored < 1 << 18
    assert 1 << 14 <= journal_bytes < 1 << 16


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 30, "5 GiB"), (3 << 40, "3.0 TiB")],
)
def test_a_size_is_written_for_people(size: int, expected: str) -> None:
    assert format_bytes(size) == expected


def test_a_sample_is_ingested_for_no_longer_than_asked(
    tmp_path: Path, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    recipe = make_recipe(demo_generator, ("fi",), queries_per_language=1, max_new_tokens=4)
    passages = [Passage(f"{number}", "It is.") for number in range(4000)]
    begin = partial(ingest, encoder=demo_encoder, generator=demo_generator, recipe=recipe, workers=1)
    store = open_store(f"edge:{tmp_path}")
    try:
        stored, seconds, _ = ingest_sample(passages, store, "docs", begin, 0.5, make_bars(True))
        assert 0 < stored == store.count("docs") < 4000
        assert seconds > 0.5
        stored, *_ = ingest_sample(passages[:20], store, "all", begin, None, make_bars(True))
        assert stored == store.count("all") == 20
    finally:
        store.close()


# The commands


def test_estimate_really_ingests_and_leaves_nothing_behind(
    corpus: Path, no_trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilots, "PASSAGES_OF_A_MINUTE", 8)
    result = xqg("estimate", corpus, *FEW, "--price-per-hour", 3600, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["passages"], told["measured"]["passages"]) == (40, 8)
    assert told["seconds"] == pytest.approx(5 * told["measured"]["seconds"])
    assert told["price"] == pytest.approx(told["seconds"])
    assert told["bytes"] > 5 * told["measured"]["bytes"] > 5 * 8 * 2 * 384 * 4
    assert list(no_trace.iterdir()) == []
    shown = xqg("-q", "estimate", corpus, *FEW)
    assert f"{corpus}: 40 passages, 1 row rejected" in shown.stdout
    assert "measured: 8 of them" in shown.stdout
    assert "costs" not in shown.stdout


def run_pilot(corpus: Path, *options: object) -> dict[str, Any]:
    result = xqg("-q", "pilot", corpus, *options, "--threads", 1, "--json")
    assert result.exit_code == 0, result.stderr
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_a_pilot_with_questions_asks_them_on_a_sample_that_holds_their_passages(
    corpus: Path, no_trace: Path, tmp_path: Path
) -> None:
    told = run_pilot(
        corpus, "--passages", 12, "--languages", "fi,ru", "--queries-per-language", 2, "--questions", DEMO_FOLDER,
        "--measure", "MRR@10", "--save", tmp_path / "saved",
    )  # fmt: skip
    assert told["held_back"] is False
    assert told["cost"]["passages"] == 40
    assert told["cost"]["measured"]["passages"] == 12
    saved = read_results(tmp_path / "saved")
    assert saved.manifest["kind"] == "pilot"
    assert json.loads((tmp_path / "saved" / "pilot.json").read_text()) == told
    asked = {query.query_id for query in saved.queries}
    assert asked == set(told["sweep"]["halves"]["chosen_on"] + told["sweep"]["halves"]["reported_on"])
    known = {query.query_id: query for query in read_demo_queries()}
    assert all(known[query.query_id] == query for query in saved.queries)
    ids = {row["id"] for row in map(json.loads, corpus.read_text().splitlines())}
    relevant = {qrel.passage_id for qrel in read_demo_qrels() if qrel.query_id in asked}
    assert len(relevant & ids) <= 12
    assert {setting["setting"]["queries_per_language"] for setting in told["sweep"]["points"]} == {1, 2}
    # 84 questions at most
    assert told["verdict"].endswith("are too few to rely on; ask 100 or more.")
    assert list(no_trace.iterdir()) == []


def test_a_pilot_without_questions_asks_generated_ones_that_no_vector_holds_and_says_so(
    corpus: Path, no_trace: Path, tmp_path: Path
) -> None:
    options = ("--passages", 12, "--languages", "fi,ru", "--queries-per-language", 3)
    told = run_pilot(corpus, *options, "--save", tmp_path / "saved")
    assert told["held_back"] is True
    assert {setting["setting"]["queries_per_language"] for setting in told["sweep"]["points"]} == {1, 2}
    assert told["sweep"]["base"]["queries_per_language"] == 2
    saved = read_results(tmp_path / "saved")
    ids = {passage.passage_id for passage in read_demo_passages()}
    assert {qrel.query_id: qrel.passage_id for qrel in saved.qrels} == {
        query.query_id: query.query_id.rsplit("-", 1)[0] for query in saved.queries
    }
    assert {qrel.passage_id for qrel in saved.qrels} <= ids
    assert {query.language for query in saved.queries} == {"fi", "ru"}
    page = tmp_path / "report.html"
    assert xqg("report", tmp_path / "saved", "--output", page).exit_code == 0
    assert html.escape(told["verdict"]) in page.read_text(encoding="utf-8")
    shown = xqg("-q", "pilot", corpus, *options, "--threads", 1)
    assert shown.exit_code == 0, shown.stderr
    assert "No questions were given, so generated queries are asked" in shown.stdout
    assert "held-back questions gain" in shown.stdout.lower().replace("\n", " ")
    assert "xqg ingest" not in shown.stdout
    assert list(no_trace.iterdir()) == []


def test_a_pilot_prints_the_ingest_with_the_best_setting_only_where_it_gains(corpus: Path, no_trace: Path) -> None:
    options = ("--passages", 12, *FEW[:4], "--questions", DEMO_FOLDER, "--measure", "MRR@10", "--threads", 1)
    shown = xqg("-q", "pilot", corpus, *options)
    assert shown.exit_code == 0, shown.stderr
    commands = [line for line in shown.stdout.splitlines() if line.startswith("With this setting: ")]
    gains = "worth it here: MRR@10" in shown.stdout and "Nothing shows" not in shown.stdout
    assert len(commands) == gains
    for command in commands:
        assert command.startswith(f"With this setting: xqg ingest {corpus} --collection NAME ")
        assert "--queries-per-language" in command
        assert "--languages" in command
    assert list(no_trace.iterdir()) == []


@pytest.mark.parametrize(
    ("chosen", "p", "expected"),
    [
        (Setting("mean", 0.4, True, 2, ("fi", "ru"), gamma=0.5), 0.01,
         "--encoder E --generator G --queries-per-language 2"),
        (Setting("mean", 0.4, True, 3, ("fi", "ru")), 0.01, "--encoder E --generator G --no-calibrate"),
        (Setting("mean", 0.0, True, 3, ("fi", "ru"), gamma=1.0), 0.01,
         "--encoder E --queries none.jsonl --calibrate --gamma 1.0"),
        # queries that say nothing are not generated
        (Setting("mean", 0.4, True, 3, ("fi", "ru"), gamma=0.5), 0.4,
         "--encoder E --queries none.jsonl --calibrate --gamma 0.5"),
    ],
)  # fmt: skip
def test_the_ingest_that_a_pilot_prints_generates_queries_only_if_they_are_worth_it(
    chosen: Setting, p: float, expected: str
) -> None:
    def compare(points: float, p: float) -> Comparison:
        return Comparison(Difference(points, 5, 1, 10, (-0.5, 4.5), p), {})

    comparisons = {"calibrated": {"MRR@10": compare(3, 0.01)}, "xqg": {"MRR@10": compare(4, 0.01)}}
    none: Any = None
    sweep = Sweep("MRR@10", ((), ()), chosen, none, {}, {}, chosen, Report({}, {}, comparisons), compare(2, p))
    recipe = Recipe(("fi", "ru"), alpha=0.4, fusion="mean", renormalise=True, gamma=0.5)
    found = pilots.Pilot(False, "", none, none, sweep, None, recipe)
    command = make_command(
        ["ingest", "c.jsonl", "--collection", "NAME"],
        ["--encoder", "E"],
        ["--generator", "G"],
        "auto",
        found,
        ("ru", "fi"),
    )
    assert command.removeprefix(": > none.jsonl; ") == f"xqg ingest c.jsonl --collection NAME {expected}"
    assert command.startswith(": >") == ("none.jsonl" in expected)


def test_a_pilot_needs_a_query_to_fuse_beside_the_one_that_it_asks(corpus: Path) -> None:
    result = xqg("pilot", corpus, "--queries-per-language", 1)
    assert result.exit_code == 2
    assert "queries-per-language" in result.stderr


@pytest.mark.parametrize(
    ("points", "p", "verdict"),
    [
        (0.57, 0.625, "no difference beyond chance"),
        (0.57, None, "no difference beyond chance"),
        (2.0, 0.01, "better"),
        (-2.0, 0.01, "worse"),
    ],
)
def test_the_verdict_on_two_encoders_is_no_better_than_the_difference(
    points: float, p: float | None, verdict: str
) -> None:
    told = compare_encoders("B", "A", "R@2kt", Difference(points, 0, 0, 0, (points - 1, points + 1), p))
    assert told.startswith(f"xqg with B against A: R@2kt {points:+.2f} points, 95% interval ")
    assert told.endswith(f": {verdict}.")


def test_several_encoders_are_asked_the_same_questions_about_the_same_queries(
    corpus: Path, no_trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(shipped_model(DEMO_ENCODER), other)
    about = json.loads((other / "xqg.json").read_text())
    (other / "xqg.json").write_text(json.dumps({**about, "passage_prefix": "", "source": "made/other"}))
    written = Counter[str]()
    generate = QueryGenerator.generate

    def count(self: QueryGenerator, passages: Sequence[Passage], *rest: Any, **named: Any) -> Any:  # noqa: ANN401
        written.update(passage.passage_id for passage in passages)
        return generate(self, passages, *rest, **named)

    monkeypatch.setattr(QueryGenerator, "generate", count)
    options = ("--passages", 10, "--languages", "fi", "--queries-per-language", 2)
    demo = ("--encoder", shipped_model(DEMO_ENCODER))
    told = run_pilot(corpus, *options, *demo, "--encoder", other)
    assert set(written.values()) == {1}
    first, second = told["encoders"]
    assert (first["encoder"], second["encoder"]) == ("intfloat/multilingual-e5-small", "made/other")
    assert first["gained"] is None
    assert second["passage"] != first["passage"] or second["xqg"] != first["xqg"]
    shown = xqg("pilot", corpus, *options, *demo, *demo, "--threads", 1)
    name = "intfloat/multilingual-e5-small"
    assert f"\nxqg with {name} against {name}: MRR@10 +0.00 points" in shown.stdout
    assert ": no difference beyond chance.\n" in shown.stdout
    assert [line.rpartition(", ")[2] for line in shown.stdout.splitlines() if line.startswith(f"{name}   384")] == [
        "with the generation", "without the generation",
    ]  # fmt: skip
    assert shown.stdout.count(f"\n{name}: best with ") == 2
    assert shown.stderr.count(f"encoder {name}:\n") == 2
    assert list(no_trace.iterdir()) == []
