"""The only way to the terminal: what data hold must not steer it.

Passages, names, server answers and messages may hold escape sequences, which move the cursor, rename the window or hide
what stands there. They are shown as JSON writes them, so that output that is JSON stays it. Knows click and
characters. Knows nothing of what is said.
"""

from __future__ import annotations

import io

import click

from xqg_qdrant.text import visible


def echo(message: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a message with its unsafe characters made visible: data to stdout, all else to stderr."""
    click.echo(visible(str(message)), err=err, nl=nl)


def ask(question: str) -> bool:
    """Ask a question on stderr that is answered with y or n; no is the default."""
    return click.confirm(visible(question), err=True)


def echo_usage_error(error: click.ClickException) -> None:
    """Print an error of click, which may repeat any argument, as click does."""
    text = io.StringIO()
    error.show(text)
    echo(text.getvalue(), err=True, nl=False)
