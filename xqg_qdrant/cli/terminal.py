"""The only module that prints. It keeps data from steering the terminal.

Passages, names, server answers and messages may hold escape sequences, which move the cursor, rename the window or hide
text. They are printed as JSON escapes them, so JSON output stays valid.
"""

from __future__ import annotations

import codecs
import io
import json
import sys

import click

from xqg_qdrant.text import visible

ESCAPED = "xqg-escaped"


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Return the characters that an encoding lacks as JSON escapes them, for `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(ESCAPED, _escape)


def printable(text: str, *, err: bool = False) -> str:
    """Escape control characters, and those that the encoding of stdout or stderr lacks."""
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    return visible(text).encode(encoding, ESCAPED).decode(encoding)


def echo(message: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a message, escaped where needed: data to stdout, all else to stderr."""
    click.echo(printable(str(message), err=err), err=err, nl=nl)


def ask(question: str) -> bool:
    """Ask a yes-or-no question on stderr and return the answer; the default is no."""
    return click.confirm(printable(question, err=True), err=True)


def echo_usage_error(error: click.ClickException) -> None:
    """Print an error as click does, but escape the arguments that it repeats."""
    text = io.StringIO()
    error.show(text)
    echo(text.getvalue(), err=True, nl=False)
