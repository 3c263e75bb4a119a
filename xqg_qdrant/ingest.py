"""The pipeline: read, skip what is stored, generate, encode, augment, upsert; chunk by chunk, yielding progress.

The collection is the checkpoint: what of a chunk is stored with the right content hash needs no work. So an ingest that
was interrupted goes on where it stopped, and one of an edited corpus redoes only what changed.

Knows the order of the steps. Knows nothing of file formats, models' insides or engines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xqg_qdrant.augment import PUBLISHED_ALPHA, check_fusion, fuse
from xqg_qdrant.encoder import Encoder
from xqg_qdrant.errors import InputError
from xqg_qdrant.fingerprint import Fingerprint, hash_content, hash_recipe, make_fingerprint, refuse_mismatch
from xqg_qdrant.generator import Generation, Generator, Sampling
from xqg_qdrant.records import PASSAGE_VECTOR, XQG_VECTOR, AugmentedPassage, Passage, Reject
from xqg_qdrant.stores.points import batched
from xqg_qdrant.stores.protocol import Store

# A kill costs at most one chunk, and a chunk is one write to the store.
CHUNK_SIZE = 16


class Recipe(NamedTuple):
    """How passages are augmented; all of it decides the vectors, and is part of the fingerprint.

    `alpha` is the weight of the generated queries, `fusion` one of `sum` (as published) and `mean`; `renormalise` gives
    the augmented vector the length of the plain one.
    """

    languages: tuple[str, ...]
    sampling: Sampling
    queries_per_language: int = 5
    alpha: float = PUBLISHED_ALPHA
    fusion: str = "sum"
    renormalise: bool = False
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """Return every setting as JSON values, for a fingerprint."""
        flat = {**self._asdict(), **self.sampling._asdict(), "languages": list(self.languages)}
        del flat["sampling"]
        return flat


class Progress(NamedTuple):
    """What one chunk came to.

    `stored` passages were written, `unchanged` ones were there already, `rejects` could not be used. `asked` and
    `kept` count generated queries by language.
    """

    stored: int
    unchanged: int
    rejects: tuple[Reject, ...]
    asked: Mapping[str, int]
    kept: Mapping[str, int]

    @property
    def rows(self) -> int:
        """Return how many rows of the corpus the chunk held."""
        return self.stored + self.unchanged + len(self.rejects)


def make_recipe(generator: Generator, languages: Sequence[str] = (), **settings: Any) -> Recipe:
    """Fill in what is not set: the generator's own languages and sampling, and the published fusion.

    Raises:
        InputError: a setting is out of its range.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    sampled = {name: given.pop(name) for name in Sampling._fields if name in given}
    sampling = generator.sampling._replace(**sampled)
    # The order of the languages changes nothing, so it must not tell two recipes apart.
    recipe = Recipe(tuple(sorted(languages or generator.languages)), sampling, **given)
    for name, value in (
        ("queries_per_language", recipe.queries_per_language),
        ("top_k", sampling.top_k),
        ("max_new_tokens", sampling.max_new_tokens),
    ):
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
    check_fusion(recipe.alpha, recipe.fusion)
    return recipe


def prepare_collection(
    store: Store, collection: str, encoder: Encoder, generator: Generator, recipe: Recipe
) -> Fingerprint:
    """Create the collection, or make sure that the one that is there was made in the same way.

    Raises:
        MismatchError: it was made with other models or another recipe.
    """
    fingerprint = make_fingerprint(encoder.describe(), generator.describe(), recipe.describe())
    stored = store.read_fingerprint(collection)
    if stored is None:
        store.create_collection(collection, encoder.dim, fingerprint)
    else:
        refuse_mismatch(collection, stored, fingerprint)
    return fingerprint


def ingest(
    rows: Iterable[Passage | Reject],
    store: Store,
    collection: str,
    encoder: Encoder,
    generator: Generator,
    recipe: Recipe,
) -> Iterator[Progress]:
    """Store the passages with augmented vectors; yield after each chunk, when it is safe on disk.

    Chunks are cut by position in the input. A passage's queries and vectors depend on the passage and the recipe
    alone, so an interrupted ingest that is run again ends with the same points as an uninterrupted one.
    """
    recipe_hash = hash_recipe(prepare_collection(store, collection, encoder, generator, recipe))
    for chunk in batched(rows, CHUNK_SIZE):
        rejects = [row for row in chunk if isinstance(row, Reject)]
        passages = [row for row in chunk if isinstance(row, Passage)]
        stored = store.read_content_hashes(collection, [passage.passage_id for passage in passages])
        hashed = [(passage, hash_content(passage, recipe_hash)) for passage in passages]
        missing = [(passage, content) for passage, content in hashed if stored.get(passage.passage_id) != content]
        points, asked, kept = [], Counter[str](), Counter[str]()
        for passage, content in missing:
            generation = generator.generate(
                passage, recipe.languages, recipe.queries_per_language, recipe.seed, recipe.sampling
            )
            asked.update(dict.fromkeys(recipe.languages, generation.asked))
            kept.update(query.language for query in generation.queries)
            point = _augment(passage, generation, encoder, recipe, content, recipe_hash)
            if isinstance(point, Reject):
                rejects.append(point)
            else:
                points.append(point)
        if points:
            store.upsert(collection, points)
        yield Progress(len(points), len(passages) - len(missing), tuple(rejects), asked, kept)


def _augment(
    passage: Passage, generation: Generation, encoder: Encoder, recipe: Recipe, content_hash: str, recipe_hash: str
) -> AugmentedPassage | Reject:
    plain = encoder.encode_passages([f"{passage.title} {passage.text}".strip()])[0]
    queries = encoder.encode_queries([query.text for query in generation.queries])
    fused = fuse(plain, queries, recipe.alpha, recipe.fusion, recipe.renormalise)
    if not (np.isfinite(plain).all() and np.isfinite(fused).all()):
        return Reject(passage.passage_id, 0, "the encoder gave a vector that is not finite", passage.text)
    vectors = {XQG_VECTOR: fused, PASSAGE_VECTOR: plain}
    return AugmentedPassage(passage, generation.queries, vectors, content_hash, recipe_hash)
