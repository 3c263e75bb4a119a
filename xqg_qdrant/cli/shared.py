"""What several commands share: the `xqg` group and its errors, grouped help, opened stores and models, Ray."""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
from click.core import ParameterSource

from xqg_qdrant.cli.arguments import Command, dead_letters_path, overwrites
from xqg_qdrant.cli.options import OPTION_GROUPS, Splitting, add_options
from xqg_qdrant.cli.terminal import echo, echo_traceback, echo_usage_error, prepare_streams
from xqg_qdrant.errors import INTERRUPTED_EXIT_CODE, ROWS_REJECTED_EXIT_CODE, InputError, MismatchError, XqgError
from xqg_qdrant.secrets import hide_query, remember_environment
from xqg_qdrant.text import count_of

if TYPE_CHECKING:
    from xqg_qdrant.augmentation.pipeline import Totals
    from xqg_qdrant.augmentation.ray_engine import Job
    from xqg_qdrant.augmentation.recipe import Recipe
    from xqg_qdrant.corpus.dead_letters import DeadLetters
    from xqg_qdrant.corpus.inputs import Inputs
    from xqg_qdrant.evaluation.comparison import Report
    from xqg_qdrant.evaluation.results import MatchQueries
    from xqg_qdrant.evaluation.sweep.trial import Sweep
    from xqg_qdrant.fingerprint import Fingerprint
    from xqg_qdrant.generation import Endpoint, Generator
    from xqg_qdrant.inference import Reading, TextEncoder
    from xqg_qdrant.model_folders import ModelFolder
    from xqg_qdrant.records import PayloadLayout, Query, Space
    from xqg_qdrant.stores import Sharding, Store
    from xqg_qdrant.stores.server.foreign import ForeignStore
    from xqg_qdrant.stores.server.own_space import OwnSpaceStore

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")

LOCAL, RAY = "local", "ray"
# Names of commands in other programs.
OTHER_NAMES = {
    **dict.fromkeys(("search", "ask", "find", "retrieve"), "query"),
    **dict.fromkeys(("index", "add", "import", "load", "upsert", "insert"), "ingest"),
    **dict.fromkeys(("list", "ls", "info", "show", "collections"), "status"),
    **dict.fromkeys(("remove", "rm", "drop"), "delete"),
    **dict.fromkeys(("update", "refresh"), "sync"),
    **dict.fromkeys(("eval", "benchmark", "test"), "evaluate"),
    **dict.fromkeys(("convert", "download"), "export"),
    **dict.fromkeys(("optimize", "reindex"), "optimise"),
}
SWEPT_RUNS = "passage is plain, xqg the best setting, control the same with the mean query"


class Group(click.Group):
    """A command group that prints every error of the package as a message and a cure, and sets the exit code."""

    command_class = Command

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command whose options are also set by variables with their names: XQG_QUERY_ENCODER is --encoder."""
        for option in cmd.params:
            if isinstance(option, click.Option):
                own = f"XQG_{name or cmd.name}_{option.opts[0].lstrip('-')}".upper().replace("-", "_")
                others = [option.envvar] if isinstance(option.envvar, str) else option.envvar or ()
                option.envvar = [own, *others]
        super().add_command(cmd, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is an error that suggests the likely one."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            meant = OTHER_NAMES.get(name) or next(iter(get_close_matches(name, self.list_commands(ctx))), None)
            hint = f" Did you mean {meant!r}?" if meant else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:  # noqa: ANN401
        """Run as click does, but print usage errors without control characters and secrets."""
        remember_environment()
        if standalone_mode and sys.stdout is sys.__stdout__:
            prepare_streams()
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
                echo_traceback()
            echo(f"Error: {error.message}", err=True)
            if error.cure:
                echo(f"Cure: {error.cure}.", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED_EXIT_CODE)
        except (click.exceptions.Exit, click.ClickException, click.Abort, BrokenPipeError):
            raise
        except OSError as error:
            # No code can foresee all that a file system refuses.
            if ctx.params.get("verbose"):
                echo_traceback()
            where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
            echo(f"Error: {where}{error.strerror or error}.", err=True)
            echo("Cure: check the path, its permissions and the free space of the disk.", err=True)
            ctx.exit(InputError.exit_code)
        except Exception as error:
            if ctx.params.get("verbose"):
                echo_traceback()
            echo(f"Error: this is a bug in xqg: {type(error).__name__}: {error}", err=True)
            echo("Cure: report it with the traceback, which `xqg -v …` prints.", err=True)
            ctx.exit(1)


class GroupedCommand(Command):
    """A command whose help shows its options below the headings of `OPTION_GROUPS`; what is in none comes last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section of options per heading."""
        heading_of = {name: heading for heading, names in OPTION_GROUPS.items() for name in names}
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in (*OPTION_GROUPS, "Other")}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections[heading_of.get(parameter.name or "", "Other")].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


class Warnings(logging.Handler):
    """Prints the warnings of the package, such as that a device is short of memory."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one warning."""
        echo(f"Warning: {record.getMessage()}", err=True)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "XQG"})
@click.version_option(package_name="xqg-qdrant")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only: no progress, no messages.")
@click.option("-v", "--verbose", is_flag=True, help="Print a traceback with every error.")
@click.pass_context
def main(ctx: click.Context, quiet: bool, verbose: bool) -> None:
    """Make a Qdrant collection answer questions in languages that its passages are not written in.

    A store is a directory of the embedded engine (DIR or edge:DIR), qdrant-client's local mode (local:DIR or :memory:),
    or a server's URL, with its key in QDRANT_API_KEY. Every option can also be set in the environment, by its command
    and name: XQG_INGEST_ALPHA=0.02 is `xqg ingest --alpha 0.02`.
    """
    ctx.obj = quiet
    logging.getLogger("xqg_qdrant").handlers = [logging.NullHandler() if quiet else Warnings()]


def command_name() -> str:
    """Return what to type to call this command again, quoted for a shell.

    It is the path by which the command was called, such as `.venv/bin/xqg`, unless the shell finds that file as `xqg`.
    """
    called = sys.argv[0]
    if not os.path.dirname(called) or Path(called).stem != "xqg":
        return "xqg"
    found = shutil.which("xqg")
    return "xqg" if found and os.path.realpath(found) == os.path.realpath(called) else shlex.quote(called)


def given_command() -> list[str]:
    """Return the command that repeats this one, with what came from the command line and the environment.

    A key in the query of a URL is left out, however short.
    """
    context = click.get_current_context()
    words = ["xqg", *context.command_path.split()[1:]]
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in context.params or context.get_parameter_source(name) not in (
            ParameterSource.COMMANDLINE,
            ParameterSource.ENVIRONMENT,
        ):
            continue
        value = context.params[name]
        values = [str(one) for one in value] if isinstance(value, tuple) else [str(value)]
        if isinstance(parameter, click.Option):
            if parameter.is_flag:
                words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
                continue
            values = [hide_query(one) if re.match(r"(?i)https?://.*\?", one) else one for one in values]
            values = [word for one in values for word in (parameter.opts[0], one)]
        words += values
    return words


def save_last(save: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a function at the end of the command: results are printed before anything that may fail is written."""
    click.get_current_context().call_on_close(partial(save, *args, **kwargs))


def describe_searched(store: Store, collection: str, encoder: TextEncoder) -> dict[str, Any]:
    """Return the searched collection as keyword arguments of `make_manifest`."""
    return {
        "collection": collection,
        "store": store.location,
        "fingerprint": store.read_fingerprint(collection),
        "device": encoder.device,
    }


def match_by(encoder: TextEncoder) -> MatchQueries:
    """Return a function that finds the generated query nearest to a question, for saved results."""
    from xqg_qdrant.retrieval import match_queries

    return lambda question, found: match_queries(encoder, encoder.encode_queries([question])[0], found)


def echo_summary(report: Report, queries: Sequence[Query]) -> None:
    """Print the main measures of a report, and in words what the augmentation gains."""
    from xqg_qdrant.evaluation.baselines import CONTROL
    from xqg_qdrant.evaluation.comparison import compare_runs
    from xqg_qdrant.printing import SUMMARY_MEASURES, format_conclusion, format_summary
    from xqg_qdrant.records import XQG_VECTOR

    echo(format_summary(report))
    measure = next((name for name in SUMMARY_MEASURES if name in report.measures), "")
    against = compare_runs(report, CONTROL, XQG_VECTOR, measure, queries)
    echo(format_conclusion(report, XQG_VECTOR, measure, against))


def echo_sweep(sweep: Sweep) -> None:
    """Print what a sweep reports on the second half of the questions, by the measure that it chose by."""
    from xqg_qdrant.evaluation.sweep.summary import format_gains
    from xqg_qdrant.printing import format_summary

    echo(format_summary(sweep.report, [sweep.measure]))
    echo(format_gains(sweep))


def echo_report(report: Report, as_json: bool) -> None:
    """Print a report."""
    import json

    from xqg_qdrant.printing import format_table

    echo(json.dumps(report.to_json(), ensure_ascii=False, indent=2) if as_json else format_table(report), nl=as_json)


@contextmanager
def opened_store(
    location: str,
    key_variable: str = "QDRANT_API_KEY",
    sharding: Sharding | None = None,
    patience: float = math.inf,
) -> Iterator[Store]:
    """Open a store and close it on exit; its key comes from the environment.

    `patience` is the most seconds to wait for a server that does not answer.
    """
    from xqg_qdrant.stores import open_store

    api_key = os.environ.get(key_variable)
    with open_store(location, api_key, sharding, patience) as store:
        _warn_of_clear_key(store, api_key)
        yield store


@contextmanager
def opened_foreign_store(
    location: str, layout: PayloadLayout | None, space: Space | None = None
) -> Iterator[ForeignStore]:
    """Open a store of other programs' collections and close it on exit; its key comes from the environment."""
    from xqg_qdrant.stores import open_foreign_store

    if space is not None and layout is not None:
        with opened_own_space_store(location, layout, space) as store:
            yield store
        return
    api_key = os.environ.get("QDRANT_API_KEY")
    with closing(open_foreign_store(location, api_key, layout)) as opened:
        _warn_of_clear_key(opened, api_key)
        yield opened


@contextmanager
def opened_own_space_store(location: str, layout: PayloadLayout, space: Space) -> Iterator[OwnSpaceStore]:
    """Open a store of collections that have a vector of their own; close it on exit."""
    from xqg_qdrant.stores import open_own_space_store

    api_key = os.environ.get("QDRANT_API_KEY")
    with closing(open_own_space_store(location, api_key, layout, space)) as store:
        _warn_of_clear_key(store, api_key)
        yield store


def check_own_space(store: ForeignStore, collection: str, vector: str, encoder: TextEncoder, quiet: bool) -> None:
    """Check that an encoder made a collection's vectors, and print how well it fits."""
    from xqg_qdrant.augmentation.own_space import check_space
    from xqg_qdrant.stores.server.own_space import OwnSpaceStore

    assert isinstance(store, OwnSpaceStore)
    known = store.read_space(collection)
    fit = check_space(store.read_passages(collection), encoder, known.dim, known.cosine, vector)
    if not quiet:
        echo(f"the encoder made vector {vector!r}: {fit}", err=True)


def _warn_of_clear_key(store: Store, api_key: str | None) -> None:
    from xqg_qdrant.stores import sends_key_in_clear

    if sends_key_in_clear(store.location, api_key) and not click.get_current_context().obj:
        echo(f"Warning: the API key travels unencrypted to {store.location}; use https where you can.", err=True)


def load_encoder(
    folder: Path | None, device: str, threads: int, store: Store | None = None, collection: str = ""
) -> TextEncoder:
    """Open the encoder in a folder, behind an endpoint that a folder describes, or the shipped one.

    Without a folder, it is the one that made the collection, if it is still where it was.
    """
    from xqg_qdrant.inference import open_encoder
    from xqg_qdrant.lifecycle.models import check_owner, find_encoder

    if folder is None and store is not None and (known := find_encoder(store, collection)):
        folder = check_owner(known, collection)
    encoder = open_encoder(folder, device, threads)
    if encoder.device == "remote":
        click.get_current_context().call_on_close(partial(close_encoder, encoder))
    return encoder


@contextmanager
def keeping_models(
    store: Store, collection: str, encoder: TextEncoder, source: Path | Endpoint | None = None, *, generated: bool
) -> Iterator[None]:
    """Keep with a collection, once it exists, where its models are; `source` is the generator's, None the demo's."""
    from xqg_qdrant.lifecycle.models import describe_encoder, describe_generator, update_models

    models = {"encoder": describe_encoder(encoder)}
    if generated:
        models["generator"] = describe_generator(source)
    try:
        yield
    except MismatchError:
        raise
    except BaseException:
        with suppress(XqgError):
            update_models(store, collection, models)
        raise
    update_models(store, collection, models)


def close_encoder(encoder: TextEncoder) -> None:
    """Close the connections of an encoder behind an endpoint; print what it took."""
    from xqg_qdrant.inference.remote_encoder import RemoteEncoder
    from xqg_qdrant.text import count_of

    if not isinstance(encoder, RemoteEncoder):
        return
    encoder.close()
    if not click.get_current_context().obj:
        cost = f", which cost {encoder.cost:.4g}" if encoder.cost else ""
        cut = f"; {count_of(encoder.truncated, 'text')} truncated" if encoder.truncated else ""
        echo(f"{count_of(encoder.tokens, 'token')} encoded at the endpoint{cost}{cut}.", err=True)


def load_generator(
    source: Path | Endpoint | None, device: str, threads: int, location: str = "", collection: str = ""
) -> Generator:
    """Open the generator of a source, or the shipped one.

    A language model keeps replies beside an embedded store until their passages are stored, else in the user's cache.
    """
    from xqg_qdrant.generation import Endpoint, open_generator
    from xqg_qdrant.stores import find_directory

    if not isinstance(source, Endpoint):
        return open_generator(source, device, threads)
    directory = find_directory(location) if location else None
    if directory is not None:
        source = source._replace(journal=directory.with_name(f"{directory.name}.{collection}.replies"))
    from xqg_qdrant.generation.llm import LanguageModelGenerator

    generator = LanguageModelGenerator(**source._asdict())
    warn_of_clear_key(source.url)
    click.get_current_context().call_on_close(generator.close)
    return generator


def warn_of_clear_key(url: str) -> None:
    """Warn if a language model's key travels unencrypted to another machine."""
    from urllib.parse import urlsplit

    from xqg_qdrant.generation.llm import read_key

    host = urlsplit(url).hostname or ""
    if read_key() and url.lower().startswith("http://") and host not in ("localhost", "::1") and host[:4] != "127.":
        logging.getLogger("xqg_qdrant").warning("the key travels unencrypted to %s; use https", host)


def echo_cost(source: object, totals: Totals, quiet: bool) -> None:
    """Print what the calls of a language model cost, if prices are known."""
    from xqg_qdrant.generation import Endpoint

    if isinstance(source, Endpoint) and totals.usage.calls and not quiet and (source.price_in or source.price_out):
        echo(f"The calls cost {source.price(totals.usage):.4g}.", err=True)


def choose_languages(languages: str | None, generator: Generator) -> tuple[str, ...]:
    """Return the languages that --languages names; none where it is not given."""
    from xqg_qdrant.languages import parse_languages

    return parse_languages(languages, generator.languages) if languages is not None else ()


def split_inputs(
    inputs: Inputs, splitting: Splitting | None, folder: ModelFolder, stored: Fingerprint | None
) -> dict[str, int]:
    """Have documents split for an encoder if --split is given; return the settings of the recipe."""
    from xqg_qdrant.inference.splitting import choose_splitter

    if splitting is None:
        return {}
    splitter = choose_splitter(folder, stored, *splitting)
    inputs.split_by(splitter)
    return {"split_tokens": splitter.tokens, "split_overlap": splitter.overlap}


def split_again(
    inputs: Inputs, store: Store, collection: str, folder: Path | None, device: str = "cpu"
) -> TextEncoder | None:
    """Have documents split as those of a collection; return the encoder, None if they are not split.

    Raises:
        MismatchError: the encoder is another one.
    """
    from xqg_qdrant.fingerprint import is_split
    from xqg_qdrant.retrieval import check_collection
    from xqg_qdrant.stores import read_existing_fingerprint

    stored = read_existing_fingerprint(store, collection)
    if not is_split(stored):
        return None
    encoder = load_encoder(folder, device, 1, store, collection)
    check_collection(store, collection, encoder)
    split_inputs(inputs, Splitting(None, None), encoder.folder, stored)
    return encoder


def open_dead_letters(path: Path | None, name: str) -> DeadLetters:
    """Return the dead-letter file that --dead-letters names, or the default one of a collection or folder."""
    from xqg_qdrant.corpus.dead_letters import DeadLetters

    return DeadLetters(path or dead_letters_path(name), overwrites())


def echo_recipe(recipe: Recipe, reason: str, quiet: bool, plain: bool = False, written: str = "") -> None:
    """Print which recipe is used, and why; `written` says which queries, unless the recipe does."""
    if quiet:
        return
    fused = f"{recipe.fusion} fusion, alpha {recipe.alpha:g}{', renormalised' if recipe.renormalise else ''}"
    calibrated = f", calibrated with gamma {recipe.gamma:g}" if recipe.gamma else ""
    given = "no queries yet" if plain else "given queries"
    if not written:
        asked = f"{count_of(recipe.queries_per_language, 'query', 'queries')} a language"
        written = given if recipe.given else asked
    echo(f"{written}, {fused}{calibrated} ({reason})", err=True)


def echo_unused_queries(inputs: Inputs) -> None:
    """Print which given queries belong to no passage."""
    if inputs.unused:
        echo(inputs.unused, err=True)


def exit_if_rejected(totals: Totals, path: Path) -> None:
    """Name the dead-letter file and the reasons, and exit with code 3 if rows were rejected."""
    from xqg_qdrant.printing import format_rejected

    if totals.rejected:
        echo(format_rejected(totals, path), err=True)
        sys.exit(ROWS_REJECTED_EXIT_CODE)


def index_large(store: Store, collection: str, quiet: bool) -> None:
    """Index a large collection and print its recall."""
    from xqg_qdrant.cli.progress import run_optimise
    from xqg_qdrant.lifecycle.status import EXACT_UP_TO, describe_recall

    if run_optimise(store, collection, EXACT_UP_TO, quiet) and not quiet:
        echo(describe_recall(store, collection), err=True)


def engine_options(command: F) -> F:
    """Add --engine, --address and --num-workers."""
    options = (
        click.option(
            "--engine",
            type=click.Choice([LOCAL, RAY]),
            default=LOCAL,
            show_default=True,
            help="This process, or a Ray cluster with a server as the store.",
        ),
        click.option(
            "--address",
            envvar="RAY_ADDRESS",
            default="local",
            show_default=True,
            metavar="HOST:PORT|auto|local",
            help="Ray cluster of this machine; local starts one for this ingest.",
        ),
        click.option(
            "--num-workers",
            type=click.IntRange(min=0),
            default=0,
            help="Ray workers, each a GPU or --threads (1) CPUs.  [default: as many as fit]",
        ),
    )
    return add_options(options, command)


def check_ray(files: Sequence[str], location: str, encoder_folder: Path | None, source: Path | Endpoint | None) -> None:
    """Check that Ray can run an ingest.

    Raises:
        InputError: the store takes one writer, a file is standard input, a limit cannot be kept, or Ray is missing.
    """
    from xqg_qdrant.generation import Endpoint
    from xqg_qdrant.model_folders.description import read_endpoint

    encoder = (read_endpoint(encoder_folder) if encoder_folder else None) or {"max_tokens": 0, "max_cost": 0}
    limits = [encoder["max_tokens"], encoder["max_cost"]]
    if isinstance(source, Endpoint):
        limits += [source.max_tokens, source.max_cost]
    if any(limits):
        raise InputError("workers of a cluster do not share a limit of tokens or money.", "leave out --engine ray")
    from xqg_qdrant.stores import is_server

    if not is_server(location):
        raise InputError(
            f"--engine ray needs a store for several writers ({location!r} takes one)",
            "give a server's URL (--store), or leave out --engine ray",
        )
    if "-" in files:
        raise InputError("--engine ray cannot read standard input", "give a file")
    try:
        import xqg_qdrant.augmentation.ray_engine  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f"--engine ray needs {error.name}", "pip install 'xqg-qdrant[ray]'") from error


def run_on_ray(
    job: Job,
    store: Store,
    address: str,
    device: str,
    num_workers: int,
    threads: int,
    total: int | None,
    dead_letters: DeadLetters,
    quiet: bool,
) -> Totals:
    """Ingest on a Ray cluster, with the progress bar and the summary of any ingest."""
    from xqg_qdrant.augmentation.ray_cluster import connected, list_machines, make_plan
    from xqg_qdrant.augmentation.ray_engine import Keys, ingest_on_ray
    from xqg_qdrant.cli.progress import echo_unread, run_engine
    from xqg_qdrant.generation import llm
    from xqg_qdrant.inference import remote_encoder

    with connected(address):
        plan = make_plan(list_machines(), device, num_workers, threads)
        keys = Keys(os.environ.get("QDRANT_API_KEY"), llm.read_key(), remote_encoder.read_key())
        readings: list[Reading | None] = []
        begin = partial(ingest_on_ray, job, store, keys, plan, readings=readings)
        totals = run_engine(begin, total, dead_letters, quiet)
    if not quiet:
        echo_unread(*readings)
    return totals
