"""The only door to ONNX Runtime: which devices, how many threads, what really ran.

Knows ONNX files, providers and arrays. Knows nothing of texts, tokens or pooling.
"""

from __future__ import annotations

import ctypes
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from xqg_qdrant.errors import ModelError, OutOfMemoryError
from xqg_qdrant.inference.integer_products import EXACT_CONSTANTS, make_probe, with_unsigned_operands

Array: TypeAlias = npt.NDArray[Any]

AUTO, CPU, CUDA = "auto", "cpu", "cuda"
DEVICE = re.compile(rf"{AUTO}|{CPU}|{CUDA}(:[0-9]{{1,2}})?")
# Where a graph that is opened from bytes finds its weights.
EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
CUDA_PROVIDER = "CUDAExecutionProvider"
NO_CUDA = "CUDA was asked for, but does not run here."
CUDA_CURE = (
    "install its libraries with: pip install 'xqg-qdrant[cuda]', check that nvidia-smi sees the GPU, "
    "or use --device cpu"
)
# What the runtime, CUDA and its libraries say where memory ends; there is no kind of exception of its own for it.
OUT_OF_MEMORY = re.compile(r"Failed to allocate memory|out of memory|ALLOC_FAILED|bad[_ ]alloc")


_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class Session:
    """An open ONNX graph.

    `device` is `"cpu"` or `"cuda:0"`, with the GPU's number: the one that the runtime really chose, not the one that
    was asked for.
    """

    def __init__(
        self,
        path: Path,
        device: str = AUTO,
        threads: int = 0,
        profile: Path | None = None,
        optional: bool = False,
        unsigned_operands: bool = False,
    ) -> None:
        """Open the graph on one device, of all GPUs the first.

        Args:
            path: the graph.
            device: one of `find_devices`, or a choice that it takes.
            threads: for one operator; 0 leaves it to the runtime.
            profile: a folder that the runtime writes into what ran, for `count_operators`.
            optional: the CPU takes the place of a GPU if CUDA does not run, as always with `auto`.
            unsigned_operands: open it as `integer_products.with_unsigned_operands` edits it.

        Raises:
            ModelError: the file is not a usable graph, or CUDA was asked for and does not run.
            OutOfMemoryError: the device has no room for it.
        """
        onnxruntime = _import_runtime()

        wanted = find_devices(device)[0]
        cuda_wanted = wanted != CPU
        said = _preload_cuda() if cuda_wanted else ""
        self._kind, _, number = wanted.partition(":")
        self._number = int(number or 0)
        options = _make_options(threads)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile / "profile")
        model: str | bytes = str(path)
        if unsigned_operands:
            model = with_unsigned_operands(path.read_bytes())
            options.add_session_config_entry(EXTERNAL_DATA_FOLDER, str(path.parent))
        providers: list[Any] = ["CPUExecutionProvider"]
        if cuda_wanted:
            providers.insert(0, (CUDA_PROVIDER, {"device_id": self._number}))
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=providers)
        except Exception as error:
            if "NOT_IMPLEMENTED" in str(error):
                raise ModelError(
                    f"{path} has an operator that this device lacks. If it computes in bfloat16, which ONNX Runtime "
                    f"does on a GPU only, use --device cuda, or export the model in int8 for a CPU ({error})"
                ) from error
            raise _failure(f"{path} cannot be opened by ONNX Runtime: {error}. Export the model again.") from error
        if CUDA_PROVIDER not in self._session.get_providers():
            self._kind, self._number = CPU, 0
            if wanted != CPU and not (optional or device == AUTO):
                raise ModelError(f"{NO_CUDA}{f' The runtime said: {said}' if said else ''}", CUDA_CURE)
        self.device = f"{CUDA}:{self._number}" if self._kind == CUDA else CPU
        self.input_names = tuple(node.name for node in self._session.get_inputs())
        self.output_names = tuple(node.name for node in self._session.get_outputs())
        self.input_shapes = {node.name: tuple(node.shape) for node in self._session.get_inputs()}
        self.output_shapes = {node.name: tuple(node.shape) for node in self._session.get_outputs()}
        foreign = [node for node in self._session.get_inputs() if node.type not in _DTYPES]
        if foreign:
            raise ModelError(
                f"{path} takes {foreign[0].name!r} as {foreign[0].type}, which no model of xqg does.",
                "export the model again.",
            )
        self.input_dtypes = {node.name: _DTYPES[node.type] for node in self._session.get_inputs()}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """Run the graph once and return these of its outputs, by default all in its order.

        Raises:
            OutOfMemoryError: the device has no room for it.
            ModelError: the graph refuses the inputs.
        """
        try:
            binding = self._session.io_binding()
            # The runtime does not keep the memory alive.
            kept = {name: self.buffer(value) for name, value in feeds.items()}
            for name, buffer in kept.items():
                binding.bind_ortvalue_input(name, buffer.ort_value)
            for name in outputs or self.output_names:
                binding.bind_output(name, self._kind, self._number)
            self._session.run_with_iobinding(binding)
            results: list[Array] = binding.copy_outputs_to_cpu()
        except Exception as error:
            shapes = ", ".join(f"{name} {np.shape(value)}" for name, value in feeds.items())
            raise _failure(f"the model failed on inputs of shape {shapes}: {error}") from error
        return results

    def bytes_of(self, names: Iterable[str]) -> int:
        """Return the bytes of these inputs, with every size that the graph leaves open taken as 1."""
        return sum(
            math.prod(size for size in self.input_shapes[name] if isinstance(size, int))
            * np.dtype(self.input_dtypes[name]).itemsize
            for name in names
        )

    def count_operators(self) -> dict[str, int]:
        """Return how many operators ran on each device so far, by the runtime's own profile; ends the profile."""
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        ran = [event["args"]["provider"] for event in events if "provider" in event.get("args", {})]
        return {_name_device(provider): ran.count(provider) for provider in sorted(set(ran))}

    def buffer(self, array: Array) -> Buffer:
        """Make memory where the graph runs from an array in C order."""
        return Buffer(array, self._kind, self._number)

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Callable[[], None]:
        """Return a function that runs the graph once, in place: from these buffers into those.

        An input and an output may share a buffer where the graph updates it.
        """
        binding = self._session.io_binding()
        for name, buffer in inputs.items():
            binding.bind_ortvalue_input(name, buffer.ort_value)
        for name, buffer in outputs.items():
            binding.bind_ortvalue_output(name, buffer.ort_value)
        # The runtime does not keep the memory alive.
        kept = [*inputs.values(), *outputs.values()]

        def run() -> None:
            try:
                self._session.run_with_iobinding(binding)
            except Exception as error:
                shapes = ", ".join(f"{name} {np.shape(buffer.array)}" for name, buffer in inputs.items())
                raise _failure(f"the model failed on {len(kept)} buffers, inputs {shapes}: {error}") from error

        return run


class Buffer:
    """Memory of a fixed shape where a graph runs; on a CPU it is the array's own, elsewhere a copy."""

    def __init__(self, array: Array, kind: str, number: int) -> None:
        onnxruntime = _import_runtime()

        self.array = array
        try:
            self.ort_value = onnxruntime.OrtValue.ortvalue_from_numpy(array, kind, number)
        except Exception as error:
            raise _failure(f"an array of shape {array.shape} found no room on {kind}:{number}: {error}") from error
        self._is_copy = kind != CPU

    def push(self) -> None:
        """Bring what was written to the array to where the graph runs."""
        if self._is_copy:
            self.ort_value.update_inplace(self.array)

    def pull(self) -> None:
        """Bring what the graph wrote to the array."""
        if self._is_copy:
            self.array[...] = self.ort_value.numpy()


@cache
def are_products_exact() -> bool:
    """Return whether this CPU multiplies uint8 by int8 exactly: run one product that would saturate 16 bits."""
    rows, weights = np.full((8, 64), 255, dtype=np.uint8), np.full((64, 16), 127, dtype=np.int8)
    session = _import_runtime().InferenceSession(make_probe(), _make_options(1), providers=["CPUExecutionProvider"])
    [products] = session.run(None, {"rows": rows, "weights": weights})
    return bool((products == 255 * 127 * 64).all())


def _make_options(threads: int) -> Any:  # noqa: ANN401
    options = _import_runtime().SessionOptions()
    options.intra_op_num_threads = threads
    # Errors come as exceptions; some of them are no end of the work.
    options.log_severity_level = 4
    # A decoder step is too short for threads that wait by spinning: they take the core that the others need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(EXACT_CONSTANTS, "1")
    return options


@cache
def _import_runtime() -> Any:  # noqa: ANN401
    """Return ONNX Runtime, with the reports off that version 1.31 sends to its makers unless told otherwise first."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # half of a second, which `xqg --help` must not pay

    # Another program may have imported it before.
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def runtime_version() -> str:
    """Return the version of ONNX Runtime, which can change a result's last bits."""
    onnxruntime = _import_runtime()

    return str(onnxruntime.__version__)


def is_cuda_at_hand() -> bool:
    """Tell whether the installed runtime knows CUDA and this machine has a GPU that a process may use."""
    onnxruntime = _import_runtime()

    return CUDA_PROVIDER in onnxruntime.get_available_providers() and count_gpus() > 0


def find_devices(device: str) -> list[str]:
    """Return the devices that a choice stands for: `["cpu"]`, or `cuda:N` for each GPU of `cuda`, or that one.

    `auto` is all GPUs where there are any.

    Raises:
        ModelError: it is no such choice, or there is no GPU.
    """
    if not DEVICE.fullmatch(device):
        raise ModelError(f"unknown device {device!r}.", "give auto, cpu, cuda for all GPUs, or cuda:N for one")
    if device == CPU or (device == AUTO and not is_cuda_at_hand()):
        return [CPU]
    if not is_cuda_at_hand():
        raise ModelError(NO_CUDA, CUDA_CURE)
    gpus = [f"{CUDA}:{number}" for number in range(count_gpus())]
    if ":" not in device:
        return gpus
    if device not in gpus:
        raise ModelError(f"there is no {device} here.", f"choose one of {', '.join(gpus)}, or cuda for all")
    return [device]


def join_devices(devices: Iterable[str]) -> str:
    """Return where several sessions of one model run: `cpu`, or the GPUs with commas between."""
    return ",".join(dict.fromkeys(devices))


def count_gpus() -> int:
    """Return how many GPUs this process may use, by NVIDIA's driver, which heeds CUDA_VISIBLE_DEVICES."""
    # Asking for CUDA without a driver makes the runtime print errors on every machine that has no GPU.
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


def _preload_cuda() -> str:
    """Load CUDA's libraries from the Python packages that hold them; return what is missing, in the runtime's words."""
    onnxruntime = _import_runtime()

    # It prints to standard output, where the data goes.
    with redirect_stdout(io.StringIO()) as said:
        onnxruntime.preload_dlls()
    return " ".join(said.getvalue().split())


def _failure(message: str) -> ModelError:
    return (OutOfMemoryError if OUT_OF_MEMORY.search(message) else ModelError)(message)


def _name_device(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider").lower()
