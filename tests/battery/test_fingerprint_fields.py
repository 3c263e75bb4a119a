"""A collection that was made differently is refused: each field alone, with both values and the cure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xqg_qdrant.augmentation.pipeline import ingest
from xqg_qdrant.augmentation.recipe import Recipe, make_recipe
from xqg_qdrant.demo import DEMO_LEXICON
from xqg_qdrant.errors import MismatchError
from xqg_qdrant.fingerprint import Fingerprint
from xqg_qdrant.generation.lexicon import Lexicon
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.model_folders import DEMO_ENCODER, DEMO_GENERATOR, shipped_model
from xqg_qdrant.records import GeneratedQuery, Passage, QueriedPassage
from xqg_qdrant.retrieval import check_collection
from xqg_qdrant.stores import Store, open_store

PASSAGES = [Passage(f"p{number}", f"Passage {number} is about a river.") for number in range(3)]
FEW = {"queries_per_language": 1, "max_new_tokens": 4}
LEXICON = Lexicon(DEMO_LEXICON)
LEXICON_RECIPE = make_recipe(LEXICON, ("fi",), queries_per_language=1, sparse=True)


def changed(value: Any) -> list[Any]:  # noqa: ANN401
    """Return other values of the same kind, and of other kinds, that a careless program might have stored."""
    match value:
        case bool():
            return [not value, None]
        case int():
            return [value + 1, -1, None]
        case float():
            return [value + 0.1, None]
        case str():
            return [f"{value}x", "", None] if value else ["query: ", None]
        case list():
            return [value[:-1], [*value, "xx"], value[::-1] if len(value) > 1 else [], None]
        case None:
            return [0.5, "x"]
    raise AssertionError(value)


@pytest.fixture(scope="module")
def store(demo_encoder: Encoder, demo_generator: QueryGenerator) -> Iterator[Store]:
    """A store with a collection of generated queries, `docs`, one of given ones, and one of a lexicon's with terms."""
    store = open_store(":memory:")
    list(ingest(PASSAGES, store, "docs", demo_encoder, demo_generator, recipe_of(demo_generator)))
    list(ingest(given_rows(), store, "given", demo_encoder, None, make_recipe(None)))
    list(ingest(PASSAGES, store, "lexicon", demo_encoder, LEXICON, LEXICON_RECIPE))
    yield store
    store.close()


def recipe_of(generator: QueryGenerator, **settings: Any) -> Recipe:
    return make_recipe(generator, ("fi",), **{**FEW, **settings})


def given_rows() -> list[QueriedPassage]:
    return [QueriedPassage(passage, (GeneratedQuery("fi", "Mikä joki?"),)) for passage in PASSAGES]


def try_ingest(
    store: Store, collection: str, encoder: Encoder, generator: QueryGenerator, recipe: Recipe | None = None
) -> str:
    """Ingest into a collection, check that nothing changed, and return the refusal."""
    before = {point.passage.passage_id: point.content_hash for point in store.scroll(collection)}
    fingerprint = store.read_fingerprint(collection)
    if collection == "given":
        steps = ingest(given_rows(), store, collection, encoder, None, recipe or make_recipe(None))
    elif collection == "lexicon":
        steps = ingest(PASSAGES, store, collection, encoder, LEXICON, recipe or LEXICON_RECIPE)
    else:
        steps = ingest(PASSAGES, store, collection, encoder, generator, recipe or recipe_of(generator))
    with pytest.raises(MismatchError) as caught:
        list(steps)
    assert {point.passage.passage_id: point.content_hash for point in store.scroll(collection)} == before
    assert store.read_fingerprint(collection) == fingerprint
    return str(caught.value)


def fields_of(store: Store, collection: str) -> Fingerprint:
    fingerprint = store.read_fingerprint(collection)
    assert fingerprint is not None
    return fingerprint


def assert_refusal(message: str, field: str, stored: object, now: object) -> None:
    line = f"  {field}: stored {stored!r}, now {now!r}\n"
    assert line in message
    assert message.count(": stored ") == 1
    assert "\nNothing was changed.\nCure: " in message


@pytest.mark.parametrize(("collection", "fields"), [("docs", 20), ("given", 12), ("lexicon", 17)])
def test_a_stored_field_of_any_other_value_is_refused(
    collection: str, fields: int, store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    original = fields_of(store, collection)
    assert len(original) >= fields
    for field, value in original.items():
        for other in changed(value):
            store.write_fingerprint(collection, {**original, field: other})
            message = try_ingest(store, collection, demo_encoder, demo_generator)
            if field == "queries":
                assert "Cure: " in message
                continue
            assert_refusal(message, field, other, value)
            if field.startswith("encoder."):
                with pytest.raises(MismatchError) as caught:
                    check_collection(store, collection, demo_encoder)
                assert_refusal(str(caught.value), field, other, value)
            else:
                check_collection(store, collection, demo_encoder)
    store.write_fingerprint(collection, original)


def test_a_field_that_is_missing_or_unknown_is_refused(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    original = fields_of(store, "docs")
    for field, value in original.items():
        store.write_fingerprint("docs", {name: kept for name, kept in original.items() if name != field})
        if value is not None:
            assert_refusal(try_ingest(store, "docs", demo_encoder, demo_generator), field, None, value)
    store.write_fingerprint("docs", {**original, "recipe.new_setting": 3})
    assert_refusal(try_ingest(store, "docs", demo_encoder, demo_generator), "recipe.new_setting", 3, None)
    store.write_fingerprint("docs", original)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("alpha", 0.02), ("fusion", "mean"), ("renormalise", True), ("seed", 1), ("queries_per_language", 2),
        ("top_k", 3), ("temperature", 0.9), ("max_new_tokens", 5),
    ],
)  # fmt: skip
def test_each_setting_of_the_recipe_is_refused_when_it_changes(
    setting: str, value: object, store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    stored = fields_of(store, "docs")[f"recipe.{setting}"]
    recipe = recipe_of(demo_generator, **{setting: value})
    assert_refusal(try_ingest(store, "docs", demo_encoder, demo_generator, recipe), f"recipe.{setting}", stored, value)


def test_other_languages_are_refused(store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator) -> None:
    recipe = make_recipe(demo_generator, ("fi", "ja"), **FEW)
    message = try_ingest(store, "docs", demo_encoder, demo_generator, recipe)
    assert_refusal(message, "recipe.languages", ["fi"], ["fi", "ja"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pooling", "cls"), ("normalise", False), ("query_prefix", "ask: "), ("passage_prefix", "text: "),
        ("max_query_tokens", 64), ("max_passage_tokens", 128), ("dtype", "float32"),
    ],
)  # fmt: skip
def test_an_encoder_whose_folder_says_something_else_is_refused(
    field: str, value: object, store: Store, demo_generator: QueryGenerator, tmp_path: Path
) -> None:
    folder = edit_folder(DEMO_ENCODER, tmp_path, **{field: value})
    encoder = Encoder(folder, "cpu", threads=1)
    message = try_ingest(store, "docs", encoder, demo_generator)
    assert_refusal(message, f"encoder.{field}", fields_of(store, "docs")[f"encoder.{field}"], value)


@pytest.mark.parametrize(("field", "value"), [("prompt", "{title} {text}: "), ("max_input_tokens", 64)])
def test_a_generator_whose_folder_says_something_else_is_refused(
    field: str, value: object, store: Store, demo_encoder: Encoder, tmp_path: Path
) -> None:
    folder = edit_folder(DEMO_GENERATOR, tmp_path, **{field: value})
    message = try_ingest(store, "docs", demo_encoder, QueryGenerator(folder, "cpu", threads=1))
    assert_refusal(message, f"generator.{field}", fields_of(store, "docs")[f"generator.{field}"], value)


def edit_folder(name: str, tmp_path: Path, **fields: object) -> Path:
    """Copy a shipped model and change what its description says; its files stay as they are."""
    folder = tmp_path / name
    shutil.copytree(shipped_model(name), folder)
    description = json.loads((folder / "xqg.json").read_text(encoding="utf-8"))
    (folder / "xqg.json").write_text(json.dumps({**description, **fields}), encoding="utf-8")
    return folder
