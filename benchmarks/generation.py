"""Compare queries generated per second by xqg and other libraries, from texts to texts, encoder included."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import fmean
from typing import Any

import bound
import models
import numpy as np
import shapes
from harness import Measured, Pass, Side, measure, print_table, ratios, select, spread

from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.generation import onnx as generator
from xqg_qdrant.inference.decoding import Ids, Noise, Step, decode
from xqg_qdrant.languages import LANGUAGES
from xqg_qdrant.records import Passage

SAMPLES = 5
TOP_K = 10
# Tokens of a query of fixed length; mixed lengths: from the fifth token on, 1 in 12 ends it, at the latest the 28th.
FIXED = 14
LEAST, MOST, ENDING = 4, 28, 0.083
ROUND_SECONDS = 10.0


def ours(cores: int, shape: str, dtype: str, mixed: bool, language_tokens: bool, restricted: bool) -> dict[str, Pass]:
    """Run xqg with one worker thread a core, as an ingest does."""
    folder = models.exported(shape, dtype, language_tokens, restricted)
    writer = generator.QueryGenerator(folder, device="cpu", threads=1)
    sampling = writer.sampling._replace(top_k=TOP_K, max_new_tokens=MOST if mixed else FIXED)
    if mixed:
        _end_early()

    def run(passages: Sequence[Passage]) -> None:
        with ThreadPoolExecutor(cores) as pool:
            parts = [passages[number::cores] for number in range(cores)]
            list(pool.map(lambda part: writer.generate(part, shapes.LANGUAGES, SAMPLES, 0, sampling), parts))

    return {"": run}


class _EndingStep:
    """A decoder step that ends each row at its drawn length."""

    def __init__(self, step: Step, lengths: Ids) -> None:
        self._step, self._lengths, self._done = step, lengths, 0

    def __call__(self, ids: Ids, noise: Noise) -> Ids:
        self._done += 1
        return np.where(self._lengths <= self._done, shapes.END_ID, self._step(ids, noise))

    def keep(self, places: Ids) -> None:
        self._lengths = self._lengths[places]
        self._step.keep(places)


def _end_early() -> None:
    """Make every query end at a drawn length, since random weights would end them at random."""
    random = np.random.default_rng(1)

    def end_early(step: Step, first_ids: Ids, noise: Noise, end_id: int) -> list[list[int]]:
        return decode(_EndingStep(step, _draw_lengths(random, len(first_ids))), first_ids, noise, end_id)

    generator.decode = end_early


def transformers_torch(cores: int, shape: str, dtype: str, mixed: bool) -> dict[str, Pass]:
    """Run transformers' generate, which encodes a prompt once for all its samples."""
    import torch
    import transformers

    torch.set_num_threads(cores)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(models.checkpoint(shape), dtype=getattr(torch, dtype))
    return _transformers_passes(model.eval(), shape, mixed, sizes=(8, 16, 32))


def optimum(cores: int, shape: str, mixed: bool) -> dict[str, Pass]:
    """Run optimum's ORTModelForSeq2SeqLM under transformers' generate."""
    import onnxruntime
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    model = ORTModelForSeq2SeqLM.from_pretrained(
        models.optimum_model(shape), use_merged=False, use_io_binding=False, session_options=options
    )
    return _transformers_passes(model, shape, mixed, sizes=(8, 16, 32))


def _transformers_passes(model: Any, shape: str, mixed: bool, sizes: Sequence[int]) -> dict[str, Pass]:  # noqa: ANN401
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(models.checkpoint(shape))
    random = np.random.default_rng(1)

    def run(passages: Sequence[Passage], size: int) -> float:
        counts: list[int] = []
        for prompts in _batches(_prompts(passages), size):
            feeds = tokenizer(prompts, padding=True, return_token_type_ids=False, return_tensors="pt")
            lengths = _draw_lengths(random, len(prompts) * SAMPLES)
            with torch.inference_mode():
                ids = model.generate(
                    **feeds, do_sample=True, top_k=TOP_K, num_return_sequences=SAMPLES,
                    max_new_tokens=MOST if mixed else FIXED,
                    logits_processor=[partial(_end_rows, lengths)] if mixed else [],
                )  # fmt: skip
            tokenizer.batch_decode(ids, skip_special_tokens=True)
            counts.extend((ids[:, 1:] != 0).sum(dim=1).tolist())
        return fmean(counts)

    return {f"{size} prompts a batch": partial(run, size=size) for size in sizes}


def _end_rows(lengths: Any, ids: Any, scores: Any) -> Any:  # noqa: ANN401
    """End rows that have reached their length; `ids` holds those so far, with the first."""
    ended = np.flatnonzero(lengths <= ids.shape[1])
    scores[ended] = -np.inf
    scores[ended, shapes.END_ID] = 0
    return scores


def ctranslate2(cores: int, shape: str, dtype: str, mixed: bool) -> dict[str, Pass]:
    """Run CTranslate2, with samples as hypotheses of one prompt or as repeated prompts.

    It has no option for the length of each query. For mixed lengths, a random part of the vocabulary ends a query, so
    that the mean length is the same.
    """
    import ctranslate2 as engine
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(models.checkpoint(shape) / "tokenizer.json"))
    folder = str(models.ctranslate2_model(shape, dtype))
    translators = {
        f"{workers} × {threads} threads": engine.Translator(
            folder, compute_type=dtype, inter_threads=workers, intra_threads=threads
        )
        for workers, threads in sorted({(1, cores), (cores, 1)})
    }
    words = tokenizer.get_vocab_size()
    ends = np.random.default_rng(1).choice(np.arange(200, words), int(ENDING * words), replace=False)
    if mixed:
        limits = {"min_decoding_length": LEAST, "max_decoding_length": MOST, "end_token": ends.tolist()}
    else:
        limits = {"min_decoding_length": FIXED, "max_decoding_length": FIXED}

    def run(passages: Sequence[Passage], translator: Any, size: int, hypotheses: int) -> float:  # noqa: ANN401
        encodings = tokenizer.encode_batch(_prompts(passages))
        prompts = [encoding.tokens for encoding in encodings for _ in range(SAMPLES // hypotheses)]
        found = translator.translate_batch(
            prompts, max_batch_size=size, beam_size=1, num_hypotheses=hypotheses, sampling_topk=TOP_K, **limits
        )
        rows = [[tokenizer.token_to_id(token) for token in row] for result in found for row in result.hypotheses]
        tokenizer.decode_batch(rows)
        return fmean(map(len, rows)) + mixed

    return {
        f"{threads}, {size} prompts a batch, {form}": partial(run, translator=translator, size=size, hypotheses=count)
        for threads, translator in translators.items()
        for form, count, size in (("hypotheses", SAMPLES, 8), ("hypotheses", SAMPLES, 16), ("repeated", 1, 64))
    }


def _prompts(passages: Sequence[Passage]) -> list[str]:
    """Return every passage's prompt in every language, sorted by length."""
    prompts = [
        shapes.PROMPT.replace("{language}", LANGUAGES[language].name)
        .replace("{title}", passage.title)
        .replace("{text}", passage.text)
        for passage in passages
        for language in shapes.LANGUAGES
    ]
    return sorted(prompts, key=len)


def _batches(prompts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (prompts[start : start + size] for start in range(0, len(prompts), size))


def _draw_lengths(random: np.random.Generator, rows: int) -> Any:  # noqa: ANN401
    """Return the lengths of mixed queries, shuffled; the same ones for the same number of rows."""
    places = (random.permutation(rows) + 0.5) / rows
    return np.minimum(MOST, LEAST + np.ceil(np.log(1 - places) / np.log(1 - ENDING))).astype(np.int64)


def make_sides(shape: str, mixed: bool) -> list[Side]:
    """Return our sides and the rivals."""
    own = [
        ("ours int8", "int8", False, False),
        ("ours int8 by first token", "int8", True, False),
        ("ours int8 restricted", "int8", False, True),
        ("ours fp32", "float32", False, False),
    ]
    return [
        *(Side(name, ours, (shape, dtype, mixed, tokens, some)) for name, dtype, tokens, some in own),
        Side("transformers fp32", transformers_torch, (shape, "float32", mixed)),
        Side("transformers bf16", transformers_torch, (shape, "bfloat16", mixed)),
        Side("optimum fp32", optimum, (shape, mixed)),
        Side("CTranslate2 fp32", ctranslate2, (shape, "float32", mixed)),
        Side("CTranslate2 int8", ctranslate2, (shape, "int8", mixed)),
    ]


def share_of_bound(shape: str, found: Measured, machines: Sequence[bound.Machine], passages: Sequence[Passage]) -> str:
    """Return one of our sides' share of the lower bound in every round, in percent.

    The bound is for the full vocabulary, so a restricted one has none.
    """
    from tokenizers import Tokenizer

    _, dtype, mixed, language_tokens, restricted = found.side.arguments
    if restricted:
        return ""
    tokenizer = Tokenizer.from_file(str(models.checkpoint(shape) / "tokenizer.json"))
    texts = [f"{passage.title} {passage.text}" for passage in passages] if language_tokens else _prompts(passages)
    queries = len(shapes.LANGUAGES) * SAMPLES
    new_tokens = fmean(_draw_lengths(np.random.default_rng(1), 100_000)) if mixed else FIXED
    shares = []
    for machine, rate in zip(machines, found.rates, strict=True):
        least = bound.generation_seconds(
            machine, shapes.read_config(shape), dtype, fmean(map(len, tokenizer.encode_batch(texts))), new_tokens,
            samples=queries if language_tokens else SAMPLES, rows=len(passages) * queries,
            vocabulary=shapes.read_config(shape)["vocab_size"],
        )  # fmt: skip
        shares.append(100 * least * rate * queries)
    return spread(shares, 0)


def main() -> None:
    """Print one table for each number of cores and each kind of lengths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="mt5-small-32k", choices=shapes.GENERATORS)
    parser.add_argument("--cores", default="1", help="such as 1,2")
    parser.add_argument("--lengths", default="F14,D14", help="F14: 14 tokens a query; D14: 5 to 28, 14.5 on average")
    parser.add_argument("--runs", type=int, default=5, help="alternating runs")
    parser.add_argument("--seconds", type=float, default=ROUND_SECONDS, help="minimum time of a side in a run")
    parser.add_argument("--passages", type=int, default=8)
    parser.add_argument("--only", default="*", help="sides to run, such as 'ours int8,CTranslate2*'")
    given = parser.parse_args()
    passages = read_demo_passages()
    passages = passages[:: len(passages) // given.passages][: given.passages]
    for lengths in given.lengths.split(","):
        sides = select(make_sides(given.shape, lengths == "D14"), given.only)
        for cores in map(int, given.cores.split(",")):
            print(f"\n{given.shape}, {lengths}, {cores} cores, {len(passages)} passages, {given.runs} runs", flush=True)
            machine, *found = measure(
                [Side("machine", bound.prepare_machine, once=True), *sides], passages, cores, given.runs, given.seconds
            )
            _print(given.shape, found, machine.results, passages)


def _print(
    shape: str, found: Sequence[Measured], machines: Sequence[bound.Machine], passages: Sequence[Passage]
) -> None:
    own = [measured for measured in found if measured.side.prepare is ours]
    rows = []
    for measured in found:
        rates = [rate * len(shapes.LANGUAGES) * SAMPLES for rate in measured.rates]
        tokens = measured.results[-1]
        is_ours = measured in own
        rows.append([
            measured.side.name, measured.setting, spread(rates, 1), "" if tokens is None else f"{tokens:.1f}",
            share_of_bound(shape, measured, machines, passages) if is_ours else "",
            *("" if is_ours else spread(ratios(side, measured)) for side in own),
        ])  # fmt: skip
    compared = [f"{measured.side.name} is × as fast" for measured in own]
    print_table(["side", "setting", "queries/s", "tokens a query", "% of the bound", *compared], rows)
    bound.print_machine(machines)


if __name__ == "__main__":
    main()
