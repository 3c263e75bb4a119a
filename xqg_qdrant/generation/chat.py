"""Send prompts to an OpenAI-compatible chat endpoint: retry, adapt to what the server takes, and hide the key.

A failure has one of three ends. It passes (a busy or loading server): the call is repeated. It concerns one prompt (a
refusal, a text too long): the reply says so, and the run goes on. It concerns all (a wrong key, an empty account): a
`ModelError` ends the run.
"""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from xqg_qdrant.errors import InputError, ModelError, XqgError
from xqg_qdrant.generation import Usage
from xqg_qdrant.secrets import HIDDEN, check_key, make_redactor, remember
from xqg_qdrant.text import one_line, read_retry_after

if TYPE_CHECKING:
    import httpx

KEY_VARIABLES = ("XQG_LLM_API_KEY", "OPENAI_API_KEY")
CHAT_PATH = "/chat/completions"
CONNECT_SECONDS = 10.0
LISTING_SECONDS = 20.0
# A long reply of a slow server arrives all at once.
REPLY_SECONDS = 600.0
PATIENCE_SECONDS = 300.0
FIRST_PATIENCE_SECONDS = 3.0
LOADING_SECONDS = 1800.0
FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 30.0
MAX_REPLY_BYTES = 4 << 20
SHOWN_CHARACTERS = 300
# Pages of a proxy in the place of replies: more of them will not become JSON.
MAX_UNREADABLE = 3
# Refused requests in a row that end the run, as they are hardly the passages' fault.
MAX_REFUSED = 20

FORMATS = ("json_schema", "json_object", "none")


TRUNCATED = "length"
# How servers name the field of structured output in their errors.
FORMAT = re.compile(r"response_?format|json_?schema|json_?object|structured.?output|grammar|guided", re.I)
_PURSE = re.compile(r"insufficient_quota|billing|insufficient.{0,20}(balance|credit|fund)|payment|out of credits", re.I)
_RATE = re.compile(r"rate.?limit|resource_?exhausted|too.?many.?requests", re.I)
_TOO_LONG = re.compile(
    r"context.?(length|size|window)|too (long|large|many tokens)|maximum.{0,20}tokens|exceeds?.{0,40}context", re.I
)
_FILTERED = re.compile(r"content.?(filter|policy|management)|safety|moderation", re.I)

_log = logging.getLogger(__name__)


class Reply(NamedTuple):
    """An answered call.

    Attributes:
        content: The text; empty if there is none.
        finish: The server's `finish_reason`.
        rejected: Why this prompt is not to be asked again; empty if its text can be used.
        usage: The tokens that this call took.
        model: The model's name as the server reports it.
        format: The `response_format` it was asked in.
    """

    content: str
    finish: str = ""
    rejected: str = ""
    usage: Usage = Usage()
    model: str = ""
    format: str = ""

    @property
    def truncated(self) -> bool:
        """Return whether the reply ended for want of room."""
        return self.finish == TRUNCATED


class _Passing(NamedTuple):
    """A failure that time may cure: what it is, seconds that the server asks for, and how long to try."""

    what: str
    cure: str
    after: float = 0.0
    patience: float = PATIENCE_SECONDS


class Chat:
    """A model behind an endpoint; several threads may call it.

    What the server does not take (a response format, `max_tokens`, `temperature`, `seed`) is left out from then on.
    """

    def __init__(self, url: str, model: str, api_key: str | None, concurrency: int) -> None:
        """Remember the endpoint; nothing is sent.

        Args:
            url: with or without `/chat/completions`; a query, such as `?api-version=…`, is kept.
            model: its name.
            api_key: sent to this URL's host alone; None sends none.
            concurrency: how many connections are open at once.

        Raises:
            InputError: the URL or the key cannot be used.
        """
        self.model = model
        self._url = find_chat_url(url)
        self.shown_url = _hide_query(self._url)
        self._key = check_key(api_key, KEY_VARIABLES[0])
        secrets = [value for _, value in parse_qsl(urlsplit(self._url).query) if value not in self.shown_url]
        for secret in secrets:
            remember(secret)
        redactors = [make_redactor(secret) for secret in (self._key, *secrets) if secret]
        self._redactors = redactors
        self._concurrency = concurrency
        self._client: httpx.Client | None = None
        self._lock = Lock()
        self._left_out: set[str] = set()
        self._room_field = "max_tokens"
        self._format = 0
        self._structured = self._reached = False
        self._refused = 0
        self._ended = Event()
        self.failure: XqgError | None = None

    def ask(self, prompt: str, schema: Mapping[str, Any], room: int, temperature: float | None, seed: int) -> Reply:
        """Return the reply to a prompt; retry while that can help.

        Args:
            prompt: the text of the user's message.
            schema: JSON schema of the reply.
            room: the most tokens of the reply.
            temperature: of the sampling; None is the server's default.
            seed: of the sampling.

        Raises:
            XqgError: no call can succeed, this one or another, or `end` was called.
        """
        started, delay, unreadable = time.monotonic(), FIRST_DELAY_SECONDS, 0
        while True:
            if self.failure is not None:
                raise self.failure
            body = self.make_body(prompt, schema, room, temperature, seed)
            try:
                found = self._post(body)
            except XqgError as error:
                self.end(error)
                raise
            if isinstance(found, Reply):
                return found
            if found is None:  # the server takes no such request; the next one is made in another way
                continue
            unreadable += found.what.startswith(_UNREADABLE)
            wait = found.after + delay * random.uniform(0.5, 1.0)
            patience = found.patience if self._reached else min(found.patience, FIRST_PATIENCE_SECONDS)
            if time.monotonic() - started + wait > patience or unreadable >= MAX_UNREADABLE:
                asks = f" The server asks to wait {found.after:.0f} s." if found.after else ""
                lost = ModelError(f"no answer from {self.shown_url}: {found.what}.{asks}", found.cure)
                self.end(lost)
                raise lost
            self._ended.wait(wait)
            delay = min(2 * delay, MAX_DELAY_SECONDS)

    def find_served(self) -> str:
        """Return the model's name in the server's list of models; the given name where there is no such list.

        Servers of a single model take any name: its own name is returned, which shows when another one is served.

        Raises:
            XqgError: the server cannot be reached.
        """
        import httpx

        url = urlunsplit(
            urlsplit(self._url)._replace(path=urlsplit(self._url).path.removesuffix(CHAT_PATH) + "/models")
        )
        started, delay = time.monotonic(), FIRST_DELAY_SECONDS
        while True:
            try:
                answer = self._open().get(url, timeout=LISTING_SECONDS)
                if answer.status_code != 503 or time.monotonic() - started > LOADING_SECONDS:
                    return _find_model(answer.content, self.model) if answer.status_code == 200 else self.model
                delay = MAX_DELAY_SECONDS / 10
            except httpx.ConnectError as error:
                if time.monotonic() - started > FIRST_PATIENCE_SECONDS:
                    what = self._hide(f"{type(error).__name__}: {error}")
                    cure = "start the server, or correct --generator"
                    raise ModelError(f"no answer from {self.shown_url}: {what}.", cure) from None
            except httpx.HTTPError:
                return self.model
            time.sleep(delay * random.uniform(0.5, 1.0))

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def end(self, error: XqgError) -> None:
        """Let no further call begin; the first error counts."""
        with self._lock:
            self.failure = self.failure or error
        self._ended.set()

    def note_format(self, reply: Reply, structured: bool) -> None:
        """Remember whether a reply had the format it was asked in; give a format up that the server ignores."""
        self._structured = self._structured or structured
        if not structured and not self._structured and reply.format != FORMATS[-1]:
            self._step_down(reply.format, "the server ignores it")

    def make_body(
        self, prompt: str, schema: Mapping[str, Any], room: int, temperature: float | None, seed: int
    ) -> dict[str, Any]:
        """Return a request, in the form that the server takes as far as is known."""
        with self._lock:
            kind, left_out, room_field = FORMATS[self._format], set(self._left_out), self._room_field
        body: dict[str, Any] = {
            "model": self.model,
            # A lone surrogate of a passage has no UTF-8.
            "messages": [{"role": "user", "content": prompt.encode("utf-8", "replace").decode()}],
            room_field: room,
        }
        if kind == "json_schema":
            form = {"name": "questions", "strict": True, "schema": schema}
            body["response_format"] = {"type": kind, "json_schema": form}
        elif kind == "json_object":
            body["response_format"] = {"type": kind}
        body |= {"seed": seed} | ({} if temperature is None else {"temperature": temperature})
        return {name: value for name, value in body.items() if name not in left_out}

    def _post(self, body: Mapping[str, Any]) -> Reply | _Passing | None:
        """Send one request.

        Returns:
            the reply; or why to send it again later; or None to send it at once in another form.
        """
        import httpx

        client = self._open()
        try:
            status, headers, content = self._send(client, body)
        except httpx.TimeoutException as error:
            return _Passing(
                f"{type(error).__name__} ({self._hide(str(error))})", "see whether the server is overloaded"
            )
        except (httpx.TransportError, httpx.DecodingError) as error:
            return _Passing(self._hide(f"{type(error).__name__}: {error}"), "start the server, and check --generator")
        self._reached = True
        if content is None:
            return Reply("", rejected=f"the reply is larger than {MAX_REPLY_BYTES >> 20} MiB")
        if status == 200:
            return self._read(content, body)
        return self._explain(status, headers, content, body)

    def _send(self, client: httpx.Client, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes | None]:
        """Return status, headers and body; None for a body that is too large."""
        import httpx

        deadline = time.monotonic() + REPLY_SECONDS
        with client.stream("POST", self._url, json=body) as response:
            content = bytearray()
            for piece in response.iter_bytes():
                content += piece
                if len(content) > MAX_REPLY_BYTES:
                    return response.status_code, response.headers, None
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout(f"no whole reply in {REPLY_SECONDS:.0f} s")
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
                    timeout=httpx.Timeout(REPLY_SECONDS, connect=CONNECT_SECONDS, pool=None),
                    limits=httpx.Limits(max_connections=self._concurrency),
                )
            return self._client

    def _read(self, content: bytes, body: Mapping[str, Any]) -> Reply | _Passing | None:
        """Read the body of a reply with status 200."""
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            return _Passing(
                f"{_UNREADABLE} {self._hide(content[:SHOWN_CHARACTERS].decode(errors='replace'))!r}", _CHECK_URL
            )
        if not isinstance(answer, dict):
            return _Passing(f"{_UNREADABLE} {self._hide(str(answer))!r}", _CHECK_URL)
        if "error" in answer and not answer.get("choices"):
            _, code = read_error(content)
            if status := re.search(r"\b[45]\d\d\b", code):
                return self._explain(int(status[0]), {}, content, body)
        self._refused = 0
        kind = body.get("response_format", {}).get("type", FORMATS[-1])
        return read_answer(answer, self._hide)._replace(format=kind)

    def _explain(
        self, status: int, headers: Mapping[str, str], content: bytes, body: Mapping[str, Any]
    ) -> Reply | _Passing | None:
        """Read an answer of another status than 200."""
        message, code = read_error(content)
        what = f"HTTP {status}: {self._hide(message)}"
        after = read_retry_after(headers.get("retry-after", ""))
        if status == 402 or (status in (403, 429) and is_empty_purse(message, code, bool(after))):
            raise ModelError(
                f"the account at {self.shown_url} has no money left: {what}.",
                "check the plan and the billing there, then run the same command again to resume",
            )
        if status == 429 or status == 408 or (status >= 500 and status not in (501, 505)):
            loading = status == 503 and "load" in message.casefold()
            cure = "run the same command again later, or with a smaller --concurrency"
            return _Passing(what, cure, after, LOADING_SECONDS if loading else PATIENCE_SECONDS)
        if 300 <= status < 400:
            place = self._hide(headers.get("location", ""))
            raise ModelError(
                f"{self.shown_url} redirects to {place!r}.", "set --generator to the URL that does not redirect"
            )
        if status in (401, 403):
            raise ModelError(
                f"{self.shown_url} refuses the key: {what}.", f"set {KEY_VARIABLES[0]} to a key of that server"
            )
        if status in (404, 405, 501):
            raise ModelError(f"{self.shown_url}: {what}.", "check --generator, which often ends with /v1, and --model")
        if status in (400, 413, 422) and (rejected := judge_prompt(message, code)):
            return Reply("", rejected=f"{rejected} ({what})")
        if self._adapt(message, body):
            return None
        self._refused += 1
        if not self._reached or self._refused >= MAX_REFUSED:
            raise ModelError(f"{self.shown_url} refuses every request: {what}.", "check --model and the server's log")
        return Reply("", rejected=f"the server refused the request ({what})")

    def _adapt(self, message: str, body: Mapping[str, Any]) -> bool:
        """Leave out or rename what a refusal names; return whether another request is worth sending."""
        text = message.casefold()
        if "max_completion_tokens" in text and "max_tokens" in body:
            if self._room_field == "max_tokens":
                self._room_field = "max_completion_tokens"
                _log.warning("the server wants max_completion_tokens in the place of max_tokens")
            return True
        if "response_format" in body and FORMAT.search(text):
            self._step_down(body["response_format"]["type"], self._hide(message))
            return True
        for name in ("temperature", "seed", "max_completion_tokens", "max_tokens"):
            if name in body and name in text:
                if name not in self._left_out:
                    self._left_out.add(name)
                    _log.warning("the server does not take %s=%s, so it is left out", name, body[name])
                return True
        return False

    def _step_down(self, kind: str, reason: str) -> None:
        with self._lock:
            if FORMATS[self._format] != kind:
                return  # another thread did
            self._format += 1
            now = FORMATS[self._format]
        _log.warning(
            "no %s from %s (%s); asking for %s", kind, self.shown_url, reason, now if now != "none" else "text"
        )

    def _hide(self, text: str) -> str:
        return one_line(" ".join(_apply(self._redactors, text).split()))[:SHOWN_CHARACTERS].rstrip(".")


_UNREADABLE = "the answer is not a reply:"
_CHECK_URL = "check that --generator is the URL of an OpenAI-compatible server, and the proxies in front of it"


def find_chat_url(url: str) -> str:
    """Return the URL that chats are posted to.

    >>> find_chat_url("http://localhost:11434/v1/"), find_chat_url("https://h/x/chat/completions?api-version=1")
    ('http://localhost:11434/v1/chat/completions', 'https://h/x/chat/completions?api-version=1')

    Raises:
        InputError: the URL has no host, or holds a user name or password.
    """
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or parts.fragment:
        # No part of it is shown: it may hold a secret.
        raise InputError(
            "the generator's URL has no host, a bad port, a user name, or a fragment.",
            f"write it like http://localhost:11434/v1, and set a key in {KEY_VARIABLES[0]}",
        )
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith(CHAT_PATH) else path + CHAT_PATH))


def _find_model(content: bytes, wanted: str) -> str:
    """Return the wanted name if it is listed, or the only one listed."""
    try:
        names = [str(model["id"]) for model in json.loads(content)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return wanted
    return names[0] if len(names) == 1 and wanted not in names else wanted


def _hide_query(url: str) -> str:
    parts = urlsplit(url)
    shown = [(name, value if name == "api-version" else HIDDEN) for name, value in parse_qsl(parts.query)]
    return urlunsplit(parts._replace(query=urlencode(shown, safe="*")))


def _apply(redactors: Sequence[Callable[[str], str]], text: str) -> str:
    for redact in redactors:
        text = redact(text)
    return text


def read_answer(answer: Mapping[str, Any], hide: Callable[[str], str]) -> Reply:
    """Return the reply in the JSON of an answered call.

    Args:
        answer: the object that the server sent.
        hide: makes a text of the server safe to show.
    """
    usage = _read_usage(answer)
    choices = answer.get("choices")
    if "error" in answer and not choices:
        message, _ = read_error(json.dumps(answer).encode())
        return Reply("", rejected=f"the server answered with an error: {hide(message)}", usage=usage)
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    if choice is None:
        return Reply("", rejected="the server answered with no choice", usage=usage)
    said = choice.get("message")
    said = said if isinstance(said, dict) else {}
    finish = str(choice.get("finish_reason") or "")
    refusal = said.get("refusal")
    rejected = f"the model refused: {hide(str(refusal))}" if refusal else ""
    if finish == "content_filter":
        rejected = rejected or "the server's content filter stopped the reply"
    return Reply(_read_content(said.get("content")), finish, rejected, usage, str(answer.get("model") or ""))


def _read_content(content: Any) -> str:  # noqa: ANN401
    """Return the text of a message, which may come in parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _read_usage(answer: Mapping[str, Any]) -> Usage:
    usage = answer.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    found = [counts.get(name) for name in ("prompt_tokens", "completion_tokens")]
    return Usage(1, *(count if isinstance(count, int) and count > 0 else 0 for count in found))


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


def is_empty_purse(message: str, code: str, waits: bool) -> bool:
    """Return whether an account is empty, by the error's code, else by its text if no wait is asked for."""
    if code and (_PURSE.search(code) or _RATE.search(code)):
        return _PURSE.search(code) is not None
    return not waits and _PURSE.search(message) is not None


def judge_prompt(message: str, code: str) -> str:
    """Return why a request was refused for its text; empty if it was not."""
    if _FILTERED.search(f"{code} {message}"):
        return "the server's content filter refused the passage"
    if _TOO_LONG.search(f"{code} {message}") and not FORMAT.search(message):
        return "the passage is too long for the model"
    return ""
