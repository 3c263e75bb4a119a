"""Write ONNX graphs: nodes, constants, and matrix products in fp32, half precision or int8.

An int8 product stores its weights with one scale for each output channel, and quantises its input at run time with one
scale for each row. The usual single scale for the whole input would make a text's result depend on its neighbours,
and loses twice as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = Sequence[int | str]

OPSET = 24
MICROSOFT = "com.microsoft"
# Beyond this, weights go to a file beside the graph: the runtime maps that file, but parses and copies what is inside
# the graph, and protobuf is limited to 2 GB.
LARGEST_GRAPH_BYTES = 1_000_000
# The runtime reads smaller constants, such as shapes, before it reads external files.
LEAST_EXTERNAL_BYTES = 1024
# Alignment of each weight in that file, in bytes: a page of memory.
PAGE = 4096

HALVES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class QuantisedRows(NamedTuple):
    """Rows ready for `Graph.linear`.

    `values` has shape `(rows, in)`. `scales`, shape `(rows, 1)`, is empty where there are none; `step` is the single
    step of int8 rows without scales.
    """

    values: str
    scales: str = ""
    step: float = 1.0


class Table(NamedTuple):
    """An embedding table, plain or transposed: values, and in int8 one scale a row."""

    values: str
    scales: str


class Graph:
    """A graph under construction; every method that adds a node returns the name of its output."""

    opset = OPSET
    # Of the names of nodes and constants.
    prefix = ""

    def __init__(self, name: str, dtype: str = "float32", floats: npt.DTypeLike = np.float32) -> None:
        """Begin a graph with products in `dtype` (of `DTYPES`) and constants in `floats`."""
        self._name = name
        self._int8 = dtype == "int8"
        self._half = HALVES.get(dtype)
        self._floats = floats
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        # Arrays until they are written: protobuf messages would be a second copy of the model.
        self._large: list[tuple[onnx.TensorProto, Array]] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._small_constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._bytes = 0
        self._files: dict[str, bytes] = {}

    def input(self, name: str, dtype: type, shape: Shape) -> str:
        """Declare an input."""
        self._inputs.append(helper.make_tensor_value_info(name, _onnx_type(dtype), shape))
        return name

    def output(self, value: str, name: str, dtype: type, shape: Shape) -> str:
        """Declare a node's output as a graph output; return its public name."""
        # Rename the value: an Identity node would copy caches at every step.
        for node in self._nodes:
            for names in (node.input, node.output):
                names[:] = [name if other == value else other for other in names]
        self._outputs.append(helper.make_tensor_value_info(name, _onnx_type(dtype), shape))
        return name

    def nodes(self, op: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        """Add a node with several outputs."""
        name = f"{self.prefix}{op}_{len(self._nodes)}"
        names = [f"{name}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(op, list(inputs), names, name=name, domain=domain, **attributes))
        return names

    def node(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output."""
        return self.nodes(op, *inputs, outputs=1, domain=domain, **attributes)[0]

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike | None = None, file: str = "") -> str:
        """Add a constant, by default of the graph's floating-point type.

        Equal small constants are stored once. With `file` the values go to that file, which several graphs can share.
        """
        array: Array = np.asarray(value, dtype=self._floats if dtype is None else dtype)
        if file:
            return self._constant_in_file(array, file)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 64 else None
        if key is not None and key in self._small_constants:
            return self._small_constants[key]
        tensor = self._declare(array.shape, array.dtype)
        self._bytes += array.nbytes
        if array.nbytes > LEAST_EXTERNAL_BYTES:
            self._large.append((tensor, array))
        else:
            tensor.raw_data = array.tobytes()
        if key is not None:
            self._small_constants[key] = tensor.name
        return tensor.name

    def ints(self, *values: int) -> str:
        """Add a constant vector of int64, such as a shape."""
        return self.constant(values, np.int64)

    def count(self, length: str) -> str:
        """Add the range from 0 to `length`, an int64 vector of size 1; int64 of shape `(length,)`."""
        zero, one = (self.constant(value, np.int64) for value in (0, 1))
        return self.node("Range", zero, self.node("Squeeze", length), one)

    def reshape(self, value: str, *shape: int) -> str:
        """Add a reshape; 0 keeps a dimension, -1 infers one."""
        return self.node("Reshape", value, self.ints(*shape))

    def table(self, weight: Array, file: str = "") -> Table:
        """Add an embedding table of shape `(rows, dim)`."""
        values, scales = self._stored(weight)
        return Table(self.constant(values, values.dtype, file), scales)

    def rows_of_table(self, weight: Array, file: str, ids: Array, places: str) -> Table:
        """Add the rows `ids`, a constant `places` of the graph, of a table in a file that another graph writes.

        The runtime copies them once, when it opens the graph.
        """
        values, scales = self._stored(weight[ids])
        table = self._declare(weight.shape, values.dtype)
        _place_outside(table, file)
        return Table(self.node("Gather", table.name, places), scales)

    def transpose(self, table: Table) -> Table:
        """Transpose a table for a product; the runtime does so once, when it opens the graph."""
        return table._replace(values=self.node("Transpose", table.values, perm=(1, 0)))

    def look_up(self, ids: str, table: Table) -> str:
        """Look up the rows of a table by ids."""
        rows = self.node("Gather", table.values, ids)
        if self._half:
            return self.node("Cast", rows, to=TensorProto.FLOAT)
        if not self._int8:
            return rows
        scales = self.node("Unsqueeze", self.node("Gather", table.scales, ids), self.ints(-1))
        return self.node("Mul", self.node("Cast", rows, to=TensorProto.FLOAT), scales)

    def linear(self, value: str | QuantisedRows, weight: Array | Table, bias: Array | None = None) -> str:
        """Multiply rows, shape `(rows, in)`, by a weight of shape `(out, in)`."""
        rows = self.quantise(value) if isinstance(value, str) else value
        product = self.scale(self.product(rows, weight), rows.scales)
        return product if bias is None else self.node("Add", product, self.constant(bias))

    def product(self, rows: QuantisedRows, weight: Array | Table) -> str:
        """Multiply rows as `linear` does, but leave their scales (none in fp32) to the caller."""
        if isinstance(weight, Table):
            values, scales = weight
        else:
            stored, scales = self._stored(weight)
            values = self.constant(stored.T, stored.dtype)
        if not self._int8:
            product = self.node("MatMul", rows.values, values)
            return self.node("Cast", product, to=TensorProto.FLOAT) if self._half else product
        step, middle = self.constant(np.float32(rows.step)), self.constant(np.uint8(128), np.uint8)
        return self.node("MatMulIntegerToFloat", rows.values, values, step, scales, middle, domain=MICROSOFT)

    def scale(self, value: str, scales: str) -> str:
        """Multiply by scales, if there are any."""
        return self.node("Mul", value, scales) if scales else value

    def quantise(self, value: str, step: float | None = None) -> QuantisedRows:
        """Quantise rows once for several products; in fp32 they stay as they are.

        With `step` all int8 rows share it, otherwise each row has a scale. In half precision each row is divided by its
        largest value.
        """
        if self._half:
            # Rows of a T5 and their products overflow float16 unless they are scaled.
            largest = self.node("ReduceMax", self.node("Abs", value), self.ints(1), keepdims=1)
            scales = self.node("Max", largest, self.constant(np.float32(1e-10)))
            half = helper.np_dtype_to_tensor_dtype(self._half)
            return QuantisedRows(self.node("Cast", self.node("Div", value, scales), to=half), scales)
        if not self._int8:
            return QuantisedRows(value)
        if step is not None:
            middle = self.constant(np.uint8(128), np.uint8)
            rows = self.node("QuantizeLinear", value, self.constant(np.float32(step)), middle)
            return QuantisedRows(rows, step=step)
        scales = self.row_scales(value)
        middle = self.node("Expand", self.constant(np.uint8(128), np.uint8), self.node("Shape", scales))
        quantised = self.node("QuantizeLinear", value, scales, middle, axis=0)
        return QuantisedRows(quantised, self.node("Unsqueeze", scales, self.ints(1)))

    def row_scales(self, value: str) -> str:
        """Return the scale that maps each row's largest value to 127, shape `(rows,)`."""
        largest = self.node("ReduceMax", self.node("Abs", value), self.ints(1), keepdims=0)
        return self.node("Max", self.node("Mul", largest, self.constant(1 / 127.0)), self.constant(np.float32(1e-10)))

    def save(self, path: Path) -> None:
        """Write the graph and its files; beyond `LARGEST_GRAPH_BYTES` weights go to `NAME.onnx.data`."""
        for name, content in self._files.items():
            (path.parent / name).write_bytes(content)
        if self._bytes > LARGEST_GRAPH_BYTES:
            self._write_large(path.with_name(f"{path.name}.data"))
        else:
            for tensor, array in self._large:
                tensor.raw_data = array.tobytes()
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, self._initializers)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="xqg-qdrant")
        onnx.save_model(model, path)

    def _write_large(self, path: Path) -> None:
        with path.open("wb") as file:
            for tensor, array in self._large:
                file.write(bytes(-file.tell() % PAGE))
                _place_outside(tensor, path.name, offset=file.tell(), length=array.nbytes)
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def _stored(self, weight: Array) -> tuple[Array, str]:
        """Return a matrix in its stored type, and in int8 the scales of its rows."""
        if not self._int8:
            return weight.astype(self._half or self._floats, copy=False), ""
        values, scales = quantise_rows(weight)
        return values, self.constant(scales)

    def _constant_in_file(self, array: Array, file: str) -> str:
        tensor = self._declare(array.shape, array.dtype)
        _place_outside(tensor, file)
        self._files[file] = array.tobytes()
        return tensor.name

    def _declare(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> TensorProto:
        """Add a constant without its values."""
        name = f"{self.prefix}constant_{len(self._initializers)}"
        data_type = helper.np_dtype_to_tensor_dtype(dtype)
        self._initializers.append(TensorProto(name=name, data_type=data_type, dims=shape))
        return self._initializers[-1]


def _place_outside(tensor: TensorProto, file: str, **where: int) -> None:
    """Point a constant at its values in an external file."""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": file, **where}.items():
        tensor.external_data.add(key=key, value=str(value))


def quantise_rows(weight: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantise a matrix to int8 symmetrically; return it and its scales, shape `(rows,)`."""
    largest = np.abs(weight).max(axis=1)
    scales = (np.maximum(largest, 1e-12) / 127).astype(np.float32)
    quantised = np.clip(np.rint(weight / scales[:, None]), -127, 127).astype(np.int8)
    return quantised, scales


def _onnx_type(dtype: type) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
