"""Find files and read their lines: plain, compressed, from object stores, or standard input.

Memory is bounded by the longest row, whatever a file holds: one that unpacks to terabytes, or has no line break, is
read to its end.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import re
import sys
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import unquote, urlsplit

from xqg_qdrant.errors import InputError
from xqg_qdrant.secrets import refuse_secret

# In bytes. A byte becomes at most six in JSON, and a request to a server holds 32 MiB.
LONGEST_ROW = 4 * 2**20
# Of a document that is split before it is stored.
LONGEST_DOCUMENT = 64 * 2**20
# Endings of compressed files' names. What a file is compressed with is read from its first bytes.
COMPRESSED = (".gz", ".zst", ".zstd")
GZIP, ZSTD = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
# Prefix of names that are not paths: see `datasets`.
CATALOGUE = "ir_datasets:"


def existing_file(path: str | Path, in_folder: str) -> Path:
    """Return the path of a file or, for a folder, of its file `in_folder`, compressed or not.

    Raises:
        InputError: there is no such file, or the path is not accessible.
    """
    given = Path(path)
    try:
        if not given.is_dir():
            if not given.exists():
                raise InputError(f"{path}: there is no such file.", "check the path")
            return given
        for file in (given / f"{in_folder}{ending}" for ending in ("", *COMPRESSED)):
            if file.is_file():
                return file
    except (OSError, ValueError) as error:  # not allowed to look, too long a name, a NUL in it
        raise InputError(f"{path}: cannot be accessed ({error}).", "check the path and its permissions") from error
    raise InputError(f"{path}: the folder holds no {in_folder}.", "name the file itself")


def kind_of(path: str | Path) -> str:
    """Return the ending of a file's name that shows its format: in lower case, without that of a compression."""
    name = str(path).lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).suffix


def corpus_files(source: str) -> list[str]:
    """Return the files of a corpus.

    That is one file, or all Parquet files of a folder without `corpus.jsonl`.
    """
    if is_remote(source):
        return list_remote(source)
    beir = any(os.path.isfile(os.path.join(source, f"corpus.jsonl{ending}")) for ending in ("", *COMPRESSED))
    if os.path.isdir(source) and not beir and (parts := sorted(map(str, Path(source).glob("*.parquet")))):
        return parts
    return [str(existing_file(source, "corpus.jsonl"))]


def file_lines(path: str, longest: int = LONGEST_ROW) -> Generator[bytes, None, None]:
    """Yield the lines of a file, compressed or not, or of standard input (`-`), without a byte order mark.

    A line of more than `longest` bytes is truncated; use `is_cut` to detect it.

    Raises:
        InputError: the file cannot be read to its end.
    """
    with opened_file(path) as file:
        yield from read_lines(file, longest)


def read_lines(file: IO[bytes], longest: int = LONGEST_ROW) -> Iterator[bytes]:
    """Yield the lines of an opened file like `file_lines`."""
    first = file.readline(len(codecs.BOM_UTF8))
    if first == codecs.BOM_UTF8:
        first = b""
    if not first.endswith(b"\n"):
        first += file.readline(longest + 1 - len(first))
    others = iter(partial(file.readline, longest + 1), b"")
    for line in chain((first,) if first else (), others):
        if is_cut(line, longest):
            _skip_to_end_of_line(file)
        yield line


def is_cut(line: bytes, longest: int = LONGEST_ROW) -> bool:
    """Return whether a line from `file_lines` is a truncated one."""
    return len(line) > longest and not line.endswith(b"\n")


def _skip_to_end_of_line(file: IO[bytes]) -> None:
    for part in iter(partial(file.readline, LONGEST_ROW), b""):
        if part.endswith(b"\n"):
            return


@contextmanager
def opened_file(path: str) -> Iterator[io.BufferedReader]:
    """Open a file, compressed or not, or standard input (`-`), to read bytes.

    Raises:
        InputError: it cannot be opened, or a read within the context fails.
    """
    try:
        if path == "-":
            if sys.stdin is None:
                raise InputError("standard input is closed.", "pipe the rows into the command, or name a file")
            yield _unpacked(path, _peekable(sys.stdin.buffer))
            return
        with io.BufferedReader(open_remote(path)) if is_remote(path) else open(path, "rb") as file:
            yield _unpacked(path, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: the gzip file is damaged ({error}).", "download or compress it again") from error
    except OSError as error:
        cure = "check that it exists and is readable"
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).", cure) from error


def _unpacked(path: str, file: io.BufferedReader) -> io.BufferedReader:
    """Return what reads the content of a file; its first bytes say whether it is compressed, whatever its name."""
    start = file.peek(len(ZSTD))
    if start.startswith(GZIP):
        return cast("io.BufferedReader", gzip.GzipFile(fileobj=file))
    if not start.startswith(ZSTD):
        return file
    try:
        from pyarrow import CompressedInputStream, PythonFile
    except ImportError as error:
        cure = "pip install 'xqg-qdrant[parquet]', or unpack the file with unzstd"
        raise InputError(f"{path}: pyarrow, which reads zstd files, is not installed.", cure) from error
    return io.BufferedReader(CompressedInputStream(PythonFile(file, "r"), "zstd"))


def _peekable(stream: Any) -> io.BufferedReader:  # noqa: ANN401
    return cast("io.BufferedReader", stream if hasattr(stream, "peek") else io.BufferedReader(stream))


def is_remote(path: str) -> bool:
    """Return whether a path is a URL."""
    return re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def local_path(source: str) -> Path | None:
    """Return the path of a file or folder on this machine, also of a file:// URL; None for other sources."""
    if source.startswith("file://"):
        return Path(unquote(urlsplit(source).path))
    return None if source in ("", "-") or is_remote(source) else Path(source)


def open_remote(url: str) -> Any:  # noqa: ANN401
    """Open a file of an object store for random access.

    Raises:
        InputError: the URL has no known file system, or pyarrow is not installed.
        OSError: the file cannot be opened.
    """
    with _reaching(url):
        system, path = _find_system(url)
        return system.open_input_file(path)


def list_remote(url: str) -> list[str]:
    """Return a file's own URL or, for a folder, those of its Parquet files, sorted by name.

    Raises:
        InputError: there is no such file or folder, or it is not accessible.
    """
    with _reaching(url):
        system, path = _find_system(url)
        from pyarrow.fs import FileSelector, FileType

        kind = system.get_file_info(path).type
        found = system.get_file_info(FileSelector(path)) if kind == FileType.Directory else []
    if kind == FileType.NotFound:
        raise InputError(f"{url}: there is no such file.", "check the URL")
    if kind == FileType.File:
        return [url]
    names = sorted(file.base_name for file in found if file.base_name.endswith(".parquet"))
    if not names:
        raise InputError(f"{url}: the folder holds no Parquet file.", "name the files themselves")
    return [f"{url.rstrip('/')}/{name}" for name in names]


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Turn what the libraries of object stores raise, which can be anything, into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{url}: cannot be accessed ({error}).", "check the URL and your credentials") from error


def _find_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL without secrets, and the path within it."""
    refuse_secret(url, "a file")
    try:
        import pyarrow
        from pyarrow.fs import FileSystem
    except ImportError as error:
        cure = "pip install 'xqg-qdrant[parquet]'"
        raise InputError(f"{url}: pyarrow, which reads object stores, is not installed.", cure) from error
    try:
        system, path = FileSystem.from_uri(url)
    except (pyarrow.ArrowException, ImportError, OSError, ValueError) as error:
        cure = "use s3://BUCKET/FILE, gs://BUCKET/FILE or a path"
        raise InputError(f"{url}: the URL cannot be opened ({error}).", cure) from error
    return system, path
