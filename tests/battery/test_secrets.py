"""No API key in anything that a user might paste into an issue: errors, tracebacks, JSON, dead letters, logs.

The server knows the key, and here it repeats it: in its errors, in a proxy's page, in headers, in redirects, in answers
that are cut off, each time in another spelling. Each seed checks fifty outputs.
"""

from __future__ import annotations

import base64
import html
import json
import logging
import random
import re
import shlex
import string
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote, quote_plus, unquote

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from faulty_proxy import Exchange, Fault, FaultyProxy
from qdrant_client import models
from rest_qdrant import RestQdrant

from xqg_qdrant.cli import main
from xqg_qdrant.cli.shared import given_command
from xqg_qdrant.errors import InputError, StoreError
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import AugmentedPassage, Passage
from xqg_qdrant.secrets import holds_secret, make_redactor
from xqg_qdrant.stores import Store, open_store

LIBRARY_CASES, COMMAND_CASES = 30, 20  # of each seed
SHOWN = 400  # what of an answer a message shows at most
FRAGMENT = 8

VISIBLE = "".join(map(chr, range(33, 127)))


def make_key(chance: random.Random) -> str:
    def draw(alphabet: str, length: int) -> str:
        return "".join(chance.choices(alphabet, k=length))

    letters = string.ascii_letters + string.digits
    makers: list[Callable[[], str]] = [
        lambda: "sk-" + draw(letters + "-_", 40),
        lambda: base64.b64encode(chance.randbytes(chance.randint(20, 48))).decode(),
        lambda: ".".join(base64.urlsafe_b64encode(chance.randbytes(n)).decode().rstrip("=") for n in (27, 60, 32)),
        lambda: "".join(f"%{chance.randrange(256):02X}{draw(letters + '+/%', 2)}" for _ in range(8)),
        lambda: draw(VISIBLE, chance.randint(16, 60)),
        lambda: draw("\\\"'&<>%+/=", 20) + draw(letters, 4),
        lambda: draw(string.digits, 24),
    ]
    return chance.choice(makers)()


def write_every_character(pattern: str) -> Callable[[str], str]:
    return lambda key: "".join(pattern.format(ord(char)) for char in key)


SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "for a URL": lambda key: quote(key, safe=""),
    "for a URL, in small letters": lambda key: "".join(f"%{ord(c):02x}" if c in "+/=%&" else c for c in key),
    "for a URL, all of it": write_every_character("%{:02X}"),
    "for a URL, twice": lambda key: quote(quote_plus(key), safe=""),
    "read as a form": lambda key: key.replace("+", " "),
    "for HTML": html.escape,
    "for HTML, in numbers": write_every_character("&#{};"),
    "for HTML, in hexadecimal numbers": write_every_character("&#x{:x};"),
    "for JSON": lambda key: json.dumps(key)[1:-1],
    "for JSON, twice": lambda key: json.dumps(json.dumps(key))[3:-3],
    "for JSON, all of it": write_every_character("\\u{:04x}"),
    "for JSON, all of it twice": write_every_character("\\\\u{:04x}"),
    "for Python": lambda key: repr(key)[1:-1],
    "in base64": lambda key: base64.b64encode(key.encode()).decode(),
    "in base64, after a user's name": lambda key: base64.b64encode(f"me:{key}".encode()).decode(),
    "in base64, in a header's value": lambda key: base64.b64encode(f"Bearer {key}".encode()).decode(),
    "in base64, for a URL": lambda key: base64.urlsafe_b64encode(f"u:{key}".encode()).decode(),
    "in hexadecimal": lambda key: key.encode().hex(),
    "cut in two by a line": lambda key: f"{key[: len(key) // 2]}\n{key[len(key) // 2 :]}",
    "cut in two by an indented line": lambda key: f"{key[:7]}\r\n    {key[7:]}",
    "cut in two by a line, for JSON": lambda key: json.dumps(f"{key[:5]}\n{key[5:]}")[1:-1],
}
# Around the key in base64 stand the first and the last character of a group, which belong to its neighbours, too.
ENCODED = tuple(name for name in SPELLINGS if "base64" in name)


def fragments(text: str) -> set[str]:
    return {text[start : start + FRAGMENT] for start in range(len(text) - FRAGMENT + 1)}


def assert_silent(text: str, key: str) -> None:
    """Check that a text holds no eight characters of the key in a row, in any spelling."""
    readings = {text, text.replace("\\", ""), html.unescape(text), unquote(text), unquote(unquote(text))}
    readings |= {reading.replace("+", " ") for reading in readings}
    secrets = {part for spell in SPELLINGS.values() for part in fragments(spell(key))}
    # A key may be made of parts of words that are in each message; those of one character are no secret.
    secrets = {part for part in secrets if len(set(part)) > 3}
    for reading in readings:
        assert not (found := secrets & fragments(reading)), (found, text)


def answer(body: str, status: int = 400, reason: str = "Bad Request", headers: str = "") -> Fault:
    def fault(exchange: Exchange) -> None:
        exchange.read_body()
        exchange.send(status, reason, body.encode(), headers)

    return fault


def make_fault(key: str, chance: random.Random) -> Fault:
    """Return an answer that repeats the key somewhere, in some spelling."""
    spelled = SPELLINGS[chance.choice(list(SPELLINGS))](key)
    status = chance.choice([400, 401, 403, 404, 407, 409, 413, 418, 422, 429, 500, 502, 503, 504, 507])
    near_the_cut = "x" * chance.randint(SHOWN - 30 - len(spelled), SHOWN + 10)
    quoted = json.dumps(spelled)[1:-1]
    header = chance.choice(["WWW-Authenticate", "Retry-After", "Location", "Set-Cookie", "api-key"])
    return chance.choice(
        [
            answer(json.dumps({"status": {"error": f"key {spelled} is wrong"}}), status),
            answer(json.dumps({"status": {"error": near_the_cut + spelled}}), status),
            answer(json.dumps({"status": {"error": [spelled, {spelled: spelled}]}}), status),
            answer(f"<html><body>{near_the_cut}{spelled}</body></html>", status),
            answer(spelled, status),
            answer("{}", status, headers=f"{header}: {spelled}\r\n"),
            answer("", 302, "Found", f"Location: https://other.example/{near_the_cut}?key={spelled}\r\n"),
            answer("{}", status, reason=spelled),
            answer('{"result": "' + quoted, 200, "OK"),
            answer('{"result": "' + quoted + '", "status": {"' + quoted + '": 1}}', 200, "OK"),
            answer('{"result": {"collections": [{"' + quoted + '": 1}]}}', 200, "OK"),
            answer(f'{{"title": "{quoted}", "version": "{quoted}"}}', 200, "OK"),
            answer('{"result": {"collections": [{"name": 7, "x": "' + quoted + '"}]}}', 200, "OK"),
            lambda exchange: exchange.connection.sendall(f"{spelled} is no HTTP\r\n\r\n".encode()),
            lambda exchange: exchange.send(status, "Cut", spelled.encode(), length=10_000),
            lambda exchange: exchange.send(200, "OK", b"", f"Content-Encoding: gzip\r\nx: {spelled}\r\n", length=9),
            lambda exchange: exchange.reset(),
        ]
    )


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_key_is_hidden(spelling: str, seed: int) -> None:
    chance = random.Random(seed)
    for key in (VISIBLE, VISIBLE[::-1], "a" * 20, *(make_key(chance) for _ in range(20))):
        text = f"before {SPELLINGS[spelling](key)} after"
        hidden = make_redactor(key)(text)
        if spelling in ENCODED:
            assert re.fullmatch(r"before [\w+/-]{0,12}\*\*\*[\w+/=-]{0,4} after", hidden)
        else:
            assert hidden == "before *** after"
    assert make_redactor(None)(text) == text


@pytest.fixture
def key(seed: int) -> str:
    return make_key(random.Random(seed))


@pytest.fixture
def proxy(rest: RestQdrant, seed: int) -> Iterator[FaultyProxy]:
    server = FaultyProxy(rest.url, seed)
    yield server
    server.close()


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xqg_qdrant.stores.server.requests.PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr("xqg_qdrant.stores.server.requests.FIRST_PATIENCE_SECONDS", 0.0)


def make_point(dim: int) -> AugmentedPassage:
    vectors = dict.fromkeys(("xqg", "passage"), np.ones(dim, np.float32))
    return AugmentedPassage(Passage("a", "text"), (), vectors, "hash", "recipe")


def load(store: Store, collection: str) -> None:
    with store.bulk_load(collection, fast=True):
        store.upsert(collection, [make_point(8)])


Call: TypeAlias = Callable[[Store], object]
CALLS: list[Call] = [
    lambda store: store.collections(),
    lambda store: store.create_collection("new", 8, {}),
    lambda store: store.read_fingerprint("docs"),
    lambda store: store.write_fingerprint("docs", {"recipe.alpha": 0.5}),
    lambda store: store.read_content_hashes("docs", ["a"]),
    lambda store: store.upsert("docs", [make_point(8)]),
    lambda store: load(store, "empty"),
    lambda store: store.search("docs", np.ones((1, 8), np.float32), "xqg", 3),
    lambda store: store.read_points("docs", ["a"]),
    lambda store: list(store.scroll("docs")),
    lambda store: list(store.scroll_stored("docs")),
    lambda store: store.delete("docs", ["b"]),
    lambda store: store.count("docs"),
    lambda store: store.count("unknown"),
    lambda store: list(store.optimise("docs")),
    lambda store: store.quantise("docs"),
]


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and all that it was raised from or during."""
    yield error
    for other in (error.__cause__, error.__context__):
        if other is not None:
            yield from chain_of(other)


@pytest.mark.usefixtures("no_patience")
def test_no_exception_holds_the_key_anywhere(seed: int, rest: RestQdrant, proxy: FaultyProxy) -> None:
    maker = open_store(rest.url)
    for name in ("docs", "empty"):
        maker.create_collection(name, 8, {"recipe.alpha": 0.01})
    maker.upsert("docs", [make_point(8)])
    maker.close()
    chance = random.Random(f"library {seed}")
    checked = 0
    while checked < LIBRARY_CASES:
        key = make_key(chance)
        store = open_store(proxy.url, key)
        proxy.plan = {proxy.requests + chance.randrange(4): make_fault(key, chance)}
        assert_silent(repr(store) + repr(getattr(store, "_client", "")), key)
        try:
            chance.choice(CALLS)(store)
        except StoreError as error:
            checked += 1
            assert_silent("".join(traceback.format_exception(error)), key)
            for link in chain_of(error):
                assert isinstance(link, StoreError)
                assert_silent(f"{link} {link!r} {link.args} {vars(link)}", key)
        store.close()
        if "new" in rest.settings:
            rest.client.delete_collection("new")
            del rest.settings["new"]


@pytest.mark.usefixtures("no_patience")
def test_what_a_server_calls_its_collections_and_its_version_does_not_show_the_key(
    key: str, rest: RestQdrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = models.CollectionsResponse(collections=[models.CollectionDescription(name=key)])
    monkeypatch.setattr(rest.client, "get_collections", lambda: named)
    rest.version = key
    store = open_store(rest.url, key)
    for call in (store.count, lambda name: store.create_collection(name, 8, {})):
        with pytest.raises(StoreError, match=r"which has: \*\*\*|of an unknown version|is Qdrant \d") as caught:
            call("unknown")
        assert_silent("".join(traceback.format_exception(caught.value)), key)
    store.close()


def xqg(key: str, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["-v", *map(str, arguments)], env={"QDRANT_API_KEY": key})


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_encoder: Encoder) -> Path:
    monkeypatch.chdir(tmp_path)
    for module in ("ingest", "retrieval"):
        monkeypatch.setattr(f"xqg_qdrant.cli.{module}.load_encoder", lambda *_: demo_encoder)
    path = tmp_path / "corpus.jsonl"
    rows = [{"id": "a", "text": "The Danube rises in Donaueschingen.", "generated_queries": ["Missä Tonava alkaa?"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"id": "b"}\n')
    return path


def assert_nothing_written_holds(key: str, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert_silent(path.read_text(encoding="utf-8"), key)


@pytest.mark.usefixtures("no_patience")
def test_no_output_of_a_command_holds_the_key(
    seed: int, rest: RestQdrant, proxy: FaultyProxy, corpus: Path, tmp_path: Path
) -> None:
    at = ("--collection", "docs", "--store", proxy.url)
    commands: list[tuple[object, ...]] = [
        ("query", "Missä Tonava alkaa?", "--json", *at),
        ("ingest", corpus, "--queries", "corpus", *at),
        ("status", "--json", *at),
        ("optimise", *at),
        ("delete", "b", "--yes", *at),
    ]
    chance = random.Random(f"commands {seed}")
    key = make_key(chance)
    # Without any fault first: what succeeds must not show the key either.
    for command, exit_code in zip([commands[1], *commands[::2]], (3, 0, 0, 0), strict=True):
        result = xqg(key, *command)
        assert result.exit_code == exit_code, result.output
        assert_silent(result.output, key)
    checked = 0
    while checked < COMMAND_CASES:
        key = make_key(chance)
        proxy.plan = {proxy.requests + chance.randrange(8): make_fault(key, chance)}
        result = xqg(key, *chance.choice(commands))
        checked += result.exit_code in (2, 5)  # 2 where the answer is that there is no such collection
        assert result.exit_code in (0, 2, 3, 4, 5), result.output
        assert_silent(result.output, key)
    assert_nothing_written_holds(key, tmp_path)


@pytest.mark.parametrize(
    "location",
    [
        "http://user:{}@host:6333",
        "http://{}@host:6333",
        "https://host:6333?api_key={}",
        "https://host:6333/#{}",
        "HTTP://user:{}@host:6333",
        "htp://user:{}@host:6333",
        "qdrant://user:{}@host",
        "user:{}@host:6333",
        "http://user:{}",
        "http://[{}]:6333",
    ],
)
def test_a_key_in_the_place_of_a_url_is_not_shown(seed: int, location: str, corpus: Path) -> None:
    del seed
    key = "sk-" + "".join(random.Random(location).choices(string.ascii_letters, k=40))
    with pytest.raises(InputError) as caught:
        open_store(location.format(key))
    for link in chain_of(caught.value):
        assert_silent(f"{link} {link!r} {link.args} {vars(link)}", key)
    for variable in ("XQG_STORE", "QDRANT_URL"):
        command = ["-v", "ingest", str(corpus), "--queries", "corpus", "--collection", "docs"]
        result = CliRunner().invoke(main, command, env={variable: location.format(key)})
        assert result.exit_code == 2
        assert_silent(result.output, key)


def test_a_key_given_as_an_argument_is_refused_and_not_repeated(key: str) -> None:
    for given in (["--api-key", key], [f"--api-key={key}"]):
        result = CliRunner().invoke(main, ["-v", "optimise", "--collection", "docs", *given])
        assert result.exit_code == 2
        assert_silent(result.output, key)


def test_no_library_logs_the_key(rest: RestQdrant, key: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        store = open_store(rest.url, key)
        store.create_collection("docs", 8, {})
        store.upsert("docs", [make_point(8)])
        store.close()
    assert caplog.records
    assert_silent(caplog.text, key)


URLS = (
    "s3://AKIAEXAMPLE:{}@bucket/corpus.jsonl",
    "s3://AKIAEXAMPLE:{}/more@bucket/corpus.jsonl",
    "gs://{}@bucket/corpus.jsonl",
    "abfs://container:{}@account/corpus.jsonl",
    "https://host/file?X-Signature={}",
)


@pytest.mark.parametrize("url", URLS)
def test_a_secret_in_the_url_of_any_file_is_refused_and_nothing_is_written(
    url: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "Super" + "".join(char for char in key if char.isalnum())
    monkeypatch.chdir(tmp_path)
    at = ("--collection", "docs", "--store", "s")
    given = url.format(key)
    for command in (
        ("ingest", given, *at),
        ("ingest", "c.jsonl", "--queries", given, *at),
        ("sync", given, *at),
        ("status", "--corpus", given, *at),
        ("generate", given, "--out", "out"),
        ("pilot", given, "--save", "saved"),
        ("evaluate", "--questions", given, *at),
        ("evaluate", "--questions", "q", "--qrels", given, *at),
        ("score", "--run", f"name={given}", "--questions", "q"),
        ("query", "a", "--encoder", given, *at),
        ("describe", given, "--model", "m", "--out", "out"),
    ):
        result = CliRunner().invoke(main, ["-v", *command])
        assert result.exit_code == 2, result.output
        assert "holds a user name, a password or a key" in result.output, (command, result.output)
        assert_silent(result.output, key)
        assert list(tmp_path.iterdir()) == []


def test_a_key_of_the_environment_gets_into_no_description(key: str, tmp_path: Path) -> None:
    """Neither as a part of the URL nor in a field: the description is a file that people pass on."""
    key = "Super" + "".join(char for char in key if char.isalnum())
    out = ("--model", "m", "--out", str(tmp_path / "out"))
    for command in (
        (f"http://localhost:1/{key}/v1", *out),
        ("http://localhost:1/v1", *out, "--passage-fields", json.dumps({"auth": key})),
    ):
        result = CliRunner().invoke(main, ["-v", "describe", *command], env={"XQG_EMBEDDING_API_KEY": key})
        assert result.exit_code == 2, result.output
        assert_silent(result.output, key)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["s3://bucket/a@b.jsonl", "abfs://container@account.dfs.core.windows.net/c.jsonl"])
def test_a_url_without_a_secret_is_not_refused(url: str) -> None:
    assert not holds_secret(url)


@pytest.mark.parametrize("password", ["pass/word-of-many", "pass@word#of?many", "plain-password", "pass%2Fword-many"])
def test_a_proxy_gets_no_key_of_a_server_on_this_machine_and_its_password_is_not_shown(
    password: str, rest: RestQdrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://user:{password}@127.0.0.1:1")
    result = CliRunner().invoke(main, ["-v", "status", "--store", rest.url], env={"QDRANT_API_KEY": "sk-1234567890"})
    refused = any(char in password for char in "/@#?")
    assert result.exit_code == (2 if refused else 0), result.output
    assert ("write / in a password as %2F" in result.output) == refused
    for part in ("word", "many"):
        assert part not in result.output.replace("in a password as", "")


def test_whatever_is_printed_or_written_holds_no_key_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    secrets = {
        "QDRANT_API_KEY": "qd-12345678",
        "XQG_LLM_API_KEY": "sk-abcdefgh",
        "AWS_SECRET_ACCESS_KEY": "aws/+secret",
    }
    for secret in secrets.values():
        Path("c.jsonl").write_text(json.dumps({"id": "a", "txt": f"no text but {secret}"}) + "\n")
        line = ["-v", "ingest", "c.jsonl", "--collection", "docs", "--store", "s", "--queries", "corpus"]
        result = CliRunner().invoke(main, line, env=secrets)
        assert result.exit_code == 3, result.output
        assert "no text but ***" in Path("docs.rejected.jsonl").read_text()
        result = CliRunner().invoke(main, ["-v", "status", "--store", f"nowhere:{secret}"], env=secrets)
        assert result.exit_code == 2
        assert secret not in result.output


def test_the_command_in_a_manifest_holds_no_key_of_an_endpoints_url_however_short() -> None:
    """Shorter than `SHORTEST`, it is not hidden by its spelling."""

    @click.command()
    @click.option("--generator")
    @click.option("--questions")
    def command(**_: object) -> None:
        click.echo(shlex.join(given_command()))

    url = "http://localhost/v1?api-version=2&code="
    line = ["--generator", f"{url}abc123", "--questions", "ir_datasets:a?b"]
    printed = CliRunner().invoke(command, line, prog_name="xqg command").stdout
    assert shlex.split(printed)[2:] == ["--generator", f"{url}***", "--questions", "ir_datasets:a?b"]
