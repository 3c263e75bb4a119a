"""How a request gets to Qdrant: sent again while that can help, and told plainly when it cannot.

Knows the exceptions of qdrant-client. Knows nothing of collections and points.
"""

from __future__ import annotations

import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple, ParamSpec, TypeVar

import httpx
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from xqg_qdrant.errors import StoreError
from xqg_qdrant.stores.api_key import make_redactor

# How long a failing request is repeated: a restart of the server is waited for, a wrong URL is told at once.
PATIENCE_SECONDS = 300.0
FIRST_PATIENCE_SECONDS = 3.0
FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 15.0
# A server answers when the snapshot is complete, and a collection can be of any size.
SNAPSHOT_SECONDS = 4 * 3600.0

# What the same request may survive later. Of the 500s these will not change by waiting: not implemented, the wrong
# version of HTTP, a full disk.
PASSING_STATUSES = frozenset({408, 429, *range(500, 600)} - {501, 505, 507})
SHOWN_CHARACTERS = 400

P = ParamSpec("P")
T = TypeVar("T")


class NotFoundError(StoreError):
    """The server says that there is no such collection."""


class Failure(NamedTuple):
    """Why a request failed: `passing` where it is worth sending again, which the server wants only `after` seconds."""

    what: str
    cure: str
    passing: bool = False
    after: float = 0.0
    kind: type[StoreError] = StoreError


class Wire:
    """Calls a client's methods; every request of ours but those of `ask_once` may be sent twice."""

    def __init__(self, location: str, api_key: str | None, *, remote: bool) -> None:
        self._location = location
        self._remote = remote
        self.hide = make_redactor(api_key)
        self._reached = False
        # The local mode breaks when two threads write.
        self._guard: AbstractContextManager[object] = nullcontext() if remote else threading.Lock()

    def ask(self, action: str, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the client, again and again while that can help.

        Raises:
            StoreError: says what was tried, where, what came back, and the cure.
        """
        started, delay, tries = time.monotonic(), FIRST_DELAY_SECONDS, 0
        while True:
            tries += 1
            try:
                with self._guard:
                    answer = method(*args, **kwargs)
                self._reached = True
            except Exception as error:
                self._reached = self._reached or isinstance(error, UnexpectedResponse)
                failure, cause = _read_failure(error), error
            else:
                return answer
            patience = PATIENCE_SECONDS if self._reached else FIRST_PATIENCE_SECONDS
            wait = failure.after + delay * random.uniform(0.5, 1.0)  # many workers must not come back at one moment
            spent = time.monotonic() - started
            if not failure.passing or spent + wait > patience:
                tried = f" (tried {tries} times in {spent:.0f} s)" if tries > 1 else ""
                # Here and not where it is caught, where Python would keep the client's exception as the context.
                raise self.explain(cause, action, tried)
            del cause
            time.sleep(wait)
            delay = min(2 * delay, MAX_DELAY_SECONDS)

    def ask_once(self, action: str, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the client that, called again, would do the same once more.

        Raises:
            StoreError: says what was tried, where, what came back, and the cure.
        """
        try:
            with self._guard:
                return method(*args, **kwargs)
        except Exception as error:
            cause = error
        raise self.explain(cause, action)

    def explain(self, error: Exception, action: str, tried: str = "") -> StoreError:
        """Return what to raise, outside of any `except`, for an exception of the client."""
        failure = _read_failure(error)
        what = " ".join(self.hide(failure.what).split())
        what = "".join(char if char.isprintable() else "?" for char in what[:SHOWN_CHARACTERS])
        explained = failure.kind(f"cannot {action} in {self._location}: {what}{tried}. Cure: {failure.cure}.")
        # What a server sent back may hold the key; all that is of use in it is said above.
        explained.__cause__ = None if self._remote else error
        return explained


def keep_retry_after(request: httpx.Request, send: Callable[[httpx.Request], httpx.Response]) -> httpx.Response:
    """Send a request; raise a 429 with its headers, of which the client itself reads no Retry-After that is a date."""
    response = send(request)
    if response.status_code == 429:
        raise UnexpectedResponse.for_response(response)
    return response


def wait_for_snapshots(request: httpx.Request, send: Callable[[httpx.Request], httpx.Response]) -> httpx.Response:
    """Send a request; give one that makes a snapshot, which can be of any size, the time that it takes."""
    if request.method == "POST" and request.url.path.endswith("/snapshots"):
        request.extensions["timeout"] = {**request.extensions["timeout"], "read": SNAPSHOT_SECONDS}
    return send(request)


def _read_failure(error: Exception) -> Failure:
    if isinstance(error, UnexpectedResponse):
        return _read_response(error.status_code or 0, error.content, error.headers)
    source = error.source if isinstance(error, ResponseHandlingException) else error
    what = f"{type(source).__name__}: {source}"
    if isinstance(source, httpx.TimeoutException):
        return Failure(what, "try again when the server is less busy; what is sent twice is stored once", passing=True)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(source)):
        cure = "set SSL_CERT_FILE to the certificate of the authority that signed the server's, or renew the server's"
        return Failure(what, cure)
    if isinstance(source, (httpx.TransportError, httpx.DecodingError)):
        return Failure(what, "check that the server runs, and its URL and port", passing=True)
    if isinstance(source, (json.JSONDecodeError, UnicodeDecodeError)):
        # Cut off on the way, or from something that is no Qdrant.
        cure = "check that this is the URL of a Qdrant server, and the proxies before it"
        return Failure("the answer is no JSON", cure, passing=True)
    if isinstance(error, (ResponseHandlingException, AssertionError)):
        cure = "upgrade qdrant-client and the server to versions that are at most one minor apart"
        return Failure(f"the answer is not one that qdrant-client knows ({type(source).__name__})", cure)
    if isinstance(source, (FileNotFoundError, ssl.SSLError)):
        return Failure(what, "let SSL_CERT_FILE name a file of certificates, or unset it")
    if "already accessed by another instance" in str(error):
        return Failure("in use by another process", "wait for it or end it, or use a Qdrant server")
    return Failure(what, "check that the directory is one that QdrantClient wrote")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _read_response(status: int, content: bytes, headers: httpx.Headers) -> Failure:
    cures = {
        401: "set QDRANT_API_KEY to the server's key",
        403: "set QDRANT_API_KEY to a key that may do this",
        404: "check the name of the collection",
        429: "try again later, or with fewer workers",
        507: "free space on the server's disk, or raise its quota",
    }
    if 300 <= status < 400:
        what = f"HTTP {status}: it points to {headers.get('Location', '')!r}"
        return Failure(what, "give --store the URL that answers by itself")
    passing, after, kind = status in PASSING_STATUSES, _read_retry_after(headers), StoreError
    try:
        what = f"HTTP {status}: {json.loads(content)['status']['error']}"
        kind = NotFoundError if status == 404 else StoreError
        cure = "look at the server's log"
    except (ValueError, KeyError, TypeError):
        # Not how Qdrant answers: a proxy before it, or another server. Its 404 does not mean an unknown collection.
        del cures[404]
        what = f"HTTP {status}: {content.decode(errors='replace')!r}"
        cure = "check that this is the URL of a Qdrant server, and that it runs"
    return Failure(what, cures.get(status, cure), passing, after, kind)


def _read_retry_after(headers: httpx.Headers) -> float:
    """Return the seconds that the server wants to be left alone, 0 where it does not say so."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):  # a date without a time zone is none either
        return 0.0
