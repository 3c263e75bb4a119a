"""Measure the cost of opening an encoder: `python benchmarks/load.py [--shape xlm-r-large] [--dtype float32]`.

Each part of xqg's opening, and sentence-transformers on the same weights, run in turn, each time in a new process.
Imports do not count, and the files are in the page cache. Times are wall-clock and processor seconds; ratios use the
latter, which other work on the machine changes less. Memory is the growth since the imports, the process's own and
that of mapped files, after opening and after one text. Needs Linux.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import models
import shapes
from harness import first_cores, print_table, spread

TEXT = "Which lake is the deepest in the world?"
OURS = ("checksums", "graph", "tokenizer", "all of ours")
RIVAL = "sentence-transformers, torch"
RUNS = 5


def prepare(side: str, folder: Path, threads: int) -> Callable[[], Any]:
    """Import the packages of a side; return a function that opens it."""
    if side == RIVAL:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        return lambda: SentenceTransformer(str(folder), device="cpu")
    import onnxruntime  # noqa: F401

    from xqg_qdrant.inference.encoder import Encoder
    from xqg_qdrant.inference.session import Session
    from xqg_qdrant.inference.tokenizer import open_tokenizer
    from xqg_qdrant.model_folders import read_model_folder

    return {
        "checksums": lambda: read_model_folder(folder, "encoder"),
        "graph": lambda: Session(folder / "model.onnx", "cpu", threads),
        "tokenizer": lambda: open_tokenizer(folder / "tokenizer.json", 128),
        "all of ours": lambda: Encoder(folder, "cpu", threads),
    }[side]


def read_memory() -> tuple[float, float]:
    """Return the resident memory of this process in GiB: its own and that of mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, files = (int(fields[name].split()[0]) / 2**20 for name in ("RssAnon", "RssFile"))
    return own, files


def open_here(side: str, folder: Path, cores: int) -> dict[str, Any]:
    """Open a side once and measure it."""
    os.sched_setaffinity(0, first_cores(cores))
    load = prepare(side, folder, cores)
    gc.collect()
    before = read_memory()
    start, worked = time.perf_counter(), time.process_time()
    opened = load()
    found: dict[str, Any] = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - worked}
    found["loaded"] = grown(before)
    if side in ("all of ours", RIVAL):
        encode = opened.encode if side == RIVAL else opened.encode_queries
        encode([TEXT])
        found["encoded"] = grown(before)
    return found


def show_memory(runs: list[dict[str, Any]], when: str) -> str:
    """Return the medians of own and mapped memory as text, empty if not measured."""
    return ", ".join(f"{median(run[when][kind] for run in runs):.2f}" for kind in (0, 1)) if when in runs[0] else ""


def grown(before: tuple[float, float]) -> tuple[float, float]:
    """Return the growth of own and mapped memory in GiB."""
    own, files = read_memory()
    return own - before[0], files - before[1]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default=shapes.LARGE, choices=shapes.ENCODERS)
    parser.add_argument("--dtype", default="float32", choices=["float32", "int8"])
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(open_here(given.here[0], Path(given.here[1]), given.cores)))
        return
    folders = dict.fromkeys(OURS, models.exported(given.shape, given.dtype)) | {RIVAL: models.checkpoint(given.shape)}
    for folder in set(folders.values()):
        size = sum(len(path.read_bytes()) for path in folder.iterdir() if path.is_file())
        print(f"{folder.name}: {size / 1e9:.2f} GB")
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in folders}
    for _ in range(given.runs):
        for side, folder in folders.items():
            command = [sys.executable, __file__, "--cores", str(given.cores), "--here", side, str(folder)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for side, runs in found.items():
        ratios = [run["cpu"] / all_["cpu"] for run, all_ in zip(runs, found["all of ours"], strict=True)]
        rows.append([side, *(spread([run[clock] for run in runs]) for clock in ("seconds", "cpu")), spread(ratios)])
        rows[-1] += [show_memory(runs, when) for when in ("loaded", "encoded")]
    heading = ("opened", "seconds", "processor seconds", "of all of ours", "GiB: own, mapped", "after one text")
    print_table(heading, rows)


if __name__ == "__main__":
    main()
