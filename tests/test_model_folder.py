"""What a sound model folder is; `battery/test_hostile_model_folders.py` has those that are not."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from xqg_qdrant.errors import ModelError
from xqg_qdrant.model_folders import (
    DEMO_ENCODER,
    DEMO_GENERATOR,
    read_model_folder,
    shipped_model,
    write_description,
)
from xqg_qdrant.model_folders.description import GRAPH_FILES, RULES
from xqg_qdrant.model_folders.files import hash_file

CURE = "Cure: export it again: xqg export CHECKPOINT "
FIELDS: dict[str, dict[str, Any]] = {
    "encoder": {
        "dim": 384, "dtype": "float32", "pooling": "mean", "normalise": True, "query_prefix": "query: ",
        "passage_prefix": "", "max_query_tokens": 32, "max_passage_tokens": 128,
    },
    "generator": {
        "prompt": "{language}: {title} {text}", "dtype": "int8", "languages": ["ja", "ru"],
        "language_tokens": {"ja": 5, "ru": 0}, "decoder_start_id": 0, "end_id": 1, "max_input_tokens": 256,
        "max_output_tokens": 64, "restricted_languages": [],
        "sampling": {"top_k": 1, "temperature": 1, "max_new_tokens": 64, "vocabulary": "full"},
    },
}  # fmt: skip


def make_content(name: str) -> bytes:
    """The bytes of a file; of a graph the least that is one: a producer, field 2, and an empty graph, field 7."""
    text = f"the content of {name}".encode()
    return bytes([2 << 3 | 2, len(text)]) + text + bytes([7 << 3 | 2, 0]) if name.endswith(".onnx") else text


def write_folder(path: Path, kind: str = "encoder") -> Path:
    path.mkdir(parents=True)
    for name in (*GRAPH_FILES[kind], "tokenizer.json"):
        (path / name).write_bytes(make_content(name))
    (path / "README.md").write_text("not a file that decides a result")
    write_description(path, kind, {**FIELDS[kind], "source": "käytetty"})
    return path


def edit_description(path: Path, **changes: Any) -> None:
    description = json.loads((path / "xqg.json").read_text(encoding="utf-8"))
    (path / "xqg.json").write_text(json.dumps({**description, **changes}), encoding="utf-8")


@pytest.mark.parametrize("kind", GRAPH_FILES)
def test_a_whole_folder_is_read(kind: str, tmp_path: Path) -> None:
    folder = read_model_folder(write_folder(tmp_path / "model", kind), kind)
    assert folder.path == tmp_path / "model"
    assert folder.description == {
        "format": 1, "kind": kind, **FIELDS[kind], "source": "käytetty",
        "files": {
            name: hashlib.sha256(make_content(name)).hexdigest() for name in (*GRAPH_FILES[kind], "tokenizer.json")
        },
    }  # fmt: skip


def test_the_fields_that_are_checked_are_those_of_the_shipped_models() -> None:
    for name, kind in ((DEMO_ENCODER, "encoder"), (DEMO_GENERATOR, "generator")):
        assert (
            RULES[kind].keys() == FIELDS[kind].keys() <= read_model_folder(shipped_model(name), kind).description.keys()
        )


def test_a_folder_may_be_named_through_a_symbolic_link(tmp_path: Path) -> None:
    write_folder(tmp_path / "model")
    (tmp_path / "link").symlink_to("model")
    assert read_model_folder(tmp_path / "link", "encoder").path == tmp_path / "link"


def test_the_checksum_of_a_folder_covers_every_file_that_decides_results(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    model, tokenizer = (hashlib.sha256(make_content(name)) for name in ("model.onnx", "tokenizer.json"))
    listed = f"model.onnx:{model.hexdigest()};tokenizer.json:{tokenizer.hexdigest()};"
    before = read_model_folder(folder, "encoder").sha256()
    assert before == hashlib.sha256(listed.encode()).hexdigest()

    edit_description(folder, source="renamed")
    assert read_model_folder(folder, "encoder").sha256() == before
    (folder / "model.onnx.data").write_bytes(b"weights")
    write_description(folder, "encoder", FIELDS["encoder"])
    assert read_model_folder(folder, "encoder").sha256() != before


def test_a_missing_folder_is_reported_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model folder .*/model\. Cure: make one with: xqg export CHECKPOINT "):
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
    with pytest.raises(ModelError, match=rf"lacks {name}.*half written.*{CURE}"):
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


@pytest.mark.parametrize("absent", ["model.onnx", "tokenizer.json"])
def test_a_description_that_does_not_list_every_file_is_refused(absent: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    files = json.loads((folder / "xqg.json").read_text(encoding="utf-8"))["files"]
    edit_description(folder, files={name: files[name] for name in files if name != absent})
    message = rf"lists too few files for a model of kind 'encoder': {absent} is missing in files. {CURE}"
    with pytest.raises(ModelError, match=message):
        read_model_folder(folder, "encoder")


def test_a_changed_file_is_reported_with_both_checksums(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "model.onnx").write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    expected = hashlib.sha256(make_content("model.onnx")).hexdigest()
    with pytest.raises(ModelError, match=rf"model.onnx has sha256 {found}, but xqg.json says {expected}. {CURE}"):
        read_model_folder(folder, "encoder")


def test_a_large_file_is_hashed_whole(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert hash_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_model_that_ships_lies_in_the_wheel_or_else_in_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "xqg_qdrant" / "model_folders" / "__init__.py"
    monkeypatch.setattr("xqg_qdrant.model_folders.__file__", str(module))
    assert shipped_model(DEMO_ENCODER) == tmp_path / "onnx" / "demo-encoder"
    installed = tmp_path / "xqg_qdrant" / "models" / "demo-encoder"
    installed.mkdir(parents=True)
    assert shipped_model(DEMO_ENCODER) == installed


def test_the_files_of_the_shipped_models_may_be_hard_links_as_installers_make_them_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "xqg_qdrant.model_folders.__file__", str(tmp_path / "xqg_qdrant" / "model_folders" / "__init__.py")
    )
    installed = write_folder(tmp_path / "xqg_qdrant" / "models" / DEMO_ENCODER)
    (tmp_path / "copy").mkdir()
    for file in installed.iterdir():
        os.link(file, tmp_path / "copy" / file.name)
    assert read_model_folder(installed, "encoder").path == installed
    message = rf"xqg.json is a hard link, one of 2 names of a file. Cure: copy .*: cp -rL {tmp_path}/copy COPY"
    with pytest.raises(ModelError, match=message):
        read_model_folder(tmp_path / "copy", "encoder")


def test_a_file_that_is_not_listed_is_never_looked_at(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "pytorch_model.bin").symlink_to("/dev/zero")
    (folder / "modeling.py").write_text("raise SystemExit")
    os.mkfifo(folder / "model.onnx.data")
    assert read_model_folder(folder, "encoder").description["kind"] == "encoder"


def test_a_generator_that_names_another_programs_graph_is_held_to_that_programs_layout(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", "generator")
    edit_description(folder, graph="onnx/encoder_model.onnx")
    with pytest.raises(ModelError, match=r"lacks the field 'decoder_graphs'\. Cure: "):
        read_model_folder(folder, "generator")
    graphs = ["onnx/decoder_model.onnx", "onnx/decoder_with_past_model.onnx"]
    edit_description(folder, decoder_graphs=graphs, suppressed_ids=[])
    with pytest.raises(ModelError, match=r"onnx/encoder_model\.onnx is missing in files\. Cure: "):
        read_model_folder(folder, "generator")
