"""`xqg query` and `xqg serve`: questions to a collection, in the terminal and in a browser."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import click

from xqg_qdrant.cli.options import collection_option, device_options, encoder_option, store_option
from xqg_qdrant.cli.shared import load_encoder, main, opened_store
from xqg_qdrant.cli.terminal import echo, stdin_lines


@main.command()
@click.argument("questions", metavar="QUESTION...", nargs=-1)
@collection_option(required=True)
@store_option
@encoder_option
@click.option("--limit", type=click.IntRange(min=1), default=5, show_default=True, help="Passages per question.")
@click.option(
    "--rank",
    "ranking",
    type=click.Choice(["xqg", "passage", "hybrid", "max-sim", "offset", "passage-offset"]),
    default="xqg",
    show_default=True,
    help="How passages are ranked; see above.",
)
@click.option(
    "--language",
    default="",
    show_default="identified",
    help="Language of the questions, for --rank offset.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per question, a line each.")
@device_options
def query(
    questions: tuple[str, ...],
    collection: str,
    location: str,
    encoder_folder: Path | None,
    limit: int,
    ranking: str,
    language: str,
    as_json: bool,
    device: str,
    threads: int,
) -> None:
    """Find the passages that answer a QUESTION in any language.

    With - as the only QUESTION, questions are read from standard input, one a line.

    --rank xqg searches the augmented vectors, passage the plain ones for comparison, hybrid the augmented vectors and
    the terms, max-sim by the nearest of a passage and its queries. offset subtracts from the question what its
    --language adds to every question, which suits calibrated vectors; passage-offset does so for plain ones.
    """
    from xqg_qdrant.printing import format_asked_language, format_hits, hits_to_json
    from xqg_qdrant.retrieval import OFFSET_RANKINGS, Ranker, check_collection
    from xqg_qdrant.stores import ASKING_SECONDS

    if not questions:
        raise click.UsageError("Missing argument 'QUESTION...'; give - to read questions from standard input.")
    if not all(map(str.strip, questions)):
        raise click.UsageError("A QUESTION is empty.")
    lines: Iterable[str] = stdin_lines() if questions == ("-",) else questions
    with opened_store(location, patience=ASKING_SECONDS) as store:
        encoder = load_encoder(encoder_folder, device, threads, store, collection)
        check_collection(store, collection, encoder)
        ranker = Ranker(store, collection, encoder)
        for question in (line.strip() for line in lines if line.strip()):
            asked = ranker.find_languages([question], [language])[0] if ranking in OFFSET_RANKINGS else None
            [hits] = ranker.find_hits([question], limit, ranking, [asked.code if asked else ""])
            if as_json:
                echo(hits_to_json(question, ranking, hits, asked))
            else:
                told = f"  {format_asked_language(asked)}\n" if asked else ""
                echo(f"{question}\n{told}{format_hits(hits)}")


@main.command()
@collection_option(show_default="the only one of the store")
@store_option
@encoder_option
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port; 0 for a free one.",
)
@click.option(
    "--allow-host",
    "names",
    metavar="NAME",
    multiple=True,
    help="Host name to accept besides localhost, such as a proxy's. Repeatable.",
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
    """Serve a page that compares searches with and without the augmentation, until Ctrl-C.

    The page is at http://127.0.0.1:8000/, for this machine only. JSON is at /api/search?q=QUESTION&limit=5.
    """
    from xqg_qdrant.pages.search import Finder, choose_collection
    from xqg_qdrant.pages.server import ADDRESS, listen, make_app, make_server
    from xqg_qdrant.stores import SERVING_SECONDS

    with listen(port) as listening, opened_store(location, patience=SERVING_SECONDS) as store:
        name = collection or choose_collection(store)
        finder = Finder(store, name, load_encoder(encoder_folder, device, threads, store, name))
        app = make_app(finder, names)
        url = f"http://{ADDRESS}:{listening.getsockname()[1]}/"
        echo(f"Serving {finder.collection!r} at {url} (Ctrl-C to stop)", err=True)
        # The server passes the signal on after a clean end.
        with suppress(KeyboardInterrupt):
            make_server(app).run([listening])
