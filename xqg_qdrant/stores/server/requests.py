"""Send requests to Qdrant: connect, retry, explain failures, hide the key, and upsert by gRPC where possible."""

from __future__ import annotations

import html
import json
import os
import random
import re
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar
from urllib.parse import urlsplit

import httpx
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as messages
from qdrant_client.connection import get_channel
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from xqg_qdrant.errors import InputError, StoreError

# How long to retry a failing request: long enough for a server's restart, but a wrong URL fails at once.
PATIENCE_SECONDS = 300.0
FIRST_PATIENCE_SECONDS = 3.0
FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 15.0
# A server answers only when the snapshot is complete, and a collection can have any size.
SNAPSHOT_SECONDS = 4 * 3600.0

# Worth a retry. Waiting does not help with three of the 500s: not implemented, wrong HTTP version, full disk.
PASSING_STATUSES = frozenset({408, 429, *range(500, 600)} - {501, 505, 507})
SHOWN_CHARACTERS = 400
HIDDEN = "***"

# Qdrant's default pair; beside any other REST port there could be another server.
REST_PORT = 6333
GRPC_PORT = 6334
PROBE_SECONDS = 1.0

P = ParamSpec("P")
T = TypeVar("T")


class NotFoundError(StoreError):
    """The server says that there is no such collection."""


class Failure(NamedTuple):
    """Why a request failed: if `passing`, a retry can help, `after` at least so many seconds."""

    what: str
    cure: str
    passing: bool = False
    after: float = 0.0
    kind: type[StoreError] = StoreError


class Wire:
    """Calls a client's methods; all requests except those of `ask_once` may be sent twice."""

    def __init__(self, location: str, api_key: str | None, *, remote: bool) -> None:
        self._location = location
        self._remote = remote
        self.hide = make_redactor(api_key)
        self._has_key = bool((api_key or "").strip())
        self._reached = False
        # Two writing threads would break the local mode.
        self._guard: AbstractContextManager[object] = nullcontext() if remote else threading.Lock()

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
                self._reached = self._reached or isinstance(error, UnexpectedResponse)
                failure, cause = _read_failure(error), error
            else:
                return answer
            patience = PATIENCE_SECONDS if self._reached else FIRST_PATIENCE_SECONDS
            wait = failure.after + delay * random.uniform(0.5, 1.0)  # spreads the retries of many workers
            spent = time.monotonic() - started
            if not failure.passing or spent + wait > patience:
                tried = f" (tried {tries} times in {spent:.0f} s)" if tries > 1 else ""
                # Not raised inside `except`, where Python would keep the client's exception as the context.
                raise self.explain(cause, action, tried)
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
        explained = failure.kind(f"cannot {action} in {self._location}: {what}{tried}.", cure)
        # The server's answer may hold the key; its useful part is in the message.
        explained.__cause__ = None if self._remote else error
        return explained


def connect(location: str, api_key: str | None, seconds: int) -> QdrantClient:
    """Return the client of a server or of the local mode; its requests time out after so many seconds."""
    if location == ":memory:":
        return QdrantClient(location=":memory:")
    if location.startswith("local:"):
        directory = Path(location.removeprefix("local:")).expanduser()
        return QdrantClient(path=str(directory), force_disable_check_same_thread=True)
    with warnings.catch_warnings():
        # The command line warns about a key that travels unencrypted.
        warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
        # The client's own version check would open a thread and a connection before the first request.
        client = QdrantClient(
            url=location,
            api_key=api_key,
            timeout=seconds,
            check_compatibility=False,
            grpc_port=GRPC_PORT,
            grpc_options=read_authorities(),
        )
    client.http.client.add_middleware(keep_retry_after)
    client.http.client.add_middleware(wait_for_snapshots)
    return client


def keep_retry_after(request: httpx.Request, send: Callable[[httpx.Request], httpx.Response]) -> httpx.Response:
    """Send a request; raise a 429 with its headers, as the client cannot read a Retry-After date."""
    response = send(request)
    if response.status_code == 429:
        raise UnexpectedResponse.for_response(response)
    return response


def wait_for_snapshots(request: httpx.Request, send: Callable[[httpx.Request], httpx.Response]) -> httpx.Response:
    """Send a request; wait up to `SNAPSHOT_SECONDS` for one that takes a snapshot."""
    if request.method == "POST" and request.url.path.endswith("/snapshots"):
        request.extensions["timeout"] = {**request.extensions["timeout"], "read": SNAPSHOT_SECONDS}
    return send(request)


def _read_failure(error: Exception) -> Failure:
    if isinstance(error, UnexpectedResponse):
        return _read_response(error.status_code or 0, error.content, error.headers)
    source = error.source if isinstance(error, ResponseHandlingException) else error
    what = f"{type(source).__name__}: {source}"
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
        429: "try again later, or with fewer workers",
        507: "free space on the server's disk, or raise its quota",
    }
    if 300 <= status < 400:
        what = f"HTTP {status}: redirected to {headers.get('Location', '')!r}"
        return Failure(what, "set --store to the URL that does not redirect")
    passing, after, kind = status in PASSING_STATUSES, _read_retry_after(headers), StoreError
    try:
        what = f"HTTP {status}: {json.loads(content)['status']['error']}"
        kind = NotFoundError if status == 404 else StoreError
        cure = "look at the server's log"
    except (ValueError, KeyError, TypeError):
        # The answer of a proxy or another server, not of Qdrant: its 404 does not mean an unknown collection.
        del cures[404]
        what = f"HTTP {status}: {content.decode(errors='replace')!r}"
        cure = "check that this is the URL of a Qdrant server, and that it runs"
    return Failure(what, cures.get(status, cure), passing, after, kind)


def _read_retry_after(headers: httpx.Headers) -> float:
    """Return the seconds that the server asks clients to wait, 0 if it does not."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):  # TypeError for a date without a time zone
        return 0.0


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


def check_key(api_key: str | None) -> str | None:
    """Return the key without surrounding white space, None if it is empty.

    Raises:
        InputError: the key cannot be sent; does not show it.
    """
    key = (api_key or "").strip()
    # The HTTP library would refuse the header with a message that shows the key.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError("the API key holds a character that cannot be sent.", "check QDRANT_API_KEY")
    return key or None


def make_redactor(api_key: str | None) -> Callable[[str], str]:
    """Return a function that hides the key in a text, also if escaped for URLs, HTML or JSON."""
    if api_key is None:
        return lambda text: text
    pattern = re.compile("".join(map(_match_spellings, api_key)))
    return lambda text: pattern.sub(HIDDEN, text)


def _match_spellings(char: str) -> str:
    code = ord(char)
    forms = {
        r"\\{0,8}" + re.escape(char),
        rf"(?i:%(?:25)*{code:02x})",
        rf"(?i:\\{{1,8}}(?:u00|x){code:02x})",
        rf"(?i:&(?:amp;)*#(?:0*{code}|x0*{code:x});)",
        re.escape(html.escape(char)),
    }
    if char == "+":
        forms.add(" ")  # as form decoding reads it
    # The longest first: an escaped `%` or `&` begins like the bare character.
    return f"(?:{'|'.join(sorted(forms, key=len, reverse=True))})"


def read_authorities() -> dict[str, bytes] | None:
    """Return the options that make gRPC trust the same certificates as REST."""
    path = os.environ.get("SSL_CERT_FILE")
    return {"root_certificates": Path(path).read_bytes()} if path else None


class GrpcUpserts:
    """Upserts by gRPC: probed once per collection, given up at the first failure."""

    def __init__(self, client: QdrantClient, location: str, seconds: int) -> None:
        self._client = client
        self._url = urlsplit(location)
        self._seconds = seconds
        self._usable: dict[str, bool] = {}

    def try_upsert(self, collection: str, points: Sequence[models.PointStruct]) -> models.UpdateResult | None:
        """Store the points and return the server's answer, None if they must be sent by REST."""
        if collection not in self._usable:
            self._usable[collection] = self._leads_to(collection)
        if not self._usable[collection]:
            return None
        try:
            converted = [RestToGrpc.convert_point_struct(point) for point in points]
            request = messages.UpsertPoints(collection_name=collection, wait=True, points=converted)
            answer = self._client.grpc_points.Upsert(request, timeout=self._seconds)
            return GrpcToRest.convert_update_result(answer.result)
        except Exception:
            # Refused, lost on the way, or not expressible as a message: a 64-bit number, metadata nested too deep.
            # The points may be stored nevertheless; storing them again is harmless.
            self._usable[collection] = False
            return None

    def _leads_to(self, collection: str) -> bool:
        if (self._url.port or REST_PORT) != REST_PORT or self._url.path.strip("/"):
            return False
        try:
            self._probe()
            request = messages.GetCollectionInfoRequest(collection_name=collection)
            answer = self._client.grpc_collections.Get(request, timeout=PROBE_SECONDS)
            found = GrpcToRest.convert_collection_info(answer.result)
            expected = self._client.get_collection(collection)
        except Exception:
            return False
        return (found.config.metadata, found.created_at) == (expected.config.metadata, expected.created_at)

    def _probe(self) -> None:
        """Check that the port is Qdrant's; sends no key, as another program may listen there."""
        secure = self._url.scheme == "https"
        with get_channel(self._url.hostname or "", GRPC_PORT, secure, options=read_authorities()) as channel:
            reply = messages.QdrantStub(channel).HealthCheck(messages.HealthCheckRequest(), timeout=PROBE_SECONDS)
        if "qdrant" not in reply.title:
            raise ValueError(reply.title)
