"""Where points live: one `Store` protocol, an embedded engine, a server.

Knows how a location is written. The engines are imported when one is opened.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from xqg_qdrant.errors import InputError
from xqg_qdrant.stores.protocol import Store

__all__ = ["Store", "is_same_place", "is_server", "open_store"]

DEFAULT_PORT = 6333
FORMS = "edge:DIR, DIR, local:DIR, :memory:, http://HOST:PORT or https://HOST:PORT"


def open_store(location: str, api_key: str | None = None) -> Store:
    """Open the store at a location; a server is not asked anything before the first method is called.

    Args:
        location: `edge:DIR` or a bare path (the embedded engine), `local:DIR` or `:memory:` (the client's local mode),
            `http(s)://HOST:PORT` (a server or a cluster).
        api_key: what the server wants as a key; the other places have none.

    Raises:
        InputError: the location has none of these forms.
        StoreError: the directory of `local:` cannot be opened.
    """
    if location == ":memory:" or re.match(r"local:.|https?://.", location):
        from xqg_qdrant.stores.client import ClientStore

        return ClientStore(location, api_key)
    directory = location.removeprefix("edge:")
    # A typing error must not become a directory named `htp:`; one letter before a colon is a Windows drive.
    if not directory or (directory == location and re.match(r":|[A-Za-z][\w+.-]+:", location)):
        raise InputError(f"the store {location!r} is none that xqg knows. Cure: write {FORMS}.")
    from xqg_qdrant.stores.edge import EdgeStore

    return EdgeStore(directory)


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
    if location == ":memory:":
        return (location,)
    kind = "local" if location.startswith("local:") else "edge"
    return kind, Path(location.removeprefix(f"{kind}:")).expanduser().resolve()
