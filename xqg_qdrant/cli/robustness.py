"""`xqg robustness`: whether rankings follow the meaning of a question."""

from __future__ import annotations

from pathlib import Path

import click

from xqg_qdrant.cli.group import main
from xqg_qdrant.cli.options import (
    collection_option,
    device_options,
    encoder_option,
    json_option,
    language_option,
    save_option,
    store_option,
)
from xqg_qdrant.cli.shared import describe_searched, echo_report, given_command, load_encoder, opened_store


@main.command()
@collection_option(required=True)
@click.option(
    "--pairs",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="TSV file of id, sentence1, sentence2 and label, as PAWS-X has it. May be given again.",
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
    """Tell whether paraphrases find the same passages, and near-misses others; plain against augmented vectors.

    Both sentences of each pair are searched for. How far the rankings agree is measured by rank-biased overlap
    (p = 0.9, 100 passages) and by the share of passages among the first ten of both; how well paraphrases (label 1) and
    near-misses (label 0) are told apart, by the area under the ROC curve of that agreement.
    """
    from xqg_qdrant.evaluation.results import check_folder, describe_sources, make_manifest
    from xqg_qdrant.progress import run_robustness
    from xqg_qdrant.retrieval import check_collection
    from xqg_qdrant.robustness import PAIRS_FILE, PERSISTENCE, RANKED, read_pairs, report_agreements, save_robustness

    found, left_out = read_pairs(pairs, language)
    if save:
        check_folder(save)
    with opened_store(location) as store:
        encoder = load_encoder(encoder_folder, device, threads)
        check_collection(store, collection, encoder)
        report = report_agreements(run_robustness(store, collection, encoder, found, quiet), left_out)
        searched = describe_searched(store, collection, encoder)
    if save:
        manifest = make_manifest(
            "robustness",
            given_command(),
            {"pairs": describe_sources(pairs, PAIRS_FILE, len(found))},
            {"limit": RANKED, "persistence": PERSISTENCE},
            **searched,
        )
        save_robustness(save, manifest, found, report)
    echo_report(report, as_json)
