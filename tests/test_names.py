"""The training's transliteration writes names the way readers of each script would spell them, or nearly."""

from __future__ import annotations

from pathlib import Path

import pytest

from xqg_qdrant.languages import is_written_in

LANGUAGES = ("ar", "bn", "fi", "ja", "ko", "ru", "te")


@pytest.fixture(autouse=True)
def import_from_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "training"))


@pytest.mark.parametrize(
    ("name", "language", "spelled"),
    [
        ("Titicaca", "ru", "титикака"),
        ("Titicaca", "ja", "ティティカカ"),
        ("Titicaca", "ko", "티티카카"),
        ("Titicaca", "te", "టిటికాకా"),
        ("Titicaca", "bn", "টিটিকাকা"),
        ("Titicaca", "ar", "تيتيكاكا"),
        ("Yukon", "ru", "юкон"),
        ("Mozart", "te", "మోజార్ట్"),
        ("Québec Volga", "fi", "quebec volga"),
    ],
)
def test_a_name_is_spelled_by_its_sound(name: str, language: str, spelled: str) -> None:
    from names import transliterate

    assert transliterate(name, language) == spelled


def test_any_letters_are_written_in_the_script_of_the_language() -> None:
    from names import transliterate

    name = "the quick brown fox jumps over the lazy dog ch sh th ph kh gh dh bh ck ee oo ou xyz"
    for language in LANGUAGES:
        written = transliterate(name, language)
        assert len(written.split()) >= 18
        assert all(is_written_in(word, language) for word in written.split()), written
