"""What a sweep promises: the figures of collections that were ingested with its settings, and an honest choice."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner, Result
from writing import lines_of

from xqg_qdrant.augmentation.fusion import Fusion, fuse
from xqg_qdrant.augmentation.pipeline import Row, ingest
from xqg_qdrant.augmentation.recipe import Recipe, choose_recipe, make_recipe
from xqg_qdrant.cli import main
from xqg_qdrant.demo import read_demo_passages, read_demo_qrels, read_demo_queries
from xqg_qdrant.errors import InputError, MismatchError
from xqg_qdrant.evaluation import xor_retrieve as official
from xqg_qdrant.evaluation.comparison import Comparison, Difference, Report, Values, evaluate_runs
from xqg_qdrant.evaluation.sweep import bench as measuring
from xqg_qdrant.evaluation.sweep.bench import Bench, default_measure, halve, make_bench, parse_measure, rank
from xqg_qdrant.evaluation.sweep.settings import Setting, combine, make_axes, make_base, spread, to_mean, to_sum
from xqg_qdrant.evaluation.sweep.summary import (
    describe,
    format_gains,
    format_points,
    is_worth_it,
    judge,
    judge_sweep,
    make_options,
    needs_no_queries,
)
from xqg_qdrant.evaluation.sweep.trial import Sweep, Trial
from xqg_qdrant.evaluation.sweep.vectors import StoredVectors, check_sweepable, opened_vectors
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.lifecycle.retune import plan_retune, retune
from xqg_qdrant.records import FloatArray, GeneratedQuery, Passage, Qrel, QueriedPassage, Query
from xqg_qdrant.retrieval import search
from xqg_qdrant.stores import Store, open_store

LANGUAGES, QUERIES_PER_LANGUAGE, PASSAGES = ("fi", "ja", "ru"), 3, 12
pytestmark = pytest.mark.usefixtures("opened_once", "remembered")

BASE = Setting("sum", 0.01, queries_per_language=QUERIES_PER_LANGUAGE, languages=LANGUAGES)
SETTINGS = [
    BASE,
    BASE._replace(fusion="mean", alpha=0.6),
    BASE._replace(fusion="mean", alpha=0.6, renormalise=True, queries_per_language=2, languages=("ja", "ru")),
    BASE._replace(alpha=0.1, queries_per_language=1, min_score=0.2, percentile=50),
    BASE._replace(fusion="mean", alpha=0.5, min_score=1000.0),
]
GIVEN_SETTINGS = [Setting("sum", 0.05), Setting("mean", 0.7, True), Setting("mean", 0.6, min_score=0.3)]
needs_nltk = pytest.mark.skipif(not official.is_available(), reason="the tokenizer of R@kt is not installed")


@cache
def rows() -> list[Row]:
    """Passages of the demo, the last one under two ids: plain vectors tie."""
    found = [Passage(row.passage_id, row.text.split(". ")[0], row.title) for row in read_demo_passages()[:PASSAGES]]
    return [*found, Passage("a-twin", found[-1].text, found[-1].title)]


@cache
def given_rows() -> list[Row]:
    """The same with queries of their own, the twins with the same ones: augmented vectors tie, too."""
    about = "missä se on?"
    texts = [(about, row.text[:40], about) for row in rows() if isinstance(row, Passage)]
    texts[3] = ()  # type: ignore[assignment]
    return [
        QueriedPassage(row, tuple(GeneratedQuery("fi", text) for text in given))
        for row, given in zip(rows(), texts, strict=True)
        if isinstance(row, Passage)
    ]


@cache
def questions() -> tuple[list[Query], list[Qrel]]:
    ids = {row.passage_id for row in rows() if isinstance(row, Passage)}
    qrels = [qrel for qrel in read_demo_qrels() if qrel.passage_id in ids]
    judged = {qrel.query_id for qrel in qrels}
    queries = [query for query in read_demo_queries() if query.query_id in judged]
    return [query for query in queries if query.language in ("ar", "fi", "ja")], qrels


@pytest.fixture(params=["edge", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"edge:{tmp_path / 'store'}" if request.param == "edge" else ":memory:")
    yield opened
    opened.close()


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(f"edge:{tmp_path / 'store'}")
    yield opened
    opened.close()


def recipe_of(generator: QueryGenerator | None, setting: Setting) -> Recipe:
    changed: dict[str, Any] = {"alpha": setting.alpha, "fusion": setting.fusion, "renormalise": setting.renormalise}
    changed["min_score"] = setting.min_score
    if generator is None:
        return make_recipe(None, **changed)
    changed |= {"languages": setting.languages, "queries_per_language": setting.queries_per_language}
    return make_recipe(generator, **changed, max_new_tokens=8)


def fill(store: Store, collection: str, encoder: Encoder, generator: QueryGenerator | None, setting: Setting) -> None:
    given = rows() if generator else given_rows()
    steps = ingest(given, store, collection, encoder, generator, recipe_of(generator, setting))
    assert sum(step.stored for step in steps) == PASSAGES + 1


class Setup(NamedTuple):
    vectors: StoredVectors
    bench: Bench


@pytest.fixture
def vectors() -> Iterator[StoredVectors]:
    with opened_vectors() as opened:
        yield opened


def make_setup(vectors: StoredVectors, store: Store, encoder: Encoder, measure: str | None = "MRR@10") -> Setup:
    recipe = check_sweepable(store, "docs", encoder)
    assert sum(vectors.read(store, "docs")) == PASSAGES + 1
    assert sum(vectors.encode(encoder, 2)) == vectors.distinct_queries
    return Setup(vectors, make_bench(vectors, recipe, encoder, *questions(), measure, 100))


def run_trial(bench: Bench, seed: int = 0) -> Sweep:
    trial = Trial(bench, seed)
    assert len(list(trial.run())) <= trial.settings
    return trial.conclude()


# The same as a collection of its own


@pytest.mark.parametrize(("store", "kind"), [("edge", "generated"), ("memory", "given")], indirect=["store"])
def test_every_setting_finds_what_a_collection_ingested_with_it_finds(
    store: Store, vectors: StoredVectors, demo_encoder: Encoder, demo_generator: QueryGenerator, kind: str
) -> None:
    generator, settings = (demo_generator, SETTINGS) if kind == "generated" else (None, GIVEN_SETTINGS)
    fill(store, "docs", demo_encoder, generator, settings[0])
    setup = make_setup(vectors, store, demo_encoder)
    queries, qrels = questions()
    texts = [query.text for query in queries]
    for number, setting in enumerate(settings):
        fill(store, f"fresh-{number}", demo_encoder, generator, setting)
        stored = search(store, f"fresh-{number}", demo_encoder, texts, 10, ["xqg", "passage"])
        for name, fused in (("xqg", vectors.fuse(setting.apply(setup.bench.recipe))), ("passage", vectors.plain)):
            found = list(rank(fused, setup.bench.query_vectors, 10))
            assert [[vectors.passages[place].passage_id for place in places] for places, _ in found] == [
                [hit.passage.passage_id for hit in hits] for hits in stored[name]
            ]
            expected = [hit.score for hits in stored[name] for hit in hits]
            assert [score for _, scores in found for score in scores] == pytest.approx(expected, abs=1e-6)
            run = {query.query_id: hits for query, hits in zip(queries, stored[name], strict=True)}
            report = evaluate_runs(queries, qrels, {"run": run}, recall_at=[3], token_budgets=())
            for measure in ("recall@3", "MRR@10", "nDCG@10"):
                bench = make_bench(vectors, setup.bench.recipe, demo_encoder, queries, qrels, measure, 10)
                assert bench.measure_vectors(fused) == report.values["run"][measure]


@needs_nltk
def test_token_budget_recall_is_measured_as_evaluate_does(
    edge: Store, vectors: StoredVectors, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator, SETTINGS[1])
    setup = make_setup(vectors, edge, demo_encoder)
    # A word of one passage, which some questions find early and others late.
    queries = [query._replace(answers=("Sumbawa",)) for query in questions()[0]]
    found = search(edge, "docs", demo_encoder, [query.text for query in queries], 100, ["xqg"])["xqg"]
    run = {query.query_id: hits for query, hits in zip(queries, found, strict=True)}
    values = evaluate_runs(queries, (), {"run": run}, token_budgets=[80]).values["run"]["R@80t"]
    bench = make_bench(vectors, setup.bench.recipe, demo_encoder, queries, (), "R@80t", 100)
    assert bench.measure_vectors(vectors.fuse(setup.bench.recipe)) == values
    assert 0 < values.macro < 100


def test_the_vectors_are_those_of_an_ingest_to_the_last_bit(
    edge: Store, vectors: StoredVectors, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator, BASE)
    setup = make_setup(vectors, edge, demo_encoder)
    for number, setting in enumerate(SETTINGS):
        fill(edge, f"fresh-{number}", demo_encoder, demo_generator, setting)
        stored = {point.passage.passage_id: point.vectors["xqg"] for point in edge.scroll(f"fresh-{number}")}
        fused = vectors.fuse(setting.apply(setup.bench.recipe))
        assert [passage.passage_id for passage in vectors.passages] == sorted(stored)
        for passage, vector in zip(vectors.passages, fused, strict=True):
            assert vector.tobytes() == stored[passage.passage_id].tobytes()


def test_a_query_that_several_passages_share_is_encoded_once(
    edge: Store, vectors: StoredVectors, demo_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(edge, "docs", demo_encoder, None, GIVEN_SETTINGS[0])
    encoded: list[str] = []
    encode = demo_encoder.encode_queries

    def remember(texts: Sequence[str]) -> FloatArray:
        encoded.extend(texts)
        return encode(texts)

    monkeypatch.setattr(demo_encoder, "encode_queries", remember)
    monkeypatch.setattr(demo_encoder, "encode_passages", None)
    list(vectors.read(edge, "docs"))
    list(vectors.encode(demo_encoder, 1))
    expected = {query.text for row in given_rows() if isinstance(row, QueriedPassage) for query in row.queries}
    assert sorted(encoded) == sorted(expected)
    assert vectors.distinct_queries == len(expected) == PASSAGES - 1 + 1


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_ranking_breaks_ties_by_place_also_across_the_limit(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(measuring, "SCORES_AT_ONCE", block)
    vectors = np.array([[1, 0], [0, 2], [1, 0], [3, 0], [1, 0]], dtype=np.float32)
    questions = np.array([[1, 0], [0, 1], [-1, 1]], dtype=np.float32)
    assert list(rank(vectors, questions, 3)) == [
        ([3, 0, 2], [3.0, 1.0, 1.0]),
        ([1, 0, 2], [2.0, 0.0, 0.0]),
        ([1, 0, 2], [2.0, -1.0, -1.0]),
    ]
    assert next(rank(vectors, questions, 100)) == ([3, 0, 2, 4, 1], [3.0, 1.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize("passages", [5, 13, 1003])
@pytest.mark.parametrize("questions", [1, 3, 203])
def test_equal_vectors_tie_wherever_they_stand(passages: int, questions: int) -> None:
    # In a product of matrices the last columns and those before them are summed in another order.
    draw = np.random.default_rng(0)
    vectors = np.tile(draw.normal(size=100).astype(np.float32), (passages, 1))
    for places, scores in rank(vectors, draw.normal(size=(questions, 100)).astype(np.float32), passages):
        assert places == list(range(passages))
        assert len(set(scores)) == 1


# Which settings are tried


def test_alphas_of_sum_and_mean_are_those_that_weigh_the_queries_alike() -> None:
    # 35 queries: 0.01 * 35 / (0.99 + 0.01 * 35) = 0.35 / 1.34
    assert to_mean(0.01, 35) == 0.2612
    assert to_sum(0.2612, 35) == pytest.approx(0.01, rel=1e-3)
    draw = np.random.default_rng(0)
    passage, queries = draw.normal(size=8).astype(np.float32), draw.normal(size=(35, 8)).astype(np.float32)
    summed = fuse(passage, queries, Fusion(0.01))
    averaged = fuse(passage, queries, Fusion(to_mean(0.01, 35), "mean"))
    cosine = summed @ averaged / np.linalg.norm(summed) / np.linalg.norm(averaged)
    assert cosine == pytest.approx(1, abs=1e-6)


def test_the_axes_are_laid_around_the_base() -> None:
    axes = make_axes(BASE, 9, np.arange(101, dtype=np.float64))
    # 0.01 * 9 / (0.99 + 0.09) = 0.08333
    as_mean = BASE._replace(fusion="mean", alpha=0.08333)
    assert axes["queries"] == tuple(
        setting._replace(queries_per_language=count) for setting in (BASE, as_mean) for count in (1, 2, 3)
    )
    subsets = [LANGUAGES, ("fi",), ("ja",), ("ru",), ("ja", "ru"), ("fi", "ru"), ("fi", "ja")]
    assert axes["languages"] == tuple(as_mean._replace(languages=subset) for subset in subsets)
    assert [(setting.min_score, setting.percentile) for setting in axes["filter"]] == [
        (None, None), (10.0, 10), (20.0, 20), (30.0, 30), (50.0, 50), (70.0, 70), (90.0, 90)
    ]  # fmt: skip
    alphas = {
        (fusion, renormalise): [s.alpha for s in axes["alpha"] if (s.fusion, s.renormalise) == (fusion, renormalise)]
        for fusion in ("sum", "mean")
        for renormalise in (False, True)
    }
    # From 0.02 / (9 * 0.98 + 0.02) = 0.002262 to 0.7 / (9 * 0.3 + 0.7) = 0.2059
    assert alphas["sum", False] == alphas["sum", True] == [0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2]
    assert alphas["mean", False] == alphas["mean", True] == [0.02, 0.03, 0.05, 0.08333, 0.1, 0.2, 0.3, 0.5]


def test_the_weight_of_the_calibration_is_tried_with_and_without_queries() -> None:
    base = BASE._replace(min_score=0.2, gamma=0.0)
    axis = make_axes(base, 9, np.arange(3.0), calibrated=True)["gamma"]
    unit, bare = base._replace(renormalise=True), Setting("mean", 0.0, True, 3, LANGUAGES)
    assert axis == (
        base, *(unit._replace(gamma=gamma) for gamma in (0.25, 0.5, 1.0)),
        *(bare._replace(gamma=gamma) for gamma in (0.25, 0.5, 1.0)),
    )  # fmt: skip
    own = base._replace(renormalise=True, gamma=0.7)
    gammas = [setting.gamma for setting in make_axes(own, 9, np.arange(3.0), calibrated=True)["gamma"]]
    assert gammas == [0, 0.25, 0.5, 0.7, 1, 0.25, 0.5, 0.7, 1]
    # only vectors of one length are calibrated
    for axes in (make_axes(own, 9, np.arange(3.0), calibrated=True), make_axes(own, 9, np.arange(3.0))):
        assert all(setting.renormalise or not setting.gamma for curve in axes.values() for setting in curve)
    assert combine(own, "alpha", BASE._replace(alpha=0.3)) == own._replace(alpha=0.3, renormalise=False, gamma=0.0)
    assert combine(base, "gamma", own) == own


def test_calibrated_vectors_are_those_of_a_calibrated_ingest_to_the_last_bit(
    edge: Store, vectors: StoredVectors, demo_encoder: Encoder
) -> None:
    fill(edge, "docs", demo_encoder, None, GIVEN_SETTINGS[0])
    bench = make_setup(vectors, edge, demo_encoder).bench
    for name, alpha in (("queries", 0.3), ("none", 0.0)):
        recipe = choose_recipe(demo_encoder, None, alpha=alpha, gamma=0.25).recipe
        list(ingest(given_rows(), edge, name, demo_encoder, None, recipe))
        stored = {point.passage.passage_id: point.vectors["xqg"] for point in edge.scroll(name)}
        fused = vectors.fuse(Setting("mean", alpha, True, gamma=0.25).apply(bench.recipe))
        for passage, vector in zip(vectors.passages, fused, strict=True):
            assert vector.tobytes() == stored[passage.passage_id].tobytes()


def test_the_control_replaces_each_query_that_takes_part_by_the_mean_of_those(
    edge: Store, vectors: StoredVectors, demo_encoder: Encoder
) -> None:
    fill(edge, "docs", demo_encoder, None, GIVEN_SETTINGS[0])
    bench = make_setup(vectors, edge, demo_encoder).bench
    everything = {point.passage.passage_id: point for point in edge.scroll("docs")}
    for setting in (Setting("sum", 0.05), Setting("mean", 0.4, True, gamma=0.5), Setting("mean", 0.4, min_score=0.9)):
        recipe = setting.apply(bench.recipe)
        least = -1.0 if setting.min_score is None else setting.min_score
        kept = []
        for passage, plain in zip(vectors.passages, vectors.plain, strict=True):
            texts = [query.text for query in everything[passage.passage_id].generated_queries]
            encoded = demo_encoder.encode_queries(texts) if texts else np.empty((0, demo_encoder.dim), np.float32)
            kept.append(encoded[encoded @ plain >= least])
        mean = np.concatenate(kept).astype(np.float64).mean(axis=0).astype(np.float32)
        control = vectors.fuse_control(recipe)
        assert control is not None
        assert 0 < sum(map(len, kept)) < 3 * len(kept)
        for row, plain, queries in zip(control, vectors.plain, kept, strict=True):
            expected = fuse(plain, np.stack([mean] * len(queries)) if len(queries) else queries, recipe.fusion_settings)
            np.testing.assert_allclose(row, expected, atol=1e-6)
    assert vectors.fuse_control(Setting("mean", 0.4, min_score=2.0).apply(bench.recipe)) is None


def test_of_given_queries_number_and_languages_are_not_tried_and_one_language_has_no_axis() -> None:
    scores = np.array([0.1, 0.2])
    assert list(make_axes(Setting("mean", 0.2), 3, scores)) == ["alpha", "filter"]
    assert list(make_axes(BASE._replace(languages=("fi",)), 3, scores)) == ["alpha", "queries", "filter"]


def test_no_setting_is_one_that_a_retune_refuses() -> None:
    only_queries = BASE._replace(fusion="mean", alpha=1.0)
    settings = [setting for axis in make_axes(only_queries, 9, np.arange(3.0)).values() for setting in axis]
    assert only_queries in settings
    assert [setting for setting in settings if setting.fusion == "sum" and setting.alpha == 1] == []


def test_a_combination_takes_from_an_axis_what_the_axis_is_about() -> None:
    best = Setting("mean", 0.3, False, 1, ("ja",), 0.5, 30)
    assert combine(BASE, "alpha", best) == BASE._replace(fusion="mean", alpha=0.3)
    assert combine(BASE, "queries", best) == BASE._replace(queries_per_language=1)
    assert combine(BASE, "languages", best) == BASE._replace(languages=("ja",))
    assert combine(BASE, "filter", best) == BASE._replace(min_score=0.5, percentile=30)


def test_alphas_are_round_numbers_spread_over_decades() -> None:
    assert spread(0.009, 0.4) == [0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3]


def test_what_a_collection_was_made_with_is_the_base(demo_generator: QueryGenerator) -> None:
    recipe = recipe_of(demo_generator, SETTINGS[3])
    assert make_base(recipe) == SETTINGS[3]._replace(percentile=None)
    assert SETTINGS[2].apply(recipe) == recipe_of(demo_generator, SETTINGS[2])
    assert make_base(recipe_of(None, GIVEN_SETTINGS[1])) == GIVEN_SETTINGS[1]


# The choice


def test_the_halves_are_alike_in_their_languages_and_a_question_is_in_one_of_them() -> None:
    queries = [
        Query(f"{language}{number}", "?", language) for language, n in (("ar", 5), ("", 4)) for number in range(n)
    ]
    first, second = halve(queries, 0)
    assert sorted(first + second) == sorted(query.query_id for query in queries)
    assert [sum(id_.startswith("ar") for id_ in half) for half in (first, second)] == [3, 2]
    assert [sum(id_.isdigit() for id_ in half) for half in (first, second)] == [2, 2]
    assert halve(queries[::-1], 0) == (first, second)
    assert len({tuple(halve(queries, seed)[0]) for seed in range(10)}) > 1
    with pytest.raises(
        InputError,
        match=r"the 2 questions .* so there are no two halves\. Cure: give at least two questions in one language",
    ):
        halve([queries[0], queries[-1]], 0)


def test_the_best_on_one_half_is_reported_on_the_other(
    edge: Store, vectors: StoredVectors, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator, BASE)
    setup = make_setup(vectors, edge, demo_encoder)
    found = run_trial(setup.bench)
    first, second = (setup.bench.of(half) for half in found.halves)
    assert {query.query_id for query in first.queries}.isdisjoint(query.query_id for query in second.queries)
    for setting, point in found.points.items():
        assert first.measure_vectors(vectors.fuse(setting.apply(setup.bench.recipe))) == point.values
        assert point.values.macro <= found.points[found.chosen].values.macro
        assert point.interval[0] <= point.values.macro <= point.interval[1]
    assert found.plain.values == first.measure_vectors(vectors.plain)
    plain = second.measure_vectors(vectors.plain)
    best = second.measure_vectors(vectors.fuse(found.chosen.apply(setup.bench.recipe)))
    assert found.report.values["passage"]["MRR@10"] == plain
    assert found.gained.points == best.macro - plain.macro
    assert next(iter(found.points)) == found.base == BASE
    assert set().union(*found.curves.values()) <= set(found.points)
    combined = [setting for setting in found.points if setting not in set().union(*found.curves.values())]
    assert all(found.points[setting].values.macro >= 0 for setting in combined)


def test_plain_calibrated_fused_both_and_the_control_are_reported_on_the_other_half(
    edge: Store, vectors: StoredVectors, demo_encoder: Encoder
) -> None:
    fill(edge, "docs", demo_encoder, None, Setting("mean", 0.3, True))
    bench = make_setup(vectors, edge, demo_encoder).bench
    trial = Trial(bench, 0)
    list(trial.run())

    def reported(chosen: Setting) -> tuple[dict[str, Values], Comparison | None]:
        # The choice itself is tested above.
        best = {setting: measured for setting, measured in trial._points.items() if setting == chosen}
        forced = trial._points
        trial._points = {**best, **({} if chosen.alpha else {fused: forced[fused]})}
        found = trial.conclude()
        trial._points = forced
        assert found.chosen == chosen or not chosen.alpha
        return {run: values["MRR@10"] for run, values in found.report.values.items()}, found.content

    fused = Setting("mean", 0.3, True)
    both, alone = fused._replace(gamma=0.5), Setting("mean", 0.0, True, gamma=0.5)
    second = bench.of(halve(bench.queries, 0)[1])
    plain = second.measure_vectors(vectors.plain)
    values = {
        setting: second.measure_vectors(vectors.fuse(setting.apply(bench.recipe))) for setting in (fused, both, alone)
    }
    for chosen, other in ((both, "fused"), (fused, "fused-calibrated")):
        control = vectors.fuse_control(chosen.apply(bench.recipe))
        assert control is not None
        expected = {
            "passage": plain, "calibrated": values[alone], other: values[fused if chosen == both else both],
            "control": second.measure_vectors(control), "xqg": values[chosen],
        }  # fmt: skip
        runs, content = reported(chosen)
        assert list(runs) == list(expected)
        assert runs == expected
        assert content is not None
        assert content.overall.points == expected["xqg"].macro - expected["control"].macro


def test_without_any_query_calibration_is_what_a_sweep_can_choose(
    edge: Store, vectors: StoredVectors, demo_encoder: Encoder
) -> None:
    bare = [QueriedPassage(row, ()) for row in rows() if isinstance(row, Passage)]
    list(ingest(bare, edge, "docs", demo_encoder, None, make_recipe(None, fusion="mean", alpha=0.3, renormalise=True)))
    found = run_trial(make_setup(vectors, edge, demo_encoder).bench)
    assert found.content is None
    assert "control" not in found.report.values
    assert {setting.gamma for setting in found.points} == {0, 0.25, 0.5, 1}
    assert set(found.report.values) <= {"passage", "calibrated", "xqg"}
    assert "xQG" not in judge_sweep(found)


def test_each_run_is_printed_with_its_gain_and_p_and_queries_with_theirs_over_the_control() -> None:
    def compare(points: float, p: float) -> Comparison:
        return Comparison(Difference(points, 5, 1, 10, (points - 1, points + 1), p), {})

    comparisons = {
        "calibrated": {"MRR@10": compare(1, 0.02), "recall@10": compare(9, 0.9)}, "xqg": {"MRR@10": compare(3, 0.001)},
    }  # fmt: skip
    none: Any = None
    found = Sweep("MRR@10", ((), ()), BASE, none, {}, {}, BASE, Report({}, {}, comparisons), compare(2, 0.01))
    assert format_gains(found).splitlines() == [
        "calibrated against passage  MRR@10 +1.00 points, 95% interval +0.00 to +2.00, p = 0.0200",
        "xqg against passage         MRR@10 +3.00 points, 95% interval +2.00 to +4.00, p = 0.0010",
        "xqg against control         MRR@10 +2.00 points, 95% interval +1.00 to +3.00, p = 0.0100",
    ]
    assert "against control" not in format_gains(found._replace(content=None))


def test_the_half_that_is_reported_on_is_not_looked_at_before_the_choice(
    edge: Store, vectors: StoredVectors, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator, BASE)
    setup = make_setup(vectors, edge, demo_encoder)
    expected = run_trial(setup.bench)
    hidden = setup.bench.query_vectors.copy()
    for place, query in enumerate(setup.bench.queries):
        if query.query_id in expected.halves[1]:
            hidden[place] = np.nan
    trial = Trial(replace(setup.bench, query_vectors=hidden), 0)
    assert list(trial.run()) == list(expected.points)


def test_a_sweep_as_json_is_what_a_report_is_built_from(
    edge: Store, vectors: StoredVectors, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator, BASE)
    found = run_trial(make_setup(vectors, edge, demo_encoder).bench)
    told = json.loads(json.dumps(found.to_json()))
    assert list(told) == ["measure", "halves", "base", "plain", "points", "curves", "chosen", "report", "content"]
    assert told["halves"] == {"chosen_on": list(found.halves[0]), "reported_on": list(found.halves[1])}
    points = list(found.points)
    for axis, places in told["curves"].items():
        assert [points[place] for place in places] == list(found.curves[axis])
    assert told["points"][0]["setting"] == {
        "fusion": "sum", "alpha": 0.01, "renormalise": False, "queries_per_language": 3,
        "languages": ["fi", "ja", "ru"], "min_score": None, "percentile": None, "gamma": 0.0,
    }  # fmt: skip
    assert set(told["points"][0]) == {"setting", "macro", "per_language", "interval"}
    assert told["chosen"]["on_other_half"]["difference"] == found.gained.points
    assert set(told["chosen"]["on_other_half"]["per_language"]) == {"ar", "fi", "ja"}


def test_each_setting_has_a_row_in_the_table(
    edge: Store, vectors: StoredVectors, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    fill(edge, "docs", demo_encoder, demo_generator, BASE)
    found = run_trial(make_setup(vectors, edge, demo_encoder).bench)
    table = format_points(found)
    assert "languages of the queries (mean 0.0" in table
    for label in (
        "plain vectors",
        "  sum 0.01 ",
        "  mean 0.5 renormalised",
        "  sum 0.01, 2 a language",
        "  all but ja",
    ):
        assert label in table
    rows_of_axes = sum(map(len, found.curves.values()))
    combined = len(set(found.points) - set().union(*found.curves.values()))
    headings = len(found.curves) + (1 if combined else 0)
    assert len(table.splitlines()) == 2 + 1 + headings + rows_of_axes + combined


def test_the_options_name_what_differs_from_the_base_and_nothing_else() -> None:
    assert make_options(BASE, BASE) == []
    assert make_options(BASE._replace(alpha=0.02), BASE) == ["--alpha", "0.02"]
    chosen = Setting("mean", 0.3, True, 2, ("fi", "ru"), -0.05, 30)
    assert shlex.join(make_options(chosen, BASE)) == (
        "--fusion mean --alpha 0.3 --renormalise --min-score -0.05 --languages fi,ru --queries-per-language 2"
    )
    assert make_options(BASE, BASE._replace(renormalise=True, min_score=0.1)) == [
        "--no-renormalise", "--no-calibrate", "--no-min-score"
    ]  # fmt: skip
    calibrated = chosen._replace(gamma=0.25)
    assert make_options(calibrated, chosen) == ["--gamma", "0.25"]
    assert make_options(chosen, calibrated) == ["--no-calibrate"]
    assert "renormalised, calibrated with gamma 0.25, 2 queries" in describe(calibrated)
    assert describe(calibrated._replace(alpha=0)) == "no queries, calibrated with gamma 0.25"
    assert describe(chosen) == (
        "mean fusion, alpha 0.3, renormalised, 2 queries in each of fi, ru, only queries that score -0.05 or more"
    )


@pytest.mark.parametrize(
    ("points", "p", "begins"),
    [(2.0, 0.01, "xQG is worth it here: R@2kt +2.00 points"), (-2.0, 0.01, "xQG does harm here: R@2kt -2.00 points"),
     (2.0, 0.05, "Nothing shows that xQG is worth it here: R@2kt +2.00 points"), (2.0, None, "Nothing shows")],
)  # fmt: skip
def test_a_verdict_needs_a_difference_that_is_hardly_chance(points: float, p: float | None, begins: str) -> None:
    told = judge("R@2kt", Difference(points, 5, 1, 10, (-0.5, 4.5), p), 100)
    assert told.startswith(begins)
    assert "95% interval -0.50 to +4.50" in told
    assert ("On 100 questions, differences below about 2.5 points cannot be detected" in told) == (p != 0.01)
    few = judge("R@2kt", Difference(points, 5, 1, 10, (-0.5, 4.5), p), 99)
    assert few.endswith("99 questions are too few to rely on; ask 100 or more.")
    assert few.startswith("There are too few questions to tell") == (p != 0.01)


def test_a_verdict_says_how_much_of_the_gain_the_content_of_the_queries_gives() -> None:
    gained = Difference(10.2, 50, 10, 40, (8, 12), 0.001)
    told = judge("MRR@10", gained, 100, Difference(6.5, 40, 10, 50, (4, 8), 0.002))
    assert told.endswith(
        "p = 0.0010. The content of the queries gives +6.5 of +10.2 (p = 0.0020); the control, with the same mean "
        "query for every passage, gives the rest."
    )
    told = judge("MRR@10", gained, 100, Difference(0.5, 20, 18, 62, (-1, 2), 0.4))
    assert "gives +0.5 of +10.2, which could be chance (p = 0.4000)" in told
    told = judge("MRR@10", gained, 100, what="Calibration without queries")
    assert told.startswith("Calibration without queries is worth it here: MRR@10 +10.20 points")


@pytest.mark.parametrize(
    ("alone", "content", "needed"),
    [((3.0, 0.01), (0.5, 0.4), False), ((3.0, 0.01), (2.0, 0.01), True), ((3.0, 0.4), (0.5, 0.4), True),
     ((-3.0, 0.01), (0.5, 0.4), True), ((3.0, 0.01), (-2.0, 0.01), False)],
)  # fmt: skip
def test_queries_are_needed_unless_calibration_gains_and_they_say_nothing(
    alone: tuple[float, float], content: tuple[float, float], needed: bool
) -> None:
    def compare(points: float, p: float) -> Comparison:
        return Comparison(Difference(points, 5, 1, 10, (-0.5, 4.5), p), {})

    comparisons = {"calibrated": {"MRR@10": compare(*alone)}, "xqg": {"MRR@10": compare(3.5, 0.001)}}
    measured: Any = None
    found = Sweep(
        "MRR@10", ((), ["q"] * 100), BASE, measured, {}, {}, BASE, Report({}, {}, comparisons), compare(*content)
    )
    assert needs_no_queries(found) != needed
    assert is_worth_it(found)
    told = judge_sweep(found)
    assert told.endswith("Calibration without queries gains +3.00 points and needs no generator.") != needed


def test_no_verdict_speaks_of_less_than_nothing() -> None:
    told = judge("R@2kt", Difference(0.0, 0, 0, 200, (0.0, 0.0), 1.0), 200)
    assert "differences below about 0.1 points" in told


@pytest.mark.parametrize(
    ("name", "expected"),
    [("R@2kt", ("R@2kt", 100, 2000)), ("R@500t", ("R@500t", 100, 500)), ("recall@3", ("recall@3", 3, 0)),
     ("nDCG@20", ("nDCG@20", 20, 0))],
)  # fmt: skip
def test_a_measure_is_named_as_in_a_report(name: str, expected: tuple[str, int, int]) -> None:
    assert parse_measure(name, 100)[:3] == expected


@pytest.mark.parametrize("name", ["", "R@2", "recall", "recall@0", "mrr@10", "R@0kt", "nDCG@10 "])
def test_an_unknown_measure_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(InputError, match=r"unknown measure .*Cure: give one such as R@2kt, recall@10"):
        parse_measure(name, 100)


@needs_nltk
def test_where_there_are_answers_token_budget_recall_decides() -> None:
    assert default_measure([Query("a", "?"), Query("b", "?", "ar", ("no", "1984"))]) == "R@2kt"
    assert default_measure([Query("a", "?"), Query("b", "?", "ar", ("no",))]) == "MRR@10"


# What is refused


def test_questions_that_cannot_be_measured_are_refused(demo_encoder: Encoder, vectors: StoredVectors) -> None:
    queries, qrels = questions()
    reason = r"recall@5 needs two questions with judgements, but only 1 of \d+ can be used\. Cure: give --qrels"
    with pytest.raises(InputError, match=reason):
        make_bench(vectors, Recipe(), demo_encoder, queries, qrels[:1], "recall@5", 100)


def test_an_empty_collection_and_one_that_is_being_retuned_are_refused(
    edge: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    with pytest.raises(InputError, match="there is no collection 'docs'"):
        check_sweepable(edge, "docs", demo_encoder)
    fill(edge, "docs", demo_encoder, demo_generator, BASE)
    steps = retune(edge, plan_retune(edge, "docs", demo_encoder, {"alpha": 0.3}), demo_encoder)
    next(steps)
    steps.close()
    with pytest.raises(
        InputError,
        match=r"retune of collection 'docs' is unfinished.* Cure: finish it with: xqg retune --collection docs",
    ):
        check_sweepable(edge, "docs", demo_encoder)
    edge.delete("docs", [row.passage_id for row in rows() if isinstance(row, Passage)])
    fingerprint = edge.read_fingerprint("docs") or {}
    edge.write_fingerprint("docs", {name: value for name, value in fingerprint.items() if name != "retuning"})
    with pytest.raises(InputError, match=r"'docs' holds no passages\. Cure: run: xqg ingest FILE --collection docs"):
        check_sweepable(edge, "docs", demo_encoder)
    edge.write_fingerprint("docs", {**fingerprint, "encoder.sha256": "other"})
    with pytest.raises(MismatchError, match=r"encoder\.sha256"):
        check_sweepable(edge, "docs", demo_encoder)


def test_vectors_that_do_not_fit_on_the_disk_are_refused_before_anything_is_encoded(
    edge: Store, vectors: StoredVectors, demo_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(edge, "docs", demo_encoder, None, GIVEN_SETTINGS[0])
    list(vectors.read(edge, "docs"))
    free = shutil.disk_usage("/")._replace(free=4 * vectors.distinct_queries * demo_encoder.dim - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(demo_encoder, "encode_queries", None)
    with pytest.raises(
        InputError, match=r"the vectors of 12 queries need .* Cure: set TMPDIR to a folder on a larger disk"
    ):
        list(vectors.encode(demo_encoder, 1))


# The command


def xqg(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_printed_command_gives_the_collection_that_was_reported_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("edge:xqg_data")
    fill(store, "docs", demo_encoder, demo_generator, BASE)
    # The generated queries themselves are asked, so that the augmented vectors find more.
    queries, qrels = [], []
    for point in store.scroll("docs"):
        for number, generated in enumerate(point.generated_queries):
            query_id = f"{point.passage.passage_id}-{number}"
            queries.append(Query(query_id, generated.text, generated.language))
            qrels.append(Qrel(query_id, point.passage.passage_id, 1))
    store.close()
    asked = {query.query_id: query._asdict() | {"id": query.query_id, "lang": query.language} for query in queries}
    Path("questions.jsonl").write_text(lines_of(*asked.values()), encoding="utf-8")
    Path("qrels.tsv").write_text("".join("\t".join(map(str, qrel)) + "\n" for qrel in qrels), encoding="utf-8")
    options = ("--collection", "docs", "--questions", "questions.jsonl", "--qrels", "qrels.tsv", "--threads", 1)
    shown = xqg("sweep", *options, "--measure", "nDCG@10")
    assert shown.exit_code == 0, shown.stderr
    told = json.loads(xqg("sweep", *options, "--measure", "nDCG@10", "--json").stdout)
    assert told["measure"] == "nDCG@10"
    content = told["report"]["xqg"]["nDCG@10"]["macro"] - told["report"]["control"]["nDCG@10"]["macro"]
    assert told["content"]["difference"] == content > 5
    assert f"The content of the queries gives {content:+.1f} of " in shown.stdout
    [line] = [line for line in shown.stdout.splitlines() if line.startswith("xqg against control ")]
    assert f" nDCG@10 {content:+.2f} points" in line
    [command] = [line for line in shown.stdout.splitlines() if line.startswith("To apply it: xqg ")]
    applied = xqg(*shlex.split(command.removeprefix("To apply it: xqg ")), "--yes", "--threads", 1)
    assert applied.exit_code == 0, applied.stderr
    rest = [row for query_id, row in asked.items() if query_id in told["halves"]["reported_on"]]
    Path("questions.jsonl").write_text(lines_of(*rest), encoding="utf-8")
    evaluated = json.loads(xqg("evaluate", *options, "--json").stdout)
    assert evaluated["xqg"]["nDCG@10"] == told["report"]["xqg"]["nDCG@10"]
    assert evaluated["passage"]["nDCG@10"] == told["report"]["passage"]["nDCG@10"]
    difference = evaluated["xqg"]["nDCG@10"]["macro"] - evaluated["passage"]["nDCG@10"]["macro"]
    assert told["chosen"]["on_other_half"]["difference"] == difference
    assert f"nDCG@10 {difference:+.2f} points" in shown.stdout
