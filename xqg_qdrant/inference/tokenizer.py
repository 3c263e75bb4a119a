"""The only door to the tokenizers of model folders.

Knows `tokenizer.json` and lengths. Knows nothing of prompts, prefixes or graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from xqg_qdrant.errors import ModelError

__all__ = ["Tokenizer", "encode_ids", "open_tokenizer"]

# Of a text in work a tokenizer keeps a hundred bytes and more a character, also of what it cuts off.
CHARACTERS_AT_ONCE = 2**20


def open_tokenizer(path: Path, max_tokens: int) -> Tokenizer:
    """Open a `tokenizer.json` so that it cuts texts at a length, and pads none.

    Raises:
        ModelError: the file is no tokenizer, or one of a kind that the installed library does not know.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
    except Exception as error:  # the library raises nothing narrower
        cure = f"export it again: xqg export CHECKPOINT {path.parent}"
        raise ModelError(f"{path} is no tokenizer that cuts at {max_tokens} tokens: {error}.", cure) from error
    return tokenizer


def encode_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each text; long texts are tokenised one by one."""
    if sum(map(len, texts)) <= CHARACTERS_AT_ONCE:
        return [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    # A batch of one, because encode() would stop the other threads.
    return [tokenizer.encode_batch([text])[0].ids for text in texts]
