"""Ingest millions of passages with given queries through the pipeline, and kill it again and again.

The encoder returns ready vectors and the store keeps only the content hashes, in a file; reading, checking, hashing,
fusing, calibrating and making payloads are real. Printed are the rate, the memory at each tenth of the last run, and
what the kills cost. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np

from xqg_qdrant.augmentation.calibration import pack_mean
from xqg_qdrant.augmentation.pipeline import ingest
from xqg_qdrant.augmentation.recipe import make_recipe
from xqg_qdrant.corpus.passages import read_queried_passages
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import AugmentedPassage, FloatArray
from xqg_qdrant.stores.points import check_points

LANGUAGES = ("ar", "bn", "fi", "ja", "ko", "ru", "te")
HASH_BYTES = 16
MOST_TEXTS = 128 * 64
MARKS = 10


class ReadyEncoder:
    """Returns the same normalised vectors for any texts."""

    def __init__(self, dim: int) -> None:
        self.dim = dim
        vectors = np.random.default_rng(1).normal(size=(MOST_TEXTS, dim)).astype(np.float32)
        self._vectors: FloatArray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def describe(self) -> dict[str, Any]:
        """Return a made-up checksum."""
        return {"sha256": "none", "normalise": True}

    def encode_passages(self, texts: Sequence[str]) -> FloatArray:
        """Return as many vectors as there are texts."""
        return self._vectors[: len(texts)]

    encode_queries = encode_passages


class HashStore:
    """Keeps the content hash of each passage and how often it was written, in files that survive a kill."""

    location = "hashes"

    def __init__(self, folder: Path, count: int, dim: int) -> None:
        self._fingerprint, self._dim = folder / "fingerprint.json", dim
        shapes = {"hashes": (count, HASH_BYTES), "writes": (count,)}
        self.hashes, self.writes = (open_array(folder / name, shape) for name, shape in shapes.items())

    def read_fingerprint(self, _collection: str) -> dict[str, Any] | None:
        """Return the fingerprint in the folder."""
        return json.loads(self._fingerprint.read_text()) if self._fingerprint.exists() else None

    def read_models(self, _collection: str) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def create_collection(self, _collection: str, _dim: int, fingerprint: Mapping[str, Any]) -> None:
        """Write the fingerprint."""
        self._fingerprint.write_text(json.dumps(fingerprint))

    def read_content_hashes(self, _collection: str, passage_ids: Sequence[str]) -> dict[str, str]:
        """Return the hashes of the passages that were written."""
        found = self.hashes[[int(passage_id) for passage_id in passage_ids]]
        pairs = zip(passage_ids, found, strict=True)
        return {passage_id: content.tobytes().hex() for passage_id, content in pairs if content.any()}

    def upsert(self, _collection: str, points: Sequence[AugmentedPassage]) -> None:
        """Check the points as every store does, and keep their hashes."""
        for point, _ in check_points(points, self._dim).values():
            number = int(point.passage.passage_id)
            self.hashes[number] = np.frombuffer(bytes.fromhex(point.content_hash), np.uint8)
            self.writes[number] += 1

    def bulk_load(self, _collection: str, fast: bool) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()


def open_array(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Open an array of bytes in a file, zeros at first."""
    return np.memmap(path, np.uint8, "r+" if path.exists() else "w+", shape=shape)


def write_corpus(path: Path, count: int, queries_per_language: int) -> None:
    """Write passages of 60 words, each with its queries."""
    draw = random.Random(1)
    words = [f"word{number}" for number in range(5000)]
    with path.open("w") as file:
        for number in range(count):
            text = " ".join(draw.choices(words, k=60))
            queries = [
                {"language": language, "text": f"{language} {number}.{sample} {text[:40]}?"}
                for language in LANGUAGES
                for sample in range(queries_per_language)
            ]
            file.write(json.dumps({"id": str(number), "text": text, "generated_queries": queries}) + "\n")


def ingest_here(folder: Path, count: int, dim: int, workers: int) -> None:
    """Ingest, and print a line of JSON at each tenth: passages, seconds, CPU seconds, stored passages, MiB."""
    encoder = cast(Encoder, ReadyEncoder(dim))
    mean = pack_mean(np.full(dim, 0.8 / dim**0.5, np.float32))
    recipe = make_recipe(
        None, alpha=0.4, fusion="mean", renormalise=True, gamma=0.5, question_bank="made up", bank_mean=mean
    )
    store = HashStore(folder, count, dim)
    rows = read_queried_passages(str(folder / "corpus.jsonl"))
    start, done, stored = time.perf_counter(), 0, 0
    for step in ingest(rows, store, "docs", encoder, None, recipe, workers):
        before, done, stored = done, done + step.rows, stored + step.stored
        if done * MARKS // count > before * MARKS // count:
            print(json.dumps([done, time.perf_counter() - start, time.process_time(), stored, read_own()]), flush=True)


def read_own() -> float:
    """Return the memory of this process in MiB, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def run_killed(command: Sequence[str], store: HashStore, kills: int, count: int) -> None:
    """Start the ingest, and kill it each time when another share of the passages is stored."""
    for kill in range(1, kills + 1):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while np.count_nonzero(store.writes) < count * kill // (kills + 2):
                if process.poll() is not None:
                    raise SystemExit(f"the ingest ended before kill {kill} with code {process.returncode}")
                time.sleep(0.2)
            process.send_signal(signal.SIGKILL)


def read_marks(command: Sequence[str]) -> Iterator[list[float]]:
    """Run the ingest to its end, and yield its lines."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise SystemExit(process.returncode)


def main() -> None:
    """Write the corpus, ingest it once without kills and once with them, and print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=10_000_000)
    parser.add_argument("--queries-per-language", type=int, default=3, help="in each of seven languages")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--kills", type=int, default=20, help="0 for the ingest without kills alone")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="an ingest here, as a child process")
    given = parser.parse_args()
    sizes = (given.passages, given.dim)
    if given.folder:
        ingest_here(given.folder, *sizes, given.workers)
        return
    options = [f"--passages={given.passages}", f"--dim={given.dim}", f"--workers={given.workers}"]
    with tempfile.TemporaryDirectory() as directory:
        folder, killed = Path(directory), Path(directory) / "killed"
        killed.mkdir()
        write_corpus(folder / "corpus.jsonl", given.passages, given.queries_per_language)
        (killed / "corpus.jsonl").symlink_to(folder / "corpus.jsonl")
        child = [sys.executable, __file__, *options, "--folder"]
        print(f"{given.passages} passages, {7 * given.queries_per_language} queries each, {given.dim} dimensions")
        for done, seconds, cpu, _, own in read_marks([*child, str(folder)]):
            print(f"{done:>10.0f}  {seconds:8.1f} s  {done / seconds:7.0f}/s  {done / cpu:7.0f}/CPU s  {own:6.0f} MiB")
        if not given.kills:
            return
        start, store = time.perf_counter(), HashStore(killed, *sizes)
        run_killed([*child, str(killed)], store, given.kills, given.passages)
        for done, seconds, _, stored, own in read_marks([*child, str(killed)]):
            print(f"{done:>10.0f}  {seconds:8.1f} s  {stored:>10.0f} stored  {own:6.0f} MiB  after {given.kills} kills")
        same = np.array_equal(store.hashes, HashStore(folder, *sizes).hashes)
        again = int(store.writes.sum(dtype=np.int64)) - given.passages
        took = time.perf_counter() - start
        print(f"{given.kills} kills: {took:.0f} s in all, the same hashes: {same}, passages written twice: {again}")


if __name__ == "__main__":
    main()
