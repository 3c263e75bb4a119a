"""Find the tokens that a language's script can use, from a tokenizer and a sample of text.

A T5's output projection over 250,000 tokens is most of a decoder step, and most of these tokens are of other scripts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer

from xqg_qdrant.export.graph import Array
from xqg_qdrant.languages import can_write

# A language in Latin script could use more tokens than are worth their time. Tokenizers put frequent tokens first.
LARGEST = 16_384
# `t5` finds the best tokens by chunks, which must divide the size evenly.
MULTIPLE = 64
WORD_START = "▁"


def restrict_vocabulary(
    tokenizer: Tokenizer, size: int, language: str, sample: Iterable[str], always: Collection[int], never: Sequence[int]
) -> Array:
    """Return the ids that a language may use, sorted, int64.

    They are the ids in `always`, then those in the sample, then, up to `LARGEST`, those with letters of the language's
    script only (for Latin script: letters of the sample only). Ids in `never` and special tokens are excluded. `size`
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
