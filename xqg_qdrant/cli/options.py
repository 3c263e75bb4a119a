"""The options that several commands share."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from xqg_qdrant.cli.terminal import ask

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_STORE = "./xqg_data"


def add_options(options: Sequence[Callable[[F], F]], command: F) -> F:
    """Add options, which the help shows in this order."""
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
        help="Where the collection lives: a directory (embedded), edge:DIR, local:DIR, :memory:, or a server's URL "
        "(with its key in QDRANT_API_KEY).",
    )(command)


def collection_option(**settings: Any) -> Callable[[F], F]:
    """Return what adds --collection."""
    return click.option("--collection", metavar="NAME", help="The collection's name.", **settings)


def encoder_settings_options(command: F) -> F:
    """Add how an encoder turns tokens into a vector, and what it puts before a text."""
    options = (
        click.option(
            "--pooling", type=click.Choice(["cls", "mean", "last"]), help="Encoder: pooling, where no file tells it."
        ),
        click.option("--normalise/--no-normalise", default=None, help="Encoder: vectors of length 1."),
        click.option("--query-prefix", help="Encoder: text before each query, such as 'query: '."),
        click.option("--passage-prefix", help="Encoder: text before each passage, such as 'passage: '."),
        click.option("--max-query-tokens", type=click.IntRange(4), help="Encoder: longest query."),
        click.option("--max-passage-tokens", type=click.IntRange(4), help="Encoder: longest passage."),
    )
    return add_options(options, command)


def generator_settings_options(command: F) -> F:
    """Add how a generator is asked and how it samples by default."""
    prompt = "Generator: template with {text}, and if the model wants them {title} and {language}."
    languages = "Generator: the languages it writes, such as ar,bn,fi,ja,ko,ru,te."
    above_zero = click.FloatRange(min=0, min_open=True)
    options = (
        click.option("--prompt", help=prompt),
        click.option("--languages", help=languages),
        click.option("--max-input-tokens", type=click.IntRange(4), help="Generator: longest prompt.  [default: 256]"),
        click.option("--top-k", type=click.IntRange(1), help="Generator: sampling default.  [default: 10]"),
        click.option("--temperature", type=above_zero, help="Generator: sampling default.  [default: 1]"),
        click.option("--max-new-tokens", type=click.IntRange(1), help="Generator: longest query.  [default: 32]"),
    )
    return add_options(options, command)


def encoder_option(command: F) -> F:
    """Add --encoder, as `encoder_folder`."""
    return click.option(
        "--encoder",
        "encoder_folder",
        type=click.Path(path_type=Path),
        help="Model folder of the encoder.  [default: the demo encoder]",
    )(command)


def generator_option(command: F) -> F:
    """Add --generator, as `generator_folder`."""
    return click.option(
        "--generator",
        "generator_folder",
        type=click.Path(path_type=Path),
        help="Model folder of the generator, or a lexicon: a file of lines of language, words and translation with "
        "tabs between.  [default: the demo generator]",
    )(command)


def queries_option(command: F) -> F:
    """Add --queries."""
    return click.option(
        "--queries",
        metavar="corpus|PATH",
        help="Generate none, take queries that are there: corpus for the field generated_queries of FILE, or a JSONL "
        "file of rows {id, language, text} in any order.",
    )(command)


def questions_option(command: F) -> F:
    """Add --questions."""
    return click.option(
        "--questions",
        type=click.Path(path_type=Path),
        multiple=True,
        help="Questions: a file of any format told in the docs, a BEIR folder, or ir_datasets:ID. May be given again.",
    )(command)


def qrels_option(command: F) -> F:
    """Add --qrels."""
    return click.option(
        "--qrels",
        type=click.Path(path_type=Path),
        help="Judgements, or the file of the same questions in the passages' language.  "
        "[default: those in or beside the questions]",
    )(command)


def language_option(command: F) -> F:
    """Add --language."""
    return click.option(
        "--language", default="", help="Language of what is read, where neither its rows nor the file's name tell it."
    )(command)


def id_field_option(command: F) -> F:
    """Add --id-field."""
    return click.option("--id-field", help="Field of the passage id, where it is none of id, _id, passage_id, docid.")(
        command
    )


def dead_letters_option(command: F) -> F:
    """Add --dead-letters."""
    return click.option(
        "--dead-letters",
        type=click.Path(path_type=Path),
        help="File for the rows that were rejected, rewritten by each run.  [default: ./NAME.rejected.jsonl]",
    )(command)


def fusion_options(command: F) -> F:
    """Add --fusion, --alpha, --renormalise and --min-score, each None where it is not given."""
    fusion = click.option(
        "--fusion",
        type=click.Choice(["sum", "mean"]),
        help="sum is as published; mean makes alpha independent of the number of queries.",
    )
    alpha = click.option(
        "--alpha",
        type=float,
        help="Weight of the generated queries, from 0 to 1: 0.01 as published; with --fusion mean try 0.2.",
    )
    renormalise = click.option(
        "--renormalise/--no-renormalise",
        default=None,
        help="Give augmented vectors the length of the plain ones; for encoders made for cosine. Not so published.",
    )
    min_score = click.option(
        "--min-score",
        type=float,
        help="Queries whose dot product with their passage's vector is below this are stored, but take no part.",
    )
    return fusion(alpha(renormalise(min_score(command))))


def languages_option(command: F) -> F:
    """Add --languages."""
    return click.option(
        "--languages", help="Languages to generate queries in, such as ar,ja,ru.  [default: all the generator's]"
    )(command)


def recipe_options(command: F) -> F:
    """Add the options of a recipe, by the names of its settings."""
    options = (
        languages_option,
        click.option("--queries-per-language", type=int, help="Queries generated a language.  [default: 5]"),
        fusion_options,
        click.option(
            "--top-k", type=int, help="Sample among the k most probable tokens; 1 is greedy.  [default: the model's]"
        ),
        click.option("--temperature", type=float, help="Sampling temperature.  [default: the model's]"),
        click.option("--max-new-tokens", type=int, help="Longest query, in tokens.  [default: the model's]"),
        click.option(
            "--vocabulary",
            type=click.Choice(["full", "restricted"]),
            help="Draw from all tokens, or from those that the language is written in, where the generator was "
            "exported with --restrict-vocabulary.  [default: restricted, where it was]",
        ),
        click.option("--seed", type=int, help="Seed of the sampling.  [default: 0]"),
    )
    return add_options(options, command)


def quantisation_option(command: F) -> F:
    """Add --quantisation."""
    return click.option(
        "--quantisation",
        type=click.Choice(["int8"]),
        help="Index int8 codes, a quarter of the size; the best are scored again with the stored vectors.",
    )(command)


def _check_device(_context: click.Context, _parameter: click.Parameter, device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,2})?", device):
        raise click.BadParameter(f"{device!r} is none of auto, cpu, cuda, cuda:0, cuda:1, …")
    return device


def device_option(command: F) -> F:
    """Add --device."""
    return click.option(
        "--device",
        metavar="auto|cpu|cuda|cuda:N",
        callback=_check_device,
        default="auto",
        show_default=True,
        help="Where the models run: auto, cpu, cuda for all GPUs, cuda:N for one; cuda fails rather than fall back.",
    )(command)


def device_options(command: F) -> F:
    """Add --device and --threads."""
    threads = click.option("--threads", type=click.IntRange(min=0), default=0, help="CPU threads.  [default: all]")
    return device_option(threads(command))


def workers_option(command: F) -> F:
    """Add --threads of an ingest, whose workers are the threads."""
    return click.option(
        "--threads",
        type=click.IntRange(min=0),
        default=0,
        help="CPU threads: as many chunks of passages are in work at once.  [default: one a core]",
    )(command)


def test_option(command: F) -> F:
    """Add --test."""
    return click.option(
        "--test",
        type=click.Choice(["randomisation", "t", "mcnemar"]),
        default="randomisation",
        show_default=True,
        help="Paired test of a difference: randomisation, Student's t as in the paper, or McNemar's for hits and "
        "misses.",
    )(command)


def json_option(command: F) -> F:
    """Add --json, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")(command)


def save_option(command: F) -> F:
    """Add --save."""
    return click.option(
        "--save",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="Keep the figures, the runs and what made them in this folder, for xqg compare and xqg report.",
    )(command)


def confirm(question: str, yes: bool) -> None:
    """Ask before what cannot be undone; `yes` is the answer that --yes gives.

    Raises:
        UsageError: there is nobody to ask.
        Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Give --yes to go on without being asked.")
    if not ask(question):
        raise click.Abort


def yes_option(command: F) -> F:
    """Add --yes."""
    return click.option("--yes", is_flag=True, help="Do not ask.")(command)
