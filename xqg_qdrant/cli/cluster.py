"""The options about what only a server has, shards, aliases and snapshots, and what commands do about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xqg_qdrant.terminal import echo

if TYPE_CHECKING:
    from xqg_qdrant.stores import Sharding, Store

F = TypeVar("F", bound=Callable[..., Any])


def sharding_options(command: F) -> F:
    """Add --shard-number, --replication-factor and --write-consistency-factor, for `take_sharding`."""
    options = (
        ("--shard-number", "Shards of a collection that is created on a server."),
        ("--replication-factor", "Nodes that keep each shard of a collection that is created on a cluster."),
        ("--write-consistency-factor", "Nodes of a cluster that have to confirm each write."),
    )
    for name, text in reversed(options):
        command = click.option(name, type=click.IntRange(min=1), help=f"{text}  [default: the server's]")(command)
    return command


def take_sharding(settings: dict[str, Any]) -> Sharding:
    """Take what `sharding_options` added out of a command's settings."""
    from xqg_qdrant.stores import Sharding

    return Sharding(*(settings.pop(name) for name in Sharding._fields))


def alias_option(command: F) -> F:
    """Add --alias."""
    return click.option(
        "--alias",
        metavar="NAME",
        help="Have this alias name the collection when all of it is stored; searches by the alias then go over to it.",
    )(command)


def snapshot_option(command: F) -> F:
    """Add --no-snapshot."""
    return click.option(
        "--no-snapshot", is_flag=True, help="Do not have a server keep a snapshot of the collection before."
    )(command)


def give_alias(store: Store, alias: str, collection: str, quiet: bool) -> None:
    """Have an alias name a collection, and tell what it named before."""
    from xqg_qdrant.alias import switch_alias

    switched = switch_alias(store, alias, collection)
    if quiet or switched is None:
        return
    before = f"; before it named {switched.before!r} ({switched.passages_before} passages)" if switched.before else ""
    echo(f"Alias {alias!r} now names {collection!r} ({switched.passages} passages){before}.", err=True)


def keep_snapshot(store: Store, collection: str, no_snapshot: bool, quiet: bool) -> None:
    """Have a server keep a collection of which something is about to be dropped, and tell how to get it back."""
    from xqg_qdrant.printing import format_snapshot

    snapshot = None if no_snapshot else store.create_snapshot(collection)
    if snapshot is not None and not quiet:
        echo(format_snapshot(store.location, snapshot), err=True)
