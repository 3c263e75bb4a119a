"""Open the Jinja2 templates so that pages are safe whatever the data contain.

Data are HTML-escaped, and control characters, including those that change the writing direction, are shown as escapes.
Texts are marked with their language and direction.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from xqg_qdrant.errors import InputError
from xqg_qdrant.text import agree, count_of, visible

if TYPE_CHECKING:
    from jinja2 import Environment

# The languages of ISO 639-1, and a few others, that are usually written from right to left.
RIGHT_TO_LEFT = frozenset({"ar", "arc", "ckb", "dv", "fa", "he", "ks", "ku", "ps", "sd", "syr", "ug", "ur", "yi"})
LANGUAGE_TAG = re.compile("[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,4}")


def open_templates(*, needed_by: str, extra: str) -> Environment:
    """Return the templates of this folder.

    Raises:
        InputError: Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise InputError(f"{needed_by} needs Jinja2.", f"pip install 'xqg-qdrant[{extra}]'") from error
    environment = Environment(
        loader=PackageLoader("xqg_qdrant.pages", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(language_tag=language_tag, direction=direction, count_of=count_of, agree=agree)
    return environment


def language_tag(language: str) -> str:
    """Return a language as a value of the attribute `lang`; empty, which means unknown, if it is no tag."""
    return language if LANGUAGE_TAG.fullmatch(language) else ""


def direction(language: str) -> str:
    """Return `rtl` for a language written from right to left, else `auto`, which lets the browser decide.

    A question in Arabic may begin with a Latin name, from which a browser would infer left to right.
    """
    return "rtl" if language.split("-")[0].lower() in RIGHT_TO_LEFT else "auto"


def _shown(value: object) -> object:
    """Return a value for the page; in plain strings, control characters become escapes."""
    return visible(value) if type(value) is str else value
