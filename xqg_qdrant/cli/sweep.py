"""`xqg sweep`: find the best settings of the fusion for a collection and its questions."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import click

from xqg_qdrant.cli.options import (
    DEFAULT_STORE,
    asked_options,
    collection_option,
    device_option,
    encoder_option,
    json_option,
    save_option,
    store_option,
    workers_option,
)
from xqg_qdrant.cli.shared import (
    SWEPT_RUNS,
    describe_searched,
    echo_sweep,
    given_command,
    load_encoder,
    main,
    opened_store,
    save_last,
)
from xqg_qdrant.cli.terminal import echo
from xqg_qdrant.evaluation import EVALUATION_DEPTH
from xqg_qdrant.text import count_of


@main.command()
@collection_option(required=True)
@asked_options
@click.option(
    "--measure",
    help="Measure to choose by: R@2kt, R@5kt, recall@10, MRR@10, nDCG@10 or similar.  [default: R@2kt if there are "
    "answers and its tokenizer is installed, else MRR@10]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the split into halves.")
@store_option
@encoder_option
@json_option
@save_option
@device_option
@workers_option
@click.pass_obj
def sweep(
    quiet: bool,
    collection: str,
    questions: tuple[Path, ...],
    qrels: Path | None,
    language: str,
    measure: str | None,
    seed: int,
    location: str,
    encoder_folder: Path | None,
    as_json: bool,
    save: Path | None,
    device: str,
    threads: int,
) -> None:
    """Find the best settings for a collection: alpha, fusion, number of queries, languages, filter, calibration.

    The stored queries and the questions are encoded once. Each setting is then measured by an exact search of the
    vectors that an ingest with it would store. Nothing is generated, and the collection does not change. The best
    setting is chosen on one half of the questions. On the other half it is compared with the plain vectors, with the
    calibrated ones, and with a control whose queries say nothing. If it gains, the xqg retune that applies it is
    printed.

    The passages, their queries' texts and three vectors per passage must fit into memory. The queries' vectors are in a
    temporary file (TMPDIR) of four bytes per dimension and distinct query.
    """
    from xqg_qdrant.cli.progress import make_bars
    from xqg_qdrant.evaluation.files import read_judged_questions
    from xqg_qdrant.evaluation.results import check_folder, describe_asked, make_manifest
    from xqg_qdrant.evaluation.sweep.bench import make_bench
    from xqg_qdrant.evaluation.sweep.summary import (
        describe,
        format_points,
        is_worth_it,
        judge_sweep,
        make_options,
        save_sweep,
    )
    from xqg_qdrant.evaluation.sweep.trial import run_sweep
    from xqg_qdrant.evaluation.sweep.vectors import check_sweepable, opened_vectors

    if save:
        check_folder(save)
    if not questions:
        raise click.UsageError("Missing option '--questions'.")
    queries, judgements = read_judged_questions(questions, qrels, language)
    with opened_vectors() as vectors:
        with opened_store(location) as store:
            # One thread per operator: the workers are the threads.
            encoder = load_encoder(encoder_folder, device, 1, store, collection)
            recipe = check_sweepable(store, collection, encoder)
            searched = describe_searched(store, collection, encoder)
            vectors.load(store, collection, encoder, threads, make_bars(quiet))
        bench = make_bench(vectors, recipe, encoder, queries, judgements, measure, EVALUATION_DEPTH)
        found = run_sweep(bench, seed, make_bars(quiet))
    if save:
        manifest = make_manifest(
            "sweep",
            given_command(),
            describe_asked(questions, queries, qrels, judgements),
            {"measure": found.measure, "limit": EVALUATION_DEPTH},
            seed=seed,
            **searched,
        )
        save_last(save_sweep, save, manifest, bench, found)
    if as_json:
        echo(json.dumps(found.to_json(), ensure_ascii=False, indent=2))
        return
    chosen_on, reported_on = map(len, found.halves)
    echo(
        f"{count_of(len(vectors.passages), 'passage')} with "
        f"{count_of(vectors.distinct_queries, 'distinct query', 'distinct queries')}; "
        f"{count_of(len(found.points), 'setting')} on {count_of(chosen_on, 'question')}:\n"
    )
    echo(format_points(found))
    echo(f"\nBest: {describe(found.chosen)}.")
    if found.points[found.chosen].values.macro <= found.plain.values.macro:
        echo("Even on these questions it is not better than the plain vectors.")
    echo(f"On the other {reported_on} questions, not used for the choice ({SWEPT_RUNS}):\n")
    echo_sweep(found)
    echo(f"\n{judge_sweep(found)}")
    options = make_options(found.chosen, found.base)
    places = [] if location == DEFAULT_STORE else ["--store", location]
    models = [] if encoder_folder is None else ["--encoder", str(encoder_folder)]
    command = shlex.join(["xqg", "retune", "--collection", collection, *places, *models, *options])
    if not options:
        echo(f"The collection {collection!r} already has this setting.")
    elif is_worth_it(found):
        echo(f"To apply it: {command}")
