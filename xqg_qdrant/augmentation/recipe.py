"""How passages are augmented: the settings, checked, and as a fingerprint tells them.

Knows what a generator and a lexicon allow. Knows nothing of passages, vectors and stores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xqg_qdrant.augmentation.fusion import PUBLISHED_ALPHA, Fusion, check_fusion
from xqg_qdrant.errors import InputError, MismatchError
from xqg_qdrant.fingerprint import GIVEN, QUERIES_FIELD, Fingerprint
from xqg_qdrant.generation.lexicon import LEXICON, Lexicon
from xqg_qdrant.generation.onnx import QueryGenerator, Sampling
from xqg_qdrant.stores.points import OUR_NAMES

RECIPE_PREFIX = "recipe."


class Recipe(NamedTuple):
    """How passages are augmented; all of it decides the vectors, and is part of the fingerprint.

    `alpha` is the weight of the generated queries, `fusion` one of `sum` (as published) and `mean`; `renormalise` gives
    the augmented vector the length of the plain one. Queries whose dot product with the plain vector is below
    `min_score` are stored and take no part; None lets all take part. With `sparse` a point has a sparse vector of the
    terms in the passage and its queries. `names` are what other programs call the fields and the vector of a point, of
    `make_names`. The others say how queries are generated: by a
    lexicon, without `sampling` and seed; where queries are given there are no languages, and the rest means nothing.
    """

    languages: tuple[str, ...] = ()
    sampling: Sampling | None = None
    queries_per_language: int = 5
    alpha: float = PUBLISHED_ALPHA
    fusion: str = "sum"
    renormalise: bool = False
    seed: int = 0
    min_score: float | None = None
    sparse: bool = False
    names: Mapping[str, str] = OUR_NAMES

    @property
    def given(self) -> bool:
        """Tell whether the queries are given."""
        return not self.languages

    @property
    def fusion_settings(self) -> Fusion:
        """Return the settings that decide how vectors are fused."""
        return Fusion(self.alpha, self.fusion, self.renormalise, self.min_score)

    def describe(self) -> dict[str, Any]:
        """Return every setting that decides the vectors as JSON values, for a fingerprint."""
        # What is not asked for is not written: the fingerprint stays that of collections made before there was any.
        filtered = {} if self.min_score is None else {"min_score": self.min_score}
        stored = {**({"sparse": True} if self.sparse else {}), **({"names": dict(self.names)} if self.names else {})}
        fused = {"alpha": self.alpha, "fusion": self.fusion, "renormalise": self.renormalise, **filtered, **stored}
        if self.given:
            return fused
        asked = {"languages": list(self.languages), "queries_per_language": self.queries_per_language}
        drawn = {} if self.sampling is None else {**self.sampling._asdict(), "seed": self.seed}
        return {**asked, **drawn, **fused}


def make_recipe(generator: QueryGenerator | Lexicon | None, languages: Sequence[str] = (), **settings: Any) -> Recipe:
    """Fill in what is not set: the generator's own languages and sampling, and the published fusion.

    Without a generator, when queries are given, the recipe is about their fusion alone.

    Raises:
        InputError: a setting is out of its range, or is about a generation that does not take place.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if generator is None:
        for name in ("languages", "queries_per_language", "seed", *Sampling._fields):
            if name in given or (name == "languages" and languages):
                raise InputError(f"{name} says how queries are generated, but they are given here; leave it out")
        recipe = Recipe(**given)
        check_fusion(recipe.fusion_settings)
        return recipe
    # The order of the languages changes nothing, so it must not tell two recipes apart.
    wanted = tuple(sorted(languages or generator.languages))
    if isinstance(generator, Lexicon):
        if drawn := [name for name in ("seed", *Sampling._fields) if name in given]:
            raise InputError(f"{drawn[0]} says how a model draws queries, but a lexicon draws none.", "leave it out.")
        recipe = Recipe(wanted, **given)
    else:
        sampled = {name: given.pop(name) for name in Sampling._fields if name in given}
        recipe = Recipe(wanted, generator.sampling._replace(**sampled), **given)
        _check_sampling(generator, recipe)
    if recipe.queries_per_language < 1:
        raise InputError(f"queries_per_language must be at least 1, was: {recipe.queries_per_language}")
    check_fusion(recipe.fusion_settings)
    return recipe


def _check_sampling(generator: QueryGenerator, recipe: Recipe) -> None:
    sampling = recipe.sampling or generator.sampling
    for name, value in (("top_k", sampling.top_k), ("max_new_tokens", sampling.max_new_tokens)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, was: {value}")
    if sampling.max_new_tokens > generator.max_output_tokens:
        raise InputError(
            f"max_new_tokens must be at most {generator.max_output_tokens}, was: {sampling.max_new_tokens}"
        )
    if sampling.top_k > generator.vocabulary_size:
        raise InputError(f"top_k must be at most {generator.vocabulary_size}, was: {sampling.top_k}")
    if not sampling.temperature > 0:
        raise InputError(f"temperature must be above 0, was: {sampling.temperature}")
    generator.check_vocabulary(recipe.languages, sampling.vocabulary)


def read_recipe(fingerprint: Fingerprint) -> Recipe:
    """Return the recipe that a collection was made with.

    Raises:
        MismatchError: the fingerprint does not tell it: another version of xqg wrote it.
    """
    fields = {
        name.removeprefix(RECIPE_PREFIX): fingerprint[name] for name in fingerprint if name.startswith(RECIPE_PREFIX)
    }
    try:
        if fingerprint.get(QUERIES_FIELD) == GIVEN:
            return Recipe(**fields)
        if fingerprint.get("generator.kind") == LEXICON:
            return Recipe(tuple(fields.pop("languages")), **fields)
        sampling = Sampling(**{name: fields.pop(name) for name in Sampling._fields})
        return Recipe(tuple(fields.pop("languages")), sampling, **fields)
    except (KeyError, TypeError) as error:
        raise MismatchError(
            f"the collection was made by another version of xqg, whose recipe this one cannot read ({error}).",
            "use that version, or ingest into a new collection",
        ) from error
