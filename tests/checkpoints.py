"""Tiny checkpoints with random weights, made by transformers and tokenizers, for the tests of export and inference.

Declare `pytest_plugins = ("checkpoints",)` to use the fixtures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.decoders import Metaspace

from xqg_qdrant.demo import read_demo_passages, read_demo_queries

torch.set_num_threads(1)

TOKENS = 2500
# Ids of a T5 tokenizer that trains with these special tokens first.
PAD, END, UNKNOWN = 0, 1, 2
SPREAD, END_WEIGHT = 2.0, 1.7


@cache
def corpus() -> tuple[str, ...]:
    """Return real text in eight languages to train tokenizers on."""
    return (*(passage.text for passage in read_demo_passages()[:60]), *(query.text for query in read_demo_queries()))


@cache
def train_unigram(*specials: str) -> Tokenizer:
    """Train a tokenizer such as XLM-R's and T5's are, with the special tokens first."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=TOKENS, special_tokens=list(specials), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, **settings: Any) -> None:  # noqa: ANN401
    """Write a tokenizer as transformers saves it."""
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)
    wrapped.save_pretrained(folder)


def save_t5(
    folder: Path,
    model_type: str = "t5",
    tied: bool = True,
    generation: dict[str, Any] | None = None,
    **settings: Any,  # noqa: ANN401
) -> Path:
    """Write a T5 or mT5 whose greedy outputs differ by input, and end early now and then."""
    torch.manual_seed(11)
    kinds: dict[str, Any] = {
        "t5": (transformers.T5Config, transformers.T5ForConditionalGeneration),
        "mt5": (transformers.MT5Config, transformers.MT5ForConditionalGeneration),
    }
    config_class, model_class = kinds[model_type]
    config = config_class(
        vocab_size=TOKENS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=3, num_decoder_layers=2,
        relative_attention_num_buckets=8, relative_attention_max_distance=20, decoder_start_token_id=PAD, **settings,
    )  # fmt: skip
    model = model_class(config)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            table = weight.dim() == 1 or "shared" in name or "relative" in name
            weight.copy_(torch.randn_like(weight) * (1.0 if table else SPREAD * weight.shape[1] ** -0.5))
        model.lm_head.weight[END] *= END_WEIGHT
    model.save_pretrained(folder)
    # What the released checkpoints say; transformers itself writes its own view of it.
    edit_json(folder / "config.json", {"tie_word_embeddings": tied, "scale_decoder_outputs": None})
    edit_json(folder / "generation_config.json", generation or {})
    tokenizer = train_unigram("<pad>", "</s>", "<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    save_tokenizer(tokenizer, folder, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return folder


def edit_json(path: Path, changes: dict[str, Any]) -> None:
    """Change fields of a JSON file; `None` removes one."""
    fields = {**json.loads(path.read_text(encoding="utf-8")), **changes} if path.exists() else changes
    kept = {name: value for name, value in fields.items() if value is not None}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(kept), encoding="utf-8")
