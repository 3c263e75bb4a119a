"""A kill -9 of an ingest with a language model costs the calls in flight: no answered call is paid twice.

Each seed kills one ingest 20 times, each time a drawn number of calls and milliseconds after its start, then lets it
run to its end.
"""

from __future__ import annotations

import hashlib
import random
import signal
import time
from collections import Counter
from pathlib import Path

from forked import Forks
from scripted_chat import Answer, Call, embed, said, scripted
from stored_points import assert_same_points, read_points
from writing import write_rows

from xqg_qdrant.inference.remote_encoder import describe_endpoint
from xqg_qdrant.stores import open_store

KILLS, PASSAGES, CONCURRENCY = 20, 160, 4
MOST_CALLS_A_RUN = 14
SECONDS = 120


def answer(call: Call, _: int) -> Answer:
    """Embed texts; ask the same about the same passage, and sometimes too little in one language."""
    if "input" in call.body:
        return embed(call)
    digest = hashlib.sha256(call.prompt.encode()).hexdigest()
    questions = {"fi": [f"Mikä on joen {digest[:6]} pituus?"], "ru": [f"Сколько километров в реке {digest[:6]}?"]}
    if digest[0] == "0":
        del questions["ru"]
    return said({code: questions.get(code, []) for code in call.languages})._replace(delay=0.01)


def test_twenty_kills_of_an_ingest_ask_no_answered_call_again_and_end_as_no_kill_does(
    seed: int, tmp_path: Path, forks: Forks
) -> None:
    draw = random.Random(seed)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    runs: list[list[tuple[str, int]]] = []
    with scripted(answer) as chat:
        describe_endpoint(chat.url, tmp_path / "encoder", "e")
        settings = ("--encoder", str(tmp_path / "encoder"), "--no-calibrate", "--queries-per-language", "1")
        source = ("--generator", chat.url, "--model", "m", "--languages", "fi,ru", "--concurrency", str(CONCURRENCY))
        ingest = ("ingest", "c.jsonl", "--collection", "docs", *settings, *source)

        def asked() -> list[tuple[str, int]]:
            calls = (call for call in list(chat.calls) if "messages" in call.body)
            return [(call.prompt, call.body["seed"]) for call in calls]

        for folder in (killed, whole):
            folder.mkdir()
            rows = [{"id": f"{number}", "text": f"The river number {number} is long."} for number in range(PASSAGES)]
            write_rows(folder / "c.jsonl", rows)
        for _ in range(KILLS):
            chat.reset(answer)
            calls, late = draw.randint(1, MOST_CALLS_A_RUN), draw.uniform(0, 0.03)
            command = forks.start(killed, *ingest)
            give_up = time.monotonic() + SECONDS
            while len(asked()) < calls:
                time.sleep(0.002)
                assert time.monotonic() < give_up, command.output
            time.sleep(late)
            assert command.kill() == -signal.SIGKILL, command.output
            time.sleep(0.02)
            runs.append(asked())
        for folder in (killed, whole):
            chat.reset(answer)
            code, said = forks.run(folder, *ingest)
            assert code == 0, said
            runs.append(asked())
    *parts, uninterrupted = runs
    assert {call for part in parts for call in part} == set(uninterrupted)
    for number, part in enumerate(parts):
        later = Counter(call for other in parts[number + 1 :] for call in other)
        assert len([call for call in part if call in later]) <= CONCURRENCY, f"run {number}"
    assert max(Counter(uninterrupted).values()) == 1
    points = []
    for folder in (killed, whole):
        with open_store(str(folder / "xqg_data")) as store:
            points.append((read_points(store, "docs"), store.read_fingerprint("docs")))
    (found, fingerprint), (wanted, expected) = points
    assert fingerprint == expected
    assert len(found) == PASSAGES
    assert_same_points(found, wanted)
    assert not (whole / "xqg_data.docs.replies").exists()
    assert list((killed / "xqg_data.docs.replies").glob("*.json")) == []
