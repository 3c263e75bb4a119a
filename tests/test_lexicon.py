"""What pseudo-queries from a lexicon promise: whole words, no model, the same for ever."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from writing import Write

from xqg_qdrant.augmentation.pipeline import ingest
from xqg_qdrant.augmentation.recipe import make_recipe, read_recipe
from xqg_qdrant.cli import main
from xqg_qdrant.demo import read_demo_passages
from xqg_qdrant.errors import InputError, MismatchError
from xqg_qdrant.generation import Generation
from xqg_qdrant.generation.lexicon import WORDS_A_QUERY, Lexicon
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.lifecycle.retune import plan_retune, retune
from xqg_qdrant.records import AugmentedPassage, GeneratedQuery, Passage
from xqg_qdrant.stores import Store, open_store

LINES = (
    "ru\triver\tрека\nru\tAfrica\tАфрика\nru\teast\tвосток\nru\tEast Africa\tВосточная Африка\n"
    "fi\triver\tjoki\nru\triver\tречка\n"
)
NILE = Passage("nile", "A river, the longest river of East Africa and of Africa.", "River Nile")


@pytest.fixture
def lexicon(write: Write) -> Lexicon:
    return Lexicon(Path(write(LINES, "lexicon.tsv")))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(str(tmp_path / "store"))
    yield opened
    opened.close()


def read_points(store: Store, collection: str) -> dict[str, AugmentedPassage]:
    return {point.passage.passage_id: point for point in store.scroll(collection)}


def test_a_pseudo_query_holds_each_known_word_once_and_phrases_before_their_words(lexicon: Lexicon) -> None:
    assert lexicon.languages == ("fi", "ru")
    expected = (GeneratedQuery("ru", "река Восточная Африка Африка", 0), GeneratedQuery("fi", "joki", 0))
    assert lexicon.generate([NILE], ["ru", "fi"], 5) == [Generation(expected, 5)]


def test_each_query_holds_the_next_sixteen_words_so_that_fewer_queries_are_the_first_ones(write: Write) -> None:
    names = [f"w{number}" for number in range(40)]
    lexicon = Lexicon(Path(write("".join(f"ru\t{name}\tс{name}\n" for name in names), "long.tsv")))
    passage = Passage("p", " ".join(names))
    [((first, second, third), *_)] = lexicon.generate([passage], ["ru"], 5)
    assert WORDS_A_QUERY == 16
    assert first == GeneratedQuery("ru", " ".join(f"с{name}" for name in names[:16]), 0)
    assert second == GeneratedQuery("ru", " ".join(f"с{name}" for name in names[16:32]), 1)
    assert third == GeneratedQuery("ru", " ".join(f"с{name}" for name in names[32:]), 2)
    assert lexicon.generate([passage], ["ru"], 2) == [Generation((first, second), 2)]


def test_a_passage_of_which_no_word_is_known_has_no_query(lexicon: Lexicon) -> None:
    assert lexicon.generate([Passage("p", "Nothing here.")], ["ru"], 5) == [Generation((), 5)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("ru\triver\n", r"bad.tsv:1: not three columns"),
        ("ru\ta\tb\nru\ta\tb\tc\n", r"bad.tsv:2: not three columns"),
        (b"ru\triver\t\xff\n", r"bad.tsv:1: not three columns of UTF-8"),
        ("ru\t!\tрека\n", r"bad.tsv:1: not an entry"),
        ("ru\ta b c d e\tрека\n", r"bad.tsv:1: not an entry.*Cure: write a language, 1 to 4 words"),
        ("\n", r"the lexicon .*bad.tsv is empty\. Cure: write lines"),
    ],
)
def test_a_file_that_is_no_lexicon_is_refused_with_its_line(write: Write, data: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Lexicon(Path(write(data, "bad.tsv")))


def test_a_language_that_the_lexicon_lacks_is_refused(lexicon: Lexicon) -> None:
    with pytest.raises(InputError, match=r"has no language 'ja', only fi, ru\. Cure: choose from these"):
        lexicon.generate([NILE], ["ja"], 1)


def test_the_fingerprint_names_the_file_and_tells_its_recipe_back(
    store: Store, demo_encoder: Encoder, lexicon: Lexicon
) -> None:
    recipe = make_recipe(lexicon, fusion="mean", alpha=0.2, queries_per_language=3)
    (step,) = ingest([NILE], store, "docs", demo_encoder, lexicon, recipe)
    assert (dict(step.asked), dict(step.kept)) == ({"fi": 3, "ru": 3}, {"fi": 1, "ru": 1})
    fingerprint = store.read_fingerprint("docs")
    assert fingerprint is not None
    assert fingerprint["generator.sha256"] == hashlib.sha256(LINES.encode()).hexdigest()
    assert fingerprint["generator.kind"] == "lexicon"
    assert not {"recipe.top_k", "recipe.seed", "queries"} & set(fingerprint)
    assert read_recipe(fingerprint) == recipe
    point = read_points(store, "docs")["nile"]
    queries = demo_encoder.encode_queries(["joki", "река Восточная Африка Африка"])
    expected = 0.8 * point.vectors["passage"] + 0.2 * queries.mean(axis=0)
    np.testing.assert_allclose(point.vectors["xqg"], expected, atol=1e-6)


def test_another_lexicon_and_a_model_are_refused_where_one_made_the_collection(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, lexicon: Lexicon, write: Write
) -> None:
    list(ingest([NILE], store, "docs", demo_encoder, lexicon, make_recipe(lexicon)))
    other = Lexicon(Path(write(LINES + "ru\tnile\tНил\n", "other.tsv")))
    with pytest.raises(MismatchError, match=r"generator\.sha256.*\n(.*\n)*Cure: .*\(--generator\)"):
        list(ingest([NILE], store, "docs", demo_encoder, other, make_recipe(other)))
    with pytest.raises(MismatchError, match=r"generator.kind: stored 'lexicon', now None"):
        list(ingest([NILE], store, "docs", demo_encoder, demo_generator, make_recipe(demo_generator)))


@pytest.mark.parametrize("name", ["seed", "top_k", "temperature", "max_new_tokens", "vocabulary"])
def test_a_lexicon_has_no_sampling(lexicon: Lexicon, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is a setting of a model"):
        make_recipe(lexicon, (), **{name: 1})


def test_a_lexicon_recipe_and_a_model_do_not_go_together(
    store: Store, demo_encoder: Encoder, demo_generator: QueryGenerator, lexicon: Lexicon
) -> None:
    with pytest.raises(InputError, match="another generator"):
        list(ingest([NILE], store, "docs", demo_encoder, demo_generator, make_recipe(lexicon)))
    with pytest.raises(InputError, match="another generator"):
        list(ingest([NILE], store, "docs", demo_encoder, lexicon, make_recipe(demo_generator)))


def test_a_retune_to_fewer_queries_ends_where_a_fresh_ingest_would(
    store: Store, demo_encoder: Encoder, write: Write
) -> None:
    words = sorted({word for passage in read_demo_passages()[:5] for word in passage.text.split() if word.isalpha()})
    lexicon = Lexicon(Path(write("".join(f"fi\t{word}\t{word}\nru\t{word}\t{word}\n" for word in words), "words.tsv")))
    passages = read_demo_passages()[:5]
    for name, languages, count in (("docs", ["fi", "ru"], 4), ("fresh", ["ru"], 2)):
        recipe = make_recipe(lexicon, languages, queries_per_language=count)
        list(ingest(passages, store, name, demo_encoder, lexicon, recipe))
    assert max(len(point.generated_queries) for point in read_points(store, "docs").values()) > 2
    changes = {"languages": ("ru",), "queries_per_language": 2}
    list(retune(store, plan_retune(store, "docs", demo_encoder, changes), demo_encoder))
    assert store.read_fingerprint("docs") == store.read_fingerprint("fresh")
    retuned, fresh = read_points(store, "docs"), read_points(store, "fresh")
    for passage_id, point in fresh.items():
        assert retuned[passage_id].generated_queries == point.generated_queries
        assert retuned[passage_id].content_hash == point.content_hash
        np.testing.assert_array_equal(retuned[passage_id].vectors["xqg"], point.vectors["xqg"])


def xqg(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)


def test_ingest_status_and_sync_take_a_file_in_the_place_of_a_generator(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = write('{"id": "nile", "title": "River Nile", "text": "A river of East Africa."}\n')
    Path("lexicon.tsv.gz").write_bytes(gzip.compress(LINES.encode()))
    place = ("--collection", "docs", "--store", "store")
    told = xqg("ingest", corpus, *place, "--generator", "lexicon.tsv.gz", "--languages", "ru")
    assert (told.exit_code, "1 of 3 generated queries kept" in told.stderr) == (0, True), told.output
    assert "generator.kind" in xqg("status", *place).output
    assert "0 new, 0 changed, 1 unchanged" in xqg("status", *place, "--corpus", corpus).output
    Path(corpus).write_text('{"id": "nile", "title": "River Nile", "text": "A river of Africa."}\n')
    synced = xqg("sync", corpus, *place, "--generator", "lexicon.tsv.gz")
    assert synced.exit_code == 0, synced.output
    with closing(open_store("store")) as store:
        assert read_points(store, "docs")["nile"].generated_queries == (GeneratedQuery("ru", "река Африка", 0),)
