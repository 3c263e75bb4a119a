"""Open the tokenizers of model folders; the only module that imports `tokenizers`, apart from the export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from xqg_qdrant.errors import ModelError
from xqg_qdrant.model_folders.files import export_again

__all__ = ["Tokenizer", "encode_ids", "open_tokenizer", "unknown_id"]

# While it works on a text, a tokenizer keeps a hundred bytes or more a character, even of what it truncates.
CHARACTERS_AT_ONCE = 2**20


def open_tokenizer(path: Path, max_tokens: int) -> Tokenizer:
    """Open a `tokenizer.json` that truncates texts at a length in tokens, and does not pad.

    Raises:
        ModelError: the file is not a tokenizer, or of a kind that the installed library does not support.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(
            f"{path} is not a tokenizer that truncates at {max_tokens} tokens: {error}.", export_again(path.parent)
        ) from error
    return tokenizer


def encode_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each text; long texts are tokenised one by one."""
    if sum(map(len, texts)) <= CHARACTERS_AT_ONCE:
        return [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    # A batch of one, because encode() would block the other threads.
    return [tokenizer.encode_batch([text])[0].ids for text in texts]


def unknown_id(tokenizer: Tokenizer) -> int:
    """Return the id of unknown pieces, -1 if the tokenizer has none."""
    model = json.loads(tokenizer.to_str())["model"]
    found = model.get("unk_id")
    if found is None and model.get("unk_token"):
        found = tokenizer.token_to_id(model["unk_token"])
    return -1 if found is None else int(found)
