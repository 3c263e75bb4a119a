"""The commands about a collection as a whole."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xqg_qdrant.cli.options import (
    DEFAULT_STORE,
    collection_option,
    confirm,
    device_option,
    encoder_option,
    fusion_options,
    id_field_option,
    quantisation_option,
    queries_option,
    store_option,
    workers_option,
    yes_option,
)
from xqg_qdrant.cli.shared import index_large, load_encoder, main, opened_store, tell_left_over
from xqg_qdrant.cli.terminal import echo
from xqg_qdrant.text import one_line

if TYPE_CHECKING:
    from xqg_qdrant.stores import Store


from contextlib import ExitStack

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
    from xqg_qdrant.lifecycle.status import switch_alias

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


@main.command()
@collection_option(required=True)
@store_option
@quantisation_option
@click.pass_obj
def optimise(quiet: bool, /, collection: str, location: str, quantisation: str | None) -> None:
    """Index a collection, and tell how many of the exact best passages a search then finds.

    xqg ingest indexes a collection of the embedded store by itself when it holds more than 50,000 passages. A server
    indexes in the background, by itself: it is waited for.
    """
    from xqg_qdrant.cli.progress import run_optimise
    from xqg_qdrant.lifecycle.status import measure_recall

    with opened_store(location) as store:
        if quantisation:
            store.quantise(collection)
        run_optimise(store, collection, 0, quiet)
        echo(measure_recall(store, collection))


@main.command()
@collection_option()
@store_option
@click.option("--corpus", "file", help="Compare with this file: what is new, changed, or no longer in it.")
@queries_option
@id_field_option
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.pass_obj
def status(
    quiet: bool,
    /,
    collection: str | None,
    location: str,
    file: str | None,
    queries: str | None,
    id_field: str | None,
    as_json: bool,
) -> None:
    """Tell what is stored, by which recipe it was made, and what is missing against a corpus.

    Without --collection the collections are listed.
    """
    from xqg_qdrant.cli.progress import run_compare, run_status
    from xqg_qdrant.corpus.inputs import Inputs
    from xqg_qdrant.corpus.seen_ids import TextSet
    from xqg_qdrant.lifecycle.sync import check_comparable
    from xqg_qdrant.printing import format_status

    if collection is None and file is not None:
        raise click.UsageError("Give --collection with --corpus.")
    with opened_store(location) as store:
        if collection is None:
            _list_collections(store, as_json)
            return
        found = run_status(store, collection, quiet)
        told = found.to_json()
        lines = format_status(found)
        if file is not None:
            check_comparable(collection, found.fingerprint, given=queries is not None)
            inputs = Inputs([file], queries, id_field)
            total = None if quiet else inputs.count()
            compared = run_compare(inputs.read(), total, store, collection, found.fingerprint, TextSet(), quiet)
            tell_left_over(inputs)
            told["corpus"] = {"file": file, **compared._asdict()}
            lines += f"\nagainst {file}: {compared}"
    echo(json.dumps(told, ensure_ascii=False, indent=2) if as_json else lines)


def _list_collections(store: Store, as_json: bool) -> None:
    from xqg_qdrant.errors import MismatchError

    counts: dict[str, int | None] = {}
    for name in store.collections():
        try:
            counts[name] = store.count(name)
        except MismatchError:
            counts[name] = None
    aliases = store.read_aliases() or {}
    if as_json:
        told = {"store": store.location, "collections": counts, "aliases": aliases}
        echo(json.dumps(told, ensure_ascii=False, indent=2))
        return
    echo(f"Collections in {store.location}: {len(counts)}")
    for name, count in counts.items():
        echo(f"  {one_line(name)}: " + ("not created by xqg" if count is None else f"{count} passages"))
    for alias, name in aliases.items():
        echo(f"  {one_line(alias)}: alias of {one_line(name)}")


@main.command()
@click.argument("passage_ids", metavar="[PASSAGE_ID...]", nargs=-1)
@collection_option(required=True)
@store_option
@snapshot_option
@yes_option
@click.pass_obj
def delete(
    quiet: bool, /, passage_ids: tuple[str, ...], collection: str, location: str, no_snapshot: bool, yes: bool
) -> None:
    """Delete passages by their ids, or, where none is given, the whole collection.

    With - in the place of the ids they are read from standard input, one a line.
    """
    from xqg_qdrant.stores import read_existing_fingerprint
    from xqg_qdrant.streams import batched

    with opened_store(location) as store:
        read_existing_fingerprint(store, collection)
        if not passage_ids:
            count = store.count(collection)
            named = ", ".join(repr(alias) for alias, name in (store.read_aliases() or {}).items() if name == collection)
            lost = f", to which alias {named} leads" if named else ""
            confirm(f"Delete collection {collection!r} in {store.location} with its {count} passages{lost}?", yes)
            keep_snapshot(store, collection, no_snapshot, quiet)
            store.delete_collection(collection)
            echo(f"collection {collection!r} with {count} passages deleted")
            return
        given: Iterable[str] = passage_ids
        if passage_ids == ("-",):
            given = (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        deleted = unknown = 0
        for batch in batched(given, 1000):
            stored = store.read_content_hashes(collection, batch)
            if stored and not deleted:
                keep_snapshot(store, collection, no_snapshot, quiet)
            store.delete(collection, list(stored))
            deleted += len(stored)
            unknown += len(set(batch)) - len(stored)
    echo(f"{deleted} passages deleted, {unknown} ids not stored")


@main.command()
@collection_option(required=True)
@store_option
@encoder_option
@fusion_options
@click.option("--no-min-score", is_flag=True, help="Let all stored queries take part again.")
@click.option("--languages", help="Keep the queries in these languages alone, such as ar,ja; the others are dropped.")
@click.option("--queries-per-language", type=int, help="Keep so many queries a language; the others are dropped.")
@snapshot_option
@yes_option
@device_option
@workers_option
@click.pass_obj
def retune(
    quiet: bool,
    /,
    collection: str,
    location: str,
    encoder_folder: Path | None,
    no_min_score: bool,
    languages: str | None,
    no_snapshot: bool,
    yes: bool,
    device: str,
    threads: int,
    **settings: Any,
) -> None:
    """Give a stored collection another recipe, as if it had been ingested with it.

    What is not named stays as it is. Passages are not encoded again and no query is generated, so there can be fewer
    queries and languages, not more. Searches go on meanwhile. Interrupted, it is finished by the same command, or
    by one that names no setting.
    """
    from xqg_qdrant.cli.progress import run_retune
    from xqg_qdrant.languages import LANGUAGES, parse_languages
    from xqg_qdrant.lifecycle.retune import plan_retune

    if no_min_score and settings["min_score"] is not None:
        raise click.UsageError("Give --min-score or --no-min-score, not both.")
    changes = {name: value for name, value in settings.items() if value is not None}
    if no_min_score:
        changes["min_score"] = None
    if languages is not None:
        changes["languages"] = parse_languages(languages, tuple(LANGUAGES))
    with opened_store(location) as store:
        # One thread an operator: the workers are the threads.
        encoder = load_encoder(encoder_folder, device, 1)
        plan = plan_retune(store, collection, encoder, changes)
        before, after = plan.asked
        if after < before and not plan.begun:
            confirm(
                f"This drops {before - after} of the {before} queries that were generated for each of {plan.passages} "
                "passages, for good?",
                yes,
            )
            keep_snapshot(store, collection, no_snapshot, quiet)
        run_retune(store, plan, encoder, threads, quiet)
        index_large(store, collection, quiet)


TARGET_KEY = "QDRANT_TARGET_API_KEY"


@main.command()
@collection_option(required=True)
@click.option(
    "--from",
    "source_location",
    envvar=["XQG_STORE", "QDRANT_URL"],
    default=DEFAULT_STORE,
    show_default=True,
    help="Where the collection lives: a directory (embedded), edge:DIR, local:DIR, or a server's URL (with its key in "
    "QDRANT_API_KEY).",
)
@click.option(
    "--to",
    "target_location",
    required=True,
    help=f"Where the copy goes, written in the same way. Copying from server to server, its key is in {TARGET_KEY}.",
)
@click.option("--as", "name", metavar="NAME", help="The copy's name.  [default: the collection's]")
@sharding_options
@click.pass_obj
def copy(
    quiet: bool, /, collection: str, source_location: str, target_location: str, name: str | None, **settings: Any
) -> None:
    """Copy a collection into another store, vectors and payload as they are.

    Nothing is embedded or generated again. Interrupted and run again, it goes on where it stopped; run on a source that
    grew, it copies what is new. At the end the copy is read back and compared with the source, point by point.
    """
    from xqg_qdrant.cli.progress import run_copy
    from xqg_qdrant.stores import is_same_place, is_server

    sharding = take_sharding(settings)
    with ExitStack() as opened:
        source = target = opened.enter_context(opened_store(source_location))
        if not is_same_place(source_location, target_location):
            # A server must not see the key of another one.
            both = is_server(source_location) and is_server(target_location)
            key = TARGET_KEY if both else "QDRANT_API_KEY"
            target = opened.enter_context(opened_store(target_location, key, sharding))
        run_copy(source, collection, target, name or collection, quiet)
        index_large(target, name or collection, quiet)
