"""Write the questions that speakers of other languages would ask about a passage: the protocol, and who follows it.

`onnx` runs a T5 or mT5 model, `lexicon` translates words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from xqg_qdrant.generation.checks import Dropped
from xqg_qdrant.records import GeneratedQuery, Passage

# How long a generator takes for a passage: seconds (on a CPU), much less (on a GPU), or next to nothing.
SLOW, FAST, INSTANT = "slow", "fast", "instant"
# The settings of a recipe that decide how a generator draws; each generator has some of them.
DRAWING = ("seed", "top_k", "temperature", "max_new_tokens", "vocabulary")


class Generation(NamedTuple):
    """The kept queries of one passage, how many were asked for in each language, and how many were dropped."""

    queries: tuple[GeneratedQuery, ...]
    asked: int
    dropped: Mapping[Dropped, int] = MappingProxyType({})


class Generator(Protocol):
    """Writes queries for passages; several threads may call it at once."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Return the codes of the languages it writes."""

    @property
    def pace(self) -> str:
        """Return `SLOW`, `FAST` or `INSTANT`."""

    @property
    def sampling(self) -> Any:  # noqa: ANN401
        """Return the default sampling, a named tuple of this generator's settings; None if it draws nothing."""

    @property
    def writes_sentences(self) -> bool:
        """Return whether the language of its queries can be checked."""

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


def open_generator(path: Path | None, device: str, threads: int) -> Generator:
    """Open the model in a folder, the lexicon in a file, or the shipped model.

    Raises:
        InputError: the lexicon cannot be used.
        ModelError: the model or the device cannot be used.
    """
    if path is not None and path.is_file():
        from xqg_qdrant.generation.lexicon import Lexicon

        return Lexicon(path)
    from xqg_qdrant.generation.onnx import QueryGenerator

    return QueryGenerator(path, device, threads)
