"""A text that a model cannot read costs that text alone: tokens beyond the model's table, and no tokens at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import edit_json, exported_encoder, exported_generator
from click.testing import CliRunner
from foreign_folders import sentence_transformers_folder
from shared_data import shared_case
from starlette.testclient import TestClient

from xqg_qdrant.cli import main
from xqg_qdrant.errors import InputError, ModelError
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.inference.tokenizer import replace_unreadable
from xqg_qdrant.pages.search import Finder
from xqg_qdrant.pages.server import make_app
from xqg_qdrant.records import Passage
from xqg_qdrant.retrieval import search_hits
from xqg_qdrant.stores import open_store

IMAGE = "<image_soft_token>"


def add_token(folder: Path, tmp_path: Path, number: int) -> Path:
    """Copy a model folder, and give its tokenizer a token with this id."""
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    tokens = json.loads((copy / "tokenizer.json").read_text())["added_tokens"]
    edit_json(copy / "tokenizer.json", {"added_tokens": [*tokens, {**tokens[0], "id": number, "content": IMAGE}]})
    about = copy / "xqg.json"
    if about.exists():
        from xqg_qdrant.model_folders.files import hash_file

        files = json.loads(about.read_text())["files"]
        edit_json(about, {"files": {**files, "tokenizer.json": hash_file(copy / "tokenizer.json")}})
    return copy


@pytest.mark.parametrize("number", [2500, 2511, 300_000])
@pytest.mark.parametrize("form", ["foreign", "exported"])
def test_a_token_beyond_the_embedding_table_is_read_as_unknown(form: str, number: int, tmp_path: Path) -> None:
    folder = sentence_transformers_folder("e5") if form == "foreign" else exported_encoder("xlm-roberta")
    encoder = Encoder(add_token(folder, tmp_path, number), "cpu", 1)
    found = encoder.encode_passages([f"a {IMAGE} of a lake", "a lake"])
    expected = Encoder(folder, "cpu", 1).encode_passages(["a <unk> of a lake", "a lake"])
    np.testing.assert_array_equal(found, expected)


def test_a_generator_reads_such_a_token_as_unknown(tmp_path: Path) -> None:
    folder = exported_generator("t5")
    generator = QueryGenerator(add_token(folder, tmp_path, 2507), "cpu")
    noise = np.zeros((1, 4, 1), dtype=np.float32)
    found = generator.generate_ids([Passage("1", f"a {IMAGE} of a lake")], ["fi"], noise)
    plain = QueryGenerator(folder, "cpu")
    assert found == plain.generate_ids([Passage("1", "a <unk> of a lake")], ["fi"], noise)


def test_unreadable_ids_are_dropped_where_a_tokenizer_has_no_unknown_token() -> None:
    assert replace_unreadable([[1, 9, 2], [9]], 5, -1) == [[1, 2], []]
    assert replace_unreadable([[1, 9, 2]], 5, 3) == [[1, 3, 2]]


@pytest.mark.parametrize("pooling", ["cls", "last", "mean"])
@pytest.mark.filterwarnings("error")
def test_a_passage_without_a_token_is_rejected_and_the_others_are_stored(
    pooling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    case = shared_case("text-without-tokens")
    place = ["--collection", "z", "--store", str(tmp_path / "store"), "--encoder", str(case / f"model-{pooling}")]
    asked = ["-q", "ingest", str(case / "zero.jsonl"), *place, "--generator", str(case / "lex.tsv")]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 3, done.output
    [rejected] = map(json.loads, Path("z.rejected.jsonl").read_text().splitlines())
    assert (rejected["source"], rejected["reason"]) == ("Z", "a vector of the encoder is all zeros")
    refused = CliRunner().invoke(main, ["query", *place, "\u0301\u0302"])
    assert refused.exit_code == InputError.exit_code
    assert "the encoder cannot read the question" in refused.stderr


def test_reported_tokens_beyond_the_table_stop_neither_an_ingest_nor_a_search(tmp_path: Path) -> None:
    case = shared_case("token-id-beyond-table")
    folder, location = case / "model", str(tmp_path / "store")
    place = ["--collection", "oob", "--store", location, "--encoder", str(folder)]
    done = CliRunner().invoke(
        main, ["-q", "ingest", str(case / "oob.jsonl"), *place, "--generator", str(case / "lex.tsv")]
    )
    assert done.exit_code == 0, done.output
    with open_store(location) as store:
        encoder = Encoder(folder, "cpu", 1)
        [hits] = search_hits(store, "oob", encoder, [IMAGE], 3, "passage")
        assert len(hits) == 3
        client = TestClient(make_app(Finder(store, "oob", encoder), ["testserver"]))
        assert client.get("/api/search", params={"q": IMAGE}).status_code == 200


def test_the_search_page_says_that_a_question_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    case = shared_case("text-without-tokens")
    place = ["--collection", "z", "--store", str(tmp_path / "store"), "--encoder", str(case / "model-cls")]
    CliRunner().invoke(main, ["-q", "ingest", str(case / "zero.jsonl"), *place, "--generator", str(case / "lex.tsv")])
    with open_store(str(tmp_path / "store")) as store:
        client = TestClient(make_app(Finder(store, "z", Encoder(case / "model-cls", "cpu", 1)), ["testserver"]))
        answer = client.get("/api/search", params={"q": "\u0301\u0302"})
        assert (answer.status_code, "cannot read" in answer.json()["error"]["what"]) == (400, True)


def test_a_graph_of_one_fixed_length_is_refused_with_its_folder_and_a_cure() -> None:
    folder = shared_case("onnx-static-shape/model")
    with pytest.raises(ModelError, match=rf"{folder}/model\.onnx takes only inputs of shape .* Cure: export it with"):
        Encoder(folder, "cpu", 1)
