"""Token vectors → one vector, for graphs that do not do it themselves.

Each text is pooled by itself, so that its vector does not depend on its neighbours, not in the last bit either.

Knows numpy and the file of a Dense layer. Knows nothing of graphs or folders.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xqg_qdrant.errors import ModelError
from xqg_qdrant.model_folders.files import read_json, show
from xqg_qdrant.records import FloatArray

# As torch names them; without one, nothing is done.
IDENTITY = "torch.nn.modules.linear.Identity"
ACTIVATIONS: dict[str, Callable[[FloatArray], FloatArray]] = {
    IDENTITY: lambda vector: vector,
    "torch.nn.modules.activation.Tanh": np.tanh,
    "torch.nn.modules.activation.ReLU": lambda vector: np.maximum(vector, 0),
}
LARGEST_HEADER = 1 << 20
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
LEAST_NORM = 1e-12


class Dense(NamedTuple):
    """A linear layer with an activation: weight `(out, in)`, bias `(out,)`."""

    weight: FloatArray
    bias: FloatArray
    activate: Callable[[FloatArray], FloatArray]

    def __call__(self, vector: FloatArray) -> FloatArray:
        """Return `(out,)` from `(in,)`.

        Raises:
            ModelError: the vector has another dimension.
        """
        if vector.shape != self.weight.shape[1:]:
            raise ModelError(
                f"a Dense layer takes {self.weight.shape[1]} numbers, and the layer before it gives {len(vector)}.",
                "take the model's folder from its source again",
            )
        return self.activate(self.weight @ vector + self.bias)


class Pooler(NamedTuple):
    """What turns the vectors that a graph gives for a text into the text's vector."""

    pooling: str
    dense: Sequence[Dense]
    normalise: bool

    def __call__(self, given: npt.NDArray[np.floating[Any]], lengths: Sequence[int]) -> FloatArray:
        """Return `(batch, dim)`.

        Args:
            given: token vectors `(batch, tokens, dim)`, or `(batch, dim)` where the graph pools.
            lengths: how many of the tokens are each text's own, which stand first.
        """
        return np.stack([self._finish(self._pool(one, length)) for one, length in zip(given, lengths, strict=True)])

    def _pool(self, values: npt.NDArray[np.floating[Any]], length: int) -> FloatArray:
        # float16, which a graph may give, overflows in a sum.
        given: FloatArray = values.astype(np.float32, copy=False)
        token: FloatArray
        match self.pooling:
            case "cls":
                token = given[0]
            case "last":
                token = given[length - 1]
            case "mean":
                token = given[:length].sum(axis=0) / np.float32(length)
            case _:
                token = given
        return token

    def _finish(self, vector: FloatArray) -> FloatArray:
        for layer in self.dense:
            vector = layer(vector)
        if self.normalise:
            vector = vector / np.float32(max(math.sqrt(float((vector * vector).sum())), LEAST_NORM))
        return vector


def read_dense(config_path: Path, weights_path: Path) -> Dense:
    """Read a Dense layer of sentence-transformers.

    Raises:
        ModelError: it is of a kind that is not known here, or its file is damaged.
    """
    config = read_json(config_path, LARGEST_HEADER)
    name = config.get("activation_function", IDENTITY)
    try:
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise ValueError(f"has the activation {show(name)}, and known are {', '.join(ACTIVATIONS)}")
        if config.get("use_residual"):
            raise ValueError("adds its input (use_residual), which xqg does not")
        tensors = read_safetensors(weights_path)
        wanted = {"linear.weight", "linear.bias"} if config.get("bias", True) else {"linear.weight"}
        if tensors.keys() != wanted:
            raise ValueError(f"holds {sorted(tensors)}, where {sorted(wanted)} is needed")
        weight = tensors["linear.weight"]
        bias = tensors.get("linear.bias", np.zeros(len(weight), dtype=np.float32))
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(f"has a weight of shape {weight.shape} and a bias of shape {bias.shape}")
    except (ValueError, RecursionError) as error:
        cure = f"use another model, or export it: xqg export CHECKPOINT {config_path.parents[1]}-xqg"
        raise ModelError(f"{config_path.parent} {error}.", cure) from error
    return Dense(weight, bias, ACTIVATIONS[name])


def read_safetensors(path: Path) -> dict[str, FloatArray]:
    """Read all tensors of a small safetensors file, as float32.

    Raises:
        ValueError: it is none, or holds other numbers.
    """
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(LARGEST_HEADER, len(content) - 8):
        raise ValueError("is no safetensors file")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    if not isinstance(header, dict):
        raise ValueError("is no safetensors file")
    header.pop("__metadata__", None)
    return {name: _read_tensor(name, about, data) for name, about in header.items()}


def _read_tensor(name: str, about: Any, data: bytes) -> FloatArray:  # noqa: ANN401
    fields = about if isinstance(about, dict) else {}
    dtype = DTYPES.get(str(fields.get("dtype")))
    if dtype is None:
        raise ValueError(f"holds {show(name)} as {show(fields.get('dtype'))}, and known are {', '.join(DTYPES)}")
    shape, place = _whole_numbers(fields.get("shape")), _whole_numbers(fields.get("data_offsets"))
    size = math.prod(shape or ()) * dtype.itemsize
    if shape is None or place is None or len(place) != 2 or place[1] > len(data) or place[1] - place[0] != size:
        raise ValueError(f"says of {show(name)} what is no place of a tensor")
    tensor: FloatArray = np.frombuffer(data[place[0] : place[1]], dtype).reshape(shape).astype(np.float32)
    return tensor


def _whole_numbers(value: object) -> list[int] | None:
    if isinstance(value, list) and all(type(number) is int and number >= 0 for number in value):
        return value
    return None
