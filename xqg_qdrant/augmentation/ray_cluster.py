"""Join a Ray cluster, and divide its machines among workers."""

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
    """The number of workers, and the CPUs and GPUs (0 or 1) that each takes of its machine."""

    workers: int
    cpus: int
    gpus: int

    @property
    def device(self) -> str:
        """Return the device of the workers' models."""
        return "cuda" if self.gpus else "cpu"

    @property
    def chunks_at_once(self) -> int:
        """Return the number of chunks a worker augments at once, in threads that share its models."""
        return CUDA_WORKERS if self.gpus else self.cpus


def make_plan(nodes: Sequence[Mapping[str, float]], device: str, workers: int, cpus: int) -> Plan:
    """Divide machines among workers.

    Args:
        nodes: each machine's resources by Ray's names: `CPU`, `GPU`.
        device: `cpu`, `cuda`, or `auto` for GPUs if there are any.
        workers: number of workers; 0 for as many as fit.
        cpus: CPUs of each worker; 0 for one.

    Raises:
        InputError: the workers do not fit, so some would wait forever; or the device is one GPU of a machine.
    """
    if ":" in device:
        raise InputError(f"{device} is a GPU of one machine, but Ray assigns each worker its own.", "use --device cuda")
    cuda = device == "cuda" or (device == "auto" and any(node.get("GPU", 0) >= 1 for node in nodes))
    plan = Plan(workers, cpus or 1, 1 if cuda else 0)
    room = sum(
        int(min(node.get("CPU", 0) // plan.cpus, node.get("GPU", 0) if cuda else node.get("CPU", 0))) for node in nodes
    )
    if room < max(1, workers):
        share = f"{plan.cpus} CPU" + ("s" if plan.cpus > 1 else "") + (" and a GPU" if cuda else "")
        has = ", ".join(f"{sum(node.get(name, 0) for node in nodes):g} {name}s" for name in ("CPU", "GPU"))
        wanted = f"{workers} workers of {share} each do not fit" if workers > 1 else f"1 worker of {share} does not fit"
        raise InputError(
            f"{wanted}: the cluster has {has} on {len(nodes)} machine{'s' * (len(nodes) != 1)}, "
            f"which is room for {room}.",
            f"use --num-workers {max(1, room)} or fewer --threads, or start more machines",
        )
    return plan._replace(workers=workers or room)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to a cluster; `local` starts one on this machine, and stops it on exit.

    Raises:
        InputError: no cluster can be joined at the address.
    """
    if ray.is_initialized():
        yield
        return
    if address.startswith("ray://"):
        cure = "run xqg on a machine of the cluster with --address HOST:6379 or auto, or submit it with ray job submit"
        raise InputError(f"{address} is an address of Ray's client, which cannot write data sets.", cure)
    # Ray reports its usage over the network, and logs every worker that starts or stops.
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_BACKEND_LOG_LEVEL", "fatal")):
        os.environ.setdefault(name, value)
    dashboard = False if address == "local" else None
    try:
        if ":" in address:  # if nothing listens, Ray tries for minutes, then ends this process
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        with _silent():
            ray.init(address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        cure = "run ray status there, or leave --address out to use this machine alone"
        raise InputError(f"no Ray cluster can be joined at {address}: {error}.", cure) from error
    # Ray prints the tracebacks of workers; those that matter are raised as an XqgError.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _silent() -> Iterator[None]:
    """Silence what Ray's native code writes to stderr while it starts."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def list_machines() -> list[dict[str, float]]:
    """Return the resources of each live machine of the cluster."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
