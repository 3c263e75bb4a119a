"""Serve the search page over HTTP.

    GET /                       the page
    GET /?q=QUESTION&limit=5    the page with hits
    GET /api/search?q=…&limit=… the hits as JSON; errors are JSON too, with what, where and cure
    GET /style.css

Pages of other origins cannot read the answers (no CORS). They cannot ask in secret either, as a question may cost money
at an endpoint: a browser says where a request comes from. DNS rebinding is prevented by checking the Host header
against the allowed names. No response may be framed or run scripts.
"""

from __future__ import annotations

import json
import math
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from threading import BoundedSemaphore, Timer
from types import FrameType
from typing import Any, NamedTuple

from xqg_qdrant.errors import InputError, StoreError, XqgError
from xqg_qdrant.pages.search import Finder, SearchPage, read_style
from xqg_qdrant.printing import hit_to_json
from xqg_qdrant.retrieval import Hit
from xqg_qdrant.secrets import hide

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise InputError("xqg serve needs Starlette and uvicorn.", "pip install 'xqg-qdrant[serve]'") from error

ADDRESS = "127.0.0.1"
LOCAL_NAMES = ("localhost", "127.0.0.1")
DEFAULT_LIMIT = 5
MOST_LIMIT = 50
LONGEST_QUESTION = 1000
API = "/api/"
# How long requests in progress may take when the server stops; the process ends within a second.
GRACE_SECONDS = 0.8
# Questions that wait for the collection; the server's threads are 40, and the page needs some.
MOST_QUESTIONS = 30

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Problem(NamedTuple):
    """What is wrong with a request or its answer."""

    status: int
    what: str
    where: str
    cure: str

    def to_json(self) -> dict[str, str]:
        """Return the problem as JSON values."""
        return {"what": self.what, "where": self.where, "cure": self.cure}


class Guard:
    """Refuse requests with another Host header than the allowed names, or made by a page of another origin.

    Add `HEADERS` to every response. A link from another origin is followed.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                named = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *named]}
            await send(message)

        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if not (len(hosts) == 1 and self._is_named(hosts[0])):
            cure = "open it as http://localhost:PORT/, or allow the name: xqg serve --allow-host NAME"
            refused = Problem(421, "the page is not served under this name", "the Host header", cure)
        elif _is_made_elsewhere(scope):
            cure = "ask from the search page, or from a program that is no browser"
            refused = Problem(403, "a page of another origin asks", "the Sec-Fetch-Site header", cure)
        else:
            await self._app(scope, receive, send_guarded)
            return
        await _json(refused.status, {"error": refused.to_json()})(scope, receive, send_guarded)

    def _is_named(self, host: str) -> bool:
        name, colon, port = host.lower().partition(":")
        return name in self._names and (not colon or port.isdecimal())


def _is_made_elsewhere(scope: Scope) -> bool:
    """Return whether a page of another origin makes a request, other than by a link that someone follows."""
    headers = dict(scope["headers"])
    foreign = headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site")
    return foreign and headers.get(b"sec-fetch-dest") != b"document"


def make_app(finder: Finder, names: Iterable[str] = ()) -> ASGIApp:
    """Return the application; `names` are allowed as Host besides those of this machine."""
    page = SearchPage(finder.collection, finder.location, LONGEST_QUESTION, MOST_LIMIT)
    style = read_style()
    places = BoundedSemaphore(MOST_QUESTIONS)

    def find(question: str, limit: int) -> dict[str, list[Hit]]:
        if not places.acquire(blocking=False):
            where = f"collection {finder.collection!r} in {finder.location}"
            raise RefusedError(Problem(503, "too many questions are waiting", where, "ask again in a moment"))
        try:
            return finder.find(question, limit)
        finally:
            places.release()

    def show_page(request: Request) -> Response:
        question = request.query_params.get("q", "").strip()
        if not question:
            return _html(page.render("", DEFAULT_LIMIT, None, None))
        question, limit = _read_question(request)
        return _html(page.render(question, limit, find(question, limit), None, finder.find_language(question)))

    def answer_json(request: Request) -> Response:
        question, limit = _read_question(request)
        found = find(question, limit)
        rankings = {
            name: [hit_to_json(rank, hit) for rank, hit in enumerate(hits, start=1)] for name, hits in found.items()
        }
        asked = finder.find_language(question)
        language = {"language": asked.code, "identified": asked.identified} if asked else {}
        answer = {"question": question, "collection": finder.collection, **language, "rankings": rankings}
        return _json(200, answer)

    def show_style(request: Request) -> Response:
        return Response(style, media_type="text/css")

    def explain(request: Request, problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
        if request.url.path.startswith(API):
            return _json(problem.status, {"error": problem.to_json()}, headers)
        return _html(page.render("", DEFAULT_LIMIT, None, problem.to_json()), problem.status, headers)

    def explain_asked(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        return explain(request, error.problem)

    def explain_ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, XqgError)
        where = f"collection {finder.collection!r} in {finder.location}"
        status = 400 if isinstance(error, InputError) else 503 if isinstance(error, StoreError) else 500
        return explain(request, Problem(status, error.message, where, error.cure))

    def explain_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        cure = f"GET / for the page, or GET {API}search?q=QUESTION for JSON"
        return explain(request, Problem(error.status_code, error.detail, request.url.path, cure), error.headers)

    def explain_bug(request: Request, error: Exception) -> Response:
        return explain(
            request,
            Problem(500, "this is a bug in xqg", request.url.path, "report what the terminal of xqg serve shows"),
        )

    handlers: Mapping[Any, Callable[[Request, Exception], Response]] = {
        RefusedError: explain_asked,
        XqgError: explain_ours,
        HTTPException: explain_http,
        Exception: explain_bug,
    }
    routes = [Route("/", show_page), Route(f"{API}search", answer_json), Route("/style.css", show_style)]
    return Guard(Starlette(routes=routes, exception_handlers=handlers), (*LOCAL_NAMES, *names))


class RefusedError(Exception):
    """A request that cannot be answered."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.what)
        self.problem = problem


def listen(port: int) -> socket.socket:
    """Return a socket that listens on this machine only; port 0 is any free port.

    Raises:
        InputError: The port is taken.
    """
    try:
        return socket.create_server((ADDRESS, port))
    except OSError as error:
        raise InputError(f"cannot listen on {ADDRESS}:{port} ({error}).", "choose another --port") from error


class Server(uvicorn.Server):
    """A server that a signal ends soon, whatever its questions wait for; what is stored survives a kill."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop accepting requests, and end the process a little later."""
        super().handle_exit(sig, frame)
        end = Timer(GRACE_SECONDS, os._exit, (0,))
        end.daemon = True
        end.start()


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server that logs only warnings."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=math.ceil(GRACE_SECONDS),
    )
    return Server(config)


def _read_question(request: Request) -> tuple[str, int]:
    question, limit = request.query_params.get("q", "").strip(), request.query_params.get("limit", str(DEFAULT_LIMIT))
    if not question:
        raise RefusedError(Problem(400, "the question is missing", "the parameter q", "ask with ?q=QUESTION"))
    if len(question) > LONGEST_QUESTION:
        what = f"the question has {len(question)} characters, the maximum is {LONGEST_QUESTION}"
        raise RefusedError(Problem(400, what, "the parameter q", "ask in fewer words"))
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 5 and 1 <= int(limit) <= MOST_LIMIT):
        what = f"the limit is {limit[:20]!r}"
        raise RefusedError(Problem(400, what, "the parameter limit", f"give a whole number from 1 to {MOST_LIMIT}"))
    return question, int(limit)


def _html(page: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return HTMLResponse(hide(page), status, headers)


def _json(status: int, content: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(hide(json.dumps(content, ensure_ascii=False)).encode(), status, headers, "application/json")
