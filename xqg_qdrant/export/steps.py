"""The steps of an export that encoders and generators share: graphs in fp32, their check, graphs in the type asked for.

Knows model folders and their figures. Knows nothing of what is measured, nor by what.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from xqg_qdrant.export.checkpoint import Checkpoint, read_licence
from xqg_qdrant.export.emulate import EMULATION, emulate_folder
from xqg_qdrant.export.reference import Reference
from xqg_qdrant.model_description import TOKENIZER_FILE
from xqg_qdrant.model_folder import write_description
from xqg_qdrant.session import runtime_version


class Steps(NamedTuple):
    """What differs between exporting an encoder and exporting a generator."""

    reference: Reference
    fields: dict[str, Any]
    write_graphs: Callable[[Path, str], None]
    measure: Callable[[Path, dict[str, Any]], dict[str, Any]]
    accept: Callable[[dict[str, Any]], None]


def build_and_check(checkpoint: Checkpoint, temporary: Path, wanted: str, steps: Steps, inputs: int) -> dict[str, Any]:
    """Build the fp32 graphs, check them, and leave the folder that was asked for in `final`."""
    parity: dict[str, Any] = {
        "reference": steps.reference.version, "runtime": f"onnxruntime {runtime_version()}", "inputs": inputs
    }  # fmt: skip
    final = temporary / "final"
    for dtype in dict.fromkeys(("float32", wanted)):
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir()
        steps.reference.save_tokenizer(final / TOKENIZER_FILE)
        steps.write_graphs(final, dtype)
        about = {
            "source": checkpoint.source,
            "revision": checkpoint.revision,
            "licence": read_licence(checkpoint.path),
            "dtype": dtype,
            **steps.fields,
        }
        write_description(final, checkpoint.kind, about)
        if dtype == "bfloat16":
            emulate_folder(final, checkpoint.kind, temporary / "emulated")
            parity[dtype] = steps.measure(temporary / "emulated", {"measured_by": EMULATION})
        else:
            parity[dtype] = steps.measure(final, {})
        if dtype == "float32":
            steps.accept(parity[dtype])
        write_description(final, checkpoint.kind, {**about, "parity": parity})
    return parity
