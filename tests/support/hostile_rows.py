"""Kinds of rows that nobody wishes for: what each is written as, and what must become of it.

The expectations are written by hand beside each kind. Knows nothing of how a corpus is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, NamedTuple

ESCAPES = "\x1b[2J\x1b]0;title\x07\x1b[31m"
TURNS = "\u202eevil\u202c \u2067\u2066x\u2069\u2069"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Line(NamedTuple):
    """A line of a file, and what it becomes: the fields of a passage, or a reason to reject it."""

    data: bytes
    stored: Mapping[str, Any] | None = None
    reason: str = ""


Kind = Callable[[str, Random], list[Line]]


def as_json(**fields: Any) -> bytes:
    """Write an object with its characters as they are; halves of pairs, which have no bytes, as escapes."""
    written = json.dumps(fields, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", written).encode()


def stored(
    passage_id: str, text: str, title: str = "", /, queries: list[list[str]] | None = None, **metadata: Any
) -> dict[str, Any]:
    return {"id": passage_id, "text": text, "title": title, "metadata": metadata, "queries": queries or []}


def word(random: Random) -> str:
    return "".join(random.choices(LETTERS, k=random.randint(1, 8)))


def text_of(text: Callable[[str], str]) -> Kind:
    """Return a kind whose text is strange, and is kept as it is."""

    def lines(name: str, random: Random) -> list[Line]:
        written = text(word(random))
        return [Line(as_json(id=name, text=written), stored(name, written))]

    return lines


def id_of(make: Callable[[str], Any], reason: str = "") -> Kind:
    """Return a kind whose id is strange: kept, as text, or a reason to reject the row."""

    def lines(name: str, random: Random) -> list[Line]:
        text, value = word(random), make(name)
        return [Line(as_json(id=value, text=text), None if reason else stored(str(value), text), reason)]

    return lines


def metadata_of(**fields: Any) -> Kind:
    """Return a kind with further fields, which become metadata."""

    def lines(name: str, random: Random) -> list[Line]:
        text = word(random)
        return [Line(as_json(id=name, text=text, **fields), stored(name, text, **fields))]

    return lines


def queries_of(value: Any, queries: list[list[str]] | None, reason: str = "") -> Kind:  # noqa: ANN401
    """Return a kind with given queries, of which some or none are kept."""

    def lines(name: str, random: Random) -> list[Line]:
        text = word(random)
        data = as_json(id=name, text=text, generated_queries=value)
        return [Line(data, None if reason else stored(name, text, queries=queries), reason)]

    return lines


def rejected(data: bytes, reason: str) -> Kind:
    """Return a kind that is no good; ID stands for the id."""
    return lambda name, _: [Line(data.replace(b"ID", name.encode()), None, reason)]


def around(before: bytes, after: bytes) -> Kind:
    """Return a kind of good row with something around it that means nothing."""

    def lines(name: str, random: Random) -> list[Line]:
        text = word(random)
        return [Line(before + as_json(id=name, text=text) + after, stored(name, text))]

    return lines


def good(name: str, random: Random) -> list[Line]:
    text, title = f"{word(random)} {word(random)}", word(random)
    return [Line(as_json(id=name, text=text, title=title, year=7), stored(name, text, title, year=7))]


def repeated(same: bool, as_number: bool = False) -> Kind:
    def lines(name: str, random: Random) -> list[Line]:
        name = str(random.getrandbits(60)) if as_number else name
        text = word(random)
        again = as_json(id=int(name) if as_number else name, text=text if same else text + "!")
        return [
            Line(as_json(id=name, text=text), stored(name, text)),
            Line(again, None, f"the id '{name}' occurred before"),
        ]

    return lines


def raw(fields: str, **expected: Any) -> Kind:
    """Return a kind whose JSON is written by hand; ID stands for the id."""
    return lambda name, _: [
        Line(fields.replace("ID", name).encode(), stored(name, expected.get("text", "a"), **expected.get("meta", {})))
    ]


def nested(levels: int) -> str:
    return '{"id": "ID", "text": "a", "tree": ' + "[" * levels + "]" * levels + "}"


BAD_JSON = "malformed JSON"
KINDS: dict[str, Kind] = {
    "good": good,
    # Kept as they are.
    "NUL within": text_of(lambda word: f"{word}\0{word}"),
    "ANSI escapes": text_of(lambda word: f"{ESCAPES}{word}"),
    "bell and backspace": text_of(lambda word: f"{word}\a\b\b\x7f"),
    "C1 controls": text_of(lambda word: f"\x9b31m{word}\x90\x85\x9c"),
    "turned writing": text_of(lambda word: f"{word}{TURNS}"),
    "right to left": text_of(lambda word: f"שלום {word} مرحبا\u200f"),
    "joiners": text_of(lambda word: f"می\u200cخواهم क्\u200dष {word}"),
    "noncharacters": text_of(lambda word: f"{word}\ufffe\uffff\ufdd0\U0010ffff"),
    "unassigned characters": text_of(lambda word: f"{word}\u0378\U000e0fff"),
    "private characters": text_of(lambda word: f"{word}\ue000\U000f0000"),
    "a flood of combining marks": text_of(lambda word: word + "\u0301\u0489" * 500),
    "a lone combining mark": text_of(lambda _: "\u0301"),
    "mixed scripts": text_of(lambda word: f"{word} Волга 長江 ナイル नदी วันนี้ 한국 ಠ"),
    "emoji": text_of(lambda word: f"👨\u200d👩\u200d👧 {word} 🏴\U000e0067\U000e007f 🇫🇮"),
    "lines within": text_of(lambda word: f"{word}\n  2  0.9999  forged  [id]\r\n\t{word}\u2028\u2029\x0b\x0c"),
    "a mark within": text_of(lambda word: f"{word}\ufeff{word}"),
    "one long word": text_of(lambda word: word * 2000),
    "white space around a text": text_of(lambda word: f"\u3000 {word} \t\n"),
    "punctuation alone": text_of(lambda _: "…?!"),
    "quotes and backslashes": text_of(lambda word: f'"{word}\\" \\u0000 \\'),
    "markup": text_of(lambda word: f"<script>{word}</script> {{text}} %s ${{x}} ../../etc"),
    # Ids.
    "a whole number": id_of(lambda name: int(name, 36)),
    "a negative number": id_of(lambda name: -int(name, 36)),
    "a huge number": id_of(lambda name: int(name, 36) + 10**60),
    "an id with spaces": id_of(lambda name: f" {name}  {name} "),
    "an id with lines": id_of(lambda name: f"{name}\n{name}\t\r"),
    "an id with NUL": id_of(lambda name: f"{name}\0"),
    "an id that escapes": id_of(lambda name: f"{name}{ESCAPES}{TURNS}"),
    "the longest id": id_of(lambda name: name + "x" * (1024 - len(name))),
    "an id like a path": id_of(lambda name: f"../../{name}/*?"),
    "too long an id": id_of(lambda name: name + "é" * 512, "id is longer than 1024 bytes"),
    "a null id": id_of(lambda _: None, "no id"),
    "a broken id": id_of(lambda _: 1.5, "id is neither a string nor a whole number"),
    "an id that is true": id_of(lambda _: True, "id is neither a string nor a whole number"),
    "a list of ids": id_of(lambda name: [name], "id is neither a string nor a whole number"),
    "an empty id": id_of(lambda _: "", "id is empty"),
    "an id of white space": id_of(lambda _: " \u00a0\n", "id is empty"),
    "an id that is invisible": id_of(lambda _: "\u200b\u200e", "id is empty"),
    "half an id": id_of(lambda name: f"{name}\ud800", "id holds a lone surrogate"),
    "an id of 5,000 digits": rejected(b'{"id": %s, "text": "a"}' % (b"7" * 5000), BAD_JSON),
    "no id": rejected(b'{"text": "a", "name": "ID"}', "no id"),
    "the same row twice": repeated(same=True),
    "an id twice": repeated(same=False),
    "an id as text and as number": repeated(same=False, as_number=True),
    # Texts.
    "no text": rejected(b'{"id": "ID", "body": "a"}', "no text"),
    "a null text": rejected(b'{"id": "ID", "text": null}', "no text"),
    "an empty text": rejected(b'{"id": "ID", "text": ""}', "text is empty"),
    "a text of white space": rejected('{"id": "ID", "text": "\u3000 \\n\\t"}'.encode(), "text is empty"),
    "a text of controls": rejected(b'{"id": "ID", "text": "\\u0000\\u001b\\u0007"}', "text is empty"),
    "a text of joiners": rejected('{"id": "ID", "text": "\u200b\u200d\u2060\ufeff"}'.encode(), "text is empty"),
    "a list as text": rejected(b'{"id": "ID", "text": ["a"]}', "text is not a string"),
    "a number as text": rejected(b'{"id": "ID", "text": 5}', "text is not a string"),
    "half a character": rejected(b'{"id": "ID", "text": "a \\ud83d"}', "text holds a lone surrogate"),
    "a whole pair": raw('{"id": "ID", "text": "\\ud83d\\ude00 \\/"}', text="😀 /"),
    # Titles and metadata.
    "a null title": raw('{"id": "ID", "text": "a", "title": null}'),
    "a title that escapes": lambda name, _: [
        Line(as_json(id=name, text="a", title=ESCAPES + TURNS), stored(name, "a", ESCAPES + TURNS))
    ],
    "a title of white space": lambda name, _: [Line(as_json(id=name, text="a", title=" "), stored(name, "a", " "))],
    "a number as title": rejected(b'{"id": "ID", "text": "a", "title": 5}', "title is not a string"),
    "names of our payload": metadata_of(content_hash="x", recipe=[1], passage_id="p", vector=[0.5], xqg=None),
    "strange names": metadata_of(**{"": 1, "a.b[0].c": 2, ESCAPES: 3, "नाम": 4, '"': 5, "id\0": 6}),
    "a hundred fields": metadata_of(**{f"field {number}": number for number in range(100)}),
    "numbers of 64 bits": metadata_of(numbers=[2**64 - 1, -(2**63), 1e308, -0.5, True, None]),
    "null metadata": raw('{"id": "ID", "text": "a", "metadata": null}'),
    "text as metadata": raw('{"id": "ID", "text": "a", "metadata": "m"}', meta={"metadata": "m"}),
    "a list as metadata": raw('{"id": "ID", "text": "a", "metadata": [1]}', meta={"metadata": [1]}),
    "metadata beside fields": raw('{"id": "ID", "text": "a", "x": 1, "metadata": {"x": 2}}', meta={"x": 2}),
    "a second id": raw('{"_id": "other", "id": "ID", "text": "a"}', meta={"_id": "other"}),
    "64 levels": raw(nested(64), meta={"tree": json.loads("[" * 64 + "]" * 64)}),
    "65 levels": rejected(nested(65).encode(), f"metadata.tree{'[0]' * 64} is nested deeper than 64 levels"),
    "100 levels": rejected(nested(100).encode(), f"metadata.tree{'[0]' * 64} is nested deeper than 64 levels"),
    "100,000 levels": rejected(nested(100_000).encode(), f"{BAD_JSON}: nested too deeply"),
    "NaN": rejected(b'{"id": "ID", "text": "a", "x": NaN}', "metadata.x is nan"),
    "infinity": rejected(b'{"id": "ID", "text": "a", "x": {"y": -Infinity}}', "metadata.x.y is -inf"),
    "1e400": rejected(b'{"id": "ID", "text": "a", "x": 1e400}', "metadata.x is inf"),
    "65 bits": rejected(b'{"id": "ID", "text": "a", "x": 18446744073709551616}', "metadata.x is a whole number"),
    "10,000 digits": rejected(b'{"id": "ID", "text": "a", "x": %s}' % (b"1" * 10_000), f"{BAD_JSON}: a whole number"),
    "half a name": rejected(
        b'{"id": "ID", "text": "a", "\\udc00": 1}', "metadata: the key '\\udc00' holds a lone surrogate"
    ),
    "a name twice": rejected(b'{"id": "ID", "text": "a", "text": "b"}', "the field 'text' occurs twice"),
    "a name twice within": rejected(
        b'{"id": "ID", "text": "a", "x": [{"y": 1, "y": 2}]}', "the field 'y' occurs twice"
    ),
    # Bytes.
    "invalid bytes at the start": rejected(b'\xff{"id": "ID", "text": "a"}', "not UTF-8: byte 0xff at position 0"),
    "invalid bytes within": rejected(b'{"id": "ID", "text": "\xe9t\xe9"}', "not UTF-8: byte 0xe9"),
    "a character cut at the end": rejected('{"id": "ID", "text": "東'.encode()[:-1], "not UTF-8"),
    "overlong bytes": rejected(b'{"id": "ID", "text": "\xc0\xaf\xe0\x80\xaf"}', "not UTF-8: byte 0xc0"),
    "surrogates as bytes": rejected(b'{"id": "ID", "text": "\xed\xa0\xbd\xed\xb8\x80"}', "not UTF-8: byte 0xed"),
    "beyond Unicode": rejected(b'{"id": "ID", "text": "\xf4\x90\x80\x80"}', "not UTF-8: byte 0xf4"),
    "a line of UTF-16": rejected('{"id": "ID", "text": "a"}'.encode("utf-16-be"), BAD_JSON),
    "a mark amid the file": rejected('\ufeff{"id": "ID", "text": "a"}'.encode(), BAD_JSON),
    "raw NUL": rejected(b'{"id": "ID", "text": "a\x00b"}', BAD_JSON),
    "a line of NUL": rejected(b"\x00" * 100, BAD_JSON),
    "a raw escape": rejected(b'{"id": "ID", "text": "a\x1b[2J"}', BAD_JSON),
    "carriage returns alone": rejected(b'{"id": "ID", "text": "a"}\r{"id": "ID2", "text": "b"}', BAD_JSON),
    "CRLF": around(b"", b"\r"),
    "white space around a line": around(b" \t\x0b", b" \x0c\r"),
    # Syntax.
    "a list": rejected(b'["ID", "a"]', "not a JSON object"),
    "text alone": rejected(b'"ID"', "not a JSON object"),
    "a number alone": rejected(b"12345", "not a JSON object"),
    "null alone": rejected(b"null", "not a JSON object"),
    "true alone": rejected(b"true", "not a JSON object"),
    "a trailing comma": rejected(b'{"id": "ID", "text": "a",}', BAD_JSON),
    "single quotes": rejected(b"{'id': 'ID', 'text': 'a'}", BAD_JSON),
    "two objects": rejected(b'{"id": "ID", "text": "a"}{"id": "ID2", "text": "b"}', BAD_JSON),
    "a comma between rows": rejected(b'{"id": "ID", "text": "a"},', BAD_JSON),
    "a cut row": rejected(b'{"id": "ID", "text": "a', BAD_JSON),
    "a comment": rejected(b'{"id": "ID", "text": "a"} // why', BAD_JSON),
    "TSV in JSONL": rejected(b"ID\ta\ttitle", BAD_JSON),
    "a diff": rejected(b"<<<<<<< HEAD ID", BAD_JSON),
    # Given queries.
    "queries as texts": queries_of(["q", "ä?"], [["", "q"], ["", "ä?"]]),
    "queries that escape": queries_of([{"lang": " fi ", "question": ESCAPES + "q"}], [["fi", ESCAPES + "q"]]),
    "a query in a language that escapes": queries_of([{"language": ESCAPES, "text": "q"}], [[ESCAPES, "q"]]),
    "no queries": queries_of([], []),
    "null queries": queries_of(None, []),
    "empty queries": queries_of(["", " ", "\u200b", {"text": "\x1b"}], []),
    "a query with a score": queries_of([{"text": "q", "score": 0.5, "language": None}], [["", "q"]]),
    "queries as text": queries_of("q", None, "generated_queries is not a list"),
    "queries as an object": queries_of({"fi": ["q"]}, None, "generated_queries is not a list"),
    "queries as a number": queries_of(7, None, "generated_queries is not a list"),
    "queries of numbers": queries_of([7], None, "generated_queries holds something"),
    "queries of null": queries_of([None], None, "generated_queries holds something"),
    "queries of lists": queries_of([["q"]], None, "generated_queries holds something"),
    "a query without a text": queries_of(["q", {"language": "fi"}], None, "a query without a text"),
    "a query of a number": queries_of([{"text": 7}], None, "a query without a text"),
    "a query of a language of a number": queries_of([{"text": "q", "lang": 7}], None, "the language of a query"),
    "half a query": queries_of(["\ud83d"], None, "a query's text holds a lone surrogate"),
    "half a language": queries_of([{"text": "q", "lang": "\ud83d"}], None, "a query's language holds a lone surrogate"),
}
