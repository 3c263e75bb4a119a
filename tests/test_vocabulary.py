from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import (
    NEW_TOKENS,
    SUPPRESSED,
    T5_END,
    exported_generator,
    generator_checkpoint,
    make_unigram,
    passages,
)

from xqg_qdrant.demo import DEMO_FOLDER, read_demo_queries
from xqg_qdrant.errors import InputError
from xqg_qdrant.export import LARGEST, MULTIPLE, export_checkpoint, restrict_vocabulary
from xqg_qdrant.export.bert import Bert2Bert
from xqg_qdrant.export.checkpoint import fetch_checkpoint
from xqg_qdrant.export.reference import Reference
from xqg_qdrant.export.t5 import Model, build_t5_head
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.decoding import gumbel_noise
from xqg_qdrant.model_folders import write_description

SPECIALS = ("<pad>", "</s>", "<unk>")
SAMPLE = DEMO_FOLDER / "queries.jsonl"
STEPS, TOP_K, COUNT = NEW_TOKENS, 8, 25


def restrict(language: str, sample: list[str], never: tuple[int, ...] = ()) -> list[str]:
    """Return the tokens that a language may use."""
    tokenizer = make_unigram(*SPECIALS)
    ids = restrict_vocabulary(tokenizer, tokenizer.get_vocab_size(), language, sample, (T5_END,), never)
    assert ids.tolist() == sorted(set(ids.tolist()))
    assert len(ids) % MULTIPLE == 0
    assert len(ids) <= LARGEST
    assert T5_END in ids
    return [str(tokenizer.id_to_token(token)) for token in ids.tolist() if token != T5_END]


def test_a_language_may_use_its_script_digits_and_what_the_sample_holds() -> None:
    questions = [query.text for query in read_demo_queries() if query.language == "ru"]
    tokens = restrict("ru", [*questions, "Что такое NASA?"])
    text = "".join(tokens)
    assert set("абвгджщ0129?") <= set(text)
    assert "N" in text
    assert not set("ぁかيবตQ") & set(text)
    assert not set(SPECIALS) & set(tokens)


def test_of_latin_letters_a_language_may_use_those_of_its_sample() -> None:
    questions = [query.text for query in read_demo_queries() if query.language == "fi"]
    letters = {letter for text in questions for letter in text}
    tokens = restrict("fi", questions)
    found = {letter for token in tokens for letter in token if letter.isalpha()}
    assert {"ä", "ö", "k"} <= found
    assert found <= letters | {letter.upper() for letter in letters} | {letter.lower() for letter in letters}
    assert len(tokens) < make_unigram(*SPECIALS).get_vocab_size()


def test_suppressed_ids_are_in_no_vocabulary() -> None:
    tokenizer = make_unigram(*SPECIALS)
    banned = tuple(token for token in range(100, 400))
    kept = restrict("fi", ["Mikä on Suomen pisin joki?"], never=banned)
    assert not {tokenizer.id_to_token(token) for token in banned} & set(kept)


@pytest.mark.parametrize(("form", "dtype"), [("mt5", "float32"), ("mt5", "int8"), ("bert2bert", "float32")])
def test_a_restricted_vocabulary_samples_as_the_full_one_does_with_the_others_suppressed(
    form: str, dtype: str, tmp_path: Path
) -> None:
    restricted = QueryGenerator(exported_generator(form, dtype, SAMPLE), device="cpu", threads=1)
    assert restricted.restricted_languages == restricted.languages
    assert restricted.sampling.vocabulary == "restricted"
    keys = [number.to_bytes(32, "little") for number in range(len(passages()) * COUNT)]
    noise = gumbel_noise(keys, STEPS, TOP_K)
    sample = [query.text for query in read_demo_queries() if query.language == "ja"]
    tokenizer = make_unigram(*SPECIALS)
    size = tokenizer.get_vocab_size()
    allowed = restrict_vocabulary(tokenizer, size, "ja", sample, (T5_END,), ())
    others = sorted(set(range(size)) - set(allowed.tolist()))
    assert len(others) > 500

    # the same model with a full output projection that suppresses all others
    folder = tmp_path / "masked"
    shutil.copytree(restricted.folder.path, folder)
    reference = Reference(fetch_checkpoint(str(generator_checkpoint(form))))
    given = reference.weights(), reference.config, dtype
    head = Bert2Bert(*given).build_head(others) if form == "bert2bert" else build_t5_head(Model(*given), others)
    head.save(folder / "head.onnx")
    about = dict(restricted.folder.description)
    write_description(folder, "generator", {name: about[name] for name in about.keys() - {"format", "kind", "files"}})
    full = QueryGenerator(folder, device="cpu", threads=1)
    found = restricted.generate_ids(passages(), ("ja",), noise, 2.0, "restricted")
    assert found == full.generate_ids(passages(), ("ja",), noise, 2.0, "full")
    assert {token for row in found for token in row} <= set(allowed.tolist())
    assert found != restricted.generate_ids(passages(), ("ja",), noise, 2.0, "full")


def test_languages_with_their_own_vocabularies_do_not_touch_each_other() -> None:
    generator = QueryGenerator(exported_generator("mt5", "int8", SAMPLE), device="cpu", threads=1)
    keys = [number.to_bytes(32, "little") for number in range(len(passages()) * len(generator.languages))]
    noise = gumbel_noise(keys, STEPS, TOP_K)
    together = generator.generate_ids(passages(), generator.languages, noise, 1.0, "restricted")
    for place, language in enumerate(generator.languages):
        rows = slice(place, None, len(generator.languages))
        alone = generator.generate_ids(passages(), (language,), noise[rows], 1.0, "restricted")
        assert together[rows] == alone


def test_a_restricted_vocabulary_must_be_in_the_model_folder() -> None:
    generator = QueryGenerator(exported_generator("mt5"), device="cpu", threads=1)
    noise = np.zeros((1, 2, 1), dtype=np.float32)
    with pytest.raises(InputError, match=r"no restricted vocabulary for 'fi'\. Cure: export it with --restrict-v"):
        generator.generate_ids(passages()[:1], ("fi",), noise, 1.0, "restricted")
    with pytest.raises(InputError, match=r"unknown vocabulary 'tiny'\. Cure: choose one of full, restricted"):
        generator.generate_ids(passages()[:1], ("fi",), noise, 1.0, "tiny")


def test_a_sample_must_hold_every_language(tmp_path: Path) -> None:
    sample = tmp_path / "sample.jsonl"
    sample.write_text(json.dumps({"id": "1", "text": "Кто это?", "lang": "ru"}) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"sample.jsonl holds no text in 'fi'\. Cure: add a few hundred questions"):
        export_checkpoint(str(generator_checkpoint("mt5")), tmp_path / "out", restrict_vocabulary=sample)
    assert not (tmp_path / "out").exists()


def test_what_a_checkpoint_suppresses_stays_suppressed() -> None:
    generator = QueryGenerator(exported_generator("mt5-prompted", "float32", SAMPLE), device="cpu", threads=1)
    noise = gumbel_noise([bytes([number] * 16) for number in range(60)], STEPS, 100)
    rows = generator.generate_ids(passages()[:3], ("ru",), noise, 50.0, "restricted")
    assert not {token for row in rows for token in row} & set(SUPPRESSED)
