"""`xqg evaluate`: how good the results for a set of questions are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xqg_qdrant.cli.options import (
    EVALUATION_DEPTH,
    collection_option,
    device_options,
    encoder_option,
    json_option,
    language_option,
    qrels_option,
    questions_option,
    save_option,
    store_option,
    test_option,
)
from xqg_qdrant.cli.shared import (
    describe_searched,
    echo_report,
    given_command,
    load_encoder,
    main,
    match_by,
    opened_store,
)

if TYPE_CHECKING:
    from xqg_qdrant.evaluation.comparison import SystemRun
    from xqg_qdrant.evaluation.significance import TestName
    from xqg_qdrant.evaluation.xor_retrieve import WordRules
    from xqg_qdrant.records import Passage
    from xqg_qdrant.stores import Store

RECALL_AT = (1, 5, 10, 20, 100)
PASSAGES_AT_ONCE = 1000


@main.command()
@collection_option()
@questions_option
@qrels_option
@language_option
@click.option(
    "--run",
    "run_files",
    multiple=True,
    metavar="[NAME=]FILE",
    help="A TREC run of any system, measured too; may be given several times. R@kt needs its passages' texts, from the "
    "--collection.",
)
@click.option(
    "--predictions",
    "prediction_files",
    multiple=True,
    metavar="[NAME=]FILE",
    help="A prediction file in XOR-Retrieve's format, measured too; may be given several times.",
)
@click.option(
    "--gold",
    type=click.Path(path_type=Path),
    help="Questions with answers: score the --predictions exactly as the official script does, and nothing else.",
)
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
@click.option(
    "--lenient",
    is_flag=True,
    help="Also R@kt with the answers split into words as the texts are, as lenient@2kt: $5 is found then. Not so "
    "published.",
)
@test_option
@json_option
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
    run_files: tuple[str, ...],
    prediction_files: tuple[str, ...],
    gold: Path | None,
    location: str,
    encoder_folder: Path | None,
    rankings: tuple[str, ...],
    limit: int,
    word_rules: WordRules,
    lenient: bool,
    test: TestName,
    as_json: bool,
    write_run: Path | None,
    write_predictions: Path | None,
    save: Path | None,
    device: str,
    threads: int,
) -> None:
    """Measure retrieval: R@2kt and R@5kt where there are answers, recall, MRR and nDCG where there are judgements.

    Search a --collection with --questions, or measure what any system found for them: each --run and --predictions is
    compared with the first run, and a question without a result is a miss. Or score files of --predictions against
    their --gold questions exactly as the official XOR-Retrieve script does, which leaves such questions out.
    """
    from xqg_qdrant.cli.progress import search_all
    from xqg_qdrant.corpus.questions import read_queries
    from xqg_qdrant.evaluation import files
    from xqg_qdrant.evaluation.comparison import (
        evaluate_runs,
        predictions_of_run,
        read_system_predictions,
        read_system_run,
        report_predictions,
        with_passages,
    )
    from xqg_qdrant.evaluation.files import read_judged_questions
    from xqg_qdrant.evaluation.results import (
        check_folder,
        describe_asked,
        describe_file,
        make_manifest,
        save_evaluation,
    )
    from xqg_qdrant.retrieval import check_collection

    trec, predicted = _name_files(run_files), _name_files(prediction_files)
    if gold is not None:
        if not predicted or collection or questions or qrels or trec or lenient or save:
            raise click.UsageError("--gold goes with --predictions alone; to compare them, give --questions instead.")
        found = {name: files.read_predictions(path) for name, path in predicted.items()}
        echo_report(report_predictions(found, read_queries(gold), word_rules), as_json)
        return
    if not (collection or trec or predicted):
        raise click.UsageError("Give --collection and --questions, or --predictions and --gold.")
    if not questions:
        raise click.UsageError("Missing option '--questions'" + (", or '--gold'." if predicted else "."))
    if collection is None and (write_run or write_predictions):
        raise click.UsageError("--write-run and --write-predictions write what a search found: give --collection.")
    searched = [] if collection is None else list(rankings)
    _check_names([*searched, *trec, *predicted])
    queries, judgements = read_judged_questions(questions, qrels, language)
    if save:
        check_folder(save)
    query_ids = {query.query_id for query in queries}
    others: dict[str, SystemRun] = {name: read_system_run(path, query_ids) for name, path in trec.items()}
    texts: dict[str, SystemRun] = {name: read_system_predictions(path, query_ids) for name, path in predicted.items()}
    runs: dict[str, SystemRun] = {}
    made_by: dict[str, Any] = {}
    match_queries = None
    if collection is not None:
        with opened_store(location) as store:
            encoder = load_encoder(encoder_folder, device, threads)
            check_collection(store, collection, encoder)
            runs = search_all(store, collection, encoder, queries, limit, searched, quiet)
            passages = _read_passages(store, collection, others)
            made_by = describe_searched(store, collection, encoder)
        others = {name: with_passages(run, passages) for name, run in others.items()}
        match_queries = match_by(encoder)
    written = dict(runs)
    runs |= others | texts
    depth = max(len(found) for run in runs.values() for found in run.values())
    recall_at = [k for k in RECALL_AT if k <= (max(limit, depth) if collection else depth)]
    report = evaluate_runs(queries, judgements, runs, recall_at=recall_at, rules=word_rules, lenient=lenient, test=test)
    if write_run:
        found_ids = {
            id_: [(hit.passage.passage_id, hit.score) for hit in hits] for id_, hits in written[searched[-1]].items()
        }
        files.write_run(write_run, found_ids)
    if write_predictions:
        files.write_predictions(write_predictions, predictions_of_run(queries, written[searched[-1]]))
    if save:
        data = describe_asked(questions, queries, qrels, judgements)
        data |= {f"run {name}": describe_file(path, len(runs[name])) for name, path in (trec | predicted).items()}
        settings = {"limit": limit, "word_rules": word_rules, "lenient": lenient, "test": test}
        manifest = make_manifest("evaluation", given_command(), data, settings, **made_by)
        save_evaluation(save, manifest, queries, judgements, report, runs, match_queries)
    echo_report(report, as_json)


def _name_files(values: Sequence[str]) -> dict[str, Path]:
    """Read `NAME=FILE`; without a name a file is called as it is without what follows its first dot."""
    named: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or Path(value).exists():
            name, path = Path(value).name.split(".")[0], value
        if not re.fullmatch(r"\w[\w+@.-]*", name):
            raise click.UsageError(
                f"{name!r} cannot be the name of a run. Give it one of letters and digits: NAME={path}"
            )
        if name in named:
            raise click.UsageError(f"Two runs are called {name!r}. Give them names: NAME={path}")
        named[name] = Path(path)
    return named


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1 or name == "comparison":
            raise click.UsageError(f"A run cannot be called {name!r} here. Give it another name: NAME=FILE")


def _read_passages(store: Store, collection: str, runs: Mapping[str, SystemRun]) -> dict[str, Passage]:
    """Return the passages of runs that are in a collection."""
    ids = list({hit.passage.passage_id: None for run in runs.values() for found in run.values() for hit in found})
    passages: dict[str, Passage] = {}
    for start in range(0, len(ids), PASSAGES_AT_ONCE):
        points = store.read_points(collection, ids[start : start + PASSAGES_AT_ONCE])
        passages |= {passage_id: point.passage for passage_id, point in points.items()}
    return passages
