"""What an ingest on Ray promises: the points, the rejects and the messages of any other, whatever its workers meet.

Everything runs on one Ray of this machine. The server is the client's emulation behind a socket.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import stored_points
from click.testing import CliRunner, Result
from rest_qdrant import RestQdrant
from scripted_chat import Answer, Call, embed, said, scripted
from stored_points import assert_same_points
from writing import write_rows

from xqg_qdrant.augmentation.pipeline import describe
from xqg_qdrant.augmentation.ray_cluster import Plan, connected, make_plan
from xqg_qdrant.augmentation.ray_engine import Job, Keys, Ledger, ingest_on_ray
from xqg_qdrant.augmentation.recipe import make_recipe
from xqg_qdrant.cli import main
from xqg_qdrant.corpus.inputs import Inputs
from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.errors import InputError, ModelError
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.generation.questions import make_custom_id
from xqg_qdrant.inference import Reading
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.inference.remote_encoder import describe_endpoint
from xqg_qdrant.records import AugmentedPassage, Passage
from xqg_qdrant.stores import open_store

# Ray uses what it calls deprecated itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

CLI = Path(__file__).parent.parent / "cli.py"
FEW = ["--languages", "fi,ru", "--queries-per-language", "1", "--max-new-tokens", "6"]
KEY = "a-key-that-must-not-show"
PASSAGES = 70  # five chunks
SECONDS = 120


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cluster(cache: Path) -> Iterator[str]:
    """Start Ray as a command of ours does; return its address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XQG_CACHE", str(cache))
        patch.delenv("XQG_LLM_API_KEY", raising=False)
        patch.delenv("XQG_EMBEDDING_API_KEY", raising=False)
        # A process that has imported everything is kept for the next ingest.
        patch.setenv("RAY_num_workers_soft_limit", "30")
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "600000")
        with connected("local"):
            yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write a corpus of two files with rows that are rejected, among them an id of the other file; stand beside it."""
    folder = tmp_path_factory.mktemp("ray")
    rows: list[dict[str, Any]] = [
        {"id": p.passage_id, "title": p.title, "text": p.text} for p in read_demo_passages()[:PASSAGES]
    ]
    rows[3] = {**rows[3], "metadata": {"year": 1913, "tags": ["a", "b"]}}
    first, second = [*rows[:40], {"id": "bad", "text": ""}, rows[2]], [rows[5], *rows[40:]]
    write_rows(folder / "a.jsonl", first)
    write_rows(folder / "b.jsonl", second)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def expected(folder: Path, server: RestQdrant) -> dict[str, AugmentedPassage]:
    """Ingest with the engine that all other tests are about."""
    assert ingest(server, "local", "a.jsonl", "b.jsonl").exit_code == 3
    return read_points(server, "local")


def ingest(server: RestQdrant, collection: str, *arguments: str, settings: Sequence[str] = FEW) -> Result:
    places = ["--collection", collection, "--store", server.url, "--device", "cpu"]
    return CliRunner().invoke(main, ["ingest", *arguments, *places, *settings])


def read_points(server: RestQdrant, collection: str) -> dict[str, AugmentedPassage]:
    with open_store(server.url) as store:
        return stored_points.read_points(store, collection)


def read_raw(server: RestQdrant, collection: str) -> dict[str, Any]:
    records, _ = server.client.scroll(collection, limit=1000, with_vectors=True)
    return {str(record.id): (record.payload, record.vector) for record in records}


RAY = ["--engine", "ray", "--num-workers", "1"]


def test_an_ingest_on_ray_gives_the_points_the_rejects_and_the_account_of_any_other(
    cluster: str, folder: Path, server: RestQdrant, expected: dict[str, AugmentedPassage]
) -> None:
    write_rows(folder / "seen.jsonl", [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()[:9]])
    assert ingest(server, "ray", "seen.jsonl").exit_code == 0
    result = ingest(server, "ray", "a.jsonl", "b.jsonl", "--engine", "ray", "--num-workers", "2")
    assert result.exit_code == 3, result.stderr
    assert f"{PASSAGES - 9} passages stored, 9 unchanged, 3 rows rejected" in result.stderr
    assert_same_points(read_points(server, "ray"), expected)
    assert read_raw(server, "ray") == read_raw(server, "local")
    rejects = [json.loads(line) for line in (folder / "ray.rejected.jsonl").read_text().splitlines()]
    assert [(reject["source"], reject["line"], reject["reason"]) for reject in rejects] == [
        ("a.jsonl", 41, "text is empty"),
        ("a.jsonl", 42, f"the id {read_demo_passages()[2].passage_id!r} occurred before"),
        ("b.jsonl", 1, f"the id {read_demo_passages()[5].passage_id!r} occurred before"),
    ]
    assert (folder / "ray.rejected.jsonl").read_bytes() == (folder / "local.rejected.jsonl").read_bytes()

    other = ingest(server, "ray", "a.jsonl", *RAY, "--alpha", "0.5")
    assert other.exit_code == 4
    assert "recipe.alpha: stored 0.4, now 0.5" in other.stderr


def test_plain_passages_are_split_on_ray_as_elsewhere_and_enriched_to_the_points_of_a_fresh_ingest(
    cluster: str, folder: Path, server: RestQdrant
) -> None:
    text = " ".join(f"The river number {number} rises in the north." for number in range(60))
    write_rows(folder / "long.jsonl", [{"id": "long", "text": text}, {"id": "short", "text": "A river."}])
    split = ["long.jsonl", "--split", "--split-tokens", "64"]
    for collection, engine in (("whole", []), ("parts", RAY)):
        result = ingest(server, collection, *split, "--plain", *engine, settings=())
        assert result.exit_code == 0, result.stderr
    plain = read_raw(server, "parts")
    assert plain == read_raw(server, "whole")
    assert "short#1" in read_points(server, "parts")
    assert len(plain) > 5
    assert not any(payload.get("generated_queries") for payload, _ in plain.values())
    words = ["enrich", "--collection", "parts", "--store", server.url, "--device", "cpu", *FEW]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.stderr
    assert f"{len(plain)} passages without queries" in result.stderr
    assert ingest(server, "fresh", *split).exit_code == 0
    assert read_raw(server, "parts") == read_raw(server, "fresh")


def test_what_all_workers_have_read_is_added() -> None:
    """Each worker tells its sum so far; the models of all are counted together."""
    ledger, passages = Ledger(), Reading("encoder", "passage", 512)
    ledger.read("first", [passages.plus(2, 1, 600, 88), None])
    ledger.read("first", [passages.plus(5, 1, 900, 88), None])
    ledger.read("second", [passages.plus(1, 1, 512, 12), None])
    assert ledger.readings() == [passages.plus(6, 2, 1412, 100), None]


def test_a_worker_that_is_killed_takes_no_passage_with_it(
    cluster: str, folder: Path, server: RestQdrant, expected: dict[str, AugmentedPassage]
) -> None:
    killed: list[int] = []
    ended = threading.Event()

    def kill_whoever_works_once() -> None:
        while not killed and not ended.is_set():
            if server.client.collection_exists("killed") and server.client.count("killed").count:
                killed.extend(find_workers())
            time.sleep(0.02)
        for process in killed:
            os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=kill_whoever_works_once)
    killer.start()
    result = ingest(server, "killed", "a.jsonl", "b.jsonl", *RAY)
    ended.set()
    killer.join()
    assert killed, "all was done before a worker was seen"
    assert result.exit_code == 3, result.stderr
    assert f"{PASSAGES} passages stored, 0 unchanged, 3 rows rejected" in result.stderr
    assert_same_points(read_points(server, "killed"), expected)


def test_ctrl_c_finishes_the_chunks_in_work_and_the_same_command_goes_on(
    cluster: str, folder: Path, server: RestQdrant, expected: dict[str, AugmentedPassage]
) -> None:
    command = [
        sys.executable,
        str(CLI),
        "ingest",
        "a.jsonl",
        "b.jsonl",
        "--collection",
        "stopped",
        "--store",
        server.url,
    ]
    process = subprocess.Popen(
        [*command, "--collection", "stopped", *FEW, "--engine", "ray", "--address", cluster, "--num-workers", "1"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "QDRANT_API_KEY": KEY},
    )
    give_up = time.monotonic() + SECONDS
    while not (server.client.collection_exists("stopped") and server.client.count("stopped").count):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    shown = [path for path in Path("/proc").glob("[0-9]*/cmdline") if KEY.encode() in read_if_there(path)]
    _, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, told
    assert "run the same command again to resume" in told
    stored = read_points(server, "stopped")
    assert 0 < len(stored) < PASSAGES
    assert_same_points(stored, {passage_id: expected[passage_id] for passage_id in stored})

    assert KEY not in told
    assert shown == []
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    assert [path for path in logs.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []

    result = ingest(server, "stopped", "a.jsonl", "b.jsonl")
    assert f"{PASSAGES - len(stored)} passages stored, {len(stored)} unchanged" in result.stderr
    assert_same_points(read_points(server, "stopped"), expected)


def test_what_a_worker_raises_ends_the_ingest_with_its_own_words(
    cluster: str, folder: Path, server: RestQdrant
) -> None:
    result = ingest(server, "broken", "broken.parquet", *RAY)
    assert (result.exit_code, server.client.collection_exists("broken")) == (2, False)
    with open_store(server.url) as store:
        encoder, generator = Encoder(None, "cpu", 1), QueryGenerator(None, "cpu", 1)
        recipe = make_recipe(generator, ["fi"], queries_per_language=1)
        fingerprint = {**describe(encoder, generator, recipe), "encoder.sha256": "another"}
        inputs = Inputs(["a.jsonl"])
        job = Job(inputs, folder, server.url, "other", recipe, fingerprint, encoder.dim, None, None)
        with pytest.raises(ModelError) as caught:
            list(ingest_on_ray(job, store, Keys(), Plan(1, 1, 0), threading.Event()))
    assert "differ from those of the driver. Cure: copy the same model folders" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--store", "edge:data"], "--engine ray needs a store for several writers ('edge:data' takes one)"),
        (["--store", "local:data"], "--engine ray needs a store for several writers ('local:data' takes one)"),
        (
            ["-", "--store", "http://localhost:1"],
            "--engine ray cannot read standard input",
        ),
    ],
)
def test_what_several_processes_cannot_do_is_refused_before_any_work(
    folder: Path, arguments: list[str], message: str
) -> None:
    result = CliRunner().invoke(main, ["ingest", "a.jsonl", "--collection", "c", "--engine", "ray", *arguments])
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert "\nCure: " in result.stderr


MACHINE = {"CPU": 2.0, "memory": 1e9}
GPU_MACHINE = {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "cpus", "plan"),
    [
        ([MACHINE], "auto", 0, 0, Plan(2, 1, 0)),
        ([MACHINE], "cpu", 1, 2, Plan(1, 2, 0)),
        ([MACHINE, {"CPU": 3.0}], "auto", 0, 2, Plan(2, 2, 0)),
        ([MACHINE, GPU_MACHINE], "auto", 0, 0, Plan(2, 1, 1)),
        ([MACHINE, GPU_MACHINE], "cpu", 0, 0, Plan(10, 1, 0)),
        ([GPU_MACHINE, GPU_MACHINE], "cuda", 3, 4, Plan(3, 4, 1)),
    ],
)
def test_workers_are_as_many_as_there_is_room_for_on_single_machines(
    nodes: list[dict[str, float]], device: str, workers: int, cpus: int, plan: Plan
) -> None:
    assert make_plan(nodes, device, workers, cpus) == plan


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "cpus", "message"),
    [
        ([MACHINE], "auto", 3, 0, "3 workers of 1 CPU each do not fit: the cluster has 2 CPUs, 0 GPUs on 1 machine, "),
        ([MACHINE, MACHINE], "auto", 1, 3, "1 worker of 3 CPUs does not fit: the cluster has 4 CPUs"),
        ([MACHINE], "cuda", 0, 0, "1 worker of 1 CPU and a GPU does not fit"),
        ([GPU_MACHINE], "auto", 3, 0, "room for 2. Cure: use --num-workers 2"),
        ([GPU_MACHINE], "cuda:1", 1, 0, "cuda:1 is a GPU of one machine, but Ray assigns each worker its own. Cure: "),
    ],
)
def test_a_plan_whose_workers_would_wait_forever_is_refused(
    nodes: list[dict[str, float]], device: str, workers: int, cpus: int, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        make_plan(nodes, device, workers, cpus)
    assert message in str(caught.value)


def test_an_address_where_no_cluster_is_fails_soon_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address, message in (
        ("127.0.0.1:1", "no Ray cluster can be joined at 127.0.0.1:1"),
        ("ray://127.0.0.1:10001", "is an address of Ray's client, which cannot write data sets"),
    ):
        with pytest.raises(InputError, match=message), connected(address):
            pass


def read_if_there(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


def find_workers() -> list[int]:
    """Return the processes that Ray runs our workers in."""
    found = [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"AugmentChunk" in read_if_there(path)]
    return [int(path.parent.name) for path in found]


def test_given_queries_terms_and_results_of_a_batch_come_through_too(
    cluster: str, folder: Path, server: RestQdrant
) -> None:
    rows, results = [], []
    for number, passage in enumerate(read_demo_passages()[:5]):
        question = f"Mikä on kysymys {number}?"
        given = [{"lang": "fi", "text": question}]
        rows.append({"id": f"{number}", "text": passage.text, "generated_queries": given})
        custom_id = make_custom_id(Passage(f"{number}", passage.text))
        results.append({"custom_id": custom_id, "response": {"body": said({"fi": [question]}).body}})
    write_rows(folder / "given.jsonl", rows)
    write_rows(folder / "bare.jsonl", [{"id": row["id"], "text": row["text"]} for row in rows])
    write_rows(folder / "results.jsonl", [*results, {**results[0], "custom_id": "another#0"}])
    for collection, file, queries, engine in (
        ("given-local", "given.jsonl", "corpus", []),
        ("given-ray", "given.jsonl", "corpus", RAY),
        ("batch-ray", "bare.jsonl", "results.jsonl", RAY),
    ):
        result = ingest(server, collection, file, *engine, settings=["--queries", queries, "--sparse"])
        assert result.exit_code == 0, result.stderr
    assert "0 passages without a result, 0 results that failed, 1 of other passages or repeated" in result.stderr
    assert len(read_raw(server, "given-ray")) == 5
    assert read_raw(server, "given-ray") == read_raw(server, "batch-ray") == read_raw(server, "given-local")
    assert next(iter(read_points(server, "given-ray").values())).terms


def test_a_lexicon_generates_on_ray_and_what_comes_before_damage_is_stored(
    cluster: str, folder: Path, server: RestQdrant
) -> None:
    (folder / "words.tsv").write_text("fi\triver\tjoki\nfi\tlake\tjärvi\n", encoding="utf-8")
    rows = [{"id": f"{number}", "text": f"River {number} into a lake. {os.urandom(50).hex()}"} for number in range(300)]
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (folder / "lakes.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    settings = ["--generator", "words.tsv"]
    errors = []
    for collection, engine in (("words-local", []), ("words-ray", RAY)):
        result = ingest(server, collection, "lakes.jsonl.gz", *engine, settings=settings)
        assert result.exit_code == 2
        errors.append(result.stderr[result.stderr.index("Error: ") :])
    assert errors[0] == errors[1]
    assert "lakes.jsonl.gz: the gzip file is damaged" in errors[0]
    assert 100 < len(read_raw(server, "words-local")) < 300
    assert [query.text for query in read_points(server, "words-ray")["1"].generated_queries] == ["joki järvi"]
    assert read_raw(server, "words-ray") == read_raw(server, "words-local")


def answer(call: Call, _: int) -> Answer:
    """Embed texts; ask the same about the same passage; refuse to ask about one."""
    if "input" in call.body:
        return embed(call)
    if "river number 3 " in call.prompt:
        return said(None, refusal="I'd rather not")
    name = hashlib.sha256(call.prompt.encode()).hexdigest()[:6]
    return said({"fi": [f"Mikä on joen {name} pituus?"] * 2, "ru": [f"Сколько километров от истока реки {name}?"]})


def test_endpoints_write_and_encode_on_ray_what_they_do_here_and_leave_no_reply(
    cluster: str, cache: Path, folder: Path, server: RestQdrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"XQG_LLM_API_KEY": KEY, "XQG_EMBEDDING_API_KEY": f"{KEY}-2", "XQG_CACHE": str(cache)}.items():
        monkeypatch.setenv(name, value)
    rows = [{"id": f"{number}", "text": f"The river number {number} is long."} for number in range(20)]
    write_rows(folder / "rivers.jsonl", rows)
    settings = ["--queries-per-language", "1", "--languages", "fi,ru", "--model", "m", "--encoder", "embeddings"]
    with scripted(answer) as chat:
        describe_endpoint(chat.url, folder / "embeddings", "e")
        told = []
        for collection, engine in (("asked-local", []), ("asked-ray", RAY)):
            chat.reset(answer)
            source = ["--generator", chat.url, *settings]
            result = ingest(server, collection, "rivers.jsonl", *engine, settings=source)
            assert result.exit_code == 3, result.stderr
            assert KEY not in result.output
            prompts = [call.prompt for call in chat.calls if "messages" in call.body]
            assert len(set(prompts)) == len(prompts)
            used = {(call.path, call.headers["authorization"]) for call in chat.calls}
            assert used == {("/v1/chat/completions", f"Bearer {KEY}"), ("/v1/embeddings", f"Bearer {KEY}-2")}
            told.append((len(prompts), read_summary(result), [*(cache / "xqg/replies").glob("*")]))
    assert told[0] == told[1]
    passages, queries, calls = told[0][1]
    assert (passages, queries) == ("19 passages stored, 0 unchanged, 1 row rejected", "38 of 38 generated queries kept")
    assert (told[0][0], calls, told[0][2]) == (20, "20 calls, tokens: 20,000 in, 1,000 out.", [])
    assert read_raw(server, "asked-ray") == read_raw(server, "asked-local")


def read_summary(result: Result) -> list[str]:
    """Return the passages, queries and calls of an ingest, without its durations."""
    return re.findall(r"^.* rows? rejected|^.* queries kept|^.* calls, tokens.*", result.stderr, re.MULTILINE)
