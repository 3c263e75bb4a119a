"""What an encoder behind an endpoint promises: the vectors of one model, whatever the server answers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from embedding_server import embedding_server
from scripted_chat import Answer, Call, ScriptedChat, embed, make_vector, refused

from xqg_qdrant.cli import main
from xqg_qdrant.errors import InputError, ModelError, XqgError
from xqg_qdrant.inference import endpoint, open_encoder
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.inference.remote_encoder import PROBES, RemoteEncoder, cut_batches, describe_endpoint

KEY = "sk-proj-7f+a/9Zq%40x"


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setenv("XQG_EMBEDDING_API_KEY", KEY)


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedChat]:
    running = ScriptedChat(embed)
    yield running
    running.close()


@pytest.fixture
def encoder(server: ScriptedChat, tmp_path: Path) -> Iterator[RemoteEncoder]:
    server.reset(embed)
    fields = {"query_fields": {"input_type": "query"}, "query_prefix": "q: ", "passage_prefix": "p: "}
    describe_endpoint(server.url, tmp_path / "e", "m", **fields, price_per_million=2.0)
    opened = open_encoder(tmp_path / "e")
    assert isinstance(opened, RemoteEncoder)
    server.reset(embed)
    yield opened
    opened.close()


def test_prefixes_fields_and_the_key_are_sent_and_a_text_is_asked_for_once(
    server: ScriptedChat, encoder: RemoteEncoder
) -> None:
    tokens = encoder.tokens
    first = encoder.encode_queries(["a", "b", "a"])
    np.testing.assert_allclose(first, [make_vector("q: a"), make_vector("q: b"), make_vector("q: a")], atol=1e-6)
    np.testing.assert_array_equal(encoder.encode_queries(["b"]), first[1:2])
    np.testing.assert_allclose(encoder.encode_passages(["a"]), [make_vector("p: a")], atol=1e-6)
    np.testing.assert_allclose(encoder.encode_passages(["a"], ""), [make_vector("a")], atol=1e-6)
    assert [call.body for call in server.calls] == [
        {"model": "m", "input": ["q: a", "q: b"], "input_type": "query"},
        {"model": "m", "input": ["p: a"]},
        {"model": "m", "input": ["a"]},
    ]
    assert {call.headers["authorization"] for call in server.calls} == {f"Bearer {KEY}"}
    assert {call.path for call in server.calls} == {"/v1/embeddings"}
    assert encoder.tokens - tokens == 40
    assert encoder.cost == pytest.approx(encoder.tokens * 2e-6)
    assert encoder.encode_queries([]).shape == (0, 8)
    assert KEY not in json.dumps([encoder.describe(), dict(encoder.folder.description)])


def test_base64_any_order_and_raw_lengths_are_read(server: ScriptedChat, encoder: RemoteEncoder) -> None:
    def packed(call: Call, number: int) -> Answer:
        del number
        rows = [
            {
                "index": place,
                "embedding": base64.b64encode((np.array(make_vector(text), np.float32) * 3).tobytes()).decode(),
            }
            for place, text in enumerate(call.body["input"])
        ]
        return Answer({"data": rows[::-1]})

    server.reset(packed)
    # The description says that vectors have length 1.
    np.testing.assert_allclose(
        encoder.encode_queries(["a", "b"]), [make_vector("q: a"), make_vector("q: b")], atol=1e-6
    )


GOOD = [make_vector("a"), make_vector("b")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (GOOD[:1], "answers with 1 vector for 2 texts"),
        ([*GOOD, GOOD[0]], "answers with 3 vectors for 2 texts"),
        ([GOOD[0], GOOD[1][:5]], "cannot be read"),
        ([GOOD[0][:5], GOOD[1][:5]], "answers with 5 numbers a text; 8 are described"),
        ([GOOD[0], [float("nan")] * 8], "not finite"),
        ([GOOD[0], [0.0] * 8], "a vector of zeros"),
        ([GOOD[0], "???"], "cannot be read"),
        ([GOOD[0], None], "cannot be read|not finite"),
        ([GOOD[0], [10**400] * 8], "cannot be read"),
    ],
)
def test_answers_without_a_usable_vector_for_each_text_are_refused(
    rows: Sequence[Any], message: str, server: ScriptedChat, encoder: RemoteEncoder
) -> None:
    server.reset(lambda *_: Answer({"data": [{"embedding": row} for row in rows]}))
    with pytest.raises(ModelError, match=message):
        encoder.encode_queries(["a", "b"])


def test_a_busy_server_is_asked_again_and_a_wrong_key_or_an_empty_account_ends_the_run(
    server: ScriptedChat, encoder: RemoteEncoder
) -> None:
    busy = refused("slow down", 429, Retry_After="0")
    server.reset(lambda call, number: busy if number < 2 else embed(call))
    assert encoder.encode_queries(["busy"]).shape == (1, 8)
    assert len(server.calls) == 3
    server.reset(lambda *_: refused(f"bad key {KEY}", 401))
    with pytest.raises(ModelError, match="refuses the key") as caught:
        encoder.encode_queries(["key"])
    assert KEY not in str(caught.value)
    assert "set XQG_EMBEDDING_API_KEY" in caught.value.cure
    with pytest.raises(XqgError):  # at once
        encoder.encode_queries(["next"])
    assert len(server.calls) == 1


def test_texts_that_are_too_long_are_truncated_and_counted(server: ScriptedChat, encoder: RemoteEncoder) -> None:
    def strict(call: Call, number: int) -> Answer:
        del number
        if sum(map(len, call.body["input"])) > 100:
            return refused("This model's maximum context length is 25 tokens")
        return embed(call)

    server.reset(strict)
    texts = ["short", "x" * 150, "y" * 60, "z" * 60]
    found = encoder.encode_passages(texts, "")
    wanted = ["short", "x" * 84, "y" * 60, "z" * 60]  # 150 · 0.75 = 112, and again
    np.testing.assert_allclose(found, [make_vector(text) for text in wanted], atol=1e-6)
    assert encoder.truncated == 2


def test_another_model_under_the_same_name_is_refused(server: ScriptedChat, tmp_path: Path) -> None:
    server.reset(embed)
    describe_endpoint(server.url, tmp_path / "e", "m")

    def other(call: Call, number: int) -> Answer:
        del number
        return embed(call._replace(body={**call.body, "input": [f"{text}!" for text in call.body["input"]]}))

    server.reset(other)
    with pytest.raises(
        ModelError, match=r"the model 'm' at .* has changed: a probe has a cosine of .*0\.999 is needed"
    ):
        open_encoder(tmp_path / "e")
    with pytest.raises(InputError, match="exists"):
        describe_endpoint(server.url, tmp_path / "e", "m")


def test_damaged_descriptions_are_refused_with_their_field(server: ScriptedChat, tmp_path: Path) -> None:
    server.reset(embed)
    about = describe_endpoint(server.url, tmp_path / "e", "m")
    for field, value in {
        "dim": 0,
        "url": 5,
        "probes": [1],
        "query_fields": [],
        "passage_fields": {"input": []},
        "normalise": 1,
    }.items():
        (tmp_path / "e/xqg.json").write_text(json.dumps({**about, field: value}))
        with pytest.raises(ModelError, match=f"has {field} = "):
            open_encoder(tmp_path / "e")
    (tmp_path / "e/xqg.json").write_text(json.dumps({**about, "probes": about["probes"][:3]}))
    with pytest.raises(ModelError, match="has changed"):
        open_encoder(tmp_path / "e")


@pytest.mark.parametrize("limits", [{"max_tokens": 110}, {"max_cost": 0.00022}], ids=["tokens", "cost"])
def test_a_limit_of_tokens_or_money_ends_the_run(limits: dict[str, Any], server: ScriptedChat, tmp_path: Path) -> None:
    server.reset(embed)
    describe_endpoint(server.url, tmp_path / "e", "m", price_per_million=2.0, **limits)
    encoder = open_encoder(tmp_path / "e")  # the probes take 100
    assert isinstance(encoder, RemoteEncoder)
    encoder.encode_queries(["a"])
    with pytest.raises(ModelError, match=r"the limit is reached: 110 tokens were encoded, which cost 0\.00022\."):
        encoder.encode_queries(["b"])
    encoder.close()


@pytest.mark.parametrize("tokens", [10**400, -(10**9), True, "5", float("nan"), None])
def test_a_number_of_tokens_that_cannot_be_true_is_estimated(
    tokens: object, server: ScriptedChat, encoder: RemoteEncoder
) -> None:
    server.reset(lambda call, _: Answer({**embed(call).body, "usage": {"total_tokens": tokens}}))
    before = encoder.tokens
    encoder.encode_queries([f"{tokens} is no number"[-40:]])
    assert 0 <= encoder.tokens - before <= 12
    assert encoder.cost < 1


@pytest.mark.parametrize(
    "fields", ['{"a": 1e400}', '{"a": NaN}', '{"a": "\\ud800"}', '{"input": []}', '{"model": "n"}', "[" * 100_000, "[]"]
)
def test_fields_that_cannot_be_sent_are_refused_before_anything_is_asked(
    fields: str, server: ScriptedChat, tmp_path: Path
) -> None:
    server.reset(embed)
    for option in ("--query-fields", "--passage-fields"):
        command = ["describe", server.url, "--model", "m", "--out", str(tmp_path / "e"), option, fields]
        result = CliRunner().invoke(main, command)
        assert (result.exit_code, "JSON object" in result.stderr) == (2, True), result.output
    assert (server.calls, list(tmp_path.iterdir())) == ([], [])


def test_a_limit_of_money_needs_a_price_and_none_holds_for_several_workers(
    server: ScriptedChat, tmp_path: Path
) -> None:
    server.reset(embed)
    folder = tmp_path / "e"
    command = ["describe", server.url, "--model", "m", "--out", str(folder), "--max-cost", "1"]
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, "--max-cost needs --price-per-million" in result.stderr) == (2, True)
    about = describe_endpoint(server.url, folder, "m", max_cost=1.0, price_per_million=2.0)
    ray = ["--engine", "ray", "--store", "http://h", "--encoder", str(folder), "--collection", "c"]
    result = CliRunner().invoke(main, ["ingest", "c.jsonl", *ray])
    assert (result.exit_code, "do not share a limit" in result.stderr) == (2, True)
    (folder / "xqg.json").write_text(json.dumps({**about, "price_per_million": 0}))
    with pytest.raises(ModelError, match="has max_cost, but no price_per_million"):
        open_encoder(folder)
    del about["max_cost"]
    (folder / "xqg.json").write_text(json.dumps(about))
    encoder = open_encoder(folder)
    assert isinstance(encoder, RemoteEncoder)
    encoder.close()


def test_batches_are_cut_by_count_and_size() -> None:
    assert [len(batch) for batch in cut_batches(["a"] * 130)] == [64, 64, 2]
    assert [len(batch) for batch in cut_batches(["a" * 20_000] * 3)] == [1, 1, 1]


def test_the_command_describes_a_real_server_whose_vectors_are_those_of_the_demo_encoder(
    tmp_path: Path, demo_encoder: Encoder
) -> None:
    with embedding_server() as url:
        fields = ("--query-fields", '{"input_type": "query"}', "--passage-fields", '{"input_type": "passage"}')
        command = ["describe", url, "--model", "e5", "--out", str(tmp_path / "e5"), *fields]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
        assert '"dim": 384, "normalise": true' in result.output
        encoder = open_encoder(tmp_path / "e5")
        assert isinstance(encoder, RemoteEncoder)
        texts = [PROBES[0], PROBES[6]]
        for name in ("encode_queries", "encode_passages"):
            remote, local = getattr(encoder, name)(texts), getattr(demo_encoder, name)(texts)
            assert (remote * local).sum(axis=1).min() > 0.98
        encoder.close()
        assert CliRunner().invoke(main, [*command[:-1], "[1]"]).exit_code == 2
