"""Templates → HTML pages that are safe whatever the data hold; the only door to Jinja2.

What comes from the data is escaped, and what could turn the writing around or is no character is shown as an escape.
Texts in foreign languages carry their language and their direction. Knows nothing of what a page is about.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from xqg_qdrant.errors import InputError
from xqg_qdrant.text import visible

if TYPE_CHECKING:
    from jinja2 import Environment

# The languages of ISO 639-1, and a few more, whose usual script runs from right to left.
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
        raise InputError(f"{needed_by} needs Jinja2.", f"pip install 'xqg-qdrant[{extra}]'.") from error
    environment = Environment(
        loader=PackageLoader("xqg_qdrant.pages", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(language_tag=language_tag, direction=direction)
    return environment


def language_tag(language: str) -> str:
    """Return a language as the attribute `lang` may say it; empty, which means unknown, where it is no such tag."""
    return language if LANGUAGE_TAG.fullmatch(language) else ""


def direction(language: str) -> str:
    """Return the direction of writing: of a language that runs from right to left that one, else as the letters say.

    A question in Arabic may begin with a Latin name, by which a browser would take it for English.
    """
    return "rtl" if language.split("-")[0].lower() in RIGHT_TO_LEFT else "auto"


def _shown(value: object) -> object:
    """Return a value as it is put into the page: a text of the data without what no page may hold."""
    return visible(value) if type(value) is str else value
