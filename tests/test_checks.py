"""What becomes of the queries that a generator wrote."""

from __future__ import annotations

import pytest

from xqg_qdrant.generation.checks import REASONS, Dropped, check_queries
from xqg_qdrant.records import GeneratedQuery

WRITTEN = [
    GeneratedQuery("fi", "Mikä on Tonavan pituus?", 0),
    GeneratedQuery("fi", " mikä  on tonavan pituus?", 1),
    GeneratedQuery("fi", "What is the length of the Danube?", 2),
    GeneratedQuery("fi", "¿Dónde nace el Danubio?", 3),
    GeneratedQuery("de", "Donau Länge?", 0),
    GeneratedQuery("de", " \u200b", 1),
    GeneratedQuery("de", "<extra_id_0> Donau", 2),
    GeneratedQuery("uk", "Какова длина Дуная?", 0),
    GeneratedQuery("uk", "Яка довжина Дунаю?", 1),
    GeneratedQuery("uk", "Where is Ulm?", 2),
]


def test_unusable_queries_are_dropped_and_counted_by_language_and_reason() -> None:
    queries, dropped = check_queries(WRITTEN, identify=True)
    assert [(query.language, query.number) for query in queries] == [("fi", 0), ("de", 0), ("uk", 1)]
    assert dropped == {
        ("fi", "duplicate"): 1, ("fi", "wrong_language"): 2, ("de", "empty"): 1,
        ("de", "malformed"): 1, ("uk", "wrong_language"): 1,
        ("uk", "wrong_script"): 1,
    }  # fmt: skip
    assert {reason for _, reason in dropped} == set(REASONS)


def test_languages_are_identified_only_if_asked_for() -> None:
    queries, dropped = check_queries(WRITTEN)
    assert len(queries) == 6
    assert Dropped("fi", "wrong_language") not in dropped
    assert sum(dropped.values()) + len(queries) == len(WRITTEN)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("fi", "<extra_id_0> missä Tonava laskee mereen?"),
        ("fi", "<extra_id_12>."),
        ("ja", "ドナウ川はどこで\ufffd\ufffd"),
        ("ru", "Где Дунай впадает в <0xD0><0xBC>оре"),
        ("ru", "Где исток <0xd0>?"),
        ("ko", "다뉴브 강은 <unk> 어디에"),
        ("bn", "দানিউব নদী</s>"),
        ("te", "[UNK] డాన్యూబ్"),
        ("ar", "<|endoftext|> أين يصب الدانوب"),
        ("fi", "▁Missä▁Tonava"),
        ("ja", "ドナウ⁇はどこ"),
        ("fi", "Missä \ud83d on?"),
    ],
)
def test_leftovers_of_a_tokenizer_are_malformed(language: str, text: str) -> None:
    assert check_queries([GeneratedQuery(language, text)]) == ((), {(language, "malformed"): 1})


@pytest.mark.parametrize(
    "text", ["Mikä on x < y > z?", "Onko 0xD0 tavu?", "Mitä <b> tekee HTML:ssä?", "Mikä on [1]?", "Ġgantija, missä?"]
)
def test_brackets_and_hexadecimal_numbers_of_a_question_are_no_leftovers(text: str) -> None:
    assert check_queries([GeneratedQuery("fi", text)]).queries == (GeneratedQuery("fi", text),)
