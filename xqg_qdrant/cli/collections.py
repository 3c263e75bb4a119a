"""The commands about a collection as a whole."""

from __future__ import annotations

import click

from xqg_qdrant.cli.group import main
from xqg_qdrant.cli.options import collection_option, opened_store, quantisation_option, store_option


@main.command()
@collection_option(required=True)
@store_option
@quantisation_option
@click.pass_obj
def optimise(quiet: bool, /, collection: str, location: str, quantisation: str | None) -> None:
    """Index a collection, and tell how many of the exact best passages a search then finds.

    xqg ingest indexes a collection of the embedded store by itself when it holds more than 50,000 passages. A server
    indexes in the background, whenever it wants: there only the recall is measured.
    """
    from xqg_qdrant.indexing import measure_recall
    from xqg_qdrant.progress import run_optimise

    with opened_store(location) as store:
        if quantisation:
            store.quantise(collection)
        run_optimise(store, collection, 0, quiet)
        click.echo(measure_recall(store, collection))
