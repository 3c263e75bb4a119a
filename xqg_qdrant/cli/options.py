"""The options that several commands share, and how what they name is opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from xqg_qdrant.encoder import Encoder
    from xqg_qdrant.evaluation.report import Report
    from xqg_qdrant.generator import Generator
    from xqg_qdrant.stores import Store

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_STORE = "./xqg_data"
EVALUATION_DEPTH = 100


def store_option(command: F) -> F:
    """Add --store, as `location`."""
    return click.option(
        "--store",
        "location",
        envvar=["XQG_STORE", "QDRANT_URL"],
        default=DEFAULT_STORE,
        show_default=True,
        help="Where the collection lives: a directory (embedded), edge:DIR, local:DIR, :memory:, or a server's URL "
        "(with its key in QDRANT_API_KEY).",
    )(command)


def collection_option(**settings: Any) -> Callable[[F], F]:
    """Return what adds --collection."""
    return click.option("--collection", metavar="NAME", help="The collection's name.", **settings)


def encoder_option(command: F) -> F:
    """Add --encoder, as `encoder_folder`."""
    return click.option(
        "--encoder",
        "encoder_folder",
        type=click.Path(path_type=Path),
        help="Model folder of the encoder.  [default: the demo encoder]",
    )(command)


def quantisation_option(command: F) -> F:
    """Add --quantisation."""
    return click.option(
        "--quantisation",
        type=click.Choice(["int8"]),
        help="Index int8 codes, a quarter of the size; the best are scored again with the stored vectors.",
    )(command)


def device_option(command: F) -> F:
    """Add --device."""
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where the models run; cuda fails rather than fall back.",
    )(command)


def device_options(command: F) -> F:
    """Add --device and --threads."""
    threads = click.option("--threads", type=click.IntRange(min=0), default=0, help="CPU threads.  [default: all]")
    return device_option(threads(command))


def echo_report(report: Report, as_json: bool) -> None:
    """Print a report."""
    import json

    from xqg_qdrant.evaluation.report import format_table

    click.echo(
        json.dumps(report.to_json(), ensure_ascii=False, indent=2) if as_json else format_table(report), nl=as_json
    )


@contextmanager
def opened_store(location: str) -> Iterator[Store]:
    """Open a store and close it again; its key comes from the environment."""
    from xqg_qdrant.stores import open_store

    store = open_store(location, os.environ.get("QDRANT_API_KEY"))
    try:
        yield store
    finally:
        store.close()


def load_encoder(folder: Path | None, device: str, threads: int) -> Encoder:
    """Open the encoder in a folder, or the one that ships."""
    from xqg_qdrant.encoder import Encoder
    from xqg_qdrant.model_folder import DEMO_ENCODER, shipped_model

    return Encoder(folder or shipped_model(DEMO_ENCODER), device, threads)


def load_generator(folder: Path | None, device: str, threads: int) -> Generator:
    """Open the generator in a folder, or the one that ships."""
    from xqg_qdrant.generator import Generator
    from xqg_qdrant.model_folder import DEMO_GENERATOR, shipped_model

    return Generator(folder or shipped_model(DEMO_GENERATOR), device, threads)
