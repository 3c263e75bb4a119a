"""Run a generator that xqg exported, as `decoding.Step`.

A step holds the cross-attention of a batch of prompts, the caches, and the vocabulary's head of each row. `Decoder`
opens the graphs and keeps memory between batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xqg_qdrant.errors import ModelError
from xqg_qdrant.inference.batching import Sizes
from xqg_qdrant.inference.decoding import Ids, Noise, Step, fill_holes
from xqg_qdrant.inference.session import Array, Buffer, Session, are_products_exact
from xqg_qdrant.model_folders import ModelFolder
from xqg_qdrant.model_folders.description import FULL_VOCABULARY, head_file
from xqg_qdrant.model_folders.files import export_again

# In steps. A cache grows with the queries, because attention over an empty part costs as much as over a full one.
FIRST_CAPACITY = 8
# The encoder reads the weights once for this many padded tokens, whose activations still fit a CPU's cache.
ENCODER_TOKENS = 512
# With one row in a group another kernel runs, whose sums differ in the last bit.
LEAST_WIDTH = 2

ENCODER_INPUTS = {"input_ids", "attention_mask"}
DECODER_INPUTS = {"ids", "step", "places", "row_places", "attention_mask"}
HEAD_INPUTS = {"hidden", "chosen_rows", "temperature", "noise"}


class Graphs(NamedTuple):
    """The open graphs of a generator; `heads` by the name of their vocabulary."""

    encoder: Session
    decoder: Session
    heads: Mapping[str, Session]


class Memory:
    """Arrays kept from batch to batch, because new memory costs a page fault every 4 KiB."""

    def __init__(self) -> None:
        self._bytes: dict[str, npt.NDArray[np.uint8]] = {}

    def take(self, name: str, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """Return an uninitialised array, valid until its name is taken again."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if name not in self._bytes or self._bytes[name].size < size:
            self._bytes[name] = np.empty(size, dtype=np.uint8)
        array: Array = self._bytes[name][:size].view(dtype).reshape(shape)
        return array


class _Choice(NamedTuple):
    """One run of a head: the rows, their noise, and the ids it writes."""

    rows: Ids
    noise: Buffer
    next_ids: Buffer
    run: Callable[[], None]


class DecoderStep:
    """A batch of prompts and the rows written from them."""

    def __init__(
        self,
        graphs: Graphs,
        memory: Memory,
        prompts: Sequence[Sequence[int]],
        row_prompts: Ids,
        row_heads: npt.NDArray[np.str_],
        temperature: float,
    ) -> None:
        """Encode the prompts, lists of ids; row `i` has prompt `row_prompts[i]` and head `row_heads[i]`."""
        self._graphs, self._memory = graphs, memory
        self._row_groups, self._row_heads = row_prompts, row_heads
        self._temperature = graphs.decoder.buffer(np.array(temperature, dtype=np.float32))
        self._step = np.zeros(1, dtype=np.int64)
        self._crosses = self._encode(prompts)
        self._caches: dict[str, Buffer] = {}

    def __call__(self, ids: Ids, noise: Noise) -> Ids:
        """Run one step."""
        is_first = not self._step[0]
        if is_first:
            self._begin(ids)
        elif self._step[0] == self._capacity:
            self._grow(self._capacity * 2)
        self._ids.array[...] = ids[self._computed]
        self._ids.push()
        self._run_decoder()
        next_ids = np.empty_like(ids)
        if not self._choices:
            self._bind_heads(noise.shape[1])
        for choice in self._choices:
            choice.noise.array[...] = noise[choice.rows]
            choice.noise.push()
            choice.run()
            choice.next_ids.pull()
            next_ids[choice.rows] = choice.next_ids.array
        self._step += 1
        self._step_buffer.push()
        if is_first:
            self._grow(FIRST_CAPACITY)
        return next_ids

    def keep(self, places: Ids) -> None:
        """Drop the other rows, and the prompts without rows."""
        self._row_groups, self._row_heads = self._row_groups[places], self._row_heads[places]
        self._computed = self._copied = np.arange(len(places))
        self._caches = _keep(self._graphs.decoder, self._caches, places)
        live = np.zeros(len(self._crosses["attention_mask"].array), dtype=bool)
        live[self._row_groups] = True
        if not live.all():
            groups = fill_holes(live)
            self._crosses = _keep(self._graphs.decoder, self._crosses, groups)
            new_places = np.zeros(len(live), dtype=np.int64)
            new_places[groups] = np.arange(len(groups))
            self._row_groups = new_places[self._row_groups]
        self._bind()

    def _encode(self, prompts: Sequence[Sequence[int]]) -> dict[str, Buffer]:
        """Return the mask and the cross-attention of each prompt, padded to the longest."""
        encoder, decoder = self._graphs.encoder, self._graphs.decoder
        longest = max(map(len, prompts))
        ids = np.zeros((len(prompts), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
            mask[row, : len(prompt)] = 1
        crosses = self._take_crosses("whole", len(prompts), longest)
        # On a GPU a buffer cannot be sliced, and larger batches are faster.
        size = len(prompts) if encoder.device != "cpu" else min(len(prompts), max(1, ENCODER_TOKENS // longest))
        buffers = {name: encoder.buffer(array) for name, array in crosses.items()}
        for start in range(0, len(prompts), size):
            part = slice(start, start + size)
            tokens = int(mask[part].sum(axis=1).max())
            feeds = {
                "input_ids": encoder.buffer(np.ascontiguousarray(ids[part, :tokens])),
                "attention_mask": encoder.buffer(np.ascontiguousarray(mask[part, :tokens])),
            }
            if size == len(prompts):
                encoder.bind(feeds, buffers)()
                break
            written = self._take_crosses("part", len(ids[part]), tokens)
            encoder.bind(feeds, {name: encoder.buffer(array) for name, array in written.items()})()
            for name, array in written.items():
                _copy_padded(array, crosses[name][part])
        return {
            "attention_mask": decoder.buffer(mask),
            **{name: self._hand_over(name, buffers[name]) for name in buffers},
        }

    def _hand_over(self, name: str, written: Buffer) -> Buffer:
        """Return the encoder's output in the decoder's type: int8, or uint8 with 128 added."""
        decoder = self._graphs.decoder
        if decoder.input_dtypes[name] != np.uint8:
            return written
        written.pull()
        unsigned = written.array.view(np.uint8)
        unsigned ^= 128
        return decoder.buffer(unsigned)

    def _take_crosses(self, label: str, groups: int, tokens: int) -> dict[str, Array]:
        """Return memory for the encoder's output for `groups` prompts of `tokens` tokens."""
        decoder = self._graphs.decoder
        sizes = {"groups": groups, "tokens": tokens}
        return {
            name: self._memory.take(
                f"{label} {name}", [sizes.get(size, size) for size in shape], _signed(decoder.input_dtypes[name])
            )
            for name, shape in decoder.input_shapes.items()
            if name.startswith("cross_")
        }

    def _begin(self, ids: Ids) -> None:
        """Prepare the first step, which is the same for a prompt's rows that start with the same id.

        One row of each such set is computed; `_copied` maps every row to its computed one.
        """
        pairs = np.stack([self._row_groups, ids], axis=1)
        _, self._computed, copied = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
        self._copied = copied.reshape(-1)
        self._capacity = 1
        names = [name for name in self._graphs.decoder.input_names if name.startswith("past_")]
        self._caches = {
            name: self._graphs.decoder.buffer(self._take_cache(name, len(self._computed), 0)) for name in names
        }
        self._bind()

    def _take_cache(self, name: str, rows: int, filled: int) -> Array:
        """Return memory for a cache, of which the caller fills the first `filled` steps."""
        _, heads, _, head_dim = self._graphs.decoder.input_shapes[name]
        shape = (rows, heads, self._capacity, head_dim)
        cache = self._memory.take(f"{name} of {self._capacity}", shape, self._graphs.decoder.input_dtypes[name])
        # Unwritten steps are masked, but a NaN left there would spread all the same.
        cache[:, :, filled:] = 0
        return cache

    def _grow(self, capacity: int) -> None:
        """Enlarge the caches to `capacity` steps, and compute every row from then on."""
        filled, self._capacity = self._capacity, capacity
        for name, cache in self._caches.items():
            cache.pull()
            larger = self._take_cache(name, len(self._row_groups), filled)
            larger[:, :, :filled] = cache.array[self._copied]
            self._caches[name] = self._graphs.decoder.buffer(larger)
        self._computed = self._copied = np.arange(len(self._row_groups))
        self._bind()

    def _bind(self) -> None:
        """Bind the decoder's graph to the memory of the remaining rows."""
        decoder = self._graphs.decoder
        rows = len(self._computed)
        groups = len(self._crosses["attention_mask"].array)
        places, row_places = _place_rows(self._row_groups[self._computed], groups)
        self._ids = decoder.buffer(np.zeros(rows, dtype=np.int64))
        self._step_buffer = decoder.buffer(self._step)
        width = self._graphs.heads[str(self._row_heads[0])].input_shapes["hidden"][1]
        self._hidden = decoder.buffer(self._memory.take("hidden", (rows, width), np.float32))
        inputs = {
            "ids": self._ids,
            "step": self._step_buffer,
            "places": decoder.buffer(places),
            "row_places": decoder.buffer(row_places),
            **self._crosses,
            **self._caches,
        }
        presents = {name.replace("past_", "present_"): cache for name, cache in self._caches.items()}
        self._run_decoder = decoder.bind(inputs, {"hidden": self._hidden, **presents})
        self._choices: list[_Choice] = []

    def _bind_heads(self, top_k: int) -> None:
        for name in np.unique(self._row_heads).tolist():
            head = self._graphs.heads[name]
            rows = np.flatnonzero(self._row_heads == name)
            noise = head.buffer(np.zeros((len(rows), top_k), dtype=np.float32))
            next_ids = head.buffer(np.zeros(len(rows), dtype=np.int64))
            inputs = {
                "hidden": self._hidden, "chosen_rows": head.buffer(self._copied[rows]), "noise": noise,
                "temperature": self._temperature,
            }  # fmt: skip
            self._choices.append(_Choice(rows, noise, next_ids, head.bind(inputs, {"next_ids": next_ids})))


class Decoder:
    """The open graphs, and memory reused between runs; several threads may use one."""

    def __init__(self, folder: ModelFolder, device: str, threads: int, optional: bool) -> None:
        """Open all graphs of a folder on one device.

        Raises:
            ModelError: they do not run there, or do not fit together.
        """
        languages = folder.description["restricted_languages"]
        files = {FULL_VOCABULARY: "head.onnx", **{code: head_file(code) for code in languages}}

        def open_graph(file: str, unsigned: bool = False) -> Session:
            return Session(folder.path / file, device, threads, optional=optional, unsigned_operands=unsigned)

        encoder = open_graph("encoder.onnx")
        decoder = open_graph("decoder.onnx", unsigned=not are_products_exact())
        self.graphs = Graphs(encoder, decoder, {name: open_graph(file) for name, file in files.items()})
        _check_graphs(self.graphs, folder.path)
        self.device = decoder.device
        self._idle_memories: list[Memory] = []

    def read(self, number: int) -> None:
        """Run the encoder on one id.

        Raises:
            ModelError: its embedding table has no such id.
        """
        encoder = self.graphs.encoder
        ids = {"input_ids": [[number]], "attention_mask": [[1]]}
        encoder.run({name: np.array(ids[name], dtype=encoder.input_dtypes[name]) for name in encoder.input_names})

    def sizes(self, rows: int, steps: int) -> Sizes:
        """Return the size of a prompt with `rows` rows of at most `steps` steps."""
        decoder = self.graphs.decoder
        pasts = [name for name in decoder.input_names if name.startswith("past_")]
        crosses = [name for name in decoder.input_names if name.startswith("cross_") and "scale" not in name]
        return Sizes(rows, steps * decoder.bytes_of(pasts), decoder.bytes_of(crosses))

    @contextmanager
    def begin(
        self, prompts: Sequence[Sequence[int]], row_prompts: Ids, row_heads: npt.NDArray[np.str_], temperature: float
    ) -> Iterator[Step]:
        """Encode the prompts; row `i` has prompt `row_prompts[i]` and head `row_heads[i]`."""
        memory = self._take_memory()
        yield DecoderStep(self.graphs, memory, prompts, row_prompts, row_heads, temperature)
        self._idle_memories.append(memory)

    def _take_memory(self) -> Memory:
        # Each thread needs its own; checking first for an idle one would be a race.
        try:
            return self._idle_memories.pop()
        except IndexError:
            return Memory()


def _keep(session: Session, buffers: Mapping[str, Buffer], places: Ids) -> dict[str, Buffer]:
    """Move the rows at `places`, see `fill_holes`, to the front, in place, and drop the rest."""
    moved = np.flatnonzero(places != np.arange(len(places)))
    kept = {}
    for name, buffer in buffers.items():
        buffer.pull()
        buffer.array[moved] = buffer.array[places[moved]]
        kept[name] = session.buffer(buffer.array[: len(places)])
    return kept


def _signed(dtype: npt.DTypeLike) -> npt.DTypeLike:
    return np.int8 if dtype == np.uint8 else dtype


def _copy_padded(source: Array, target: Array) -> None:
    """Copy into an array that may be larger, and fill the rest with zeros."""
    inside = tuple(slice(size) for size in source.shape)
    if source.shape != target.shape:
        target[...] = 0
    target[inside] = source


def _place_rows(row_groups: Ids, groups: int) -> tuple[Ids, Ids]:
    """Return the rows of each group, shape `(groups, width)`, and each row's flat position in it.

    Unused positions hold row 0.
    """
    order = np.argsort(row_groups, kind="stable")
    counts = np.bincount(row_groups, minlength=groups)
    width = max(LEAST_WIDTH, int(counts.max()))
    firsts = np.cumsum(counts) - counts
    flat = np.empty_like(row_groups)
    flat[order] = row_groups[order] * width + np.arange(len(order)) - firsts[row_groups[order]]
    places = np.zeros(groups * width, dtype=np.int64)
    places[flat] = np.arange(len(row_groups))
    return places.reshape(groups, width), flat


def _check_graphs(graphs: Graphs, folder: Path) -> None:
    """Check that the graphs of a folder have the inputs and outputs to run together.

    Raises:
        ModelError: one of them has others.
    """
    encoder, decoder = graphs.encoder, graphs.decoder
    pasts = {name for name in decoder.input_names if name.startswith("past_")}
    checked = [
        ("encoder.onnx", encoder.input_names, ENCODER_INPUTS),
        ("decoder.onnx", decoder.input_names, DECODER_INPUTS | set(encoder.output_names) | pasts),
        ("decoder.onnx", decoder.output_names, {"hidden"} | {name.replace("past_", "present_") for name in pasts}),
    ]
    for head in graphs.heads.values():
        checked += [("a head", head.input_names, HEAD_INPUTS), ("a head", head.output_names, {"next_ids"})]
    for place, found, wanted in checked:
        if set(found) != wanted:
            raise ModelError(
                f"{place} of {folder} has {sorted(found)}, but {sorted(wanted)} is needed.", export_again(folder)
            )
