"""Send requests to an OpenAI-compatible endpoint: retry, share a limit of connections, and hide the key.

A failure has one of three ends. It passes (a busy or loading server): the request is repeated. It concerns one request:
the caller decides. It concerns all (a wrong key, an empty account): a `ModelError` ends the run.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from xqg_qdrant.errors import InputError, ModelError, XqgError
from xqg_qdrant.secrets import check_key, hide, hide_query, make_redactor, remember
from xqg_qdrant.streams import begin_body, bound_answers
from xqg_qdrant.text import one_line, read_retry_after

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 10.0
LISTING_SECONDS = 20.0
# A long reply of a slow server arrives all at once.
REPLY_SECONDS = 600.0
PATIENCE_SECONDS = 300.0
FIRST_PATIENCE_SECONDS = 3.0
LOADING_SECONDS = 1800.0
FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 30.0
SHOWN_CHARACTERS = 300
# Pages of a proxy in the place of replies: more of them will not become JSON.
MAX_UNREADABLE = 3
LOADING_CURE = "wait until the server has loaded it, and run the same command again"
# In the place of a status: the answer was cut off.
OVERSIZED = 0
# Of one answer; a server that counts more counts wrongly.
MOST_TOKENS = 10**9
LONGEST_NAME = 300

_UNREADABLE = "the answer is not a reply:"
_PURSE = re.compile(r"insufficient_quota|billing|insufficient.{0,20}(balance|credit|fund)|payment|out of credits", re.I)
_RATE = re.compile(r"rate.?limit|resource_?exhausted|too.?many.?requests", re.I)

T = TypeVar("T")
Body: TypeAlias = Mapping[str, Any]


class Site(NamedTuple):
    """What an endpoint is for.

    Attributes:
        option: The option that names its URL, without hyphens.
        path: The end of the URL that requests are posted to.
        key_variable: The environment variable of its key, for messages.
        most_bytes: The largest answer.
        content: The field that every answer but an error has.
    """

    option: str
    path: str
    key_variable: str
    most_bytes: int
    content: str

    def find_url(self, url: str) -> str:
        """Return the URL that requests are posted to.

        Raises:
            InputError: the URL has no host, or holds a user name or password.
        """
        import httpx

        try:
            parts = urlsplit(url.strip())
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            if usable:
                httpx.URL(url.strip()).raw_host.decode("ascii").encode("idna")
        except (ValueError, httpx.InvalidURL):
            usable = False
        if not usable or "@" in parts.netloc or parts.fragment:
            # No part of it is shown: it may hold a secret.
            raise InputError(
                f"the {self.option}'s URL has no host, a bad port, a user name, or a fragment.",
                f"write it like http://localhost:11434/v1, and set a key in {self.key_variable}",
            )
        path = parts.path.rstrip("/")
        return urlunsplit(parts._replace(path=path if path.endswith(self.path) else path + self.path))


class Refusal(NamedTuple):
    """A refused request: the status or `OVERSIZED`, what to show, and the server's own message and code."""

    status: int
    what: str
    message: str = ""
    code: str = ""


class _Passing(NamedTuple):
    """A failure that time may cure: what it is, seconds that the server asks for, and how long to try."""

    what: str
    cure: str
    after: float = 0.0
    patience: float = PATIENCE_SECONDS


class Line:
    """The connections to an endpoint; several threads may use them."""

    def __init__(self, site: Site, url: str, api_key: str | None, concurrency: int, patience: float = math.inf) -> None:
        """Remember the endpoint; nothing is sent.

        Args:
            site: what it is for.
            url: with or without the site's path; a query, such as `?api-version=…`, is kept.
            api_key: sent to this URL's host alone; None sends none.
            concurrency: how many connections are open at once.
            patience: the most seconds to wait for a server that is busy or loads its model.

        Raises:
            InputError: the URL or the key cannot be used.
        """
        self._site = site
        self._patience = patience
        self._url = site.find_url(url)
        self.shown_url = hide_query(self._url)
        self._key = check_key(api_key, site.key_variable)
        secrets = [value for _, value in parse_qsl(urlsplit(self._url).query) if value not in self.shown_url]
        for secret in secrets:
            remember(secret)
        self._redactors = [make_redactor(secret) for secret in (self._key, *secrets) if secret]
        self._concurrency = concurrency
        self._client: httpx.Client | None = None
        self._lock = Lock()
        self._reached = False
        self._ended = Event()
        self.failure: XqgError | None = None

    def ask(
        self,
        make_body: Callable[[], Body],
        read: Callable[[dict[str, Any], Body], T | None],
        refuse: Callable[[Refusal, Body], T | None],
    ) -> T:
        """Return what an answer says; retry while that can help.

        Args:
            make_body: returns the request, in the form that the server takes as far as is known.
            read: returns what an answer with status 200 says; None to send another request at once.
            refuse: returns what a refusal means for this request; None to send another at once.

        Raises:
            XqgError: no request can succeed, this one or another, or `end` was called.
        """
        started, delay, unreadable = time.monotonic(), FIRST_DELAY_SECONDS, 0
        while True:
            if self.failure is not None:
                raise self.failure
            body = make_body()
            try:
                found = self._post(body, read, refuse)
            except XqgError as error:
                self.end(error)
                raise
            if found is None:
                continue
            if not isinstance(found, _Passing):
                return found
            unreadable += found.what.startswith(_UNREADABLE)
            wait = found.after + delay * random.uniform(0.5, 1.0)
            patience = min(found.patience, self._patience, math.inf if self._reached else FIRST_PATIENCE_SECONDS)
            if time.monotonic() - started + wait > patience or unreadable >= MAX_UNREADABLE:
                asks = f" The server asks to wait {found.after:.0f} s." if found.after else ""
                lost = ModelError(f"no answer from {self.shown_url}: {found.what}.{asks}", found.cure)
                self.end(lost)
                raise lost
            self._ended.wait(wait)
            delay = min(2 * delay, MAX_DELAY_SECONDS)

    def find_served(self, model: str) -> str:
        """Return a model's name in the server's list of models; the given name where there is no such list.

        Servers of a single model take any name: its own name is returned, which shows when another one is served.

        Raises:
            XqgError: the server cannot be reached.
        """
        import httpx

        parts = urlsplit(self._url)
        url = urlunsplit(parts._replace(path=parts.path.removesuffix(self._site.path) + "/models"))
        started, delay = time.monotonic(), FIRST_DELAY_SECONDS
        while True:
            try:
                status, _, content = self._send(self._open(), url, LISTING_SECONDS, None)
                waited = time.monotonic() - started
                if status == 503 and waited > self._patience:
                    what = f"HTTP {status}: {self.hide(read_error(content or b'')[0])}"
                    raise ModelError(f"{self.shown_url} is still loading the model ({what}).", LOADING_CURE)
                if status != 503 or waited > LOADING_SECONDS:
                    return _find_model(content or b"", model) if status == 200 else model
                delay = MAX_DELAY_SECONDS / 10
            except httpx.ConnectError as error:
                if time.monotonic() - started > FIRST_PATIENCE_SECONDS:
                    what = self.hide(f"{type(error).__name__}: {error}")
                    cure = f"start the server, or correct --{self._site.option}"
                    raise ModelError(f"no answer from {self.shown_url}: {what}.", cure) from None
            except httpx.HTTPError:
                return model
            time.sleep(delay * random.uniform(0.5, 1.0))

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def end(self, error: XqgError) -> None:
        """Let no further request begin; the first error counts."""
        with self._lock:
            self.failure = self.failure or error
        self._ended.set()

    def hide(self, text: str) -> str:
        """Return a text of the server, short and without the key."""
        for redact in self._redactors:
            text = redact(text)
        return one_line(" ".join(text.split()))[:SHOWN_CHARACTERS].rstrip(".")

    def _post(
        self,
        body: Body,
        read: Callable[[dict[str, Any], Body], T | None],
        refuse: Callable[[Refusal, Body], T | None],
    ) -> T | _Passing | None:
        """Send one request; return what came of it, or why to send it again later."""
        import httpx

        option = self._site.option
        try:
            status, headers, content = self._send(self._open(), self._url, REPLY_SECONDS, body)
        except httpx.TimeoutException as error:
            what = f"{type(error).__name__} ({self.hide(str(error))})"
            return _Passing(what, "see whether the server is overloaded")
        except (httpx.TransportError, httpx.DecodingError) as error:
            what = self.hide(f"{type(error).__name__}: {error}")
            return _Passing(what, f"start the server, and check --{option}")
        self._reached = True
        if content is None:
            return refuse(Refusal(OVERSIZED, f"the reply is larger than {self._site.most_bytes >> 20} MiB"), body)
        if status != 200:
            return self._explain(status, headers, content, body, refuse)
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = content[:SHOWN_CHARACTERS].decode(errors="replace")
        if not isinstance(answer, dict):
            cure = f"check that --{option} is the URL of an OpenAI-compatible server, and the proxies in front of it"
            return _Passing(f"{_UNREADABLE} {self.hide(str(answer))!r}", cure)
        if "error" in answer and not answer.get(self._site.content):
            _, code = read_error(content)
            if found := re.search(r"\b[45]\d\d\b", code):
                return self._explain(int(found[0]), {}, content, body, refuse)
        return read(answer, body)

    def _send(
        self, client: httpx.Client, url: str, seconds: float, body: Body | None
    ) -> tuple[int, Mapping[str, str], bytes | None]:
        """Post a body, or get without one; return status, headers and content, None if that is too large."""
        import httpx

        timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS, pool=None)
        with client.stream("GET" if body is None else "POST", url, json=body, timeout=timeout) as response:
            begin_body(response, seconds)
            content = bytearray()
            for piece in response.iter_bytes():
                content += piece
                if len(content) > self._site.most_bytes:
                    return response.status_code, response.headers, None
            return response.status_code, response.headers, bytes(content)

    def _open(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                import httpx

                headers = {}
                if self._key is not None:
                    headers["Authorization"] = f"Bearer {self._key}"
                    if (urlsplit(self._url).hostname or "").endswith(".azure.com"):
                        headers["api-key"] = self._key
                # The client follows no redirect, so the key reaches no other host.
                self._client = httpx.Client(
                    headers=headers,
                    limits=httpx.Limits(max_connections=self._concurrency),
                )
                bound_answers(self._client, httpx.RemoteProtocolError)
            return self._client

    def _explain(
        self,
        status: int,
        headers: Mapping[str, str],
        content: bytes,
        body: Body,
        refuse: Callable[[Refusal, Body], T | None],
    ) -> T | _Passing | None:
        """Read an answer of another status than 200."""
        message, code = read_error(content)
        option = self._site.option
        what = f"HTTP {status}: {self.hide(message)}"
        after = read_retry_after(headers.get("retry-after", ""))
        if status == 402 or (status in (403, 429) and is_empty_purse(message, code, bool(after))):
            raise ModelError(
                f"the account at {self.shown_url} has no money left: {what}.",
                "check the plan and the billing there, then run the same command again to resume",
            )
        if status == 429 or status == 408 or (status >= 500 and status not in (501, 505)):
            loading = status == 503 and "load" in message.casefold()
            if loading:
                return _Passing(f"it is still loading the model ({what})", LOADING_CURE, after, LOADING_SECONDS)
            cure = "run the same command again later, or with a smaller --concurrency"
            return _Passing(what, cure, after)
        if 300 <= status < 400:
            place = self.hide(headers.get("location", ""))
            raise ModelError(
                f"{self.shown_url} redirects to {place!r}.", f"set --{option} to the URL that does not redirect"
            )
        if status in (401, 403):
            raise ModelError(
                f"{self.shown_url} refuses the key: {what}.", f"set {self._site.key_variable} to a key of that server"
            )
        if status in (404, 405, 501):
            raise ModelError(f"{self.shown_url}: {what}.", f"check --{option}, which often ends with /v1, and --model")
        return refuse(Refusal(status, what, message, code), body)


def find_key(variables: Sequence[str]) -> tuple[str, str | None]:
    """Return the first of these environment variables that holds a key, and the key; else an empty name and None."""
    return next(((name, key) for name in variables if (key := os.environ.get(name))), ("", None))


def _find_model(content: bytes, wanted: str) -> str:
    """Return the wanted name if it is listed, or the only one listed if it is fit to be kept."""
    try:
        names = [str(model["id"]) for model in json.loads(content)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return wanted
    only = names[0] if len(names) == 1 and wanted not in names else wanted
    return only if len(only) <= LONGEST_NAME and only.isprintable() and hide(only) == only else wanted


def read_error(content: bytes) -> tuple[str, str]:
    """Return the message and the code of an error, which may be an object, a text, or anything else."""
    text = content[: 1 << 16].decode(errors="replace")
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return text, ""
    if isinstance(answer, list) and answer:
        answer = answer[0]
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if not isinstance(error, dict):
        return str(error), ""
    message = error.get("message") or error.get("detail") or text
    code = " ".join(str(error[name]) for name in ("code", "type", "status") if error.get(name))
    return str(message), code


def read_count(usage: object, name: str) -> int:
    """Return a number of tokens that a server counted; 0 if there is none, or none that can be true."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 < count <= MOST_TOKENS else 0


def is_empty_purse(message: str, code: str, waits: bool) -> bool:
    """Return whether an account is empty, by the error's code, else by its text if no wait is asked for."""
    if code and (_PURSE.search(code) or _RATE.search(code)):
        return _PURSE.search(code) is not None
    return not waits and _PURSE.search(message) is not None
