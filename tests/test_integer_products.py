"""8-bit products are exact on every CPU: probed, edited, and run by a CPU without VNNI where one can be emulated."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from checkpoints import exported_generator, passages
from on_a_cpu_without_vnni import FORMS, measure, write_products
from test_generator import SAMPLING

from xqg_qdrant.doctor import check_integers
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference import seq2seq as decoder
from xqg_qdrant.inference import session
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.inference.integer_products import EXACT_CONSTANTS, make_probe, with_unsigned_operands
from xqg_qdrant.inference.seq2seq import Decoder
from xqg_qdrant.inference.session import are_products_exact

needs_exact_products = pytest.mark.skipif(
    not are_products_exact(), reason="without VNNI this CPU has no exact product of int8 constants to compare with"
)


def saturating_product(rows: Any, weights: Any) -> Any:  # noqa: ANN401
    """Multiply as AVX2's vpmaddubsw does: the sum of two neighbouring products is cut to 16 bits."""
    pairs = rows.astype(np.int64)[:, None, :] * weights.T.astype(np.int64)[None]
    return np.clip(pairs.reshape(*pairs.shape[:2], -1, 2).sum(axis=-1), -(2**15), 2**15 - 1).sum(axis=-1)


def probe_operands() -> dict[str, Any]:
    return {"rows": np.full((8, 64), 255, np.uint8), "weights": np.full((64, 16), 127, np.int8)}


def test_the_operands_of_the_probe_saturate_16_bits_and_give_another_product() -> None:
    found = saturating_product(*probe_operands().values())
    assert (found == 32 * (2**15 - 1)).all()
    assert (found != 255 * 127 * 64).all()


@pytest.mark.parametrize("exact", [True, False])
def test_the_probe_tells_an_exact_product_from_a_saturating_one(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Runtime:
        @staticmethod
        def InferenceSession(*_: Any, **__: Any) -> Any:  # noqa: ANN401, N802
            return Runtime

        @staticmethod
        def run(_: None, feeds: dict[str, Any]) -> list[Any]:
            rows, weights = feeds["rows"], feeds["weights"]
            return [rows.astype(np.int64) @ weights.astype(np.int64) if exact else saturating_product(rows, weights)]

    monkeypatch.setattr(session, "_import_runtime", lambda: Runtime)
    monkeypatch.setattr(session, "_make_options", lambda threads: None)
    assert are_products_exact.__wrapped__() is exact


def test_the_probe_is_a_model_of_one_product_of_an_unsigned_and_a_signed_operand() -> None:
    options = onnxruntime.SessionOptions()
    opened = onnxruntime.InferenceSession(make_probe(), options, providers=["CPUExecutionProvider"])
    assert {node.name: node.type for node in opened.get_inputs()} == {
        "rows": "tensor(uint8)", "weights": "tensor(int8)"
    }  # fmt: skip


def test_an_edited_product_of_uint8_operands_gives_the_integers_of_the_plain_one() -> None:
    rng = np.random.default_rng(0)
    rows, weights = rng.integers(0, 256, (9, 64), np.uint8), rng.integers(-127, 128, (64, 16), np.int8)
    edited = onnxruntime.InferenceSession(with_unsigned_operands(make_probe()), providers=["CPUExecutionProvider"])
    [found] = edited.run(None, {"rows": rows, "weights": (weights.astype(np.int16) + 128).astype(np.uint8)})
    np.testing.assert_array_equal(found, rows.astype(np.int64) @ weights.astype(np.int64))


def test_a_model_without_such_operands_stays_as_it_is() -> None:
    model = (exported_generator("t5") / "decoder.onnx").read_bytes()
    assert with_unsigned_operands(model) == model


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match="ends"):
        with_unsigned_operands(b"\x3a\x7f")


@needs_exact_products
@pytest.mark.parametrize("form", ["t5", "mt5", "bert2bert"])
def test_queries_are_the_same_with_the_cross_attention_in_uint8(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> tuple[Any, bool]:
        generator = QueryGenerator(exported_generator(form, "int8"), "cpu", threads=1)
        [opened] = generator._decoders
        assert isinstance(opened, Decoder)
        unsigned = opened.graphs.decoder.input_dtypes["cross_key_0"] == np.uint8
        return generator.generate(passages()[:6], generator.languages, 3, 0, SAMPLING), unsigned

    results = []
    for exact in (True, False):
        for module in (decoder, session):
            monkeypatch.setattr(module, "are_products_exact", lambda exact=exact: exact)
        queries, unsigned = write()
        assert unsigned is not exact
        results.append(queries)
    assert results[0] == results[1]


@needs_exact_products
def test_constants_become_unsigned_only_where_products_saturate_and_give_the_same_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vectors = []
    for exact in (True, False):
        monkeypatch.setattr(session, "are_products_exact", lambda exact=exact: exact)
        encoder = Encoder(None, "cpu", threads=1)
        vectors.append(encoder.encode_passages([passage.text for passage in passages()[:3]]))
        options = encoder._session._session.get_session_options()
        with nullcontext() if not exact else pytest.raises(RuntimeError, match=EXACT_CONSTANTS):
            assert options.get_session_config_entry(EXACT_CONSTANTS) == "1"
    cosines = (vectors[0] * vectors[1]).sum(axis=1)
    assert cosines.min() > 0.99999


def test_doctor_names_the_kernel_either_way() -> None:
    assert "uint8 × int8, exact" in check_integers(exact=True).detail
    assert "uint8 × uint8, exact" in check_integers(exact=False).detail


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="emulating a CPU without VNNI needs valgrind")
def test_on_a_cpu_without_vnni_products_are_exact_and_queries_the_same(tmp_path: Path) -> None:
    write_products(tmp_path)
    script = Path(__file__).parent / "support/on_a_cpu_without_vnni.py"
    command = ["valgrind", "--tool=none", "-q", sys.executable, str(script), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    there, here = json.loads((tmp_path / "result.json").read_text()), measure(tmp_path)
    assert there["exact"] is False
    assert there["errors"] == pytest.approx(dict.fromkeys(FORMS, 0), abs=1e-6)
    assert there["queries"] == here["queries"]
    one, other = np.array(there["vector"]), np.array(here["vector"])
    # Sums of floats round differently there, which moves single int8 values by a step.
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.9995
