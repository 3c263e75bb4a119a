"""`xqg describe`: what a folder of another program does not tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from xqg_qdrant.cli.group import main
from xqg_qdrant.terminal import echo


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--graph", help="The graph, where FOLDER holds several, such as onnx/model_quantized.onnx.")
@click.option("--pooling", type=click.Choice(["cls", "mean", "last"]), help="How token vectors become one.")
@click.option("--normalise/--no-normalise", default=None, help="Vectors of length 1.")
@click.option("--query-prefix", help="Text before each query, such as 'query: '.")
@click.option("--passage-prefix", help="Text before each passage, such as 'passage: '.")
@click.option("--max-query-tokens", type=click.IntRange(min=4), help="Longest query.")
@click.option("--max-passage-tokens", type=click.IntRange(min=4), help="Longest passage.")
def describe(folder: Path, **told: Any) -> None:
    """Write the xqg.json of an encoder FOLDER that optimum, sentence-transformers or fastembed laid out.

    Such a folder is used as it is where sentence-transformers' files tell all. What they do not tell is said here, and
    what is not given is read there. From then on the checksums of its files are verified, too.
    """
    import json

    from xqg_qdrant.foreign_folder import Told
    from xqg_qdrant.model_folder import describe_in_place

    description = describe_in_place(folder, Told(**told))
    shown = {name: value for name, value in description.items() if name not in ("format", "kind", "files")}
    echo(f"{folder / 'xqg.json'}: {json.dumps(shown, ensure_ascii=False)}")
