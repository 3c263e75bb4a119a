"""Which devices run a model, and what happens where their memory ends. What needs a GPU is marked `gpu`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from checkpoints import corpus, exported_encoder, exported_generator, passages
from click.testing import CliRunner
from devices import TOO_MUCH, limit_memory, pad_runs
from foreign_folders import sentence_transformers_folder

from xqg_qdrant.cli import main
from xqg_qdrant.errors import ModelError, OutOfMemoryError
from xqg_qdrant.generation.onnx import QueryGenerator, Sampling
from xqg_qdrant.inference import seq2seq, session
from xqg_qdrant.inference.batching import Budget
from xqg_qdrant.inference.encoder import CUDA_TOKENS_A_RUN, Encoder
from xqg_qdrant.inference.session import OUT_OF_MEMORY, Session, count_gpus, find_devices, is_cuda_at_hand
from xqg_qdrant.streams import CUDA_WORKERS, count_workers

TEXTS = [text[: 9 + 11 * number] for number, text in enumerate(corpus()[20:50])]
SAMPLING = Sampling(top_k=4, temperature=1.0, max_new_tokens=12)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "count_gpus", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
def test_a_choice_stands_for_every_gpu_or_for_one() -> None:
    assert find_devices("cpu") == ["cpu"]
    assert find_devices("cuda") == find_devices("auto") == ["cuda:0", "cuda:1"]
    assert find_devices("cuda:1") == ["cuda:1"]
    with pytest.raises(ModelError, match=r"there is no cuda:2 here\. Cure: choose one of cuda:0, cuda:1, or"):
        find_devices("cuda:2")


def test_without_a_gpu_auto_is_the_cpu_and_cuda_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "count_gpus", lambda: 0)
    assert find_devices("auto") == ["cpu"]
    for device in ("cuda", "cuda:0"):
        with pytest.raises(ModelError, match=r"CUDA was asked for, but does not run here\. Cure: install"):
            find_devices(device)


@pytest.mark.parametrize("command", ["ingest corpus.jsonl", "query question", "evaluate", "doctor"])
def test_every_command_takes_a_gpu_by_its_number(command: str) -> None:
    done = CliRunner().invoke(main, [*command.split(), "--device", "cuda:0", "--no-such-option"])
    assert "No such option" in done.stderr
    done = CliRunner().invoke(main, [*command.split(), "--device", "gpu"])
    assert done.exit_code == 2
    assert "'gpu' is not one of auto, cpu, cuda, cuda:0, cuda:1" in done.stderr


def test_each_gpu_has_workers_of_its_own() -> None:
    assert count_workers("cuda:0,cuda:1,cuda:2") == 3 * CUDA_WORKERS
    assert count_workers("cuda:3") == CUDA_WORKERS


@pytest.mark.usefixtures("two_gpus")
def test_missing_cuda_libraries_are_named_in_the_error_and_not_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    printed = "Failed to load libcudnn.so.9:\n no such file"
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print(printed))  # noqa: T201
    path = exported_encoder("bert") / "model.onnx"
    with pytest.raises(ModelError) as caught:
        Session(path, "cuda:1", threads=1)
    assert caught.value.message == (
        "CUDA was asked for, but does not run here. The runtime reports: Failed to load libcudnn.so.9: no such file."
    )
    assert caught.value.cure.startswith("install its libraries with: pip install 'xqg-qdrant[cuda]'")
    assert Session(path, "auto", threads=1).device == "cpu"
    assert Session(path, "cuda:1", threads=1, optional=True).device == "cpu"
    assert capfd.readouterr().out == ""


def spread_over_two(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Let a model open two sessions, as on two GPUs."""
    monkeypatch.setattr(f"xqg_qdrant.{module}.find_devices", lambda device: ["cpu", "cpu"])


def test_the_calls_of_an_encoder_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Encoder(exported_encoder("bert"), "cpu", 1).encode_passages(TEXTS)
    spread_over_two(monkeypatch, "inference.encoder")
    encoder = Encoder(exported_encoder("bert"), "cpu", 1)
    assert len({id(one) for one in encoder._sessions}) == 2
    ran: list[int] = []
    for number, one in enumerate(encoder._sessions):
        monkeypatch.setattr(one, "run", record(one.run, ran, number))
    for turn in (0, 1, 0):
        ran.clear()
        np.testing.assert_array_equal(encoder.encode_passages(TEXTS), expected)
        assert set(ran) == {turn}


def record(run: Any, ran: list[int], number: int) -> Any:  # noqa: ANN401
    def recorded(*given: Any) -> Any:  # noqa: ANN401
        ran.append(number)
        return run(*given)

    return recorded


def test_the_calls_of_a_generator_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = exported_generator("mt5")
    expected = QueryGenerator(folder, "cpu", 1).generate(passages()[:3], ["fi", "ja"], 2, 0, SAMPLING)
    spread_over_two(monkeypatch, "generation.onnx")
    generator = QueryGenerator(folder, "cpu", 1)
    used: list[Any] = []

    class Step(seq2seq.DecoderStep):
        def __init__(self, graphs: Any, *given: Any) -> None:  # noqa: ANN401
            used.append(graphs)
            super().__init__(graphs, *given)

    monkeypatch.setattr("xqg_qdrant.inference.seq2seq.DecoderStep", Step)
    for _ in range(2):
        assert generator.generate(passages()[:3], ["fi", "ja"], 2, 0, SAMPLING) == expected
    decoders: list[Any] = generator._decoders
    assert [id(graphs) for graphs in used] == [id(decoder.graphs) for decoder in decoders]


MEMORY_MESSAGES = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running FusedMatMul node. "
    "Name:'MatMul_92' Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* "
    "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*, bool, "
    "onnxruntime::WaitNotificationFn) Failed to allocate memory for requested buffer of size 8388608000",
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0 ; hostname=host ; file=cuda_allocator.cc ; "
    "line=48 ; expr=cudaMalloc((void**)&p, size);",
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=host ; expr=cublasCreate(&cublas_handle_);",
    "Status Message: std::bad_alloc",
    "Exception during initialization: bad allocation",
)


@pytest.mark.parametrize("said", MEMORY_MESSAGES)
def test_the_runtimes_words_for_no_memory_are_known(said: str) -> None:
    assert OUT_OF_MEMORY.search(said)


def test_other_failures_are_not_taken_for_no_memory() -> None:
    encoder = Session(exported_encoder("bert") / "model.onnx", "cpu", threads=1)
    ids = np.ones((2, 5), dtype=np.int64)
    with pytest.raises(ModelError) as caught:
        encoder.run({"input_ids": ids, "attention_mask": ids[:, :4]})
    assert not isinstance(caught.value, OutOfMemoryError)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose graph finds memory for 100 tokens in a run, and for no more."""
    folder = Path(shutil.copytree(sentence_transformers_folder("e5"), tmp_path_factory.mktemp("small") / "model"))
    limit_memory(folder / "onnx" / "model.onnx", 100)
    return folder


def test_where_memory_ends_smaller_runs_give_the_same_vectors_and_it_is_said(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder, whole = Encoder(small, "cpu", 1), Encoder(sentence_transformers_folder("e5"), "cpu", 1)
    pad_runs(encoder)
    pad_runs(whole)
    np.testing.assert_allclose(encoder.encode_passages(TEXTS), whole.encode_passages(TEXTS), atol=1e-6)
    said = [record.getMessage() for record in caplog.records]
    tokens = [[int(word) for word in message.split() if word.isdigit()] for message in said]
    assert len(said) > 2
    assert all(message.startswith("out of memory with") for message in said)
    assert all(second == first // 2 for first, second in tokens)
    assert encoder._budget.most == tokens[-1][1] <= 100
    # What was learnt holds from then on.
    caplog.clear()
    encoder.encode_passages(TEXTS)
    assert caplog.records == []


def test_a_text_that_finds_no_memory_alone_is_an_error_with_a_cure(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sentence_transformers_folder("e5"), tmp_path / "model"))
    limit_memory(folder / "onnx" / "model.onnx", 30)
    encoder = Encoder(folder, "cpu", 1)
    pad_runs(encoder)
    with pytest.raises(ModelError, match=r"one run of 40 tokens does not fit: .* Cure: free memory") as caught:
        encoder.encode_passages(TEXTS)
    assert f"Failed to allocate memory for requested buffer of size {4 * TOO_MUCH}" in str(caught.value)


def test_the_command_line_says_so_unless_it_is_to_be_quiet(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Encoder.__init__

    def open_padded(encoder: Encoder, *given: Any) -> None:
        opened(encoder, *given)
        pad_runs(encoder)

    monkeypatch.setattr(Encoder, "__init__", open_padded)
    rows = [f'{{"id": {number}, "text": "{"lake " * 30}", "generated_queries": []}}' for number in range(9)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows))
    command = [
        "ingest",
        str(tmp_path / "corpus.jsonl"),
        "--queries",
        "corpus",
        "--no-calibrate",
        "--encoder",
        str(small),
        "--device",
        "cpu",
    ]
    place = ["--collection", "docs", "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(main, [*command, *place])
    assert done.exit_code == 0, done.output
    assert "Warning: out of memory with 315 tokens in a run; continuing with 157\n" in done.stderr
    quiet = CliRunner().invoke(main, ["-q", *command, *place[:2], "--store", str(tmp_path / "other")])
    assert (quiet.exit_code, quiet.stderr) == (0, "")


def test_where_memory_ends_smaller_batches_give_the_same_queries(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = exported_generator("mt5")
    expected = QueryGenerator(folder, "cpu", 1).generate(passages(), ["fi", "ja"], 2, 3, SAMPLING)
    generator = QueryGenerator(folder, "cpu", 1)
    tried: list[int] = []

    class Small(seq2seq.DecoderStep):
        def __init__(self, graphs: Any, memory: Any, prompts: Sequence[Any], *given: Any) -> None:  # noqa: ANN401
            tried.append(len(prompts))
            super().__init__(graphs, memory, prompts, *given)
            self.prompts, self.steps = len(prompts), 0

        def __call__(self, *given: Any) -> Any:  # noqa: ANN401
            self.steps += 1
            # Some steps in: what was written so far is lost, and written again.
            if self.prompts > 4 and self.steps > 2:
                raise OutOfMemoryError(MEMORY_MESSAGES[0])
            return super().__call__(*given)

    monkeypatch.setattr("xqg_qdrant.inference.seq2seq.DecoderStep", Small)
    assert generator.generate(passages(), ["fi", "ja"], 2, 3, SAMPLING) == expected
    assert tried[0] == 20
    assert max(tried[tried.index(min(tried)) :]) <= 4
    assert "bytes in a run; continuing with" in caplog.text


def cut(items: Sequence[int], most: int) -> Iterator[list[int]]:
    for start in range(0, len(items), most):
        yield list(items[start : start + most])


def test_what_has_run_is_not_run_again_and_the_budget_is_halved_down_to_one() -> None:
    budget, done = Budget(8, "text"), []

    def run(batch: list[int]) -> None:
        if len(batch) > 4 or (len(batch) > 1 and 13 in batch):
            raise OutOfMemoryError("out of memory")
        done.append(batch)

    budget.work(15, cut, len, run)
    # 8 → 4; the fourth batch holds 13: 4 → 1 of three
    assert done == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12], [13], [14]]
    assert budget.most == 1


def test_a_worker_that_fails_with_what_others_have_halved_already_leaves_their_budget() -> None:
    budget = Budget(64, "text")

    def run(batch: list[int]) -> None:
        if len(batch) > 32:
            # Meanwhile another thread has found out the same, and a third one more.
            budget._halve(64)
            budget._halve(32)
            raise OutOfMemoryError("out of memory")

    budget.work(64, cut, len, run)
    assert budget.most == 16


@pytest.fixture(scope="session")
def gpu() -> None:
    if not is_cuda_at_hand():
        pytest.skip("needs a CUDA device")


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("folder", [lambda: exported_encoder("bert"), lambda: sentence_transformers_folder("labse")])
def test_a_gpu_gives_nearly_the_vectors_of_the_cpu(folder: Any) -> None:  # noqa: ANN401
    encoder, expected = Encoder(folder(), "cuda"), Encoder(folder(), "cpu")
    assert encoder.device == ",".join(f"cuda:{number}" for number in range(count_gpus()))
    for _ in range(count_gpus()):
        found = encoder.encode_passages(TEXTS)
        np.testing.assert_allclose(found, expected.encode_passages(TEXTS), atol=1e-3)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
def test_a_gpu_writes_the_greedy_queries_of_the_cpu() -> None:
    folder = exported_generator("mt5")
    greedy = Sampling(top_k=1, temperature=1.0, max_new_tokens=12)
    expected = QueryGenerator(folder, "cpu").generate(passages(), ["fi", "ja"], 1, 0, greedy)
    for number in range(count_gpus()):
        assert QueryGenerator(folder, f"cuda:{number}").generate(passages(), ["fi", "ja"], 1, 0, greedy) == expected


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
def test_a_gpu_whose_memory_ends_says_so_in_words_that_are_known(small: Path) -> None:
    encoder = Encoder(small, "cuda:0")
    expected = Encoder(sentence_transformers_folder("e5"), "cpu").encode_passages(TEXTS)
    np.testing.assert_allclose(encoder.encode_passages(TEXTS), expected, atol=1e-3)
    assert encoder._budget.most < CUDA_TOKENS_A_RUN


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
def test_doctor_finds_operators_on_every_kind_of_gpu_choice(tmp_path: Path) -> None:
    for device in ("cuda", "cuda:0", "auto"):
        done = CliRunner().invoke(main, ["doctor", "--device", device, "--store", str(tmp_path / "store")])
        assert done.exit_code == 0, done.output
        assert "operators on cuda" in done.stdout
