"""What sparse vectors and the rankings that put several things together promise."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner, Result
from part_of_demo import write_part_of_demo
from rest_qdrant import RestQdrant
from writing import Write

from xqg_qdrant.augmentation.pipeline import ingest
from xqg_qdrant.augmentation.recipe import make_recipe
from xqg_qdrant.cli import main
from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.errors import MismatchError
from xqg_qdrant.generation.lexicon import Lexicon
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.lifecycle.copying import copy_collection
from xqg_qdrant.lifecycle.retune import plan_retune, retune
from xqg_qdrant.records import AugmentedPassage, FloatArray, GeneratedQuery, Passage, QueriedPassage, ScoredPassage
from xqg_qdrant.retrieval import Ranker, fuse_scores
from xqg_qdrant.stores import Store, open_store
from xqg_qdrant.text import find_term_ids, split_terms

pytestmark = pytest.mark.usefixtures("opened_once")
QUERIES = (GeneratedQuery("ru", "Где исток Нила?"), GeneratedQuery("ja", "ナイル川"))


@pytest.fixture(params=["edge", "memory", "rest"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with closing(RestQdrant()) as rest:
        places = {"edge": f"edge:{tmp_path / 'store'}", "memory": ":memory:", "rest": rest.url}
        with closing(open_store(places[request.param])) as opened:
            yield opened


def fill(store: Store, encoder: Encoder, **settings: Any) -> list[QueriedPassage]:
    rows = [QueriedPassage(passage, QUERIES if place else ()) for place, passage in enumerate(read_demo_passages()[:4])]
    list(ingest(rows, store, "docs", encoder, None, make_recipe(None, **settings)))
    return rows


def read_points(store: Store, collection: str = "docs") -> dict[str, AugmentedPassage]:
    return {point.passage.passage_id: point for point in store.scroll(collection)}


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Reading the rivers", ["readi", "the", "river"]),
        ("Где исток Нила?", ["где", "исток", "нила"]),
        ("ナイル川は2019年", ["ナイ", "イル", "ル川", "川は", "2019", "年"]),
        ("아프리카에서 강", ["아프", "프리", "리카", "카에", "에서", "강"]),
        ("แม่น้ำ", ["แม", "ม่", "่น", "น้", "้\u0e4d", "\u0e4dา"]),
        ("", []),
    ],
)
def test_terms_are_five_letters_of_a_word_or_pairs_where_words_are_written_together(
    text: str, terms: Sequence[str]
) -> None:
    assert list(split_terms(text)) == terms


def test_a_terms_id_is_its_crc_32_so_that_every_machine_and_client_finds_it() -> None:
    assert zlib.crc32(b"nile") == 0x492B1EFF  # by `printf nile | gzip -c | tail -c8 | od -t x4`
    assert find_term_ids(["Nile nile", "the"]) == tuple(sorted((0x492B1EFF, zlib.crc32(b"the"))))
    ids = find_term_ids(["the quick brown fox", "jumps over the lazy dog"])
    assert len(ids) == 8
    assert list(ids) == sorted(ids)


def test_a_sparse_ingest_keeps_the_terms_of_title_text_and_queries(store: Store, demo_encoder: Encoder) -> None:
    rows = fill(store, demo_encoder, sparse=True)
    assert (store.read_fingerprint("docs") or {})["recipe.sparse"] is True
    points = read_points(store)
    for passage, queries, *_ in rows:
        texts = [passage.title, passage.text, *(query.text for query in queries)]
        assert points[passage.passage_id].terms == find_term_ids([" ".join(texts)])
    unsparse = make_recipe(None)
    with pytest.raises(MismatchError, match=r"recipe.sparse: stored True, now None"):
        list(ingest(rows, store, "docs", demo_encoder, None, unsparse))


def test_without_the_option_there_are_no_terms_and_the_fingerprint_is_as_it_was(
    store: Store, demo_encoder: Encoder
) -> None:
    fill(store, demo_encoder, sparse=False)
    assert "recipe.sparse" not in (store.read_fingerprint("docs") or {})
    assert {point.terms for point in read_points(store).values()} == {None}


def test_a_retune_and_a_copy_keep_the_terms(store: Store, demo_encoder: Encoder, tmp_path: Path) -> None:
    fill(store, demo_encoder, sparse=True)
    before = {name: point.terms for name, point in read_points(store).items()}
    list(retune(store, plan_retune(store, "docs", demo_encoder, {"alpha": 0.2}), demo_encoder))
    assert {name: point.terms for name, point in read_points(store).items()} == before
    with closing(open_store(str(tmp_path / "copy"))) as target:
        steps = list(copy_collection(store, "docs", target, "docs", Event()))
        assert sum(step.written for step in steps) == 4
        assert {name: point.terms for name, point in read_points(target).items()} == before
        damaged = next(iter(read_points(target).values()))
        target.upsert("docs", [replace(damaged, terms=(1,))])
        assert sum(step.written for step in copy_collection(store, "docs", target, "docs", Event())) == 1


def test_a_retune_that_drops_queries_drops_their_terms(store: Store, demo_encoder: Encoder, write: Write) -> None:
    lexicon = Lexicon(Path(write("fi\triver\tjoki\nru\triver\tрека\n", "lexicon.tsv")))
    passage = Passage("nile", "A river.")
    list(ingest([passage], store, "docs", demo_encoder, lexicon, make_recipe(lexicon, sparse=True)))
    assert read_points(store)["nile"].terms == find_term_ids(["a river", "joki река"])
    list(retune(store, plan_retune(store, "docs", demo_encoder, {"languages": ("ru",)}), demo_encoder))
    assert read_points(store)["nile"].terms == find_term_ids(["a river", "река"])


def scored(name: str, score: float = 0.0) -> ScoredPassage:
    return ScoredPassage(Passage(name, "text"), score)


def test_the_scores_of_both_searches_count_half_whatever_their_scale() -> None:
    near = [scored("a", 30.0), scored("b", 20.0), scored("c", 10.0)]
    alike = [scored("d", 4.0), scored("b", 3.0), scored("c", 2.0), scored("e", 1.0)]
    fused = fuse_scores(near, alike, 4)
    # a: (1 + 0) / 2, b: (1/2 + 3/4) / 2, c: (0 + 1/2) / 2, d: (0 + 1) / 2, e: (0 + 1/4) / 2; equal ones by id
    assert [(hit.passage.passage_id, hit.score) for hit in fused] == [("b", 0.625), ("a", 0.5), ("d", 0.5), ("c", 0.25)]


@pytest.mark.parametrize(
    ("near", "alike", "expected"),
    [
        ([], [], []),
        ([scored("a", -3.0)], [], [("a", 0.5)]),
        ([], [scored("a", 2.0)], [("a", 0.5)]),
        ([scored("a", 2.0), scored("b", 2.0)], [], [("a", 0.5), ("b", 0.5)]),
    ],
)
def test_what_one_search_alone_finds_and_what_scores_alike_is_put_together_too(
    near: list[ScoredPassage], alike: list[ScoredPassage], expected: list[tuple[str, float]]
) -> None:
    assert [(hit.passage.passage_id, hit.score) for hit in fuse_scores(near, alike, 5)] == expected


class Lookup:
    """An encoder that knows a few texts, and remembers what it was asked."""

    def __init__(self) -> None:
        self.known = {"near": [0.9, 0.1], "far": [0, 1], "exact": [1, 0]}
        self.asked: list[str] = []

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        self.asked += texts
        return np.array([self.known[text] for text in texts], dtype=np.float32).reshape(-1, 2)


def test_max_sim_orders_what_the_augmented_vectors_found_by_its_nearest_vector(store: Store) -> None:
    def point(name: str, xqg: list[float], plain: list[float], *queries: str) -> AugmentedPassage:
        vectors = {"xqg": np.array(xqg, np.float32), "passage": np.array(plain, np.float32)}
        generated = tuple(GeneratedQuery("fi", query) for query in queries)
        return AugmentedPassage(Passage(name, "text"), generated, vectors, "", "")

    store.create_collection("docs", 2, {})
    store.upsert(
        "docs",
        [
            point("first", [9, 0], [0.2, 0], "far"),
            point("second", [8, 0], [0.1, 0], "far", "near"),
            point("third", [7, 0], [0.95, 0]),
            point("beyond", [6, 0], [1, 0], "exact"),
        ],
    )
    encoder = Lookup()
    ranker = Ranker(store, "docs", cast(Encoder, encoder))
    question = np.array([[1, 0]], np.float32)
    for _ in range(2):
        [hits] = ranker.rank(["?"], question, "max-sim", 3)
        assert [hit.passage.passage_id for hit in hits] == ["third", "second", "first"]
        np.testing.assert_allclose([hit.score for hit in hits], [0.95, 0.9, 0.2], rtol=1e-6)
    assert sorted(encoder.asked) == ["far", "near"]  # each text once, also by a second question


def test_hybrid_finds_by_terms_what_the_vectors_do_not(store: Store, demo_encoder: Encoder) -> None:
    rows = fill(store, demo_encoder, sparse=True)
    word = max(rows[0].passage.text.split(), key=len).strip(".,")
    ranker = Ranker(store, "docs", demo_encoder)
    against = -demo_encoder.encode_passages([rows[0].passage.text])
    by_vector, fused = (ranker.rank([word], against, name, 1)[0][0] for name in ("xqg", "hybrid"))
    assert by_vector.passage.passage_id != rows[0].passage.passage_id
    assert fused.passage.passage_id == rows[0].passage.passage_id
    assert fused.score == 0.5  # the first by its terms, the last by its vector


def xqg(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_the_command_line_makes_searches_and_measures_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_part_of_demo(Path("demo"), questions=20)
    Path("none.jsonl").write_text("")
    place = ("--collection", "docs", "--store", "store")
    made = xqg("ingest", "demo/corpus.jsonl", *place, "--queries", "none.jsonl", "--sparse", "--no-calibrate")
    assert made.exit_code == 0, made.output
    asked = xqg("query", *place, "--rank", "hybrid", "--json", "--limit", 2, "Danube")
    answer = json.loads(asked.stdout)
    assert (answer["ranking"], answer["hits"][0]["rank"], len(answer["hits"])) == ("hybrid", 1, 2)
    runs = ("passage", "xqg", "hybrid", "max-sim")
    options = [option for name in runs for option in ("--rank", name)]
    told = xqg("evaluate", *place, "--questions", "demo", "--json", *options)
    assert told.exit_code == 0, told.output
    report = json.loads(told.stdout)
    # Without queries all three find by the plain vectors, whose order max-sim leaves as it is.
    assert report["max-sim"] == report["xqg"] == report["passage"] != report["hybrid"]


def test_hybrid_in_a_collection_without_terms_is_refused_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_part_of_demo(Path("demo"), questions=2)
    Path("none.jsonl").write_text("")
    place = ("--collection", "docs", "--store", "store")
    xqg("ingest", "demo/corpus.jsonl", *place, "--queries", "none.jsonl")
    told = xqg("query", *place, "--rank", "hybrid", "Danube")
    assert (told.exit_code, "Cure: ingest into a new collection with --sparse" in told.stderr) == (5, True)
