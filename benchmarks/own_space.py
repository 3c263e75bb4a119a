"""Measure what `xqg augment --vector NAME --no-queries` costs besides the server: CPU time of the client a point.

The server is the tests' emulation, in a process of its own, so that the client's CPU time counts only this side: HTTP,
JSON, calibration and checks. Opening the encoder and comparing it with the stored vectors are not counted. The encoder
is the demo's, and no passage is encoded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

DIM = 384
TEXT = "The Danube is the second-longest river in Europe. " * 10
PARTS = ("augment", "again, all unchanged", "undo")


def serve(points: int, dot: bool) -> None:
    """Emulate a server with a collection of random vectors until standard input ends; print the URL."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
    from qdrant_client import models
    from rest_qdrant import RestQdrant

    distance = models.Distance.DOT if dot else models.Distance.COSINE
    vectors = np.random.default_rng(0).standard_normal((points, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with closing(RestQdrant()) as server:
        server.version = "1.19.0"
        server.client.create_collection("theirs", {"dense": models.VectorParams(size=DIM, distance=distance)})
        for start in range(0, points, 500):
            found = range(start, min(points, start + 500))
            payloads = [{"text": f"{number}. {TEXT}", "title": "", "year": 2026} for number in found]
            ours = [
                models.PointStruct(id=number, vector={"dense": vectors[number].tolist()}, payload=payload)
                for number, payload in zip(found, payloads, strict=True)
            ]
            server.client.upsert("theirs", ours)
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        sys.stdin.read()


def measure(url: str, replace: bool) -> list[float]:
    """Return the CPU time of each of `PARTS` in seconds."""
    from xqg_qdrant.augmentation.pipeline import ingest
    from xqg_qdrant.augmentation.recipe import choose_recipe_of_calibration
    from xqg_qdrant.inference.encoder import Encoder
    from xqg_qdrant.records import PayloadLayout, Space
    from xqg_qdrant.stores import open_own_space_store

    encoder = Encoder(None, "cpu", threads=1)
    recipe = choose_recipe_of_calibration(encoder).recipe

    with closing(open_own_space_store(url, None, PayloadLayout("text"), Space("dense", replace))) as store:

        def augment() -> None:
            for _ in ingest(store.read_passages("theirs"), store, "theirs", encoder, None, recipe):
                pass

        def undo() -> None:
            store.remove_added("theirs")

        return [count(part) for part in (augment, augment, undo)]


def count(work: Callable[[], None]) -> float:
    """Return the CPU time that a function takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Print microseconds a point and points a second of CPU time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=4_096)
    parser.add_argument("--dot", action="store_true", help="compare by dot product instead of cosine")
    parser.add_argument("--serve", action="store_true", help="be the server")
    given = parser.parse_args()
    if given.serve:
        return serve(given.points, given.dot)
    sys.stdout.write(f"{'':24}{'':24}{'µs a point':>12}{'points/s':>12}\n")
    for replace in (False, True):
        command = [sys.executable, __file__, "--serve", "--points", str(given.points), *["--dot"] * given.dot]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        seconds = measure(server.stdout.readline().strip(), replace)
        server.communicate("")
        for part, spent in zip(PARTS, seconds, strict=True):
            kind, each = "replaced" if replace else "added", spent / given.points
            sys.stdout.write(f"{kind:24}{part:24}{1e6 * each:12.1f}{1 / each:12,.0f}\n")
    return None


if __name__ == "__main__":
    main()
