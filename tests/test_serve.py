"""`xqg serve`: what the page and the JSON say, who may ask, and how it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rest_qdrant import RestQdrant, hang
from serving import Answer, Served, demo_rows, fill, serving

from xqg_qdrant.cli import main
from xqg_qdrant.errors import InputError, MismatchError, StoreError
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.pages.search import Finder, choose_collection
from xqg_qdrant.pages.server import MOST_QUESTIONS
from xqg_qdrant.records import FloatArray, GeneratedQuery, Passage, QueriedPassage, ScoredPassage
from xqg_qdrant.secrets import remember
from xqg_qdrant.stores import Store, open_store

ROOT = Path(__file__).parent.parent
ROWS = demo_rows(24)
ARABIC = next(query for query in ROWS[0].queries if query.language == "ar")
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, demo_encoder: Encoder) -> Iterator[Store]:
    opened = open_store(str(tmp_path_factory.mktemp("serve") / "store"))
    fill(opened, "docs", demo_encoder, ROWS)
    fill(opened, "terms", demo_encoder, ROWS, sparse=True)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def finder(store: Store, demo_encoder: Encoder) -> Finder:
    return Finder(store, "docs", demo_encoder)


@pytest.fixture(scope="module")
def served(finder: Finder) -> Iterator[Served]:
    with serving(finder, ["search.example.org"]) as running:
        yield running


class Elements(HTMLParser):
    """The start tags of a page with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def error_of(answer: Answer) -> dict[str, str]:
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json) == {"error"}
    error: dict[str, str] = answer.json["error"]
    assert set(error) == {"what", "where", "cure"}
    assert all(error.values())
    return error


def test_the_json_has_both_rankings_and_the_query_that_speaks_for_a_hit(served: Served) -> None:
    answer = served.get("/api/search", q=f"  {ARABIC.text} ", limit=3)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert (answer.json["question"], answer.json["collection"]) == (ARABIC.text, "docs")
    rankings = answer.json["rankings"]
    assert list(rankings) == ["passage", "xqg"]
    assert [hit["rank"] for hit in rankings["xqg"]] == [1, 2, 3]
    for hits in rankings.values():
        (own,) = (hit for hit in hits if hit["passage_id"] == ROWS[0].passage.passage_id)
        # The question is itself one of this passage's queries, and no other query is nearer to it.
        assert own["best_query"] == {"language": "ar", "text": ARABIC.text}
        assert (own["title"], own["text"]) == (ROWS[0].passage.title, ROWS[0].passage.text)
    plain, augmented = (
        next(hit["score"] for hit in rankings[name] if hit["passage_id"] == ROWS[0].passage.passage_id)
        for name in ("passage", "xqg")
    )
    assert augmented > plain


def test_where_the_collection_has_terms_there_is_a_third_ranking(store: Store, demo_encoder: Encoder) -> None:
    found = Finder(store, "terms", demo_encoder).find(ARABIC.text, 2)
    assert [(name, len(hits)) for name, hits in found.items()] == [("passage", 2), ("xqg", 2), ("hybrid", 2)]


def test_each_hit_of_each_ranking_has_a_query_of_its_own_passage(served: Served) -> None:
    own = {row.passage.passage_id: {query.text for query in row.queries} for row in ROWS}
    for row in ROWS[:4]:
        rankings = served.get("/api/search", q=row.queries[-1].text).json["rankings"]
        for hit in (*rankings["passage"], *rankings["xqg"]):
            assert hit["best_query"]["text"] in own[hit["passage_id"]]


def test_five_passages_are_given_where_nothing_is_said(served: Served) -> None:
    assert [len(hits) for hits in served.get("/api/search", q="Nile").json["rankings"].values()] == [5, 5]


@pytest.mark.parametrize(
    ("parameters", "where", "part"),
    [
        ({}, "the parameter q", "question is missing"),
        ({"q": " \t"}, "the parameter q", "question is missing"),
        ({"q": "a" * 1001}, "the parameter q", "1001 characters"),
        ({"q": "a", "limit": "0"}, "the parameter limit", "'0'"),
        ({"q": "a", "limit": "51"}, "the parameter limit", "'51'"),
        ({"q": "a", "limit": "-1"}, "the parameter limit", "'-1'"),
        ({"q": "a", "limit": "٣"}, "the parameter limit", "'٣'"),
        ({"q": "a", "limit": ""}, "the parameter limit", "''"),
        ({"q": "a", "limit": "9" * 5000}, "the parameter limit", "'99999999999999999999'"),
    ],
)
def test_what_cannot_be_answered_is_said_with_its_cure(
    served: Served, parameters: dict[str, Any], where: str, part: str
) -> None:
    answer = served.get("/api/search", **parameters)
    assert answer.status == 400
    error = error_of(answer)
    assert error["where"] == where
    assert part in error["what"]


def test_a_question_may_have_a_thousand_characters(served: Served) -> None:
    assert served.get("/api/search", q="é" * 1000, limit=1).status == 200


def test_another_path_and_another_method_are_errors_in_the_form_that_was_asked_for(served: Served) -> None:
    nowhere = served.get("/api/nowhere")
    assert (nowhere.status, error_of(nowhere)["where"]) == (404, "/api/nowhere")
    posted = served.get("/api/search", method="POST")
    assert (posted.status, error_of(posted)["what"]) == (405, "Method Not Allowed")
    assert set(posted.headers["allow"].split(", ")) == {"GET", "HEAD"}
    page = served.get("/%3Cscript%3Ealert(1)%3C/script%3E")
    assert (page.status, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "&lt;script&gt;" in page.body
    assert "script" not in {tag for tag, _ in Elements(page.body).found}


def test_every_answer_has_the_headers_that_keep_strangers_out(served: Served) -> None:
    answers = [
        served.get("/"),
        served.get("/", q="Nile"),
        served.get("/style.css"),
        served.get("/api/search", q="Nile"),
        served.get("/api/search"),
        served.get("/nowhere"),
        served.get("/", host="evil.example"),
    ]
    assert [answer.status for answer in answers] == [200, 200, 200, 200, 400, 404, 421]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
        assert not {name for name in answer.headers if name.startswith("access-control")}
        assert "server" not in answer.headers


@pytest.mark.parametrize(
    ("site", "wanted", "status"),
    [
        ("cross-site", "empty", 403),
        ("cross-site", "image", 403),
        ("cross-site", "iframe", 403),
        ("same-site", "empty", 403),
        ("cross-site", "document", 200),
        ("same-origin", "empty", 200),
        ("none", "document", 200),
    ],
)
def test_a_page_of_another_origin_asks_no_question_unseen(served: Served, site: str, wanted: str, status: int) -> None:
    """A question may cost money at an endpoint, also if the page cannot read the answer."""
    answer = served.get("/api/search", q="Nile", fetch=(site, wanted))
    assert answer.status == status
    if status == 403:
        assert error_of(answer)["where"] == "the Sec-Fetch-Site header"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1", 200),
        ("search.example.org", 200),
        ("search.example.org:80", 200),
        ("evil.example", 421),
        ("evil.example:8000", 421),
        ("localhost.evil.example", 421),
        ("localhost@evil.example", 421),
        ("evil.example:localhost", 421),
        ("127.0.0.2", 421),
        ("", 421),
        (":8000", 421),
        ("localhost:x", 421),
    ],
)
def test_only_the_names_of_this_machine_and_those_allowed_are_answered(served: Served, host: str, status: int) -> None:
    answer = served.get("/api/search", host=host, q="Nile", limit=1)
    assert answer.status == status
    if status != 200:
        assert error_of(answer)["where"] == "the Host header"


def test_two_hosts_and_none_are_refused(served: Served) -> None:
    for version, hosts in (
        ("1.1", "Host: localhost\r\nHost: evil.example\r\n"),
        ("1.1", ""),
        ("1.0", ""),
    ):
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
            connection.sendall(f"GET / HTTP/{version}\r\n{hosts}Connection: close\r\n\r\n".encode())
            status = connection.makefile("rb").readline()
        assert status.split()[1] in (b"400", b"421"), (version, hosts)


def test_the_page_carries_the_question_the_query_and_their_languages(served: Served) -> None:
    body = served.get("/", q=ARABIC.text).body
    found = Elements(body).found
    assert [attrs["value"] for tag, attrs in found if tag == "input"] == [ARABIC.text, "5"]
    queries = [attrs for _, attrs in found if attrs.get("class") == "query-text"]
    assert {"lang": "ar", "dir": "rtl", "class": "query-text"} in queries
    assert {query["dir"] for query in queries if query["lang"] != "ar"} <= {"auto"}
    assert not {tag for tag, _ in found} & {"script", "iframe", "object", "embed", "base"}
    assert not [name for _, attrs in found for name in attrs if name.startswith("on") or name == "style"]
    assert {attrs[name] for _, attrs in found for name in ("src", "href", "action") if name in attrs} == {
        "data:,",
        "/style.css",
        "/",
        next(str(attrs["href"]) for tag, attrs in found if tag == "a"),
    }


def test_however_long_a_passage_is_the_page_stays_short_and_the_json_whole(demo_encoder: Encoder) -> None:
    opened = open_store(":memory:")
    long = "A river. " * 10_000
    fill(opened, "docs", demo_encoder, [QueriedPassage(Passage("p", long, long), (GeneratedQuery("en", long),))])
    with serving(Finder(opened, "docs", demo_encoder)) as running:
        assert len(running.get("/", q="river").body) < 20_000
        (hit,) = running.get("/api/search", q="river").json["rankings"]["xqg"]
    assert (hit["text"], hit["title"], hit["best_query"]["text"]) == (long, long, long)
    opened.close()


def test_an_empty_question_is_the_empty_form(served: Served) -> None:
    page = served.get("/", q=" ")
    assert page.status == 200
    assert "Found for" not in page.body


def test_a_store_that_fails_is_said_with_its_cure(tmp_path: Path, demo_encoder: Encoder) -> None:
    opened = open_store(str(tmp_path / "store"))
    fill(opened, "docs", demo_encoder, ROWS[:2])
    finder = Finder(opened, "docs", demo_encoder)
    opened.close()
    with serving(finder) as running:
        answer, page = running.get("/api/search", q="Nile"), running.get("/", q="Nile")
    assert (answer.status, page.status) == (503, 503)
    error = error_of(answer)
    assert "was closed" in error["what"]
    assert error["cure"] == "open the store again"
    assert error["where"] == f"collection 'docs' in edge:{tmp_path / 'store'}"
    assert "was closed" in page.body


def test_a_bug_is_called_one_and_tells_nothing_of_the_inside(
    finder: Finder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Finder, question: str, limit: int) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(Finder, "find", fail)
    with serving(finder) as running:
        answer = running.get("/api/search", q="Nile")
    assert answer.status == 500
    assert error_of(answer)["what"] == "this is a bug in xqg"
    assert "secret" not in answer.body
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    assert "secret" in caplog.text


class OneAtATime:
    """A store that notices when two threads are in it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._busy = threading.Lock()
        self.together = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._store, name)

    def search(
        self, collection: str, vectors: FloatArray, vector_name: str, limit: int
    ) -> Sequence[Sequence[ScoredPassage]]:
        if not self._busy.acquire(blocking=False):
            self.together = True
            return self._store.search(collection, vectors, vector_name, limit)
        try:
            time.sleep(0.01)
            return self._store.search(collection, vectors, vector_name, limit)
        finally:
            self._busy.release()


def test_many_may_ask_at_once_and_the_store_meets_one_at_a_time(store: Store, demo_encoder: Encoder) -> None:
    watched: Any = OneAtATime(store)
    questions = [query.text for row in ROWS for query in row.queries][:8]
    with serving(Finder(watched, "docs", demo_encoder)) as running:

        def ask(question: str) -> object:
            return running.get("/api/search", q=question, limit=1).json

        alone = [ask(question) for question in questions]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(ask, questions))
    assert together == alone
    assert not watched.together


def test_questions_to_a_server_that_is_gone_are_refused_in_parallel_and_soon(
    rest: RestQdrant, demo_encoder: Encoder
) -> None:
    with open_store(rest.url, patience=1) as gone:
        fill(gone, "docs", demo_encoder, ROWS[:2])
        with serving(Finder(gone, "docs", demo_encoder)) as served, ThreadPoolExecutor(3) as pool:
            rest.script = [hang] * 100
            started = time.monotonic()
            answers = list(pool.map(lambda number: served.get("/api/search", q=f"question {number}"), range(3)))
            assert time.monotonic() - started < 2.5  # one after the other it would be three
            assert [found.status for found in answers] == [503] * 3
            assert all("timed out" in error_of(found)["what"] for found in answers)
            rest.script = []
            assert served.get("/api/search", q="question").status == 200


def test_a_collection_of_another_encoder_is_not_served(store: Store, demo_encoder: Encoder) -> None:
    fingerprint = {**(store.read_fingerprint("docs") or {}), "encoder.pooling": "cls"}
    store.create_collection("other", demo_encoder.dim, fingerprint)
    try:
        with pytest.raises(MismatchError, match=r"encoder\.pooling"):
            Finder(store, "other", demo_encoder)
    finally:
        store.delete_collection("other")


def test_the_only_collection_needs_no_name(store: Store, tmp_path: Path, demo_encoder: Encoder) -> None:
    with pytest.raises(InputError, match=r"several collections .*: docs, terms\. Cure: choose one with --collection"):
        choose_collection(store)
    other = open_store(str(tmp_path / "store"))
    with pytest.raises(InputError, match=r"there are no collections in .*\. Cure: make one with xqg ingest"):
        choose_collection(other)
    other.create_collection("only", demo_encoder.dim, {})
    assert choose_collection(other) == "only"
    other.close()


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, ["serve", "--store", str(tmp_path), "--port", str(port)])
    assert result.exit_code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "Cure: choose another --port." in result.stderr


def test_without_the_extra_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "xqg_qdrant.pages.server")
    result = CliRunner().invoke(main, ["serve", "--store", str(tmp_path)])
    assert result.exit_code == 2
    assert "pip install 'xqg-qdrant[serve]'" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_this_machine_alone_and_ends_well(
    tmp_path: Path, demo_encoder: Encoder, number: signal.Signals
) -> None:
    with_one = open_store(str(tmp_path / "store"))
    fill(with_one, "docs", demo_encoder, ROWS[:2])
    with_one.close()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), "serve", "--store", str(tmp_path / "store"), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        url = said.split(" at ")[1].split()[0]
        assert said == f"Serving 'docs' at {url} (Ctrl-C to stop)\n"
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(url, timeout=30) as page:
            assert b"Search" in page.read()
        process.send_signal(number)
        assert process.wait(30) == (0 if number == signal.SIGINT else -number)
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    again = open_store(str(tmp_path / "store"))
    assert again.count("docs") == 2
    again.close()
    with pytest.raises(StoreError):
        again.count("docs")


def test_ctrl_c_ends_the_command_within_a_second_while_its_questions_hang(
    rest: RestQdrant, demo_encoder: Encoder
) -> None:
    with open_store(rest.url) as store:
        fill(store, "docs", demo_encoder, ROWS[:1])
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), "serve", "--store", rest.url, "--port", "0"], stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    with ThreadPoolExecutor(40) as pool:
        try:
            port = int(process.stderr.readline().split(b"127.0.0.1:")[1].split(b"/")[0])
            rest.script = [hang] * 1000
            asked = [pool.submit(Served(port).get, "/api/search", q="Pariisi") for _ in range(40)]
            while not any(answer.done() for answer in asked):
                time.sleep(0.01)
            assert Served(port).get("/").status == 200
            started = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert time.monotonic() - started < 1.2
            assert b"Traceback" not in process.stderr.read()
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


def test_slow_questions_do_not_keep_the_page_from_others(store: Store, demo_encoder: Encoder) -> None:
    finder, slow = Finder(store, "docs", demo_encoder), threading.Event()
    finder.find = lambda *_: {"passage": [], "xqg": []} if slow.wait(30) else {}  # type: ignore[method-assign]
    with serving(finder) as served, ThreadPoolExecutor(45) as pool:
        asked = [pool.submit(served.get, "/api/search", q="Pariisi") for _ in range(45)]
        while sum(answer.done() for answer in asked) < 45 - MOST_QUESTIONS:
            time.sleep(0.01)
        assert served.get("/").status == 200
        slow.set()
        answers = [answer.result() for answer in asked]
    assert sorted(answer.status for answer in answers) == [200] * MOST_QUESTIONS + [503] * (45 - MOST_QUESTIONS)
    refused = next(answer.json["error"] for answer in answers if answer.status == 503)
    assert refused["what"] == "too many questions are waiting"


def test_an_answer_holds_no_secret_that_a_passage_or_an_error_repeats(store: Store, demo_encoder: Encoder) -> None:
    remember("sk-VERYSECRET")
    with serving(Finder(store, "docs", demo_encoder)) as served:
        for path in ("/", "/api/search"):
            answer = served.get(path, q="what is sk-VERYSECRET").body
            assert "what is ***" in answer
            assert "VERYSECRET" not in answer


def test_a_collection_that_cannot_be_opened_is_told_before_it_is_served(tmp_path: Path, demo_encoder: Encoder) -> None:
    with open_store(str(tmp_path / "s")) as holder:
        fill(holder, "docs", demo_encoder, demo_rows(1))
        with open_store(str(tmp_path / "s")) as store, pytest.raises(StoreError, match="is in use by process"):
            Finder(store, "docs", demo_encoder)
