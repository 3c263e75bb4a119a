"""What the `xqg` command promises: output, exit codes, and messages that name the cure."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from part_of_demo import write_part_of_demo

from xqg_qdrant import demo
from xqg_qdrant.cli import main
from xqg_qdrant.corpus.passages import read_passages
from xqg_qdrant.demo import (
    DEMO_LEXICON,
    DEMO_QUERIES,
    read_demo_passages,
    read_demo_qrels,
    read_demo_queries,
)
from xqg_qdrant.evaluation.files import read_judged_questions
from xqg_qdrant.inference.session import Session
from xqg_qdrant.model_folders import DEMO_ENCODER, DEMO_GENERATOR, shipped_model
from xqg_qdrant.stores import open_store
from xqg_qdrant.stores.edge.store import EdgeStore
from xqg_qdrant.stores.protocol import Indexing

pytestmark = pytest.mark.usefixtures("opened_once")
CLI = Path(__file__).parent.parent / "cli.py"
FEW_QUERIES = ["--languages", "fi,ru", "--queries-per-language", "2", "--max-new-tokens", "8", "--threads", "1"]
PASSAGES = 20
FEW_QUESTIONS = 12


def xqg(*arguments: object, stdin: str | None = None, env: Mapping[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin, env=env)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("QDRANT_URL", "QDRANT_API_KEY", "XQG_STORE"):
        monkeypatch.delenv(name, raising=False)


def to_row(index: int) -> str:
    passage = read_demo_passages()[index]
    return json.dumps({"id": passage.passage_id, "title": passage.title, "text": passage.text})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the first demo passages in the collection `docs`."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "corpus.jsonl").write_text("".join(to_row(i) + "\n" for i in range(PASSAGES)))
    result = xqg("ingest", folder / "corpus.jsonl", "--collection", "docs", "--store", folder / "data", *FEW_QUERIES)
    assert result.exit_code == 0, result.stderr
    return folder / "data"


@pytest.fixture(scope="module")
def few_questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_part_of_demo(tmp_path_factory.mktemp("questions") / "demo", FEW_QUESTIONS)


def ingest_lines(*lines: str, options: tuple[object, ...] = ()) -> Result:
    Path("corpus.jsonl").write_text("".join(line + "\n" for line in lines))
    return xqg("ingest", "corpus.jsonl", "--collection", "docs", *FEW_QUERIES, *options)


def commands() -> Iterator[tuple[str, click.Command]]:
    yield "xqg", main
    yield from main.commands.items()


def test_every_command_and_every_option_has_help() -> None:
    for name, command in commands():
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts}"


def test_help_starts_in_under_half_a_second_of_processor_time() -> None:
    # Processor time, not wall time, so that a busy machine does not fail the test.
    before = os.times()
    subprocess.run([sys.executable, str(CLI), "--help"], check=True, capture_output=True)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.5


def test_query_ranks_passages_with_title_snippet_and_the_query_that_matched_best(store: Path) -> None:
    result = xqg("query", "--collection", "docs", "--store", store, "Where does the Danube end?", "--limit", 2)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("Where does the Danube end?\n  1  ")
    assert "[geo-0" in result.stdout
    assert "matched best: " in result.stdout


def test_query_as_json_gives_one_object_a_question_read_from_stdin(store: Path) -> None:
    questions = "Where does the Danube end?\n\nWhat is a volcano?\n"
    result = xqg("query", "--collection", "docs", "--store", store, "--json", "--limit", 3, "-", stdin=questions)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["question"] for row in rows] == ["Where does the Danube end?", "What is a volcano?"]
    for row in rows:
        assert [hit["rank"] for hit in row["hits"]] == [1, 2, 3]
        scores = [hit["score"] for hit in row["hits"]]
        assert scores == sorted(scores, reverse=True)
        assert set(row["hits"][0]) == {"rank", "score", "passage_id", "title", "text", "metadata", "best_query"}


def test_the_plain_vector_can_be_searched_to_compare(store: Path) -> None:
    by_vector = {
        vector: json.loads(
            xqg("query", "--collection", "docs", "--store", store, "--json", "--rank", vector, "Danube").stdout
        )["hits"]
        for vector in ("xqg", "passage")
    }
    assert by_vector["xqg"][0]["score"] != by_vector["passage"][0]["score"]


def test_evaluate_compares_plain_and_augmented_vectors_for_each_language(store: Path, few_questions: Path) -> None:
    result = xqg("evaluate", "--collection", "docs", "--store", store, "--questions", few_questions, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert set(report) == {"passage", "xqg", "comparison"}
    for vector in ("passage", "xqg"):
        figures = report[vector]["recall@10"]
        assert set(figures["per_language"]) == {"ar", "bn", "fi", "ja", "ko", "ru", "te"}
        assert figures["macro"] == pytest.approx(sum(figures["per_language"].values()) / 7)


def test_evaluate_writes_a_trec_run_and_the_official_predictions(store: Path, few_questions: Path) -> None:
    result = xqg(
        *("evaluate", "--collection", "docs", "--store", store, "--questions", few_questions, "--limit", 5),
        *("--write-run", "run.trec", "--write-predictions", "predictions.json"),
    )
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in Path("run.trec").read_text().splitlines()]
    assert len(rows) == 5 * 7 * FEW_QUESTIONS
    assert rows[0][1] == "Q0"
    assert [row[3] for row in rows[:5]] == ["1", "2", "3", "4", "5"]
    predictions = json.loads(Path("predictions.json").read_text())
    assert len(predictions) == 7 * FEW_QUESTIONS
    assert set(predictions[0]) == {"id", "lang", "ctxs"}
    scored = xqg("score", "--predictions", "predictions.json", "--gold", few_questions / "queries.jsonl", "--json")
    assert scored.exit_code == 0, scored.stderr
    assert set(json.loads(scored.stdout)) == {"R@2kt", "R@5kt"}


def test_predictions_are_scored_by_the_word_rules_asked_for() -> None:
    # NLTK parts words at dashes since 3.9.3, so that the answer stands in the text under the older rules alone.
    Path("gold.jsonl").write_text('{"id": "a", "lang": "fi", "question": "?", "answers": ["1914–1918"]}\n')
    Path("predictions.json").write_text('[{"id": "a", "lang": "fi", "ctxs": ["It lasted 1914–1918 or so."]}]')
    scores = {}
    for rules in ("installed", "published"):
        options = ("--predictions", "predictions.json", "--gold", "gold.jsonl", "--word-rules", rules, "--json")
        scores[rules] = json.loads(xqg("score", *options).stdout)["R@2kt"]["macro"]
    assert scores == {"installed": 0, "published": 100}


def test_bad_rows_go_to_the_dead_letter_file_the_rest_is_stored_and_the_exit_code_is_3() -> None:
    lines = [to_row(0), "{broken", '{"id": "x", "text": " "}', '{"text": "no id"}', to_row(0), to_row(1)]
    result = ingest_lines(*lines)
    assert result.exit_code == 3
    assert "2 passages stored, 0 unchanged, 4 rows rejected" in result.stderr
    assert "docs.rejected.jsonl lists 4 rejected rows with the reasons:\n  1 × malformed JSON: " in result.stderr
    assert "Cure" not in result.stderr
    dead_letters = [json.loads(line) for line in Path("docs.rejected.jsonl").read_text().splitlines()]
    assert [row["line"] for row in dead_letters] == [2, 3, 4, 5]
    for row, reason in zip(dead_letters, ("malformed JSON", "text", "id", "occurred before"), strict=True):
        assert reason in row["reason"]
        assert row["row"] == lines[row["line"] - 1]


@pytest.mark.parametrize(
    ("lines", "reason", "cure"),
    [
        (['{"id": "a", "body": "The Danube is a river.", "url": "x"}'] * 3, "3 × no text", "--text-field body"),
        (['{"number": "a", "text": "b"}'], "1 × no id", "--id-field FIELD"),
        (['{"doc_id": "a", "text": "b"}', '{"doc_id": 2, "text": "c"}'], "2 × no id", "--id-field doc_id"),
        (["The Danube is a river.", "It is long."], "2 × malformed JSON", "one JSON object per line"),
        (["7", '"text"'], "2 × not a JSON object", "one JSON object per line"),
    ],
)
def test_where_all_rows_are_rejected_the_reason_and_the_likely_cure_are_told(
    lines: list[str], reason: str, cure: str
) -> None:
    result = ingest_lines(*lines)
    assert result.exit_code == 3
    assert f"  {reason}" in result.stderr
    assert re.search(rf"No row could be used, and nothing was stored\.\nCure: .*{cure}", result.stderr)
    assert "no collection 'docs'" in xqg("query", "--collection", "docs", "question").stderr


def test_a_file_without_rows_is_an_error_and_creates_nothing() -> None:
    result = ingest_lines()
    assert (result.exit_code, "holds no passage, so no collection was created" in result.stderr) == (2, True)


def test_a_repaired_file_leaves_no_dead_letters_of_an_earlier_run() -> None:
    assert ingest_lines(to_row(0), "{broken").exit_code == 3
    assert ingest_lines(to_row(0), to_row(1)).exit_code == 0
    assert not Path("docs.rejected.jsonl").exists()


def test_dead_letters_of_an_earlier_run_outlive_one_that_is_refused() -> None:
    assert ingest_lines(to_row(0), "{broken").exit_code == 3
    dead_letters = Path("docs.rejected.jsonl").read_bytes()
    assert ingest_lines(to_row(0), options=("--alpha", 0.5)).exit_code == 4
    assert xqg("ingest", "missing.jsonl", "--collection", "docs").exit_code == 2
    assert Path("docs.rejected.jsonl").read_bytes() == dead_letters


def test_a_corpus_is_never_overwritten_with_its_own_rejects() -> None:
    Path("docs.rejected.jsonl").write_text(to_row(0) + "\n{broken\n")
    result = xqg("ingest", "docs.rejected.jsonl", "--collection", "docs", *FEW_QUERIES)
    assert result.exit_code == 2
    assert "--dead-letters docs.rejected.jsonl is also an input (FILE)" in result.stderr
    assert Path("docs.rejected.jsonl").read_text() == to_row(0) + "\n{broken\n"


def test_the_rows_before_the_damage_of_a_file_are_stored() -> None:
    whole = gzip.compress("".join(to_row(number) + "\n" for number in range(3)).encode())
    Path("corpus.jsonl.gz").write_bytes(whole + b"garbage")
    result = xqg("ingest", "corpus.jsonl.gz", "--collection", "docs", *FEW_QUERIES)
    assert result.exit_code == 2
    assert "corpus.jsonl.gz: the gzip file is damaged" in result.stderr
    assert "3 passages stored" in result.stderr
    with closing(open_store("xqg_data")) as store:
        assert store.count("docs") == 3


def test_passages_are_read_from_a_pipe_that_can_be_read_once() -> None:
    os.mkfifo("pipe.jsonl")
    writer = threading.Thread(target=Path("pipe.jsonl").write_text, args=(to_row(0) + "\n",))
    writer.start()
    result = xqg("ingest", "pipe.jsonl", "--collection", "docs", *FEW_QUERIES)
    writer.join()
    assert result.exit_code == 0, result.stderr
    assert "1 passage stored" in result.stderr


def test_passages_are_read_from_stdin() -> None:
    result = xqg("ingest", "-", "--collection", "docs", *FEW_QUERIES, stdin=to_row(0) + "\n" + to_row(1) + "\n")
    assert result.exit_code == 0, result.stderr
    assert "2 passages stored" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "messages"),
    [
        (["ingest", "missing.jsonl", "--collection", "docs"], 2, ["missing.jsonl", "no such file"]),
        (["ingest", "corpus.jsonl"], 2, ["Missing option '--collection'"]),
        (["ingest", "corpus.jsonl", "--collection", "docs", "--languages", "ru,xx"], 2, ["unknown language 'xx'"]),
        (["ingest", "corpus.jsonl", "--collection", "docs", "--alpha", "2"], 2, ["alpha must be between 0 and 1"]),
        (["ingest", "corpus.jsonl", "--collection", "docs", "--fusion", "max"], 2, ["'max' is not one of"]),
        (["ingest", "corpus.jsonl", "--collection", "docs", "--store", "ftp://host"], 2, ["ftp://host", "Cure"]),
        (
            ["ingest", "corpus.jsonl", "--collection", "docs", "--encoder", "no"],
            6,
            ["no model folder no", "xqg export"],
        ),
        (["query", "--collection", "nothing", "question"], 2, ["no collection 'nothing'", "xqg ingest"]),
        (["query", "--collection", "nothing"], 2, ["Missing argument"]),
        (["query", "--collection", "c", "--store", "http://127.0.0.1:9", "question"], 5, ["127.0.0.1:9", "Cure"]),
        (["evaluate", "--collection", "docs"], 2, ["--questions"]),
        (["evaluate"], 2, ["--collection", "xqg score"]),
        (["score", "--predictions", "p.json"], 2, ["--questions", "--gold"]),
        (["export", "no/checkpoint/here"], 2, ["no/checkpoint/here"]),
        (["nonsense"], 2, ["No such command"]),
    ],
)
def test_bad_input_is_named_with_its_exit_code(arguments: list[str], exit_code: int, messages: list[str]) -> None:
    Path("corpus.jsonl").write_text(to_row(0) + "\n")
    result = xqg(*arguments)
    assert result.exit_code == exit_code, result.stderr
    for message in messages:
        assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_asking_for_cuda_where_it_does_not_run_is_an_error_and_no_silent_fall_back() -> None:
    if Session(shipped_model(DEMO_ENCODER) / "model.onnx").device != "cpu":
        pytest.skip("CUDA runs here")
    result = ingest_lines(to_row(0), options=("--device", "cuda"))
    assert result.exit_code == 6
    assert "CUDA was asked for, but does not run here" in result.stderr
    assert "--device cpu" in result.stderr


def copy_model(name: str) -> Path:
    return Path(shutil.copytree(shipped_model(name), Path(name)))


def test_a_half_written_model_folder_is_refused() -> None:
    (copy_model(DEMO_GENERATOR) / "decoder.onnx").unlink()
    result = ingest_lines(to_row(0), options=("--generator", DEMO_GENERATOR))
    assert result.exit_code == 6
    assert "lacks decoder.onnx: it is half written" in result.stderr


def test_a_model_file_that_was_changed_is_refused() -> None:
    with (copy_model(DEMO_ENCODER) / "model.onnx").open("ab") as file:
        file.write(b"x")
    result = ingest_lines(to_row(0), options=("--encoder", DEMO_ENCODER))
    assert result.exit_code == 6
    assert "has sha256" in result.stderr


def with_longer_queries(name: str) -> Path:
    """A copy of the demo encoder that cuts queries elsewhere, so that it is another encoder."""
    folder = copy_model(name)
    description = json.loads((folder / "xqg.json").read_text())
    description["max_query_tokens"] += 1
    (folder / "xqg.json").write_text(json.dumps(description))
    return folder


def test_a_collection_of_another_recipe_is_refused_with_exit_code_4(store: Path) -> None:
    arguments = ("ingest", "corpus.jsonl", "--collection", "docs", "--store", store, *FEW_QUERIES)
    Path("corpus.jsonl").write_text(to_row(0) + "\n")
    result = xqg(*arguments, "--alpha", "0.5")
    assert result.exit_code == 4
    assert "recipe.alpha: stored 0.4, now 0.5" in result.stderr
    assert "Cure: " in result.stderr


def test_a_search_with_another_encoder_is_refused_with_exit_code_4(store: Path) -> None:
    folder = with_longer_queries(DEMO_ENCODER)
    result = xqg("query", "--collection", "docs", "--store", store, "--encoder", folder, "question")
    assert result.exit_code == 4
    assert "encoder.max_query_tokens" in result.stderr
    assert "--encoder" in result.stderr


def test_a_collection_in_use_by_another_process_is_refused_with_exit_code_5(store: Path) -> None:
    held = open_store(str(store))
    assert held.count("docs") == PASSAGES
    try:
        command = [sys.executable, str(CLI), "query", "--collection", "docs", "--store", str(store), "question"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        held.close()
    assert result.returncode == 5
    assert "in use" in result.stderr


def test_status_says_which_process_holds_a_collection_and_shows_its_recipe(store: Path) -> None:
    command = [sys.executable, str(CLI), "status", "--store", str(store)]
    with closing(open_store(str(store))) as held:
        held.count("docs")
        named, as_json, listed = (
            subprocess.run([*command, *options], capture_output=True, text=True, check=False)
            for options in (["--collection", "docs"], ["--collection", "docs", "--json"], [])
        )
    assert [result.returncode for result in (named, as_json, listed)] == [0, 0, 0]
    assert f"not counted, as collection 'docs' in edge:{store} is in use by process {os.getpid()}" in named.stdout
    assert "  recipe.alpha: 0.4" in named.stdout
    assert json.loads(as_json.stdout)["passages"] is None
    assert "docs: in use by another process" in listed.stdout


def test_a_setting_that_retune_can_change_is_refused_with_that_cure(store: Path) -> None:
    row = to_row(0) + "\n"
    Path("corpus.jsonl").write_text(row)
    common = ("ingest", "corpus.jsonl", "--collection", "docs", "--store", store, *FEW_QUERIES)
    assert "or change the stored collection: xqg retune" in xqg(*common, "--alpha", "0.3").stderr
    assert "xqg retune" not in xqg(*common, "--alpha", "0.3", "--seed", "7").stderr


def test_the_store_and_the_key_come_from_the_environment_and_the_key_is_never_shown() -> None:
    env = {"QDRANT_URL": "http://127.0.0.1:9", "QDRANT_API_KEY": "s3cret"}
    result = xqg("query", "--collection", "docs", "question", env=env)
    assert result.exit_code == 5
    assert "127.0.0.1:9" in result.stderr
    assert "s3cret" not in result.output


def test_an_ingest_quantises_and_indexes_what_has_become_large_and_tells_the_recall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def optimise(store: EdgeStore, collection: str, above: int = 0) -> Iterator[Indexing]:
        asked.append(above)
        yield from [Indexing(1.0), Indexing(65.0, changed=True)]

    monkeypatch.setattr(EdgeStore, "optimise", optimise)
    result = ingest_lines(to_row(0), to_row(1), options=("--quantisation", "int8"))
    assert result.exit_code == 0, result.stderr
    assert asked == [50_000]
    assert "2 points indexed in 1 min 05 s.\nrecall@10 against exact search: 1.000 (2 stored vectors)" in result.stderr
    engine = json.loads(Path("xqg_data/docs/edge_config.json").read_text())
    assert engine["quantization_config"] == {"scalar": {"type": "int8"}}
    ingest_lines(to_row(0), to_row(1))
    assert len(asked) == 1  # nothing was stored


def test_quiet_says_nothing_but_errors(store: Path) -> None:
    Path("corpus.jsonl").write_text(to_row(0) + "\n")
    result = xqg("-q", "ingest", "corpus.jsonl", "--collection", "docs", "--store", store, *FEW_QUERIES)
    assert (result.exit_code, result.output) == (0, "")


def test_verbose_adds_the_traceback() -> None:
    result = xqg("-v", "query", "--collection", "nothing", "question")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


@pytest.fixture
def smaller_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave two thirds of the questions and most passages out of the demo corpus."""
    folder = write_part_of_demo(tmp_path / "demo", questions=40, distractors=50)
    monkeypatch.setattr(demo, "DEMO_FOLDER", folder)
    monkeypatch.setattr(demo, "DEMO_QUERIES", folder / "generated_queries.jsonl.gz")


@pytest.mark.usefixtures("smaller_demo")
def test_the_demo_shows_a_gain_over_plain_vectors_and_over_the_control_and_says_what_to_try_next() -> None:
    result = xqg("demo", "--threads", 2)
    assert result.exit_code == 0, result.stderr
    assert "Ingesting 90 English passages into 'xqg_demo' (edge:xqg_data)" in result.stdout
    # three questions that are answered now, and one that is not, each in another language and about something else
    asked = [line for line in result.stdout.splitlines() if "  (answer: " in line]
    assert len({line[:2] for line in asked}) == len({line.split("(answer: ")[1] for line in asked}) == 4
    before, _, after = result.stdout.partition("but not of this one:")
    assert [part.count("  (answer: ") for part in (before, after)] == [3, 1]
    shown = [line for line in result.stdout.splitlines() if line.startswith("  queries ")]
    assert len(shown) == 4
    assert ["✓" in line.split("|")[0] for line in shown] == [True, True, True, False]
    head, *table = result.stdout.split("from passage.\n\n")[1].split("\n\n")[0].splitlines()
    assert head.split() == ["macro", "ar", "bn", "fi", "ja", "ko", "ru", "te"]
    runs = ["passage", "calibrated", "control", "xqg"]
    assert [line[:18].split() for line in table] == [
        ["MRR@10", "passage"], *([run] for run in runs[1:]), ["R@2kt", "passage"], *([run] for run in runs[1:])
    ]  # fmt: skip
    assert "xqg lifts MRR@10 from " in result.stdout
    assert "The content of the queries gives +" in result.stdout
    assert "The shipped generator" in result.stdout
    assert "xqg query --collection xqg_demo" in result.stdout
    macro = {run: line[18:].split()[0] for run, line in zip(runs, table, strict=False)}
    assert macro["xqg"].endswith("***")
    values = {run: float(value.rstrip("*")) for run, value in macro.items()}
    assert values["passage"] < min(values["calibrated"], values["control"])
    assert values["xqg"] > values["control"] + 4


def test_the_demo_corpus_can_be_had_as_files_that_the_commands_take(tmp_path: Path) -> None:
    result = xqg("demo", "--write", tmp_path / "corpus")
    assert result.exit_code == 0, result.stderr
    files = {line.split()[0]: Path(line.split()[1]) for line in result.stdout.splitlines()}
    assert list(read_passages(str(files["passages"]))) == read_demo_passages()
    queries, qrels = read_judged_questions([files["questions"]], files["judgements"])
    assert (queries, qrels) == (read_demo_queries(), read_demo_qrels())
    assert files["queries"].read_bytes() == DEMO_QUERIES.read_bytes()
    assert files["lexicon"].read_bytes() == DEMO_LEXICON.read_bytes()
    again = xqg("demo", "--write", tmp_path / "corpus")
    assert again.exit_code == 2
    assert "is there already" in again.stderr
