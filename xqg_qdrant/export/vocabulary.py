"""The tokens that a language's writing can use, from a tokenizer and a sample of text.

A T5's output projection over 250,000 tokens is most of a decoder step, and most of them are of other scripts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer

from xqg_qdrant.export.graph import Array
from xqg_qdrant.languages import can_write

# A language in Latin letters could use more tokens than are worth their time; tokenizers put the frequent ones first.
LARGEST = 16_384
# What the two-stage choice of the best tokens divides evenly; see `t5`.
MULTIPLE = 64
WORD_START = "▁"


def restrict_vocabulary(
    tokenizer: Tokenizer, size: int, language: str, sample: Iterable[str], always: Collection[int], never: Sequence[int]
) -> Array:
    """Return the ids that a language may use, sorted, int64.

    They are those in `always`, those that occur in the sample, and then, up to `LARGEST`, those whose every letter is
    of the language's script (of the Latin script: occurs in the sample); none in `never`, and no special tokens. `size`
    is the number of rows of the output projection.
    """
    texts = list(sample)
    letters = frozenset(character for text in texts for character in text + text.lower() + text.upper())
    special = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    seen = {token_id for encoding in tokenizer.encode_batch(texts) for token_id in encoding.ids}
    writable = (
        token_id
        for token_id in range(min(size, tokenizer.get_vocab_size()))
        if all(
            character in letters or can_write(character, language)
            for character in (tokenizer.id_to_token(token_id) or "").replace(WORD_START, " ")
        )
    )
    wanted = [token_id for token_id in dict.fromkeys([*sorted(seen), *writable]) if token_id not in special]
    allowed = [token_id for token_id in dict.fromkeys([*always, *wanted]) if token_id not in never][:LARGEST]
    cut = len(allowed) - len(allowed) % MULTIPLE or len(allowed)
    return np.array(sorted(allowed[:cut]), dtype=np.int64)
