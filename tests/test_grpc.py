"""When points travel by gRPC, and that they arrive the same; beside `rest_qdrant` stands a server over its points."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as messages
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from rest_qdrant import Json, RestQdrant
from test_server import make_certificate

from xqg_qdrant.records import AugmentedPassage, GeneratedQuery, Passage
from xqg_qdrant.stores import Store, open_store
from xqg_qdrant.stores.server import requests as grpc_upserts

DIM = 8
KEY = "sk-verysecret-0123456789"


class GrpcQdrant:
    """The three calls that we make, answered from the points of a server of REST."""

    def __init__(self, rest: RestQdrant, credentials: grpc.ServerCredentials | None = None) -> None:
        self.rest = rest
        self.title = "qdrant - vector search engine"
        self.calls: list[tuple[str, str | None]] = []
        self.failures: list[grpc.StatusCode] = []
        self.closing = threading.Event()
        self.hangs = False
        self.server = grpc.server(ThreadPoolExecutor(4))
        services: dict[str, dict[str, tuple[Callable[..., Any], Any]]] = {
            "qdrant.Qdrant": {"HealthCheck": (self.check_health, messages.HealthCheckRequest)},
            "qdrant.Collections": {"Get": (self.describe, messages.GetCollectionInfoRequest)},
            "qdrant.Points": {"Upsert": (self.upsert, messages.UpsertPoints)},
        }
        for service, methods in services.items():
            handlers = {
                name: grpc.unary_unary_rpc_method_handler(
                    self.remember(name, method), request.FromString, lambda reply: reply.SerializeToString()
                )
                for name, (method, request) in methods.items()
            }
            self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        here = "127.0.0.1:0"
        self.port = (
            self.server.add_secure_port(here, credentials) if credentials else self.server.add_insecure_port(here)
        )
        self.server.start()

    def close(self) -> None:
        self.closing.set()
        self.server.stop(None).wait()

    def remember(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def answer(request: Json, context: Json) -> Json:
            self.calls.append((name, dict(context.invocation_metadata()).get("api-key")))
            if self.hangs:
                self.closing.wait(30)
            return method(request, context)

        return answer

    def check_health(self, _request: Json, _context: Json) -> Json:
        return messages.HealthCheckReply(title=self.title, version="1.16.0")

    def describe(self, request: Json, _context: Json) -> Json:
        info = RestToGrpc.convert_collection_info(self.rest.client.get_collection(request.collection_name))
        return messages.GetCollectionInfoResponse(result=info)

    def upsert(self, request: Json, context: Json) -> Json:
        assert request.wait
        points = [GrpcToRest.convert_point_struct(point) for point in request.points]
        result = self.rest.client.upsert(request.collection_name, points)
        if self.failures:
            context.abort(self.failures.pop(0), f"{KEY} is not welcome")
        return messages.PointsOperationResponse(result=RestToGrpc.convert_update_result(result))


def pair(rest: RestQdrant, beside: GrpcQdrant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the ports of the two those that Qdrant comes with."""
    monkeypatch.setattr(grpc_upserts, "REST_PORT", rest.server_address[1])
    monkeypatch.setattr(grpc_upserts, "GRPC_PORT", beside.port)


@pytest.fixture
def beside(rest: RestQdrant, monkeypatch: pytest.MonkeyPatch) -> Iterator[GrpcQdrant]:
    server = GrpcQdrant(rest)
    pair(rest, server, monkeypatch)
    yield server
    server.close()


@pytest.fixture
def store(rest: RestQdrant) -> Iterator[Store]:
    opened = open_store(rest.url, KEY)
    opened.create_collection("passages", DIM, {"recipe.alpha": 0.01, "recipe.languages": ["ja", None]})
    yield opened
    opened.close()


def make_points(count: int, **metadata: Any) -> list[AugmentedPassage]:
    vectors = np.random.default_rng(7).standard_normal((count, 2, DIM)).astype(np.float32)
    queries = (GeneratedQuery("ja", "何ですか"), GeneratedQuery("", "?\x00"))
    return [
        AugmentedPassage(
            Passage(f"passage {i}", "text", "", metadata),
            queries,
            {"xqg": xqg, "passage": plain},
            f"hash {i}",
            "recipe",
        )
        for i, (xqg, plain) in enumerate(vectors)
    ]


def count_upserts(rest: RestQdrant, beside: GrpcQdrant) -> tuple[int, int]:
    """Return how many came by REST, and how many by gRPC."""
    by_rest = sum(method == "PUT" and "/points" in path for method, path, _ in rest.requests)
    return by_rest, sum(name == "Upsert" for name, _ in beside.calls)


def assert_stored(store: Store, points: list[AugmentedPassage]) -> None:
    found = {point.passage.passage_id: point for point in store.scroll("passages")}
    assert len(found) == store.count("passages") == len(points)
    for point in points:
        same = found[point.passage.passage_id]
        assert replace(same, vectors={}) == replace(point, vectors={})
        for name, vector in point.vectors.items():
            assert same.vectors[name].tobytes() == vector.tobytes()


def test_points_that_come_by_grpc_are_the_same(rest: RestQdrant, beside: GrpcQdrant, store: Store) -> None:
    metadata = {
        "int": 2**63 - 1,
        "float": 1.0,
        "tiny": -5e-324,
        "none": None,
        "yes": True,
        "list": [[], {}, {"a": "b"}],
    }
    points = make_points(600, **metadata)
    store.upsert("passages", points)
    assert count_upserts(rest, beside) == (0, 3)
    assert_stored(store, points)
    assert {type(value) for value in next(store.scroll("passages")).passage.metadata.values()} == {
        *(int, float, type(None), bool, list)
    }
    # Whatever listens there is asked without the key whether it is a Qdrant.
    assert beside.calls[:2] == [("HealthCheck", None), ("Get", KEY)]


@pytest.mark.parametrize("value", [2**63, 2**64 - 1, [json.loads("[" * 60 + "]" * 60)]])
def test_what_grpc_cannot_carry_goes_by_rest(rest: RestQdrant, beside: GrpcQdrant, store: Store, value: object) -> None:
    points = make_points(3, value=value)
    store.upsert("passages", points)
    assert_stored(store, points)
    assert count_upserts(rest, beside)[0] == 1


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_an_upsert_that_fails_is_done_by_rest_and_so_are_those_after_it(
    rest: RestQdrant, beside: GrpcQdrant, store: Store, code: grpc.StatusCode
) -> None:
    points = make_points(600)
    beside.failures = [code]
    store.upsert("passages", points)
    assert count_upserts(rest, beside) == (3, 1)
    assert_stored(store, points)


def test_a_server_that_says_nothing_by_grpc_is_left_to_rest(
    rest: RestQdrant, beside: GrpcQdrant, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_upserts, "PROBE_SECONDS", 0.2)
    beside.hangs = True
    started = time.monotonic()
    store.upsert("passages", make_points(3))
    assert time.monotonic() - started < 5
    assert (count_upserts(rest, beside), beside.calls) == ((1, 0), [("HealthCheck", None)])


def test_a_port_where_nobody_listens_is_left_to_rest(rest: RestQdrant, beside: GrpcQdrant, store: Store) -> None:
    beside.close()
    store.upsert("passages", make_points(3))
    assert count_upserts(rest, beside) == (1, 0)


def test_what_is_no_qdrant_never_gets_the_key(rest: RestQdrant, beside: GrpcQdrant, store: Store) -> None:
    beside.title = "a service of another kind"
    store.upsert("passages", make_points(3))
    assert (count_upserts(rest, beside), beside.calls) == ((1, 0), [("HealthCheck", None)])


@pytest.mark.parametrize("metadata", [None, {}, {"xqg_fingerprint": {"recipe.alpha": 0.02}}])
def test_a_neighbour_with_a_collection_of_the_same_name_gets_no_point(
    rest: RestQdrant, beside: GrpcQdrant, store: Store, metadata: dict[str, Any] | None
) -> None:
    with closing(RestQdrant()) as neighbour:
        params = models.VectorParams(size=DIM, distance=models.Distance.DOT)
        neighbour.client.create_collection("passages", {"xqg": params, "passage": params}, metadata=metadata)
        beside.rest = neighbour
        store.upsert("passages", make_points(3))
        assert count_upserts(rest, beside) == (1, 0)
        assert neighbour.client.count("passages").count == 0


@pytest.mark.parametrize("path", ["", "/prefix"])
def test_beside_another_port_of_rest_and_behind_a_proxy_grpc_is_not_looked_for(
    rest: RestQdrant, beside: GrpcQdrant, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    if not path:
        monkeypatch.setattr(grpc_upserts, "REST_PORT", 6333)
    client = QdrantClient(":memory:")
    way = grpc_upserts.GrpcUpserts(client, rest.url + path, 1)
    assert way.try_upsert("passages", []) is None
    assert beside.calls == []
    client.close()


@pytest.mark.parametrize("trusted", [True, False])
def test_grpc_trusts_the_authority_that_rest_trusts_and_no_other(
    trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, chain = make_certificate(tmp_path, "127.0.0.1")
    (tmp_path / "other").mkdir()
    _, other_chain = make_certificate(tmp_path / "other", "127.0.0.1")
    pem = (chain if trusted else other_chain).read_bytes()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    credentials = grpc.ssl_server_credentials([(pem, pem)])
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    with closing(RestQdrant(context)) as rest, closing(GrpcQdrant(rest, credentials)) as beside:
        pair(rest, beside, monkeypatch)
        store = open_store(rest.url, KEY)
        store.create_collection("passages", DIM, {"recipe.alpha": 0.01})
        points = make_points(3)
        store.upsert("passages", points)
        assert count_upserts(rest, beside) == ((0, 1) if trusted else (1, 0))
        assert trusted or beside.calls == []
        assert_stored(store, points)
        store.close()
