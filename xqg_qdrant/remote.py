"""Files in object stores: `s3://`, `gs://` and whatever else pyarrow opens by a URL.

Keys come from where the store's own tools look for them, never from a URL. Knows URLs. Knows nothing of what stands in
a file.
"""

from __future__ import annotations

import re
from typing import Any

from xqg_qdrant.errors import InputError


def is_remote(path: str) -> bool:
    """Say whether a path is a URL."""
    return re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def open_remote(url: str) -> Any:  # noqa: ANN401
    """Open a file for reading at any place of it; raises OSError where that cannot be done."""
    system, path = _find_system(url)
    return system.open_input_file(path)


def list_remote(url: str) -> list[str]:
    """Return a file's own URL, or in the place of a folder those of the Parquet files in it, in the order of the names.

    Raises:
        InputError: there is no such file or folder, or it cannot be looked at.
    """
    system, path = _find_system(url)
    from pyarrow.fs import FileSelector, FileType

    try:
        kind = system.get_file_info(path).type
        found = system.get_file_info(FileSelector(path)) if kind == FileType.Directory else []
    except OSError as error:
        raise InputError(f"{url}: cannot be looked at ({error}). Cure: check the URL and your keys.") from error
    if kind == FileType.NotFound:
        raise InputError(f"{url}: there is no such file. Cure: check the URL.")
    if kind == FileType.File:
        return [url]
    names = sorted(file.base_name for file in found if file.base_name.endswith(".parquet"))
    if not names:
        raise InputError(f"{url}: the folder holds no Parquet file. Cure: give the files themselves.")
    return [f"{url.rstrip('/')}/{name}" for name in names]


def _find_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path in it."""
    try:
        import pyarrow
        from pyarrow.fs import FileSystem
    except ImportError as error:
        cure = "Cure: pip install 'xqg-qdrant[parquet]'"
        raise InputError(f"{url}: object stores need an extra. {cure}.") from error
    try:
        system, path = FileSystem.from_uri(url)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        cure = "Cure: write s3://BUCKET/FILE, gs://BUCKET/FILE or a path"
        raise InputError(f"{url}: no URL that can be opened ({error}). {cure}.") from error
    return system, path
