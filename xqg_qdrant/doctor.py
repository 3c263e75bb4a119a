"""Whether everything works here: each part is really used once, and what came of it told in a line.

A check does what an ingest or a search does, in the same place, on little data: a batch through each model, a scratch
collection that is written, read, searched and deleted, and one passage on its whole way. A part that cannot be used
does not stop the others.

Knows the order of the checks and their limits. Knows nothing of how they are printed.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np

from xqg_qdrant.augmentation.fusion import augment_passage
from xqg_qdrant.augmentation.recipe import make_recipe
from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.errors import ModelError, StoreError, XqgError
from xqg_qdrant.fingerprint import hash_content, hash_recipe, make_fingerprint
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder, make_feeds
from xqg_qdrant.inference.session import AUTO, CUDA, Session, are_products_exact, is_cuda_at_hand
from xqg_qdrant.machine import free_memory, integer_instructions
from xqg_qdrant.model_folders import ModelFolder
from xqg_qdrant.records import PASSAGE_VECTOR, XQG_VECTOR, AugmentedPassage, Passage
from xqg_qdrant.retrieval import search_hits
from xqg_qdrant.stores import Store, find_directory

T = TypeVar("T")

OK, WARNING, FAILED = "ok", "warning", "failed"
PACKAGES = ("xqg-qdrant", "numpy", "tokenizers", "qdrant-client", "qdrant-edge-py")
RUNTIMES = ("onnxruntime-gpu", "onnxruntime")
# The caches of one batch of the generator may take half of it, besides the models.
LEAST_MEMORY = 1 << 30
# Two float32 vectors of 768 dimensions for 100,000 passages are 0.6 GB, and indexing takes a collection's disk twice.
LEAST_DISK = 1 << 30
SCRATCH_PREFIX = "xqg-doctor-"
SCRATCH_DIM = 4


class Check(NamedTuple):
    """What came of one check: `state` is ok, warning or failed, and `exit_code` that of the failure."""

    name: str
    state: str
    detail: str
    cure: str = ""
    exit_code: int = 0
    # how long each step took
    seconds: Mapping[str, float] = MappingProxyType({})


def examine(
    location: str, open_store: Callable[[], Store], encoder_folder: Path, generator_folder: Path, device: str
) -> Iterator[Check]:
    """Check one part after the other; yields each check when it is done."""
    directory = find_directory(location)
    yield Check("python", OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield check_packages()
    yield check_memory(free_memory())
    yield check_integers(are_products_exact())
    if directory is not None:
        yield check_disk(directory)
    encoder, found = _attempt("encoder", lambda: _use_encoder(encoder_folder, device))
    yield found
    generator, found = _attempt("generator", lambda: _use_generator(generator_folder, device))
    yield found
    with _nothing_left(directory):
        store, found = _attempt("store", lambda: _use_store(open_store))
        yield found
        if store is None:
            return
        try:
            if encoder is not None and generator is not None:
                yield _attempt("passage", lambda: _use_all(store, encoder, generator))[1]
        finally:
            store.close()


def check_packages() -> Check:
    """Tell the versions of the packages that results depend on; two runtimes fill the same folder."""
    found = {}
    for name in (*PACKAGES, *RUNTIMES):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    detail = ", ".join(f"{name} {number}" for name, number in found.items())
    if all(name in found for name in RUNTIMES):
        cure = (
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install --force-reinstall onnxruntime-gpu, "
            "which runs on CPUs too"
        )
        return Check("packages", WARNING, f"{detail}: two runtimes, of which one overwrote the other", cure)
    return Check("packages", OK, detail)


def check_memory(free: int | None) -> Check:
    """Tell the free memory, None where the system does not."""
    if free is None:
        return Check("memory", OK, "this system does not tell how much is free")
    if free < LEAST_MEMORY:
        cure = "end other programs, or give --threads 1 to an ingest"
        return Check("memory", WARNING, f"{_show_bytes(free)} free, which is little for models and their caches", cure)
    return Check("memory", OK, f"{_show_bytes(free)} free")


def check_integers(exact: bool) -> Check:
    """Say whether the CPU multiplies uint8 by int8 exactly, or int8 models run with uint8 weights instead."""
    has = ", ".join(integer_instructions()) or "instructions unknown"
    kernel = "uint8 × int8, exact" if exact else "uint8 × uint8, exact; uint8 × int8 saturates on this CPU"
    return Check("integers", OK, f"{kernel} ({has})")


def check_disk(directory: Path) -> Check:
    """Tell the free disk where a store's directory is, or will be."""
    there = next(path for path in (directory, *directory.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    detail = f"{_show_bytes(free)} free for {directory}"
    if free < LEAST_DISK:
        return Check("disk", WARNING, f"{detail}, which is little", "make room, or give another --store")
    return Check("disk", OK, detail)


def _attempt(name: str, use: Callable[[], tuple[T, Check]]) -> tuple[T | None, Check]:
    """Use a part; where that fails, the check says so, with the exit code of the error."""
    try:
        return use()
    except XqgError as error:
        return None, Check(name, FAILED, error.message, error.cure, error.exit_code)


def _use_encoder(path: Path, device: str) -> tuple[Encoder, Check]:
    encoder = Encoder(path, device)
    start = time.perf_counter()
    vectors = np.concatenate([encoder.encode_passages([_passage().text]), encoder.encode_queries(["question?"])])
    seconds = time.perf_counter() - start
    if not np.isfinite(vectors).all():
        raise ModelError(f"{path} gave vectors that are not finite.", "export it again, or in another --dtype")
    detail = f"{_describe(encoder.folder)}; dim {encoder.dim}"
    return encoder, _tell_device("encoder", detail, path / encoder.graph, device, encoder.device, seconds)


def _use_generator(path: Path, device: str) -> tuple[QueryGenerator, Check]:
    generator = QueryGenerator(path, device, threads=0)
    start = time.perf_counter()
    generator.generate([_passage()], generator.languages, 1, 0, generator.sampling)
    seconds = time.perf_counter() - start
    detail = f"{_describe(generator.folder)}; writes {', '.join(generator.languages)}"
    return generator, _tell_device("generator", detail, path / generator.graph, device, generator.device, seconds)


def _tell_device(name: str, detail: str, graph: Path, asked: str, opened: str, seconds: float) -> Check:
    """Run a graph that takes tokens once more, and ask the runtime where its operators ran.

    Raises:
        ModelError: CUDA was asked for, and none of them ran there.
    """
    with tempfile.TemporaryDirectory() as profile:
        session = Session(graph, asked, profile=Path(profile))
        session.run(make_feeds(session, [range(8)]))
        ran = session.count_operators()
    where = ", ".join(f"{count} operators on {device}" for device, count in ran.items())
    detail = f"{detail}; ran on {opened} ({graph.name}: {where})"
    cure = "install CUDA's libraries with: pip install 'xqg-qdrant[cuda]', or give --device cpu"
    if asked.startswith(CUDA) and CUDA not in ran:
        raise ModelError(f"{detail}, although CUDA was asked for.", f"{cure}")
    # The runtime falls back in silence where CUDA's libraries are missing.
    missed = asked == AUTO and CUDA not in ran and is_cuda_at_hand()
    return Check(name, WARNING if missed else OK, detail, cure if missed else "", seconds={"batch": seconds})


def _use_store(open_store: Callable[[], Store]) -> tuple[Store, Check]:
    """Write a point to a scratch collection, read it back, find it and delete all again."""
    store = open_store()
    try:
        count = len(store.collections())
        seconds = {}
        vector = np.eye(SCRATCH_DIM, dtype=np.float32)[0]
        point = AugmentedPassage(_passage(), (), {XQG_VECTOR: vector, PASSAGE_VECTOR: vector}, "scratch", "scratch")
        with _scratch(store, SCRATCH_DIM, {"scratch": True}) as collection:
            start = time.perf_counter()
            store.upsert(collection, [point])
            seconds["write"] = time.perf_counter() - start
            start = time.perf_counter()
            [[hit]] = store.search(collection, vector[None], XQG_VECTOR, 1)
            seconds["search"] = time.perf_counter() - start
            if hit.passage != point.passage:
                raise StoreError(f"{store.location} gave back another passage than was stored.", "report it")
    except BaseException:
        store.close()
        raise
    detail = f"{store.location}; {count} collections; written, read, searched and deleted"
    return store, Check("store", OK, detail, seconds=seconds)


def _use_all(store: Store, encoder: Encoder, generator: QueryGenerator) -> tuple[None, Check]:
    """Take one passage of the demo corpus the whole way that an ingest and a search take it."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[step] = time.perf_counter() - start

    recipe = make_recipe(generator)
    fingerprint = make_fingerprint(encoder.describe(), generator.describe(), recipe.describe())
    with _scratch(store, encoder.dim, fingerprint) as collection:
        with timed("read"):
            passage = _passage()
        with timed("generate"):
            [generation] = generator.generate(
                [passage],
                recipe.languages,
                recipe.queries_per_language,
                recipe.seed,
                recipe.sampling or generator.sampling,
            )
        with timed("encode"):
            [plain] = encoder.encode_passages([f"{passage.title} {passage.text}"])
            queries = encoder.encode_queries([query.text for query in generation.queries])
        with timed("augment"):
            fused, _ = augment_passage(plain, queries, recipe.fusion_settings)
        with timed("upsert"):
            recipe_hash = hash_recipe(fingerprint)
            content = hash_content(passage, recipe_hash)
            vectors = {XQG_VECTOR: fused, PASSAGE_VECTOR: plain}
            store.upsert(collection, [AugmentedPassage(passage, generation.queries, vectors, content, recipe_hash)])
        with timed("query"):
            [[hit]] = search_hits(store, collection, encoder, [passage.title], 1, XQG_VECTOR)
    if hit.found.passage != passage or hit.found.generated_queries != generation.queries:
        raise StoreError(f"{store.location} gave back another passage than was stored.", "report it")
    asked = generation.asked * len(recipe.languages)
    detail = f"{len(generation.queries)} of {asked} generated queries kept, found by its title"
    cure = "use a generator that writes these languages better (--generator)"
    few = not generation.queries
    return None, Check("passage", WARNING if few else OK, detail, cure if few else "", seconds=seconds)


@contextmanager
def _scratch(store: Store, dim: int, fingerprint: Mapping[str, object]) -> Iterator[str]:
    """Make a collection that nobody else has, and delete it whatever happens."""
    collection = f"{SCRATCH_PREFIX}{uuid.uuid4().hex[:12]}"
    store.create_collection(collection, dim, fingerprint)
    try:
        yield collection
    finally:
        store.delete_collection(collection)


@contextmanager
def _nothing_left(directory: Path | None) -> Iterator[None]:
    """Remove a store's directory again where it was made for the checks alone."""
    was_there = directory is None or directory.exists()
    yield
    if directory is not None and not was_there:
        with suppress(OSError):
            directory.rmdir()


def _passage() -> Passage:
    return read_demo_passages()[0]


def _describe(folder: ModelFolder) -> str:
    return f"{folder.path}, {folder.description['dtype']}, sha256 {folder.sha256()[:12]} verified"


def _show_bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
