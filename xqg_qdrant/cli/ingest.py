"""`xqg ingest`, `sync`, `augment` and `generate`: passages into a collection or into Parquet files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xqg_qdrant.cli.collections import (
    alias_option,
    keep_snapshot,
    move_alias,
    sharding_options,
    snapshot_option,
    take_sharding,
)
from xqg_qdrant.cli.options import (
    Splitting,
    collection_option,
    confirm,
    dead_letters_option,
    demo_encoder_option,
    device_option,
    encoder_option,
    field_options,
    generator_option,
    quantisation_option,
    queries_option,
    recipe_options,
    sparse_option,
    split_options,
    store_option,
    workers_option,
    yes_option,
)
from xqg_qdrant.cli.shared import (
    RAY,
    GroupedCommand,
    check_own_space,
    check_ray,
    choose_languages,
    echo_cost,
    echo_recipe,
    echo_unused_queries,
    engine_options,
    exit_if_rejected,
    index_large,
    keeping_models,
    load_encoder,
    load_generator,
    main,
    open_dead_letters,
    opened_foreign_store,
    opened_store,
    run_on_ray,
    split_again,
    split_inputs,
)
from xqg_qdrant.cli.terminal import echo
from xqg_qdrant.errors import InputError
from xqg_qdrant.text import count_of, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from xqg_qdrant.augmentation.pipeline import Row, Totals
    from xqg_qdrant.augmentation.recipe import Recipe
    from xqg_qdrant.corpus.dead_letters import DeadLetters
    from xqg_qdrant.generation import Endpoint


@main.command(cls=GroupedCommand)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@collection_option(required=True)
@store_option
@encoder_option
@generator_option
@queries_option
@click.option(
    "--plain", is_flag=True, help="Store passages now; xqg enrich, or the same without --plain, adds queries."
)
@recipe_options
@field_options
@split_options
@dead_letters_option
@engine_options
@sparse_option
@click.option(
    "--payload-layout",
    type=click.Choice(["mcp", "haystack"]),
    help="Field names of mcp-server-qdrant or Haystack.  [default: text, metadata, xqg]",
)
@quantisation_option
@sharding_options
@alias_option
@device_option
@workers_option
@click.pass_obj
def ingest(
    quiet: bool,
    /,
    files: tuple[str, ...],
    collection: str,
    languages: str | None,
    location: str,
    encoder_folder: Path | None,
    generator_source: Path | Endpoint | None,
    queries: str | None,
    plain: bool,
    device: str,
    threads: int,
    id_field: str | None,
    text_field: str | None,
    splitting: Splitting | None,
    dead_letters: Path | None,
    payload_layout: str | None,
    engine: str,
    address: str,
    num_workers: int,
    quantisation: str | None,
    alias: str | None,
    **settings: Any,
) -> None:
    """Store the passages of FILE with augmented vectors; the default recipe suits the encoder.

    FILE is JSONL, a JSON array, TSV, CSV or Parquet, a folder of BEIR or of Parquet files, JSON of SQuAD, MLQA or
    XQuAD, ir_datasets:ID, the URL of a file or folder in an object store (s3://, gs://), or - for JSONL on standard
    input.

    Queries come from a generator, from a language model (the URL of an OpenAI-compatible endpoint, with its key in
    XQG_LLM_API_KEY), from a lexicon (lines of language, words and translation, separated by tabs), or with --queries
    from the field generated_queries of FILE or a JSONL file of rows {id, language, text} in any order. With --plain,
    options of the generation are ignored.

    With --split, long documents become passages DOC#1, DOC#2 and so on, each with its document's id and its place in
    the text as metadata. Rows of --queries then name passages.

    Run the same command again to resume after an interruption, or to redo what changed in an edited file. Rejected
    rows are written to the dead-letter file with their line and the reason; then the exit code is 3.
    """
    from xqg_qdrant.augmentation.pipeline import describe
    from xqg_qdrant.augmentation.recipe import choose_recipe
    from xqg_qdrant.cli.progress import run_ingest
    from xqg_qdrant.generation import DRAWING
    from xqg_qdrant.generation.questions import open_inputs
    from xqg_qdrant.lifecycle.status import check_alias
    from xqg_qdrant.stores import read_target_fingerprint
    from xqg_qdrant.stores.points import make_names

    if queries is not None and generator_source is not None:
        raise click.UsageError("Give --generator or --queries, not both.")
    if plain:
        if queries is not None:
            raise click.UsageError("Give --plain or --queries, not both.")
        generator_source = languages = None
        settings |= dict.fromkeys(("queries_per_language", *DRAWING))
    sharding = take_sharding(settings)
    inputs = open_inputs(files, queries, id_field, text_field)
    if engine == RAY:
        check_ray(files, location, encoder_folder, generator_source)
    with opened_store(location, sharding=sharding) as store:
        stored = read_target_fingerprint(store, collection)  # refuse it before the models are opened
        if alias is not None:
            check_alias(store, alias, collection)
        # With Ray the models are only described here, as its workers open their own. Otherwise the workers are
        # threads of this process, so one thread is enough inside an operator.
        here = "auto" if engine == RAY else device
        encoder = load_encoder(encoder_folder, here, 1, store, collection)
        generated = queries is None and not plain
        generator = load_generator(generator_source, here, 1, location, collection) if generated else None
        if generator is not None:
            chosen = choose_languages(languages, generator)
        else:
            chosen = () if languages is None else (languages,)
        names = make_names(payload_layout, encoder.source) if payload_layout else None
        settings |= split_inputs(inputs, splitting, encoder.folder, stored)
        recipe, reason = choose_recipe(encoder, generator, chosen, stored=stored, names=names, **settings)
        echo_recipe(recipe, reason, quiet, plain)
        total = None if quiet else inputs.count()
        fingerprint = describe(encoder, generator, recipe, plain)
        rejected = open_dead_letters(dead_letters, collection)
        keeping = keeping_models(store, collection, encoder, generator_source, generated=generated)
        if engine == RAY:
            from xqg_qdrant.augmentation.ray_engine import Job
            from xqg_qdrant.lifecycle.models import find_folder

            folder = find_folder(encoder)
            source = generator_source.absolute() if isinstance(generator_source, Path) else generator_source
            job = Job(inputs, Path.cwd(), location, collection, recipe, fingerprint, encoder.dim, folder, source)
            del encoder, generator  # a GPU may have no room for them twice
            with keeping:
                totals = run_on_ray(job, store, address, device, num_workers, threads, total, rejected, quiet)
        else:
            models_used = (encoder, generator, recipe, threads)
            with keeping:
                totals = run_ingest(inputs.read(), total, store, collection, *models_used, rejected, quiet, fingerprint)
        echo_cost(generator_source, totals, quiet)
        echo_unused_queries(inputs)
        if stored is not None or totals.stored:
            if quantisation:
                store.quantise(collection)
            if totals.stored or quantisation:
                index_large(store, collection, quiet)
            if alias is not None:
                move_alias(store, alias, collection, quiet)
        elif not totals.rejected:
            raise InputError(f"{inputs} holds no passage, so no collection was created.", "check the file")
    exit_if_rejected(totals, rejected.path)


@main.command(cls=GroupedCommand)
@click.argument("file")
@collection_option(required=True)
@click.option("--delete", is_flag=True, help="Delete the passages that FILE no longer holds.")
@click.option("--dry-run", is_flag=True, help="Print what would change, and stop.")
@click.option(
    "--list", "listed", is_flag=True, help="Print the ids of passages that are new, changed, left or surplus."
)
@snapshot_option
@store_option
@encoder_option
@generator_option
@queries_option
@field_options
@dead_letters_option
@device_option
@workers_option
@click.pass_obj
def sync(
    quiet: bool,
    /,
    file: str,
    collection: str,
    delete: bool,
    dry_run: bool,
    listed: bool,
    no_snapshot: bool,
    location: str,
    encoder_folder: Path | None,
    generator_source: Path | Endpoint | None,
    queries: str | None,
    id_field: str | None,
    text_field: str | None,
    dead_letters: Path | None,
    device: str,
    threads: int,
) -> None:
    """Update a collection to match FILE, with the recipe it was made with.

    The changes are counted and printed first. New passages are inserted, changed ones replaced, and with --delete those
    that left FILE are deleted. Documents that were split are split again; if one has fewer passages now, the surplus is
    deleted in any case. If rows of FILE are rejected, nothing is deleted, because what seems to have left may
    only be damaged; the exit code is then 3.
    """
    from xqg_qdrant.augmentation.pipeline import describe
    from xqg_qdrant.cli.progress import make_bars, run_ingest
    from xqg_qdrant.fingerprint import is_plain
    from xqg_qdrant.generation.questions import open_inputs
    from xqg_qdrant.lifecycle.sync import plan_sync
    from xqg_qdrant.lifecycle.sync import sync as apply_sync

    if file == "-":
        raise click.UsageError("FILE is read twice, so it cannot be standard input.")
    inputs, bars = open_inputs([file], queries, id_field, text_field), make_bars(quiet)
    rejected = open_dead_letters(dead_letters, collection)
    with opened_store(location) as store:
        opened = split_again(inputs, store, collection, encoder_folder, device)
        total = inputs.count()
        tell = (lambda kind, passage_id: echo(f"{kind}\t{one_line(passage_id)}")) if listed else None
        plan = plan_sync(store, collection, inputs, total, bars, tell)
        echo_unused_queries(inputs)
        echo(plan.found)
        if dry_run:
            return

        def ingest(recipe: Recipe, rows: Iterable[Row]) -> Totals:
            encoder = opened or load_encoder(encoder_folder, device, 1, store, collection)
            plain = is_plain(plan.fingerprint)
            generated = queries is None and not plain
            generator = load_generator(generator_source, device, 1, location, collection) if generated else None
            made = describe(encoder, generator, recipe, plain)
            models_used = (encoder, generator, recipe, threads)
            with keeping_models(store, collection, encoder, generator_source, generated=generated):
                done = run_ingest(rows, total, store, collection, *models_used, rejected, quiet, made)
            echo_cost(generator_source, done, quiet)
            return done

        snapshot = partial(keep_snapshot, store, collection, no_snapshot, quiet) if delete else None
        totals, deleted = apply_sync(store, plan, inputs, ingest, snapshot, bars)
        if totals.rejected and (delete or plan.found.surplus):
            echo("Nothing was deleted, as rows were rejected. Correct them, and run the same again.", err=True)
        elif delete or deleted:
            echo(f"{count_of(deleted, 'passage')} deleted")
        if totals.stored:
            index_large(store, collection, quiet)
    exit_if_rejected(totals, rejected.path)


@main.command(cls=GroupedCommand)
@collection_option(required=True)
@click.option("--text-field", default="", help="Payload field of the text; a.b is the field b of a.")
@click.option("--title-field", default="", help="Payload field of the title.  [default: no title]")
@click.option("--id-field", default="", help="Payload field of the passage id.  [default: the point's id]")
@click.option("--vector", metavar="NAME", help="Augment in the space of this vector; '' is the unnamed one.")
@click.option("--replace", is_flag=True, help="Write the augmented vector into --vector; keep the plain one.")
@click.option("--no-queries", is_flag=True, help="Only calibrate the stored vectors of --vector.")
@store_option
@encoder_option
@generator_option
@click.option("--queries", metavar="PATH", help="Use queries from a JSONL file instead of generating them.")
@recipe_options
@dead_letters_option
@click.option("--undo", is_flag=True, help="Remove all that xqg added to the collection, and stop.")
@yes_option
@device_option
@workers_option
@click.pass_obj
def augment(
    quiet: bool,
    /,
    collection: str,
    undo: bool,
    yes: bool,
    text_field: str,
    title_field: str,
    id_field: str,
    vector: str | None,
    replace: bool,
    no_queries: bool,
    languages: str | None,
    location: str,
    encoder_folder: Path | None,
    generator_source: Path | Endpoint | None,
    queries: str | None,
    dead_letters: Path | None,
    device: str,
    threads: int,
    **settings: Any,
) -> None:
    """Add augmented vectors and generated queries to another program's collection.

    Passages are read from the payload of the points. Existing fields and vectors stay as they are; the vectors xqg and
    passage and the payload field xqg are added. --undo removes these again. A path may lead into JSON that is stored as
    text: for LlamaIndex use --text-field _node_content.text.

    Run the same command again to resume, or to do points that are new or whose text changed. Points without a usable
    text are written to the dead-letter file with their id and the reason; then the exit code is 3.

    With --vector the stored vectors are the plain ones. --encoder must be the model that made them: 20 passages are
    compared first. The vector xqg is added, or with --replace the augmented vector takes the place of the stored one,
    so every search gains without a change. --undo restores every bit.
    """
    from xqg_qdrant.augmentation.processes import Job, calibrate, count_processes
    from xqg_qdrant.augmentation.recipe import choose_recipe, choose_recipe_of_calibration
    from xqg_qdrant.cli.progress import run_engine, run_ingest
    from xqg_qdrant.corpus.inputs import QueryIndex
    from xqg_qdrant.corpus.passages import read_generated_queries
    from xqg_qdrant.generation.questions import is_batch_result
    from xqg_qdrant.records import PayloadLayout, Space
    from xqg_qdrant.stores.server.own_space import OwnSpaceStore

    if undo:
        _undo(collection, location, yes)
        return
    if not text_field:
        raise click.UsageError("Missing option '--text-field'.")
    if vector is None and (replace or no_queries):
        raise click.UsageError(f"{'--replace' if replace else '--no-queries'} needs --vector.")
    if sum((queries is not None, generator_source is not None, no_queries)) > 1:
        raise click.UsageError("Give only one of --generator, --queries and --no-queries.")
    if queries is not None and is_batch_result(queries):
        raise InputError(
            f"{queries} holds the results of a batch, which belong to a corpus file.",
            "ingest that file with xqg ingest --queries, or have --generator write the queries here",
        )
    layout, space = PayloadLayout(text_field, title_field, id_field), None if vector is None else Space(vector, replace)
    with opened_foreign_store(location, layout, space) as store:
        stored = store.read_fingerprint(collection)  # refuse an unusable collection before the models are opened
        encoder = load_encoder(encoder_folder, device, 1, store, collection)
        if space is not None:
            check_own_space(store, collection, space.vector, encoder, quiet)
        generates = queries is None and not no_queries
        generator = load_generator(generator_source, device, 1, location, collection) if generates else None
        if no_queries:
            recipe, reason = choose_recipe_of_calibration(encoder, stored=stored, **settings)
        else:
            chosen = choose_languages(languages, generator) if generator else ()
            recipe, reason = choose_recipe(encoder, generator, chosen, stored=stored, **settings)
        echo_recipe(recipe, reason, quiet, written="no queries" if no_queries else "")
        rows, total = store.read_passages(collection), store.count(collection)
        index = QueryIndex(read_generated_queries(queries)) if queries is not None else None
        rejected = open_dead_letters(dead_letters, collection)
        joined = rows if index is None else index.join(rows)
        with keeping_models(store, collection, encoder, generator_source, generated=generates):
            if no_queries:
                assert isinstance(store, OwnSpaceStore)
                job = Job(location, os.environ.get("QDRANT_API_KEY"), layout, store.space, collection, recipe)
                begin = partial(calibrate, job, store, encoder, count_processes(store, collection, total, threads))
                totals = run_engine(begin, total, rejected, quiet)
            else:
                models = encoder, generator, recipe, threads
                totals = run_ingest(joined, total, store, collection, *models, rejected, quiet)
        echo_cost(generator_source, totals, quiet)
        if index is not None and index.left_over:
            echo(f"Queries of {queries} that belong to no point: {index.left_over}", err=True)
    exit_if_rejected(totals, rejected.path)


def _undo(collection: str, location: str, yes: bool) -> None:
    """Remove what `augment` added to a collection, after asking."""
    with opened_foreign_store(location, None) as store:
        confirm(f"Remove the vectors and queries that xqg added to {collection!r} in {store.location}?", yes)
        points = store.remove_added(collection)
        echo(f"What xqg added to {count_of(points, 'point')} of {collection!r} is removed.")


@main.command(cls=GroupedCommand)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Folder of Parquet files to write.")
@click.option(
    "--batch-out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File of requests for a batch API to write instead.",
)
@demo_encoder_option
@generator_option
@recipe_options
@field_options
@split_options
@dead_letters_option
@sparse_option
@device_option
@workers_option
@click.pass_obj
def generate(
    quiet: bool,
    /,
    files: tuple[str, ...],
    out: Path | None,
    batch_out: Path | None,
    languages: str | None,
    encoder_folder: Path | None,
    generator_source: Path | Endpoint | None,
    id_field: str | None,
    text_field: str | None,
    splitting: Splitting | None,
    dead_letters: Path | None,
    device: str,
    threads: int,
    **settings: Any,
) -> None:
    """Write the passages of FILE with generated queries and vectors to Parquet, for Spark and others to load.

    FILE is as in xqg ingest, except standard input, because it is read twice. From the columns of the files, Qdrant's
    Spark connector makes the same points as xqg ingest. Run the same command again to resume. Rejected rows are written
    to the dead-letter file; then the exit code is 3.

    With --batch-out and a URL as the --generator nothing is sent: the requests are written for a batch API. Later
    `xqg ingest --queries` reads its results.
    """
    from xqg_qdrant.augmentation.recipe import choose_recipe
    from xqg_qdrant.cli.progress import count_read, run_ingest
    from xqg_qdrant.corpus.inputs import Inputs
    from xqg_qdrant.records import Passage

    if (out is None) == (batch_out is None):
        raise click.UsageError("Give either --out or --batch-out.")
    try:
        from xqg_qdrant.stores.parquet import ParquetFolder, find_metadata_kind
    except ModuleNotFoundError as error:
        raise InputError(f"xqg generate needs {error.name}", "pip install 'xqg-qdrant[parquet]'") from error
    if "-" in files:
        raise click.UsageError("FILE is read twice, so it cannot be standard input.")
    inputs = Inputs(files, id_field=id_field, text_field=text_field)
    encoder = None if splitting is None else load_encoder(encoder_folder, device, 1)
    if encoder is not None:
        settings |= split_inputs(inputs, splitting, encoder.folder, None)
    total = None if quiet else inputs.count()
    if batch_out is not None:
        rejected = open_dead_letters(dead_letters, batch_out.name)
        read = count_read(inputs.read(), total, quiet)
        exit_if_rejected(
            write_requests(read, batch_out, generator_source, languages, settings, rejected), rejected.path
        )
        return
    assert out is not None
    read = count_read(inputs.read(), total, quiet)
    metadata = find_metadata_kind(row for row in read if isinstance(row, Passage))
    encoder = encoder or load_encoder(encoder_folder, device, 1)
    generator = load_generator(generator_source, device, 1, str(out), "queries")
    recipe, reason = choose_recipe(encoder, generator, choose_languages(languages, generator), **settings)
    echo_recipe(recipe, reason, quiet)
    rejected = open_dead_letters(dead_letters, out.name)
    store = ParquetFolder(out, metadata, recipe.sparse)
    totals = run_ingest(inputs.read(), total, store, str(out), encoder, generator, recipe, threads, rejected, quiet)
    echo_cost(generator_source, totals, quiet)
    exit_if_rejected(totals, rejected.path)


def write_requests(
    rows: Iterator[Row],
    path: Path,
    source: Path | Endpoint | None,
    languages: str | None,
    settings: Mapping[str, Any],
    rejected: DeadLetters,
) -> Totals:
    """Write the requests of a corpus for a batch API."""
    from xqg_qdrant.augmentation.pipeline import Progress, Totals
    from xqg_qdrant.augmentation.recipe import SUITED
    from xqg_qdrant.generation import DRAWING, check_languages
    from xqg_qdrant.generation.chat import find_chat_url
    from xqg_qdrant.generation.llm import LanguageModelGenerator
    from xqg_qdrant.generation.questions import write_batch

    generator = load_generator(source, "cpu", 1)
    if not isinstance(generator, LanguageModelGenerator):
        raise click.UsageError("--batch-out needs a URL as the --generator.")
    chosen = check_languages(generator, choose_languages(languages, generator))
    drawing = {name: settings[name] for name in DRAWING if settings.get(name) is not None}
    sampling = generator.choose_sampling(chosen, drawing)
    count = settings["queries_per_language"] or SUITED["queries_per_language"]
    totals = Totals()
    with rejected, path.open("w", encoding="ascii") as file:
        settled = {"languages": chosen, "count": count, "seed": drawing.get("seed", 0), "sampling": sampling}
        make_request = partial(generator.make_request, **settled)
        for reject in write_batch(rows, file, find_chat_url(generator.endpoint.url), make_request):
            if reject:
                rejected.write([reject])
            rejects = (reject,) if reject else ()
            totals.add(Progress(1 - len(rejects), 0, rejects, {}, {}))
        rejected.write(())
    echo(f"{count_of(totals.stored, 'request')} written to {path}", err=True)
    return totals
