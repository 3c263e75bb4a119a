"""`xqg demo`: the whole way, on what ships with the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xqg_qdrant.cli.options import (
    collection_option,
    device_options,
    json_option,
    save_option,
    store_option,
)
from xqg_qdrant.cli.shared import (
    describe_searched,
    echo_report,
    given_command,
    load_encoder,
    load_generator,
    main,
    match_by,
    opened_store,
)
from xqg_qdrant.cli.terminal import echo

if TYPE_CHECKING:
    from xqg_qdrant.inference.encoder import Encoder
    from xqg_qdrant.records import Query
    from xqg_qdrant.stores import Store

# Chosen on other passages than the demo's; see the card of the demo generator.
DEMO_RECIPE: dict[str, Any] = {"fusion": "mean", "alpha": 0.1, "renormalise": True}
DEMO_LANGUAGES_SHOWN = ("fi", "ja", "ru")


@main.command()
@store_option
@collection_option(show_default="xqg_demo or xqg_demo_lexicon")
@click.option(
    "--lexicon",
    is_flag=True,
    help="Take translated words of the shipped lexicon in the place of generated questions, and rank by terms too.",
)
@click.option(
    "--write",
    "folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Only write the demo corpus into FOLDER, as files to try the other commands with.",
)
@json_option
@save_option
@device_options
@click.pass_obj
def demo(
    quiet: bool,
    location: str,
    collection: str | None,
    lexicon: bool,
    folder: Path | None,
    as_json: bool,
    save: Path | None,
    device: str,
    threads: int,
) -> None:
    """Ingest the demo corpus with the shipped models, search it, and measure what the augmentation gave."""
    from xqg_qdrant.augmentation.recipe import make_recipe
    from xqg_qdrant.cli.progress import make_bars, run_ingest
    from xqg_qdrant.corpus.dead_letters import DeadLetters
    from xqg_qdrant.demo import (
        DEMO_FOLDER,
        DEMO_LEXICON,
        read_demo_passages,
        read_demo_qrels,
        read_demo_queries,
        write_demo,
    )
    from xqg_qdrant.evaluation import EVALUATION_DEPTH
    from xqg_qdrant.evaluation.comparison import evaluate_runs
    from xqg_qdrant.evaluation.results import check_folder, describe_asked, make_manifest, save_evaluation
    from xqg_qdrant.evaluation.runs import search_all

    if folder is not None:
        for what, path in write_demo(folder).items():
            echo(f"{what:<10} {path}")
        return

    def tell(message: str) -> None:
        echo(message, err=as_json)

    passages, queries, qrels = read_demo_passages(), read_demo_queries(), read_demo_qrels()
    collection = collection or ("xqg_demo_lexicon" if lexicon else "xqg_demo")
    augmentation = "rows of translated words" if lexicon else "generated queries"
    rankings = {"passage": "plain", "xqg": "augmented"} | ({"hybrid": "hybrid"} if lexicon else {})
    if save:
        check_folder(save)
    with opened_store(location) as store:
        encoder, generator = load_encoder(None, device, 1), load_generator(DEMO_LEXICON if lexicon else None, device, 1)
        recipe = make_recipe(generator, **DEMO_RECIPE, sparse=lexicon)
        tell(
            f"Ingesting {len(passages)} English passages into {collection!r} ({store.location}), each with "
            f"{recipe.queries_per_language} {augmentation} in each of {', '.join(recipe.languages)} "
            f"({recipe.fusion} fusion, alpha {recipe.alpha}, renormalised)."
        )
        letters = DeadLetters(Path(f"{collection}.rejected.jsonl"))
        totals = run_ingest(
            passages, len(passages), store, collection, encoder, generator, recipe, threads, letters, quiet
        )
        tell("")
        for language in DEMO_LANGUAGES_SHOWN:
            question = next(query for query in queries if query.language == language)
            tell(_show_question(store, collection, encoder, question, rankings))
        runs = search_all(store, collection, encoder, queries, EVALUATION_DEPTH, list(rankings), make_bars(quiet))
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
        save_evaluation(save, manifest, queries, qrels, report, runs, match_by(encoder))
    by = "plain vectors (passage)" + (
        ", augmented (xqg), and terms too (hybrid)" if lexicon else " and augmented (xqg)"
    )
    tell(f"{len(queries)} questions in {len(report.questions)} languages, {by}:\n")
    echo_report(report, as_json)
    again = "" if lexicon else "  xqg demo --lexicon\n"
    augmenting = f" --sparse --generator {DEMO_LEXICON}" if lexicon else ""
    tell(
        f"\nThe collection {collection!r} lies in {store.location}. Try next:\n"
        f"  xqg query --collection {collection} --store {location} 'Какая река самая длинная в Африке?'\n"
        f"  xqg ingest YOUR_FILE.jsonl --collection docs --languages ja,ru{augmenting}\n"
        f"  xqg evaluate --collection {collection} --store {location} --questions {DEMO_FOLDER}\n"
        f"{again}"
        "The demo models are small; for production export larger ones: see `xqg export --help`."
    )


def _show_question(
    store: Store, collection: str, encoder: Encoder, question: Query, rankings: Mapping[str, str]
) -> str:
    from xqg_qdrant.retrieval import search

    found = search(store, collection, encoder, [question.text], 3, list(rankings))
    lines = [f"{question.language}: {question.text}  (answer: {question.answers[0]})"]
    for name, label in rankings.items():
        titles = (
            f"{hit.passage.title}{' ✓' if any(answer in hit.passage.text for answer in question.answers) else ''}"
            for hit in found[name][0]
        )
        lines.append(f"  {label:<9}  {' | '.join(titles)}")
    return "\n".join(lines) + "\n"
