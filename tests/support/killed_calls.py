"""Works on files, killed before every call that changes the disk, with `faulty_disk.c` loaded.

    python killed_calls.py save FOLDER     saves results over others; reads what is then under their name
    python killed_calls.py local FOLDER    opens a new store of the client's local mode; opens it again

Prints a line of JSON for each call: its number, whether the process was killed there, and what was found.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from xqg_qdrant.cli import main as xqg
from xqg_qdrant.evaluation.results import make_manifest, new_results, read_results
from xqg_qdrant.records import Query
from xqg_qdrant.stores.server import client  # noqa: F401  # so that no child has to import it

MOST_CALLS = 500


def in_child(work: Callable[[], object], **environment: str) -> bool:
    """Work in a child process; return whether it came to its end."""
    child = os.fork()
    if child == 0:
        os.environ |= environment
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def save(folder: Path, text: str) -> None:
    with new_results(folder, make_manifest("evaluation", ["xqg"], {}, {}), [Query("q", text, "fi")]) as final:
        (final / "values.json").write_text(json.dumps({text: {}}))
        (final / f"{text}.trec").write_text("")


class Saving:
    """Saves results twice, into a folder with a file of the user."""

    def __init__(self, place: Path) -> None:
        self.folder = place / "saved"
        save(self.folder, "first")
        (self.folder / "notes.md").write_text("mine")

    def work(self) -> None:
        save(self.folder, "second")

    def find(self) -> str:
        text = read_results(self.folder).queries[0].text
        whole = (self.folder / f"{text}.trec").exists() and (self.folder / "notes.md").read_text() == "mine"
        return text if whole else f"{text}, not whole"


class Opening:
    """Opens a store of the client's local mode."""

    def __init__(self, place: Path) -> None:
        self.line = ["status", "--store", f"local:{place / 'store'}"]

    def work(self) -> None:
        CliRunner().invoke(xqg, self.line)

    def find(self) -> str:
        return CliRunner().invoke(xqg, self.line).output.splitlines()[0].partition(" in ")[0]


def main(kind: str, place: Path) -> None:
    for call in range(1, MOST_CALLS):
        folder = place / str(call)
        folder.mkdir(parents=True)
        case: Saving | Opening = Saving(folder) if kind == "save" else Opening(folder)
        ended = in_child(case.work, FAULT_DIRECTORY=str(folder), FAULT_CALL=str(call), FAULT_ERRNO="0")
        sys.stdout.write(json.dumps({"call": call, "killed": not ended, "found": case.find()}) + "\n")
        if ended:
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
