"""A disk that is full or broken, at any write: a clear message, and the same command ends well once it is mended.

A library loaded before libc makes the calls that write below a folder fail: with ENOSPC from some call on, as on a full
disk, or once with EIO. The engine's calls are among them. It is compiled here; without a compiler, or elsewhere than on
Linux, the tests are skipped.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_kill_9 import SCENARIOS, read_state, write_corpus

SOURCE = Path(__file__).parents[1] / "support/faulty_disk.c"
CLI = Path(__file__).parents[2] / "cli.py"
CASES_A_SEED = 3
ERRORS = {errno.ENOSPC: "No space left on device", errno.EIO: "Input/output error"}


class Disk(NamedTuple):
    """The library, a folder with a corpus, what an undisturbed ingest leaves there, and its number of writing calls."""

    library: Path
    before: Path
    state: dict[str, Any]
    calls: int

    def run(self, folder: Path, **faults: int | str) -> tuple[int, str]:
        """Ingest in a folder, with faults of the disk; return the exit code and what was said."""
        environment = {**os.environ, "LD_PRELOAD": str(self.library), "FAULT_DIRECTORY": str(folder.resolve())}
        environment |= {f"FAULT_{name.upper()}": str(value) for name, value in faults.items()}
        command = [sys.executable, str(CLI), *SCENARIOS["ingest"].arguments, "--threads", "1"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
        return done.returncode, done.stderr


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, and Linux")
    made = tmp_path_factory.mktemp("disk")
    library = made / "faulty_disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    before, after = made / "before", made / "after"
    before.mkdir()
    write_corpus(before)
    shutil.copytree(before, after)
    disk = Disk(library, before, {}, 0)
    code, said = disk.run(after, count=str(made / "count"))
    assert code == SCENARIOS["ingest"].exit_code, said
    return disk._replace(state=read_state(after), calls=len((made / "count").read_text().splitlines()))


@pytest.mark.parametrize("number", range(CASES_A_SEED))
def test_a_full_or_broken_disk_is_told_and_costs_nothing_that_the_same_command_does_not_bring_back(
    number: int, seed: int, disk: Disk, tmp_path: Path
) -> None:
    assert disk.calls > 100
    draw = random.Random(f"{seed} {number}")
    kind = draw.choice(sorted(ERRORS))
    folder = tmp_path / "folder"
    shutil.copytree(disk.before, folder)
    call = draw.randint(1, disk.calls)
    code, said = disk.run(folder, call=call, errno=kind, lasts=int(kind == errno.ENOSPC))
    # The engine does without some calls, such as an early flush: then nothing is lost, and nothing is to be told.
    if code != SCENARIOS["ingest"].exit_code:
        assert code in (2, 5), said
        assert ERRORS[kind] in said, said
        assert "Cure: " in said, said
        assert "Traceback" not in said
        code, said = disk.run(folder)
        assert code == SCENARIOS["ingest"].exit_code, said
    assert read_state(folder) == disk.state


def full_disk(folder: Path, megabytes: int) -> Callable[[], object]:
    """Mount a small file system of memory at a folder; return what unmounts it."""
    options = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(options, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    return lambda: subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_real_file_system_that_is_full_is_told_and_costs_nothing(tmp_path: Path, disk: Disk) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    unmount = full_disk(folder, 200)
    try:
        shutil.copytree(disk.before, folder, dirs_exist_ok=True)
        free = shutil.disk_usage(folder).free
        with (folder / "ballast").open("wb") as ballast:
            ballast.write(b"\0" * (free - 40 * 2**20))
        code, said = disk.run(folder)
        assert code == 5, said
        assert "is nearly full: 4" in said, said
        assert "Cure: free space on the disk" in said, said
        (folder / "ballast").unlink()
        code, said = disk.run(folder)
        assert code == SCENARIOS["ingest"].exit_code, said
        assert read_state(folder) == disk.state
    finally:
        unmount()
