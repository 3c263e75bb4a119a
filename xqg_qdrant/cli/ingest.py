"""`xqg ingest`, `xqg sync` and `xqg augment`: passages into a collection."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xqg_qdrant.cli.collections import (
    alias_option,
    give_alias,
    keep_snapshot,
    sharding_options,
    snapshot_option,
    take_sharding,
)
from xqg_qdrant.cli.options import (
    collection_option,
    dead_letters_option,
    device_option,
    encoder_option,
    generator_option,
    id_field_option,
    quantisation_option,
    queries_option,
    recipe_options,
    store_option,
    workers_option,
)
from xqg_qdrant.cli.shared import (
    RAY,
    check_ray,
    engine_options,
    index_large,
    load_encoder,
    load_generator,
    main,
    opened_foreign_store,
    opened_store,
    run_on_ray,
    tell_left_over,
)
from xqg_qdrant.cli.terminal import echo
from xqg_qdrant.errors import ROWS_REJECTED_EXIT_CODE

if TYPE_CHECKING:
    from xqg_qdrant.corpus.dead_letters import DeadLetters
    from xqg_qdrant.printing import Totals


@main.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@collection_option(required=True)
@store_option
@encoder_option
@generator_option
@queries_option
@recipe_options
@id_field_option
@dead_letters_option
@engine_options
@click.option("--sparse", is_flag=True, help="Keep the terms of passages and queries too, for --rank hybrid.")
@click.option(
    "--payload-layout",
    type=click.Choice(["mcp", "haystack"]),
    help="Call text, metadata and vector as mcp-server-qdrant or Haystack does, which read only their own.  "
    "[default: text, metadata, xqg]",
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
    generator_folder: Path | None,
    queries: str | None,
    device: str,
    threads: int,
    id_field: str | None,
    dead_letters: Path | None,
    payload_layout: str | None,
    engine: str,
    address: str,
    num_workers: int,
    quantisation: str | None,
    alias: str | None,
    **settings: Any,
) -> None:
    """Store the passages of FILE with augmented vectors; as published, where no option says otherwise.

    FILE is JSONL, TSV or Parquet, a folder of BEIR or of Parquet files, JSON of SQuAD, MLQA or XQuAD, ir_datasets:ID,
    the URL of a file or folder in an object store (s3://, gs://), or - for JSONL on standard input. Interrupted and run
    again, it goes on where it stopped; run on an edited file, it redoes what changed. Rows that cannot be used are
    written to the dead-letter file with their line and the reason; then the exit code is 3.
    """
    from xqg_qdrant.augmentation.pipeline import describe
    from xqg_qdrant.augmentation.recipe import make_recipe
    from xqg_qdrant.cli.progress import run_ingest
    from xqg_qdrant.corpus.dead_letters import DeadLetters
    from xqg_qdrant.corpus.inputs import Inputs
    from xqg_qdrant.languages import parse_languages
    from xqg_qdrant.lifecycle.status import check_alias
    from xqg_qdrant.stores.points import make_names

    if queries is not None and generator_folder is not None:
        raise click.UsageError("Give --generator or --queries, not both.")
    sharding = take_sharding(settings)
    inputs = Inputs(files, queries, id_field)
    rows = inputs.read()
    if engine == RAY:
        check_ray(files, location)
    with opened_store(location, sharding=sharding) as store:
        store.read_fingerprint(collection)  # what cannot be filled is told before the models are opened
        if alias is not None:
            check_alias(store, alias, collection)
        # Ray's workers open the models for themselves: here they only say what they are. Otherwise the workers are
        # threads of this process, so that an operator needs but one.
        here = "auto" if engine == RAY else device
        encoder = load_encoder(encoder_folder, here, 1)
        generator = load_generator(generator_folder, here, 1) if queries is None else None
        named: tuple[str, ...] = ()
        if languages is not None:
            named = parse_languages(languages, generator.languages) if generator else (languages,)
        # A folder of another program may not tell what it was made of.
        model = str(encoder.folder.description.get("source") or encoder.folder.path.resolve().name)
        names = make_names(payload_layout, model) if payload_layout else None
        recipe = make_recipe(generator, named, names=names, **settings)
        total = None if quiet else inputs.count()
        letters = DeadLetters(dead_letters or Path(f"{collection}.rejected.jsonl"), *files, queries)
        if engine == RAY:
            from xqg_qdrant.augmentation.ray_engine import Job

            fingerprint = describe(encoder, generator, recipe)
            folders = [folder and folder.absolute() for folder in (encoder_folder, generator_folder)]
            job = Job(inputs, Path.cwd(), location, collection, recipe, fingerprint, encoder.dim, *folders)
            del encoder, generator  # on a GPU there may be no room for them twice
            totals = run_on_ray(job, store, address, device, num_workers, threads, total, letters, quiet)
        else:
            totals = run_ingest(rows, total, store, collection, encoder, generator, recipe, threads, letters, quiet)
        tell_left_over(inputs)
        if quantisation:
            store.quantise(collection)
        if totals.stored or quantisation:
            index_large(store, collection, quiet)
        if alias is not None:
            give_alias(store, alias, collection, quiet)
    end(totals, letters)


@main.command()
@click.argument("file")
@collection_option(required=True)
@click.option("--delete", is_flag=True, help="Delete the passages that FILE no longer holds.")
@click.option("--dry-run", is_flag=True, help="Only tell what there is to do.")
@snapshot_option
@store_option
@encoder_option
@generator_option
@queries_option
@id_field_option
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
    no_snapshot: bool,
    location: str,
    encoder_folder: Path | None,
    generator_folder: Path | None,
    queries: str | None,
    id_field: str | None,
    dead_letters: Path | None,
    device: str,
    threads: int,
) -> None:
    """Bring a collection to what FILE holds, by the recipe that it was made with.

    What there is to do is counted and told first. New passages are inserted and changed ones replaced; with --delete
    those that left FILE are deleted. Where rows of FILE are rejected none is deleted, because what seems to have left
    may only be damaged; the exit code is then 3.
    """
    from xqg_qdrant.augmentation.recipe import read_recipe
    from xqg_qdrant.cli.progress import run_compare, run_delete_left, run_ingest
    from xqg_qdrant.corpus.dead_letters import DeadLetters
    from xqg_qdrant.corpus.inputs import Inputs
    from xqg_qdrant.corpus.seen_ids import TextSet
    from xqg_qdrant.lifecycle.sync import check_comparable
    from xqg_qdrant.printing import Totals
    from xqg_qdrant.stores import read_existing_fingerprint

    if file == "-":
        raise click.UsageError("FILE is read twice, so it cannot be standard input.")
    inputs = Inputs([file], queries, id_field)
    seen, totals, total = TextSet(), Totals(), inputs.count()
    letters = DeadLetters(dead_letters or Path(f"{collection}.rejected.jsonl"), file, queries)
    with opened_store(location) as store:
        fingerprint = read_existing_fingerprint(store, collection)
        check_comparable(collection, fingerprint, given=queries is not None)
        recipe = read_recipe(fingerprint)
        found = run_compare(inputs.read(), total, store, collection, fingerprint, seen, quiet)
        tell_left_over(inputs)
        echo(found)
        if dry_run:
            return
        if delete and found.left and not found.rejected:
            keep_snapshot(store, collection, no_snapshot, quiet)
        if found.rows > found.unchanged:
            encoder = load_encoder(encoder_folder, device, 1)
            generator = load_generator(generator_folder, device, 1) if queries is None else None
            rows = inputs.read()
            totals = run_ingest(rows, total, store, collection, encoder, generator, recipe, threads, letters, quiet)
        if delete and totals.rejected:
            echo("Nothing was deleted, as rows were rejected. Correct them, and run the same again.", err=True)
        elif delete:
            deleted = run_delete_left(store, collection, seen, found.left, quiet)
            echo(f"{deleted} passages deleted")
        if totals.stored:
            index_large(store, collection, quiet)
    end(totals, letters)


@main.command()
@collection_option(required=True)
@click.option("--text-field", required=True, help="Field of the payload that holds the text; a.b is the field b of a.")
@click.option("--title-field", default="", help="Field of the payload that holds the title.  [default: no title]")
@click.option("--id-field", default="", help="Field that names a passage in results.  [default: the id of its point]")
@store_option
@encoder_option
@generator_option
@recipe_options
@dead_letters_option
@device_option
@workers_option
@click.pass_obj
def augment(
    quiet: bool,
    /,
    collection: str,
    text_field: str,
    title_field: str,
    id_field: str,
    languages: str | None,
    location: str,
    encoder_folder: Path | None,
    generator_folder: Path | None,
    dead_letters: Path | None,
    device: str,
    threads: int,
    **settings: Any,
) -> None:
    """Add augmented vectors and generated queries to a collection that another program made.

    The passages are read from the points' own payload. Every field and every vector that is there stays as it is; the
    vectors xqg and passage and the payload's field xqg come beside them. Run again, it goes on where it stopped, and
    does points that are new or whose text changed. Points without a text that can be used are written to the
    dead-letter file with their id and the reason; then the exit code is 3.
    """
    from xqg_qdrant.augmentation.recipe import make_recipe
    from xqg_qdrant.cli.progress import run_ingest
    from xqg_qdrant.corpus.dead_letters import DeadLetters
    from xqg_qdrant.languages import parse_languages
    from xqg_qdrant.records import PayloadLayout

    layout = PayloadLayout(text_field, title_field, id_field)
    with opened_foreign_store(location, layout) as store:
        store.read_fingerprint(collection)  # what cannot be augmented is told before the models are opened
        encoder = load_encoder(encoder_folder, device, 1)
        generator = load_generator(generator_folder, device, 1)
        named = parse_languages(languages, generator.languages) if languages is not None else ()
        recipe = make_recipe(generator, named, **settings)
        rows, total = store.read_passages(collection), store.count(collection)
        letters = DeadLetters(dead_letters or Path(f"{collection}.rejected.jsonl"))
        totals = run_ingest(rows, total, store, collection, encoder, generator, recipe, threads, letters, quiet)
    end(totals, letters)


def end(totals: Totals, letters: DeadLetters) -> None:
    """Tell of rejected rows, also by the exit code."""
    if totals.rejected:
        echo(f"{totals.rejected} rejected rows, with their reasons, are in {letters.path}", err=True)
        sys.exit(ROWS_REJECTED_EXIT_CODE)


@main.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", required=True, help="Folder of the result.")
@encoder_option
@generator_option
@recipe_options
@id_field_option
@dead_letters_option
@click.option("--sparse", is_flag=True, help="Keep the terms of passages and queries too, for --rank hybrid.")
@device_option
@workers_option
@click.pass_obj
def generate(
    quiet: bool,
    /,
    files: tuple[str, ...],
    out: Path,
    languages: str | None,
    encoder_folder: Path | None,
    generator_folder: Path | None,
    id_field: str | None,
    dead_letters: Path | None,
    device: str,
    threads: int,
    **settings: Any,
) -> None:
    """Write the passages of FILE with generated queries and vectors to Parquet, for Spark and others to load.

    FILE is what xqg ingest takes, but for standard input: it is read twice. The folder's files have the columns that
    Qdrant's Spark connector makes the same points of as xqg ingest. Interrupted and run again, it goes on where it
    stopped. Rows that cannot be used are written to the dead-letter file; then the exit code is 3.
    """
    from xqg_qdrant.augmentation.recipe import make_recipe
    from xqg_qdrant.cli.progress import count_read, run_ingest
    from xqg_qdrant.corpus.dead_letters import DeadLetters
    from xqg_qdrant.corpus.inputs import Inputs
    from xqg_qdrant.errors import InputError
    from xqg_qdrant.languages import parse_languages
    from xqg_qdrant.records import Passage

    try:
        from xqg_qdrant.stores.parquet import ParquetFolder, find_metadata_kind
    except ModuleNotFoundError as error:
        raise InputError(f"Parquet needs an extra ({error}).", "pip install 'xqg-qdrant[parquet]'.") from error
    if "-" in files:
        raise click.UsageError("FILE is read twice, so it cannot be standard input.")
    inputs = Inputs(files, id_field=id_field)
    total = None if quiet else inputs.count()
    read = count_read(inputs.read(), total, quiet)
    metadata = find_metadata_kind(row for row in read if isinstance(row, Passage))
    encoder, generator = load_encoder(encoder_folder, device, 1), load_generator(generator_folder, device, 1)
    named = parse_languages(languages, generator.languages) if languages is not None else ()
    recipe = make_recipe(generator, named, **settings)
    letters = DeadLetters(dead_letters or Path(f"{out.name}.rejected.jsonl"), *files)
    store = ParquetFolder(out, metadata, recipe.sparse)
    totals = run_ingest(inputs.read(), total, store, str(out), encoder, generator, recipe, threads, letters, quiet)
    end(totals, letters)
