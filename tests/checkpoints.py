"""Tiny checkpoints with random weights, made by transformers and tokenizers, and their exports.

Declare `pytest_plugins = ("checkpoints",)` to use the fixtures; each folder is made once a test run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.utils.logging import disable_progress_bar

from xqg_qdrant.demo import read_demo_passages, read_demo_queries
from xqg_qdrant.export import export_checkpoint
from xqg_qdrant.records import Passage

torch.set_num_threads(1)
disable_progress_bar()

TOKENS = 2500
LONGEST = 40
NEW_TOKENS = 12
LANGUAGES = ("fi", "ja", "ru")
T5_SPECIALS = ("<pad>", "</s>", "<unk>")
XLMR_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
T5_END = T5_SPECIALS.index("</s>")
LANGUAGE_TOKENS = {"fi": 7, "ja": 8, "ru": 9}

ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "hidden_act": "gelu", "max_position_embeddings": LONGEST},
    # MiniLM's multilingual checkpoints: BERT's architecture over XLM-R's tokenizer
    "minilm": {"model_type": "bert", "hidden_act": "gelu_new", "hidden_size": 24, "num_hidden_layers": 3},
    "xlm-roberta": {"model_type": "xlm-roberta", "max_position_embeddings": LONGEST + 2, "pad_token_id": 1},
}
SUPPRESSED = tuple(range(40, 600, 2))
# form → (checkpoint, options of the export)
GENERATORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "t5": ({}, {"prompt": "Ask in {language}: {title} {text}", "languages": LANGUAGES}),
    "t5-1.1": (
        {"feed_forward_proj": "gated-gelu", "tied": False},
        {"prompt": "{text} Which {language} question does it answer?", "languages": LANGUAGES},
    ),
    "mt5": (
        {"model_type": "mt5", "tied": False, "generation": {"lang_to_id": LANGUAGE_TOKENS}},
        {},
    ),
    "mt5-prompted": (
        {
            "model_type": "mt5", "tied": False, "seed": 5,
            "generation": {"lang_to_id": LANGUAGE_TOKENS, "suppress_tokens": list(SUPPRESSED)},
        },
        {"prompt": "{language}, please: {text}", "languages": ("ru", "fi")},
    ),
}  # fmt: skip


@cache
def corpus() -> tuple[str, ...]:
    """Return real text in eight languages: passages, then questions."""
    return (*(passage.text for passage in read_demo_passages()[:60]), *(query.text for query in read_demo_queries()))


def passages() -> list[Passage]:
    """Return passages of many lengths, from one word to more than any tiny model reads."""
    found = read_demo_passages()[:20]
    return [
        Passage(passage.passage_id, passage.text[: 7 + 13 * number], passage.title * (number % 2))
        for number, passage in enumerate(found)
    ]


def save_encoder(folder: Path, name: str, **settings: Any) -> Path:  # noqa: ANN401
    """Write an encoder of `ENCODERS` as transformers saves it."""
    configs: dict[str, Any] = {"bert": transformers.BertConfig, "xlm-roberta": transformers.XLMRobertaConfig}
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    fields = {**shape, "vocab_size": TOKENS, "max_position_embeddings": LONGEST, **ENCODERS[name], **settings}
    config = configs[fields.pop("model_type")](**fields)
    model: Any = transformers.AutoModel.from_config(config)
    _randomise(model, seed=3)
    model.save_pretrained(folder)
    if name == "bert":
        _save_tokenizer(train_wordpiece(), folder, pad_token="[PAD]", unk_token="[UNK]", model_max_length=LONGEST)
    else:
        tokenizer = train_unigram(*XLMR_SPECIALS)
        ends = [(token, XLMR_SPECIALS.index(token)) for token in ("<s>", "</s>")]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
        _save_tokenizer(tokenizer, folder, pad_token="<pad>", unk_token="<unk>")
    return folder


def save_t5(
    folder: Path,
    model_type: str = "t5",
    tied: bool = True,
    seed: int = 11,
    generation: dict[str, Any] | None = None,
    **settings: Any,  # noqa: ANN401
) -> Path:
    """Write a T5 or mT5 whose greedy outputs differ by input, and end early now and then."""
    kinds: dict[str, Any] = {
        "t5": (transformers.T5Config, transformers.T5ForConditionalGeneration),
        "mt5": (transformers.MT5Config, transformers.MT5ForConditionalGeneration),
    }
    config_class, model_class = kinds[model_type]
    config = config_class(
        vocab_size=TOKENS, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=3, num_decoder_layers=2,
        relative_attention_num_buckets=8, relative_attention_max_distance=20, decoder_start_token_id=0, **settings,
    )  # fmt: skip
    model = model_class(config)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    _randomise(model, seed)
    with torch.no_grad():
        model.lm_head.weight[T5_END] *= 3.5 if tied else 1.7
    model.save_pretrained(folder)
    # As the released checkpoints say it; transformers itself writes its own view of it.
    edit_json(folder / "config.json", {"tie_word_embeddings": tied, "scale_decoder_outputs": None})
    edit_json(folder / "generation_config.json", generation or {})
    tokenizer = train_unigram(*T5_SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", T5_END)])
    _save_tokenizer(tokenizer, folder, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return folder


def edit_json(path: Path, changes: dict[str, Any]) -> None:
    """Change fields of a JSON file, which may be new; `None` removes one."""
    fields = {**json.loads(path.read_text(encoding="utf-8")), **changes} if path.exists() else changes
    path.parent.mkdir(exist_ok=True)
    kept = {name: value for name, value in fields.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


@cache
def train_unigram(*specials: str) -> Tokenizer:
    """Train a tokenizer such as XLM-R's and T5's are, with the special tokens first."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=TOKENS, special_tokens=list(specials), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


@cache
def train_wordpiece() -> Tokenizer:
    """Train a tokenizer such as BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=TOKENS, special_tokens=list(BERT_SPECIALS), show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    ends = [(token, BERT_SPECIALS.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, **settings: Any) -> None:  # noqa: ANN401
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Draw weights far enough from zero that every part of the model shows in its output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                drawn = 0.2 * drawn + (0.0 if name.endswith("bias") else 1.0)
            elif "embedding" not in name and "shared" not in name and "bias" not in name:
                drawn *= 2 * weight.shape[1] ** -0.5
            weight.copy_(drawn)


MakeFolder = Callable[[str], Path]


@pytest.fixture(scope="session")
def encoder_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeFolder:
    """Return a function from a name in `ENCODERS` to its checkpoint."""
    return cache(lambda name: save_encoder(tmp_path_factory.mktemp("encoders") / name, name))


@pytest.fixture(scope="session")
def generator_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeFolder:
    """Return a function from a name in `GENERATORS` to its checkpoint."""
    return cache(lambda name: save_t5(tmp_path_factory.mktemp("generators") / name, **GENERATORS[name][0]))


@pytest.fixture(scope="session")
def exported_encoder(tmp_path_factory: pytest.TempPathFactory, encoder_checkpoint: MakeFolder) -> MakeFolder:
    """Return a function from `NAME DTYPE` to a model folder."""

    def export(form: str) -> Path:
        name, dtype = form.split()
        folder = tmp_path_factory.mktemp("exports") / name
        settings: dict[str, Any] = {"pooling": "mean", "query_prefix": "query: ", "passage_prefix": "passage: "}
        lengths = {"max_query_tokens": 12, "max_passage_tokens": 30}
        source = str(encoder_checkpoint(name))
        return export_checkpoint(source, folder, int8=dtype == "int8", normalise=True, **settings, **lengths).folder

    return cache(export)


@pytest.fixture(scope="session")
def exported_generator(tmp_path_factory: pytest.TempPathFactory, generator_checkpoint: MakeFolder) -> MakeFolder:
    """Return a function from `FORM DTYPE` to a model folder."""

    def export(form: str) -> Path:
        name, dtype = form.split()
        folder = tmp_path_factory.mktemp("exports") / name
        given = {**GENERATORS[name][1], "max_new_tokens": NEW_TOKENS, "max_input_tokens": 60, "top_k": 4}
        return export_checkpoint(str(generator_checkpoint(name)), folder, int8=dtype == "int8", **given).folder

    return cache(export)
