"""What is done about answers that a real Qdrant 1.19.0 gave, which `rest_qdrant` gives in the same words."""

from __future__ import annotations

import importlib.util
import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from qdrant_client import models
from rest_qdrant import RestQdrant, answer, hang

from xqg_qdrant.cli import main
from xqg_qdrant.errors import StoreError
from xqg_qdrant.records import AugmentedPassage, Passage, PayloadLayout
from xqg_qdrant.stores import Store, open_foreign_store, open_store
from xqg_qdrant.stores.server import answers as answers_module
from xqg_qdrant.stores.server import requests as wire_module
from xqg_qdrant.stores.server.answers import ask_for_gzip

DIM = 8
FINGERPRINT = {"recipe.alpha": 0.01}


@pytest.fixture
def store(rest: RestQdrant, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store with an empty collection `docs`."""
    monkeypatch.setattr(wire_module, "FIRST_DELAY_SECONDS", 0.01)
    opened = open_store(rest.url)
    opened.create_collection("docs", DIM, FINGERPRINT)
    yield opened
    opened.close()


def make_points(count: int, text: str = "text") -> list[AugmentedPassage]:
    vectors = np.random.default_rng(7).standard_normal((count, DIM)).astype(np.float32)
    return [
        AugmentedPassage(Passage(f"p{i}", text), (), {"xqg": vector, "passage": -vector}, f"hash {i}", "recipe")
        for i, vector in enumerate(vectors)
    ]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# --- keys for one collection


def test_a_key_that_may_not_pause_indexing_loads_nevertheless_and_is_told_once(
    rest: RestQdrant, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    rest.global_access = False
    for _ in range(2):
        with store.bulk_load("docs", fast=True):
            pass
    with store.bulk_load("docs", fast=True):
        store.upsert("docs", make_points(3))
    assert store.count("docs") == 3
    assert rest.settings["docs"].indexing_threshold == 10_000
    [told] = warnings(caplog)
    assert told.startswith("cannot pause the indexing of 'docs' in http://127.0.0.1:")
    assert "HTTP 403: Forbidden: Global access is required. It is indexed while it is filled" in told


def test_a_key_that_may_not_resume_indexing_after_a_kill_writes_nevertheless(
    rest: RestQdrant, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    rest.client.update_collection("docs", metadata={"xqg_bulk_load": {"indexing_threshold": 10_000}})
    rest.settings["docs"].indexing_threshold = 0
    rest.global_access = False
    with open_store(rest.url) as later:
        later.upsert("docs", make_points(3))
    assert store.count("docs") == 3
    [told] = warnings(caplog)
    assert "cannot restore the indexing of 'docs'" in told


# --- requests that are too large


@pytest.mark.parametrize("limit", ["most_bytes", "most_proxied_bytes"])
def test_requests_become_smaller_until_the_server_and_its_proxy_take_them(
    rest: RestQdrant, store: Store, limit: str
) -> None:
    points = make_points(100)
    setattr(rest, limit, 10_000)
    store.upsert("docs", points)
    assert store.count("docs") == 100
    before = len(rest.requests)
    store.upsert("docs", points)
    assert max(size for _, _, size in rest.requests[before:]) <= 10_000  # the limit is tried once
    questions = np.stack([point.vectors["xqg"] for point in points[:32]])
    setattr(rest, limit, 2_000)
    assert [len(hits) for hits in store.search("docs", questions, "xqg", 1)] == [1] * 32


@pytest.mark.parametrize(
    ("limit", "cure"), [("most_bytes", "max_request_size_mb"), ("most_proxied_bytes", "client_max_body_size")]
)
def test_a_passage_that_no_request_can_carry_is_named_with_the_setting_to_raise(
    rest: RestQdrant, store: Store, limit: str, cure: str
) -> None:
    setattr(rest, limit, 5_000)
    large = make_points(5)[4]
    large = replace(large, passage=Passage("p4", "x" * 6_000))
    with pytest.raises(StoreError, match=rf"^passage 'p4' is too large: cannot write .*HTTP 4.*Cure: raise .*{cure}"):
        store.upsert("docs", [*make_points(4), large])
    assert store.count("docs") == 4


# --- strict mode and filters


@pytest.mark.parametrize("limits", [{"condition_max_size": 10}, {"filter_max_conditions": 2}])
def test_points_of_another_program_are_found_again_within_the_limits_of_filters(
    rest: RestQdrant, limits: dict[str, Any]
) -> None:
    rest.version = "1.19.0"
    unnamed = models.VectorParams(size=4, distance=models.Distance.COSINE)
    rest.client.create_collection("theirs", unnamed)
    rest.client.upsert("theirs", [models.PointStruct(id=i, vector=[1.0, 0, 0, i]) for i in range(25)])
    rest.settings["theirs"].strict_mode = models.StrictModeConfigOutput(enabled=True, **limits)
    points = [replace(point, passage=Passage(str(i), "text")) for i, point in enumerate(make_points(25))]
    with open_foreign_store(rest.url, None, PayloadLayout("text")) as store:
        store.create_collection("theirs", DIM, FINGERPRINT)
        store.upsert("theirs", points)
        # Their owner writes this one anew, which drops our vectors and keeps our field.
        kept = rest.client.retrieve("theirs", [3])[0].payload
        rest.client.upsert("theirs", [models.PointStruct(id=3, vector={"": [1.0, 0, 0, 3]}, payload=kept)])
        found = store.read_content_hashes("theirs", [str(i) for i in range(25)])
    assert found == {str(i): f"hash {i}" for i in range(25) if i != 3}


# --- a server that is away, or has no room


def test_what_is_waited_for_is_told_once_with_the_reason_and_the_longest_time(
    rest: RestQdrant, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    rest.script = [answer(503, "busy")] * 3
    assert store.collections() == ["docs"]
    rest.script = [answer(503, "busy")]
    assert store.collections() == ["docs"]
    [told] = warnings(caplog)
    assert told == f"cannot list the collections in {rest.url}: HTTP 503: busy. Trying again for up to 300 s."


def test_one_who_sits_before_a_command_waits_for_seconds(rest: RestQdrant, store: Store) -> None:
    with open_store(rest.url, patience=0.3) as asking:
        assert asking.collections() == ["docs"]
        rest.script = [answer(503, "busy")] * 1000
        started = time.monotonic()
        with pytest.raises(StoreError, match=r"HTTP 503: busy \(tried \d+ times"):
            asking.collections()
        rest.script = [hang]
        with pytest.raises(StoreError, match="timed out"):
            asking.collections()
        assert time.monotonic() - started < 2


def test_the_page_of_a_proxy_is_no_sign_of_a_server(rest: RestQdrant, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("FIRST_PATIENCE_SECONDS", 0.1), ("FIRST_DELAY_SECONDS", 0.01), ("PATIENCE_SECONDS", 5.0)):
        monkeypatch.setattr(wire_module, name, seconds)
    rest.is_behind = False
    started = time.monotonic()
    with (
        open_store(rest.url) as store,
        pytest.raises(StoreError, match=r"502 Bad Gateway.*Cure: check that this is"),
    ):
        store.collections()
    assert time.monotonic() - started < 2


def test_a_full_disk_is_told_at_once_and_the_load_goes_on_when_there_is_room(
    rest: RestQdrant, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "PATIENCE_SECONDS", 1.0)
    rest.disk_is_full = True
    before = len(rest.requests)
    with pytest.raises(StoreError, match=r"No space left on device: WAL.*Cure: free space on the server's disk"):
        store.upsert("docs", make_points(3))
    assert sum(path.endswith("points?wait=true") for _, path, _ in rest.requests[before:]) == 1
    rest.disk_is_full = False
    store.upsert("docs", make_points(3))
    assert store.count("docs") == 3


def test_commands_that_someone_sits_before_are_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def remember(*arguments: object) -> None:
        asked.append(arguments[-1])
        raise StoreError("gone", "wait")

    monkeypatch.setattr("xqg_qdrant.stores.open_store", remember)
    store = ("--store", "http://localhost:1")
    for words in (("status",), ("query", "q", "--collection", "docs"), ("serve", "--port", "0")):
        assert CliRunner().invoke(main, [*words, *store]).exit_code == StoreError.exit_code
    assert asked == [10, 10, 2]


# --- ports and proxies


@pytest.mark.parametrize(("location", "told"), [("http://localhost/q", True), ("http://localhost:1/q", False)])
def test_the_port_that_is_asked_is_told_where_the_url_names_none(
    location: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "FIRST_PATIENCE_SECONDS", 0.0)
    with open_store(location) as store, pytest.raises(StoreError) as failed:
        store.collections()
    assert failed.value.cure.endswith("The URL names no port, so port 6333 was asked") == told


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_this_machine_is_asked_without_a_proxy_and_another_through_it(
    rest: RestQdrant, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "FIRST_PATIENCE_SECONDS", 0.0)
    with closing(RestQdrant()) as proxy:
        monkeypatch.setenv(variable, proxy.url)
        for location in (rest.url, rest.url.replace("127.0.0.1", "localhost")):
            with open_store(location) as store:
                assert store.collections() == []
        assert (len(rest.requests), proxy.requests) == (2, [])
        with open_store("http://xqg.invalid:6333") as store, pytest.raises(StoreError):
            store.collections()
        assert [path for _, path, _ in proxy.requests] == ["http://xqg.invalid:6333/collections"]


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "gopher://127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used_is_told_with_its_own_cure(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if proxy.startswith("socks5") and importlib.util.find_spec("socksio"):
        pytest.skip("httpx can use SOCKS proxies here")
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(StoreError, match=r"cannot open the store in http://host:6333: .*Cure: set HTTP_PROXY, HTTPS"):
        open_store("http://host:6333")


def test_a_connection_is_waited_for_less_long_than_an_answer(rest: RestQdrant) -> None:
    limits: list[dict[str, float]] = []

    def remember(request: httpx.Request) -> httpx.Response:
        limits.append(request.extensions["timeout"])
        return httpx.Response(200)

    for patience in (math.inf, 2):
        request = httpx.Request("GET", rest.url, extensions={"timeout": httpx.Timeout(60).as_dict()})
        wire_module.limit_waiting(patience, request, remember)
    assert [(limit["connect"], limit["read"]) for limit in limits] == [(5, 60), (2, 2)]


# --- pages of points


@pytest.mark.parametrize(
    "body",
    [
        "[]", '{"result": null}', '{"result": {"points": null}}', '{"result": {"points": [7]}}',
        '{"result": {"points": [{"vector": null}]}}', '{"result": {"points": [], "next_page_offset": [1]}}',
        '{"result": {"points": [{"id": 1, "payload": []}]}}', '{"result": {"points": [{"id": 1, "vector": ["a"]}]}}',
        '{"result": {"points": [{"id": 1, "vector": {"terms": {"indices": "none"}}}]}}',
    ],
)  # fmt: skip
def test_a_page_of_another_kind_is_told_at_once(rest: RestQdrant, store: Store, body: str) -> None:
    store.count("docs")
    rest.script = [lambda _: (200, {}, body.encode())]
    before = len(rest.requests)
    with pytest.raises(StoreError, match=r"cannot read collection 'docs' .* cannot read the answer.*Cure: upgrade"):
        list(store.scroll("docs"))
    assert len(rest.requests) == before + 1


def test_a_vector_of_any_float32_comes_back_bit_by_bit_in_as_few_digits_as_it_needs(
    rest: RestQdrant, store: Store
) -> None:
    bits = np.random.default_rng(11).integers(0, 2**32, 40 * DIM, np.uint32).view(np.float32)
    drawn = bits[np.isfinite(bits)][: 30 * DIM].reshape(-1, DIM)
    points = [
        replace(point, vectors={"xqg": row, "passage": -row}) for point, row in zip(make_points(30), drawn, strict=True)
    ]
    store.upsert("docs", points)
    found = {point.passage.passage_id: point.vectors["xqg"] for point in store.scroll("docs")}
    for number, row in enumerate(drawn):
        assert found[f"p{number}"].tobytes() == row.tobytes()


def test_pages_of_vectors_are_asked_for_uncompressed_and_everything_else_is_not() -> None:
    for given, asked in (("identity", "identity"), ("gzip, deflate, br", "gzip")):
        request = httpx.Request("POST", "http://host", headers={"Accept-Encoding": given})
        ask_for_gzip(request)
        assert request.headers["Accept-Encoding"] == asked


# --- names


@pytest.mark.parametrize("name", ["docs#old", "docs%23old", "docs old"])
def test_a_name_reaches_the_server_whole(rest: RestQdrant, store: Store, name: str) -> None:
    store.create_collection(name, DIM, FINGERPRINT)
    store.upsert(name, make_points(2))
    assert (store.count("docs"), store.count(name)) == (0, 2)
    assert store.collections() == sorted(["docs", name])
    store.delete_collection(name)
    assert store.collections() == ["docs"]


# --- answers that are larger than an answer may be


def test_what_is_too_large_for_one_answer_is_read_in_several(
    rest: RestQdrant, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = make_points(20, "a long text " * 100)
    store.upsert("docs", points)
    monkeypatch.setattr(answers_module, "MAX_ANSWER_BYTES", 5_000)  # three of the points
    rest.requests.clear()
    assert {point.passage.passage_id for point in store.scroll("docs")} == {f"p{i}" for i in range(20)}
    # 256, 128, 64, 32, 16, 8, 4: too many; then two at a time.
    assert len(rest.requests) <= 8 + 10
    found = store.read_points("docs", [f"p{i}" for i in range(20)])
    assert list(found) == [f"p{i}" for i in range(20)]
    hits = store.search("docs", np.stack([point.vectors["xqg"] for point in points[:8]]), "xqg", 2)
    assert [len(each) for each in hits] == [2] * 8
    monkeypatch.setattr(answers_module, "MAX_ANSWER_BYTES", 1_000)
    for read in (lambda: list(store.scroll("docs")), lambda: store.read_points("docs", ["p0", "p1"])):
        with pytest.raises(StoreError, match="the answer is larger than"):
            read()
