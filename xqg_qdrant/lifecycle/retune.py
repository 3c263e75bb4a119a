"""Change the recipe of a stored collection: encode its queries again, but generate none.

The collection is the checkpoint, as for an ingest: the recipe hash of each point shows whether it is done. While a
retune is unfinished, the collection's fingerprint is the old one with the new one beside it, so an ingest is refused.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np

from xqg_qdrant.augmentation.fusion import Fusion, augment_passage, check_fusion, check_vectors, make_plain
from xqg_qdrant.augmentation.pipeline import find_terms
from xqg_qdrant.augmentation.recipe import RECIPE_PREFIX, Recipe, change_calibration, check_count, read_recipe
from xqg_qdrant.errors import InputError, MismatchError, StoreError
from xqg_qdrant.fingerprint import (
    EARLIER_FIELD,
    RETUNING_FIELD,
    Fingerprint,
    hash_content,
    hash_plain,
    hash_recipe,
    is_plain,
    refuse_mismatch,
    without_progress,
)
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.records import PASSAGE_VECTOR, XQG_VECTOR, AugmentedPassage, GeneratedQuery, StoredPassage
from xqg_qdrant.retrieval import check_collection
from xqg_qdrant.stores import read_existing_fingerprint
from xqg_qdrant.stores.protocol import Store
from xqg_qdrant.streams import batched, work_in_order
from xqg_qdrant.text import show

GENERATED = ("languages", "queries_per_language")

# A chunk has some hundred queries: a few seconds of work.
CHUNK_SIZE = 32
# Another pass is needed only if an ingest wrote meanwhile.
MOST_PASSES = 5


class Plan(NamedTuple):
    """A retune that the stored queries allow.

    Attributes:
        collection: Its name.
        before: Fingerprint of the collection without the retune.
        after: Fingerprint after the retune.
        begun: Whether an earlier run left this retune unfinished.
        passages: Number of passages still to retune.
    """

    collection: str
    before: Fingerprint
    after: Fingerprint
    begun: bool
    passages: int = 0

    @property
    def marked(self) -> Fingerprint:
        """Return the fingerprint of the collection during the retune."""
        return {**self.before, RETUNING_FIELD: self.after}

    @property
    def asked(self) -> tuple[int, int]:
        """Return the number of queries generated for a passage, before and after; 0 for given queries."""
        before, after = (_count_queries(read_recipe(fingerprint)) for fingerprint in (self.before, self.after))
        return before, after

    @property
    def dropped(self) -> int:
        """Return how many stored queries each passage loses for good; 0 where an earlier run has begun that."""
        before, after = self.asked
        return 0 if self.begun else max(before - after, 0)


class Retuned(NamedTuple):
    """The result of one write: passages, their encoded queries, and how many of those the filter excludes."""

    passages: int
    queries: int
    left_out: int


class _Chunk(NamedTuple):
    """Points ready to be written, and the counts to yield once they are."""

    points: list[AugmentedPassage]
    queries: int
    left_out: int


def plan_retune(
    store: Store,
    collection: str,
    encoder: TextEncoder,
    changes: Mapping[str, Any],
    *,
    calibrate: bool | None = None,
    gamma: float | None = None,
    question_bank: Path | None = None,
) -> Plan:
    """Plan these changes of the recipe, if the stored queries allow them.

    Without changes, plan to finish an unfinished retune.

    Args:
        store: the store of the collection.
        collection: its name.
        encoder: the one that the collection was made with.
        changes: settings of `Recipe`, other than those of the calibration.
        calibrate: whether to calibrate; None leaves that as it is, like the next two.
        gamma: the weight of the calibration.
        question_bank: JSONL file of questions to calibrate with.

    Raises:
        InputError: there is no such collection, the bank cannot be used, or the stored queries do not allow a change.
        MismatchError: the collection was made with another encoder, or a retune to another recipe is unfinished.
    """
    check_collection(store, collection, encoder)
    stored = read_existing_fingerprint(store, collection)
    if EARLIER_FIELD in stored:
        raise MismatchError(
            f"some queries of {collection!r} are still to be replaced.",
            f"finish it: xqg enrich --collection {collection}",
        )
    before = without_progress(stored)
    changes = {**changes, **change_calibration(encoder, calibrate, gamma, question_bank, stored)}
    if changes:
        after = _change(collection, before, changes)
    elif RETUNING_FIELD in stored:
        after = stored[RETUNING_FIELD]
    else:
        raise InputError(
            f"{collection!r} has no unfinished retune, and no setting is given.",
            "name a setting to change, such as --alpha 0.02",
        )
    plan = Plan(collection, before, after, RETUNING_FIELD in stored)
    if plan.begun:
        refuse_mismatch(collection, stored, plan.marked)
    return plan._replace(passages=sum(1 for _ in _find_pending(store, plan)))


def retune(
    store: Store, plan: Plan, encoder: TextEncoder, workers: int = 1, stop: Event | None = None
) -> abc.Generator[Retuned, None, None]:
    """Store the vectors of the new recipe for every passage; yield after each write.

    The points and the fingerprint end up the same as those of an ingest with the new recipe, also if the retune is
    killed and run again. Until then searches work, and find passages of both recipes.

    Args:
        store: used only by the consuming thread.
        plan: from `plan_retune`.
        encoder: called from `workers` threads at once.
        workers: number of chunks worked on at once.
        stop: once set, the chunks that workers have begun are finished and stored, and the retune stays unfinished.

    Raises:
        MismatchError: another process began another retune, or stored points by another recipe.
        StoreError: the collection was deleted.
    """
    if plan.before == plan.after:
        return
    if store.read_fingerprint(plan.collection) == plan.before:
        store.write_fingerprint(plan.collection, plan.marked)
    _check_unchanged(store, plan)
    work = partial(_retune, plan=plan, encoder=encoder)
    passes = 0
    # An ingest that read the fingerprint before the mark may have written once more.
    while any(True for _ in _find_pending(store, plan)):
        passes += 1
        if passes > MOST_PASSES:
            raise StoreError(
                f"{store.location} still returns old points of {plan.collection!r} after {MOST_PASSES} rewrites.",
                "end other programs that write to the collection, and look at the server's log",
            )
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
    """Return whether an ingest with this recipe would store this query; true of every given query."""
    return recipe.given or (query.language in recipe.languages and query.number < recipe.queries_per_language)


def _change(collection: str, before: Fingerprint, changes: Mapping[str, Any]) -> Fingerprint:
    """Return the fingerprint with the changed recipe.

    Raises:
        InputError: a setting is out of range, or the stored queries do not allow the change.
    """
    stored = read_recipe(before)
    for name, value in changes.items():
        if name in GENERATED and is_plain(before):
            raise InputError(f"{collection!r} has no queries yet.", f"write them: xqg enrich --collection {collection}")
        if name in GENERATED and stored.given:
            raise InputError(
                f"{name} is a setting of the generation, but the queries of {collection!r} were given.", "leave it out"
            )
        if name not in Fusion._fields + GENERATED:
            raise _needs_generation(collection, name, before.get(f"{RECIPE_PREFIX}{name}"), value)
    wanted = stored._replace(**changes)
    # Sorted, so that the order of the languages does not change the fingerprint.
    wanted = wanted._replace(languages=tuple(sorted(wanted.languages)))
    check_fusion(wanted.fusion_settings)
    if wanted.alpha == 1 and wanted.fusion == "sum":
        raise InputError(
            f"alpha 1 with sum leaves nothing of a passage of {collection!r} that has no query.",
            "choose a smaller alpha",
        )
    check_count(wanted.queries_per_language)
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
        f"{name} of {collection!r} cannot be retuned: stored {show(stored)}, wanted {show(wanted)}, which needs "
        "queries that are not stored.",
        "ingest the corpus into a new collection",
    )


def _count_queries(recipe: Recipe) -> int:
    return len(recipe.languages) * recipe.queries_per_language


def _find_pending(store: Store, plan: Plan) -> Iterator[StoredPassage]:
    """Yield the passages that are still to be retuned.

    Raises:
        MismatchError: a point has a third recipe, so it is unknown which of its queries are wanted.
    """
    before = {hash_recipe(plan.before), hash_plain(plan.before)}
    after = {hash_recipe(plan.after), hash_plain(plan.after)}
    for stored in store.scroll_stored(plan.collection):
        if stored.recipe in after:
            continue
        if stored.recipe not in before:
            raise MismatchError(
                f"passage {stored.passage_id!r} of {plan.collection!r} was made by another recipe than the collection.",
                "delete it (xqg delete), and ingest it again after the retune",
            )
        yield stored


def _read_chunks(store: Store, plan: Plan) -> Iterator[list[AugmentedPassage]]:
    for stored in batched(_find_pending(store, plan), CHUNK_SIZE):
        yield list(store.read_points(plan.collection, [passage.passage_id for passage in stored]).values())


def _check_unchanged(store: Store, plan: Plan) -> None:
    """Refuse a collection that another client of the server has deleted or begun to retune otherwise.

    Raises:
        StoreError: it was deleted.
        MismatchError: it has another fingerprint.
    """
    stored = store.read_fingerprint(plan.collection)
    if stored is None:
        raise StoreError(f"collection {plan.collection!r} was deleted during the retune.", "ingest the corpus again")
    if stored != plan.marked:
        # Another process may have finished the same retune.
        refuse_mismatch(plan.collection, stored, plan.after)


def _retune(points: Sequence[AugmentedPassage], plan: Plan, encoder: TextEncoder) -> _Chunk:
    """Retune a chunk with one call of the encoder; a worker runs this."""
    recipe, before_plain = read_recipe(plan.after), hash_plain(plan.before)
    kept = [tuple(query for query in point.generated_queries if is_kept(query, recipe)) for point in points]
    ends = np.cumsum([len(queries) for queries in kept])
    texts = [query.text for queries in kept for query in queries]
    vectors = check_vectors(encoder.encode_queries(texts), len(texts), encoder.dim)
    retuned, left_out = [], 0
    for point, queries, end in zip(points, kept, ends, strict=True):
        vector, own = point.vectors[PASSAGE_VECTOR], vectors[end - len(queries) : end]
        plain = point.recipe == before_plain
        settings = make_plain(recipe.fusion_settings) if plain else recipe.fusion_settings
        fused, filtered = augment_passage(vector, own, settings)
        left_out += filtered
        recipe_hash = hash_plain(plan.after) if plain else hash_recipe(plan.after)
        given = recipe.given and not plain
        content_hash = point.content_hash
        # A payload that was edited no longer matches the plain vector; keep the old hash so the next ingest redoes it.
        if content_hash == hash_content(point.passage, point.recipe, point.generated_queries if given else None):
            content_hash = hash_content(point.passage, recipe_hash, queries if given else None)
        retuned.append(
            replace(
                point,
                generated_queries=queries,
                vectors={XQG_VECTOR: fused, PASSAGE_VECTOR: vector},
                content_hash=content_hash,
                recipe=recipe_hash,
                terms=find_terms(point.passage, queries) if recipe.sparse else None,
            )
        )
    return _Chunk(retuned, len(texts), left_out)
