"""Test how text is split into words, in every script."""

from __future__ import annotations

import pytest

from xqg_qdrant.text import split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, U.S.A.!", ["don", "t", "stop", "u", "s", "a"]),
        ("STRASSE straße", ["strasse", "strasse"]),
        ("ｆｕｌｌ１９", ["full19"]),
        # Vowel signs are marks: \w alone would cut नदी into three.
        ("सबसे लंबी नदी?", ["सबसे", "लंबी", "नदी"]),
        ("ఏది నది।", ["ఏది", "నది"]),
        ("می\u200cخواهم", ["میخواهم"]),
        ("世界で一番長い川", ["世界で一番長い川"]),
        ("snake_case", ["snake", "case"]),
        ("", []),
    ],
)
def test_a_word_is_a_run_of_letters_with_their_marks_without_case(text: str, words: list[str]) -> None:
    assert split_words(text) == words
