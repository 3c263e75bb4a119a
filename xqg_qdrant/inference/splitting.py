"""Split documents into passages that an encoder reads in full.

`semantic-text-splitter` chooses the boundaries: between paragraphs where they fit, else sentences, words or characters.
It reads the document window by window, and counts by the tokens of the window: it asks for the length of many parts,
and tokenising each takes ten times as long.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from xqg_qdrant.errors import InputError
from xqg_qdrant.fingerprint import SPLIT_FIELDS, Fingerprint, is_split
from xqg_qdrant.inference.tokenizer import apply_settings, open_tokenizer
from xqg_qdrant.model_folders import ModelFolder
from xqg_qdrant.model_folders.description import ENDPOINT, TOKENIZER_FILE
from xqg_qdrant.text import is_blank

# Most tokenizers take a word of any length as one unknown token; no passage is to have a megabyte of it.
CHARACTERS_A_TOKEN = 16
PASSAGES_A_WINDOW = 4
# Tokens of text, besides the prefix and special tokens.
LEAST_ROOM = 8
# By default a passage repeats up to this part of the one before.
OVERLAPPING_PART = 8


class Piece(NamedTuple):
    """A part of a document: `text` stands there from character `start` up to `end`, which is excluded."""

    start: int
    end: int
    text: str


class Splitter:
    """Splits documents at a length in tokens, in bounded memory; it can be pickled."""

    def __init__(self, folder: ModelFolder, tokens: int | None = None, overlap: int | None = None) -> None:
        """Open the tokenizer of an encoder.

        Args:
            folder: of the encoder.
            tokens: longest passage with prefix, title and special tokens; None is all that the encoder reads.
            overlap: tokens, at most, of a passage that the next one repeats; None is an eighth of a passage.

        Raises:
            InputError: the encoder is behind an endpoint, the lengths do not fit, or the package that splits is not
                installed.
        """
        about = folder.description
        if about["kind"] == ENDPOINT:
            what = f"the endpoint of {about['model']!r} counts tokens by itself, so documents cannot be split for it."
            raise InputError(what, "split the documents first, or name a model folder (--encoder)")
        _import_splitter()
        longest, self._prefix = about["max_passage_tokens"], about["passage_prefix"]
        self._tokenizer = open_tokenizer(folder.path / TOKENIZER_FILE, longest)
        apply_settings(self._tokenizer, about.get("tokenizer", {}))
        self._tokenizer.no_truncation()
        self.tokens = longest if tokens is None else tokens
        self.overlap = self.tokens // OVERLAPPING_PART if overlap is None else overlap
        room = self.tokens - self._count(self._prefix)
        if room < LEAST_ROOM:
            cure = f"choose {self.tokens - room + LEAST_ROOM} to {longest}"
            raise InputError(f"passages of {self.tokens} tokens are too short to split documents into.", cure)
        self._least = room // 2
        if not 0 <= self.overlap <= self._least:
            raise InputError(
                f"an overlap of {self.overlap} tokens is more than half of a passage of {self.tokens}.",
                f"choose 0 to {self._least}",
            )

    def split(self, text: str, title: str = "") -> Iterator[Piece]:
        """Return the pieces of a document in order; none begins or ends with white space.

        Raises:
            ValueError: the title leaves less than half of a passage for the text.
        """
        capacity = self.tokens - self._count(self._prefix + title)
        if title and capacity <= self._least:
            raise ValueError(f"the title takes more than half of the {self.tokens} tokens of a passage")
        return self._split(text, f"{self._prefix}{title} " if title else self._prefix, capacity)

    def _split(self, text: str, before: str, capacity: int) -> Iterator[Piece]:
        at, size = 0, PASSAGES_A_WINDOW * CHARACTERS_A_TOKEN * self.tokens
        while at < len(text):
            found = self._split_window(text[at : at + size], capacity)
            following = at + size
            if following < len(text) and len(found) > 1:
                following = at + found.pop().start  # its end is that of the window
            for piece in found:
                for part in self._fit(piece, before, capacity):
                    if not is_blank(part.text):
                        yield _strip(Piece(at + part.start, at + part.end, part.text))
            at = following

    def _split_window(self, window: str, capacity: int) -> list[Piece]:
        offsets = self._tokenizer.encode(window, add_special_tokens=False).offsets
        starts, ends = [start for start, _ in offsets], [end for _, end in offsets]

        def count(part: str) -> int:
            start = window.find(part)  # wherever it stands first, it has as many tokens
            tokens = bisect_left(starts, start + len(part)) - bisect_right(ends, start)
            return max(tokens, len(part) // CHARACTERS_A_TOKEN)

        return _cut(window, count, capacity, self.overlap)

    def _fit(self, piece: Piece, before: str, capacity: int) -> list[Piece]:
        """Cut a piece again if it has more tokens by itself than within its window."""
        if self._count(before + piece.text.strip()) <= self.tokens:
            return [piece]
        parts = _cut(piece.text, lambda part: capacity + self._count(before + part) - self.tokens, capacity, 0)
        return [Piece(piece.start + part.start, piece.start + part.end, part.text) for part in parts]

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text).ids)


def choose_splitter(
    folder: ModelFolder, stored: Fingerprint | None, tokens: int | None = None, overlap: int | None = None
) -> Splitter:
    """Return a splitter with the lengths of an existing collection, or those of `Splitter`, where none are given.

    Raises:
        InputError: as `Splitter`, or the encoder does not read so many tokens.
    """
    longest = folder.description.get("max_passage_tokens")
    if tokens is not None and longest is not None and tokens > longest:
        raise InputError(f"the encoder reads only {longest} tokens of a passage.", f"choose {longest} tokens or fewer")
    known = [stored[field] for field in SPLIT_FIELDS] if stored and is_split(stored) else [None, None]
    if tokens not in (None, known[0]):
        known = [None, None]
    return Splitter(folder, tokens or known[0], known[1] if overlap is None else overlap)


def _cut(text: str, count: Callable[[str], int], capacity: int, overlap: int) -> list[Piece]:
    # Trimming would hide the length of white space, which takes quadratic time then.
    splitter = _import_splitter().from_callback(count, capacity, overlap, trim=False)
    return [Piece(start, start + len(part), part) for start, part in splitter.chunk_indices(text)]


def _strip(piece: Piece) -> Piece:
    start = piece.start + len(piece.text) - len(piece.text.lstrip())
    text = piece.text.strip()
    return Piece(start, start + len(text), text)


def _import_splitter() -> Any:  # noqa: ANN401
    try:
        from semantic_text_splitter import TextSplitter
    except ModuleNotFoundError as error:
        cure = "pip install 'xqg-qdrant[split]'"
        raise InputError("splitting documents needs semantic-text-splitter.", cure) from error
    return TextSplitter
