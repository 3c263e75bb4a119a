"""The click group behind `xqg`, where the package's errors become messages and exit codes.

Knows no command.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any

import click

from xqg_qdrant.errors import INTERRUPTED_EXIT_CODE, XqgError
from xqg_qdrant.terminal import echo, echo_usage_error


class Group(click.Group):
    """Turns the package's errors into one message and an exit code, at this one place."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:  # noqa: ANN401
        """Run as click does, but print what is wrong with the arguments without what could steer the terminal."""
        try:
            code = super().main(*args, standalone_mode=False, **extra)  # type: ignore[call-overload]
        except click.ClickException as error:
            if not standalone_mode:
                raise
            echo_usage_error(error)
            sys.exit(error.exit_code)
        except click.Abort:
            if not standalone_mode:
                raise
            echo("Aborted!", err=True)
            sys.exit(1)
        return sys.exit(code) if standalone_mode else code

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        """Run the command; an error ends the process with its exit code."""
        try:
            return super().invoke(ctx)
        except XqgError as error:
            if ctx.params.get("verbose"):
                echo(traceback.format_exc(), err=True, nl=False)
            echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED_EXIT_CODE)
        except (click.exceptions.Exit, click.ClickException, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params.get("verbose"):
                echo(traceback.format_exc(), err=True, nl=False)
            echo(
                f"Error: this is a bug in xqg: {type(error).__name__}: {error}. "
                "Run again with `xqg -v …` for the traceback, and report it.",
                err=True,
            )
            ctx.exit(1)


class Warnings(logging.Handler):
    """Shows what a model tells while it goes on, such as that a device has too little memory."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one warning."""
        echo(f"Warning: {record.getMessage()}", err=True)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "XQG"})
@click.version_option(package_name="xqg-qdrant")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no messages besides errors.")
@click.option("-v", "--verbose", is_flag=True, help="A traceback with every error.")
@click.pass_context
def main(ctx: click.Context, quiet: bool, verbose: bool) -> None:
    """Make a Qdrant collection answer questions asked in languages its passages are not written in.

    Every option can also be set in the environment: XQG_INGEST_ALPHA=0.02 is `xqg ingest --alpha 0.02`.
    """
    ctx.obj = quiet
    logging.getLogger("xqg_qdrant").handlers = [logging.NullHandler() if quiet else Warnings()]
