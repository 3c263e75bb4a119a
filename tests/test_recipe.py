"""Which recipe is chosen: it follows the encoder, given settings win, and a stored collection keeps its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from question_banks import write_bank

from xqg_qdrant.augmentation import recipe as recipes
from xqg_qdrant.augmentation.calibration import encode_bank, pack_mean, read_bank
from xqg_qdrant.augmentation.pipeline import describe
from xqg_qdrant.augmentation.recipe import (
    ChosenRecipe,
    Recipe,
    add_bank,
    change_calibration,
    choose_recipe,
    read_recipe,
)
from xqg_qdrant.demo import DEMO_LEXICON
from xqg_qdrant.errors import InputError
from xqg_qdrant.fingerprint import Fingerprint
from xqg_qdrant.generation.lexicon import Lexicon
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import FloatArray

SHIPPED_HASH = "29d837a28574b060"
SUITED: dict[str, Any] = {"alpha": 0.4, "fusion": "mean", "renormalise": True}
PUBLISHED: dict[str, Any] = {"alpha": 0.01, "fusion": "sum", "renormalise": False}


class StubEncoder:
    """Encodes every question as (1, 0), or every other one as (-1, 0); describes itself as told."""

    dim = 2

    def __init__(self, folder: Path, normalise: bool, narrow: bool) -> None:
        self.folder = SimpleNamespace(path=folder)
        self._sha256 = f"{normalise} {narrow}"
        self._normalise, self._sign = normalise, 1 if narrow else -1

    def describe(self) -> dict[str, Any]:
        return {"sha256": self._sha256, "normalise": self._normalise}

    def sha256(self) -> str:
        return self._sha256

    def unknown_share(self, texts: Sequence[str]) -> float:
        return 0.0

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        return np.array([[self._sign**number, 0] for number in range(len(texts))], dtype=np.float32)


def choose_for(encoder: object, generator: QueryGenerator | Lexicon | None = None, **settings: Any) -> ChosenRecipe:
    return choose_recipe(encoder, generator, **settings)  # type: ignore[arg-type]


def fusion_of(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in SUITED}


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XQG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small_bank(tmp_path: Path) -> Path:
    write_bank(tmp_path / "bank.jsonl.gz", {"fi": [f"Mikä on {number}?" for number in range(12)]})
    return tmp_path / "bank.jsonl.gz"


def test_a_recipe_that_does_not_exist_is_refused(demo_encoder: Encoder) -> None:
    with pytest.raises(InputError, match=r"unknown recipe 'papre'. Cure: choose auto or paper"):
        choose_for(demo_encoder, None, recipe_name="papre")


# The default


def test_the_demo_encoder_gets_the_calibrated_recipe(demo_encoder: Encoder, demo_generator: QueryGenerator) -> None:
    recipe, reason = choose_for(demo_encoder, demo_generator)
    assert fusion_of(recipe) == SUITED
    assert (recipe.queries_per_language, recipe.languages) == (3, tuple(sorted(demo_generator.languages)))
    assert recipe.sampling == demo_generator.sampling
    assert recipe.gamma == 0.5
    assert recipe.question_bank == read_bank().sha256
    assert recipe.question_bank.startswith(SHIPPED_HASH)
    assert recipe.bank_mean == pack_mean(encode_bank(read_bank(), demo_encoder).overall)
    assert reason == "suits a normalised encoder, and its vectors lie in a narrow cone"
    given, _ = choose_for(demo_encoder)
    assert given == Recipe(
        **SUITED, gamma=0.5, question_bank=recipe.question_bank, bank_mean=recipe.bank_mean
    )  # no number of queries


@pytest.mark.parametrize(
    ("normalise", "narrow", "fusion", "gamma", "reason"),
    [
        (True, True, SUITED, 0.5, "suits a normalised encoder, and its vectors lie in a narrow cone"),
        (True, False, SUITED, 0, "suits a normalised encoder"),
        (False, True, PUBLISHED, 0, "as published, for raw dot products"),
    ],
)
def test_the_default_follows_the_encoder(
    tmp_path: Path, normalise: bool, narrow: bool, fusion: dict[str, Any], gamma: float, reason: str
) -> None:
    encoder, lexicon = StubEncoder(tmp_path, normalise, narrow), Lexicon(DEMO_LEXICON)
    recipe, why = choose_for(encoder, lexicon)
    assert fusion_of(recipe) == fusion
    assert recipe.queries_per_language == (3 if normalise else 5)
    assert (recipe.gamma, bool(recipe.question_bank), bool(recipe.bank_mean)) == (gamma, gamma > 0, gamma > 0)
    assert why == reason


# What is asked for


def test_the_papers_recipe_is_as_published_and_not_calibrated(
    demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    recipe, reason = choose_for(demo_encoder, demo_generator, recipe_name="paper")
    assert fusion_of(recipe) == PUBLISHED
    assert recipe.queries_per_language == 5
    assert (recipe.gamma, recipe.question_bank, recipe.bank_mean) == (0, "", "")
    assert reason == "as published, although the encoder is normalised"


def test_no_calibration_leaves_the_rest_of_the_recipe(demo_encoder: Encoder, demo_generator: QueryGenerator) -> None:
    calibrated, _ = choose_for(demo_encoder, demo_generator)
    plain, _ = choose_for(demo_encoder, demo_generator, calibrate=False)
    assert plain == calibrated._replace(gamma=0.0, question_bank="", bank_mean="")
    assert "gamma" not in plain.describe()


def test_given_settings_win(demo_encoder: Encoder, demo_generator: QueryGenerator, small_bank: Path) -> None:
    asked: dict[str, Any] = {
        "alpha": 0.9, "fusion": "sum", "queries_per_language": 2, "gamma": 0.25, "temperature": 2.0, "seed": 7,
    }  # fmt: skip
    recipe, _ = choose_for(demo_encoder, demo_generator, languages=["ru", "fi"], question_bank=small_bank, **asked)
    assert recipe.languages == ("fi", "ru")
    found = {**recipe._asdict(), "temperature": recipe.sampling and recipe.sampling.temperature}
    assert {name: found[name] for name in asked} == asked
    assert recipe.renormalise
    bank = read_bank(small_bank)
    assert recipe.question_bank == bank.sha256
    assert recipe.bank_mean == pack_mean(encode_bank(bank, demo_encoder).overall)
    unset, _ = choose_for(demo_encoder, demo_generator, **dict.fromkeys(asked))
    assert unset == choose_for(demo_encoder, demo_generator).recipe


def test_the_bank_and_its_means_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def count(name: str) -> Any:  # noqa: ANN401
        original = getattr(recipes, name)

        def counted(*arguments: object) -> object:
            read.append(name)
            return original(*arguments)

        return counted

    for name in ("read_bank", "encode_bank"):
        monkeypatch.setattr(recipes, name, count(name))
    assert choose_for(StubEncoder(tmp_path, True, True)).recipe.gamma == 0.5
    assert read == ["read_bank", "encode_bank"]


def test_a_recipe_gets_a_bank_to_calibrate_with_unless_it_has_one(
    tmp_path: Path, demo_encoder: Encoder, small_bank: Path
) -> None:
    added = add_bank(Recipe(alpha=0.3), demo_encoder)
    calibrated = choose_for(demo_encoder, alpha=0.3).recipe
    assert added == Recipe(alpha=0.3, question_bank=calibrated.question_bank, bank_mean=calibrated.bank_mean)
    assert "bank_mean" not in added.describe()  # it is not calibrated yet
    own = choose_for(StubEncoder(tmp_path, True, True), question_bank=small_bank).recipe
    assert add_bank(own, demo_encoder) == own


def test_a_calibration_that_is_asked_for_takes_place_with_any_encoder(tmp_path: Path, small_bank: Path) -> None:
    wide, raw = StubEncoder(tmp_path, True, False), StubEncoder(tmp_path, False, True)
    assert choose_for(wide, calibrate=True).recipe.gamma == 0.5
    assert choose_for(wide, gamma=0.25).recipe.gamma == 0.25
    assert choose_for(wide, question_bank=small_bank).recipe.question_bank == read_bank(small_bank).sha256
    assert choose_for(wide, gamma=0.0).recipe.describe() == SUITED
    assert choose_for(raw, calibrate=True, renormalise=True).recipe.gamma == 0.5
    with pytest.raises(InputError, match="calibration needs vectors of one length"):
        choose_for(raw, calibrate=True)


@pytest.mark.parametrize("setting", ["gamma", "question_bank"])
def test_settings_of_a_calibration_that_is_switched_off_are_refused(
    tmp_path: Path, small_bank: Path, setting: str
) -> None:
    given: dict[str, Any] = {setting: {"gamma": 0.5, "question_bank": small_bank}[setting]}
    with pytest.raises(InputError, match=r"is given with --no-calibrate\. Cure: leave one of them out"):
        choose_for(StubEncoder(tmp_path, True, True), calibrate=False, **given)


def test_nothing_chosen_changes_nothing(tmp_path: Path) -> None:
    encoder: Any = StubEncoder(tmp_path, True, True)
    assert change_calibration(encoder, None, None, None) == {}
    assert change_calibration(encoder, False, None, None) == {"gamma": 0.0, "question_bank": "", "bank_mean": ""}
    assert change_calibration(encoder, True, None, None)["gamma"] == 0.5


# What is stored


def test_the_stored_mean_is_used_again_for_the_same_encoder_and_bank(demo_encoder: Encoder, small_bank: Path) -> None:
    chosen, _ = choose_for(demo_encoder)
    other_mean = pack_mean(np.full(demo_encoder.dim, 0.5, dtype=np.float32))
    stored = {**describe(demo_encoder, None, chosen), "recipe.bank_mean": other_mean}
    assert choose_for(demo_encoder, stored=stored).recipe == chosen._replace(bank_mean=other_mean)
    assert choose_for(demo_encoder, stored=stored, gamma=0.1).recipe.bank_mean == other_mean

    assert choose_for(demo_encoder, stored={**stored, "encoder.sha256": "0" * 64}).recipe == chosen
    other_bank, _ = choose_for(demo_encoder, stored=stored, question_bank=small_bank)
    assert other_bank.bank_mean == pack_mean(encode_bank(read_bank(small_bank), demo_encoder).overall)
    assert not choose_for(demo_encoder, stored=stored, calibrate=False).recipe.bank_mean
    plain = describe(demo_encoder, None, choose_for(demo_encoder, calibrate=False).recipe)
    assert choose_for(demo_encoder, stored=plain).recipe == chosen


def test_a_calibrated_recipe_is_read_back_from_its_fingerprint(
    demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    for generator in (demo_generator, Lexicon(DEMO_LEXICON), None):
        recipe, _ = choose_for(demo_encoder, generator)
        fingerprint = json.loads(json.dumps(describe(demo_encoder, generator, recipe)))
        assert read_recipe(fingerprint) == recipe
        assert {"gamma", "question_bank", "bank_mean"} <= set(recipe.describe())


FUSED = {"alpha": 0.01, "fusion": "sum", "renormalise": False}
GENERATION = {
    "languages": ["fi", "ja"], "queries_per_language": 5, "top_k": 10, "temperature": 0.6, "max_new_tokens": 24,
    "vocabulary": "full", "seed": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ({}, {**GENERATION, **FUSED}),
        ({}, {**GENERATION, **FUSED, "min_score": 0.3, "sparse": True}),
        ({"queries": "given"}, FUSED),
        ({"generator.kind": "lexicon"}, {"languages": ["fi"], "queries_per_language": 2, **FUSED, "alpha": 0.2}),
    ],
)
def test_a_fingerprint_from_before_calibration_reads_back_without_it(
    kind: dict[str, str], fields: dict[str, Any]
) -> None:
    fingerprint: Fingerprint = {**kind, **{f"recipe.{name}": value for name, value in fields.items()}}
    recipe = read_recipe(fingerprint)
    assert (recipe.gamma, recipe.question_bank, recipe.bank_mean) == (0, "", "")
    assert recipe.describe() == fields


# The check of languages


def test_languages_are_checked_where_the_identifier_is_installed_and_the_recipe_says_so(
    tmp_path: Path, demo_generator: QueryGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = StubEncoder(tmp_path, normalise=False, narrow=False)
    recipe, reason = choose_for(encoder, demo_generator)
    assert recipe.describe()["language_check"] == "py3langid 0.4"
    assert "not checked" not in reason
    monkeypatch.setattr("xqg_qdrant.augmentation.recipe.can_identify", lambda: False)
    recipe, reason = choose_for(encoder, demo_generator)
    assert "language_check" not in recipe.describe()
    assert reason.endswith("; the language of queries is not checked, which needs pip install 'xqg-qdrant[languages]'")


def test_a_collection_keeps_its_check_of_languages_or_goes_without(
    tmp_path: Path, demo_generator: QueryGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = StubEncoder(tmp_path, normalise=False, narrow=False)
    unchecked, checked = {"recipe.alpha": 0.01}, {"recipe.language_check": "py3langid 0.4"}
    assert choose_for(encoder, demo_generator, stored=unchecked).recipe.language_check == ""
    assert choose_for(encoder, demo_generator, stored=checked).recipe.language_check == "py3langid 0.4"
    monkeypatch.setattr("xqg_qdrant.augmentation.recipe.can_identify", lambda: False)
    with pytest.raises(InputError, match=r"needs py3langid\. Cure: pip install 'xqg-qdrant\[languages\]'"):
        choose_for(encoder, demo_generator, stored=checked)


def test_the_words_of_a_lexicon_are_not_checked_for_their_language(tmp_path: Path) -> None:
    encoder = StubEncoder(tmp_path, normalise=False, narrow=False)
    assert choose_for(encoder, Lexicon(DEMO_LEXICON)).recipe.language_check == ""
