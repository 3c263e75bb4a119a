"""Trace an architecture that has no graph of our own with optimum, and quantise the traced graphs.

optimum-onnx 0.1.0 needs transformers 4.57, which the rest of the export can live with. It is imported only here.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from tokenizers import Tokenizer

from xqg_qdrant.errors import InputError
from xqg_qdrant.export.graph import Array, Graph, QuantisedRows, Table
from xqg_qdrant.languages import LANGUAGES
from xqg_qdrant.model_folders.description import DECODER_PREFIX
from xqg_qdrant.model_folders.generator_settings import LONGEST_INPUT, LONGEST_OUTPUT, GeneratorSettings
from xqg_qdrant.model_folders.optimum import GRAPHS
from xqg_qdrant.model_folders.sentence_transformers import USUAL_GRAPH

TASKS = {"encoder": "feature-extraction", "generator": "text2text-generation-with-past"}
GRAPHS_OF_KIND = {"encoder": (USUAL_GRAPH,), "generator": GRAPHS}
# The oldest with every operator that `Graph.linear` writes; torch traces up to 20.
OPSET = 18
DTYPES = ("float32", "int8")
EXTRA_CURE = (
    "give it an environment of its own: python -m venv optimum && optimum/bin/pip install 'xqg-qdrant[optimum]'"
)
# These name the language by a token: `__fi__`, `fi_FI` or `fi_XX`.
MULTILINGUAL_TYPES = ("m2m_100", "mbart")
LANGUAGE_TOKEN = re.compile(r"__([a-z]{2,3})__|([a-z]{2,3})_[A-Z]{2}")


def check_traceable(model_type: object, kind: str, source: str, own_types: Collection[str]) -> None:
    """Check that optimum is installed, and exports this architecture.

    Raises:
        InputError: it is not, or does not.
    """
    if importlib.util.find_spec("optimum") is None or importlib.util.find_spec("optimum.exporters") is None:
        raise InputError(
            f"xqg has no graph of its own for the model type {model_type!r} ({source}), and optimum-onnx, which has "
            "more, is not installed.",
            f"{EXTRA_CURE}; or export a checkpoint of type {', '.join(own_types)}",
        )
    import optimum.exporters.onnx.model_configs  # noqa: F401  its architectures register themselves
    from optimum.exporters.tasks import TasksManager

    try:
        tasks = TasksManager.get_supported_tasks_for_model_type(str(model_type), "onnx", library_name="transformers")
    except KeyError:
        tasks = {}
    if TASKS[kind] not in tasks:
        raise InputError(
            f"neither xqg nor optimum exports a model of kind {kind!r} and type {model_type!r} ({source}).",
            f"export a checkpoint of type {', '.join(own_types)}, or of one that optimum lists",
        )


def check_options(dtype: str, settings: Mapping[str, Any]) -> None:
    """Check that a traced graph can be exported in this way.

    Raises:
        InputError: it cannot.
    """
    if dtype not in DTYPES:
        raise InputError(
            f"a graph that optimum traces is not exported in {dtype}.", f"choose --dtype {' or '.join(DTYPES)}"
        )
    if settings.get("restrict_vocabulary"):
        raise InputError(
            "only a T5, an mT5 or a BERT-to-BERT generator has restricted vocabularies.",
            "leave out --restrict-vocabulary",
        )


def trace(model: Any, kind: str, folder: Path, dtype: str) -> None:  # noqa: ANN401
    """Write the graphs of a model of transformers in optimum's layout, without its other files.

    Raises:
        InputError: int8 would change nothing.
    """
    from optimum.exporters.onnx import onnx_export_from_model

    before = set(folder.iterdir())
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        # They say which sizes a trace freezes; the check against transformers follows.
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            onnx_export_from_model(
                model, folder, task=TASKS[kind], opset=OPSET, do_validation=False, no_post_process=True
            )
        finally:
            logging.disable(disabled)
    for file in set(folder.glob("*.json")) - before:
        file.unlink()
    if dtype == "int8":
        for name in GRAPHS_OF_KIND[kind]:
            quantise_traced(folder / name)


def complete_generation(model_type: str, generation: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return generation settings with the language tokens of mBART and M2M100, and with forbidden tokens suppressed."""
    tokens = find_language_tokens(model_type, tokenizer.get_vocab())
    forbidden = [ids[0] for ids in generation.get("bad_words_ids") or () if len(ids) == 1]
    suppressed = [*dict.fromkeys([*(generation.get("suppress_tokens") or ()), *forbidden])]
    return {"lang_to_id": tokens, **generation, "suppress_tokens": suppressed}


def find_language_tokens(model_type: str, vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Return the tokens with which mBART and M2M100 name languages, by language."""
    if model_type not in MULTILINGUAL_TYPES:
        return {}
    found = {token: match for token in vocabulary if (match := LANGUAGE_TOKEN.fullmatch(token))}
    tokens = {match[1] or match[2]: vocabulary[token] for token, match in found.items()}
    return {language: number for language, number in sorted(tokens.items()) if language in LANGUAGES}


def limit_lengths(settings: GeneratorSettings, config: Mapping[str, Any]) -> GeneratorSettings:
    """Return settings within the positions of the model."""
    positions = _count_positions(config)
    return settings._replace(
        max_input_tokens=min(settings.max_input_tokens, positions),
        max_new_tokens=min(settings.max_new_tokens, _longest_output(config)),
    )


def describe_generator(
    config: Mapping[str, Any], generation: Mapping[str, Any], settings: GeneratorSettings
) -> dict[str, Any]:
    """Return the fields of `xqg.json` that only a traced generator has, or has otherwise.

    Raises:
        InputError: no file names a first token, and no language has one.
    """
    graph, *decoder_graphs = GRAPHS_OF_KIND["generator"]
    prefix, first = _read_start(config, generation, settings.language_tokens)
    return {
        "graph": graph,
        "decoder_graphs": decoder_graphs,
        "suppressed_ids": list(settings.suppressed_ids),
        DECODER_PREFIX: prefix,
        "decoder_start_id": first,
        "max_output_tokens": _longest_output(config),
    }


def _read_start(
    config: Mapping[str, Any], generation: Mapping[str, Any], language_tokens: Mapping[str, int]
) -> tuple[list[int], int]:
    """Return the ids before the first one of a row, and the first one of rows without a language token.

    A token that is forced on the output, such as a language's, comes after the decoder's own.
    """
    start, forced = (
        next((found[name] for found in (generation, config) if type(found.get(name)) is int), None)
        for name in ("decoder_start_token_id", "forced_bos_token_id")
    )
    if language_tokens:
        # An older mBART begins with the language.
        if start is None or start in generation["lang_to_id"].values():
            return [], 0
        return [start], start
    if start is None:
        raise InputError(
            "the checkpoint names no decoder_start_token_id.", "write it into generation_config.json; see its card"
        )
    return ([], start) if forced is None else ([start], forced)


def _count_positions(config: Mapping[str, Any]) -> int:
    return int(config.get("max_position_embeddings") or LONGEST_INPUT)


def _longest_output(config: Mapping[str, Any]) -> int:
    # The first two ids take positions, too.
    return min(LONGEST_OUTPUT, _count_positions(config) - 2)


def quantise_traced(path: Path) -> None:
    """Store a traced graph's weights in int8 with one scale a row, and multiply as `Graph.linear` does.

    Raises:
        InputError: no product of the graph has a stored weight.
    """
    model = onnx.load(path)
    data = {entry.value for tensor in model.graph.initializer for entry in tensor.external_data}
    graph = _Quantised(model.graph)
    if not graph.products:
        raise InputError(
            f"the graph {path.name} multiplies by no stored weight, so int8 would change nothing.",
            "export it with --dtype float32",
        )
    for name in (path.name, *data):
        (path.parent / name).unlink(missing_ok=True)
    graph.save(path)


class _Quantised(Graph):
    """A copy of a traced graph with int8 products and tables; `products` counts them."""

    opset = OPSET
    # Unlike any name that torch gives.
    prefix = "int8 "

    def __init__(self, traced: onnx.GraphProto) -> None:
        super().__init__(traced.name, "int8")
        self._inputs.extend(traced.input)
        self._outputs.extend(traced.output)
        self._kept = {tensor.name: tensor for tensor in traced.initializer}
        # Names of the same weight, and of its transposed form.
        self._aliases: dict[str, tuple[str, bool]] = {}
        self._tables: dict[str, Table] = {}
        self._rows: dict[str, QuantisedRows] = {}
        self.products = 0
        for node in traced.node:
            self._follow(node)
            if not self._rewrite(node):
                self._nodes.append(node)
        self._drop_unused()

    def _follow(self, node: onnx.NodeProto) -> None:
        name, turned = self._aliases.get(node.input[0], (node.input[0], False)) if node.input else ("", False)
        if node.op_type == "Transpose" and name in self._kept and len(self._kept[name].dims) == 2:
            self._aliases[node.output[0]] = name, not turned
        elif node.op_type == "Identity" and name in self._kept:
            self._aliases[node.output[0]] = name, turned

    def _matrix(self, name: str) -> tuple[str, bool] | None:
        """Return a stored float32 matrix by its own name, and whether this name means it transposed."""
        own, turned = self._aliases.get(name, (name, False))
        tensor = self._kept.get(own)
        is_matrix = tensor is not None and len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT
        return (own, turned) if is_matrix else None

    def _rewrite(self, node: onnx.NodeProto) -> bool:
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        if node.op_type == "MatMul" and (matrix := self._matrix(node.input[1])):
            result = self._multiply_rows(node.input[0], *matrix)
        elif node.op_type == "Gemm" and (matrix := self._matrix(node.input[1])) and _is_linear(attributes):
            name, turned = matrix
            result = self._multiply(node.input[0], name, turned != bool(attributes.get("transB")))
            if len(node.input) > 2:
                result = self.node("Add", result, node.input[2])
        elif node.op_type == "Gather" and not attributes.get("axis") and self._matrix(node.input[0]):
            own, turned = self._aliases.get(node.input[0], (node.input[0], False))
            if turned:
                return False
            result = self.look_up(node.input[1], self._table(own))
        else:
            return False
        self.products += node.op_type != "Gather"
        self._nodes[-1].output[0] = node.output[0]
        return bool(result)

    def _multiply_rows(self, value: str, name: str, turned: bool) -> str:
        """Multiply the last axis of a value, of any shape."""
        sizes = self._kept[name].dims
        inner, outer = (sizes[1], sizes[0]) if turned else sizes
        if value not in self._rows:
            self._rows[value] = self.quantise(self.reshape(value, -1, inner))
        product = self._multiply(self._rows[value], name, turned)
        ahead = self.node("Shape", value, start=0, end=-1)
        return self.node("Reshape", product, self.node("Concat", ahead, self.ints(outer), axis=0))

    def _multiply(self, rows: str | QuantisedRows, name: str, turned: bool) -> str:
        """Multiply rows by a matrix `(in, out)`, or `(out, in)` if it is turned."""
        return self.linear(rows, self.transpose(self._table(name)) if turned else self._read(name).T)

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            self._tables[name] = self.table(self._read(name))
        return self._tables[name]

    def _read(self, name: str) -> Array:
        values: Array = numpy_helper.to_array(self._kept[name]).astype(np.float32, copy=False)
        return values

    def _drop_unused(self) -> None:
        used, kept = {value.name for value in self._outputs}, []
        for node in reversed(self._nodes):
            if used.intersection(node.output):
                used |= _names_read(node)
                kept.append(node)
        self._nodes = kept[::-1]
        self._initializers.extend(tensor for name, tensor in self._kept.items() if name in used)


def _is_linear(attributes: Mapping[str, Any]) -> bool:
    return attributes.get("alpha", 1) == attributes.get("beta", 1) == 1 and not attributes.get("transA")


def _names_read(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node and the graphs inside it read."""
    inner = [each.g for each in node.attribute if each.type == onnx.AttributeProto.GRAPH]
    names = set(node.input)
    for graph in inner:
        names |= {value.name for value in graph.output}.union(*map(_names_read, graph.node))
    return names
