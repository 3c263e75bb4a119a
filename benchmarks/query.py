"""Measure the time of a question, warm and from the shell: `python benchmarks/query.py [--encoder FOLDER]`.

Warm: in a running process, xqg's search and direct calls of the encoder's session and the store's engine take turns,
question by question. Cold: `xqg query` as a new process. The collection holds each of the demo's passages twenty times,
with 35 generated queries and random vectors, which affect neither the encoder's speed nor the engine's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import numpy as np
import qdrant_edge as engine

from xqg_qdrant.demo import read_demo_passages, read_demo_queries
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.model_folders import DEMO_ENCODER, shipped_model
from xqg_qdrant.records import AugmentedPassage, GeneratedQuery, Passage
from xqg_qdrant.retrieval import search
from xqg_qdrant.stores.edge.store import EdgeStore

COPIES = 20
QUERIES = 35
LIMIT = 10
WARM_QUESTIONS = 100
COLD_RUNS = 9


def fill(store: EdgeStore, encoder: Encoder) -> None:
    """Fill the collection, with the encoder's fingerprint."""
    random = np.random.default_rng(0)
    store.create_collection("docs", encoder.dim, {f"encoder.{k}": value for k, value in encoder.describe().items()})
    queries = cycle(GeneratedQuery(query.language, query.text) for query in read_demo_queries())
    for copy in range(COPIES):
        points = []
        for passage in read_demo_passages():
            vector = random.standard_normal(encoder.dim, dtype=np.float32)
            named = Passage(f"{passage.passage_id}-{copy}", passage.text, passage.title)
            vectors = {"xqg": vector / np.linalg.norm(vector), "passage": vector}
            points.append(AugmentedPassage(named, tuple(islice(queries, QUERIES)), vectors, "", ""))
        store.upsert("docs", points)


def ask_ours(store: EdgeStore, encoder: Encoder, question: str) -> float:
    """Return the seconds of one question with xqg's search."""
    start = time.perf_counter()
    search(store, "docs", encoder, [question], LIMIT, ["xqg"])
    return time.perf_counter() - start


def ask_direct(store: EdgeStore, encoder: Encoder, question: str) -> float:
    """Return the seconds of one question by tokenizer, session and engine, hits with their payload."""
    shard = store._open("docs").shard
    start = time.perf_counter()
    ids = np.array([encoder._tokenizer.encode(question).ids], dtype=np.int64)
    [[vector]] = encoder._session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    query = engine.Query.Nearest(vector.tolist(), using="xqg")
    for hit in shard.query(engine.QueryRequest(limit=LIMIT, query=query, with_payload=True, with_vector=False)):
        _ = hit.score, hit.payload
    return time.perf_counter() - start


def ask_from_shell(folder: Path, encoder_folder: Path, question: str, threads: int) -> float:
    """Return the seconds of one run of `xqg query`."""
    command = [sys.executable, "-c", "from xqg_qdrant.cli import main; main()", "query", question]
    options = ["--collection", "docs", "--store", str(folder), "--encoder", str(encoder_folder)]
    start = time.perf_counter()
    subprocess.run([*command, *options, "--threads", str(threads)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def spread(values: list[float], digits: int) -> str:
    """Return minimum, median and maximum as text."""
    return "–".join(f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))


def main() -> None:
    """Measure, and print two lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", type=Path, default=shipped_model(DEMO_ENCODER))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    texts = [query.text for query in read_demo_queries()][:WARM_QUESTIONS]
    encoder = Encoder(given.encoder, "cpu", given.threads)
    with tempfile.TemporaryDirectory() as folder:
        store = EdgeStore(folder)
        fill(store, encoder)
        ours, direct = [], []
        for run in range(given.runs + 1):  # the first run is a warm-up
            sums = [0.0, 0.0]
            for number, text in enumerate(texts):
                for side in (0, 1) if number % 2 else (1, 0):
                    sums[side] += (ask_ours, ask_direct)[side](store, encoder, text)
            if run:
                ours.append(1000 * sums[0] / len(texts))
                direct.append(1000 * sums[1] / len(texts))
        store.close()
        ratios = [a / b for a, b in zip(ours, direct, strict=True)]
        print(
            f"warm: {spread(ours, 2)} ms, encoder and engine alone {spread(direct, 2)} ms, ratio {spread(ratios, 3)} "
            f"({given.runs} runs of {len(texts)} questions)"
        )
        cold = [ask_from_shell(Path(folder), given.encoder, text, given.threads) for text in texts[:COLD_RUNS]]
        print(f"cold: {spread(cold, 3)} s from the shell ({len(cold)} runs)")


if __name__ == "__main__":
    main()
