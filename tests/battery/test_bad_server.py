"""A server that answers wrongly ends a command in bounded time and memory, with an error that says what it did."""

from __future__ import annotations

import math
import re
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from faulty_proxy import Exchange, Fault, FaultyProxy
from qdrant_client import models
from rest_qdrant import RestQdrant

from xqg_qdrant.cli import main
from xqg_qdrant.errors import DamageError, MismatchError, ModelError, StoreError
from xqg_qdrant.inference import endpoint
from xqg_qdrant.records import AugmentedPassage, GeneratedQuery, Passage
from xqg_qdrant.stores import Store, open_store
from xqg_qdrant.stores.server import answers

DIM = 4
MEBIBYTE = 2**20
NAMES = [f"passage {number}" for number in range(6)]


def make_point(name: str, content: str = "hash") -> AugmentedPassage:
    vectors = dict.fromkeys(("xqg", "passage"), np.ones(DIM, np.float32))
    return AugmentedPassage(Passage(name, "text"), (GeneratedQuery("fi", "kysymys"),), vectors, content, "recipe")


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xqg_qdrant.stores.server.requests.PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("xqg_qdrant.stores.server.requests.FIRST_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("xqg_qdrant.stores.server.client.READ_BACK_SECONDS", (0.0, 0.0))


@pytest.fixture
def store(rest: RestQdrant) -> Iterator[Store]:
    with open_store(rest.url) as opened:
        opened.create_collection("docs", DIM, {})
        opened.upsert("docs", [make_point(name) for name in NAMES])
        yield opened


@pytest.fixture
def proxy(rest: RestQdrant) -> Iterator[FaultyProxy]:
    server = FaultyProxy(rest.url, 0)
    yield server
    server.close()


def search(store: Store) -> object:
    return store.search("docs", np.ones((2, DIM), np.float32), "xqg", 3)


def change_hits(change: Callable[[list[Any]], object]) -> Callable[[Any], object]:
    def lie(result: Any) -> object:  # noqa: ANN401
        for answer in result:
            change(answer.points)
        return result

    return lie


def set_payload(payload: object) -> Callable[[list[Any]], object]:
    def change(points: list[Any]) -> None:
        for point in points:
            point.payload = payload

    return change


BAD_PAYLOAD = {"passage_id": 5, "text": ["x"], "title": {}, "generated_queries": [], "metadata": [1]}
BAD_QUERIES = {
    "passage_id": "a",
    "text": "x",
    "title": "",
    "generated_queries": [{"language": 1, "text": 2, "number": 0}],
}
UNASKED = models.Record(id="6a8f2c1e-94d7-5b36-8e0a-d1c75f3b20e9", payload={"content_hash": "x"})
LIES: dict[str, tuple[str, Callable[[Any], object], Callable[[Store], object], str]] = {
    "fewer answers than searches": ("points/query/batch", lambda result: result[:1], search, "1 answer to 2 searches"),
    "more answers": ("points/query/batch", lambda result: [*result, result[0]], search, "3 answers to 2 searches"),
    "no answers": ("points/query/batch", lambda result: [], search, "0 answers to 2 searches"),
    "too many hits": ("points/query/batch", change_hits(lambda points: points.extend(points * 9)), search, "at most 4"),
    "a hit twice": (
        *(
            "points/query/batch",
            change_hits(lambda points: points.__setitem__(1, points[0])),
            search,
            "same point twice",
        ),
    ),
    "payloads of other types": (
        "points/query/batch",
        change_hits(set_payload(BAD_PAYLOAD)),
        search,
        "not written by",
    ),
    "queries of other types": (
        "points/query/batch",
        change_hits(set_payload(BAD_QUERIES)),
        search,
        "not written by",
    ),
    "no payload": ("points/query/batch", change_hits(set_payload(None)), search, "not written by xqg"),
    "points that were not asked for": (
        *("points", lambda result: [*result, UNASKED], lambda store: store.read_content_hashes("docs", NAMES)),
        "not asked for",
    ),
    "a negative count": (
        "points/count",
        lambda _: {"count": -5},
        lambda store: store.count("docs"),
        "counts -5 points",
    ),
    "an endless count": ("points/count", lambda _: {"count": 10**30}, lambda store: store.count("docs"), "counts 1000"),
    "pages in a circle": (
        *("points/scroll", lambda result: {**result, "next_page_offset": 1}, lambda store: list(store.scroll("docs"))),
        "pages of points without end",
    ),
    "empty pages": (
        "points/scroll",
        lambda _: {"points": [], "next_page_offset": str(time.monotonic_ns())},
        lambda store: list(store.scroll_stored("docs")),
        "pages of points without end",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_told(lie: str, rest: RestQdrant, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path, change, call, told = LIES[lie]
    honest = rest.respond

    def respond(method: str, asked: str, body: Any) -> Any:  # noqa: ANN401
        result = honest(method, asked, body)
        return change(result) if asked == f"/collections/docs/{path}" else result

    call(store)
    monkeypatch.setattr(rest, "respond", respond)
    with pytest.raises((StoreError, MismatchError), match=told):
        call(store)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_told(score: float) -> None:
    hit = models.ScoredPoint(id=1, version=0, score=score)
    with pytest.raises(StoreError, match="a score that is no number"):
        answers.check_answers([[hit]], 1, 5, "http://host")


@pytest.mark.parametrize("vector", [None, [math.nan] * DIM, [1.0] * 3, "abc", [[1.0] * DIM], [math.inf] * DIM])
def test_a_vector_that_is_none_is_told(vector: object) -> None:
    from xqg_qdrant.stores.points import make_payload, read_point

    with pytest.raises(DamageError, match="vectors that are damaged"):
        read_point(make_payload(make_point("a")), {"xqg": [1.0] * DIM, "passage": vector})


def test_writes_that_are_acknowledged_but_dropped_are_told(
    rest: RestQdrant, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    honest, done = rest.respond, models.UpdateResult(operation_id=1, status=models.UpdateStatus.COMPLETED)

    def respond(method: str, path: str, body: Any) -> Any:  # noqa: ANN401
        return done if (method, path) == ("PUT", "/collections/docs/points") else honest(method, path, body)

    monkeypatch.setattr(rest, "respond", respond)
    with open_store(rest.url) as other, pytest.raises(StoreError, match=r"says that it stored .* not return them"):
        other.upsert("docs", [make_point(NAMES[0], "another hash")])


def endless(exchange: Exchange, zipped: bool) -> None:
    exchange.read_body()
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    encoding = "Content-Encoding: gzip\r\n" if zipped else ""
    exchange.connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{encoding}\r\n".encode())
    blank = b" " * MEBIBYTE
    while not exchange.proxy.closing.is_set():
        try:
            exchange.connection.sendall(packer.compress(blank) if zipped else blank)
        except OSError:
            return


def drip(exchange: Exchange) -> None:
    exchange.read_body()
    exchange.connection.sendall(exchange.make_head(200, "OK", 100_000))
    while not exchange.proxy.closing.wait(0.05):
        try:
            exchange.connection.sendall(b" ")
        except OSError:
            return


def drip_chunk(exchange: Exchange) -> None:
    exchange.read_body()
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=")
    while not exchange.proxy.closing.wait(0.05):
        try:
            exchange.connection.sendall(b"a")
        except OSError:
            return


def drip_headers(exchange: Exchange) -> None:
    exchange.read_body()
    exchange.connection.sendall(b"HTTP/1.1 200 OK\r\nx-a: ")
    while not exchange.proxy.closing.wait(0.05):
        try:
            exchange.connection.sendall(b"a")
        except OSError:
            return


def continue_without_end(exchange: Exchange) -> None:
    exchange.read_body()
    while not exchange.proxy.closing.is_set():
        try:
            exchange.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
        except OSError:
            return


def answer(status: int, body: bytes, headers: str = "") -> Fault:
    def fault(exchange: Exchange) -> None:
        exchange.read_body()
        key = exchange._headers().get("api-key", "").encode()
        exchange.send(status, "Answer", body.replace(b"<key>", key), headers)

    return fault


DEEP = b"[" * 200_000 + b"]" * 200_000
FAULTS: dict[str, tuple[Fault, str]] = {
    "an endless answer": (lambda exchange: endless(exchange, False), "larger than 8 MiB"),
    "a gzip bomb": (lambda exchange: endless(exchange, True), "larger than 8 MiB"),
    "a byte now and then": (drip, "answer was not complete after"),
    "a chunk's size without end": (drip_chunk, "answer was not complete after"),
    "headers that come byte by byte": (drip_headers, "headers were not complete after 1 s"),
    "100 Continue without end": (continue_without_end, "headers (are larger than 128 KiB|were not complete)"),
    "a compression that was not asked for": (answer(200, b"x", "Content-Encoding: br\r\n"), "was not asked for"),
    "an error of many megabytes": (answer(500, b"<key>" * 500_000), "larger than 8 MiB"),
    "deep JSON": (answer(200, b'{"result":' + DEEP + b"}"), "cannot read|nested too deep|not JSON"),
    "deep JSON in an error": (answer(500, b'{"status":{"error":"<key>","x":' + DEEP + b"}}"), "HTTP 500"),
    "a date without end": (
        *(
            answer(
                503,
                b'{"status":{"error":"<key> is wrong"}}',
                "Retry-After: Mon, 01 Jan " + "9" * 20 + " 00:00:00 GMT\r\n",
            ),
        ),
        "HTTP 503",
    ),
    "a time zone without end": (
        *(
            answer(
                429, b'{"status":{"error":"<key>"}}', "Retry-After: Mon, 01 Jan 2020 00:00:00 +" + "9" * 20 + "\r\n"
            ),
        ),
        "HTTP 429",
    ),
    "another status": (answer(999, b"{}"), "HTTP 999"),
    "no HTTP": (lambda exchange: exchange.connection.sendall(b"hello\r\n\r\n"), "RemoteProtocolError"),
    "thousands of headers": (
        answer(200, b"{}", "".join(f"x-{n}: {'y' * 99}\r\n" for n in range(3000))),
        "RemoteProtocol",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_is_bounded_in_time_and_memory_and_its_error_holds_no_key(
    fault: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "MAX_ANSWER_BYTES", 8 * MEBIBYTE)
    if "complete" in FAULTS[fault][1]:
        monkeypatch.setattr(answers, "ANSWER_SECONDS", 0.3)
    # What `status` waits for an answer.
    monkeypatch.setattr("xqg_qdrant.stores.ASKING_SECONDS", 1.0)
    proxy.always, told = FAULTS[fault]
    started = time.monotonic()
    tracemalloc.start()
    try:
        line = ["-v", "status", "--store", proxy.url]
        result = CliRunner().invoke(main, line, env={"QDRANT_API_KEY": "sk-VERY-SECRET-KEY"})
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 60
    assert most < 64 * MEBIBYTE
    assert result.exit_code == 5, result.output
    assert "SECRET" not in result.output
    assert re.search(told, result.output), result.output[-800:]


def test_a_page_of_searches_waits_as_long_for_an_answer_that_drips_as_for_none(proxy: FaultyProxy) -> None:
    proxy.always = drip
    started = time.monotonic()
    with pytest.raises(StoreError, match="answer was not complete after 1 s"):
        open_store(proxy.url, patience=0.2).collections()
    assert time.monotonic() - started < 3


ENDPOINT_FAULTS: dict[str, tuple[Fault, str]] = {
    "headers that come byte by byte": (drip_headers, "headers were not complete after 1 s"),
    "100 Continue without end": (continue_without_end, "headers (are larger than 128 KiB|were not complete)"),
    "a body that comes byte by byte": (drip, "answer was not complete after 1 s"),
    "an endless answer": (lambda exchange: endless(exchange, False), "the reply is larger than 8 MiB"),
}


@pytest.mark.parametrize("fault", ENDPOINT_FAULTS)
def test_the_answer_of_an_endpoint_is_bounded_in_time_and_memory(
    fault: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REPLY_SECONDS", "LISTING_SECONDS"):
        monkeypatch.setattr(endpoint, name, 1.0)
    for name in ("PATIENCE_SECONDS", "FIRST_PATIENCE_SECONDS"):
        monkeypatch.setattr(endpoint, name, 0.0)
    proxy.always, told = ENDPOINT_FAULTS[fault]
    site = endpoint.Site("generator", "/chat/completions", "XQG_KEY", 8 * MEBIBYTE, "choices")
    line = endpoint.Line(site, proxy.url, None, 1)
    started = time.monotonic()
    with closing(line):
        assert line.find_served("model") == "model"
        with pytest.raises(ModelError, match=told):
            line.ask(dict, lambda answer, _: answer, refuse_all)
    assert time.monotonic() - started < 8


def refuse_all(refusal: endpoint.Refusal, _: endpoint.Body) -> dict[str, Any]:
    raise ModelError(refusal.what, "look at the server")
