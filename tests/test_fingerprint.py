from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from xqg_qdrant.errors import MismatchError
from xqg_qdrant.fingerprint import hash_content, hash_json, hash_recipe, make_fingerprint, refuse_mismatch
from xqg_qdrant.records import Passage

ENCODER = {"pooling": "mean", "sha256": "ab12"}
GENERATOR = {"sha256": "cd34"}
RECIPE = {"alpha": 0.01, "languages": ["ja", "ru"]}
STORED = {
    "encoder.pooling": "mean",
    "encoder.sha256": "ab12",
    "generator.sha256": "cd34",
    "recipe.alpha": 0.01,
    "recipe.languages": ["ja", "ru"],
}


def test_a_fingerprint_names_each_field_by_its_part() -> None:
    assert make_fingerprint(ENCODER, GENERATOR, RECIPE) == STORED


def test_a_hash_is_that_of_canonical_json() -> None:
    canonical = '{"a":["何",null,1.5],"b":true}'.encode()
    expected = hashlib.sha256(canonical).hexdigest()[:32]
    assert hash_json({"b": True, "a": ["何", None, 1.5]}) == expected
    assert hash_json({"a": ["何", None, 1.5], "b": True}) == expected


def test_a_lone_surrogate_has_a_hash_too() -> None:
    expected = hashlib.sha256(b'"\xed\xa0\xbd"').hexdigest()[:32]
    assert hash_json("\ud83d") == expected


def test_a_content_hash_is_that_of_the_passage_and_the_recipe() -> None:
    passage = Passage("p1", "a text", "a title", {"year": 1984})
    canonical = b'["p1","a title","a text",{"year":1984},"r1"]'
    assert hash_content(passage, "r1") == hashlib.sha256(canonical).hexdigest()[:32]


@pytest.mark.parametrize(
    "changes",
    [
        {"passage_id": "p2"},
        {"text": "a text "},
        {"title": ""},
        {"metadata": {"year": "1984"}},
        {"metadata": {}},
        {"text": "a title", "title": "a text"},
    ],
)
def test_any_change_of_a_passage_changes_its_content_hash(changes: dict[str, Any]) -> None:
    passage = Passage("p1", "a text", "a title", {"year": 1984})
    assert hash_content(replace(passage, **changes), "r1") != hash_content(passage, "r1")


def test_another_recipe_changes_the_content_hash() -> None:
    passage = Passage("p1", "a text")
    assert hash_content(passage, "r1") != hash_content(passage, "r2")


def test_equal_fingerprints_are_no_mismatch() -> None:
    refuse_mismatch("passages", STORED, dict(reversed(STORED.items())))


def test_a_mismatch_names_every_field_both_values_and_the_cure() -> None:
    wanted = {**STORED, "recipe.alpha": 0.02, "recipe.languages": ["ja"]}
    with pytest.raises(MismatchError) as caught:
        refuse_mismatch("passages", STORED, wanted)
    assert str(caught.value).splitlines() == [
        "collection 'passages' was made with other settings:",
        "  recipe.alpha: stored 0.01, now 0.02",
        "  recipe.languages: stored ['ja', 'ru'], now ['ja']",
        "Nothing was changed.",
        "Cure: repeat the setting that the collection was made with, or ingest into a new collection.",
    ]


@pytest.mark.parametrize(
    ("field", "cure"),
    [("encoder.pooling", "--encoder"), ("generator.sha256", "--generator"), ("other.x", "a new collection")],
)
def test_the_cure_belongs_to_the_first_part_that_differs(field: str, cure: str) -> None:
    with pytest.raises(MismatchError, match=rf"{field}: stored .*\n(.*\n)*Cure: .*{cure}"):
        refuse_mismatch("passages", {**STORED, "other.x": 1}, {**STORED, "other.x": 1, field: "changed"})


def test_a_field_that_only_one_side_has_is_a_mismatch() -> None:
    with pytest.raises(MismatchError, match=r"recipe\.new: stored None, now 1"):
        refuse_mismatch("passages", STORED, {**STORED, "recipe.new": 1})
    with pytest.raises(MismatchError, match=r"recipe\.alpha: stored 0\.01, now None"):
        refuse_mismatch("passages", STORED, {name: value for name, value in STORED.items() if name != "recipe.alpha"})


def test_a_search_compares_the_encoder_alone() -> None:
    encoder = {"encoder.pooling": "mean", "encoder.sha256": "ab12"}
    refuse_mismatch("passages", STORED, encoder, "encoder")
    refuse_mismatch("passages", {**STORED, "encoders.x": 1}, encoder, "encoder")
    with pytest.raises(MismatchError, match=r"encoder\.pooling: stored 'mean', now 'cls'"):
        refuse_mismatch("passages", STORED, {**encoder, "encoder.pooling": "cls"}, "encoder")


def test_an_unfinished_retune_is_reported_alone_with_its_changes_and_hides_no_search() -> None:
    retuning = {**STORED, "retuning": {**STORED, "recipe.alpha": 0.3, "recipe.min_score": 0.5}}
    for wanted in (STORED, retuning["retuning"], {**STORED, "recipe.alpha": 0.7, "encoder.pooling": "cls"}):
        with pytest.raises(MismatchError) as caught:
            refuse_mismatch("passages", retuning, wanted)  # type: ignore[arg-type]
        assert str(caught.value).splitlines() == [
            "collection 'passages' is being retuned:",
            "  recipe.alpha: from 0.01 to 0.3",
            "  recipe.min_score: from None to 0.5",
            "Nothing was changed.",
            "Cure: wait for it, or if it was interrupted finish it: xqg retune --collection passages.",
        ]
    refuse_mismatch("passages", retuning, retuning)
    refuse_mismatch("passages", retuning, {"encoder.pooling": "mean", "encoder.sha256": "ab12"}, "encoder")


def test_the_hash_of_a_recipe_is_the_same_while_it_is_being_retuned() -> None:
    assert hash_recipe({**STORED, "retuning": {"recipe.alpha": 0.3}}) == hash_recipe(STORED) == hash_json(STORED)
