"""`xqg demo`: the whole way, on what ships with the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xqg_qdrant.cli.options import collection_option, device_options, json_option, save_option, store_option
from xqg_qdrant.cli.shared import (
    command_name,
    describe_searched,
    echo_report,
    echo_summary,
    given_command,
    load_encoder,
    load_generator,
    main,
    match_by,
    open_dead_letters,
    opened_store,
    save_last,
)
from xqg_qdrant.cli.terminal import echo

if TYPE_CHECKING:
    from xqg_qdrant.records import Passage, Query, ScoredPassage

    Runs = Mapping[str, Mapping[str, Sequence[ScoredPassage]]]

LABELS = {"passage": "plain", "calibrated": "calibrated", "control": "control", "xqg": "queries"}
IMPROVED_SHOWN = 3
PASSAGES_WRITTEN_FOR = 2


@main.command()
@store_option
@collection_option(show_default="xqg_demo")
@click.option("--full", is_flag=True, help="Print every measure, with intervals and p-values.")
@click.option(
    "--write",
    "folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Only write the demo corpus into FOLDER, to try other commands with.",
)
@json_option
@save_option
@device_options
@click.pass_obj
def demo(
    quiet: bool,
    location: str,
    collection: str | None,
    full: bool,
    folder: Path | None,
    as_json: bool,
    save: Path | None,
    device: str,
    threads: int,
) -> None:
    """Ingest the demo corpus, ask it questions in seven languages, and measure the gain.

    The passages come with questions that a large language model wrote from each passage alone. At the end, the shipped
    generator writes some too.
    """
    from xqg_qdrant.augmentation.recipe import choose_recipe
    from xqg_qdrant.cli.progress import make_bars, run_ingest
    from xqg_qdrant.corpus.inputs import Inputs
    from xqg_qdrant.demo import (
        DEMO_FOLDER,
        DEMO_QUERIES,
        read_demo_passages,
        read_demo_qrels,
        read_demo_queries,
        write_demo,
    )
    from xqg_qdrant.evaluation import EVALUATION_DEPTH
    from xqg_qdrant.evaluation.comparison import evaluate_runs
    from xqg_qdrant.evaluation.results import check_folder, describe_asked, make_manifest, save_evaluation
    from xqg_qdrant.evaluation.runs import search_all
    from xqg_qdrant.stores import read_target_fingerprint

    if folder is not None:
        for what, path in write_demo(folder).items():
            echo(f"{what:<10} {path}")
        return

    def tell(message: str) -> None:
        echo(message, err=as_json)

    collection = collection or "xqg_demo"
    passages, queries, qrels = read_demo_passages(), read_demo_queries(), read_demo_qrels()
    inputs = Inputs([str(DEMO_FOLDER)], str(DEMO_QUERIES))
    if save:
        check_folder(save)
    with opened_store(location) as store:
        stored = read_target_fingerprint(store, collection)
        encoder = load_encoder(None, device, 1)
        recipe, reason = choose_recipe(encoder, None, stored=stored)
        tell(
            f"Ingesting {len(passages)} English passages into {collection!r} ({store.location}), each with two "
            f"questions in each of seven languages.\n{recipe.fusion} fusion, alpha {recipe.alpha:g}; {reason}."
        )
        rejected = open_dead_letters(None, collection)
        totals = run_ingest(
            inputs.read(), len(passages), store, collection, encoder, None, recipe, threads, rejected, quiet
        )
        runs = search_all(store, collection, encoder, queries, EVALUATION_DEPTH, list(LABELS), make_bars(quiet))
        searched = describe_searched(store, collection, encoder)
    report = evaluate_runs(queries, qrels, runs, recall_at=(1, 10))
    if save:
        manifest = make_manifest(
            "evaluation",
            given_command(),
            describe_asked([DEMO_FOLDER], queries, DEMO_FOLDER, qrels),
            {"limit": EVALUATION_DEPTH, "word_rules": "installed", "test": "randomisation"},
            **searched,
            yields=totals.yields(),
        )
        save_last(save_evaluation, save, manifest, queries, qrels, report, runs, match_by(encoder))
    gold = {qrel.query_id: qrel.passage_id for qrel in qrels}
    improved, unhelped = _choose_questions(queries, runs, gold)
    for head, questions in (
        ("The queries correct the first hit of these questions (✓: the right passage),", improved),
        ("but not of this one:", unhelped),
    ):
        if questions:
            tell("\n".join([f"\n{head}", *(_show_question(one, runs, gold[one.query_id]) for one in questions)]))
    tell(
        f"\n{len(queries)} questions. passage: plain vectors; calibrated: the same, calibrated; control: every passage "
        "with the\nsame mean query; xqg: with its own queries. Stars: significantly different from passage.\n"
    )
    if full or as_json:
        echo_report(report, as_json)
    else:
        echo_summary(report, queries)
    if not quiet:
        tell(_write_live(passages[:PASSAGES_WRITTEN_FOR], device, threads))
    xqg = command_name()
    place = f"--collection {collection} --store {store.location}"
    ranks = " ".join(f"--rank {name}" for name in LABELS)
    tell(
        f"The collection is kept. Try next:\n"
        f"  {xqg} query {place} 'どの火山の噴火がポンペイを埋めましたか？'\n"
        f"  {xqg} evaluate {place} --questions {DEMO_FOLDER} {ranks}\n"
        f"  {xqg} pilot YOUR_FILE.jsonl --languages ja,ru\n"
    )


def _choose_questions(queries: Sequence[Query], runs: Runs, gold: Mapping[str, str]) -> tuple[list[Query], list[Query]]:
    """Return questions whose first hit is corrected, and one that stays wrong.

    Each has another language and asks for another passage.
    """

    def first(run: str, query: Query) -> str:
        return runs[run][query.query_id][0].passage.passage_id

    improved: list[Query] = []
    unhelped: list[Query] = []
    for query in queries:
        wanted = gold[query.query_id]
        if any(query.language == one.language or wanted == gold[one.query_id] for one in (*improved, *unhelped)):
            continue
        if first("xqg", query) != wanted:
            unhelped = unhelped or [query]
        elif first("passage", query) != wanted and len(improved) < IMPROVED_SHOWN:
            improved.append(query)
    return improved, unhelped


def _show_question(question: Query, runs: Runs, wanted: str) -> str:
    lines = [f"\n{question.language}: {question.text}  (answer: {question.answers[0]})"]
    for name in ("passage", "xqg"):
        titles = (
            f"{hit.passage.title}{' ✓' if hit.passage.passage_id == wanted else ''}"
            for hit in runs[name][question.query_id][:3]
        )
        lines.append(f"  {LABELS[name]:<8} {' | '.join(titles)}")
    return "\n".join(lines)


def _write_live(passages: Sequence[Passage], device: str, threads: int) -> str:
    """Return what the shipped generator writes for some passages."""
    generator = load_generator(None, device, threads)
    generations = generator.generate(passages, generator.languages, 1, 0, generator.sampling)
    lines = ["\nThe shipped generator is small (42 MB) and often misses the point. Live, it writes:"]
    for passage, generation in zip(passages, generations, strict=True):
        lines += [f"  {passage.title}", *(f"    {query.language}  {query.text}" for query in generation.queries)]
    return "\n".join(
        [*lines, "For your corpus, export a larger one (xqg export --list), or bring queries (--queries).\n"]
    )
