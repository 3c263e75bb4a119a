"""What a GPU would do, on a CPU: padded runs, several devices, a device whose memory ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from xqg_qdrant.inference.encoder import CUDA_TOKENS_A_RUN, Encoder

# More than any machine has, so that the runtime asks for it in vain, and at no cost.
TOO_MUCH = 1 << 42


def pad_runs(encoder: Encoder) -> None:
    """Let texts of different lengths share a padded run, as on a GPU."""
    encoder._padded = True
    encoder._budget.most = CUDA_TOKENS_A_RUN


def limit_memory(path: Path, tokens: int) -> None:
    """Add to a graph what asks for more memory than there is in a run of more tokens, and else changes nothing."""
    model = onnx.load(path)
    constants = {"limit": [tokens], "none": [0], "too much": [TOO_MUCH]}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in constants.items())
    output = model.graph.output[0]
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == output.name:
                node.output[place] = "unlimited"
    nodes = [
        helper.make_node("Size", ["input_ids"], ["size"]),
        helper.make_node("Sub", ["size", "limit"], ["over"]),
        helper.make_node("Clip", ["over", "none scalar", "one scalar"], ["is over"]),
        helper.make_node("Mul", ["is over", "too much"], ["bytes"]),
        helper.make_node("ConstantOfShape", ["bytes"], ["memory"]),
        helper.make_node("ReduceSum", ["memory"], ["zero"], keepdims=0),
        helper.make_node("Add", ["unlimited", "zero"], [output.name]),
    ]
    scalars = {"none scalar": 0, "one scalar": 1}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in scalars.items())
    model.graph.node.extend(nodes)
    assert output.type.tensor_type.elem_type == TensorProto.FLOAT
    onnx.save(model, path)
