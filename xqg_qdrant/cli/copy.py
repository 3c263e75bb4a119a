"""`xqg copy`: a collection into another place."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import click

from xqg_qdrant.cli.cluster import sharding_options, take_sharding
from xqg_qdrant.cli.group import main
from xqg_qdrant.cli.options import DEFAULT_STORE, collection_option
from xqg_qdrant.cli.shared import index_large, opened_store

TARGET_KEY = "QDRANT_TARGET_API_KEY"


@main.command()
@collection_option(required=True)
@click.option(
    "--from",
    "source_location",
    envvar=["XQG_STORE", "QDRANT_URL"],
    default=DEFAULT_STORE,
    show_default=True,
    help="Where the collection lives: a directory (embedded), edge:DIR, local:DIR, or a server's URL (with its key in "
    "QDRANT_API_KEY).",
)
@click.option(
    "--to",
    "target_location",
    required=True,
    help=f"Where the copy goes, written in the same way. Copying from server to server, its key is in {TARGET_KEY}.",
)
@click.option("--as", "name", metavar="NAME", help="The copy's name.  [default: the collection's]")
@sharding_options
@click.pass_obj
def copy(
    quiet: bool, /, collection: str, source_location: str, target_location: str, name: str | None, **settings: Any
) -> None:
    """Copy a collection into another store, vectors and payload as they are.

    Nothing is embedded or generated again. Interrupted and run again, it goes on where it stopped; run on a source that
    grew, it copies what is new. At the end the copy is read back and compared with the source, point by point.
    """
    from xqg_qdrant.progress import run_copy
    from xqg_qdrant.stores import is_same_place, is_server

    sharding = take_sharding(settings)
    with ExitStack() as opened:
        source = target = opened.enter_context(opened_store(source_location))
        if not is_same_place(source_location, target_location):
            # A server must not see the key of another one.
            both = is_server(source_location) and is_server(target_location)
            key = TARGET_KEY if both else "QDRANT_API_KEY"
            target = opened.enter_context(opened_store(target_location, key, sharding))
        run_copy(source, collection, target, name or collection, quiet)
        index_large(target, name or collection, quiet)
