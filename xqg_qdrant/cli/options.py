"""The options that several commands share, and the groups in which the help shows them."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from xqg_qdrant.cli.arguments import OVERWRITE
from xqg_qdrant.cli.terminal import ask

if TYPE_CHECKING:
    from xqg_qdrant.generation import Endpoint

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_STORE = "./xqg_data"
# In characters; a device such as /dev/zero has no end.
LONGEST_PROMPT = 1_000_000

# Heading in the help → the parameters below it, for `GroupedCommand`.
OPTION_GROUPS: dict[str, tuple[str, ...]] = {
    "Source": (
        *("text_field", "title_field", "id_field", "split", "split_tokens", "split_overlap"),
        *("dead_letters", "overwrite"),
        *("delete", "dry_run", "listed", "part", "newest_first"),
    ),
    "Their vector": ("vector", "replace", "no_queries", "undo"),
    "Models": ("encoder_folder", "generator_source"),
    "Language model": (
        *("model", "prompt", "concurrency", "price_per_million_input", "price_per_million_output"),
        *("max_tokens", "max_cost"),
    ),
    "Queries": (
        *("queries", "plain", "languages", "queries_per_language", "top_k", "temperature"),
        *("max_new_tokens", "vocabulary", "seed"),
    ),
    "Vectors": (
        "recipe_name",
        "fusion",
        "alpha",
        "renormalise",
        "calibrate",
        "gamma",
        "question_bank",
        "min_score",
        "no_min_score",
        "sparse",
        "quantisation",
    ),
    "Store": (
        *("collection", "name", "location", "out", "batch_out", "payload_layout", "alias", "no_snapshot"),
        *("shard_number", "replication_factor", "write_consistency_factor"),
    ),
    "Engine": ("device", "threads", "engine", "address", "num_workers"),
}


def add_options(options: Sequence[Callable[[F], F]], command: F) -> F:
    """Add options, in the order in which the help shows them."""
    for option in reversed(options):
        command = option(command)
    return command


def store_option(command: F) -> F:
    """Add --store, as `location`."""
    return click.option(
        "--store",
        "location",
        envvar=["XQG_STORE", "QDRANT_URL"],
        default=DEFAULT_STORE,
        show_default=True,
        help="DIR, local:DIR, :memory: or URL, its key in QDRANT_API_KEY.",
    )(command)


def collection_option(**settings: Any) -> Callable[[F], F]:
    """Return a decorator that adds --collection."""
    return click.option("--collection", metavar="NAME", help="Name of the collection.", **settings)


def encoder_settings_options(command: F) -> F:
    """Add the pooling, prefixes and lengths of an encoder."""
    options = (
        click.option(
            "--pooling", type=click.Choice(["cls", "mean", "last"]), help="Encoder: pooling.  [default: the files']"
        ),
        click.option("--normalise/--no-normalise", default=None, help="Encoder: scale vectors to length 1."),
        click.option("--query-prefix", help="Encoder: text before each query, such as 'query: '."),
        click.option("--passage-prefix", help="Encoder: text before each passage, such as 'passage: '."),
        click.option("--max-query-tokens", type=click.IntRange(4), help="Encoder: longest query."),
        click.option("--max-passage-tokens", type=click.IntRange(4), help="Encoder: longest passage."),
    )
    return add_options(options, command)


def generator_settings_options(command: F) -> F:
    """Add the prompt, languages and sampling defaults of a generator."""
    above_zero = click.FloatRange(min=0, min_open=True)
    options = (
        click.option("--prompt", help="Generator: template with {text}; {title} and {language} are optional."),
        click.option("--languages", help="Generator: languages it writes, such as ar,bn,fi,ja,ko,ru,te."),
        click.option("--max-input-tokens", type=click.IntRange(4), help="Generator: longest prompt.  [default: 256]"),
        click.option("--top-k", type=click.IntRange(1), help="Generator: sampling default.  [default: 10]"),
        click.option("--temperature", type=above_zero, help="Generator: sampling default.  [default: 1]"),
        click.option("--max-new-tokens", type=click.IntRange(1), help="Generator: longest query.  [default: 32]"),
    )
    return add_options(options, command)


def encoder_option(command: F) -> F:
    """Add --encoder, as `encoder_folder`, by default the collection's."""
    return _encoder_option("the collection's, else the demo encoder")(command)


def demo_encoder_option(command: F) -> F:
    """Add --encoder, as `encoder_folder`, by default the demo encoder."""
    return _encoder_option("the demo encoder")(command)


def _encoder_option(default: str) -> Callable[[F], F]:
    return click.option(
        "--encoder",
        "encoder_folder",
        type=click.Path(path_type=Path),
        help=f"Model folder of the encoder.  [default: {default}]",
    )


def generator_option(command: F) -> F:
    """Add --generator and the settings of a language model; the command gets them as one `generator_source`.

    The source is a path, an `Endpoint` if the generator is a URL, or None.
    """

    @functools.wraps(command)
    def with_source(*arguments: Any, generator_source: str | None, **settings: Any) -> Any:  # noqa: ANN401
        given = {name: settings.pop(name) for name in OPTION_GROUPS["Language model"]}
        return command(*arguments, generator_source=make_source(generator_source, given), **settings)

    limit = click.FloatRange(min=0, min_open=True)
    options = (
        click.option(
            "--generator",
            "generator_source",
            metavar="PATH|URL",
            help="Model folder, lexicon, or URL of a language model.  [default: the demo model]",
        ),
        click.option("--model", help="Name of the language model at the URL, such as qwen3:4b."),
        click.option(
            "--prompt",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="File with {title}, {text}, {languages} and {count}.  [default: the shipped prompt]",
        ),
        click.option("--concurrency", type=click.IntRange(1), help="Calls of the model at once.  [default: 8]"),
        click.option("--price-per-million-input", type=limit, help="Price of a million tokens of prompts."),
        click.option("--price-per-million-output", type=limit, help="Price of a million tokens of replies."),
        click.option("--max-tokens", type=click.IntRange(1), help="Stop after this many tokens, in and out."),
        click.option("--max-cost", type=limit, help="Stop at this cost, by the prices."),
    )
    return add_options(options, with_source)  # type: ignore[return-value]


def make_source(generator: str | None, settings: Mapping[str, Any]) -> Path | Endpoint | None:
    """Return the generator that the options name, with those settings of a language model that were given.

    Raises:
        UsageError: a setting is given without a URL, or a URL without a model.
    """
    from xqg_qdrant.generation import Endpoint

    given = {name: value for name, value in settings.items() if value is not None}
    if generator is None or not re.match(r"https?://", generator, re.IGNORECASE):
        for name in given:
            raise click.UsageError(f"--{name.replace('_', '-')} needs a URL as the --generator.")
        return None if generator is None else Path(generator)
    if "model" not in given:
        raise click.UsageError("A URL as the --generator needs --model.")
    if "max_cost" in given and not any(name.startswith("price") for name in given):
        raise click.UsageError("--max-cost needs --price-per-million-input or --price-per-million-output.")
    renamed = {"price_per_million_input": "price_in", "price_per_million_output": "price_out"}
    if "prompt" in given:
        try:
            with given["prompt"].open(encoding="utf-8") as file:
                given["prompt"] = file.read(LONGEST_PROMPT + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"The --prompt cannot be read: {error}.") from error
        if len(given["prompt"]) > LONGEST_PROMPT:
            raise click.UsageError(f"The --prompt has more than {LONGEST_PROMPT:,} characters.")
    return Endpoint(generator, **{renamed.get(name, name): value for name, value in given.items()})


def queries_option(command: F) -> F:
    """Add --queries."""
    return click.option(
        "--queries",
        metavar="corpus|PATH",
        help="Use queries from FILE (corpus) or from a JSONL file instead of generating them.",
    )(command)


def qrels_option(command: F) -> F:
    """Add --qrels."""
    return click.option(
        "--qrels",
        type=click.Path(path_type=Path),
        help="Judgements, or questions in the passages' language.  [default: with the questions]",
    )(command)


def language_option(command: F) -> F:
    """Add --language."""
    return click.option(
        "--language", default="", help="Language of the input, where neither rows nor file name state it."
    )(command)


def questions_option(command: F) -> F:
    """Add --questions."""
    return click.option(
        "--questions",
        type=click.Path(path_type=Path),
        multiple=True,
        help="Questions: a file, a BEIR folder, or ir_datasets:ID. Repeatable.",
    )(command)


def asked_options(command: F) -> F:
    """Add --questions, --qrels and --language."""
    return add_options([questions_option, qrels_option, language_option], command)


def field_options(command: F) -> F:
    """Add --id-field and --text-field."""
    options = (
        click.option("--id-field", help="Field of the passage id.  [default: id, _id, passage_id, pid or docid]"),
        click.option("--text-field", help="Field of the text.  [default: text, contents or passage]"),
    )
    return add_options(options, command)


class Splitting(NamedTuple):
    """How documents are to be split; None is the default."""

    tokens: int | None
    overlap: int | None


def split_options(command: F) -> F:
    """Add --split and its settings; the command gets them as one `splitting`, None without --split."""

    @functools.wraps(command)
    def with_splitting(
        *arguments: Any,
        split: bool,
        split_tokens: int | None,
        split_overlap: int | None,
        **settings: Any,
    ) -> Any:  # noqa: ANN401
        splitting = Splitting(split_tokens, split_overlap)
        if not split and splitting != (None, None):
            raise click.UsageError("--split-tokens and --split-overlap need --split.")
        return command(*arguments, splitting=splitting if split else None, **settings)

    options = (
        click.option("--split", is_flag=True, help="Split documents into passages that the encoder reads in full."),
        click.option(
            "--split-tokens",
            type=click.IntRange(1),
            help="Longest passage, in the encoder's tokens.  [default: all that it reads]",
        ),
        click.option(
            "--split-overlap",
            type=click.IntRange(0),
            help="Tokens that the next passage repeats.  [default: an eighth of a passage]",
        ),
    )
    return add_options(options, with_splitting)  # type: ignore[return-value]


def overwrite_option(command: F) -> F:
    """Add --overwrite, for `arguments.overwrites`."""

    def keep(context: click.Context, _parameter: click.Parameter, given: bool) -> None:
        context.meta[OVERWRITE] = given

    return click.option(
        "--overwrite",
        is_flag=True,
        expose_value=False,
        callback=keep,
        help="Replace existing files that xqg did not write; inputs are never replaced.",
    )(command)


def dead_letters_option(command: F) -> F:
    """Add --dead-letters and --overwrite."""
    letters = click.option(
        "--dead-letters",
        type=click.Path(path_type=Path),
        help="File of rejected rows, rewritten by each run.  [default: ./NAME.rejected.jsonl]",
    )
    return letters(overwrite_option(command))


def fusion_options(command: F) -> F:
    """Add the options of `Fusion`, each None by default."""
    options = (
        click.option(
            "--fusion",
            type=click.Choice(["sum", "mean"]),
            help="sum is the paper's; mean suits normalised encoders.  [default: by the encoder]",
        ),
        click.option(
            "--alpha",
            type=float,
            help="Weight of the queries, 0 to 1.  [default: 0.4 with mean, 0.01 with sum]",
        ),
        click.option(
            "--renormalise/--no-renormalise",
            default=None,
            help="Keep the plain vector's length.  [default: for normalised encoders]",
        ),
        click.option(
            "--min-score",
            type=float,
            help="Exclude queries whose dot product with the passage is lower; still stored.",
        ),
        click.option(
            "--calibrate/--no-calibrate",
            default=None,
            help="Move hubs away with a bank of questions.  [default: by the encoder]",
        ),
        click.option("--gamma", type=float, help="Weight of the calibration.  [default: 0.5]"),
        click.option(
            "--question-bank",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="Bank to calibrate with, JSONL of lang and question.  [default: the shipped one]",
        ),
    )
    return add_options(options, command)


def languages_option(command: F) -> F:
    """Add --languages."""
    return click.option(
        "--languages", help="Languages of generated queries, such as ar,ja,ru.  [default: the generator's]"
    )(command)


def recipe_option(command: F) -> F:
    """Add --recipe."""
    return click.option(
        "--recipe",
        "recipe_name",
        type=click.Choice(["auto", "paper"]),
        default="auto",
        show_default=True,
        help="Default settings: by the encoder, or as published.",
    )(command)


def recipe_options(command: F) -> F:
    """Add the options of a recipe, by the names of its settings."""
    options = (
        languages_option,
        click.option(
            "--queries-per-language", type=int, help="Generated queries per language.  [default: 3, or the paper's 5]"
        ),
        recipe_option,
        fusion_options,
        drawing_options,
    )
    return add_options(options, command)


def drawing_options(command: F) -> F:
    """Add the options of how a generator draws, by the names of `DRAWING`."""
    options = (
        click.option(
            "--top-k", type=int, help="Sample among the k likeliest tokens; 1 is greedy.  [default: the model's]"
        ),
        click.option("--temperature", type=float, help="Sampling temperature.  [default: the model's]"),
        click.option("--max-new-tokens", type=int, help="Longest query, in tokens.  [default: the model's]"),
        click.option(
            "--vocabulary",
            type=click.Choice(["full", "restricted"]),
            help="Sample from all tokens, or the language's.  [default: restricted, if exported]",
        ),
        click.option("--seed", type=int, help="Seed of the sampling.  [default: 0]"),
    )
    return add_options(options, command)


def _parse_part(_context: click.Context, _parameter: click.Parameter, part: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", part)
    if found is None or int(found[1]) > int(found[2]):
        raise click.BadParameter(f"{part!r} is no part, such as 2/8.")
    return int(found[1]), int(found[2])


def part_option(command: F) -> F:
    """Add --part, as the number of the part and of all parts."""
    return click.option(
        "--part",
        metavar="K/N",
        default="1/1",
        callback=_parse_part,
        help="Do the K-th of N equal parts; run the others elsewhere.  [default: all]",
    )(command)


def sparse_option(command: F) -> F:
    """Add --sparse."""
    return click.option("--sparse", is_flag=True, help="Also store terms, for --rank hybrid.")(command)


def quantisation_option(command: F) -> F:
    """Add --quantisation."""
    return click.option(
        "--quantisation",
        type=click.Choice(["int8"]),
        help="Index 8-bit codes, a quarter of the size; rescore the best with full vectors.",
    )(command)


def _check_device(_context: click.Context, _parameter: click.Parameter, device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,2})?", device):
        raise click.BadParameter(f"{device!r} is not one of auto, cpu, cuda, cuda:0, cuda:1, …")
    return device


def device_option(command: F) -> F:
    """Add --device."""
    return click.option(
        "--device",
        metavar="auto|cpu|cuda|cuda:N",
        callback=_check_device,
        default="auto",
        show_default=True,
        help="Where models run: cuda is all GPUs, cuda:N one, both without fallback.",
    )(command)


def device_options(command: F) -> F:
    """Add --device and --threads."""
    threads = click.option("--threads", type=click.IntRange(min=0), default=0, help="CPU threads.  [default: all]")
    return device_option(threads(command))


def workers_option(command: F) -> F:
    """Add --threads for commands that process one chunk of passages per thread."""
    return click.option(
        "--threads",
        type=click.IntRange(min=0),
        default=0,
        help="Chunks of passages processed at once.  [default: one per core]",
    )(command)


def test_option(command: F) -> F:
    """Add --test."""
    return click.option(
        "--test",
        type=click.Choice(["randomisation", "t", "mcnemar"]),
        default="randomisation",
        show_default=True,
        help="Paired test; t is the paper's, mcnemar for hits and misses.",
    )(command)


def json_option(command: F) -> F:
    """Add --json, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def save_option(command: F) -> F:
    """Add --save."""
    return click.option(
        "--save",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="Save figures, runs and settings here, for xqg compare and xqg report.",
    )(command)


def confirm(question: str, yes: bool) -> None:
    """Ask before an irreversible step, unless --yes was given.

    Raises:
        UsageError: standard input is no terminal, so nobody can answer.
        Abort: the answer is no.
    """
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise click.UsageError(f"{question} Give --yes to confirm.")
    if not ask(question):
        raise click.Abort


def yes_option(command: F) -> F:
    """Add --yes."""
    return click.option("--yes", is_flag=True, help="Do not ask for confirmation.")(command)
