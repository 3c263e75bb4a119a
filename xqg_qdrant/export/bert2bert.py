"""Write the graphs of a BERT-to-BERT generator: a BERT encoder, and a BERT decoder with cross-attention.

Architecture: Rothe et al. 2020 (arXiv 1907.12461), as transformers' `EncoderDecoderModel` computes it. Both halves may
be of type `bert` or `bert-generation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from onnx import TensorProto

from xqg_qdrant.errors import InputError
from xqg_qdrant.export.bert import (
    UNSHIFTED,
    Int8Layers,
    Layers,
    check_config,
    read_positions,
    write_attention,
    write_encoder_layers,
    write_visible,
)
from xqg_qdrant.export.generator import EMBEDDING_FILE, DecoderStep, Heads, Projection, write_cross, write_head
from xqg_qdrant.export.graph import Array, Graph
from xqg_qdrant.export.quantise import Channels, Sample, plan_centred
from xqg_qdrant.model_folders.generator_settings import LONGEST_OUTPUT, GeneratorSettings

Value = TypeVar("Value")

MODEL_TYPE = "encoder-decoder"
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


def is_bert2bert(config: Mapping[str, Any]) -> bool:
    """Return whether a `config.json` is of a BERT encoder and a BERT decoder."""
    halves = [config.get(half) for half in HALVES]
    return config.get("model_type") == MODEL_TYPE and all(
        isinstance(half, dict) and half.get("model_type") in UNSHIFTED for half in halves
    )


def complete_config(config: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
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


def limit_lengths(settings: GeneratorSettings, config: Mapping[str, Any]) -> GeneratorSettings:
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
