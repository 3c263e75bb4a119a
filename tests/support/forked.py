"""Run xqg commands in processes that may be killed, forked from one that has imported everything, so in no time.

Another program takes the place of `xqg` if its module has a function `main`, which gets the arguments.

Run as a script, it is that process: for each line on standard input, JSON of a folder and arguments, it prints the
number of the process that runs the command, and its exit code once it has ended.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OUTPUT = "output"


class Forks:
    """Starts commands, one at a time."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server
        self._folder = Path()
        self._process = 0

    def start(self, folder: Path, *arguments: str) -> None:
        """Start a command in a folder, where its messages go to the file `output`."""
        assert self._server.stdin is not None
        self._folder = folder
        self._server.stdin.write(json.dumps([str(folder), arguments]) + "\n")
        self._server.stdin.flush()
        self._process = self._read()

    def kill(self) -> int:
        """Kill the command, and return its exit code."""
        os.kill(self._process, signal.SIGKILL)
        return self.wait()

    def wait(self) -> int:
        """Return the exit code of the command; negative for a signal."""
        return self._read()

    @property
    def output(self) -> str:
        return (self._folder / OUTPUT).read_text()

    def _read(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())


@contextmanager
def forks(setup: str = "", program: str = "xqg_qdrant.cli") -> Iterator[Forks]:
    """Open what commands are started from; `setup` is Python that it runs first, `program` the module to run."""
    command = [sys.executable, __file__, setup, program]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Forks(server)
    finally:
        server.communicate("")


def run(program: str, folder: str, arguments: list[str]) -> None:
    main = importlib.import_module(program).main
    os.chdir(folder)
    output = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    main(arguments)


def tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def serve(setup: str, program: str) -> None:
    import httpx  # noqa: F401

    import xqg_qdrant.api
    import xqg_qdrant.cli
    import xqg_qdrant.generation.onnx
    import xqg_qdrant.inference.encoder
    import xqg_qdrant.stores.edge.store  # noqa: F401
    from xqg_qdrant.languages import can_identify, identify

    if can_identify():
        identify(["Where does the Danube end?"])
    exec(setup, {})
    for line in sys.stdin:
        process = os.fork()
        if not process:
            run(program, *json.loads(line))
        tell(process)
        tell(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


if __name__ == "__main__":
    serve(*sys.argv[1:])
