from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from xqg_qdrant.errors import ModelError
from xqg_qdrant.model_folder import (
    DEMO_ENCODER,
    FIELDS,
    GRAPH_FILES,
    hash_file,
    read_model_folder,
    shipped_model,
    write_description,
)

CURE = "Export it again: xqg export CHECKPOINT "


def write_folder(path: Path, kind: str = "encoder") -> Path:
    path.mkdir()
    for name in (*GRAPH_FILES[kind], "tokenizer.json"):
        (path / name).write_bytes(f"the content of {name}".encode())
    (path / "README.md").write_text("not a file that decides a result")
    write_description(path, kind, {**dict.fromkeys(FIELDS[kind], "x"), "languages": ("ja", "ru"), "source": "käytetty"})
    return path


def edit_description(path: Path, **changes: Any) -> None:
    description = json.loads((path / "xqg.json").read_text(encoding="utf-8"))
    (path / "xqg.json").write_text(json.dumps({**description, **changes}), encoding="utf-8")


@pytest.mark.parametrize("kind", GRAPH_FILES)
def test_a_whole_folder_is_read(kind: str, tmp_path: Path) -> None:
    folder = read_model_folder(write_folder(tmp_path / "model", kind), kind)
    assert folder.path == tmp_path / "model"
    assert folder.description == {
        "format": 1, "kind": kind, **dict.fromkeys(FIELDS[kind], "x"), "languages": ["ja", "ru"], "source": "käytetty",
        "files": {
            name: hashlib.sha256(f"the content of {name}".encode()).hexdigest()
            for name in (*GRAPH_FILES[kind], "tokenizer.json")
        },
    }  # fmt: skip


def test_the_checksum_of_a_folder_covers_every_file_that_decides_results(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    model, tokenizer = (hashlib.sha256(f"the content of {name}".encode()) for name in ("model.onnx", "tokenizer.json"))
    listed = f"model.onnx:{model.hexdigest()};tokenizer.json:{tokenizer.hexdigest()};"
    before = read_model_folder(folder, "encoder").sha256()
    assert before == hashlib.sha256(listed.encode()).hexdigest()

    edit_description(folder, source="renamed")
    assert read_model_folder(folder, "encoder").sha256() == before
    (folder / "model.onnx.data").write_bytes(b"weights")
    write_description(folder, "encoder", dict.fromkeys(FIELDS["encoder"], "x"))
    assert read_model_folder(folder, "encoder").sha256() != before


def test_a_missing_folder_is_reported_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no model folder .*/model\. Make one with: xqg export CHECKPOINT "):
        read_model_folder(tmp_path / "model", "encoder")


@pytest.mark.parametrize("content", ["{", "", "\udcff", "[1]", "3", '{"format": 2}', "{}"])
def test_a_description_that_cannot_be_read_is_reported_with_its_cure(content: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "xqg.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ModelError, match=rf"xqg.json is not (valid JSON|of format 1).*{CURE}") as caught:
        read_model_folder(folder, "encoder")
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["xqg.json", "model.onnx", "tokenizer.json"])
def test_a_half_written_folder_is_reported_with_its_cure(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(ModelError, match=rf"(holds no|lacks) {name}.*half written.*{CURE}"):
        read_model_folder(folder, "encoder")


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", "generator")
    with pytest.raises(ModelError, match="holds a model of kind 'generator', but 'encoder' is needed here"):
        read_model_folder(folder, "encoder")


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind, fields in FIELDS.items() for field in fields])
def test_a_description_that_lacks_a_field_is_refused(kind: str, field: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", kind)
    description = json.loads((folder / "xqg.json").read_text(encoding="utf-8"))
    del description[field]
    (folder / "xqg.json").write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(ModelError, match=rf"xqg.json lacks the field '{field}'. {CURE}"):
        read_model_folder(folder, kind)


@pytest.mark.parametrize("files", [None, [], {}, {"model.onnx": "ab"}, {"tokenizer.json": "ab"}])
def test_a_description_that_does_not_list_every_file_is_refused(files: Any, tmp_path: Path) -> None:  # noqa: ANN401
    folder = write_folder(tmp_path / "model")
    edit_description(folder, files=files)
    with pytest.raises(ModelError, match=rf"does not list every file of a model of kind 'encoder'. {CURE}"):
        read_model_folder(folder, "encoder")


def test_a_changed_file_is_reported_with_both_checksums(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "model.onnx").write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    expected = hashlib.sha256(b"the content of model.onnx").hexdigest()
    with pytest.raises(ModelError, match=rf"model.onnx has sha256 {found}, but xqg.json says {expected}. {CURE}"):
        read_model_folder(folder, "encoder")


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/hostname", "sub/model.onnx", "..", "."])
def test_a_file_outside_the_folder_is_never_read(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (tmp_path / "outside.onnx").write_bytes(b"outside")
    (folder / "sub").mkdir()
    (folder / "sub" / "model.onnx").write_bytes(b"outside")
    files = json.loads((folder / "xqg.json").read_text(encoding="utf-8"))["files"]
    edit_description(folder, files={**files, name: hashlib.sha256(b"outside").hexdigest()})
    with pytest.raises(ModelError, match=r"names a file outside its folder|lacks"):
        read_model_folder(folder, "encoder")


def test_a_large_file_is_hashed_whole(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert hash_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_model_that_ships_lies_in_the_wheel_or_else_in_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "xqg_qdrant" / "model_folder.py"
    monkeypatch.setattr("xqg_qdrant.model_folder.__file__", str(module))
    assert shipped_model(DEMO_ENCODER) == tmp_path / "onnx" / "demo-encoder"
    installed = tmp_path / "xqg_qdrant" / "models" / "demo-encoder"
    installed.mkdir(parents=True)
    assert shipped_model(DEMO_ENCODER) == installed
