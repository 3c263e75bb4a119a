"""Send requests to Qdrant: connect, retry, explain failures, and hide the key."""

from __future__ import annotations

import json
import logging
import math
import random
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import orjson
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from xqg_qdrant.atomic import find_home
from xqg_qdrant.errors import InputError, StoreError
from xqg_qdrant.secrets import check_proxies, hide, make_redactor, remember
from xqg_qdrant.stores import DEFAULT_PORT, is_loopback
from xqg_qdrant.stores.server.answers import (
    OTHER_SERVER,
    BoundlessAnswerError,
    LargeAnswerError,
    ask_for_gzip,
    bound_answer,
    read_json,
)
from xqg_qdrant.streams import bound_answers
from xqg_qdrant.text import read_retry_after

LOGGER = logging.getLogger(__name__)

# How long to retry a failing request: long enough for a server's restart, but a wrong URL fails at once.
PATIENCE_SECONDS = 300.0
FIRST_PATIENCE_SECONDS = 3.0
FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 15.0
CONNECT_SECONDS = 5.0
TOLD_AGAIN_SECONDS = 60.0
# A server answers only when the snapshot is complete, and a collection can have any size.
SNAPSHOT_SECONDS = 4 * 3600.0

# Worth a retry. Waiting does not help with three of the 500s: not implemented, wrong HTTP version, full disk.
PASSING_STATUSES = frozenset({408, 429, *range(500, 600)} - {501, 505, 507})
FULL_DISK = "No space left on device"  # in Qdrant's 500 for a write
TOO_LARGE = "is larger than allowed"  # in Qdrant's 400 for a request above its max_request_size_mb
SHOWN_CHARACTERS = 400
# Bytes of an answer that are searched for secrets, of which `SHOWN_CHARACTERS` are shown.
LONGEST_QUOTED = 20_000

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class NotFoundError(StoreError):
    """The server says that there is no such collection."""


class ForbiddenError(StoreError):
    """The server says that the key may not do this."""


class TooLargeError(StoreError):
    """The server, or a proxy before it, accepts no request of this size, or its answer is larger than we accept."""


class Failure(NamedTuple):
    """Why a request failed: if `passing`, a retry can help, `after` at least so many seconds."""

    what: str
    cure: str
    passing: bool = False
    after: float = 0.0
    kind: type[StoreError] = StoreError
    by_qdrant: bool = False  # not by a proxy in front of it


class Wire:
    """Calls a client's methods; all requests except those of `ask_once` may be sent twice."""

    def __init__(self, location: str, api_key: str | None, *, remote: bool, patience: float = math.inf) -> None:
        self._location = location
        self._remote = remote
        self._patience = patience
        self._told = -math.inf
        remember(api_key)
        # The wire also hides keys that are too short for `secrets.hide`.
        redact = make_redactor(api_key)
        self.hide: Callable[[str], str] = lambda text: redact(hide(text))
        self._has_key = bool((api_key or "").strip())
        self._reached = False
        # Two writing threads would break the local mode.
        self._guard: AbstractContextManager[object] = nullcontext() if remote else threading.Lock()

    def assume_reached(self) -> None:
        """Retry even the first request for as long as any other."""
        self._reached = True

    def ask(self, action: str, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the client; retry while that can help.

        Raises:
            StoreError: names the action, the location and the answer.
        """
        started, delay, tries = time.monotonic(), FIRST_DELAY_SECONDS, 0
        while True:
            tries += 1
            try:
                with self._guard:
                    answer = method(*args, **kwargs)
                self._reached = True
            except Exception as error:
                failure, cause = _read_failure(error), error
                self._reached = self._reached or failure.by_qdrant
            else:
                return answer
            patience = min(self._patience, PATIENCE_SECONDS if self._reached else FIRST_PATIENCE_SECONDS)
            wait = failure.after + delay * random.uniform(0.5, 1.0)  # spreads the retries of many workers
            spent = time.monotonic() - started
            if not failure.passing or spent + wait > patience:
                tried = f" (tried {tries} times in {spent:.0f} s)" if tries > 1 else ""
                # Not raised inside `except`, where Python would keep the client's exception as the context.
                raise self.explain(cause, action, tried)
            if started - self._told > TOLD_AGAIN_SECONDS:
                self._told = started
                told = self.explain(cause, action).message
                LOGGER.warning("%s Trying again for up to %.0f s.", told, patience)
            del cause
            time.sleep(wait)
            delay = min(2 * delay, MAX_DELAY_SECONDS)

    def ask_once(self, action: str, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method of the client that is not idempotent; never retry.

        Raises:
            StoreError: names the action, the location and the answer.
        """
        try:
            with self._guard:
                return method(*args, **kwargs)
        except Exception as error:
            cause = error
        raise self.explain(cause, action)

    def explain(self, error: Exception, action: str, tried: str = "") -> StoreError:
        """Return the error to raise, outside any `except`, for an exception of the client."""
        failure = _read_failure(error)
        what = " ".join(self.hide(failure.what).split())
        what = "".join(char if char.isprintable() else "?" for char in what[:SHOWN_CHARACTERS])
        refused = self._has_key and isinstance(error, UnexpectedResponse) and error.status_code == 401
        cure = "correct QDRANT_API_KEY: the server refuses the key in it" if refused else failure.cure
        if self._remote and not failure.by_qdrant and urlsplit(self._location).port is None:
            cure = f"{cure}. The URL names no port, so port {DEFAULT_PORT} was asked"
        explained = failure.kind(f"cannot {action} in {self._location}: {what}{tried}.", cure)
        # The server's answer may hold the key; its useful part is in the message.
        explained.__cause__ = None if self._remote else error
        return explained


class Parts:
    """Sends lists of items, in smaller requests once one was larger than the server or a proxy accepts."""

    def __init__(self) -> None:
        self._most: int | None = None

    def send(self, items: Sequence[S], send: Callable[[Sequence[S]], T], name: Callable[[S], str]) -> Iterator[T]:
        """Yield the answer to each request.

        Raises:
            StoreError: one item is too large; names it.
        """
        done = 0
        while done < len(items):
            part = items[done : done + (self._most or len(items))]
            try:
                answer = send(part)
            except TooLargeError as error:
                if len(part) == 1:
                    raise StoreError(f"{name(part[0])} is too large: {error.message}", error.cure) from None
                self._most = len(part) // 2
            else:
                done += len(part)
                yield answer


def connect(location: str, api_key: str | None, seconds: int, patience: float = math.inf) -> QdrantClient:
    """Return the client of a server or of the local mode; a request times out after `seconds` or `patience`."""
    if location == ":memory:":
        return QdrantClient(location=":memory:")
    if location.startswith("local:"):
        directory = find_home(Path(location.removeprefix("local:")))
        heal_local(directory)
        return QdrantClient(path=str(directory), force_disable_check_same_thread=True)
    check_proxies()
    with warnings.catch_warnings():
        # The command line warns about a key that travels unencrypted.
        warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
        # The client's own version check would open a thread and a connection before the first request.
        client = QdrantClient(
            url=location,
            api_key=api_key,
            timeout=seconds,
            check_compatibility=False,
            event_hooks={"request": [ask_for_gzip], "response": [partial(bound_answer, patience)]},
            # A proxy could read the key on its way to a server on this machine, and would not find that server.
            mounts=dict.fromkeys(("all://", "http://", "https://")) if is_loopback(location) else None,
        )
    bound_answers(client.http.client._client, BoundlessAnswerError)
    client.http.client.add_middleware(keep_retry_after)
    client.http.client.add_middleware(partial(limit_waiting, patience))
    return client


def post(client: QdrantClient, collection: str, path: str, body: object) -> Any:  # noqa: ANN401
    """Send a request on a collection's points and return its result, without the client's models.

    Pages of vectors take ten times as long through those. They travel uncompressed: a server takes longer to compress
    a vector than to do all else with it.

    Args:
        client: of a server.
        collection: its name.
        path: what follows the name in the URL.
        body: JSON values and float32 arrays, which are written with as many digits as they need.

    Raises:
        UnexpectedResponse, ResponseHandlingException: as from the client's own methods.
    """
    api = client.http.client
    request = api._client.build_request(
        "POST",
        f"{api.host.rstrip('/')}/collections/{quote(collection, safe='')}/{path}",
        content=orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY),
        headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
    )
    response = api.middleware(request, api.send_inner)
    if response.status_code not in (200, 201, 202):
        raise UnexpectedResponse.for_response(response)
    answer = read_json(response.content)
    if not isinstance(answer, dict) or "result" not in answer:
        raise ResponseHandlingException(TypeError("an answer without a result"))
    return answer["result"]


def heal_local(directory: Path) -> None:
    """Remove the list of collections that a killed process left half written, if there are no collections yet.

    Raises:
        StoreError: the list is damaged, and there are collections.
    """
    listed = directory / "meta.json"
    try:
        json.loads(listed.read_bytes())
    except FileNotFoundError:
        return
    except (ValueError, RecursionError) as error:
        if any((directory / "collection").glob("*/*")):
            cure = "restore it from a backup, or ingest into another directory"
            raise StoreError(f"{listed} is damaged ({error}).", cure) from error
        listed.unlink()


def keep_retry_after(request: httpx.Request, send: Callable[[httpx.Request], httpx.Response]) -> httpx.Response:
    """Send a request; raise a 429 with its headers, as the client cannot read a Retry-After date."""
    response = send(request)
    if response.status_code == 429:
        raise UnexpectedResponse.for_response(response)
    return response


def limit_waiting(
    patience: float, request: httpx.Request, send: Callable[[httpx.Request], httpx.Response]
) -> httpx.Response:
    """Send a request; wait `CONNECT_SECONDS` for the connection, and for the answer up to `patience` seconds.

    For an answer that takes a snapshot, wait up to `SNAPSHOT_SECONDS`.
    """
    timeout = request.extensions["timeout"]
    takes_snapshot = request.method == "POST" and request.url.path.endswith("/snapshots")
    read = SNAPSHOT_SECONDS if takes_snapshot else min(timeout["read"], patience)
    request.extensions["timeout"] = {
        **timeout,
        "connect": min(timeout["connect"], CONNECT_SECONDS, patience),
        "read": read,
    }
    return send(request)


def _read_failure(error: Exception) -> Failure:
    if isinstance(error, UnexpectedResponse):
        return _read_response(error.status_code or 0, error.content, error.headers)
    source = error.source if isinstance(error, ResponseHandlingException) else error
    what = f"{type(source).__name__}: {source}"
    if isinstance(source, BoundlessAnswerError):
        kind = TooLargeError if isinstance(source, LargeAnswerError) else StoreError
        return Failure(str(source), OTHER_SERVER, kind=kind)
    if isinstance(source, (RecursionError, MemoryError)):
        return Failure(f"the answer is nested too deep or too large ({type(source).__name__})", OTHER_SERVER)
    if isinstance(source, httpx.TimeoutException):
        cure = "try again when the server is less busy; repeated writes are harmless"
        return Failure(what, cure, passing=True)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(source)):
        cure = "set SSL_CERT_FILE to the certificate of the authority that signed the server's, or renew the server's"
        return Failure(what, cure)
    if isinstance(source, (httpx.TransportError, httpx.DecodingError)):
        return Failure(what, "check that the server runs, and check its URL and port", passing=True)
    if isinstance(source, (json.JSONDecodeError, UnicodeDecodeError)):
        # Cut off on the way, or not from Qdrant.
        cure = "check that this is the URL of a Qdrant server, and check the proxies in front of it"
        return Failure("the answer is not JSON", cure, passing=True)
    if isinstance(error, (ResponseHandlingException, AssertionError)):
        cure = "upgrade qdrant-client and the server to versions that are at most one minor apart"
        return Failure(f"qdrant-client cannot read the answer ({type(source).__name__})", cure)
    if isinstance(source, (FileNotFoundError, ssl.SSLError)):
        return Failure(what, "set SSL_CERT_FILE to a file of certificates, or unset it")
    if isinstance(source, (ImportError, ValueError)) and "proxy" in str(source):
        cure = "set HTTP_PROXY, HTTPS_PROXY and ALL_PROXY to http:// URLs, unset them, or pip install 'httpx[socks]'"
        return Failure(what, cure)
    if "already accessed by another instance" in str(error):
        return Failure("in use by another process", "wait for it or end it, or use a Qdrant server")
    return Failure(what, "check that QdrantClient wrote the directory")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _read_response(status: int, content: bytes, headers: httpx.Headers) -> Failure:
    cures = {
        401: "set QDRANT_API_KEY to the server's key",
        403: "set QDRANT_API_KEY to a key that may do this",
        404: "check the name of the collection",
        413: "raise the limit of the proxy in front of the server, client_max_body_size in nginx",
        429: "try again later, or with fewer workers",
        507: "free space on the server's disk, or raise its quota",
    }
    if 300 <= status < 400:
        what = f"HTTP {status}: redirected to {headers.get('Location', '')!r}"
        return Failure(what, "set --store to the URL that does not redirect")
    passing, after = status in PASSING_STATUSES, read_retry_after(headers.get("Retry-After", ""))
    kind: type[StoreError] = TooLargeError if status == 413 else StoreError
    try:
        reason = json.loads(content)["status"]["error"]
        what = f"HTTP {status}: {str(reason)[:LONGEST_QUOTED]}"
        kind = {403: ForbiddenError, 404: NotFoundError}.get(status, kind)
        cure, by_qdrant = "look at the server's log", True
        if status == 400 and TOO_LARGE in str(reason):
            kind, cure = TooLargeError, "raise max_request_size_mb in the server's configuration"
        if status == 500 and FULL_DISK in str(reason):
            passing, cure = False, f"{cures[507]}; then run the same command again"
    except (ValueError, KeyError, TypeError, RecursionError):
        # The answer of a proxy or another server, not of Qdrant: its 404 does not mean an unknown collection.
        del cures[404]
        by_qdrant = False
        what = f"HTTP {status}: {content[:LONGEST_QUOTED].decode(errors='replace')!r}"
        cure = "check that this is the URL of a Qdrant server, and that it runs"
    return Failure(what, cures.get(status, cure), passing, after, kind, by_qdrant)


def check_url(url: str) -> None:
    """Check that a URL is valid and holds no credentials.

    Raises:
        InputError: the URL is refused; shows no part of it, as it may hold a secret.
    """
    if any(char in url for char in "@?#"):
        what = "the store's URL holds a user name, a password, a query or a fragment"
        raise InputError(f"{what}.", "set QDRANT_API_KEY instead")
    try:
        parts = urlsplit(url)
        usable = parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        # The text where the port belongs may be a password.
        cure = "write it like http://localhost:6333"
        raise InputError("the store's URL has no host, or its port is not a number.", cure)
