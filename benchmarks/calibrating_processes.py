"""Measure how fast several processes run `xqg augment --vector NAME --no-queries`: points a second on the clock.

The server, in a process of its own, has its pages ready and forgets what it is sent, so it takes hardly any time. With
`--milliseconds` it waits before each answer with points and each write, as a busy server would. The first 10 % of the
points are not timed, as the processes start meanwhile.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import orjson

DIM = 384
DISTINCT = 1_024
TEXT = "The Danube is the second-longest river in Europe. " * 10


def serve(points: int, seconds: float) -> None:
    """Answer requests for a collection of random vectors until standard input ends; print the URL."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
    from qdrant_client import models
    from rest_qdrant import RestHandler, RestQdrant

    vectors = np.random.default_rng(0).standard_normal((DISTINCT, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    records = [
        {"payload": {"text": f"{number}. {TEXT}", "title": ""}, "vector": {"dense": vector}}
        for number, vector in enumerate(vectors)
    ]
    tails = [orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY)[1:] for record in records]

    def answer(path: str, body: dict[str, Any]) -> bytes:
        if path.endswith("/batch"):
            return b'[{"status":"completed"}]'
        if path.endswith("/points"):
            return b"[%b]" % show(body["ids"], body)
        start = body.get("offset", 0)
        end = start if "filter" in body else min(start + body["limit"], points)
        following = b"%d" % end if start < end < points else b"null"
        return b'{"points":[%b],"next_page_offset":%b}' % (show(range(start, end), body), following)

    def show(ids: Iterable[int], body: dict[str, Any]) -> bytes:
        if not body["with_vector"]:
            return b",".join(b'{"id":%d}' % number for number in ids)
        time.sleep(seconds)
        return b",".join(b'{"id":%d,%b' % (number, tails[number % DISTINCT]) for number in ids)

    def respond(handler: RestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        path = handler.path.partition("?")[0]
        writes = path.endswith("/batch")
        content = b'{"result":%b}' % answer(path, {} if writes else orjson.loads(raw))
        time.sleep(seconds * writes)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    with closing(RestQdrant()) as server:
        server.RequestHandlerClass = type("Handler", (RestHandler,), {"do_POST": respond})
        server.version = "1.19.0"
        params = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
        server.client.create_collection("theirs", {"dense": params})
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        sys.stdin.read()


def measure(url: str, points: int, processes: int, replace: bool) -> float:
    """Return how many points a second are calibrated."""
    from xqg_qdrant.augmentation.processes import Job, calibrate
    from xqg_qdrant.augmentation.recipe import choose_recipe_of_calibration
    from xqg_qdrant.inference.encoder import Encoder
    from xqg_qdrant.records import PayloadLayout, Space
    from xqg_qdrant.stores import open_own_space_store

    encoder = Encoder(None, "cpu", threads=1)
    recipe = choose_recipe_of_calibration(encoder).recipe
    job = Job(url, None, PayloadLayout("text"), Space("dense", replace), "theirs", recipe)
    done, begun, start = 0, 0, 0.0
    with closing(open_own_space_store(job.location, job.api_key, job.layout, job.space)) as store:
        for progress in calibrate(job, store, encoder, processes, Event()):
            done += progress.stored
            if not start and done >= points / 10:
                begun, start = done, time.perf_counter()
        seconds = time.perf_counter() - start
    assert done == points, done
    return (done - begun) / seconds


def main() -> None:
    """Print points a second by the number of processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=65_536)
    parser.add_argument("--processes", default="1,2,4", help="numbers of processes to compare")
    parser.add_argument("--milliseconds", type=float, default=0.0, help="that the server takes for each answer")
    parser.add_argument("--serve", action="store_true", help="be the server")
    given = parser.parse_args()
    if given.serve:
        return serve(given.points, given.milliseconds / 1e3)
    sys.stdout.write(f"{'processes':>10}{'added/s':>12}{'replaced/s':>12}\n")
    for processes in map(int, given.processes.split(",")):
        sys.stdout.write(f"{processes:10}")
        for replace in (False, True):
            options = ("--points", str(given.points), "--milliseconds", str(given.milliseconds))
            command = [sys.executable, __file__, "--serve", *options]
            server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert server.stdout is not None
            rate = measure(server.stdout.readline().strip(), given.points, processes, replace)
            server.communicate("")
            sys.stdout.write(f"{rate:12,.0f}")
            sys.stdout.flush()
        sys.stdout.write("\n")
    return None


if __name__ == "__main__":
    main()
