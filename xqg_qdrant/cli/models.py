"""The commands about models: `xqg export`, `describe` and `doctor`."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xqg_qdrant.cli.options import (
    demo_encoder_option,
    device_option,
    encoder_settings_options,
    generator_option,
    generator_settings_options,
    json_option,
    store_option,
)
from xqg_qdrant.cli.shared import GroupedCommand, main
from xqg_qdrant.cli.terminal import echo
from xqg_qdrant.errors import InputError
from xqg_qdrant.model_folders.presets import PRESETS, preset_options

if TYPE_CHECKING:
    from xqg_qdrant.generation import Endpoint

ENDPOINT_OPTIONS = (
    *("model", "out", "query_fields", "passage_fields"),
    *("max_characters", "price_per_million", "max_tokens", "max_cost"),
)


def _list_presets(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    """Print the presets, one a line, and exit: name, kind, licence, hub id, note."""
    if not wanted or context.resilient_parsing:
        return
    width = max(map(len, PRESETS))
    for name, preset in PRESETS.items():
        note = f"  ({', '.join(filter(None, (preset.weights, preset.note)))})"
        echo(f"{name:<{width}}  {preset.kind:<9}  {preset.licence:<12}  {preset.source}{note}")
    context.exit()


@main.command()
@click.argument("checkpoint", required=False)
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_presets,
    help="List the presets and exit.",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    metavar="NAME",
    help="Known checkpoint and its options, from --list; other options override it.",
)
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "int8", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="int8 for CPUs, 16 bits for GPUs; xqg.json holds the loss.",
)
@encoder_settings_options
@click.option("--task", help="Encoder: text for {task} in the query prefix.")
@generator_settings_options
@click.option(
    "--restrict-vocabulary",
    type=click.Path(path_type=Path, exists=True),
    metavar="SAMPLE",
    help="Generator: add a smaller output projection for each language of SAMPLE.",
)
@click.pass_obj
def export(
    quiet: bool,
    /,
    checkpoint: str | None,
    folder: Path | None,
    preset: str | None,
    revision: str | None,
    dtype: str,
    languages: str | None,
    **given: Any,
) -> None:
    """Export a Hugging Face CHECKPOINT (local folder or hub id) to a model FOLDER, by default onnx/NAME.

    Encoders: BERT, MiniLM, XLM-R, GTE, Qwen3 and Gemma 3, with the layers that sentence-transformers adds. Generators:
    T5, mT5, and a BERT encoder with a BERT decoder (BERT-to-BERT). With --preset, CHECKPOINT is optional. The result is
    checked against transformers; a model that computes something else leaves no folder behind. Needs: pip install
    'xqg-qdrant[export]'

    Other architectures, such as ModernBERT, MPNet, DeBERTa and BART, are traced by optimum, in float32 or int8. Needs
    an environment with: pip install 'xqg-qdrant[optimum]'

    --restrict-vocabulary limits each language to the tokens that its script uses, which is much faster with a large
    vocabulary. SAMPLE holds some hundred questions per language, as for `xqg evaluate`.
    """
    if checkpoint is None and preset is None:
        raise click.UsageError("Give a CHECKPOINT or --preset; --list shows the presets.")
    try:
        from xqg_qdrant.export import export_checkpoint
    except ModuleNotFoundError as error:
        raise InputError(f"xqg export needs {error.name}", "pip install 'xqg-qdrant[export]'") from error
    from xqg_qdrant.languages import LANGUAGES, parse_languages

    given["languages"] = parse_languages(languages, tuple(LANGUAGES)) if languages is not None else None
    if not quiet:
        echo(f"exporting {checkpoint or preset}; the check against transformers takes a while …", err=True)
    start = time.perf_counter()
    exported = export_checkpoint(checkpoint, folder, preset=preset, revision=revision, dtype=dtype, **given)
    for measured in dict.fromkeys(("float32", dtype)):
        if measured not in exported.parity:
            echo(f"{measured}: not measured, which takes a GPU")
            continue
        figures = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in exported.parity[measured].items())
        echo(f"{measured} against {exported.parity['reference']} on {exported.parity['inputs']} inputs: {figures}")
    if exported.pickled:
        echo("The weights were a pickle, read by torch's weights-only loader and saved beside it as model.safetensors.")
    echo(f"{exported.folder}: {exported.kind}, exported in {time.perf_counter() - start:.0f} s")


@main.command(cls=GroupedCommand)
@store_option
@demo_encoder_option
@generator_option
@device_option
@json_option
def doctor(
    location: str,
    encoder_folder: Path | None,
    generator_source: Path | Endpoint | None,
    device: str,
    as_json: bool,
) -> None:
    """Check versions, memory, disk, models, devices, the store, and one passage end to end.

    Each part is really used: each model runs a batch; an endpoint is asked for a few vectors or questions; a scratch
    collection is written, searched and deleted. The exit code is 0, or that of the first failure; warnings do not fail.
    """
    from xqg_qdrant.doctor import FAILED, examine
    from xqg_qdrant.model_folders import DEMO_ENCODER, DEMO_GENERATOR, shipped_model
    from xqg_qdrant.printing import format_check
    from xqg_qdrant.stores import ASKING_SECONDS, open_store

    models = encoder_folder or shipped_model(DEMO_ENCODER), generator_source or shipped_model(DEMO_GENERATOR)
    checks = []
    key = os.environ.get("QDRANT_API_KEY")
    for check in examine(location, lambda: open_store(location, key, patience=ASKING_SECONDS), *models, device):
        checks.append(check)
        if not as_json:
            echo(format_check(check))
    exit_code = next((check.exit_code for check in checks if check.state == FAILED), 0)
    if as_json:
        report = {
            "exit_code": exit_code,
            "checks": [{**check._asdict(), "seconds": dict(check.seconds)} for check in checks],
        }
        echo(json.dumps(report, ensure_ascii=False, indent=2))
    sys.exit(exit_code)


@main.command()
@click.argument("source", metavar="FOLDER|URL")
@click.option("--model", help="Endpoint: name of the model there.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Endpoint: folder to write to.")
@click.option("--query-fields", metavar="JSON", help='Endpoint: fields to add for questions, {"input_type": "query"}.')
@click.option("--passage-fields", metavar="JSON", help="Endpoint: fields to add for passages.")
@click.option("--max-characters", type=click.IntRange(1), help="Endpoint: longest text.  [default: what it accepts]")
@click.option("--price-per-million", type=click.FloatRange(min=0), help="Endpoint: price of a million tokens.")
@click.option("--max-tokens", type=click.IntRange(1), help="Endpoint: stop a run after this many tokens.")
@click.option(
    "--max-cost",
    type=click.FloatRange(0, min_open=True),
    help="Endpoint: stop a run at this cost, by the price.",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    metavar="NAME",
    help="Options of a known checkpoint, from `xqg export --list`; other options override them.",
)
@click.option("--graph", help="Encoder: graph in FOLDER, such as onnx/model_quantized.onnx.")
@encoder_settings_options
@generator_settings_options
def describe(source: str, preset: str | None, languages: str | None, **settings: Any) -> None:
    """Write the xqg.json of a model FOLDER made by optimum, sentence-transformers or fastembed, or of an endpoint.

    An encoder folder needs no xqg.json if sentence-transformers' files are complete. Give what they lack, and for a
    generator its prompt and languages, which no file states; the rest is read from the folder. From then on, the
    checksums of its files are verified too.

    An encoder behind an OpenAI-compatible URL needs --model and --out. A probe finds dimension and length of the
    vectors. Then `--encoder FOLDER` works everywhere, with the key in XQG_EMBEDDING_API_KEY.
    """
    from xqg_qdrant.languages import LANGUAGES, parse_languages
    from xqg_qdrant.model_folders import describe_in_place

    remote = {name: settings.pop(name) for name in ENDPOINT_OPTIONS}
    if re.match(r"https?://", source, re.IGNORECASE):
        _describe_endpoint(source, remote, {**settings, "preset": preset, "languages": languages})
        return
    for name, value in remote.items():
        if value is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} needs a URL.")
    folder = Path(source)
    settings["languages"] = parse_languages(languages, tuple(LANGUAGES)) if languages is not None else None
    known = preset_options(preset) if preset is not None else {}
    given = {name: value for name, value in settings.items() if value is not None}
    description = describe_in_place(folder, **{**known, **given})
    shown = {name: value for name, value in description.items() if name not in ("format", "kind", "files")}
    echo(f"{folder / 'xqg.json'}: {json.dumps(shown, ensure_ascii=False)}")


def _describe_endpoint(url: str, remote: dict[str, Any], settings: dict[str, Any]) -> None:
    from xqg_qdrant.inference.remote_encoder import describe_endpoint

    model, out = remote.pop("model"), remote.pop("out")
    if model is None or out is None:
        raise click.UsageError("A URL needs --model and --out.")
    if remote["max_cost"] and not remote["price_per_million"]:
        raise click.UsageError("--max-cost needs --price-per-million.")
    given = {name: value for name, value in {**remote, **settings}.items() if value is not None}
    for name in given:
        if name not in (*ENDPOINT_OPTIONS, "normalise", "query_prefix", "passage_prefix"):
            raise click.UsageError(f"--{name.replace('_', '-')} does not apply to an endpoint.")
    for name in ("query_fields", "passage_fields"):
        if name in given:
            given[name] = _parse_object(name, given[name])
    if not model.strip():
        raise click.UsageError("--model is empty.")
    about = describe_endpoint(url, out, model, **given)
    shown = {name: value for name, value in about.items() if name not in ("format", "kind", "probes", "url")}
    echo(f"{out / 'xqg.json'}: {json.dumps(shown, ensure_ascii=False)}")


def _parse_object(name: str, text: str) -> dict[str, Any]:
    from xqg_qdrant.secrets import hide

    option = f"--{name.replace('_', '-')}"
    if hide(text) != text:
        raise click.UsageError(f"{option} holds a key, and the description is a file that people pass on.")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise click.UsageError(f"{option} is not a JSON object.")
    return value
