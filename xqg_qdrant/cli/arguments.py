"""Checks of a command line before anything is opened: secrets in URLs, text that is none, outputs over inputs.

A command line is checked by the names of its parameters: `INPUTS` are read, `OUTPUTS` are written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from xqg_qdrant.errors import InputError

STORES = ("location", "source_location", "target_location")
INPUTS = (
    *(
        "files",
        "file",
        "queries",
        "encoder_folder",
        "generator_folder",
        "generator_source",
        "question_bank",
        "restrict_vocabulary",
    ),
    *("questions", "qrels", "gold", "run_files", "prediction_files", "pairs", "first", "second", "folders"),
    *("checkpoint", "changes", "prompt", "encoder_folders", "source"),
)
OUTPUTS = ("dead_letters", "write_run", "write_predictions", "output", "save", "out", "batch_out", "folder")
# Parameters of these commands that hold text although another command reads files by that name.
TEXTS = {("query", "questions")}
# Other commands read a model folder by the name `folder`.
WRITES_FOLDER = ("demo", "export")
OTHER = "name another file or folder"
OVERWRITE = "xqg.overwrite"


class Command(click.Command):
    """A command that refuses unsafe arguments before it does anything."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse what no operating system passes on, before click looks for files of that name."""
        if any("\0" in arg for arg in args):
            raise click.UsageError("An argument holds a NUL.")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Check the arguments, then run."""
        check_texts(ctx)
        check_numbers(ctx)
        check_urls(ctx)
        check_outputs(ctx)
        return super().invoke(ctx)


def overwrites() -> bool:
    """Return whether --overwrite was given."""
    return bool(click.get_current_context().meta.get(OVERWRITE))


def check_texts(ctx: click.Context) -> None:
    """Refuse arguments that are no text, such as file names in another encoding.

    Raises:
        InputError: names the parameter.
    """
    for name, value in _each(ctx, tuple(ctx.params)):
        if any("\ud800" <= char <= "\udfff" for char in value):
            cure = "rename the file or write the text in UTF-8, and set a UTF-8 locale, such as LC_ALL=C.UTF-8"
            raise InputError(f"{_title(ctx, name)} holds bytes that are not UTF-8: {value!r}.", cure)


def check_numbers(ctx: click.Context) -> None:
    """Refuse `nan` and `inf`, which pass every comparison with a limit or none, and what 64 bits do not hold.

    Raises:
        UsageError: names the parameter.
    """
    for name, value in ctx.params.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise click.UsageError(f"{_title(ctx, name)} must be a finite number, was: {value}.")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise click.UsageError(f"{_title(ctx, name)} must fit into 64 bits.")


def check_urls(ctx: click.Context) -> None:
    """Refuse URLs that hold a user name, a password or a key, wherever a URL may be given.

    Raises:
        InputError: names the parameter; shows no part of the URL.
    """
    from xqg_qdrant.secrets import refuse_secret

    for name, value in _each(ctx, (*INPUTS, *OUTPUTS)):
        refuse_secret(value, _title(ctx, name))


def check_outputs(ctx: click.Context) -> None:
    """Refuse outputs that are inputs, parts of a store or of an input, or files that xqg did not write.

    Files are compared by what their names stand for, not by the names.

    Raises:
        InputError: nothing was opened for writing.
    """
    from xqg_qdrant.atomic import check_writable

    outputs = {name: path for name in OUTPUTS if (path := _find_output(ctx, name)) is not None}
    inputs = [(_title(ctx, name), path) for name, path in _find_inputs(ctx)]
    for name, path in outputs.items():
        title = _title(ctx, name)
        check_writable(path)
        for other, taken in inputs:
            if _is_same(path, taken) or (path.is_dir() and _is_inside(taken, path)):
                raise InputError(f"{title} {path} is also an input ({other}).", OTHER)
            if path.is_file() and _is_inside(path, taken) and not _is_ours(name, path):
                raise InputError(f"{title} {path} belongs to an input ({other}).", OTHER)
        if (store := _find_store(ctx, path)) is not None:
            raise InputError(f"{title} {path} is a part of the store {store}.", OTHER)
        for other, taken in outputs.items():
            if other != name and path.absolute() == taken.absolute():
                raise InputError(f"{title} and {_title(ctx, other)} are both {path}.", OTHER)
        if path.is_file() and not ctx.meta.get(OVERWRITE) and not _is_ours(name, path):
            cure = f"{OTHER}, or replace it with --overwrite" if name not in ("save", "out", "folder") else OTHER
            raise InputError(f"{title} {path} exists and was not written by xqg.", cure)


def _each(ctx: click.Context, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name in names:
        if (ctx.command.name, name) in TEXTS and names != tuple(ctx.params):
            continue
        value = ctx.params.get(name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, (str, os.PathLike)):
                yield name, str(one)


def _find_inputs(ctx: click.Context) -> Iterator[tuple[str, Path]]:
    from xqg_qdrant.corpus.files import local_path

    outputs = {name for name in OUTPUTS if name in ctx.params}
    for name, value in _each(ctx, tuple(name for name in INPUTS if name not in outputs)):
        named = value.partition("=")[2] if name in ("run_files", "prediction_files") else ""
        for text in (value, named):
            if (path := local_path(text)) is not None and path.exists():
                yield name, path


def _find_output(ctx: click.Context, name: str) -> Path | None:
    value = ctx.params.get(name)
    if name == "folder" and ctx.command.name not in WRITES_FOLDER:
        return None
    if value is None and name == "dead_letters" and name in ctx.params:
        out = ctx.params.get("out") or ctx.params.get("batch_out") or ""
        of = ctx.params.get("name") or ctx.params.get("collection") or Path(out).name
        return dead_letters_path(of) if of and "/" not in of else None
    return None if value is None else Path(value)


def dead_letters_path(name: str) -> Path:
    """Return the default dead-letter file of a collection or folder."""
    return Path(f"{name}.rejected.jsonl")


def _find_store(ctx: click.Context, path: Path) -> str | None:
    """Return the store that a path is in: any embedded collection, or the directory of a given local: store."""
    from xqg_qdrant.stores import LOCAL, find_directory

    real = Path(os.path.realpath(path))
    parents = [real, *real.parents]
    for parent in parents:
        if (parent / "collection.json").is_file() and (parent / "edge_config.json").is_file():
            return str(parent)
    for _, location in _each(ctx, STORES):
        directory = find_directory(location) if location.startswith(LOCAL) else None
        if directory is not None and directory.resolve() in parents:
            return location
    return None


def _is_same(left: Path, right: Path) -> bool:
    try:
        return os.path.samefile(left, right)
    except OSError:
        return False


def _is_inside(path: Path, folder: Path) -> bool:
    return folder.is_dir() and Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def _is_ours(name: str, path: Path) -> bool:
    """Return whether an existing file looks like one that xqg wrote by this parameter."""
    from xqg_qdrant.corpus.dead_letters import is_dead_letters

    try:
        if name == "dead_letters":
            return is_dead_letters(path)
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return False
    if name == "output":
        return b'<meta name="generator" content="xqg">' in start
    if name == "write_run":
        cells = start.partition(b"\n")[0].split()
        return not start or (len(cells) == 6 and cells[1] == b"Q0" and cells[-1] == b"xqg")
    return not start


def _title(ctx: click.Context, name: str) -> str:
    parameter = next(one for one in ctx.command.params if one.name == name)
    return parameter.opts[0] if isinstance(parameter, click.Option) else parameter.make_metavar(ctx).strip("[].")
