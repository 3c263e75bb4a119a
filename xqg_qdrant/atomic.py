"""A folder is built aside and renamed into its place: it is there whole, on the disk, or not at all.

Knows files and names. Knows nothing of models.
"""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xqg_qdrant.errors import InputError

# A killed process leaves what it built so far. An export takes minutes; a younger one may be another process at work.
LEFTOVER_SECONDS = 24 * 3600.0


@contextmanager
def built_aside(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, whose subfolder `final` takes its place when all went well.

    What killed processes left of the same folder a day ago or more is removed first.

    Raises:
        InputError: by now something else has the name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}.unfinished-"
    # In the same directory, hence on the same file system: a rename is one step, a copy is many.
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as temporary:
        # The time of the file system: other machines that write there may have other clocks.
        now = Path(temporary).stat().st_mtime
        for leftover in folder.parent.glob(f"{glob.escape(prefix)}*"):
            if now - leftover.lstat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
        yield Path(temporary)
        final = Path(temporary) / "final"
        # After a power failure a name must not lead to files that never reached the disk.
        for path in final.iterdir():
            _sync(path)
        _sync(final)
        try:
            final.rename(folder)
        except OSError as error:
            raise InputError(f"{folder} cannot get its name: {error}.", "name another folder") from error
        _sync(folder.parent)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name != "posix":  # elsewhere a directory cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
