"""Ingest a corpus chunk by chunk: read, skip stored passages, generate, encode, augment, upsert.

The collection is the checkpoint: a passage stored with the right content hash needs no work. So an interrupted ingest
resumes where it stopped, and an ingest of an edited corpus redoes only what changed.

Several chunks are in flight at once, one for each worker. The thread that consumes the progress reads, looks up and
writes. So only one thread uses the store, points are written in corpus order, and the chunks in flight bound memory.
"""

from __future__ import annotations

import copyreg
from collections import Counter, abc, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from itertools import accumulate
from pathlib import Path
from threading import Event
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import numpy as np

from xqg_qdrant.augmentation.fusion import augment_passages, check_vectors, find_faults, make_plain
from xqg_qdrant.augmentation.recipe import Recipe
from xqg_qdrant.corpus.dead_letters import Reasons
from xqg_qdrant.errors import InputError, StoreError, XqgError
from xqg_qdrant.fingerprint import (
    PLAIN,
    QUERIES_FIELD,
    RETUNING_FIELD,
    Fingerprint,
    hash_content,
    hash_plain,
    hash_recipe,
    is_plain,
    make_fingerprint,
    pick_plain,
    refuse_mismatch,
)
from xqg_qdrant.generation import INSTANT, SLOW, Generation, Generator, ReplyJournal, Usage
from xqg_qdrant.generation.checks import REASONS, Dropped
from xqg_qdrant.inference import ENCODER, TextEncoder
from xqg_qdrant.records import (
    PASSAGE_VECTOR,
    XQG_VECTOR,
    AugmentedPassage,
    FloatArray,
    GeneratedQuery,
    Passage,
    QueriedPassage,
    Reject,
)
from xqg_qdrant.stores import Store, read_target_fingerprint
from xqg_qdrant.streams import work_in_order
from xqg_qdrant.text import find_term_ids

Row: TypeAlias = Passage | QueriedPassage | Reject

# A chunk is a few seconds of work; a kill costs each worker one chunk.
CHUNK_SIZE = 16
# For cheap passages: no model generates queries, or a GPU does.
CHEAP_CHUNK_SIZE = 128
# For passages that need no model: a page of a server's points, and one request to write it.
READY_CHUNK_SIZE = 256


def _read_only(mapping: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(mapping)


# Defaults of the records that travel between processes.
copyreg.pickle(MappingProxyType, lambda proxy: (_read_only, (dict(proxy),)))


class StoredRow(NamedTuple):
    """A passage that is stored already, in this collection or another, to be made anew.

    Attributes:
        point: The stored point.
        queries: Those of its queries that are kept.
        languages: Languages in which its queries are to be written; none if all are kept.
        vector: Its plain vector, shape `(dim,)`; None if the encoder has to make it.
        plain: Whether it stays without queries until an enrichment.
        before: Content hash of the point if it is to be replaced; if it has changed by then, it is left alone.
    """

    point: AugmentedPassage
    queries: tuple[GeneratedQuery, ...]
    languages: tuple[str, ...] = ()
    vector: FloatArray | None = None
    plain: bool = False
    before: str = ""


class PointStore(Protocol):
    """The part of a store that an ingest uses; `Store` documents the methods."""

    location: str

    def read_fingerprint(self, collection: str, /) -> dict[str, Any] | None:
        """Return the collection's fingerprint."""

    def read_models(self, collection: str, /) -> dict[str, Any]:
        """Return where the models of a collection were found."""

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
        usage: Calls and tokens that a language model took.
        awaited: Number of passages whose queries are still to come, and that keep those they have.
    """

    stored: int
    unchanged: int
    rejects: tuple[Reject, ...]
    asked: Mapping[str, int]
    kept: Mapping[str, int]
    bare: int = 0
    left_out: int = 0
    dropped: Mapping[Dropped, int] = MappingProxyType({})
    usage: Usage = Usage()
    awaited: int = 0

    @property
    def rows(self) -> int:
        """Return the number of corpus rows in the chunk."""
        return self.stored + self.unchanged + len(self.rejects)


class Totals:
    """The sum of an ingest's progress; rejected rows are counted by their reasons, not kept."""

    def __init__(self) -> None:
        self.stored = self.unchanged = self.rejected = self.bare = self.left_out = self.awaited = 0
        self.asked: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.dropped: Counter[Dropped] = Counter()
        self.reasons = Reasons()
        self.usage = Usage()

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
        self.usage = self.usage.plus(progress.usage)
        self.awaited += progress.awaited

    def to_progress(self, rejects: Iterable[Reject]) -> Progress:
        """Return the sum as one chunk, with the rejects of all chunks."""
        counts = (self.asked, self.kept, self.bare, self.left_out, self.dropped, self.usage, self.awaited)
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


class Task(NamedTuple):
    """A passage to be made into a point.

    Attributes:
        passage: The passage.
        content_hash: Of the point.
        queries: The queries that it has.
        languages: The languages in which a generator is to write more.
        plain: Whether it is stored without queries until an enrichment.
        vector: Its plain vector; None if the encoder has to make it.
        other_fields: Of the point.
        before: See `StoredRow`.
    """

    passage: Passage
    content_hash: str
    queries: tuple[GeneratedQuery, ...] = ()
    languages: tuple[str, ...] = ()
    plain: bool = False
    vector: FloatArray | None = None
    other_fields: Mapping[str, Any] = MappingProxyType({})
    before: str = ""


class Chunk(NamedTuple):
    """A chunk after the lookup in the store: what is to be done."""

    missing: list[Task]
    unchanged: int
    rejects: list[Reject]
    awaited: int = 0


class Augmented(NamedTuple):
    """A chunk ready to be written, and the progress to yield once it is.

    `replies` are files to remove then, and `failure` is to be raised then. `noted` holds the passage id and the content
    hash of the point for the replies that belong to one. `before` holds the content hashes of points
    to be replaced; one that has another hash by then is left alone.
    """

    points: list[AugmentedPassage]
    progress: Progress
    replies: tuple[Path, ...] = ()
    failure: XqgError | None = None
    before: Mapping[str, str] = MappingProxyType({})
    noted: Mapping[Path, tuple[str, str]] = MappingProxyType({})

    def settle(self) -> None:
        """Remove the files of a chunk that is stored, and raise its failure."""
        for path in self.replies:
            path.unlink(missing_ok=True)
        if self.failure is not None:
            raise self.failure


def ingest(
    rows: Iterable[Row | StoredRow],
    store: PointStore,
    collection: str,
    encoder: TextEncoder,
    generator: Generator | None,
    recipe: Recipe,
    workers: int = 1,
    stop: Event | None = None,
    fingerprint: Fingerprint | None = None,
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
        fingerprint: of the collection; by default that of the models and the recipe. If it is plain, passages are
            stored without queries, except those that are stored already; this needs a `Store`.

    Raises:
        MismatchError: the collection was made with other models or another recipe.
        InputError: the recipe is for given queries and there is a generator, or vice versa; or the rows cannot be read
            to the end, which is raised after those before are stored.
    """
    pace = INSTANT if generator is None else generator.pace
    if generator is not None and generator.concurrency:
        # A chunk ends with its slowest call; meanwhile the next ones keep the others busy.
        workers = max(workers, 1 + -(-generator.concurrency // CHUNK_SIZE))
    if fingerprint is None:
        fingerprint = describe(encoder, generator, recipe)
    damage: list[InputError] = []
    with ExitStack() as loading:
        target = _Target(store, collection, encoder, fingerprint, pace == INSTANT, loading)
        chunks = cut_chunks(until_damage(rows, damage), cheap=pace != SLOW, generates=generator is not None)
        looked_up = (look_up(chunk, target.stored, collection, recipe, fingerprint) for chunk in chunks)
        work = partial(augment, encoder=encoder, generator=generator, recipe=recipe, fingerprint=fingerprint)
        batches = loading.enter_context(closing(work_in_order(work, looked_up, workers, stop)))
        journal = None if generator is None else generator.journal
        target.sweep(journal)
        for done in batches:
            target.note(done, journal)
            # One write for all that wait: each pays for a flush to the disk.
            target.write(done)
            for augmented in done:
                yield augmented.progress
            target.settle()
            for augmented in done:
                if augmented.failure is not None:
                    raise augmented.failure
    target.settle()
    target.sweep(journal)
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
        self,
        store: PointStore,
        collection: str,
        encoder: TextEncoder,
        fingerprint: Fingerprint,
        fast: bool,
        loading: ExitStack,
    ) -> None:
        """Open the collection if it exists.

        Raises:
            MismatchError: the collection was made with other models or another recipe.
        """
        self._store, self._collection, self._dim, self._fingerprint = store, collection, encoder.dim, fingerprint
        self._fast, self._loading = fast, loading
        self.stored: PointStore | None = None
        self._unsettled: deque[tuple[list[Path], str | None]] = deque()
        if open_collection(store, collection, fingerprint, encoder):
            self._prepare()

    def write(self, done: Sequence[Augmented]) -> None:
        """Store the points of chunks; create the collection before the first ones."""
        if self.stored is None and any(augmented.points for augmented in done):
            create_collection(self._store, self._collection, self._dim, self._fingerprint)
            self._prepare()
        write(done, self._store, self._collection, self._fingerprint)

    def note(self, done: Sequence[Augmented], journal: ReplyJournal | None) -> None:
        """Note in a journal which passages are about to be stored."""
        files = [path for augmented in done for path in augmented.replies]
        noted = {path: about for augmented in done for path, about in augmented.noted.items()}
        if journal is not None and (note := journal.note(self._name, noted)):
            files.append(note)
        if files:
            self._unsettled.append((files, next((passage_id for passage_id, _ in noted.values()), None)))

    def settle(self) -> None:
        """Remove the replies and notes of what is stored by now: a folder of Parquet files collects points first.

        Points are stored in order. So what came before a stored passage was stored too, even if another client has
        deleted it since.
        """
        ends = range(len(self._unsettled), 0, -1)
        settled = next((end for end in ends if self._has(self._unsettled[end - 1][1])), 0)
        while self._unsettled and (settled > 0 or self._unsettled[0][1] is None):
            settled -= 1
            for path in self._unsettled.popleft()[0]:
                path.unlink(missing_ok=True)

    def _has(self, passage_id: str | None) -> bool:
        if passage_id is None or self.stored is None:
            return False
        return bool(self.stored.read_content_hashes(self._collection, [passage_id]))

    def sweep(self, journal: ReplyJournal | None) -> None:
        """Remove the replies of passages that an earlier run stored just before it was killed."""
        if journal is not None and self.stored is not None:
            journal.sweep(self._name, partial(self.stored.read_content_hashes, self._collection))

    @property
    def _name(self) -> str:
        return f"{self._collection} in {self._store.location}"

    def _prepare(self) -> None:
        self._loading.enter_context(self._store.bulk_load(self._collection, fast=self._fast))
        self.stored = self._store


def describe(encoder: TextEncoder, generator: Generator | None, recipe: Recipe, plain: bool = False) -> Fingerprint:
    """Return the fingerprint of the models and the recipe; `plain` if the queries are to be written later.

    Raises:
        InputError: the recipe is for given queries and there is a generator, or vice versa.
    """
    drawn = None if generator is None else generator.sampling
    if recipe.given != (generator is None) or type(drawn) is not type(recipe.sampling):
        raise InputError("the recipe was made for another generator.", "make it with make_recipe(generator)")
    made = make_fingerprint(encoder.describe(), None if generator is None else generator.describe(), recipe.describe())
    return made | ({QUERIES_FIELD: PLAIN} if plain else {})


def open_collection(
    store: PointStore, collection: str, fingerprint: Fingerprint, encoder: TextEncoder | None = None
) -> bool:
    """Return whether the collection exists, after comparing its fingerprint.

    A plain collection takes the fingerprint of the first ingest with queries. An error names the encoder, if given.

    Raises:
        MismatchError: the collection was made with other models or another recipe.
    """
    stored = read_target_fingerprint(cast(Store, store), collection)
    if stored is None:
        return False
    find_encoders = None if encoder is None else partial(name_encoders, store, collection, encoder)
    refuse_change(collection, stored, fingerprint, find_encoders)
    if is_plain(stored) and not is_plain(fingerprint):
        cast(Store, store).write_fingerprint(collection, fingerprint)
    return True


def until_damage(rows: Iterable[Row | StoredRow], damage: list[InputError]) -> Iterator[Row | StoredRow]:
    """Yield rows until one cannot be read; put that error in `damage`, to be raised later."""
    try:
        yield from rows
    except InputError as error:
        damage.append(error)


def cut_chunks(rows: Iterable[Row | StoredRow], cheap: bool, generates: bool = True) -> Iterator[list[Row | StoredRow]]:
    """Cut rows into chunks by position; larger ones if passages are `cheap`, or if no model is needed at all.

    Args:
        rows: of a corpus.
        cheap: whether no model generates queries, or a GPU does.
        generates: whether a model generates queries.
    """
    most = CHEAP_CHUNK_SIZE if cheap else CHUNK_SIZE
    chunk: list[Row | StoredRow] = []
    waiting = 0
    for row in rows:
        chunk.append(row)
        waiting += generates or not _is_ready(row)
        if waiting == most or len(chunk) == READY_CHUNK_SIZE:
            yield chunk
            chunk, waiting = [], 0
    if chunk:
        yield chunk


def _is_ready(row: Row | StoredRow) -> bool:
    """Return whether a row has its vector and no queries to encode."""
    return isinstance(row, QueriedPassage) and row.vector is not None and not row.queries


def create_collection(store: PointStore, collection: str, dim: int, fingerprint: Fingerprint) -> None:
    """Create a collection, or accept one that another ingest with the same recipe created first."""
    try:
        store.create_collection(collection, dim, fingerprint)
    except StoreError:
        # With the same recipe both make the same points.
        stored = store.read_fingerprint(collection)
        if stored is None:
            raise
        refuse_change(collection, stored, fingerprint)


def name_encoders(store: PointStore, collection: str, encoder: TextEncoder) -> tuple[str, str] | None:
    """Return where a collection's encoder was found and where this one is, None if the former is not kept."""
    about = store.read_models(collection).get(ENCODER)
    about = about if isinstance(about, dict) else {}
    stored = " in ".join(str(about[name]) for name in ("source", "folder") if about.get(name))
    return (stored, f"{encoder.source} in {encoder.folder.path.absolute()}") if stored else None


def refuse_change(
    collection: str,
    stored: Fingerprint,
    fingerprint: Fingerprint,
    find_encoders: Callable[[], tuple[str, str] | None] | None = None,
) -> None:
    """Refuse a collection whose passages an ingest with this fingerprint would make otherwise.

    If either is plain, only what decides a passage without queries is compared.

    Raises:
        MismatchError: names every field that differs.
    """
    if is_plain(stored) or is_plain(fingerprint):
        retuning = {name: stored[name] for name in (RETUNING_FIELD,) if name in stored}
        stored, fingerprint = pick_plain(stored) | retuning, pick_plain(fingerprint)
    refuse_mismatch(collection, stored, fingerprint, find_encoders=find_encoders)


def write(done: Sequence[Augmented], store: PointStore, collection: str, fingerprint: Fingerprint) -> None:
    """Store the points of chunks, unless the collection has changed; skip points that changed meanwhile."""
    points = [point for augmented in done for point in augmented.points]
    if not points:
        return
    check_unchanged(store, collection, fingerprint)
    before = {passage_id: content for augmented in done for passage_id, content in augmented.before.items()}
    if before:
        stored = store.read_content_hashes(collection, list(before))
        changed = {passage_id for passage_id, content in before.items() if stored.get(passage_id) != content}
        points = [point for point in points if point.passage.passage_id not in changed]
    if points:
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
    refuse_change(collection, stored, fingerprint)


def look_up(
    rows: Sequence[Row | StoredRow],
    store: PointStore | None,
    collection: str,
    recipe: Recipe,
    fingerprint: Fingerprint,
) -> Chunk:
    """Look up which passages of a chunk are missing in the store; all are if the collection does not exist (None).

    Raises:
        InputError: a row has queries although a generator is to write them.
    """
    recipe_hash, plain_hash, plain = hash_recipe(fingerprint), hash_plain(fingerprint), is_plain(fingerprint)
    rejects: list[Reject] = []
    tasks: list[Task] = []
    kept = find_awaited(rows, cast(Store, store), collection) if store is not None else {}
    for row in rows:
        if isinstance(row, Reject):
            rejects.append(row)
            continue
        if isinstance(row, StoredRow):
            given = row.queries if recipe.given and not row.plain else None
            content = hash_content(row.point.passage, plain_hash if row.plain else recipe_hash, given)
            fields = row.queries, row.languages, row.plain, row.vector, row.point.other_fields, row.before
            tasks.append(Task(row.point.passage, content, *fields))
            continue
        queried = row if isinstance(row, QueriedPassage) else QueriedPassage(row)
        passage, vector = queried.passage, queried.vector
        queries = kept.get(passage.passage_id, queried.queries)
        if queries and not recipe.given:
            raise InputError(
                f"passage {passage.passage_id!r} has queries, but there is a generator to write them.",
                "pass plain passages, or None as the generator",
            )
        if plain:
            tasks.append(Task(passage, hash_content(passage, plain_hash), plain=True))
        else:
            content = hash_content(passage, recipe_hash, queries if recipe.given else None, vector)
            tasks.append(Task(passage, content, queries, recipe.languages, vector=vector))
    ids = [task.passage.passage_id for task in tasks]
    stored = store.read_content_hashes(collection, ids) if store is not None else {}
    missing = [
        task
        for task in tasks
        if stored.get(task.passage.passage_id) != task.content_hash
        and task.before in ("", stored.get(task.passage.passage_id))
    ]
    if plain:
        enriched = _find_enriched(missing, stored, cast(Store, store), collection)
        missing = [task for task in missing if task.passage.passage_id not in enriched]
    return Chunk(missing, len(tasks) - len(missing), rejects, len(kept))


def find_awaited(
    rows: Sequence[Row | StoredRow], store: Store, collection: str
) -> dict[str, tuple[GeneratedQuery, ...]]:
    """Return the stored queries of passages that await theirs, by id, if title and text are as they were."""
    awaited = {row.passage.passage_id: row.passage for row in rows if isinstance(row, QueriedPassage) and row.awaited}
    found = store.read_points(collection, list(awaited)) if awaited else {}
    return {
        passage_id: point.generated_queries
        for passage_id, point in found.items()
        if point.generated_queries and _is_same_text(point.passage, awaited[passage_id])
    }


def _is_same_text(one: Passage, other: Passage) -> bool:
    return (one.title, one.text) == (other.title, other.text)


def _find_enriched(tasks: Sequence[Task], stored: Mapping[str, str], store: Store, collection: str) -> set[str]:
    """Return the ids of the passages that are stored unchanged with queries, by whatever recipe."""
    passages = {task.passage.passage_id: task.passage for task in tasks if task.passage.passage_id in stored}
    found = store.read_points(collection, list(passages)) if passages else {}
    return {
        passage_id
        for passage_id, point in found.items()
        if point.content_hash
        in (
            hash_content(passages[passage_id], point.recipe),
            hash_content(passages[passage_id], point.recipe, point.generated_queries),
        )
    }


def augment(
    chunk: Chunk, encoder: TextEncoder | None, generator: Generator | None, recipe: Recipe, fingerprint: Fingerprint
) -> Augmented:
    """Augment a chunk with one call of each model; a worker runs this.

    The encoder may be None if the passages have their vectors and no queries.
    """
    if not chunk.missing:
        return Augmented([], Progress(0, chunk.unchanged, tuple(chunk.rejects), {}, {}, awaited=chunk.awaited))
    written = _find_queries(chunk.missing, generator, recipe)
    usage = Usage(*(sum(counts) for counts in zip(*(generation.usage for generation in written), strict=True)))
    replies = tuple(path for generation in written for path in generation.replies if generation.failure is None)
    failure = next((generation.failure for generation in written if generation.failure), None)
    rejects = list(chunk.rejects)
    done: list[tuple[Task, Generation]] = []
    for task, generation in zip(chunk.missing, written, strict=True):
        if generation.rejected:
            rejects.append(Reject(task.passage.passage_id, 0, generation.rejected, task.passage.text))
        elif generation.failure is None:
            done.append((task, generation))
    if not done:
        progress = Progress(0, chunk.unchanged, tuple(rejects), {}, {}, usage=usage, awaited=chunk.awaited)
        return Augmented([], progress, replies, failure)
    plain = _encode_passages([task for task, _ in done], encoder)
    queries_of = [_merge(task, generation.queries, recipe) for task, generation in done]
    texts = [query.text for queries in queries_of for query in queries]
    encoded = _encode_queries(texts, encoder) if texts else np.empty((0, plain[0].size), np.float32)
    ends = accumulate(map(len, queries_of))
    vectors = [encoded[end - len(queries) : end] for queries, end in zip(queries_of, ends, strict=True)]

    points, asked, kept, left_out = [], Counter[str](), Counter[str](), 0
    dropped, before, noted = Counter[Dropped](), dict[str, str](), dict[Path, tuple[str, str]]()
    hashes = hash_recipe(fingerprint), hash_plain(fingerprint)
    fusings = _fuse([task for task, _ in done], plain, vectors, recipe)
    for (task, generation), vector, queries, fusing in zip(done, plain, queries_of, fusings, strict=True):
        passage = task.passage
        if task.languages or generation.queries:
            asked.update(dict.fromkeys(task.languages, generation.asked))
            kept.update(query.language for query in generation.queries)
            dropped.update(generation.dropped)
        if fusing.problem:
            rejects.append(Reject(passage.passage_id, 0, fusing.problem, passage.text))
            continue
        left_out += fusing.filtered
        noted.update(dict.fromkeys(generation.replies, (passage.passage_id, task.content_hash)))
        if task.before:
            before[passage.passage_id] = task.before
        points.append(
            AugmentedPassage(
                passage,
                queries,
                {XQG_VECTOR: fusing.vector, PASSAGE_VECTOR: vector},
                task.content_hash,
                hashes[task.plain],
                task.other_fields,
                find_terms(passage, queries) if recipe.sparse else None,
            )
        )
    bare = sum(not point.generated_queries for point in points)
    counts = (asked, kept, bare, left_out, dropped, usage, chunk.awaited)
    progress = Progress(len(points), chunk.unchanged, tuple(rejects), *counts)
    return Augmented(points, progress, replies, failure, before, noted)


class _Fusing(NamedTuple):
    """The augmented vector of a passage, how many of its queries were filtered out, and why it cannot be stored."""

    vector: FloatArray
    filtered: int
    problem: str


def _fuse(
    tasks: Sequence[Task], plain: Sequence[FloatArray], queries: Sequence[FloatArray], recipe: Recipe
) -> list[_Fusing]:
    """Fuse the vectors of passages, each of shape `(dim,)`, with those of their queries, each of shape `(n, dim)`."""
    name, rows = "a vector of the encoder", np.stack(plain)
    problems = find_faults(name, rows)
    for place, own in enumerate(queries):
        if len(own):
            # Something not finite outweighs zeros.
            problems[place] = max(problems[place], *find_faults(name, own))
    fusings = [_Fusing(vector, 0, problem) for vector, problem in zip(plain, problems, strict=True)]
    settings = recipe.fusion_settings
    for is_plain_task in (False, True):
        places = [place for place, task in enumerate(tasks) if task.plain == is_plain_task and not problems[place]]
        if places:
            chosen = make_plain(settings) if is_plain_task else settings
            fused, filtered = augment_passages(rows[places], [queries[place] for place in places], chosen)
            made = map(_Fusing, fused, filtered, find_faults("the augmented vector", fused))
            for place, fusing in zip(places, made, strict=True):
                fusings[place] = fusing
    return fusings


def _encode_passages(tasks: Sequence[Task], encoder: TextEncoder | None) -> list[FloatArray]:
    """Return the plain vector of each passage; encode those that have none."""
    texts = [f"{task.passage.title} {task.passage.text}".strip() for task in tasks if task.vector is None]
    encoded: Iterator[FloatArray] = iter(())
    if texts:
        assert encoder is not None
        encoded = iter(check_vectors(encoder.encode_passages(texts), len(texts), encoder.dim))
    return [next(encoded) if task.vector is None else task.vector for task in tasks]


def _encode_queries(texts: Sequence[str], encoder: TextEncoder | None) -> FloatArray:
    assert encoder is not None
    return check_vectors(encoder.encode_queries(texts), len(texts), encoder.dim)


def _merge(task: Task, written: tuple[GeneratedQuery, ...], recipe: Recipe) -> tuple[GeneratedQuery, ...]:
    """Return the queries that a passage has and those just written, in the order of the recipe's languages."""
    if not (task.queries and task.languages):
        return task.queries or written
    places = {language: place for place, language in enumerate(recipe.languages)}
    return tuple(sorted([*task.queries, *written], key=lambda query: (places[query.language], query.number)))


def find_terms(passage: Passage, queries: Iterable[GeneratedQuery]) -> tuple[int, ...]:
    """Return the term ids of a passage's sparse vector: of its title, text and queries."""
    return find_term_ids([passage.title, passage.text, *(query.text for query in queries)])


def _find_queries(tasks: Sequence[Task], generator: Generator | None, recipe: Recipe) -> list[Generation]:
    """Return what the generator writes for each passage; the queries that it has if nothing is to be written."""
    found = [Generation(task.queries, asked=0) for task in tasks]
    if generator is None:
        return found
    settings = (recipe.queries_per_language, recipe.seed, recipe.sampling)
    for languages in dict.fromkeys(task.languages for task in tasks if task.languages):
        places = [place for place, task in enumerate(tasks) if task.languages == languages]
        passages = [tasks[place].passage for place in places]
        written = generator.generate(passages, languages, *settings, identify=bool(recipe.language_check))
        for place, generation in zip(places, written, strict=True):
            found[place] = generation
    return found
