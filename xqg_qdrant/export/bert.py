"""Write the graphs of BERT: an encoder (BERT, MiniLM, XLM-R), or a generator of a BERT encoder and a BERT decoder.

Architecture: Devlin et al. 2019 (arXiv 1810.04805); positions of XLM-R as in RoBERTa (1907.11692); decoders as in Rothe
et al. 2020 (1907.12461), in transformers' `EncoderDecoderModel`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import ml_dtypes
import numpy as np
from onnx import TensorProto

from xqg_qdrant.errors import InputError
from xqg_qdrant.export.generator import EMBEDDING_FILE, DecoderStep, Heads, Projection, write_cross, write_head
from xqg_qdrant.export.graph import Array, Graph, QuantisedRows
from xqg_qdrant.export.pooling import Head, write_vectors
from xqg_qdrant.export.quantise import (
    REPEATED_COLUMNS,
    Channels,
    Sample,
    count_copies,
    find_wide_neurons,
    fold_sample,
    fold_weight,
    multiply,
    multiply_after_gelu,
    multiply_terms,
    plan_centred,
    plan_channels,
    plan_plain,
    quantise_once,
    quantise_twice,
    repeat_columns,
)
from xqg_qdrant.model_folders.generator_settings import LONGEST_OUTPUT, GeneratorSettings

MODEL_TYPES = ("bert", "xlm-roberta", "roberta")
UNSHIFTED = ("bert", "bert-generation")
PROJECTIONS = ("query", "key", "value")
# Attention over the rows of its products; the result has rows, too.
Attend: TypeAlias = Callable[..., str]
FLOATS = {"float16": np.dtype(np.float16)}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# Large enough that every form of GELU returns it unchanged.
STEADY = np.float32(16)
ACTIVATIONS = {"gelu": {}, "gelu_new": {"approximate": "tanh"}, "gelu_pytorch_tanh": {"approximate": "tanh"}}

Value = TypeVar("Value")

PAIR_TYPE = "encoder-decoder"
HALVES = ("encoder", "decoder")
WORDS = "embeddings.word_embeddings.weight"
TRANSFORM = "cls.predictions.transform"
BRIDGE = "enc_to_dec_proj"
# The output projection in the decoder of each type.
OUTPUTS = {"bert": "cls.predictions.decoder", "bert-generation": "lm_head.decoder"}
# Names of the products whose input int8 looks at; the others share theirs with one of these.
SAMPLED = (
    "self.query", "crossattention.self.key", "output.dense", "intermediate.dense", "transform.dense", BRIDGE,
    *OUTPUTS.values(),
)  # fmt: skip


def first_position(config: Mapping[str, Any]) -> int:
    """Return the first token's row in the position table; XLM-R starts after the padding id."""
    return 0 if config["model_type"] in UNSHIFTED else int(config["pad_token_id"]) + 1


def build_bert(
    weights: Mapping[str, Array],
    config: Mapping[str, Any],
    head: Head,
    max_tokens: int,
    dtype: str = "float32",
    samples: Mapping[str, Sample] | None = None,
) -> Graph:
    """Write the encoder's graph.

    Inputs `input_ids` and `attention_mask` are int64 of shape `(batch, tokens)`, with at most `max_tokens` tokens.
    The int8 graph has no mask: the texts of its batches have one length. Output `vectors` is float32 of shape
    `(batch, dim)`. For int8, `samples` describes the input of each product on sample texts, by the name of the
    product. For bfloat16, word embeddings, products and attention are narrow; sums, layer norms, activations, pooling
    and what follows it stay in fp32.

    Raises:
        InputError: the checkpoint has a part that this graph does not support.
    """
    check_config(config)
    graph = Graph("encoder", "int8" if dtype == "int8" else "float32", FLOATS.get(dtype, np.dtype(np.float32)))
    ids = graph.input("input_ids", np.int64, ["batch", "tokens"])
    # int8 runs on CPUs, where padding never pays: the texts of a batch have one length.
    mask = graph.input("attention_mask", np.int64, ["batch", "tokens"]) if dtype != "int8" else ""

    positions = read_positions(weights, config, max_tokens)
    length = graph.node("Shape", ids, start=1, end=2)
    if mask:
        # Padding may be on either side and does not count as a position.
        counted = graph.node("Sub", graph.node("CumSum", mask, graph.constant(1, np.int64)), graph.ints(1))
        places = graph.node("Max", counted, graph.ints(0))
        position_rows = graph.node("Gather", graph.constant(positions), places)
    else:
        position_rows = graph.node("Slice", graph.constant(positions), graph.ints(0), length, graph.ints(0))
    table = weights["embeddings.word_embeddings.weight"]
    if dtype == "bfloat16":
        words = _widen(graph, graph.node("Gather", graph.constant(table, BFLOAT16), ids))
    else:
        words = graph.look_up(ids, graph.table(table))
    total = graph.reshape(graph.node("Add", words, position_rows), -1, config["hidden_size"])
    by_text = graph.node("Concat", graph.node("Shape", ids), graph.ints(-1), axis=0)

    visible = [write_visible(graph, mask, length)] if mask else []
    precision: dict[str, Any] = {"softmax_precision": TensorProto.FLOAT} if dtype == "bfloat16" else {}
    attend = write_attention(graph, by_text, config, *visible, **precision)
    layers = LAYERS.get(dtype, Layers)(graph, weights, config, samples)
    total, norm = write_encoder_layers(layers, config, total, attend)
    hidden = layers.layer_norm(total, norm)

    hidden = graph.node("Reshape", hidden, by_text)
    if dtype == "float16":
        # Sums over tokens and squares would lose too much in float16.
        hidden = _widen(graph, hidden)
    write_vectors(graph, hidden, mask, head, config["hidden_size"])
    return graph


class Layers:
    """A writer of layers' blocks in one floating-point type.

    A block takes the sum before a layer norm and the name of that norm; it returns the sum before the next norm.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Array],
        config: Mapping[str, Any],
        samples: Mapping[str, Sample] | None = None,
    ) -> None:
        """Take a graph to write to; `samples` as `build_bert` does."""
        self._graph, self._weights = graph, weights
        self._samples: Mapping[str, Sample] = samples or {}
        self._eps = config["layer_norm_eps"]
        self._gelu: Mapping[str, Any] = ACTIVATIONS[config["hidden_act"]]

    def layer_norm(self, value: str, name: str, channels: Channels | None = None) -> str:
        """Write a layer norm; with `channels`, its output is centred and scaled for a product."""
        scale, shift = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        if channels is not None:
            scale, shift = scale / channels.scale, (shift - channels.centre) / channels.scale
        graph = self._graph
        return graph.node(
            "LayerNormalization", value, graph.constant(scale), graph.constant(shift), axis=-1, epsilon=self._eps
        )

    def gelu(self, value: str) -> str:
        """Write the activation."""
        return self._graph.node("Gelu", value, **self._gelu)

    def project(self, total: str, norm: str, *names: str) -> list[str]:
        """Write a norm and the products that share its output."""
        rows = self._graph.quantise(self.layer_norm(total, norm))
        return [self._linear(rows, name) for name in names]

    def attention(self, total: str, norm: str, name: str, attend: Attend, parts: Sequence[str] = PROJECTIONS) -> str:
        """Write attention from the products of `parts`."""
        hidden = self.layer_norm(total, norm)
        rows = self._graph.quantise(hidden)
        projected = self._linear(attend(*(self._linear(rows, f"{name}.self.{part}") for part in parts)), _out(name))
        return self._graph.node("Add", projected, hidden)

    def feed_forward(self, total: str, norm: str, name: str) -> str:
        """Write a feed-forward layer."""
        hidden = self.layer_norm(total, norm)
        wide = self.gelu(self._linear(hidden, f"{name}.intermediate.dense"))
        return self._graph.node("Add", self._linear(wide, _out(name)), hidden)

    def _linear(self, value: str | QuantisedRows, name: str) -> str:
        return self._graph.linear(value, *self._of(name))

    def _of(self, name: str) -> tuple[Array, Array]:
        return self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]


class Bfloat16Layers(Layers):
    """A writer of blocks with products and attention in bfloat16, the rest in fp32."""

    def attention(self, total: str, norm: str, name: str, attend: Attend, parts: Sequence[str] = PROJECTIONS) -> str:
        """Write attention from the products of `parts`."""
        graph = self._graph
        hidden = self.layer_norm(total, norm)
        rows = _narrow(graph, hidden)
        projected = self._multiply(attend(*(self._multiply(rows, f"{name}.self.{part}") for part in parts)), _out(name))
        return graph.node("Add", _widen(graph, projected), hidden)

    def feed_forward(self, total: str, norm: str, name: str) -> str:
        """Write a feed-forward layer."""
        graph = self._graph
        hidden = self.layer_norm(total, norm)
        wide = self.gelu(_widen(graph, self._multiply(_narrow(graph, hidden), f"{name}.intermediate.dense")))
        return graph.node("Add", _widen(graph, self._multiply(_narrow(graph, wide), _out(name))), hidden)

    def _multiply(self, value: str, name: str) -> str:
        # Gemm adds the bias before it rounds, so the sum is rounded once.
        weight, bias = (self._graph.constant(part, BFLOAT16) for part in self._of(name))
        return self._graph.node("Gemm", value, weight, bias, transB=1)


class Int8Layers(Layers):
    """A writer of blocks with products in int8."""

    def project(self, total: str, norm: str, *names: str) -> list[str]:
        """Write a norm and the products that share its output."""
        rows, channels = self._normed(total, norm, names)
        return self._multiply(rows, channels, names)

    def attention(self, total: str, norm: str, name: str, attend: Attend, parts: Sequence[str] = PROJECTIONS) -> str:
        """Write attention from the products of `parts`."""
        graph = self._graph
        names = [f"{name}.self.{part}" for part in parts]
        rows, channels = self._normed(total, norm, names)
        attended = attend(*self._multiply(rows, channels, names))
        weight, bias = self._of(_out(name))
        seen = self._samples[_out(name)]
        plain = plan_plain(seen)
        residual = graph.node("Mul", rows, graph.constant(channels.scale))
        bias = bias + channels.centre
        projected = multiply(graph, quantise_once(graph, attended, plain), weight, bias, plain, seen.products)
        return graph.node("Add", projected, residual)

    def feed_forward(self, total: str, norm: str, name: str) -> str:
        """Write a feed-forward layer."""
        graph = self._graph
        weight, bias = self._of(f"{name}.intermediate.dense")
        out_weight, out_bias = self._of(_out(name))
        seen, out_seen = self._samples[f"{name}.intermediate.dense"], self._samples[_out(name)]
        channels = plan_channels(seen, weight)
        wide = find_wide_neurons(out_seen)
        kept = np.delete(np.arange(len(weight)), wide)
        weight, bias = fold_weight(weight, bias, channels)
        rows = self.layer_norm(total, norm, channels)
        counts = count_copies(weight[kept], REPEATED_COLUMNS)
        repeated = repeat_columns(graph, quantise_once(graph, rows, channels), counts)
        products = fold_sample(seen, channels)
        many = self.gelu(multiply(graph, repeated, weight[kept], bias[kept], channels, products, counts))
        narrow = multiply_after_gelu(graph, many, out_weight[:, kept], out_seen.products[np.ix_(kept, kept)])

        # The widest neurons in fp32, and one whose value is always STEADY: its outgoing weight is the bias.
        residual = graph.node("Mul", rows, graph.constant(channels.scale))
        into = np.append(weight[wide], np.zeros_like(weight[:1]), axis=0)
        few = graph.node("Gemm", rows, graph.constant(into.T), graph.constant(np.append(bias[wide], STEADY)))
        out = np.append(out_weight[:, wide].T, (out_bias + channels.centre)[None] / STEADY, axis=0)
        few = graph.node("Gemm", self.gelu(few), graph.constant(out), residual)
        return graph.node("Add", narrow, few)

    def _normed(self, total: str, norm: str, names: Sequence[str]) -> tuple[str, Channels]:
        """Write a norm whose output is centred and scaled for these products."""
        matrices = [self._weights[f"{name}.weight"] for name in names]
        channels = plan_channels(self._samples[names[0]], np.concatenate(matrices))
        return self.layer_norm(total, norm, channels), channels

    def _multiply(self, rows: str, channels: Channels, names: Sequence[str]) -> list[str]:
        """Write the products of the rows of `_normed`; an attention's values take two terms."""
        graph = self._graph
        products = fold_sample(self._samples[names[0]], channels)
        first = quantise_once(graph, rows, channels)
        written = []
        for name in names:
            weight, bias = fold_weight(*self._of(name), channels)
            if name.endswith("attention.self.value"):
                terms = quantise_twice(graph, rows, first, channels)
                written.append(multiply_terms(graph, terms, weight, bias, channels))
            else:
                written.append(multiply(graph, first, weight, bias, channels, products))
        return written


LAYERS: dict[str, type[Layers]] = {"int8": Int8Layers, "bfloat16": Bfloat16Layers}


def write_encoder_layers(layers: Layers, config: Mapping[str, Any], total: str, attend: Attend) -> tuple[str, str]:
    """Write every layer of an encoder; return the sum before the last norm, and that norm."""
    norm = "embeddings.LayerNorm"
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        total = layers.attention(total, norm, f"{name}.attention", attend)
        total = layers.feed_forward(total, f"{name}.attention.output.LayerNorm", name)
        norm = f"{name}.output.LayerNorm"
    return total, norm


def write_attention(graph: Graph, by_text: str, config: Mapping[str, Any], *visible: str, **precision: Any) -> Attend:
    """Return a writer of an encoder's attention over rows; `by_text` is their shape as texts.

    `visible` is what `write_visible` returns, or nothing if no text is padded.
    """
    heads = config["num_attention_heads"]

    def attend(*projected: str) -> str:
        parts = (graph.node("Reshape", rows, by_text) for rows in projected)
        attended = graph.node("Attention", *parts, *visible, q_num_heads=heads, kv_num_heads=heads, **precision)
        return graph.reshape(attended, -1, config["hidden_size"])

    return attend


def read_positions(weights: Mapping[str, Array], config: Mapping[str, Any], count: int) -> Array:
    """Return what is added to the word embedding at each of `count` places, shape `(count, hidden_size)`."""
    first = first_position(config)
    positions = weights["embeddings.position_embeddings.weight"][first : first + count]
    # A single segment: one row of type embeddings serves every token.
    types = weights.get("embeddings.token_type_embeddings.weight")
    return positions if types is None else positions + types[0]


def check_config(config: Mapping[str, Any]) -> None:
    """Check that the layers are of a kind that can be written.

    Raises:
        InputError: they are not.
    """
    if config.get("hidden_act", "gelu") not in ACTIVATIONS:
        raise InputError(
            f"unsupported activation {config['hidden_act']!r}.",
            f"export a checkpoint with activation {', '.join(ACTIVATIONS)}",
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(
            f"unsupported position embeddings {config['position_embedding_type']!r}.",
            "export a checkpoint with absolute position embeddings",
        )


def _out(name: str) -> str:
    return f"{name}.output.dense"


def _narrow(graph: Graph, value: str) -> str:
    return graph.node("Cast", value, to=TensorProto.BFLOAT16)


def _widen(graph: Graph, value: str) -> str:
    return graph.node("Cast", value, to=TensorProto.FLOAT)


def write_visible(graph: Graph, mask: str, length: str) -> str:
    """Return which tokens are visible, bool of shape `(batch, 1, tokens, tokens)`."""
    visible = graph.node("Cast", graph.node("Unsqueeze", mask, graph.ints(1, 2)), to=TensorProto.BOOL)
    # The runtime's Attention broadcasts a mask over batch and heads, but not over queries.
    return graph.node("Expand", visible, graph.node("Concat", graph.ints(1, 1), length, graph.ints(1), axis=0))


def is_bert2bert(config: Mapping[str, Any]) -> bool:
    """Return whether a `config.json` is of a BERT encoder and a BERT decoder."""
    halves = [config.get(half) for half in HALVES]
    return config.get("model_type") == PAIR_TYPE and all(
        isinstance(half, dict) and half.get("model_type") in UNSHIFTED for half in halves
    )


def complete_pair(config: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration with the ids that begin and end a query, wherever the checkpoint names them.

    Raises:
        InputError: a half cannot be exported, or nothing begins a query.
    """
    for half in HALVES:
        check_config(config[half])
    for name in ("is_decoder", "add_cross_attention"):
        if not config["decoder"].get(name):
            raise InputError(
                f"the decoder's configuration does not set {name}.", "export a checkpoint that was trained to generate"
            )
    names = ("eos_token_id", "decoder_start_token_id")
    places = (config, generation, config["decoder"])
    found = {name: next((place[name] for place in places if place.get(name) is not None), None) for name in names}
    if found["decoder_start_token_id"] is None and not generation.get("lang_to_id"):
        raise InputError(
            "the checkpoint names no decoder_start_token_id.", "write it into generation_config.json; see its card"
        )
    return {**config, **found}


def limit_pair(settings: GeneratorSettings, config: Mapping[str, Any]) -> GeneratorSettings:
    """Return settings within the positions of both halves."""
    return settings._replace(
        max_input_tokens=min(settings.max_input_tokens, config["encoder"]["max_position_embeddings"]),
        max_new_tokens=min(settings.max_new_tokens, longest_output(config)),
    )


def longest_output(config: Mapping[str, Any]) -> int:
    """Return the most tokens of a query; its first takes the place of the language's, the last takes none."""
    return min(LONGEST_OUTPUT, int(config["decoder"]["max_position_embeddings"]))


class Bert2Bert(NamedTuple):
    """The source of the graphs.

    `weights` have transformers' names; the output projection is `lm_head`. For int8, `samples` describes the input of
    each product of `SAMPLED` on sample texts, by the name of the product.
    """

    weights: Mapping[str, Array]
    config: Mapping[str, Any]
    dtype: str = "float32"
    samples: Mapping[str, Sample] = {}

    def build_encoder(self, max_tokens: int) -> Graph:
        """Write the encoder's graph.

        Inputs `input_ids` and `attention_mask` are int64 of shape `(batch, tokens)`, with padding on the right and at
        most `max_tokens` tokens. Outputs for every decoder layer are those of `write_cross`.
        """
        config = self.config["encoder"]
        weights = {**_take(self.weights, "encoder."), **self._cross_weights()}
        graph = Graph("encoder", self.dtype)
        ids = graph.input("input_ids", np.int64, ["batch", "tokens"])
        mask = graph.input("attention_mask", np.int64, ["batch", "tokens"])
        tokens = graph.node("Shape", ids, start=1, end=2)
        by_text = graph.node("Concat", graph.node("Shape", ids), graph.ints(-1), axis=0)

        is_shared = np.array_equal(weights[WORDS], self.weights[f"decoder.bert.{WORDS}"])
        words = graph.look_up(ids, graph.table(weights[WORDS], EMBEDDING_FILE if is_shared else ""))
        positions = graph.constant(read_positions(weights, config, max_tokens))
        places = graph.node("Slice", positions, graph.ints(0), tokens, graph.ints(0))
        total = graph.reshape(graph.node("Add", words, places), -1, config["hidden_size"])
        attend = write_attention(graph, by_text, config, write_visible(graph, mask, tokens))
        layers = self._layers(graph, weights, "encoder", {**_take(self.samples, "encoder."), **self._cross_samples()})
        total, norm = write_encoder_layers(layers, config, total, attend)

        # Zero the keys and values of padding, so that in int8 they affect no scale.
        visible = graph.reshape(graph.node("Cast", mask, to=TensorProto.FLOAT), -1, 1)
        labels = [(layer, part) for layer in range(self._count()) for part in ("key", "value")]
        names = [f"encoder.layer.{layer}.crossattention.self.{part}" for layer, part in labels]
        for (layer, part), projected in zip(labels, layers.project(total, norm, *names), strict=True):
            rows = graph.node("Reshape", graph.node("Mul", projected, visible), by_text)
            write_cross(graph, rows, f"cross_{part}", layer, self._heads(), tokens)
        return graph

    def build_decoder(self) -> Graph:
        """Write the graph of one decoder step up to the output projection.

        Inputs and further outputs are those of `DecoderStep`. Output `hidden` is float32 of shape
        `(rows, hidden_size)`; in an int8 model it is centred.
        """
        config = self.config["decoder"]
        weights = {**_take(self.weights, "decoder."), **_take(self.weights, "decoder.bert.")}
        samples = {**_take(self.samples, "decoder."), **_take(self.samples, "decoder.bert.")}
        for name in weights:
            if "self.query." in name:
                # The attentions of a step do not scale their scores.
                weights[name] = weights[name] * np.float32(self._heads().dim ** -0.5)
        graph = Graph("decoder", self.dtype)
        step = DecoderStep(graph, self._heads(), self._count(), np.zeros((1, LONGEST_OUTPUT), dtype=np.float32))
        words = graph.look_up(step.ids, graph.table(weights[WORDS], EMBEDDING_FILE))
        positions = graph.constant(read_positions(weights, config, longest_output(self.config)))
        total = graph.node("Add", words, graph.node("Gather", positions, step.step))
        layers = self._layers(graph, weights, "decoder", samples)
        norm = "embeddings.LayerNorm"
        for layer in range(self._count()):
            name = f"encoder.layer.{layer}"
            total = layers.attention(total, norm, f"{name}.attention", partial(step.attend_past, layer))
            norm, cross = f"{name}.attention.output.LayerNorm", f"{name}.crossattention"
            total = layers.attention(total, norm, cross, partial(step.attend_passage, layer), parts=("query",))
            total = layers.feed_forward(total, f"{cross}.output.LayerNorm", name)
            norm = f"{name}.output.LayerNorm"
        if f"{TRANSFORM}.dense.weight" in weights:
            [total] = layers.project(total, norm, f"{TRANSFORM}.dense")
            total, norm = layers.gelu(total), f"{TRANSFORM}.LayerNorm"
        hidden = layers.layer_norm(total, norm, self._output_channels())
        graph.output(hidden, "hidden", np.float32, ["rows", config["hidden_size"]])
        return graph

    def build_head(self, suppressed_ids: Sequence[int] = (), only_ids: Array | None = None) -> Graph:
        """Write the graph of the output projection and of the choice of the next ids, see `write_head`."""
        weight, bias = self.weights["lm_head.weight"], self.weights["lm_head.bias"]
        tied = np.shares_memory(self.weights[f"decoder.bert.{WORDS}"], weight)
        channels = self._output_channels()
        projection = Projection(weight, tied, bias)
        if channels is not None:
            projection = projection._replace(bias=bias + weight @ channels.centre, step=channels.step)
        return write_head(Graph("head", self.dtype), projection, suppressed_ids, only_ids)

    def _layers(self, graph: Graph, weights: Mapping[str, Array], half: str, samples: Mapping[str, Sample]) -> Layers:
        kind = Int8Layers if self.dtype == "int8" else Layers
        return kind(graph, weights, self.config[half], samples)

    def _count(self) -> int:
        return int(self.config["decoder"]["num_hidden_layers"])

    def _heads(self) -> Heads:
        config = self.config["decoder"]
        count = config["num_attention_heads"]
        return Heads(count, config["hidden_size"] // count, self.dtype == "int8")

    def _cross_weights(self) -> dict[str, Array]:
        """Return what the decoder makes of the encoder's last hidden states.

        Where the halves differ in width a projection lies between them; it is multiplied into these.
        """
        weights = _take(self.weights, "decoder.bert.")
        crosses = {name: value for name, value in weights.items() if ".crossattention.self." in name}
        bridge = self.weights.get(f"{BRIDGE}.weight")
        if bridge is not None:
            for name in [name for name in crosses if name.endswith(".weight")]:
                bias = f"{name.removesuffix('weight')}bias"
                crosses[bias] = crosses[bias] + crosses[name] @ self.weights[f"{BRIDGE}.bias"]
                crosses[name] = crosses[name] @ bridge
        return crosses

    def _cross_samples(self) -> dict[str, Sample]:
        name = "encoder.layer.0.crossattention.self.key"
        seen = self.samples.get(BRIDGE) or self.samples.get(f"decoder.bert.{name}")
        return {} if seen is None else {name: seen}

    def _output_channels(self) -> Channels | None:
        """Return how an int8 model quantises the input of its output projection."""
        if self.dtype != "int8":
            return None
        return plan_centred(self.samples[f"decoder.{OUTPUTS[self.config['decoder']['model_type']]}"])


def _take(values: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
