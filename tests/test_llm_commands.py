"""Every command takes a language model as the generator; limits and batches lose no answered call."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from llama import NEEDS_LLAMA, running_llama
from qdrant_client import QdrantClient
from scripted_chat import Answer, Call, ScriptedChat, said
from short_passages import short_passages
from test_architecture import CHECKOUT
from test_docs import blocks, commands
from test_foreign import FIELDS, make_collection
from writing import write_rows

from xqg_qdrant.augmentation import pipeline
from xqg_qdrant.cli import main
from xqg_qdrant.generation import llm
from xqg_qdrant.generation.chat import Reply
from xqg_qdrant.generation.llm import ChatSampling, LanguageModelGenerator
from xqg_qdrant.generation.questions import make_custom_id, open_inputs
from xqg_qdrant.records import Passage, QueriedPassage, Reject
from xqg_qdrant.stores import open_store
from xqg_qdrant.stores.parquet import ParquetFolder

pytestmark = pytest.mark.usefixtures("opened_once")
KEY = "sk-proj-7f9Zq40xAb"
PASSAGES = 12
ASKED = {"fi": "Mikä on joen {} pituus?", "ru": "Сколько километров от истока до устья реки {}?"}


def answer(call: Call, number: int) -> Answer:
    """Return as many different questions as are asked for."""
    return said({code: [ASKED[code].format(f"{number}.{n}") for n in range(3)] for code in call.languages})


@pytest.fixture(scope="module")
def endpoint() -> Iterator[ScriptedChat]:
    running = ScriptedChat(answer)
    yield running
    running.close()


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XQG_LLM_API_KEY", KEY)
    rows = [{"id": p.passage_id, "title": p.title, "text": p.text} for p in short_passages(PASSAGES)]
    write_rows(tmp_path / "c.jsonl", rows)
    return "c.jsonl"


def xqg(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == exit_code, result.output
    assert KEY not in result.output
    return result


def ingest(endpoint: ScriptedChat, corpus: str, *settings: str, exit_code: int = 0) -> Result:
    source = ("--generator", endpoint.url, "--model", "m", "--languages", "fi,ru")
    return xqg("ingest", corpus, "--collection", "docs", *source, *settings, exit_code=exit_code)


def test_an_ingest_stops_at_its_limit_resumes_and_leaves_no_journal(endpoint: ScriptedChat, corpus: str) -> None:
    endpoint.reset(answer)
    stopped = ingest(endpoint, corpus, "--max-tokens", "5000", exit_code=6)
    assert "the limit is reached" in stopped.output
    done = ingest(endpoint, corpus, "--price-per-million-input", "2")
    assert len(endpoint.calls) == PASSAGES == len({call.prompt for call in endpoint.calls})
    assert "tokens: " in done.output
    assert "The calls cost 0.0" in done.output
    assert sorted(path.name for path in Path().iterdir()) == ["c.jsonl", "xqg_data"]
    assert endpoint.calls[0].headers["authorization"] == f"Bearer {KEY}"
    status = xqg("status", "--collection", "docs").output
    assert "generator.model: scripted" in status
    synced = xqg("sync", corpus, "--collection", "docs", "--generator", endpoint.url, "--model", "m")
    assert f"{PASSAGES} unchanged" in synced.output
    endpoint.models = Answer({"data": [{"id": "another"}]})
    assert "generator.model: stored 'scripted', now 'another'" in ingest(endpoint, corpus, exit_code=4).output
    endpoint.models = Answer({"data": [{"id": "scripted"}]})


@pytest.mark.parametrize(("command", "killed_in"), [("ingest", "write"), ("enrich", "settle")])
def test_replies_left_by_a_kill_around_a_write_are_used_or_removed(
    endpoint: ScriptedChat, corpus: str, command: str, killed_in: str
) -> None:
    endpoint.reset(answer)
    if command == "enrich":
        xqg("ingest", corpus, "--collection", "docs", "--plain")
    source = ("--collection", "docs", "--generator", endpoint.url, "--model", "m", "--languages", "fi,ru")
    words = ("ingest", corpus, *source) if command == "ingest" else ("enrich", *source)
    replies = Path("xqg_data.docs.replies")
    with pytest.MonkeyPatch.context() as patch:
        owner = pipeline if killed_in == "write" else pipeline._Target
        patch.setattr(owner, killed_in, lambda *_: 1 / 0)
        xqg(*words, exit_code=1)
    assert len(list(replies.iterdir())) == PASSAGES + 1
    assert f"{0 if killed_in == 'settle' else PASSAGES} passages stored" in xqg(*words).output
    assert not replies.exists()
    assert len(endpoint.calls) == PASSAGES


def test_replies_are_kept_until_a_folder_of_parquet_files_has_their_passages(
    endpoint: ScriptedChat, corpus: str
) -> None:
    endpoint.reset(answer)
    words = ("generate", corpus, "--out", "points", "--generator", endpoint.url, "--model", "m", "--languages", "fi,ru")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ParquetFolder, "_write_part", lambda _: 1 / 0)
        xqg(*words, exit_code=1)
    assert f"{PASSAGES} passages" in xqg(*words).output
    assert len(endpoint.calls) == PASSAGES
    assert not Path("points.queries.replies").exists()


def test_replies_of_another_collections_run_are_left(tmp_path: Path) -> None:
    journal = llm.Journal(tmp_path)
    reply = journal.path_of("a")
    journal.write(reply, Reply("text"))
    journal.note("docs in http://a", {reply: ("p", "hash")})
    journal.sweep("docs in http://b", lambda _: {"p": "hash"})
    journal.sweep("docs in http://a", lambda _: {"p": "another hash"})
    assert reply.exists()
    journal.sweep("docs in http://a", lambda _: {"p": "hash"})
    assert list(tmp_path.iterdir()) == []


def test_refused_passages_are_dead_letters_and_the_others_are_stored(endpoint: ScriptedChat, corpus: str) -> None:
    refusal = said(None, refusal="I'd rather not")
    endpoint.reset(lambda call, number: refusal if "Danube" in call.prompt else answer(call, number))
    result = ingest(endpoint, corpus, exit_code=3)
    refused = [json.loads(line) for line in Path("docs.rejected.jsonl").read_text().splitlines()]
    assert refused
    assert {row["reason"] for row in refused} == {"the model refused: I'd rather not"}
    assert f"{PASSAGES - len(refused)} passages stored" in result.output


def test_a_pilot_gives_a_verdict_and_an_estimate_tells_calls_tokens_and_money(
    endpoint: ScriptedChat, corpus: str
) -> None:
    endpoint.reset(answer)
    source = ("--generator", endpoint.url, "--model", "m", "--languages", "fi,ru")
    prices = ("--price-per-million-input", "2", "--price-per-million-output", "4")
    found = json.loads(CliRunner().invoke(main, ["-q", "estimate", corpus, *source, *prices, "--json"]).stdout)
    tokens = {"calls": PASSAGES, "tokens_in": 1000 * PASSAGES, "tokens_out": 50 * PASSAGES}
    assert found["language_model"] == {"measured": tokens, **tokens, "price": PASSAGES * (0.002 + 0.0002)}
    assert "eld-back questions gain" in xqg("pilot", corpus, "--passages", "12", *source).output


def test_settings_that_do_not_apply_are_refused(corpus: str, endpoint: ScriptedChat) -> None:
    for settings, message in (
        (["--model", "m"], "--model needs a URL"),
        (["--generator", "http://127.0.0.1:9/v1"], "needs --model"),
        (["--generator", endpoint.url, "--model", "m", "--max-cost", "1"], "--max-cost needs"),
        (["--generator", endpoint.url, "--model", "m"], "none is named"),
        (["--generator", endpoint.url, "--model", "m", "--languages", "fi", "--top-k", "3"], "top_k is no setting"),
    ):
        assert message in xqg("ingest", corpus, "--collection", "docs", *settings, exit_code=2).output
    ray = ["--generator", endpoint.url, "--model", "m", "--max-tokens", "9", "--engine", "ray", "--store", "http://h"]
    assert "do not share a limit" in xqg("ingest", corpus, "--collection", "docs", *ray, exit_code=2).output


def test_a_batch_is_written_and_its_results_are_read_in_any_order(endpoint: ScriptedChat, corpus: str) -> None:
    source = ("--generator", endpoint.url, "--model", "m", "--languages", "fi,ru")
    endpoint.reset(answer)
    xqg("generate", corpus, "--batch-out", "requests.jsonl", *source)
    assert endpoint.calls == []
    requests = [json.loads(line) for line in Path("requests.jsonl").read_text().splitlines()]
    assert len({request["custom_id"] for request in requests}) == PASSAGES
    results = []
    for number, request in enumerate(requests):
        call = Call(request["url"], {}, request["body"])
        response = {"status_code": 200, "body": answer(call, number).body}
        results.append({"custom_id": request["custom_id"], "response": response, "error": None})
    results[1] |= {"response": None, "error": {"code": "batch_expired", "message": "not run in time"}}
    results[2]["response"]["body"]["choices"][0]["finish_reason"] = "length"
    results[3]["custom_id"] = "another#0"
    write_rows(Path("results.jsonl"), [*reversed(results), results[4]])
    result = xqg("ingest", corpus, "--collection", "docs", "--queries", "results.jsonl", exit_code=3)
    assert "1 passage without a result, 2 results that failed, 2 of other passages or repeated" in result.output
    assert f"{6 * (PASSAGES - 3)} given queries encoded" in result.output
    reasons = {json.loads(line)["reason"] for line in Path("docs.rejected.jsonl").read_text().splitlines()}
    assert reasons == {
        "the batch has no answer: not run in time",
        "the reply was cut off (raise --max-new-tokens)",
    }
    again = [{**result, "custom_id": request["custom_id"]} for result, request in zip(results, requests, strict=True)]
    again[1]["response"], again[1]["error"] = results[0]["response"], None
    again[2]["response"]["body"]["choices"][0]["finish_reason"] = "stop"
    write_rows(Path("results.jsonl"), again)
    given = ("--queries", "results.jsonl")
    synced = xqg("sync", corpus, "--collection", "docs", *given)
    assert f"0 new, 3 changed, {PASSAGES - 3} unchanged, 0 rejected rows" in synced.output
    assert "results.jsonl: 0 passages without a result, 0 results that failed, 0 of other passages" in synced.output
    assert f"{PASSAGES} unchanged" in xqg("status", "--collection", "docs", "--corpus", corpus, *given).output
    rows = [json.loads(line) for line in Path(corpus).read_text().splitlines()]
    rows[6]["metadata"], rows[7]["text"] = {"year": 1858}, f"{rows[7]['text']} It is long."
    write_rows(Path(corpus), rows)
    write_rows(Path("results.jsonl"), [results[1], *again[9:]])
    assert "0 new, 2 changed, 10 unchanged" in xqg("status", "--collection", "docs", "--corpus", corpus, *given).output
    partly = xqg("ingest", corpus, "--collection", "docs", *given, exit_code=3).output
    assert "2 passages stored, 10 unchanged" in partly
    assert "8 passages without a result keep their queries." in partly
    assert "1 of the stored passages has no query." in partly
    with open_store("xqg_data") as store:
        kept = {point.passage.passage_id: len(point.generated_queries) for point in store.scroll("docs")}
        changed = store.read_points("docs", [rows[6]["id"]])[rows[6]["id"]].passage.metadata
    assert kept == {row["id"]: 0 if row is rows[7] else 6 for row in rows}
    assert changed == {"year": 1858}
    refused = xqg("augment", "--collection", "theirs", "--text-field", "text", *given, exit_code=2)
    assert "results.jsonl holds the results of a batch" in refused.output


@pytest.mark.parametrize("damaged", ['{"custom_id": "a#0", "resp', '{"custom_id": "\\ud800", "response": {}}'])
def test_a_damaged_first_line_of_results_is_rejected_and_takes_no_query_away(damaged: str, tmp_path: Path) -> None:
    passage = Passage("nile", "The Nile is long.")
    body = {"choices": [{"message": {"content": json.dumps({"fi": [ASKED["fi"].format(1)]})}}]}
    result = {"custom_id": make_custom_id(passage), "response": {"body": body}}
    (tmp_path / "passages.jsonl").write_text(json.dumps({"id": "nile", "text": passage.text}))
    (tmp_path / "results.jsonl").write_text(f"{damaged}\n{json.dumps(result)}\n")
    inputs = open_inputs([str(tmp_path / "passages.jsonl")], str(tmp_path / "results.jsonl"))
    rejected, queried = inputs.read()
    assert isinstance(rejected, Reject)
    assert rejected.line == 1
    assert isinstance(queried, QueriedPassage)
    assert [query.text for query in queried.queries] == [ASKED["fi"].format(1)]


def test_another_programs_collection_is_augmented(endpoint: ScriptedChat, corpus: str) -> None:
    endpoint.reset(answer)
    client = QdrantClient(path="theirs")
    make_collection(client, count=4)
    client.close()
    source = ("--generator", endpoint.url, "--model", "m", "--languages", "fi,ru", *FIELDS)
    done = xqg("augment", "--collection", "theirs", "--store", "local:theirs", *source)
    assert "4 passages stored" in done.output
    assert len(endpoint.calls) == 4
    again = xqg("augment", "--collection", "theirs", "--store", "local:theirs", *source)
    assert "0 passages stored, 4 unchanged" in again.output
    assert len(endpoint.calls) == 4


def test_the_commands_of_the_page_run(endpoint: ScriptedChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    rows = [{"id": p.passage_id, "title": p.title, "text": p.text} for p in short_passages(6)]
    write_rows(tmp_path / "corpus" / "passages.jsonl", rows)
    endpoint.reset(lambda call, number: said({code: three_questions(code, number) for code in call.languages}))
    page = CHECKOUT / "docs" / "how-to" / "language-model.md"
    ran = []
    for number, block in enumerate(blocks(page)):
        store = f"store{number}"
        if document := re.search(r"<<'END'\n(.*?)\nEND\n", block.text, re.DOTALL):
            Path("prompt.txt").write_text(document[1], encoding="utf-8")
        for words in commands(block.text.replace(document[0] if document else "\0", "\n")):
            if words[-1] == "results.jsonl":
                answer_batch(Path("requests.jsonl"), Path("results.jsonl"))
            here = [endpoint.url if word.startswith("http") else word for word in words]
            result = CliRunner().invoke(main, here, env={"XQG_STORE": store, "XQG_LLM_API_KEY": KEY})
            assert result.exit_code == 0, f"{words}\n{result.output}"
            ran.append(words[0])
    assert ran == ["ingest", "ingest", "enrich", "ingest", "estimate", "ingest", "generate", "ingest", "pilot"]
    assert "that a patient would ask" in endpoint.calls[-1].prompt


def three_questions(code: str, number: int) -> list[str]:
    known = {**ASKED, "ja": "川{}の長さは何キロメートルですか？"}
    return [known[code].format(f"{number}.{each}") for each in range(3)]


def answer_batch(requests: Path, results: Path) -> None:
    rows = []
    for number, line in enumerate(requests.read_text(encoding="utf-8").splitlines()):
        request = json.loads(line)
        call = Call(request["url"], {}, request["body"])
        body = said({code: three_questions(code, number) for code in call.languages}).body
        response = {"status_code": 200, "body": body}
        rows.append({"custom_id": request["custom_id"], "response": response, "error": None})
    write_rows(results, rows)


@NEEDS_LLAMA
def test_a_real_server_answers_as_the_schema_says_or_its_passage_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "SPARE_TOKENS", 0)
    passage = Passage("d", "The Danube is 2,850 km long.", "Danube")
    with running_llama() as url:
        generator = LanguageModelGenerator(url, "any", "Write {count} questions about {text}", journal=tmp_path)
        described = generator.describe()
        [found] = generator.generate([passage], ["en"], 1, 0, ChatSampling(0.0, 8))
        generator.close()
    assert described["model"] != "any"
    assert found.failure is None
    assert found.usage.tokens_in > 20 * found.usage.calls > 0
    assert [query.language for query in found.queries] == ([] if found.rejected else ["en"])
