"""A kill -9 while vectors of another program's collection are replaced, or given back, loses no bit.

Each case kills `xqg augment` at a request that the seed draws, before or after the server has it, up to three times,
then lets it run to its end; then the same with `--undo`. Another kills both at twenty requests, and one kills a
calibration in several processes.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from forked import Forks
from qdrant_client import models
from rest_qdrant import RestQdrant, answer
from scripted_chat import embed, make_vector, scripted
from short_passages import short_passages
from writing import write_rows

from xqg_qdrant.augmentation import pipeline
from xqg_qdrant.cli import main
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.inference.remote_encoder import describe_endpoint
from xqg_qdrant.records import FloatArray
from xqg_qdrant.stores.server import client, foreign, own_space

PASSAGES = short_passages(12)
# Small steps, and a kill at a request, before or after the server has it.
STEPS = """
import itertools, json, os, signal
from pathlib import Path
import httpx
from xqg_qdrant.augmentation import pipeline
from xqg_qdrant.stores.server import client, foreign, own_space
pipeline.CHEAP_CHUNK_SIZE = own_space.SCROLL_BATCH = {size}
client.SCROLL_BATCH = client.READ_BATCH = foreign.SCROLL_BATCH = foreign.READ_BATCH = {size}
send, passed = httpx.Client.send, itertools.count(1)
def counting(self, request, **settings):
    last, when = {last_and_when}
    number = next(passed) if "{counted}" in request.url.path else 0
    if number == last and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    response = send(self, request, **settings)
    if number == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return response
httpx.Client.send = counting
"""


@pytest.fixture(scope="module")
def plain(demo_encoder: Encoder) -> FloatArray:
    return demo_encoder.encode_passages([passage.text for passage in PASSAGES])


@pytest.fixture
def rest(plain: FloatArray) -> Iterator[RestQdrant]:
    with closing(RestQdrant()) as server:
        server.version = "1.18.0"
        params = models.VectorParams(size=plain.shape[1], distance=models.Distance.COSINE)
        server.client.create_collection("theirs", {"dense": params})
        points = [
            models.PointStruct(id=i, vector={"dense": vector.tolist()}, payload={"id": p.passage_id, "text": p.text})
            for i, (p, vector) in enumerate(zip(PASSAGES, plain, strict=True))
        ]
        server.client.upsert("theirs", points)
        yield server


def read_all(rest: RestQdrant) -> dict[Any, models.Record]:
    return {record.id: record for record in rest.client.scroll("theirs", limit=1000, with_vectors=True)[0]}


def kill(forks: Forks, folder: Path, arguments: list[str], last: int, when: str) -> None:
    """Run the command in a process that kills itself at a request."""
    steps = STEPS.format(size=4, last_and_when=f"{last}, {when!r}", counted="/")
    code, said = forks.run(folder, *arguments, setup=steps)
    assert code == -signal.SIGKILL, said


def run(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output


@pytest.fixture(autouse=True)
def _small_steps(demo_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xqg_qdrant.cli.ingest.load_encoder", lambda *_: demo_encoder)
    monkeypatch.setattr(pipeline, "CHEAP_CHUNK_SIZE", 4)
    for module in (client, foreign):
        monkeypatch.setattr(module, "SCROLL_BATCH", 4)
        monkeypatch.setattr(module, "READ_BATCH", 4)
    monkeypatch.setattr(own_space, "SCROLL_BATCH", 4)


def test_a_run_that_is_killed_ends_as_any_other_and_undo_gives_back_every_bit(
    rest: RestQdrant, seed: int, tmp_path: Path, forks: Forks
) -> None:
    queries = tmp_path / "queries.jsonl"
    rows = ({"id": passage.passage_id, "language": "fi", "text": f"Mikä on {passage.title}?"} for passage in PASSAGES)
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    theirs = ["augment", "--collection", "theirs", "--store", rest.url, "--dead-letters", str(tmp_path / "bad")]
    fields = ["--text-field", "text", "--id-field", "id", "--vector", "dense", "--replace", "--no-calibrate"]
    augment, undo = [*theirs, *fields, "--queries", str(queries)], [*theirs, "--undo", "--yes"]
    before = read_all(rest)
    run(augment)
    after, sent = read_all(rest), len(rest.requests)
    run(undo)
    assert read_all(rest) == before
    sent_to_undo = len(rest.requests) - sent
    draw = random.Random(seed)
    # The last requests are sent after all is done.
    for _ in range(draw.randint(1, 2)):
        kill(forks, tmp_path, augment, draw.randint(1, sent // 2), draw.choice(["before", "after"]))
    if draw.random() < 0.7:
        run(augment)
        assert read_all(rest) == after
        kill(forks, tmp_path, undo, draw.randint(1, sent_to_undo), draw.choice(["before", "after"]))
    if (rest.client.get_collection("theirs").config.metadata or {}).get("xqg_fingerprint"):
        run(undo)
    assert read_all(rest) == before
    assert list(rest.client.get_collection("theirs").config.params.vectors) == ["dense"]  # type: ignore[arg-type]


KILLS, KILLS_OF_UNDO, POINTS = 14, 6, 60
SMALL_STEPS = STEPS.format(size=2, last_and_when='json.loads(Path("kill.json").read_text())', counted="/collections")


def test_twenty_kills_lose_no_bit(seed: int, tmp_path: Path, forks: Forks) -> None:
    draw = random.Random(seed)
    texts = [f"The river number {number} is long." for number in range(POINTS)]
    queries = ({"id": f"{n}", "language": "fi", "text": f"Mikä on joen {n} pituus?"} for n in range(POINTS))
    write_rows(tmp_path / "queries.jsonl", list(queries))
    with scripted(embed) as endpoint, closing(RestQdrant()) as server:
        describe_endpoint(endpoint.url, tmp_path / "encoder", "e")
        server.version = "1.18.0"
        params = models.VectorParams(size=8, distance=models.Distance.COSINE)
        server.client.create_collection("theirs", {"dense": params})
        points = [
            models.PointStruct(id=number, vector={"dense": make_vector(text)}, payload={"text": text})
            for number, text in enumerate(texts)
        ]
        server.client.upsert("theirs", points)
        theirs = ("augment", "--collection", "theirs", "--store", server.url)
        how = ("--text-field", "text", "--vector", "dense", "--replace", "--no-calibrate", "--encoder", "encoder")
        augment, undo = (*theirs, *how, "--queries", "queries.jsonl"), (*theirs, "--undo", "--yes")

        def run_until(last: int, arguments: tuple[str, ...]) -> int:
            """Run a command that kills itself at a request; return its exit code."""
            when = draw.choice(["before", "after"])
            (tmp_path / "kill.json").write_text(json.dumps([last, when]))
            code, said = forks.run(tmp_path, *arguments, setup=SMALL_STEPS)
            assert code in (0, -signal.SIGKILL), said
            return code

        def finish(arguments: tuple[str, ...]) -> tuple[dict[Any, models.Record], int]:
            """Run a command to its end; return the points and how many requests it took."""
            first = len(server.requests)
            assert run_until(-1, arguments) == 0
            return read_all(server), len(server.requests) - first

        def kill(arguments: tuple[str, ...], kills: int, requests: int) -> int:
            """Kill a command repeatedly, each time at a random request among the next few; return how often it died."""
            most = 2 * requests // kills
            return sum(run_until(draw.randint(1, most), arguments) != 0 for _ in range(kills))

        before = read_all(server)
        (wanted, requests), (undone, requests_of_undo) = finish(augment), finish(undo)
        assert undone == before
        killed = kill(augment, KILLS, requests)
        assert finish(augment)[0] == wanted
        killed += kill(undo, KILLS_OF_UNDO, requests_of_undo)
        if (server.client.get_collection("theirs").config.metadata or {}).get("xqg_fingerprint"):
            finish(undo)
        assert read_all(server) == before
        assert killed == KILLS + KILLS_OF_UNDO


def test_a_kill_of_a_calibration_in_several_processes_loses_no_bit(rest: RestQdrant, seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    theirs = ["augment", "--collection", "theirs", "--store", rest.url, "--dead-letters", str(tmp_path / "bad")]
    fields = ["--text-field", "text", "--id-field", "id", "--vector", "dense", "--replace", "--no-queries"]
    augment, undo = [*theirs, *fields], [*theirs, "--undo", "--yes"]
    before = read_all(rest)
    run(augment)
    after = read_all(rest)
    run(undo)
    several = """
from xqg_qdrant.augmentation import processes
from xqg_qdrant.cli import main
processes.LEAST_POINTS, processes.CHUNK_SIZE = 1, 2
main()
"""

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", several, *augment, "--threads", "2"])

    def kill(server: RestQdrant) -> tuple[int, dict[str, str], bytes]:
        command.kill()
        return answer(503, "ended")(server)

    carry_out: Any = None
    rest.script = [*[carry_out] * draw.randrange(8, 30), kill]
    command = start()
    assert command.wait() == -signal.SIGKILL
    assert start().wait() == 0
    assert read_all(rest) == after
    run(undo)
    assert read_all(rest) == before
