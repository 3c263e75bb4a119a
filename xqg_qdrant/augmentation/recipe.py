"""The settings of the augmentation: check them, and convert them to and from a fingerprint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from xqg_qdrant.augmentation.calibration import DEFAULT_GAMMA, BankMeans, encode_bank, pack_mean, read_bank
from xqg_qdrant.augmentation.fusion import PUBLISHED_ALPHA, Fusion, check_fusion
from xqg_qdrant.errors import InputError, MismatchError
from xqg_qdrant.fingerprint import QUERIES_FIELD, Fingerprint, is_plain
from xqg_qdrant.generation import DRAWING, Generator, check_languages
from xqg_qdrant.generation.lexicon import LEXICON
from xqg_qdrant.generation.llm import LANGUAGE_MODEL, ChatSampling
from xqg_qdrant.generation.onnx import Sampling
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.languages import IDENTIFIER, can_identify
from xqg_qdrant.stores.points import OUR_NAMES
from xqg_qdrant.text import show

RECIPE_PREFIX = "recipe."
AUTO, PAPER = "auto", "paper"
RECIPES = (AUTO, PAPER)
PUBLISHED: Mapping[str, Any] = MappingProxyType({
    "alpha": PUBLISHED_ALPHA, "fusion": "sum", "renormalise": False, "queries_per_language": 5,
})  # fmt: skip
SUITED: Mapping[str, Any] = MappingProxyType({
    "alpha": 0.4, "fusion": "mean", "renormalise": True, "queries_per_language": 3,
})  # fmt: skip
"""For normalised encoders; measured in docs/results.md."""


class Recipe(NamedTuple):
    """The settings of the augmentation; each decides what is stored, and is part of the fingerprint.

    A lexicon uses neither `sampling` nor `seed`. If queries are given, there are no languages, and no setting of the
    generation is used.

    Attributes:
        languages: Languages to generate queries in, sorted.
        sampling: How a model draws queries.
        queries_per_language: Number of queries to generate for a passage in each language.
        alpha: Weight of the queries; see `Fusion` for this and the next two.
        fusion: `sum` or `mean`.
        renormalise: Scale the augmented vector to the length of the plain one.
        seed: Of the sampling.
        min_score: Queries whose dot product with the plain vector is lower are excluded, but stored.
        sparse: Store a sparse vector of the terms in the passage and its queries.
        gamma: Weight of the calibration; see `Fusion` for this and the next two.
        question_bank: SHA-256 of the bank that calibrates.
        bank_mean: The bank's mean vector, packed.
        language_check: What identifies the language of generated queries, to drop those in another; empty if nothing.
        names: Other programs' names of a point's fields and vector, from `make_names`.
        split_tokens: Longest passage that documents are split into, in tokens; 0 if they are not split.
        split_overlap: Tokens of a passage that the next one repeats, at most.
    """

    languages: tuple[str, ...] = ()
    sampling: Sampling | ChatSampling | None = None
    queries_per_language: int = 5
    alpha: float = PUBLISHED_ALPHA
    fusion: str = "sum"
    renormalise: bool = False
    seed: int = 0
    min_score: float | None = None
    sparse: bool = False
    gamma: float = 0.0
    question_bank: str = ""
    bank_mean: str = ""
    language_check: str = ""
    names: Mapping[str, str] = OUR_NAMES
    split_tokens: int = 0
    split_overlap: int = 0

    @property
    def given(self) -> bool:
        """Return whether no query is generated: they are given, or none are stored yet."""
        return not self.languages

    @property
    def fusion_settings(self) -> Fusion:
        """Return the settings that decide how vectors are fused."""
        return Fusion(*(getattr(self, name) for name in Fusion._fields))

    def describe(self) -> dict[str, Any]:
        """Return every setting in use as JSON values, for a fingerprint."""
        # Unused settings are left out, so collections made before they existed keep their fingerprint.
        filtered = {} if self.min_score is None else {"min_score": self.min_score}
        stored = {**({"sparse": True} if self.sparse else {}), **({"names": dict(self.names)} if self.names else {})}
        bank = {"gamma": self.gamma, "question_bank": self.question_bank, "bank_mean": self.bank_mean}
        calibrated = bank if self.gamma else {}
        split = {"split_tokens": self.split_tokens, "split_overlap": self.split_overlap} if self.split_tokens else {}
        fused = {
            "alpha": self.alpha, "fusion": self.fusion, "renormalise": self.renormalise,
            **filtered, **calibrated, **stored, **split,
        }  # fmt: skip
        if self.given:
            return fused
        checked = {"language_check": self.language_check} if self.language_check else {}
        asked = {"languages": list(self.languages), "queries_per_language": self.queries_per_language, **checked}
        drawn = {} if self.sampling is None else {**self.sampling._asdict(), "seed": self.seed}
        return {**asked, **drawn, **fused}


class ChosenRecipe(NamedTuple):
    """A recipe, and a sentence on why it was chosen."""

    recipe: Recipe
    reason: str


def choose_recipe(
    encoder: TextEncoder,
    generator: Generator | None,
    languages: Sequence[str] = (),
    *,
    recipe_name: str = AUTO,
    calibrate: bool | None = None,
    question_bank: Path | None = None,
    stored: Fingerprint | None = None,
    **settings: Any,
) -> ChosenRecipe:
    """Return a recipe with defaults that suit the encoder.

    Normalised encoders, made to be compared by cosine: mean fusion, renormalised, alpha 0.4, 3 queries a language, and
    calibrated if their vectors lie in a narrow cone. Others: as published.

    Args:
        encoder: of the collection.
        generator: writes the queries; None if they are given.
        languages: to generate queries in; by default the generator's.
        recipe_name: `auto`, or `paper` for the published one.
        calibrate: whether to calibrate; None chooses by the encoder.
        question_bank: JSONL file of questions to calibrate with; None is the shipped one.
        stored: fingerprint of the existing collection, whose bank mean is used again if the bank is the same.
        **settings: of `Recipe` and `Sampling`; None is the default.

    Raises:
        InputError: a setting or the bank cannot be used.
    """
    if recipe_name not in RECIPES:
        raise InputError(f"unknown recipe {show(recipe_name)}.", f"choose {' or '.join(RECIPES)}")
    given = {name: value for name, value in settings.items() if value is not None}
    normalised = bool(encoder.describe()["normalise"])
    suited = normalised and recipe_name == AUTO
    defaults = dict(SUITED if suited else PUBLISHED)
    if generator is None:
        del defaults["queries_per_language"]
    if suited:
        reason = "suits a normalised encoder"
    elif normalised:
        reason = "as published, although the encoder is normalised"
    else:
        reason = "as published, for raw dot products"
    gamma = given.pop("gamma", None)
    calibration = change_calibration(encoder, calibrate, gamma, question_bank, stored)
    wanted = suited and calibrate is None and given.get("renormalise") is not False
    if wanted and not calibration:
        means = _read_means(encoder)
        if means is None:
            reason += "; not calibrated, because it can read no language of the question bank"
        elif means.narrow:
            calibration = _calibrate(encoder, means.sha256, lambda: means, None, stored)
            reason += ", and its vectors lie in a narrow cone"
    if generator is not None and generator.writes_sentences:
        defaults["language_check"] = choose_language_check(stored)
        if not (defaults["language_check"] or (stored and not is_plain(stored))):
            reason += "; the language of queries is not checked, which needs pip install 'xqg-qdrant[languages]'"
    made = make_recipe(generator, languages, **{**defaults, **calibration, **given})
    return ChosenRecipe(made, reason)


def _read_means(encoder: TextEncoder) -> BankMeans | None:
    """Return the means of the shipped bank; None if the encoder can read none of its languages."""
    bank = read_bank()
    try:
        return encode_bank(bank, encoder)
    except InputError:
        return None


def choose_recipe_of_calibration(
    encoder: TextEncoder,
    *,
    question_bank: Path | None = None,
    gamma: float | None = None,
    calibrate: bool | None = None,
    stored: Fingerprint | None = None,
    **settings: Any,
) -> ChosenRecipe:
    """Return a recipe that only calibrates vectors, without queries.

    Args:
        encoder: made the vectors.
        question_bank: as in `choose_recipe`, like `gamma` and `stored`.
        gamma: weight of the calibration.
        calibrate: True also for an encoder that is not known to gain.
        stored: fingerprint of the existing collection.
        **settings: of `choose_recipe`; those of queries must be None.

    Raises:
        InputError: a setting of queries is given, or calibration is not known to help this encoder.
    """
    useless = [name for name, value in settings.items() if value is not None and name != "recipe_name"]
    if useless or calibrate is False:
        name = useless[0] if useless else "--no-calibrate"
        raise InputError(f"{name} does not apply where nothing is done but to calibrate.", f"leave {name} out")
    chosen = choose_recipe(
        encoder, None, calibrate=calibrate, question_bank=question_bank, gamma=gamma, stored=stored,
        fusion="mean", renormalise=True,
    )  # fmt: skip
    if not chosen.recipe.gamma:
        raise InputError(
            "calibration is not known to help this encoder, whose vectors lie in no narrow cone.",
            "give --calibrate to try it, or add queries",
        )
    return chosen


def choose_language_check(stored: Fingerprint | None) -> str:
    """Return what identifies the language of queries: as in a collection with queries, or what is installed.

    Raises:
        InputError: the collection was made with a check that is not installed.
    """
    check = IDENTIFIER if can_identify() else ""
    if stored is None or is_plain(stored):
        return check
    wanted = str(stored.get(f"{RECIPE_PREFIX}language_check", ""))
    if wanted and not check:
        raise InputError(
            "the collection's queries were checked for their language, which needs py3langid.",
            "pip install 'xqg-qdrant[languages]'",
        )
    return wanted


def change_calibration(
    encoder: TextEncoder,
    calibrate: bool | None,
    gamma: float | None,
    question_bank: Path | None,
    stored: Fingerprint | None = None,
) -> dict[str, Any]:
    """Return the settings of a recipe that these choices change; none if nothing is chosen.

    Raises:
        InputError: the choices contradict each other, or the bank cannot be used.
    """
    if calibrate is False:
        if gamma or question_bank is not None:
            raise InputError("a setting of the calibration is given with --no-calibrate.", "leave one of them out")
        return {"gamma": 0.0, "question_bank": "", "bank_mean": ""}
    if calibrate is None and gamma is None and question_bank is None:
        return {}
    bank = read_bank(question_bank)
    return _calibrate(encoder, bank.sha256, lambda: encode_bank(bank, encoder), gamma, stored)


def add_bank(recipe: Recipe, encoder: TextEncoder) -> Recipe:
    """Return a recipe with a bank to calibrate with, its own or the shipped one; gamma stays as it is.

    Raises:
        InputError: the encoder can read no language of the bank.
    """
    if recipe.bank_mean:
        return recipe
    means = encode_bank(read_bank(), encoder)
    return recipe._replace(question_bank=means.sha256, bank_mean=pack_mean(means.overall))


def _calibrate(
    encoder: TextEncoder, bank: str, encode: Callable[[], BankMeans], gamma: float | None, stored: Fingerprint | None
) -> dict[str, Any]:
    """Return the settings that calibrate with the bank of this checksum; encode it only if it is not stored."""
    mean = _stored_mean(stored or {}, encoder, bank) or pack_mean(encode().overall)
    return {"gamma": DEFAULT_GAMMA if gamma is None else gamma, "question_bank": bank, "bank_mean": mean}


def _stored_mean(stored: Fingerprint, encoder: TextEncoder, bank: str) -> str:
    """Return the bank mean of an existing collection if the same encoder made it from the same bank.

    On another machine the last bits of a mean may differ, and the collection must not change for that.
    """
    same_encoder = stored.get("encoder.sha256") == encoder.describe()["sha256"]
    same_bank = stored.get(f"{RECIPE_PREFIX}question_bank") == bank
    return str(stored.get(f"{RECIPE_PREFIX}bank_mean", "")) if same_encoder and same_bank else ""


def make_recipe(generator: Generator | None, languages: Sequence[str] = (), **settings: Any) -> Recipe:
    """Return a recipe of these settings, with defaults for the others.

    Languages and sampling default to the generator's, the fusion to the published one. Without a generator queries are
    given, and the recipe holds only the settings of their fusion.

    Raises:
        InputError: a setting is out of range, or is of a generation that does not take place.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if generator is None:
        for name in ("languages", "queries_per_language", *DRAWING):
            if name in given or (name == "languages" and languages):
                raise InputError(
                    f"{name} is a setting of the generation, but the queries are given.", f"leave {name} out"
                )
        recipe = Recipe(**given)
        check_fusion(recipe.fusion_settings)
        return recipe
    wanted = check_languages(generator, languages)
    drawing = {name: given.pop(name) for name in DRAWING if name in given}
    sampling = generator.choose_sampling(wanted, drawing)
    recipe = Recipe(wanted, sampling, seed=drawing.get("seed", 0), **given)
    check_count(recipe.queries_per_language)
    check_fusion(recipe.fusion_settings)
    return recipe


def check_count(queries_per_language: int) -> None:
    """Refuse fewer than one query a language.

    Raises:
        InputError: the number is below 1.
    """
    if queries_per_language < 1:
        raise InputError(
            f"queries_per_language must be at least 1, was: {show(queries_per_language)}.",
            "choose 1 or more, such as 5",
        )


def read_recipe(fingerprint: Fingerprint) -> Recipe:
    """Return the recipe in a collection's fingerprint.

    Raises:
        MismatchError: another version of xqg wrote the fingerprint, with other settings.
    """
    fields = {
        name.removeprefix(RECIPE_PREFIX): fingerprint[name] for name in fingerprint if name.startswith(RECIPE_PREFIX)
    }
    try:
        if QUERIES_FIELD in fingerprint:
            return Recipe(**fields)
        kind = fingerprint.get("generator.kind")
        if kind == LEXICON:
            return Recipe(tuple(fields.pop("languages")), **fields)
        of = ChatSampling if kind == LANGUAGE_MODEL else Sampling
        sampling = of(**{name: fields.pop(name) for name in of._fields})
        return Recipe(tuple(fields.pop("languages")), sampling, **fields)
    except (KeyError, TypeError) as error:
        raise MismatchError(
            f"the collection was made by another version of xqg, whose recipe is unreadable here ({error}).",
            "use that version, or ingest into a new collection",
        ) from error
