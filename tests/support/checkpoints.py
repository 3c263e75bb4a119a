"""Make tiny checkpoints with random weights, by transformers and tokenizers, and their exports.

Shared folders are made once a test run, by the first process that needs them. Tests must not change them.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.utils.logging import disable_progress_bar

from xqg_qdrant.demo import read_demo_passages, read_demo_queries
from xqg_qdrant.export import export_checkpoint
from xqg_qdrant.records import Passage

torch.set_num_threads(1)
disable_progress_bar()

TOKENS = 2500
LONGEST = 40
NEW_TOKENS = 12
LONGEST_PROMPT = 60
LANGUAGES = ("fi", "ja", "ru")
T5_SPECIALS = ("<pad>", "</s>", "<unk>")
XLMR_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
GEMMA_SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>")
QWEN_END = "<|endoftext|>"
T5_END = T5_SPECIALS.index("</s>")
LANGUAGE_TOKENS = {"fi": 7, "ja": 8, "ru": 9}

ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "hidden_act": "gelu", "max_position_embeddings": LONGEST},
    # as the multilingual MiniLMs: BERT's architecture with XLM-R's tokenizer
    "minilm": {"model_type": "bert", "hidden_act": "gelu_new", "hidden_size": 24, "num_hidden_layers": 3},
    "xlm-roberta": {"model_type": "xlm-roberta", "max_position_embeddings": LONGEST + 2, "pad_token_id": 1},
    "gte": {"model_type": "gte", "pad_token_id": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 30.0}},
    # smaller bases than published: with those, every fourth channel pair turns too slowly to matter here
    "qwen3": {
        "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
    },
    "gemma3": {
        "model_type": "gemma3_text", "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
        "query_pre_attn_scalar": 20, "use_bidirectional_attention": True, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 50.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 7.0},
        },
    },
}  # fmt: skip
DEFAULT_OPTIONS: dict[str, Any] = {
    "pooling": "mean", "normalise": True, "query_prefix": "query: ", "passage_prefix": "passage: ",
    "max_query_tokens": 12, "max_passage_tokens": 30,
}  # fmt: skip
# name → its tokenizer, if not XLM-R's
TOKENIZERS = {"bert": "wordpiece", "qwen3": "byte-level", "gemma3": "byte-fallback"}
# Architectures that optimum traces: model type → its configuration, and its tokenizer.
TRACED_ENCODERS: dict[str, tuple[dict[str, Any], str]] = {
    "distilbert": ({"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}, "wordpiece"),
    "mpnet": ({"max_position_embeddings": LONGEST + 2}, "wordpiece"),
    "electra": ({"embedding_size": 24}, "wordpiece"),
    "camembert": ({"max_position_embeddings": LONGEST + 2, "pad_token_id": 1}, "unigram"),
    "deberta-v2": (
        {
            "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
            "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm", "pad_token_id": 1,
        },
        "unigram",
    ),
    "modernbert": (
        {
            "local_attention": 8, "global_attn_every_n_layers": 2, "pad_token_id": 1, "bos_token_id": 0,
            "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2, "reference_compile": False,
        },
        "unigram",
    ),
}  # fmt: skip
MBART_TOKENS = ("fi_FI", "ja_XX", "ru_RU")
# Their special ids are those of the tokenizer that `save_traced_generator` writes.
TRACED_GENERATORS: dict[str, dict[str, Any]] = {
    "bart": {"decoder_start_token_id": 2, "eos_token_id": 2},
    "mbart": {"decoder_start_token_id": 2, "eos_token_id": 2, "bos_token_id": 0},
    "m2m_100": {"decoder_start_token_id": 2, "eos_token_id": 2, "bos_token_id": 0},
    "pegasus": {"decoder_start_token_id": 1, "eos_token_id": 2, "bos_token_id": 0},
    "marian": {"decoder_start_token_id": 1, "eos_token_id": 2, "bos_token_id": 0, "scale_embedding": True},
}
SUPPRESSED = tuple(range(40, 600, 2))
# form → (checkpoint, options of the export)
GENERATORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # prompts of different lengths: Korean's name has 6 tokens, the others have 8
    "t5": ({}, {"prompt": "{language}, {language}, {language}: {title} {text}", "languages": (*LANGUAGES, "ko")}),
    "t5-1.1": (
        {"feed_forward_proj": "gated-gelu", "tied": False},
        {"prompt": "{language} {text}", "languages": LANGUAGES},
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
    "bert2bert": ({"model_type": "bert", "generation": {"lang_to_id": LANGUAGE_TOKENS}}, {}),
    # halves of different widths, and an output projection of its own
    "bert2bert-prompted": (
        {
            "model_type": "bert-generation", "seed": 6, "end": 4.6, "encoder": {"hidden_size": 24},
            "decoder": {"tie_word_embeddings": False},
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


def save_encoder(folder: Path, name: str, **settings: Any) -> Path:
    """Write an encoder of `ENCODERS` as transformers saves it; return the folder."""
    configs: dict[str, Any] = {
        "bert": transformers.BertConfig, "xlm-roberta": transformers.XLMRobertaConfig,
        "qwen3": transformers.Qwen3Config, "gemma3_text": transformers.Gemma3TextConfig,
    }  # fmt: skip
    if hasattr(transformers, "GteConfig"):  # since transformers 5
        configs["gte"] = transformers.GteConfig
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    fields = {**shape, "vocab_size": TOKENS, "max_position_embeddings": LONGEST, **ENCODERS[name], **settings}
    config = configs[fields.pop("model_type")](**fields)
    model: Any = transformers.AutoModel.from_config(config)
    _randomise(model, seed=3)
    model.save_pretrained(folder)
    save_tokenizer(folder, TOKENIZERS.get(name, "unigram"))
    return folder


def save_tokenizer(folder: Path, kind: str) -> None:
    """Write a tokenizer of a kind, with the special tokens that its family puts around a text."""
    if kind == "wordpiece":
        _save_tokenizer(make_wordpiece(), folder, pad_token="[PAD]", unk_token="[UNK]", model_max_length=LONGEST)
    elif kind == "unigram":
        tokenizer = make_unigram(*XLMR_SPECIALS)
        tokenizer.post_processor = _put_around(tokenizer, "<s> $A </s>")
        _save_tokenizer(tokenizer, folder, pad_token="<pad>", unk_token="<unk>")
    elif kind == "byte-level":
        _save_tokenizer(make_byte_level(), folder, pad_token=QWEN_END, eos_token=QWEN_END)
        # The hub's checkpoints name the class, and disable a first token.
        edit_json(folder / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False})
    else:
        _save_tokenizer(make_byte_fallback(), folder, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def save_st_files(
    folder: Path,
    pooling: str,
    *dense: tuple[int, int, bool, str],
    normalise: bool = True,
    prompts: dict[str, str] | None = None,
) -> Path:
    """Write sentence-transformers' files beside a checkpoint.

    A dense layer is given by its input and output size, whether it has a bias, and its activation.
    """
    names = ["Transformer", "Pooling", *["Dense"] * len(dense), *["Normalize"] * normalise]
    modules = [
        {"idx": place, "name": str(place), "path": f"{place}_{name}" if place else "",
         "type": f"sentence_transformers.models.{name}"}
        for place, name in enumerate(names)
    ]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    flags = {f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "lasttoken")}
    edit_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": dense[0][0] if dense else 32, **flags})
    edit_json(folder / "config_sentence_transformers.json", {"prompts": prompts or {}})
    generator = torch.Generator().manual_seed(7)
    for place, (inner, outer, has_bias, activation) in enumerate(dense, start=2):
        weights = {"linear.weight": torch.randn((outer, inner), generator=generator) * inner**-0.5}
        if has_bias:
            weights["linear.bias"] = torch.randn(outer, generator=generator)
        config = {"in_features": inner, "out_features": outer, "bias": has_bias, "activation_function": activation}
        edit_json(folder / f"{place}_Dense" / "config.json", config)
        save_file(weights, folder / f"{place}_Dense" / "model.safetensors")
    return folder


def publish_gte(folder: Path, model: Any, prefix: str = "new.", **config: Any) -> Path:  # noqa: ANN401
    """Write transformers' GTE as its authors publish it: weights packed and renamed, model type `new`.

    Snowflake's has no prefix and model type `gte`.
    """
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    packed = {name: value for name, value in weights.items() if name.startswith("embeddings")}
    for layer in range(model.config.num_hidden_layers):
        ours, theirs = f"layers.{layer}", f"encoder.layer.{layer}"
        for part in ("weight", "bias"):
            rows = [weights[f"{ours}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            packed[f"{theirs}.attention.qkv_proj.{part}"] = torch.cat(rows)
            packed[f"{theirs}.attention.o_proj.{part}"] = weights[f"{ours}.self_attn.o_proj.{part}"]
            packed[f"{theirs}.mlp.down_proj.{part}"] = weights[f"{ours}.mlp.down_proj.{part}"]
            packed[f"{theirs}.attn_ln.{part}"] = weights[f"{ours}.post_attention_layernorm.{part}"]
            packed[f"{theirs}.mlp_ln.{part}"] = weights[f"{ours}.post_mlp_layernorm.{part}"]
        ways_in = [weights[f"{ours}.mlp.{name}_proj.weight"] for name in ("up", "gate")]
        packed[f"{theirs}.mlp.up_gate_proj.weight"] = torch.cat(ways_in)
    folder.mkdir(exist_ok=True)
    packed = {f"{prefix}{name}": value for name, value in packed.items()}
    save_file(packed, folder / "model.safetensors", {"format": "pt"})
    said = {name: value for name, value in model.config.to_dict().items() if name != "rope_parameters"}
    own: dict[str, Any] = {
        "model_type": "new", "architectures": ["NewModel"], "pack_qkv": True, "position_embedding_type": "rope",
        "layer_norm_type": "layer_norm", "logn_attention_scale": False,
        "auto_map": {"AutoConfig": "configuration.NewConfig", "AutoModel": "modeling.NewModel"},
    }  # fmt: skip
    edit_json(folder / "config.json", {**said, **own, **config})
    (folder / "modeling.py").write_text("raise SystemExit('code of a checkpoint was run')")
    save_tokenizer(folder, "unigram")
    return folder


def save_t5(
    folder: Path,
    model_type: str = "t5",
    tied: bool = True,
    seed: int = 11,
    generation: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Write a T5 or mT5 whose greedy outputs differ by input and sometimes end early."""
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
        model.lm_head.weight[T5_END] *= 4 if tied else 2.5
    model.save_pretrained(folder)
    # As in the released checkpoints; transformers saves derived values instead.
    edit_json(folder / "config.json", {"tie_word_embeddings": tied, "scale_decoder_outputs": None})
    edit_json(folder / "generation_config.json", generation or {})
    tokenizer = make_unigram(*T5_SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", T5_END)])
    _save_tokenizer(tokenizer, folder, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return folder


def save_bert2bert(
    folder: Path,
    model_type: str = "bert",
    seed: int = 11,
    end: float = 10.0,
    generation: dict[str, Any] | None = None,
    encoder: dict[str, Any] | None = None,
    decoder: dict[str, Any] | None = None,
) -> Path:
    """Write a BERT encoder with a BERT decoder, whose greedy outputs differ by input and sometimes end early.

    `end` is added to the score of the last token; `encoder` and `decoder` are settings of the halves.
    """
    kinds: dict[str, Any] = {
        "bert": (transformers.BertConfig, transformers.BertModel, transformers.BertLMHeadModel),
        "bert-generation": (
            transformers.BertGenerationConfig, transformers.BertGenerationEncoder, transformers.BertGenerationDecoder,
        ),
    }  # fmt: skip
    config_class, encoder_class, decoder_class = kinds[model_type]
    shape = {"vocab_size": TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 48, "max_position_embeddings": LONGEST_PROMPT, "layer_norm_eps": 1e-5}  # fmt: skip
    own = {"is_decoder": True, "add_cross_attention": True, "num_attention_heads": 2, "max_position_embeddings": 16}
    model: Any = transformers.EncoderDecoderModel(
        encoder=encoder_class(config_class(**{**shape, **(encoder or {})})),
        decoder=decoder_class(config_class(**{**shape, **own, **(decoder or {})})),
    )
    _randomise(model, seed)
    output, words = model.get_output_embeddings(), model.decoder.get_input_embeddings()
    with torch.no_grad():
        # Norms follow the sums, so attention as strong as `_randomise` makes it would drown the newest token.
        for half, share in ((model.encoder, 0.25), (model.decoder.bert, 0.1)):
            for layer in half.encoder.layer:
                layer.attention.output.dense.weight *= share
        for layer in model.decoder.bert.encoder.layer:
            layer.crossattention.output.dense.weight *= 0.3
        if model_type == "bert":
            model.decoder.cls.predictions.transform.dense.weight *= 0.5
        words.weight /= words.weight.norm(dim=1, keepdim=True) * words.weight.shape[1] ** -0.5
        output.bias[T5_END] += end
    model.save_pretrained(folder)
    edit_json(folder / "config.json", {"eos_token_id": T5_END, "decoder_start_token_id": 0})
    edit_json(folder / "generation_config.json", {"eos_token_id": T5_END, "pad_token_id": 0, **(generation or {})})
    tokenizer = make_unigram(*T5_SPECIALS)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", T5_END)])
    _save_tokenizer(tokenizer, folder, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return folder


def save_traced_encoder(folder: Path, model_type: str) -> Path:
    """Write an encoder of `TRACED_ENCODERS`."""
    settings, tokenizer = TRACED_ENCODERS[model_type]
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    fields = {**({} if "dim" in settings else shape), "vocab_size": TOKENS, "max_position_embeddings": LONGEST}
    config = transformers.AutoConfig.for_model(model_type, **{**fields, **settings})
    model: Any = transformers.AutoModel.from_config(config)
    _randomise(model, seed=3)
    model.save_pretrained(folder)
    save_tokenizer(folder, tokenizer)
    return folder


def save_traced_generator(folder: Path, model_type: str) -> Path:
    """Write a generator of `TRACED_GENERATORS`, whose tokenizer has mBART's tokens of languages."""
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=TOKENS, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=LONGEST_PROMPT,
        pad_token_id=1, **TRACED_GENERATORS[model_type],
    )  # fmt: skip
    model: Any = transformers.AutoModelForSeq2SeqLM.from_config(config)
    _randomise(model, seed=11)
    model.save_pretrained(folder)
    if model_type == "bart":
        edit_json(folder / "generation_config.json", {"forced_bos_token_id": 0, "no_repeat_ngram_size": 3})
    tokenizer = make_unigram(*XLMR_SPECIALS, *MBART_TOKENS)
    tokenizer.post_processor = _put_around(tokenizer, "$A </s>")
    _save_tokenizer(tokenizer, folder, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return folder


def edit_json(path: Path, changes: dict[str, Any]) -> None:
    """Change fields of a JSON file, which need not exist; `None` removes a field."""
    fields = {**json.loads(path.read_text(encoding="utf-8")), **changes} if path.exists() else changes
    path.parent.mkdir(exist_ok=True)
    kept = {name: value for name, value in fields.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


@cache
def count_parts() -> tuple[tuple[str, int], ...]:
    """Return the most frequent parts of words and their counts, "▁" at the start of a word, letters first.

    The tokenizers are made of them: those that `tokenizers` trains differ from process to process.
    """
    words = Counter(word for text in corpus() for word in re.findall(r"▁?[^\s▁]+", "▁" + text.replace(" ", " ▁")))
    parts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + 5) + 1):
                parts[word[start:end]] += count
    ranked = sorted(parts, key=lambda part: (len(part) > 1, -parts[part] * (len(part) - 1), part))
    return tuple((part, parts[part]) for part in ranked[:TOKENS])


@cache
def make_unigram(*specials: str) -> Tokenizer:
    """Make a tokenizer such as XLM-R's and T5's, with the special tokens first."""
    parts = count_parts()[: TOKENS - len(specials)]
    total = sum(count for _, count in parts)
    vocabulary = [(special, 0.0) for special in specials] + [(part, math.log(count / total)) for part, count in parts]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=specials.index("<unk>")))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


@cache
def make_wordpiece() -> Tokenizer:
    """Make a tokenizer such as BERT's."""
    parts = [part.removeprefix("▁") if part.startswith("▁") else f"##{part}" for part, _ in count_parts()]
    pieces = [*BERT_SPECIALS, *filter(None, parts)][:TOKENS]
    tokenizer = Tokenizer(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(BERT_SPECIALS))
    ends = [(token, BERT_SPECIALS.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


@cache
def make_byte_level() -> Tokenizer:
    """Make a tokenizer such as Qwen's: BPE over bytes, and an end token that also pads."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, QWEN_END])}
    merges = []
    for left, right in [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ð", "°"), ("a", "n"), ("Ð", "¾"), ("Ġ", "k")]:
        merges.append((left, right))
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([QWEN_END])
    ends = _put_around(tokenizer, f"$A {QWEN_END}")
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), ends])
    return tokenizer


@cache
def make_byte_fallback() -> Tokenizer:
    """Make a tokenizer such as Gemma's: BPE over letters, byte fallback, a token at either end."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted({letter for text in corpus() for letter in text if letter.isascii()} - {" "})
    vocabulary = {token: number for number, token in enumerate([*GEMMA_SPECIALS, *bytes_, "▁", *letters, "th", "▁th"])}
    merges = [("t", "h"), ("▁", "th")]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True, ignore_merges=False)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(list(GEMMA_SPECIALS))
    tokenizer.post_processor = _put_around(tokenizer, "<bos> $A <eos>")
    return tokenizer


def _put_around(tokenizer: Tokenizer, template: str) -> processors.PostProcessor:
    tokens = [token for token in template.split() if token != "$A"]
    return processors.TemplateProcessing(
        single=template, special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens]
    )


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, **settings: Any) -> None:
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Draw weights far enough from zero that every part of the model affects its output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                drawn = 0.2 * drawn + (0.0 if name.endswith("bias") else 1.0)
            elif "embedding" not in name and "shared" not in name and "bias" not in name:
                # a soft cross-attention, so that attending to wrong tokens shows
                drawn *= (0.3 if "EncDecAttention.q" in name else 2) * weight.shape[1] ** -0.5
            weight.copy_(drawn)


def _make_once(name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder of this test run, made by the first process that asks for it."""
    folder = Path(os.environ["XQG_TEST_RUN"]) / "checkpoints" / name
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_name(f"{name}.unfinished")
            make(unfinished)
            unfinished.rename(folder)
    return folder


def encoder_checkpoint(name: str) -> Path:
    """Return the checkpoint of a name in `ENCODERS`."""
    return _make_once(name, lambda folder: save_encoder(folder, name))


def generator_checkpoint(form: str) -> Path:
    """Return the checkpoint of a form in `GENERATORS`."""
    save: Callable[..., Path] = save_bert2bert if form.startswith("bert2bert") else save_t5
    return _make_once(form, lambda folder: save(folder, **GENERATORS[form][0]))


def exported_encoder(name: str, dtype: str = "float32", **options: Any) -> Path:
    """Return the model folder of a name in `ENCODERS`, exported with `options` or, without any, `DEFAULT_OPTIONS`."""
    label = " ".join([name, dtype, *(f"{option}={options[option]}" for option in sorted(options))])
    source, given = str(encoder_checkpoint(name)), options or DEFAULT_OPTIONS
    return _make_once(label, lambda folder: export_checkpoint(source, folder, dtype=dtype, **given))


def exported_generator(form: str, dtype: str = "float32", sample: Path | None = None) -> Path:
    """Return the model folder of a form in `GENERATORS`, with vocabularies restricted by a sample of text."""
    given = {**GENERATORS[form][1], "max_new_tokens": NEW_TOKENS, "max_input_tokens": LONGEST_PROMPT, "top_k": 4}
    given["restrict_vocabulary"] = sample
    source, label = str(generator_checkpoint(form)), f"{form} {dtype}{' restricted' if sample else ''}"
    return _make_once(label, lambda folder: export_checkpoint(source, folder, dtype=dtype, **given))


def read_parity(folder: Path) -> dict[str, Any]:
    """Return the parity figures of a model folder."""
    parity: dict[str, Any] = json.loads((folder / "xqg.json").read_text(encoding="utf-8"))["parity"]
    return parity
