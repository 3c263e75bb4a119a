"""`xqg compare`: two runs that were made before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xqg_qdrant.cli.group import main
from xqg_qdrant.cli.options import json_option, language_option, qrels_option, test_option
from xqg_qdrant.cli.shared import echo_report
from xqg_qdrant.terminal import echo

if TYPE_CHECKING:
    from xqg_qdrant.evaluation.pairing import Pair
    from xqg_qdrant.evaluation.significance import TestName
    from xqg_qdrant.records import Qrel, Query


@main.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option(
    "--runs",
    metavar="NAME,NAME",
    help="Which run of the first folder, and which of the second.  [default: xqg, or the last]",
)
@click.option(
    "--questions",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Questions, where FIRST and SECOND are TREC runs or prediction files (.json). May be given again.",
)
@qrels_option
@language_option
@test_option
@click.option(
    "--list",
    "as_list",
    is_flag=True,
    help="Also each question won or lost in the first measure, with the passages that both runs found first.",
)
@json_option
def compare(
    first: Path,
    second: Path,
    runs: str | None,
    questions: tuple[Path, ...],
    qrels: Path | None,
    language: str,
    test: TestName,
    as_list: bool,
    as_json: bool,
) -> None:
    """Compare SECOND with FIRST: two folders of xqg evaluate --save, or two files of any systems with --questions.

    For each language and on average: the difference with its 95% interval, questions won and lost, and whether it
    could be chance.
    """
    from xqg_qdrant.evaluation.changes import find_changes
    from xqg_qdrant.evaluation.pairing import pair_results
    from xqg_qdrant.evaluation.results import read_results
    from xqg_qdrant.printing import format_change

    if not questions:
        if qrels is not None:
            raise click.UsageError("--qrels goes with --questions; a results folder has its own.")
        names = tuple(runs.split(",")) if runs is not None else None
        if names is not None and len(names) != 2:
            raise click.UsageError("--runs takes two names parted by a comma, such as passage,xqg.")
        results = read_results(first)
        pair = pair_results(results, read_results(second), names, test)
        queries, judgements = results.queries, results.qrels
    else:
        if runs is not None:
            raise click.UsageError("--runs names runs of results folders; --questions is for files.")
        pair, queries, judgements = _pair_files(first, second, questions, qrels, language, test)
    changes = list(find_changes(queries, judgements, pair.report, pair.runs)) if as_list else []
    if as_json and as_list:
        echo(json.dumps(pair.report.to_json() | {"changes": changes}, ensure_ascii=False, indent=2))
        return
    echo_report(pair.report, as_json)
    for change in sorted(changes, key=lambda change: change["after"] < change["before"]):
        echo("\n" + format_change(change))


def _pair_files(
    first: Path, second: Path, questions: Sequence[Path], qrels: Path | None, language: str, test: TestName
) -> tuple[Pair, list[Query], list[Qrel]]:
    from xqg_qdrant.evaluation.comparison import evaluate_runs
    from xqg_qdrant.evaluation.judgements import read_judged_questions
    from xqg_qdrant.evaluation.pairing import Pair
    from xqg_qdrant.evaluation.systems import read_system_predictions, read_system_run

    queries, judgements = read_judged_questions(questions, qrels, language)
    query_ids = {query.query_id for query in queries}
    runs = {}
    for path in (first, second):
        read = read_system_predictions if path.name.endswith((".json", ".json.gz")) else read_system_run
        name = path.name if first.name != second.name else str(path)
        if name in runs:
            raise click.UsageError("FIRST and SECOND are one file.")
        runs[name] = read(path, query_ids)
    return Pair(evaluate_runs(queries, judgements, runs, test=test), runs), queries, judgements
