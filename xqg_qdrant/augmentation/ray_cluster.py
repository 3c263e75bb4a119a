"""A Ray cluster: how it is joined, and how many workers it has room for.

Knows Ray's addresses and resources. Knows nothing of what workers do.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import NamedTuple

import ray

from xqg_qdrant.errors import InputError
from xqg_qdrant.streams import CUDA_WORKERS

CONNECT_SECONDS = 5


class Plan(NamedTuple):
    """How many workers there are, and what each takes of its machine: some CPUs, and a GPU or none."""

    workers: int
    cpus: int
    gpus: int

    @property
    def device(self) -> str:
        """Return where the workers' models run."""
        return "cuda" if self.gpus else "cpu"

    @property
    def chunks_at_once(self) -> int:
        """Return how many chunks a worker is at, a thread for each; they share its models."""
        return CUDA_WORKERS if self.gpus else self.cpus


def make_plan(nodes: Sequence[Mapping[str, float]], device: str, workers: int, cpus: int) -> Plan:
    """Divide machines among workers; as many as there is room for, where `workers` is 0.

    Args:
        nodes: what each machine has, by the names of Ray: `CPU`, `GPU`.
        device: `cpu`, `cuda`, or `auto` for GPUs where there are any.
        workers: how many are wanted.
        cpus: of each worker; 0 is one.

    Raises:
        InputError: there is not that much room, so that some would wait for ever; or one GPU of a machine is named.
    """
    if ":" in device:
        raise InputError(f"{device} is a GPU of one machine, and Ray gives each worker one.", "give --device cuda")
    cuda = device == "cuda" or (device == "auto" and any(node.get("GPU", 0) >= 1 for node in nodes))
    plan = Plan(workers, cpus or 1, 1 if cuda else 0)
    room = sum(
        int(min(node.get("CPU", 0) // plan.cpus, node.get("GPU", 0) if cuda else node.get("CPU", 0))) for node in nodes
    )
    if room < max(1, workers):
        share = f"{plan.cpus} CPU" + ("s" if plan.cpus > 1 else "") + (" and a GPU" if cuda else "")
        has = ", ".join(f"{sum(node.get(name, 0) for node in nodes):g} {name}s" for name in ("CPU", "GPU"))
        raise InputError(
            f"{max(1, workers)} workers of {share} each would wait for ever: the cluster has {has} on {len(nodes)} "
            f"machines, which is room for {room}.",
            f"give --num-workers {max(1, room)} or fewer --threads, or start more machines.",
        )
    return plan._replace(workers=workers or room)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be part of a cluster for a while; `local` starts one on this machine, and ends it.

    Raises:
        InputError: there is none at the address.
    """
    if ray.is_initialized():
        yield
        return
    if address.startswith("ray://"):
        cure = "run it on one of the cluster's machines, with its HOST:6379 or auto, or by ray job submit"
        raise InputError(f"{address} is Ray's client, through which no data sets can be written.", cure)
    # Ray reports its usage over the network, and tells of every worker that comes and goes.
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_BACKEND_LOG_LEVEL", "fatal")):
        os.environ.setdefault(name, value)
    dashboard = False if address == "local" else None
    try:
        if ":" in address:  # where nobody listens Ray would try for minutes, and then end this process
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        with _silent():
            ray.init(address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        cure = "look at ray status there, or leave --address out to use this machine alone"
        raise InputError(f"no Ray cluster can be joined at {address}: {error}.", cure) from error
    # Ray prints what became of workers, tracebacks and all; what matters of it comes as an error of ours.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _silent() -> Iterator[None]:
    """Keep off the terminal what Ray's own code, which is not Python, says while it starts."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def list_machines() -> list[dict[str, float]]:
    """Return what each machine of the cluster has."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
