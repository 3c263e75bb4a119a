"""The real server that QDRANT_URL names, for tests marked `server`; they use names of their own prefix alone."""

from __future__ import annotations

import os
import uuid
from typing import NamedTuple

import pytest


class RealServer(NamedTuple):
    """A server, its key, and a prefix for the names of collections, aliases and snapshots."""

    url: str
    api_key: str | None
    prefix: str


def real_server(request: pytest.FixtureRequest) -> RealServer:
    """Return the server, or skip the test; `conftest` took the variables out of the environment."""
    assert request.node.get_closest_marker("server"), "only a test marked `server` may use the server"
    url = os.environ.get("XQG_TEST_QDRANT_URL")
    if not url:
        pytest.skip("QDRANT_URL names no Qdrant server")
    return RealServer(url, os.environ.get("XQG_TEST_QDRANT_API_KEY"), f"xqg-test-{uuid.uuid4().hex}-")
