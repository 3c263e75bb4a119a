"""Compute the least time that a model's arithmetic and memory traffic take on this machine.

Arithmetic: multiply-adds of the shape over ONNX Runtime's best rate in one large matrix product. Traffic: bytes of
weights and caches over the rate at which memory is read. The two are added, since a step cannot multiply while it waits
for memory. Where they do overlap, the reported share of the bound is too high, never too low.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from harness import spread

BYTES = {"int8": 1, "float32": 4}
# Rows, depth and columns of the measured products: matrices of the shapes, with enough rows. The best rate counts.
PRODUCTS = ((2048, 512, 1024), (2048, 1024, 512), (2048, 384, 1536), (2048, 768, 3072))
READ_BYTES = 1 << 28
SECONDS = 0.3


class Machine(NamedTuple):
    """Measured rates: multiply-adds per second by dtype, and bytes read per second."""

    products: dict[str, float]
    read: float


def prepare_machine(cores: int) -> dict[str, Callable[[Sequence[Any]], Machine]]:
    """Return a pass, for a side of the harness, that measures the machine with one thread a core."""
    products = {dtype: [_product(dtype, *shape) for shape in PRODUCTS] for dtype in BYTES}
    halves = [np.ones(READ_BYTES // 4, dtype=np.float32) for _ in range(cores)]

    def run(_: Sequence[Any]) -> Machine:
        with ThreadPoolExecutor(cores) as pool:
            best = {
                dtype: max(sum(pool.map(_rate, [(step, count)] * cores)) for step, count in tried)
                for dtype, tried in products.items()
            }
            read = sum(pool.map(_rate, [(lambda half=half: half.max(), half.nbytes) for half in halves]))
        return Machine(best, read)

    return {"": run}


def generation_seconds(
    machine: Machine, config: Mapping[str, Any], dtype: str, prompt_tokens: float, new_tokens: float, *,
    samples: int, rows: int, vocabulary: int,
) -> float:  # fmt: skip
    """Return the least seconds for one query of an mT5 with this configuration.

    `samples` queries share an encoder run with its keys and values, `rows` queries share a read of the decoder's
    weights, and the output projection has `vocabulary` columns.
    """
    width, inner, wide = config["d_model"], config["num_heads"] * config["d_kv"], 3 * config["d_model"] * config["d_ff"]
    layers = config["num_decoder_layers"]
    encoder = config["num_layers"] * (4 * width * inner + wide + 2 * prompt_tokens * inner)
    cross = layers * 2 * width * inner
    weights = layers * (6 * width * inner + wide) + width * vocabulary
    attention = layers * 2 * inner * (prompt_tokens + new_tokens / 2)
    multiply_adds = prompt_tokens * (encoder + cross) / samples + new_tokens * (weights + attention)
    cache = layers * 2 * inner * prompt_tokens / samples
    traffic = new_tokens * BYTES[dtype] * (weights / rows + cache)
    return multiply_adds / machine.products[dtype] + traffic / machine.read


def encoding_seconds(machine: Machine, config: Mapping[str, Any], dtype: str, tokens: Sequence[int]) -> float:
    """Return the least seconds for a BERT with this configuration to encode texts of these token counts.

    The weights are read once for every 512 tokens, the embedding not at all.
    """
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    weights = layers * (4 * width * width + 2 * width * config["intermediate_size"])
    attention = layers * 2 * width
    multiply_adds = sum(count * (weights + attention * count) for count in tokens)
    return multiply_adds / machine.products[dtype] + sum(tokens) / 512 * weights * BYTES[dtype] / machine.read


def print_machine(machines: Sequence[Machine]) -> None:
    """Print the measured rates behind the bound."""
    for dtype in BYTES:
        print(f"{dtype}: {spread([machine.products[dtype] / 1e9 for machine in machines], 0)} GMAC/s")
    print(f"memory: {spread([machine.read / 1e9 for machine in machines], 1)} GB/s", flush=True)


def _product(dtype: str, rows: int, depth: int, columns: int) -> tuple[Callable[[], object], int]:
    """Return a matrix product in ONNX Runtime with one thread, and its multiply-adds."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)
    if dtype == "int8":
        left: Any = random.integers(0, 255, (rows, depth), dtype=np.uint8)
        right: Any = random.integers(-127, 127, (depth, columns), dtype=np.int8)
        operator, kinds = "MatMulInteger", (TensorProto.UINT8, TensorProto.INT32)
    else:
        left = random.standard_normal((rows, depth), dtype=np.float32)
        right = random.standard_normal((depth, columns), dtype=np.float32)
        operator, kinds = "MatMul", (TensorProto.FLOAT, TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", kinds[0], [rows, depth])],
        [helper.make_tensor_value_info("product", kinds[1], [rows, columns])],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"left": left}), rows * depth * columns


def _rate(work: tuple[Callable[[], object], int]) -> float:
    """Return the units per second of a call, given the units of one call."""
    call, units = work
    call()
    start, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < SECONDS:
        call()
        calls += 1
    return units * calls / spent
