"""Run ONNX graphs on CPUs and GPUs; the only module that imports ONNX Runtime."""

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
from xqg_qdrant.inference.batching import MEMORY_CURE
from xqg_qdrant.inference.integer_products import EXACT_CONSTANTS, make_probe, with_unsigned_operands
from xqg_qdrant.text import count_of

Array: TypeAlias = npt.NDArray[Any]

AUTO, CPU, CUDA = "auto", "cpu", "cuda"
DEVICE = re.compile(rf"{AUTO}|{CPU}|{CUDA}(:[0-9]{{1,2}})?")
# The folder in which a graph that is opened from bytes finds its weights.
EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
CUDA_PROVIDER = "CUDAExecutionProvider"
NO_CUDA = "CUDA was asked for, but does not run here."
CUDA_CURE = (
    "install its libraries with: pip install 'xqg-qdrant[cuda]', check that nvidia-smi sees the GPU, "
    "or use --device cpu"
)
# What the runtime, CUDA and its libraries report when memory is exhausted; they raise no exception type of their own.
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

    `device` is `"cpu"`, or `"cuda:0"` with the GPU's number: the one that the runtime chose, not the one asked for.
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
        """Open the graph on one device.

        Args:
            path: the graph.
            device: one of `find_devices`, or its argument; of several GPUs the first is used.
            threads: CPU threads for one operator; 0 leaves the number to the runtime.
            profile: a folder for the runtime's profile, which `count_operators` reads.
            optional: fall back to the CPU if CUDA does not run, as `auto` always does.
            unsigned_operands: edit the graph first with `integer_products.with_unsigned_operands`.

        Raises:
            ModelError: the file is not a usable graph, or CUDA was asked for and does not run.
            OutOfMemoryError: the graph does not fit into the device's memory.
        """
        onnxruntime = _import_runtime()

        wanted = find_devices(device)[0]
        cuda_wanted = wanted != CPU
        missing = _preload_cuda() if cuda_wanted else ""
        self._kind, _, number = wanted.partition(":")
        self._number = int(number or 0)
        options = _make_options(threads)
        if not are_products_exact():
            options.add_session_config_entry(EXACT_CONSTANTS, "1")
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
                    f"{path} has an operator that this device lacks, perhaps because it computes in bfloat16, which "
                    f"ONNX Runtime does on a GPU only ({error}).",
                    "use --device cuda, or export the model in int8 for a CPU",
                ) from error
            raise _failure(f"{path} cannot be opened by ONNX Runtime: {error}") from error
        if CUDA_PROVIDER not in self._session.get_providers():
            self._kind, self._number = CPU, 0
            if wanted != CPU and not (optional or device == AUTO):
                raise ModelError(f"{NO_CUDA}{f' The runtime reports: {missing}.' if missing else ''}", CUDA_CURE)
        self.device = f"{CUDA}:{self._number}" if self._kind == CUDA else CPU
        self.input_names = tuple(node.name for node in self._session.get_inputs())
        self.output_names = tuple(node.name for node in self._session.get_outputs())
        self.input_shapes = {node.name: tuple(node.shape) for node in self._session.get_inputs()}
        self.output_shapes = {node.name: tuple(node.shape) for node in self._session.get_outputs()}
        unknown = [node for node in self._session.get_inputs() if node.type not in _DTYPES]
        if unknown:
            raise ModelError(
                f"{path} takes {unknown[0].name!r} as {unknown[0].type}, which xqg does not support.",
                "export the model again",
            )
        self.input_dtypes = {node.name: _DTYPES[node.type] for node in self._session.get_inputs()}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """Run the graph once and return the named outputs, by default all in the graph's order.

        Raises:
            OutOfMemoryError: the run does not fit into the device's memory.
            ModelError: the graph rejects the inputs.
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
        """Return the bytes of these inputs; sizes that the graph leaves open count as 1."""
        return sum(
            math.prod(size for size in self.input_shapes[name] if isinstance(size, int))
            * np.dtype(self.input_dtypes[name]).itemsize
            for name in names
        )

    def count_operators(self) -> dict[str, int]:
        """Return the number of operators that ran on each device, by the runtime's profile; ends the profile."""
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        ran = [event["args"]["provider"] for event in events if "provider" in event.get("args", {})]
        return {_name_device(provider): ran.count(provider) for provider in sorted(set(ran))}

    def buffer(self, array: Array) -> Buffer:
        """Return memory on the graph's device, filled from an array in C order."""
        return Buffer(array, self._kind, self._number)

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Callable[[], None]:
        """Return a function that runs the graph once, from these buffers into those.

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
                raise _failure(
                    f"the model failed on {count_of(len(kept), 'buffer')}, inputs {shapes}: {error}"
                ) from error

        return run


class Buffer:
    """Memory of a fixed shape on a graph's device; on a CPU it is the array's own, elsewhere a copy."""

    def __init__(self, array: Array, kind: str, number: int) -> None:
        onnxruntime = _import_runtime()

        self.array = array
        try:
            self.ort_value = onnxruntime.OrtValue.ortvalue_from_numpy(array, kind, number)
        except Exception as error:
            raise _failure(f"an array of shape {array.shape} does not fit on {kind}:{number}: {error}") from error
        self._is_copy = kind != CPU

    def push(self) -> None:
        """Copy the array to the device."""
        if self._is_copy:
            self.ort_value.update_inplace(self.array)

    def pull(self) -> None:
        """Copy the graph's output to the array."""
        if self._is_copy:
            self.array[...] = self.ort_value.numpy()


@cache
def are_products_exact() -> bool:
    """Return whether this CPU multiplies uint8 by int8 exactly.

    Runs one product that would saturate 16 bits.
    """
    rows, weights = np.full((8, 64), 255, dtype=np.uint8), np.full((64, 16), 127, dtype=np.int8)
    session = _import_runtime().InferenceSession(make_probe(), _make_options(1), providers=["CPUExecutionProvider"])
    [products] = session.run(None, {"rows": rows, "weights": weights})
    return bool((products == 255 * 127 * 64).all())


def _make_options(threads: int) -> Any:  # noqa: ANN401
    options = _import_runtime().SessionOptions()
    options.intra_op_num_threads = threads
    # Errors are raised, and some are recoverable, so silence the runtime's log.
    options.log_severity_level = 4
    # A decoder step is too short for threads to spin while they wait: they occupy a core that others need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@cache
def _import_runtime() -> Any:  # noqa: ANN401
    """Return ONNX Runtime with its telemetry off, which version 1.31 sends unless disabled before the import."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # takes half a second, which `xqg --help` must not cost

    # Another package may have imported it earlier.
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def runtime_version() -> str:
    """Return the version of ONNX Runtime, which can change a result's last bits."""
    onnxruntime = _import_runtime()

    return str(onnxruntime.__version__)


def is_cuda_at_hand() -> bool:
    """Return whether the installed runtime supports CUDA and this process may use a GPU."""
    onnxruntime = _import_runtime()

    return CUDA_PROVIDER in onnxruntime.get_available_providers() and count_gpus() > 0


def find_devices(device: str) -> list[str]:
    """Return the devices for `cpu`, `cuda` (all GPUs), `cuda:N` or `auto`: `["cpu"]` or a list of `cuda:N`.

    `auto` means all GPUs, or the CPU if there are none.

    Raises:
        ModelError: the choice is unknown, or there is no such GPU.
    """
    if not DEVICE.fullmatch(device):
        raise ModelError(f"unknown device {device!r}.", "use auto, cpu, cuda for all GPUs, or cuda:N for one")
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
    """Return the devices of a model's sessions: `cpu`, or the GPUs joined by commas."""
    return ",".join(dict.fromkeys(devices))


def count_gpus() -> int:
    """Return the number of GPUs this process may use, from NVIDIA's driver, which obeys CUDA_VISIBLE_DEVICES."""
    # On a machine without a driver, asking the runtime for CUDA makes it print errors.
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


def _preload_cuda() -> str:
    """Load CUDA's libraries from their Python packages; return the runtime's message on what is missing."""
    onnxruntime = _import_runtime()

    # The runtime prints to standard output, which is for data.
    with redirect_stdout(io.StringIO()) as printed:
        onnxruntime.preload_dlls()
    return " ".join(printed.getvalue().split())


def _failure(message: str) -> ModelError:
    # The runtime's messages may span several lines.
    message = f"{' '.join(message.split()).removesuffix('.')}."
    if OUT_OF_MEMORY.search(message):
        return OutOfMemoryError(message, MEMORY_CURE)
    return ModelError(message, "export the model again")


def _name_device(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider").lower()
