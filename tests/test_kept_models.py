"""Test that a collection keeps where its models are, and says what its encoder does not read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rest_qdrant import RestQdrant

from xqg_qdrant.cli import main
from xqg_qdrant.generation import Endpoint
from xqg_qdrant.inference import Reading, add_readings
from xqg_qdrant.lifecycle.models import describe_generator, find_encoder, update_models
from xqg_qdrant.model_folders import DEMO_ENCODER, read_model_folder, shipped_model
from xqg_qdrant.stores import Store, open_store

ROWS = [{"id": "1", "text": "The Danube is a river."}, {"id": "2", "text": "The Mekong is one, too. " * 200}]
WORDS = ("--collection", "docs", "--store", "store")


def xqg(*words: object) -> Result:
    return CliRunner().invoke(main, list(map(str, words)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an encoder of its own kind, and a collection that it made."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree(shipped_model(DEMO_ENCODER), "mine")
        about = json.loads(Path("mine/xqg.json").read_text()) | {"passage_prefix": "p: ", "source": "me/mine"}
        Path("mine/xqg.json").write_text(json.dumps(about))
        Path("docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        done = xqg("ingest", "docs.jsonl", *WORDS, "--plain", "--encoder", "mine")
        assert done.exit_code == 0, done.output
        yield folder


def test_status_names_the_models_and_counts_what_is_not_read(made: Path) -> None:
    lines = xqg("status", *WORDS).stdout.splitlines()
    assert lines[2] == f"  encoder: me/mine ({made / 'mine'})"
    longest = json.loads(Path("mine/xqg.json").read_text())["max_passage_tokens"]
    assert lines[3].startswith(f"  Longer than the {longest} tokens that the encoder reads: 1 of 2 passages. ")
    assert lines[3].endswith("% of their text is not read. Ingest with --split, which makes passages of them.")
    found = json.loads(xqg("status", *WORDS, "--json").stdout)
    assert found["models"] == {"encoder": {"source": "me/mine", "folder": str(made / "mine")}}
    assert (found["reading"]["texts"], found["reading"]["cut"]) == (2, 1)


def test_the_encoder_is_not_asked_for_again_while_it_is_there(made: Path) -> None:
    assert xqg("query", "a river", *WORDS).exit_code == 0
    assert "2 unchanged" in xqg("sync", "docs.jsonl", *WORDS).stdout
    Path("mine").rename("elsewhere")
    try:
        refused = xqg("query", "a river", *WORDS)
        assert "encoder.passage_prefix: stored 'p: '" in refused.stderr
        assert "(--encoder)" in refused.stderr
        folder = shipped_model(DEMO_ENCODER)
        demo = f"{read_model_folder(folder, 'encoder').description['source']} in {folder}"
        named = f"encoder: stored me/mine in {made / 'mine'}, now {demo}"
        assert named in refused.stderr
        refused = xqg("ingest", "docs.jsonl", *WORDS, "--plain")
        assert (refused.exit_code, named in refused.stderr) == (4, True)
        with open_store("store") as store:
            assert store.read_models("docs")["encoder"]["source"] == "me/mine"
        assert "Longer than" not in xqg("status", *WORDS).stdout
    finally:
        Path("elsewhere").rename("mine")


def test_another_encoder_in_its_folder_is_not_used(made: Path) -> None:
    """The checksum decides, not the path: it may come from another machine."""
    with open_store("store") as store:
        assert find_encoder(store, "docs") == made / "mine"
        about = Path("mine/xqg.json").read_text()
        changed = json.loads(about)
        changed["files"] = {**changed["files"], "tokenizer.json": "0" * 64}
        Path("mine/xqg.json").write_text(json.dumps(changed))
        assert find_encoder(store, "docs") is None
        Path("mine/xqg.json").write_text("{")
        assert find_encoder(store, "docs") is None
        Path("mine/xqg.json").write_text(about)
        kept = store.read_models("docs")
        for folder in ("mine", 7, None, str(made / "missing")):
            store.write_models("docs", {"encoder": {"source": "x", "folder": folder}})
            assert find_encoder(store, "docs") is None
        store.write_models("docs", kept)
        fingerprint = store.read_fingerprint("docs")
        assert "mine" not in json.dumps(fingerprint), "the path identifies nothing"


def test_models_are_kept_beside_the_fingerprint(tmp_path: Path, server: RestQdrant) -> None:
    def check(store: Store) -> None:
        update_models(store, "kept", {"encoder": {"source": "a"}})
        fingerprint = {"encoder.sha256": "5"}
        store.create_collection("kept", 2, fingerprint)
        assert store.read_models("kept") == {}
        update_models(store, "kept", {"encoder": {"source": "a", "folder": "/é"}})
        update_models(store, "kept", {"generator": {"source": "b"}})
        assert store.read_models("kept") == {"encoder": {"source": "a", "folder": "/é"}, "generator": {"source": "b"}}
        assert store.read_fingerprint("kept") == fingerprint
        store.write_fingerprint("kept", {"encoder.sha256": "6"})
        assert store.read_models("kept")["generator"] == {"source": "b"}
        store.delete_collection("kept")

    for location in (str(tmp_path / "store"), ":memory:", server.url):
        with open_store(location) as store:
            check(store)


def test_generators_are_named_without_secrets(tmp_path: Path) -> None:
    assert describe_generator(None) == {"source": "the demo generator"}
    endpoint = Endpoint("https://me:secret@host:8000/v1?key=secret", "qwen3:4b")
    assert describe_generator(endpoint) == {"source": "qwen3:4b", "url": "https://host:8000/v1"}
    lexicon = tmp_path / "lexicon.tsv"
    lexicon.touch()
    assert describe_generator(lexicon) == {"source": "lexicon.tsv", "folder": str(lexicon)}


def test_what_several_workers_have_read_is_added() -> None:
    first, second = (
        Reading("encoder", "passage", 512, 3, 1, 700, 300),
        Reading("encoder", "passage", 512, 2, 2, 1000, 0),
    )
    assert add_readings([first, None, second]) == Reading("encoder", "passage", 512, 5, 3, 1700, 300)
    assert add_readings([None]) is None
