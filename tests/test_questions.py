from __future__ import annotations

from pathlib import Path

import pytest
from shared_data import shared_file
from writing import Write, lines_of

from xqg_qdrant.corpus.questions import read_queries
from xqg_qdrant.errors import InputError
from xqg_qdrant.records import Query


def test_questions_are_read_with_languages_and_answers(write: Write) -> None:
    path = write(
        lines_of(
            {"id": "1", "question": "Missä?", "lang": " fi", "answers": ["Oulu", "in Oulu"], "split": "dev"},
            {"_id": 2, "text": "Where?"},
            {"query_id": "3", "query": "Когда?", "language": "ru", "answers": "1605"},
        )
    )
    assert read_queries(path) == [
        Query("1", "Missä?", "fi", ("Oulu", "in Oulu")),
        Query("2", "Where?"),
        Query("3", "Когда?", "ru", ("1605",)),
    ]


def test_questions_come_from_tsv_with_a_header_or_without(write: Write) -> None:
    assert read_queries(write("q1\twhere?\nq2\twhen?\n", "q.tsv")) == [Query("q1", "where?"), Query("q2", "when?")]
    assert read_queries(write("id\tlang\ttext\nq1\tfi\tmissä?\n", "q.tsv")) == [Query("q1", "missä?", "fi")]


def test_questions_come_from_a_beir_folder(write: Write, tmp_path: Path) -> None:
    write(lines_of({"_id": "q1", "text": "where?", "metadata": {}}), "beir/queries.jsonl")
    assert read_queries(tmp_path / "beir") == [Query("q1", "where?")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "malformed JSON"),
        ('{"text": "a"}', "no id"),
        ('{"id": "2"}', "no text"),
        ('{"id": "1", "text": "again"}', "the id '1' occurred before"),
        ('{"id": "2", "text": "a", "lang": 5}', "the language is not a string"),
        ('{"id": "2", "text": "a", "answers": [1605]}', "the answers are not a list of strings"),
        ('{"id": "2", "text": "\\ud800"}', "text holds a lone surrogate"),
    ],
)
def test_a_question_that_cannot_be_used_is_an_error_with_its_line(write: Write, line: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"q\.jsonl, line 3: {reason}"):
        read_queries(write(lines_of({"id": "1", "text": "a"}) + "\n" + line + "\n", "q.jsonl"))


def test_a_file_without_questions_is_an_error(write: Write) -> None:
    with pytest.raises(InputError, match="holds no questions"):
        read_queries(write("\n", "q.jsonl"))


def test_the_languages_of_the_xor_train_file_lose_their_spaces() -> None:
    queries = read_queries(shared_file("xor/train.jsonl.gz"))
    assert len(queries) == 15250
    assert {query.language for query in queries} == {"ar", "bn", "fi", "ja", "ko", "ru", "te"}
