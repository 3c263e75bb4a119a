"""Run on a CPU whose integer products saturate; writes what the shipped models and foreign operators give as JSON.

    python on_a_cpu_without_vnni.py FOLDER     reads what `write_products` has written there; writes result.json

There every import takes seconds, so it has only those it needs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from xqg_qdrant.generation.onnx import QueryGenerator, Sampling
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.inference.session import Session, are_products_exact
from xqg_qdrant.records import Passage

PASSAGE = Passage("danube", "The Danube rises in the Black Forest and flows through ten countries.", "Danube")
FORMS = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QDQ")
DEPTH, WIDTH = 64, 48
LANGUAGES = ("fi", "ja")
GREEDY = Sampling(top_k=1, temperature=1.0, max_new_tokens=12)


def write_products(folder: Path) -> None:
    """Write products by constant int8 weights, each with its operand and what it is in float64."""
    for form in FORMS:
        write_product(folder, form)


def write_product(folder: Path, form: str) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = np.clip(np.rint(rng.normal(0, 45, (DEPTH, WIDTH))), -127, 127).astype(np.int8)
    rows = rng.integers(0, 256, (32, DEPTH), dtype=np.uint8)
    step, scale = np.float32(0.02), np.float32(0.01)
    constants = {"b": weights, "z": np.uint8(128), "zero": np.int8(0), "step": step, "scale": scale}
    rounded = rows.astype(np.float64) - 128
    expected = rounded @ weights.astype(np.float64)
    of_ours = "com.microsoft"
    values = (rounded * step).astype(np.float32)
    if form == "MatMulInteger":
        feed: Any = rows
        nodes = [helper.make_node(form, ["x", "b", "z"], ["i"]), helper.make_node("Cast", ["i"], ["y"], to=1)]
    elif form == "MatMulIntegerToFloat":
        feed, expected = rows, expected * step * scale
        nodes = [helper.make_node(form, ["x", "b", "step", "scale", "z"], ["y"], domain=of_ours)]
    elif form == "DynamicQuantizeMatMul":
        # -128 to 127 steps are a batch whose dynamic scale is the step itself
        values[0, :2] = -128 * step, 127 * step
        expected = (values.astype(np.float64) / step).round() @ weights.astype(np.float64) * step * scale
        feed = values
        nodes = [helper.make_node(form, ["x", "b", "scale"], ["y"], domain=of_ours)]
    else:
        feed, expected = values, expected * step * scale
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "step", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "step", "z"], ["d"]),
            helper.make_node("DequantizeLinear", ["b", "scale", "zero"], ["w"]),
            helper.make_node("MatMul", ["d", "w"], ["y"]),
        ]
    used = {name for node in nodes for name in node.input}
    taken = [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(feed.dtype), ["rows", DEPTH])]
    given = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", WIDTH])]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used]
    graph = helper.make_graph(nodes, "product", taken, given, stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(of_ours, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / f"{form}.onnx")
    np.savez(folder / f"{form}.npz", operand=feed, expected=expected)


def product_error(folder: Path, form: str) -> float:
    """Return how far a product is from float64, relative to the largest value."""
    known = np.load(folder / f"{form}.npz")
    [found] = Session(folder / f"{form}.onnx", "cpu", 1).run({"x": known["operand"]})
    return float(np.abs(found - known["expected"]).max() / np.abs(known["expected"]).max())


def measure(folder: Path) -> dict[str, Any]:
    """Return the verdict of the probe, each error, a vector of the demo encoder and greedy queries of the generator."""
    generated = QueryGenerator(None, "cpu", threads=1).generate([PASSAGE], LANGUAGES, 1, 0, GREEDY)
    return {
        "exact": are_products_exact(),
        "errors": {form: product_error(folder, form) for form in FORMS},
        "vector": Encoder(None, "cpu", threads=1).encode_passages([PASSAGE.text])[0].tolist(),
        "queries": [query.text for query in generated[0].queries],
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "result.json").write_text(json.dumps(measure(place)))
