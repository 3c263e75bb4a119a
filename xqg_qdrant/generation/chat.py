"""Send prompts to an OpenAI-compatible chat endpoint: retry, adapt to what the server takes, and hide the key.

A failure has one of three ends. It passes (a busy or loading server): the call is repeated. It concerns one prompt (a
refusal, a text too long): the reply says so, and the run goes on. It concerns all (a wrong key, an empty account): a
`ModelError` ends the run.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

from xqg_qdrant.errors import ModelError, XqgError
from xqg_qdrant.generation import Usage
from xqg_qdrant.inference.endpoint import OVERSIZED, Line, Refusal, Site, read_count, read_error

KEY_VARIABLES = ("XQG_LLM_API_KEY", "OPENAI_API_KEY")
MAX_REPLY_BYTES = 4 << 20
SITE = Site("generator", "/chat/completions", KEY_VARIABLES[0], MAX_REPLY_BYTES, "choices")
# Refused requests in a row that end the run, as they are hardly the passages' fault.
MAX_REFUSED = 20

FORMATS = ("json_schema", "json_object", "none")


TRUNCATED = "length"
# How servers name the field of structured output in their errors.
FORMAT = re.compile(r"response_?format|json_?schema|json_?object|structured.?output|grammar|guided", re.I)
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


class Chat:
    """A model behind an endpoint; several threads may call it.

    What the server does not take (a response format, `max_tokens`, `seed`) is left out from then on.
    """

    def __init__(self, url: str, model: str, api_key: str | None, concurrency: int, patience: float = math.inf) -> None:
        """Remember the endpoint; nothing is sent.

        Args:
            url: with or without `/chat/completions`; a query, such as `?api-version=…`, is kept.
            model: its name.
            api_key: sent to this URL's host alone; None sends none.
            concurrency: how many connections are open at once.
            patience: the most seconds to wait for a server that is busy or loads its model.

        Raises:
            InputError: the URL or the key cannot be used.
        """
        self.model = model
        self._line = Line(SITE, url, api_key, concurrency, patience)
        self.shown_url, self._hide = self._line.shown_url, self._line.hide
        self._lock = Lock()
        self._left_out: set[str] = set()
        self._room_field = "max_tokens"
        self._format = 0
        self._structured = False
        self._refused = 0

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
        make_body = partial(self.make_body, prompt, schema, room, temperature, seed)
        return self._line.ask(make_body, self._read, self._read_refusal)

    def find_served(self) -> str:
        """Return the model's name in the server's list of models; see `Line.find_served`."""
        return self._line.find_served(self.model)

    def close(self) -> None:
        """Close the connections."""
        self._line.close()

    def end(self, error: XqgError) -> None:
        """Let no further call begin; the first error counts."""
        self._line.end(error)

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

    def _read(self, answer: Mapping[str, Any], body: Mapping[str, Any]) -> Reply:
        """Read an answered call."""
        self._refused = 0
        kind = body.get("response_format", {}).get("type", FORMATS[-1])
        return read_answer(answer, self._hide)._replace(format=kind)

    def _read_refusal(self, refusal: Refusal, body: Mapping[str, Any]) -> Reply | None:
        """Return the reply for a refused prompt, None to ask in another form."""
        status, what, message, code = refusal
        if status == OVERSIZED:
            return Reply("", rejected=what)
        if status in (400, 413, 422) and (rejected := judge_prompt(message, code)):
            return Reply("", rejected=f"{rejected} ({what})")
        if self._adapt(message, body):
            return None
        self._refused += 1
        if self._refused >= MAX_REFUSED:
            raise ModelError(f"{self.shown_url} refuses every request: {what}.", "check --model and the server's log")
        return Reply("", rejected=f"the server refused the request ({what})")

    def _adapt(self, message: str, body: Mapping[str, Any]) -> bool:
        """Leave out or rename what a refusal names; return whether another request is worth sending.

        Raises:
            ModelError: the server does not take the temperature.
        """
        text = message.casefold()
        if "max_completion_tokens" in text and "max_tokens" in body:
            if self._room_field == "max_tokens":
                self._room_field = "max_completion_tokens"
                _log.warning("the server wants max_completion_tokens in the place of max_tokens")
            return True
        if "response_format" in body and FORMAT.search(text):
            self._step_down(body["response_format"]["type"], self._hide(message))
            return True
        if "temperature" in body and "temperature" in text:
            # It is in the fingerprint because somebody asked for it.
            raise ModelError(
                f"{self.shown_url} does not take the temperature {body['temperature']}: {self._hide(message)}.",
                "leave out --temperature; then the model's own is used",
            )
        for name in ("seed", "max_completion_tokens", "max_tokens"):
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


def find_chat_url(url: str) -> str:
    """Return the URL that chats are posted to.

    >>> find_chat_url("http://localhost:11434/v1/"), find_chat_url("https://h/x/chat/completions?api-version=1")
    ('http://localhost:11434/v1/chat/completions', 'https://h/x/chat/completions?api-version=1')

    Raises:
        InputError: the URL has no host, or holds a user name or password.
    """
    return SITE.find_url(url)


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
    return Usage(1, *(read_count(usage, name) for name in ("prompt_tokens", "completion_tokens")))


def judge_prompt(message: str, code: str) -> str:
    """Return why a request was refused for its text; empty if it was not."""
    if _FILTERED.search(f"{code} {message}"):
        return "the server's content filter refused the passage"
    if _TOO_LONG.search(f"{code} {message}") and not FORMAT.search(message):
        return "the passage is too long for the model"
    return ""
