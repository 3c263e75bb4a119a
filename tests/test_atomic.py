"""Test that a folder is complete and on disk, or absent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xqg_qdrant import atomic
from xqg_qdrant.atomic import LEFTOVER_SECONDS, built_aside
from xqg_qdrant.errors import InputError

# A child that writes two files and kills itself with -9 at its nth system call of these kinds.
CHILD = """
import os, runpy, signal, sys
from pathlib import Path

# by its path: the package around it would load the whole export
built_aside = runpy.run_path(sys.argv[3])["built_aside"]
left = int(sys.argv[2])
def counted(real):
    def call(*given, **more):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **more)
    return call

for name in ("mkdir", "open", "fsync", "rename", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
with built_aside(Path(sys.argv[1])) as temporary:
    os.mkdir(temporary / "final")
    for name in ("model.onnx", "xqg.json"):
        (temporary / "final" / name).write_text("whole")
"""


def build(folder: Path, content: str = "whole") -> None:
    with built_aside(folder) as temporary:
        (temporary / "final").mkdir()
        (temporary / "final" / "xqg.json").write_text(content)


def test_a_folder_gets_its_name_when_it_is_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    with built_aside(tmp_path / "new" / "model") as temporary:
        (temporary / "final").mkdir()
        (temporary / "scratch").write_text("not wanted")
        assert not (tmp_path / "new" / "model").exists()
        assert temporary.stat().st_dev == (tmp_path / "new").stat().st_dev
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "model"]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build_half() -> None:
        with built_aside(tmp_path / "model") as temporary:
            (temporary / "final").mkdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build_half()
    assert list(tmp_path.iterdir()) == []


def test_a_kill_at_any_step_leaves_the_whole_folder_or_none_and_does_not_stop_the_next(tmp_path: Path) -> None:
    outcomes = []
    for step in range(1, 40):
        folder = tmp_path / str(step) / "model"
        folder.parent.mkdir()
        done = subprocess.run([sys.executable, "-c", CHILD, str(folder), str(step), atomic.__file__], check=False)
        assert done.returncode in (0, -signal.SIGKILL)
        names = sorted(path.name for path in folder.glob("*"))
        assert names == (["model.onnx", "xqg.json"] if folder.exists() else [])
        outcomes.append((done.returncode, folder.exists()))
        if not folder.exists():
            build(folder)
            assert (folder / "xqg.json").read_text() == "whole"
        if done.returncode == 0:
            break
    # killed before the rename, killed after it, and finally not killed
    assert {(-signal.SIGKILL, False), (-signal.SIGKILL, True)} <= set(outcomes)
    assert outcomes[-1] == (0, True)


def test_what_a_kill_left_behind_is_removed_a_day_later_and_nothing_else(tmp_path: Path) -> None:
    now = time.time()
    for name, age in (("old", LEFTOVER_SECONDS + 60), ("young", LEFTOVER_SECONDS - 60)):
        for prefix in (".model[1].unfinished-", ".model1.unfinished-", "model[1].unfinished-"):
            (tmp_path / f"{prefix}{name}" / "final").mkdir(parents=True)
            os.utime(tmp_path / f"{prefix}{name}", (now - age, now - age))
    before = {path.name for path in tmp_path.iterdir()}
    build(tmp_path / "model[1]")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == before - {".model[1].unfinished-old"} | {"model[1]"}


def test_files_reach_the_disk_before_the_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, rename = os.fsync, Path.rename

    def note_sync(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def note_rename(path: Path, target: Path) -> Path:
        done.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    build(tmp_path / "model")
    assert done == ["xqg.json", "final", "rename", tmp_path.name]


def test_a_folder_that_another_process_made_meanwhile_is_left_alone(tmp_path: Path) -> None:
    def build_second() -> None:
        with built_aside(tmp_path / "model") as temporary:
            (temporary / "final").mkdir()
            build(tmp_path / "model", "of the other")

    with pytest.raises(InputError, match=r"cannot name the finished folder .*model .*Cure: use another output folder"):
        build_second()
    assert (tmp_path / "model" / "xqg.json").read_text() == "of the other"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
