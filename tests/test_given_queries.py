"""Test how an ingest treats given queries, from whatever source."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from short_passages import short_passages

from xqg_qdrant.augmentation.pipeline import ingest
from xqg_qdrant.augmentation.recipe import Recipe, make_recipe
from xqg_qdrant.cli import main
from xqg_qdrant.corpus.inputs import QueryIndex
from xqg_qdrant.corpus.passages import read_generated_queries, read_passages, read_queried_passages
from xqg_qdrant.demo import read_demo_queries
from xqg_qdrant.errors import InputError, MismatchError
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.printing import format_hits
from xqg_qdrant.records import AugmentedPassage, GeneratedQuery, Passage, QueriedPassage, Reject, ScoredPassage
from xqg_qdrant.retrieval import Hit
from xqg_qdrant.stores import Store, open_store

pytestmark = pytest.mark.usefixtures("opened_once")
FI, RU = GeneratedQuery("fi", "Missä Tonava alkaa?"), GeneratedQuery("ru", "Где начинается Дунай?")
NO_LANGUAGE = GeneratedQuery("", "Where does it begin?")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def store() -> Iterator[Store]:
    opened = open_store("store")
    yield opened
    opened.close()


def write(name: str, rows: Iterable[Mapping[str, Any] | str]) -> str:
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    data = "".join(line + "\n" for line in lines).encode()
    Path(name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return name


def read_points(store: Store) -> dict[str, AugmentedPassage]:
    return {point.passage.passage_id: point for point in store.scroll("docs")}


def xqg(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["ingest", *map(str, arguments), "--collection", "docs", "--store", "store"])


def stored() -> dict[str, AugmentedPassage]:
    store = open_store("store")
    points = read_points(store)
    store.close()
    return points


# The rows of a corpus


@pytest.mark.parametrize(
    ("given", "queries"),
    [
        ([{"language": "fi", "text": FI.text}, {"language": "ru", "text": RU.text}], (FI, RU)),
        ([{"lang": " fi ", "query": FI.text}, {"lang": "ru", "question": RU.text}], (FI, RU)),
        ([NO_LANGUAGE.text, {"text": FI.text, "language": "fi"}], (NO_LANGUAGE, FI)),
        (["", " \n", {"language": "fi", "text": ""}], ()),
        ([{"language": "fi", "text": RU.text}] * 2, (GeneratedQuery("fi", RU.text),) * 2),
        ([{"language": "fi", "text": f" {FI.text} "}], (GeneratedQuery("fi", f" {FI.text} "),)),
        ([], ()),
        (None, ()),
    ],
)
def test_a_row_brings_its_queries_which_are_kept_as_they_are_unless_empty(
    given: object, queries: tuple[GeneratedQuery, ...]
) -> None:
    path = write("c.jsonl", [{"id": "1", "text": "a", "year": 7, "generated_queries": given}])
    assert list(read_queried_passages(path)) == [QueriedPassage(Passage("1", "a", metadata={"year": 7}), queries)]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("Missä?", "generated_queries is not a list"),
        ({"fi": ["Missä?"]}, "generated_queries is not a list"),
        ([7], "generated_queries holds something that is neither a string nor an object"),
        ([{"language": "fi"}], "a query without a text (looked for question, query, text)"),
        ([{"language": "fi", "text": 7}], "a query without a text (looked for question, query, text)"),
        ([{"language": 7, "text": "a"}], "the language of a query is not a string"),
        (["\ud83d"], "a query's text holds a lone surrogate, half a character"),
    ],
)
def test_a_row_with_queries_that_cannot_be_used_is_rejected_with_the_reason(given: object, reason: str) -> None:
    row = json.dumps({"id": "1", "text": "a", "generated_queries": given})
    path = write("c.jsonl", [row, {"id": "1", "text": "b"}])
    reject, passage = read_queried_passages(path)
    assert reject == Reject(path, 1, reason, row)
    assert passage == QueriedPassage(Passage("1", "b"), ())


def test_queries_in_a_corpus_that_nobody_asked_for_are_not_overlooked() -> None:
    brings = {"id": "2", "text": "b", "generated_queries": ["c"]}
    with pytest.raises(InputError, match=r"line 1: has generated_queries, which only --queries corpus uses"):
        list(read_passages(write("c.jsonl", [brings])))
    passage, reject = read_passages(write("c.jsonl", [{"id": "1", "text": "a"}, brings]))
    assert passage == Passage("1", "a")
    assert isinstance(reject, Reject)
    assert (reject.line, reject.reason) == (2, "has generated_queries, which only --queries corpus uses")


# A file of queries


def join(queries: str, *ids: str) -> tuple[list[QueriedPassage | Reject], int]:
    index = QueryIndex(read_generated_queries(queries))
    rows = list(index.join(Passage(passage_id, "text") for passage_id in ids))
    return rows, index.left_over


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz"])
def test_queries_find_their_passages_in_any_order_and_keep_that_of_their_file(name: str) -> None:
    path = write(
        name,
        [
            {"id": "b", "language": "ru", "text": RU.text},
            {"_id": "a", "lang": "fi", "query": FI.text},
            {"passage_id": 7, "generated_queries": [NO_LANGUAGE.text, {"language": "fi", "text": FI.text}]},
            {"id": "b", "language": "fi", "text": FI.text},
            {"id": "7", "language": "ru", "text": RU.text},
            {"id": "a", "text": " "},
            {"id": "none", "generated_queries": []},
            {"id": "a", "query": FI.text, "title": "Danube", "text": "the passage, as some files repeat it"},
        ],
    )
    rows, left_over = join(path, "7", "a", "none", "b")
    expected = {"7": (NO_LANGUAGE, FI, RU), "a": (FI, GeneratedQuery("", FI.text)), "none": (), "b": (RU, FI)}
    assert rows == [QueriedPassage(Passage(name, "text"), queries) for name, queries in expected.items()]
    assert left_over == 0


def test_queries_of_passages_that_are_not_there_are_counted() -> None:
    path = write("q.jsonl", [{"id": name, "text": "q"} for name in "abacab"])
    assert join(path, "b", "d")[1] == 4


def test_rows_of_queries_that_cannot_be_used_are_rejected_with_their_line_and_the_reason() -> None:
    bad = ["{broken", '{"text": "q"}', '{"id": "a"}', '{"id": "a", "generated_queries": 7}', r'{"id": "\ud800"}']
    path = write("q.jsonl", [*bad, '{"id": "a", "text": "q"}'])
    *rejects, passage = join(path, "a")[0]
    assert [(reject.source, reject.line, reject.row) for reject in rejects if isinstance(reject, Reject)] == [
        (path, number, line) for number, line in enumerate(bad, start=1)
    ]
    reasons = "\n".join(reject.reason for reject in rejects if isinstance(reject, Reject)).splitlines()
    for reason, part in zip(
        reasons, ("malformed JSON", "no id", "without a text", "not a list", "id holds a"), strict=True
    ):
        assert part in reason
    assert passage == QueriedPassage(Passage("a", "text"), (GeneratedQuery("", "q"),))


def test_a_file_of_queries_that_is_not_there_or_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="there is no such file"):
        read_generated_queries("none.jsonl")
    with pytest.raises(InputError, match=r"use a \.jsonl file"):
        read_generated_queries(write("q.tsv", []))


# The ingest


def demo_rows(count: int) -> list[QueriedPassage]:
    """Return demo passages, the first without a query, the others with one to four real questions each."""
    questions = [GeneratedQuery(query.language, query.text) for query in read_demo_queries()]
    return [
        QueriedPassage(passage, tuple(questions[5 * number : 5 * number + number % 5]))
        for number, passage in enumerate(short_passages(count))
    ]


@pytest.mark.parametrize("fusion", ["sum", "mean"])
def test_given_queries_are_stored_and_fused_as_by_hand(store: Store, demo_encoder: Encoder, fusion: str) -> None:
    rows = demo_rows(12)
    (step,) = ingest(rows, store, "docs", demo_encoder, None, make_recipe(None, alpha=0.2, fusion=fusion))
    assert (step.stored, step.bare, dict(step.asked)) == (12, 3, {})
    assert sum(step.kept.values()) == sum(len(row.queries) for row in rows)
    points = read_points(store)
    for passage, queries, *_ in rows:
        point = points[passage.passage_id]
        assert (point.passage, point.generated_queries) == (passage, queries)
        expected = 0.8 * demo_encoder.encode_passages([f"{passage.title} {passage.text}"])[0].astype(np.float64)
        for query in queries:
            weight = 0.2 if fusion == "sum" else 0.2 / len(queries)
            expected = expected + weight * demo_encoder.encode_queries([query.text])[0].astype(np.float64)
        if fusion == "mean" and not queries:
            expected = expected / 0.8
        np.testing.assert_allclose(point.vectors["xqg"], expected, atol=1e-6)


def test_an_edited_query_redoes_its_passage_alone(store: Store, demo_encoder: Encoder) -> None:
    rows, recipe = demo_rows(6), make_recipe(None)
    list(ingest(rows, store, "docs", demo_encoder, None, recipe))
    rows[4] = rows[4]._replace(queries=(FI, *rows[4].queries[1:]))
    rows[3] = rows[3]._replace(queries=rows[3].queries[::-1])
    (step,) = ingest(rows, store, "docs", demo_encoder, None, recipe)
    assert (step.stored, step.unchanged) == (2, 4)
    assert read_points(store)[rows[4].passage.passage_id].generated_queries[0] == FI


def test_given_and_generated_queries_do_not_mix_in_a_collection(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    row, given = demo_rows(2)[1], make_recipe(None)
    generated = make_recipe(demo_generator, ["fi"], queries_per_language=1, max_new_tokens=4)
    list(ingest([row], store, "given", demo_encoder, None, given))
    list(ingest([row.passage], store, "generated", demo_encoder, demo_generator, generated))
    with pytest.raises(MismatchError) as caught:
        list(ingest([row.passage], store, "given", demo_encoder, demo_generator, generated))
    assert str(caught.value).splitlines()[1:] == [
        "  queries: stored 'given', now 'generated'",
        "Nothing was changed.",
        "Cure: give this corpus's queries too (--queries), or ingest into a new collection.",
    ]
    with pytest.raises(MismatchError) as caught:
        list(ingest([row], store, "generated", demo_encoder, None, given))
    assert str(caught.value).splitlines()[1:] == [
        "  queries: stored 'generated', now 'given'",
        "Nothing was changed.",
        "Cure: leave --queries out to generate queries here too, or ingest into a new collection.",
    ]
    with pytest.raises(MismatchError, match=r"recipe\.alpha: stored 0\.01, now 0\.5"):
        list(ingest([row], store, "given", demo_encoder, None, given._replace(alpha=0.5)))


def test_a_recipe_and_rows_of_the_other_kind_are_refused(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    row = demo_rows(2)[1]
    with pytest.raises(InputError, match=r"make it with make_recipe\(generator\)"):
        list(ingest([row.passage], store, "docs", demo_encoder, demo_generator, Recipe()))
    with pytest.raises(InputError, match=f"passage '{row.passage.passage_id}' has queries, but there is a generator"):
        list(ingest([row], store, "docs", demo_encoder, demo_generator, make_recipe(demo_generator)))


@pytest.mark.parametrize("setting", ["queries_per_language", "seed", "top_k", "temperature", "max_new_tokens"])
def test_settings_of_the_generation_are_refused_where_queries_are_given(setting: str) -> None:
    with pytest.raises(InputError, match=f"{setting} is a setting of the generation, but the queries are given"):
        make_recipe(None, (), **{setting: 1})
    with pytest.raises(InputError, match="languages is a setting of the generation"):
        make_recipe(None, ["fi"])


# The command


def corpus_rows(rows: Iterable[QueriedPassage], with_queries: bool) -> list[dict[str, Any]]:
    return [
        {"id": passage.passage_id, "title": passage.title, "text": passage.text}
        | ({"generated_queries": [query._asdict() for query in queries]} if with_queries else {})
        for passage, queries, *_ in rows
    ]


@pytest.fixture
def no_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a generator was opened")

    monkeypatch.setattr(QueryGenerator, "__init__", refuse)


@pytest.mark.usefixtures("no_generator")
def test_queries_of_the_corpus_and_of_a_file_give_the_same_points_without_any_generator() -> None:
    rows = demo_rows(8)
    result = xqg(write("with.jsonl", corpus_rows(rows, with_queries=True)), "--queries", "corpus")
    assert result.exit_code == 0, result.stderr
    assert "8 passages stored, 0 unchanged, 0 rows rejected" in result.stderr
    assert "given queries encoded: ar " in result.stderr
    assert "2 of the stored passages have no query." in result.stderr
    assert {name: point.generated_queries for name, point in stored().items()} == {
        row.passage.passage_id: row.queries for row in rows
    }

    queries = [{"id": row.passage.passage_id, **query._asdict()} for row in rows[::-1] for query in row.queries]
    again = xqg(
        write("without.jsonl", corpus_rows(rows, with_queries=False)), "--queries", write("q.jsonl.gz", queries)
    )
    assert again.exit_code == 0, again.stderr
    assert "0 passages stored, 8 unchanged" in again.stderr


@pytest.mark.usefixtures("no_generator")
def test_given_queries_are_filtered_too_and_the_command_reports_how_many() -> None:
    rows = demo_rows(2)
    corpus = write("c.jsonl", corpus_rows(rows, with_queries=True))
    result = xqg(corpus, "--queries", "corpus", "--min-score", "1000000", "--fusion", "mean", "--no-calibrate")
    assert result.exit_code == 0, result.stderr
    count = sum(len(row.queries) for row in rows)
    assert f"Queries excluded by --min-score: {count} of {count}." in result.stderr
    for row in rows:
        point = stored()[row.passage.passage_id]
        assert point.generated_queries == row.queries
        np.testing.assert_array_equal(point.vectors["xqg"], point.vectors["passage"])


@pytest.mark.usefixtures("no_generator")
def test_the_command_reports_queries_without_a_passage_and_of_bad_rows() -> None:
    rows = demo_rows(3)
    corpus = write("c.jsonl", corpus_rows(rows, with_queries=False))
    given = ['{"id": "elsewhere", "text": "q"}', "{broken", json.dumps({"id": rows[0].passage.passage_id, "text": "q"})]
    result = xqg(corpus, "--queries", write("q.jsonl", given))
    assert result.exit_code == 3
    assert "Queries of q.jsonl that belong to no passage of c.jsonl: 1" in result.stderr
    (reject,) = map(json.loads, Path("docs.rejected.jsonl").read_text().splitlines())
    assert (reject["source"], reject["line"], reject["row"]) == ("q.jsonl", 2, "{broken")
    assert len(stored()) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--queries", "corpus", "--generator", "g"], "Give --generator or --queries, not both."),
        (["--queries", "none.jsonl"], "none.jsonl: there is no such file"),
        (["--queries", "corpus", "--languages", "fi"], "languages is a setting of the generation"),
        (["--queries", "corpus", "--seed", "1"], "seed is a setting of the generation"),
        (
            [],
            "c.jsonl, line 1: has generated_queries, which only --queries corpus uses.\nCure: ingest with --queries",
        ),
        (["--queries", "q.jsonl"], "c.jsonl, line 1: has generated_queries"),
    ],
)
def test_options_that_do_not_go_together_are_refused_and_make_no_collection(options: list[str], message: str) -> None:
    write("q.jsonl", [])
    result = xqg(write("c.jsonl", corpus_rows(demo_rows(2), with_queries=True)), *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("store/docs").exists()


def test_a_query_of_no_known_language_is_shown_without_one() -> None:
    found = ScoredPassage(Passage("1", "a"), 0.5)
    assert format_hits([Hit(found, NO_LANGUAGE)]).splitlines()[-1] == f"     matched best: {NO_LANGUAGE.text}"
    assert format_hits([Hit(found, FI)]).splitlines()[-1] == f"     matched best: {FI.text}  (fi)"
