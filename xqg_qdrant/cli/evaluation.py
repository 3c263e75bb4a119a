"""`xqg evaluate`: how good the results for a set of questions are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from xqg_qdrant.cli.group import main
from xqg_qdrant.cli.options import (
    EVALUATION_DEPTH,
    collection_option,
    device_options,
    echo_report,
    encoder_option,
    given_command,
    language_option,
    load_encoder,
    opened_store,
    qrels_option,
    questions_option,
    save_option,
    store_option,
    test_option,
)

if TYPE_CHECKING:
    from xqg_qdrant.evaluation.official import WordRules
    from xqg_qdrant.evaluation.significance import TestName


@main.command()
@collection_option()
@questions_option
@qrels_option
@language_option
@click.option("--predictions", type=click.Path(path_type=Path), help="Score this prediction file instead.")
@click.option("--gold", type=click.Path(path_type=Path), help="Questions with answers, for --predictions.")
@store_option
@encoder_option
@click.option(
    "--rank",
    "rankings",
    type=click.Choice(["passage", "xqg", "hybrid", "max-sim"]),
    multiple=True,
    default=["passage", "xqg"],
    show_default=True,
    help="A run to measure: by plain vectors, by augmented ones, by these and terms (hybrid), or by the nearest of "
    "passage and queries (max-sim). Repeat it to compare each run with the first.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=EVALUATION_DEPTH,
    show_default=True,
    help="Passages for each question.",
)
@click.option(
    "--word-rules",
    type=click.Choice(["installed", "published"]),
    default="installed",
    show_default=True,
    help="Words of R@kt: as the installed NLTK splits them, or as NLTK did up to 3.9.2, to compare with the paper.",
)
@test_option
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
@click.option("--write-run", type=click.Path(path_type=Path), help="Write the TREC run (the last one, of several).")
@click.option("--write-predictions", type=click.Path(path_type=Path), help="Write the run in XOR-Retrieve's format.")
@save_option
@device_options
@click.pass_obj
def evaluate(
    quiet: bool,
    collection: str | None,
    questions: tuple[Path, ...],
    qrels: Path | None,
    language: str,
    predictions: Path | None,
    gold: Path | None,
    location: str,
    encoder_folder: Path | None,
    rankings: tuple[str, ...],
    limit: int,
    word_rules: WordRules,
    test: TestName,
    as_json: bool,
    write_run: Path | None,
    write_predictions: Path | None,
    save: Path | None,
    device: str,
    threads: int,
) -> None:
    """Measure retrieval: R@2kt and R@5kt where there are answers, recall, MRR and nDCG where there are judgements.

    Either search a --collection with --questions, or score a file of --predictions against its --gold questions
    exactly as the official XOR-Retrieve script does.
    """
    from xqg_qdrant.evaluation import files
    from xqg_qdrant.evaluation.comparison import evaluate_runs, predictions_of_run, report_predictions
    from xqg_qdrant.evaluation.judgements import read_judged_questions
    from xqg_qdrant.evaluation.results import check_folder, describe_asked, make_manifest, save_evaluation
    from xqg_qdrant.progress import search_all
    from xqg_qdrant.questions import read_queries
    from xqg_qdrant.search import check_collection, match_queries

    if (predictions is None) != (gold is None) or (predictions is None) == (collection is None):
        raise click.UsageError("Give --collection and --questions, or --predictions and --gold.")
    if predictions is not None and gold is not None:
        predicted = {"predictions": files.read_predictions(predictions)}
        echo_report(report_predictions(predicted, read_queries(gold), word_rules), as_json)
        return
    if not questions or collection is None:
        raise click.UsageError("Missing option '--questions'.")
    queries, judgements = read_judged_questions(questions, qrels, language)
    if save:
        check_folder(save)
    with opened_store(location) as store:
        encoder = load_encoder(encoder_folder, device, threads)
        check_collection(store, collection, encoder)
        runs = search_all(store, collection, encoder, queries, limit, rankings, quiet)
        fingerprint, place = store.read_fingerprint(collection), store.location
    report = evaluate_runs(
        queries,
        judgements,
        runs,
        recall_at=[k for k in (1, 5, 10, 20, 100) if k <= limit],
        rules=word_rules,
        test=test,
    )
    written = runs[rankings[-1]]
    if write_run:
        scored = {name: [(hit.passage.passage_id, hit.score) for hit in hits] for name, hits in written.items()}
        files.write_run(write_run, scored)
    if write_predictions:
        files.write_predictions(write_predictions, predictions_of_run(queries, written))
    if save:
        manifest = make_manifest(
            "evaluation",
            given_command(),
            describe_asked(questions, queries, qrels, judgements),
            {"limit": limit, "word_rules": word_rules, "test": test},
            collection=collection,
            store=place,
            fingerprint=fingerprint,
            device=encoder.device,
        )
        save_evaluation(
            save,
            manifest,
            queries,
            judgements,
            report,
            runs,
            lambda question, found: match_queries(encoder, encoder.encode_queries([question])[0], found),
        )
    echo_report(report, as_json)
