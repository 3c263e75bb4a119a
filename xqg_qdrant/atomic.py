"""Build a file or folder beside its place and rename it: afterwards it is complete and on disk, or as before."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xqg_qdrant.errors import InputError

# A killed process leaves its temporary folder. An export takes minutes, so a younger folder may still be in use.
LEFTOVER_SECONDS = 24 * 3600.0
# A file's name has at most 255 bytes; a temporary one must be longer than the name that it stands for.
KEPT_CHARACTERS = 40


@contextmanager
def built_aside(folder: Path, replaceable: Callable[[Path], Collection[str]] | None = None) -> Iterator[Path]:
    """Yield a temporary folder; its subfolder `final` becomes `folder` on success.

    The temporary folder lies beside `folder`. Those that killed processes left for the same name at least a day ago
    are removed first.

    Args:
        folder: The name of the finished folder.
        replaceable: Returns the names of the files of an existing folder that are dropped; the others stay, and so do
            owner and permissions. Without it no folder is replaced.

    Raises:
        InputError: something else has taken the name meanwhile.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name[:KEPT_CHARACTERS]}.unfinished-"
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
            if replaceable and folder.is_dir():
                _inherit(folder, final, replaceable(folder))
                exchange(final, folder)
                # Folders that may not be written to cannot be emptied.
                for old, _, _ in os.walk(final):
                    Path(old).chmod(0o700)
            else:
                final.rename(folder)
        except OSError as error:
            raise InputError(
                f"cannot name the finished folder {folder} ({error}).", "use another output folder"
            ) from error
        sync(folder.parent)


def _inherit(old: Path, new: Path, dropped: Collection[str]) -> None:
    """Give a folder the owner and permissions of another, and link to what is in that, without the `dropped` names.

    A link is the same file, so a program that is writing it, such as a log, goes on.
    """
    for path in old.iterdir():
        target = new / path.name
        if path.name in dropped:
            if target.exists():
                _inherit_rights(path, target)
        elif path.is_dir() and not path.is_symlink():
            target.mkdir()
            _inherit(path, target, ())
        else:
            _link(path, target)
    _inherit_rights(old, new)
    sync(new)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):  # a file system without hard links, or a link on Windows
        shutil.copy2(path, target, follow_symlinks=False)


def _inherit_rights(old: Path, new: Path) -> None:
    """Copy owner, group, permissions and access lists, as far as the user may."""
    status = old.stat()
    for owner in (status.st_uid, -1):
        with suppress(OSError, AttributeError):  # not on Windows
            os.chown(new, owner, status.st_gid)
            break
    with suppress(OSError):
        shutil.copystat(old, new)
        os.utime(new)


def exchange(new: Path, old: Path) -> None:
    """Give a folder the name of another, which gets the first one's name; on Linux at no moment is either missing.

    Raises:
        OSError: neither has changed.
    """
    if sys.platform == "linux":
        here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if rename is not None and rename(here, os.fsencode(new), here, os.fsencode(old), swap) == 0:
            return
        code = ctypes.get_errno()
        if rename is not None and code not in (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.ENOTSUP):
            raise OSError(code, os.strerror(code), str(old))
    # Beside `old`, not in a temporary folder: after a kill both are still there.
    aside = Path(tempfile.mkdtemp(prefix=f".{old.name[:KEPT_CHARACTERS]}.earlier-", dir=old.parent))
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    aside.rename(new)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path, whose file takes the place of `path` on success; else `path` stays as it was.

    Owner and permissions stay, too. A device or a pipe is written to directly.

    Raises:
        InputError: the file cannot be written, or `path` is a symbolic link.
    """
    try:
        if path.exists() and not path.is_file():
            yield path
            return
        if path.is_symlink():
            raise InputError(f"{path} is a symbolic link.", "name the file that it leads to")
        unfinished = path.with_name(f".{os.getpid()}-{path.name[-KEPT_CHARACTERS:]}")
        try:
            yield unfinished
            if path.exists():
                _inherit_rights(path, unfinished)
            sync(unfinished)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be written ({error}).", "name another file") from error


def check_writable(path: Path) -> None:
    """Check that a file or folder of this name could be made, so that hours of work do not end with a refusal.

    Raises:
        InputError: it could not.
    """
    cure = "name another file or folder"
    try:
        parent = path.absolute().parent
        while not parent.exists() and parent != parent.parent:
            parent = parent.parent
        usable = parent.is_dir() and (os.access(parent, os.W_OK | os.X_OK) or (path.exists() and not path.is_file()))
        if not path.name or len(os.fsencode(path.name)) > 255:
            raise InputError(f"{str(path)!r} cannot name a file or a folder.", cure)
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be used ({error}).", cure) from error
    if not usable:
        raise InputError(f"{path} cannot be written: {parent} is not a folder that you may write to.", cure)


def find_home(path: Path) -> Path:
    """Return a path with the folder that `~` or `~user` stands for.

    Raises:
        InputError: there is no such user.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise InputError(f"{str(path)!r}: {error}", "write the path without ~") from error


def sync(path: Path) -> None:
    """Flush a file, or the entries of a directory, to disk, so that they survive a power failure."""
    if path.is_dir() and os.name != "posix":  # elsewhere a directory cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
