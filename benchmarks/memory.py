"""Measure memory during the ingest of a large corpus with given queries: the pipeline's and the store's.

Passages are short and the encoder is tiny, with random weights, so that a million passages take minutes. Every
combination of a store and a source of queries runs in its own process. Needs Linux, and the tests' packages to make the
encoder.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from xqg_qdrant.records import AugmentedPassage
from xqg_qdrant.stores import Store, open_store

MARKS = (10_000, 100_000, 300_000, 1_000_000)
CASES = (("discarded", "corpus"), ("discarded", "file"), ("edge", "corpus"))


class Discarded:
    """A store that discards all writes, so that only the pipeline's memory is measured."""

    location = "nowhere"

    def read_fingerprint(self, collection: str) -> dict[str, Any] | None:
        """Return no fingerprint."""
        return None

    def create_collection(self, collection: str, dim: int, fingerprint: Mapping[str, Any]) -> None:
        """Do nothing."""

    def read_content_hashes(self, collection: str, passage_ids: Sequence[str]) -> dict[str, str]:
        """Return no hashes."""
        return {}

    def upsert(self, collection: str, points: Sequence[AugmentedPassage]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def make_rows(count: int, queries_each: int) -> Iterator[tuple[dict[str, Any], list[dict[str, str]]]]:
    """Yield short passages, each with its queries."""
    words = random.Random(1)
    for number in range(count):
        text = " ".join(f"word{words.randrange(5000)}" for _ in range(12))
        queries = [
            {"language": "fi", "text": f"kysymys {number} {text[:20]} {sample}"} for sample in range(queries_each)
        ]
        yield {"id": f"passage-{number}", "text": text}, queries


def write_corpus(folder: Path, count: int, queries_each: int) -> None:
    """Write a corpus with queries, one without, and a file of its queries in another order."""
    with (folder / "with.jsonl").open("w") as both, (folder / "without.jsonl").open("w") as alone:
        for row, queries in make_rows(count, queries_each):
            both.write(json.dumps({**row, "generated_queries": queries}) + "\n")
            alone.write(json.dumps(row) + "\n")
    with (folder / "queries.jsonl").open("w") as file:
        for half in (1, 0):
            for number, (row, queries) in enumerate(make_rows(count, queries_each)):
                if number % 2 == half:
                    file.writelines(json.dumps({"id": row["id"], **query}) + "\n" for query in queries)


def write_encoder(folder: Path) -> None:
    """Export an encoder of one layer and 32 dimensions with random weights."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))
    from checkpoints import save_encoder

    from xqg_qdrant.export import export_checkpoint

    source = save_encoder(folder / "checkpoint", "bert", num_hidden_layers=1)
    export_checkpoint(str(source), folder / "encoder", pooling="mean", normalise=True)


def ingest_here(folder: Path, store_name: str, queries: str, count: int, workers: int) -> None:
    """Ingest, and print a line of JSON at every mark: passages, seconds, memory."""
    from xqg_qdrant.augmentation.pipeline import ingest
    from xqg_qdrant.augmentation.recipe import make_recipe
    from xqg_qdrant.corpus.inputs import QueryIndex
    from xqg_qdrant.corpus.passages import read_generated_queries, read_passages, read_queried_passages
    from xqg_qdrant.inference.encoder import Encoder

    if queries == "corpus":
        rows = read_queried_passages(str(folder / "with.jsonl"))
    else:
        index = QueryIndex(read_generated_queries(folder / "queries.jsonl"))
        rows = index.join(read_passages(str(folder / "without.jsonl")))
    encoder = Encoder(folder / "encoder", device="cpu", threads=1)
    with tempfile.TemporaryDirectory() as directory:
        store = open_store(directory) if store_name == "edge" else cast(Store, Discarded())
        done, start = 0, time.perf_counter()
        for step in ingest(rows, store, "docs", encoder, None, make_recipe(None), workers):
            marks = [mark for mark in MARKS if done < mark <= done + step.stored]
            done += step.stored
            if marks or done == count:
                print(json.dumps([done, time.perf_counter() - start, *read_memory()]), flush=True)
        store.close()


def read_memory() -> tuple[float, float]:
    """Return the resident memory of this process in MiB: its own and that of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    own, files = (int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
    return own, files


def main() -> None:
    """Print one table for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=MARKS[-1])
    parser.add_argument("--queries", type=int, default=2, help="queries a passage")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cases", default="0,1,2", help="0: no store; 1: no store, queries in a file; 2: Edge")
    parser.add_argument("--here", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        folder, store, place = given.here
        ingest_here(Path(folder), store, place, given.passages, given.workers)
        return
    with tempfile.TemporaryDirectory() as directory:
        write_corpus(Path(directory), given.passages, given.queries)
        write_encoder(Path(directory))
        for case in map(int, given.cases.split(",")):
            store, queries = CASES[case]
            print(
                f"\nstore: {store}, queries: {queries}, {given.queries} a passage, {given.workers} workers", flush=True
            )
            print("| passages | seconds | own memory, MiB | mapped files, MiB |\n|---|---|---|---|", flush=True)
            command = [sys.executable, __file__, "--passages", str(given.passages), "--workers", str(given.workers)]
            command += ["--here", directory, store, queries]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                for line in process.stdout or ():
                    done, seconds, own, files = json.loads(line)
                    print(f"| {done} | {seconds:.0f} | {own:.0f} | {files:.0f} |", flush=True)
            if process.returncode:
                raise SystemExit("the ingest failed; see its error above")


if __name__ == "__main__":
    main()
