"""Measure each stage of a sweep: `python benchmarks/sweep.py COLLECTION STORE QUESTIONS [--qrels QRELS]`.

Prints wall-clock and processor time of each stage of `xqg sweep` with the demo encoder, and peak memory so far.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from xqg_qdrant.evaluation.files import read_judged_questions
from xqg_qdrant.evaluation.sweep.bench import default_measure, make_bench
from xqg_qdrant.evaluation.sweep.trial import Trial
from xqg_qdrant.evaluation.sweep.vectors import check_sweepable, opened_vectors
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.model_folders import DEMO_ENCODER, shipped_model
from xqg_qdrant.stores import open_store
from xqg_qdrant.streams import count_workers

T = TypeVar("T")


def timed(stage: str, run: Callable[[], T]) -> T:
    """Run a stage and print its time and peak memory."""
    wall, processor = time.perf_counter(), time.process_time()
    result = run()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    spent = f"{time.perf_counter() - wall:8.1f} s, processor {time.process_time() - processor:8.1f} s"
    print(f"{stage:<32}{spent}, at most {memory} MiB so far", flush=True)
    return result


def main() -> None:
    """Print a line for each stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("collection")
    parser.add_argument("store")
    parser.add_argument("questions", type=Path, nargs="+")
    parser.add_argument("--qrels", type=Path)
    parser.add_argument("--measure", help="measure, such as R@2kt; by default that of xqg sweep")
    given = parser.parse_args()
    queries, qrels = read_judged_questions(given.questions, given.qrels)
    encoder = Encoder(shipped_model(DEMO_ENCODER), "cpu", 1)
    store = open_store(given.store)
    recipe = check_sweepable(store, given.collection, encoder)
    with opened_vectors() as vectors:
        timed("read the points", lambda: list(vectors.read(store, given.collection)))
        workers = count_workers(encoder.device)
        timed(f"encode {vectors.distinct_queries} queries", lambda: list(vectors.encode(encoder, workers)))
        measure = given.measure or default_measure(queries)
        bench = timed(
            f"encode {len(queries)} questions",
            lambda: make_bench(vectors, recipe, encoder, queries, qrels, measure, 100),
        )
        trial = timed("lay out, measure plain vectors", lambda: Trial(bench, 0))
        settings = timed("measure the settings", lambda: len(list(trial.run())))
        timed("report on the other half", trial.conclude)
    store.close()
    print(f"{settings} settings by {measure}, {len(vectors.passages)} passages")


if __name__ == "__main__":
    main()
