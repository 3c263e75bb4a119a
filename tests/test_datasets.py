"""Test files in the formats of published data sets, all written for these tests."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from shared_data import shared_file
from writing import Write, lines_of

from xqg_qdrant.cli import main
from xqg_qdrant.corpus.datasets import context_id, language_in_name
from xqg_qdrant.corpus.formats import count_rows
from xqg_qdrant.corpus.passages import read_generated_queries, read_passages
from xqg_qdrant.corpus.questions import read_queries, read_questions
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.files import read_judged_questions
from xqg_qdrant.evaluation.results import read_results
from xqg_qdrant.records import GeneratedQuery, Passage, Qrel, Query, Reject

LAKE = "The lake is 92 metres deep. It was dug in 1871."
MILL = "The mill burnt down in 1904."
LAKE_ID, MILL_ID = context_id(LAKE), context_id(MILL)
JARVI = "Järvi on 92 metriä syvä. Se kaivettiin 1871."


def question(id_: str, text: str, *answers: str, **others: Any) -> dict[str, Any]:
    return {"id": id_, "question": text, "answers": [{"text": a, "answer_start": 0} for a in answers]} | others


def squad(*paragraphs: tuple[str, list[dict[str, Any]]], title: str = "Old_Mill", indent: int | None = None) -> str:
    found = [{"context": context, "qas": questions} for context, questions in paragraphs]
    return json.dumps({"version": "1.1", "data": [{"title": title, "paragraphs": found}]}, indent=indent)


# SQuAD, XQuAD, MLQA


@pytest.mark.parametrize("name", ["train-v1.1.json", "train-v1.1.json.gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_the_paragraphs_of_squad_are_passages_called_by_their_text(write: Write, name: str, indent: int | None) -> None:
    path = write(squad((LAKE, [question("q1", "How deep?", "92 metres")]), (MILL, []), indent=indent), name)
    assert list(read_passages(path)) == [Passage(LAKE_ID, LAKE, "Old Mill"), Passage(MILL_ID, MILL, "Old Mill")]
    assert count_rows(path) is None


def test_the_id_of_a_paragraph_is_a_checksum_of_its_text() -> None:
    # printf %s 'The mill burnt down in 1904.' | b2sum -l 80
    assert MILL_ID == "e25811faab666bd5d06f"


def test_a_paragraph_that_stands_there_twice_is_one_passage(write: Write) -> None:
    path = write(
        squad((LAKE, [question("q1", "a?", "92")]), (MILL, []), (LAKE, [question("q2", "b?", "92")])), "s.json"
    )
    assert [row.text for row in read_passages(path) if isinstance(row, Passage)] == [LAKE, MILL]
    assert not [row for row in read_passages(path) if isinstance(row, Reject)]


def test_the_address_of_an_article_becomes_its_title(write: Write) -> None:
    (passage,) = read_passages(write(squad((LAKE, []), title="Beyonc%C3%A9_Knowles"), "s.json"))
    assert isinstance(passage, Passage)
    assert passage.title == "Beyoncé Knowles"


def test_a_squad_file_gives_questions_answers_and_judgements(write: Write) -> None:
    path = write(
        squad(
            (LAKE, [question("q1", "How deep?", "92 metres", "92", "92 metres"), question("q2", "When?", "1871")]),
            (MILL, [question("q3", "Who lit it?", is_impossible=True)]),
        ),
        "dev-v2.0.json",
    )
    found = read_questions([path])
    assert found.queries == [
        Query("q1", "How deep?", "", ("92 metres", "92")),
        Query("q2", "When?", "", ("1871",)),
        Query("q3", "Who lit it?"),
    ]
    assert found.qrels == [Qrel("q1", LAKE_ID, 1), Qrel("q2", LAKE_ID, 1)]


def test_mlqa_has_the_language_of_its_questions_in_the_name(write: Write) -> None:
    path = write(squad((LAKE, [question("q1", "Wie tief?", "92")])), "test-context-en-question-de.json")
    assert read_questions([path]).queries == [Query("q1", "Wie tief?", "de", ("92",))]


def test_questions_of_several_languages_that_share_their_ids_stay_distinct(write: Write) -> None:
    german = write(squad((LAKE, [question("q1", "Wie tief?", "92")])), "test-context-en-question-de.json")
    spanish = write(squad((LAKE, [question("q1", "¿Qué tan hondo?", "92")])), "test-context-en-question-es.json")
    found = read_questions([german, spanish])
    assert found.queries == [
        Query("q1-de", "Wie tief?", "de", ("92",)),
        Query("q1-es", "¿Qué tan hondo?", "es", ("92",)),
    ]
    assert found.qrels == [Qrel("q1-de", LAKE_ID, 1), Qrel("q1-es", LAKE_ID, 1)]


def test_xquad_is_judged_by_its_file_in_the_language_of_the_passages(write: Write) -> None:
    english = write(
        squad((LAKE, [question("q1", "How deep?", "92 metres"), question("q2", "?", "no")])), "xquad.en.json"
    )
    arabic = write(squad(("نص", [question("q1", "ما عمقها؟", "92 متر")])), "xquad.ar.json")
    russian = write(squad(("текст", [question("q1", "Как глубоко?", "92 метра")])), "xquad.ru.json")
    assert read_judged_questions([arabic], english) == (
        [Query("q1", "ما عمقها؟", "ar", ("92 metres",))],
        [Qrel("q1", LAKE_ID, 1)],
    )
    queries, qrels = read_judged_questions([arabic, russian], english)
    assert queries == [
        Query("q1-ar", "ما عمقها؟", "ar", ("92 metres",)),
        Query("q1-ru", "Как глубоко?", "ru", ("92 metres",)),
    ]
    assert qrels == [Qrel("q1-ar", LAKE_ID, 1), Qrel("q1-ru", LAKE_ID, 1)]
    assert read_judged_questions([arabic])[1] == [Qrel("q1", context_id("نص"), 1)]


def test_judgements_of_other_questions_are_an_error(write: Write) -> None:
    questions = write(lines_of({"id": "1", "text": "a"}), "q.jsonl")
    with pytest.raises(InputError, match=r"qrels\.tsv: no judgement is for any of the questions \(1 given\)\. Cure: "):
        read_judged_questions([questions], write("2\td\t1\n", "qrels.tsv"))


@pytest.mark.parametrize(
    ("paragraph", "reason"),
    [
        ({"context": None, "qas": []}, "context is not a string"),
        ({"qas": []}, "context is not a string"),
        ({"context": " ", "qas": []}, "text is empty"),
        ("text", "the paragraph is not an object"),
    ],
)
def test_a_paragraph_that_cannot_be_used_is_rejected_with_its_number(
    write: Write, paragraph: object, reason: str
) -> None:
    found = {"data": [{"title": "T", "paragraphs": [{"context": MILL, "qas": []}, paragraph]}]}
    first, second = read_passages(write(json.dumps(found), "s.json"))
    assert first == Passage(MILL_ID, MILL, "T")
    assert isinstance(second, Reject)
    assert (second.line, second.reason) == (2, reason)


@pytest.mark.parametrize(
    ("qas", "reason"),
    [
        ("?", "qas is not a list"),
        (["?"], "qas holds something that is not an object"),
        ([{"id": "1", "question": "?", "answers": ["x"]}], "the answers of '1' are not a list of objects"),
        ([{"id": "1", "question": "?", "answers": [{"answer_start": 1}]}], "answers is not a list of strings"),
        ([{"id": "1", "answers": []}], "no text"),
        ([question("1", "?"), question("1", "!")], "the id '1' occurred before"),
    ],
)
def test_a_question_in_a_paragraph_that_cannot_be_used_is_an_error(write: Write, qas: object, reason: str) -> None:
    found = {"data": [{"paragraphs": [{"context": LAKE, "qas": []}, {"context": MILL, "qas": qas}]}]}
    with pytest.raises(InputError, match=rf"s\.json, paragraph 2: {reason}.* Cure: "):
        read_queries(write(json.dumps(found), "s.json"))


@pytest.mark.parametrize("content", ['{"data": [{"title": "no paragraphs"}]}', "{\n", "", '{\n"other": 1\n}'])
def test_json_that_is_neither_squad_nor_lines_is_an_error(write: Write, content: str) -> None:
    path = write(content, "s.json")
    for read in (lambda: list(read_passages(path)), lambda: [*read_queries(path)]):
        with pytest.raises(InputError, match=r"s\.json: .* Cure: "):
            read()


# MKQA


def test_mkqa_gives_a_question_for_each_language_with_english_answers(write: Write) -> None:
    row = {
        "query": "who wrote it",
        "answers": {
            "en": [
                {"type": "entity", "entity": "Q1", "text": "Ann Lee", "aliases": ["A. Lee", "Ann Lee"]},
                {"type": "short_phrase", "text": "Lee", "aliases": [""]},
            ],
            "ja": [{"type": "entity", "entity": "Q1", "text": "アン・リー"}],
        },
        "queries": {"en": "who wrote it", "ja": "誰が書いた", "zh_cn": "谁写的"},
        "example_id": -42,
    }
    nothing = {
        "answers": {"en": [{"type": "unanswerable", "text": None, "aliases": []}]},
        "queries": {"ja": "?"},
        "example_id": 7,
    }
    answers = ("Ann Lee", "A. Lee", "Lee")
    assert read_queries(write(lines_of(row, nothing), "mkqa.jsonl.gz")) == [
        Query("-42-en", "who wrote it", "en", answers),
        Query("-42-ja", "誰が書いた", "ja", answers),
        Query("-42-zh_cn", "谁写的", "zh_cn", answers),
        Query("7-ja", "?", "ja"),
    ]


def test_mkqa_without_english_answers_is_an_error(write: Write) -> None:
    path = write(lines_of({"example_id": 1, "queries": {"ja": "a"}, "answers": {"ja": []}}), "mkqa.jsonl")
    with pytest.raises(InputError, match=r"line 1: answers holds no list of objects for en\. Cure: "):
        read_queries(path)


# AfriQA


def afriqa(id_: int, answers: str) -> dict[str, Any]:
    return {
        "id": id_, "question": "Ina ne?", "translated_question": "Where?", "answers": "['arewa']", "lang": "hau",
        "split": "dev", "translated_answer": answers, "translation_type": "human_translation",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "read"),
    [
        ("['in the north']", ("in the north",)),
        ("['one', \"two's\"]", ("one", "two's")),
        ("[]", ()),
        ("['Ba'ath']", ("Ba'ath",)),  # as the data set has it, which Python would not write
        ("['l'un', 'l'autre']", ("l'un", "l'autre")),
    ],
)
def test_afriqa_is_answered_in_the_language_of_its_passages(write: Write, answers: str, read: tuple[str, ...]) -> None:
    path = write(lines_of(afriqa(0, answers)), "queries.afriqa.hau.en.dev.json")
    assert read_queries(path) == [Query("0", "Ina ne?", "hau", read)]


@pytest.mark.parametrize("answers", ["north", "[1605]", "{'a': 1}", "[" * 5000])
def test_answers_of_afriqa_that_are_no_list_of_texts_are_an_error(write: Write, answers: str) -> None:
    path = write(lines_of(afriqa(0, answers)), "queries.afriqa.hau.en.dev.json")
    with pytest.raises(InputError, match=r"line 1: translated_answer is not a list of strings\. Cure: "):
        read_queries(path)


def test_gold_passages_of_afriqa_are_passages_questions_and_judgements(write: Write) -> None:
    rows = [
        {
            "answer_pivot": {"answer_start": [0], "text": ["92 metres"]}, "context": LAKE, "id": "3",
            "question_lang": "Zurfinsa?", "question_translated": "How deep?", "title": "Lake", "answer_lang": "92",
        },
        {
            "answer_pivot": {"answer_start": [0], "text": ["1871"]}, "context": LAKE, "id": "4",
            "question_lang": "Yaushe?", "question_translated": "When?", "title": "Lake", "answer_lang": "1871",
        },
    ]  # fmt: skip
    path = write(lines_of(*rows), "gold_span_passages.afriqa.hau.en.dev.json")
    assert list(read_passages(path)) == [Passage(LAKE_ID, LAKE, "Lake")]
    found = read_questions([path])
    assert found.queries == [
        Query("3", "Zurfinsa?", "hau", ("92 metres",)),
        Query("4", "Yaushe?", "hau", ("1871",)),
    ]
    assert found.qrels == [Qrel("3", LAKE_ID, 1), Qrel("4", LAKE_ID, 1)]


# SWIM-IR


SWIM = {"_id": "107", "lang": "German", "code": "de", "query": "Wie tief ist er?", "title": "Lake", "text": LAKE}


def test_swim_ir_is_a_corpus_whose_passages_know_nothing_of_their_queries(write: Write) -> None:
    assert list(read_passages(write(lines_of(SWIM), "train.jsonl"))) == [Passage("107", LAKE, "Lake")]


def test_a_row_that_has_more_than_swim_ir_keeps_its_fields(write: Write) -> None:
    path = write(lines_of(SWIM | {"year": 2020}), "corpus.jsonl")
    (passage,) = read_passages(path)
    assert isinstance(passage, Passage)
    assert passage.metadata == {"lang": "German", "code": "de", "query": SWIM["query"], "year": 2020}


def test_swim_ir_is_a_file_of_queries_for_its_passages(write: Write) -> None:
    path = write(lines_of(SWIM, {**SWIM, "lang": "Finnish", "code": "fi", "query": "Miten syvä?"}), "train.jsonl")
    assert list(read_generated_queries(path)) == [
        ("107", (GeneratedQuery("de", "Wie tief ist er?"),)),
        ("107", (GeneratedQuery("fi", "Miten syvä?"),)),
    ]


def test_swim_ir_is_a_set_of_questions_each_about_its_own_passage(write: Write) -> None:
    german = write(lines_of(SWIM), "de.jsonl")
    assert read_questions([german])[:2] == ([Query("107", SWIM["query"], "de")], [Qrel("107", "107", 1)])
    finnish = write(lines_of({**SWIM, "code": "fi", "query": "Miten syvä?"}), "fi.jsonl")
    assert read_questions([german, finnish]).qrels == [Qrel("107-de", "107", 1), Qrel("107-fi", "107", 1)]


# Mr. TyDi, MIRACL


def test_mr_tydi_and_miracl_have_corpora_in_json_lines(write: Write) -> None:
    path = write(lines_of({"id": "7#0", "contents": "A\n\nB."}), "mrtydi-v1.1-finnish/docs.jsonl.gz")
    assert list(read_passages(path)) == [Passage("7#0", "A\n\nB.")]
    path = write(lines_of({"docid": "39#0", "title": "A", "text": "B."}), "docs-0.jsonl.gz")
    assert list(read_passages(path)) == [Passage("39#0", "B.", "A")]


def test_mr_tydi_and_miracl_have_topics_and_judgements_in_tables(write: Write) -> None:
    topics = write("0\tMikä?\n1\tMissä?\n", "topics.miracl-v1.0-fi-dev.tsv")
    qrels = write("0\tQ0\t39#0\t1\n0\tQ0\t39#1\t0\n", "qrels.miracl-v1.0-fi-dev.tsv")
    assert read_judged_questions([topics], qrels) == (
        [Query("0", "Mikä?", "fi"), Query("1", "Missä?", "fi")],
        [Qrel("0", "39#0", 1), Qrel("0", "39#1", 0)],
    )
    topics = write("46\tMikä?\n", "mrtydi-v1.1-finnish/topic.dev.tsv")
    assert read_judged_questions([topics], write("46 Q0 7#0 1\n", "qrels.dev.txt")) == (
        [Query("46", "Mikä?", "fi")],
        [Qrel("46", "7#0", 1)],
    )


def test_mr_tydi_and_miracl_have_rows_of_questions_with_their_passages(write: Write) -> None:
    row = {
        "query_id": "0", "query": "Mikä?",
        "positive_passages": [{"docid": "39#0", "title": "A", "text": "B."}],
        "negative_passages": [{"docid": "39#1", "title": "A", "text": "C."}],
    }  # fmt: skip
    found = read_questions([write(lines_of(row), "dev.jsonl.gz")], "fi")
    assert found.queries == [Query("0", "Mikä?", "fi")]
    assert sorted(found.qrels) == [Qrel("0", "39#0", 1), Qrel("0", "39#1", 0)]
    for passages, reason in (["x"], "is not a list of objects"), ([{"text": "B."}], "holds a passage without docid"):
        with pytest.raises(InputError, match=rf"line 1: positive_passages {reason}\. Cure: "):
            read_questions([write(lines_of(row | {"positive_passages": passages}), "dev.jsonl")])


def test_topics_of_two_languages_with_the_same_ids_are_not_mixed(write: Write) -> None:
    paths = [write("0\ta\n", f"topics.miracl-v1.0-{code}-dev.tsv") for code in ("ar", "fi")]
    with pytest.raises(InputError, match=r"fi-dev\.tsv, line 1: the id '0' occurred before\. Cure: .* one by one"):
        read_questions(paths)


# XOR-TyDi


def test_xor_full_and_questions_without_answers_are_read(write: Write) -> None:
    path = write(
        lines_of({"id": "1", "question": "Mikä?", "lang": "fi", "answers": ["Oulu"], "split": "dev"}), "f.jsonl"
    )
    assert read_queries(path) == [Query("1", "Mikä?", "fi", ("Oulu",))]
    path = write(lines_of({"id": "1", "question": "Mikä?", "lang": "fi", "split": "test"}), "q_only.jsonl")
    assert read_queries(path) == [Query("1", "Mikä?", "fi")]


# TREC


TOPICS = """
<top>

<num> Number: 301
<title> Deep
lakes

<desc> Description:
Which lakes are deep?
</top>
<top>
<num> C042 </num>
<FI-title> Vanhat myllyt </FI-title>
<FI-desc> Mitkä? </FI-desc>
</top>
"""


@pytest.mark.parametrize("name", ["topics.301-450.txt", "topics.gz", "topics"])
def test_topics_of_trec_and_clef_are_asked_by_their_titles(write: Write, name: str) -> None:
    assert read_queries(write(TOPICS, name)) == [Query("301", "Deep lakes"), Query("C042", "Vanhat myllyt", "fi")]


def test_topics_in_two_columns_may_end_in_txt(write: Write) -> None:
    assert read_queries(write("301\tdeep lakes\n", "topics.txt")) == [Query("301", "deep lakes")]


@pytest.mark.parametrize(
    ("topics", "reason"),
    [
        ("<top>\n<num> 1\n</top>\n", "line 1: no text"),
        ("\n\n<top>\n<title> a\n</top>\n", "line 3: no id"),
        ("<topics><topic number='1'/></topics>", "begins with a tag but holds no <top>"),
        (b"<top>\n<num> 1 <title> \xff</top>", "not UTF-8"),
    ],
)
def test_topics_that_cannot_be_used_are_an_error(write: Write, topics: str | bytes, reason: str) -> None:
    with pytest.raises(InputError, match=rf"topics\.txt(, |: ){reason}.* Cure: "):
        read_queries(write(topics, "topics.txt"))


# BEIR


@pytest.mark.parametrize("name", ["test.tsv", "test.tsv.gz"])
def test_a_beir_folder_brings_its_judgements(write: Write, tmp_path: Path, name: str) -> None:
    write(lines_of({"_id": "q1", "text": "a"}), "beir/queries.jsonl")
    assert read_judged_questions([tmp_path / "beir"]) == ([Query("q1", "a")], [])
    (tmp_path / "beir" / "qrels").mkdir()
    write("query-id\tcorpus-id\tscore\nq1\td1\t1\n", f"beir/qrels/{name}")
    assert read_judged_questions([tmp_path / "beir"])[1] == [Qrel("q1", "d1", 1)]


# The shared data


def test_the_dev_questions_of_two_languages_are_judged_by_one_file() -> None:
    sources = [shared_file(f"dev/queries.{code}.jsonl.gz") for code in ("ar", "ru")]
    queries, qrels = read_judged_questions(sources, shared_file("dev/qrels.tsv.gz"))
    assert Counter(query.language for query in queries) == {"ar": 612, "ru": 612}
    assert {qrel.query_id for qrel in qrels} == {query.query_id for query in queries}
    assert len(qrels) == 1224


# The whole way


def test_mlqa_goes_from_its_files_to_figures(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finnish = [(LAKE, [question("q1", "Kuinka syvä järvi on?", "92 metres")]), (MILL, [question("q2", "?", "1904")])]
    german = [(LAKE, [question("q1", "Wie tief ist der See?", "92 metres")])]
    files = [
        write(squad(*found), f"test-context-en-question-{code}.json")
        for code, found in (("fi", finnish), ("de", german))
    ]
    made = ("--languages", "fi", "--queries-per-language", "1")
    options = ("--collection", "mlqa", "--store", "store")
    runner = CliRunner()
    for number, file in enumerate(files):
        result = runner.invoke(main, ["ingest", file, *options, *made], catch_exceptions=False)
        assert result.exit_code == 0
        assert f"{0 if number else 2} passages stored, {number} unchanged, 0 rows rejected" in result.stderr
    asked = [word for file in files for word in ("--questions", file)]
    result = runner.invoke(main, ["evaluate", *asked, *options, "--json", "--save", "saved"], catch_exceptions=False)
    figures = json.loads(result.stdout)["xqg"]
    assert figures["recall@5"]["per_language"] == {"de": 100, "fi": 100}
    assert figures["R@2kt"]["macro"] == 100
    described = read_results(Path("saved")).manifest["data"]["questions"]
    contents = b"".join(Path(file).read_bytes() for file in files)
    assert described == {
        "path": "test-context-en-question-fi.json, test-context-en-question-de.json",
        "sha256": hashlib.sha256(contents).hexdigest(),
        "rows": 3,
    }


# Languages


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("dev-context-ar-question-zh.json", "zh"),
        ("data/xquad.el.json", "el"),
        ("translate_xquad.ar.json", ""),
        ("topics.miracl-v1.0-sw-train.tsv", "sw"),
        ("topics.mrtydi-v1.1-te.test.txt.gz", "te"),
        ("mrtydi-v1.1-telugu/topic.test.tsv", "te"),
        ("queries.xqa.bem.dev.en.human_translation.json", "bem"),
        ("x-final/ko/test_2k.tsv", "ko"),
        ("ko/questions.tsv", ""),
        ("questions.ar.jsonl", ""),
    ],
)
def test_only_the_names_of_known_files_tell_a_language(path: str, language: str) -> None:
    assert language_in_name(path) == language


def test_the_user_sets_the_language_if_the_file_has_none(write: Write) -> None:
    path = write(lines_of({"id": "1", "text": "a"}, {"id": "2", "text": "b", "lang": "ru"}), "q.jsonl")
    assert [query.language for query in read_questions([path], "ja").queries] == ["ja", "ru"]


# ir_datasets


def test_without_ir_datasets_its_ids_are_an_error_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ir_datasets", None)
    for read in (lambda: list(read_passages("ir_datasets:x")), lambda: [*read_queries("ir_datasets:x")]):
        with pytest.raises(
            InputError, match=r"ir_datasets:x: ir_datasets is not installed\. Cure: pip install 'xqg-qdrant\[datasets"
        ):
            read()


@pytest.fixture
def catalogued(write: Write, tmp_path: Path) -> str:
    """Return the id of a data set that ir_datasets reads from local files."""
    ir_datasets = pytest.importorskip("ir_datasets")
    from ir_datasets.formats import TrecQrels, TsvDocs, TsvQueries

    class Local:
        def __init__(self, path: str) -> None:
            self.opened = path

        def path(self, *_: object) -> str:
            return self.opened

        def stream(self) -> Any:  # noqa: ANN401
            return Path(self.opened).open("rb")

    name = f"xqg-{tmp_path.name}"
    dataset = ir_datasets.Dataset(
        TsvDocs(Local(write("d1\tA deep lake.\nd2\t\n", "docs.tsv")), namespace=name, lang="en"),
        TsvQueries(Local(write("q1\tSyvä?\n", "queries.tsv")), lang="fi"),
        TrecQrels(Local(write("q1 0 d1 1\n", "local.qrels")), {1: "relevant"}),
    )
    ir_datasets.registry.register(name, dataset)
    return f"ir_datasets:{name}"


def test_ir_datasets_gives_passages_questions_and_judgements(catalogued: str) -> None:
    passage, reject = read_passages(catalogued)
    assert passage == Passage("d1", "A deep lake.")
    assert isinstance(reject, Reject)
    assert (reject.line, reject.reason) == (2, "text is empty")
    assert count_rows(catalogued) is None
    expected = ([Query("q1", "Syvä?", "fi")], [Qrel("q1", "d1", 1)])
    assert read_judged_questions([catalogued]) == expected
    assert read_judged_questions([catalogued], catalogued) == expected


def test_an_id_that_ir_datasets_does_not_know_is_an_error() -> None:
    pytest.importorskip("ir_datasets")
    with pytest.raises(InputError, match=r"ir_datasets:no/such: unknown id of ir_datasets\. Cure: "):
        list(read_passages("ir_datasets:no/such"))
