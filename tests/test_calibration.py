"""What a calibration promises: the hand-made figures, a bank read with care and encoded once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from math import inf, nan, sqrt
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pytest
from question_banks import write_bank

from xqg_qdrant.augmentation.calibration import (
    BankMeans,
    QuestionBank,
    encode_bank,
    find_languages,
    pack_mean,
    read_bank,
    subtract_offsets,
    unpack_mean,
)
from xqg_qdrant.augmentation.fusion import Fusion, calibrate, check_fusion, fuse
from xqg_qdrant.errors import InputError
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import FloatArray

UP = pack_mean(np.array([0, 1], dtype=np.float32))
CALIBRATED = Fusion(0.5, "mean", renormalise=True, gamma=0.5, question_bank="hash", bank_mean=UP)
QUESTIONS = {
    "fi": ("Missä Oulu on?", "Kuka sen perusti?", "Milloin?", "Miksi se paloi?", "Montako asukasta siellä on?"),
    "ja": ("オウルはどこですか", "誰が建てましたか", "いつですか", "なぜですか"),
    "ru": ("Где Оулу?", "Кто его основал?", "Когда?"),
}


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XQG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "xqg"


class StubEncoder:
    """Two numbers a text: its length, and 1. Texts with `?` twice have unknown pieces."""

    dim = 2

    def __init__(self, folder: Path) -> None:
        self.folder = SimpleNamespace(path=folder)

    def sha256(self) -> str:
        return "5" * 64

    def unknown_share(self, texts: Sequence[str]) -> float:
        return sum("??" in text for text in texts) / len(texts)

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)


def bank_file(folder: Path, *lines: str, questions: int = 10) -> Path:
    """Write a bank of good questions, and these lines after them."""
    good = [json.dumps({"lang": "fi", "question": f"Mikä on {number}?"}) for number in range(questions)]
    path = folder / "bank.jsonl"
    path.write_text("\n".join([*good, *lines]) + "\n", encoding="utf-8")
    return path


# Fusion


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [1, 3])
def test_calibration_by_hand(dtype: type[np.floating], length: int) -> None:
    passage, queries = np.array([length, 0], dtype=dtype), np.array([[0, length]], dtype=dtype)
    # The fused unit vector is (√½, √½). With 0.5·(0, 1) added, its squared length is ½ + (√½ + ½)² = 1.25 + √½.
    expected = length * np.array([sqrt(0.5), sqrt(0.5) + 0.5]) / sqrt(1.25 + sqrt(0.5))
    fused = fuse(passage, queries, CALIBRATED)
    assert fused.dtype == np.float32
    np.testing.assert_allclose(fused, expected, rtol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fusion", ["mean", "sum"])
def test_a_passage_without_queries_is_calibrated_too(dtype: type[np.floating], fusion: str) -> None:
    settings = CALIBRATED._replace(fusion=fusion)
    fused = fuse(np.array([3, 0], dtype=dtype), np.empty((0, 2), dtype=dtype), settings)
    # (1, 0) + 0.5·(0, 1) is (2, 1)/2, whose length is √5/2
    assert fused.dtype == np.float32
    np.testing.assert_allclose(fused, [6 / sqrt(5), 3 / sqrt(5)], rtol=1e-7)


def test_a_passage_is_calibrated_to_the_same_bits_whatever_others_are() -> None:
    passages = np.random.default_rng(5).standard_normal((200, 384)).astype(np.float32)
    passages[7] = 0
    settings = CALIBRATED._replace(bank_mean=pack_mean(passages[0]))
    together = calibrate(passages, settings)
    for number in (0, 7, 199):
        np.testing.assert_array_equal(together[number], fuse(passages[number], passages[:0], settings))
    unit = passages[3].astype(np.float64) / np.linalg.norm(passages[3].astype(np.float64))
    moved = unit + settings.gamma * passages[0]
    expected = moved * np.linalg.norm(passages[3].astype(np.float64)) / np.linalg.norm(moved)
    np.testing.assert_allclose(together[3], expected, rtol=1e-6)
    assert not together[7].any()


def test_gamma_0_ignores_the_bank() -> None:
    passage, queries = np.array([1, 0], dtype=np.float32), np.array([[0, 1]], dtype=np.float32)
    without = fuse(passage, queries, Fusion(0.5, "mean", renormalise=True))
    assert fuse(passage, queries, CALIBRATED._replace(gamma=0.0)).tolist() == without.tolist()
    np.testing.assert_allclose(without, [sqrt(0.5), sqrt(0.5)], rtol=1e-7)


@pytest.mark.parametrize("gamma", [-0.1, -inf, inf, nan])
def test_a_gamma_below_0_or_not_finite_is_refused(gamma: float) -> None:
    with pytest.raises(InputError, match=rf"gamma must be a finite number of at least 0, was: {gamma}\. Cure: "):
        check_fusion(CALIBRATED._replace(gamma=gamma))


def test_a_calibration_without_renormalise_is_refused() -> None:
    with pytest.raises(InputError, match=r"calibration needs vectors of one length\. Cure: use --renormalise"):
        check_fusion(CALIBRATED._replace(renormalise=False))
    check_fusion(CALIBRATED)
    check_fusion(CALIBRATED._replace(renormalise=False, gamma=0.0))


@pytest.mark.parametrize("dim", [1, 2, 384])
def test_a_packed_mean_is_read_back_bit_for_bit(dim: int) -> None:
    mean = np.random.default_rng(dim).standard_normal(dim).astype(np.float32)
    read = unpack_mean(pack_mean(mean))
    assert read.dtype == np.float64
    assert read.astype(np.float32).tobytes() == mean.tobytes()
    assert pack_mean(mean.astype(">f4")) == pack_mean(mean)


# The bank


def test_the_shipped_bank_has_56_distinct_questions_in_each_of_45_languages() -> None:
    bank = read_bank()
    assert len(bank.questions) == 45
    assert {len(set(questions)) for questions in bank.questions.values()} == {56}
    assert Counter(map(len, bank.questions.values())) == {56: 45}
    assert {"en", "ar", "bn", "fi", "ja", "ko", "ru", "te"} <= set(bank.questions)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"lang": "fi", "question": "Mikä', "malformed JSON: "),
        ('["fi", "Mikä?"]', ""),
        ('{"lang": "fi", "question": ""}', r"no question\. "),
        ('{"lang": "fi", "question": " \\u200b"}', r"no question\. "),
        ('{"lang": "fi", "question": 7}', r"no question\. "),
        ('{"lang": "fi"}', r"no question\. "),
        ('{"question": "Mikä?"}', r"no language\. "),
        ('{"lang": " ", "question": "Mikä?"}', r"no language\. "),
        ('{"lang": null, "question": "Mikä?"}', r"no language\. "),
    ],
)
def test_a_row_that_is_no_question_is_refused_with_its_line(tmp_path: Path, line: str, problem: str) -> None:
    path = bank_file(tmp_path, "", line, questions=12)
    with pytest.raises(InputError, match=rf"bank\.jsonl, line 14: {problem}.*Cure: write each row as "):
        read_bank(path)


@pytest.mark.parametrize("count", [0, 9])
def test_fewer_than_10_questions_are_refused(tmp_path: Path, count: int) -> None:
    path = bank_file(tmp_path, questions=count)
    with pytest.raises(InputError, match=rf"holds {count} questions, too few for a mean\. Cure: give 10 or more"):
        read_bank(path)
    assert sum(map(len, read_bank(bank_file(tmp_path, questions=10)).questions.values())) == 10


def test_the_hash_changes_with_one_character_and_not_with_the_order_of_the_languages(tmp_path: Path) -> None:
    english = ['{"lang": "en", "question": "Where?"}', '{"language": "en", "query": "When?"}']
    bank = read_bank(bank_file(tmp_path, *english))
    assert bank.questions["en"] == ("Where?", "When?")
    good = bank_file(tmp_path).read_text(encoding="utf-8").splitlines()
    (tmp_path / "bank.jsonl").write_text("\n".join([*english, *good]), encoding="utf-8")
    assert read_bank(tmp_path / "bank.jsonl") == bank
    assert list(read_bank(tmp_path / "bank.jsonl").questions) == list(bank.questions) == ["en", "fi"]
    for other in ([english[0], english[1].replace("?", "!")], [english[0], english[1].replace('"en"', '"em"')]):
        assert read_bank(bank_file(tmp_path, *other)).sha256 != bank.sha256
    assert len(bank.sha256) == 64


# Its means


@pytest.fixture
def small_bank(tmp_path: Path) -> QuestionBank:
    write_bank(tmp_path / "small.jsonl.gz", QUESTIONS)
    return read_bank(tmp_path / "small.jsonl.gz")


def test_the_means_are_plain_means_of_the_questions_vectors(demo_encoder: Encoder, small_bank: QuestionBank) -> None:
    means = encode_bank(small_bank, demo_encoder)
    vectors = {language: demo_encoder.encode_queries(texts).astype(np.float64) for language, texts in QUESTIONS.items()}
    assert list(means.languages) == ["fi", "ja", "ru"]
    for language, own in vectors.items():
        assert means.languages[language].tolist() == own.mean(axis=0).astype(np.float32).tolist()
    # Each question counts the same, not each language.
    overall = np.concatenate(list(vectors.values())).mean(axis=0)
    assert means.overall.dtype == np.float32
    np.testing.assert_allclose(means.overall, overall, rtol=0, atol=1e-7)
    assert np.abs(overall - np.mean([own.mean(axis=0) for own in vectors.values()], axis=0)).max() > 1e-5
    assert means.sha256 == small_bank.sha256


def test_a_bank_is_encoded_once_an_encoder_and_its_settings(
    demo_encoder: Encoder, small_bank: QuestionBank, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encode_bank(small_bank, demo_encoder)
    assert len(list(cache_folder.iterdir())) == 1

    def refuse(_: Sequence[str]) -> FloatArray:
        raise AssertionError("encoded again")

    monkeypatch.setattr(demo_encoder, "encode_queries", refuse)
    again = encode_bank(small_bank, demo_encoder)
    assert again.overall.tobytes() == first.overall.tobytes()
    assert {name: mean.tobytes() for name, mean in again.languages.items()} == {
        name: mean.tobytes() for name, mean in first.languages.items()
    }
    assert again.sha256 == first.sha256
    with pytest.raises(AssertionError, match="encoded again"):
        encode_bank(small_bank._replace(sha256="0" * 64), demo_encoder)
    folder = demo_encoder.folder
    for change in ({"files": {"model.onnx": "1" * 64}}, {"query_prefix": "ask: "}, {"max_query_tokens": 7}):
        other = folder._replace(path=cache_folder, description={**folder.description, **change})
        monkeypatch.setattr(demo_encoder, "folder", other)
        with pytest.raises(AssertionError, match="encoded again"):
            encode_bank(small_bank, demo_encoder)


def test_the_demo_encoder_ships_with_the_means_of_the_shipped_bank(
    demo_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = read_bank()
    with monkeypatch.context() as patch:
        patch.setattr(demo_encoder, "encode_queries", None)
        means = encode_bank(bank, demo_encoder)
    assert means.narrow
    for language in ("fi", "ja"):
        vectors = demo_encoder.encode_queries(bank.questions[language]).astype(np.float64)
        np.testing.assert_allclose(means.languages[language], vectors.mean(axis=0), rtol=0, atol=1e-3)
    assert {"en", "ar", "bn", "fi", "ja", "ko", "ru", "te"} <= set(means.languages)


def test_a_language_with_unknown_pieces_takes_no_part(tmp_path: Path) -> None:
    questions = {"fi": ("aa", "aaaa"), "ja": ("a??",) + 8 * ("a",), "te": ("a??",) + 9 * ("a",)}
    means = encode_bank(QuestionBank(questions, "2" * 64), StubEncoder(tmp_path))  # type: ignore[arg-type]
    # One of nine is more than a tenth, one of ten is not.
    assert {language: mean.tolist() for language, mean in means.languages.items()} == {
        "fi": [3, 1],
        "te": [pytest.approx(1.2), 1],
    }
    # (2 + 4 + 3 + 9·1)/12
    assert means.overall.tolist() == [1.5, 1]


def test_a_bank_that_the_encoder_cannot_read_is_refused(tmp_path: Path) -> None:
    bank = QuestionBank({"ja": 12 * ("??",)}, "3" * 64)
    with pytest.raises(InputError, match=r"can read no language of the question bank\. Cure: use --no-calibrate"):
        encode_bank(bank, StubEncoder(tmp_path))  # type: ignore[arg-type]


@pytest.mark.parametrize(("length", "narrow"), [(0.64, False), (0.66, True)])
def test_vectors_are_narrow_where_their_mean_is_long(length: float, narrow: bool) -> None:
    overall = np.array([0, 0.6 * length, 0.8 * length], dtype=np.float32)
    assert BankMeans(overall, {}, "").narrow is narrow


# Offsets

MEANS = BankMeans(
    np.array([1, 1], dtype=np.float32),
    {"en": np.array([2, 0], dtype=np.float32), "fi": np.array([0, 4], dtype=np.float32)},
    "",
)


@pytest.mark.parametrize(
    ("language", "passages", "calibrated", "expected"),
    [
        # (10, 20) - ½·((0, 4) - (2, 0))
        ("fi", "en", True, [11, 18]),
        # (10, 20) - ½·((2, 0) - (0, 4))
        ("en", "fi", True, [9, 22]),
        ("en", "en", True, [10, 20]),
        ("fi", "fi", True, [10, 20]),
        ("xx", "en", True, [10, 20]),
        ("", "xx", True, [10, 20]),
        # By any code of the language
        ("fi-FI", "eng", True, [10.5, 18.5]),
        ("FI", "EN", True, [11, 18]),
        # The passages' language is unknown: (10, 20) - ½·((0, 4) - (1, 1))
        ("fi", "xx", True, [10.5, 18.5]),
        # (10, 20) - ½·(0, 4), and with the mean of the own language or of all
        ("fi", "en", False, [10, 18]),
        ("en", "en", False, [9, 20]),
        ("xx", "en", False, [9.5, 19.5]),
    ],
)
def test_offsets_by_hand(language: str, passages: str, calibrated: bool, expected: npt.ArrayLike) -> None:
    vectors = np.array([[10, 20], [0, 0]], dtype=np.float32)
    shifted = subtract_offsets(vectors, [language, passages], MEANS, passages, calibrated)
    assert shifted.dtype == np.float32
    assert shifted[0].tolist() == expected
    if calibrated:
        assert shifted[1].tolist() == [0, 0]
    assert vectors.tolist() == [[10, 20], [0, 0]]


def test_the_languages_of_questions_are_the_given_ones_or_identified() -> None:
    questions = ["Missä maassa Tonava alkaa?", "Where does the Danube rise?", "1958?", "Missä Tonava alkaa?"]
    means = BankMeans(MEANS.overall, dict.fromkeys(("en", "fi", "swa"), MEANS.overall), "")
    assert find_languages(questions, ["", "", "", "sw"], means) == [
        ("fi", True, True), ("en", True, True), ("", False, False), ("sw", False, True),
    ]  # fmt: skip


def test_without_the_identifier_only_given_languages_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xqg_qdrant.augmentation.calibration.can_identify", lambda: False)
    found = find_languages(["Missä Tonava alkaa?", "Missä Tonava alkaa?"], ["", "xx"], MEANS)
    assert found == [("", False, False), ("xx", False, False)]
