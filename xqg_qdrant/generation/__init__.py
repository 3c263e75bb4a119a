"""Write the questions that speakers of other languages would ask about a passage: the protocol, and who follows it.

`onnx` runs a T5, mT5 or BERT-to-BERT model, `llm` asks a language model at an HTTP endpoint, `lexicon` translates
words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from xqg_qdrant.errors import InputError, XqgError
from xqg_qdrant.generation.checks import Dropped
from xqg_qdrant.inference import Reading
from xqg_qdrant.records import GeneratedQuery, Passage

# How long a generator takes for a passage: seconds (on a CPU), much less (on a GPU), or next to nothing.
SLOW, FAST, INSTANT = "slow", "fast", "instant"
# The settings of a recipe that decide how a generator draws; each generator has some of them.
DRAWING = ("seed", "top_k", "temperature", "max_new_tokens", "vocabulary")


class Usage(NamedTuple):
    """Calls that were answered, and the tokens of their prompts and replies as the server counts them."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def plus(self, other: Usage) -> Usage:
        """Return the sum."""
        return Usage(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Generation(NamedTuple):
    """What a generator wrote for one passage.

    Attributes:
        queries: The kept queries.
        asked: How many were asked for in each language.
        dropped: How many queries were dropped, by language and reason.
        rejected: Why the passage cannot be stored; empty if it can.
        failure: The error that ended the run before this passage was done; None if it was.
        usage: The calls and tokens that a language model took.
        replies: Files of the journal, to be removed once the passage is stored.
    """

    queries: tuple[GeneratedQuery, ...]
    asked: int
    dropped: Mapping[Dropped, int] = MappingProxyType({})
    rejected: str = ""
    failure: XqgError | None = None
    usage: Usage = Usage()
    replies: tuple[Path, ...] = ()


class ReplyJournal(Protocol):
    """Replies whose passages are not stored yet, which survive a kill."""

    def note(self, target: str, replies: Mapping[Path, tuple[str, str]]) -> Path | None:
        """Note which passages are about to be stored; return the note, to be removed with their replies.

        Args:
            target: where they are stored.
            replies: the passage id and the content hash of the point for each reply.
        """

    def sweep(self, target: str, read_hashes: Callable[[Sequence[str]], Mapping[str, str]]) -> None:
        """Remove the replies of noted passages that are stored, left by a run that ended in between.

        Args:
            target: where they are stored.
            read_hashes: returns the content hashes of stored passages, by id.
        """


class Generator(Protocol):
    """Writes queries for passages; several threads may call it at once."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Return the codes of the languages it writes; none if it writes any."""

    @property
    def pace(self) -> str:
        """Return `SLOW`, `FAST` or `INSTANT`."""

    @property
    def concurrency(self) -> int:
        """Return how many passages are in work at once outside this process."""

    @property
    def sampling(self) -> Any:  # noqa: ANN401
        """Return the default sampling, a named tuple of this generator's settings; None if it draws nothing."""

    @property
    def writes_sentences(self) -> bool:
        """Return whether the language of its queries can be checked."""

    @property
    def reading(self) -> Reading | None:
        """Return how much of the prompts was read so far; None if that cannot be found out."""

    @property
    def journal(self) -> ReplyJournal | None:
        """Return where replies are kept until their passages are stored; None if they are not."""

    def describe(self) -> dict[str, Any]:
        """Return the settings that decide the queries, for a fingerprint; without `kind` it is an ONNX model."""

    def choose_sampling(self, languages: Sequence[str], settings: Mapping[str, Any]) -> Any:  # noqa: ANN401
        """Return the sampling with these settings of `DRAWING`, and defaults for the others.

        Raises:
            InputError: a setting is out of range, or this generator has no such setting.
        """

    def generate(
        self,
        passages: Sequence[Passage],
        languages: Sequence[str],
        count: int,
        seed: int,
        sampling: Any,  # noqa: ANN401
        identify: bool = False,
    ) -> list[Generation]:
        """Write up to `count` queries for each passage in each language; keep those that pass `check_queries`.

        Args:
            passages: the passages.
            languages: codes of the languages to write in.
            count: queries for each passage and language.
            seed: of the sampling.
            sampling: from `choose_sampling`.
            identify: whether to drop queries that are surely in another language.

        Raises:
            InputError: it does not write a language, or cannot sample so.
        """


class Endpoint(NamedTuple):
    """A language model behind an OpenAI-compatible chat endpoint, without the key.

    Attributes:
        url: Base URL, such as `http://localhost:11434/v1`.
        model: Name of the model there.
        prompt: Template with {text} and, optionally, {title}, {languages} and {count}; None is the default.
        concurrency: Calls at once.
        max_tokens: Tokens, of prompts and replies, after which the run stops; 0 is no limit.
        max_cost: Money after which the run stops; 0 is no limit.
        price_in: Price of a million tokens of prompts, in any currency.
        price_out: Price of a million tokens of replies.
        journal: Folder of replies whose passage is not stored yet; None is in the user's cache.
        patience: The most seconds to wait for a server that is busy or loads its model; by default as suits an ingest.
    """

    url: str
    model: str
    prompt: str | None = None
    concurrency: int = 8
    max_tokens: int = 0
    max_cost: float = 0.0
    price_in: float = 0.0
    price_out: float = 0.0
    journal: Path | None = None
    patience: float = math.inf

    def price(self, usage: Usage) -> float:
        """Return what calls cost."""
        return (usage.tokens_in * self.price_in + usage.tokens_out * self.price_out) / 1e6


def open_generator(source: Path | Endpoint | None, device: str, threads: int, key: str | None = None) -> Generator:
    """Open the model in a folder or at an endpoint, the lexicon in a file, or the shipped model.

    Args:
        source: a folder, a file or an endpoint; None is the shipped model.
        device: of a model in a folder.
        threads: of a model in a folder.
        key: of an endpoint; None takes that of the environment.

    Raises:
        InputError: the lexicon or the endpoint cannot be used.
        ModelError: the model or the device cannot be used.
    """
    if isinstance(source, Endpoint):
        from xqg_qdrant.generation.llm import LanguageModelGenerator

        return LanguageModelGenerator(**source._asdict(), api_key=key)
    if source is not None and source.is_file():
        from xqg_qdrant.generation.lexicon import Lexicon

        return Lexicon(source)
    from xqg_qdrant.generation.onnx import QueryGenerator

    return QueryGenerator(source, device, threads)


def check_languages(generator: Generator, languages: Sequence[str]) -> tuple[str, ...]:
    """Return the languages to write in, sorted, so that their order does not change the fingerprint.

    Raises:
        InputError: none are named, and the generator writes any.
    """
    if not languages and not generator.languages:
        raise InputError("a language model writes any language, and none is named.", "name some: --languages ja,ru")
    return tuple(sorted(languages or generator.languages))
