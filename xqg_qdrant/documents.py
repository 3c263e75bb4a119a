"""Files that are one document and not lines: SQuAD's JSON and the topics of TREC → rows.

Knows the two formats and how each can be malformed. Such a file is loaded whole. Knows nothing of what a row means.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from xqg_qdrant.errors import InputError
from xqg_qdrant.lines import file_lines, is_cut, opened_file
from xqg_qdrant.rows import FileRow

TOPIC = re.compile(r"<top\b[^>]*>(.*?)</top>", re.DOTALL | re.IGNORECASE)
NUMBER = re.compile(r"<num>(?:\s*Number:)?\s*([^<]*)", re.IGNORECASE)
# CLEF writes the language into the tag: <FI-title>.
TITLE = re.compile(r"<(?:([A-Z]{2})-)?title>(?:\s*Topic:)?\s*([^<]*)", re.IGNORECASE)


def is_squad(path: str) -> bool:
    """Say whether a file is laid out like SQuAD: `.json`, and one object that has `data`.

    Other `.json` files are read as JSONL, as which many data sets publish theirs. A first line that is no JSON by
    itself is the beginning of a document.
    """
    if not path.endswith((".json", ".json.gz")):
        return False
    first = next((line for line in file_lines(path) if line.strip()), b"")
    try:
        document = json.loads(first) if not is_cut(first) else None
    except (ValueError, RecursionError):
        return True
    return document is None or (isinstance(document, dict) and "data" in document)


def squad_rows(path: str) -> Iterator[FileRow]:
    """Yield a row `{title, context, qas}` for each paragraph, whose number stands in the place of the line.

    Raises:
        InputError: The file is not laid out like SQuAD.
    """
    try:
        with opened_file(path) as file:
            articles = json.loads(file.read())["data"]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        cure = "Cure: give a JSON file of SQuAD, MLQA or XQuAD, or one JSON object a line"
        raise InputError(f"{path}: neither SQuAD's JSON nor JSON lines ({error!r:.200}). {cure}.") from error
    number = 0
    for article in articles if isinstance(articles, list) else (articles,):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            raise InputError(f"{path}: after paragraph {number}, an article without paragraphs. Cure: check the file.")
        for paragraph in paragraphs:
            number += 1
            if isinstance(paragraph, dict):
                # As in the address of an article: Super_Bowl_50, Beyonc%C3%A9.
                title = unquote(str(article.get("title") or "")).replace("_", " ")
                yield FileRow(number, "", {"title": title, "context": None, "qas": []} | paragraph)
            else:
                yield FileRow(number, repr(paragraph), {}, "the paragraph is not an object")


def is_topics(path: str) -> bool:
    """Say whether a file begins with a tag, as the topics of TREC do; a pipe, which can be read once, does not."""
    return Path(path).is_file() and next((line for line in file_lines(path) if line.strip()), b"").lstrip()[:1] == b"<"


def topic_rows(path: str) -> Iterator[FileRow]:
    """Yield a row `{id, text, lang}` for each topic of TREC or CLEF: its number, its title, and the title's language.

    Raises:
        InputError: The file is not UTF-8, or holds no topic.
    """
    with opened_file(path) as file:
        data = file.read()
    try:
        document = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error}). Cure: convert it with iconv.") from error
    found = list(TOPIC.finditer(document))
    if not found:
        cure = "Cure: give topics as <top> … </top> with <num> and <title>, or a TSV file of id and text"
        raise InputError(f"{path}: begins with a tag, and holds no <top> … </top>. {cure}.")
    for topic in found:
        fields: dict[str, Any] = {}
        if number := NUMBER.search(topic[1]):
            fields["id"] = number[1].strip()
        if title := TITLE.search(topic[1]):
            fields |= {"lang": (title[1] or "").lower(), "text": " ".join(title[2].split())}
        yield FileRow(document.count("\n", 0, topic.start()) + 1, topic[0], fields)
