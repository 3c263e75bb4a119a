"""Hostile and damaged folders in the layouts of other programs: refused before a runtime opens a file of them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest
from click.testing import CliRunner
from foreign_folders import sentence_transformers_folder
from onnx import TensorProto

from xqg_qdrant.cli import main
from xqg_qdrant.errors import ModelError
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.model_folders import describe_in_place

OUTSIDE = "secret.data"
GRAPH, DATA, WEIGHTS = "onnx/model.onnx", "onnx/model.onnx_data", "2_Dense/model.safetensors"
Spoil = Callable[[Path], object]


class Case(NamedTuple):
    """How a folder is spoilt, and what the message must name."""

    spoil: Spoil
    named: str


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.abort, ()


def replaces(name: str, make: Callable[[Path], object]) -> Spoil:
    """Move a file or a folder out and put something else in its place."""

    def spoil(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / "moved")
        make(folder / name)

    return spoil


def link(path: Path) -> None:
    path.symlink_to(next(parent / "moved" for parent in path.parents if (parent / "moved").exists()))


def hard_link(path: Path) -> None:
    os.link(next(parent / "moved" for parent in path.parents if (parent / "moved").exists()), path)


def grows(name: str, size: int) -> Spoil:
    return lambda folder: os.truncate(folder / name, size)


def holds(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def says(name: str, **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")

    return spoil


def lists(module: Any, place: int = 2) -> Spoil:  # noqa: ANN401
    def spoil(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        modules[place] = module
        (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")

    return spoil


def described(spoil: Spoil) -> Spoil:
    """Spoil a folder of which `xqg describe` has written down everything."""

    def spoil_it(folder: Path) -> None:
        describe_in_place(folder)
        spoil(folder)

    return spoil_it


def reads(location: str, **more: str) -> Spoil:
    """Return what adds to the graph a weight stored at a location."""

    def spoil(folder: Path) -> None:
        model = onnx.load(folder / GRAPH, load_external_data=False)
        tensor = TensorProto(name="hostile", data_type=TensorProto.UINT8, dims=(1,), data_location=TensorProto.EXTERNAL)
        for key, value in {"location": location, **more}.items():
            tensor.external_data.add(key=key, value=value)
        model.graph.initializer.append(tensor)
        (folder / GRAPH).write_bytes(model.SerializeToString())

    return spoil


def both(first: Spoil, second: Spoil) -> Spoil:
    return lambda folder: (first(folder), second(folder))


DENSE = "sentence_transformers.models.Dense"
DEEP = 100_000
OUTER_FOLDERS: list[Any] = [None, "../2_Dense", "/etc", "a/b", "..", ".", "x\0", "C:\\x", "\ud800"]
WRONG_MODULES: list[Any] = [
    None, "Dense", [], {}, {"type": DENSE}, {"type": 5, "path": "2_Dense"},
    *({"type": DENSE, "path": path} for path in OUTER_FOLDERS),
]  # fmt: skip
OUTER_FILES = (f"../{OUTSIDE}", "a/b/c.onnx", "/etc/x.data", "onnx/../x.data", "onnx//x.data", "onnx/", "\\x.data")
WRONG_IN_DESCRIPTIONS: dict[str, list[Any]] = {
    "graph": ["../x.onnx", "/x.onnx", "a/b/c.onnx", "onnx/..", "onnx/model.py", None, 5, ".x.onnx", "C:\\x.onnx"],
    "output": ["", None, 5],
    "dense": ["2_Dense", ["../2_Dense"], ["a/b"], [5], None],
    "pooling": ["max", None],
    "normalise": [1],
    "max_query_tokens": [3, "40"],
    "query_prefix": [None, "\ud800"],
}
CASES: dict[str, Case] = {
    **{
        f"{name} through a link": Case(replaces(name, link), f"{name} is a symbolic link")
        for name in (
            GRAPH, DATA, WEIGHTS, "tokenizer.json", "config.json", "modules.json", "tokenizer_config.json",
            "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json", "1_Pooling",
            "2_Dense", "2_Dense/config.json", "onnx",
        )
    },
    **{
        f"hard link of {name}": Case(replaces(name, hard_link), f"{name} is a hard link")
        for name in (GRAPH, DATA, WEIGHTS, "tokenizer.json", "modules.json")
    },
    **{
        f"pipe for {name}": Case(replaces(name, os.mkfifo), f"{name} is not a regular file")
        for name in (GRAPH, DATA, WEIGHTS, "tokenizer.json", "config.json", "modules.json", "1_Pooling/config.json")
    },
    "file for a folder": Case(replaces("1_Pooling", lambda path: path.write_bytes(b"")), "pools by []"),
    "link to nothing": Case(replaces("modules.json", lambda path: path.symlink_to("gone")), "is a symbolic link"),
    "no weights": Case(lambda folder: (folder / DATA).unlink(), f"lacks {DATA}"),
    "no tokenizer": Case(lambda folder: (folder / "tokenizer.json").unlink(), "lacks tokenizer.json"),
    "no pooling": Case(lambda folder: (folder / "1_Pooling" / "config.json").unlink(), "pools by []"),
    # sizes, of holes that take no disk
    "endless weights": Case(grows(DATA, (256 << 30) + 1), ".onnx_data has 274877906945 bytes"),
    "endless layer": Case(grows(WEIGHTS, (256 << 20) + 1), ".safetensors has 268435457 bytes"),
    "graph beyond protobuf": Case(grows(GRAPH, 1 << 31), "model.onnx has 2147483648 bytes"),
    "endless tokenizer": Case(grows("tokenizer.json", (256 << 20) + 1), "json has 268435457 bytes"),
    "endless modules": Case(grows("modules.json", (16 << 20) + 1), "larger than 16777216 bytes"),
    # JSON
    "deep configuration": Case(holds("config.json", b"[" * DEEP), "is nested too deep"),
    "deep modules": Case(holds("modules.json", b"[" * DEEP + b"]" * DEEP), "is nested too deep"),
    "configuration as a list": Case(holds("config.json", b"[]"), "config.json is not a JSON object"),
    "modules of no JSON": Case(holds("modules.json", b"\x80\x04"), "is not valid JSON"),
    "modules as an object": Case(holds("modules.json", b"{}"), "has a malformed module None"),
    "pooling given twice": Case(
        holds("1_Pooling/config.json", b'{"pooling_mode": "cls", "pooling_mode": "mean"}'),
        "duplicate field 'pooling_mode'",
    ),
    **{
        f"module {module!r:.60}": Case(lists(module), "has a malformed module ")
        for module in WRONG_MODULES
    },
    "module of another package": Case(lists({"type": "os.Dense", "path": "2_Dense"}), "is a pipeline of"),
    "transformer elsewhere": Case(
        lists({"type": "sentence_transformers.models.Transformer", "path": "0_T"}, 0), "is a pipeline of"
    ),
    **{
        f"prompts {prompts!r:.40}": Case(
            says("config_sentence_transformers.json", prompts=prompts), "_prefix = "
        )
        for prompts in (["query: "], "query: ", {"query": 5}, {"query": ["q"]}, {"document": "\ud800"})
    },
    "length of nothing": Case(says("sentence_bert_config.json", max_seq_length=1), "max_query_tokens = 1"),
    # graphs that name other files
    **{
        f"weights in {location!r:.40}": Case(reads(location), "model.onnx keeps a tensor in ")
        for location in (
            f"../{OUTSIDE}", "/etc/passwd", "/dev/zero", "./model.onnx_data", "../onnx/model.onnx_data", "..", "",
            "..\\secret.data", "../tokenizer.json", "model.onnx_data\0", "file:///etc/passwd", "*/_ORT_MEM_ADDR_/*",
            "~/x.onnx_data", "weights", "tensor.bin", "model.onnx_data_1234", "\x1b[2J.onnx_data",
        )
    },
    "weights that are not there": Case(reads("more.onnx_data"), "lacks onnx/more.onnx_data"),
    "weights through a link": Case(
        both(lambda folder: (folder / "onnx" / "x.data").symlink_to("/dev/zero"), reads("x.data")), "is a symbolic link"
    ),
    "weights beyond the end": Case(reads("model.onnx_data", offset="9" * 18), "beyond its end"),
    "negative offset": Case(reads("model.onnx_data", offset="-1"), "offset or length '-1'"),
    "empty graph": Case(holds(GRAPH, b""), "is not a whole ONNX model"),
    "pickle for a graph": Case(holds(GRAPH, pickle.dumps(_Code())), "is not a whole ONNX model"),
    "graph of nothing": Case(holds(GRAPH, b"\x3a\x00"), "is not a text encoder"),
    "pickle for a layer": Case(
        replaces(WEIGHTS, lambda path: path.with_name("pytorch_model.bin").write_bytes(pickle.dumps(_Code()))),
        "pytorch_model.bin is a pickle, which can run any code, and is never opened",
    ),
    # what xqg describe wrote, changed afterwards
    **{
        f"described {field} {value!r:.40}": Case(described(says("xqg.json", **{field: value})), f"has {field} = ")
        for field, values in WRONG_IN_DESCRIPTIONS.items()
        for value in values
    },
    "described graph not listed": Case(described(says("xqg.json", graph="x.onnx")), "x.onnx is missing in files"),
    "described layer not listed": Case(described(says("xqg.json", dense=["x"])), "x/config.json is missing in files"),
    **{
        f"described file {name!r:.40}": Case(described(says("xqg.json", files={name: "0" * 64})), "names a file outs")
        for name in OUTER_FILES
    },
    "described pickle": Case(
        described(says("xqg.json", files={"2_Dense/pytorch_model.bin": "0" * 64})), "lists '2_Dense/pytorch_model.bin'"
    ),
    "described weights changed": Case(described(holds(DATA, b"x" * 300_000)), "has sha256"),
    "described as a generator": Case(described(says("xqg.json", kind="generator")), "of kind 'generator'"),
    "described graph through a link": Case(described(replaces("onnx", link)), "onnx is a symbolic link"),
    "described layer through a link": Case(described(replaces("2_Dense", link)), "2_Dense is a symbolic link"),
}  # fmt: skip


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every kind of file, its weights beside the graph."""
    source = sentence_transformers_folder("labse")
    folder = tmp_path_factory.mktemp("sound") / "model"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model.safetensors", "onnx", "README.md"))
    shutil.copy(source / WEIGHTS, folder / WEIGHTS)
    (folder / "onnx").mkdir()
    model = onnx.load(source / GRAPH)
    onnx.save(model, folder / GRAPH, save_as_external_data=True, location=Path(DATA).name)
    return folder


def forbid_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*given: object) -> None:
        raise AssertionError(f"a runtime was handed {given}")

    for name in ("Session", "open_tokenizer", "read_dense"):
        monkeypatch.setattr(f"xqg_qdrant.inference.encoder.{name}", opened)


def test_a_copy_that_nobody_spoilt_is_opened(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    assert Encoder(folder, "cpu", 1).dim == 24
    describe_in_place(folder)
    assert Encoder(folder, "cpu", 1).dim == 24


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_or_damaged_folder_is_refused_before_anything_of_it_is_opened(
    name: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / OUTSIDE).write_bytes(b"what nobody else may read")
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    CASES[name].spoil(folder)
    forbid_opening(monkeypatch)
    with pytest.raises(ModelError) as caught:
        Encoder(folder)
    message = str(caught.value)
    assert CASES[name].named in message
    assert str(folder) in message
    assert message.count("Cure: ") == 1
    assert message.isprintable()
    assert len(message.replace(str(tmp_path), "")) <= 700
    assert "what nobody else may read" not in message

    # The command that describes a folder refuses it too, and leaves no description behind.
    if not (folder / "xqg.json").exists():
        done = CliRunner().invoke(main, ["describe", str(folder)])
        printed = f"Error: {caught.value.message}\nCure: {caught.value.cure}.\n"
        assert (done.exit_code, done.stdout, done.stderr) == (6, "", printed)
        assert not os.path.lexists(folder / "xqg.json")


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(**changes: Any) -> bytes:
    about = {"dtype": "F32", "shape": [24, 32], "data_offsets": [0, 3072], **changes}
    bias = {"dtype": "F32", "shape": [24], "data_offsets": [3072, 3168]}
    return safetensors({"linear.weight": about, "linear.bias": bias}, bytes(3168))


# What lies behind a checksum of its own is judged when it is read.
LAYERS = {
    "a sound one": (tensor(), ""),
    "nothing": (b"", "has a damaged safetensors file"),
    "a pickle": (pickle.dumps(_Code()), "has a damaged safetensors file"),
    "a header beyond the file": ((1 << 62).to_bytes(8, "little") + b"{}", "has a damaged safetensors file"),
    "a header of no JSON": (safetensors(b"\x80\x04"), "2_Dense "),
    "a deep header": (safetensors(b"[" * DEEP), "2_Dense "),
    "a header as a list": (safetensors([1]), "has a damaged safetensors file"),
    "a tensor as a list": (safetensors({"linear.weight": [1]}), "holds 'linear.weight' as None"),
    "no tensors": (safetensors({}), "holds [], but ['linear.bias', 'linear.weight'] is needed"),
    "bfloat16": (tensor(dtype="BF16"), "holds 'linear.weight' as 'BF16'"),
    "offsets beyond the end": (
        tensor(data_offsets=[1 << 40, (1 << 40) + 3072]),
        "invalid shape or offset of the tensor 'linear.weight'",
    ),
    "offsets backwards": (tensor(data_offsets=[3072, 0]), "invalid shape or offset of the tensor 'linear.weight'"),
    "negative offsets": (tensor(data_offsets=[-3072, 0]), "invalid shape or offset of the tensor 'linear.weight'"),
    "one offset": (tensor(data_offsets=[0]), "invalid shape or offset of the tensor 'linear.weight'"),
    "a larger shape": (tensor(shape=[1 << 40, 1 << 40]), "invalid shape or offset of the tensor 'linear.weight'"),
    "a shape of no numbers": (tensor(shape=["24", True]), "invalid shape or offset of the tensor 'linear.weight'"),
    "one dimension": (tensor(shape=[768]), "has a weight of shape (768,)"),
    "turned round": (tensor(shape=[32, 24]), "has a weight of shape (32, 24) and a bias of shape (24,)"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_damaged_layer_is_refused(name: str, sound: Path, tmp_path: Path) -> None:
    content, said = LAYERS[name]
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    (folder / WEIGHTS).write_bytes(content)
    if not said:
        assert Encoder(folder, "cpu", 1).dim == 24
        return
    with pytest.raises(ModelError) as caught:
        Encoder(folder, "cpu", 1)
    assert said in str(caught.value)
    assert str(folder) in str(caught.value)
    assert str(caught.value).count("Cure: ") == 1


def test_a_layer_that_takes_another_dimension_is_refused(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    bias = {"dtype": "F32", "shape": [24], "data_offsets": [0, 96]}
    weight = {"dtype": "F32", "shape": [24, 5], "data_offsets": [96, 576]}
    (folder / WEIGHTS).write_bytes(safetensors({"linear.weight": weight, "linear.bias": bias}, bytes(576)))
    with pytest.raises(ModelError, match=r"a Dense layer takes 5 numbers, but the layer before it returns 32\. Cure: "):
        Encoder(folder, "cpu", 1)
