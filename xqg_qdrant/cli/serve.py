"""`xqg serve`: a search page on this machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

from xqg_qdrant.cli.group import main
from xqg_qdrant.cli.options import collection_option, device_options, encoder_option, store_option
from xqg_qdrant.cli.shared import load_encoder, opened_store
from xqg_qdrant.terminal import echo


@main.command()
@collection_option(show_default="the only one of the store")
@store_option
@encoder_option
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Of this machine; 0 is any free one."
)
@click.option(
    "--allow-host",
    "names",
    metavar="NAME",
    multiple=True,
    help="Another name to be asked by than localhost, such as that of a proxy before it. May be given again.",
)
@device_options
def serve(
    collection: str | None,
    location: str,
    encoder_folder: Path | None,
    port: int,
    names: tuple[str, ...],
    device: str,
    threads: int,
) -> None:
    """Show what a question finds with and without the augmentation, on a page and as JSON, until Ctrl-C.

    The page is at http://127.0.0.1:8000/, for nobody but this machine. The JSON is at /api/search?q=QUESTION&limit=5.
    """
    from xqg_qdrant.serve.app import ADDRESS, listen, make_app, make_server
    from xqg_qdrant.serve.finding import Finder, choose_collection

    with listen(port) as listening, opened_store(location) as store:
        encoder = load_encoder(encoder_folder, device, threads)
        finder = Finder(store, collection or choose_collection(store), encoder)
        app = make_app(finder, names)
        url = f"http://{ADDRESS}:{listening.getsockname()[1]}/"
        echo(f"Serving {finder.collection!r} at {url} - Ctrl-C ends it.", err=True)
        # The server has ended well when it hands the signal on.
        with suppress(KeyboardInterrupt):
            make_server(app).run([listening])
