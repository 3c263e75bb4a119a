"""What several commands do alike: open what their options name, tell of an ingest, print and keep figures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from xqg_qdrant.terminal import echo

if TYPE_CHECKING:
    from xqg_qdrant.encoder import Encoder
    from xqg_qdrant.evaluation.changes import MatchQueries
    from xqg_qdrant.evaluation.comparison import Report
    from xqg_qdrant.generator import QueryGenerator
    from xqg_qdrant.inputs import Inputs
    from xqg_qdrant.lexicon import Lexicon
    from xqg_qdrant.records import PayloadLayout
    from xqg_qdrant.stores import Sharding, Store
    from xqg_qdrant.stores.foreign import ForeignStore


def given_command() -> list[str]:
    """Return the command that repeats this one: what was given on the command line or in the environment."""
    context = click.get_current_context()
    words = ["xqg", *context.command_path.split()[1:]]
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) not in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
            continue
        value = context.params[name]
        values = [str(one) for one in value] if isinstance(value, tuple) else [str(value)]
        if isinstance(parameter, click.Option):
            if parameter.is_flag:
                words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
                continue
            values = [word for one in values for word in (parameter.opts[0], one)]
        words += values
    return words


def describe_searched(store: Store, collection: str, encoder: Encoder) -> dict[str, Any]:
    """Return what a manifest tells of the collection that was searched, by the names of `make_manifest`."""
    return {
        "collection": collection,
        "store": store.location,
        "fingerprint": store.read_fingerprint(collection),
        "device": encoder.device,
    }


def match_by(encoder: Encoder) -> MatchQueries:
    """Return what finds the generated query that speaks for a hit, for results that are saved."""
    from xqg_qdrant.retrieval import match_queries

    return lambda question, found: match_queries(encoder, encoder.encode_queries([question])[0], found)


def echo_report(report: Report, as_json: bool) -> None:
    """Print a report."""
    import json

    from xqg_qdrant.evaluation.table import format_table

    echo(json.dumps(report.to_json(), ensure_ascii=False, indent=2) if as_json else format_table(report), nl=as_json)


@contextmanager
def opened_store(
    location: str, key_variable: str = "QDRANT_API_KEY", sharding: Sharding | None = None
) -> Iterator[Store]:
    """Open a store and close it again; its key comes from the environment."""
    from xqg_qdrant.stores import open_store

    api_key = os.environ.get(key_variable)
    with open_store(location, api_key, sharding) as store:
        _warn_of_clear_key(store, api_key)
        yield store


@contextmanager
def opened_foreign_store(location: str, layout: PayloadLayout) -> Iterator[ForeignStore]:
    """Open a store for collections of other programs and close it again; its key comes from the environment."""
    from xqg_qdrant.stores import open_foreign_store

    api_key = os.environ.get("QDRANT_API_KEY")
    with closing(open_foreign_store(location, api_key, layout)) as store:
        _warn_of_clear_key(store, api_key)
        yield store


def _warn_of_clear_key(store: Store, api_key: str | None) -> None:
    from xqg_qdrant.stores import sends_key_in_clear

    if sends_key_in_clear(store.location, api_key) and not click.get_current_context().obj:
        echo(f"Warning: the API key travels unencrypted to {store.location}; use https where you can.", err=True)


def load_encoder(folder: Path | None, device: str, threads: int) -> Encoder:
    """Open the encoder in a folder, or the one that ships."""
    from xqg_qdrant.encoder import Encoder

    return Encoder(folder, device, threads)


def load_generator(path: Path | None, device: str, threads: int) -> QueryGenerator | Lexicon:
    """Open the generator in a folder, the lexicon in a file, or the generator that ships."""
    from xqg_qdrant.generator import QueryGenerator
    from xqg_qdrant.lexicon import Lexicon

    if path is not None and path.is_file():
        return Lexicon(path)
    return QueryGenerator(path, device, threads)


def tell_left_over(inputs: Inputs) -> None:
    """Tell how many queries of a file of their own were of no use."""
    if inputs.left_over:
        echo(f"Queries of {inputs.queries} that belong to no passage of {inputs}: {inputs.left_over}", err=True)


def index_large(store: Store, collection: str, quiet: bool) -> None:
    """Index a collection that is large enough for it, and tell the recall."""
    from xqg_qdrant.indexing import EXACT_UP_TO, measure_recall
    from xqg_qdrant.progress import run_optimise

    if run_optimise(store, collection, EXACT_UP_TO, quiet) and not quiet:
        echo(measure_recall(store, collection), err=True)
