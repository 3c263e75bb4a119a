"""Build a folder beside its place and rename it: afterwards it is complete and on disk, or absent."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xqg_qdrant.errors import InputError

# A killed process leaves its temporary folder. An export takes minutes, so a younger folder may still be in use.
LEFTOVER_SECONDS = 24 * 3600.0


@contextmanager
def built_aside(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; its subfolder `final` becomes `folder` on success.

    The temporary folder lies beside `folder`. Those that killed processes left for the same name at least a day ago
    are removed first.

    Raises:
        InputError: something else has taken the name meanwhile.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}.unfinished-"
    # In the same directory, so on the same file system, where a rename is atomic.
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as temporary:
        # Use the file system's clock: other machines that write there may have different ones.
        now = Path(temporary).stat().st_mtime
        for leftover in folder.parent.glob(f"{glob.escape(prefix)}*"):
            if now - leftover.lstat().st_mtime > LEFTOVER_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
        yield Path(temporary)
        final = Path(temporary) / "final"
        # Sync first: after a power failure the name must not point to files that never reached the disk.
        for path in final.iterdir():
            sync(path)
        sync(final)
        try:
            final.rename(folder)
        except OSError as error:
            raise InputError(
                f"cannot name the finished folder {folder} ({error}).", "use another output folder"
            ) from error
        sync(folder.parent)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to disk, so that they survive a power failure."""
    if path.is_dir() and os.name != "posix":  # elsewhere a directory cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
