"""Write the queries of passages that are stored already, in place.

To be done are the points whose recipe is not the collection's. Some have no queries yet (`xqg ingest --plain`); others
have those of an earlier generator, prompt or set of languages. Plain vectors stay, and so do queries that the new
recipe would write in the same way. Points are replaced whole, so a search finds each passage as it was or as it will
be.
"""

from __future__ import annotations

from collections import Counter, abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from threading import Event
from typing import Any, NamedTuple

from xqg_qdrant.augmentation.pipeline import Progress, StoredRow, ingest
from xqg_qdrant.augmentation.recipe import (
    PUBLISHED,
    SUITED,
    Recipe,
    check_count,
    choose_language_check,
    read_recipe,
)
from xqg_qdrant.errors import InputError, StoreError
from xqg_qdrant.fingerprint import (
    EARLIER_FIELD,
    GIVEN,
    QUERIES_FIELD,
    Fingerprint,
    hash_content,
    hash_plain,
    hash_recipe,
    is_plain,
    make_fingerprint,
    refuse_mismatch,
    without_progress,
)
from xqg_qdrant.generation import Generator, check_languages
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.lifecycle.copying import ALL, Part
from xqg_qdrant.records import PASSAGE_VECTOR, AugmentedPassage
from xqg_qdrant.retrieval import check_collection
from xqg_qdrant.stores import read_existing_fingerprint
from xqg_qdrant.stores.protocol import Store
from xqg_qdrant.streams import batched

READ_BATCH = 64


class Plan(NamedTuple):
    """An enrichment of a collection.

    Attributes:
        collection: Its name.
        before: Its fingerprint.
        after: The fingerprint that it gets.
        earlier: The fingerprints of points whose queries are replaced.
        plain: Number of passages without queries.
        replaced: Number of passages with queries that the recipe does not want, or that lack some.
        part: The passages that this process enriches; only these are counted.
    """

    collection: str
    before: Fingerprint
    after: Fingerprint
    earlier: Sequence[Fingerprint]
    plain: int = 0
    replaced: int = 0
    part: Part = ALL

    @property
    def marked(self) -> Fingerprint:
        """Return the fingerprint of the collection until all points have its recipe."""
        return {**self.after, **({EARLIER_FIELD: list(self.earlier)} if self.earlier else {})}

    @property
    def recipe(self) -> Recipe:
        """Return the recipe that points get."""
        return read_recipe(self.after)

    @property
    def drops(self) -> bool:
        """Return whether stored queries are dropped for good."""
        count = self.recipe.queries_per_language
        return self.replaced > 0 and any(
            set(old.languages) - set(find_kept(earlier, self.after)) or old.queries_per_language > count
            for earlier in self.earlier
            for old in (read_recipe(earlier),)
        )


def plan_enrichment(
    store: Store,
    collection: str,
    encoder: TextEncoder,
    generator: Generator,
    *,
    named: bool = True,
    languages: Sequence[str] = (),
    added: bool = False,
    queries_per_language: int | None = None,
    drawing: Mapping[str, Any] | None = None,
    part: Part = ALL,
) -> Plan:
    """Plan to write the queries that a collection lacks; settings that are not given stay as they are.

    Args:
        store: the store of the collection.
        collection: its name.
        encoder: the one that the collection was made with.
        generator: writes the queries.
        named: whether the generator was chosen on purpose, so that it may replace another one.
        languages: of the queries; by default those of the collection, or the generator's.
        added: whether the languages are added to those of the collection.
        queries_per_language: queries for each passage and language.
        drawing: settings of `DRAWING`.
        part: the share of the passages to enrich.

    Raises:
        InputError: there is no such collection, its queries were given, or a setting cannot be used.
        MismatchError: it was made with another encoder, or is being retuned.
    """
    check_collection(store, collection, encoder)
    stored = read_existing_fingerprint(store, collection)
    before = without_progress(stored)
    refuse_mismatch(collection, stored, before)
    if stored.get(QUERIES_FIELD) == GIVEN:
        raise InputError(
            f"the queries of {collection!r} were given.", "give those that are missing: xqg ingest --queries"
        )
    recipe, described = read_recipe(stored), generator.describe()
    same = not is_plain(stored) and described == _pick(stored, "generator.")
    if not (named or same or is_plain(stored)):
        raise InputError(
            f"another generator wrote the queries of {collection!r}.", "name that one, or a new one, with --generator"
        )
    wanted = tuple(dict.fromkeys([*recipe.languages, *languages])) if added else tuple(languages) or recipe.languages
    wanted = check_languages(generator, wanted)
    drawing = {name: value for name, value in (drawing or {}).items() if value is not None}
    if same and recipe.sampling is not None:
        kept = {name: value for name, value in recipe.sampling._asdict().items() if value is not None}
        drawing = {**kept, "seed": recipe.seed, **drawing}
    sampling = generator.choose_sampling(wanted, drawing)
    defaults = SUITED if recipe.renormalise else PUBLISHED
    count = queries_per_language or (
        defaults["queries_per_language"] if is_plain(stored) else recipe.queries_per_language
    )
    check_count(count)
    check = choose_language_check(stored) if generator.writes_sentences else ""
    recipe = recipe._replace(
        languages=wanted,
        sampling=sampling,
        seed=drawing.get("seed", 0),
        queries_per_language=count,
        language_check=check,
    )
    after = make_fingerprint(encoder.describe(), described, recipe.describe())
    former = [*([] if is_plain(stored) else [before]), *stored.get(EARLIER_FIELD, ())]
    plan = Plan(collection, stored, after, [one for one in former if one != after], part=part)
    counts = Counter(found.recipe == hash_plain(after) for found in _find_pending(store, plan))
    return plan._replace(plain=counts[True], replaced=counts[False])


def enrich(
    store: Store,
    plan: Plan,
    encoder: TextEncoder,
    generator: Generator,
    workers: int = 1,
    stop: Event | None = None,
    newest_by: str = "",
) -> abc.Generator[Progress, None, None]:
    """Write the missing queries and augment the points; yield after each chunk is stored.

    Processes with different parts work at once. Points that are changed or deleted meanwhile are left alone; points
    that are added are for the next enrichment.

    Args:
        store: used only by the consuming thread.
        plan: from `plan_enrichment`.
        encoder: called from `workers` threads at once.
        generator: called from `workers` threads at once.
        workers: number of chunks worked on at once.
        stop: once set, the chunks that workers have begun are finished and stored.
        newest_by: metadata field, such as a date; the passages with the greatest value come first.

    Raises:
        MismatchError: another process began to change the collection otherwise.
        StoreError: the collection was deleted.
    """
    _begin(store, plan)
    rows = _read_rows(store, plan, newest_by)
    with closing(
        ingest(rows, store, plan.collection, encoder, generator, plan.recipe, workers, stop, plan.after)
    ) as steps:
        yield from steps
    if plan.earlier and not (stop is not None and stop.is_set()):
        finish(store, plan)


def finish(store: Store, plan: Plan) -> None:
    """Forget the earlier fingerprints if no point has them any more."""
    known = {hash_recipe(plan.after), hash_plain(plan.after)}
    if any(stored.recipe not in known for stored in store.scroll_stored(plan.collection)):
        return
    if store.read_fingerprint(plan.collection) == plan.marked:
        store.write_fingerprint(plan.collection, plan.after)


def find_kept(earlier: Fingerprint, after: Fingerprint) -> tuple[str, ...]:
    """Return the languages whose queries by an earlier recipe are those that the new one would write."""
    old, new = read_recipe(earlier), read_recipe(after)
    if _pick(earlier, "generator.") != _pick(after, "generator."):
        return ()
    if (old.sampling, old.seed, old.language_check) != (new.sampling, new.seed, new.language_check):
        return ()
    enough = old.queries_per_language >= new.queries_per_language
    return tuple(language for language in new.languages if enough and language in old.languages)


def _begin(store: Store, plan: Plan) -> None:
    stored = store.read_fingerprint(plan.collection)
    if stored is None:
        raise StoreError(f"collection {plan.collection!r} was deleted.", "ingest the corpus again")
    if stored == plan.before and stored != plan.marked:
        store.write_fingerprint(plan.collection, plan.marked)
    else:
        # Another process may have begun the same enrichment.
        refuse_mismatch(plan.collection, stored, plan.after)


def _find_pending(store: Store, plan: Plan) -> Iterator[Any]:
    after = hash_recipe(plan.after)
    for stored in store.scroll_stored(plan.collection):
        if stored.recipe != after and plan.part.holds(stored.passage_id):
            yield stored


def _read_rows(store: Store, plan: Plan, newest_by: str) -> Iterator[StoredRow]:
    ids: Iterable[str] = (stored.passage_id for stored in _find_pending(store, plan))
    if newest_by:
        ids = _sort_newest(store, plan.collection, ids, newest_by)
    kept = {hash_recipe(earlier): find_kept(earlier, plan.after) for earlier in plan.earlier}
    recipe = plan.recipe
    for batch in batched(ids, READ_BATCH):
        points = store.read_points(plan.collection, batch)
        # In the order of the ids.
        yield from (_make_row(points[passage_id], kept, recipe) for passage_id in batch if passage_id in points)


def _make_row(point: AugmentedPassage, kept: Mapping[str, Sequence[str]], recipe: Recipe) -> StoredRow:
    # A payload that was edited matches neither the plain vector nor the queries.
    intact = point.content_hash == hash_content(point.passage, point.recipe)
    reused = kept.get(point.recipe, ()) if intact else ()
    queries = tuple(
        query
        for query in point.generated_queries
        if query.language in reused and query.number < recipe.queries_per_language
    )
    languages = tuple(language for language in recipe.languages if language not in reused)
    vector = point.vectors[PASSAGE_VECTOR] if intact else None
    return StoredRow(point, queries, languages, vector, before=point.content_hash)


def _sort_newest(store: Store, collection: str, ids: Iterable[str], field: str) -> list[str]:
    """Return the ids by descending value of a metadata field: numbers, then texts, then passages without it."""
    keyed = []
    for batch in batched(ids, READ_BATCH):
        for passage_id, point in store.read_points(collection, batch).items():
            value = point.passage.metadata.get(field)
            number = float(value) if isinstance(value, int | float) else 0.0
            text = value if isinstance(value, str) else ""
            keyed.append((isinstance(value, int | float), number, text, passage_id))
    return [passage_id for *_, passage_id in sorted(keyed, reverse=True)]


def _pick(fingerprint: Fingerprint, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in fingerprint.items() if name.startswith(prefix)}
