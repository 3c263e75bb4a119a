"""The scripts in `training` at smoke size: from the data to checkpoints that `xqg export` takes, and to the lexicon."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import transformers
from checkpoints import corpus, encoder_checkpoint
from safetensors.numpy import load_file, save_file
from shared_data import shared_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from xqg_qdrant.demo import read_demo_passages
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


def make_checkpoint(folder: Path) -> Tokenizer:
    """Write a checkpoint whose special pieces are not the first, with two numbers a piece; return its tokenizer."""
    pieces = ["▁bb", "<s>", "</s>", "<unk>", "▁cc", "▁", "a", "▁aa", "b", "▁c", "c"]
    scores = [0.0 if piece.startswith("<") else -len(pieces) + 4.0 * len(piece) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    words = np.arange(2 * len(pieces), dtype=np.float32).reshape(-1, 2)
    other = np.array([7], dtype=np.float32)
    save_file({"embeddings.word_embeddings.weight": words, "other": other}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(pieces), "hidden_size": 2}))
    return tokenizer


def test_the_demo_encoder_keeps_single_characters_special_pieces_and_what_the_languages_use_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TRAINING))
    import cut_demo_encoder
    import vocabulary

    monkeypatch.setattr(vocabulary, "BATCH", 3)
    tokenizer = make_checkpoint(tmp_path / "whole")
    # English counts three times: ▁aa 3·1, ▁bb 0.7 + 1, however many texts there are.
    finnish = [*3 * ["cc"], *7 * ["bb"]]
    texts = {"en": ["aa"], "fi": finnish, "ja": ["bb"]}
    kept = vocabulary.choose_pieces(tokenizer, texts, 1, 3)
    # all but ▁bb and ▁cc; ▁c is one character, too
    assert kept == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    # without English ▁bb leads with 0.7 + 0.5
    assert vocabulary.choose_pieces(tokenizer, {"fi": finnish, "ja": ["bb", "cc"]}, 1, 3)[0] == 0
    # of the single characters only those asked for, and the space that begins a word
    assert vocabulary.choose_pieces(tokenizer, texts, 1, 3, ["a", "x"]) == [1, 2, 3, 5, 6, 7]

    cut_demo_encoder.cut_checkpoint(tmp_path / "whole", tmp_path / "cut", kept)
    cut = Tokenizer.from_file(str(tmp_path / "cut" / "tokenizer.json"))
    for text in ("aa", "aa b c", "x aa", "ab"):
        assert [kept[number] for number in cut.encode(text).ids] == tokenizer.encode(text).ids
    assert cut.encode("aa bb cc").tokens == ["<s>", "▁aa", "▁", "b", "b", "▁c", "c", "</s>"]
    assert cut.encode("x").ids == [kept.index(number) for number in (1, 5, 3, 2)]
    added = json.loads((tmp_path / "cut" / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert {token["content"]: token["id"] for token in added} == {"<s>": 0, "</s>": 1, "<unk>": 2}
    weights = load_file(tmp_path / "cut" / "model.safetensors")
    assert weights["embeddings.word_embeddings.weight"].tolist() == [[2 * number, 2 * number + 1] for number in kept]
    assert weights["other"].tolist() == [7]
    assert json.loads((tmp_path / "cut" / "config.json").read_text()) == {"vocab_size": 9, "hidden_size": 2}
    assert len(load_file(tmp_path / "whole" / "model.safetensors")["embeddings.word_embeddings.weight"]) == 11


def test_a_text_whose_pieces_are_all_kept_has_the_same_vector_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TRAINING))
    import cut_demo_encoder
    import vocabulary

    whole, cut, texts = encoder_checkpoint("minilm"), tmp_path / "cut", list(corpus()[:20])
    before = Tokenizer.from_file(str(whole / "tokenizer.json"))
    kept = vocabulary.choose_pieces(before, {"en": texts[:10], "fi": texts[10:]}, 300, 3)
    cut_demo_encoder.cut_checkpoint(whole, cut, kept)
    after = Tokenizer.from_file(str(cut / "tokenizer.json"))
    assert after.get_vocab_size() == len(kept) < before.get_vocab_size()

    words = [word for text in texts for word in text.split()][:300]
    same = [word for word in words if before.encode(word).tokens == after.encode(word).tokens]
    assert 50 < len(same) < len(words)
    for word in words:
        assert before.encode(word).tokens.count("<unk>") == after.encode(word).tokens.count("<unk>")
    encoders = [transformers.AutoModel.from_pretrained(folder).eval() for folder in (whole, cut)]
    for word in same[::5]:
        with torch.no_grad():
            vectors = [
                encoder(input_ids=torch.tensor([tokenizer.encode(word).ids])).last_hidden_state
                for encoder, tokenizer in zip(encoders, (before, after), strict=True)
            ]
        assert torch.equal(*vectors)


def test_the_generator_trains_and_exports_with_parity(tmp_path: Path) -> None:
    run_smoke("train_generator.py", tmp_path / "checkpoint")
    exported = export_checkpoint(
        str(tmp_path / "checkpoint"), tmp_path / "exported", languages=LANGUAGES, max_new_tokens=8
    )
    assert exported.parity["float32"]["identical_greedy_queries"] == exported.parity["inputs"] >= 50
    assert QueryGenerator(exported.folder, "cpu").languages == LANGUAGES


def test_of_the_sampled_questions_those_nearest_their_own_passage_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TRAINING))
    from data import EnglishPassage
    from distil import choose

    # by the first passage's and the second's side of a right angle
    near = {
        "Где течёт Дунай?": [0.8, 0.6], "Длинен ли Дунай?": [1.0, 0.0], "Дунай широк?": [0.9, 0.4],
        "Кто открыл неон?": [0.1, 0.9], "Missä Tonava virtaa?": [0.7, 0.7], "Mikä on neon?": [0.0, 1.0],
    }  # fmt: skip

    class Hand:
        def encode_passages(self, texts: list[str]) -> np.ndarray:
            assert texts == ["Danube A river.", "Neon A gas."]
            return np.eye(2, dtype=np.float32)

        def encode_queries(self, texts: list[str]) -> np.ndarray:
            return np.array([near[text] for text in texts], dtype=np.float32)

    passages = [EnglishPassage("Danube", "A river."), EnglishPassage("Neon", "A gas.")]
    about_danube = [text for text in near if text.startswith(("Где", "Длинен", "Дунай", "Кто"))]
    unusable = ["Where is it?", "Что на на Дунае?", "Дунай?", "Длинаяинаяиная река?", "Где Danube начало?"]
    asked = [
        [("ru", text) for text in [*about_danube, *about_danube, *unusable]],
        [("fi", "Mikä on neon?"), ("ru", "Где течёт Дунай?")],
    ]
    assert choose(passages, asked, cast(Encoder, Hand()), 2) == [
        {"ru": ["Длинен ли Дунай?", "Дунай широк?"]},
        {"fi": ["Mikä on neon?"]},
    ]


def test_no_passage_of_the_evaluation_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    data = shared_file("dev/corpus.jsonl.gz").parent.parent
    monkeypatch.syspath_prepend(str(TRAINING))
    from data import read_english_passages

    with gzip.open(data / "dev/corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        held_out = {json.loads(line)["text"] for line in lines}
    demo = read_demo_passages()
    passages = read_english_passages(data)
    assert len(passages) > 3000
    assert held_out.isdisjoint(passage.text for passage in passages)
    assert {passage.title for passage in demo}.isdisjoint(passage.title for passage in passages)


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
