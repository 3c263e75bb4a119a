"""The commands about a whole collection, from `xqg optimise` to `xqg reencode`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xqg_qdrant.cli.options import (
    DEFAULT_STORE,
    add_options,
    collection_option,
    confirm,
    dead_letters_option,
    demo_encoder_option,
    device_option,
    drawing_options,
    encoder_option,
    field_options,
    fusion_options,
    generator_option,
    json_option,
    part_option,
    quantisation_option,
    recipe_option,
    sparse_option,
    store_option,
    workers_option,
    yes_option,
)
from xqg_qdrant.cli.shared import (
    GroupedCommand,
    echo_cost,
    echo_recipe,
    echo_unused_queries,
    exit_if_rejected,
    index_large,
    keeping_models,
    load_encoder,
    load_generator,
    main,
    open_dead_letters,
    opened_foreign_store,
    opened_store,
    split_again,
)
from xqg_qdrant.cli.terminal import echo, stdin_lines
from xqg_qdrant.text import count_of, one_line

if TYPE_CHECKING:
    from xqg_qdrant.generation import Endpoint
    from xqg_qdrant.stores import Sharding, Store
    from xqg_qdrant.stores.server.foreign import ForeignStore

F = TypeVar("F", bound=Callable[..., Any])

TARGET_KEY = "QDRANT_TARGET_API_KEY"


def sharding_options(command: F) -> F:
    """Add --shard-number, --replication-factor and --write-consistency-factor, for `take_sharding`."""
    options = (
        ("--shard-number", "Shards of a new collection on a server."),
        ("--replication-factor", "Nodes per shard of a new collection."),
        ("--write-consistency-factor", "Nodes that must confirm a write."),
    )
    at_least_one = click.IntRange(min=1)
    return add_options(
        [click.option(name, type=at_least_one, help=f"{text}  [default: the server's]") for name, text in options],
        command,
    )


def take_sharding(settings: dict[str, Any]) -> Sharding:
    """Remove what `sharding_options` added from a command's settings, and return it."""
    from xqg_qdrant.stores import Sharding

    return Sharding(*(settings.pop(name) for name in Sharding._fields))


def alias_option(command: F) -> F:
    """Add --alias."""
    return click.option("--alias", metavar="NAME", help="Alias to move to the collection once all of it is stored.")(
        command
    )


def snapshot_option(command: F) -> F:
    """Add --no-snapshot."""
    return click.option("--no-snapshot", is_flag=True, help="Skip the server snapshot taken before deleting.")(command)


def move_alias(store: Store, alias: str, collection: str, quiet: bool) -> None:
    """Make an alias name a collection, and print what it named before."""
    from xqg_qdrant.lifecycle.status import switch_alias

    switched = switch_alias(store, alias, collection)
    if quiet or switched is None:
        return
    counted = count_of(switched.passages, "passage")
    before = count_of(switched.passages_before, "passage")
    earlier = f"; before it named {switched.before!r} ({before})" if switched.before else ""
    echo(f"Alias {alias!r} now names {collection!r} ({counted}){earlier}.", err=True)


def keep_snapshot(store: Store, collection: str, no_snapshot: bool, quiet: bool) -> None:
    """Have a server take a snapshot before something is deleted, and print how to restore it."""
    from xqg_qdrant.printing import format_snapshot

    snapshot = None if no_snapshot else store.create_snapshot(collection)
    if snapshot is not None and not quiet:
        has_key = bool(os.environ.get("QDRANT_API_KEY", "").strip())
        echo(format_snapshot(store.location, snapshot, has_key), err=True)


@main.command()
@collection_option(required=True)
@store_option
@quantisation_option
@click.pass_obj
def optimise(quiet: bool, /, collection: str, location: str, quantisation: str | None) -> None:
    """Index a collection, and measure its recall against exact search.

    In the embedded store, xqg ingest does this itself above 50,000 passages. A server indexes by itself, in the
    background; this waits for it.
    """
    from xqg_qdrant.cli.progress import run_optimise
    from xqg_qdrant.lifecycle.status import describe_recall

    with opened_store(location) as store:
        if quantisation:
            store.quantise(collection)
        run_optimise(store, collection, 0, quiet)
        echo(describe_recall(store, collection))


@main.command()
@collection_option()
@store_option
@click.option("--corpus", "file", help="Compare with this file: what is new, changed, or gone from it.")
@encoder_option
@click.option("--queries", metavar="corpus|PATH", help="With --corpus: queries given with it, as in xqg ingest.")
@field_options
@json_option
@click.pass_obj
def status(
    quiet: bool,
    /,
    collection: str | None,
    location: str,
    file: str | None,
    encoder_folder: Path | None,
    queries: str | None,
    id_field: str | None,
    text_field: str | None,
    as_json: bool,
) -> None:
    """Show what is stored, its recipe, and what differs from a corpus.

    Without --collection, list the collections. --encoder is needed only if documents of --corpus are split.
    """
    from xqg_qdrant.cli.progress import make_bars, run_status
    from xqg_qdrant.generation.questions import open_inputs
    from xqg_qdrant.lifecycle.sync import plan_sync
    from xqg_qdrant.printing import format_status
    from xqg_qdrant.stores import ASKING_SECONDS

    if collection is None and file is not None:
        raise click.UsageError("Give --collection with --corpus.")
    with opened_store(location, patience=ASKING_SECONDS) as store:
        if collection is None:
            _list_collections(store, as_json)
            return
        found = run_status(store, collection, quiet)
        report = found.to_json()
        lines = format_status(found)
        if file is not None:
            inputs = open_inputs([file], queries, id_field, text_field)
            split_again(inputs, store, collection, encoder_folder)
            total = None if quiet else inputs.count()
            compared = plan_sync(store, collection, inputs, total, make_bars(quiet)).found
            echo_unused_queries(inputs)
            report["corpus"] = {"file": file, **compared._asdict()}
            lines += f"\nagainst {file}: {compared}"
    echo(json.dumps(report, ensure_ascii=False, indent=2) if as_json else lines)


@main.command()
@collection_option(required=True)
@store_option
@json_option
@click.pass_obj
def verify(quiet: bool, /, collection: str, location: str, as_json: bool) -> None:
    """Read all of a collection, and compare it with its checksums and its recorded number of passages.

    The exit code is 7 if anything is damaged or missing. The index is not read: xqg optimise measures its recall.
    """
    from xqg_qdrant.cli.progress import run_verify
    from xqg_qdrant.lifecycle.verify import refuse_damage
    from xqg_qdrant.printing import format_verification

    with opened_store(location) as store:
        found = run_verify(store, collection, quiet)
    echo(json.dumps(found.to_json(), ensure_ascii=False, indent=2) if as_json else format_verification(found))
    refuse_damage(found)


def _list_collections(store: Store, as_json: bool) -> None:
    from xqg_qdrant.lifecycle.status import count_collections, list_missing, list_paused
    from xqg_qdrant.printing import format_missing, format_pause

    counts, aliases = count_collections(store), store.read_aliases() or {}
    missing = list_missing(store, counts)
    paused = list_paused(store, (name for name, count in counts.items() if count is not None))
    if as_json:
        known = {name: None if isinstance(count, str) else count for name, count in counts.items()}
        report = {"store": store.location, "collections": known, "aliases": aliases, "indexing_paused": paused}
        report["missing"] = missing
        echo(json.dumps(report, ensure_ascii=False, indent=2))
        return
    echo(f"Collections in {store.location}: {len(counts)}")
    for name, count in counts.items():
        echo(f"  {one_line(name)}: " + (count if isinstance(count, str) else count_of(count, "passage")))
        if name in missing:
            echo(f"    {format_missing(name, missing[name])}")
        if name in paused:
            echo(f"    {format_pause(name)}")
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
    """Delete passages by id, or without ids the whole collection.

    If documents were split, the id of a document deletes all its passages. If a passage of another document has the
    same id, it means the document.

    With - as the only id, ids are read from standard input, one a line.
    """
    from xqg_qdrant.lifecycle.status import delete_passages, list_aliases
    from xqg_qdrant.stores import read_existing_fingerprint

    with opened_store(location) as store:
        snapshot = partial(keep_snapshot, store, collection, no_snapshot, quiet)
        if passage_ids:
            given: Iterable[str] = stdin_lines() if passage_ids == ("-",) else passage_ids
            deleted = delete_passages(store, collection, given, snapshot)
            echo(f"{count_of(deleted.passages, 'passage')} deleted, {count_of(deleted.unknown, 'id')} not stored")
            return
        read_existing_fingerprint(store, collection)
        counted = count_of(store.count(collection), "passage")
        aliases = ", ".join(map(repr, list_aliases(store, collection)))
        lost = f", to which alias {aliases} leads" if aliases else ""
        confirm(f"Delete collection {collection!r} in {store.location} with its {counted}{lost}?", yes)
        snapshot()
        store.delete_collection(collection)
        echo(f"collection {collection!r} with {counted} deleted")


@main.command(cls=GroupedCommand)
@collection_option(required=True)
@store_option
@encoder_option
@fusion_options
@click.option("--no-min-score", is_flag=True, help="Let all stored queries count again.")
@click.option("--languages", help="Keep only the queries in these languages, such as ar,ja.")
@click.option("--queries-per-language", type=int, help="Keep only this many queries per language.")
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
    """Change the recipe of a stored collection, as if it had been ingested with it.

    Settings that are not given stay as they are; the defaults below are those of an ingest. Passages are not encoded
    again and no query is generated, so the queries and languages can become fewer, not more. Searches work meanwhile.
    To resume after an interruption, run the same command again, or one without settings.
    """
    from xqg_qdrant.cli.progress import run_retune
    from xqg_qdrant.languages import LANGUAGES, parse_languages
    from xqg_qdrant.lifecycle.retune import plan_retune

    if no_min_score and settings["min_score"] is not None:
        raise click.UsageError("Give --min-score or --no-min-score, not both.")
    calibration = {name: settings.pop(name) for name in ("calibrate", "gamma", "question_bank")}
    changes = {name: value for name, value in settings.items() if value is not None}
    if no_min_score:
        changes["min_score"] = None
    if languages is not None:
        changes["languages"] = parse_languages(languages, tuple(LANGUAGES))
    with opened_store(location) as store:
        # One thread inside an operator: the workers are the threads.
        encoder = load_encoder(encoder_folder, device, 1, store, collection)
        plan = plan_retune(store, collection, encoder, changes, **calibration)
        if plan.dropped:
            dropped, counted = f"{plan.dropped} of the {plan.asked[0]}", count_of(plan.passages, "passage")
            confirm(f"Drop {dropped} queries generated for each of {counted}, for good?", yes)
            keep_snapshot(store, collection, no_snapshot, quiet)
        run_retune(store, plan, encoder, threads, quiet)
        index_large(store, collection, quiet)


@main.command(cls=GroupedCommand)
@collection_option(required=True)
@store_option
@encoder_option
@generator_option
@click.option("--languages", help="Languages of the queries; +fr adds one.  [default: the collection's]")
@click.option("--queries-per-language", type=int, help="Queries per language.  [default: the collection's]")
@drawing_options
@part_option
@click.option("--newest-first", metavar="FIELD", default="", help="Begin with the greatest values of a metadata field.")
@dead_letters_option
@snapshot_option
@yes_option
@device_option
@workers_option
@click.pass_obj
def enrich(
    quiet: bool,
    /,
    collection: str,
    location: str,
    encoder_folder: Path | None,
    generator_source: Path | Endpoint | None,
    languages: str | None,
    queries_per_language: int | None,
    part: tuple[int, int],
    newest_first: str,
    dead_letters: Path | None,
    no_snapshot: bool,
    yes: bool,
    device: str,
    threads: int,
    **drawing: Any,
) -> None:
    """Write the queries that the passages of a collection lack, and augment them in place.

    These are passages stored with --plain, and, after a change of the generator, the prompt or the languages, all whose
    queries are older than the change. Plain vectors are kept, and so are queries that the change does not touch.
    Sampling options that are not given stay as they are, unless the generator changes. Searches and ingests work
    meanwhile. Run the same command again to resume; on a server, several machines can each do a --part.
    """
    from xqg_qdrant.cli.progress import echo_unread, run_engine
    from xqg_qdrant.languages import parse_languages
    from xqg_qdrant.lifecycle.copying import Part
    from xqg_qdrant.lifecycle.enrich import enrich as enrich_points
    from xqg_qdrant.lifecycle.enrich import plan_enrichment
    from xqg_qdrant.stores import read_existing_fingerprint
    from xqg_qdrant.streams import count_workers

    rejected = open_dead_letters(dead_letters, collection)
    with opened_store(location) as store:
        read_existing_fingerprint(store, collection)
        encoder = load_encoder(encoder_folder, device, 1, store, collection)
        generator = load_generator(generator_source, device, 1, location, collection)
        added = (languages or "").startswith("+")
        named = parse_languages((languages or "").removeprefix("+"), generator.languages) if languages else ()
        plan = plan_enrichment(
            store,
            collection,
            encoder,
            generator,
            named=generator_source is not None,
            languages=named,
            added=added,
            queries_per_language=queries_per_language,
            drawing=drawing,
            part=Part(*part),
        )
        if plan.drops:
            confirm(f"Replace the queries of {count_of(plan.replaced, 'passage')}, for good?", yes)
            keep_snapshot(store, collection, no_snapshot, quiet)
        if not quiet:
            echo(f"{count_of(plan.plain, 'passage')} without queries, {plan.replaced} to be changed", err=True)
        workers = count_workers(encoder.device, threads)
        begin = partial(enrich_points, store, plan, encoder, generator, workers, newest_by=newest_first)
        with keeping_models(store, collection, encoder, generator_source, generated=True):
            totals = run_engine(begin, plan.plain + plan.replaced, rejected, quiet)
        if not quiet:
            echo_unread(encoder.reading, generator.reading)
        echo_cost(generator_source, totals, quiet)
        if totals.stored:
            index_large(store, collection, quiet)
    exit_if_rejected(totals, rejected.path)


@main.command(cls=GroupedCommand)
@collection_option(required=True)
@click.option("--to", "name", metavar="NAME", required=True, help="Name of the new collection, in the same store.")
@store_option
@demo_encoder_option
@recipe_option
@fusion_options
@sparse_option
@click.option("--text-field", default="", help="As in xqg augment, if another program made the collection.")
@click.option("--title-field", default="", help="As in xqg augment.")
@click.option("--id-field", default="", help="As in xqg augment.")
@part_option
@quantisation_option
@sharding_options
@alias_option
@dead_letters_option
@device_option
@workers_option
@click.pass_obj
def reencode(
    quiet: bool,
    /,
    collection: str,
    name: str,
    location: str,
    encoder_folder: Path | None,
    text_field: str,
    title_field: str,
    id_field: str,
    part: tuple[int, int],
    quantisation: str | None,
    alias: str | None,
    dead_letters: Path | None,
    device: str,
    threads: int,
    sparse: bool,
    **settings: Any,
) -> None:
    """Copy a collection with another encoder; its queries are kept, not generated again.

    The texts are read from the collection. The recipe suits the new encoder; the new collection can be ingested,
    enriched and retuned like the old one. Run the same command again to resume. At the end the passages are counted,
    and --alias moves only if all are there.
    """
    from xqg_qdrant.augmentation.pipeline import ingest
    from xqg_qdrant.augmentation.recipe import choose_recipe
    from xqg_qdrant.cli.progress import echo_unread, run_engine
    from xqg_qdrant.lifecycle.copying import Part, is_complete, plan_reencoding, read_stored_rows
    from xqg_qdrant.lifecycle.status import check_alias
    from xqg_qdrant.records import PayloadLayout
    from xqg_qdrant.stores import Sharding, is_server, read_existing_fingerprint, read_target_fingerprint
    from xqg_qdrant.streams import count_workers

    sharding, share = take_sharding(settings), Part(*part)
    rejected = open_dead_letters(dead_letters, name)
    with ExitStack() as opened:
        if text_field:
            layout = PayloadLayout(text_field, title_field, id_field)
            foreign = opened.enter_context(opened_foreign_store(location, layout))
            foreign.adopt_space(collection)
            source: Store | ForeignStore = foreign
            points = foreign.read_augmented(collection)
        else:
            own = opened.enter_context(opened_store(location))
            source, points = own, own.scroll(collection)
        stored, total = read_existing_fingerprint(source, collection), source.count(collection)
        target = source
        if text_field and not is_server(location):
            # The client's local mode opens a directory once, and holds all points in memory anyway.
            points = iter(list(points))
            opened.close()
        if text_field or is_server(location):
            kept = source.read_sharding(collection)
            given = Sharding(*(new or old for new, old in zip(sharding, kept, strict=True)))
            target = opened.enter_context(opened_store(location, sharding=given))
        if alias is not None:
            check_alias(target, alias, name)
        encoder = load_encoder(encoder_folder, device, 1)
        suited, reason = choose_recipe(encoder, None, stored=read_target_fingerprint(target, name), **settings)
        plan = plan_reencoding(collection, stored, name, encoder, suited, sparse)
        echo_recipe(plan.recipe, reason, quiet)
        rows = read_stored_rows(points, collection, plan, share)
        workers = count_workers(encoder.device, threads)
        begin = partial(ingest, rows, target, name, encoder, None, plan.recipe, workers, fingerprint=plan.after)
        with keeping_models(target, name, encoder, generated=False):
            totals = run_engine(begin, total // share.parts, rejected, quiet)
        if not quiet:
            echo_unread(encoder.reading)
        if quantisation:
            target.quantise(name)
        if totals.stored or quantisation:
            index_large(target, name, quiet)
        complete = is_complete(total, target, name, totals.rejected, share)
        if not complete and not quiet:
            echo("Other parts are not complete yet.", err=True)
        if complete and alias is not None:
            move_alias(target, alias, name, quiet)
    exit_if_rejected(totals, rejected.path)


@main.command()
@collection_option(required=True)
@click.option(
    "--from",
    "source_location",
    envvar=["XQG_STORE", "QDRANT_URL"],
    default=DEFAULT_STORE,
    show_default=True,
    help="Source: DIR, local:DIR or URL, its key in QDRANT_API_KEY.",
)
@click.option(
    "--to",
    "target_location",
    required=True,
    help=f"Target; its key is in {TARGET_KEY} when both are servers.",
)
@click.option("--as", "name", metavar="NAME", help="Name of the copy.  [default: the collection's]")
@sharding_options
@click.pass_obj
def copy(
    quiet: bool, /, collection: str, source_location: str, target_location: str, name: str | None, **settings: Any
) -> None:
    """Copy a collection to another store, vectors and payload as they are.

    Nothing is encoded or generated again. At the end the copy is read back and compared with the source, point by
    point. Run the same command again to resume, or to copy what was added to the source.
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
