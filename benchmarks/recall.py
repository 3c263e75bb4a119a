"""Measure the loss of a dtype against fp32: cosines, recall and MRR of an encoder with trained weights."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import models
import numpy as np
import shapes
from harness import print_table

from xqg_qdrant.corpus.passages import read_passages
from xqg_qdrant.corpus.questions import read_queries
from xqg_qdrant.demo import DEMO_FOLDER
from xqg_qdrant.evaluation.files import read_qrels
from xqg_qdrant.evaluation.measures import per_query_values
from xqg_qdrant.evaluation.significance import paired_randomisation_test
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import FloatArray, Passage, Qrel, Query

DTYPES = ("float32", "int8", "float16", "bfloat16")
DEPTH = 100
RECALL_AT, MRR_AT = (1, 10, 100), 10
# A CPU computes float16 partly in fp32, and bfloat16 not at all.
HOW_RUN = {"float16": " (on a CPU, partly in fp32)", "bfloat16": " (emulated on a CPU)"}


class Texts(NamedTuple):
    """Passages, questions and judgements."""

    passages: list[Passage]
    queries: list[Query]
    qrels: list[Qrel]


class Vectors(NamedTuple):
    """Vectors of all passages and all questions, float32 of shape `(n, dim)`."""

    passages: FloatArray
    queries: FloatArray


def read_texts(folder: Path | None) -> Texts:
    """Read a folder of passages, English questions and judgements; by default the demo's, in seven languages."""
    if folder is None:
        corpus, queries, qrels = DEMO_FOLDER, DEMO_FOLDER, DEMO_FOLDER
    else:
        corpus, queries, qrels = (folder / name for name in ("corpus.jsonl.gz", "queries.en.jsonl.gz", "qrels.tsv.gz"))
    passages = [row for row in read_passages(str(corpus)) if isinstance(row, Passage)]
    asked = read_queries(queries)
    ids = {query.query_id for query in asked}
    return Texts(passages, asked, [qrel for qrel in read_qrels(qrels) if qrel.query_id in ids])


def encode(dtype: str, texts: Texts) -> Vectors:
    """Encode all texts as an ingest and a search do, on a CPU with one thread."""
    folder = models.exported(shapes.TRAINED, dtype)
    if dtype == "bfloat16":
        sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))
        from bfloat16 import emulate_folder

        source = folder
        folder = models.cached(f"{source.name}-emulated", "", lambda made: emulate_folder(source, "encoder", made))
    encoder = Encoder(folder, device="cpu", threads=1)
    return Vectors(
        encoder.encode_passages([f"{passage.title} {passage.text}".strip() for passage in texts.passages]),
        encoder.encode_queries([query.text for query in texts.queries]),
    )


def search(vectors: Vectors, texts: Texts) -> dict[str, list[tuple[str, float]]]:
    """Return the best passages of each question, by exact search."""
    run = {}
    for query, scores in zip(texts.queries, vectors.queries @ vectors.passages.T, strict=True):
        best = np.argsort(-scores, kind="stable")[:DEPTH]
        run[query.query_id] = [(texts.passages[place].passage_id, float(scores[place])) for place in best]
    return run


def cosines(left: FloatArray, right: FloatArray) -> FloatArray:
    """Return the cosine of each pair of normalised rows, shape `(n,)`."""
    found: FloatArray = (left.astype(np.float64) * right).sum(axis=1)
    return found


def compare(values: Sequence[float], others: Sequence[float]) -> str:
    """Return as text how many questions are better and worse than in `others`, and the p-value."""
    differences = np.asarray(values) - np.asarray(others)
    won, lost = int((differences > 0).sum()), int((differences < 0).sum())
    return f"{won} / {lost} (p = {paired_randomisation_test(others, values):.2f})"


def main() -> None:
    """Print one table with a row for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="corpus.jsonl.gz, queries.en.jsonl.gz and qrels.tsv.gz")
    parser.add_argument(
        "--dtypes", default=",".join(DTYPES), help="dtypes to measure, such as float32,int8; always float32"
    )
    given = parser.parse_args()
    texts = read_texts(given.folder)
    print(f"{shapes.TRAINED}, {len(texts.passages)} passages, {len(texts.queries)} questions", flush=True)
    rows = []
    plain: Vectors | None = None
    plain_values: dict[str, list[float]] = {}
    for dtype in dict.fromkeys(("float32", *given.dtypes.split(","))):
        vectors = encode(dtype, texts)
        found = per_query_values(texts.qrels, search(vectors, texts), recall_at=RECALL_AT, mrr_at=[MRR_AT])
        values = {name: list(by_query.values()) for name, by_query in found.items()}
        if plain is None:
            plain, plain_values = vectors, values
        close = [cosines(left, right) for left, right in zip(plain, vectors, strict=True)]
        rows.append([
            dtype + HOW_RUN.get(dtype, ""),
            *(f"{side.mean():.6f}, {side.min():.6f}" for side in close),
            *(f"{np.mean(column):.4f}" for column in values.values()),
            *("" if dtype == "float32" else compare(values[name], plain_values[name])
              for name in ("recall@10", f"MRR@{MRR_AT}")),
        ])  # fmt: skip
        print(f"{dtype} done", flush=True)
    print_table(
        ["dtype", "passages: mean, lowest cosine", "questions: mean, lowest cosine", *plain_values,
         "recall@10, won / lost", f"MRR@{MRR_AT}, won / lost"],
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
