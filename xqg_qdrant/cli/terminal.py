"""The only module that prints. It keeps data from steering the terminal, and secrets from being shown.

Passages, names, server answers and messages may hold escape sequences, which move the cursor, rename the window or hide
text. They are printed as JSON escapes them, so JSON output stays valid.
"""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from types import TracebackType

import click

from xqg_qdrant.errors import InputError
from xqg_qdrant.secrets import hide
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
    """Print a message without secrets, escaped where needed: data to stdout, all else to stderr.

    Raises:
        InputError: standard output cannot be written.
        BrokenPipeError: nobody reads it.
    """
    try:
        click.echo(printable(hide(str(message)), err=err), err=err, nl=nl)
    except BrokenPipeError:
        raise
    except OSError as error:
        _silence(2 if err else 1)
        if not err:
            cure = "free space, or send the output elsewhere"
            raise InputError(f"standard output cannot be written ({error.strerror or error}).", cure) from error


def stdin_lines() -> Iterator[str]:
    """Yield the lines of standard input without line ends; leave out blank ones.

    Raises:
        InputError: it is closed or not UTF-8.
    """
    if sys.stdin is None:
        raise InputError("standard input is closed.", "pipe the lines into the command")
    for line in sys.stdin.buffer:
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"standard input is not UTF-8 ({line!r})", "convert it with iconv") from error
        if text.strip():
            yield text


def ask(question: str) -> bool:
    """Ask a yes-or-no question on stderr and return the answer; the default is no."""
    return click.confirm(printable(hide(question), err=True), err=True)


def echo_usage_error(error: click.ClickException) -> None:
    """Print an error as click does, but escape the arguments that it repeats."""
    text = io.StringIO()
    error.show(text)
    echo(text.getvalue(), err=True, nl=False)


def echo_traceback() -> None:
    """Print the traceback of the exception that is handled."""
    echo(traceback.format_exc(), err=True, nl=False)


class LogLines(logging.Handler):
    """Prints what libraries log, such as the server behind xqg serve, with tracebacks."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        echo(self.format(record), err=True)


def prepare_streams() -> None:
    """Make standard streams safe to write to, and let `echo` print what Python and libraries would.

    A closed stream would be the next file that is opened, which libraries then write messages into.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.lastResort = LogLines(logging.WARNING)
    sys.excepthook = _echo_uncaught
    threading.excepthook = lambda found: _echo_uncaught(found.exc_type, found.exc_value, found.exc_traceback)
    warnings.showwarning = lambda message, category, *_: echo(f"{category.__name__}: {message}", err=True)


def _echo_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None, /) -> None:
    echo("".join(traceback.format_exception(kind, error, trace)), err=True, nl=False)


def _silence(descriptor: int) -> None:
    """Let what is still buffered go nowhere, or the interpreter would complain at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
