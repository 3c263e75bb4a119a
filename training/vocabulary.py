"""Cut a large unigram vocabulary down to the pieces that some texts use."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

BATCH = 20_000


def count_pieces(tokenizer: Tokenizer, texts: Sequence[str]) -> Counter[int]:
    """Count the pieces of the texts."""
    counts: Counter[int] = Counter()
    for start in range(0, len(texts), BATCH):
        for encoding in tokenizer.encode_batch(texts[start : start + BATCH], add_special_tokens=False):
            counts.update(encoding.ids)
    return counts


def choose_pieces(
    tokenizer: Tokenizer,
    texts: Mapping[str, Sequence[str]],
    kept: int,
    english_weight: float,
    characters: Iterable[str] | None = None,
) -> list[int]:
    """Return, sorted, the ids to keep: special and single-character pieces, and the most frequent others.

    A piece's frequency is its share of the pieces of each language's texts, summed over the languages, English
    weighted by `english_weight`.

    Args:
        tokenizer: The whole vocabulary.
        texts: Texts by language; English is `en`.
        kept: How many pieces of more than one character to keep.
        english_weight: Weight of English where each other language counts 1.
        characters: The single characters to keep; None keeps all.
    """
    shares: Counter[int] = Counter()
    for language, found in texts.items():
        counts = count_pieces(tokenizer, found)
        weight = (english_weight if language == "en" else 1) / counts.total()
        shares.update({piece: count * weight for piece, count in counts.items()})
    wanted = None if characters is None else {"", *characters}
    bare = [piece.lstrip("▁") for piece, _ in json.loads(tokenizer.to_str())["model"]["vocab"]]
    single = {number for number, piece in enumerate(bare) if len(piece) <= 1}
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    always = special | {number for number in single if wanted is None or bare[number] in wanted}
    decided = always | single
    frequent = [piece for piece, _ in shares.most_common() if piece not in decided][:kept]
    return sorted({*always, *frequent})


def cut_tokenizer(content: dict[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return the content of a `tokenizer.json` with only these pieces, numbered anew."""
    content = json.loads(json.dumps(content))
    places = {old: new for new, old in enumerate(kept)}
    model = content["model"]
    model["vocab"] = [model["vocab"][number] for number in kept]
    model["unk_id"] = places[model["unk_id"]]
    for token in content["added_tokens"]:
        token["id"] = places[token["id"]]
    for token in content["post_processor"]["special_tokens"].values():
        token["ids"] = [places[number] for number in token["ids"]]
    return content
