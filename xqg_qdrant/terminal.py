"""The only way to the terminal: what data hold must not steer it.

Passages, names, server answers and messages may hold escape sequences, which move the cursor, rename the window or hide
what stands there. They are shown as JSON writes them, so that output that is JSON stays it. Knows click and
characters. Knows nothing of what is said.
"""

from __future__ import annotations

import io
import re

import click

# Control characters but tab and line feed, other ends of lines, what embeds, overrides or isolates directions of
# writing, and halves of surrogate pairs, which cannot be printed. Joiners and directional marks are part of words.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u206f\ud800-\udfff]")
UNSAFE_IN_A_LINE = re.compile(f"[\t\n]|{UNSAFE.pattern}")


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


def visible(text: str) -> str:
    r"""Return a text with each unsafe character as an escape.

    >>> visible("a\tb\x1b[2J")
    'a\tb\\u001b[2J'
    """
    return UNSAFE.sub(_escape, text)


def one_line(text: str) -> str:
    r"""Return a text as `visible` does, with tabs and line feeds as escapes too: it cannot look like two fields.

    >>> one_line("a\nb")
    'a\\u000ab'
    """
    return UNSAFE_IN_A_LINE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
