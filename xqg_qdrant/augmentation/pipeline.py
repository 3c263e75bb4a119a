"""Ingest a corpus chunk by chunk: read, skip stored passages, generate, encode, augment, upsert.

The collection is the checkpoint: a passage stored with the right content hash needs no work. So an interrupted ingest
resumes where it stopped, and an ingest of an edited corpus redoes only what changed.

Several chunks are in flight at once, one for each worker. The thread that consumes the progress reads, looks up and
writes. So only one thread uses the store, points are written in corpus order, and the chunks in flight bound memory.
"""

from __future__ import annotations

from collections import Counter, abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from threading import Event
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from xqg_qdrant.augmentation.fusion import augment_passage, check_vectors, find_fault
from xqg_qdrant.augmentation.recipe import Recipe
from xqg_qdrant.corpus.dead_letters import Reasons
from xqg_qdrant.errors import InputError, StoreError
from xqg_qdrant.fingerprint import (
    Fingerprint,
    hash_content,
    hash_recipe,
    make_fingerprint,
    refuse_mismatch,
)
from xqg_qdrant.generation import INSTANT, SLOW, Generation, Generator
from xqg_qdrant.generation.checks import REASONS, Dropped
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import (
    PASSAGE_VECTOR,
    XQG_VECTOR,
    AugmentedPassage,
    GeneratedQuery,
    Passage,
    QueriedPassage,
    Reject,
)
from xqg_qdrant.streams import batched, work_in_order
from xqg_qdrant.text import find_term_ids

Row: TypeAlias = Passage | QueriedPassage | Reject

# A chunk is a few seconds of work; a kill costs each worker one chunk.
CHUNK_SIZE = 16
# For cheap passages: no model generates queries, or a GPU does.
CHEAP_CHUNK_SIZE = 128


class PointStore(Protocol):
    """The part of a store that an ingest uses; `Store` documents the methods."""

    def read_fingerprint(self, collection: str, /) -> dict[str, Any] | None:
        """Return the collection's fingerprint."""

    def create_collection(self, collection: str, dim: int, fingerprint: Mapping[str, Any], /) -> None:
        """Create a collection."""

    def read_content_hashes(self, collection: str, passage_ids: Sequence[str], /) -> dict[str, str]:
        """Return the content hashes of stored passages."""

    def upsert(self, collection: str, points: Sequence[AugmentedPassage], /) -> None:
        """Store points."""

    def bulk_load(self, collection: str, /, fast: bool) -> AbstractContextManager[None]:
        """Prepare for many points."""


class Progress(NamedTuple):
    """The result of one chunk.

    Attributes:
        stored: Number of passages written.
        unchanged: Number of passages already stored.
        rejects: Rows that could not be used.
        asked: Number of queries requested from the generator, by language; empty for given queries.
        kept: Number of queries stored, by language.
        bare: Number of written passages without queries.
        left_out: Number of stored queries that the filter excludes from the fusion.
        dropped: Number of generated queries dropped by the checks, by language and reason.
    """

    stored: int
    unchanged: int
    rejects: tuple[Reject, ...]
    asked: Mapping[str, int]
    kept: Mapping[str, int]
    bare: int = 0
    left_out: int = 0
    dropped: Mapping[Dropped, int] = MappingProxyType({})

    @property
    def rows(self) -> int:
        """Return the number of corpus rows in the chunk."""
        return self.stored + self.unchanged + len(self.rejects)


class Totals:
    """The sum of an ingest's progress; rejected rows are counted by their reasons, not kept."""

    def __init__(self) -> None:
        self.stored = self.unchanged = self.rejected = self.bare = self.left_out = 0
        self.asked: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.dropped: Counter[Dropped] = Counter()
        self.reasons = Reasons()

    def add(self, progress: Progress) -> None:
        """Add one chunk."""
        self.stored += progress.stored
        self.unchanged += progress.unchanged
        self.rejected += len(progress.rejects)
        self.bare += progress.bare
        self.left_out += progress.left_out
        self.asked.update(progress.asked)
        self.kept.update(progress.kept)
        self.dropped.update(progress.dropped)
        for reject in progress.rejects:
            self.reasons.add(reject)

    def to_progress(self, rejects: Iterable[Reject]) -> Progress:
        """Return the sum as one chunk, with the rejects of all chunks."""
        counts = (self.asked, self.kept, self.bare, self.left_out, self.dropped)
        return Progress(self.stored, self.unchanged, tuple(rejects), *counts)

    def yields(self) -> dict[str, dict[str, int]]:
        """Return how many queries of each language were asked for, kept, and dropped for each of `REASONS`."""
        return {
            language: {"asked": asked, "kept": self.kept[language]}
            | {reason: self.dropped[Dropped(language, reason)] for reason in REASONS}
            for language, asked in self.asked.items()
        }

    @property
    def rows(self) -> int:
        """Return how many rows there were."""
        return self.stored + self.unchanged + self.rejected


class Chunk(NamedTuple):
    """A chunk after the lookup in the store: its missing passages with their content hashes."""

    missing: list[tuple[QueriedPassage, str]]
    unchanged: int
    rejects: list[Reject]


class Augmented(NamedTuple):
    """A chunk ready to be written, and the progress to yield once it is."""

    points: list[AugmentedPassage]
    progress: Progress


def ingest(
    rows: Iterable[Row],
    store: PointStore,
    collection: str,
    encoder: Encoder,
    generator: Generator | None,
    recipe: Recipe,
    workers: int = 1,
    stop: Event | None = None,
) -> abc.Generator[Progress, None, None]:
    """Store passages with augmented vectors; yield after each chunk is stored.

    Chunks are cut by position in the input, and yielded in that order. A passage's queries and vectors depend only on
    the passage and the recipe. So any number of workers, and any interruption followed by a rerun, gives the same
    points. An error in any step ends all of them; so does closing this iterator. Both wait for the chunks that workers
    have begun.

    Args:
        rows: passages with unique ids; with their queries if there is no generator.
        store: used only by the consuming thread.
        collection: its name; created if missing.
        encoder: called from `workers` threads at once.
        generator: also called from `workers` threads. None if the rows have their queries, which are
            then stored as they are.
        recipe: from `make_recipe`, for the same generator.
        workers: number of chunks worked on at once; at most four times as many are in memory.
        stop: once set, nothing more is read, and the chunks that workers have begun are finished and stored.

    Raises:
        MismatchError: the collection was made with other models or another recipe.
        InputError: the recipe is for given queries and there is a generator, or vice versa; or the rows cannot be read
            to the end, which is raised after those before are stored.
    """
    pace = INSTANT if generator is None else generator.pace
    fingerprint = describe(encoder, generator, recipe)
    recipe_hash = hash_recipe(fingerprint)
    damage: list[InputError] = []
    generates = generator is not None
    work = partial(augment, encoder=encoder, generator=generator, recipe=recipe, recipe_hash=recipe_hash)
    with ExitStack() as loading:
        target = _Target(store, collection, encoder.dim, fingerprint, pace == INSTANT, loading)
        chunks = cut_chunks(until_damage(rows, damage), cheap=pace != SLOW)
        looked_up = (look_up(chunk, target.stored, collection, generates, recipe_hash) for chunk in chunks)
        batches = loading.enter_context(closing(work_in_order(work, looked_up, workers, stop)))
        for done in batches:
            # One write for all that wait: each pays for a flush to the disk.
            target.write([point for augmented in done for point in augmented.points])
            yield from (augmented.progress for augmented in done)
    if target.stored is not None:
        # A retune may have begun just before the last write.
        check_unchanged(store, collection, fingerprint)
    if damage:
        raise damage[0]


class _Target:
    """The collection of an ingest, created with its first points: a run that stores none leaves none.

    `stored` is the store once the collection exists, None before.
    """

    def __init__(
        self, store: PointStore, collection: str, dim: int, fingerprint: Fingerprint, fast: bool, loading: ExitStack
    ) -> None:
        """Compare the fingerprint of an existing collection.

        Raises:
            MismatchError: the collection was made with other models or another recipe.
        """
        self._store, self._collection, self._dim, self._fingerprint = store, collection, dim, fingerprint
        self._fast, self._loading = fast, loading
        self.stored: PointStore | None = None
        if (existing := store.read_fingerprint(collection)) is not None:
            refuse_mismatch(collection, existing, fingerprint)
            self._prepare()

    def write(self, points: Sequence[AugmentedPassage]) -> None:
        """Store points; create the collection before the first ones."""
        if points and self.stored is None:
            create_collection(self._store, self._collection, self._dim, self._fingerprint)
            self._prepare()
        write(points, self._store, self._collection, self._fingerprint)

    def _prepare(self) -> None:
        self._loading.enter_context(self._store.bulk_load(self._collection, fast=self._fast))
        self.stored = self._store


def describe(encoder: Encoder, generator: Generator | None, recipe: Recipe) -> Fingerprint:
    """Return the fingerprint of the models and the recipe.

    Raises:
        InputError: the recipe is for given queries and there is a generator, or vice versa.
    """
    drawn = None if generator is None else generator.sampling
    if recipe.given != (generator is None) or type(drawn) is not type(recipe.sampling):
        raise InputError("the recipe was made for another generator.", "make it with make_recipe(generator)")
    return make_fingerprint(encoder.describe(), None if generator is None else generator.describe(), recipe.describe())


def until_damage(rows: Iterable[Row], damage: list[InputError]) -> Iterator[Row]:
    """Yield rows until one cannot be read; put that error in `damage`, to be raised later."""
    try:
        yield from rows
    except InputError as error:
        damage.append(error)


def cut_chunks(rows: Iterable[Row], cheap: bool) -> Iterator[list[Row]]:
    """Cut rows into chunks by position; larger ones if passages are `cheap`."""
    return batched(rows, CHEAP_CHUNK_SIZE if cheap else CHUNK_SIZE)


def create_collection(store: PointStore, collection: str, dim: int, fingerprint: Fingerprint) -> None:
    """Create a collection, or accept one that another ingest with the same recipe created first."""
    try:
        store.create_collection(collection, dim, fingerprint)
    except StoreError:
        # With the same recipe both make the same points.
        stored = store.read_fingerprint(collection)
        if stored is None:
            raise
        refuse_mismatch(collection, stored, fingerprint)


def write(points: Sequence[AugmentedPassage], store: PointStore, collection: str, fingerprint: Fingerprint) -> None:
    """Store points, unless the collection has changed."""
    if points:
        check_unchanged(store, collection, fingerprint)
        store.upsert(collection, points)


def check_unchanged(store: PointStore, collection: str, fingerprint: Fingerprint) -> None:
    """Refuse a collection that another client of the server has deleted or retuned.

    Raises:
        StoreError: it was deleted.
        MismatchError: it has another fingerprint.
    """
    stored = store.read_fingerprint(collection)
    if stored is None:
        raise StoreError(f"collection {collection!r} was deleted during the ingest.", "run the ingest again")
    refuse_mismatch(collection, stored, fingerprint)


def look_up(rows: Sequence[Row], store: PointStore | None, collection: str, generates: bool, recipe_hash: str) -> Chunk:
    """Look up which passages of a chunk are missing in the store; all are if the collection does not exist (None).

    Raises:
        InputError: a row has queries although a generator is to write them.
    """
    rejects, passages = [], []
    for row in rows:
        if isinstance(row, Reject):
            rejects.append(row)
        elif isinstance(row, Passage):
            passages.append(QueriedPassage(row, ()))
        elif not generates:
            passages.append(row)
        else:
            raise InputError(
                f"passage {row.passage.passage_id!r} has queries, but there is a generator to write them.",
                "pass plain passages, or None as the generator",
            )
    ids = [row.passage.passage_id for row in passages]
    stored = store.read_content_hashes(collection, ids) if store is not None else {}
    hashed = [(row, hash_content(row.passage, recipe_hash, None if generates else row.queries)) for row in passages]
    missing = [(row, content) for row, content in hashed if stored.get(row.passage.passage_id) != content]
    return Chunk(missing, len(passages) - len(missing), rejects)


def augment(chunk: Chunk, encoder: Encoder, generator: Generator | None, recipe: Recipe, recipe_hash: str) -> Augmented:
    """Augment a chunk with one call of each model; a worker runs this."""
    if not chunk.missing:
        return Augmented([], Progress(0, chunk.unchanged, tuple(chunk.rejects), {}, {}, dropped={}))
    passages = [row.passage for row, _ in chunk.missing]
    generations = _find_queries([row for row, _ in chunk.missing], generator, recipe)
    passage_texts = [f"{passage.title} {passage.text}".strip() for passage in passages]
    plain = check_vectors(encoder.encode_passages(passage_texts), len(passage_texts), encoder.dim)
    texts = [query.text for generation in generations for query in generation.queries]
    counts = [len(generation.queries) for generation in generations]
    vectors = np.split(check_vectors(encoder.encode_queries(texts), len(texts), encoder.dim), np.cumsum(counts)[:-1])

    points, rejects, asked, kept, left_out = [], list(chunk.rejects), Counter[str](), Counter[str](), 0
    dropped = Counter[Dropped]()
    for generation in generations:
        dropped.update(generation.dropped)
    for (row, content_hash), generation, vector, queries in zip(
        chunk.missing, generations, plain, vectors, strict=True
    ):
        asked.update(dict.fromkeys(recipe.languages, generation.asked))
        kept.update(query.language for query in generation.queries)
        problem = find_fault("a vector of the encoder", np.vstack([vector, queries]))
        if not problem:
            fused, filtered = augment_passage(vector, queries, recipe.fusion_settings)
            problem = find_fault("the augmented vector", fused[None])
        if problem:
            rejects.append(Reject(row.passage.passage_id, 0, problem, row.passage.text))
        else:
            left_out += filtered
            named = {XQG_VECTOR: fused, PASSAGE_VECTOR: vector}
            terms = find_terms(row.passage, generation.queries) if recipe.sparse else None
            points.append(
                AugmentedPassage(row.passage, generation.queries, named, content_hash, recipe_hash, terms=terms)
            )
    bare = sum(not point.generated_queries for point in points)
    progress = Progress(len(points), chunk.unchanged, tuple(rejects), asked, kept, bare, left_out, dropped)
    return Augmented(points, progress)


def find_terms(passage: Passage, queries: Iterable[GeneratedQuery]) -> tuple[int, ...]:
    """Return the term ids of a passage's sparse vector: of its title, text and queries."""
    return find_term_ids([passage.title, passage.text, *(query.text for query in queries)])


def _find_queries(rows: Sequence[QueriedPassage], generator: Generator | None, recipe: Recipe) -> Sequence[Generation]:
    if generator is None:
        return [Generation(row.queries, asked=0) for row in rows]
    passages = [row.passage for row in rows]
    wanted = (recipe.languages, recipe.queries_per_language, recipe.seed, recipe.sampling)
    return generator.generate(passages, *wanted, identify=bool(recipe.language_check))
