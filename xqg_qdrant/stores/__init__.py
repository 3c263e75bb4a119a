"""Where points live: one `Store` protocol, an embedded engine, a server.

Knows how a location is written. The engines are imported when one is opened.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from xqg_qdrant.errors import InputError
from xqg_qdrant.fingerprint import Fingerprint
from xqg_qdrant.records import PayloadLayout
from xqg_qdrant.stores.protocol import Sharding, Store

if TYPE_CHECKING:
    from xqg_qdrant.stores.server.foreign import ForeignStore

__all__ = [
    "Sharding",
    "Store",
    "find_directory",
    "is_same_place",
    "is_server",
    "open_foreign_store",
    "open_store",
    "read_existing_fingerprint",
    "sends_key_in_clear",
]

DEFAULT_PORT = 6333
EDGE, LOCAL = "edge:", "local:"
FORMS = "edge:DIR, DIR, local:DIR, :memory:, http://HOST:PORT or https://HOST:PORT"


def open_store(location: str, api_key: str | None = None, sharding: Sharding | None = None) -> Store:
    """Open the store at a location; a server is not asked anything before the first method is called.

    Args:
        location: `edge:DIR` or a bare path (the embedded engine), `local:DIR` or `:memory:` (the client's local mode),
            `http(s)://HOST:PORT` (a server or a cluster).
        api_key: what the server wants as a key; the other places have none.
        sharding: how a server spreads the collections that are created; one that is spread otherwise is refused.

    Raises:
        InputError: the location has none of these forms, or is not that of a server and a sharding is given.
        StoreError: the directory of `local:` cannot be opened.
    """
    if sharding and any(sharding) and not is_server(location):
        raise InputError(
            f"only a server has shards and replicas, and {location!r} is none.",
            "leave out --shard-number, "
            "--replication-factor and --write-consistency-factor, or name a server (--store, or --to of xqg copy).",
        )
    if find_directory(location) is None or location.startswith(LOCAL):
        from xqg_qdrant.stores.server.client import ClientStore

        return ClientStore(location, api_key, sharding)
    from xqg_qdrant.stores.edge import EdgeStore

    return EdgeStore(location.removeprefix(EDGE))


def find_directory(location: str) -> Path | None:
    """Return the directory of a store on this machine, None for one that is elsewhere or in memory.

    Raises:
        InputError: the location has none of the forms that `open_store` knows.
    """
    if location == ":memory:" or re.match(r"https?://.", location):
        return None
    directory = location.removeprefix(LOCAL).removeprefix(EDGE)
    # A typing error must not become a directory named `htp:`; one letter before a colon is a Windows drive.
    if not directory or (directory == location and re.match(r":|[A-Za-z][\w+.-]+:", location)):
        # With a typing error in the scheme this may still be a URL with a password.
        shown = "given" if any(char in location for char in "@?#") else repr(location)
        raise InputError(f"the store {shown} is none that xqg knows.", f"write {FORMS}.")
    return Path(directory).expanduser()


def sends_key_in_clear(location: str, api_key: str | None) -> bool:
    """Tell whether a key would cross a network unencrypted."""
    parts = urlsplit(location) if location.startswith("http://") else None
    if parts is None or not (api_key or "").strip():
        return False
    host = parts.hostname or ""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def open_foreign_store(location: str, api_key: str | None, layout: PayloadLayout) -> ForeignStore:
    """Open the store at a location for collections that another program made.

    Raises:
        InputError: the location has none of the forms, or is that of an embedded store, or no field holds the text.
        StoreError: the directory of `local:` cannot be opened.
    """
    if not layout.text:
        raise InputError("the field that holds the text has no name.", "name it with --text-field.")
    if find_directory(location) is not None and not location.startswith(LOCAL):
        raise InputError(
            f"the store {location!r} is embedded: only on a server and in local:DIR xqg adds to collections of others.",
            "name one of these (--store), or write the passages to a file and use xqg ingest.",
        )
    from xqg_qdrant.stores.server.foreign import ForeignStore

    return ForeignStore(location, api_key, layout)


def is_server(location: str) -> bool:
    """Tell whether a location is that of a server."""
    return location.startswith(("http://", "https://"))


def is_same_place(left: str, right: str) -> bool:
    """Tell whether two locations are one, written differently; two names of one server are not noticed."""
    return _normalise(left) == _normalise(right)


def _normalise(location: str) -> tuple[object, ...]:
    if is_server(location):
        parts = urlsplit(location)
        return parts.scheme, parts.hostname, parts.port or DEFAULT_PORT, parts.path.rstrip("/")
    directory = find_directory(location)
    return location.startswith(LOCAL), None if directory is None else directory.resolve()


def read_existing_fingerprint(store: Store, collection: str) -> Fingerprint:
    """Return the fingerprint of a collection that must be there.

    Raises:
        InputError: it is not; names the collections that are.
    """
    fingerprint = store.read_fingerprint(collection)
    if fingerprint is None:
        others = ", ".join(store.collections()) or "none"
        raise InputError(
            f"there is no collection {collection!r} in {store.location} (there: {others}). "
            f"Make it with: xqg ingest FILE --collection {collection}"
        )
    return fingerprint
