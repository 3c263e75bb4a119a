"""Find or download a checkpoint, read its settings, and choose the graph for its architecture.

Settings come from the files of transformers and sentence-transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from safetensors.numpy import load_file

from xqg_qdrant.errors import InputError, ModelError
from xqg_qdrant.export import bert, rotary
from xqg_qdrant.export.graph import Array, Graph
from xqg_qdrant.export.pooling import DENSE_ACTIVATIONS, Dense, Head
from xqg_qdrant.export.quantise import Sample
from xqg_qdrant.export.traced import check_traceable
from xqg_qdrant.model_folders import generator_settings
from xqg_qdrant.model_folders.description import POOLINGS
from xqg_qdrant.model_folders.sentence_transformers import (
    LONGEST_TEXT,
    OFFSET_MODEL_TYPES,
    PICKLE_FILE,
    DenseSettings,
    is_compared_by_cosine,
    read_dense_settings,
    read_modules,
    read_prefixes,
    read_tokenizer_settings,
    read_transformer,
)

WEIGHTS = "*.safetensors"
# Read by torch's weights-only loader, where there is nothing better; large ones come in parts.
PICKLES = "pytorch_model*.bin"
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
DOWNLOADED = [WEIGHTS, "*.json", "*.txt", "*.model", "README.md"]
ELSEWHERE = ["onnx/*", "openvino/*"]
ENCODER_TYPES = (*bert.MODEL_TYPES, *rotary.MODEL_TYPES)
OWN_TYPES = (*ENCODER_TYPES, *generator_settings.MODEL_TYPES)
NAMES_OF_OWN = (*OWN_TYPES, f"{bert.PAIR_TYPE} (BERT to BERT)")
LONGEST_DEFAULT = 512
TASK = "{task}"


class Checkpoint(NamedTuple):
    """A checkpoint on disk, its origin and its `config.json`."""

    path: Path
    source: str
    revision: str
    config: dict[str, Any]

    @property
    def is_pickled(self) -> bool:
        """Return whether the weights are published as a pickle alone."""
        return not any(self.path.glob(WEIGHTS))

    @property
    def kind(self) -> str:
        """Return `encoder` or `generator`."""
        if self.config.get("model_type") in OWN_TYPES:
            return "generator" if self.config["model_type"] in generator_settings.MODEL_TYPES else "encoder"
        return "generator" if self.is_bert2bert or self.config.get("is_encoder_decoder") else "encoder"

    @property
    def is_bert2bert(self) -> bool:
        """Return whether it is a BERT encoder with a BERT decoder."""
        return bert.is_bert2bert(self.config)

    @property
    def is_traced(self) -> bool:
        """Return whether optimum writes the graphs, because xqg has none of its own for the architecture."""
        return self.config.get("model_type") not in OWN_TYPES and not self.is_bert2bert


class EncoderSettings(NamedTuple):
    """How an encoder turns tokens into a vector, and what it puts before a text."""

    pooling: str
    normalise: bool
    query_prefix: str
    passage_prefix: str
    max_query_tokens: int
    max_passage_tokens: int


def fetch_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Find a local folder, or download a hub id.

    This is the package's only access to a model hub.

    Raises:
        InputError: there is no such checkpoint, or its architecture is not supported.
    """
    path = Path(source)
    if not path.is_dir():
        # A hub id has one slash at most.
        if path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
            what = "is no folder" if path.exists() else "does not exist"
            raise InputError(f"the checkpoint {source} {what}.", "name a local folder, or a hub id such as NAME/MODEL")
        path = _download(source, revision)
        revision = path.name
    config = read_json(path / "config.json")
    if not config:
        raise InputError(
            f"{source} is not a transformers checkpoint: it holds no config.json.",
            "name the folder that holds config.json",
        )
    checkpoint = Checkpoint(path, path.name if Path(source).is_dir() else source, revision or "", config)
    if checkpoint.is_traced:
        check_traceable(config.get("model_type"), checkpoint.kind, source, NAMES_OF_OWN)
    if not any(path.glob(WEIGHTS)) and not any(path.glob(PICKLES)):
        refuse_weights(source, path)
    return checkpoint


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Return the content of a JSON file, `None` if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_licence(path: Path) -> str:
    """Return the licence in the model card's front matter, else `unknown`."""
    card = path / "README.md"
    found = re.search(r"^licen[cs]e:\s*(\S+)", card.read_text(encoding="utf-8"), re.M) if card.is_file() else None
    return found.group(1) if found else "unknown"


def refuse_weights(source: str, folder: Path) -> NoReturn:
    """Raise the error for a folder without safetensors.

    Raises:
        InputError: always.
    """
    other = sorted(file.name for pattern in OTHER_WEIGHTS for file in folder.glob(pattern))
    if not other:
        raise InputError(f"{source} holds no weights ({WEIGHTS}).", "download the whole checkpoint again")
    raise InputError(
        f"{source} holds its weights as {other[0]}, which is not read: such a file can run code when it is loaded.",
        "export a version in safetensors; https://huggingface.co/spaces/safetensors/convert makes one of a public "
        "model, as a pull request: --revision refs/pr/NUMBER; docs/how-to/own-models.md converts a folder",
    )


def read_encoder_settings(checkpoint: Checkpoint, **given: Any) -> EncoderSettings:
    """Read pooling, normalisation, prefixes and lengths of an encoder.

    `given` holds `ENCODER_OPTIONS` of the export, which override the files where they are not `None`. The task replaces
    `{task}` in the query prefix. Lengths are limited to the positions of the model.

    Raises:
        InputError: the pooling is neither stored nor given, or the checkpoint has modules that cannot be exported.
    """
    path = checkpoint.path
    with _errors_of_checkpoint():
        modules = read_modules(path, links_allowed=True)
        transformer = read_transformer(path, links_allowed=True)
        by_cosine = is_compared_by_cosine(path, links_allowed=True)
        prefixes = read_prefixes(path, given["query_prefix"], given["passage_prefix"], links_allowed=True)
    pooling = given["pooling"] or (modules.pooling if modules else None)
    if pooling is None:
        raise InputError(f"{checkpoint.source} names no supported pooling.", "give --pooling cls, mean or last")
    if pooling not in POOLINGS:
        raise InputError(f"unknown pooling {pooling!r}.", f"choose one of {', '.join(POOLINGS)}")
    normalises = modules.normalise or by_cosine if modules else False
    query_prefix, passage_prefix = _fill_task(prefixes["query_prefix"], given["task"]), prefixes["passage_prefix"]
    if modules and not modules.includes_prompt and (query_prefix or passage_prefix):
        raise InputError(
            f"{checkpoint.source} leaves the prompt out of its pooling (include_prompt), which is not supported.",
            "export it without prompts: --query-prefix '' --passage-prefix ''",
        )
    positions = count_positions(checkpoint.config)
    tokenizer = read_json(path / "tokenizer_config.json") or {}
    # Newer releases of sentence-transformers store the length in the tokenizer's configuration.
    longest = transformer.max_length or tokenizer.get("model_max_length") or LONGEST_DEFAULT
    return EncoderSettings(
        pooling=pooling,
        normalise=given["normalise"] if given["normalise"] is not None else normalises,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
        max_query_tokens=min(given["max_query_tokens"] or transformer.query_length or longest, positions),
        max_passage_tokens=min(given["max_passage_tokens"] or transformer.passage_length or longest, positions),
    )


def read_tokenizer_changes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the settings that take precedence over the checkpoint's `tokenizer.json`.

    Raises:
        InputError: a setting is invalid.
    """
    with _errors_of_checkpoint():
        lowercase = read_transformer(checkpoint.path, links_allowed=True).lowercase
        return read_tokenizer_settings(checkpoint.path, lowercase, links_allowed=True)


def read_dense(checkpoint: Checkpoint) -> tuple[Dense, ...]:
    """Read the dense layers after the pooling.

    Raises:
        InputError: a layer cannot be exported, or has no weights in safetensors.
    """
    with _errors_of_checkpoint():
        modules = read_modules(checkpoint.path, links_allowed=True)
        folders = modules.dense if modules else ()
        settings = [read_dense_settings(checkpoint.path, folder, links_allowed=True) for folder in folders]
    return tuple(_read_dense(checkpoint, *pair) for pair in zip(folders, settings, strict=True))


def count_positions(config: Mapping[str, Any]) -> int:
    """Return the most tokens that a model can read at once."""
    # XLNet and its like have no limit.
    positions = int(config.get("max_position_embeddings") or LONGEST_TEXT)
    offset = 1 + int(config.get("pad_token_id", 1)) if config["model_type"] in OFFSET_MODEL_TYPES else 0
    return positions - offset


def build_encoder(
    weights: Mapping[str, Array],
    config: Mapping[str, Any],
    head: Head,
    max_tokens: int,
    dtype: str,
    samples: Mapping[str, Sample],
) -> Graph:
    """Write the graph of an encoder; `weights` and `config` have transformers' names.

    Raises:
        InputError: the checkpoint has a part that its graph does not support.
    """
    if config["model_type"] in rotary.GTE_TYPES:
        return rotary.build_gte(weights, config, head, dtype, samples)
    if config["model_type"] in rotary.DECODER_TYPES:
        return rotary.build_decoder_encoder(weights, config, head, dtype, samples)
    return bert.build_bert(weights, config, head, max_tokens, dtype, samples)


def _download(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Code is not even downloaded, and pickles only where there is nothing else.
        path = snapshot_download(source, revision=revision, allow_patterns=DOWNLOADED, ignore_patterns=ELSEWHERE)
        if not any(Path(path).glob(WEIGHTS)):
            wanted = [*DOWNLOADED, PICKLES, "pytorch_model.bin.index.json", "*/pytorch_model.bin"]
            path = snapshot_download(source, revision=revision, allow_patterns=wanted, ignore_patterns=ELSEWHERE)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"no checkpoint {source!r}: there is no such folder, and the hub did not return it: {error}.",
            "check the name and the network; accept a gated model's terms on the hub and log in with `hf auth login`",
        ) from error
    return Path(path)


@contextmanager
def _errors_of_checkpoint() -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise InputError(error.message, "correct that file, or export another checkpoint") from error


def _read_dense(checkpoint: Checkpoint, name: str, settings: DenseSettings) -> Dense:
    if settings.activation not in DENSE_ACTIVATIONS:
        raise InputError(
            f"unsupported activation {settings.activation!r} (Dense module of {checkpoint.source}).",
            f"export a checkpoint whose Dense modules have activation {', '.join(DENSE_ACTIVATIONS)}",
        )
    folder = checkpoint.path / name
    if (folder / "model.safetensors").is_file():
        weights = load_file(folder / "model.safetensors")
    elif (folder / PICKLE_FILE).is_file():
        from xqg_qdrant.export.reference import read_pickle

        weights = read_pickle(folder / PICKLE_FILE)
    else:
        refuse_weights(f"{checkpoint.source}/{name}", folder)
    if weights.keys() != settings.tensors:
        raise InputError(
            f"{checkpoint.source}/{name} holds {sorted(weights)}, but {sorted(settings.tensors)} is needed.",
            "export another checkpoint",
        )
    bias = weights.get("linear.bias")
    return Dense(
        weights["linear.weight"].astype("float32"),
        None if bias is None else bias.astype("float32"),
        settings.activation,
    )


def _fill_task(prefix: str, task: str | None) -> str:
    if task is not None and TASK not in prefix:
        raise InputError(
            f"the query prefix {prefix!r} has no {TASK} for the task {task!r}.",
            f"put {TASK} into --query-prefix, or leave out --task",
        )
    if task is None and TASK in prefix:
        raise InputError(f"the query prefix {prefix!r} asks for a task.", "give --task")
    return prefix.replace(TASK, task or "")
