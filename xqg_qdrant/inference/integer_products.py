"""Compute exact products of 8-bit integers on every CPU.

Without VNNI or AMX an x86 CPU multiplies uint8 rows by int8 weights in pairs whose sum saturates at 16 bits: up to
87% of the products of trained weights are wrong. uint8 by uint8 is exact everywhere, and equal once the zero point
moves from 0 to 128. With `EXACT_CONSTANTS` ONNX Runtime makes that change to constants itself. It cannot do so for an
operand that another graph computed: `with_unsigned_operands` edits such a graph.
"""

from __future__ import annotations

from xqg_qdrant.model_folders.onnx_scan import Field, read_fields

# ONNX Runtime's name for the change. Where products are exact without it, it halves the speed of generation.
EXACT_CONSTANTS = "session.x64quantprecision"

UINT8, INT8, INT32 = 2, 3, 6
PRODUCT = b"MatMulInteger"
ZERO_POINT = b"xqg_zero_point_128"
VARINT, BYTES = 0, 2
# ONNX's field numbers: of ModelProto, GraphProto, NodeProto, ValueInfoProto (name, type), TypeProto, TensorProto.
IR_VERSION, GRAPH, OPSET = 1, 7, 8
NODE, INITIALIZER, INPUT, OUTPUT = 1, 5, 11, 12
NODE_INPUT, NODE_OUTPUT, OP_TYPE = 1, 2, 4
NAME, TYPE = 1, 2
TENSOR_TYPE = 1
ELEMENT, SHAPE = 1, 2
DATA_TYPE, TENSOR_NAME, RAW_DATA = 2, 8, 9


def make_probe() -> bytes:
    """Return an ONNX model of one product: `rows`, uint8, by `weights`, int8, which is an input and no constant."""
    node = (
        _field(NODE_INPUT, b"rows") + _field(NODE_INPUT, b"weights") + _field(NODE_OUTPUT, b"products")
        + _field(OP_TYPE, PRODUCT)
    )  # fmt: skip
    graph = (
        _field(NODE, node) + _field(2, b"probe") + _field(INPUT, _value(b"rows", UINT8))
        + _field(INPUT, _value(b"weights", INT8)) + _field(OUTPUT, _value(b"products", INT32))
    )  # fmt: skip
    return _number(IR_VERSION, 10) + _field(GRAPH, graph) + _field(OPSET, _number(2, 21))


def with_unsigned_operands(model: bytes) -> bytes:
    """Change each int8 input that is the second operand of a product to uint8.

    The caller adds 128 to these inputs. The products stay the same integers, because their second zero point becomes
    128. A model without such inputs is returned unchanged.

    Raises:
        ValueError: the bytes are not an ONNX model.
    """
    return b"".join(
        _field(GRAPH, _edit_graph(field.value)) if field.number == GRAPH else field.whole
        for field in read_fields(model)
    )


def _edit_graph(graph: bytes) -> bytes:
    fields = read_fields(graph)
    products = [_product_inputs(field.value) for field in fields if field.number == NODE]
    operands = {names[1] for names in products if len(names) in (2, 3)}
    taken = [field.value for field in fields if field.number == INPUT]
    signed = {_name(value) for value in taken if _name(value) in operands and _element(value) == INT8}
    if not signed:
        return graph
    zero = _number(DATA_TYPE, UINT8) + _field(TENSOR_NAME, ZERO_POINT) + _field(RAW_DATA, bytes([128]))
    return b"".join([*(_edit_field(field, signed) for field in fields), _field(INITIALIZER, zero)])


def _edit_field(field: Field, signed: set[bytes]) -> bytes:
    """Return a field of a graph with the inputs in `signed` made unsigned."""
    if field.number == INPUT and _name(field.value) in signed:
        parts = read_fields(field.value)
        edited = (_field(TYPE, _unsigned(part.value)) if part.number == TYPE else part.whole for part in parts)
        return _field(INPUT, b"".join(edited))
    if field.number == NODE and (names := _product_inputs(field.value)) and names[1] in signed:
        missing = [b""] * (3 - len(names))
        added = b"".join(_field(NODE_INPUT, name) for name in (*missing, ZERO_POINT))
        return _field(NODE, field.value + added)
    return field.whole


def _product_inputs(node: bytes) -> list[bytes]:
    """Return the inputs of an integer product; an empty list for other nodes."""
    return _values(node, NODE_INPUT) if _values(node, OP_TYPE) == [PRODUCT] else []


def _element(value: bytes) -> int:
    """Return the element type of a graph's input; 0 if it is not a tensor."""
    [of_value] = _values(value, TYPE)
    tensors = _values(of_value, TENSOR_TYPE)
    return _values(tensors[0], ELEMENT)[0][0] if tensors else 0


def _name(value: bytes) -> bytes:
    [name] = _values(value, NAME)
    return name


def _unsigned(of_value: bytes) -> bytes:
    [tensor] = _values(of_value, TENSOR_TYPE)
    shape = b"".join(field.whole for field in read_fields(tensor) if field.number != ELEMENT)
    return _field(TENSOR_TYPE, _number(ELEMENT, UINT8) + shape)


def _values(message: bytes, number: int) -> list[bytes]:
    return [field.value for field in read_fields(message) if field.number == number]


def _value(name: bytes, element: int) -> bytes:
    """Return the message that describes a graph's input or output, a matrix of any size."""
    shape = _field(1, b"") * 2
    tensor = _number(ELEMENT, element) + _field(SHAPE, shape)
    return _field(NAME, name) + _field(TYPE, _field(TENSOR_TYPE, tensor))


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | BYTES) + _varint(len(value)) + value


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3 | VARINT) + _varint(value)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])
