"""From a pilot to `--undo` in three commands: what one would bring, the gain where applications search, every bit back.

The collection is that of a program with an encoder behind an endpoint; xqg knows the encoder by its description.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pytest
from click.testing import CliRunner, Result
from qdrant_client import QdrantClient, models
from rest_qdrant import RestQdrant
from scripted_chat import Answer, Call, ScriptedChat, embed, make_vector, said, scripted
from writing import write_rows

from xqg_qdrant.augmentation.own_space import COMPARED
from xqg_qdrant.cli import main
from xqg_qdrant.inference.remote_encoder import describe_endpoint
from xqg_qdrant.text import count_of

Search: TypeAlias = Callable[[str], list[str]]
"""The keys that an application finds for a question, best first."""

POINTS = 40
ASKED = range(1, 9)
FIELDS = ["--text-field", "document", "--id-field", "key"]


def question(number: int) -> str:
    return f"Mikä on joen {number} pituus?"


def answer(call: Call, _: int) -> Answer:
    """Embed texts; as the first question about a river write the one that people ask."""
    if "input" in call.body:
        return embed(call)
    [number] = re.findall(r"river number (\d+) ", call.prompt)
    return said({"fi": [question(int(number)), f"Missä joki {number} on?", f"Kuinka syvä joki {number} on?"]})


@pytest.fixture(scope="module")
def endpoint() -> Iterator[ScriptedChat]:
    with scripted(answer) as running:
        yield running


@pytest.fixture
def theirs(endpoint: ScriptedChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RestQdrant]:
    """A server with the collection; stand beside the description of the encoder, questions and judgements."""
    monkeypatch.chdir(tmp_path)
    describe_endpoint(endpoint.url, Path("encoder"), "e")
    with closing(RestQdrant()) as server:
        server.version = "1.18.0"
        params = models.VectorParams(size=8, distance=models.Distance.COSINE)
        server.client.create_collection("theirs", {"dense": params})
        texts = [f"The river number {number} is long." for number in range(POINTS)]
        points = [
            models.PointStruct(
                id=number, vector={"dense": make_vector(text)}, payload={"key": f"k{number}", "document": text}
            )
            for number, text in enumerate(texts)
        ]
        # Another point of the same key, as of a document in several pieces, and one without text.
        points.append(points[0].model_copy(update={"id": POINTS}))
        points.append(models.PointStruct(id=POINTS + 1, vector={}, payload={"note": "a picture"}))
        server.client.upsert("theirs", points)
        write_rows(
            Path("questions.jsonl"),
            [{"id": f"q{number}", "language": "fi", "text": question(number)} for number in range(POINTS)],
        )
        Path("qrels.tsv").write_text("".join(f"q{number}\tk{number}\t1\n" for number in range(POINTS)))
        yield server


def xqg(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code in (0, 3), result.output
    return result


def read_all(server: RestQdrant) -> dict[Any, models.Record]:
    return {record.id: record for record in server.client.scroll("theirs", limit=1000, with_vectors=True)[0]}


def test_a_pilot_prints_the_command_that_makes_applications_find_more_and_undo_gives_all_back(
    theirs: RestQdrant, endpoint: ScriptedChat
) -> None:
    before = read_all(theirs)
    place = ["--collection", "theirs", "--store", theirs.url]
    source = ["--encoder", "encoder", "--generator", endpoint.url, "--model", "m", "--languages", "fi"]
    asked = ["--questions", "questions.jsonl", "--qrels", "qrels.tsv"]
    tried = xqg("pilot", *place, *FIELDS, "--vector", "dense", *source, *asked)
    assert f"collection 'theirs': {POINTS} passages, 2 rows rejected" in tried.stdout
    assert "the encoder made vector 'dense': cosine 1.0000" in tried.stderr
    assert read_all(theirs) == before
    embedded = {text for call in endpoint.calls for text in call.body.get("input", [])}
    assert len([text for text in embedded if text.startswith("The river")]) <= COMPARED

    searches = [search for make in (plain, langchain, llamaindex) if (search := make(theirs.url)) is not None]
    ranks_before = find_ranks(searches)
    before = read_all(theirs)  # in the emulation of a server a search changes last bits
    command = tried.stdout.split("With this setting: ")[1].splitlines()[0]
    name, *words = shlex.split(command)
    assert (name, words[0]) == ("xqg", "augment")
    augmented = xqg(*words, "--dead-letters", "bad.jsonl")
    assert f"{POINTS + 1} passages stored, 0 unchanged, 1 row rejected" in augmented.stderr
    ranks = find_ranks(searches)
    assert ranks[0] < ranks_before[0] - 2
    assert ranks == [ranks[0]] * len(searches)
    xqg("augment", *place, "--undo", "--yes")
    assert read_all(theirs) == before


def find_ranks(searches: list[Search]) -> list[float]:
    """Return the mean rank of the right point for each application; each finds ten."""
    return [
        sum([*search(question(number)), f"k{number}"].index(f"k{number}") + 1 for number in ASKED) / len(ASKED)
        for search in searches
    ]


def plain(url: str) -> Search:
    client = QdrantClient(url=url, check_compatibility=False)

    def search(text: str) -> list[str]:
        found = client.query_points("theirs", make_vector(text), using="dense", limit=10)
        return [str((point.payload or {})["key"]) for point in found.points]

    return search


def langchain(url: str) -> Search | None:
    """Return the search of LangChain's vector store; None if it is not installed."""
    if find_spec("langchain_qdrant") is None:
        return None
    from langchain_core.embeddings import Embeddings
    from langchain_qdrant import QdrantVectorStore

    class Theirs(Embeddings):
        def embed_query(self, text: str) -> list[float]:
            return make_vector(text)

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [make_vector(text) for text in texts]

    client = QdrantClient(url=url, check_compatibility=False)
    store = QdrantVectorStore(client, "theirs", Theirs(), content_payload_key="document", vector_name="dense")
    return lambda text: [key_of(document.page_content) for document in store.similarity_search(text, k=10)]


def llamaindex(url: str) -> Search | None:
    """Return the search of LlamaIndex's vector store; None if it is not installed."""
    if find_spec("llama_index.vector_stores") is None:
        return None
    from llama_index.core.vector_stores import VectorStoreQuery
    from llama_index.vector_stores.qdrant import QdrantVectorStore

    client = QdrantClient(url=url, check_compatibility=False)
    store = QdrantVectorStore("theirs", client=client, text_key="document", dense_vector_name="dense")

    def search(text: str) -> list[str]:
        found = store.query(VectorStoreQuery(query_embedding=make_vector(text), similarity_top_k=10))
        return [key_of(node.get_content()) for node in found.nodes or []]

    return search


def key_of(text: str) -> str:
    [number] = re.findall(r"river number (\d+) ", text)
    return f"k{number}"


# --- kinds of collections

DENSE = models.VectorParams(size=8, distance=models.Distance.COSINE)
TENANTS = ("a", "b", "c")


class Kind(NamedTuple):
    """A collection of another program: its vectors, the one to augment, and settings of its own."""

    vectors: models.VectorParams | dict[str, models.VectorParams]
    name: str = "dense"
    alias: str = ""
    strict: models.StrictModeConfigOutput | None = None


KINDS = {
    "a named vector": Kind({"dense": DENSE}),
    "the unnamed vector": Kind(DENSE, ""),
    "several vectors": Kind({"dense": DENSE, "other": models.VectorParams(size=3, distance=models.Distance.EUCLID)}),
    "dot product": Kind({"dense": models.VectorParams(size=8, distance=models.Distance.DOT)}),
    "vectors on disk": Kind({"dense": DENSE.model_copy(update={"on_disk": True})}),
    "quantised vectors": Kind(
        {
            "dense": DENSE.model_copy(
                update={
                    "quantization_config": models.ScalarQuantization(
                        scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, always_ram=True)
                    )
                }
            )
        }
    ),
    "an alias": Kind({"dense": DENSE}, alias="current"),
    "strict mode": Kind(
        {"dense": DENSE},
        strict=models.StrictModeConfigOutput(
            enabled=True, max_query_limit=7, upsert_max_batchsize=3, filter_max_conditions=1, condition_max_size=5,
            unindexed_filtering_retrieve=False, unindexed_filtering_update=False, search_allow_exact=False,
        ),
    ),
}  # fmt: skip


def fill(client: QdrantClient, kind: Kind) -> None:
    """Make a collection of a kind whose points belong to tenants; the last one has no text, and one has no vector."""
    client.create_collection("theirs", kind.vectors, metadata={"owner": "them"})
    if kind.alias:
        create = models.CreateAlias(collection_name="theirs", alias_name=kind.alias)
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=create)])
    points = []
    for number in range(12):
        text = f"The river number {number} is long."
        payload = {"key": f"k{number}", "document": text, "tenant": TENANTS[number % 3], "tags": [number]}
        vector: Any = make_vector(text)
        if kind.name:
            vector = {"dense": vector} | ({"other": [1.0, 2.0, 3.0]} if len(dict(kind.vectors)) == 2 else {})
        points.append(models.PointStruct(id=number, vector=vector, payload=payload))
    points[-1].payload = {"note": "a picture", "tenant": "a"}
    if kind.name:
        points[-2].vector = {}
    client.upsert("theirs", points)


def read_vectors(record: models.Record) -> dict[str, Any]:
    return record.vector if isinstance(record.vector, dict) else {"": record.vector}


@pytest.mark.parametrize("replace", [[], ["--replace"]], ids=["added", "replaced"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_any_kind_of_collection_is_augmented_in_place_and_given_back_bit_by_bit(
    kind: Kind, replace: list[str], endpoint: ScriptedChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    describe_endpoint(endpoint.url, Path("encoder"), "e")
    write_rows(Path("queries.jsonl"), [{"id": f"k{n}", "language": "fi", "text": question(n)} for n in range(12)])
    with closing(RestQdrant()) as server:
        server.version = "1.18.0"
        fill(server.client, kind)
        server.settings["theirs"].strict_mode = kind.strict
        before, bare = read_all(server), [11] if kind.name == "" else [10, 11]
        place = ["--collection", kind.alias or "theirs", "--store", server.url, "--dead-letters", "bad.jsonl"]
        how = ["--encoder", "encoder", "--queries", "queries.jsonl", "--no-calibrate", "--overwrite"]
        augment = ["augment", *place, *FIELDS, "--vector", kind.name, *replace, *how]
        first = xqg(*augment)
        assert f"{12 - len(bare)} passages stored, 0 unchanged, {count_of(len(bare), 'row')} rejected" in first.stderr
        after = read_all(server)
        augmented, kept = (kind.name, "passage") if replace else ("xqg", kind.name)
        for number, record in after.items():
            if number in bare:
                assert record == before[number]
                continue
            payload, vectors, old = dict(record.payload or {}), read_vectors(record), read_vectors(before[number])
            [query] = payload.pop("xqg")["generated_queries"]
            assert (query["text"], payload) == (question(number), before[number].payload)
            assert vectors.pop(kept) == old[kind.name]
            expected = 0.6 * np.array(old[kind.name]) + 0.4 * np.array(make_vector(question(number)))
            np.testing.assert_allclose(vectors.pop(augmented), expected / np.linalg.norm(expected), atol=1e-6)
            assert vectors == {name: vector for name, vector in old.items() if name != kind.name}
        assert f"0 passages stored, {12 - len(bare)} unchanged" in xqg(*augment).stderr
        xqg("augment", *place[:-2], "--undo", "--yes")
        assert read_all(server) == before
        info = server.client.get_collection("theirs")
        assert info.config.metadata == {"owner": "them"}
        # A server returns an unnamed vector by a name once the collection has had another.
        assert info.config.params.vectors in (kind.vectors, {kind.name: kind.vectors})
        assert [(each.alias_name, each.collection_name) for each in server.client.get_aliases().aliases] == (
            [(kind.alias, "theirs")] if kind.alias else []
        )


def test_tenants_find_only_their_own_points_in_a_collection_that_was_augmented(
    theirs: RestQdrant, tmp_path: Path
) -> None:
    theirs.client.delete_collection("theirs")
    fill(theirs.client, KINDS["a named vector"])
    place = ["--collection", "theirs", "--store", theirs.url, "--dead-letters", "bad.jsonl"]
    write_rows(Path("queries.jsonl"), [{"id": f"k{n}", "language": "fi", "text": question(n)} for n in range(12)])
    how = ["--encoder", "encoder", "--queries", "queries.jsonl", "--no-calibrate", "--vector", "dense", "--replace"]
    xqg("augment", *place, *FIELDS, *how)
    mine = models.Filter(must=[models.FieldCondition(key="tenant", match=models.MatchValue(value="b"))])
    found = theirs.client.query_points("theirs", make_vector(question(4)), using="dense", query_filter=mine).points
    assert {(point.payload or {})["tenant"] for point in found} == {"b"}
    assert found[0].id == 4


@pytest.mark.parametrize("store", ["local:there", "there"])
def test_an_embedded_collection_is_augmented_by_the_client_and_refused_by_the_engine(
    store: str, endpoint: ScriptedChat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    describe_endpoint(endpoint.url, Path("encoder"), "e")
    write_rows(Path("queries.jsonl"), [{"id": f"k{n}", "language": "fi", "text": question(n)} for n in range(12)])
    with closing(QdrantClient(path="there")) as client:
        fill(client, Kind({"dense": DENSE}))
    place = ["--collection", "theirs", "--store", store, "--dead-letters", "bad.jsonl"]
    how = ["--encoder", "encoder", "--queries", "queries.jsonl", "--no-calibrate", "--vector", "dense", "--replace"]
    result = CliRunner().invoke(main, ["augment", *place, *FIELDS, *how])
    if store == "there":
        assert (result.exit_code, "a server" in result.stderr) == (2, True), result.stderr
        return
    assert "10 passages stored, 0 unchanged, 2 rows rejected" in result.stderr
    xqg("augment", *place[:-2], "--undo", "--yes")
    with closing(QdrantClient(path="there")) as client:
        for record in client.scroll("theirs", limit=100, with_vectors=True)[0][:10]:
            assert set(read_vectors(record)) == {"dense"}
            text = (record.payload or {})["document"]
            np.testing.assert_allclose(read_vectors(record)["dense"], make_vector(text), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["c.jsonl", "--collection", "theirs"], "Give either FILE or --collection."),
        ([], "Give either FILE or --collection."),
        (["--collection", "theirs", "--vector", "dense"], "--collection needs --vector, --text-field and one"),
        (["c.jsonl", "--vector", "dense"], "--vector needs --collection."),
    ],
)
def test_a_pilot_of_a_file_and_one_of_a_collection_take_options_of_their_own(
    arguments: list[str], message: str
) -> None:
    result = CliRunner().invoke(main, ["pilot", *arguments])
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
