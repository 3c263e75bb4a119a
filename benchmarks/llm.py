"""Measure what asking a language model costs besides the model: calls a second against the server's limit, memory.

The server is a process of its own that answers each call after a fixed time. At C calls at once and S seconds a call
it can answer C / S calls a second.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from xqg_qdrant.generation.llm import ChatSampling, LanguageModelGenerator
from xqg_qdrant.records import Passage

LANGUAGES = ("fi", "ru")
CHUNK = 200


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


def main() -> None:
    """Print calls a second, CPU time a call and resident memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
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
    with tempfile.TemporaryDirectory() as journal:
        generator = LanguageModelGenerator(url, "m", concurrency=given.concurrency, journal=Path(journal))
        start, cpu, done = time.perf_counter(), time.process_time(), 0
        while done < given.calls:
            passages = [Passage(str(done + number), f"Passage {done + number}. " * 20) for number in range(CHUNK)]
            for generation in generator.generate(passages, LANGUAGES, 1, 0, ChatSampling()):
                assert len(generation.queries) == 2
                for path in generation.replies:
                    path.unlink()
            done += CHUNK
            if done % 2000 == 0 or done == given.calls:
                rate = done / (time.perf_counter() - start)
                limit = given.concurrency / given.seconds if given.seconds else float("inf")
                each = 1000 * (time.process_time() - cpu) / done
                print(f"{done:>6} calls  {rate:6.1f}/s of {limit:.1f}  {each:.2f} ms CPU a call  {resident():.1f} MiB")
        generator.close()
    server.communicate("")
    return None


if __name__ == "__main__":
    main()
