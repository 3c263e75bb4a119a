"""What a store does with a server's moods, limits and settings; `rest_qdrant` plays the server.

`test_stores` holds what every store does alike, `battery/test_failing_server` what whole ingests survive.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from qdrant_client import models
from qdrant_client.http.exceptions import ResponseHandlingException
from rest_qdrant import Json, RestQdrant, Script, answer

from xqg_qdrant.augmentation.pipeline import ingest
from xqg_qdrant.augmentation.recipe import make_recipe
from xqg_qdrant.cli import main
from xqg_qdrant.errors import StoreError
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import AugmentedPassage, GeneratedQuery, Passage, QueriedPassage
from xqg_qdrant.stores import Store, open_store, sends_key_in_clear
from xqg_qdrant.stores.protocol import Indexing
from xqg_qdrant.stores.server import load as load_module
from xqg_qdrant.stores.server import requests as wire_module

DIM = 8
FINGERPRINT = {"recipe.alpha": 0.01}


@pytest.fixture
def store(rest: RestQdrant, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(wire_module, "FIRST_DELAY_SECONDS", 0.01)
    opened = open_store(rest.url)
    yield opened
    opened.close()


@pytest.fixture
def sent(rest: RestQdrant, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Json]]:
    """Remember each request that is carried out: method, path, body."""
    requests: list[tuple[str, str, Json]] = []
    respond = rest.respond

    def remember(method: str, path: str, body: Json) -> Json:
        requests.append((method, path, json.loads(json.dumps(body))))
        return respond(method, path, body)

    monkeypatch.setattr(rest, "respond", remember)
    return requests


def make_points(count: int) -> list[AugmentedPassage]:
    vectors = np.random.default_rng(7).standard_normal((count, DIM)).astype(np.float32)
    return [
        AugmentedPassage(
            Passage(f"passage {i}", "text"), (), {"xqg": vector, "passage": -vector}, f"hash {i}", "recipe"
        )
        for i, vector in enumerate(vectors)
    ]


# --- what is sent again


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 520])
def test_what_may_pass_is_sent_again(rest: RestQdrant, store: Store, status: int) -> None:
    rest.script = [answer(status, "not now")] * 2
    assert store.collections() == []
    assert len(rest.requests) == 3


@pytest.mark.parametrize("status", [307, 400, 401, 403, 404, 405, 409, 413, 422, 501, 505, 507])
def test_what_will_not_pass_is_told_at_once(rest: RestQdrant, store: Store, status: int) -> None:
    rest.script = [answer(status, "never")]
    with pytest.raises(StoreError, match=rf"cannot list the collections in http\S+: HTTP {status}: .*\. Cure: "):
        store.collections()
    assert len(rest.requests) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_the_time_that_a_server_wants_to_be_left_alone_may_be_a_date(
    rest: RestQdrant, store: Store, status: int
) -> None:
    wanted = datetime.now(UTC) + timedelta(seconds=2)
    rest.script = [answer(status, "later", Retry_After=format_datetime(wanted, usegmt=True))]
    assert store.collections() == []
    assert datetime.now(UTC) >= wanted.replace(microsecond=0)


@pytest.mark.parametrize("value", ["1", "3600", "tomorrow", "-5", "", "Sat, 21 Nov 2020 12:00:00 GMT"])
def test_the_time_that_a_server_names_is_waited_for_where_it_is_one(
    rest: RestQdrant, store: Store, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "PATIENCE_SECONDS", 60.0)
    rest.script = [answer(503, "busy", Retry_After=value)]
    started = time.monotonic()
    if value == "3600":
        with pytest.raises(StoreError, match="HTTP 503: busy"):
            store.collections()
    else:
        assert store.collections() == []
    assert (time.monotonic() - started >= 1) == (value == "1")


@pytest.mark.parametrize(
    "cut",
    [
        lambda _: (200, {}, b'{"result": {"collecti'),
        lambda _: (200, {}, b'{"result": {"collections": [{"name": "\xe6'),
        lambda _: (200, {}, b""),
        lambda _: (200, {"Content-Length": "500"}, b'{"result": {"collecti'),
        lambda _: (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b no gzip"),
    ],
)
def test_an_answer_that_was_cut_off_is_asked_for_again(rest: RestQdrant, store: Store, cut: Script) -> None:
    rest.script = [cut, cut]
    assert store.collections() == []
    assert len(rest.requests) == 3


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"result": null}', b'{"result": {"collections": [{"nom": 1}]}}'])
def test_an_answer_of_another_kind_is_told_at_once(rest: RestQdrant, store: Store, body: bytes) -> None:
    rest.script = [lambda _: (200, {}, body)]
    with pytest.raises(StoreError, match=r"qdrant-client cannot read the answer.*Cure: upgrade"):
        store.collections()
    assert len(rest.requests) == 1


def test_a_redirect_is_told_and_not_followed(rest: RestQdrant) -> None:
    with closing(RestQdrant()) as other, closing(open_store(rest.url, "some-key")) as store:
        rest.script = [lambda _: (308, {"Location": f"{other.url}/collections"}, b"")]
        with pytest.raises(StoreError, match=rf"HTTP 308: redirected to '{other.url}/collections'\. Cure: set --store"):
            store.collections()
        assert other.requests == []


class Clock:
    """Stands in for `time`: sleeping takes no time."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def refuse_until(clock: Clock, end: float) -> Callable[[], str]:
    def ask() -> str:
        if clock.now < end:
            raise ResponseHandlingException(httpx.ConnectError("refused"))
        return "answer"

    return ask


def test_a_restart_of_two_minutes_is_survived_and_a_longer_absence_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(wire_module, "time", clock)
    wire = wire_module.Wire("http://host", None, remote=True)
    assert wire.ask("ask", refuse_until(clock, 0)) == "answer"
    assert wire.ask("ask", refuse_until(clock, 120)) == "answer"
    with pytest.raises(
        StoreError, match=r"cannot ask in http://host: ConnectError: refused \(tried \d+ times in \d+ s\)\. Cure: "
    ):
        wire.ask("ask", refuse_until(clock, 10**6))
    assert 120 + 285 <= clock.now <= 120 + 15 + 300


def test_a_server_that_was_never_reached_is_given_up_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(wire_module, "time", clock)
    with pytest.raises(StoreError, match=r"Cure: check that the server runs, and check its URL and port"):
        wire_module.Wire("http://host", None, remote=True).ask("ask", refuse_until(clock, 10**6))
    assert clock.now <= 3


def test_workers_that_are_refused_do_not_come_back_at_one_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("xqg_qdrant.stores.server.requests.time.sleep", waits.append)
    monkeypatch.setattr(wire_module, "MAX_DELAY_SECONDS", 4.0)
    wire = wire_module.Wire("http://host", None, remote=True)
    assert wire.ask("reach", lambda: 1) == 1
    for _ in range(3):
        refusals = iter([True] * 5 + [False])

        def ask(refusals: Iterator[bool] = refusals) -> str:
            if next(refusals):
                raise ResponseHandlingException(httpx.ReadTimeout("slow"))
            return "answer"

        assert wire.ask("ask", ask) == "answer"
    assert len(set(waits)) == 15
    for index, wait in enumerate(waits):
        longest = [0.5, 1.0, 2.0, 4.0, 4.0][index % 5]
        assert longest / 2 <= wait <= longest


# --- strict mode


def limit_everything(**limits: Any) -> models.StrictModeConfigOutput:
    return models.StrictModeConfigOutput(enabled=True, **limits)


def test_requests_hold_no_more_than_strict_mode_allows(rest: RestQdrant, sent: list[tuple[str, str, Json]]) -> None:
    rest.strict_mode = limit_everything(
        upsert_max_batchsize=7, max_query_limit=5, search_max_batchsize=2, search_max_oversampling=1.5
    )
    store = open_store(rest.url)
    store.create_collection("passages", DIM, FINGERPRINT)
    points = make_points(20)
    store.upsert("passages", points)
    assert [len(body["points"]) for method, path, body in sent if path.endswith("/points") and method == "PUT"] == [
        7, 7, 6,
    ]  # fmt: skip
    assert len(list(store.scroll("passages"))) == len(list(store.scroll_stored("passages"))) == 20
    assert {body["limit"] for _, path, body in sent if path.endswith("/scroll")} == {5}
    queries = np.stack([point.vectors["xqg"] for point in points[:5]])
    assert [len(hits) for hits in store.search("passages", queries, "xqg", 5)] == [5] * 5
    searches = [body["searches"] for _, path, body in sent if path.endswith("/query/batch")]
    assert [len(batch) for batch in searches] == [2, 2, 1]
    assert {search["limit"] for batch in searches for search in batch} == {5}
    assert searches[0][0]["params"]["quantization"]["oversampling"] == 1.5
    store.close()


def test_requests_cost_no_more_than_a_minute_allows(rest: RestQdrant, sent: list[tuple[str, str, Json]]) -> None:
    rest.strict_mode = limit_everything(read_rate_limit=6, write_rate_limit=9)
    store = open_store(rest.url)
    store.create_collection("passages", DIM, FINGERPRINT)
    store.upsert("passages", make_points(20))
    ids = [f"passage {i}" for i in range(20)]
    assert len(store.read_content_hashes("passages", ids)) == len(store.read_points("passages", ids)) == 20
    store.search("passages", np.ones((8, DIM), np.float32), "xqg", 1)
    store.delete("passages", ids)
    costs = {
        ("PUT", "points"): [9, 9, 2],
        ("POST", "points"): [1, *[6, 6, 6, 2] * 2],  # the first written point is read back
        ("POST", "points/query/batch"): [6, 2],
        ("POST", "points/delete"): [9, 9, 2],
    }
    for (method, path), expected in costs.items():
        bodies = [body for verb, whole, body in sent if (verb, whole) == (method, f"/collections/passages/{path}")]
        counts = [len(body.get("points") or body.get("ids") or body.get("searches")) for body in bodies]
        assert counts == expected, path
    store.close()


def test_limits_that_are_not_enabled_do_not_count(rest: RestQdrant, sent: list[tuple[str, str, Json]]) -> None:
    rest.strict_mode = models.StrictModeConfigOutput(enabled=False, upsert_max_batchsize=1, search_allow_exact=False)
    store = open_store(rest.url)
    store.create_collection("passages", DIM, FINGERPRINT)
    store.upsert("passages", make_points(20))
    assert sum(verb == "PUT" and path.endswith("/points") for verb, path, _ in sent) == 1
    assert store.count("passages") == 20
    store.close()


def test_where_exact_searches_are_forbidden_points_are_counted_one_by_one(rest: RestQdrant, store: Store) -> None:
    rest.strict_mode = limit_everything(search_allow_exact=False)
    store.create_collection("passages", DIM, FINGERPRINT)
    store.upsert("passages", make_points(20))
    assert store.count("passages") == 20
    assert not any(path.endswith("/count") for _, path, _ in rest.requests)
    query = np.ones((1, DIM), np.float32)
    with pytest.raises(
        StoreError, match=r"'passages' in http\S+ has no exact search: .*search_allow_exact to false\. C"
    ):
        store.search("passages", query, "xqg", 3, exact=True)
    assert len(store.search("passages", query, "xqg", 3)[0]) == 3


def test_a_search_for_more_than_is_allowed_is_refused_with_the_number_that_is(rest: RestQdrant, store: Store) -> None:
    rest.strict_mode = limit_everything(max_query_limit=10)
    store.create_collection("passages", DIM, FINGERPRINT)
    with pytest.raises(StoreError, match=r"11 passages.*max_query_limit to 10\. Cure: ask for at most 10\."):
        store.search("passages", np.ones((1, DIM), np.float32), "xqg", 11)
    assert not any(path.endswith("/query/batch") for _, path, _ in rest.requests)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_points_count": 20}, r"is full: its strict mode sets max_points_count to 20\. Cure: .*to 21 or more"),
        # 20 points, two vectors of 8 floats of 4 bytes
        ({"max_collection_vector_size_bytes": 1280}, r"is full: .*vector_size_bytes to 1280\. Cure: .*to 1281 or more"),
        ({"max_payload_index_count": 0}, r"lacks an index.*max_payload_index_count to 0\. Cure: .*to 1 or more"),
    ],
)
def test_a_limit_that_closes_the_collection_is_told_before_any_work(
    rest: RestQdrant, limits: dict[str, int], message: str
) -> None:
    store = open_store(rest.url)
    store.create_collection("passages", DIM, FINGERPRINT)
    store.upsert("passages", make_points(20))
    store.close()
    rest.settings["passages"].strict_mode = limit_everything(**limits)
    rest.settings["passages"].indexes.clear()
    store = open_store(rest.url)
    before = len(rest.requests)
    with (
        pytest.raises(StoreError, match=rf"collection 'passages' in http\S+ {message}\."),
        store.bulk_load("passages", fast=False),
    ):
        pytest.fail("the load began")
    with pytest.raises(StoreError, match=message):
        store.upsert("passages", make_points(1))
    assert {method for method, _, _ in rest.requests[before:]} == {"GET"}
    store.close()


# --- payload indexes and the time of indexing


def test_a_payload_index_that_a_kill_prevented_is_made_before_the_next_point(rest: RestQdrant, store: Store) -> None:
    store.create_collection("passages", DIM, FINGERPRINT)
    rest.settings["passages"].indexes.clear()
    later = open_store(rest.url)
    rest.requests.clear()
    later.upsert("passages", make_points(2))
    later.upsert("passages", make_points(2))
    assert [path for method, path, _ in rest.requests if method == "PUT"] == [
        "/collections/passages/index?wait=true",
        *["/collections/passages/points?wait=true"] * 2,
    ]
    later.close()


def kept(rest: RestQdrant) -> tuple[int | None, Json]:
    """Return the threshold that the server goes by, and what of a load is kept with the collection."""
    metadata = rest.client.get_collection("passages").config.metadata or {}
    assert metadata["xqg_fingerprint"] == FINGERPRINT
    return rest.settings["passages"].indexing_threshold, metadata.get("xqg_bulk_load")


def test_a_fast_load_of_an_empty_collection_is_indexed_at_its_end(rest: RestQdrant, store: Store) -> None:
    store.create_collection("passages", DIM, FINGERPRINT)
    rest.settings["passages"].indexing_threshold = 12_345
    with store.bulk_load("passages", fast=True):
        assert kept(rest) == (0, {"indexing_threshold": 12_345})
        store.upsert("passages", make_points(3))
        assert kept(rest) == (0, {"indexing_threshold": 12_345})
    assert kept(rest) == (12_345, None)


def test_other_loads_leave_the_index_alone(rest: RestQdrant, store: Store) -> None:
    store.create_collection("passages", DIM, FINGERPRINT)
    settings = rest.settings["passages"]
    with store.bulk_load("passages", fast=False):
        assert kept(rest) == (10_000, None)
    for threshold, prevent_unoptimized in ((None, None), (0, None), (10_000, True)):
        settings.indexing_threshold, settings.prevent_unoptimized = threshold, prevent_unoptimized
        with store.bulk_load("passages", fast=True):
            assert kept(rest) == (threshold, None)
        assert kept(rest) == (threshold, None)
    settings.indexing_threshold, settings.prevent_unoptimized = 10_000, False
    store.upsert("passages", make_points(1))
    with store.bulk_load("passages", fast=True):
        assert kept(rest) == (10_000, None)


@pytest.mark.parametrize("end", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_load_that_breaks_off_restores_the_index(rest: RestQdrant, store: Store, end: type[BaseException]) -> None:
    store.create_collection("passages", DIM, FINGERPRINT)
    with pytest.raises(end), store.bulk_load("passages", fast=True):  # noqa: PT012
        assert kept(rest) == (0, {"indexing_threshold": 10_000})
        raise end
    assert kept(rest) == (10_000, None)


@pytest.mark.parametrize("patch", range(4))
def test_each_request_of_a_pause_may_be_the_last_before_an_error(
    rest: RestQdrant, store: Store, patch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create_collection("passages", DIM, FINGERPRINT)
    respond, patches = rest.respond, iter(range(100))

    def refuse(method: str, path: str, body: Json) -> Json:
        if method == "PATCH" and next(patches) == patch:
            raise ValueError("a refusal")
        return respond(method, path, body)

    monkeypatch.setattr(rest, "respond", refuse)
    with pytest.raises(StoreError, match="a refusal"), store.bulk_load("passages", fast=True):
        pass
    open_store(rest.url).upsert("passages", make_points(1))
    assert kept(rest) == (10_000, None)


@pytest.mark.parametrize("heal", ["upsert", "bulk_load", "optimise"])
def test_after_a_kill_the_next_one_that_writes_or_optimises_restores_the_index(rest: RestQdrant, heal: str) -> None:
    code = """
import os, signal, sys
from test_server import DIM, FINGERPRINT, make_points, open_store
store = open_store(sys.argv[1])
store.create_collection("passages", DIM, FINGERPRINT)
with store.bulk_load("passages", fast=True):
    store.upsert("passages", make_points(3))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", code, rest.url], env=environment, timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert kept(rest) == (0, {"indexing_threshold": 10_000})
    store = open_store(rest.url)
    assert store.count("passages") == 3
    assert kept(rest) == (0, {"indexing_threshold": 10_000})  # who only reads changes nothing
    if heal == "upsert":
        store.upsert("passages", make_points(4))
    elif heal == "optimise":
        list(store.optimise("passages", above=10))
    else:
        with store.bulk_load("passages", fast=True):
            assert kept(rest) == (10_000, None)
    assert kept(rest) == (10_000, None)
    store.close()


def test_a_collection_deleted_during_its_load_is_no_error_of_the_index(rest: RestQdrant, store: Store) -> None:
    store.create_collection("passages", DIM, FINGERPRINT)
    with store.bulk_load("passages", fast=True):
        store.delete_collection("passages")
    assert store.collections() == []


def test_an_ingest_of_given_queries_is_indexed_at_its_end_and_one_that_generates_as_it_goes(
    store: Store, sent: list[tuple[str, str, Json]], demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    row = QueriedPassage(Passage("a", "Tonava"), (GeneratedQuery("fi", "Missä?"),))
    list(ingest([row], store, "given", demo_encoder, None, make_recipe(None)))
    order = [body.get("optimizers_config") or path for method, path, body in sent if method in ("PATCH", "PUT")]
    paused, points, resumed = {"indexing_threshold": 0}, "/collections/given/points", {"indexing_threshold": 10_000}
    assert [step for step in order if step in (paused, points, resumed)] == [paused, points, resumed]
    sent.clear()
    recipe = make_recipe(demo_generator, ("fi",), queries_per_language=1)
    list(ingest([row.passage], store, "generated", demo_encoder, demo_generator, recipe))
    assert not any("optimizers_config" in body for method, _, body in sent if method == "PATCH")


def watch(rest: RestQdrant, store: Store, *statuses: str) -> list[Indexing]:
    store.create_collection("passages", DIM, FINGERPRINT)
    store.upsert("passages", make_points(3))
    # Before it is watched a collection is read once, to restore its settings.
    rest.settings["passages"].statuses = ["green", *statuses]
    return list(store.optimise("passages"))


def test_a_server_is_waited_for_until_it_is_green_twice(
    rest: RestQdrant, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "POLL_SECONDS", 0.001)
    steps = watch(rest, store, "green", "yellow", "yellow", "green", "yellow")
    assert [step.changed for step in steps] == [False] + [True] * 6  # and two that are green
    assert [step.seconds for step in steps] == sorted(step.seconds for step in steps)


def test_a_server_that_is_grey_after_a_restart_is_woken(
    rest: RestQdrant, store: Store, sent: list[tuple[str, str, Json]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "POLL_SECONDS", 0.001)
    assert len(watch(rest, store, "grey")) == 3
    assert [body for method, _, body in sent if method == "PATCH"] == [{"optimizers_config": {}}]


def test_an_index_that_fails_or_makes_no_headway_is_told(
    rest: RestQdrant, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(load_module, "time", clock)
    with pytest.raises(StoreError, match=r"has indexed nothing of 'passages' for 900 s\. Cure: .*points are stored"):
        watch(rest, store, *["yellow"] * 2000)
    assert 900 <= clock.now <= 902
    rest.settings["passages"].statuses = ["green", "red"]
    with pytest.raises(StoreError, match=r"cannot index collection 'passages'\. Cure: look at the server's log"):
        list(store.optimise("passages"))


def test_small_collections_are_not_waited_for_where_that_was_not_asked_for(rest: RestQdrant, store: Store) -> None:
    store.create_collection("passages", DIM, FINGERPRINT)
    store.upsert("passages", make_points(3))
    rest.settings["passages"].statuses = ["yellow"] * 10
    assert list(store.optimise("passages", above=3)) == []


# --- TLS, and where a key may go


def make_certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """Return an authority's certificate, and a file with a key and a certificate that it signed for a host."""

    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make certificates with")

    def openssl(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)

    authority, authority_key, request, signed = (folder / name for name in ("ca.pem", "ca.key", "req.pem", "host.pem"))
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-days", 2, "-subj", "/CN=a test", "-keyout", authority_key, "-out", authority)
    openssl("req", *curve, "-subj", f"/CN={host}", "-keyout", folder / "host.key", "-out", request)
    (folder / "names").write_text(f"subjectAltName=IP:{host}")
    openssl(
        *("x509", "-req", "-in", request, "-CA", authority, "-CAkey", authority_key, "-set_serial", 1, "-days", 2),
        *("-extfile", folder / "names", "-out", signed),
    )
    chain = folder / "chain.pem"
    chain.write_text((folder / "host.key").read_text() + signed.read_text())
    return authority, chain


@pytest.fixture
def secure_rest(tmp_path: Path) -> Iterator[tuple[RestQdrant, Path]]:
    authority, chain = make_certificate(tmp_path, "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    server = RestQdrant(context)
    yield server, authority
    server.close()


def test_a_server_with_a_certificate_of_an_authority_of_ones_own_is_reached(
    secure_rest: tuple[RestQdrant, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rest, authority = secure_rest
    assert rest.url.startswith("https://")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    store = open_store(rest.url, "some-key")
    store.create_collection("passages", DIM, FINGERPRINT)
    store.upsert("passages", make_points(3))
    assert store.count("passages") == 3
    store.close()


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once_with_the_cure(
    secure_rest: tuple[RestQdrant, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rest, authority = secure_rest
    waits: list[float] = []
    monkeypatch.setattr("xqg_qdrant.stores.server.requests.time.sleep", waits.append)
    store = open_store(rest.url)
    with pytest.raises(StoreError, match=r"CERTIFICATE_VERIFY_FAILED.*Cure: set SSL_CERT_FILE to the certificate"):
        store.collections()
    assert (waits, rest.requests) == ([], [])
    store.close()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    store = open_store(rest.url.replace("127.0.0.1", "localhost"))  # another name than the certificate's
    with pytest.raises(StoreError, match=r"CERTIFICATE_VERIFY_FAILED.*Cure: "):
        store.collections()
    assert (waits, rest.requests) == ([], [])
    store.close()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_of_certificates_that_is_none_is_named(
    tmp_path: Path, content: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "authority.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(
        StoreError,
        match=r"cannot open the store in https://host:6333: .*Cure: set SSL_CERT_FILE to a file of certificates",
    ):
        open_store("https://host:6333", "some-key")


def test_a_key_crosses_a_network_unencrypted_only_with_http_to_another_machine() -> None:
    clear = ["http://qdrant:6333", "http://10.0.0.7:6333", "http://[2001:db8::1]:6333", "http://localhost.example:6333"]
    safe = ["https://qdrant:6333", "http://localhost:6333", "http://127.0.0.9:6333", "http://[::1]:6333", "edge:data"]
    assert [location for location in clear + safe if sends_key_in_clear(location, "some-key")] == clear
    assert not any(sends_key_in_clear(location, key) for location in clear for key in (None, "", " \n"))


@pytest.mark.parametrize("quiet", [False, True])
def test_the_command_line_warns_of_a_key_that_travels_unencrypted(
    quiet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", "some-key")
    monkeypatch.setattr(wire_module, "FIRST_PATIENCE_SECONDS", 0.0)
    arguments = ["optimise", "--collection", "passages", "--store", "http://xqg.invalid:6333"]
    result = CliRunner().invoke(main, ["-q", *arguments] if quiet else arguments)
    assert result.exit_code == 5
    warned = "Warning: the API key travels unencrypted to http://xqg.invalid:6333; use https where you can.\n"
    assert (warned in result.stderr) == (not quiet)


def test_no_command_takes_a_key_as_an_argument_or_switches_the_check_of_certificates_off() -> None:
    def options(command: click.Command) -> Iterator[str]:
        for parameter in command.params:
            yield from parameter.opts
        for part in command.commands.values() if isinstance(command, click.Group) else ():
            yield from options(part)

    names = set(options(main))
    assert "--store" in names
    words = {word for name in names for word in name.strip("-").split("-")}
    assert words & {"key", "token", "secret", "password", "verify", "insecure"} == set()
