"""`xqg pilot` and `xqg estimate`: whether ingesting a whole corpus is worth it, and what it costs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Container, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xqg_qdrant.cli.options import (
    F,
    Splitting,
    asked_options,
    collection_option,
    demo_encoder_option,
    device_option,
    field_options,
    generator_option,
    json_option,
    languages_option,
    recipe_option,
    save_option,
    split_options,
    store_option,
    workers_option,
)
from xqg_qdrant.cli.shared import (
    SWEPT_RUNS,
    GroupedCommand,
    check_own_space,
    choose_languages,
    echo_recipe,
    echo_sweep,
    given_command,
    load_encoder,
    load_generator,
    main,
    opened_foreign_store,
    save_last,
    split_inputs,
)
from xqg_qdrant.cli.terminal import echo
from xqg_qdrant.text import count_of, one_line

if TYPE_CHECKING:
    from xqg_qdrant.augmentation.recipe import Recipe
    from xqg_qdrant.corpus.inputs import Inputs
    from xqg_qdrant.evaluation.pilot import Cost, Ingest, Pilot, Rival, Sample
    from xqg_qdrant.generation import Endpoint, Generator
    from xqg_qdrant.inference import TextEncoder
    from xqg_qdrant.records import PayloadLayout, Space

price_option = click.option(
    "--price-per-hour", type=click.FloatRange(min=0), help="Price of an hour of this machine, in any currency."
)
sample_seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sample.")


def queries_per_language_option(least: int) -> Callable[[F], F]:
    """Return a decorator that adds --queries-per-language."""
    return click.option(
        "--queries-per-language",
        type=click.IntRange(min=least),
        help="Queries generated in each language.  [default: 3; the paper's: 5]",
    )


@main.command()
@click.argument("file")
@price_option
@demo_encoder_option
@generator_option
@languages_option
@queries_per_language_option(1)
@recipe_option
@field_options
@split_options
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
    generator_source: Path | Endpoint | None,
    languages: str | None,
    queries_per_language: int | None,
    recipe_name: str,
    id_field: str | None,
    text_field: str | None,
    splitting: Splitting | None,
    seed: int,
    as_json: bool,
    device: str,
    threads: int,
) -> None:
    """Estimate what an ingest of FILE takes on this machine: time, disk, money.

    The corpus is read once. A random sample is ingested for up to a minute, into a temporary collection of the embedded
    store.
    """
    from xqg_qdrant.cli.progress import echo_unread, make_bars
    from xqg_qdrant.corpus.inputs import Inputs
    from xqg_qdrant.evaluation.pilot import PASSAGES_OF_A_MINUTE, PASSAGES_OF_CALLS, estimate_cost

    encoder, generator = load_encoder(encoder_folder, device, 1), load_generator(generator_source, device, 1)
    size = PASSAGES_OF_CALLS if generator.concurrency else PASSAGES_OF_A_MINUTE
    inputs = Inputs([file], id_field=id_field, text_field=text_field)
    split = split_inputs(inputs, splitting, encoder.folder, None)
    sample = _draw(inputs, size, seed, quiet)
    recipe = _make_recipe(encoder, generator, languages, queries_per_language, recipe_name, split, quiet)
    cost = estimate_cost(sample, _make_ingest(encoder, generator, recipe, threads), make_bars(quiet))
    if not quiet:
        echo_unread(encoder.reading, generator.reading)
    if as_json:
        echo(json.dumps(cost.to_json(price_per_hour, generator_source), indent=2))
    else:
        about = _describe_cost(cost, recipe, encoder.device, price_per_hour, generator_source)
        echo(f"{_describe_corpus(file, sample)}\n{about}")


@main.command(cls=GroupedCommand)
@click.argument("file", required=False)
@collection_option()
@store_option
@click.option("--vector", metavar="NAME", help="Try the space of this vector of --collection; '' is the unnamed one.")
@click.option("--title-field", default="", help="Payload field of the title.  [default: no title]")
@asked_options
@click.option(
    "--passages",
    type=click.IntRange(min=10),
    default=500,
    show_default=True,
    help="Size of the sample; it includes the passages judged relevant.",
)
@click.option("--measure", help="Measure to choose by, as in xqg sweep.")
@price_option
@click.option(
    "--encoder",
    "encoder_folders",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Model folder of the encoder; repeat it to compare several.  [default: the demo encoder]",
)
@generator_option
@languages_option
@queries_per_language_option(2)
@recipe_option
@field_options
@split_options
@sample_seed_option
@json_option
@save_option
@device_option
@workers_option
@click.pass_obj
def pilot(
    quiet: bool,
    /,
    file: str | None,
    collection: str | None,
    location: str,
    vector: str | None,
    title_field: str,
    questions: tuple[Path, ...],
    qrels: Path | None,
    language: str,
    passages: int,
    measure: str | None,
    price_per_hour: float | None,
    encoder_folders: tuple[Path, ...],
    generator_source: Path | Endpoint | None,
    languages: str | None,
    queries_per_language: int | None,
    recipe_name: str,
    id_field: str | None,
    text_field: str | None,
    splitting: Splitting | None,
    seed: int,
    as_json: bool,
    save: Path | None,
    device: str,
    threads: int,
) -> None:
    """Try xQG on a sample: whether it is worth it, with which settings, and what all of FILE would take.

    A random sample is ingested into a temporary collection, and the settings are swept over it. Without questions, the
    last generated query of each passage and language is left out of the vectors and asked. With several encoders, each
    gets the same passages, generated queries and questions; only the first one's results are saved and printed in full.

    With --collection and --vector instead of FILE, the sample is drawn from another program's collection, and its
    vectors are the plain ones. This shows what xqg augment --vector would gain. The collection is only read.
    """
    from xqg_qdrant.cli.progress import echo_unread, make_bars
    from xqg_qdrant.corpus.inputs import Inputs
    from xqg_qdrant.evaluation.files import read_judged_questions
    from xqg_qdrant.evaluation.pilot import choose_questions, make_ingest_again, make_rival, run_pilot, save_pilot
    from xqg_qdrant.evaluation.results import check_folder, describe_asked
    from xqg_qdrant.evaluation.sweep.summary import is_worth_it
    from xqg_qdrant.records import PayloadLayout, Space
    from xqg_qdrant.streams import count_workers

    if (file is None) == (collection is None):
        raise click.UsageError("Give either FILE or --collection.")
    if collection is not None and (vector is None or not text_field or len(encoder_folders) > 1):
        raise click.UsageError("--collection needs --vector, --text-field and one --encoder, which made the vector.")
    if file is not None and (vector is not None or title_field):
        raise click.UsageError(f"{'--title-field' if vector is None else '--vector'} needs --collection.")
    if save:
        check_folder(save)
    asked, data, wanted = None, {}, set[str]()
    if questions:
        queries, judgements = read_judged_questions(questions, qrels, language)
        chosen, wanted = choose_questions(queries, judgements, passages, seed)
        asked, data = (chosen, judgements), describe_asked(questions, queries, qrels, judgements)
    folders = encoder_folders or (None,)
    name_encoder = partial(_name_encoder, quiet=quiet or len(folders) == 1)
    encoder, generator = load_encoder(folders[0], device, 1), load_generator(generator_source, device, 1)
    split: Mapping[str, Any] = {}
    if file is not None:
        begun = ["ingest", file, "--collection", "NAME", *_split_words(splitting)]
        inputs = Inputs([file], id_field=id_field, text_field=text_field)
        split = split_inputs(inputs, splitting, encoder.folder, None)
        sample = _draw(inputs, passages, seed, quiet, wanted)
    elif splitting is not None:
        raise click.UsageError("--split needs a FILE.")
    else:
        begun = ["augment", "--collection", str(collection), "--store", location, "--text-field", str(text_field)]
        named = {"--title-field": title_field, "--id-field": id_field}
        begun += [word for name, field in named.items() if field for word in (name, field)]
        begun += ["--vector", str(vector), "--replace"]
        layout = PayloadLayout(str(text_field), title_field, id_field or "")
        space = Space(str(vector), replaced=True)
        sample = _draw_points(str(collection), location, layout, space, encoder, passages, seed, quiet, wanted)
    name_encoder(encoder)
    recipe = _make_recipe(encoder, generator, languages, queries_per_language, recipe_name, split, quiet)
    ingest = _make_ingest(encoder, generator, recipe, threads)
    found = run_pilot(sample, asked, ingest, recipe, encoder, threads, measure, seed, make_bars(quiet))
    if not quiet:
        echo_unread(encoder.reading, generator.reading)
    if save:
        save_last(save_pilot, save, given_command(), data, found, price_per_hour, seed, encoder.device)
    rivals = [make_rival(encoder, found, found)]
    for folder in folders[1:]:
        other = load_encoder(folder, device, 1)
        name_encoder(other)
        asked_again = found.recipe.queries_per_language + found.held_back
        suited = _make_recipe(other, generator, languages, asked_again, recipe_name, split, quiet)
        again = make_ingest_again(found, other, generator, suited, count_workers(other.device, threads))
        tried = run_pilot(sample, asked, again, suited, other, threads, measure, seed, make_bars(quiet))
        rivals.append(make_rival(other, tried, found))
    if as_json:
        report = found.to_json(price_per_hour)
        if len(rivals) > 1:
            report["encoders"] = [rival.to_json() for rival in rivals]
        echo(json.dumps(report, ensure_ascii=False, indent=2))
        return
    _echo_pilot(file or f"collection {collection!r}", sample, found)
    if len(rivals) > 1:
        _echo_rivals(rivals)
    echo(_describe_cost(found.cost, found.recipe, encoder.device, price_per_hour, generator_source))
    if asked and is_worth_it(found.sweep):
        encoder_words = [] if folders[0] is None else ["--encoder", str(folders[0])]
        given = click.get_current_context().params
        writer = {"generator": given["generator_source"]}
        writer |= {name: given[name] for name in ("model", "prompt", "concurrency")}
        generator_words = [word for name, value in writer.items() if value for word in (f"--{name}", str(value))]
        command = make_command(begun, encoder_words, generator_words, recipe_name, found, generator.languages)
        echo(f"With this setting: {command}")


def _name_encoder(encoder: TextEncoder, quiet: bool) -> None:
    """Print whose recipe and progress follow, where there are several encoders."""
    from xqg_qdrant.text import one_line

    if not quiet:
        echo(f"encoder {one_line(encoder.source)}:", err=True)


def _draw(inputs: Inputs, size: int, seed: int, quiet: bool, wanted: Container[str] = ()) -> Sample:
    from xqg_qdrant.cli.progress import count_read
    from xqg_qdrant.evaluation.pilot import draw_sample

    total = None if quiet else inputs.count()
    return draw_sample(count_read(inputs.read(), total, quiet), size, seed, wanted)


def _draw_points(
    collection: str,
    location: str,
    layout: PayloadLayout,
    space: Space,
    encoder: TextEncoder,
    size: int,
    seed: int,
    quiet: bool,
    wanted: Container[str],
) -> Sample:
    """Draw points of another program's collection, after a check that the encoder made their vectors."""
    from xqg_qdrant.evaluation.pilot import draw_sample, name_as_shown

    with opened_foreign_store(location, layout, space) as store:
        check_own_space(store, collection, space.vector, encoder, quiet)
        return draw_sample(name_as_shown(store.read_passages(collection)), size, seed, wanted)


def _make_recipe(
    encoder: TextEncoder,
    generator: Generator,
    languages: str | None,
    queries_per_language: int | None,
    recipe_name: str,
    split: Mapping[str, Any],
    quiet: bool,
) -> Recipe:
    from xqg_qdrant.augmentation.recipe import choose_recipe

    named = choose_languages(languages, generator)
    recipe, reason = choose_recipe(
        encoder, generator, named, recipe_name=recipe_name, queries_per_language=queries_per_language, **split
    )
    echo_recipe(recipe, reason, quiet)
    return recipe


def _make_ingest(encoder: TextEncoder, generator: Generator, recipe: Recipe, threads: int) -> Ingest:
    from xqg_qdrant.augmentation.pipeline import ingest
    from xqg_qdrant.streams import count_workers

    workers = count_workers(encoder.device, threads)
    return partial(ingest, encoder=encoder, generator=generator, recipe=recipe, workers=workers)


def _describe_corpus(file: str, sample: Sample) -> str:
    rejected = f", {count_of(sample.rejected, 'row')} rejected" if sample.rejected else ""
    return f"{file}: {count_of(sample.corpus, 'passage')}{rejected}"


def _describe_cost(
    cost: Cost, recipe: Recipe, device: str, price_per_hour: float | None, source: Path | Endpoint | None
) -> str:
    from xqg_qdrant.evaluation.pilot import format_bytes
    from xqg_qdrant.generation import Endpoint
    from xqg_qdrant.printing import format_seconds, format_usage

    lines = [
        f"measured: {cost.measured} of them in {format_seconds(cost.seconds)} on this machine ({device}), each with "
        f"{count_of(recipe.queries_per_language, 'query', 'queries')} in each of {', '.join(recipe.languages)}",
        f"all of them: about {format_seconds(cost.total_seconds)} and {format_bytes(cost.total_bytes)} of disk",
    ]
    if price_per_hour is not None:
        lines[-1] += f", which costs {cost.price(price_per_hour):.2f}"
    if cost.usage.calls:
        lines.append(f"measured with the language model: {format_usage(cost.usage)}")
        lines.append(f"all of them: about {format_usage(cost.total_usage)}")
        if isinstance(source, Endpoint) and (source.price_in or source.price_out):
            lines[-1] += f", which cost {source.price(cost.total_usage):.2f}"
    if cost.corpus > cost.measured:
        lines.append("Loading the models and, above 50,000 passages, indexing come on top.")
    return "\n".join(lines)


def _echo_pilot(file: str, sample: Sample, found: Pilot) -> None:
    """Print what was drawn and asked, all settings, the best one, and the verdict."""
    from xqg_qdrant.evaluation.pilot import HELD_BACK, SMALL
    from xqg_qdrant.evaluation.sweep.summary import describe, format_points

    sweep, bench = found.sweep, found.bench
    echo(_describe_corpus(file, sample))
    echo(f"drawn: {len(bench.vectors.passages)} of them, asked {count_of(len(bench.queries), 'question')}. {SMALL}\n")
    if found.held_back:
        echo(f"{HELD_BACK}\n")
    echo(format_points(sweep))
    chosen_on, reported_on = map(len, sweep.halves)
    echo(f"\nBest on these {chosen_on} questions: {describe(sweep.chosen)}.")
    echo(f"On the other {reported_on} questions, not used for the choice ({SWEPT_RUNS}):\n")
    echo_sweep(sweep)
    echo(f"\n{found.verdict}\n")


def _echo_rivals(rivals: list[Rival]) -> None:
    """Print for each encoder both vectors, its best setting, the gain over the first, and what all of it takes."""
    from xqg_qdrant.evaluation.pilot import format_bytes
    from xqg_qdrant.evaluation.sweep.summary import compare_encoders, describe
    from xqg_qdrant.printing import format_seconds

    measure = rivals[0].pilot.sweep.measure
    names = [one_line(rival.encoder) for rival in rivals]
    width = max(map(len, names))
    echo(f"{f'encoder, {measure}':<{width}}   dim  passage      xqg  all of the corpus takes about")
    for name, rival in zip(names, rivals, strict=True):
        values = rival.pilot.sweep.report.values
        cells = "".join(f"{values[run][measure].macro:>9.1f}" for run in ("passage", "xqg"))
        cost = rival.pilot.cost
        takes = f"{format_seconds(cost.total_seconds)} and {format_bytes(cost.total_bytes)}"
        counted = "without the generation" if rival.gained else "with the generation"
        echo(f"{name:<{width}}{rival.dim:>6}{cells}  {takes}, {counted}")
    echo("")
    for name, rival in zip(names, rivals, strict=True):
        echo(f"{name}: best with {describe(rival.pilot.sweep.chosen)}.")
    for name, rival in zip(names[1:], rivals[1:], strict=True):
        if rival.gained:
            echo(compare_encoders(name, names[0], measure, rival.gained))
    echo("")


def _split_words(splitting: Splitting | None) -> list[str]:
    if splitting is None:
        return []
    given = {"--split-tokens": splitting.tokens, "--split-overlap": splitting.overlap}
    return ["--split", *(word for name, value in given.items() if value is not None for word in (name, str(value)))]


def make_command(
    begun: list[str],
    encoder: list[str],
    generator: list[str],
    recipe_name: str,
    found: Pilot,
    languages: tuple[str, ...],
) -> str:
    """Return the command with the best setting; without queries if they add nothing to the calibration.

    `begun` is `ingest` or `augment` with what it is done to.
    """
    from xqg_qdrant.augmentation.calibration import DEFAULT_GAMMA
    from xqg_qdrant.augmentation.recipe import AUTO, PUBLISHED, SUITED
    from xqg_qdrant.evaluation.sweep.settings import Setting
    from xqg_qdrant.evaluation.sweep.summary import make_options, needs_no_queries

    recipe, chosen = found.recipe, found.sweep.chosen
    command = ["xqg", *begun, *encoder]
    if not chosen.alpha or needs_no_queries(found.sweep):
        options = ["--calibrate", "--gamma", repr(chosen.gamma or DEFAULT_GAMMA)]
        if begun[0] == "augment":
            return shlex.join([*command, "--no-queries", *options])
        return f": > none.jsonl; {shlex.join([*command, '--queries', 'none.jsonl', *options])}"
    published = [] if recipe_name == AUTO else ["--recipe", recipe_name]
    settings = SUITED if recipe.renormalise else PUBLISHED
    defaults = Setting(languages=tuple(sorted(languages)), gamma=recipe.gamma, **settings)
    return shlex.join([*command, *generator, *published, *make_options(chosen, defaults)])
