"""What several commands do alike: open what their options name, tell of an ingest, print and keep figures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from xqg_qdrant.cli.terminal import echo, echo_usage_error

if TYPE_CHECKING:
    from xqg_qdrant.corpus.inputs import Inputs
    from xqg_qdrant.evaluation.comparison import Report
    from xqg_qdrant.evaluation.results import MatchQueries
    from xqg_qdrant.generation.lexicon import Lexicon
    from xqg_qdrant.generation.onnx import QueryGenerator
    from xqg_qdrant.inference.encoder import Encoder
    from xqg_qdrant.records import PayloadLayout
    from xqg_qdrant.stores import Sharding, Store
    from xqg_qdrant.stores.server.foreign import ForeignStore


import logging
import sys
import traceback
from functools import partial

from xqg_qdrant.cli.options import add_options
from xqg_qdrant.errors import INTERRUPTED_EXIT_CODE, InputError, XqgError

if TYPE_CHECKING:
    from xqg_qdrant.augmentation.ray_engine import Job
    from xqg_qdrant.corpus.dead_letters import DeadLetters
    from xqg_qdrant.printing import Totals
    from xqg_qdrant.stores import Store


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

    from xqg_qdrant.printing import format_table

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
    from xqg_qdrant.inference.encoder import Encoder

    return Encoder(folder, device, threads)


def load_generator(path: Path | None, device: str, threads: int) -> QueryGenerator | Lexicon:
    """Open the generator in a folder, the lexicon in a file, or the generator that ships."""
    from xqg_qdrant.generation.lexicon import Lexicon
    from xqg_qdrant.generation.onnx import QueryGenerator

    if path is not None and path.is_file():
        return Lexicon(path)
    return QueryGenerator(path, device, threads)


def tell_left_over(inputs: Inputs) -> None:
    """Tell how many queries of a file of their own were of no use."""
    if inputs.left_over:
        echo(f"Queries of {inputs.queries} that belong to no passage of {inputs}: {inputs.left_over}", err=True)


def index_large(store: Store, collection: str, quiet: bool) -> None:
    """Index a collection that is large enough for it, and tell the recall."""
    from xqg_qdrant.cli.progress import run_optimise
    from xqg_qdrant.lifecycle.status import EXACT_UP_TO, measure_recall

    if run_optimise(store, collection, EXACT_UP_TO, quiet) and not quiet:
        echo(measure_recall(store, collection), err=True)


class Group(click.Group):
    """Turns the package's errors into one message and an exit code, at this one place."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:  # noqa: ANN401
        """Run as click does, but print what is wrong with the arguments without what could steer the terminal."""
        try:
            code = super().main(*args, standalone_mode=False, **extra)  # type: ignore[call-overload]
        except click.ClickException as error:
            if not standalone_mode:
                raise
            echo_usage_error(error)
            sys.exit(error.exit_code)
        except click.Abort:
            if not standalone_mode:
                raise
            echo("Aborted!", err=True)
            sys.exit(1)
        return sys.exit(code) if standalone_mode else code

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run the command; an error ends the process with its exit code."""
        try:
            return super().invoke(ctx)
        except XqgError as error:
            if ctx.params.get("verbose"):
                echo(traceback.format_exc(), err=True, nl=False)
            echo(f"Error: {error.message}", err=True)
            if error.cure:
                echo(f"Cure: {error.cure}.", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED_EXIT_CODE)
        except (click.exceptions.Exit, click.ClickException, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params.get("verbose"):
                echo(traceback.format_exc(), err=True, nl=False)
            echo(
                f"Error: this is a bug in xqg: {type(error).__name__}: {error}. "
                "Run again with `xqg -v …` for the traceback, and report it.",
                err=True,
            )
            ctx.exit(1)


class Warnings(logging.Handler):
    """Shows what a model tells while it goes on, such as that a device has too little memory."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one warning."""
        echo(f"Warning: {record.getMessage()}", err=True)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "XQG"})
@click.version_option(package_name="xqg-qdrant")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no messages besides errors.")
@click.option("-v", "--verbose", is_flag=True, help="A traceback with every error.")
@click.pass_context
def main(ctx: click.Context, quiet: bool, verbose: bool) -> None:
    """Make a Qdrant collection answer questions asked in languages its passages are not written in.

    Every option can also be set in the environment: XQG_INGEST_ALPHA=0.02 is `xqg ingest --alpha 0.02`.
    """
    ctx.obj = quiet
    logging.getLogger("xqg_qdrant").handlers = [logging.NullHandler() if quiet else Warnings()]


F = TypeVar("F", bound=Callable[..., Any])

LOCAL, RAY = "local", "ray"


def engine_options(command: F) -> F:
    """Add --engine, --address and --num-workers."""
    options = (
        click.option(
            "--engine",
            type=click.Choice([LOCAL, RAY]),
            default=LOCAL,
            show_default=True,
            help="local is this process; ray is a Ray cluster, with a server as the store. The points are the same.",
        ),
        click.option(
            "--address",
            envvar="RAY_ADDRESS",
            default="local",
            show_default=True,
            metavar="HOST:PORT|auto|local",
            help="The Ray cluster that this machine belongs to; local starts one on this machine, for this ingest.",
        ),
        click.option(
            "--num-workers",
            type=click.IntRange(min=0),
            default=0,
            help="Workers on Ray; each takes a GPU, or --threads CPUs (1 by default), and opens the models once.  "
            "[default: as many as the cluster has room for]",
        ),
    )
    return add_options(options, command)


def check_ray(files: Sequence[str], location: str) -> None:
    """Refuse what cannot be done by several processes.

    Raises:
        InputError: says what, and the cure.
    """
    from xqg_qdrant.stores import is_server

    if not is_server(location):
        cure = "give a server's URL (--store), or leave out --engine ray"
        raise InputError(f"the store {location!r} takes one writer, and Ray's workers are several.", cure)
    if "-" in files:
        raise InputError("Ray's workers cannot read the standard input of this process.", "give a file.")
    try:
        import xqg_qdrant.augmentation.ray_engine  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f"--engine ray needs an extra ({error}).", "pip install 'xqg-qdrant[ray]'.") from error


def run_on_ray(
    job: Job,
    store: Store,
    address: str,
    device: str,
    num_workers: int,
    threads: int,
    total: int | None,
    letters: DeadLetters,
    quiet: bool,
) -> Totals:
    """Ingest on a Ray cluster, with the progress bar and the summary of any ingest."""
    from xqg_qdrant.augmentation.ray_cluster import connected, list_machines, make_plan
    from xqg_qdrant.augmentation.ray_engine import ingest_on_ray
    from xqg_qdrant.cli.progress import run_engine

    with connected(address):
        plan = make_plan(list_machines(), device, num_workers, threads)
        begin = partial(ingest_on_ray, job, store, os.environ.get("QDRANT_API_KEY"), plan)
        return run_engine(begin, total, letters, quiet)
