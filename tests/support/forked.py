"""Run xqg commands in processes of their own, forked from one that has imported everything and opened the demo models.

A command starts in no time and may be killed. Run as a script with the path of a socket, this is the process that the
others come from; each connection there asks for one command, with its standard streams.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

OUTPUT = "output"
IMPORTED = (
    *("httpx", "pytrec_eval", "qdrant_client", "xqg_qdrant.api", "xqg_qdrant.cli"),
    *("xqg_qdrant.generation.onnx", "xqg_qdrant.inference.encoder", "xqg_qdrant.stores.edge.store"),
)
# A program for the shell that hands its words to the process and ends with its exit code. Isolated, it starts at once.
SHIM = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({path!r})
    asked = [os.getcwd(), sys.argv[1:], "", dict(os.environ)]
    socket.send_fds(connection, [json.dumps(asked).encode() + b"\\n"], [0, 1, 2])
    told = connection.makefile().read().split()
sys.exit(int(told[1]))
"""


class Command:
    """A command that was started; what it prints goes to the file `output` in its folder."""

    def __init__(self, connection: socket.socket, output: Path) -> None:
        self._connection, self._output, self._told = connection, output, b""
        # A test that fails before the end leaves it open, and the warning would fail another test.
        weakref.finalize(self, connection.close)
        self._process = self._read()

    def send(self, number: int) -> None:
        """Send a signal."""
        os.kill(self._process, number)

    def kill(self) -> int:
        """Kill the command, and return its exit code."""
        self.send(signal.SIGKILL)
        return self.wait()

    def wait(self, seconds: float | None = None) -> int:
        """Return the exit code; negative for a signal.

        Raises:
            TimeoutError: it still runs after so many seconds.
        """
        self._connection.settimeout(seconds)
        code = self._read()
        self._connection.close()
        return code

    @property
    def output(self) -> str:
        return self._output.read_text()

    def _read(self) -> int:
        while b"\n" not in self._told:
            received = self._connection.recv(100)
            assert received, "the process that forks has ended"
            self._told += received
        line, _, self._told = self._told.partition(b"\n")
        return int(line)


class Forks:
    """Starts commands."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(self, folder: Path, *arguments: str, setup: str = "", output: str = OUTPUT) -> Command:
        """Start a command in a folder, after Python that is its `setup`.

        Args:
            folder: where it runs.
            arguments: what follows `xqg`.
            setup: Python that is run first.
            output: the file in the folder for all that it prints.
        """
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._path))
        asked = [str(folder), arguments, setup, dict(os.environ)]
        with (folder / output).open("wb") as stream, open(os.devnull) as nothing:
            streams = [nothing.fileno(), stream.fileno(), stream.fileno()]
            socket.send_fds(connection, [json.dumps(asked).encode() + b"\n"], streams)
        return Command(connection, folder / output)

    def run(self, folder: Path, *arguments: str, setup: str = "") -> tuple[int, str]:
        """Run a command to its end; return its exit code and what it printed."""
        command = self.start(folder, *arguments, setup=setup)
        return command.wait(), command.output

    def write_shim(self, path: Path) -> None:
        """Write a program for the shell that takes the place of `xqg`."""
        path.write_text(SHIM.format(python=sys.executable, path=str(self._path)), encoding="utf-8")
        path.chmod(0o755)


@contextmanager
def opened_forks() -> Iterator[Forks]:
    """Open what commands are started from."""
    # The path of a socket must be short.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "socket"
        server = subprocess.Popen([sys.executable, __file__, str(path)])
        try:
            while not path.exists():
                assert server.poll() is None
                time.sleep(0.01)
            yield Forks(path)
        finally:
            server.terminate()
            server.wait()


def open_models() -> None:
    """Have whoever opens a demo model take one that is open; on one thread it has none that a fork would lose."""
    from xqg_qdrant import generation, inference

    def offer(module: ModuleType, name: str) -> None:
        really_open = getattr(module, name)
        opened = [really_open(None, "cpu", 1)]

        def take(source: object = None, device: str = "auto", threads: int = 0, key: str | None = None) -> object:
            at_hand = source is None and device in ("auto", "cpu") and threads in (0, 1) and opened
            return opened.pop() if at_hand else really_open(source, device, threads, key)

        setattr(module, name, take)

    offer(inference, "open_encoder")
    offer(generation, "open_generator")


def import_all() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    from xqg_qdrant.evaluation.xor_retrieve import is_available as can_score
    from xqg_qdrant.languages import can_identify, identify

    if can_identify():
        identify(["Where does the Danube end?"])
    # It imports what the official score needs.
    can_score()


def run(asked: Sequence[Any], streams: Sequence[int]) -> None:
    """Become the command, and end with its exit code.

    Python frees everything that was imported when it ends, which takes longer than most commands; this only does what
    a command could miss.
    """
    from xqg_qdrant.cli import main

    folder, arguments, setup, environment = asked
    os.chdir(folder)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # Python's own streams remember what the former ones were.
    sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, (0, 1, 2), "rww", (-1, -1, 1))
    sys.argv[:] = ["xqg", *arguments]
    become(environment)
    try:
        exec(setup, {"__name__": "__main__"})
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code or 0)


def become(environment: Mapping[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def serve(path: str) -> None:
    """Fork a process for each connection, which forks the command, and tells its number and its exit code."""
    with socket.socket(socket.AF_UNIX) as listening:
        # Under its name only once it can be connected to.
        listening.bind(f"{path}.bound")
        listening.listen()
        os.rename(f"{path}.bound", path)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            connection, _ = listening.accept()
            if not os.fork():
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while not asked.endswith(b"\n"):
        asked += connection.recv(1 << 20)
    process = os.fork()
    if not process:
        connection.close()
        run(json.loads(asked), streams)
    # Whoever asked may have gone.
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{process}\n".encode())
        connection.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    import_all()
    open_models()
    serve(sys.argv[1])
