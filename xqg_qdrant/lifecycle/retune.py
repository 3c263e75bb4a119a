"""Another recipe for a stored collection: only the texts of queries are encoded, and none is generated.

The collection is the checkpoint, as for an ingest: each point tells by the hash of its recipe whether it is done. While
a retune is unfinished, the collection's fingerprint is the old one with the new one beside it, which refuses an ingest.

Knows which recipes the stored queries allow. Knows nothing of generators and engines.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any, NamedTuple

import numpy as np

from xqg_qdrant.augmentation.fusion import check_fusion, check_vectors, fuse, keep_relevant
from xqg_qdrant.augmentation.pipeline import find_terms
from xqg_qdrant.augmentation.recipe import RECIPE_PREFIX, Recipe, read_recipe
from xqg_qdrant.errors import InputError, MismatchError, StoreError
from xqg_qdrant.fingerprint import (
    RETUNING_FIELD,
    Fingerprint,
    hash_content,
    hash_recipe,
    refuse_mismatch,
)
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import PASSAGE_VECTOR, XQG_VECTOR, AugmentedPassage, GeneratedQuery, StoredPassage
from xqg_qdrant.retrieval import check_collection
from xqg_qdrant.stores import read_existing_fingerprint
from xqg_qdrant.stores.points import batched
from xqg_qdrant.stores.protocol import Store
from xqg_qdrant.streams import work_in_order

FUSED = ("alpha", "fusion", "renormalise", "min_score")
GENERATED = ("languages", "queries_per_language")

# So many passages bring some hundred queries: a few seconds of work.
CHUNK_SIZE = 32


class Plan(NamedTuple):
    """A retune that can be done: the fingerprint of the collection before and after, and how many passages lack it.

    It has `begun` where an earlier run left it unfinished.
    """

    collection: str
    before: Fingerprint
    after: Fingerprint
    begun: bool
    passages: int = 0

    @property
    def marked(self) -> Fingerprint:
        """Return the fingerprint that the collection has meanwhile."""
        return {**self.before, RETUNING_FIELD: self.after}

    @property
    def asked(self) -> tuple[int, int]:
        """Return how many queries a passage was generated before and after; both are 0 where they were given."""
        before, after = (_count_asked(read_recipe(fingerprint)) for fingerprint in (self.before, self.after))
        return before, after

    @property
    def dropped(self) -> int:
        """Return how many stored queries each passage loses for good; 0 where an earlier run has begun that."""
        before, after = self.asked
        return 0 if self.begun else max(before - after, 0)


class Retuned(NamedTuple):
    """What one write came to: passages, their queries that were encoded, and those the filter lets take no part."""

    passages: int
    queries: int
    left_out: int


class _Chunk(NamedTuple):
    """Points that only have to be written, and what to tell when they are."""

    points: list[AugmentedPassage]
    queries: int
    left_out: int


def plan_retune(store: Store, collection: str, encoder: Encoder, changes: Mapping[str, Any]) -> Plan:
    """Look at what is stored and decide whether it allows these changes of the recipe.

    Without changes the plan is to finish the retune that is unfinished.

    Raises:
        InputError: there is no such collection, or the stored queries do not allow a change.
        MismatchError: the collection was made with another encoder, or a retune to another recipe is unfinished.
    """
    check_collection(store, collection, encoder)
    stored = read_existing_fingerprint(store, collection)
    before = {name: value for name, value in stored.items() if name != RETUNING_FIELD}
    if changes:
        after = _change(collection, before, changes)
    elif RETUNING_FIELD in stored:
        after = stored[RETUNING_FIELD]
    else:
        raise InputError(
            f"no retune of {collection!r} is unfinished, and no setting is given.",
            "name what to change, such as --alpha 0.02.",
        )
    plan = Plan(collection, before, after, RETUNING_FIELD in stored)
    if plan.begun:
        refuse_mismatch(collection, stored, plan.marked)
    return plan._replace(passages=sum(1 for _ in _find_left(store, plan)))


def retune(
    store: Store, plan: Plan, encoder: Encoder, workers: int = 1, stop: Event | None = None
) -> abc.Generator[Retuned, None, None]:
    """Give every passage the vector of the new recipe; yield for each write when it is safe.

    In the end each point, and the fingerprint, is that of an ingest with the new recipe. Killed and run again it ends
    so too; until then searches go on, and find passages of both recipes.

    Args:
        store: used from the consuming thread alone.
        plan: of `plan_retune`.
        encoder: called from `workers` threads at once.
        workers: how many chunks are in work at once.
        stop: once set, the chunks that workers are at are finished and stored, and the retune is left unfinished.

    Raises:
        MismatchError: somebody else has begun another retune meanwhile, or stored points by another recipe.
    """
    if plan.before == plan.after:
        return
    if store.read_fingerprint(plan.collection) == plan.before:
        store.write_fingerprint(plan.collection, plan.marked)
    _check_unchanged(store, plan)
    work = partial(_retune, plan=plan, encoder=encoder)
    # An ingest that had looked at the fingerprint before may have written one more time.
    while any(True for _ in _find_left(store, plan)):
        with closing(work_in_order(work, _read_chunks(store, plan), workers, stop)) as batches:
            for done in batches:
                points = [point for chunk in done for point in chunk.points]
                _check_unchanged(store, plan)
                store.upsert(plan.collection, points)
                yield Retuned(len(points), sum(chunk.queries for chunk in done), sum(chunk.left_out for chunk in done))
        if stop is not None and stop.is_set():
            return
    _check_unchanged(store, plan)
    store.write_fingerprint(plan.collection, plan.after)


def is_kept(query: GeneratedQuery, recipe: Recipe) -> bool:
    """Say whether a stored query is one of those that an ingest with this recipe would store; all given ones are."""
    return recipe.given or (query.language in recipe.languages and query.number < recipe.queries_per_language)


def _change(collection: str, before: Fingerprint, changes: Mapping[str, Any]) -> Fingerprint:
    """Return the fingerprint with another recipe, once the stored queries are known to allow it."""
    stored = read_recipe(before)
    for name, value in changes.items():
        if name in GENERATED and stored.given:
            raise InputError(
                f"{name} says how queries are generated, but those of {collection!r} were given.", "leave it out."
            )
        if name not in FUSED + GENERATED:
            raise _needs_generation(collection, name, before.get(f"{RECIPE_PREFIX}{name}"), value)
    wanted = stored._replace(**changes)
    # The order of the languages changes nothing, so it must not tell two recipes apart.
    wanted = wanted._replace(languages=tuple(sorted(wanted.languages)))
    check_fusion(wanted.alpha, wanted.fusion, wanted.min_score)
    if wanted.alpha == 1 and wanted.fusion == "sum":
        raise InputError(
            f"alpha 1 with sum leaves nothing of a passage of {collection!r} that has no query.", "a smaller alpha."
        )
    if wanted.queries_per_language < 1:
        raise InputError(f"queries_per_language must be at least 1, was: {wanted.queries_per_language}")
    if not set(wanted.languages) <= set(stored.languages):
        raise _needs_generation(collection, "languages", stored.languages, wanted.languages)
    if wanted.queries_per_language > stored.queries_per_language:
        raise _needs_generation(
            collection, "queries_per_language", stored.queries_per_language, wanted.queries_per_language
        )
    kept = {name: value for name, value in before.items() if not name.startswith(RECIPE_PREFIX)}
    return kept | {f"{RECIPE_PREFIX}{name}": value for name, value in wanted.describe().items()}


def _needs_generation(collection: str, name: str, stored: object, wanted: object) -> InputError:
    return InputError(
        f"{name} of {collection!r} cannot be retuned: stored {stored!r}, wanted {wanted!r}, which takes queries that "
        "are not stored.",
        "ingest the corpus into a new collection.",
    )


def _count_asked(recipe: Recipe) -> int:
    return len(recipe.languages) * recipe.queries_per_language


def _find_left(store: Store, plan: Plan) -> Iterator[StoredPassage]:
    """Yield what is not retuned yet.

    Raises:
        MismatchError: a point is by a third recipe, so nobody knows which of its queries are those wanted.
    """
    before, after = hash_recipe(plan.before), hash_recipe(plan.after)
    for stored in store.scroll_stored(plan.collection):
        if stored.recipe == after:
            continue
        if stored.recipe != before:
            raise MismatchError(
                f"passage {stored.passage_id!r} of {plan.collection!r} was made by another recipe than the collection.",
                "delete it (xqg delete), and ingest it again after the retune.",
            )
        yield stored


def _read_chunks(store: Store, plan: Plan) -> Iterator[list[AugmentedPassage]]:
    for stored in batched(_find_left(store, plan), CHUNK_SIZE):
        yield list(store.read_points(plan.collection, [passage.passage_id for passage in stored]).values())


def _check_unchanged(store: Store, plan: Plan) -> None:
    """Make sure that nobody has deleted the collection or begun another retune since: a server lets others at it."""
    stored = store.read_fingerprint(plan.collection)
    if stored is None:
        raise StoreError(
            f"collection {plan.collection!r} was deleted while it was retuned.", "ingest the corpus again."
        )
    if stored != plan.marked:
        # The same retune by another process may have come to its end.
        refuse_mismatch(plan.collection, stored, plan.after)


def _retune(points: Sequence[AugmentedPassage], plan: Plan, encoder: Encoder) -> _Chunk:
    """Do a worker's part of a chunk, with one call of the encoder."""
    recipe, recipe_hash = read_recipe(plan.after), hash_recipe(plan.after)
    given = recipe.given
    kept = [tuple(query for query in point.generated_queries if is_kept(query, recipe)) for point in points]
    ends = np.cumsum([len(queries) for queries in kept])
    texts = [query.text for queries in kept for query in queries]
    vectors = check_vectors(encoder.encode_queries(texts), len(texts), encoder.dim)
    retuned, left_out = [], 0
    for point, queries, end in zip(points, kept, ends, strict=True):
        plain, own = point.vectors[PASSAGE_VECTOR], vectors[end - len(queries) : end]
        relevant = keep_relevant(plain, own, recipe.min_score)
        left_out += len(own) - len(relevant)
        fused = fuse(plain, relevant, recipe.alpha, recipe.fusion, recipe.renormalise)
        content_hash = point.content_hash
        # Where somebody has edited the payload, the plain vector is not of it: the next ingest has to see that.
        if content_hash == hash_content(point.passage, point.recipe, point.generated_queries if given else None):
            content_hash = hash_content(point.passage, recipe_hash, queries if given else None)
        retuned.append(
            replace(
                point,
                generated_queries=queries,
                vectors={XQG_VECTOR: fused, PASSAGE_VECTOR: plain},
                content_hash=content_hash,
                recipe=recipe_hash,
                terms=find_terms(point.passage, queries) if recipe.sparse else None,
            )
        )
    return _Chunk(retuned, len(texts), left_out)
