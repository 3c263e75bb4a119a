"""`xqg compare`, `xqg report`, `xqg robustness` and `xqg hubs`: compare saved runs, show results, inspect rankings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xqg_qdrant.cli.options import (
    collection_option,
    device_options,
    encoder_option,
    json_option,
    language_option,
    overwrite_option,
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
    opened_own_space_store,
    opened_store,
)
from xqg_qdrant.cli.terminal import echo
from xqg_qdrant.errors import ForeignCollectionError

if TYPE_CHECKING:
    from xqg_qdrant.evaluation.significance import TestName
    from xqg_qdrant.inference import TextEncoder
    from xqg_qdrant.records import FloatArray, Passage, Query
    from xqg_qdrant.stores import Store


@main.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option(
    "--runs",
    metavar="NAME,NAME",
    help="Run of the first folder, and of the second.  [default: xqg, else the last]",
)
@click.option(
    "--questions",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Questions, if FIRST and SECOND are TREC runs or prediction files (.json); repeatable.",
)
@qrels_option
@language_option
@test_option
@click.option(
    "--list",
    "as_list",
    is_flag=True,
    help="Also list each question won or lost in the first measure, with the first passages of both runs.",
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

    For each language and on average: the difference with its 95% interval, the questions won and lost, and the p-value.
    """
    from xqg_qdrant.evaluation.files import read_judged_questions
    from xqg_qdrant.evaluation.results import find_changes, read_results
    from xqg_qdrant.evaluation.runs import Rules, pair_files, pair_results
    from xqg_qdrant.printing import format_change

    if not questions:
        if qrels is not None:
            raise click.UsageError("--qrels goes with --questions; a results folder has its own judgements.")
        names = tuple(runs.split(",")) if runs is not None else None
        if names is not None and len(names) != 2:
            raise click.UsageError("--runs takes two names separated by a comma, such as passage,xqg.")
        results = read_results(first)
        pair = pair_results(results, read_results(second), names, test)
        queries, judgements = results.queries, results.qrels
    else:
        if runs is not None:
            raise click.UsageError("--runs is for results folders, --questions is for files.")
        queries, judgements = read_judged_questions(questions, qrels, language)
        pair = pair_files(first, second, queries, judgements, Rules(test=test))
    changes = list(find_changes(queries, judgements, pair.report, pair.runs)) if as_list else []
    if as_json and as_list:
        echo(json.dumps(pair.report.to_json() | {"changes": changes}, ensure_ascii=False, indent=2))
        return
    echo_report(pair.report, as_json)
    for change in sorted(changes, key=lambda change: change["after"] < change["before"]):
        echo("\n" + format_change(change))


@main.command()
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default="report.html",
    show_default=True,
    help="File to write; an earlier report is replaced.",
)
@overwrite_option
@click.pass_obj
def report(quiet: bool, folders: tuple[Path, ...], output: Path) -> None:
    """Write saved results as one HTML file: tables, charts, questions won and lost, and the commands to repeat it.

    Each FOLDER was written by the --save of a command. Evaluations of the same questions are shown side by side. The
    page needs no network, no scripts and no other files.
    """
    from xqg_qdrant.evaluation.results import read_results
    from xqg_qdrant.pages.report import render_report, write_page

    write_page(output, render_report([read_results(folder) for folder in folders]))
    if not quiet:
        echo(f"Wrote {output}: open it in a browser.", err=True)


@main.command()
@collection_option(required=True)
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="TSV file of id, sentence1, sentence2 and label, as in PAWS-X; repeatable.",
)
@language_option
@store_option
@encoder_option
@json_option
@save_option
@device_options
@click.pass_obj
def robustness(
    quiet: bool,
    collection: str,
    pairs: tuple[Path, ...],
    language: str,
    location: str,
    encoder_folder: Path | None,
    as_json: bool,
    save: Path | None,
    device: str,
    threads: int,
) -> None:
    """Measure whether paraphrases find the same passages and near-misses others, by plain and augmented vectors.

    Both sentences of each pair are searched for. The agreement of two rankings is their rank-biased overlap (p = 0.9,
    100 passages), and the share of passages among the first ten of both. The area under the ROC curve of the agreement
    measures how well it separates paraphrases (label 1) from near-misses (label 0).
    """
    from xqg_qdrant.cli.progress import run_robustness
    from xqg_qdrant.evaluation.measures import PERSISTENCE
    from xqg_qdrant.evaluation.results import check_folder, describe_sources, make_manifest
    from xqg_qdrant.evaluation.robustness import (
        PAIRS_FILE,
        RANKED,
        read_pairs,
        report_agreements,
        save_robustness,
    )
    from xqg_qdrant.retrieval import check_collection

    found, left_out = read_pairs(pairs, language)
    if save:
        check_folder(save)
    with opened_store(location) as store:
        encoder = load_encoder(encoder_folder, device, threads, store, collection)
        check_collection(store, collection, encoder)
        report = report_agreements(run_robustness(store, collection, encoder, found, quiet), left_out)
        searched = describe_searched(store, collection, encoder)
    echo_report(report, as_json)
    if save:
        manifest = make_manifest(
            "robustness",
            given_command(),
            {"pairs": describe_sources(pairs, PAIRS_FILE, len(found))},
            {"limit": RANKED, "persistence": PERSISTENCE},
            **searched,
        )
        save_robustness(save, manifest, found, report)


@main.command()
@collection_option(required=True)
@questions_option
@language_option
@click.option("--vector", metavar="NAME", help="Compare this vector with itself calibrated; '' is the unnamed one.")
@click.option("--title-field", default="title", show_default=True, help="With --vector: payload field of the title.")
@store_option
@encoder_option
@json_option
@save_option
@device_options
@click.pass_obj
def hubs(
    quiet: bool,
    collection: str,
    questions: tuple[Path, ...],
    language: str,
    vector: str | None,
    title_field: str,
    location: str,
    encoder_folder: Path | None,
    as_json: bool,
    save: Path | None,
    device: str,
    threads: int,
) -> None:
    """Find the passages that answer every question a little, and those that no question finds.

    Each question is searched for by plain and by augmented vectors. N10 counts how often a passage is among the ten
    best; its skewness measures hubness. Hubs are often boilerplate: tables of contents, disclaimers.

    Without --questions, those of the shipped bank are asked: the same 56 in each language the encoder can read. The few
    passages that really answer them count as hubs, too, and the bank also calibrates vectors. Questions from your own
    logs are a better test.

    --vector also takes another program's collection: it shows the hubs as they are, and as they would be if the vectors
    were calibrated. --encoder must be the model that made them; only the length is checked. Nothing is written.
    """
    from xqg_qdrant.augmentation.calibration import read_bank
    from xqg_qdrant.cli.progress import make_bars
    from xqg_qdrant.corpus.questions import read_questions
    from xqg_qdrant.evaluation.hubs import NEIGHBOURS, ask_bank, find_hubs, find_hubs_before_and_after, save_hubs
    from xqg_qdrant.evaluation.results import check_folder, describe_asked, make_manifest
    from xqg_qdrant.printing import format_hubs
    from xqg_qdrant.retrieval import check_collection

    if save:
        check_folder(save)
    asked = read_questions(questions, language).queries if questions else []
    bank = read_bank()
    settings: dict[str, Any] = {"limit": NEIGHBOURS}
    bars = make_bars(quiet)

    def ask(encoder: TextEncoder) -> tuple[list[Query], dict[str, Any]]:
        if questions:
            return asked, describe_asked(questions, asked, None, [])
        banked = list(ask_bank(bank, encoder))
        return banked, {"questions": {"path": "the shipped bank", "sha256": bank.sha256, "rows": len(banked)}}

    if vector is None:
        with opened_store(location) as store:
            _check_searchable(store, collection)
            encoder = load_encoder(encoder_folder, device, threads, store, collection)
            check_collection(store, collection, encoder)
            asked, data = ask(encoder)
            with bars(len(asked), " questions") as bar:
                found = find_hubs(store, collection, encoder, asked, bar.update)
            searched = describe_searched(store, collection, encoder)
    else:
        with _opened_vectors(location, collection, vector, title_field) as (store, rows, check):
            encoder = load_encoder(encoder_folder, device, threads)
            check(encoder)
            asked, data = ask(encoder)
            with bars(store.count(collection), " passages") as bar:
                found = find_hubs_before_and_after(rows, collection, encoder, asked, bar.update)
            searched = {"collection": collection, "store": store.location, "device": encoder.device}
        searched["fingerprint"] = {f"encoder.{name}": value for name, value in encoder.describe().items()}
        settings["vector"] = vector
    echo(json.dumps(found.to_json(), ensure_ascii=False, indent=2) if as_json else format_hubs(found))
    if save:
        save_hubs(save, make_manifest("hubs", given_command(), data, settings, **searched), asked, found)


@contextmanager
def _opened_vectors(
    location: str, collection: str, vector: str, title_field: str
) -> Iterator[tuple[Store, Iterator[tuple[Passage, FloatArray]], Callable[[TextEncoder], object]]]:
    """Open the passages of any program's collection, each with one of its vectors; and a check of the encoder."""
    from xqg_qdrant.augmentation.own_space import check_dim
    from xqg_qdrant.evaluation.hubs import read_vectors
    from xqg_qdrant.records import PayloadLayout, Space
    from xqg_qdrant.retrieval import check_collection
    from xqg_qdrant.stores import is_embedded, read_existing_fingerprint

    if is_embedded(location):
        with opened_store(location) as store:
            read_existing_fingerprint(store, collection)
            yield store, read_vectors(store, collection, vector), partial(check_collection, store, collection)
        return
    layout = PayloadLayout("", title_field, "passage_id")
    with opened_own_space_store(location, layout, Space(vector)) as theirs:
        dim = theirs.read_space(collection).dim
        yield theirs, theirs.read_vectors(collection), lambda encoder: check_dim(encoder, dim, vector)


def _check_searchable(store: Store, collection: str) -> None:
    """Refuse a collection that does not exist, or of which --vector has to name the vector."""
    from xqg_qdrant.stores import is_embedded, read_existing_fingerprint

    try:
        read_existing_fingerprint(store, collection)
    except ForeignCollectionError as error:
        if is_embedded(store.location):
            raise
        raise ForeignCollectionError(error.message, "name the vector to look at (--vector NAME)") from None
