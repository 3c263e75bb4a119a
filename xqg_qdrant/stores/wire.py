"""How a request gets to Qdrant: sent again while that can help, and told plainly when it cannot.

Knows the exceptions of qdrant-client. Knows nothing of collections and points.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar
from urllib.parse import urlsplit

import httpx
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from xqg_qdrant.errors import InputError, StoreError

# How long a failing request is repeated: a restart of the server is waited for, a wrong URL is told at once.
PATIENCE_SECONDS = 120.0
FIRST_PATIENCE_SECONDS = 3.0
FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 15.0

P = ParamSpec("P")
T = TypeVar("T")


class NotFoundError(StoreError):
    """The server says that there is no such collection."""


class Wire:
    """Calls a client's methods; every request of ours may be sent twice."""

    def __init__(self, location: str, api_key: str | None, *, remote: bool) -> None:
        self._location = location
        self._api_key = api_key
        self._reached = False
        # The local mode breaks when two threads write.
        self._guard: AbstractContextManager[object] = nullcontext() if remote else threading.Lock()

    def ask(self, action: str, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the client, again and again while that can help.

        Raises:
            StoreError: says what was tried, where, what came back, and the cure.
        """
        patience = PATIENCE_SECONDS if self._reached else FIRST_PATIENCE_SECONDS
        started = time.monotonic()
        delay = FIRST_DELAY_SECONDS
        while True:
            try:
                with self._guard:
                    answer = method(*args, **kwargs)
            except Exception as error:
                if isinstance(error, (UnexpectedResponse, QdrantException)):
                    self._reached, patience = True, PATIENCE_SECONDS
                wait = _choose_wait(error, delay)
                if wait is None or time.monotonic() - started + wait > patience:
                    explained = self.explain(error, action)
                    # The cause is shown with -v: it must not repeat a key that a server sent back.
                    raise explained from (None if self._api_key and self._api_key in str(error) else error)
                time.sleep(wait)
                delay = min(2 * delay, MAX_DELAY_SECONDS)
            else:
                self._reached = True
                return answer

    def explain(self, error: Exception, action: str) -> StoreError:
        """Return what to raise for an exception of the client, without the key."""
        what, cure, kind = _describe(error)
        if self._api_key:
            what = what.replace(self._api_key, "***")
        return kind(f"cannot {action} in {self._location}: {what}. Cure: {cure}.")


def check_url(url: str) -> None:
    """Refuse a URL that is none, or that holds what belongs into a key.

    Raises:
        InputError: a secret is not shown.
    """
    if "@" in url or "?" in url:
        raise InputError("the store's URL holds a user name, a password or a query. Cure: set QDRANT_API_KEY instead.")
    try:
        parts = urlsplit(url)
        usable = parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InputError(f"{url!r} is no URL of a server. Cure: write it like http://localhost:6333.")


def check_key(api_key: str | None) -> str | None:
    """Return the key without white space around it, None for an empty one.

    Raises:
        InputError: the key cannot be sent; the key itself is not shown.
    """
    key = (api_key or "").strip()
    # Otherwise the HTTP library refuses the header with a message that holds the key.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError("the API key holds a character that cannot be sent. Cure: look at QDRANT_API_KEY.")
    return key or None


def _choose_wait(error: Exception, delay: float) -> float | None:
    """Return how long to wait before the request is sent again, None where it would fail again."""
    backoff = delay * random.uniform(0.5, 1.0)  # many workers must not come back at the same moment
    if isinstance(error, QdrantException):  # 429 with a Retry-After, which may be a date that the client cannot read
        return max(0.0, float(getattr(error, "retry_after_s", 0.0))) + backoff
    if isinstance(error, UnexpectedResponse):
        status = error.status_code or 0
        return backoff if status == 429 or status >= 500 else None
    if isinstance(error, ResponseHandlingException) and isinstance(error.source, httpx.TransportError):
        return backoff
    return None


def _describe(error: Exception) -> tuple[str, str, type[StoreError]]:
    """Return what happened, the cure, and which error to raise."""
    if isinstance(error, QdrantException):
        return f"too many requests: {error}", "try again later, or with fewer workers", StoreError
    if isinstance(error, ResponseHandlingException):
        source = error.source
        what = f"{type(source).__name__}: {source}"
        if isinstance(source, httpx.TimeoutException):
            return what, "try again when the server is less busy; what is sent twice is stored once", StoreError
        return what, "check that the server runs, and its URL and port", StoreError
    if isinstance(error, UnexpectedResponse):
        return _describe_response(error.status_code or 0, error.content)
    if "already accessed by another instance" in str(error):
        return "in use by another process", "wait for it or end it, or use a Qdrant server", StoreError
    return f"{type(error).__name__}: {error}", "check that the directory is one that QdrantClient wrote", StoreError


def _describe_response(status: int, content: bytes) -> tuple[str, str, type[StoreError]]:
    cures = {
        401: "set QDRANT_API_KEY to the server's key",
        403: "set QDRANT_API_KEY to a key that may do this",
        404: "check the name of the collection",
        429: "try again later, or with fewer workers",
    }
    try:
        what = f"HTTP {status}: {json.loads(content)['status']['error']}"
    except (ValueError, KeyError, TypeError):
        # Not how Qdrant answers: a proxy before it, or another server. Its 404 does not mean an unknown collection.
        del cures[404]
        what = f"HTTP {status}: {content[:200].decode(errors='replace')!r}"
        return what, cures.get(status, "check that this is the URL of a Qdrant server, and that it runs"), StoreError
    return what, cures.get(status, "look at the server's log"), NotFoundError if status == 404 else StoreError
