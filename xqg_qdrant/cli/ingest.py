"""`xqg ingest`: passages into a collection."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from xqg_qdrant.cli.group import main
from xqg_qdrant.cli.options import (
    collection_option,
    device_option,
    encoder_option,
    load_encoder,
    load_generator,
    opened_store,
    quantisation_option,
    store_option,
)
from xqg_qdrant.errors import ROWS_REJECTED_EXIT_CODE


@main.command()
@click.argument("file")
@collection_option(required=True)
@click.option("--languages", help="Languages to generate queries in, such as ar,ja,ru.  [default: all the generator's]")
@store_option
@encoder_option
@click.option(
    "--generator",
    "generator_folder",
    type=click.Path(path_type=Path),
    help="Model folder of the generator.  [default: the demo generator]",
)
@click.option(
    "--queries",
    metavar="corpus|PATH",
    help="Generate none, take queries that are there: corpus for the field generated_queries of FILE, or a JSONL file "
    "of rows {id, language, text} in any order.",
)
@click.option("--queries-per-language", type=int, help="Queries generated a language.  [default: 5]")
@click.option(
    "--fusion",
    type=click.Choice(["sum", "mean"]),
    default="sum",
    show_default=True,
    help="sum as published; mean makes alpha independent of the number of queries.",
)
@click.option(
    "--alpha",
    type=float,
    default=0.01,
    show_default=True,
    help="Weight of the generated queries, from 0 to 1; with --fusion mean try 0.2.",
)
@click.option(
    "--renormalise",
    is_flag=True,
    help="Give augmented vectors the length of the plain ones; for encoders made for cosine. Not so published.",
)
@click.option("--top-k", type=int, help="Sample among the k most probable tokens; 1 is greedy.  [default: the model's]")
@click.option("--temperature", type=float, help="Sampling temperature.  [default: the model's]")
@click.option("--max-new-tokens", type=int, help="Longest query, in tokens.  [default: the model's]")
@click.option(
    "--vocabulary",
    type=click.Choice(["full", "restricted"]),
    help="Draw from all tokens, or from those that the language is written in, where the generator was exported with "
    "--restrict-vocabulary.  [default: restricted, where it was]",
)
@click.option("--seed", type=int, help="Seed of the sampling.  [default: 0]")
@click.option("--id-field", help="Field of the passage id, where it is none of id, _id, passage_id, docid.")
@click.option(
    "--dead-letters",
    type=click.Path(path_type=Path),
    help="File for the rows that were rejected, rewritten by each run.  [default: ./NAME.rejected.jsonl]",
)
@quantisation_option
@device_option
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    help="CPU threads: as many chunks of passages are in work at once.  [default: one a core]",
)
@click.pass_obj
def ingest(
    quiet: bool,
    /,
    file: str,
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
    quantisation: str | None,
    **settings: Any,
) -> None:
    """Store the passages of FILE with augmented vectors.

    FILE is JSONL, TSV or Parquet, a BEIR folder, or - for JSONL on standard input. Interrupted and run again, it goes
    on where it stopped; run on an edited file, it redoes what changed. Rows that cannot be used are written to the
    dead-letter file with their line and the reason; then the exit code is 3.
    """
    from xqg_qdrant.corpus import count_rows, read_generated_queries, read_passages, read_queried_passages
    from xqg_qdrant.indexing import EXACT_UP_TO, measure_recall
    from xqg_qdrant.ingest import Row, make_recipe
    from xqg_qdrant.languages import parse_languages
    from xqg_qdrant.progress import run_ingest, run_optimise
    from xqg_qdrant.query_index import QueryIndex

    if queries is not None and generator_folder is not None:
        raise click.UsageError("Give --generator or --queries, not both.")
    index = None
    rows: Iterator[Row]
    if queries == "corpus":
        rows = read_queried_passages(file, id_field=id_field)
    else:
        rows = passages = read_passages(file, id_field=id_field)
        if queries is not None:
            index = QueryIndex(read_generated_queries(queries, id_field=id_field))
            rows = index.join(passages)
    with opened_store(location) as store:
        # One thread an operator: the workers of the ingest are the threads.
        encoder = load_encoder(encoder_folder, device, 1)
        generator = load_generator(generator_folder, device, 1) if queries is None else None
        named: tuple[str, ...] = ()
        if languages is not None:
            named = parse_languages(languages, generator.languages) if generator else (languages,)
        recipe = make_recipe(generator, named, **settings)
        total = None if quiet else count_rows(file)
        letters = dead_letters or Path(f"{collection}.rejected.jsonl")
        totals = run_ingest(rows, total, store, collection, encoder, generator, recipe, threads, letters, quiet)
        if quantisation:
            store.quantise(collection)
        indexed = (totals.stored or quantisation) and run_optimise(store, collection, EXACT_UP_TO, quiet)
        if indexed and not quiet:
            click.echo(measure_recall(store, collection), err=True)
    if index is not None and index.left_over:
        click.echo(f"Queries of {queries} that belong to no passage of {file}: {index.left_over}", err=True)
    if totals.rejected:
        click.echo(f"{totals.rejected} rejected rows, with their reasons, are in {letters}", err=True)
        sys.exit(ROWS_REJECTED_EXIT_CODE)
