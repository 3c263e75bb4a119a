"""Verifies embedded stores, each in a process of its own: the engine may crash on a damaged one.

    python verified.py make FOLDER      makes a store with a collection `docs`, part of it indexed
    python verified.py look FOLDER…     prints a line of JSON for each: {code, output, values}

`code` is the exit code of `xqg verify`, negative for a signal; `values` is a hash of all that the collection returns.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from xqg_qdrant.cli import main as xqg
from xqg_qdrant.cli import progress  # noqa: F401  # so that no child has to import it
from xqg_qdrant.fingerprint import hash_content
from xqg_qdrant.records import AugmentedPassage, GeneratedQuery, Passage
from xqg_qdrant.stores import open_store

PASSAGES, INDEXED, DIM = 30, 26, 32
FINGERPRINT = {"recipe.sparse": True}


def make_points(count: int = PASSAGES) -> list[AugmentedPassage]:
    """Return points whose passages and vectors all differ."""
    vectors = np.random.default_rng(0).normal(size=(count, 2, DIM)).astype(np.float32)
    points = []
    for number, (augmented, plain) in enumerate(vectors):
        metadata: dict[str, Any] = {"number": number, "ratio": number / 7, "none": None, "empty": []}
        passage = Passage(f"p{number}", f"Text {number}.", f"Title {number}", metadata)
        queries = (GeneratedQuery("fi", f"Kysymys {number}?", number),)
        content = hash_content(passage, "recipe")
        both = {"xqg": augmented, "passage": plain}
        points.append(AugmentedPassage(passage, queries, both, content, "recipe", terms=(number + 1, number + 99)))
    return points


def make(folder: Path) -> None:
    """Store the points as two ingests do, with an indexing between them."""
    points = make_points()
    with open_store(str(folder)) as store:
        store.create_collection("docs", DIM, FINGERPRINT)
        # So that the engine indexes even these few.
        settings = folder / "docs" / "edge_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"optimizers": {"indexing_threshold": 1}}))
        for part in (points[:INDEXED], points[INDEXED:]):
            with store.bulk_load("docs", fast=True):
                store.upsert("docs", part)
            if part[0] is points[0]:
                list(store.optimise("docs"))


def read_values(folder: Path) -> str:
    """Return a hash of the points and of what searches find."""
    digest = hashlib.sha256()
    with open_store(str(folder)) as store:
        points = sorted(store.scroll("docs"), key=lambda point: point.passage.passage_id)
        for point in points:
            digest.update(repr((point, [vector.tobytes() for vector in point.vectors.values()])).encode())
        questions = np.stack([point.vectors["passage"] for point in points])
        for hits in store.search("docs", questions, "xqg", 3, exact=True):
            digest.update(repr(hits).encode())
    return digest.hexdigest()


def look(folder: Path) -> dict[str, Any]:
    """Verify a store, and read it if nothing is wrong."""
    result = CliRunner().invoke(xqg, ["-q", "verify", "--collection", "docs", "--store", str(folder), "--json"])
    values = read_values(folder) if result.exit_code == 0 else ""
    return {"code": result.exit_code, "output": result.output, "values": values}


def look_apart(folders: list[Path]) -> Iterator[dict[str, Any]]:
    for folder in folders:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            with os.fdopen(writing, "w") as out:
                json.dump(look(folder), out)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as told:
            text = told.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        yield json.loads(text) if code == 0 else {"code": code, "output": text, "values": ""}


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        for found in look_apart([*map(Path, sys.argv[2:])]):
            sys.stdout.write(json.dumps(found) + "\n")
