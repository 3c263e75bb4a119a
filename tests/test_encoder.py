from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from checkpoints import ENCODERS, corpus, encoder_checkpoint, exported_encoder
from tokenizers import Tokenizer

from xqg_qdrant.demo import read_demo_queries
from xqg_qdrant.errors import ModelError
from xqg_qdrant.inference.encoder import Encoder, cut_batches
from xqg_qdrant.inference.session import Session

CHECKOUT = Path(__file__).resolve().parents[1]
TEXTS = [text[: 3 + 7 * number] for number, text in enumerate(corpus()[20:40])] + list(corpus()[60:100])
FORMS = [(name, dtype) for name in ENCODERS for dtype in ("float32", "int8")]


def open_encoder(name: str, dtype: str = "float32", threads: int = 1) -> Encoder:
    return Encoder(exported_encoder(name, dtype), device="cpu", threads=threads)


@cache
def open_session(folder: Path) -> Session:
    return Session(folder / "model.onnx", "cpu", threads=1)


def read_ids(name: str, texts: list[str], longest: int) -> list[list[int]]:
    """Return the ids of each text from the checkpoint's own tokenizer file, cut by hand."""
    tokenizer = Tokenizer.from_file(str(encoder_checkpoint(name) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    return [row if len(row) <= longest else [*row[: longest - 1], row[-1]] for row in ids]


def run_graph(name: str, dtype: str, rows: list[list[int]], folder: Path | None = None) -> npt.NDArray[np.float32]:
    """Return the graph's vectors of a batch, padded where rows differ in length."""
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), ENCODERS[name].get("pad_token_id", 0), dtype=np.int64)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = row, 1
    session = open_session(folder or exported_encoder(name, dtype))
    feeds = {"input_ids": ids, "attention_mask": mask}
    vectors: npt.NDArray[np.float32] = session.run({name: feeds[name] for name in session.input_names})[0]
    return vectors


def test_prefixes_and_lengths_are_those_of_the_folder() -> None:
    encoder = open_encoder("xlm-roberta")
    sides = ((encoder.encode_queries, "query: ", 12), (encoder.encode_passages, "passage: ", 30))
    for encode, prefix, longest in sides:
        rows = read_ids("xlm-roberta", [prefix + text for text in TEXTS], longest)
        assert {len(row) == longest for row in rows} == {True, False}
        expected = np.concatenate([run_graph("xlm-roberta", "float32", [row]) for row in rows])
        np.testing.assert_array_equal(encode(TEXTS), expected)


def test_a_text_beyond_the_length_is_cut_at_the_length() -> None:
    encoder = open_encoder("bert")
    words = TEXTS[30].split()
    long = " ".join([*words, *words, *words])
    np.testing.assert_array_equal(encoder.encode_queries([long]), encoder.encode_queries([f"{long} Дунай"]))
    assert not np.array_equal(encoder.encode_queries(["Дунай"]), encoder.encode_queries(["Дунай Tonava"]))


@pytest.mark.parametrize(("name", "dtype"), FORMS)
def test_a_text_gets_the_same_vector_to_the_bit_whatever_stands_beside_it(name: str, dtype: str) -> None:
    encoder = open_encoder(name, dtype)
    together = encoder.encode_passages(TEXTS)
    assert together.shape == (len(TEXTS), encoder.dim)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(encoder.encode_passages(TEXTS[::-1])[::-1], together)
    alone = np.concatenate([encoder.encode_passages([text]) for text in TEXTS])
    np.testing.assert_array_equal(alone, together)
    other = open_encoder(name, dtype, threads=2)
    np.testing.assert_array_equal(other.encode_passages(TEXTS), together)
    # the side that was encoded before leaves no trace
    encoder.encode_queries(TEXTS[:3])
    np.testing.assert_array_equal(encoder.encode_passages(TEXTS), together)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_padded_batch_on_the_graph_gives_nearly_the_same_vectors(name: str) -> None:
    rows = read_ids(name, TEXTS, 30)
    alone = np.concatenate([run_graph(name, "float32", [row]) for row in rows])
    padded = run_graph(name, "float32", rows)
    assert len({len(row) for row in rows}) >= 5
    np.testing.assert_allclose(padded, alone, atol=1e-5)
    assert (alone * padded).sum(axis=1).min() > 0.99999


@pytest.mark.parametrize(("name", "dtype"), FORMS)
def test_texts_of_one_length_have_the_same_vectors_in_a_batch_to_the_bit(name: str, dtype: str) -> None:
    rows = [row[:9] for row in read_ids(name, TEXTS, 30) if len(row) >= 9]
    assert len(rows) > 30
    alone = np.concatenate([run_graph(name, dtype, [row]) for row in rows])
    for size in (2, 7, len(rows)):
        np.testing.assert_array_equal(run_graph(name, dtype, rows[:size]), alone[:size])


def test_threads_can_share_an_encoder() -> None:
    encoder = open_encoder("xlm-roberta", "int8")
    sides = [encoder.encode_queries, encoder.encode_passages] * 2
    expected = [open_encoder("xlm-roberta", "int8").encode_queries(TEXTS), encoder.encode_passages(TEXTS)] * 2
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            found = list(pool.map(lambda encode: encode(TEXTS), sides))
            np.testing.assert_array_equal(found, expected)


def test_batches_hold_texts_of_one_length_within_the_budget() -> None:
    lengths = [3, 9, 3, 40, 3, 9, 3, 3]
    assert list(cut_batches(lengths, 12, padded=False)) == [[3], [1], [5], [0, 2, 4, 6], [7]]
    assert list(cut_batches(lengths, 18, padded=True)) == [[3], [1, 5], [0, 2, 4, 6, 7]]
    assert list(cut_batches([], 12, padded=True)) == []


def test_no_texts_give_no_vectors() -> None:
    assert open_encoder("bert").encode_queries([]).shape == (0, 32)


def test_an_empty_text_has_a_vector() -> None:
    vectors = open_encoder("minilm").encode_passages(["", "1"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_an_encoder_describes_what_decides_its_vectors() -> None:
    encoder = open_encoder("bert", "int8")
    assert encoder.describe() == {
        "sha256": encoder.folder.sha256(),
        "pooling": "mean",
        "normalise": True,
        "query_prefix": "query: ",
        "passage_prefix": "passage: ",
        "max_query_tokens": 12,
        "max_passage_tokens": 30,
        "dtype": "int8",
    }
    assert encoder.device == "cpu"


def test_an_unknown_device_is_refused() -> None:
    for device in ("tpu", "cuda:", "cuda:x", "cuda:0,cuda:1", "CPU", ""):
        with pytest.raises(ModelError, match=rf"unknown device '{device}'\. Cure: use auto, cpu, cuda for all GPUs"):
            Encoder(exported_encoder("bert"), device=device)


def test_a_graph_that_cannot_be_opened_is_reported_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(
        ModelError, match=r"model\.onnx cannot be opened by ONNX Runtime: .* Cure: export the model again\."
    ):
        Session(tmp_path / "model.onnx", "cpu")


def test_inputs_that_the_graph_refuses_are_reported_with_their_shapes() -> None:
    session = Session(exported_encoder("bert") / "model.onnx", "cpu", threads=1)
    ids = np.ones((2, 5), dtype=np.int64)
    with pytest.raises(ModelError, match=r"inputs of shape input_ids \(2, 5\), attention_mask \(2, 4\)"):
        session.run({"input_ids": ids, "attention_mask": ids[:, :4]})


USE = """
import json, sys
from pathlib import Path
import xqg_qdrant.inference.encoder, xqg_qdrant.generation.onnx, xqg_qdrant.augmentation.pipeline, xqg_qdrant.cli
vectors = xqg_qdrant.inference.encoder.Encoder(Path(sys.argv[1]), "cpu", 1).encode_queries(["Missä?", "Где?"])
print(json.dumps([vectors.tolist(), sorted(sys.modules)]))
"""


def test_encoding_needs_neither_torch_nor_transformers_and_gives_the_same_bits_in_a_new_process() -> None:
    command = [sys.executable, "-c", USE, str(exported_encoder("minilm", "int8"))]
    output = subprocess.run(command, capture_output=True, check=True, cwd=CHECKOUT, timeout=120).stdout
    vectors, modules = json.loads(output)
    assert not {"torch", "transformers", "onnx", "huggingface_hub", "scipy"} & set(modules)
    expected: Any = open_encoder("minilm", "int8").encode_queries(["Missä?", "Где?"])
    np.testing.assert_array_equal(np.array(vectors, dtype=np.float32), expected)


def test_the_shipped_encoder_gives_a_text_the_same_bits_alone_and_beside_others(demo_encoder: Encoder) -> None:
    questions = [query.text for query in read_demo_queries()[:80]]
    alone = np.concatenate([demo_encoder.encode_queries([question]) for question in questions])
    np.testing.assert_array_equal(demo_encoder.encode_queries(questions), alone)
    np.testing.assert_array_equal(demo_encoder.encode_queries(questions[::3]), alone[::3])
