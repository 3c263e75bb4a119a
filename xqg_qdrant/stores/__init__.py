"""Open stores by location: an embedded engine, or a Qdrant server, behind one `Store` protocol.

An engine is imported only when one of its stores is opened.
"""

from __future__ import annotations

import ipaddress
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from xqg_qdrant.atomic import find_home
from xqg_qdrant.errors import ForeignCollectionError, InputError
from xqg_qdrant.fingerprint import Fingerprint
from xqg_qdrant.records import PayloadLayout, Space
from xqg_qdrant.stores.protocol import Sharding, Store

if TYPE_CHECKING:
    from xqg_qdrant.stores.server.foreign import ForeignStore
    from xqg_qdrant.stores.server.own_space import OwnSpaceStore

__all__ = [
    "Sharding",
    "Store",
    "find_directory",
    "is_embedded",
    "is_same_place",
    "is_server",
    "open_foreign_store",
    "open_own_space_store",
    "open_store",
    "read_existing_fingerprint",
    "read_target_fingerprint",
    "sends_key_in_clear",
]

DEFAULT_PORT = 6333
# The patience of commands that someone sits before, and of a page that someone looks at.
ASKING_SECONDS, SERVING_SECONDS = 10.0, 2.0
EDGE, LOCAL = "edge:", "local:"
FORMS = "edge:DIR, DIR, local:DIR, :memory:, http://HOST:PORT or https://HOST:PORT"


def open_store(
    location: str, api_key: str | None = None, sharding: Sharding | None = None, patience: float = math.inf
) -> Store:
    """Open the store at a location; a server gets no request before the first method call.

    Args:
        location: `edge:DIR` or a bare path (the embedded engine), `local:DIR` or `:memory:` (the client's local mode),
            `http(s)://HOST:PORT` (a server or a cluster).
        api_key: the server's key; other stores ignore it.
        sharding: how a server spreads new collections; existing ones must match it.
        patience: the most seconds to wait for a server's answer, and to repeat a request that fails; by default as
            long as suits a load, which is a minute for an answer, and five for a server that restarts.

    Raises:
        InputError: the location has another form, or a sharding is given without a server.
        StoreError: the directory of `local:` cannot be opened.
    """
    if sharding and any(sharding) and not is_server(location):
        raise InputError(
            f"only a server has shards and replicas ({location!r}).",
            "leave out --shard-number, --replication-factor and --write-consistency-factor, or name a server (--store, "
            "or --to of xqg copy)",
        )
    if find_directory(location) is None or location.startswith(LOCAL):
        from xqg_qdrant.stores.server.client import ClientStore

        return ClientStore(location, api_key, sharding, patience)
    from xqg_qdrant.stores.edge.store import EdgeStore

    return EdgeStore(location.removeprefix(EDGE))


def find_directory(location: str) -> Path | None:
    """Return the directory of a local store, None for a server or a store in memory.

    Raises:
        InputError: `open_store` accepts no such location.
    """
    if location == ":memory:" or re.match(r"https?://.", location):
        return None
    directory = location.removeprefix(LOCAL).removeprefix(EDGE)
    # A typo must not create a directory named `htp:`; a single letter before a colon is a Windows drive.
    if not directory or (directory == location and re.match(r":|[A-Za-z][\w+.-]+:", location)):
        # With a typo in the scheme this may still be a URL with a password.
        shown = "" if any(char in location for char in "@?#") else f" {location!r}"
        raise InputError(f"unknown store{shown}.", f"write {FORMS}")
    return find_home(Path(directory))


def sends_key_in_clear(location: str, api_key: str | None) -> bool:
    """Return whether a key would cross a network unencrypted."""
    return location.startswith("http://") and bool((api_key or "").strip()) and not is_loopback(location)


def is_loopback(url: str) -> bool:
    """Return whether a server's URL names this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_foreign_store(location: str, api_key: str | None, layout: PayloadLayout | None) -> ForeignStore:
    """Open the store at a location for collections of another program; without a layout, only to remove what was added.

    Raises:
        InputError: the location has an unknown form or is an embedded store, or the layout names no text field.
        StoreError: the directory of `local:` cannot be opened.
    """
    if layout is not None and not layout.text:
        raise InputError("the field that holds the text has no name.", "name it with --text-field")
    _check_foreign(location)
    from xqg_qdrant.stores.server.foreign import ForeignStore

    return ForeignStore(location, api_key, layout or PayloadLayout("", "", ""))


def open_own_space_store(location: str, api_key: str | None, layout: PayloadLayout, space: Space) -> OwnSpaceStore:
    """Open the store at a location for collections of another program, to be augmented in a space that they have.

    `read_vectors` needs no text field; all else does.

    Raises:
        InputError: the location has an unknown form or is an embedded store.
        StoreError: the directory of `local:` cannot be opened.
    """
    _check_foreign(location)
    from xqg_qdrant.stores.server.own_space import OwnSpaceStore

    return OwnSpaceStore(location, api_key, layout, space)


def _check_foreign(location: str) -> None:
    if is_embedded(location):
        raise InputError(
            f"the store {location!r} is embedded: xqg adds to other programs' collections only on a server or in "
            "local:DIR.",
            "name one of these (--store), or write the passages to a file and use xqg ingest",
        )


def is_embedded(location: str) -> bool:
    """Return whether a location is a store of the embedded engine, which holds only xqg's own collections."""
    return find_directory(location) is not None and not location.startswith(LOCAL)


def is_server(location: str) -> bool:
    """Return whether a location is a server's URL."""
    return location.startswith(("http://", "https://"))


def is_same_place(left: str, right: str) -> bool:
    """Return whether two locations mean the same store; two host names of one server count as different."""
    return _normalise(left) == _normalise(right)


def _normalise(location: str) -> tuple[object, ...]:
    if is_server(location):
        try:
            parts = urlsplit(location)
            return parts.scheme, parts.hostname, parts.port or DEFAULT_PORT, parts.path.rstrip("/")
        except ValueError:
            return ("no URL", location)  # opening it tells what is wrong
    directory = find_directory(location)
    return location.startswith(LOCAL), None if directory is None else directory.resolve()


def read_target_fingerprint(store: Store, collection: str) -> Fingerprint | None:
    """Return the fingerprint of a collection to write passages to, None if it is to be created.

    Raises:
        ForeignCollectionError: xqg did not create it.
    """
    try:
        return store.read_fingerprint(collection)
    except ForeignCollectionError as error:
        raise ForeignCollectionError(error.message, "choose another name") from None


def read_existing_fingerprint(store: Store, collection: str) -> Fingerprint:
    """Return the fingerprint of a collection that must exist.

    Raises:
        InputError: there is no such collection; names the existing ones.
    """
    fingerprint = store.read_fingerprint(collection)
    if fingerprint is None:
        others = ", ".join(store.collections()) or "none"
        raise InputError(
            f"there is no collection {collection!r} in {store.location} (there: {others}).",
            f"check the name, or create it with: xqg ingest FILE --collection {collection}",
        )
    return fingerprint
