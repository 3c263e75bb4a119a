"""Compare the embedded store with direct calls of its engine: `python benchmarks/store.py [--points 1000000]`.

Both sides take turns to write the same records (384-d vectors, text, title, metadata, 35 generated queries) in the same
batches, with the same settings and flushes, and to answer the same questions. The direct side converts records to
points in the shortest way, checks nothing and reads every hit's payload. Making the records is not timed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import qdrant_edge as engine

from xqg_qdrant.demo import read_demo_passages, read_demo_queries
from xqg_qdrant.lifecycle.status import measure_recall
from xqg_qdrant.records import AugmentedPassage, FloatArray, GeneratedQuery, Passage
from xqg_qdrant.stores.edge.store import EdgeStore
from xqg_qdrant.stores.points import make_point_id

DIM = 384
QUERIES = 35
CHUNK = 256
LIMIT = 10
TOPICS = 200


def make_chunks(points: int) -> Iterator[list[AugmentedPassage]]:
    """Yield records with the demo's texts, and vectors around 200 topics."""
    random = np.random.default_rng(0)
    topics = random.standard_normal((TOPICS, DIM), dtype=np.float32)
    passages = cycle(read_demo_passages())
    queries = cycle(GeneratedQuery(query.language, query.text) for query in read_demo_queries())
    for start in range(0, points, CHUNK):
        size = min(CHUNK, points - start)
        vectors = topics[random.integers(0, TOPICS, size)] + random.standard_normal((size, DIM), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        yield [
            AugmentedPassage(
                Passage(f"{start + row}", passage.text, passage.title, {"year": 1984, "source": "demo"}),
                tuple(islice(queries, QUERIES)),
                {"xqg": vector, "passage": vector[::-1].copy()},
                f"{start + row:032x}",
                "0" * 32,
            )
            for row, (vector, passage) in enumerate(zip(vectors, passages, strict=False))
        ]


def write_ours(store: EdgeStore, chunk: list[AugmentedPassage]) -> float:
    """Return the seconds of the store to write a chunk."""
    start = time.perf_counter()
    store.upsert("docs", chunk)
    return time.perf_counter() - start


def write_direct(shard: engine.EdgeShard, chunk: list[AugmentedPassage]) -> float:
    """Return the seconds of the engine to write a chunk."""
    start = time.perf_counter()
    records = [
        engine.Point(
            make_point_id(point.passage.passage_id),
            {name: values.tolist() for name, values in point.vectors.items()},
            {
                "passage_id": point.passage.passage_id,
                "text": point.passage.text,
                "title": point.passage.title,
                "metadata": point.passage.metadata,
                "generated_queries": [
                    {"language": query.language, "text": query.text, "number": query.number}
                    for query in point.generated_queries
                ],
                "content_hash": point.content_hash,
                "recipe": point.recipe,
            },
        )
        for point in chunk
    ]
    shard.update(engine.UpdateOperation.upsert_points(records))
    shard.flush()
    return time.perf_counter() - start


def compare_writes(store: EdgeStore, shard: engine.EdgeShard, points: int, runs: int) -> None:
    """Write to both sides in turns, chunk by chunk; a run is a stretch of the growing collections."""
    ours, direct = [0.0] * runs, [0.0] * runs
    for number, chunk in enumerate(make_chunks(points)):
        run = number * CHUNK * runs // points
        for side in ("ours", "direct") if number % 2 else ("direct", "ours"):
            if side == "ours":
                ours[run] += write_ours(store, chunk)
            else:
                direct[run] += write_direct(shard, chunk)
    assert store.count("docs") == shard.count(engine.CountRequest(exact=True)) == points
    report(f"upsert of {points} points", ours, direct, points // runs)


def search_ours(store: EdgeStore, question: FloatArray) -> float:
    """Return the seconds of the store to answer a question."""
    start = time.perf_counter()
    store.search("docs", question[None], "xqg", LIMIT)
    return time.perf_counter() - start


def search_direct(store: EdgeStore, question: FloatArray) -> float:
    """Return the seconds that the engine takes to answer a question."""
    shard = store._open("docs").shard
    start = time.perf_counter()
    query = engine.Query.Nearest(question.tolist(), using="xqg")
    for hit in shard.query(engine.QueryRequest(limit=LIMIT, query=query, with_payload=True, with_vector=False)):
        _ = hit.score, hit.payload
    return time.perf_counter() - start


def report(name: str, ours: list[float], direct: list[float], count: int) -> None:
    """Print each side's time for one operation, and the ratio as min–median–max over pairs of runs."""
    ratios = sorted(a / b for a, b in zip(ours, direct, strict=True))
    spread = "–".join(f"{value:.3f}" for value in (ratios[0], float(np.median(ratios)), ratios[-1]))
    ours_ms, direct_ms = (1000 * float(np.median(times)) / count for times in (ours, direct))
    print(f"{name:28} {ours_ms:9.4f} ms  engine {direct_ms:9.4f} ms  ratio {spread}  ({len(ours)} runs)", flush=True)


def main() -> None:
    """Run both sides and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--index", action="store_true", help="also index the collection and search it again")
    parser.add_argument("--folder", type=Path, help="folder to write to; needs 20 KB a point")
    given = parser.parse_args()
    workplace = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        store = EdgeStore(workplace / "ours")
        store.create_collection("docs", DIM, {})
        vector = engine.EdgeVectorParams(size=DIM, distance=engine.Distance.Dot)
        config = engine.EdgeConfig(vectors={"xqg": vector, "passage": vector}, wal_enabled=True)
        shard = engine.EdgeShard.create(str(workplace / "direct"), config)
        compare_writes(store, shard, given.points, given.runs)
        shard.close()
        shutil.rmtree(workplace / "direct")
        chunk = next(make_chunks(CHUNK))
        questions = np.stack([point.vectors["xqg"] for point in chunk[: given.questions]])
        compare_search(store, "exact search", questions, given.runs)
        if given.index:
            seconds = list(store.optimise("docs"))[-1].seconds
            print(f"indexed in {seconds:.0f} s; {measure_recall(store, 'docs')}", flush=True)
            compare_search(store, "search of the index", questions, given.runs)
        store.close()
    finally:
        shutil.rmtree(workplace)


def compare_search(store: EdgeStore, name: str, questions: FloatArray, runs: int) -> None:
    """Search both sides in turns, question by question, after a warm-up run."""
    ours, direct = [0.0] * (runs + 1), [0.0] * (runs + 1)
    for run in range(runs + 1):
        for number, question in enumerate(questions):
            for side in ("ours", "direct") if number % 2 else ("direct", "ours"):
                if side == "ours":
                    ours[run] += search_ours(store, question)
                else:
                    direct[run] += search_direct(store, question)
    report(name, ours[1:], direct[1:], len(questions))


if __name__ == "__main__":
    main()
