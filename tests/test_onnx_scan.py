"""Test the scan of ONNX files against the onnx package, which inference does not need."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from checkpoints import exported_encoder, exported_generator
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from xqg_qdrant.errors import ModelError
from xqg_qdrant.model_folders import DEMO_ENCODER, DEMO_GENERATOR, shipped_model
from xqg_qdrant.model_folders.onnx_scan import DEEPEST, ONNX_FIELDS, ExternalData, read_external_data


def tensors_of(message: Any) -> Iterator[TensorProto]:  # noqa: ANN401
    """Every tensor in a message, found by the onnx package's own description of its fields."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from tensors_of(part)


def expected_of(path: Path) -> list[ExternalData]:
    found = []
    for tensor in tensors_of(onnx.load(path, load_external_data=False)):
        about = {entry.key: entry.value for entry in tensor.external_data}
        if about:
            length = int(about["length"]) if "length" in about else None
            found.append(ExternalData(about["location"], int(about.get("offset", 0)), length))
    return found


def external(location: str, **more: str) -> TensorProto:
    tensor = TensorProto(name=location, data_type=TensorProto.FLOAT, dims=(1,), data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(*nodes: onnx.NodeProto, initializers: tuple[TensorProto, ...] = ()) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "graph", [], [], list(initializers))


def constant(location: str, **more: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["x"], value=external(location, **more))


def nested(levels: int) -> onnx.GraphProto:
    inner = graph(constant("deep"))
    for _ in range(levels):
        inner = graph(helper.make_node("If", ["c"], ["y"], then_branch=inner))
    return inner


def model_with_tensors_everywhere() -> onnx.ModelProto:
    """A model with a tensor in another file at each place where ONNX can hold one, each in a file named after it."""
    sparse = onnx.SparseTensorProto(values=external("sparse-values"), indices=external("sparse-indices"), dims=[3])
    node = constant("node")
    branches = helper.make_node("If", ["c"], ["y"], then_branch=graph(constant("then")), else_branch=nested(3))
    several = helper.make_node("Any", [], ["z"], domain="test")
    several.attribute.append(onnx.AttributeProto(name="tensors", type=onnx.AttributeProto.TENSORS))
    several.attribute[0].tensors.extend([external("tensors-0"), external("tensors-1", offset="4", length="8")])
    several.attribute.append(onnx.AttributeProto(name="graphs", graphs=[graph(initializers=(external("graphs"),))]))
    several.attribute.append(onnx.AttributeProto(name="sparse", sparse_tensor=sparse))
    several.attribute.append(onnx.AttributeProto(name="sparses", sparse_tensors=[sparse, sparse]))
    whole = graph(node, branches, several, initializers=(external("initializer"),))
    whole.sparse_initializer.append(onnx.SparseTensorProto(values=external("initial"), indices=external("indices")))
    model = helper.make_model(whole)
    function = helper.make_function("test", "F", [], ["x"], [constant("function")], [])
    function.attribute_proto.append(helper.make_attribute("default", external("default")))
    model.functions.append(function)
    training = onnx.TrainingInfoProto(initialization=graph(constant("start")), algorithm=graph(constant("step")))
    model.training_info.append(training)
    return model


def save(path: Path, model: onnx.ModelProto | bytes) -> Path:
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def exports() -> Iterator[Path]:
    folders = [shipped_model(DEMO_ENCODER), shipped_model(DEMO_GENERATOR)]
    folders += [exported_encoder("minilm", "int8"), exported_generator("mt5"), exported_generator("t5", "int8")]
    for folder in folders:
        yield from folder.glob("*.onnx")


def test_the_files_that_exports_name_are_those_that_onnx_finds() -> None:
    named = 0
    for path in exports():
        expected = expected_of(path)
        assert sorted(read_external_data(path), key=str) == sorted(expected, key=str), path
        named += len(expected)
    assert named > 50


def test_a_tensor_is_found_wherever_onnx_can_hold_one(tmp_path: Path) -> None:
    path = save(tmp_path / "model.onnx", model_with_tensors_everywhere())
    found = read_external_data(path)
    assert sorted(found, key=str) == sorted(expected_of(path), key=str)
    assert {place.location for place in found} == {
        "node", "then", "deep", "tensors-0", "tensors-1", "graphs", "sparse-values", "sparse-indices", "initializer",
        "initial", "indices", "function", "default", "start", "step",
    }  # fmt: skip
    assert ExternalData("tensors-1", 4, 8) in found


def test_the_fields_on_the_way_to_tensors_are_those_that_the_onnx_package_knows() -> None:
    messages = {name: getattr(onnx, name).DESCRIPTOR for name in dir(onnx) if name.endswith("Proto")}
    reaches = {"TensorProto"}
    while True:
        more = {
            name
            for name, message in messages.items()
            if any(field.message_type and field.message_type.name in reaches for field in message.fields)
        }
        if more <= reaches:
            break
        reaches |= more
    expected = {
        name: {
            field.number: field.message_type.name
            for field in messages[name].fields
            if field.message_type and field.message_type.name in reaches
        }
        for name in reaches
    }
    # of what leads to tensors, what a model leads to
    waiting, reached = ["ModelProto"], {"ModelProto"}
    while waiting:
        inner = set(expected[waiting.pop()].values()) - reached
        reached |= inner
        waiting += inner
    assert {name: expected[name] for name in reached} == ONNX_FIELDS


def test_a_field_that_is_written_in_more_bytes_than_it_needs_is_found_all_the_same(tmp_path: Path) -> None:
    tensor = external("elsewhere").SerializeToString()
    # The same tag, 5 << 3 | 2, and the same length in two bytes each; protobuf reads both.
    field = bytes([0xAA, 0x00, 0x80 | len(tensor), 0x00]) + tensor
    path = save(tmp_path / "model.onnx", bytes([7 << 3 | 2, len(field)]) + field)
    assert expected_of(path) == read_external_data(path) == [ExternalData("elsewhere", 0, None)]


def test_a_graph_in_two_parts_is_read_as_protobuf_reads_it(tmp_path: Path) -> None:
    parts = [helper.make_model(graph(constant(name))).SerializeToString() for name in ("first", "second")]
    path = save(tmp_path / "model.onnx", b"".join(parts))
    assert read_external_data(path) == expected_of(path)
    assert [place.location for place in read_external_data(path)] == ["first", "second"]


def test_what_onnx_can_read_of_a_damaged_file_names_no_file_that_is_not_found(tmp_path: Path) -> None:
    whole = model_with_tensors_everywhere().SerializeToString()
    both = 0
    for number in range(2000):
        chance = random.Random(number)
        content = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path = save(tmp_path / "model.onnx", bytes(content))
        model = onnx.ModelProto()
        try:
            model.ParseFromString(bytes(content))
            found = {place.location for place in read_external_data(path)}
        except (DecodeError, ModelError):
            continue
        entries = [entry for tensor in tensors_of(model) for entry in tensor.external_data]
        assert {entry.value for entry in entries if entry.key == "location"} <= found, number
        both += 1
    assert both > 400


MODEL = model_with_tensors_everywhere().SerializeToString()


def model_of(tensor: TensorProto | bytes) -> bytes:
    """A model of one initializer, by hand, so that it need not be one that onnx would write."""
    content = tensor if isinstance(tensor, bytes) else tensor.SerializeToString()
    field = bytes([5 << 3 | 2, len(content)]) + content
    return bytes([7 << 3 | 2, len(field)]) + field


UNNAMED = TensorProto(data_location=TensorProto.EXTERNAL)
TWICE = external("a")
TWICE.external_data.add(key="location", value="b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot mmap an empty file"),
        (b"\x12\x01x", "it holds no graph"),
        (MODEL[:-1], "ends after its message"),
        (MODEL + b"\x00", "there is no field at byte"),
        (MODEL + b"\x3b", "has the wire type 3, which ONNX does not use"),
        (MODEL + b"\xff" * 11, "does not end"),
        (MODEL + b"\xfa\xff\xff\xff\x7f\x00", "there is no field at byte"),
        (MODEL + b"\x3a\xff\xff\xff\xff\x0f", "ends after its message"),
        (b"\x38\x01", "has the wire type 0, but ONNX has a message there"),
        (model_of(bytes([13 << 3 | 5, 0, 0, 0, 0])), "has the wire type 5, but ONNX has a message there"),
        (model_of(UNNAMED), "lie in a file that is not named"),
        (model_of(bytes([14 << 3, 0x81, 0x80, 0x80, 0x80, 0x10])), "lie in a file that is not named"),
        (model_of(TWICE), "has an unknown or duplicate key 'location'"),
        (model_of(external("a", prepacked_0="1")), "has an unknown or duplicate key 'prepacked_0'"),
        (model_of(external("a", offset="-1")), "has the offset or length '-1'"),
        (model_of(external("a", length="1e3")), "has the offset or length '1e3'"),
        (model_of(external("a", offset="٣")), "has the offset or length '٣'"),
        (model_of(external("a", offset="9" * 20)), "has the offset or length '9999"),
        (helper.make_model(graph(constant("x" * 2000))).SerializeToString(), "is 2000 bytes long"),
        (helper.make_model(nested(DEEPEST // 3)).SerializeToString(), f"nested more than {DEEPEST} deep"),
        (model_of(external("a")).replace(b"location", b"\xff" * 8), "can't decode byte 0xff"),
    ],
)
def test_a_file_that_is_not_plainly_a_model_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "model.onnx", content)
    with pytest.raises(ModelError, match="is not a whole ONNX model") as caught:
        read_external_data(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("Cure: export the model again.")


def test_a_file_of_endless_small_fields_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xqg_qdrant.model_folders.onnx_scan.MOST_FIELDS", 1000)
    path = save(tmp_path / "model.onnx", MODEL + b"\x08\x01" * 1001)
    with pytest.raises(ModelError, match="more than 1000 fields"):
        read_external_data(path)


def test_a_tensor_with_its_values_inside_names_no_file(tmp_path: Path) -> None:
    # What onnx writes when it moves values back into the model: a location, but DEFAULT.
    tensor = TensorProto(name="x", data_location=TensorProto.DEFAULT, raw_data=b"1234")
    assert read_external_data(save(tmp_path / "model.onnx", model_of(tensor))) == []
