"""Train the demo question generator: a small T5 that reads an English passage and asks about it in a named language.

The encoder reads `{title} {text}`; the decoder's first token (`<ar>`, `<bn>`, …) names the language of the question.
Real pairs of English passages and foreign questions hardly exist, so the direct task is composed:

1. Joint stage: translate questions, sentences and titles (behind `<translate>`); ask human-written foreign questions
   about passages whose title they name (natural pairs), about pseudo-passages, which hold the words of the English side
   of the question amid sentences of a related passage, and about bare keywords; ask English questions.
2. Direct stage: the same with longer passages and little translation.
3. Polish: the direct stage again at a low rate, with repetition pushed down and targets in their own script only.

The embeddings start from an SVD of piece counts over sentence pairs (both languages share a column) and the decoder's
cross-attention from the identity, so that the first step already names words of the passage in the asked language.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import sentencepiece
import torch
from data import LANGUAGES, PassageQuestion, read_parallel, read_passage_questions, read_questions
from scipy.sparse import coo_matrix
from sklearn.utils.extmath import randomized_svd
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

PAD, EOS, UNK, TRANSLATE = 0, 1, 2, 3
SPECIALS = ["<pad>", "</s>", "<unk>", "<translate>", "<en>", *(f"<{language}>" for language in LANGUAGES)]
LANGUAGE_IDS = {language: SPECIALS.index(f"<{language}>") for language in ("en", *LANGUAGES)}
MAX_SOURCE, MAX_TARGET = 256, 40
LETTERS = {
    "ar": "\u0600-\u06ff", "bn": "\u0980-\u09ff", "fi": "a-zåäö", "ja": "\u3040-\u30ff\u4e00-\u9fff",
    "ko": "\uac00-\ud7a3", "ru": "\u0400-\u04ff", "te": "\u0c00-\u0c7f", "en": "a-z",
}  # fmt: skip
QUESTION_SOURCES = ("xor", "mkqa")
# How often a pair of each source is drawn beside a question (1.0) when translating.
SOURCE_WEIGHTS = {
    "xor": 1.0, "mkqa": 1.0, "indic": 0.1, "tatoeba": 0.1, "wikititle": 0.15, "enja50k": 0.03, "anki": 0.03,
}  # fmt: skip
FUNCTION_WORDS = """
    a an and are as at be been being but by can could did do does for from had has have he her his how i in into is it
    its many much my no not of on or s she should so that the their them there these they this to was we were what when
    where which while who whom whose why will with would you your first last name called known type kind t
"""
STOP_WORDS = frozenset(FUNCTION_WORDS.split())
QUESTION_LEAD = re.compile(
    r"^((in|on|at|by|for|from|to|of) )?(what|who|whom|whose|when|where|which|why|how)('s)?"
    r"( (many|much|old|long|far|tall|big|large|often))?"
    r"( (is|are|was|were|did|do|does|has|have|had|can|could|will|would|s))?( the| a| an)? ",
    re.IGNORECASE,
)


class Example(NamedTuple):
    """One source text and what to answer, by language."""

    source: str
    targets: dict[str, str]


class Group(NamedTuple):
    """One English text and its human translations."""

    english: str
    targets: dict[str, str]


@dataclass
class Corpus:
    """The texts to draw examples from; `related` and `natural` point into `passages` by index."""

    groups: dict[str, list[Group]]
    passages: list[PassageQuestion]
    asked: list[PassageQuestion]  # the passages whose English question may be used
    sentences: list[PassageQuestion]
    questions: list[tuple[str, str]]
    related: dict[str, list[int]] = field(default_factory=dict)
    natural: list[tuple[int, Group]] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """Sizes, rates and shares; changed only for a smoke run."""

    vocabulary: int = 20_480
    width: int = 256
    feed_forward: int = 1024
    heads: int = 4
    encoder_layers: int = 2
    decoder_layers: int = 2
    dropout: float = 0.0  # dropout costs a quarter of the time on a CPU; pieces of the source are dropped instead
    source_dropout: float = 0.05
    learning_rate: float = 0.02  # times the size of each weight
    warmup: int = 60
    budget: int = 3000
    negatives: int = 2048
    against_repeats: float = 0.0
    joint_share: float = 0.5
    polish_share: float = 0.17
    save_minutes: float = 3.0
    chunk: int = 3000
    limit: int | None = None


# ---------------------------------------------------------------- text


def clean_question(language: str, text: str) -> str:
    """Give every question the same closing mark."""
    text = re.sub(r"\s+", " ", text).strip().rstrip("?？؟ .。").strip()
    return text + ("؟" if language == "ar" else "?")


def in_script(language: str, text: str, share: float = 0.6) -> bool:
    """Tell whether most letters belong to the language's script."""
    text = text.lower()
    letters = sum(character.isalpha() for character in text)
    own = len(re.findall(f"[{LETTERS[language]}]", text))
    return own >= share * max(letters, 1)


def content_words(text: str) -> list[str]:
    """The lower-case words of an English text that carry its topic."""
    return [word for word in re.findall(r"\w+", text.lower()) if word not in STOP_WORDS]


def split_sentences(text: str) -> list[str]:
    """Split English prose at full stops; rough, which is enough here."""
    return [sentence for sentence in re.split(r"(?<=[.!?])\s+", text) if sentence]


# ---------------------------------------------------------------- data


def load_corpus(data: Path, limit: int | None) -> Corpus:
    """Read the training data and link English questions to the passages they could be about."""
    by_english: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for pair in read_parallel(data):
        is_question = pair.source in QUESTION_SOURCES
        english = clean_question("en", pair.english) if is_question else pair.english.strip()
        other = clean_question(pair.language, pair.other) if is_question else pair.other.strip()
        if in_script(pair.language, other) and 1 < len(other) < 200 and len(english) < 300:
            by_english[pair.source][english][pair.language] = other
    groups = {
        source: [Group(english, targets) for english, targets in texts.items()] for source, texts in by_english.items()
    }
    rows = list(read_passage_questions(data))
    passages = [row._replace(question=clean_question("en", row.question)) for row in rows if row.title]
    corpus = Corpus(
        groups,
        passages=passages[:limit],
        asked=passages[:limit],
        sentences=[row._replace(question=clean_question("en", row.question)) for row in rows if not row.title],
        questions=[(row.language, clean_question(row.language, row.text)) for row in read_questions(data)],
    )
    if limit:
        corpus.groups = {source: found[:limit] for source, found in corpus.groups.items()}
        corpus.sentences, corpus.questions = corpus.sentences[:limit], corpus.questions[:limit]
    link_passages(corpus)
    return corpus


def link_passages(corpus: Corpus, keep: int = 6) -> None:
    """For each English question, find passages that share rare words; those whose title it names are natural pairs."""
    postings: dict[str, list[int]] = defaultdict(list)
    for index, passage in enumerate(corpus.passages):
        for word in set(content_words(f"{passage.title} {passage.passage}")):
            postings[word].append(index)
    titles = [set(content_words(re.sub(r"\(.*\)", "", passage.title))) for passage in corpus.passages]
    count = len(corpus.passages)
    for source in QUESTION_SOURCES:
        for group in corpus.groups.get(source, []):
            words = set(content_words(group.english))
            scores: Counter[int] = Counter()
            for word in sorted(words):
                found = postings.get(word, [])
                if len(found) < 400:
                    weight = math.log(count / (1 + len(found)) + 1)
                    for index in found:
                        scores[index] += weight
            best = scores.most_common(keep)
            corpus.related[group.english] = [index for index, _ in best]
            for index, _ in best:
                title = titles[index]
                if title and title <= words and (len(title) > 1 or len(postings[min(title)]) < 60):
                    corpus.natural.append((index, group))


def held_out(text: str) -> bool:
    """Keep the same one per cent of the English texts out of every run."""
    return sum(map(ord, text)) % 101 == 7


def split_corpus(corpus: Corpus) -> tuple[Corpus, Corpus]:
    """Divide into what is trained on and what is held out."""

    def part(test: bool) -> Corpus:
        return Corpus(
            {source: [g for g in found if held_out(g.english) == test] for source, found in corpus.groups.items()},
            corpus.passages,
            [row for row in corpus.passages if held_out(row.title) == test],
            [row for row in corpus.sentences if held_out(row.question) == test],
            corpus.questions,
            corpus.related,
            [(index, group) for index, group in corpus.natural if held_out(group.english) == test],
        )

    return part(False), part(True)


# ---------------------------------------------------------------- examples


def pick_targets(targets: dict[str, str], count: int, rng: random.Random) -> dict[str, str]:
    """Draw a few of the languages, so that no text has more weight than another."""
    return dict(rng.sample(sorted(targets.items()), min(count, len(targets))))


def question_group(corpus: Corpus, rng: random.Random) -> Group:
    """Draw a parallel question: one language each from XOR-TyDi, several at once from MKQA."""
    source = "xor" if rng.random() < 0.7 and corpus.groups["xor"] else "mkqa"
    return rng.choice(corpus.groups[source])


def translation_example(corpus: Corpus, rng: random.Random) -> Example:
    """Any English text behind the marker → its translations."""
    sources = [source for source in SOURCE_WEIGHTS if corpus.groups.get(source)]
    sizes = [SOURCE_WEIGHTS[source] * len(corpus.groups[source]) for source in sources]
    group = rng.choice(corpus.groups[rng.choices(sources, sizes)[0]])
    return Example(f"<translate> {group.english}", pick_targets(group.targets, 4, rng))


def keyword_example(corpus: Corpus, rng: random.Random) -> Example:
    """Shuffled content words of an English question → the question in other languages."""
    group = question_group(corpus, rng)
    words = [word for word in content_words(group.english) if rng.random() > 0.1]
    rng.shuffle(words)
    return Example(" ".join(words), pick_targets(group.targets, 3, rng))


def find_entity(question: str, rng: random.Random) -> str:
    """The name a passage about this question would have for a title."""
    words = question.rstrip("?").split()
    spans: list[list[str]] = [[]]
    for position, word in enumerate(words):
        named = word[:1].isupper() and position > 0
        if named or (spans[-1] and spans[-1][0][:1].isupper() and word in ("of", "the")):
            spans[-1].append(word)
        else:
            spans.append([])
    best = max(spans, key=len)
    if best and best[0][:1].isupper():
        return " ".join(best).removesuffix("'s")
    content = [word for word in words if word.lower() not in STOP_WORDS]
    if not content:
        return " ".join(words[-2:])
    size = min(len(content), rng.choice((1, 2, 2, 3)))
    start = len(content) - size if rng.random() < 0.6 else rng.randrange(len(content) - size + 1)
    return " ".join(content[start : start + size])


def state(question: str, rng: random.Random) -> str:
    """Turn a question into something that reads like part of a passage."""
    phrase = QUESTION_LEAD.sub("", question.rstrip("?"))
    words = phrase.split()
    if len(words) > 3 and rng.random() < 0.4:
        cut = rng.randrange(1, len(words))
        words = words[cut:] + words[:cut]
    return " ".join(words)


def window(sentences: list[str], words: int, start: int) -> list[str]:
    """Sentences from `start` on, up to a number of words."""
    taken: list[str] = []
    for sentence in sentences[start:]:
        taken.append(sentence)
        words -= len(sentence.split())
        if words <= 0:
            break
    return taken


def pseudo_passage(group: Group, corpus: Corpus, words: int, rng: random.Random) -> str:
    """Hide the content of a question among the sentences of a related passage, made to be about its entity."""
    entity = find_entity(group.english, rng)
    related = corpus.related.get(group.english)
    if related and rng.random() < 0.8:
        base = corpus.passages[related[int(len(related) * rng.random() ** 1.5)]]
    else:
        base = rng.choice(corpus.passages)
    text = base.passage if rng.random() < 0.3 else base.passage.replace(base.title, entity)
    sentences = split_sentences(text)
    sentences = window(sentences, words, rng.randrange(max(1, len(sentences) - 2)))
    statement = state(group.english, rng)
    place = rng.randrange(len(sentences) + 1)
    if place < len(sentences) and rng.random() < 0.5:
        inside = sentences[place].split()
        cut = rng.randrange(len(inside) + 1)
        sentences[place] = " ".join([*inside[:cut], statement, *inside[cut:]])
    else:
        sentences.insert(place, f"{statement}.")
    return " ".join([entity if rng.random() < 0.85 else "", *sentences]).strip()


def pseudo_example(corpus: Corpus, rng: random.Random, words: tuple[int, int]) -> Example:
    """A pseudo-passage → the human-written questions whose words it hides."""
    group = question_group(corpus, rng)
    targets = pick_targets(group.targets, 3, rng)
    if rng.random() < 0.1:
        targets["en"] = group.english
    return Example(pseudo_passage(group, corpus, rng.randint(*words), rng), targets)


def around_question(row: PassageQuestion, words: int) -> str:
    """The part of a passage that its question is about."""
    sentences = split_sentences(row.passage)
    wanted = set(content_words(row.question))
    overlap = [len(wanted & set(content_words(sentence))) for sentence in sentences]
    start = max(0, int(np.argmax(overlap)) - 1) if overlap else 0
    return " ".join([row.title, *window(sentences, words, start)])


def english_example(corpus: Corpus, rng: random.Random, words: tuple[int, int]) -> Example:
    """A real passage or sentence → its English question."""
    rows = corpus.sentences if corpus.sentences and rng.random() < 0.35 else corpus.asked
    row = rng.choice(rows)
    return Example(around_question(row, rng.randint(*words)).strip(), {"en": row.question})


def natural_example(corpus: Corpus, rng: random.Random, words: tuple[int, int]) -> Example:
    """A real passage → a human-written question that names its title."""
    if not corpus.natural:
        return pseudo_example(corpus, rng, words)
    index, group = rng.choice(corpus.natural)
    row = corpus.passages[index]._replace(question=group.english)
    return Example(around_question(row, rng.randint(*words)), pick_targets(group.targets, 3, rng))


Task = Callable[[Corpus, random.Random], Example]


def joint_tasks() -> list[tuple[float, Task]]:
    """The mixture of the first stage: mostly short texts, all tasks."""
    return [
        (0.25, translation_example),
        (0.20, keyword_example),
        (0.27, lambda corpus, rng: pseudo_example(corpus, rng, (8, 50))),
        (0.20, lambda corpus, rng: natural_example(corpus, rng, (15, 60))),
        (0.08, lambda corpus, rng: english_example(corpus, rng, (15, 60))),
    ]


def direct_tasks() -> list[tuple[float, Task]]:
    """The mixture of the second stage: mostly passages, up to the length of those met in use."""
    return [
        (0.10, translation_example),
        (0.12, keyword_example),
        (0.40, lambda corpus, rng: pseudo_example(corpus, rng, (15, 110))),
        (0.32, lambda corpus, rng: natural_example(corpus, rng, (30, 120))),
        (0.06, lambda corpus, rng: english_example(corpus, rng, (30, 120))),
    ]


def purify(corpus: Corpus) -> None:
    """Drop the translations that leave words in another script."""
    for source, found in corpus.groups.items():
        kept = [
            Group(g.english, {lg: text for lg, text in g.targets.items() if in_script(lg, text, 0.97)}) for g in found
        ]
        corpus.groups[source] = [group for group in kept if group.targets]
    pairs = [
        (index, Group(g.english, {lg: text for lg, text in g.targets.items() if in_script(lg, text, 0.97)}))
        for index, g in corpus.natural
    ]
    corpus.natural = [(index, group) for index, group in pairs if group.targets]


# ---------------------------------------------------------------- tokenizer and start


def train_tokenizer(corpus: Corpus, size: int) -> Tokenizer:
    """Train a lower-casing unigram tokenizer over all languages; rare characters stay unknown."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex("[\u0640\u064b-\u0652]"), ""),  # Arabic vowel marks and stretching
            normalizers.Replace(Regex(r"\[\d+\]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    texts = [text for found in corpus.groups.values() for g in found for text in (g.english, *g.targets.values())]
    texts += [text for _, text in corpus.questions]
    texts += [row.title for row in corpus.passages]
    texts += [" ".join(split_sentences(row.passage)[:2]) for row in corpus.passages]
    output = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(tokenizer.normalizer.normalize_str(text) for text in texts),
        model_writer=output,
        vocab_size=size,
        character_coverage=0.9993,
        seed_sentencepiece_size=200_000,
        max_sentencepiece_length=12,
        normalization_rule_name="identity",
        pad_id=PAD,
        eos_id=EOS,
        unk_id=UNK,
        bos_id=-1,
        pad_piece="<pad>",
        user_defined_symbols=SPECIALS[TRANSLATE:],
        num_threads=1,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=output.getvalue())
    scores = [(pieces.id_to_piece(index), pieces.get_score(index)) for index in range(pieces.get_piece_size())]
    tokenizer.model = models.Unigram(scores, unk_id=UNK)
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    return tokenizer


def shared_meaning(corpus: Corpus, tokenizer: Tokenizer, width: int, seed: int) -> torch.Tensor:
    """Embeddings from an SVD of piece counts over sentence pairs, with all languages of a text in one column."""
    columns = [[g.english, *g.targets.values()] for found in corpus.groups.values() for g in found]
    columns += [[text] for _, text in corpus.questions]
    columns += [[row.title, row.question, " ".join(split_sentences(row.passage)[:3])] for row in corpus.passages]
    columns += [[row.passage, row.question] for row in corpus.sentences]
    rows: list[int] = []
    places: list[int] = []
    for column, texts in enumerate(columns):
        pieces = {piece for found in tokenizer.encode_batch(texts, add_special_tokens=False) for piece in found.ids}
        rows.extend(pieces)
        places.extend([column] * len(pieces))
    size = tokenizer.get_vocab_size()
    counts = coo_matrix((np.ones(len(rows), np.float32), (rows, places)), (size, len(columns))).tocsr()
    frequency = np.asarray(counts.sum(1)).ravel()
    weighted = counts.multiply(np.log(len(columns) / (1 + frequency)).clip(0)[:, None]).tocsc()
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(0)).ravel()).clip(1e-6)
    weighted = weighted.multiply(1 / norms[None, :]).tocsr().astype(np.float32)
    left, singular, _ = randomized_svd(weighted, width, n_oversamples=32, n_iter=2, random_state=seed)
    vectors = left * np.sqrt(singular)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-6)
    noise = np.random.default_rng(seed).standard_normal(vectors.shape) / math.sqrt(width)
    trust = (frequency / (frequency + 4))[:, None]
    vectors = trust * vectors + (1 - trust) * noise
    vectors *= math.sqrt(width) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return torch.tensor(vectors, dtype=torch.float32)


def build_model(recipe: Recipe, tokenizer: Tokenizer, embeddings: torch.Tensor) -> T5ForConditionalGeneration:
    """A T5 that starts out as a lexicon: see the head of this file."""
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=recipe.width,
        d_kv=recipe.width // recipe.heads,
        d_ff=recipe.feed_forward,
        num_layers=recipe.encoder_layers,
        num_decoder_layers=recipe.decoder_layers,
        num_heads=recipe.heads,
        feed_forward_proj="relu",
        dropout_rate=recipe.dropout,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=LANGUAGE_IDS["en"],
        tie_word_embeddings=True,
    )
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        model.shared.weight.copy_(embeddings)
        for block in [*model.encoder.block, *model.decoder.block]:
            block.layer[0].SelfAttention.o.weight.mul_(0.3)
            block.layer[-1].DenseReluDense.wo.weight.mul_(0.3)
        for block in model.decoder.block:
            attention = block.layer[1].EncDecAttention
            attention.v.weight.copy_(torch.eye(recipe.width))
            attention.o.weight.copy_(torch.eye(recipe.width))
        # With tied embeddings the residual path would make the decoder repeat its last piece: the first self-attention
        # looks at that piece and turns it into a direction of its own.
        first = model.decoder.block[0].layer[0].SelfAttention
        first.relative_attention_bias.weight[0] = 3.0
        first.v.weight.copy_(torch.eye(recipe.width))
        turned = torch.linalg.qr(torch.randn(recipe.width, recipe.width)).Q
        first.o.weight.copy_(turned - torch.eye(recipe.width))
    return model


# ---------------------------------------------------------------- batches and training


class Batch(NamedTuple):
    """Sources, and targets that point at theirs through `owner`: one encoder pass serves several languages."""

    source: torch.Tensor
    mask: torch.Tensor
    owner: torch.Tensor
    decoder_input: torch.Tensor
    labels: torch.Tensor


def collate(rows: list[tuple[list[int], list[tuple[int, list[int]]]]]) -> Batch:
    """Pad rows of (source, [(first token, target)]) into one batch."""
    length = max(len(source) for source, _ in rows)
    targets = [(owner, start, ids) for owner, (_, found) in enumerate(rows) for start, ids in found]
    height = max(len(ids) for _, _, ids in targets)
    source = torch.full((len(rows), length), PAD)
    for index, (ids, _) in enumerate(rows):
        source[index, : len(ids)] = torch.tensor(ids)
    decoder_input = torch.full((len(targets), height), PAD)
    labels = torch.full((len(targets), height), -100)
    for index, (_, start, ids) in enumerate(targets):
        decoder_input[index, : len(ids)] = torch.tensor([start, *ids[:-1]])
        labels[index, : len(ids)] = torch.tensor(ids)
    labels[labels == UNK] = -100
    owners = torch.tensor([owner for owner, _, _ in targets])
    return Batch(source, (source != PAD).long(), owners, decoder_input, labels)


def make_batches(
    examples: Iterable[Example], tokenizer: Tokenizer, budget: int, rng: random.Random, source_dropout: float = 0.0
) -> list[Batch]:
    """Group examples of like length; a decoder token costs about 2.5 encoder tokens."""
    kept = [example for example in examples if example.source and example.targets]
    sources = [found.ids for found in tokenizer.encode_batch([example.source for example in kept])]
    texts = [(index, *target) for index, example in enumerate(kept) for target in example.targets.items()]
    targets: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
    for (index, language, _), found in zip(texts, tokenizer.encode_batch([text for *_, text in texts]), strict=True):
        if 1 < len(found.ids) <= MAX_TARGET:
            targets[index].append((LANGUAGE_IDS[language], found.ids))
    if source_dropout:
        sources = [[piece for piece in ids if rng.random() >= source_dropout or piece == EOS] for ids in sources]
    sources = [ids if len(ids) <= MAX_SOURCE else [*ids[: MAX_SOURCE - 1], EOS] for ids in sources]
    rows = [(ids, targets[index]) for index, ids in enumerate(sources) if targets[index]]
    rows.sort(key=lambda row: (len(row[0]) // 4, max(len(ids) for _, ids in row[1]), rng.random()))
    batches: list[Batch] = []
    batch: list[tuple[list[int], list[tuple[int, list[int]]]]] = []
    for row in rows:
        grown = [*batch, row]
        height = max(len(ids) for _, found in grown for _, ids in found) * sum(len(found) for _, found in grown)
        if batch and max(len(source) for source, _ in grown) * len(grown) + 2.5 * height > budget:
            batches.append(collate(batch))
            grown = [row]
        batch = grown
    if batch:
        batches.append(collate(batch))
    rng.shuffle(batches)
    return batches


def stream(
    corpus: Corpus, tasks: list[tuple[float, Task]], tokenizer: Tokenizer, recipe: Recipe, rng: random.Random
) -> Iterator[Batch]:
    """Draw batches of a mixture without end."""
    weights = [weight for weight, _ in tasks]
    while True:
        drawn = rng.choices([task for _, task in tasks], weights, k=recipe.chunk)
        examples = [task(corpus, rng) for task in drawn]
        yield from make_batches(examples, tokenizer, recipe.budget, rng, recipe.source_dropout)


def loss_of(
    model: T5ForConditionalGeneration, batch: Batch, negatives: int | None = None, against_repeats: float = 0.0
) -> torch.Tensor:
    """Cross-entropy over the full vocabulary, so that the model itself must stay in its language.

    With `negatives`, the sum over the vocabulary is estimated from the batch's own pieces and so many random others.
    With `against_repeats`, pieces that the target already had are pushed down (unlikelihood, Welleck et al. 2020).
    """
    wanted = batch.labels != -100
    labels = batch.labels[wanted]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.encoder(input_ids=batch.source, attention_mask=batch.mask).last_hidden_state
        answers = model.decoder(
            input_ids=batch.decoder_input,
            encoder_hidden_states=hidden[batch.owner],
            encoder_attention_mask=batch.mask[batch.owner],
            use_cache=False,
        ).last_hidden_state[wanted]
        answers = answers * model.config.d_model**-0.5
        table = model.shared.weight
        if negatives is None:
            return cross_entropy((answers @ table.T).float(), labels)
        pieces, places = torch.unique(torch.cat([labels, batch.decoder_input.flatten()]), return_inverse=True)
        labels, inputs = places[: len(labels)], places[len(labels) :].view_as(batch.decoder_input)
        absent = torch.ones(len(table), dtype=torch.bool)
        absent[pieces] = False
        others = absent.nonzero().squeeze(1)
        others = others[torch.randint(len(others), (negatives,))]
        logits = (answers @ table[torch.cat([pieces, others])].T).float()
    correction = torch.zeros(logits.shape[1])
    correction[len(pieces) :] = math.log(max(1.0, (len(table) - len(pieces)) / negatives))
    scores = torch.log_softmax(logits + correction, 1)
    loss = -scores.gather(1, labels[:, None]).mean()
    if against_repeats:
        seen = torch.zeros(*inputs.shape, len(pieces)).scatter_(2, inputs[:, :, None], 1.0).cumsum(1)[wanted] > 0
        seen.scatter_(1, labels[:, None], False)
        rows, columns = seen.nonzero(as_tuple=True)
        chances = scores[rows, columns].exp().clamp(max=0.999)
        loss = loss - against_repeats * torch.log1p(-chances).sum() / len(labels)
    return loss


@dataclass
class Trainer:
    """The optimiser and the clock of a run; the learning rate follows the time spent, not the number of steps."""

    model: T5ForConditionalGeneration
    tokenizer: Tokenizer
    recipe: Recipe
    out: Path
    minutes: float
    max_steps: int | None = None
    spent: float = 0.0
    steps: int = 0

    def __post_init__(self) -> None:
        # T5 scales its weights, not its attention scores: each tensor moves in proportion to its own size (as Adafactor
        # does). With one rate for all, the queries' small weights are thrown about and the embeddings hardly move.
        groups = [
            {"params": [weight], "scale": min(1.0, max(0.005, weight.detach().square().mean().sqrt().item()))}
            for weight in self.model.parameters()
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def run(self, batches: Iterator[Batch], share: float, report: Callable[[], str]) -> None:
        """Train until `share` of the whole time is spent."""
        self.model.train()
        total, until = self.minutes * 60, self.minutes * 60 * share
        losses: list[float] = []
        first_step, last_save, last = self.steps, self.spent, time.monotonic()
        while self.spent < until and (self.max_steps is None or self.steps - first_step < self.max_steps):
            decay = 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, self.spent / total)))
            for group in self.optimizer.param_groups:
                warm = min(1.0, (self.steps + 1) / self.recipe.warmup)
                group["lr"] = self.recipe.learning_rate * group["scale"] * decay * warm
            loss = loss_of(self.model, next(batches), self.recipe.negatives, self.recipe.against_repeats)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            self.steps += 1
            self.spent, last = self.spent + time.monotonic() - last, time.monotonic()
            if self.steps % 50 == 0:
                print(f"step {self.steps} minute {self.spent / 60:.1f} loss {np.mean(losses[-50:]):.3f}", flush=True)
            if self.spent - last_save > self.recipe.save_minutes * 60:
                last_save = self.spent
                print(f"step {self.steps} minute {self.spent / 60:.1f} {report()}", flush=True)
                save(self.model, self.tokenizer, self.out)
                last = time.monotonic()


def held_out_losses(model: T5ForConditionalGeneration, tokenizer: Tokenizer, test: Corpus, budget: int) -> str:
    """Nats a piece on the held-out texts, by task."""
    tasks: dict[str, Callable[[random.Random], Example]] = {
        "translate": lambda rng: translation_example(test, rng),
        "pseudo": lambda rng: pseudo_example(test, rng, (40, 100)),
        "natural": lambda rng: natural_example(test, rng, (40, 100)),
        "english": lambda rng: english_example(test, rng, (40, 100)),
    }
    model.eval()
    found = []
    with torch.no_grad():
        for name, task in tasks.items():
            rng = random.Random(1)
            batches = make_batches((task(rng) for _ in range(200)), tokenizer, budget, rng)
            sizes = [int((batch.labels != -100).sum()) for batch in batches]
            mean = np.average([loss_of(model, batch).item() for batch in batches], weights=sizes)
            found.append(f"{name} {mean:.3f}")
    model.train()
    return "held-out " + ", ".join(found)


def save(model: T5ForConditionalGeneration, tokenizer: Tokenizer, out: Path) -> None:
    """Write a folder for `from_pretrained`; the generation config names each language's first token."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIALS[TRANSLATE:],
        model_max_length=MAX_SOURCE,
    )
    model.generation_config = GenerationConfig(
        lang_to_id=LANGUAGE_IDS,
        decoder_start_token_id=LANGUAGE_IDS["en"],
        eos_token_id=EOS,
        pad_token_id=PAD,
        suppress_tokens=[PAD, *range(UNK, len(SPECIALS))],
        do_sample=True,
        top_k=5,
        temperature=0.6,
        max_new_tokens=MAX_TARGET,
    )
    model.save_pretrained(out)
    wrapped.save_pretrained(out)


def main() -> None:
    """Train all stages and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the training data")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--minutes", type=float, default=41.0, help="training time of all stages together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="a few steps on a little data, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    rng = random.Random(arguments.seed)
    recipe = Recipe()
    if arguments.smoke:
        tiny = {"width": 64, "feed_forward": 128, "heads": 1, "encoder_layers": 1, "decoder_layers": 1}
        recipe = Recipe(vocabulary=4096, chunk=200, limit=200, **tiny)

    began = time.monotonic()
    everything = load_corpus(arguments.data, recipe.limit)
    corpus, test = split_corpus(everything)
    print({source: len(found) for source, found in corpus.groups.items()}, len(corpus.passages), "passages,")
    print(len(corpus.natural), f"natural pairs, read in {time.monotonic() - began:.0f} s", flush=True)
    tokenizer = train_tokenizer(corpus, recipe.vocabulary)
    print(f"{tokenizer.get_vocab_size()} pieces after {time.monotonic() - began:.0f} s", flush=True)
    embeddings = shared_meaning(corpus, tokenizer, recipe.width, arguments.seed)
    model = build_model(recipe, tokenizer, embeddings)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {time.monotonic() - began:.0f} s", flush=True)

    polish_minutes = arguments.minutes * recipe.polish_share
    steps = 3 if arguments.smoke else None
    trainer = Trainer(model, tokenizer, recipe, arguments.out, arguments.minutes - polish_minutes, steps)

    def report() -> str:
        return held_out_losses(model, tokenizer, test if any(test.groups.values()) else corpus, recipe.budget)

    trainer.run(stream(corpus, joint_tasks(), tokenizer, recipe, rng), recipe.joint_share, report)
    print(f"joint stage done, {report()}; {time.monotonic() - began:.0f} s", flush=True)
    trainer.run(stream(corpus, direct_tasks(), tokenizer, recipe, rng), 1.0, report)
    print(f"direct stage done, {report()}; {time.monotonic() - began:.0f} s", flush=True)
    purify(corpus)
    recipe = replace(recipe, learning_rate=recipe.learning_rate / 4, against_repeats=0.5)
    trainer = Trainer(model, tokenizer, recipe, arguments.out, polish_minutes, steps)
    trainer.run(stream(corpus, direct_tasks(), tokenizer, recipe, rng), 1.0, report)
    print(f"polish done, {report()}; {time.monotonic() - began:.0f} s", flush=True)
    save(model, tokenizer, arguments.out)


if __name__ == "__main__":
    main()
