"""The graphs of a generator that xqg exported, open on one device: prompts → `decoding.Step`.

Knows which files they are, whether they fit together, and how large a run is. Steps are `decoder_step`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xqg_qdrant.decoder_step import DecoderStep, Graphs, Memory
from xqg_qdrant.decoding import Ids, Step
from xqg_qdrant.errors import ModelError
from xqg_qdrant.model_description import FULL_VOCABULARY, head_file
from xqg_qdrant.model_folder import ModelFolder
from xqg_qdrant.prompt_batches import Sizes
from xqg_qdrant.session import Session, are_products_exact

ENCODER_INPUTS = {"input_ids", "attention_mask"}
DECODER_INPUTS = {"ids", "step", "places", "row_places", "attention_mask"}
HEAD_INPUTS = {"hidden", "chosen_rows", "temperature", "noise"}


class Decoder:
    """The open graphs, and memory that goes from one run to the next; several threads may use one."""

    def __init__(self, folder: ModelFolder, device: str, threads: int, optional: bool) -> None:
        """Open all graphs of a folder on one device.

        Raises:
            ModelError: they do not run there, or not together.
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

    def sizes(self, rows: int, steps: int) -> Sizes:
        """Return how large a prompt is that so many rows of so many steps are written from."""
        decoder = self.graphs.decoder
        pasts = [name for name in decoder.input_names if name.startswith("past_")]
        crosses = [name for name in decoder.input_names if name.startswith("cross_") and "scale" not in name]
        return Sizes(rows, steps * decoder.bytes_of(pasts), decoder.bytes_of(crosses))

    @contextmanager
    def begin(
        self, prompts: Sequence[Sequence[int]], row_prompts: Ids, row_heads: npt.NDArray[np.str_], temperature: float
    ) -> Iterator[Step]:
        """Encode the prompts; row `i` belongs to prompt `row_prompts[i]`, and is written with head `row_heads[i]`."""
        memory = self._take_memory()
        yield DecoderStep(self.graphs, memory, prompts, row_prompts, row_heads, temperature)
        self._idle_memories.append(memory)

    def _take_memory(self) -> Memory:
        # Each thread needs its own; looking first whether one is idle would be a race.
        try:
            return self._idle_memories.pop()
        except IndexError:
            return Memory()


def _check_graphs(graphs: Graphs, folder: Path) -> None:
    """Make sure that these graphs of a folder take and give what they must to be run together.

    Raises:
        ModelError: one of them does not.
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
                f"{place} of {folder} has {sorted(found)}, where {sorted(wanted)} is needed. "
                f"Cure: export it again: xqg export CHECKPOINT {folder}"
            )
