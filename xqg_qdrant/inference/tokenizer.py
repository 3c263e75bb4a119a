"""Open the tokenizers of model folders; the only module that imports `tokenizers`, apart from the export."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer, models, normalizers

from xqg_qdrant.errors import ModelError
from xqg_qdrant.inference import ENCODER, Reading
from xqg_qdrant.model_folders import ModelFolder
from xqg_qdrant.model_folders.description import TOKENIZER_FILE
from xqg_qdrant.model_folders.files import export_again

__all__ = [
    "ReadCount",
    "Tokenizer",
    "apply_settings",
    "count_readable_ids",
    "encode_ids",
    "open_tokenizer",
    "read_passages",
    "replace_unreadable",
    "unknown_id",
]

# While it works on a text, a tokenizer keeps a hundred bytes or more a character, even of what it truncates.
CHARACTERS_AT_ONCE = 2**20
# In tokens, where a tokenizer sets a side to truncate at and no length.
LONGEST = 512


def open_tokenizer(path: Path, max_tokens: int) -> Tokenizer:
    """Open a `tokenizer.json` that truncates texts at a length in tokens, and does not pad.

    The side to truncate at is that of the file.

    Raises:
        ModelError: the file is not a tokenizer, or of a kind that the installed library does not support.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
        side = (tokenizer.truncation or {}).get("direction", "right")
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens, direction=side)
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(
            f"{path} is not a tokenizer that truncates at {max_tokens} tokens: {error}.", export_again(path.parent)
        ) from error
    return tokenizer


def apply_settings(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Change a tokenizer as `read_tokenizer_settings` says; return the settings that made a difference."""
    made: dict[str, Any] = {}
    side = settings.get("truncation_side")
    if side and side != (tokenizer.truncation or {}).get("direction", "right"):
        tokenizer.enable_truncation((tokenizer.truncation or {}).get("max_length", LONGEST), direction=side)
        made["truncation_side"] = side
    bert = settings.get("bert_normaliser")
    if bert and isinstance(tokenizer.model, models.WordPiece):
        wanted = normalizers.BertNormalizer(clean_text=True, **bert)
        if _state(tokenizer.normalizer) != _state(wanted):
            tokenizer.normalizer = wanted
            made["bert_normaliser"] = bert
    if settings.get("lowercase") and not _lowercases(_state(tokenizer.normalizer)):
        before = [tokenizer.normalizer] if tokenizer.normalizer else []
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *before])
        made["lowercase"] = True
    return made


def _state(normaliser: Any) -> dict[str, Any]:  # noqa: ANN401
    state: dict[str, Any] = json.loads(normaliser.__getstate__()) if normaliser else {}
    return state


def _lowercases(normaliser: Mapping[str, Any]) -> bool:
    parts = normaliser.get("normalizers", ())
    return normaliser.get("type") == "Lowercase" or normaliser.get("lowercase") is True or any(map(_lowercases, parts))


class ReadCount:
    """Counts the texts that a model reads, and how much of them; several threads may add to it."""

    def __init__(self, model: str, noun: str, longest: int) -> None:
        """Begin with no text; the arguments are those of `Reading`."""
        self.reading = Reading(model, noun, longest)
        self._lock = threading.Lock()

    def add(self, encodings: Sequence[Encoding]) -> None:
        """Add texts that were tokenised together."""
        read = sum(map(_count_tokens, encodings))
        beyond = [sum(map(_count_tokens, encoding.overflowing)) for encoding in encodings]
        cut = sum(tokens > 0 for tokens in beyond)
        with self._lock:
            self.reading = self.reading.plus(len(encodings), cut, read, sum(beyond))


def _count_tokens(encoding: Encoding) -> int:
    return len(encoding.ids) - sum(encoding.special_tokens_mask)


def encode_ids(tokenizer: Tokenizer, texts: Sequence[str], count: ReadCount | None = None) -> list[list[int]]:
    """Return the ids of each text, and add them to a count; long texts are tokenised one by one."""
    # A batch of one, because encode() would block the other threads.
    together = sum(map(len, texts)) <= CHARACTERS_AT_ONCE
    rows = []
    for batch in [texts] if together else [[text] for text in texts]:
        encodings = tokenizer.encode_batch(batch)
        if count is not None:
            count.add(encodings)
        rows += [encoding.ids for encoding in encodings]
    return rows


def read_passages(folder: ModelFolder, texts: Sequence[str]) -> Reading:
    """Return how much of some passages an encoder reads, without encoding them."""
    about = folder.description
    longest = about["max_passage_tokens"]
    tokenizer, count = open_tokenizer(folder.path / TOKENIZER_FILE, longest), ReadCount(ENCODER, "passage", longest)
    apply_settings(tokenizer, about.get("tokenizer", {}))
    encode_ids(tokenizer, [about["passage_prefix"] + text for text in texts], count)
    return count.reading


def count_readable_ids(tokenizer: Tokenizer, read: Callable[[int], object]) -> int | None:
    """Return how many ids a graph's embedding table has, if the tokenizer has more, else None.

    Added tokens can have ids beyond the table, such as those of an image in a text encoder.

    Args:
        tokenizer: the graph's tokenizer.
        read: runs the graph on one id, and raises ModelError where its table lacks the id.

    Raises:
        ModelError: the graph cannot even read the first id.
    """
    largest = max(tokenizer.get_vocab_size() - 1, *tokenizer.get_added_tokens_decoder(), 0)
    if _can_read(read, largest):
        return None
    read(0)
    low, high = 0, largest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _can_read(read, middle) else (low, middle)
    return high


def replace_unreadable(rows: Sequence[Sequence[int]], readable: int | None, unknown: int) -> list[list[int]]:
    """Return rows with `unknown` in place of ids from `readable` on; such ids are dropped if `unknown` is negative."""
    if readable is None:
        return [list(row) for row in rows]
    replaced = ([number if number < readable else unknown for number in row] for row in rows)
    return [[number for number in row if 0 <= number < readable] for row in replaced]


def _can_read(read: Callable[[int], object], number: int) -> bool:
    try:
        read(number)
    except ModelError:
        return False
    return True


def unknown_id(tokenizer: Tokenizer) -> int:
    """Return the id of unknown pieces, -1 if the tokenizer has none."""
    model = json.loads(tokenizer.to_str())["model"]
    found = model.get("unk_id")
    if found is None and model.get("unk_token"):
        found = tokenizer.token_to_id(model["unk_token"])
    return -1 if found is None else int(found)
