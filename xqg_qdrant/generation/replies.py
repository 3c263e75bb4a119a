"""Read a language model's reply: find the questions in it, and drop what is none.

Models wrap JSON in prose, fences and reasoning, number and quote their questions, name languages in their own way, and
repeat instructions. What cannot be a question is dropped here, for a reason; script, language and repetitions are
checked as for any generator.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from xqg_qdrant.generation.prompt import name_languages
from xqg_qdrant.languages import LANGUAGES, standard_code
from xqg_qdrant.records import Passage

LONGEST_QUESTION = 400
# People leave the question mark out of short questions.
LONGEST_WITHOUT_MARK = 80
ECHOED_CHARACTERS = 24
STATEMENT, ECHO, LINK, OVERLONG, UNREADABLE = "statement", "echo", "link", "overlong", "unreadable"

_REASONING = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
_REASONING_END = re.compile(r"</(?:think|thinking|reasoning)>", re.IGNORECASE)
_FENCE = re.compile(r"```[\w-]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_NUMBERING = re.compile(
    r"^(?:[\s>#*•·–—-]|\(?[\d०-९০-৯౦-౯٠-٩۰-۹０-９]{1,3}[.):、．](?!\d)|(?:q|question)\s*\d*\s*[:.)])+\s*", re.IGNORECASE
)
_QUOTES = "\"'“”„«»‹›「」『』`*_ \t"
_ESCAPED = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")
_SYNTAX = re.compile(r"[{}\[\]\ufffd]|\":")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CHATTER = re.compile(
    r"(sure|certainly|of course|okay|here (is|are)|as an ai|i('m| am) sorry|i can('t|not))\b", re.IGNORECASE
)
_LINK = re.compile(r"https?://\S+|www\.\S+|\b(?:[A-Za-z0-9-]+\.)+[a-z]{2,}\b")
_REGION = re.compile(r"[-_]\w{2,8}$|\s*\([\w-]+\)$")
_HEADING = re.compile(r"^[\s#*]*([^\W\d_][\w -]{0,30}?)\s*(?:\(([\w-]+)\))?[\s*]*[:：][\s*]*(.*)$")
# Ends of a sentence that is no question, in the scripts of the world; Thai, Lao and Khmer have none.
_STATEMENT_ENDS = (".", "。", "．", "।", "॥", "!", "！", "۔", "։", "።", "။", "…", ":", "：")
_INNER_END = re.compile(r"\w{3,}[.!。।] *\w")
_QUESTION_MARKS = "?？؟;՞፧⁇"
_ASKING_ENDS: dict[str, str | tuple[str, ...]] = {"ja": ("か。", "か．"), "ko": ("까.",)}


class Read(NamedTuple):
    """The questions of a reply by language, those dropped by language and reason, and whether the reply was JSON."""

    questions: dict[str, list[str]]
    dropped: Counter[tuple[str, str]]
    structured: bool


def read_reply(content: str, wanted: Mapping[str, int], passage: Passage, echoes: set[str]) -> Read:
    """Return the questions of a reply.

    Args:
        content: the text of the reply.
        wanted: number of questions by language code; more are cut off.
        passage: what was asked about.
        echoes: from `find_pieces`, of `ECHOED_CHARACTERS`.
    """
    names = name_languages(list(wanted))
    text = strip_reasoning(content)
    value = _find_json(text)
    found = list(_read_lines(text, names)) if value is None else list(_walk(value, names, ""))
    questions: dict[str, list[str]] = {code: [] for code in wanted}
    dropped = Counter[tuple[str, str]]()
    for code, line in found:
        question = clean_question(line[: 2 * LONGEST_QUESTION])
        if not question:
            continue
        if fault := find_fault(question, code, passage, echoes):
            dropped[code, fault] += 1
        elif question not in questions[code]:
            questions[code].append(question)
        else:
            dropped[code, "duplicate"] += 1
    return Read(questions, dropped, isinstance(value, dict | list))


def strip_reasoning(content: str) -> str:
    """Return a reply without its reasoning, which may lack its first tag or its last."""
    return _REASONING_END.split(_REASONING.sub("", content))[-1].strip()


def clean_question(line: str) -> str:
    """Return a question without numbering, bullets, quotes and escapes, on one line."""
    line = _unescape(line)
    line = " ".join(line.split())
    while True:
        shorter = _NUMBERING.sub("", line).strip(_QUOTES).removesuffix(",").strip(_QUOTES)
        if shorter == line:
            return line
        line = shorter


def find_fault(question: str, code: str, passage: Passage, echoes: set[str]) -> str:
    """Return why a text is no question about the passage; empty if it may be one."""
    if _SURROGATE.search(question) or _SYNTAX.search(question):
        return UNREADABLE
    if len(question) > LONGEST_QUESTION:
        return OVERLONG
    if _lacks_link(question, passage):
        return LINK
    squeezed = "".join(question.casefold().split())
    if any(squeezed[n : n + ECHOED_CHARACTERS] in echoes for n in range(len(squeezed) - ECHOED_CHARACTERS + 1)):
        return ECHO
    if re.search(r"</?(passage|title)-[0-9a-f]{8}>", question):
        return ECHO
    return "" if _may_ask(question, code) else STATEMENT


def _may_ask(question: str, code: str) -> bool:
    """Return whether a text may be a question: it has a question mark, or is short and no sentence."""
    if any(mark in question for mark in _QUESTION_MARKS) or question.endswith(_ASKING_ENDS.get(code, "?")):
        return not question.endswith((":", "："))
    if _CHATTER.match(question) or len(question) > LONGEST_WITHOUT_MARK:
        return False
    return not question.endswith(_STATEMENT_ENDS) and not _INNER_END.search(question)


def _lacks_link(question: str, passage: Passage) -> bool:
    content = f"{passage.title} {passage.text}".casefold()
    return any(found.casefold().rstrip("?.,") not in content for found in _LINK.findall(question))


def _unescape(text: str) -> str:
    r"""Decode `\u0442`, which some servers escape twice, and join surrogate pairs."""
    text = _ESCAPED.sub(lambda found: json.loads(f'"{found[0]}"'), text)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if _SURROGATE.search(text) else text


def _find_json(text: str) -> Any:  # noqa: ANN401
    """Return the JSON of a reply, None if there is none; a string of JSON is opened."""
    for candidate in (text, *_FENCE.findall(text), *_objects(text)):
        try:
            value = json.loads(candidate, strict=False)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
            return _find_json(value)
        if isinstance(value, dict | list):
            return value
    return None


def _objects(text: str) -> Iterator[str]:
    """Yield what stands between the first opening and the last closing bracket."""
    for opening, closing in ("{}", "[]"):
        start, end = text.find(opening), text.rfind(closing)
        if 0 <= start < end:
            yield text[start : end + 1]


def _walk(value: Any, names: Mapping[str, str], code: str) -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """Yield the language and text of every string in a JSON value that stands below a language."""
    if isinstance(value, str):
        if code:
            yield from ((code, line) for line in value.splitlines())
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item, names, code)
    elif isinstance(value, dict):
        stated = next((value[key] for key in ("language", "lang", "code") if isinstance(value.get(key), str)), "")
        code = _find_language(stated, names) or code
        for key, item in value.items():
            if key not in ("language", "lang", "code"):
                yield from _walk(item, names, _find_language(key, names) or ("" if _names_language(key) else code))


def _read_lines(text: str, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield lines with the language of the heading above; of a single language all lines."""
    codes = list(dict.fromkeys(names.values()))
    code = codes[0] if len(codes) == 1 else ""
    for line in text.replace("```", "").splitlines():
        if named := _find_language(line.rstrip(":： "), names):
            code = named
            continue
        if heading := _HEADING.match(line):
            named = _find_language(heading[1], names) or _find_language(heading[2] or "", names)
            code, line = named or code, heading[3] if named else line
        if code and line.strip():
            yield code, line


def _find_language(name: str, names: Mapping[str, str]) -> str:
    """Return the wanted language of a key such as `fi`, `FI`, `fi-FI`, `fi_FI` or `Finnish`; empty if there is none."""
    name = _REGION.sub("", name.strip(" *#:").casefold()) if name.casefold() not in names else name.casefold()
    return names.get(name) or names.get(standard_code(name), "")


def _names_language(key: str) -> bool:
    """Return whether a key that is no wanted language names another one."""
    return standard_code(key.strip()) in LANGUAGES
