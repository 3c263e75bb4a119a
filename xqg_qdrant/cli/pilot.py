"""`xqg pilot` and `xqg estimate`: before a whole corpus is ingested, whether it is worth it, and what it takes."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xqg_qdrant.cli.options import (
    EVALUATION_DEPTH,
    F,
    device_option,
    encoder_option,
    generator_option,
    id_field_option,
    json_option,
    language_option,
    languages_option,
    qrels_option,
    questions_option,
    save_option,
    workers_option,
)
from xqg_qdrant.cli.shared import echo_report, given_command, load_encoder, load_generator, main, opened_store
from xqg_qdrant.cli.terminal import echo

if TYPE_CHECKING:
    from xqg_qdrant.augmentation.recipe import Recipe
    from xqg_qdrant.evaluation.pilot import Cost, Sample
    from xqg_qdrant.generation.lexicon import Lexicon
    from xqg_qdrant.generation.onnx import QueryGenerator
    from xqg_qdrant.inference.encoder import Encoder
    from xqg_qdrant.stores import Store

TRIAL = "trial"
# On a GPU a minute may take so many; in memory they are some tens of megabytes.
PASSAGES_OF_A_MINUTE = 20_000
MINUTE = 60.0

price_option = click.option(
    "--price-per-hour", type=click.FloatRange(min=0), help="What an hour of this machine costs, in any currency."
)
sample_seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Decides what is drawn.")


def queries_per_language_option(least: int) -> Callable[[F], F]:
    """Return what adds --queries-per-language."""
    return click.option(
        "--queries-per-language",
        type=click.IntRange(min=least),
        default=5,
        show_default=True,
        help="Queries generated a language.",
    )


@main.command()
@click.argument("file")
@price_option
@encoder_option
@generator_option
@languages_option
@queries_per_language_option(1)
@id_field_option
@sample_seed_option
@json_option
@device_option
@workers_option
@click.pass_obj
def estimate(
    quiet: bool,
    /,
    file: str,
    price_per_hour: float | None,
    encoder_folder: Path | None,
    generator_folder: Path | None,
    languages: str | None,
    queries_per_language: int,
    id_field: str | None,
    seed: int,
    as_json: bool,
    device: str,
    threads: int,
) -> None:
    """Tell what an ingest of FILE takes on this machine: time, disk, money.

    The corpus is read once. Passages drawn from it at random are really ingested for up to a minute, into a collection
    of the embedded store that is removed again.
    """
    sample = _draw(file, id_field, PASSAGES_OF_A_MINUTE, seed, quiet)
    encoder, generator = load_encoder(encoder_folder, device, 1), load_generator(generator_folder, device, 1)
    recipe = _make_recipe(generator, languages, queries_per_language)
    with _ingested(sample, encoder, generator, recipe, threads, MINUTE, quiet) as (_, cost):
        pass
    if as_json:
        echo(json.dumps(cost.to_json(price_per_hour), indent=2))
    else:
        echo(f"{_describe_corpus(file, sample)}\n{_describe_cost(cost, recipe, encoder.device, price_per_hour)}")


def _draw(file: str, id_field: str | None, size: int, seed: int, quiet: bool, wanted: Container[str] = ()) -> Sample:
    from xqg_qdrant.cli.progress import count_read
    from xqg_qdrant.corpus.formats import count_rows
    from xqg_qdrant.corpus.passages import read_passages
    from xqg_qdrant.evaluation.pilot import draw_sample

    total = None if quiet else count_rows(file)
    return draw_sample(count_read(read_passages(file, id_field=id_field), total, quiet), size, seed, wanted)


def _make_recipe(generator: QueryGenerator | Lexicon, languages: str | None, queries_per_language: int) -> Recipe:
    from xqg_qdrant.augmentation.recipe import make_recipe
    from xqg_qdrant.languages import parse_languages

    named = parse_languages(languages, generator.languages) if languages is not None else ()
    return make_recipe(generator, named, queries_per_language=queries_per_language)


@contextmanager
def _ingested(
    sample: Sample,
    encoder: Encoder,
    generator: QueryGenerator | Lexicon,
    recipe: Recipe,
    threads: int,
    seconds: float | None,
    quiet: bool,
) -> Iterator[tuple[Store, Cost]]:
    """Ingest a sample into a collection that is removed in the end, and tell what that took."""
    from xqg_qdrant.cli.progress import run_sample
    from xqg_qdrant.evaluation.pilot import Cost, measure_disk

    with tempfile.TemporaryDirectory(prefix="xqg-pilot-") as directory, opened_store(f"edge:{directory}") as store:
        stored, took = run_sample(sample.passages, store, TRIAL, encoder, generator, recipe, threads, seconds, quiet)
        yield store, Cost(sample.corpus, stored, took, *measure_disk(Path(directory) / TRIAL))


def _describe_corpus(file: str, sample: Sample) -> str:
    return f"{file}: {sample.corpus} passages" + (f", {sample.rejected} rows rejected" if sample.rejected else "")


def _describe_cost(cost: Cost, recipe: Recipe, device: str, price_per_hour: float | None) -> str:
    from xqg_qdrant.evaluation.pilot import format_bytes
    from xqg_qdrant.printing import format_seconds

    lines = [
        f"measured: {cost.measured} of them in {format_seconds(cost.seconds)} on this machine ({device}), each with "
        f"{recipe.queries_per_language} queries in each of {', '.join(recipe.languages)}",
        f"all of them: about {format_seconds(cost.total_seconds)} and {format_bytes(cost.total_bytes)} of disk",
    ]
    if price_per_hour is not None:
        lines[-1] += f", which costs {cost.price(price_per_hour):.2f}"
    if cost.corpus > cost.measured:
        lines.append("Beside that come the loading of the models and, above 50,000 passages, the index.")
    return "\n".join(lines)


@main.command()
@click.argument("file")
@questions_option
@qrels_option
@language_option
@click.option(
    "--passages",
    type=click.IntRange(min=10),
    default=500,
    show_default=True,
    help="How many passages are drawn; those that are judged relevant are among them.",
)
@click.option("--measure", help="Choose by this, as in xqg sweep.")
@price_option
@encoder_option
@generator_option
@languages_option
@queries_per_language_option(2)
@id_field_option
@sample_seed_option
@json_option
@save_option
@device_option
@workers_option
@click.pass_obj
def pilot(
    quiet: bool,
    /,
    file: str,
    questions: tuple[Path, ...],
    qrels: Path | None,
    language: str,
    passages: int,
    measure: str | None,
    price_per_hour: float | None,
    encoder_folder: Path | None,
    generator_folder: Path | None,
    languages: str | None,
    queries_per_language: int,
    id_field: str | None,
    seed: int,
    as_json: bool,
    save: Path | None,
    device: str,
    threads: int,
) -> None:
    """Try xQG on a sample of FILE: is it worth it here, with which settings, and what would all of FILE take?

    Passages drawn at random are ingested into a collection that is removed again, and the settings are swept over it.
    Without questions, of the queries generated for a passage the last of each language is left out and asked.
    """
    from xqg_qdrant.augmentation.fusion import PUBLISHED_ALPHA
    from xqg_qdrant.cli.progress import read_vectors, run_sweep
    from xqg_qdrant.evaluation.files import read_judged_questions
    from xqg_qdrant.evaluation.pilot import (
        HELD_BACK,
        SMALL,
        choose_questions,
        hold_back,
        judge_held_back,
        keep_answered,
    )
    from xqg_qdrant.evaluation.results import check_folder, describe_asked, make_manifest
    from xqg_qdrant.evaluation.sweep.bench import make_bench
    from xqg_qdrant.evaluation.sweep.settings import Setting
    from xqg_qdrant.evaluation.sweep.summary import describe, format_points, judge, make_options, save_sweep
    from xqg_qdrant.evaluation.sweep.vectors import opened_vectors

    if save:
        check_folder(save)
    held_back, wanted = not questions, set[str]()
    if not held_back:
        read, judgements = read_judged_questions(questions, qrels, language)
        queries, wanted = choose_questions(read, judgements, passages, seed)
    sample = _draw(file, id_field, passages, seed, quiet, wanted)
    encoder, generator = load_encoder(encoder_folder, device, 1), load_generator(generator_folder, device, 1)
    recipe = _make_recipe(generator, languages, queries_per_language)
    with (
        _ingested(sample, encoder, generator, recipe, threads, None, quiet) as (store, cost),
        opened_vectors() as vectors,
    ):
        read_vectors(vectors, store, TRIAL, encoder, threads, quiet)
        fingerprint = store.read_fingerprint(TRIAL)
        if held_back:
            recipe = recipe._replace(queries_per_language=queries_per_language - 1)
            queries, judgements = hold_back(vectors.passages, vectors.queries, queries_per_language - 1)
        else:
            queries = keep_answered(queries, judgements, vectors.passages)
        bench = make_bench(vectors, recipe, encoder, queries, judgements, measure, EVALUATION_DEPTH)
        found = run_sweep(bench, seed, quiet)
    if held_back:
        plain = found.report.values["passage"]["recall@10"].macro
        verdict = judge_held_back(found.measure, found.gained, plain)
    else:
        verdict = judge(found.measure, found.gained, len(found.halves[1]))
    told = {
        "held_back": held_back,
        "verdict": verdict,
        "cost": cost.to_json(price_per_hour),
        "sweep": found.to_json(),
    }
    if save:
        manifest = make_manifest(
            "pilot",
            given_command(),
            {} if held_back else describe_asked(questions, read, qrels, judgements),
            {"measure": found.measure, "limit": EVALUATION_DEPTH, "passages": len(vectors.passages)},
            seed=seed,
            fingerprint=fingerprint,
            device=encoder.device,
        )
        save_sweep(save, manifest, bench, found, told)
    if as_json:
        echo(json.dumps(told, ensure_ascii=False, indent=2))
        return
    echo(_describe_corpus(file, sample))
    echo(f"drawn: {len(vectors.passages)} of them, asked {len(bench.queries)} questions. {SMALL}\n")
    if held_back:
        echo(f"{HELD_BACK}\n")
    echo(format_points(found))
    echo(f"\nBest on these {len(found.halves[0])} questions: {describe(found.chosen)}.")
    echo(f"Against the plain vectors, on {len(found.halves[1])} questions that nothing was chosen on:\n")
    echo_report(found.report, as_json=False)
    echo(f"\n{verdict}\n")
    echo(_describe_cost(cost, recipe, encoder.device, price_per_hour))
    if held_back:
        return
    defaults = Setting("sum", PUBLISHED_ALPHA, False, 5, tuple(sorted(generator.languages)))
    models = [("--encoder", encoder_folder), ("--generator", generator_folder)]
    places = [word for name, folder in models if folder is not None for word in (name, str(folder))]
    command = ["xqg", "ingest", file, "--collection", "NAME", *places, *make_options(found.chosen, defaults)]
    echo(f"With this setting: {shlex.join(command)}")
