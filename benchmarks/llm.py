"""Measure what asking a language model costs besides the model: calls a second against a bare client's, memory.

The server is a process of its own that answers each call after a fixed time. At C calls at once and S seconds a call
it could answer C / S calls a second if it took no time itself. What it does answer, a bare client measures in the same
run: C threads that post one prepared request again and again, and read nothing of the replies. The two take turns, so
that other work on the machine meets both.
"""

from __future__ import annotations

import argparse
import http.client
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from xqg_qdrant.generation.llm import ChatSampling, LanguageModelGenerator
from xqg_qdrant.records import Passage

LANGUAGES = ("fi", "ru")
ROUNDS = 4


def serve(seconds: float) -> None:
    """Answer calls until standard input ends; print the URL."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
    from scripted_chat import said, scripted

    questions = {"fi": ["Mikä on Tonavan pituus?"], "ru": ["Сколько километров течёт Дунай?"]}
    with scripted(lambda *_: said(questions)._replace(delay=seconds)) as chat:
        chat.calls = Forgetful()
        print(chat.url, flush=True)
        sys.stdin.read()


class Forgetful(list[object]):
    """A list that keeps nothing."""

    def append(self, _: object) -> None:
        """Keep nothing."""


def resident() -> float:
    """Return the resident memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def make_passages(first: int, count: int) -> list[Passage]:
    """Return passages of 20 sentences."""
    return [Passage(str(number), f"Passage {number}. " * 20) for number in range(first, first + count)]


def ask(generator: LanguageModelGenerator, passages: Sequence[Passage]) -> None:
    """Ask for the questions of passages, a call each."""
    for generation in generator.generate(passages, LANGUAGES, 1, 0, ChatSampling()):
        assert len(generation.queries) == 2
        for path in generation.replies:
            path.unlink()


def post(url: str, body: bytes, calls: int) -> None:
    """Post a request again and again over one connection."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port)
    for _ in range(calls):
        connection.request("POST", f"{parts.path}/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200
        response.read()
    connection.close()


def main() -> None:
    """Print calls a second of both clients, CPU time a call and resident memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000, help="of each client")
    parser.add_argument("--seconds", type=float, default=0.2, help="of the server for a call")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--serve", action="store_true", help="be the server")
    given = parser.parse_args()
    if given.serve:
        return serve(given.seconds)
    command = [sys.executable, __file__, "--serve", "--seconds", str(given.seconds)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    each = given.calls // (ROUNDS * given.concurrency)
    calls = each * given.concurrency
    with tempfile.TemporaryDirectory() as journal, ThreadPoolExecutor(given.concurrency) as threads:
        generator = LanguageModelGenerator(url, "m", concurrency=given.concurrency, journal=Path(journal))
        ask(generator, make_passages(-given.concurrency, given.concurrency))  # loads what identifies languages
        request = generator.make_request(make_passages(0, 1)[0], LANGUAGES, 1, 0, ChatSampling())
        body = json.dumps(request).encode()
        ours = bare = cpu = 0.0
        for number in range(1, ROUNDS + 1):
            start = time.perf_counter()
            for done in [threads.submit(post, url, body, each) for _ in range(given.concurrency)]:
                done.result()
            bare += time.perf_counter() - start
            start, before = time.perf_counter(), time.process_time()
            ask(generator, make_passages(number * calls, calls))
            ours += time.perf_counter() - start
            cpu += time.process_time() - before
            all_calls = number * calls
            print(
                f"{all_calls:>6} calls  {all_calls / ours:6.1f}/s, bare {all_calls / bare:6.1f}/s, ratio "
                f"{bare / ours:.3f}  {1000 * cpu / all_calls:.2f} ms CPU a call  {resident():.1f} MiB"
            )
        generator.close()
    server.communicate("")
    return None


if __name__ == "__main__":
    main()
