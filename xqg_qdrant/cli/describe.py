"""`xqg describe`: what a folder of another program does not tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from xqg_qdrant.cli.group import main
from xqg_qdrant.cli.options import encoder_settings_options, generator_settings_options
from xqg_qdrant.presets import PRESETS, preset_options
from xqg_qdrant.terminal import echo


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    metavar="NAME",
    help="What is known of a checkpoint that `xqg presets` lists; options given here win.",
)
@click.option("--graph", help="Encoder: the graph, where FOLDER holds several, such as onnx/model_quantized.onnx.")
@encoder_settings_options
@generator_settings_options
def describe(folder: Path, preset: str | None, languages: str | None, **told: Any) -> None:
    """Write the xqg.json of a model FOLDER that optimum, sentence-transformers or fastembed laid out.

    An encoder's folder is used as it is where sentence-transformers' files tell all. What they do not tell, and what no
    file tells of a generator, its prompt and languages, is said here; what is not given is read in the folder. From
    then on the checksums of its files are verified, too.
    """
    import json

    from xqg_qdrant.languages import LANGUAGES, parse_languages
    from xqg_qdrant.model_folder import describe_in_place

    told["languages"] = parse_languages(languages, tuple(LANGUAGES)) if languages is not None else None
    known = preset_options(preset) if preset is not None else {}
    given = {name: value for name, value in told.items() if value is not None}
    description = describe_in_place(folder, **{**known, **given})
    shown = {name: value for name, value in description.items() if name not in ("format", "kind", "files")}
    echo(f"{folder / 'xqg.json'}: {json.dumps(shown, ensure_ascii=False)}")
