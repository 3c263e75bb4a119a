"""Ingest on Ray, on one machine or many, with the chunks and steps of `pipeline`, hence the same points.

    CorpusSource (one task, beside the driver) ─▶ AugmentChunk (one actor a CPU share or GPU) ─▶ QdrantDatasink (tasks)

A row of the dataset is a chunk. One task reads all rows, because a new id is only recognised after reading all rows
before it; the task also looks up what is stored. Reading and writing ask Ray for no CPU, so that workers can take all
CPUs without starving them. The progress of each chunk goes to the `Ledger`; the driver yields it in row order.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import warnings
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple
from uuid import uuid4

import pyarrow
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Datasink, Datasource, ReadTask
from ray.data.block import BlockMetadata

from xqg_qdrant.augmentation.pipeline import (
    CHEAP_CHUNK_SIZE,
    Augmented,
    Chunk,
    Progress,
    augment,
    check_unchanged,
    create_collection,
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
from xqg_qdrant.fingerprint import Fingerprint, is_plain
from xqg_qdrant.generation import Endpoint, open_generator
from xqg_qdrant.inference import Reading, add_readings, open_encoder
from xqg_qdrant.records import Reject
from xqg_qdrant.stores import Store, open_store
from xqg_qdrant.streams import batched

POLL_SECONDS = 0.25
# Ray restarts a dead worker with the same chunk, so a chunk that kills its worker would do so forever.
MAX_DEATHS = 5
MAX_WRITERS = 8


class Keys(NamedTuple):
    """The keys of the store and of the endpoints that an ingest uses; None where there is none."""

    store: str | None = None
    generator: str | None = None
    encoder: str | None = None


class Job(NamedTuple):
    """The settings that every process of an ingest needs, without the keys.

    The inputs are read from `directory`. `encoder` is a model folder; `generator` is a model folder, a lexicon's
    file or an endpoint, and is used if the recipe needs one. None stands for the models that ship. Both must be at the
    same paths on all machines, and all machines must reach the store and the endpoint.
    """

    inputs: Inputs
    directory: Path
    url: str
    collection: str
    recipe: Recipe
    fingerprint: Fingerprint
    dim: int
    encoder: Path | None
    generator: Path | Endpoint | None


class Ledger:
    """The state shared by the processes of an ingest: progress, the stop flag, errors, keys."""

    def __init__(self) -> None:
        self._stored: list[tuple[int, Progress]] = []
        self._ended: tuple[int, list[InputError], str] = (-1, [], "")
        self._stopped = False
        self._starts = 0
        self._keys = Keys()
        self._failure: XqgError | None = None
        self._readings: dict[str, list[Reading | None]] = {}

    def start(self) -> int:
        """Count a worker's start; return the number of starts since the last stored chunk."""
        self._starts += 1
        return self._starts

    def set_keys(self, keys: Keys) -> None:
        """Keep the keys, so that they are in no process's arguments, environment or description."""
        self._keys = keys

    def keys(self) -> Keys:
        """Return the keys."""
        return self._keys

    def fail(self, error: XqgError) -> None:
        """Record why a worker could not start."""
        self._failure = error

    def failure(self) -> XqgError | None:
        """Return why a worker could not start; None if all could."""
        return self._failure

    def read(self, worker: str, readings: list[Reading | None]) -> None:
        """Record how much a worker's models have read so far."""
        self._readings[worker] = readings

    def readings(self) -> list[Reading | None]:
        """Return how much the models of all workers have read."""
        return [add_readings(of_each) for of_each in zip(*self._readings.values(), strict=True)]

    def stop(self) -> None:
        """Let no further chunk begin."""
        self._stopped = True

    def stopped(self) -> bool:
        """Return whether no further chunk may begin."""
        return self._stopped

    def add(self, number: int, progress: Progress) -> None:
        """Record that a chunk is stored."""
        self._stored.append((number, progress))
        self._starts = 0

    def take(self) -> list[tuple[int, Progress]]:
        """Return and clear the chunks stored since the last call."""
        stored, self._stored = self._stored, []
        return stored

    def end(self, chunks: int, damage: list[InputError], unused: str) -> None:
        """Record the end of the reading: the number of chunks, the damage of a file, the queries not used."""
        self._ended = chunks, damage, unused

    def ended(self) -> tuple[int, list[InputError], str]:
        """Return how the reading ended."""
        return self._ended


class CorpusSource(Datasource):  # type: ignore[misc]
    """The chunks of a corpus, read on the driver's machine."""

    def __init__(self, read: Callable[[], Iterator[pyarrow.Table]]) -> None:
        super().__init__()
        self._read = read

    def get_read_tasks(self, parallelism: int, *_: object, **__: object) -> list[ReadTask]:
        """Return the single read task."""
        return [ReadTask(self._read, BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None))]

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None: the size is unknown before reading."""
        return None

    @property
    def supports_distributed_reads(self) -> bool:
        """Return False: the files are on the driver's machine."""
        return False


class AugmentChunk:
    """A worker: open the models once, then augment chunks."""

    def __init__(self, job: Job, plan: Plan, ledger: Any) -> None:  # noqa: ANN401
        self._job, self._ledger, self._name = job, ledger, uuid4().hex
        try:
            if ray.get(ledger.start.remote()) > MAX_DEATHS * plan.workers:
                cure = "use fewer --num-workers or --threads if memory ran out, or read Ray's logs"
                raise XqgError(f"workers died {MAX_DEATHS} times without finishing a chunk.", cure)
            keys = ray.get(ledger.keys.remote())
            self._encoder = open_encoder(job.encoder, plan.device, 1, keys.encoder)
            given = job.recipe.given
            self._generator = None if given else open_generator(job.generator, plan.device, 1, keys.generator)
            plain = is_plain(job.fingerprint)
            if describe(self._encoder, self._generator, job.recipe, plain) != job.fingerprint:
                raise ModelError(
                    f"the models on {ray.util.get_node_ip_address()} differ from those of the driver.",
                    "copy the same model folders to every machine",
                )
        except XqgError as error:
            # Ray keeps only the text of an error raised in a constructor.
            ray.get(ledger.fail.remote(error))
            raise

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        """Augment the chunks of a table; skip them once the ingest is stopped."""
        job = self._job
        done = []
        for number, chunk in _unpack(table):
            if not ray.get(self._ledger.stopped.remote()):
                done.append((number, augment(chunk, self._encoder, self._generator, job.recipe, job.fingerprint)))
        models = (self._encoder, self._generator)
        ray.get(self._ledger.read.remote(self._name, [model and model.reading for model in models]))
        return _pack(done)


class QdrantDatasink(Datasink):  # type: ignore[misc]
    """A sink that stores augmented chunks on a server, then records each in the ledger."""

    def __init__(self, url: str, collection: str, fingerprint: Fingerprint, ledger: Any) -> None:  # noqa: ANN401
        self._url, self._collection, self._fingerprint, self._ledger = url, collection, fingerprint, ledger

    def write(self, blocks: Iterable[pyarrow.Table], _context: object) -> None:
        """Store the chunks of a task; a rewrite after a kill stores the same points."""
        store = _open_store(self._url, ray.get(self._ledger.keys.remote())[0])
        for block in blocks:
            for number, augmented in _unpack(block):
                write([augmented], store, self._collection, self._fingerprint)
                ray.get(self._ledger.add.remote(number, augmented.progress))
                augmented.settle()


def ingest_on_ray(
    job: Job,
    store: Store,
    keys: Keys,
    plan: Plan,
    stop: Event,
    readings: list[Reading | None] | None = None,
) -> abc.Generator[Progress, None, None]:
    """Store passages as `pipeline.ingest` does; yield after each chunk is stored, in row order.

    An error in any process ends all of them; so does closing this iterator. Both wait for the chunks in flight.

    Args:
        job: the settings of the ingest.
        store: the job's store, opened in this process.
        keys: of the store and the endpoints.
        plan: from `make_plan`.
        stop: once set, no further chunk begins, and those in flight are finished and stored.
        readings: at the end, how much encoder and generator have read is added to it.

    Raises:
        MismatchError: the collection was made with other models or another recipe.
        InputError: the rows cannot be read to the end, which is raised after those before are stored.
        XqgError: a worker raised it or died, or Ray lost chunks.
    """
    if not open_collection(store, job.collection, job.fingerprint):
        if all(isinstance(row, Reject) for row in job.inputs.read()):
            rejects = (row for row in job.inputs.read() if isinstance(row, Reject))
            yield from (Progress(0, 0, tuple(rows), {}, {}) for rows in batched(rejects, CHEAP_CHUNK_SIZE))
            return
        create_collection(store, job.collection, job.dim, job.fingerprint)
    ledger = ray.remote(Ledger).options(num_cpus=0).remote()
    ray.get(ledger.set_keys.remote(keys))
    failed: list[BaseException] = []
    # Deferring the index pays only if points come faster than the network takes them.
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
                # A chunk whose writer was killed is recorded twice.
                waiting.update(
                    (number, progress) for number, progress in ray.get(ledger.take.remote()) if number >= next_number
                )
                while next_number in waiting:
                    yield waiting.pop(next_number)
                    next_number += 1
            # After a stop there are gaps: chunks that never began.
            yield from (waiting[number] for number in sorted(waiting))
        finally:
            ray.get(ledger.stop.remote())
            running.join()
            if readings is not None:
                readings += ray.get(ledger.readings.remote())
    if failed:
        raise ray.get(ledger.failure.remote()) or _explain(failed[0])
    check_unchanged(store, job.collection, job.fingerprint)
    chunks, damage, job.inputs.unused = ray.get(ledger.ended.remote())
    if next_number != chunks and not stop.is_set():
        raise XqgError(
            f"Ray lost chunks: {next_number} of {chunks} were stored.", "run the same command again to resume"
        )
    if damage:
        raise damage[0]


def _run(job: Job, plan: Plan, ledger: Any, failed: list[BaseException]) -> None:  # noqa: ANN401
    try:
        # Expected for a corpus with fewer chunks than workers.
        warnings.filterwarnings("ignore", "The (minimum|maximum) number of concurrent")
        # Of a tokenizer that splits; it is sent once.
        warnings.filterwarnings("ignore", "The serialized size of your read function")
        context = DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        # One block for each chunk: by default Ray gathers 128 MiB of chunks before any is augmented.
        context.target_max_block_size = 1
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)

        # No partial: Ray asks a large function, such as one with a tokenizer, for its name.
        def read() -> Iterator[pyarrow.Table]:
            return _read(job, plan, ledger)

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
    except BaseException as error:  # any error that escapes the thread would look like success
        failed.append(error)


def _read(job: Job, plan: Plan, ledger: Any) -> Iterator[pyarrow.Table]:  # noqa: ANN401
    """Yield the chunks of the corpus, after their lookup in the store."""
    os.chdir(job.directory)
    store = _open_store(job.url, ray.get(ledger.keys.remote()).store)
    damage: list[InputError] = []
    rows = until_damage(job.inputs.read(), damage)
    cheap = bool(plan.gpus) or job.recipe.sampling is None
    number = -1
    for number, chunk in enumerate(cut_chunks(rows, cheap)):
        if ray.get(ledger.stopped.remote()):
            return
        found = look_up(chunk, store, job.collection, job.recipe, job.fingerprint)
        yield _pack([(number, found)])
    ray.get(ledger.end.remote(number + 1, damage, job.inputs.unused))


def _pack(rows: Sequence[tuple[int, Chunk | Augmented]]) -> pyarrow.Table:
    numbers = pyarrow.array([number for number, _ in rows], pyarrow.int64())
    contents = pyarrow.array([pickle.dumps(content) for _, content in rows], pyarrow.large_binary())
    return pyarrow.table({"number": numbers, "content": contents})


def _unpack(table: pyarrow.Table) -> Iterator[tuple[int, Any]]:
    for row in table.to_pylist():
        yield row["number"], pickle.loads(row["content"])


@cache
def _open_store(url: str, key: str | None) -> Store:
    """Open the store once for each process, which runs many tasks."""
    return open_store(url, key)


def _explain(error: BaseException) -> XqgError:
    """Return the error that a worker raised, unwrapped from Ray's."""
    inner: BaseException | None = error
    while inner is not None:
        # Ray's wrapper of an XqgError is an XqgError too, with the whole traceback as its message.
        if isinstance(inner, XqgError) and not isinstance(inner, ray.exceptions.RayError):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    causes = [line for line in re.findall(r"^[\w.]+: .+$", str(error), re.M) if "UserCodeException" not in line]
    cure = "read Ray's logs on that machine, then run the same command again to resume"
    return XqgError(f"a worker failed: {(causes or [repr(error)])[-1]}.", cure)
