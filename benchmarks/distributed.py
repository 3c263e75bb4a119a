"""Compare `xqg ingest --engine ray` with the same ingest in one process, on all cores of one machine.

Both run as shell commands, with the demo's models, into an empty collection of one server. Two sizes of the corpus
separate the cost of starting from the cost of each passage. The server is the tests' emulation, in its own process,
unless --store names one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from harness import print_table

from xqg_qdrant.demo import read_demo_passages

CHECKOUT = Path(__file__).resolve().parents[1]
SERVER = "from rest_qdrant import RestQdrant; import time; print(RestQdrant().url, flush=True); time.sleep(1e6)"
SETTINGS = ["--languages", "fi,ja,ru", "--queries-per-language", "5", "--device", "cpu"]


def main() -> None:
    """Print the seconds of both engines, passages per second and start-up time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", default="128,512", help="two sizes of the corpus")
    parser.add_argument("--runs", type=int, default=3, help="alternating runs")
    parser.add_argument("--store", help="URL of a server")
    given = parser.parse_args()
    small, large = map(int, given.passages.split(","))
    cores = str(os.cpu_count())
    engines = {"local": ["--threads", cores], "ray": ["--num-workers", cores]}
    seconds: dict[tuple[str, int], list[float]] = {(name, size): [] for name in engines for size in (small, large)}
    with server(given.store) as url, tempfile.TemporaryDirectory() as folder:
        files = {size: write_corpus(Path(folder) / f"{size}.jsonl", size) for size in (small, large)}
        for _ in range(given.runs):
            for (name, size), found in seconds.items():
                found.append(run(files[size], url, name, engines[name]))
    rows = []
    for name in engines:
        few, many = seconds[name, small], seconds[name, large]
        slopes = [(right - left) / (large - small) for left, right in zip(few, many, strict=True)]
        starts = [left - small * slope for left, slope in zip(few, slopes, strict=True)]
        rows.append([name, *(f"{min(found):.1f}–{median(found):.1f}–{max(found):.1f}" for found in (few, many))])
        rows[-1] += [f"{1 / median(slopes):.1f}", f"{median(starts):.1f}"]
    print_table(
        ["engine", f"s, {small} passages", f"s, {large} passages", "passages/s once it runs", "s to start"], rows
    )


def write_corpus(path: Path, count: int) -> Path:
    """Write `count` passages, repeating the demo's under new ids."""
    passages = read_demo_passages()
    chosen = ((number, passages[number % len(passages)]) for number in range(count))
    rows = ({"id": f"{number}", "title": p.title, "text": f"{number}. {p.text}"} for number, p in chosen)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(corpus: Path, url: str, engine: str, workers: list[str]) -> float:
    """Return the seconds of one ingest."""
    places = ["--store", url, "--collection", uuid.uuid4().hex, "--engine", engine, *workers]
    start = time.perf_counter()
    command = [sys.executable, CHECKOUT / "cli.py", "--quiet", "ingest", corpus, *places, *SETTINGS]
    subprocess.run(command, check=True, cwd=corpus.parent)
    return time.perf_counter() - start


@contextmanager
def server(url: str | None) -> Iterator[str]:
    """Yield the given URL of a server, or that of a new emulated one."""
    if url:
        yield url
        return
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=CHECKOUT / "tests", stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        yield process.stdout.readline().strip()
        process.kill()


if __name__ == "__main__":
    main()
