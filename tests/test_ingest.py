"""What an ingest promises: nothing lost, nothing done twice, nothing that depends on interruptions."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import Command, Forks
from stored_points import assert_same_points, read_points

from xqg_qdrant.augmentation.pipeline import CHUNK_SIZE, Progress, ingest
from xqg_qdrant.augmentation.recipe import Recipe, make_recipe
from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.errors import InputError, MismatchError
from xqg_qdrant.generation import Generation
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import AugmentedPassage, FloatArray, Passage, Reject
from xqg_qdrant.stores import Store, open_store


@pytest.fixture
def recipe(demo_generator: QueryGenerator) -> Recipe:
    return make_recipe(demo_generator, ["fi", "ru"], queries_per_language=2, max_new_tokens=8)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(str(tmp_path / "store"))
    yield opened
    opened.close()


def total(steps: Iterable[Progress]) -> tuple[int, int, int]:
    stored = unchanged = rejected = 0
    for step in steps:
        stored, unchanged, rejected = stored + step.stored, unchanged + step.unchanged, rejected + len(step.rejects)
    return stored, unchanged, rejected


def test_a_point_holds_the_passage_its_queries_and_the_published_sum_of_their_vectors(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, recipe: Recipe
) -> None:
    passage = replace(read_demo_passages()[0], metadata={"source": "demo", "year": 2026})
    assert total(ingest([passage], store, "docs", demo_encoder, demo_generator, recipe)) == (1, 0, 0)
    point = read_points(store)[passage.passage_id]
    assert point.passage == passage
    assert 1 <= len(point.generated_queries) <= 4
    assert {query.language for query in point.generated_queries} <= {"fi", "ru"}
    plain = demo_encoder.encode_passages([f"{passage.title} {passage.text}"])[0]
    queries = demo_encoder.encode_queries([query.text for query in point.generated_queries])
    np.testing.assert_array_equal(point.vectors["passage"], plain)
    expected = 0.99 * plain.astype(np.float64) + 0.01 * queries.astype(np.float64).sum(axis=0)
    np.testing.assert_allclose(point.vectors["xqg"], expected, atol=1e-7)


@pytest.mark.parametrize("fusion", ["sum", "mean"])
def test_queries_below_the_least_score_are_stored_and_take_no_part(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, recipe: Recipe, fusion: str
) -> None:
    passages = read_demo_passages()[:3]
    plain = demo_encoder.encode_passages([f"{passage.title} {passage.text}" for passage in passages])
    generations = demo_generator.generate(
        passages, recipe.languages, 2, 0, demo_generator.sampling._replace(max_new_tokens=8)
    )
    queries = [demo_encoder.encode_queries([query.text for query in found.queries]) for found in generations]
    scores = [vectors.astype(float) @ vector.astype(float) for vectors, vector in zip(queries, plain, strict=True)]
    least = float(np.mean([scores[0].max(), scores[1].max()]))  # all of one of the two are below
    (step,) = ingest(
        passages, store, "docs", demo_encoder, demo_generator, recipe._replace(fusion=fusion, min_score=least)
    )
    assert step.left_out == sum(int((found < least).sum()) for found in scores) > 0
    for passage, generation, vector, vectors, found in zip(passages, generations, plain, queries, scores, strict=True):
        point = read_points(store)[passage.passage_id]
        assert point.generated_queries == generation.queries
        kept = vectors[found >= least].astype(float)
        weight = 0.01 if fusion == "sum" else 0.01 / max(1, len(kept))
        share = 1.0 if fusion == "mean" and not len(kept) else 0.99
        np.testing.assert_allclose(point.vectors["xqg"], share * vector + weight * kept.sum(axis=0), atol=1e-7)


def test_a_filter_is_in_the_fingerprint_and_none_leaves_it_as_it_was(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, recipe: Recipe
) -> None:
    list(ingest(read_demo_passages()[:1], store, "docs", demo_encoder, demo_generator, recipe))
    filtered = make_recipe(demo_generator, ["fi", "ru"], queries_per_language=2, max_new_tokens=8, min_score=0.25)
    list(ingest(read_demo_passages()[:1], store, "filtered", demo_encoder, demo_generator, filtered))
    stored = store.read_fingerprint("docs")
    assert stored is not None
    assert {name for name in stored if name.startswith("recipe.")} == {
        f"recipe.{name}"
        for name in (
            "languages", "queries_per_language", "alpha", "fusion", "renormalise", "seed", "top_k", "temperature",
            "max_new_tokens", "vocabulary",
        )
    }  # fmt: skip
    assert store.read_fingerprint("filtered") == {**stored, "recipe.min_score": 0.25}


def test_any_number_of_workers_gives_the_same_points(
    demo_encoder: Encoder, demo_generator: QueryGenerator, recipe: Recipe, tmp_path: Path
) -> None:
    passages = [replace(p, text=p.text.split(". ")[0]) for p in read_demo_passages()[: 5 * CHUNK_SIZE + 3]]
    results = []
    for workers in (1, 4):
        store = open_store(str(tmp_path / str(workers)))
        steps = list(ingest(passages, store, "docs", demo_encoder, demo_generator, recipe, workers))
        results.append((steps, read_points(store)))
        store.close()
    assert results[0][0] == results[1][0]
    assert_same_points(results[0][1], results[1][1])


def test_a_second_run_generates_nothing_and_changes_nothing(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = read_demo_passages()[: CHUNK_SIZE + 3]
    assert total(ingest(passages, store, "docs", demo_encoder, demo_generator, recipe)) == (CHUNK_SIZE + 3, 0, 0)
    before = read_points(store)

    def refuse(*_: object) -> Generation:
        raise AssertionError("generated again")

    monkeypatch.setattr(demo_generator, "generate", refuse)
    assert total(ingest(passages, store, "docs", demo_encoder, demo_generator, recipe)) == (0, CHUNK_SIZE + 3, 0)
    assert_same_points(before, read_points(store))


def test_an_edited_corpus_redoes_only_what_changed(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, recipe: Recipe
) -> None:
    passages = read_demo_passages()[:5]
    list(ingest(passages, store, "docs", demo_encoder, demo_generator, recipe))
    before = read_points(store)
    passages[1] = replace(passages[1], text="A new text about the Danube.")
    passages[2] = replace(passages[2], metadata={"new": True})
    passages.insert(0, Passage("new", "A passage that was not there."))
    assert total(ingest(passages, store, "docs", demo_encoder, demo_generator, recipe)) == (3, 3, 0)
    after = read_points(store)
    assert after[passages[2].passage_id].passage.text == "A new text about the Danube."
    unchanged = {passages[i].passage_id for i in (1, 4, 5)}
    assert_same_points({i: before[i] for i in unchanged}, {i: after[i] for i in unchanged})


def test_points_do_not_depend_on_the_order_of_the_corpus_or_of_the_languages(
    demo_encoder: Encoder, demo_generator: QueryGenerator, recipe: Recipe, tmp_path: Path
) -> None:
    passages = read_demo_passages()[:6]
    results = []
    for name, rows, languages in (("a", passages, ["fi", "ru"]), ("b", passages[::-1], ["ru", "fi"])):
        store = open_store(str(tmp_path / name))
        settings = make_recipe(demo_generator, languages, queries_per_language=2, max_new_tokens=8)
        list(ingest(rows, store, "docs", demo_encoder, demo_generator, settings))
        results.append(read_points(store))
        store.close()
    assert_same_points(*results)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"alpha": 0.02}, "recipe.alpha: stored 0.01, now 0.02"),
        ({"fusion": "mean"}, "recipe.fusion: stored 'sum', now 'mean'"),
        ({"renormalise": True}, "recipe.renormalise: stored False, now True"),
        ({"seed": 1}, "recipe.seed: stored 0, now 1"),
        ({"min_score": 0.2}, "recipe.min_score: stored None, now 0.2"),
        ({"languages": ("fi",)}, "recipe.languages: stored ['fi', 'ru'], now ['fi']"),
    ],
)
def test_another_recipe_is_refused_with_the_field_and_a_cure(
    store: Store,
    demo_encoder: Encoder,
    demo_generator: QueryGenerator,
    recipe: Recipe,
    change: dict[str, Any],
    field: str,
) -> None:
    passages = read_demo_passages()[:1]
    list(ingest(passages, store, "docs", demo_encoder, demo_generator, recipe))
    before = read_points(store)
    with pytest.raises(MismatchError) as caught:
        list(ingest(passages, store, "docs", demo_encoder, demo_generator, recipe._replace(**change)))
    assert field in str(caught.value)
    assert "Cure: " in str(caught.value)
    assert_same_points(before, read_points(store))


def test_rejected_rows_are_handed_on_and_the_rest_is_stored(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, recipe: Recipe
) -> None:
    reject = Reject("corpus.jsonl", 7, "text is empty", "{}")
    rows: list[Passage | Reject] = [read_demo_passages()[0], reject]
    (step,) = ingest(rows, store, "docs", demo_encoder, demo_generator, recipe)
    assert (step.stored, step.rejects) == (1, (reject,))
    assert store.count("docs") == 1


@pytest.mark.parametrize(
    ("value", "reason"),
    [(np.inf, "a vector of the encoder is not finite"), (0.0, "a vector of the encoder is all zeros")],
)
def test_a_vector_that_cannot_be_found_rejects_its_passage_alone(
    store: Store,
    demo_encoder: Encoder,
    demo_generator: QueryGenerator,
    recipe: Recipe,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    reason: str,
) -> None:
    bad, good = read_demo_passages()[:2]
    encode = demo_encoder.encode_passages

    def encode_badly(texts: list[str]) -> FloatArray:
        vectors = encode(texts)
        vectors[[bad.text in text for text in texts]] = value
        return vectors

    monkeypatch.setattr(demo_encoder, "encode_passages", encode_badly)
    (step,) = ingest([bad, good], store, "docs", demo_encoder, demo_generator, recipe)
    assert step.rejects == (Reject(bad.passage_id, 0, reason, bad.text),)
    assert read_points(store).keys() == {good.passage_id}


def test_the_yield_counts_what_was_asked_for_and_what_was_kept(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, recipe: Recipe
) -> None:
    passages = read_demo_passages()[:3]
    (step,) = ingest(passages, store, "docs", demo_encoder, demo_generator, recipe)
    assert dict(step.asked) == {"fi": 6, "ru": 6}
    points = read_points(store).values()
    for language in ("fi", "ru"):
        stored = [query for point in points for query in point.generated_queries if query.language == language]
        assert step.kept.get(language, 0) == len(stored)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, "alpha must be between 0 and 1 (inclusive), was: 1.5"),
        ({"queries_per_language": 0}, "queries_per_language must be at least 1, was: 0"),
        ({"temperature": 0.0}, "temperature must be above 0, was: 0.0"),
        ({"top_k": 10**9}, "top_k must be at most"),
        ({"max_new_tokens": 10**9}, "max_new_tokens must be at most"),
        ({"fusion": "max"}, "fusion must be one of sum, mean, was: 'max'"),
        ({"min_score": float("nan")}, "min_score must be a finite number, was: nan"),
    ],
)
def test_settings_out_of_range_are_refused_with_their_value(
    demo_generator: QueryGenerator, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        make_recipe(demo_generator, **settings)
    assert message in str(caught.value)


# The rest runs the real command in a process of its own, because it is killed.


def write_corpus(path: Path, count: int) -> Path:
    """Write passages of one sentence."""
    rows = ({"id": p.passage_id, "title": p.title, "text": p.text.split(". ")[0]} for p in read_demo_passages()[:count])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# However fast the machine is, several chunks are still to come after the first.
SLOW = """
import time
from xqg_qdrant.generation.onnx import QueryGenerator
generate = QueryGenerator.generate
def generate_late(*arguments, **settings):
    time.sleep(0.3)
    return generate(*arguments, **settings)
QueryGenerator.generate = generate_late
"""


def start_ingest(forks: Forks, corpus: Path, store: Path, threads: int = 1, setup: str = "") -> Command:
    options = ["--languages", "fi,ru", "--queries-per-language", "2", "--max-new-tokens", "8"]
    options += ["--threads", str(threads)]
    arguments = ["ingest", str(corpus), "--collection", "docs", "--store", str(store), *options]
    return forks.start(corpus.parent, *arguments, setup=setup)


def interrupt_ingest(forks: Forks, corpus: Path, store: Path) -> Command:
    """Start an ingest, and press Ctrl-C when one chunk was stored and others are in work."""
    command = start_ingest(forks, corpus, store, setup=SLOW)
    while not list(store.glob("*/collection.json")):
        with pytest.raises(TimeoutError):
            command.wait(0.01)
    time.sleep(0.2)
    command.send(signal.SIGINT)
    return command


def finish_ingest(forks: Forks, corpus: Path, store: Path, threads: int = 1) -> str:
    """Ingest to the end, and return what it prints."""
    command = start_ingest(forks, corpus, store, threads)
    assert command.wait() == 0, command.output
    return command.output


def read_all(directory: Path) -> dict[str, AugmentedPassage]:
    store = open_store(str(directory))
    points = read_points(store)
    store.close()
    return points


def kill_now_and_then(forks: Forks, corpus: Path, store: Path, threads: int, seconds: float, kills: int) -> None:
    """Ingest until it was killed so often, each time where it may have written something."""
    random_delay = random.Random(0)
    killed = finished = 0
    while killed < kills:
        command = start_ingest(forks, corpus, store, threads)
        try:
            code = command.wait(random_delay.uniform(0.1, 0.7) * seconds)
        except TimeoutError:
            code = command.kill()
            killed += 1
        assert code in (0, -signal.SIGKILL), command.output
        if code == 0:
            # It came to its end between two kills: begin anew, so that every kill hits work.
            finished += 1
            os.rename(store, store.parent / f"finished-{finished}")


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, forks: Forks
) -> tuple[Path, float, dict[str, AugmentedPassage]]:
    """A corpus, how long its ingest takes, and the points that it gives."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    corpus = write_corpus(folder / "corpus.jsonl", 6 * CHUNK_SIZE)
    start = time.monotonic()
    finish_ingest(forks, corpus, folder / "store")
    return corpus, time.monotonic() - start, read_all(folder / "store")


@pytest.mark.parametrize(("threads", "kills"), [(1, 3), (3, 2)])
def test_an_ingest_that_is_killed_again_and_again_ends_with_the_same_points(
    uninterrupted: tuple[Path, float, dict[str, AugmentedPassage]], tmp_path: Path, forks: Forks,
    threads: int, kills: int,
) -> None:  # fmt: skip
    corpus, seconds, expected = uninterrupted
    kill_now_and_then(forks, corpus, tmp_path / "store", threads, seconds, kills)
    finish_ingest(forks, corpus, tmp_path / "store", threads)
    assert_same_points(read_all(tmp_path / "store"), expected)


def test_ctrl_c_finishes_the_chunks_in_work_says_how_to_go_on_and_costs_no_work(
    uninterrupted: tuple[Path, float, dict[str, AugmentedPassage]], tmp_path: Path, forks: Forks
) -> None:
    corpus, _, expected = uninterrupted
    command = interrupt_ingest(forks, corpus, tmp_path / "store")
    assert command.wait() == 130, command.output
    assert "run the same command again to resume" in command.output
    stored = len(read_all(tmp_path / "store"))
    assert 0 < stored < len(expected)
    assert stored % CHUNK_SIZE == 0

    said = finish_ingest(forks, corpus, tmp_path / "store")
    assert f"{len(expected) - stored} passages stored, {stored} unchanged" in said
    assert_same_points(read_all(tmp_path / "store"), expected)


def test_a_second_ctrl_c_ends_at_once_and_leaves_whole_chunks(
    uninterrupted: tuple[Path, float, dict[str, AugmentedPassage]], tmp_path: Path, forks: Forks
) -> None:
    corpus, _, expected = uninterrupted
    command = interrupt_ingest(forks, corpus, tmp_path / "store")
    while "press Ctrl-C again" not in command.output:
        with pytest.raises(TimeoutError):
            command.wait(0.002)
    command.send(signal.SIGINT)
    assert command.wait() == 130
    assert "Traceback" not in command.output
    stored = read_all(tmp_path / "store")
    assert len(stored) % CHUNK_SIZE == 0
    assert_same_points(stored, {passage_id: expected[passage_id] for passage_id in stored})
