"""Test that a set of texts behaves like a Python set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xqg_qdrant.corpus.seen_ids import TRACE_BYTES, TextSet

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=60)


@given(TEXTS, TEXTS)
def test_a_text_set_answers_as_a_set_of_strings_does(added: list[str], asked: list[str]) -> None:
    ours, expected = TextSet(), set[str]()
    for text in added:
        assert ours.add(text) == (text not in expected)
        expected.add(text)
    assert len(ours) == len(expected)
    assert [text in ours for text in asked] == [text in expected for text in asked]


def test_a_trace_across_the_border_of_two_others_is_not_a_text() -> None:
    ours = TextSet()
    bucket, trace = ours._locate("a")
    half = TRACE_BYTES // 2
    bucket += b"\x00" * half + trace + b"\x00" * half
    assert "a" not in ours
    assert ours.add("a")
    assert "a" in ours
