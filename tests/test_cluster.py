"""What a server's collections promise as a whole: shards and replicas, aliases, snapshots.

`rest` is the server of `rest_qdrant`, which keeps its nodes, aliases and snapshots as Qdrant does; `server` is a real
one, where QDRANT_URL names it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result
from qdrant_client import QdrantClient, models
from real_server import real_server
from rest_qdrant import Json, RestQdrant, ServerError

from xqg_qdrant import doctor
from xqg_qdrant.cli import main
from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.errors import InputError, MismatchError, StoreError
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.pages.search import Finder
from xqg_qdrant.printing import format_check, format_snapshot
from xqg_qdrant.stores import Sharding, open_store
from xqg_qdrant.stores.protocol import Snapshot
from xqg_qdrant.stores.server import client as client_module

DIM = 8
FINGERPRINT = {"recipe.alpha": 0.01}


class Server:
    """A server, with names for collections that nobody else uses."""

    def __init__(self, url: str, prefix: str, rest: RestQdrant | None = None) -> None:
        self.url, self.prefix, self.rest = url, prefix, rest
        key = os.environ.get("QDRANT_API_KEY") if rest is None else None
        self.client = QdrantClient(url=url, api_key=key, check_compatibility=False)

    def name(self, suffix: str) -> str:
        return f"{self.prefix}{suffix}"

    def xqg(self, *arguments: object) -> Result:
        """Run a command on this server; words that begin with @ are names."""
        words = [self.name(word[1:]) if (word := str(argument)).startswith("@") else word for argument in arguments]
        return CliRunner().invoke(main, [*words, "--store", self.url])

    def ingest(self, suffix: str, rows: range, *options: object) -> Result:
        """Ingest passages of the demo corpus with two given queries each, which are those of the row's number."""
        lines = [row(number) for number in rows]
        Path("corpus.jsonl").write_text("\n".join(lines))
        return self.xqg("ingest", "corpus.jsonl", "--collection", f"@{suffix}", "--queries", "corpus", *options)

    def aliases(self) -> dict[str, str]:
        named = {one.alias_name: one.collection_name for one in self.client.get_aliases().aliases}
        return {alias: name for alias, name in named.items() if alias.startswith(self.prefix)}

    def snapshots(self, suffix: str) -> list[str]:
        return [snapshot.name for snapshot in self.client.list_snapshots(self.name(suffix))]

    def close(self) -> None:
        if self.rest:
            self.client.close()
            self.rest.close()
            return
        for description in self.client.get_collections().collections:
            if description.name.startswith(self.prefix):
                self.client.delete_collection(description.name)
        self.client.close()


def row(number: int) -> str:
    passage = read_demo_passages()[number]
    queries = [{"language": "fi", "text": f"{passage.title}?"}, {"language": "fi", "text": f"Mikä on {passage.title}?"}]
    text = " ".join(passage.text.split()[:12])
    return json.dumps({"id": f"p{number}", "title": passage.title, "text": text, "generated_queries": queries})


@pytest.fixture(params=["rest", pytest.param("server", marks=pytest.mark.server)])
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    if request.param == "rest":
        rest = RestQdrant()
        opened = Server(rest.url, "", rest)
    else:
        real = real_server(request)
        if real.api_key:
            monkeypatch.setenv("QDRANT_API_KEY", real.api_key)
        opened = Server(real.url, real.prefix)
    yield opened
    opened.close()


# What a real server cannot be made to do: have more nodes, fail, be slow.
SCRIPTED = pytest.mark.parametrize("server", ["rest"], indirect=True)


@pytest.fixture
def rest(server: Server) -> RestQdrant:
    """The server of a scripted test."""
    assert server.rest
    return server.rest


@pytest.fixture(autouse=True)
def one_encoder(demo_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open the encoder once for all commands."""
    for module in ("ingest", "collections", "retrieval"):
        monkeypatch.setattr(f"xqg_qdrant.cli.{module}.load_encoder", lambda *_: demo_encoder)


# --- shards and replicas


def test_a_collection_is_created_with_the_shards_that_are_asked_for(server: Server) -> None:
    done = server.ingest("docs", range(2), "--shard-number", 3, "--write-consistency-factor", 1)
    assert done.exit_code == 0, done.output
    params = server.client.get_collection(server.name("docs")).config.params
    assert (params.shard_number, params.replication_factor, params.write_consistency_factor) == (3, 1, 1)
    again = server.ingest("docs", range(3), "--shard-number", 3)
    assert "1 passage stored, 2 unchanged" in again.stderr


@SCRIPTED
def test_a_cluster_keeps_as_many_replicas_as_are_asked_for(rest: RestQdrant) -> None:
    rest.nodes = 3
    with open_store(rest.url, sharding=Sharding(6, 2, 2)) as store:
        store.create_collection("docs", DIM, FINGERPRINT)
    params = rest.describe("docs").config.params
    assert (params.shard_number, params.replication_factor, params.write_consistency_factor) == (6, 2, 2)


@SCRIPTED
def test_what_is_not_asked_for_is_the_servers(rest: RestQdrant, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[Json] = []
    create = rest.create

    def remember(name: str, body: Json) -> bool:
        bodies.append(body)
        return create(name, body)

    monkeypatch.setattr(rest, "create", remember)
    with open_store(rest.url) as store:
        store.create_collection("docs", DIM, FINGERPRINT)
    [body] = bodies
    assert {body.get(name) for name in Sharding._fields} == {None}


@SCRIPTED
def test_more_replicas_than_nodes_are_refused_before_anything_is_made(rest: RestQdrant) -> None:
    for nodes in (1, 2):
        rest.nodes = nodes
        with open_store(rest.url, sharding=Sharding(replication_factor=3)) as store:
            with pytest.raises(InputError, match=rf"3 replicas need as many nodes, and http\S+ has {nodes}\. Cure: "):
                store.create_collection("docs", DIM, FINGERPRINT)
            assert store.collections() == []


def test_a_collection_that_is_spread_otherwise_is_refused_with_both_values(server: Server) -> None:
    assert server.ingest("docs", range(2), "--shard-number", 2).exit_code == 0
    refused = server.ingest("docs", range(4), "--shard-number", 3, "--write-consistency-factor", 2)
    assert refused.exit_code == MismatchError.exit_code
    differences = "has shard_number 2, not 3, write_consistency_factor 1, not 2. Nothing was changed.\n"
    assert differences + "Cure: leave these options out" in refused.stderr
    assert server.client.count(server.name("docs")).count == 2


@pytest.mark.parametrize("location", ["edge:here", "here", "local:here", ":memory:"])
@pytest.mark.parametrize("option", ["--shard-number", "--replication-factor", "--write-consistency-factor"])
def test_only_a_server_has_shards(location: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpus.jsonl").write_text(row(0))
    words = ["ingest", "corpus.jsonl", "--collection", "docs", "--store", location, option, "2"]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == InputError.exit_code
    assert f"only a server has shards and replicas ({location!r}).\nCure: " in refused.stderr
    assert os.listdir() == ["corpus.jsonl"]


def test_a_copy_is_spread_as_asked_for(server: Server) -> None:
    Path("corpus.jsonl").write_text("\n".join(map(row, range(3))))
    words = ["ingest", "corpus.jsonl", "--collection", "docs", "--queries", "corpus", "--store", "here"]
    assert CliRunner().invoke(main, words).exit_code == 0
    words = ["copy", "--collection", "docs", "--from", "here", "--to", server.url, "--as", server.name("docs")]
    done = CliRunner().invoke(main, [*words, "--shard-number", "2"])
    assert done.exit_code == 0, done.output
    assert server.client.get_collection(server.name("docs")).config.params.shard_number == 2
    refused = CliRunner().invoke(main, [*words, "--shard-number", "3"])
    assert refused.exit_code == MismatchError.exit_code
    assert "has shard_number 2, not 3" in refused.stderr


# --- indexing that a killed load left paused


@SCRIPTED
def test_indexing_that_is_paused_is_told_with_the_cure_until_it_goes_on(
    rest: RestQdrant, server: Server, demo_encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    assert server.ingest("docs", range(2)).exit_code == 0
    told = "collection 'docs' is not being indexed: an ingest or a copy into it is running, or was killed"
    cure = "if none is running: xqg optimise --collection docs"

    def ask() -> list[str]:
        outputs = [server.xqg("status"), server.xqg("status", "--collection", "docs")]
        outputs.append(server.xqg("query", "--collection", "docs", "Mikä?"))
        caplog.clear()
        with open_store(rest.url) as store:
            Finder(store, "docs", demo_encoder)
            _, check = doctor._use_store(lambda: open_store(rest.url))
        shown = [result.output for result in outputs] + [format_check(check), caplog.text]
        as_json = (server.xqg("status", "--json"), server.xqg("status", "--collection", "docs", "--json"))
        return shown + [str(json.loads(result.stdout)["indexing_paused"]) for result in as_json]

    assert not any(told in shown for shown in ask())
    # What is left after a kill.
    rest.client.update_collection("docs", metadata={"xqg_bulk_load": {"indexing_threshold": 10_000}})
    rest.settings["docs"].indexing_threshold = 0
    *shown, listed, one = ask()
    assert [(text.count(told), text.count(cure)) for text in shown] == [(1, 1)] * 5
    assert (listed, one) == ("['docs']", "True")
    assert server.xqg("optimise", "--collection", "docs").exit_code == 0
    assert not any(told in shown for shown in ask())


# --- aliases


def test_searches_by_an_alias_go_over_when_the_new_collection_is_complete(server: Server) -> None:
    first = server.ingest("blue", range(3), "--alias", "@docs")
    assert first.exit_code == 0, first.output
    blue, green, alias = (server.name(suffix) for suffix in ("blue", "green", "docs"))
    assert f"Alias {alias!r} now names {blue!r} (3 passages)." in first.stderr
    question = read_demo_passages()[4].title
    before = json.loads(server.xqg("query", "--collection", "@docs", "--json", question).stdout)
    assert {hit["passage_id"] for hit in before["hits"]} == {"p0", "p1", "p2"}

    second = server.ingest("green", range(3, 5), "--alias", "@docs")
    assert f"Alias {alias!r} now names {green!r} (2 passages); before it named {blue!r} (3 passages)." in second.stderr
    after = json.loads(server.xqg("query", "--collection", "@docs", "--json", question).stdout)
    assert [hit["passage_id"] for hit in after["hits"]] == ["p4", "p3"]
    assert server.aliases() == {alias: green}

    unchanged = server.ingest("green", range(3, 5), "--alias", "@docs")
    assert (unchanged.exit_code, "Alias" in unchanged.stderr) == (0, False)


@SCRIPTED
def test_an_alias_is_switched_by_the_last_request_of_an_ingest_and_by_that_alone(
    rest: RestQdrant, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.ingest("blue", range(1), "--alias", "docs")
    changes: list[Json] = []
    change = rest.change_aliases

    def remember(actions: list[Json]) -> bool:
        changes.append(actions)
        return change(actions)

    monkeypatch.setattr(rest, "change_aliases", remember)
    server.ingest("green", range(1), "--alias", "docs")
    deleted, created = {"alias_name": "docs"}, {"alias_name": "docs", "collection_name": "green"}
    assert changes == [[{"delete_alias": deleted}, {"create_alias": created}]]
    assert rest.requests[-1][:2] == ("POST", "/collections/aliases")


@SCRIPTED
def test_an_alias_is_switched_although_the_answer_is_lost(rest: RestQdrant, server: Server) -> None:
    server.ingest("blue", range(1), "--alias", "docs")
    server.ingest("green", range(1))
    with open_store(rest.url) as store:
        rest.lose_answers = 1
        store.switch_alias("docs", "green")
    assert server.aliases() == {"docs": "green"}


def test_an_alias_stands_for_its_collection_wherever_one_is_named(server: Server) -> None:
    server.ingest("blue", range(3), "--alias", "@docs")
    blue, alias = server.name("blue"), server.name("docs")
    told = server.xqg("status", "--collection", "@docs")
    lines = told.stdout.splitlines()
    assert lines[0] == f"collection {alias!r} in {server.url}: 3 passages"
    assert f"  alias {alias!r} names {blue!r}" in lines
    assert f"  alias {alias!r} names {blue!r}" in server.xqg("status", "--collection", "@blue").stdout
    assert json.loads(server.xqg("status", "--collection", "@docs", "--json").stdout)["aliases"] == {alias: blue}
    listed = server.xqg("status").stdout.splitlines()
    assert {f"  {blue}: 3 passages", f"  {alias}: alias of {blue}"} <= set(listed)

    Path("corpus.jsonl").write_text("\n".join(map(row, range(1, 4))))
    synced = server.xqg("sync", "corpus.jsonl", "--collection", "@docs", "--queries", "corpus", "--delete")
    assert synced.exit_code == 0, synced.output
    assert synced.stdout.endswith("1 passage deleted\n")
    assert server.xqg("retune", "--collection", "@docs", "--alpha", "0.3", "--fusion", "mean").exit_code == 0
    assert server.xqg("delete", "p1", "--collection", "@docs").stdout.startswith("1 passage deleted")
    words = ["copy", "--collection", alias, "--from", server.url, "--to", "there", "--as", "docs"]
    copied = CliRunner().invoke(main, words)
    assert copied.exit_code == 0, copied.output
    with open_store("there") as store:
        assert {stored.passage_id for stored in store.scroll_stored("docs")} == {"p2", "p3"}
        assert (store.read_fingerprint("docs") or {})["recipe.alpha"] == 0.3
    assert server.aliases() == {alias: blue}


def test_an_ingest_into_an_alias_adds_to_the_collection_that_it_names(server: Server) -> None:
    server.ingest("blue", range(3), "--alias", "@docs")
    added = server.ingest("docs", range(5))
    assert "2 passages stored, 3 unchanged" in added.stderr
    assert server.client.count(server.name("blue")).count == 5
    other = server.ingest("docs", range(5), "--alpha", "0.5")
    assert other.exit_code == MismatchError.exit_code


@SCRIPTED
def test_an_ingest_that_fails_leaves_the_alias_where_it_is(
    rest: RestQdrant, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.ingest("blue", range(3), "--alias", "docs")
    respond = rest.respond

    def refuse(method: str, path: str, body: Json) -> Json:
        if path == "/collections/green/points" and method == "PUT":
            raise ValueError("no")
        return respond(method, path, body)

    monkeypatch.setattr(rest, "respond", refuse)
    failed = server.ingest("green", range(5), "--alias", "docs")
    assert failed.exit_code == StoreError.exit_code
    assert server.aliases() == {"docs": "blue"}


@SCRIPTED
@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"search_allow_exact": False}, "search_allow_exact to false."),
        ({"max_query_limit": 5}, "max_query_limit to 5."),
    ],
)
def test_where_recall_cannot_be_measured_that_is_said_and_the_alias_moves(
    rest: RestQdrant, server: Server, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr("xqg_qdrant.stores.server.load.POLL_SECONDS", 0.001)
    rest.strict_mode = models.StrictModeConfigOutput(enabled=True, **limits)
    with monkeypatch.context() as large:
        large.setattr("xqg_qdrant.cli.progress.run_optimise", lambda *_: True)  # as after 50,000 passages
        done = server.ingest("green", range(2), "--alias", "docs")
    assert done.exit_code == 0, done.output
    assert "The recall cannot be measured: collection 'green' in http://127.0.0.1:" in done.stderr
    assert server.aliases() == {"docs": "green"}
    optimised = server.xqg("optimise", "--collection", "docs")
    assert optimised.exit_code == 0, optimised.output
    assert optimised.stdout.startswith("The recall cannot be measured: ")
    assert optimised.stdout.rstrip().endswith(reason)


def test_rejected_rows_do_not_keep_an_alias_back_but_an_empty_collection_does(server: Server) -> None:
    server.ingest("blue", range(3), "--alias", "@docs")
    Path("bad.jsonl").write_text("{\n")
    nothing = server.xqg("ingest", "bad.jsonl", "--collection", "@green", "--queries", "corpus", "--alias", "@docs")
    assert nothing.exit_code == 3
    assert "0 passages stored" in nothing.stderr
    assert server.aliases() == {server.name("docs"): server.name("blue")}

    Path("bad.jsonl").write_text(row(0) + "\n{\n")
    some = server.xqg("ingest", "bad.jsonl", "--collection", "@green", "--queries", "corpus", "--alias", "@docs")
    assert some.exit_code == 3
    assert server.aliases() == {server.name("docs"): server.name("green")}


def test_a_name_that_is_taken_cannot_be_an_alias(server: Server) -> None:
    server.ingest("blue", range(1), "--alias", "@docs")
    server.ingest("other", range(1))
    for collection, alias, message in (
        ("green", "@other", f"{server.name('other')!r} is the name of a collection in "),
        ("green", "@green", f"{server.name('green')!r} is the name of a collection in "),
        (
            "docs",
            "@new",
            f"{server.name('docs')!r} in {server.url} is itself an alias, of {server.name('blue')!r}.\nCure: ",
        ),
    ):
        refused = server.ingest(collection, range(2), "--alias", alias)
        assert refused.exit_code == InputError.exit_code, refused.output
        assert message in refused.stderr
    refused = server.ingest("green", range(2), "--alias", "a/b")
    assert refused.exit_code == StoreError.exit_code
    assert "contains '/'" in refused.stderr
    assert server.aliases() == {server.name("docs"): server.name("blue")}
    assert server.name("green") not in [one.name for one in server.client.get_collections().collections]


def test_the_embedded_engine_has_no_aliases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpus.jsonl").write_text(row(0))
    words = ["ingest", "corpus.jsonl", "--collection", "docs", "--queries", "corpus", "--alias", "live"]
    refused = CliRunner().invoke(main, [*words, "--store", "here"])
    assert refused.exit_code == InputError.exit_code
    assert "edge:here has no aliases.\nCure: leave out --alias, or use a Qdrant server" in refused.stderr
    assert not Path("here").exists()
    with open_store("here") as store, pytest.raises(StoreError, match="'live' cannot name 'docs'"):
        store.switch_alias("live", "docs")


def test_the_local_mode_has_aliases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpus.jsonl").write_text(row(0))
    words = ["ingest", "corpus.jsonl", "--collection", "docs", "--queries", "corpus", "--alias", "live"]
    done = CliRunner().invoke(main, [*words, "--store", "local:here"])
    assert done.exit_code == 0, done.output
    listed = CliRunner().invoke(main, ["status", "--store", "local:here"]).stdout
    assert listed.endswith("  docs: 1 passage\n  live: alias of docs\n")


def test_a_collection_is_deleted_by_its_own_name_and_the_aliases_that_go_with_it_are_told(server: Server) -> None:
    server.ingest("blue", range(2), "--alias", "@docs")
    refused = server.xqg("delete", "--collection", "@docs", "--yes", "--no-snapshot")
    assert refused.exit_code == InputError.exit_code
    cure = f"Cure: delete the collection by its own name (--collection {server.name('blue')})."
    assert f"is an alias of collection {server.name('blue')!r}.\n{cure}" in refused.stderr
    assert server.client.count(server.name("blue")).count == 2
    asked = server.xqg("delete", "--collection", "@blue")
    assert f"with its 2 passages, to which alias {server.name('docs')!r} leads? Give --yes" in asked.stderr
    assert server.xqg("delete", "--collection", "@blue", "--yes").exit_code == 0
    assert server.aliases() == {}


# --- snapshots


DROPPING = {
    "delete some": ("delete", "p0", "p1"),
    "delete all": ("delete", "--yes"),
    "sync": ("sync", "less.jsonl", "--queries", "corpus", "--delete"),
}


def test_before_something_is_dropped_a_snapshot_is_taken_that_brings_all_of_it_back(server: Server) -> None:
    alias = ("--alias", "@docs")
    for number, words in enumerate(DROPPING.values()):
        collection = f"blue {number}"
        assert server.ingest(collection, range(3), *alias).exit_code == 0
        Path("less.jsonl").write_text(row(2))
        with open_store(server.url, os.environ.get("QDRANT_API_KEY")) as store:
            kept = {point.passage.passage_id: point for point in store.scroll(server.name(collection))}
            fingerprint = store.read_fingerprint(server.name(collection))
        # An alias serves as well, but not to delete the whole.
        named = f"@{collection}" if "--yes" in words else "@docs"
        done = server.xqg(*words, "--collection", named)
        assert done.exit_code == 0, done.output
        run_restoring(done.stderr)
        with open_store(server.url, os.environ.get("QDRANT_API_KEY")) as store:
            restored = server.name(f"{collection}-restored")
            assert store.read_fingerprint(restored) == fingerprint
            back = {point.passage.passage_id: point for point in store.scroll(restored)}
        assert back.keys() == kept.keys() == {"p0", "p1", "p2"}
        for name, point in back.items():
            assert (point.passage, point.content_hash) == (kept[name].passage, kept[name].content_hash)
            assert all((point.vectors[vector] == kept[name].vectors[vector]).all() for vector in point.vectors)


def run_restoring(told: str) -> None:
    """Send what the printed command sends."""
    found = re.search(r"^Snapshot \S.*\.snapshot taken\. .*\n  (curl .*)$", told, re.MULTILINE)
    assert found, told
    curl, to_put, method, url, *words = shlex.split(found[1])
    assert (curl, to_put, method) == ("curl", "-X", "PUT")
    options = list(zip(words[0::2], words[1::2], strict=True))
    key = os.environ.get("QDRANT_API_KEY")
    assert [name for name, _ in options] == (["-H", "-d", "-H"] if key else ["-H", "-d"])
    told_key = [value.replace("$QDRANT_API_KEY", key or "") for _, value in options]
    headers = [value.split(": ") for value in (told_key[0], *told_key[2:])]
    httpx.put(url, content=told_key[1], headers=dict(headers), timeout=60).raise_for_status()


@SCRIPTED
def test_a_snapshot_of_a_server_with_a_key_is_restored_with_the_key_that_is_not_shown(
    rest: RestQdrant, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.ingest("blue", range(2))
    rest.api_key = "a-secret's-key"
    monkeypatch.setenv("QDRANT_API_KEY", rest.api_key)
    done = server.xqg("delete", "p0", "--collection", "blue")
    assert done.exit_code == 0, done.output
    assert rest.api_key not in done.output
    run_restoring(done.stderr)
    assert rest.client.count("blue-restored").count == 2


@SCRIPTED
def test_behind_a_mapped_port_a_snapshot_is_restored_from_the_servers_own_address_as_is_told(
    rest: RestQdrant, server: Server
) -> None:
    rest.own_url = "http://localhost:6333"
    server.ingest("blue", range(2))
    told = server.xqg("delete", "p0", "--collection", "blue").stderr
    assert "maps its port, put its own address there, such as http://localhost:6333.\n" in told
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        run_restoring(told)
    run_restoring(told.replace(f'"location": "{rest.url}/', '"location": "http://localhost:6333/'))
    assert rest.client.count("blue-restored").count == 2


def test_a_retune_that_drops_queries_takes_a_snapshot_and_one_that_can_be_taken_back_does_not(server: Server) -> None:
    generated = ("--languages", "fi", "--queries-per-language", 2, "--max-new-tokens", 4, "--threads", 1)
    Path("corpus.jsonl").write_text(json.dumps({"id": "p0", "text": "Lake Baikal is deep."}))
    assert server.xqg("ingest", "corpus.jsonl", "--collection", "@docs", *generated).exit_code == 0
    assert server.xqg("retune", "--collection", "@docs", "--alpha", "0.2", "--yes").exit_code == 0
    assert server.snapshots("docs") == []
    dropped = server.xqg("retune", "--collection", "@docs", "--queries-per-language", "1", "--yes")
    assert dropped.exit_code == 0, dropped.output
    assert "snapshot taken" in dropped.stderr
    assert len(server.snapshots("docs")) == 1


@pytest.mark.parametrize("words", DROPPING.values(), ids=list(DROPPING))
def test_without_a_snapshot_where_that_is_wanted(words: tuple[str, ...], server: Server) -> None:
    server.ingest("docs", range(3))
    Path("less.jsonl").write_text(row(2))
    done = server.xqg(*words, "--collection", "@docs", "--no-snapshot")
    assert done.exit_code == 0, done.output
    assert "napshot" not in done.output
    if words[-1] != "--yes":
        assert server.snapshots("docs") == []


def test_no_snapshot_is_taken_where_nothing_is_dropped(server: Server) -> None:
    server.ingest("docs", range(2))
    Path("same.jsonl").write_text("\n".join(map(row, range(2))))
    Path("damaged.jsonl").write_text(row(0) + "\n{")
    for words in (
        ("delete", "unknown"),
        ("sync", "same.jsonl", "--queries", "corpus", "--delete"),
        ("sync", "damaged.jsonl", "--queries", "corpus", "--delete"),
        ("sync", "damaged.jsonl", "--queries", "corpus", "--delete", "--dry-run"),
        ("sync", "damaged.jsonl", "--queries", "corpus"),
    ):
        assert server.xqg(*words, "--collection", "@docs").exit_code in (0, 3)
    assert server.snapshots("docs") == []


@pytest.mark.parametrize("words", DROPPING.values(), ids=list(DROPPING))
@SCRIPTED
def test_where_no_snapshot_can_be_taken_nothing_is_dropped(
    words: tuple[str, ...], rest: RestQdrant, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.ingest("docs", range(3))
    Path("less.jsonl").write_text(row(2))
    asked = []

    def fail(name: str) -> Json:
        asked.append(name)
        raise ServerError("no space left on device")

    monkeypatch.setattr(rest, "keep_snapshot", fail)
    refused = server.xqg(*words, "--collection", "docs")
    assert refused.exit_code == StoreError.exit_code
    assert "HTTP 500: no space left on device. Nothing was changed.\n" in refused.stderr
    assert "Cure: take one by the server's own means, or continue" in refused.stderr
    assert asked == ["docs"]  # a second request would begin a second snapshot
    assert server.client.count("docs").count == 3


@SCRIPTED
def test_a_snapshot_takes_the_time_that_it_takes(
    rest: RestQdrant, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "REQUEST_SECONDS", 1)
    server.ingest("docs", range(1))
    keep = rest.keep_snapshot

    def keep_slowly(name: str) -> Json:
        time.sleep(1.3)
        return keep(name)

    monkeypatch.setattr(rest, "keep_snapshot", keep_slowly)
    assert server.xqg("delete", "p0", "--collection", "docs").exit_code == 0
    assert len(server.snapshots("docs")) == 1


@SCRIPTED
def test_a_snapshot_of_one_node_is_taken_where_that_has_every_shard(rest: RestQdrant, server: Server) -> None:
    rest.nodes = 3
    server.ingest("whole", range(2), "--shard-number", 2, "--replication-factor", 3)
    assert server.xqg("delete", "p0", "--collection", "whole").exit_code == 0
    server.ingest("part", range(2), "--shard-number", 3, "--replication-factor", 2)
    refused = server.xqg("delete", "p0", "--collection", "part")
    assert refused.exit_code == StoreError.exit_code
    assert f"a snapshot is of one node, and {server.url} holds 2 of the 3 shards of collection 'part'" in refused.stderr
    assert "Cure: take one on every node, as docs/how-to/cluster.md says, and pass --no-snapshot" in refused.stderr
    assert server.client.count("part").count == 2
    assert server.xqg("delete", "p0", "--collection", "part", "--no-snapshot").exit_code == 0
    assert (len(server.snapshots("whole")), server.snapshots("part")) == (1, [])


@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("http://host", "http://host:6333"),
        ("https://host/qdrant/", "https://host:6333/qdrant"),
        ("http://host:7333", "http://host:7333"),
    ],
)
def test_the_command_that_restores_a_snapshot_can_be_pasted(location: str, url: str, has_key: bool) -> None:
    told = format_snapshot(location, Snapshot("a's.snapshot", 'a "b"'), has_key).splitlines()[1]
    words = shlex.split(told)
    assert words[:4] == ["curl", "-X", "PUT", f"{url}/collections/a%20%22b%22-restored/snapshots/recover"]
    body = {"location": f"{url}/collections/a%20%22b%22/snapshots/a%27s.snapshot", "priority": "snapshot"}
    key = {"api_key": "$QDRANT_API_KEY"} if has_key else {}
    assert json.loads(words[words.index("-d") + 1]) == body | key
    assert told.endswith(' -H "api-key: $QDRANT_API_KEY"') == has_key
