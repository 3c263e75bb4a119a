"""The secrets of this process: keys and passwords. Whatever leaves it passes through `hide`.

`remember` takes a secret as soon as it is known. Output to the terminal, files that people pass on, and the pages of
`xqg serve` are written through `hide`, which knows the spellings that servers, proxies and libraries give a secret.
"""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from xqg_qdrant.errors import InputError

HIDDEN = "***"
# A shorter secret would also be found in words of the output, and can be guessed as easily.
SHORTEST = 8
SECRET_VARIABLE = re.compile(r"(?i).*(API_KEY|SECRET_ACCESS_KEY|SESSION_TOKEN|STORAGE_KEY)|HF_TOKEN")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
SECRET_PARAMETER = re.compile(r"(?i)[?&][^=&#]*(key|secret|token|password|signature|sig)=")

_known: dict[str, re.Pattern[str]] = {}


def remember(secret: str | None) -> None:
    """Hide a secret from now on, in all its spellings; None and short texts are ignored."""
    if secret and len(secret) >= SHORTEST and secret not in _known:
        _known[secret] = _make_pattern(secret)


def hide(text: str) -> str:
    """Return a text with every remembered secret hidden."""
    for pattern in list(_known.values()):
        text = pattern.sub(HIDDEN, text)
    return text


def remember_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Forget all secrets, then remember the keys and the proxies' passwords of an environment."""
    _known.clear()
    for name, value in environment.items():
        if SECRET_VARIABLE.fullmatch(name):
            remember(value.strip())
        elif name.lower() in PROXY_VARIABLES:
            remember_user(value if "://" in value else f"http://{value}")


def make_redactor(secret: str | None) -> Callable[[str], str]:
    """Return a function that hides a secret in a text, also if escaped for URLs, HTML or JSON, in base64, or cut."""
    if secret is None:
        return lambda text: text
    pattern = _make_pattern(secret)
    return lambda text: pattern.sub(HIDDEN, text)


def check_key(api_key: str | None, variable: str = "QDRANT_API_KEY") -> str | None:
    """Return the key without surrounding white space, None if it is empty; remember it.

    Raises:
        InputError: the key cannot be sent; does not show it.
    """
    key = (api_key or "").strip()
    remember(key)
    # The HTTP library would refuse the header with a message that shows the key.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError("the API key holds a character that cannot be sent.", f"check {variable}")
    return key or None


def holds_secret(url: str) -> bool:
    """Return whether a URL holds a user name, a password or a key.

    >>> holds_secret("s3://key:secret@bucket/file"), holds_secret("s3://bucket/a@b.jsonl")
    (True, False)
    """
    # As a path, a URL has one slash. Before it may stand a name, as in NAME=FILE.
    match = re.match(r"(?:[^:/]*=)?([A-Za-z][\w+.-]+):/+([^/?#]*)(.*)", url, re.DOTALL)
    if match is None:
        return False
    scheme, authority, rest = match.groups()
    if SECRET_PARAMETER.search(rest):
        return True
    user, at, host = authority.rpartition("@")
    if at:
        # In Azure's URLs the container stands before the @.
        return ":" in user or scheme.lower() not in ("abfs", "abfss")
    port = re.search(r":([^\]]*)$", host)
    # A password may hold a slash, which ends the host for a strict reader.
    return port is not None and ("@" in rest or not re.fullmatch(r"[0-9]*", port[1]))


def refuse_secret(url: str, what: str) -> None:
    """Refuse a URL that holds a secret, and remember it.

    Raises:
        InputError: shows no part of the URL.
    """
    if not holds_secret(url) and (":/" not in url or hide(url) == url):
        return
    remember_user(url)
    raise InputError(
        f"the URL of {what} holds a user name, a password or a key.",
        "leave them out; object stores read credentials from the environment, such as AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY",
    )


def hide_query(url: str) -> str:
    """Return the URL of an endpoint with the values of its query hidden, but for `api-version`.

    >>> hide_query("https://host/v1?api-version=2&code=secret")
    'https://host/v1?api-version=2&code=***'
    """
    parts = urlsplit(url)
    shown = [(name, value if name == "api-version" else HIDDEN) for name, value in parse_qsl(parts.query)]
    return urlunsplit(parts._replace(query=urlencode(shown, safe="*")))


def remember_user(url: str) -> None:
    """Remember the user's part of a URL and its password, as they are and decoded."""
    user = url.partition(":/")[2].lstrip("/").rpartition("@")[0]
    for part in {user, user.partition(":")[2]}:
        remember(part)
        remember(unquote(part))


def check_proxies(environment: Mapping[str, str] = os.environ) -> None:
    """Check that the URLs of the proxies in an environment can be read.

    Raises:
        InputError: a proxy's URL cannot be read, so parts of its password would be taken for its host.
    """
    for name, value in environment.items():
        if name.lower() not in PROXY_VARIABLES or not value.strip():
            continue
        url = value.strip() if "://" in value else f"http://{value.strip()}"
        remember_user(url)
        if not re.fullmatch(r"\w+://([^/?#@]*@)?(\[[0-9A-Fa-f:.%]+\]|[^/?#@:\[\]]+)(:[0-9]+)?/?", url):
            raise InputError(
                f"the proxy's URL in {name} cannot be read.", "write / in a password as %2F, @ as %40, and so on"
            )


def _make_pattern(secret: str) -> re.Pattern[str]:
    cut = r"(?:\\{0,4}[rn]|[\r\n][ \t]*){0,2}"
    spelled = [cut.join(map(_match_spellings, secret))]
    if len(secret) >= SHORTEST:
        spelled += [cut.join(map(_match_base64, core)) for core in _find_base64(secret)]
        spelled.append(f"(?i:{secret.encode().hex()})")
    return re.compile("|".join(spelled))


def _find_base64(secret: str) -> list[str]:
    """Return what base64 makes of a secret at each of three places in a longer text, without what its ends share."""
    cores = []
    for before in range(3):
        data = bytes(before) + secret.encode()
        whole = len(data) // 3 * 3
        cores.append(base64.b64encode(data[:whole]).decode()[4 if before else 0 :])
    return [core for core in cores if core]


def _match_base64(char: str) -> str:
    return {"+": r"(?:\+|-|%2[Bb])", "/": r"(?:\\?/|_|%2[Ff])"}.get(char, char)


@cache
def _match_spellings(char: str) -> str:
    code = ord(char)
    forms = {
        r"\\{0,8}" + re.escape(char),
        "".join(rf"(?i:%(?:25)*{byte:02x})" for byte in char.encode(errors="replace")),
        rf"(?i:\\{{1,8}}(?:u00|x){code:02x})" if code < 256 else rf"(?i:\\{{1,8}}u{code:04x})",
        rf"(?i:&(?:amp;)*#(?:0*{code}|x0*{code:x});)",
        re.escape(html.escape(char)),
    }
    if char == "+":
        forms.add(" ")  # as form decoding reads it
    # The longest first: an escaped `%` or `&` begins like the bare character.
    return f"(?:{'|'.join(sorted(forms, key=len, reverse=True))})"
