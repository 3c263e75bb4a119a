"""The server's URL and its key: which ones can be used, and how a key is kept out of every message.

Knows in which spellings an answer may repeat a key. Knows nothing of requests.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from xqg_qdrant.errors import InputError

HIDDEN = "***"


def check_url(url: str) -> None:
    """Refuse a URL that is none, or that holds what belongs into a key.

    Raises:
        InputError: a secret is not shown.
    """
    if any(char in url for char in "@?#"):
        what = "the store's URL holds a user name, a password, a query or a fragment"
        raise InputError(f"{what}. Cure: set QDRANT_API_KEY instead.")
    try:
        parts = urlsplit(url)
        usable = parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        # What stands in the place of the port may be a password.
        cure = "Cure: write it like http://localhost:6333"
        raise InputError(f"the store's URL has no host, or a port that is no number. {cure}.")


def check_key(api_key: str | None) -> str | None:
    """Return the key without white space around it, None for an empty one.

    Raises:
        InputError: the key cannot be sent; the key itself is not shown.
    """
    key = (api_key or "").strip()
    # Otherwise the HTTP library refuses the header with a message that holds the key.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError("the API key holds a character that cannot be sent. Cure: look at QDRANT_API_KEY.")
    return key or None


def make_redactor(api_key: str | None) -> Callable[[str], str]:
    """Return a function that hides the key in a text, also where it is escaped for a URL, for HTML or for JSON."""
    if api_key is None:
        return lambda text: text
    pattern = re.compile("".join(map(_match_spellings, api_key)))
    return lambda text: pattern.sub(HIDDEN, text)


def _match_spellings(char: str) -> str:
    code = ord(char)
    forms = {
        r"\\{0,8}" + re.escape(char),
        rf"(?i:%(?:25)*{code:02x})",
        rf"(?i:\\{{1,8}}(?:u00|x){code:02x})",
        rf"(?i:&(?:amp;)*#(?:0*{code}|x0*{code:x});)",
        re.escape(html.escape(char)),
    }
    if char == "+":
        forms.add(" ")  # what a form's reader makes of it
    # The longest first: of an escaped `%` or `&` the first character is the same as that of the bare one.
    return f"(?:{'|'.join(sorted(forms, key=len, reverse=True))})"
