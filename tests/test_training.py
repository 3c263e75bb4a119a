"""The training scripts run from the data to checkpoints that `xqg export` takes, at smoke size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from shared_data import shared_file

from xqg_qdrant.export import export_checkpoint
from xqg_qdrant.generation.lexicon import Lexicon
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder

TRAINING = Path(__file__).parent.parent / "training"
LANGUAGES = ("ar", "bn", "fi", "ja", "ko", "ru", "te")


def run_smoke(script: str, out: Path) -> None:
    data = shared_file("train/parallel.tsv.gz").parent.parent
    command = [sys.executable, str(TRAINING / script), "--data", str(data), "--out", str(out), "--smoke"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_encoder_trains_and_exports_with_parity(tmp_path: Path) -> None:
    run_smoke("train_encoder.py", tmp_path / "checkpoint")
    exported = export_checkpoint(str(tmp_path / "checkpoint"), tmp_path / "exported")
    assert exported.parity["float32"]["lowest_cosine"] >= 0.9999
    encoder = Encoder(exported.folder, "cpu")
    assert encoder.folder.description["pooling"] == "mean"
    assert encoder.encode_queries(["Missä Oulu on?"]).shape == (1, encoder.dim)


def test_the_generator_trains_and_exports_with_parity(tmp_path: Path) -> None:
    run_smoke("train_generator.py", tmp_path / "checkpoint")
    exported = export_checkpoint(
        str(tmp_path / "checkpoint"), tmp_path / "exported", languages=LANGUAGES, max_new_tokens=8
    )
    assert exported.parity["float32"]["identical_greedy_queries"] == exported.parity["inputs"] >= 50
    assert QueryGenerator(exported.folder, "cpu").languages == LANGUAGES


@pytest.mark.parametrize("name", ["dev/corpus.jsonl.gz", "question-match/corpus.jsonl.gz", "xor/dev.jsonl.gz"])
def test_held_out_data_cannot_be_read_for_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TRAINING))
    from data import open_training_file

    with pytest.raises(ValueError, match="held out"):
        next(open_training_file(shared_file(name).parent.parent, name))


def test_the_lexicon_learns_which_word_is_which_and_is_one_that_ingest_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_smoke("learn_lexicon.py", tmp_path / "lexicon.tsv")
    assert Lexicon(tmp_path / "lexicon.tsv").languages == LANGUAGES
    monkeypatch.syspath_prepend(str(TRAINING))
    from learn_lexicon import learn, split_other

    # "the" is beside everything; only "river" is beside joki both times, "lake" is seen too seldom to be told.
    pairs = [(["the", "river"], ["joki"]), (["the", "long", "river"], ["pitkä", "joki"]), (["the", "long"], ["pitkä"])]
    found = {entry.english: entry.other for entry in learn([*pairs, (["lake"], ["järvi"])])}
    assert {word: found[word] for word in ("river", "long")} == {"river": "joki", "long": "pitkä"}
    assert "lake" not in found
    assert split_other("ナイル川は長い", "ja") == ["ナイル", "川", "長"]
    assert split_other("尼罗河", "zh") == ["尼罗", "罗河"]
