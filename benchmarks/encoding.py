"""Compare passages and questions encoded per second by xqg and other libraries, from texts to vectors."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import NormalDist
from typing import Any

import bound
import models
import numpy as np
import shapes
from harness import Measured, Pass, Side, measure, print_table, ratios, select, spread

from xqg_qdrant.demo import read_demo_passages, read_demo_queries

# Passages have 20 to 512 tokens; with this median and spread the mean is about 120.
SHORTEST, LONGEST, MEDIAN, SPREAD = 20, 512, 97, 0.65
WORDS_PER_TOKEN = 0.9
TOKENS_PER_BATCH = 2048
REFERENCE = "sentence-transformers fp32"


def ours(cores: int, shape: str, kind: str, dtype: str) -> dict[str, Pass]:
    """Run xqg with one worker thread a core, as an ingest does."""
    from xqg_qdrant.inference.encoder import Encoder

    encoder = Encoder(models.exported(shape, dtype), device="cpu", threads=1)
    encode = encoder.encode_passages if kind == "passages" else encoder.encode_queries

    def run(texts: Sequence[str]) -> Any:  # noqa: ANN401
        vectors = np.empty((len(texts), encoder.dim), dtype=np.float32)
        with ThreadPoolExecutor(cores) as pool:
            for number, part in enumerate(pool.map(encode, [texts[number::cores] for number in range(cores)])):
                vectors[number::cores] = part
        return vectors

    return {"": run}


def sentence_transformers(cores: int, shape: str, kind: str, backend: str) -> dict[str, Pass]:
    """Run sentence-transformers, which sorts by length; its onnx backend exports with optimum."""
    import onnxruntime
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(cores)
    options: dict[str, Any] = {}
    if backend == "onnx":
        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = cores
        options = {"provider": "CPUExecutionProvider", "session_options": session, "export": True}
    model = SentenceTransformer(str(models.checkpoint(shape)), device="cpu", backend=backend, model_kwargs=options)
    return {f"batch {size}": partial(model.encode, batch_size=size, show_progress_bar=False) for size in _sizes(kind)}


def fastembed(cores: int, shape: str, kind: str) -> dict[str, Pass]:
    """Run FastEmbed on optimum's plain graph; it keeps the order of the texts, 256 a batch by default."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    folder = str(models.optimum_model(shape))
    TextEmbedding.add_custom_model(
        shape, PoolingType.MEAN, normalization=True, sources=ModelSource(url="local"), model_file="model.onnx",
        dim=shapes.read_config(shape)["hidden_size"],
    )  # fmt: skip
    model = TextEmbedding(shape, specific_model_path=folder, threads=cores, cuda=False)

    def run(texts: Sequence[str], size: int) -> Any:  # noqa: ANN401
        return np.stack(list(model.embed(texts, batch_size=size)))

    return {f"batch {size}": partial(run, size=size) for size in (32, 256)}


def optimum(cores: int, shape: str, kind: str) -> dict[str, Pass]:
    """Run optimum's ORTModelForFeatureExtraction on texts in order, pooled in torch."""
    import onnxruntime
    from optimum.onnxruntime import ORTModelForFeatureExtraction

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    model = ORTModelForFeatureExtraction.from_pretrained(models.optimum_model(shape), session_options=options)
    encode = _torch_encode(model, shape)

    def run(texts: Sequence[str], size: int) -> Any:  # noqa: ANN401
        return np.concatenate([encode(texts[start : start + size]) for start in range(0, len(texts), size)])

    return {f"batch {size}": partial(run, size=size) for size in _sizes(kind)}


def torch_sorted(cores: int, shape: str, kind: str) -> dict[str, Pass]:
    """Run transformers in bf16, sorted by length, in batches under a budget of padded tokens."""
    import torch
    import transformers

    torch.set_num_threads(cores)
    model = transformers.AutoModel.from_pretrained(models.checkpoint(shape), dtype=torch.bfloat16).eval()
    encode = _torch_encode(model, shape)

    def run(texts: Sequence[str], budget: int) -> Any:  # noqa: ANN401
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        vectors: Any = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
        while order:
            # Estimate tokens by characters: a token of the demo's texts has about five.
            count = max(1, 5 * budget // len(texts[order[0]]))
            vectors[order[:count]] = encode([texts[row] for row in order[:count]])
            order = order[count:]
        return vectors

    return {
        f"{budget} tokens a batch": partial(run, budget=budget) for budget in (TOKENS_PER_BATCH // 4, TOKENS_PER_BATCH)
    }


def _torch_encode(model: Any, shape: str) -> Callable[[Sequence[str]], Any]:  # noqa: ANN401
    """Return a function that encodes one batch: mean over visible tokens, normalised."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(models.checkpoint(shape))

    def encode(texts: Sequence[str]) -> Any:  # noqa: ANN401
        feeds = tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**feeds).last_hidden_state.float()
        visible = feeds["attention_mask"][:, :, None]
        pooled = (hidden * visible).sum(dim=1) / visible.sum(dim=1)
        return torch.nn.functional.normalize(pooled, dim=1).numpy()

    return encode


def _sizes(kind: str) -> tuple[int, ...]:
    return (8, 32) if kind == "passages" else (32, 128)


def make_sides(shape: str, kind: str) -> list[Side]:
    """Return our sides and the rivals."""
    return [
        Side("ours int8", ours, (shape, kind, "int8")),
        Side("ours fp32", ours, (shape, kind, "float32")),
        Side(REFERENCE, sentence_transformers, (shape, kind, "torch")),
        Side("sentence-transformers onnx", sentence_transformers, (shape, kind, "onnx")),
        Side("FastEmbed", fastembed, (shape, kind)),
        Side("optimum", optimum, (shape, kind)),
        Side("torch bf16 sorted", torch_sorted, (shape, kind)),
    ]


def make_texts(kind: str, count: int) -> list[str]:
    """Return the demo's questions, or passages of many lengths from the demo's words, in a fixed random order."""
    order = random.Random(1)
    if kind == "queries":
        questions = [query.text for query in read_demo_queries()]
        return order.sample(questions, count)
    words = [word for passage in read_demo_passages() for word in passage.text.split()]
    texts = []
    for number in range(count):
        tokens = MEDIAN * np.exp(SPREAD * NormalDist().inv_cdf((number + 0.5) / count))
        length = int(WORDS_PER_TOKEN * min(max(tokens, SHORTEST), LONGEST))
        start = order.randrange(len(words) - length)
        texts.append(" ".join(words[start : start + length]))
    order.shuffle(texts)
    return texts


def share_of_bound(shape: str, found: Measured, machines: Sequence[bound.Machine], tokens: Sequence[int]) -> str:
    """Return one of our sides' share of the lower bound in every round, in percent."""
    dtype = found.side.arguments[-1]
    shares = [
        100 * bound.encoding_seconds(machine, shapes.read_config(shape), dtype, tokens) / len(tokens) * rate
        for machine, rate in zip(machines, found.rates, strict=True)
    ]
    return spread(shares, 0)


def main() -> None:
    """Print one table for each shape, each kind of text and each number of cores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default=",".join(shapes.USUAL_ENCODERS))
    parser.add_argument("--kinds", default="passages,queries")
    parser.add_argument("--cores", default="1", help="such as 1,2")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs")
    parser.add_argument("--seconds", type=float, default=5.0, help="minimum time of a side in a run")
    parser.add_argument("--passages", type=int, default=64)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--only", default="*", help="sides to run, such as 'ours int8,torch*'")
    given = parser.parse_args()
    for shape in given.shapes.split(","):
        for kind in given.kinds.split(","):
            texts = make_texts(kind, getattr(given, kind))
            sides = select(make_sides(shape, kind), given.only)
            for cores in map(int, given.cores.split(",")):
                print(f"\n{shape}, {len(texts)} {kind}, {cores} cores, {given.runs} runs", flush=True)
                machine = Side("machine", bound.prepare_machine, once=True)
                measured = measure([machine, *sides], texts, cores, given.runs, given.seconds)
                _print(shape, kind, texts, measured)


def _print(shape: str, kind: str, texts: Sequence[str], measured: Sequence[Measured]) -> None:
    from tokenizers import Tokenizer

    machines, found = measured[0].results, measured[1:]
    tokenizer = Tokenizer.from_file(str(models.checkpoint(shape) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    tokens = [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]
    own = [side for side in found if side.side.prepare is ours]
    expected = next((side.results[-1] for side in found if side.side.name == REFERENCE), None)
    rows = []
    for side in found:
        is_ours = side in own
        cosines = [] if expected is None else (expected * side.results[-1]).sum(axis=1)
        rows.append([
            side.side.name, side.setting, spread(side.rates, 1),
            f"{np.min(cosines):.5f}, {np.mean(cosines):.5f}" if len(cosines) else "",
            share_of_bound(shape, side, machines, tokens) if is_ours else "",
            *("" if is_ours else spread(ratios(mine, side)) for mine in own),
        ])  # fmt: skip
    print(f"{kind} of {min(tokens)} to {max(tokens)} tokens, {np.mean(tokens):.0f} on average")
    compared = [f"{mine.side.name} is × as fast" for mine in own]
    print_table(["side", "setting", f"{kind}/s", "lowest and mean cosine", "% of the bound", *compared], rows)
    bound.print_machine(machines)


if __name__ == "__main__":
    main()
