"""Compare passages ingested per second by `xqg ingest` and a straightforward script, from corpus to collection.

Both use the same models, seven languages and five queries of fourteen tokens in each, and store the same number of
vectors. Loading the models is not counted.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import models
import shapes
from harness import Measured, Pass, Side, measure, print_table, ratios, select, spread

from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.languages import LANGUAGES
from xqg_qdrant.records import Passage

SAMPLES = 5
TOP_K = 10
TOKENS = 14
ALPHA = 0.01
QUERIES = len(shapes.LANGUAGES) * SAMPLES
# Passages in an upsert of the script.
UPSERT = 64


class Ingested(NamedTuple):
    """The result of an ingest: points, queries, and the share of the workers' time inside the models."""

    points: int
    queries: int
    share: float


def ours(cores: int, generator_shape: str, encoder_shape: str, dtype: str, language_tokens: bool) -> dict[str, Pass]:
    """Run the pipeline of `xqg ingest` into the embedded engine, with one worker a core."""
    from xqg_qdrant.augmentation.pipeline import ingest
    from xqg_qdrant.augmentation.recipe import make_recipe
    from xqg_qdrant.generation import onnx as room
    from xqg_qdrant.generation.onnx import QueryGenerator
    from xqg_qdrant.inference.encoder import Encoder
    from xqg_qdrant.stores import open_store
    from xqg_qdrant.streams import count_workers

    clock = ModelClock()
    encoder = Encoder(models.exported(encoder_shape, dtype), device="cpu", threads=1)
    folder = models.exported(generator_shape, dtype, language_tokens)
    generator = QueryGenerator(folder, device="cpu", threads=1)
    # Random weights write no language's script; queries dropped for that would not be encoded.
    room.is_written_in = lambda text, code: True  # type: ignore[attr-defined]
    recipe = make_recipe(
        generator, shapes.LANGUAGES, queries_per_language=SAMPLES, alpha=ALPHA, top_k=TOP_K, max_new_tokens=TOKENS
    )
    workers = count_workers(encoder.device, cores)

    def run(passages: Sequence[Passage]) -> Ingested:
        clock.seconds, start, queries = 0.0, time.perf_counter(), 0
        with tempfile.TemporaryDirectory() as directory:
            store = open_store(directory)
            for step in ingest(passages, store, "docs", encoder, generator, recipe, workers):
                queries += sum(step.kept.values())
            spent = time.perf_counter() - start
            points = store.count("docs")
            store.close()
        return Ingested(points, queries, clock.seconds / (spent * workers))

    return {"": run}


def script(cores: int, generator_shape: str, encoder_shape: str, dtype: str) -> dict[str, Pass]:
    """Run the obvious script: transformers, sentence-transformers and qdrant-client's local mode, in batches."""
    import torch
    import transformers
    from qdrant_client import QdrantClient
    from qdrant_client import models as qdrant
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(cores)
    source = models.checkpoint(generator_shape)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    generator = transformers.AutoModelForSeq2SeqLM.from_pretrained(source, dtype=getattr(torch, dtype)).eval()
    encoder = SentenceTransformer(str(models.checkpoint(encoder_shape)), device="cpu")
    dim = encoder.encode("").shape[0]

    def write(passages: Sequence[Passage], size: int) -> list[list[str]]:
        prompts = [
            shapes.PROMPT.format(language=LANGUAGES[code].name, title=passage.title, text=passage.text)
            for passage in passages
            for code in shapes.LANGUAGES
        ]
        texts: list[str] = []
        for start in range(0, len(prompts), size):
            feeds = tokenizer(
                prompts[start : start + size], padding=True, truncation=True, max_length=256,
                return_token_type_ids=False, return_tensors="pt",
            )  # fmt: skip
            with torch.inference_mode():
                ids = generator.generate(
                    **feeds, do_sample=True, top_k=TOP_K, num_return_sequences=SAMPLES, min_new_tokens=TOKENS,
                    max_new_tokens=TOKENS,
                )  # fmt: skip
            texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [texts[start : start + QUERIES] for start in range(0, len(texts), QUERIES)]

    def run(passages: Sequence[Passage], size: int) -> Ingested:
        client = QdrantClient(":memory:")
        vector = qdrant.VectorParams(size=dim, distance=qdrant.Distance.DOT)
        client.create_collection("docs", vectors_config={"xqg": vector, "passage": vector})
        count = 0
        for start in range(0, len(passages), UPSERT):
            batch = passages[start : start + UPSERT]
            written = write(batch, size)
            plain = encoder.encode([f"{p.title} {p.text}" for p in batch], batch_size=32, show_progress_bar=False)
            texts = [text for queries in written for text in queries]
            vectors = encoder.encode(texts, batch_size=128, show_progress_bar=False)
            fused = (1 - ALPHA) * plain + ALPHA * vectors.reshape(len(batch), QUERIES, -1).sum(axis=1)
            points = [
                qdrant.PointStruct(
                    id=start + row,
                    vector={"xqg": fused[row].tolist(), "passage": plain[row].tolist()},
                    payload={"id": passage.passage_id, "text": passage.text, "generated_queries": written[row]},
                )
                for row, passage in enumerate(batch)
            ]
            client.upsert("docs", points)
            count += len(texts)
        return Ingested(client.count("docs").count, count, float("nan"))

    return {f"{size} prompts a batch": partial(run, size=size) for size in (8, 32)}


class ModelClock:
    """A sum of the seconds that all threads spend inside ONNX Runtime."""

    def __init__(self) -> None:
        import onnxruntime

        self.seconds = 0.0
        self._lock = threading.Lock()
        for name in ("run", "run_with_iobinding", "run_with_ort_values"):
            setattr(onnxruntime.InferenceSession, name, self._timed(getattr(onnxruntime.InferenceSession, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            start = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                spent = time.perf_counter() - start
                with self._lock:
                    self.seconds += spent

        return run


def check(found: Measured, passages: int) -> None:
    """Check that a side stored all points and queries.

    Raises:
        SystemExit: points are missing, or more than 1% of the queries.
    """
    for ingested in found.results:
        if ingested.points != passages or ingested.queries < 0.99 * QUERIES * passages:
            raise SystemExit(f"{found.side.name} left out points or queries: {ingested}")


def main() -> None:
    """Print one table for each number of cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", default="mt5-small-32k", choices=shapes.GENERATORS)
    parser.add_argument("--encoder", default="minilm-l12", choices=shapes.ENCODERS)
    parser.add_argument("--cores", default="1", help="such as 1,2")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs")
    parser.add_argument("--passages", type=int, default=16, help="passages a core; a whole chunk is 16")
    parser.add_argument("--only", default="*", help="sides to run, such as 'xqg int8,script*'")
    given = parser.parse_args()
    shape = (given.generator, given.encoder)
    sides = [
        Side("xqg int8", ours, (*shape, "int8", False), once=True),
        Side("xqg int8 language token", ours, (*shape, "int8", True), once=True),
        Side("xqg fp32", ours, (*shape, "float32", False), once=True),
        Side("script fp32", script, (*shape, "float32"), once=True),
        Side("script bf16", script, (*shape, "bfloat16"), once=True),
    ]
    sides = select(sides, given.only)
    for cores in map(int, given.cores.split(",")):
        passages = read_demo_passages()[: given.passages * cores]
        print(f"\n{given.generator}, {given.encoder}, {len(passages)} passages, {cores} cores, {given.runs} runs")
        found = measure(sides, passages, cores, given.runs, 0)
        for side in found:
            check(side, len(passages))
        own = [side for side in found if side.side.prepare is ours]
        rows = []
        for side in found:
            shares = [100 * ingested.share for ingested in side.results]
            is_ours = side in own
            compared = ["" if is_ours else spread(ratios(mine, side)) for mine in own]
            inside = spread(shares, 1) if is_ours else ""
            rows.append([side.side.name, side.setting, spread(side.rates, 3), inside, *compared])
        headings = ["side", "setting", "passages/s", "% of the workers' time in the models"]
        print_table([*headings, *(f"{mine.side.name} is × as fast" for mine in own)], rows)


if __name__ == "__main__":
    main()
