"""The life of a collection: its status is shown, it is synced with its corpus, and deleted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from xqg_qdrant.cli import main
from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.records import AugmentedPassage
from xqg_qdrant.stores import open_store

pytestmark = pytest.mark.usefixtures("opened_once")
FEW_QUERIES = ["--languages", "fi,ru", "--queries-per-language", "2", "--max-new-tokens", "8", "--threads", "1"]
RECIPE = ["--alpha", "0.2", "--fusion", "mean", "--renormalise", "--seed", "3", *FEW_QUERIES]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("QDRANT_URL", "QDRANT_API_KEY", "XQG_STORE"):
        monkeypatch.delenv(name, raising=False)


def xqg(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


def row(number: int, **changes: object) -> str:
    passage = read_demo_passages()[number]
    text = " ".join(passage.text.split()[:12])
    return json.dumps({"id": passage.passage_id, "title": passage.title, "text": text, **changes})


def write(*rows: str, name: str = "corpus.jsonl") -> Path:
    Path(name).write_text("".join(line + "\n" for line in rows))
    return Path(name)


def passage_id(number: int) -> str:
    return read_demo_passages()[number].passage_id


def ingest(*rows: str, collection: str = "docs", options: list[str] = RECIPE) -> None:
    result = xqg("ingest", write(*rows, name=f"{collection}.jsonl"), "--collection", collection, *options)
    assert result.exit_code == 0, result.output


def read_all(collection: str) -> dict[str, AugmentedPassage]:
    store = open_store("./xqg_data")
    points = {point.passage.passage_id: point for point in store.scroll(collection)}
    store.close()
    return points


def assert_same_collections(found: str, expected: str) -> None:
    ours, theirs = read_all(found), read_all(expected)
    assert ours.keys() == theirs.keys()
    for name, point in ours.items():
        assert (point.passage, point.generated_queries) == (theirs[name].passage, theirs[name].generated_queries)
        assert point.content_hash == theirs[name].content_hash
        for vector in point.vectors:
            np.testing.assert_array_equal(point.vectors[vector], theirs[name].vectors[vector])


def test_sync_brings_a_collection_to_what_a_fresh_ingest_gives_without_its_settings_being_repeated() -> None:
    ingest(*(row(number) for number in range(5)))
    edited = [row(0), row(1, text="A new text about rivers."), row(2, title="A new title"), row(5), row(6)]
    counts = "2 new, 2 changed, 1 unchanged, 0 rejected rows, 2 stored that the corpus does not hold"

    tried = xqg("sync", write(*edited), "--collection", "docs", "--delete", "--dry-run")
    assert (tried.exit_code, tried.stdout) == (0, counts + "\n")
    assert read_all("docs").keys() == {passage_id(number) for number in range(5)}

    done = xqg("sync", "corpus.jsonl", "--collection", "docs")
    assert (done.exit_code, done.stdout) == (0, counts + "\n")
    assert "4 passages stored, 1 unchanged" in done.stderr
    assert "%|" not in done.stderr  # no progress bar for what takes less than two seconds
    assert read_all("docs").keys() == {passage_id(number) for number in range(7)}

    deleted = xqg("sync", "corpus.jsonl", "--collection", "docs", "--delete")
    assert deleted.exit_code == 0, deleted.output
    assert deleted.stdout.endswith("2 stored that the corpus does not hold\n2 passages deleted\n")
    ingest(*edited, collection="fresh")
    assert_same_collections("docs", "fresh")


def test_sync_deletes_nothing_while_rows_are_rejected() -> None:
    ingest(row(0), row(1), row(2))
    corpus = write(row(0), row(1)[:-9], row(3))
    result = xqg("sync", corpus, "--collection", "docs", "--delete")
    assert result.exit_code == 3
    assert "Nothing was deleted, as rows were rejected." in result.stderr
    assert read_all("docs").keys() == {passage_id(number) for number in range(4)}
    [letter] = map(json.loads, Path("docs.rejected.jsonl").read_text().splitlines())
    assert (letter["line"], letter["reason"].split(":")[0]) == (2, "malformed JSON")


def test_sync_with_an_empty_corpus_deletes_nothing() -> None:
    ingest(row(0), row(1))
    result = xqg("sync", write(), "--collection", "docs", "--delete")
    assert result.exit_code == 2
    assert "the corpus holds no passage, so all of 'docs' would be deleted" in result.stderr
    assert "\nCure: check the file, or delete the collection: xqg delete --collection docs" in result.stderr
    assert len(read_all("docs")) == 2


def test_sync_needs_the_queries_of_a_collection_that_was_made_of_given_ones() -> None:
    queries = [{"language": "fi", "text": "Mikä joki?"}]
    rows = [row(number, generated_queries=queries) for number in range(2)]
    ingest(*rows, options=["--queries", "corpus"])
    refused = xqg("sync", write(row(0)), "--collection", "docs")
    assert refused.exit_code == 4
    assert "queries: stored 'given', now 'generated'\n" in refused.stderr
    assert "\nCure: give this corpus's queries too (--queries)" in refused.stderr
    done = xqg("sync", write(*rows[:1], row(2, generated_queries=[])), "--collection", "docs", "--queries", "corpus")
    assert done.stdout == "1 new, 0 changed, 1 unchanged, 0 rejected rows, 1 stored that the corpus does not hold\n"
    assert len(read_all("docs")) == 3


def test_sync_refuses_what_it_cannot_do() -> None:
    unknown = xqg("sync", write(row(0)), "--collection", "docs")
    assert unknown.exit_code == 2
    assert "there is no collection 'docs'" in unknown.stderr
    assert "xqg ingest FILE --collection docs" in unknown.stderr
    twice = xqg("sync", "-", "--collection", "docs", stdin=row(0))
    assert twice.exit_code == 2
    assert "cannot be standard input" in twice.stderr


def test_status_shows_the_recipe_and_what_is_missing_against_a_corpus() -> None:
    ingest(row(0), row(1), row(2))
    shown = xqg("status", "--collection", "docs", "--corpus", write(row(0), row(1, text="other"), row(4), "{"))
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0] == "collection 'docs' in edge:xqg_data: 3 passages"
    assert {"  recipe.alpha: 0.2", "  recipe.languages: ['fi', 'ru']", "  recipe.fusion: mean"} <= set(lines)
    assert lines[-1] == (
        "against corpus.jsonl: 1 new, 1 changed, 1 unchanged, 1 rejected row, 1 stored that the corpus does not hold"
    )
    as_json = json.loads(xqg("status", "--collection", "docs", "--corpus", "corpus.jsonl", "--json").stdout)
    assert as_json["passages"] == 3
    assert list(as_json["recipes"].values()) == [3]
    assert as_json["fingerprint"]["recipe.seed"] == 3
    assert as_json["corpus"] == {
        "file": "corpus.jsonl", "new": 1, "changed": 1, "unchanged": 1, "rejected": 1, "left": 1, "surplus": 0
    }  # fmt: skip


def test_status_counts_passages_of_another_recipe() -> None:
    ingest(row(0), row(1), row(2))
    store = open_store("./xqg_data")
    fingerprint = store.read_fingerprint("docs") or {}
    store.write_fingerprint("docs", {**fingerprint, "recipe.alpha": 0.9})
    store.close()
    shown = xqg("status", "--collection", "docs").stdout
    assert "  3 passages were made by another recipe than this one:\n" in shown


def test_status_without_a_collection_lists_them() -> None:
    ingest(row(0), row(1))
    assert xqg("status").stdout == "Collections in edge:xqg_data: 1\n  docs: 2 passages\n"
    assert json.loads(xqg("status", "--json").stdout) == {
        "store": "edge:xqg_data", "collections": {"docs": 2}, "aliases": {}, "indexing_paused": [],
        "missing": {}
    }  # fmt: skip
    unknown = xqg("status", "--collection", "other")
    assert unknown.exit_code == 2
    assert "there is no collection 'other' in edge:xqg_data (there: docs)" in unknown.stderr


def test_passages_are_deleted_by_id() -> None:
    ingest(*(row(number) for number in range(4)))
    result = xqg("delete", passage_id(0), "unknown", "--collection", "docs")
    assert (result.exit_code, result.stdout) == (0, "1 passage deleted, 1 id not stored\n")
    result = xqg("delete", "-", "--collection", "docs", stdin=f"{passage_id(1)}\r\n\n{passage_id(2)}")
    assert (result.exit_code, result.stdout) == (0, "2 passages deleted, 0 ids not stored\n")
    assert read_all("docs").keys() == {passage_id(3)}


def test_a_whole_collection_is_deleted_only_when_somebody_agrees() -> None:
    ingest(row(0))
    refused = xqg("delete", "--collection", "docs")
    assert refused.exit_code == 2
    assert "Delete collection 'docs' in edge:xqg_data with its 1 passage? Give --yes" in refused.stderr
    assert len(read_all("docs")) == 1
    done = xqg("delete", "--collection", "docs", "--yes")
    assert (done.exit_code, done.stdout) == (0, "collection 'docs' with 1 passage deleted\n")
    assert xqg("status").stdout == "Collections in edge:xqg_data: 0\n"
    again = xqg("delete", "--collection", "docs", "--yes")
    assert again.exit_code == 2
