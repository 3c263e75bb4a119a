"""The only module that prints. It keeps data from steering the terminal.

Passages, names, server answers and messages may hold escape sequences, which move the cursor, rename the window or hide
text. They are printed as JSON escapes them, so JSON output stays valid.
"""

from __future__ import annotations

import io

import click

from xqg_qdrant.text import visible


def echo(message: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a message with its control characters escaped: data to stdout, all else to stderr."""
    click.echo(visible(str(message)), err=err, nl=nl)


def ask(question: str) -> bool:
    """Ask a yes-or-no question on stderr and return the answer; the default is no."""
    return click.confirm(visible(question), err=True)


def echo_usage_error(error: click.ClickException) -> None:
    """Print an error as click does, but escape the arguments that it repeats."""
    text = io.StringIO()
    error.show(text)
    echo(text.getvalue(), err=True, nl=False)
