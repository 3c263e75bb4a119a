"""An endpoint of chats or embeddings on a loopback port that answers what a script says: any fault of a real one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, TypeAlias

import numpy as np


class Answer(NamedTuple):
    """What the endpoint sends back: JSON values or bytes; `cut` closes the connection within the body."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = {}
    delay: float = 0.0
    cut: bool = False


class Call(NamedTuple):
    """A request that came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        text: str = self.body["messages"][0]["content"]
        return text

    @property
    def languages(self) -> list[str]:
        """The languages that were asked for, of the example at the prompt's end."""
        return list(json.loads(self.prompt[self.prompt.rindex('{"') :].strip()))


Script: TypeAlias = Callable[[Call, int], Answer]
"""Returns the answer to a call and its number, from 0."""


def said(content: Any, finish: str = "stop", **message: Any) -> Answer:  # noqa: ANN401
    """Return a reply with this content, as text or as JSON values."""
    text = content if isinstance(content, str) or content is None else json.dumps(content, ensure_ascii=False)
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 1000, "completion_tokens": 50}
    return Answer({"model": "scripted", "choices": [choice], "usage": usage})


def refused(message: object, status: int = 400, **headers: str) -> Answer:
    return Answer({"error": message}, status, {name.replace("_", "-"): value for name, value in headers.items()})


def in_order(*answers: Answer) -> Script:
    """Return a script that gives the answers in turn, the last one again and again."""
    return lambda _, number: answers[min(number, len(answers) - 1)]


def make_vector(text: str) -> list[float]:
    """Return another direction for another text; of length 1, as most models'."""
    vector = np.random.default_rng(list(text.encode()) or [0]).normal(size=8)
    return [float(x) for x in vector / np.linalg.norm(vector)]


def embed(call: Call, number: int = 0) -> Answer:
    """Return a vector for each text of a call."""
    del number
    data = [{"index": place, "embedding": make_vector(text)} for place, text in enumerate(call.body["input"])]
    return Answer({"model": "m", "data": data, "usage": {"total_tokens": 10 * len(data)}})


class ScriptedChat:
    """A running endpoint; `calls` has what was asked, and `script` may be changed."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[Call] = []
        self.models: Answer = Answer({"data": [{"id": "scripted"}]})
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self._send(owner.models)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                call = Call(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                with owner._lock:
                    number = len(owner.calls)
                    owner.calls.append(call)
                    owner.at_once += 1
                    owner.most_at_once = max(owner.most_at_once, owner.at_once)
                try:
                    answer = owner.script(call, number)
                    time.sleep(answer.delay)
                finally:
                    with owner._lock:
                        owner.at_once -= 1
                self._send(answer)

            def _send(self, answer: Answer) -> None:
                data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.close_connection = self.close_connection or answer.cut
                with suppress(OSError):
                    self.wfile.write(data[: len(data) // 2] if answer.cut else data)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: object) -> None:
                """Say nothing: a client that is killed resets its connections."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def reset(self, script: Script) -> None:
        """Forget the calls and follow another script."""
        self.script, self.calls, self.most_at_once = script, [], 0

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def scripted(script: Script) -> Iterator[ScriptedChat]:
    """Serve a script at a free port."""
    chat = ScriptedChat(script)
    try:
        yield chat
    finally:
        chat.close()
