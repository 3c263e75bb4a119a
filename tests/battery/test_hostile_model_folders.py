"""Hostile and damaged model folders, each made from a shipped one: refused before a file of it is opened.

Checksums are updated unless they are the point of a case, as the author of such a folder would do.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from xqg_qdrant.cli import main
from xqg_qdrant.errors import ModelError
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.model_folders import DEMO_ENCODER, DEMO_GENERATOR, shipped_model
from xqg_qdrant.model_folders.files import hash_file

CHECKOUT = Path(__file__).resolve().parents[2]
SHIPPED = {"encoder": DEMO_ENCODER, "generator": DEMO_GENERATOR}
TABLE = (shipped_model(DEMO_GENERATOR) / "embedding.data").stat().st_size
OUTSIDE = "secret.data"
LONGEST_MESSAGE = 700
Spoil = Callable[[Path], None]


class Case(NamedTuple):
    """A folder of this kind, how it is spoilt, and what the message must name."""

    kind: str
    spoil: Spoil
    named: str


def read_about(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / "xqg.json").read_text(encoding="utf-8"))
    return about


def write_about(folder: Path, about: dict[str, Any]) -> None:
    (folder / "xqg.json").write_text(json.dumps(about), encoding="utf-8")


def relist(folder: Path, *more: str) -> None:
    about = read_about(folder)
    about["files"] = {name: hash_file(folder / name) for name in (*about["files"], *more)}
    write_about(folder, about)


def says(**changes: Any) -> Spoil:
    return lambda folder: write_about(folder, {**read_about(folder), **changes})


def samples(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        about = read_about(folder)
        write_about(folder, {**about, "sampling": {**about["sampling"], **changes}})

    return spoil


def lists(name: str, checksum: Any = "0" * 64) -> Spoil:  # noqa: ANN401
    def spoil(folder: Path) -> None:
        about = read_about(folder)
        write_about(folder, {**about, "files": {**about["files"], name: checksum}})

    return spoil


def lacks(*path: str) -> Spoil:
    def spoil(folder: Path) -> None:
        about = read_about(folder)
        inner = about
        for name in path[:-1]:
            inner = inner[name]
        del inner[path[-1]]
        write_about(folder, about)

    return spoil


def holds(name: str, content: bytes, listed: bool = True) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content)
        if listed:
            relist(folder)

    return spoil


def edits(name: str, edit: Callable[[bytes], bytes], listed: bool = True) -> Spoil:
    return lambda folder: holds(name, edit((folder / name).read_bytes()), listed)(folder)


def json_as(edit: Callable[[str], bytes]) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "xqg.json").write_bytes(edit((folder / "xqg.json").read_text(encoding="utf-8")))

    return spoil


def removes(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def replaces(name: str, make: Callable[[Path], object]) -> Spoil:
    """Move a file out of the folder and put something else in its place."""

    def spoil(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / name)
        make(folder / name)

    return spoil


def links_to(target: Callable[[Path], Path]) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target(path))


def moved(path: Path) -> Path:
    return path.parent.parent / path.name


def grows(name: str, size: int) -> Spoil:
    return lambda folder: os.truncate(folder / name, size)


def external(location: str, **more: str) -> TensorProto:
    tensor = TensorProto(name="hostile", data_type=TensorProto.UINT8, dims=(1,), data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def constant(location: str, **more: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["hostile"], value=external(location, **more))


def graph_of(location: str) -> onnx.GraphProto:
    return helper.make_graph([constant(location)], "hostile", [], [])


def graph_gets(name: str, edit: Callable[[onnx.ModelProto], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        model = onnx.load(folder / name, load_external_data=False)
        edit(model)
        (folder / name).write_bytes(model.SerializeToString())
        relist(folder)

    return spoil


def reads(location: str, **more: str) -> Spoil:
    """Return what adds to the decoder a weight stored at a location."""
    return graph_gets("decoder.onnx", lambda model: model.graph.initializer.append(external(location, **more)))


def add_branch(model: onnx.ModelProto) -> None:
    inner = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=graph_of(f"../{OUTSIDE}"))], "inner", [], []
    )
    model.graph.node.append(helper.make_node("Loop", ["n", "c"], ["z"], body=inner))


def add_function(model: onnx.ModelProto) -> None:
    model.functions.append(helper.make_function("hostile", "F", [], ["hostile"], [constant(f"../{OUTSIDE}")], []))


def add_training(model: onnx.ModelProto) -> None:
    model.training_info.append(onnx.TrainingInfoProto(algorithm=graph_of(f"../{OUTSIDE}")))


def add_sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=external(f"../{OUTSIDE}"), dims=[1]))


def read_through_link(folder: Path) -> None:
    (folder / "linked.data").symlink_to(folder.parent / OUTSIDE)
    reads("linked.data")(folder)


def read_unlisted(folder: Path) -> None:
    (folder / "unlisted.data").write_bytes(b"x" * 100)
    reads("unlisted.data")(folder)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.abort, ()


DEEP = 100_000
WRONG_IN_ENCODERS: dict[str, list[Any]] = {
    "dim": [0, -1, 384.0, "384", True, None, 65_537, [384]],
    "dtype": ["int4", None, 32],
    "pooling": ["max", None, ["mean"]],
    "normalise": [1, "true", None],
    "query_prefix": [None, 5, ["query: "], "\ud800"],
    "passage_prefix": [{}, "\udfff: "],
    "max_query_tokens": [0, -5, 1.5, "256", True, 10**18],
    "max_passage_tokens": [3, None, (1 << 20) + 1],
}  # fmt: skip
WRONG_IN_GENERATORS: dict[str, list[Any]] = {
    "prompt": [
        None, 5, "", "{title}", "{text} {text.__class__}", "{text}{0}", "{text} {}", "{text!r}", "{text}\ud800",
        "{text} {language.name.__init__.__globals__}",
    ],
    "dtype": ["float64"],
    "languages": ["fi", [], None, ["fi", "fi"], ["xx"], ["../../x"], [["fi"]], [7], {"fi": 1}, ["FI"]],
    "language_tokens": [[5], None, {"fi": -1}, {"fi": "5"}, {"fi": True}, {"fi": 1 << 40}, {"fi": 1.5}],
    "decoder_start_id": [-1, "4", None, 1 << 31, False],
    "end_id": [-1, 1.0, [1]],
    "max_input_tokens": [0, "256", 1 << 40],
    "max_output_tokens": [0, None, 2.5],
    "restricted_languages": ["ja", None, ["../../../etc/x"], ["x/../ja"], ["xx"], [1], {"ja": 1}],
    "sampling": [None, [], 5, "greedy"],
}  # fmt: skip
WRONG_IN_SAMPLING: dict[str, list[Any]] = {
    "top_k": [0, -1, 1.5, "5", None, True, 1 << 40],
    "temperature": [0, -1, "1", None, True, 1e-30, 10**400],
    "max_new_tokens": [0, 257, None, "24"],
    "vocabulary": ["tiny", None, 5, ["full"]],
}  # fmt: skip
CASES: dict[str, Case] = {
    # what is not there, or not whole
    "no description": Case("encoder", removes("xqg.json"), "lacks xqg.json"),
    "no tokenizer": Case("encoder", removes("tokenizer.json"), "lacks tokenizer.json"),
    "no graph": Case("generator", removes("head.onnx"), "lacks head.onnx"),
    "no weights": Case("generator", removes("decoder.onnx.data"), "lacks decoder.onnx.data"),
    "graph cut off": Case("encoder", edits("model.onnx", lambda b: b[:-1], False), "model.onnx has sha256"),
    "weights cut off": Case("generator", edits("embedding.data", lambda b: b[:4096], False), "embedding.data has sha"),
    "a byte too many": Case("generator", edits("encoder.onnx.data", lambda b: b + b"\0", False), ".data has sha256"),
    "a bit turned": Case(
        "generator", edits("decoder.onnx.data", lambda b: bytes([b[0] ^ 1]) + b[1:], False), "onnx.data has sha256"
    ),
    "tokenizer of another": Case("generator", edits("tokenizer.json", lambda b: b + b" ", False), "json has sha256"),
    "description cut off": Case("encoder", json_as(lambda text: text[: len(text) // 2].encode()), "is not valid JSON"),
    "empty description": Case("generator", json_as(lambda text: b""), "is not valid JSON"),
    # what is no file of the folder's own
    "graph through a link": Case("encoder", replaces("model.onnx", links_to(moved)), "model.onnx is a symbolic link"),
    "description through a link": Case("generator", replaces("xqg.json", links_to(moved)), "xqg.json is a symbolic"),
    "weights through a link": Case("generator", replaces("embedding.data", links_to(moved)), "data is a symbolic"),
    "link inside the folder": Case(
        "encoder", replaces("tokenizer.json", links_to(lambda path: path.with_name("xqg.json"))), "json is a symbolic"
    ),
    "link to nothing": Case("encoder", replaces("model.onnx", links_to(lambda path: Path("gone"))), "is a symbolic"),
    "link to itself": Case("encoder", replaces("model.onnx", links_to(lambda path: path)), "is a symbolic link"),
    "link to a device": Case(
        "generator", replaces("head.onnx", links_to(lambda path: Path("/dev/zero"))), "head.onnx is a symbolic link"
    ),
    "hard link of a graph": Case(
        "encoder", replaces("model.onnx", lambda path: os.link(moved(path), path)), "model.onnx is a hard link"
    ),
    "hard link of the description": Case(
        "generator", replaces("xqg.json", lambda path: os.link(moved(path), path)), "xqg.json is a hard link"
    ),
    "hard link within the folder": Case(
        "encoder", lambda folder: os.link(folder / "model.onnx", folder / "twin"), "model.onnx is a hard link"
    ),
    "pipe for a graph": Case("encoder", replaces("model.onnx", os.mkfifo), "model.onnx is not a regular file"),
    "pipe for the description": Case("encoder", replaces("xqg.json", os.mkfifo), "xqg.json is not a regular file"),
    "pipe for weights": Case("generator", replaces("embedding.data", os.mkfifo), "embedding.data is not a regular"),
    "socket for a tokenizer": Case(
        "generator", replaces("tokenizer.json", lambda path: os.mknod(path, stat.S_IFSOCK | 0o600)), "is not a regular"
    ),
    "folder for a graph": Case("encoder", replaces("model.onnx", Path.mkdir), "model.onnx is not a regular file"),
    "folder for the description": Case("generator", replaces("xqg.json", Path.mkdir), "xqg.json is not a regular file"),
    # sizes, of holes that take no disk
    "graph beyond protobuf": Case("encoder", grows("model.onnx", 1 << 31), "model.onnx has 2147483648 bytes"),
    "endless tokenizer": Case("encoder", grows("tokenizer.json", (256 << 20) + 1), "json has 268435457 bytes"),
    "endless weights": Case("generator", grows("embedding.data", (256 << 30) + 1), "embedding.data has 2748779"),
    "endless description": Case("encoder", grows("xqg.json", (256 << 20) + 1), "xqg.json has 268435457 bytes"),
    "large description": Case("encoder", json_as(lambda text: text.encode() + b" " * (1 << 20)), "larger than 1048576"),
    # the description as JSON
    "description in UTF-16": Case("encoder", json_as(lambda text: text.encode("utf-16")), "is not valid JSON"),
    "byte order mark": Case("encoder", json_as(lambda text: b"\xef\xbb\xbf" + text.encode()), "is not valid JSON"),
    "deep lists": Case("encoder", json_as(lambda text: b"[" * DEEP + b"]" * DEEP), "is nested too deep"),
    "deep objects in a field": Case(
        "generator",
        json_as(lambda text: text.encode()[:-2] + b', "x": ' + b'{"x":' * DEEP + b"1" + b"}" * DEEP + b"}"),
        "is nested too deep",
    ),
    "field given twice": Case(
        "encoder", json_as(lambda text: b'{"dim": 1,' + text.encode()[1:]), "duplicate field 'dim'"
    ),
    "checksum given twice": Case(
        "generator",
        json_as(lambda text: text.replace('"files": {', '"files": {"head.onnx": "' + "0" * 64 + '",').encode()),
        "duplicate field 'head.onnx'",
    ),
    "not a number": Case("generator", samples(temperature=float("nan")), "NaN is not a JSON number"),
    "number of many digits": Case(
        "encoder", json_as(lambda text: text.replace('"dim": 384', '"dim": ' + "9" * 90_000).encode()), "not valid JSON"
    ),
    "a list": Case("encoder", json_as(lambda text: f"[{text}]".encode()), "is not of format 1"),
    "format true": Case("encoder", says(format=True), "is not of format 1"),
    "format of tomorrow": Case("generator", says(format=2), "is not of format 1"),
    "other kind": Case("encoder", says(kind="generator"), "of kind 'generator'"),
    "kind of no type": Case("generator", says(kind=["generator"]), "of kind ['generator']"),
    # files that are listed
    "files as a list": Case("encoder", says(files=["model.onnx"]), "has files = "),
    "no files": Case("generator", says(files=None), "has files = None"),
    "graph not listed": Case("generator", lacks("files", "decoder.onnx"), "decoder.onnx is missing in files"),
    "tokenizer not listed": Case("encoder", lacks("files", "tokenizer.json"), "tokenizer.json is missing in files"),
    **{
        f"checksum {checksum!r:.20}": Case("encoder", lists("model.onnx", checksum), "has files.model.onnx = ")
        for checksum in (None, 0, "", "0" * 63, "0" * 65, "G" * 64, "A" * 64, ["0" * 64], "0" * 64 + "\n")
    },
    **{
        f"file named {name!r:.40}": Case("encoder", lists(name), "names a file outside its folder")
        for name in (
            f"../{OUTSIDE}", "/etc/passwd", "/etc/x.data", "sub/x.data", "./model.onnx", "..", ".", "", "x\0.data",
            "C:\\x.data", "C:x.data", "..\\x.data", "\\\\server\\x.data", "model.onnx:stream.data", ".hidden.data",
            "x.data\n", " x.data", "\x1b[31mx.data", "ｍodel.onnx", "x" * 300 + ".data", "\ud800.data", "~/x.data",
        )
    },
    **{
        f"listed {name}": Case("generator", lists(name), f"lists '{name}'")
        for name in (
            "pytorch_model.bin", "weights.pkl", "model.pt", "modeling.py", "operators.so", "operators.dll", "run.sh",
            "model.onnx.py", "model.ort", "model.safetensors", "archive.tar.gz", "data", "x.ONNX",
        )
    },
    # fields
    **{
        f"{field} {value!r:.40}": Case("encoder", says(**{field: value}), f"has {field} = ")
        for field, values in WRONG_IN_ENCODERS.items()
        for value in values
    },
    **{
        f"{field} {value!r:.40}": Case("generator", says(**{field: value}), f"has {field} = ")
        for field, values in WRONG_IN_GENERATORS.items()
        for value in values
    },
    "token of another language": Case("generator", says(language_tokens={"sv": 5}), "names 'sv' in language_tokens"),
    "restricted to another language": Case(
        "generator", says(restricted_languages=["sv"]), "'sv' in restricted_languages"
    ),
    "restricted without a graph": Case("generator", lacks("files", "head-ja.onnx"), "head-ja.onnx is missing in"),
    **{
        f"sampling {name} {value!r:.20}": Case("generator", samples(**{name: value}), f"has sampling.{name} = ")
        for name, values in WRONG_IN_SAMPLING.items()
        for value in values
    },
    "sampling with a field too many": Case("generator", samples(device="cuda"), "unknown field 'device' in sampling"),
    "sampling with a field too few": Case("generator", lacks("sampling", "top_k"), "lacks the field 'sampling.top_k'"),
    "no dim": Case("encoder", lacks("dim"), "lacks the field 'dim'"),
    "no prompt": Case("generator", lacks("prompt"), "lacks the field 'prompt'"),
    # graphs that name other files
    **{
        f"weights in {location!r:.40}": Case("generator", reads(location), "decoder.onnx keeps a tensor in ")
        for location in (
            f"../{OUTSIDE}", "/etc/passwd", "/dev/zero", "./embedding.data", "sub/../embedding.data", "..", "",
            "..\\secret.data", "C:\\secret.data", "embedding.data\0.txt", "file:///etc/passwd", "README.md", "xqg.json",
            "*/_ORT_MEM_ADDR_/*", "embedding.data/", "\x1b[2Jx", "~/.ssh/id_rsa",
        )
    },
    "weights in a file not listed": Case("generator", read_unlisted, "keeps a tensor in 'unlisted.data'"),
    "weights through a link not listed": Case("generator", read_through_link, "keeps a tensor in 'linked.data'"),
    "weights in a graph's branch": Case("generator", graph_gets("head.onnx", add_branch), f"in '../{OUTSIDE}'"),
    "weights in a function": Case("encoder", graph_gets("model.onnx", add_function), f"in '../{OUTSIDE}'"),
    "weights of a training": Case("encoder", graph_gets("model.onnx", add_training), f"in '../{OUTSIDE}'"),
    "sparse weights": Case("generator", graph_gets("encoder.onnx", add_sparse), f"in '../{OUTSIDE}'"),
    "weights as a constant": Case(
        "encoder", graph_gets("model.onnx", lambda model: model.graph.node.append(constant(f"../{OUTSIDE}"))), "in '../"
    ),
    "weights beyond the end": Case("generator", reads("embedding.data", offset=f"{TABLE}", length="1"), "beyond its"),
    "offset beyond the end": Case("generator", reads("embedding.data", offset="9" * 18), f"beyond its end at {TABLE}"),
    "length beyond the end": Case(
        "generator", reads("embedding.data", length=str(TABLE + 1)), f"beyond its end at {TABLE}"
    ),
    "negative offset": Case("generator", reads("embedding.data", offset="-1"), "offset or length '-1'"),
    "offset of no number": Case("generator", reads("embedding.data", offset="0x10"), "offset or length '0x10'"),
    "weights nowhere": Case(
        "generator",
        graph_gets(
            "head.onnx",
            lambda model: model.graph.initializer.append(TensorProto(data_location=TensorProto.EXTERNAL)),
        ),
        "head.onnx is not a whole ONNX model",
    ),
    # graphs that are none, with the checksum of what they are
    "empty graph": Case("encoder", holds("model.onnx", b""), "model.onnx is not a whole ONNX model"),
    "half a graph": Case("encoder", edits("model.onnx", lambda b: b[: len(b) // 2]), "is not a whole ONNX model"),
    "half a decoder": Case("generator", edits("decoder.onnx", lambda b: b[:9000]), "is not a whole ONNX model"),
    "text for a graph": Case("generator", holds("head.onnx", b"#!/bin/sh\nexit 1\n"), "is not a whole ONNX model"),
    "pickle for a graph": Case("encoder", holds("model.onnx", pickle.dumps(_Code())), "is not a whole ONNX model"),
    "program for a graph": Case("encoder", holds("model.onnx", b"\x7fELF" + bytes(64)), "is not a whole ONNX model"),
    "graphs without an end": Case(
        "encoder", edits("model.onnx", lambda b: b + b"\x3a\xff\xff\xff\xff\x07"), "is not a whole ONNX model"
    ),
}  # fmt: skip


@pytest.fixture
def spoilt(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    case = CASES[request.getfixturevalue("name")]
    (tmp_path / OUTSIDE).write_bytes(b"what nobody else may read")
    folder = shutil.copytree(shipped_model(SHIPPED[case.kind]), tmp_path / "model")
    case.spoil(folder)
    return Path(folder)


def forbid_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*given: object) -> None:
        raise AssertionError(f"a runtime was handed {given}")

    for place in (
        "inference.encoder.Session", "inference.seq2seq.Session", "inference.encoder.open_tokenizer",
        "generation.onnx.open_tokenizer",
    ):  # fmt: skip
        monkeypatch.setattr(f"xqg_qdrant.{place}", opened)


def printed(error: ModelError) -> str:
    return f"Error: {error.message}\nCure: {error.cure}.\n"


def test_there_are_enough_cases_of_both_kinds() -> None:
    kinds = [case.kind for case in CASES.values()]
    assert min(kinds.count(kind) for kind in SHIPPED) >= 40


@pytest.mark.parametrize("kind", SHIPPED)
def test_a_copy_that_nobody_spoilt_is_opened(kind: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shipped_model(SHIPPED[kind]), tmp_path / "model"))
    relist(folder)
    model = Encoder(folder, "cpu", 1) if kind == "encoder" else QueryGenerator(folder, "cpu", 1)
    assert model.folder.path == folder


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_or_damaged_folder_is_refused_before_anything_of_it_is_opened(
    name: str, spoilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_opening(monkeypatch)
    case = CASES[name]
    with pytest.raises(ModelError) as caught:
        (Encoder if case.kind == "encoder" else QueryGenerator)(spoilt)
    message = str(caught.value)
    assert case.named in message
    assert str(spoilt) in message
    assert message.count("Cure: ") == 1
    assert message.isprintable()
    assert len(message.replace(str(tmp_path), "")) <= LONGEST_MESSAGE
    assert "what nobody else may read" not in message

    # The command line says the same, and nothing else.
    monkeypatch.chdir(tmp_path)
    if case.kind == "generator":
        monkeypatch.setattr("xqg_qdrant.cli.ingest.load_encoder", lambda *given: None)
    Path("corpus.jsonl").write_text('{"id": 1, "text": "a passage"}\n')
    ways = {
        "encoder": ["query", "--collection", "docs", "--encoder", spoilt, "a question"],
        "generator": ["ingest", "corpus.jsonl", "--collection", "docs", "--generator", spoilt],
    }
    result = CliRunner().invoke(main, [str(argument) for argument in ways[case.kind]])
    assert (result.exit_code, result.stdout, result.stderr) == (6, "", printed(caught.value))


@pytest.mark.parametrize("kind", SHIPPED)
def test_the_installed_command_refuses_a_hostile_folder_too(kind: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shipped_model(SHIPPED[kind]), tmp_path / "model"))
    lists(f"../{OUTSIDE}")(folder)
    (tmp_path / "corpus.jsonl").write_text('{"id": 1, "text": "a passage"}\n')
    command = [sys.executable, str(CHECKOUT / "cli.py"), "ingest", "corpus.jsonl", "--collection", "docs"]
    done = subprocess.run([*command, f"--{kind}", folder], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert "names a file outside its folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def swap(first: str, second: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / first).rename(folder / "aside")
        (folder / second).rename(folder / first)
        (folder / "aside").rename(folder / second)
        relist(folder)

    return spoil


def text_graph(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("words", TensorProto.STRING, [1]))


# What only the runtimes can tell, which then judge it: sound files that are not what their places are for.
OPENED = {
    "tokenizer of no kind": Case("encoder", holds("tokenizer.json", b"{}"), "tokenizer.json is not a tokenizer"),
    "tokenizer of no JSON": Case("generator", holds("tokenizer.json", b"\0" * 99), "tokenizer.json is not a tokenizer"),
    "deep tokenizer": Case("encoder", holds("tokenizer.json", b"[" * DEEP), "tokenizer.json is not a tokenizer"),
    "graphs swapped": Case("generator", swap("encoder.onnx", "decoder.onnx"), "encoder.onnx of"),
    "head for a decoder": Case("generator", swap("head.onnx", "decoder.onnx"), "decoder.onnx of"),
    "another dim": Case("encoder", says(dim=383), "is not an encoder of dim 383"),
    "texts for a graph": Case("encoder", graph_gets("model.onnx", text_graph), "takes 'words' as tensor(string)"),
    "unknown operator": Case(
        "encoder",
        graph_gets("model.onnx", lambda model: model.graph.node.append(helper.make_node("Run", [], ["r"], domain="x"))),
        "cannot be opened by ONNX Runtime",
    ),
    "graph of nothing": Case("encoder", holds("model.onnx", b"\x3a\x00"), "model.onnx"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPENED)
def test_a_folder_whose_files_are_not_what_their_places_are_for_is_refused(name: str, tmp_path: Path) -> None:
    case = OPENED[name]
    folder = Path(shutil.copytree(shipped_model(SHIPPED[case.kind]), tmp_path / "model"))
    case.spoil(folder)
    with pytest.raises(ModelError) as caught:
        (Encoder if case.kind == "encoder" else QueryGenerator)(folder, "cpu", 1)
    assert case.named in str(caught.value)
    assert str(folder) in str(caught.value)
