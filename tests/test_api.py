"""The Python interface: the commands as functions, with the same results."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from part_of_demo import write_part_of_demo
from stored_points import assert_same_points, read_points
from test_architecture import modules_after

import xqg_qdrant
from xqg_qdrant import (
    Encoder,
    InputError,
    MismatchError,
    Qrel,
    Query,
    QueryGenerator,
    Store,
    evaluate,
    format_table,
    ingest,
    open_store,
    search,
)
from xqg_qdrant.cli import main
from xqg_qdrant.corpus.questions import read_queries
from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.evaluation.files import read_qrels
from xqg_qdrant.generation.questions import make_custom_id

ROWS = [
    {"id": passage.passage_id, "title": passage.title, "text": passage.text, "topic": {"number": place}}
    for place, passage in enumerate(read_demo_passages()[:6])
]
SHORT: dict[str, Any] = {"languages": ("fi", "ru"), "queries_per_language": 2, "max_new_tokens": 8}
OPTIONS = ["--languages", "fi,ru", "--queries-per-language", "2", "--max-new-tokens", "8", "--threads", "1"]
QUESTION = "Какая река самая длинная в Африке?"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def few_questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_part_of_demo(tmp_path_factory.mktemp("questions") / "demo", questions=12)


@pytest.fixture
def filled(tmp_path: Path, demo_encoder: Encoder, demo_generator: QueryGenerator) -> Iterator[Store]:
    with open_store(f"edge:{tmp_path / 'filled'}") as store:
        ingest(ROWS, store, "docs", demo_encoder, demo_generator, **SHORT)
        yield store


def xqg(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_ingest_takes_a_file_of_queries_and_the_results_of_a_batch(
    tmp_path: Path, corpus: Path, demo_encoder: Encoder
) -> None:
    first = read_demo_passages()[0]
    body = {"choices": [{"message": {"content": json.dumps({"ru": [QUESTION]})}, "finish_reason": "stop"}]}
    result = {"custom_id": make_custom_id(first), "response": {"status_code": 200, "body": body}, "error": None}
    query = {"id": first.passage_id, "language": "ru", "text": QUESTION}
    with open_store(":memory:") as store:
        for kind, row in (("batch", result), ("queries", query)):
            (tmp_path / f"{kind}.jsonl").write_text(json.dumps(row), encoding="utf-8")
            done = ingest(corpus, store, kind, demo_encoder, None, queries=tmp_path / f"{kind}.jsonl")
            assert (done.stored, done.bare, done.rejects) == (6, 5, ())
            [point] = [point for point in store.scroll(kind) if point.generated_queries]
            assert [(query.language, query.text) for query in point.generated_queries] == [("ru", QUESTION)]
        with pytest.raises(InputError, match="the corpus is rows"):
            ingest(ROWS, store, "docs", demo_encoder, None, queries="queries.jsonl")
        with pytest.raises(InputError, match="and a generator or plain"):
            ingest(corpus, store, "docs", demo_encoder, None, queries="queries.jsonl", plain=True)


def test_ingest_stores_the_points_that_the_command_stores(
    tmp_path: Path, corpus: Path, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    xqg("ingest", corpus, "--collection", "docs", "--store", tmp_path / "command", *OPTIONS)
    with open_store(str(tmp_path / "function")) as store, open_store(str(tmp_path / "command")) as other:
        done = ingest(corpus, store, "docs", demo_encoder, demo_generator, **SHORT)
        assert_same_points(read_points(store), read_points(other))
    assert (done.stored, done.unchanged, done.rejects) == (6, 0, ())
    assert done.asked == {"fi": 12, "ru": 12}


def test_rows_in_memory_give_the_points_of_the_same_rows_in_a_file(
    tmp_path: Path, filled: Store, corpus: Path, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    with open_store(":memory:") as store:
        ingest(corpus, store, "docs", demo_encoder, demo_generator, **SHORT)
        assert_same_points(read_points(store), read_points(filled))


def test_a_second_ingest_of_the_same_has_nothing_to_do(
    filled: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    again = ingest(iter(ROWS), filled, "docs", demo_encoder, demo_generator, **SHORT)
    assert (again.stored, again.unchanged) == (0, 6)


def test_rows_that_cannot_be_used_come_back_with_their_number_and_the_reason(
    filled: Store, demo_encoder: Encoder, demo_generator: QueryGenerator
) -> None:
    rows = [*ROWS[:2], {"id": "x"}, ROWS[0], {"id": "y", "text": "t", "size": np.zeros(1)}, "no row"]
    done = ingest(rows, filled, "docs", demo_encoder, demo_generator, **SHORT)  # type: ignore[arg-type]
    assert [(reject.line, reject.reason) for reject in done.rejects] == [
        (3, "no text (looked for text, contents, passage)"),
        (4, f"the id {ROWS[0]['id']!r} occurred before"),
        (5, "metadata.size is a ndarray, which JSON does not have"),
        (6, "not a mapping"),
    ]


def test_without_a_generator_the_rows_bring_their_queries(demo_encoder: Encoder) -> None:
    row = {"id": "nile", "text": "The Nile is long.", "generated_queries": [{"lang": "ru", "text": QUESTION}]}
    with open_store(":memory:") as store:
        done = ingest([row], store, "docs", demo_encoder, None, alpha=0.5, fusion="mean", renormalise=False)
        point = read_points(store)["nile"]
        assert [query.text for query in point.generated_queries] == [QUESTION]
        plain, asked = (
            demo_encoder.encode_passages(["The Nile is long."])[0],
            demo_encoder.encode_queries([QUESTION])[0],
        )
        np.testing.assert_allclose(point.vectors["xqg"], (plain + asked) / 2, atol=1e-6)
    assert done.kept == {"ru": 1}


def test_a_search_finds_what_the_command_finds(tmp_path: Path, filled: Store, demo_encoder: Encoder) -> None:
    hits = search(QUESTION, filled, "docs", demo_encoder, limit=3, ranking="passage")
    filled.close()
    options = ["--limit", 3, "--rank", "passage", "--json"]
    found = json.loads(xqg("query", QUESTION, "--collection", "docs", "--store", tmp_path / "filled", *options))
    assert [hit.passage.passage_id for hit in hits] == [hit["passage_id"] for hit in found["hits"]]
    assert [hit.score for hit in hits] == pytest.approx([hit["score"] for hit in found["hits"]], abs=1e-5)
    assert all(hit.best_query for hit in hits)


def test_several_questions_get_a_list_of_hits_each(filled: Store, demo_encoder: Encoder) -> None:
    questions = [QUESTION, "Mikä on Pariisi?"]
    lists = search(questions, filled, "docs", demo_encoder, limit=2)
    assert lists == [search(question, filled, "docs", demo_encoder, limit=2) for question in questions]
    assert [len(hits) for hits in lists] == [2, 2]


def test_a_search_with_another_encoder_is_refused(filled: Store, tmp_path: Path, demo_encoder: Encoder) -> None:
    class Other(Encoder):
        def __init__(self) -> None: ...
        def describe(self) -> dict[str, Any]:
            return {**demo_encoder.describe(), "pooling": "cls"}

    with pytest.raises(MismatchError, match="pooling"):
        search(QUESTION, filled, "docs", Other())


@pytest.mark.parametrize(
    ("wrong", "message"), [({"limit": 0}, "limit must be at least 1"), ({"ranking": "bm25"}, "unknown ranking 'bm25'")]
)
def test_what_no_search_can_do_is_refused(
    filled: Store, demo_encoder: Encoder, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        search(QUESTION, filled, "docs", demo_encoder, **wrong)


def test_an_evaluation_gives_the_figures_of_the_command(
    tmp_path: Path, filled: Store, demo_encoder: Encoder, few_questions: Path
) -> None:
    report = evaluate(few_questions, filled, "docs", demo_encoder)
    filled.close()
    place = ["--collection", "docs", "--store", tmp_path / "filled"]
    told = xqg("evaluate", *place, "--questions", few_questions, "--json")
    assert report.to_json() == json.loads(told)
    assert "MRR@10" in format_table(report)


def test_questions_and_judgements_may_be_records(filled: Store, demo_encoder: Encoder, few_questions: Path) -> None:
    queries, qrels = read_queries(few_questions), read_qrels(few_questions)
    asked = evaluate(queries, filled, "docs", demo_encoder, qrels=qrels, rankings=["xqg"])
    read = evaluate(few_questions, filled, "docs", demo_encoder, rankings=["xqg"])
    assert asked == read
    with pytest.raises(InputError, match="records"):
        evaluate(few_questions, filled, "docs", demo_encoder, qrels=qrels)
    asked_again = [Query("1", QUESTION, "ru", ("Nile",))]
    with pytest.raises(InputError, match=r"the only judged passage is not in the collection"):
        evaluate(asked_again, filled, "docs", demo_encoder, qrels=[Qrel("1", "x", 1)])


def test_every_public_name_is_listed_once_and_can_be_had() -> None:
    tree = ast.parse(Path(xqg_qdrant.__file__).read_text(encoding="utf-8"))
    typed = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed - {"annotations", "import_module", "TYPE_CHECKING"} == set(xqg_qdrant.__all__)
    assert sorted(xqg_qdrant.__all__) == dir(xqg_qdrant)
    for name in xqg_qdrant.__all__:
        assert getattr(xqg_qdrant, name).__name__ == name
        assert getattr(xqg_qdrant, name).__doc__, name
    with pytest.raises(AttributeError, match="'xqg_qdrant' has no attribute 'absent'"):
        _ = xqg_qdrant.absent


def test_the_package_alone_imports_nothing_heavy() -> None:
    assert modules_after("import xqg_qdrant") & {"numpy", "onnxruntime", "qdrant_client", "tqdm"} == set()
    assert "onnxruntime" not in modules_after("from xqg_qdrant import Passage, open_store")
