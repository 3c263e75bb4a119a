"""Saves results over others, killed before every call that changes the disk, with `faulty_disk.c` loaded.

    python killed_saving.py FOLDER

Prints a line of JSON for each kill: the number of the call, and what is then under the name of the results.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from xqg_qdrant.evaluation.results import make_manifest, new_results, read_results
from xqg_qdrant.records import Query

MOST_CALLS = 500


def save(folder: Path, text: str) -> None:
    with new_results(folder, make_manifest("evaluation", ["xqg"], {}, {}), [Query("q", text, "fi")]) as final:
        (final / "values.json").write_text(json.dumps({text: {}}))
        (final / f"{text}.trec").write_text("")


def save_killed(folder: Path, call: int) -> bool:
    """Save in a child process that is killed before a call; return whether it was."""
    child = os.fork()
    if child == 0:
        os.environ |= {"FAULT_DIRECTORY": str(folder.parent), "FAULT_CALL": str(call), "FAULT_ERRNO": "0"}
        save(folder, "second")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def main(place: Path) -> None:
    for call in range(1, MOST_CALLS):
        folder = place / str(call) / "saved"
        save(folder, "first")
        (folder / "notes.md").write_text("mine")
        killed = save_killed(folder, call)
        text = read_results(folder).queries[0].text
        whole = (folder / f"{text}.trec").exists() and (folder / "notes.md").read_text() == "mine"
        sys.stdout.write(json.dumps({"call": call, "killed": killed, "found": text, "whole": whole}) + "\n")
        if not killed:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
