"""One suite over every place that can hold a collection, then what is particular to one of them.

`rest` is our client talking HTTP to the server of `rest_qdrant`. `server` is a real one, where QDRANT_URL names it.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import qdrant_edge
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models
from real_server import real_server
from rest_qdrant import Json, RestQdrant, Script, answer, hang

from xqg_qdrant.errors import ForeignCollectionError, InputError, MismatchError, StoreError, XqgError
from xqg_qdrant.records import AugmentedPassage, FloatArray, GeneratedQuery, Passage
from xqg_qdrant.stores import Store, open_store, read_existing_fingerprint, read_target_fingerprint
from xqg_qdrant.stores import points as layout
from xqg_qdrant.stores.edge import store as edge_module
from xqg_qdrant.stores.edge.index import SIDECAR
from xqg_qdrant.stores.server import client as client_module
from xqg_qdrant.stores.server import limits as limits_module
from xqg_qdrant.stores.server import requests as wire_module

DIM = 8
FINGERPRINT = {"encoder.pooling": "mean", "recipe.alpha": 0.01, "recipe.languages": ["ja", "ru"], "recipe.k": None}
SPARSE = {**FINGERPRINT, "recipe.sparse": True}
SECRET = "sk-verysecret-0123456789"


@dataclass
class Place:
    """Somewhere to keep collections, with what a test needs to look behind the store's back."""

    kind: str
    location: str
    collection: str = "passages"
    api_key: str | None = None
    rest: RestQdrant | None = None
    stores: list[Store] = field(default_factory=list)

    def open(self) -> Store:
        store = open_store(self.location, self.api_key)
        self.stores.append(store)
        return store

    def open_with_collection(self) -> Store:
        store = self.open()
        store.create_collection(self.collection, DIM, FINGERPRINT)
        return store

    def open_with_foreign_collection(self) -> Store:
        """Open a store whose collection was made by the engine's own means."""
        if self.kind == "edge":
            vector = qdrant_edge.EdgeVectorParams(size=DIM, distance=qdrant_edge.Distance.Dot)
            directory = Path(self.location.removeprefix("edge:")) / self.collection
            directory.parent.mkdir(parents=True)
            config = qdrant_edge.EdgeConfig(vectors=dict.fromkeys(layout.VECTOR_NAMES, vector))
            qdrant_edge.EdgeShard.create(str(directory), config).close()
            return self.open()
        store = self.open()
        client: QdrantClient = self.rest.client if self.rest else store._client  # type: ignore[attr-defined]
        params = models.VectorParams(size=DIM, distance=models.Distance.DOT)
        client.create_collection(self.collection, dict.fromkeys(layout.VECTOR_NAMES, params))
        return store

    def close(self) -> None:
        for store in self.stores:
            store.close()
        self.stores.clear()
        if self.kind == "server":
            client = QdrantClient(url=self.location, api_key=self.api_key, check_compatibility=False)
            client.delete_collection(self.collection)
            client.close()
        if self.rest:
            self.rest.close()


def make_place(kind: str, tmp_path: Path, request: pytest.FixtureRequest | None = None) -> Place:
    if kind == "rest":
        rest = RestQdrant()
        return Place(kind, rest.url, rest=rest)
    if kind == "server":
        assert request
        real = real_server(request)
        return Place(kind, real.url, f"{real.prefix}docs", api_key=real.api_key)
    return Place(kind, ":memory:" if kind == "memory" else f"{kind}:{tmp_path / 'store'}")


SERVER = pytest.param("server", marks=pytest.mark.server)


@pytest.fixture(params=["edge", "memory", "local", "rest", SERVER])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    place = make_place(request.param, tmp_path, request)
    yield place
    place.close()


@pytest.fixture(params=["edge", "local", "rest", SERVER])
def lasting_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    place = make_place(request.param, tmp_path, request)
    yield place
    place.close()


def make_point(passage_id: str, xqg: npt.ArrayLike, **changes: Json) -> AugmentedPassage:
    vector = np.asarray(xqg, dtype=np.float32)
    passage = Passage(passage_id, f"text of {passage_id}", "title", {"year": 1984})
    queries = (GeneratedQuery("ja", "何ですか"), GeneratedQuery("ru", "что это?"))
    vectors = {"xqg": vector, "passage": -vector}
    return replace(AugmentedPassage(passage, queries, vectors, f"hash of {passage_id}", "recipe"), **changes)


def make_random_points(count: int, seed: int = 7) -> list[AugmentedPassage]:
    vectors = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return [make_point(f"passage {index}", vector) for index, vector in enumerate(vectors)]


def assert_same(found: AugmentedPassage, expected: AugmentedPassage) -> None:
    assert replace(found, vectors={}) == replace(expected, vectors={})
    assert set(found.vectors) == {"xqg", "passage"}
    for name, vector in expected.vectors.items():
        assert found.vectors[name].dtype == np.float32
        assert np.array_equal(found.vectors[name], vector)


def rank_with_numpy(points: Sequence[AugmentedPassage], name: str, query: FloatArray) -> list[tuple[float, str]]:
    scores = [float(point.vectors[name].astype(np.float64) @ query.astype(np.float64)) for point in points]
    ranked = zip(scores, [point.passage.passage_id for point in points], strict=True)
    return sorted(ranked, key=lambda pair: (-pair[0], pair[1]))


# --- every place alike


def test_points_come_back_as_they_were_stored(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (edge_module, limits_module):
        monkeypatch.setattr(module, "UPSERT_BATCH", 16)
    for module in (edge_module, client_module):
        monkeypatch.setattr(module, "SCROLL_BATCH", 16)
    store = place.open_with_collection()
    points = make_random_points(33)
    store.upsert(place.collection, points)
    found = {point.passage.passage_id: point for point in store.scroll(place.collection)}
    assert store.count(place.collection) == len(found) == 33
    for point in points:
        assert_same(found[point.passage.passage_id], point)


@pytest.mark.parametrize("exact", [False, True])
def test_search_orders_as_a_float64_dot_product_does(place: Place, exact: bool) -> None:
    store = place.open_with_collection()
    points = make_random_points(24)
    store.upsert(place.collection, points)
    queries = np.random.default_rng(8).standard_normal((40, DIM)).astype(np.float32)
    for name in ("xqg", "passage"):
        found = store.search(place.collection, queries, name, 10, exact)
        assert len(found) == 40
        for hits, query in zip(found, queries, strict=True):
            expected = rank_with_numpy(points, name, query)[:10]
            assert [hit.passage.passage_id for hit in hits] == [passage_id for _, passage_id in expected]
            assert np.allclose([hit.score for hit in hits], [score for score, _ in expected], atol=1e-5)


def make_sparse_points() -> list[AugmentedPassage]:
    terms = {"a": (1, 7, 2**32 - 1), "b": (2**32 - 1,), "c": (1, 3), "d": (5,)}
    return [make_point(name, np.full(DIM, place + 1.0), terms=ids) for place, (name, ids) in enumerate(terms.items())]


def test_terms_come_back_as_they_were_stored(place: Place) -> None:
    store = place.open()
    store.create_collection(place.collection, DIM, SPARSE)
    points = [*make_sparse_points(), make_point("none", np.ones(DIM), terms=())]
    store.upsert(place.collection, points)
    scrolled = {point.passage.passage_id: point for point in store.scroll(place.collection)}
    read = store.read_points(place.collection, ["none", "a", "b", "c", "d"])
    for point in points:
        assert_same(scrolled[point.passage.passage_id], point)
        assert_same(read[point.passage.passage_id], point)
    changed = replace(points[0], terms=(4,))
    store.upsert(place.collection, [changed])
    assert_same(store.read_points(place.collection, ["a"])["a"], changed)


def test_a_search_for_terms_adds_up_how_rare_the_shared_ones_are(place: Place) -> None:
    store = place.open()
    store.create_collection(place.collection, DIM, SPARSE)
    store.upsert(place.collection, make_sparse_points())
    queries = [(1, 3, 99), (2**32 - 1,), (99,), ()]
    found = store.search_terms(place.collection, queries, 3)
    by_id = [{hit.passage.passage_id: hit.score for hit in hits} for hits in found]
    # Four passages: ln(1 + 2.5/2.5) = ln 2 for a term of two of them, ln(1 + 3.5/1.5) for a term of one.
    assert by_id == [
        {"c": pytest.approx(math.log(2) + math.log(10 / 3), abs=1e-5), "a": pytest.approx(math.log(2), abs=1e-5)},
        {"a": pytest.approx(math.log(2), abs=1e-5), "b": pytest.approx(math.log(2), abs=1e-5)},
        {},
        {},
    ]
    assert [[hit.passage.passage_id for hit in hits] for hits in found[:2]] == [["c", "a"], ["a", "b"]]
    assert found[0][0].generated_queries == make_sparse_points()[2].generated_queries
    # With room for one, of the two that are alike neither is.
    assert store.search_terms(place.collection, queries[1:2], 1) == [[]]
    assert [hit.passage.passage_id for hit in store.search_terms(place.collection, queries[:1], 1)[0]] == ["c"]
    store.quantise(place.collection)
    assert [hit.passage.passage_id for hit in store.search_terms(place.collection, queries[:1], 3)[0]] == ["c", "a"]


def test_points_and_searches_must_agree_with_the_collection_about_terms(place: Place) -> None:
    store = place.open_with_collection()
    with pytest.raises(StoreError, match=r"no sparse vector.*--sparse"):
        store.search_terms(place.collection, [(1,)], 3)
    with pytest.raises(StoreError, match="the collection has none"):
        store.upsert(place.collection, [make_point("a", np.ones(DIM), terms=(1,))])
    store.create_collection(f"{place.collection}-sparse", DIM, SPARSE)
    with pytest.raises(StoreError, match="lacks the collection's sparse vector"):
        store.upsert(f"{place.collection}-sparse", [make_point("a", np.ones(DIM))])
    with pytest.raises(StoreError, match="at least 1"):
        store.search_terms(f"{place.collection}-sparse", [(1,)], 0)
    store.delete_collection(f"{place.collection}-sparse")


def test_every_place_can_be_asked_to_optimise_and_to_quantise(place: Place) -> None:
    store = place.open_with_collection()
    points = make_random_points(3)
    store.upsert(place.collection, points)
    store.quantise(place.collection)
    assert not any(step.changed for step in store.optimise(place.collection))  # far too few points
    found = {point.passage.passage_id: point for point in store.scroll(place.collection)}
    for point in points:
        assert_same(found[point.passage.passage_id], point)
    for method in (store.quantise, lambda name: list(store.optimise(name))):
        with pytest.raises(StoreError, match="no collection 'other'"):
            method("other")


def test_a_hit_holds_the_passage_with_its_metadata_and_generated_queries(place: Place) -> None:
    store = place.open_with_collection()
    point = make_point("only", np.arange(DIM))
    store.upsert(place.collection, [point])
    [[hit]] = store.search(place.collection, np.ones((1, DIM), np.float32), "xqg", 5)
    assert hit.passage == point.passage
    assert hit.generated_queries == point.generated_queries
    assert hit.score == 28.0  # 0 + 1 + … + 7


def test_equal_scores_are_ordered_by_passage_id_also_where_the_limit_cuts_them(place: Place) -> None:
    store = place.open_with_collection()
    first = [make_point("z first", [2.0] * DIM), make_point("y second", [1.5] * DIM)]
    equal = [make_point(f"{index:02}", [1.0] * DIM) for index in np.random.default_rng(1).permutation(20)]
    last = [make_point("a last", [0.5] * DIM)]
    store.upsert(place.collection, last + equal + first)
    query = np.ones((1, DIM), np.float32)
    for limit in (1, 2, 3, 7, 22, 23, 100):
        [hits] = store.search(place.collection, query, "xqg", limit)
        expected = ["z first", "y second", *(f"{index:02}" for index in range(20)), "a last"][:limit]
        assert [hit.passage.passage_id for hit in hits] == expected


def test_content_hashes_are_read_only_for_passages_that_are_stored(place: Place) -> None:
    store = place.open_with_collection()
    store.upsert(place.collection, make_random_points(5))
    hashes = store.read_content_hashes(place.collection, ["passage 3", "unknown", "passage 0", "passage 3"])
    assert hashes == {"passage 3": "hash of passage 3", "passage 0": "hash of passage 0"}
    assert store.read_content_hashes(place.collection, []) == {}
    with pytest.raises(StoreError, match=r"passage 'bad \\ud83d': the id.*Cure: "):
        store.read_content_hashes(place.collection, ["bad \ud83d"])


def test_an_upsert_replaces_the_whole_point(place: Place) -> None:
    store = place.open_with_collection()
    store.upsert(place.collection, [make_point("a", np.ones(DIM)), make_point("b", np.ones(DIM))])
    new = make_point("a", -np.ones(DIM), passage=Passage("a", "new"), generated_queries=(), content_hash="new")
    store.upsert(place.collection, [new])
    assert store.count(place.collection) == 2
    assert_same(next(point for point in store.scroll(place.collection) if point.passage.passage_id == "a"), new)


def test_points_are_read_by_passage_id(place: Place) -> None:
    store = place.open_with_collection()
    points = make_random_points(5)
    store.upsert(place.collection, points)
    wanted = {point.passage.passage_id: point for point in points[1:3]}
    found = store.read_points(place.collection, [*wanted, "unknown"])
    assert found.keys() == wanted.keys()
    for passage_id, point in found.items():
        assert_same(point, wanted[passage_id])


def test_fields_that_others_added_to_a_point_come_back_with_it(place: Place) -> None:
    store = place.open_with_collection()
    point = make_point("a", np.ones(DIM), other_fields={"tags": ["seen", {"by": None}], "été": 1.5})
    store.upsert(place.collection, [point])
    [found] = store.scroll(place.collection)
    assert_same(found, point)
    assert_same(store.read_points(place.collection, ["a"])["a"], point)
    with pytest.raises(StoreError, match="passage 'a': tags is nan"):
        store.upsert(place.collection, [replace(point, other_fields={"tags": float("nan")})])


def test_the_length_of_the_vectors_is_told(place: Place) -> None:
    store = place.open_with_collection()
    assert store.read_dim(place.collection) == DIM
    with pytest.raises(StoreError, match=r"no collection 'other'.*Cure: "):
        store.read_dim("other")


def test_what_made_each_point_is_read_in_the_order_of_the_points(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_module, "READ_BATCH", 3)
    monkeypatch.setattr(client_module, "READ_BATCH", 3)
    store = place.open_with_collection()
    points = make_random_points(8)
    store.upsert(place.collection, points)
    expected = {(point.passage.passage_id, point.content_hash, point.recipe) for point in points}
    found = list(store.scroll_stored(place.collection))
    assert len(found) == len(points)
    assert {tuple(stored) for stored in found} == expected
    point_ids = [layout.make_point_id(stored.passage_id) for stored in found]
    assert point_ids == sorted(point_ids)


def test_deleted_points_are_gone_and_the_others_stay(place: Place) -> None:
    store = place.open_with_collection()
    points = make_random_points(6)
    store.upsert(place.collection, points)
    gone = [point.passage.passage_id for point in points[:4]]
    store.delete(place.collection, [*gone, "unknown"])
    kept = {point.passage.passage_id: point.content_hash for point in points[4:]}
    assert store.read_content_hashes(place.collection, [point.passage.passage_id for point in points]) == kept
    assert store.count(place.collection) == 2
    store.delete(place.collection, [])
    assert store.count(place.collection) == 2


def test_points_may_be_deleted_while_they_are_scrolled(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_module, "READ_BATCH", 3)
    monkeypatch.setattr(client_module, "READ_BATCH", 3)
    store = place.open_with_collection()
    store.upsert(place.collection, make_random_points(10))
    seen = []
    for stored in store.scroll_stored(place.collection):
        store.delete(place.collection, [stored.passage_id])
        seen.append(stored.passage_id)
    assert len(set(seen)) == len(seen) == 10
    assert store.count(place.collection) == 0


def test_a_deleted_collection_is_gone_and_its_name_is_free(place: Place) -> None:
    store = place.open_with_collection()
    store.upsert(place.collection, make_random_points(2))
    store.delete_collection(place.collection)
    assert place.collection not in store.collections()
    assert store.read_fingerprint(place.collection) is None
    with pytest.raises(StoreError, match=r"no collection '.*Cure: "):
        store.delete_collection(place.collection)
    store.create_collection(place.collection, DIM + 1, {"recipe.alpha": 0.5})
    assert store.read_fingerprint(place.collection) == {"recipe.alpha": 0.5}
    assert store.count(place.collection) == 0


def test_a_collection_that_xqg_did_not_create_is_not_deleted(place: Place) -> None:
    store = place.open_with_foreign_collection()
    with pytest.raises(MismatchError, match="not created by xqg"):
        store.delete_collection(place.collection)
    assert place.collection in store.collections()


def test_a_fingerprint_is_replaced_whole(lasting_place: Place) -> None:
    place = lasting_place
    store = place.open_with_collection()
    store.upsert(place.collection, make_random_points(2))
    changed = {"recipe.alpha": 0.5, "retuning": {"recipe.alpha": 0.7}}
    store.write_fingerprint(place.collection, changed)
    assert store.read_fingerprint(place.collection) == changed
    store.write_fingerprint(place.collection, FINGERPRINT)
    if place.kind != "rest":
        store.close()
        store = place.open()
    assert store.read_fingerprint(place.collection) == FINGERPRINT
    assert store.count(place.collection) == 2


def test_of_a_passage_given_twice_the_last_is_stored(place: Place) -> None:
    store = place.open_with_collection()
    store.upsert(place.collection, [make_point("a", np.ones(DIM), content_hash=value) for value in ("old", "new")])
    assert store.read_content_hashes(place.collection, ["a"]) == {"a": "new"}


def test_the_fingerprint_and_the_points_survive_reopening(lasting_place: Place) -> None:
    store = lasting_place.open_with_collection()
    points = make_random_points(3)
    store.upsert(lasting_place.collection, points)
    store.close()
    store = lasting_place.open()
    assert store.read_fingerprint(lasting_place.collection) == FINGERPRINT
    assert store.count(lasting_place.collection) == 3
    store.upsert(lasting_place.collection, make_random_points(4))
    assert store.count(lasting_place.collection) == 4


def test_the_fingerprint_of_an_unknown_collection_is_none(place: Place) -> None:
    assert place.open().read_fingerprint(place.collection) is None


def test_collections_are_listed_by_name(place: Place) -> None:
    store = place.open()
    if place.kind != "server":
        assert store.collections() == []
    store.create_collection(place.collection, DIM, {})
    assert place.collection in store.collections()
    assert store.read_fingerprint(place.collection) == {}


def test_a_collection_is_created_only_once(place: Place) -> None:
    store = place.open_with_collection()
    store.upsert(place.collection, make_random_points(2))
    with pytest.raises(StoreError, match=r"already exists.*Cure: choose another name"):
        store.create_collection(place.collection, DIM, {})
    assert store.read_fingerprint(place.collection) == FINGERPRINT
    assert store.count(place.collection) == 2


def test_a_collection_that_xqg_did_not_create_is_refused(place: Place) -> None:
    store = place.open_with_foreign_collection()
    assert place.collection in store.collections()
    for ask in (store.read_fingerprint, store.count, lambda name: store.upsert(name, make_random_points(1))):
        with pytest.raises(ForeignCollectionError, match=r"was not created by xqg.*Nothing was changed"):
            ask(place.collection)
    augment = "" if place.kind == "edge" else "make it searchable by xqg with xqg augment, or "
    with pytest.raises(ForeignCollectionError, match=f"Cure: {augment}name another collection"):
        read_existing_fingerprint(store, place.collection)
    with pytest.raises(ForeignCollectionError, match="Cure: choose another name"):
        read_target_fingerprint(store, place.collection)


def test_an_unknown_collection_is_an_error_that_names_the_known_ones(place: Place) -> None:
    store = place.open_with_collection()
    asks: list[Callable[[str], object]] = [
        store.count,
        lambda name: next(store.scroll(name)),
        lambda name: store.upsert(name, []),
        lambda name: store.read_content_hashes(name, ["a"]),
        lambda name: store.search(name, np.ones((1, DIM), np.float32), "xqg", 1),
    ]
    for ask in asks:
        with pytest.raises(StoreError, match=rf"no collection 'nowhere'.*{place.collection}.*Cure: check the name"):
            ask("nowhere")


BAD_POINTS: Mapping[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"vectors": {"xqg": np.full(DIM, np.nan, np.float32), "passage": np.ones(DIM, np.float32)}}, "NaN"),
    "infinity": ({"vectors": {"xqg": np.ones(DIM, np.float32), "passage": np.full(DIM, np.inf, np.float32)}}, "inf"),
    "another length": ({"vectors": dict.fromkeys(("xqg", "passage"), np.ones(DIM + 1, np.float32))}, r"\(9,\)"),
    "float64": ({"vectors": dict.fromkeys(("xqg", "passage"), np.ones(DIM))}, "float64"),
    "one vector": ({"vectors": {"xqg": np.ones(DIM, np.float32)}}, r"\['xqg'\]"),
    "a lone surrogate": ({"passage": Passage("bad", "half \ud83d")}, "bad.*text.*surrogate"),
    "a lone surrogate in a key": ({"passage": Passage("bad", "", "", {"\ud83d": 1})}, "bad.*metadata.*surrogate"),
    "a lone surrogate in the id": ({"passage": Passage("bad \ud83d", "")}, r"bad \\ud83d.*surrogate"),
    "NaN in the metadata": ({"passage": Passage("bad", "", "", {"x": [float("nan")]})}, r"metadata\.x\[0\] is nan"),
    "a huge integer": ({"passage": Passage("bad", "", "", {"x": {"y": 2**64}})}, r"metadata\.x\.y.*64 bits"),
    "a huge negative integer": ({"passage": Passage("bad", "", "", {"x": -(2**63) - 1})}, r"metadata\.x.*64 bits"),
    "bytes": ({"passage": Passage("bad", "", "", {"x": b"ab"})}, r"metadata\.x is a bytes"),
    "a numeric key": ({"passage": Passage("bad", "", "", {"x": {1: 2}})}, r"metadata\.x has the key 1"),
    "deep nesting": (
        {"passage": Passage("bad", "", "", json.loads('{"a":' * 500 + "1" + "}" * 500))},
        "deeper than 64",
    ),
    "no id": ({"passage": Passage("", "some text")}, "empty id, its text begins 'some text'"),
}


def test_of_points_one_of_which_cannot_be_stored_none_is(place: Place) -> None:
    store = place.open_with_collection()
    for name, (changes, message) in BAD_POINTS.items():
        points = [*make_random_points(300), make_point("bad", np.ones(DIM), **changes)]
        with pytest.raises(StoreError, match=rf"(?s){message}.*Cure: ") as caught:
            store.upsert(place.collection, points)
        assert "'bad" in str(caught.value) or name == "no id"
        assert store.count(place.collection) == 0, name


def test_a_search_that_cannot_be_answered_says_why(place: Place) -> None:
    store = place.open_with_collection()
    searches: list[tuple[FloatArray, str, int, str]] = [
        (np.ones((1, DIM), np.float32), "queries", 1, "no vector 'queries'.*xqg or passage"),
        (np.ones((1, DIM), np.float32), "xqg", 0, "at least 1, was 0"),
        (np.ones((1, DIM + 1), np.float32), "xqg", 1, r"shape \(1, 9\)"),
        (np.ones(DIM, np.float32), "xqg", 1, r"shape \(8,\)"),
        (np.full((1, DIM), np.nan, np.float32), "xqg", 1, "NaN"),
    ]
    for vectors, name, limit, message in searches:
        with pytest.raises(StoreError, match=message):
            store.search(place.collection, vectors, name, limit)


def test_an_empty_collection_gives_every_query_an_empty_answer(place: Place) -> None:
    store = place.open_with_collection()
    assert store.search(place.collection, np.ones((2, DIM), np.float32), "xqg", 3) == [[], []]
    assert store.search(place.collection, np.ones((0, DIM), np.float32), "xqg", 3) == []
    assert list(store.scroll(place.collection)) == []
    assert store.count(place.collection) == 0


def test_any_unicode_is_an_id_and_a_text(place: Place) -> None:
    store = place.open_with_collection()
    texts = [
        "Ω≈ç √∫",
        "ทดสอบ",
        "كيف الحال؟",
        "👩‍👩‍👧",
        "a\x00b\tc\n",
        "e\u0301",
        "é",
        " ",
        "../../etc",
        "'; --",
        "\ufeff\uffff",
    ]
    metadata = {text: [text, {"": text, "a.b": {"c[]": text}}] for text in texts}
    queries = tuple(GeneratedQuery("th", text) for text in texts)
    points = [
        make_point(text, np.ones(DIM), passage=Passage(text, text, text, metadata), generated_queries=queries)
        for text in texts
    ]
    store.upsert(place.collection, points)
    found = {point.passage.passage_id: point for point in store.scroll(place.collection)}
    assert set(found) == set(texts)
    for point in points:
        assert_same(found[point.passage.passage_id], point)
    assert set(store.read_content_hashes(place.collection, texts)) == set(texts)


def test_a_collection_name_cannot_leave_its_place(place: Place) -> None:
    store = place.open()
    for name in ("", ".", "..", "../up", "a/b", "a\\b", "/etc", "a\x00", ".hidden", "dot.", "\ud83d", "n" * 256):
        for ask in (store.read_fingerprint, store.count, lambda name: store.create_collection(name, DIM, {})):
            with pytest.raises(StoreError, match="Cure: use letters"):
                ask(name)


def test_a_collection_may_have_a_name_in_any_script(place: Place) -> None:
    place.collection = f"пассажи 段落 {place.collection}"
    store = place.open_with_collection()
    store.upsert(place.collection, make_random_points(1))
    assert place.collection in store.collections()
    assert store.count(place.collection) == 1


def test_a_fingerprint_that_json_cannot_keep_is_refused(place: Place) -> None:
    store = place.open()
    with pytest.raises(StoreError, match=r"fingerprint of .*alpha is nan"):
        store.create_collection(place.collection, DIM, {"recipe.alpha": float("nan")})
    assert store.read_fingerprint(place.collection) is None


def test_a_collection_needs_vectors_of_some_length(place: Place) -> None:
    store = place.open()
    for dim in (0, -1):
        with pytest.raises(StoreError, match=f"length {dim}.*Cure: "):
            store.create_collection(place.collection, dim, {})
    assert store.read_fingerprint(place.collection) is None


def test_threads_may_share_a_store(place: Place) -> None:
    store = place.open_with_collection()
    points = make_random_points(40)
    threads = [
        threading.Thread(target=lambda start: store.upsert(place.collection, points[start::4]), args=(start,))
        for start in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count(place.collection) == 40


def test_the_local_mode_is_used_by_one_thread_at_a_time() -> None:
    wire = wire_module.Wire(":memory:", None, remote=False)
    inside: list[int] = []

    def use() -> None:
        inside.append(threading.get_ident())
        time.sleep(0.02)
        assert inside == [threading.get_ident()]
        inside.clear()

    threads = [threading.Thread(target=wire.ask, args=("work", use)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == []


@pytest.mark.parametrize("kind", ["edge", "local"])
def test_a_closed_store_says_so(kind: str, tmp_path: Path) -> None:
    store = make_place(kind, tmp_path).open_with_collection()
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.count("passages")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # Half of all text should be worse than what hypothesis tries first.
    | st.text()
    | st.sampled_from(["\x00", "\u2028", "\U0010ffff", "null", "{}"]),
    lambda items: st.lists(items, max_size=4) | st.dictionaries(st.text(), items, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("kind", ["edge", "memory", "rest"])
def test_any_metadata_that_json_knows_comes_back(kind: str, tmp_path: Path) -> None:
    place = make_place(kind, tmp_path)
    store = place.open_with_collection()

    @settings(max_examples=12, deadline=None, database=None)
    @given(st.text(min_size=1), st.dictionaries(st.text(), json_values, max_size=5))
    def check(passage_id: str, metadata: dict[str, Any]) -> None:
        point = make_point(passage_id, np.ones(DIM), passage=Passage(passage_id, "text", "", metadata))
        store.upsert(place.collection, [point])
        [found] = store.search(place.collection, np.ones((1, DIM), np.float32), "xqg", 1000)
        [hit] = [hit for hit in found if hit.passage.passage_id == passage_id]
        assert_same_json(hit.passage.metadata, metadata)

    check()
    place.close()


def assert_same_json(found: Json, expected: Json) -> None:
    assert type(found) is type(expected)  # True is no 1, and 1.0 is none either
    if isinstance(expected, float):
        # The engine's reader of decimals may miss the last bit.
        assert found == pytest.approx(expected, rel=4e-16, abs=0)
    elif isinstance(expected, (dict, list)):
        assert len(found) == len(expected)
        for key in expected if isinstance(expected, dict) else range(len(expected)):
            assert_same_json(found[key], expected[key])
    else:
        assert found == expected


def test_a_passage_keeps_its_point_id_for_ever() -> None:
    expected = uuid.uuid5(uuid.UUID("6a8f2c1e-94d7-5b36-8e0a-d1c75f3b20e9"), "Q42 – §1")
    assert layout.make_point_id("Q42 – §1") == str(expected) == "3484645d-2097-5128-aee0-c0b1c30b3b1d"


# --- locations


@pytest.mark.parametrize(
    ("location", "cure"),
    [
        ("", "write edge:DIR"),
        ("edge:", "write edge:DIR"),
        ("local:", "write edge:DIR"),
        (":memory", "write edge:DIR"),
        ("memory:", "write edge:DIR"),
        ("ftp://host", "write edge:DIR"),
        ("htp://host", "write edge:DIR"),
        ("http://", "write edge:DIR"),
        ("http://:6333", "write it like"),
        ("http://host:port", "write it like"),
        ("http://user:sk-verysecret-0123456789@host:6333", "set QDRANT_API_KEY"),
        ("https://host:6333?api_key=sk-verysecret-0123456789", "set QDRANT_API_KEY"),
        ("https://host:6333#sk-verysecret-0123456789", "set QDRANT_API_KEY"),
        ("http://user:sk-verysecret-0123456789", "write it like"),
        ("HTTP://user:sk-verysecret-0123456789@host:6333", "write edge:DIR"),
        ("user:sk-verysecret-0123456789@host:6333", "write edge:DIR"),
    ],
)
def test_a_location_that_is_none_is_refused_with_the_cure(location: str, cure: str) -> None:
    with pytest.raises(InputError, match=f"Cure: {cure}") as caught:
        open_store(location)
    assert SECRET not in str(caught.value)


def test_a_bare_path_is_an_embedded_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for location, expected in (("xqg_data", "edge:xqg_data"), ("edge:a:b", "edge:a:b"), (r"C:\data", r"edge:C:\data")):
        store = open_store(location)
        assert store.location == expected
        assert store.collections() == []
        store.close()
    assert list(tmp_path.iterdir()) == []  # looking creates nothing


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_an_engine_is_imported_only_when_its_store_is_opened(tmp_path: Path) -> None:
    code = """
import sys
def loaded(): return sorted({name.partition(".")[0] for name in sys.modules if name.startswith("qdrant_")})
from xqg_qdrant.stores import open_store
print(loaded())
open_store(sys.argv[1])
print(loaded())
open_store(":memory:").close()
print(loaded())
"""
    run = run_python(code, tmp_path)
    assert run.stdout.splitlines() == ["[]", "['qdrant_edge']", "['qdrant_client', 'qdrant_edge']"], run.stderr


# --- directories: other processes, kills, damage


@pytest.mark.parametrize("kind", ["edge", "local"])
def test_a_directory_in_use_by_another_process_is_an_error_that_says_so(kind: str, tmp_path: Path) -> None:
    place = make_place(kind, tmp_path)
    store = place.open_with_collection()
    store.upsert(place.collection, make_random_points(1))
    code = """
import sys
from xqg_qdrant.errors import StoreError
from xqg_qdrant.stores import open_store
try:
    open_store(sys.argv[1]).count("passages")
except StoreError as error:
    print(error)
"""
    run = run_python(code, place.location)
    holder = {"edge": rf"process {os.getpid()} on \S+ \(.+\) since \d{{4}}-", "local": "another process"}[kind]
    assert re.search(rf"in use by {holder}.*Cure: ", run.stdout), run.stderr
    place.close()
    assert run_python(code, place.location).stdout == ""


@pytest.mark.parametrize("kind", ["edge", "local"])
def test_what_was_acknowledged_survives_kill_9(kind: str, tmp_path: Path) -> None:
    place = make_place(kind, tmp_path)
    code = """
import sys
import numpy as np
from xqg_qdrant.records import AugmentedPassage, Passage
from xqg_qdrant.stores import open_store
store = open_store(sys.argv[1])
store.create_collection("passages", 8, {"recipe.alpha": 0.01})
for batch in range(10**6):
    ids = [f"{batch}-{index}" for index in range(5)]
    vectors = dict.fromkeys(("xqg", "passage"), np.full(8, 1 + batch, np.float32))
    store.upsert("passages", [AugmentedPassage(Passage(i, i * 50), (), vectors, f"hash of {i}", "") for i in ids])
    print(batch, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code, place.location], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(12)]
    process.kill()
    acknowledged += [int(line) for line in process.stdout.read().splitlines()]
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    store = place.open()
    assert store.read_fingerprint("passages") == {"recipe.alpha": 0.01}
    ids = [f"{batch}-{index}" for batch in acknowledged for index in range(5)]
    assert store.read_content_hashes("passages", ids) == {passage_id: f"hash of {passage_id}" for passage_id in ids}
    assert sum(1 for _ in store.scroll("passages")) == store.count("passages") >= len(ids)
    store.upsert("passages", make_random_points(1))
    place.close()


def test_an_upsert_is_flushed_to_the_disk_before_it_returns(tmp_path: Path) -> None:
    place = make_place("edge", tmp_path)
    store = place.open_with_collection()
    assert isinstance(store, edge_module.EdgeStore)
    opened = store._open(place.collection)
    calls = []

    class Recorder:
        def __getattr__(self, name: str) -> Json:
            calls.append(name)
            return getattr(opened.shard, name)

    store._opened[place.collection] = opened._replace(shard=Recorder())  # type: ignore[arg-type]
    store.upsert(place.collection, make_random_points(3))
    assert calls == ["update", "flush"]
    place.close()


def test_a_kill_while_a_collection_is_created_leaves_no_dead_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import os, signal, sys
from xqg_qdrant.stores import open_store
from xqg_qdrant.stores.edge import store as edge
edge.write_sidecar = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
open_store(sys.argv[1]).create_collection("passages", 8, {})
"""
    assert run_python(code, tmp_path).returncode == -signal.SIGKILL
    [unfinished] = tmp_path.iterdir()
    place = Place("edge", str(tmp_path))
    store = place.open()
    assert store.collections() == []
    assert store.read_fingerprint("passages") is None
    store.create_collection("passages", DIM, FINGERPRINT)
    store.upsert("passages", make_random_points(2))
    assert unfinished.exists()  # it could be another process at work
    os.utime(unfinished, (time.time() - 4000,) * 2)
    store.create_collection("more", DIM, {})
    assert store.collections() == ["more", "passages"]
    assert not unfinished.exists()
    place.close()


def test_a_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    place = make_place("edge", tmp_path)
    monkeypatch.setattr(edge_module, "write_sidecar", fail)
    with pytest.raises(StoreError, match=r"cannot create collection 'passages'.*No space left.*Cure: "):
        place.open_with_collection()
    assert list((tmp_path / "store").iterdir()) == []


def test_an_empty_directory_may_become_a_collection(tmp_path: Path) -> None:
    place = make_place("edge", tmp_path)
    (tmp_path / "store" / "passages").mkdir(parents=True)
    assert place.open_with_collection().count("passages") == 0
    place.close()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"dim": 8}', '{"dim": null, "fingerprint": {}}'])
def test_a_damaged_sidecar_is_named(tmp_path: Path, content: str) -> None:
    place = make_place("edge", tmp_path)
    place.open_with_collection().close()
    (tmp_path / "store" / "passages" / SIDECAR).write_text(content)
    with pytest.raises(StoreError, match=r"cannot read .*collection\.json.*Cure: "):
        place.open().read_fingerprint("passages")


def test_a_damaged_engine_directory_is_an_error_of_ours(tmp_path: Path) -> None:
    place = make_place("edge", tmp_path)
    place.open_with_collection().close()
    for path in (tmp_path / "store" / "passages" / "segments").glob("*/segment.json"):
        path.write_text("{")
    with pytest.raises(StoreError, match=r"cannot open collection 'passages'.*Cure: "):
        place.open().count("passages")


def test_a_damaged_local_directory_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "collection" / "docs").mkdir(parents=True)
    (tmp_path / "collection" / "docs" / "storage.sqlite").write_bytes(b"")
    (tmp_path / "meta.json").write_text('{"collec')
    with pytest.raises(StoreError, match=r"Cure: "):
        open_store(f"local:{tmp_path}")


def test_a_panic_of_the_engine_is_an_error_of_ours(tmp_path: Path) -> None:
    place = make_place("edge", tmp_path)
    store = place.open_with_collection()
    assert isinstance(store, edge_module.EdgeStore)
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(StoreError, match="index out of bounds"), store._wrapped("search"):
        raise panic("index out of bounds")
    with pytest.raises(KeyboardInterrupt), store._wrapped("search"):
        raise KeyboardInterrupt
    place.close()


# --- servers that are not well


def find_closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_a_wrong_url_is_told_within_seconds() -> None:
    store = open_store(f"http://127.0.0.1:{find_closed_port()}")
    started = time.monotonic()
    with pytest.raises(
        StoreError, match=r"cannot list the collections in http://127.*Cure: check that the server runs"
    ):
        store.collections()
    assert time.monotonic() - started < 6
    store.close()


def test_a_busy_server_is_asked_again_after_the_time_it_names(rest: RestQdrant) -> None:
    store = open_store(rest.url)
    rest.script = [answer(429, "slow down", Retry_After="1"), answer(503, "starting")]
    started = time.monotonic()
    assert store.collections() == []
    assert time.monotonic() - started > 1.0 + 0.25 + 0.5  # Retry-After, and at least half of each backoff
    assert len(rest.requests) == 3
    store.close()


def test_a_server_that_stays_away_is_given_up(rest: RestQdrant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_module, "PATIENCE_SECONDS", 2.0)
    store = open_store(rest.url)
    rest.script = [answer(503, "never ready")] * 50
    started = time.monotonic()
    with pytest.raises(StoreError, match="HTTP 503: never ready"):
        store.collections()
    assert time.monotonic() - started < 2.5
    assert 3 <= len(rest.requests) <= 5
    store.close()


def test_a_server_that_wants_an_hour_is_not_waited_for(rest: RestQdrant) -> None:
    store = open_store(rest.url)
    rest.script = [answer(429, "quota", Retry_After="3600")]
    with pytest.raises(StoreError, match=r"HTTP 429: quota\. Cure: try again later"):
        store.collections()
    assert len(rest.requests) == 1
    store.close()


def test_a_server_that_does_not_answer_is_given_up(rest: RestQdrant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "REQUEST_SECONDS", 1)
    store = open_store(rest.url)
    rest.script = [hang] * 10
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"Timeout.*Cure: try again"):
        store.collections()
    assert time.monotonic() - started < 6
    assert 2 <= len(rest.requests) <= 3
    store.close()


@pytest.mark.parametrize(
    ("status", "cure"), [(400, "server's log"), (401, "QDRANT_API_KEY"), (403, "QDRANT_API_KEY"), (422, "server's log")]
)
def test_a_refusal_is_not_sent_again(rest: RestQdrant, status: int, cure: str) -> None:
    store = open_store(rest.url)
    rest.script = [answer(status, "no such thing")]
    with pytest.raises(StoreError, match=rf"HTTP {status}: no such thing\. Cure: .*{cure}"):
        store.collections()
    assert len(rest.requests) == 1
    store.close()


def test_a_404_of_another_server_does_not_mean_an_unknown_collection(rest: RestQdrant) -> None:
    store = open_store(rest.url)
    rest.script = [lambda _: (404, {}, b"<html>nginx</html>")]
    with pytest.raises(StoreError, match=r"HTTP 404: .*nginx.*Cure: check that this is the URL of a Qdrant server"):
        store.read_fingerprint("passages")
    store.close()


def test_an_upsert_whose_answer_is_lost_is_sent_again_and_stored_once(rest: RestQdrant) -> None:
    store = open_store(rest.url)
    store.create_collection("passages", DIM, FINGERPRINT)
    rest.lose_answers = 1
    store.upsert("passages", make_random_points(10))
    assert [path for method, path, _ in rest.requests if method == "PUT"][-2:] == [
        "/collections/passages/points?wait=true"
    ] * 2
    assert store.count("passages") == 10
    store.close()


def test_points_that_the_server_only_queued_are_not_called_stored(rest: RestQdrant) -> None:
    store = open_store(rest.url)
    store.create_collection("passages", DIM, FINGERPRINT)
    assert store.count("passages") == 0
    queued = {"result": {"operation_id": 1, "status": "acknowledged"}, "status": "ok", "time": 0.0}
    rest.script = [lambda _: (200, {}, json.dumps(queued).encode())]
    with pytest.raises(StoreError, match=r"did not apply it\. Cure: run the same command again"):
        store.upsert("passages", make_random_points(1))
    store.close()


def test_a_creation_whose_answer_is_lost_is_a_creation(rest: RestQdrant) -> None:
    store = open_store(rest.url)
    rest.lose_answers = 1
    store.create_collection("passages", DIM, FINGERPRINT)
    assert store.read_fingerprint("passages") == FINGERPRINT
    store.close()


def test_a_collection_gets_its_payload_index_before_any_point(rest: RestQdrant) -> None:
    store = open_store(rest.url)
    store.create_collection("passages", DIM, FINGERPRINT)
    assert [path for method, path, _ in rest.requests if method == "PUT"] == [
        "/collections/passages",
        "/collections/passages/index?wait=true",
    ]
    store.close()


def test_a_server_is_asked_for_exact_scores_of_quantised_vectors(
    rest: RestQdrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(rest.url)
    store.create_collection("passages", DIM, FINGERPRINT)
    store.upsert("passages", make_random_points(3))
    sent = []
    respond = rest.respond

    def remember(method: str, path: str, body: Json) -> Json:
        sent.append(dict(body or {}))  # the emulation takes it apart
        return respond(method, path, body)

    monkeypatch.setattr(rest, "respond", remember)
    store.quantise("passages")
    assert sent.pop() == {"quantization_config": {"scalar": {"type": "int8"}}}
    for exact in (False, True):
        store.search("passages", np.ones((1, DIM), np.float32), "xqg", 2, exact)
        expected = {"exact": exact, "quantization": {"ignore": exact, "rescore": True, "oversampling": 2.0}}
        found = sent.pop()["searches"][0]["params"]
        assert {**found, "quantization": {**found["quantization"]}} | expected == found
    store.close()


def test_requests_stay_below_what_a_server_takes(rest: RestQdrant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "UPSERT_BYTES", 100_000)
    store = open_store(rest.url)
    store.create_collection("passages", DIM, FINGERPRINT)
    short = make_random_points(600)
    long = [
        make_point(f"long {i}", np.full(DIM, 1 / 3), passage=Passage(f"long {i}", "段落" * 2500)) for i in range(30)
    ]
    store.upsert("passages", short + long)
    sizes = [size for method, path, size in rest.requests if method == "PUT" and "/points" in path]
    assert max(sizes) < 100_000
    assert len(sizes) < 20
    assert store.count("passages") == 630
    store.close()


def test_a_request_holds_at_most_256_points(rest: RestQdrant) -> None:
    store = open_store(rest.url)
    store.create_collection("passages", DIM, FINGERPRINT)
    store.upsert("passages", make_random_points(600))
    assert [path for method, path, _ in rest.requests if method == "PUT"][2:] == [
        "/collections/passages/points?wait=true"
    ] * 3
    store.close()


def test_a_server_that_cannot_keep_a_fingerprint_is_refused_before_anything_is_created(rest: RestQdrant) -> None:
    rest.version = "1.15.4"
    store = open_store(rest.url)
    with pytest.raises(
        StoreError, match=r"is Qdrant 1\.15\.4; fingerprints need 1\.16 or later\. Cure: upgrade the server"
    ):
        store.create_collection("passages", DIM, FINGERPRINT)
    assert store.collections() == []
    store.close()


def test_no_error_shows_the_api_key(rest: RestQdrant) -> None:
    scripts: list[list[Script]] = [
        [answer(401, "<api-key> is wrong")],
        [lambda _: (400, {}, b"you sent <api-key>")],
        [answer(429, "<api-key> is over its quota", Retry_After="3600")],
        [answer(429, "<api-key>", Retry_After="tomorrow"), answer(403, "<api-key> is over its quota")],
    ]
    for script in scripts:
        store = open_store(rest.url, f" {SECRET}\n")
        rest.script = script
        with pytest.raises(StoreError) as caught:
            store.collections()
        assert "***" in str(caught.value)
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        store.close()
    store = open_store(f"http://127.0.0.1:{find_closed_port()}", SECRET)
    with pytest.raises(StoreError) as caught:
        store.collections()
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert SECRET not in repr(vars(caught.value))
    store.close()


@pytest.mark.parametrize("key", [f"{SECRET}\n{SECRET}", f"{SECRET} x", f"{SECRET}é", f"{SECRET}\x00"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(XqgError, match="QDRANT_API_KEY") as caught:
        open_store("https://localhost:6333", key)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
