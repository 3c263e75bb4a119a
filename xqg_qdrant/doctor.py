"""Check an installation by using each part once.

The checks do what an ingest and a search do, on little data: run a batch through each model; ask an endpoint for a few
vectors or questions; write, read, search and delete a scratch collection; take one passage through all steps. A part
that fails does not stop the other checks.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np

from xqg_qdrant.augmentation.fusion import augment_passage
from xqg_qdrant.augmentation.recipe import choose_recipe
from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.errors import ModelError, StoreError, XqgError
from xqg_qdrant.fingerprint import hash_content, hash_recipe, make_fingerprint
from xqg_qdrant.generation import Endpoint, Generator, chat, open_generator
from xqg_qdrant.generation.llm import LanguageModelGenerator
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference import TextEncoder, open_encoder, remote_encoder
from xqg_qdrant.inference.encoder import Encoder, make_feeds
from xqg_qdrant.inference.endpoint import find_key
from xqg_qdrant.inference.remote_encoder import RemoteEncoder
from xqg_qdrant.inference.session import AUTO, CUDA, Session, are_products_exact, is_cuda_at_hand
from xqg_qdrant.machine import free_memory, integer_instructions
from xqg_qdrant.model_folders import ModelFolder
from xqg_qdrant.model_folders.description import read_endpoint
from xqg_qdrant.records import PASSAGE_VECTOR, XQG_VECTOR, AugmentedPassage, Passage, ScoredPassage
from xqg_qdrant.retrieval import search_hits
from xqg_qdrant.stores import ASKING_SECONDS, Store, find_directory
from xqg_qdrant.stores.protocol import describe_pause
from xqg_qdrant.text import count_of

T = TypeVar("T")

OK, WARNING, FAILED = "ok", "warning", "failed"
PACKAGES = ("xqg-qdrant", "numpy", "tokenizers", "qdrant-client", "qdrant-edge-py")
RUNTIMES = ("onnxruntime-gpu", "onnxruntime")
# The caches of one generator batch may take half of it, besides the models.
LEAST_MEMORY = 1 << 30
# Two float32 vectors of 768 dimensions for 100,000 passages take 0.6 GB, and indexing doubles that.
LEAST_DISK = 1 << 30
SCRATCH_PREFIX = "xqg-doctor-"
SCRATCH_DIM = 4
# Of a language model, which writes any.
ASKED_LANGUAGES = ("ja",)


class Check(NamedTuple):
    """The result of one check.

    Attributes:
        name: The part checked.
        state: `ok`, `warning` or `failed`.
        detail: What was found.
        cure: One action that helps; empty for `ok`.
        exit_code: The error's exit code; 0 unless failed.
        seconds: Duration of each step.
    """

    name: str
    state: str
    detail: str
    cure: str = ""
    exit_code: int = 0
    seconds: Mapping[str, float] = MappingProxyType({})


def examine(
    location: str,
    open_store: Callable[[], Store],
    encoder_folder: Path,
    generator_source: Path | Endpoint,
    device: str,
) -> Iterator[Check]:
    """Check one part after another; yield each check as it ends.

    Args:
        location: of the store.
        open_store: opens it.
        encoder_folder: of a model, or the description of an endpoint.
        generator_source: a model folder, a lexicon, or an endpoint.
        device: of the models in folders.
    """
    directory = find_directory(location)
    yield Check("python", OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield check_packages()
    yield check_memory(free_memory())
    yield check_integers(are_products_exact())
    if directory is not None:
        yield check_disk(directory)
    with ExitStack() as opened:
        encoder, found = _attempt("encoder", lambda: _use_encoder(encoder_folder, device, opened))
        yield found
        generator, found = _attempt("generator", lambda: _use_generator(generator_source, device, opened))
        yield found
        opened.enter_context(_without_new_directory(directory))
        store, found = _attempt("store", lambda: _use_store(open_store))
        yield found
        if store is None:
            return
        opened.callback(store.close)
        if encoder is not None and generator is not None:
            yield _attempt("passage", lambda: _use_all(store, encoder, generator))[1]


def check_packages() -> Check:
    """Check the versions of the packages that results depend on; warn if two runtimes share a folder."""
    found = {}
    for name in (*PACKAGES, *RUNTIMES):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    detail = ", ".join(f"{name} {number}" for name, number in found.items())
    if all(name in found for name in RUNTIMES):
        cure = (
            "run pip uninstall onnxruntime onnxruntime-gpu, then pip install --force-reinstall onnxruntime-gpu, "
            "which runs on CPUs too"
        )
        return Check("packages", WARNING, f"{detail}: two runtimes are installed, and one overwrote the other", cure)
    return Check("packages", OK, detail)


def check_memory(free: int | None) -> Check:
    """Check the free memory in bytes; None if the system does not report it."""
    if free is None:
        return Check("memory", OK, "the system does not report the free memory")
    if free < LEAST_MEMORY:
        cure = "close other programs, or ingest with --threads 1"
        return Check("memory", WARNING, f"{_show_bytes(free)} free, too little for large models and their caches", cure)
    return Check("memory", OK, f"{_show_bytes(free)} free")


def check_integers(exact: bool) -> Check:
    """Report whether the CPU multiplies uint8 by int8 exactly; else int8 models run with uint8 weights."""
    has = ", ".join(integer_instructions()) or "instructions unknown"
    kernel = "uint8 × int8, exact" if exact else "uint8 × uint8, exact; uint8 × int8 saturates on this CPU"
    return Check("integers", OK, f"{kernel} ({has})")


def check_disk(directory: Path) -> Check:
    """Check the free disk at a store's directory, which may not exist yet."""
    existing = next(path for path in (directory, *directory.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    detail = f"{_show_bytes(free)} free for {directory}"
    if free < LEAST_DISK:
        return Check("disk", WARNING, f"{detail}, which is little", "free some space, or choose another --store")
    return Check("disk", OK, detail)


def _attempt(name: str, use: Callable[[], tuple[T, Check]]) -> tuple[T | None, Check]:
    """Use a part; turn an error into a failed check with its exit code."""
    try:
        return use()
    except XqgError as error:
        return None, Check(name, FAILED, error.message, error.cure, error.exit_code)


def _use_encoder(path: Path, device: str, opened: ExitStack) -> tuple[TextEncoder, Check]:
    about = read_endpoint(path)
    encoder = RemoteEncoder(path, about, patience=ASKING_SECONDS) if about else open_encoder(path, device)
    start = time.perf_counter()
    vectors = np.concatenate([encoder.encode_passages([_passage().text]), encoder.encode_queries(["question?"])])
    seconds = time.perf_counter() - start
    if not np.isfinite(vectors).all():
        raise ModelError(f"{path} returns vectors that are not finite.", "export it again, with another --dtype")
    if isinstance(encoder, RemoteEncoder):
        opened.callback(encoder.close)
        where = _describe_endpoint(encoder.shown_url, encoder.source, remote_encoder.KEY_VARIABLES)
        detail = f"{path}: {where}; dim {encoder.dim}; the model that was described; {encoder.tokens} tokens encoded"
        return encoder, Check("encoder", OK, detail, seconds={"request": seconds})
    assert isinstance(encoder, Encoder)
    detail = f"{_describe(encoder.folder)}; dim {encoder.dim}"
    return encoder, _check_device("encoder", detail, path / encoder.graph, device, encoder.device, seconds)


def _use_generator(source: Path | Endpoint, device: str, opened: ExitStack) -> tuple[Generator, Check]:
    if isinstance(source, Endpoint):
        # Replies that were kept would answer in the place of the model.
        journal = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="xqg-doctor-")))
        source = source._replace(journal=journal, max_tokens=0, max_cost=0.0, patience=ASKING_SECONDS)
    generator = open_generator(source, device, threads=0)
    if isinstance(generator, LanguageModelGenerator):
        opened.callback(generator.close)
        return generator, _ask(generator)
    start = time.perf_counter()
    generator.generate([_passage()], generator.languages, 1, 0, generator.sampling)
    seconds = time.perf_counter() - start
    writes = f"writes {', '.join(generator.languages)}"
    if not isinstance(generator, QueryGenerator):
        return generator, Check("generator", OK, f"{source}; {writes}", seconds={"passage": seconds})
    detail = f"{_describe(generator.folder)}; {writes}"
    graph = generator.folder.path / generator.graph
    return generator, _check_device("generator", detail, graph, device, generator.device, seconds)


def _ask(generator: LanguageModelGenerator) -> Check:
    """Ask a language model for one question about a passage."""
    described = generator.describe()
    start = time.perf_counter()
    [written] = generator.generate([_passage()], ASKED_LANGUAGES, 1, 0, generator.sampling)
    seconds = time.perf_counter() - start
    if written.failure is not None:
        raise written.failure
    where = _describe_endpoint(generator.shown_url, described["model"], chat.KEY_VARIABLES)
    usage = written.usage
    detail = f"{where}; {count_of(usage.calls, 'call')}, {usage.tokens_in} tokens in, {usage.tokens_out} out"
    if written.rejected:
        cure = "try another --model, or read the server's log"
        return Check("generator", WARNING, f"{detail}; {written.rejected}", cure, seconds={"call": seconds})
    return Check("generator", OK, f"{detail}; wrote {written.queries[0].text!r}", seconds={"call": seconds})


def _describe_endpoint(url: str, model: str, variables: Sequence[str]) -> str:
    name, _ = find_key(variables)
    return f"{url}, model {model!r}, {f'key of {name}' if name else 'no key'}"


def _check_device(name: str, detail: str, graph: Path, asked: str, opened: str, seconds: float) -> Check:
    """Run a graph of tokens with the runtime's profile, and check where its operators ran.

    Raises:
        ModelError: CUDA was requested, and no operator ran there.
    """
    with tempfile.TemporaryDirectory() as profile:
        session = Session(graph, asked, profile=Path(profile))
        session.run(make_feeds(session, [range(8)]))
        ran = session.count_operators()
    where = ", ".join(f"{count} operators on {device}" for device, count in ran.items())
    detail = f"{detail}; ran on {opened} ({graph.name}: {where})"
    cure = "install CUDA's libraries with: pip install 'xqg-qdrant[cuda]', or use --device cpu"
    if asked.startswith(CUDA) and CUDA not in ran:
        raise ModelError(f"{detail}, although CUDA was requested.", cure)
    # Without CUDA's libraries the runtime silently falls back to the CPU.
    missed = asked == AUTO and CUDA not in ran and is_cuda_at_hand()
    return Check(name, WARNING if missed else OK, detail, cure if missed else "", seconds={"batch": seconds})


def _use_store(open_store: Callable[[], Store]) -> tuple[Store, Check]:
    """Write a point to a scratch collection, search for it, and delete the collection."""
    store = open_store()
    try:
        collections = store.collections()
        paused = [describe_pause(name) for name in collections if store.is_paused(name)]
        seconds = {}
        vector = np.eye(SCRATCH_DIM, dtype=np.float32)[0]
        point = AugmentedPassage(_passage(), (), {XQG_VECTOR: vector, PASSAGE_VECTOR: vector}, "scratch", "scratch")
        with _scratch(store, SCRATCH_DIM, {"scratch": True}) as collection:
            start = time.perf_counter()
            store.upsert(collection, [point])
            seconds["write"] = time.perf_counter() - start
            start = time.perf_counter()
            [hits] = store.search(collection, vector[None], XQG_VECTOR, 1)
            seconds["search"] = time.perf_counter() - start
            _check_found(hits, point, store.location)
    except BaseException:
        store.close()
        raise
    detail = f"{store.location}; {count_of(len(collections), 'collection')}; written, read, searched and deleted"
    if paused:
        whats, cures = zip(*paused, strict=True)
        return store, Check("store", WARNING, "; ".join([detail, *whats]), "; ".join(cures), seconds=seconds)
    return store, Check("store", OK, detail, seconds=seconds)


def _use_all(store: Store, encoder: TextEncoder, generator: Generator) -> tuple[None, Check]:
    """Take one passage of the demo corpus through an ingest and a search."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[step] = time.perf_counter() - start

    # The bank of a calibration would be thousands of questions to an endpoint.
    calibrate = False if isinstance(encoder, RemoteEncoder) else None
    languages = generator.languages or ASKED_LANGUAGES
    recipe = choose_recipe(encoder, generator, languages, calibrate=calibrate).recipe
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
                recipe.sampling,
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
            point = AugmentedPassage(passage, generation.queries, vectors, content, recipe_hash)
            store.upsert(collection, [point])
        with timed("query"):
            [hits] = search_hits(store, collection, encoder, [passage.title], 1, XQG_VECTOR)
        _check_found([hit.found for hit in hits], point, store.location)
    asked = generation.asked * len(recipe.languages)
    detail = f"{len(generation.queries)} of {asked} generated queries kept, found by its title"
    cure = "use a generator trained on these languages (--generator)"
    few = not generation.queries
    return None, Check("passage", WARNING if few else OK, detail, cure if few else "", seconds=seconds)


def _check_found(hits: Sequence[ScoredPassage], point: AugmentedPassage, location: str) -> None:
    if not hits:
        cure = "check that its replicas follow each other"
        raise StoreError(f"{location} does not find a passage that it has just stored.", cure)
    if (hits[0].passage, hits[0].generated_queries) != (point.passage, point.generated_queries):
        raise StoreError(f"{location} returned another passage than was stored.", "report this as a bug of xqg-qdrant")


@contextmanager
def _scratch(store: Store, dim: int, fingerprint: Mapping[str, object]) -> Iterator[str]:
    """Create a collection with a unique name, and delete it on exit."""
    collection = f"{SCRATCH_PREFIX}{uuid.uuid4().hex[:12]}"
    store.create_collection(collection, dim, fingerprint)
    try:
        yield collection
    finally:
        store.delete_collection(collection)


@contextmanager
def _without_new_directory(directory: Path | None) -> Iterator[None]:
    """Remove a store's directory on exit, if the checks created it."""
    existed = directory is None or directory.exists()
    yield
    if directory is not None and not existed:
        with suppress(OSError):
            directory.rmdir()


def _passage() -> Passage:
    return read_demo_passages()[0]


def _describe(folder: ModelFolder) -> str:
    return f"{folder.path}, {folder.description['dtype']}, sha256 {folder.sha256()[:12]} verified"


def _show_bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
