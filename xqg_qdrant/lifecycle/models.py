"""Where the models of a collection are: kept beside its fingerprint, never part of it.

The fingerprint identifies models by their checksums. For people a collection also keeps their names, and for later
commands the encoder's folder. Elsewhere the folder may be missing or hold another model; then it is asked for. So it is
if it describes an endpoint and another user can change it: texts and the key go to the URL that stands there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from xqg_qdrant.errors import InputError, XqgError
from xqg_qdrant.fingerprint import Fingerprint
from xqg_qdrant.generation import Endpoint
from xqg_qdrant.inference import DESCRIBED, ENCODER, TextEncoder
from xqg_qdrant.model_folders import DEMO_ENCODER, ModelFolder, read_model_folder, shipped_model
from xqg_qdrant.model_folders.description import DESCRIPTION_FILE, ENDPOINT, read_description, read_endpoint
from xqg_qdrant.model_folders.sentence_transformers import is_foreign_folder
from xqg_qdrant.stores import Store
from xqg_qdrant.text import show

DEMO_NAME = "the demo generator"


def describe_encoder(encoder: TextEncoder) -> dict[str, str]:
    """Return the name of an encoder, and its folder unless it ships with xqg."""
    folder = find_folder(encoder)
    return {"source": encoder.source} | ({} if folder is None else {"folder": str(folder)})


def find_folder(encoder: TextEncoder) -> Path | None:
    """Return the absolute path of an encoder's folder, None if it ships with xqg."""
    folder = encoder.folder.path.absolute()
    return None if folder.resolve() == shipped_model(DEMO_ENCODER).resolve() else folder


def describe_generator(source: Path | Endpoint | None) -> dict[str, str]:
    """Return the name of a generator, and its folder, file or URL."""
    if source is None:
        return {"source": DEMO_NAME}
    if isinstance(source, Endpoint):
        url = urlsplit(source.url)
        return {"source": source.model, "url": url._replace(netloc=url.netloc.rpartition("@")[2], query="").geturl()}
    about = {} if source.is_file() else read_model_folder(source, "generator").description
    return {"source": str(about.get("source") or source.resolve().name), "folder": str(source.absolute())}


def update_models(store: Store, collection: str, models: Mapping[str, Mapping[str, str]]) -> None:
    """Keep what is known of models with a collection, if there is one."""
    if store.read_fingerprint(collection) is None:
        return
    kept = store.read_models(collection)
    if {**kept, **models} != kept:
        store.write_models(collection, {**kept, **models})


def find_encoder(store: Store, collection: str, demo: bool = False) -> Path | None:
    """Return the folder of the encoder that made a collection; None if it is not where it was, or another one.

    The demo encoder's is returned only if `demo`: commands use it anyway.
    """
    stored = store.read_fingerprint(collection)
    if stored is None:
        return None
    about = store.read_models(collection).get(ENCODER)
    kept = about.get("folder") if isinstance(about, dict) else None
    known = [Path(kept)] if isinstance(kept, str) and Path(kept).is_absolute() and Path(kept).is_dir() else []
    folders = [*known, *([shipped_model(DEMO_ENCODER)] if demo else [])]
    return next((folder for folder in folders if _made(folder, stored)), None)


def check_owner(folder: Path, collection: str) -> Path:
    """Return the folder of a collection's encoder, without links if it describes an endpoint.

    Raises:
        InputError: it describes an endpoint, and another user can change the description.
    """
    about = read_endpoint(folder)
    if about is None or os.name != "posix":
        return folder
    path = (folder / DESCRIPTION_FILE).resolve()
    if not all(map(_is_ours, (path, *path.parents))):
        raise InputError(
            f"the encoder of {collection!r} is at {show(urlsplit(about['url']).hostname)}, as {path} says, which "
            "another user can change; so nothing was sent there.",
            f"if that host may see the texts and your key, name the folder: --encoder {folder}",
        )
    return path.parent


def _is_ours(path: Path) -> bool:
    """Return whether only this user or root can change a file, or what a folder holds of theirs."""
    at = path.stat()
    return at.st_uid in (0, os.getuid()) and (not at.st_mode & stat.S_IWOTH or bool(at.st_mode & stat.S_ISVTX))


def _made(folder: Path, fingerprint: Fingerprint) -> bool:
    try:
        if read_endpoint(folder) is not None:
            return fingerprint.get("encoder.kind") == ENDPOINT
        if is_foreign_folder(folder):
            found = read_model_folder(folder, ENCODER)
        else:  # its files are verified when it is opened
            found = ModelFolder(folder, read_description(folder / DESCRIPTION_FILE, ENCODER))
    except (XqgError, OSError):
        return False
    made = {"sha256": found.sha256(), **{name: found.description.get(name) for name in DESCRIBED}}
    return all(fingerprint.get(f"encoder.{name}") == value for name, value in made.items())
