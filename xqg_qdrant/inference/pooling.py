"""Pool token vectors into one vector, for graphs that do not do it themselves.

Each text is pooled alone, so that its vector is bit-identical whatever else is in the batch.
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
from xqg_qdrant.model_folders.description import dense_files
from xqg_qdrant.model_folders.files import export_it
from xqg_qdrant.model_folders.sentence_transformers import IDENTITY, RELU, TANH, read_dense_settings
from xqg_qdrant.records import FloatArray
from xqg_qdrant.text import show

ACTIVATIONS: dict[str, Callable[[FloatArray], FloatArray]] = {
    IDENTITY: lambda vector: vector,
    RELU: lambda vector: np.maximum(vector, 0),
    TANH: np.tanh,
}
# In bytes, of the header of a safetensors file.
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
                f"a Dense layer takes {self.weight.shape[1]} numbers, but the layer before it returns {len(vector)}.",
                "copy the model's folder from its source again",
            )
        return self.activate(self.weight @ vector + self.bias)


class Pooler(NamedTuple):
    """Pooling, dense layers and normalisation, from a graph's output to a text's vector."""

    pooling: str
    dense: Sequence[Dense]
    normalise: bool

    def __call__(self, given: npt.NDArray[np.floating[Any]], lengths: Sequence[int]) -> FloatArray:
        """Return float32 of shape `(batch, dim)`.

        Args:
            given: token vectors `(batch, tokens, dim)`, or `(batch, dim)` where the graph pools.
            lengths: the number of tokens of each text; padding follows them.
        """
        return np.stack([self._finish(self._pool(one, length)) for one, length in zip(given, lengths, strict=True)])

    def _pool(self, values: npt.NDArray[np.floating[Any]], length: int) -> FloatArray:
        # A sum of float16, which a graph may return, can overflow.
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


def read_dense(path: Path, folder: str) -> Dense:
    """Read a dense layer of sentence-transformers from its folder in a model folder.

    Raises:
        ModelError: the layer is not supported, or its file is damaged.
    """
    settings = read_dense_settings(path, folder)
    try:
        tensors = read_safetensors(path / dense_files(folder)[1])
        if tensors.keys() != settings.tensors:
            raise ValueError(f"holds {sorted(tensors)}, but {sorted(settings.tensors)} is needed")
        weight = tensors["linear.weight"]
        bias = tensors.get("linear.bias", np.zeros(len(weight), dtype=np.float32))
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(f"has a weight of shape {weight.shape} and a bias of shape {bias.shape}")
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path / folder} {error}.", export_it(path)) from error
    return Dense(weight, bias, ACTIVATIONS[settings.activation])


def read_safetensors(path: Path) -> dict[str, FloatArray]:
    """Read all tensors of a small safetensors file, as float32.

    Raises:
        ValueError: the file is damaged, or holds other numbers than float32 and float16.
    """
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(LARGEST_HEADER, len(content) - 8):
        raise ValueError("has a damaged safetensors file")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    if not isinstance(header, dict):
        raise ValueError("has a damaged safetensors file")
    header.pop("__metadata__", None)
    return {name: _read_tensor(name, about, data) for name, about in header.items()}


def _read_tensor(name: str, about: Any, data: bytes) -> FloatArray:  # noqa: ANN401
    fields = about if isinstance(about, dict) else {}
    dtype = DTYPES.get(str(fields.get("dtype")))
    if dtype is None:
        raise ValueError(f"holds {show(name)} as {show(fields.get('dtype'))}; xqg supports {', '.join(DTYPES)}")
    shape, place = _whole_numbers(fields.get("shape")), _whole_numbers(fields.get("data_offsets"))
    size = math.prod(shape or ()) * dtype.itemsize
    if shape is None or place is None or len(place) != 2 or place[1] > len(data) or place[1] - place[0] != size:
        raise ValueError(f"has an invalid shape or offset of the tensor {show(name)}")
    tensor: FloatArray = np.frombuffer(data[place[0] : place[1]], dtype).reshape(shape).astype(np.float32)
    return tensor


def _whole_numbers(value: object) -> list[int] | None:
    if isinstance(value, list) and all(type(number) is int and number >= 0 for number in value):
        return value
    return None
