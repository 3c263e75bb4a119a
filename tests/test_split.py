"""Test that documents become passages that the encoder reads in full, and that they stay documents to their users."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_chat import Answer, Call, said, scripted
from tokenizers import Tokenizer, models

from xqg_qdrant import Encoder, Qrel, Query, evaluate, ingest, open_store
from xqg_qdrant.cli import main
from xqg_qdrant.cli.progress import make_bars
from xqg_qdrant.corpus.inputs import Inputs, document_of, split_documents
from xqg_qdrant.errors import InputError, MismatchError
from xqg_qdrant.evaluation.sweep.bench import make_bench
from xqg_qdrant.evaluation.sweep.vectors import check_sweepable, opened_vectors
from xqg_qdrant.inference.splitting import Splitter, choose_splitter
from xqg_qdrant.model_folders import DEMO_ENCODER, ModelFolder, read_model_folder, shipped_model
from xqg_qdrant.records import Passage, Reject

Count: TypeAlias = Callable[[str], int]

FOLDER = shipped_model(DEMO_ENCODER)
SENTENCE = "The river number {0} rises in the hills of the north and flows to the sea. "
TEXT = "\n\n".join("".join(SENTENCE.format(10 * part + number) for number in range(3)) for part in range(8))


@pytest.fixture(scope="module")
def folder() -> ModelFolder:
    return read_model_folder(FOLDER, "encoder")


@pytest.fixture(scope="module")
def count(folder: ModelFolder) -> Count:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.no_truncation()
    prefix = folder.description["passage_prefix"]
    return lambda text: len(tokenizer.encode(prefix + text).ids)


@pytest.mark.parametrize("title", ["", "Rivers of the north"])
@pytest.mark.parametrize(("tokens", "overlap"), [(32, 0), (40, 15), (512, None)])
def test_every_passage_is_read_in_full_and_no_text_is_lost(
    folder: ModelFolder, count: Count, title: str, tokens: int, overlap: int | None
) -> None:
    pieces = list(Splitter(folder, tokens, overlap).split(TEXT, title))
    assert all(TEXT[start:end] == text for start, end, text in pieces)
    assert max(count(f"{title} {text}".strip()) for *_, text in pieces) <= tokens
    covered = {place for start, end, _ in pieces for place in range(start, end)}
    assert not "".join(char for place, char in enumerate(TEXT) if place not in covered).strip()


def test_passages_repeat_only_the_overlap(folder: ModelFolder, count: Count) -> None:
    apart = list(Splitter(folder, 40, 0).split(TEXT))
    assert all(one.end <= other.start for one, other in pairwise(apart))
    together = list(Splitter(folder, 64, 24).split(TEXT))
    repeated = [TEXT[other.start : one.end] for one, other in pairwise(together)]
    assert any(repeated)
    # Besides the prefix and the special tokens, which are counted too.
    assert max(map(count, filter(None, repeated))) <= 24 + count("") + 1


@settings(max_examples=30, deadline=None)
@given(text=st.text(min_size=1, max_size=400))
def test_any_text_is_split_without_loss(text: str) -> None:
    pieces = list(SPLITTER.split(text))
    assert all(text[start:end] == part == part.strip() for start, end, part in pieces)
    assert all(SPLITTER._count(SPLITTER._prefix + part) <= 32 for *_, part in pieces)
    covered = {place for start, end, _ in pieces for place in range(start, end)}
    assert not "".join(char for place, char in enumerate(text) if place not in covered and char.isalnum())


SPLITTER = Splitter(read_model_folder(FOLDER, "encoder"), 32, 4)


@pytest.mark.parametrize("text", [" \n" * 20_000 + "end", "x" * 20_000, "川" * 5_000, "\n \t" * 20_000])
def test_no_text_takes_long(text: str) -> None:
    """White space took quadratic time, and a tokenizer may take a word of any length as one token."""
    pieces = list(SPLITTER.split(text))
    assert "".join(part for *_, part in Splitter(read_model_folder(FOLDER, "encoder"), 32, 0).split(text)) == (
        "".join(text.split())
    )
    assert max((len(part) for *_, part in pieces), default=0) <= 32 * 16


@pytest.mark.parametrize(("known_up_to", "longest"), [(200, 8), (10, 8 * 16 + 15)])
def test_a_word_that_the_tokenizer_does_not_know_is_cut(tmp_path: Path, known_up_to: int, longest: int) -> None:
    """WordPiece takes a long word as one unknown token, but may know its parts, each letter as a token."""
    model = models.WordPiece({"[UNK]": 0, "a": 1, "##a": 2}, unk_token="[UNK]", max_input_chars_per_word=known_up_to)
    Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    folder = ModelFolder(tmp_path, {"kind": "encoder", "passage_prefix": "", "max_passage_tokens": 8})
    pieces = [part for *_, part in Splitter(folder, 8, 0).split("a" * 5000)]
    assert "".join(pieces) == "a" * 5000
    assert max(map(len, pieces)) == longest


def test_a_long_document_takes_no_memory_of_its_own(folder: ModelFolder) -> None:
    text = TEXT * 150  # of 300 kB
    splitter = Splitter(folder)
    next(splitter.split(text))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(1 for _ in splitter.split(text)) > 100
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 20e6


def test_a_splitter_travels_to_other_processes() -> None:
    assert list(pickle.loads(pickle.dumps(SPLITTER)).split(TEXT)) == list(SPLITTER.split(TEXT))


@pytest.mark.parametrize(
    ("tokens", "overlap", "said"),
    [(64, 64, "an overlap of 64 tokens is more than half"), (64, 31, "more than half"), (6, 0, "too short")],
)
def test_lengths_that_do_not_fit_are_refused(folder: ModelFolder, tokens: int, overlap: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Splitter(folder, tokens, overlap)


def test_without_the_package_the_extra_is_named(folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "semantic_text_splitter", None)
    with pytest.raises(InputError, match=r"needs semantic-text-splitter(.|\n)*xqg-qdrant\[split\]"):
        Splitter(folder)


def test_an_endpoint_is_refused() -> None:
    with pytest.raises(InputError, match="the endpoint of 'm' counts tokens by itself"):
        Splitter(ModelFolder(Path("e"), {"kind": "endpoint", "model": "m"}))


def test_passages_are_numbered_and_know_their_place() -> None:
    rows: list[Passage | Reject] = [
        Passage("a", TEXT, "T", {"year": 1}),
        Reject("f", 1, "r", ""),
        Passage("a#1", "Short."),
        Passage("#", "x"),
    ]
    made = list(split_documents(rows, SPLITTER))
    passages = [row for row in made if isinstance(row, Passage)]
    numbers = range(1, len(passages) - 1)
    assert [row.passage_id for row in passages] == [*(f"a#{number}" for number in numbers), "a#1#1", "##1"]
    assert [document_of(row.passage_id) for row in passages] == ["a"] * len(numbers) + ["a#1", "#"]
    for row in passages[:-2]:
        place = row.metadata
        assert place == {"year": 1, "document_id": "a", **{name: place[name] for name in place if name[9:] != "id"}}
        assert TEXT[place["document_start"] : place["document_end"]] == row.text
        assert row.title == "T"
    assert [row for row in made if isinstance(row, Reject)] == [rows[1]]


def test_a_document_that_cannot_be_split_is_rejected_alone() -> None:
    rows = [Passage("a", "x", "word " * 40), Passage("b", "x", "", {"document_id": 7}), Passage("c", "x")]
    first, second, third = split_documents(rows, SPLITTER)
    assert first == Reject("a", 0, "the title takes more than half of the 32 tokens of a passage", "x")
    assert second == Reject("b", 0, "has the field document_id, which --split writes", "x")
    assert isinstance(third, Passage)


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.tsv", "d.parquet"])
def test_a_document_may_be_longer_than_a_passage(tmp_path: Path, name: str) -> None:
    """A passage is stored in one request, so a row of a few megabytes is rejected unless it is split."""
    path, text = tmp_path / name, "word " * 1_000_000
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": ["d"], "text": [text]}), path)
    else:
        row = json.dumps({"id": "d", "text": text})
        path.write_text({".jsonl": f"{row}\n", ".json": f"[{row}]", ".tsv": f"id\ttext\nd\t{text}\n"}[path.suffix])
    inputs = Inputs([str(path)])
    if path.suffix != ".json":  # an array's rows are not measured
        (reject,) = inputs.read()
        assert isinstance(reject, Reject)
        assert "longer than 4,194,304 bytes" in reject.reason
    inputs.split_by(SPLITTER)
    first = next(inputs.read())
    assert isinstance(first, Passage)
    assert first.passage_id == "d#1"


# Of the commands


def xqg(*words: object) -> Result:
    return CliRunner().invoke(main, [*map(str, words), "--store", "store"])


def write(name: str, **texts: str) -> str:
    Path(name).write_text("".join(json.dumps({"id": id_, "text": text}) + "\n" for id_, text in texts.items()))
    return name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a split collection of a long and a short document."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write("docs.jsonl", long=TEXT, short="The Danube is a river.")
        Path("none.jsonl").touch()
        done = xqg("ingest", "docs.jsonl", "--collection", "docs", "--plain", "--split", "--split-tokens", 64)
        assert done.exit_code == 0, done.output
        yield folder


def ids(collection: str = "docs") -> list[str]:
    with open_store("store") as store:
        return sorted(point.passage_id for point in store.scroll_stored(collection))


def test_an_ingest_splits_and_another_way_to_split_is_refused(made: Path) -> None:
    assert ids() == sorted([*(f"long#{number}" for number in range(1, 17)), "short#1"])
    again = ("ingest", "docs.jsonl", "--collection", "docs", "--plain")
    assert "17 unchanged" in xqg(*again, "--split").stderr, "the lengths are those of the collection"
    for options in ((), ("--split", "--split-tokens", 60)):
        refused = xqg(*again, *options)
        assert refused.exit_code == MismatchError.exit_code
        assert "recipe.split_" in refused.stderr
        assert "Cure: split as before" in refused.stderr
    assert xqg(*again, "--split-tokens", 60).exit_code == 2


def test_queries_of_whole_documents_and_longer_passages_than_are_read_are_refused(folder: ModelFolder) -> None:
    with pytest.raises(InputError, match="of whole documents"):
        Inputs(["docs.jsonl"], "corpus").split_by(SPLITTER)
    with pytest.raises(InputError, match="reads only 512 tokens"):
        choose_splitter(folder, None, 513)


def test_judgements_of_documents_count_the_best_passage(made: Path, demo_encoder: Encoder) -> None:
    """Expected by hand: by passages 'short' ranks behind several of 'long'; by documents it is second at worst."""
    queries = [Query("1", "river number 70 in the hills of the north", "en"), Query("2", "Danube", "en")]
    queries.append(Query("3", "Where does river number 12 rise?", "en"))
    qrels = [Qrel("1", "long", 1), Qrel("2", "short", 1), Qrel("3", "short", 1)]
    with open_store("store") as store:
        report = evaluate(queries, store, "docs", demo_encoder, qrels=qrels)
        mrr = report.values["passage"]["MRR@10"].per_query
        assert (mrr["1"], mrr["2"], mrr["3"]) == (100, 100, 50)
        assert any("each by its best passage" in note for note in report.notes)
        by_passage = evaluate(queries, store, "docs", demo_encoder, qrels=[Qrel("3", "short#1", 1)])
        assert by_passage.values["passage"]["MRR@10"].per_query["3"] < 50
        with opened_vectors() as vectors:
            recipe = check_sweepable(store, "docs", demo_encoder)
            vectors.load(store, "docs", demo_encoder, 1, make_bars(quiet=True))
            bench = make_bench(vectors, recipe, demo_encoder, queries, qrels, "MRR@10", 100)
            assert bench.measure_vectors(vectors.plain).per_query == mrr
            assert bench.compare({"passage": vectors.plain}).values["passage"]["MRR@10"].per_query == mrr


def test_a_document_that_became_shorter_loses_its_surplus(made: Path) -> None:
    shutil.copytree("store", "copied")

    def run(*words: object) -> Result:
        return CliRunner().invoke(main, [*map(str, words), "--store", "copied"])

    write("shorter.jsonl", long=TEXT[:500])
    told = (
        "0 new, 1 changed, 3 unchanged, 0 rejected rows, 1 stored that the corpus does not hold, 12 surplus of shorter"
    )
    assert told in run("status", "--collection", "docs", "--corpus", "shorter.jsonl").stdout
    listed = run("sync", "shorter.jsonl", "--collection", "docs", "--list", "--dry-run").stdout
    assert listed.count("surplus\tlong#") == 12
    assert listed.count("left\tshort#1") == 1
    done = run("sync", "shorter.jsonl", "--collection", "docs")
    assert "12 passages deleted" in done.stdout, done.output
    with open_store("copied") as copied:
        assert sorted(point.passage_id for point in copied.scroll_stored("docs")) == [
            *(f"long#{number}" for number in range(1, 5)),
            "short#1",
        ]
    assert "0 changed" in run("sync", "shorter.jsonl", "--collection", "docs").stdout
    deleted = run("delete", "--collection", "docs", "long", "short#1", "other")
    assert "5 passages deleted, 1 id not stored" in deleted.stdout


def test_an_id_of_both_a_document_and_a_passage_means_the_document(made: Path) -> None:
    """Document `a#1` is named like the first passage of document `a`."""
    write("named.jsonl", **{"a": "The Danube is a river.", "a#1": "The Mekong is one, too.", "b": "The Rhine as well."})
    assert xqg("ingest", "named.jsonl", "--collection", "named", "--plain", "--split").exit_code == 0
    for left in (["a#1", "b#1"], ["b#1"]):
        deleted = xqg("delete", "--collection", "named", "a#1").stdout
        assert "1 passage deleted, 0 ids not stored" in deleted
        assert ids("named") == left


def test_a_pilot_draws_from_the_passages_of_documents(made: Path) -> None:
    def ask(call: Call, number: int) -> Answer:
        return said({code: [f"Missä joki {number}.{each} on?" for each in range(3)] for code in call.languages})

    with scripted(ask) as chat:
        source = ("--generator", chat.url, "--model", "m", "--languages", "fi", "--passages", "12")
        words = ("pilot", "docs.jsonl", "--split", "--split-tokens", "64", *source)
        done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "docs.jsonl: 17 passages" in done.stdout
    assert "drawn: 12 of them" in done.stdout
    assert len(chat.calls) == 12
    assert all(len(call.prompt) < 3000 for call in chat.calls), "a prompt holds a passage, not a document"


def test_python_splits_as_the_command_does(made: Path, demo_encoder: Encoder) -> None:
    rows = [{"id": "long", "text": TEXT}, {"id": "short", "text": "The Danube is a river."}]
    with open_store("store") as store:
        done = ingest(rows, store, "docs", demo_encoder, None, plain=True, split=True)
        assert (done.stored, done.unchanged) == (0, 17)
        with pytest.raises(InputError, match="of whole documents"):
            ingest(rows, store, "other", demo_encoder, None, split=True)
