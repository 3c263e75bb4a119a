"""`xqg evaluate` and `xqg score`: how good search results for a set of questions are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xqg_qdrant.cli.options import (
    F,
    add_options,
    asked_options,
    collection_option,
    device_options,
    encoder_option,
    json_option,
    overwrite_option,
    save_option,
    store_option,
    test_option,
)
from xqg_qdrant.cli.shared import (
    describe_searched,
    echo_report,
    echo_summary,
    given_command,
    load_encoder,
    main,
    match_by,
    opened_store,
)
from xqg_qdrant.cli.terminal import echo
from xqg_qdrant.evaluation import EVALUATION_DEPTH

if TYPE_CHECKING:
    from xqg_qdrant.evaluation.runs import RunFiles
    from xqg_qdrant.evaluation.significance import TestName
    from xqg_qdrant.evaluation.xor_retrieve import WordRules
    from xqg_qdrant.records import Qrel


def files_options(command: F) -> F:
    """Add --run and --predictions, as `run_files` and `prediction_files`."""
    options = (
        click.option(
            "--run",
            "run_files",
            multiple=True,
            metavar="[NAME=]FILE",
            help="TREC run of any system; repeatable. R@kt needs the texts of its passages, which evaluate takes from "
            "the collection.",
        ),
        click.option(
            "--predictions",
            "prediction_files",
            multiple=True,
            metavar="[NAME=]FILE",
            help="Prediction file of any system in XOR-Retrieve's format; repeatable.",
        ),
    )
    return add_options(options, command)


def rules_options(command: F) -> F:
    """Add --word-rules, --lenient and --test."""
    options = (
        click.option(
            "--word-rules",
            type=click.Choice(["installed", "published"]),
            default="installed",
            show_default=True,
            help="Tokenizer of R@kt: the installed NLTK, or the rules of NLTK up to 3.9.2, as in the paper.",
        ),
        click.option(
            "--lenient",
            is_flag=True,
            help="Also measure lenient@2kt and so on, with answers tokenised like the texts, so that $5 is found. Not "
            "in the paper.",
        ),
        test_option,
    )
    return add_options(options, command)


@main.command()
@collection_option()
@asked_options
@files_options
@store_option
@encoder_option
@click.option(
    "--rank",
    "rankings",
    type=click.Choice(
        [
            *("passage", "xqg", "hybrid", "max-sim", "offset", "passage-offset"),
            *("calibrated", "control", "centred", "passage-hybrid"),
        ]
    ),
    multiple=True,
    default=["passage", "xqg"],
    show_default=True,
    help="Ranking to measure, as in xqg query, or one of the last four, which are baselines. Repeatable; each is "
    "compared with the first.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=EVALUATION_DEPTH,
    show_default=True,
    help="Passages for each question.",
)
@rules_options
@click.option("--full", is_flag=True, help="Print every measure, with intervals and p-values.")
@json_option
@click.option("--write-run", type=click.Path(path_type=Path), help="Write the last --rank as a TREC run.")
@click.option("--write-predictions", type=click.Path(path_type=Path), help="Write the last --rank as predictions.")
@overwrite_option
@save_option
@device_options
@click.pass_obj
def evaluate(
    quiet: bool,
    /,
    collection: str | None,
    questions: tuple[Path, ...],
    qrels: Path | None,
    language: str,
    run_files: tuple[str, ...],
    prediction_files: tuple[str, ...],
    location: str,
    encoder_folder: Path | None,
    rankings: tuple[str, ...],
    limit: int,
    word_rules: WordRules,
    lenient: bool,
    test: TestName,
    full: bool,
    as_json: bool,
    write_run: Path | None,
    write_predictions: Path | None,
    save: Path | None,
    device: str,
    threads: int,
) -> None:
    """Measure retrieval: R@2kt and R@5kt where there are answers, recall, MRR and nDCG where there are judgements.

    Search a --collection with --questions. Each --rank, --run and --predictions is compared with the first ranking; a
    question without a result is a miss. To measure files alone, use xqg score.

    If documents were split (xqg ingest --split) and the judgements name documents, each counts with its best passage.

    Baselines: calibrated is the plain vectors, calibrated; control gives every passage the collection's mean query;
    centred subtracts the means of languages and corpus from plain vectors; passage-hybrid searches by plain vectors and
    the terms of the passages, without generated queries.
    """
    from xqg_qdrant.cli.progress import make_bars
    from xqg_qdrant.evaluation import files
    from xqg_qdrant.evaluation.comparison import measured_questions
    from xqg_qdrant.evaluation.results import check_folder, describe_asked
    from xqg_qdrant.evaluation.runs import (
        Rules,
        add_texts,
        check_collection_is_judged,
        check_judged_passages,
        measure_runs,
        note_documents,
        predictions_of_run,
        rank_documents,
        save_runs,
        scores_of_run,
        search_all,
    )
    from xqg_qdrant.printing import SUMMARY_MEASURES, format_asked_languages
    from xqg_qdrant.retrieval import OFFSET_RANKINGS, Ranker, check_collection

    if collection is None:
        raise click.UsageError("Missing option '--collection'. To measure files without one, use xqg score.")
    if not questions:
        raise click.UsageError("Missing option '--questions'.")
    others = _name_files(run_files, prediction_files, rankings)
    if save:
        check_folder(save)
    queries, judgements = files.read_judged_questions(questions, qrels, language)
    measured = measured_questions(queries, judgements)
    _note_missing_judgements(judgements)
    read, rules = others.read(measured), Rules(word_rules, lenient, test)
    with opened_store(location) as store:
        encoder = load_encoder(encoder_folder, device, threads, store, collection)
        check_collection(store, collection, encoder)
        by_document = check_collection_is_judged(store, collection, judgements)
        read = add_texts(read, store, collection)
        check_judged_passages(rank_documents(read) if by_document else read, judgements)
        found = search_all(store, collection, encoder, measured, limit, rankings, make_bars(quiet))
        found, read = (rank_documents(found), rank_documents(read)) if by_document else (found, read)
        runs = found | read
        if set(rankings).intersection(OFFSET_RANKINGS):
            named = [query.language for query in queries]
            asked_in = Ranker(store, collection, encoder).find_languages([query.text for query in queries], named)
            if told := format_asked_languages(asked_in):
                echo(told, err=True)
        searched = describe_searched(store, collection, encoder)
    report = measure_runs(queries, judgements, runs, rules, limit)
    report = note_documents(report, runs, limit) if by_document else report
    # First of all the figures: what follows may fail.
    if full or as_json or len(runs) < 2 or not {*report.measures}.intersection(SUMMARY_MEASURES):
        echo_report(report, as_json)
    else:
        echo_summary(report, queries)
    if save:
        data = describe_asked(questions, queries, qrels, judgements)
        asked = (data, queries, judgements)
        save_runs(save, given_command(), *asked, runs, report, others, rules, limit, match_by(encoder), **searched)
    if write_run:
        files.write_run(write_run, scores_of_run(found[rankings[-1]]))
    if write_predictions:
        files.write_predictions(write_predictions, predictions_of_run(queries, found[rankings[-1]]))


@main.command()
@asked_options
@files_options
@click.option(
    "--gold",
    type=click.Path(path_type=Path),
    help="Questions with answers: score the --predictions as the official script does, without comparing them.",
)
@rules_options
@json_option
@save_option
def score(
    questions: tuple[Path, ...],
    qrels: Path | None,
    language: str,
    run_files: tuple[str, ...],
    prediction_files: tuple[str, ...],
    gold: Path | None,
    word_rules: WordRules,
    lenient: bool,
    test: TestName,
    as_json: bool,
    save: Path | None,
) -> None:
    """Measure TREC runs and prediction files of any systems, without a collection.

    With --questions, the files are measured as by xqg evaluate and compared with the first; a question without a result
    is a miss. With --gold, --predictions are scored exactly as by the official XOR-Retrieve script, which leaves such
    questions out.
    """
    from xqg_qdrant.corpus.questions import read_queries
    from xqg_qdrant.evaluation.comparison import measured_questions, report_predictions
    from xqg_qdrant.evaluation.files import read_judged_questions, read_predictions
    from xqg_qdrant.evaluation.results import check_folder, describe_asked
    from xqg_qdrant.evaluation.runs import Rules, check_judged_passages, measure_runs, save_runs

    refusals = {
        "Missing option '--run' or '--predictions'.": not (run_files or prediction_files),
        "Missing option '--questions', or '--gold'.": not (questions or gold),
        "--gold goes with --predictions alone; to compare them, give --questions instead.": gold
        and any((questions, qrels, run_files, lenient, save)),
    }
    for message, refused in refusals.items():
        if refused:
            raise click.UsageError(message)
    others = _name_files(run_files, prediction_files)
    if gold:
        found = {name: read_predictions(path) for name, path in others.predictions.items()}
        echo_report(report_predictions(found, read_queries(gold), word_rules), as_json)
        return
    if save:
        check_folder(save)
    queries, judgements = read_judged_questions(questions, qrels, language)
    measured = measured_questions(queries, judgements)
    _note_missing_judgements(judgements)
    runs, rules = others.read(measured), Rules(word_rules, lenient, test)
    check_judged_passages(runs, judgements)
    report = measure_runs(queries, judgements, runs, rules)
    echo_report(report, as_json)
    if save:
        asked = (describe_asked(questions, queries, qrels, judgements), measured, judgements)
        save_runs(save, given_command(), *asked, runs, report, others, rules, EVALUATION_DEPTH)


def _note_missing_judgements(judgements: Sequence[Qrel]) -> None:
    if not judgements:
        echo("No judgements found: recall, MRR and nDCG are left out. Name them with --qrels.", err=True)


def _name_files(runs: Sequence[str], predictions: Sequence[str], rankings: Sequence[str] = ()) -> RunFiles:
    """Read `NAME=FILE`; the default name is the file's up to its first dot."""
    from xqg_qdrant.evaluation.runs import RunFiles

    taken = {*rankings, "comparison"}
    named: tuple[dict[str, Path], dict[str, Path]] = ({}, {})
    for values, paths in zip((runs, predictions), named, strict=True):
        for value in values:
            name, equals, path = value.partition("=")
            if not equals or Path(value).exists():
                name, path = Path(value).name.split(".")[0], value
            if not re.fullmatch(r"\w[\w+@.-]*", name):
                raise click.UsageError(f"{name!r} cannot name a run. Use letters and digits: NAME={path}")
            if name in taken:
                raise click.UsageError(f"The name {name!r} is taken. Give the run another one: NAME={path}")
            taken.add(name)
            paths[name] = Path(path)
    return RunFiles(*named)
