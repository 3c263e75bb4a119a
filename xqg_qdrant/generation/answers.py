"""Read what a chat endpoint answers: a reply, or why there is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from xqg_qdrant.generation import Usage

TRUNCATED = "length"

# How servers name the field of structured output in their errors.
FORMAT = re.compile(r"response_?format|json_?schema|json_?object|structured.?output|grammar|guided", re.I)
_PURSE = re.compile(r"insufficient_quota|billing|insufficient.{0,20}(balance|credit|fund)|payment|out of credits", re.I)
_RATE = re.compile(r"rate.?limit|resource_?exhausted|too.?many.?requests", re.I)
_TOO_LONG = re.compile(
    r"context.?(length|size|window)|too (long|large|many tokens)|maximum.{0,20}tokens|exceeds?.{0,40}context", re.I
)
_FILTERED = re.compile(r"content.?(filter|policy|management)|safety|moderation", re.I)


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
