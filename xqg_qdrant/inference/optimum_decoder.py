"""Run a generator that optimum exported, as `decoding.Step`.

Each step takes all caches and returns new ones, and cross-attention is repeated for every row. No two prompts share a
run, so one prompt cannot affect another's queries, not even where a graph has one int8 scale for a batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from xqg_qdrant.errors import ModelError
from xqg_qdrant.inference.batching import Sizes
from xqg_qdrant.inference.decoding import Ids, Noise, Step
from xqg_qdrant.inference.session import Array, Session
from xqg_qdrant.model_folders import ModelFolder
from xqg_qdrant.model_folders.description import DECODER_PREFIX
from xqg_qdrant.model_folders.files import export_it

IDS, MASK, HIDDEN, LOGITS = "input_ids", "attention_mask", "last_hidden_state", "logits"
CROSS_HIDDEN, CROSS_MASK = "encoder_hidden_states", "encoder_attention_mask"
PAST = re.compile(r"past_key_values\.[0-9]+\.(decoder|encoder)\.(key|value)")


class ForeignDecoder:
    """The open graphs of another program's generator; several threads may use one."""

    def __init__(self, folder: ModelFolder, device: str, threads: int, optional: bool) -> None:
        """Open all graphs of a folder on one device.

        Raises:
            ModelError: they do not run there, or do not fit together.
        """
        self._path, about = folder.path, folder.description
        names = (about["graph"], *about["decoder_graphs"])
        opened = [Session(folder.path / name, device, threads, optional=optional) for name in names]
        self.encoder, self.first, self.further = opened
        self.device = self.further.device
        self.suppressed_ids = np.array(about["suppressed_ids"], dtype=np.int64)
        self.prefix = np.array(about.get(DECODER_PREFIX, []), dtype=np.int64)
        self.caches = {name: _present(name) for name in self.further.input_names if PAST.fullmatch(name)}
        self._check(names)

    def read(self, number: int) -> None:
        """Run the encoder on one id.

        Raises:
            ModelError: its embedding table has no such id.
        """
        encoder = self.encoder
        ids = {"input_ids": [[number]], "attention_mask": [[1]]}
        encoder.run({name: np.array(ids[name], dtype=encoder.input_dtypes[name]) for name in encoder.input_names})

    def sizes(self, rows: int, steps: int) -> Sizes:
        """Return the size of a prompt with `rows` rows of at most `steps` steps."""
        crosses = [name for name in self.caches if not _is_own(name)]
        row_bytes = steps * self.further.bytes_of(filter(_is_own, self.caches))
        return Sizes(rows, row_bytes, rows * self.further.bytes_of(crosses), alone=True)

    @contextmanager
    def begin(
        self, prompts: Sequence[Sequence[int]], row_prompts: Ids, row_heads: npt.NDArray[np.str_], temperature: float
    ) -> Iterator[Step]:
        """Encode the only prompt, to which all rows belong; `row_prompts` and `row_heads` are ignored."""
        [prompt] = prompts
        yield ForeignStep(self, prompt, temperature)

    def _check(self, names: Sequence[str]) -> None:
        """Raise ModelError unless the graphs have the inputs and outputs to run together."""
        ids, mask, crosses = {IDS}, {CROSS_MASK}, {CROSS_HIDDEN}
        own = {present for name, present in self.caches.items() if _is_own(name)}
        checked = [
            (self.encoder, ids, ids | {MASK}, {HIDDEN}),
            (self.first, ids | crosses, ids | crosses | mask, {LOGITS, *self.caches.values()}),
            (self.further, ids, (ids | crosses | mask | self.caches.keys()) if own else ids, {LOGITS} | own),
        ]
        for name, (session, needed, known, given) in zip(names, checked, strict=True):
            taken, found = set(session.input_names), set(session.output_names)
            logits = session.output_shapes.get(LOGITS, (1, 1, 1))
            if not needed <= taken <= known or not given <= found or len(logits) != 3:
                raise ModelError(
                    f"{self._path / name} takes {sorted(taken)} and returns {sorted(found)}, unlike optimum's graph of "
                    "this name.",
                    export_it(self._path),
                )


class ForeignStep:
    """One prompt and the rows written from it."""

    def __init__(self, decoder: ForeignDecoder, prompt: Sequence[int], temperature: float) -> None:
        """Encode the prompt, a list of ids."""
        self._decoder, self._temperature = decoder, temperature
        ids = np.array([prompt])
        self._mask = np.ones_like(ids)
        [self._hidden] = _run(decoder.encoder, {IDS: ids, MASK: self._mask}, [HIDDEN])
        self._caches: dict[str, Array] = {}

    def __call__(self, ids: Ids, noise: Noise) -> Ids:
        """Run one step."""
        if self._caches:
            logits = self._advance(self._decoder.further, ids[:, None])
        else:
            # The first step is the same for all rows that start with the same id.
            begun, copied = np.unique(ids, return_inverse=True)
            prefixes = np.tile(self._decoder.prefix, (len(begun), 1))
            logits = self._advance(self._decoder.first, np.concatenate([prefixes, begun[:, None]], axis=1))[copied]
            self.keep(copied)
        suppressed = self._decoder.suppressed_ids
        logits[:, suppressed[suppressed < logits.shape[1]]] = -np.inf
        return choose_ids(logits, noise, self._temperature)

    def keep(self, places: Ids) -> None:
        """Keep only the rows at these positions."""
        self._caches = {name: cache[places] for name, cache in self._caches.items()}

    def _advance(self, session: Session, ids: Ids) -> Array:
        """Run a graph on ids `(rows, tokens)`, keep the caches, and return the last token's logits."""
        rows = len(ids)
        feeds = {
            IDS: ids,
            CROSS_HIDDEN: np.broadcast_to(self._hidden, (rows, *self._hidden.shape[1:])),
            CROSS_MASK: np.broadcast_to(self._mask, (rows, *self._mask.shape[1:])),
            **self._caches,
        }
        presents = {past: name for past, name in self._decoder.caches.items() if name in session.output_names}
        logits, *caches = _run(session, feeds, [LOGITS, *presents.values()])
        self._caches.update(zip(presents, caches, strict=True))
        if any(len(result) != rows for result in (logits, *caches)):
            raise ModelError(
                "a decoder's graph returned another number of rows than it was given.", "export the model again"
            )
        return logits[:, -1].astype(np.float32)


def choose_ids(logits: npt.NDArray[np.float32], noise: Noise, temperature: float) -> Ids:
    """Return the next id of each row, chosen as in the graphs that xqg exports.

    Take the `top_k` best logits of a row; among equal ones lower ids come first. Divide them by the temperature and add
    the noise, its first number to the best logit. The largest sum wins. With Gumbel noise this samples from their
    softmax; with `top_k` 1 and no noise it is greedy.

    Args:
        logits: `(rows, vocabulary)`.
        noise: `(rows, top_k)`.
        temperature: above zero.

    Raises:
        ModelError: a logit is NaN.
    """
    if np.isnan(logits).any():
        raise ModelError("a decoder's graph returned NaN as a logit.", "export the model again, in float32")
    top_k = min(noise.shape[1], logits.shape[1])
    least = np.partition(logits, -top_k, axis=1)[:, -top_k]
    next_ids = np.empty(len(logits), dtype=np.int64)
    for row, values in enumerate(logits):
        among = np.flatnonzero(values >= least[row])
        best = among[np.argsort(-values[among], kind="stable")[:top_k]]
        next_ids[row] = best[np.argmax(values[best] / np.float32(temperature) + noise[row, :top_k])]
    return next_ids


def _run(session: Session, feeds: dict[str, Array], outputs: Sequence[str]) -> list[Array]:
    """Run a graph on those of the feeds that it takes."""
    taken = {name: np.ascontiguousarray(feeds[name], session.input_dtypes[name]) for name in session.input_names}
    return session.run(taken, outputs)


def _present(past: str) -> str:
    return past.replace("past_key_values", "present")


def _is_own(past: str) -> bool:
    return ".decoder." in past
