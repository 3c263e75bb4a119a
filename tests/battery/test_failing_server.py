"""Whole ingests into a server that fails, with a proxy in between that harms requests chosen by the seed.

Each ends with the points of an uninterrupted ingest, or with an error that says so; then the same command, run again,
ends with them. No request and no case runs forever.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import NamedTuple, TypeAlias

import httpx
import pytest
from click.testing import CliRunner, Result
from faulty_proxy import (
    Fault,
    FaultyProxy,
    answer_version,
    drip,
    lose_answer,
    refuse,
    refuse_with_a_time,
    reset,
    stall,
    truncate,
)
from qdrant_client import QdrantClient
from rest_qdrant import RestQdrant
from short_passages import short_passages

from xqg_qdrant.cli import main
from xqg_qdrant.demo import read_demo_queries
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.stores.server.client import ClientStore

KINDS: dict[str, Fault] = {
    "429 with Retry-After": refuse_with_a_time,
    "429": refuse(429),
    "500": refuse(500),
    "502": refuse(502),
    "503": refuse(503),
    "504": refuse(504),
    "reset": reset,
    "stall": stall,
    "truncated": truncate,
    "answer lost": lose_answer,
    "slow": drip,
}
PASSAGES = 9
# Writes fall together as the encoder is faster or slower: by so much may an ingest send fewer requests than another.
FEWER_REQUESTS = 6
CASE_SECONDS = 30
SILENCE_SECONDS = 0.25

Stored: TypeAlias = dict[str, tuple[str, dict[str, bytes]]]


class Undisturbed(NamedTuple):
    """What an undisturbed ingest stores, and the fewest requests that it sends."""

    stored: Stored
    requests: int


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait tenths of a second instead of minutes, and make chunks small enough for several."""
    monkeypatch.setattr("xqg_qdrant.stores.server.requests.FIRST_DELAY_SECONDS", 0.004)
    monkeypatch.setattr("xqg_qdrant.stores.server.requests.MAX_DELAY_SECONDS", 0.02)
    monkeypatch.setattr("xqg_qdrant.stores.server.requests.PATIENCE_SECONDS", 8.0)
    monkeypatch.setattr("xqg_qdrant.stores.server.requests.FIRST_PATIENCE_SECONDS", 8.0)
    connect = ClientStore._connect

    def connect_impatiently(store: ClientStore) -> QdrantClient:
        client = connect(store)
        client.http.client._client.timeout = httpx.Timeout(SILENCE_SECONDS)  # the client knows whole seconds only
        return client

    monkeypatch.setattr(ClientStore, "_connect", connect_impatiently)
    monkeypatch.setattr("xqg_qdrant.augmentation.pipeline.CHEAP_CHUNK_SIZE", 2)


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    def give_up(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"a case took more than {CASE_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(CASE_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def proxy(rest: RestQdrant, seed: int) -> Iterator[FaultyProxy]:
    server = FaultyProxy(rest.url, seed)
    yield server
    server.close()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write demo passages, the first without a query, the others with one or two real questions."""
    questions = [{"language": query.language, "text": query.text} for query in read_demo_queries()]
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows = [
        {"id": p.passage_id, "title": p.title, "text": p.text, "generated_queries": questions[2 * i : 2 * i + i % 3]}
        for i, p in enumerate(short_passages(PASSAGES))
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def models_at_hand(demo_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xqg_qdrant.cli.ingest.load_encoder", lambda *_: demo_encoder)


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, demo_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    with closing(RestQdrant()) as rest, pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("undisturbed"))
        patched.setattr("xqg_qdrant.cli.ingest.load_encoder", lambda *_: demo_encoder)
        patched.setattr("xqg_qdrant.augmentation.pipeline.CHEAP_CHUNK_SIZE", 2)
        assert xqg_ingest(corpus, rest.url).exit_code == 0
        stored, requests = read_stored(rest), len(rest.requests)
    assert len(stored) == PASSAGES
    return Undisturbed(stored, requests - FEWER_REQUESTS)


def xqg_ingest(corpus: Path, url: str) -> Result:
    arguments = ["ingest", str(corpus), "--queries", "corpus", "--collection", "docs", "--store", url, "--threads", "1"]
    return CliRunner().invoke(main, arguments)


def read_stored(rest: RestQdrant) -> Stored:
    """Return each point's payload and the bits of its vectors, as the server has them."""
    records, rest_of_them = rest.client.scroll("docs", limit=1000, with_payload=True, with_vectors=True)
    assert rest_of_them is None
    stored = {}
    for record in records:
        assert isinstance(record.vector, dict)
        vectors = {name: json.dumps(vector).encode() for name, vector in record.vector.items()}
        stored[str(record.id)] = (json.dumps(record.payload, sort_keys=True), vectors)
    assert len(stored) == rest.client.count("docs", exact=True).count
    return stored


def assert_settings(rest: RestQdrant) -> None:
    """Make sure that the payload index is there, and that vectors are indexed again after the load."""
    settings = rest.settings["docs"]
    assert (settings.indexing_threshold, set(settings.indexes)) == (10_000, {"passage_id"})
    kept = rest.client.get_collection("docs").config.metadata or {}
    assert set(kept) == {"xqg_fingerprint", "xqg_models", "xqg_recorded"}


@pytest.mark.usefixtures("models_at_hand")
@pytest.mark.parametrize("kind", KINDS)
def test_an_ingest_into_a_failing_server_ends_with_every_point_once(
    kind: str,
    seed: int,
    corpus: Path,
    undisturbed: Undisturbed,
    rest: RestQdrant,
    proxy: FaultyProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    chance = random.Random(f"{kind} {seed}")
    for _ in range(1 if kind == "stall" else 3):
        first = chance.randrange(undisturbed.requests)
        for number in range(first, first + chance.randint(1, 1 if kind == "stall" else 4)):
            proxy.plan[number] = KINDS[kind]
    result = xqg_ingest(corpus, proxy.url)
    assert (result.exit_code, result.exception) == (0, None), result.stderr
    assert proxy.harmed > 0
    assert read_stored(rest) == undisturbed.stored
    assert_settings(rest)


@pytest.mark.usefixtures("models_at_hand")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "slow"])
def test_an_ingest_that_gives_up_says_so_and_ends_rightly_when_it_is_run_again(
    kind: str,
    seed: int,
    corpus: Path,
    undisturbed: Undisturbed,
    rest: RestQdrant,
    proxy: FaultyProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    first = random.Random(f"outage {kind} {seed}").randrange(undisturbed.requests)
    proxy.plan = dict.fromkeys(range(first, 10_000), KINDS[kind])
    started = time.monotonic()
    with monkeypatch.context() as impatient:
        impatient.setattr("xqg_qdrant.stores.server.requests.PATIENCE_SECONDS", 0.1)
        impatient.setattr("xqg_qdrant.stores.server.requests.FIRST_PATIENCE_SECONDS", 0.1)
        result = xqg_ingest(corpus, proxy.url)
    assert time.monotonic() - started < 60  # instead of the five minutes of its patience
    assert result.exit_code == 5, result.output
    assert f" in {proxy.url}: " in result.stderr
    assert "\nCure: " in result.stderr
    proxy.plan.clear()
    result = xqg_ingest(corpus, proxy.url)
    assert (result.exit_code, result.exception) == (0, None), result.stderr
    assert read_stored(rest) == undisturbed.stored
    assert_settings(rest)


@pytest.mark.usefixtures("models_at_hand")
def test_an_older_server_is_refused_before_any_work_and_a_newer_one_works(
    seed: int,
    corpus: Path,
    undisturbed: Undisturbed,
    rest: RestQdrant,
    proxy: FaultyProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    chance = random.Random(seed)
    older = f"{chance.randint(0, 1)}.{chance.randint(0, 15)}.{chance.randint(0, 9)}"
    proxy.always = answer_version(older)
    result = xqg_ingest(corpus, proxy.url)
    assert result.exit_code == 5
    refusal = f"{proxy.url} is Qdrant {older}; fingerprints need 1.16 or later.\nCure: upgrade the server"
    assert refusal in result.stderr
    assert {method for method, _, _ in rest.requests} == {"GET"}
    newer = chance.choice(["1.16.0-dev", f"1.{chance.randint(16, 99)}.{chance.randint(0, 9)}", "2.0.0"])
    proxy.always = answer_version(newer)
    result = xqg_ingest(corpus, proxy.url)
    assert (result.exit_code, result.exception) == (0, None), result.stderr
    assert read_stored(rest) == undisturbed.stored
