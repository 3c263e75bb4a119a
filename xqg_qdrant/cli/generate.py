"""`xqg generate`: passages into Parquet, with their queries and vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from xqg_qdrant.cli.group import main
from xqg_qdrant.cli.ingest import end
from xqg_qdrant.cli.options import (
    dead_letters_option,
    device_option,
    encoder_option,
    generator_option,
    id_field_option,
    recipe_options,
    workers_option,
)
from xqg_qdrant.cli.shared import load_encoder, load_generator


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
    from xqg_qdrant.dead_letters import DeadLetters
    from xqg_qdrant.errors import InputError
    from xqg_qdrant.inputs import Inputs
    from xqg_qdrant.languages import parse_languages
    from xqg_qdrant.progress import count_read, run_ingest
    from xqg_qdrant.recipe import make_recipe
    from xqg_qdrant.records import Passage

    try:
        from xqg_qdrant.stores.parquet import ParquetFolder, find_metadata_kind
    except ModuleNotFoundError as error:
        raise InputError(f"Parquet needs an extra ({error}). Cure: pip install 'xqg-qdrant[parquet]'.") from error
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
