"""Where an ingest runs: in this process, or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xqg_qdrant.cli.options import add_options
from xqg_qdrant.errors import InputError

if TYPE_CHECKING:
    from xqg_qdrant.dead_letters import DeadLetters
    from xqg_qdrant.printing import Totals
    from xqg_qdrant.ray_engine import Job
    from xqg_qdrant.stores import Store

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
        cure = "Cure: give a server's URL (--store), or leave out --engine ray"
        raise InputError(f"the store {location!r} takes one writer, and Ray's workers are several. {cure}.")
    if "-" in files:
        raise InputError("Ray's workers cannot read the standard input of this process. Cure: give a file.")
    try:
        import xqg_qdrant.ray_engine  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f"--engine ray needs an extra ({error}). Cure: pip install 'xqg-qdrant[ray]'.") from error


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
    from xqg_qdrant.progress import run_engine
    from xqg_qdrant.ray_cluster import connected, list_machines, make_plan
    from xqg_qdrant.ray_engine import ingest_on_ray

    with connected(address):
        plan = make_plan(list_machines(), device, num_workers, threads)
        begin = partial(ingest_on_ray, job, store, os.environ.get("QDRANT_API_KEY"), plan)
        return run_engine(begin, total, letters, quiet)
