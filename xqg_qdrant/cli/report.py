"""`xqg report`: saved results → one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from xqg_qdrant.cli.group import main
from xqg_qdrant.terminal import echo


@main.command()
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default="report.html",
    show_default=True,
    help="The file to write; one that is there is replaced.",
)
@click.pass_obj
def report(quiet: bool, folders: tuple[Path, ...], output: Path) -> None:
    """Show saved results as one HTML file: tables, charts, questions won and lost, and how to repeat it all.

    Each FOLDER is what `--save` of a command wrote; several evaluations of the same questions are set side by side.
    The file needs nothing else, neither network nor scripts.
    """
    from xqg_qdrant.evaluation.report.page import render_report, write_page
    from xqg_qdrant.evaluation.results import read_results

    write_page(output, render_report([read_results(folder) for folder in folders]))
    if not quiet:
        echo(f"Wrote {output}: open it in a browser.", err=True)
