"""How a request gets to Qdrant: sent again while that can help, and told plainly when it cannot.

Knows the exceptions of qdrant-client. Knows nothing of collections and points.
"""

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
        explained = failure.kind(f"cannot {action} in {self._location}: {what}{tried}.", failure.cure)
        # What a server sent back may hold the key; all that is of use in it is said above.
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


HIDDEN = "***"


def check_url(url: str) -> None:
    """Refuse a URL that is none, or that holds what belongs into a key.

    Raises:
        InputError: a secret is not shown.
    """
    if any(char in url for char in "@?#"):
        what = "the store's URL holds a user name, a password, a query or a fragment"
        raise InputError(f"{what}.", "set QDRANT_API_KEY instead.")
    try:
        parts = urlsplit(url)
        usable = parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        # What stands in the place of the port may be a password.
        cure = "write it like http://localhost:6333"
        raise InputError("the store's URL has no host, or a port that is no number.", cure)


def check_key(api_key: str | None) -> str | None:
    """Return the key without white space around it, None for an empty one.

    Raises:
        InputError: the key cannot be sent; the key itself is not shown.
    """
    key = (api_key or "").strip()
    # Otherwise the HTTP library refuses the header with a message that holds the key.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError("the API key holds a character that cannot be sent.", "look at QDRANT_API_KEY.")
    return key or None


def make_redactor(api_key: str | None) -> Callable[[str], str]:
    """Return a function that hides the key in a text, also where it is escaped for a URL, for HTML or for JSON."""
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
        forms.add(" ")  # what a form's reader makes of it
    # The longest first: of an escaped `%` or `&` the first character is the same as that of the bare one.
    return f"(?:{'|'.join(sorted(forms, key=len, reverse=True))})"


# The pair that Qdrant comes with. Beside any other port of REST there could be another server.
REST_PORT = 6333
GRPC_PORT = 6334
PROBE_SECONDS = 1.0


def read_authorities() -> dict[str, bytes] | None:
    """Return the options that make gRPC trust the same certificates as REST does."""
    path = os.environ.get("SSL_CERT_FILE")
    return {"root_certificates": Path(path).read_bytes()} if path else None


class GrpcUpserts:
    """The way by gRPC: found out once for each collection, and given up with the first failure."""

    def __init__(self, client: QdrantClient, location: str, seconds: int) -> None:
        self._client = client
        self._url = urlsplit(location)
        self._seconds = seconds
        self._usable: dict[str, bool] = {}

    def try_upsert(self, collection: str, points: Sequence[models.PointStruct]) -> models.UpdateResult | None:
        """Store the points and return what the server says, None where they are to be sent by REST."""
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
            # Refused, lost on the way, or none that messages can hold: a number of 64 bits, metadata nested too deep.
            # It may have been done nevertheless; what is sent twice is stored once.
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
        """Ask without the key, which whatever else listens at the port must not get, whether this is a Qdrant."""
        secure = self._url.scheme == "https"
        with get_channel(self._url.hostname or "", GRPC_PORT, secure, options=read_authorities()) as channel:
            reply = messages.QdrantStub(channel).HealthCheck(messages.HealthCheckRequest(), timeout=PROBE_SECONDS)
        if "qdrant" not in reply.title:
            raise ValueError(reply.title)
