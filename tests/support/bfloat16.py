"""A model in bfloat16 on a CPU, to measure what it loses: ONNX Runtime has its products and attention for GPUs only.

Each of them takes its bfloat16 inputs as fp32 and rounds its result to bfloat16, as a GPU does, which adds up in fp32.
What a GPU may round inside the attention, its weights, is not rounded here.

Knows onnx files and model folders. Knows nothing of BERT or T5.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from xqg_qdrant.model_folders import read_model_folder, write_description
from xqg_qdrant.model_folders.description import TOKENIZER_FILE

EMULATION = "the graph on a CPU, its products and attention in fp32, rounded to bfloat16"
# The operators that a CPU lacks, and how many of their inputs are bfloat16.
NARROW_INPUTS = {"Gemm": 3, "Attention": 3, "MatMul": 2}


def emulate_folder(folder: Path, kind: str, emulated: Path) -> None:
    """Copy a model in bfloat16 to a folder that runs on a CPU, with the same weights."""
    model = read_model_folder(folder, kind)
    emulated.mkdir(parents=True)
    shutil.copy(folder / TOKENIZER_FILE, emulated)
    for name in model.description["files"]:
        if name.endswith(".onnx"):
            graph = onnx.load(folder / name)
            emulate_graph(graph)
            onnx.save_model(graph, emulated / name, save_as_external_data=True, location=f"{name}.data")
    write_description(emulated, kind, {**model.description, "emulated": EMULATION})


def emulate_graph(model: onnx.ModelProto) -> None:
    """Replace each product and attention in bfloat16 by one in fp32 whose result is rounded."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    narrow = {value.name for value in inferred.value_info if value.type.tensor_type.elem_type == TensorProto.BFLOAT16}
    nodes = []
    for node in model.graph.node:
        if node.op_type not in NARROW_INPUTS or node.input[0] not in narrow:
            nodes.append(node)
            continue
        for place in range(NARROW_INPUTS[node.op_type]):
            wide = f"{node.name}_wide_{place}"
            nodes.append(helper.make_node("Cast", [node.input[place]], [wide], to=TensorProto.FLOAT))
            node.input[place] = wide
        rounded = node.output[0]
        node.output[0] = f"{node.name}_unrounded"
        nodes += [node, helper.make_node("Cast", [node.output[0]], [rounded], to=TensorProto.BFLOAT16)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
