"""The only door to ONNX Runtime: which device, how many threads, what really ran.

Knows ONNX files, providers and arrays. Knows nothing of texts, tokens or pooling.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from xqg_qdrant.errors import ModelError

Array: TypeAlias = npt.NDArray[Any]

DEVICES = ("auto", "cpu", "cuda")
CUDA_PROVIDER = "CUDAExecutionProvider"
NO_CUDA = (
    "CUDA was asked for, but does not run here. Install its libraries with: pip install 'xqg-qdrant[cuda]', "
    "check that nvidia-smi sees the GPU, or use --device cpu."
)


_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class Session:
    """An open ONNX graph.

    `device` is `"cuda"` or `"cpu"`: the one that the runtime really chose, not the one that was asked for.
    """

    def __init__(self, path: Path, device: str = "auto", threads: int = 0, profile: Path | None = None) -> None:
        """Open the graph; `threads` is for one operator, 0 leaves it to the runtime.

        Into the folder `profile` the runtime writes what ran, for `count_operators`.

        Raises:
            ModelError: the file is not a usable graph, or CUDA was asked for and does not run.
        """
        import onnxruntime  # half of a second, which `xqg --help` must not pay

        if device not in DEVICES:
            raise ModelError(f"unknown device {device!r}; choose one of {', '.join(DEVICES)}")
        if device == "cuda" and CUDA_PROVIDER not in onnxruntime.get_available_providers():
            raise ModelError(NO_CUDA)
        cuda_wanted = device == "cuda" or (device == "auto" and is_cuda_at_hand())
        if cuda_wanted:
            onnxruntime.preload_dlls()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile / "profile")
        # A decoder step is too short for threads that wait by spinning: they take the core that the others need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = [CUDA_PROVIDER, "CPUExecutionProvider"] if cuda_wanted else ["CPUExecutionProvider"]
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:
            if "NOT_IMPLEMENTED" in str(error):
                raise ModelError(
                    f"{path} has an operator that this device lacks. If it computes in bfloat16, which ONNX Runtime "
                    f"does on a GPU only, use --device cuda, or export the model in int8 for a CPU ({error})"
                ) from error
            raise ModelError(f"{path} cannot be opened by ONNX Runtime: {error}. Export the model again.") from error
        self.device = "cuda" if CUDA_PROVIDER in self._session.get_providers() else "cpu"
        if device == "cuda" and self.device != "cuda":
            raise ModelError(NO_CUDA)
        self.input_names = tuple(node.name for node in self._session.get_inputs())
        self.output_names = tuple(node.name for node in self._session.get_outputs())
        self.input_shapes = {node.name: tuple(node.shape) for node in self._session.get_inputs()}
        self.output_shapes = {node.name: tuple(node.shape) for node in self._session.get_outputs()}
        foreign = [node for node in self._session.get_inputs() if node.type not in _DTYPES]
        if foreign:
            raise ModelError(
                f"{path} takes {foreign[0].name!r} as {foreign[0].type}, which no model of xqg does. "
                "Cure: export the model again."
            )
        self.input_dtypes = {node.name: _DTYPES[node.type] for node in self._session.get_inputs()}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """Run the graph once and return these of its outputs, by default all in its order."""
        try:
            results: list[Array] = self._session.run(outputs, dict(feeds))
        except Exception as error:
            shapes = ", ".join(f"{name} {np.shape(value)}" for name, value in feeds.items())
            raise ModelError(f"the model failed on inputs of shape {shapes}: {error}") from error
        return results

    def count_operators(self) -> dict[str, int]:
        """Return how many operators ran on each device so far, by the runtime's own profile; ends the profile."""
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        ran = [event["args"]["provider"] for event in events if "provider" in event.get("args", {})]
        return {_name_device(provider): ran.count(provider) for provider in sorted(set(ran))}

    def buffer(self, array: Array) -> Buffer:
        """Make memory where the graph runs from an array in C order."""
        return Buffer(array, self.device)

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
                raise ModelError(f"the model failed on {len(kept)} buffers, inputs {shapes}: {error}") from error

        return run


class Buffer:
    """Memory of a fixed shape where a graph runs; on a CPU it is the array's own, elsewhere a copy."""

    def __init__(self, array: Array, device: str) -> None:
        import onnxruntime

        self.array = array
        self.ort_value = onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
        self._is_copy = device != "cpu"

    def push(self) -> None:
        """Bring what was written to the array to where the graph runs."""
        if self._is_copy:
            self.ort_value.update_inplace(self.array)

    def pull(self) -> None:
        """Bring what the graph wrote to the array."""
        if self._is_copy:
            self.array[...] = self.ort_value.numpy()


def runtime_version() -> str:
    """Return the version of ONNX Runtime, which can change a result's last bits."""
    import onnxruntime

    return str(onnxruntime.__version__)


def is_cuda_at_hand() -> bool:
    """Tell whether the installed runtime knows CUDA and this machine has its driver."""
    import onnxruntime

    return CUDA_PROVIDER in onnxruntime.get_available_providers() and _cuda_driver_loads()


def _name_device(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider").lower()


def _cuda_driver_loads() -> bool:
    # Asking for CUDA without a driver makes the runtime print errors on every machine that has no GPU.
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
