"""Generate queries for passages in several languages with an ONNX model.

`seq2seq` runs xqg's own graphs, `optimum_decoder` those of optimum, and `decoding` the loop over tokens.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xqg_qdrant.errors import InputError
from xqg_qdrant.generation import FAST, SLOW, Generation
from xqg_qdrant.generation.checks import check_queries
from xqg_qdrant.inference import GENERATOR, Reading
from xqg_qdrant.inference.batching import BATCH_BYTES, Budget, cut_prompts
from xqg_qdrant.inference.decoding import Noise, decode, gumbel_noise
from xqg_qdrant.inference.optimum_decoder import ForeignDecoder
from xqg_qdrant.inference.seq2seq import Decoder
from xqg_qdrant.inference.session import AUTO, find_devices, join_devices
from xqg_qdrant.inference.tokenizer import (
    ReadCount,
    count_readable_ids,
    encode_ids,
    open_tokenizer,
    replace_unreadable,
    unknown_id,
)
from xqg_qdrant.languages import LANGUAGES
from xqg_qdrant.model_folders import DEMO_GENERATOR, read_model_folder, shipped_model
from xqg_qdrant.model_folders.description import (
    DECODER_PREFIX,
    FULL_VOCABULARY,
    RESTRICTED_VOCABULARY,
    TOKENIZER_FILE,
    VOCABULARIES,
    find_graph,
    is_foreign,
)
from xqg_qdrant.records import GeneratedQuery, Passage
from xqg_qdrant.text import show


class Sampling(NamedTuple):
    """How queries are sampled.

    Attributes:
        top_k: the number of best tokens to draw from; 1 is greedy.
        temperature: divides the logits.
        max_new_tokens: the longest query, in tokens.
        vocabulary: `full`, or `restricted` to the tokens of the query's language, which the model folder must hold.
    """

    top_k: int
    temperature: float
    max_new_tokens: int
    vocabulary: str = FULL_VOCABULARY


class _Group(NamedTuple):
    """A prompt, as ids, and the rows written from it."""

    prompt: list[int]
    rows: range


class QueryGenerator:
    """A model such as T5 that writes questions about passages in given languages.

    Prompts of about the same length share a run, with all their languages and samples. Each query has its own noise,
    derived from the seed, the passage id, the language and the query's number. So on a CPU a passage gets bit-identical
    queries whatever else is ingested with it, in any order or batch. Several threads may use one generator.
    """

    concurrency = 0
    journal = None

    def __init__(self, folder: str | Path | None = None, device: str = "auto", threads: int = 1) -> None:
        """Load a model folder of kind `generator`, or the demo generator that ships.

        Args:
            folder: the layout of `xqg export` or optimum.
            device: `cpu`, `cuda` (all GPUs), `cuda:N` or `auto`; the GPU choices fail if CUDA does not run.
            threads: CPU threads for one call; 0 takes every core. An ingest calls it from one thread per core.

        Raises:
            ModelError: the folder or the device cannot be used.
        """
        folder = Path(folder) if folder is not None else shipped_model(DEMO_GENERATOR)
        self.folder = read_model_folder(folder, "generator")
        about = self.folder.description
        self.graph = find_graph(about)
        self._prompt: str = about["prompt"]
        self._max_input_tokens: int = about["max_input_tokens"]
        self._language_tokens: dict[str, int] = about["language_tokens"]
        self._start_id: int = about["decoder_start_id"]
        self._end_id: int = about["end_id"]
        self.languages: tuple[str, ...] = tuple(about["languages"])
        self.restricted_languages: tuple[str, ...] = tuple(about["restricted_languages"])
        self.sampling = Sampling(**about["sampling"])
        self.max_output_tokens: int = about["max_output_tokens"]
        self._prompts_read = ReadCount(GENERATOR, "prompt", self._max_input_tokens)
        self._tokenizer = open_tokenizer(folder / TOKENIZER_FILE, self._max_input_tokens)
        self.vocabulary_size = self._tokenizer.get_vocab_size()
        open_decoder: Callable[..., Decoder | ForeignDecoder] = ForeignDecoder if is_foreign(about) else Decoder
        with ThreadPoolExecutor() as pool:
            opened = [
                pool.submit(open_decoder, self.folder, name, threads, device == AUTO) for name in find_devices(device)
            ]
        self._decoders = [decoder.result() for decoder in opened]
        self._readable = count_readable_ids(self._tokenizer, self._decoders[0].read)
        self._unknown = -1 if self._readable is None else unknown_id(self._tokenizer)
        self._turns = itertools.count()
        self._budget = Budget(BATCH_BYTES, "byte")
        self.device = join_devices(decoder.device for decoder in self._decoders)

    def describe(self) -> dict[str, Any]:
        """Return the settings that decide the queries, for a fingerprint."""
        names = ["dtype", "prompt", "max_input_tokens"]
        if is_foreign(self.folder.description):
            # These come from its settings, which the checksum does not cover.
            names += ["language_tokens", "decoder_start_id", "end_id", "suppressed_ids"]
            names += [DECODER_PREFIX] * (DECODER_PREFIX in self.folder.description)
        return {"sha256": self.folder.sha256(), **{name: self.folder.description[name] for name in names}}

    writes_sentences = True

    @property
    def reading(self) -> Reading:
        """Return how much of the prompts was read so far."""
        return self._prompts_read.reading

    @property
    def pace(self) -> str:
        """Return `SLOW` on a CPU, `FAST` on a GPU."""
        return SLOW if self.device == "cpu" else FAST

    def choose_sampling(self, languages: Sequence[str], settings: Mapping[str, Any]) -> Sampling:
        """Return the sampling with these settings; those of the model folder are the defaults.

        Raises:
            InputError: a setting is out of range, or the model lacks the vocabulary.
        """
        sampling = self.sampling._replace(**{name: settings[name] for name in Sampling._fields if name in settings})
        for name, value, most in (
            ("max_new_tokens", sampling.max_new_tokens, self.max_output_tokens),
            ("top_k", sampling.top_k, self.vocabulary_size),
        ):
            if value < 1:
                raise InputError(f"{name} must be at least 1, was: {show(value)}.", f"choose a larger {name}")
            if value > most:
                raise InputError(f"{name} must be at most {most}, was: {show(value)}.", f"choose a smaller {name}")
        if not sampling.temperature > 0:
            raise InputError(
                f"temperature must be above 0, was: {show(sampling.temperature)}.",
                "choose a larger temperature, such as 1",
            )
        self.check_vocabulary(languages, sampling.vocabulary)
        return sampling

    def generate(
        self,
        passages: Sequence[Passage],
        languages: Sequence[str],
        count: int,
        seed: int,
        sampling: Sampling,
        identify: bool = False,
    ) -> list[Generation]:
        """Write up to `count` queries for each passage in each language; keep those that pass `check_queries`.

        Raises:
            InputError: the model lacks a language or the vocabulary, or cannot write such long queries.
        """
        keys = [
            hashlib.sha256(f"{seed}\0{passage.passage_id}\0{language}\0{number}".encode()).digest()
            for passage in passages
            for language in languages
            for number in range(count)
        ]
        noise = gumbel_noise(keys, sampling.max_new_tokens, sampling.top_k)
        rows = self.generate_ids(passages, languages, noise, sampling.temperature, sampling.vocabulary)
        texts = self._tokenizer.decode_batch(rows, skip_special_tokens=True)
        queries = [
            GeneratedQuery(languages[row // count % len(languages)], text.strip(), row % count)
            for row, text in enumerate(texts)
        ]
        size = len(languages) * count
        checked = [
            check_queries(queries[number * size : (number + 1) * size], identify) for number in range(len(passages))
        ]
        return [Generation(kept, count, dropped) for kept, dropped in checked]

    def generate_ids(
        self,
        passages: Sequence[Passage],
        languages: Sequence[str],
        noise: Noise,
        temperature: float = 1.0,
        vocabulary: str = FULL_VOCABULARY,
    ) -> list[list[int]]:
        """Decode one query for each row of the noise, ordered by passage and then by language.

        Args:
            passages: the passages.
            languages: codes of the languages to write in.
            noise: Gumbel noise, shape `(rows, steps, top_k)`.
            temperature: divides the logits.
            vocabulary: `full` or `restricted`.

        Returns:
            the ids of each row, without the first and the end.

        Raises:
            InputError: the model lacks a language or the vocabulary, or cannot take so many steps.
        """
        self._check(languages, noise, vocabulary)
        if not len(noise):
            return []
        samples = len(noise) // (len(passages) * len(languages))
        row_languages = np.tile(np.repeat(np.array(languages), samples), len(passages))
        row_heads = row_languages if vocabulary == RESTRICTED_VOCABULARY else np.full(len(noise), FULL_VOCABULARY)
        first_ids = np.array([self.first_id(language) for language in row_languages.tolist()], dtype=np.int64)
        found: list[list[int]] = [[] for _ in noise]
        groups = self._groups(passages, languages, samples)
        # Workers take the GPUs in turn.
        decoder = self._decoders[next(self._turns) % len(self._decoders)]
        sizes = decoder.sizes(len(groups[0].rows), noise.shape[1])

        def size(places: Sequence[int]) -> int:
            return sizes.bytes_of(len(places), max(len(groups[place].prompt) for place in places))

        def run(places: Sequence[int]) -> None:
            batch = [groups[place] for place in places]
            rows = np.concatenate([np.arange(group.rows.start, group.rows.stop) for group in batch])
            row_prompts = np.repeat(np.arange(len(batch)), [len(group.rows) for group in batch])
            prompts = [group.prompt for group in batch]
            with decoder.begin(prompts, row_prompts, row_heads[rows], temperature) as step:
                written = decode(step, first_ids[rows], noise[rows], self._end_id)
            for row, ids in zip(rows, written, strict=True):
                found[row] = ids

        lengths = [len(group.prompt) for group in groups]
        self._budget.work(len(groups), lambda left, most: cut_prompts(left, lengths, sizes, most), size, run)
        return found

    def first_id(self, language: str) -> int:
        """Return the decoder's first id: the language's own if the model has one."""
        return self._language_tokens.get(language, self._start_id)

    def fill_prompt(self, passage: Passage, language: str) -> str:
        """Return the encoder's input."""
        fields = {"{language}": LANGUAGES[language].name, "{title}": passage.title, "{text}": passage.text}
        # In one pass, because a title may contain what looks like a field.
        return re.sub("|".join(map(re.escape, fields)), lambda found: fields[found[0]], self._prompt).strip()

    def check_vocabulary(self, languages: Sequence[str], vocabulary: str) -> None:
        """Check that the model has this vocabulary for each language.

        Raises:
            InputError: it does not.
        """
        if vocabulary not in VOCABULARIES:
            raise InputError(f"unknown vocabulary {vocabulary!r}.", f"choose one of {', '.join(VOCABULARIES)}")
        missing = [language for language in languages if language not in self.restricted_languages]
        if vocabulary == RESTRICTED_VOCABULARY and missing:
            raise InputError(
                f"{self.folder.path} has no restricted vocabulary for {missing[0]!r}.",
                f"export it with --restrict-vocabulary, or use --vocabulary {FULL_VOCABULARY}",
            )

    def _check(self, languages: Sequence[str], noise: Noise, vocabulary: str) -> None:
        if noise.shape[1] > self.max_output_tokens:
            raise InputError(
                f"max_new_tokens is {noise.shape[1]}, more than the {self.max_output_tokens} of {self.folder.path}.",
                f"set --max-new-tokens to at most {self.max_output_tokens}",
            )
        for language in languages:
            if language not in self.languages:
                raise InputError(
                    f"{self.folder.path} does not write the language {language!r}.",
                    f"choose from {', '.join(self.languages)}",
                )
        self.check_vocabulary(languages, vocabulary)

    def _groups(self, passages: Sequence[Passage], languages: Sequence[str], samples: int) -> list[_Group]:
        """Return the prompts with their rows: one for each passage if the prompt does not name the language."""
        together = languages[:1] if "{language}" not in self._prompt else languages
        prompts = [self.fill_prompt(passage, language) for passage in passages for language in together]
        size = samples * len(languages) // len(together)
        rows = encode_ids(self._tokenizer, prompts, self._prompts_read)
        return [
            # A prompt needs a token, even if its text has none.
            _Group(ids or [self._end_id], range(number * size, (number + 1) * size))
            for number, ids in enumerate(replace_unreadable(rows, self._readable, self._unknown))
        ]
