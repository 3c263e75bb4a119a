"""Fixtures that several test modules share: the shipped models on one thread, small files."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, find_browser, running_browser
from forked import Forks, opened_forks
from rest_qdrant import RestQdrant
from writing import Write, writer

from xqg_qdrant import inference
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.inference.tokenizer import ReadCount
from xqg_qdrant.model_folders import DEMO_ENCODER, DEMO_GENERATOR, shipped_model
from xqg_qdrant.secrets import remember_environment

# Only tests marked `server` may reach a server, by `real_server`: no other test may leave anything there. The workers
# of pytest-xdist inherit the changed environment.
for name in ("QDRANT_URL", "QDRANT_API_KEY"):
    if name in os.environ:
        os.environ[f"XQG_TEST_{name}"] = os.environ.pop(name)
os.environ.pop("XQG_STORE", None)

# Tests that open ONNX Runtime by themselves send its makers nothing either.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@pytest.fixture(scope="session", autouse=True)
def _run_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Name the folder that `checkpoints` shares among all processes of this run; pytest removes it."""
    folder = tmp_path_factory.getbasetemp()
    # pytest-xdist puts the folder of each worker into that of the run.
    os.environ["XQG_TEST_RUN"] = str(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)


@pytest.fixture(autouse=True)
def _no_secrets() -> Iterator[None]:
    """Forget after each test which secrets it used: to the next they are words."""
    yield
    remember_environment({})


@pytest.fixture(scope="session")
def demo_encoder() -> Encoder:
    return Encoder(shipped_model(DEMO_ENCODER), "cpu", threads=1)


@pytest.fixture(scope="module")
def opened_once(demo_encoder: Encoder) -> Iterator[None]:
    """Hand the demo encoder that is open, with a new count, to whoever opens it: that takes a third of a second."""
    open_encoder = inference.open_encoder

    def take(folder: Any = None, *arguments: Any) -> Any:  # noqa: ANN401
        if folder is not None:
            return open_encoder(folder, *arguments)
        taken, read = copy.copy(demo_encoder), demo_encoder.reading
        taken._passages_read = ReadCount(read.model, read.noun, read.longest)
        return taken

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "open_encoder", take)
        yield


@pytest.fixture(scope="session")
def demo_generator() -> QueryGenerator:
    return QueryGenerator(shipped_model(DEMO_GENERATOR), "cpu", threads=1)


@pytest.fixture(scope="module")
def remembered(demo_generator: QueryGenerator) -> Iterator[None]:
    """Have the generator write the same queries once: what is tested is what becomes of them."""
    generate, known = demo_generator.generate, {}

    def remember(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        key = repr((arguments, named))
        if key not in known:
            known[key] = generate(*arguments, **named)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_generator, "generate", remember)
        yield


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts xqg commands in no time, each in a process of its own."""
    with opened_forks() as forks:
        yield forks


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes a file into the folder of the test and returns its path."""
    return writer(tmp_path)


@pytest.fixture(scope="module")
def server() -> Iterator[RestQdrant]:
    """A server that the tests of a module share."""
    with closing(RestQdrant()) as rest:
        yield rest


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A tab that the tests of a module share; where there is no browser `NEEDS_BROWSER` skips the module."""
    binary = find_browser()
    assert binary is not None
    with running_browser(binary) as browser:
        yield browser


@pytest.fixture
def rest() -> Iterator[RestQdrant]:
    server = RestQdrant()
    yield server
    server.close()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=1, help="Seeds of each case of the battery; 1 is a sample for CI.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # Pages are slow, and share nothing.
        alone = item.name.startswith("test_the_blocks_of_a_page_run")
        item.add_marker(pytest.mark.xdist_group(item.name if alone else item.path.name))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(metafunc.config.getoption("--seeds")))
