"""An ingest on Ray, on this machine or many: the same chunks and steps as `pipeline`, hence the same points.

    CorpusSource (one task, beside the driver) ─▶ AugmentChunk (one actor a CPU share or GPU) ─▶ QdrantDatasink (tasks)

A row of the dataset is a chunk. One task reads, because only who has read all before knows that an id is new; it also
looks up what is stored. Reading and writing ask Ray for no CPU, so that workers can have all of them and nobody
starves. What becomes of a chunk goes to the `Ledger`, from where the driver tells it, in the order of the rows.

Knows Ray's data sets. Knows nothing of what a step does, nor of clusters (`ray_cluster`).
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import warnings
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import pyarrow
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Datasink, Datasource, ReadTask
from ray.data.block import BlockMetadata

from xqg_qdrant.augmentation.pipeline import (
    Augmented,
    Chunk,
    Progress,
    augment,
    check_unchanged,
    cut_chunks,
    describe,
    look_up,
    open_collection,
    until_damage,
    write,
)
from xqg_qdrant.augmentation.ray_cluster import Plan
from xqg_qdrant.augmentation.recipe import Recipe
from xqg_qdrant.corpus.inputs import Inputs
from xqg_qdrant.errors import InputError, ModelError, XqgError
from xqg_qdrant.fingerprint import Fingerprint, hash_recipe
from xqg_qdrant.generation.lexicon import Lexicon
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.stores import Store, open_store

POLL_SECONDS = 0.25
# Ray starts a worker that died anew, and gives it the same chunk: one that kills its worker would do so for ever.
MAX_DEATHS = 5
MAX_WRITERS = 8


class Job(NamedTuple):
    """What every process of an ingest has to know; the store's key is not in it.

    The inputs are read from `directory`. `encoder` is a model folder, `generator` one or a lexicon's file, both None
    for those that ship; a generator is used where the recipe asks for one. They lie at the same paths on all machines,
    and the store can be reached from all.
    """

    inputs: Inputs
    directory: Path
    url: str
    collection: str
    recipe: Recipe
    fingerprint: Fingerprint
    dim: int
    encoder: Path | None
    generator: Path | None


class Ledger:
    """What the processes of an ingest tell each other: what became of chunks, whether to go on, the store's key."""

    def __init__(self) -> None:
        self._told: list[tuple[int, Progress]] = []
        self._ended: tuple[int, list[InputError], int] = (-1, [], 0)
        self._stopped = False
        self._starts = 0
        self._key: str | None = None
        self._failure: XqgError | None = None

    def start(self) -> int:
        """Note that a worker starts; return how many did since the last chunk was stored."""
        self._starts += 1
        return self._starts

    def hand_over(self, key: str | None) -> None:
        """Take the store's key: this way it is in no process's arguments, environment or description."""
        self._key = key

    def key(self) -> str | None:
        """Return the store's key."""
        return self._key

    def fail(self, error: XqgError) -> None:
        """Note why a worker cannot start."""
        self._failure = error

    def failure(self) -> XqgError | None:
        """Return why a worker could not start, None where all could."""
        return self._failure

    def stop(self) -> None:
        """Have no chunk begun any more."""
        self._stopped = True

    def stopped(self) -> bool:
        """Tell whether no chunk is to be begun."""
        return self._stopped

    def tell(self, number: int, progress: Progress) -> None:
        """Note that a chunk is stored."""
        self._told.append((number, progress))
        self._starts = 0

    def take(self) -> list[tuple[int, Progress]]:
        """Return what was told since the last time."""
        told, self._told = self._told, []
        return told

    def end(self, chunks: int, damage: list[InputError], left_over: int) -> None:
        """Note how the reading ended: after how many chunks, where a file was damaged, which queries were of no use."""
        self._ended = chunks, damage, left_over

    def ended(self) -> tuple[int, list[InputError], int]:
        """Return how the reading ended."""
        return self._ended


class CorpusSource(Datasource):  # type: ignore[misc]
    """The chunks of a corpus that are to be worked on, read where the driver is."""

    def __init__(self, read: Callable[[], Iterator[pyarrow.Table]]) -> None:
        super().__init__()
        self._read = read

    def get_read_tasks(self, parallelism: int, *_: object, **__: object) -> list[ReadTask]:
        """Return the one task."""
        return [ReadTask(self._read, BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None))]

    def estimate_inmemory_data_size(self) -> int | None:
        """Return nothing: it is not known before it is read."""
        return None

    @property
    def supports_distributed_reads(self) -> bool:
        """Return that the files lie on the driver's machine."""
        return False


class AugmentChunk:
    """A worker: opens the models once, then makes points of chunks."""

    def __init__(self, job: Job, plan: Plan, ledger: Any) -> None:  # noqa: ANN401
        self._job, self._ledger = job, ledger
        try:
            if ray.get(ledger.start.remote()) > MAX_DEATHS * plan.workers:
                cure = "give fewer workers or threads if it is for lack of memory, or look at Ray's logs"
                raise XqgError(f"workers died {MAX_DEATHS} times without finishing a chunk.", cure)
            self._encoder = Encoder(job.encoder, plan.device, 1)
            self._generator = _open_generator(job, plan.device)
            if describe(self._encoder, self._generator, job.recipe) != job.fingerprint:
                raise ModelError(
                    f"the models on {ray.util.get_node_ip_address()} are not those that the ingest was started with.",
                    "copy the same folders to every machine.",
                )
        except XqgError as error:
            # Of what a worker raises before it works Ray keeps only the text.
            ray.get(ledger.fail.remote(error))
            raise

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        """Augment the chunks of a table; none any more once the ingest was stopped."""
        job = self._job
        done = []
        for number, chunk in _unpack(table):
            if not ray.get(self._ledger.stopped.remote()):
                recipe_hash = hash_recipe(job.fingerprint)
                done.append((number, augment(chunk, self._encoder, self._generator, job.recipe, recipe_hash)))
        return _pack(done)


class QdrantDatasink(Datasink):  # type: ignore[misc]
    """Writes augmented chunks to a collection on a server, and tells the ledger of each when it is safe."""

    def __init__(self, url: str, collection: str, fingerprint: Fingerprint, ledger: Any) -> None:  # noqa: ANN401
        self._url, self._collection, self._fingerprint, self._ledger = url, collection, fingerprint, ledger

    def write(self, blocks: Iterable[pyarrow.Table], _context: object) -> None:
        """Store the chunks of a task; one that is written again, after a kill, is the same."""
        store = _open_store(self._url, ray.get(self._ledger.key.remote()))
        for block in blocks:
            for number, augmented in _unpack(block):
                write(augmented.points, store, self._collection, self._fingerprint)
                ray.get(self._ledger.tell.remote(number, augmented.progress))


def ingest_on_ray(
    job: Job, store: Store, key: str | None, plan: Plan, stop: Event
) -> abc.Generator[Progress, None, None]:
    """Store the passages as `pipeline.ingest` does; yield for each chunk, in the order of the rows, when it is safe.

    An error in any process ends all of them; so does closing this iterator. Both wait for the chunks that are in work.

    Args:
        job: what to do.
        store: the same as the job's, for this process.
        key: of the store.
        plan: of `make_plan`.
        stop: once set, no chunk is begun, and those in work are finished and stored.

    Raises:
        MismatchError: the collection was made with other models or another recipe.
        InputError: the rows cannot be read to their end, which is raised when those before are stored.
        XqgError: what a worker raised, or that one could not go on.
    """
    open_collection(job.inputs.read(), store, job.collection, job.dim, job.fingerprint)
    ledger = ray.remote(Ledger).options(num_cpus=0).remote()
    ray.get(ledger.hand_over.remote(key))
    failed: list[BaseException] = []
    # Only points that come faster than a network takes them would gain from an index that waits.
    with store.bulk_load(job.collection, fast=False):
        running = Thread(target=_run, args=(job, plan, ledger, failed), daemon=True)
        running.start()
        waiting: dict[int, Progress] = {}
        next_number = 0
        try:
            while running.is_alive():
                running.join(POLL_SECONDS)
                if stop.is_set():
                    ray.get(ledger.stop.remote())
                # A chunk whose writer was killed is told twice.
                waiting.update(
                    (told, progress) for told, progress in ray.get(ledger.take.remote()) if told >= next_number
                )
                while next_number in waiting:
                    yield waiting.pop(next_number)
                    next_number += 1
            # After a stop there are gaps: chunks that were not begun.
            yield from (waiting[number] for number in sorted(waiting))
        finally:
            ray.get(ledger.stop.remote())
            running.join()
    if failed:
        raise ray.get(ledger.failure.remote()) or _explain(failed[0])
    check_unchanged(store, job.collection, job.fingerprint)
    chunks, damage, job.inputs.left_over = ray.get(ledger.ended.remote())
    if next_number != chunks and not stop.is_set():
        raise XqgError(f"Ray lost chunks: {next_number} of {chunks} were stored.", "run the same again.")
    if damage:
        raise damage[0]


def _run(job: Job, plan: Plan, ledger: Any, failed: list[BaseException]) -> None:  # noqa: ANN401
    try:
        # A corpus may have fewer chunks than there are workers.
        warnings.filterwarnings("ignore", "The (minimum|maximum) number of concurrent")
        context = DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        # A block for each chunk: Ray would gather chunks to 128 MiB before the first is worked on.
        context.target_max_block_size = 1
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        read = partial(_read, job, plan, ledger)
        chunks = ray.data.read_datasource(CorpusSource(read), num_cpus=0, override_num_blocks=1)
        augmented = chunks.map_batches(
            AugmentChunk,
            fn_constructor_args=(job, plan, ledger),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                size=plan.workers,
                max_tasks_in_flight_per_actor=2 * plan.chunks_at_once,
                max_concurrent_calls_per_actor=plan.chunks_at_once,
                enable_true_multi_threading=True,
            ),
            num_cpus=plan.cpus,
            num_gpus=plan.gpus,
        )
        sink = QdrantDatasink(job.url, job.collection, job.fingerprint, ledger)
        writers = min(plan.workers, MAX_WRITERS)
        augmented.write_datasink(sink, ray_remote_args={"num_cpus": 0}, concurrency=writers)
    except BaseException as error:  # a thread that ends with any other would look like one that came to its end
        failed.append(error)


def _read(job: Job, plan: Plan, ledger: Any) -> Iterator[pyarrow.Table]:  # noqa: ANN401
    """Yield the chunks of the corpus, with what of each is missing in the store."""
    os.chdir(job.directory)
    store = _open_store(job.url, ray.get(ledger.key.remote()))
    damage: list[InputError] = []
    rows = until_damage(job.inputs.read(), damage)
    cheap = bool(plan.gpus) or job.recipe.sampling is None
    number = -1
    for number, chunk in enumerate(cut_chunks(rows, cheap)):
        if ray.get(ledger.stopped.remote()):
            return
        found = look_up(chunk, store, job.collection, not job.recipe.given, hash_recipe(job.fingerprint))
        yield _pack([(number, found)])
    ray.get(ledger.end.remote(number + 1, damage, job.inputs.left_over))


def _pack(rows: Sequence[tuple[int, Chunk | Augmented]]) -> pyarrow.Table:
    numbers = pyarrow.array([number for number, _ in rows], pyarrow.int64())
    contents = pyarrow.array([pickle.dumps(content) for _, content in rows], pyarrow.large_binary())
    return pyarrow.table({"number": numbers, "content": contents})


def _unpack(table: pyarrow.Table) -> Iterator[tuple[int, Any]]:
    for row in table.to_pylist():
        yield row["number"], pickle.loads(row["content"])


def _open_generator(job: Job, device: str) -> QueryGenerator | Lexicon | None:
    if job.recipe.given:
        return None
    if job.generator is not None and job.recipe.sampling is None:
        return Lexicon(job.generator)
    return QueryGenerator(job.generator, device, 1)


@cache
def _open_store(url: str, key: str | None) -> Store:
    """Open the store once in each process, which lives for many tasks."""
    return open_store(url, key)


def _explain(error: BaseException) -> XqgError:
    """Return what a worker raised, freed of what Ray packs it into."""
    inner: BaseException | None = error
    while inner is not None:
        # What Ray makes of an error is one of ours too, with the whole traceback as its message.
        if isinstance(inner, XqgError) and not isinstance(inner, ray.exceptions.RayError):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    causes = [line for line in re.findall(r"^[\w.]+: .+$", str(error), re.M) if "UserCodeException" not in line]
    cure = "look at Ray's logs on that machine, and run the same again; what is stored stays"
    return XqgError(f"a worker could not go on: {(causes or [repr(error)])[-1]}.", cure)
