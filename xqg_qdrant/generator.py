"""Passages × languages → generated queries.

Knows prompts, language tokens, seeds and the caches of a T5 decoder. Choosing tokens is `decoding`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from xqg_qdrant.decoding import Decoder, Ids, Noise, gumbel_noise
from xqg_qdrant.errors import InputError, ModelError
from xqg_qdrant.languages import LANGUAGES, is_written_in
from xqg_qdrant.model_folder import TOKENIZER_FILE, read_model_folder
from xqg_qdrant.records import GeneratedQuery, Passage
from xqg_qdrant.session import Array, DeviceArray, Session


class Sampling(NamedTuple):
    """How queries are drawn: `top_k` 1 is greedy; `max_new_tokens` bounds a query's length."""

    top_k: int
    temperature: float
    max_new_tokens: int


class Generation(NamedTuple):
    """The queries of one passage that were kept, and how many were asked for in each language."""

    queries: tuple[GeneratedQuery, ...]
    asked: int


class _Caches(NamedTuple):
    """What a decoder step needs besides ids: constant feeds, and the growing keys and values."""

    constant: dict[str, Any]
    past: list[DeviceArray]


class Generator:
    """A T5 or mT5 model that writes questions about a passage in named languages.

    Each passage is generated alone, all its languages and samples side by side, and each query has its own noise,
    derived from the seed, the passage id, the language and the query's number. So a passage gets the same queries
    whatever else is ingested with it, in whatever order.
    """

    def __init__(self, folder: Path, device: str = "auto", threads: int = 0) -> None:
        """Load a model folder of kind `generator`.

        Raises:
            ModelError: the folder or the device cannot be used.
        """
        self.folder = read_model_folder(folder, "generator")
        about = self.folder.description
        self._prompt: str = about["prompt"]
        self._max_input_tokens: int = about["max_input_tokens"]
        self._language_tokens: dict[str, int] = about["language_tokens"]
        self._start_id: int = about["decoder_start_id"]
        self.languages: tuple[str, ...] = tuple(about["languages"])
        self.sampling = Sampling(**about["sampling"])
        self.max_output_tokens: int = about["max_output_tokens"]
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._tokenizer.enable_truncation(self._max_input_tokens)
        self._tokenizer.no_padding()
        self.vocabulary_size = self._tokenizer.get_vocab_size()
        self._encoder = Session(folder / "encoder.onnx", device, threads)
        self._step = _DecoderStep(Session(folder / "decoder.onnx", device, threads))
        self._decoder = Decoder(self._step, about["end_id"])
        self.device = self._encoder.device

    def describe(self) -> dict[str, Any]:
        """Return what of this model decides the queries, for a fingerprint."""
        names = ("dtype", "prompt", "max_input_tokens")
        return {"sha256": self.folder.sha256(), **{name: self.folder.description[name] for name in names}}

    def generate(
        self, passages: Sequence[Passage], languages: Sequence[str], count: int, seed: int, sampling: Sampling
    ) -> list[Generation]:
        """Write up to `count` queries for each passage in each language.

        A query in the wrong script, an empty one and a repetition are dropped.
        """
        return [self._generate_one(passage, languages, count, seed, sampling) for passage in passages]

    def _generate_one(
        self, passage: Passage, languages: Sequence[str], count: int, seed: int, sampling: Sampling
    ) -> Generation:
        keys = [
            hashlib.sha256(f"{seed}\0{passage.passage_id}\0{language}\0{number}".encode()).digest()
            for language in languages
            for number in range(count)
        ]
        noise = gumbel_noise(keys, sampling.max_new_tokens, sampling.top_k)
        rows = self.generate_ids(passage, languages, noise, sampling.temperature)
        texts = self._tokenizer.decode_batch(rows, skip_special_tokens=True)
        queries = [GeneratedQuery(languages[row // count], text.strip()) for row, text in enumerate(texts)]
        return Generation(_keep_usable(queries), asked=count)

    def generate_ids(
        self, passage: Passage, languages: Sequence[str], noise: Noise, temperature: float = 1.0
    ) -> list[list[int]]:
        """Decode one query for each row of the noise, shape `(rows, steps, top_k)`, rows grouped by language.

        Returns:
            the ids of each row, without the first and the end.

        Raises:
            InputError: a language is unknown to the model, or the noise has more steps than the model can take.
        """
        if noise.shape[1] > self.max_output_tokens:
            raise InputError(f"max_new_tokens must be at most {self.max_output_tokens}, was: {noise.shape[1]}")
        for language in languages:
            if language not in self.languages:
                raise InputError(f"unknown language {language!r}: this generator writes {', '.join(self.languages)}")
        samples = len(noise) // len(languages)
        prompts = dict.fromkeys(self.fill_prompt(passage, language) for language in languages)
        first_ids = [self.first_id(language) for language in languages]
        # With the language as the first token all languages share one prompt, hence one group.
        groups = len(prompts)
        caches = self._step.start(self._encode(list(prompts)), temperature, groups, len(noise))
        ids = np.repeat(np.array(first_ids, dtype=np.int64), samples).reshape(groups, -1)
        return self._decoder.decode(ids, noise, caches)

    def first_id(self, language: str) -> int:
        """Return the decoder's first token: the language's own where the model has one."""
        return self._language_tokens.get(language, self._start_id)

    def fill_prompt(self, passage: Passage, language: str) -> str:
        """Return the encoder's input."""
        filled = self._prompt.replace("{language}", LANGUAGES[language].name)
        return filled.replace("{title}", passage.title).replace("{text}", passage.text).strip()

    def _encode(self, prompts: list[str]) -> dict[str, Array]:
        """Return the mask and the cross-attention of each prompt, each prompt encoded alone, padded to the longest."""
        encodings = self._tokenizer.encode_batch(prompts)
        longest = max(len(encoding.ids) for encoding in encodings)
        mask = np.zeros((len(prompts), longest), dtype=np.int64)
        crosses: dict[str, list[Array]] = {name: [] for name in self._encoder.output_names}
        for row, encoding in enumerate(encodings):
            ids = np.array([encoding.ids], dtype=np.int64)
            mask[row, : len(encoding.ids)] = 1
            outputs = self._encoder.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
            for name, output in zip(self._encoder.output_names, outputs, strict=True):
                crosses[name].append(_pad(output, name, longest))
        return {"attention_mask": mask, **{name: np.concatenate(parts) for name, parts in crosses.items()}}


class _DecoderStep:
    """The decoder graph as `decoding.Step`; caches stay on the device between steps."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._pasts = [name for name in session.input_names if name.startswith("past_")]
        self._outputs = ["next_ids", *(name.replace("past_", "present_") for name in self._pasts)]
        if not self._pasts:
            raise ModelError("decoder.onnx takes no past keys: it was not written by xqg export; export it again")

    def start(self, crosses: dict[str, Array], temperature: float, groups: int, rows: int) -> _Caches:
        constant = {name: self._session.to_device(value) for name, value in crosses.items()}
        constant["temperature"] = self._session.to_device(np.array(temperature, dtype=np.float32))
        shapes = (self._session.input_shapes[name] for name in self._pasts)
        empty = [np.zeros((rows, heads, 0, head_dim), dtype=np.float32) for _, heads, _, head_dim in shapes]
        return _Caches(constant, [self._session.to_device(past) for past in empty])

    def __call__(self, ids: Ids, noise: Noise, state: _Caches) -> tuple[Ids, _Caches]:
        feeds = {"ids": ids, "noise": noise, **state.constant, **dict(zip(self._pasts, state.past, strict=True))}
        next_ids, *present = self._session.run_on_device(feeds, self._outputs)
        return next_ids.numpy(), _Caches(state.constant, present)

    def select(self, state: _Caches, rows: Ids) -> _Caches:
        kept = [self._session.to_device(past.numpy()[rows.ravel()]) for past in state.past]
        return _Caches(state.constant, kept)


def _pad(cross: Array, name: str, longest: int) -> Array:
    axis = 3 if name.startswith("cross_key") else 2
    missing = longest - cross.shape[axis]
    return cross if missing == 0 else np.pad(cross, [(0, missing if i == axis else 0) for i in range(4)])


def _keep_usable(queries: Iterable[GeneratedQuery]) -> tuple[GeneratedQuery, ...]:
    """Drop empty queries, repetitions, and those that are not written in their language's script."""
    kept: dict[tuple[str, str], GeneratedQuery] = {}
    for query in queries:
        if query.text and is_written_in(query.text, query.language):
            kept.setdefault((query.language, " ".join(query.text.casefold().split())), query)
    return tuple(kept.values())
