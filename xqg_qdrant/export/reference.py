"""Run a checkpoint in transformers, and check exported graphs against it.

This is the only module that imports torch and transformers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from safetensors.torch import save_model
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from transformers.utils.logging import disable_progress_bar

from xqg_qdrant.errors import InputError
from xqg_qdrant.export import bert, rotary
from xqg_qdrant.export.checkpoint import Checkpoint, read_licence, read_tokenizer_changes
from xqg_qdrant.export.graph import Array
from xqg_qdrant.export.pooling import Head
from xqg_qdrant.export.quantise import Sample
from xqg_qdrant.export.traced import trace
from xqg_qdrant.inference.session import is_cuda_at_hand, runtime_version
from xqg_qdrant.inference.tokenizer import LONGEST, apply_settings
from xqg_qdrant.model_folders import write_description
from xqg_qdrant.model_folders.description import TOKENIZER_FILE
from xqg_qdrant.records import FloatArray

# Earlier releases' weights-only loader could be made to run code (CVE-2025-32434).
LEAST_TORCH = (2, 6)
WATCHED_ROWS = 64
POOLERS = ("pooler.", "encoder.pooler.")
# What a published summariser sets for its own output. xqg draws plain samples.
PLAIN_DECODING = {
    "forced_bos_token_id": None, "forced_eos_token_id": None, "min_length": 0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "early_stopping": False, "length_penalty": 1.0,
}  # fmt: skip


class Reference:
    """A checkpoint in transformers, in fp32 on the CPU."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint.

        Raises:
            InputError: transformers cannot load it, or it lacks weights of its architecture.
        """
        disable_progress_bar()
        self._kind, self._model = checkpoint.kind, _load_model(checkpoint)
        self._tokenizer, self._side = load_tokenizer(checkpoint)
        self.config: dict[str, Any] = self._model.config.to_dict()
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"

    def trace(self, folder: Path, dtype: str) -> None:
        """Write the graphs that optimum traces, in `float32` or `int8`."""
        trace(self._model, self._kind, folder, dtype)

    def weights(self) -> dict[str, Array]:
        """Return every weight by name; a generator's output projection is `lm_head.weight`, its bias `lm_head.bias`."""
        weights = {name: value.numpy() for name, value in self._model.state_dict().items()}
        head = self._model.get_output_embeddings()
        if head is not None:
            weights["lm_head.weight"] = head.weight.detach().numpy()
            if head.bias is not None:
                weights["lm_head.bias"] = head.bias.detach().numpy()
        return weights

    def scales_head(self) -> bool:
        """Return whether a T5 scales hidden states before its output projection, as the original release does."""
        fallback = self.config["model_type"] == "t5" and self.config.get("tie_word_embeddings", True)
        return bool(self.config.get("scale_decoder_outputs", fallback))

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer, without padding and truncation."""
        return self._tokenizer

    def save_tokenizer(self, path: Path) -> None:
        """Write `tokenizer.json`."""
        if self._side == "left":
            self._tokenizer.enable_truncation(LONGEST, direction=self._side)
        self._tokenizer.save(str(path), pretty=False)
        self._tokenizer.no_truncation()

    def encode(self, texts: Sequence[str], max_tokens: int, head: Head) -> FloatArray:
        """Encode texts one by one, the head in torch too; float32 of shape `(len(texts), dim)`."""
        vectors = []
        with torch.no_grad():
            for text in texts:
                hidden = self._model(**self._tokenise(text, max_tokens)).last_hidden_state[0]
                vector = {"cls": hidden[0], "mean": hidden.mean(dim=0), "last": hidden[-1]}[head.pooling]
                for layer in head.dense:
                    bias = None if layer.bias is None else torch.from_numpy(layer.bias)
                    vector = torch.nn.functional.linear(vector, torch.from_numpy(layer.weight), bias)
                    vector = vector.tanh() if layer.activation == "Tanh" else vector
                vectors.append(torch.nn.functional.normalize(vector, dim=0) if head.normalise else vector)
        array: FloatArray = torch.stack(vectors).numpy()
        return array

    def _tokenise(self, text: str, max_tokens: int) -> dict[str, torch.Tensor]:
        self._tokenizer.enable_truncation(max_tokens, direction=self._side)
        ids = torch.tensor([self._tokenizer.encode(text).ids])
        self._tokenizer.no_truncation()
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def sample_encoder(self, texts: Sequence[str], max_tokens: int) -> dict[str, Sample]:
        """Encode texts and return statistics of each product's input, by the name of the product."""
        # Query, key and value share an input, as do gate and up projection. Only BERT needs the products of channels.
        is_bert = self.config["model_type"] in bert.MODEL_TYPES
        berts = ("self.query", "output.dense", "intermediate.dense")
        others = ("q_proj", "o_proj", "gate_proj", "down_proj")
        with self._watched(*(berts if is_bert else others), products=is_bert) as found:
            self.encode(texts, max_tokens, Head("cls", normalise=False))
        return found

    def sample_generator(
        self, prompts: Sequence[str], decoded: Sequence[Sequence[int]], max_input_tokens: int
    ) -> dict[str, Sample]:
        """Read what was decoded from each prompt and return statistics of each input, by the name of its first product.

        Args:
            prompts: what is read.
            decoded: the ids that the decoder is given, from the start token on.
            max_input_tokens: where a prompt is truncated.
        """
        is_bert = self.config["model_type"] == bert.PAIR_TYPE
        t5 = ("Attention.q", "EncDecAttention.k", "Attention.o", "wi", "wi_0", "wo")
        with self._watched(*(bert.SAMPLED if is_bert else t5), products=is_bert) as found:
            for prompt, ids in zip(prompts, decoded, strict=True):
                with torch.no_grad():
                    self._model(
                        **self._tokenise(prompt, max_input_tokens),
                        decoder_input_ids=torch.tensor([list(ids)]),
                        use_cache=False,
                    )
        return found

    @contextmanager
    def _watched(self, *endings: str, products: bool = False) -> Iterator[dict[str, Sample]]:
        """Collect statistics of the inputs of linear layers with these name endings; they are filled in on exit.

        The mean products of channels, a matrix for each input, are empty unless `products` is true.
        """
        waiting: dict[str, list[torch.Tensor]] = {}
        counts: dict[str, int] = {}
        seen: dict[str, list[torch.Tensor]] = {}

        def watch(name: str, rows: torch.Tensor) -> None:
            waiting.setdefault(name, []).append(rows.reshape(-1, rows.shape[-1]))
            # A decoder's rows come one by one, and each product of channels costs as much as a layer.
            if sum(map(len, waiting[name])) >= WATCHED_ROWS:
                add(name)

        def add(name: str) -> None:
            rows = torch.cat(waiting.pop(name))
            together = rows.T @ rows if products else torch.empty((0, 0))
            new = [rows.amin(dim=0), rows.amax(dim=0), rows.sum(dim=0), together]
            counts[name] = counts.get(name, 0) + len(rows)
            if name in seen:
                low, high, total, before = seen[name]
                new = [low.minimum(new[0]), high.maximum(new[1]), total + new[2], before + together]
            seen[name] = new

        hooks = [
            module.register_forward_pre_hook(lambda _, inputs, name=name: watch(name, inputs[0]))
            for name, module in self._model.named_modules()
            if isinstance(module, torch.nn.Linear) and name.endswith(endings)
        ]
        found: dict[str, Sample] = {}
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()
        for name in list(waiting):
            add(name)
        for name, (low, high, total, together) in seen.items():
            mean, mean_products = total / counts[name], together / counts[name]
            found[name] = Sample(low.numpy(), high.numpy(), mean.numpy(), mean_products.numpy())

    def decode_greedily(
        self,
        prompts: Sequence[str],
        start_ids: Sequence[int],
        max_input_tokens: int,
        max_new_tokens: int,
        end_id: int,
        prefix: Sequence[int] = (),
    ) -> list[list[int]]:
        """Return the greedy ids of each prompt, without the prefix, start and end tokens."""
        outputs: list[list[int]] = []
        # Where the first token names the language, the same prompt is read for each.
        for prompt, same in groupby(zip(prompts, start_ids, strict=True), key=itemgetter(0)):
            begun = [[*prefix, start_id] for _, start_id in same]
            read = self._tokenise(prompt, max_input_tokens)
            with torch.no_grad():
                ids = self._model.generate(
                    **{name: tensor.repeat(len(begun), 1) for name, tensor in read.items()},
                    decoder_input_ids=torch.tensor(begun),
                    decoder_start_token_id=begun[0][0],
                    eos_token_id=end_id,
                    **PLAIN_DECODING,
                    do_sample=False,
                    num_beams=1,
                    max_new_tokens=max_new_tokens,
                )
            rows = ids[:, len(begun[0]) :].tolist()
            outputs.extend(row[: row.index(end_id)] if end_id in row else row for row in rows)
        return outputs


class Steps(NamedTuple):
    """The steps that differ between exporting an encoder and a generator."""

    reference: Reference
    fields: dict[str, Any]
    write_graphs: Callable[[Path, str], None]
    measure: Callable[[Path], dict[str, Any]]
    accept: Callable[[dict[str, Any]], None]


def cosines(left: FloatArray, right: FloatArray) -> Array:
    """Return the cosine of each pair of rows, in float64, shape `(n,)`."""
    left64, right64 = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(left64, axis=1) * np.linalg.norm(right64, axis=1)
    result: Array = (left64 * right64).sum(axis=1) / lengths
    return result


def build_and_check(checkpoint: Checkpoint, temporary: Path, wanted: str, steps: Steps, inputs: int) -> dict[str, Any]:
    """Build the fp32 graphs, check them, and write the model folder in the wanted dtype to `final`.

    Return the parity figures by dtype, with the versions and the number of inputs behind them.
    """
    parity: dict[str, Any] = {
        "reference": steps.reference.version, "runtime": f"onnxruntime {runtime_version()}", "inputs": inputs
    }  # fmt: skip
    final = temporary / "final"
    for dtype in dict.fromkeys(("float32", wanted)):
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir()
        steps.reference.save_tokenizer(final / TOKENIZER_FILE)
        steps.write_graphs(final, dtype)
        about = {
            "source": checkpoint.source,
            "revision": checkpoint.revision,
            "licence": read_licence(checkpoint.path),
            "dtype": dtype,
            **steps.fields,
        }
        write_description(final, checkpoint.kind, about)
        # No CPU runs bfloat16.
        if dtype != "bfloat16" or is_cuda_at_hand():
            parity[dtype] = steps.measure(final)
        if dtype == "float32":
            steps.accept(parity[dtype])
        write_description(final, checkpoint.kind, {**about, "parity": parity})
    return parity


def _check_torch() -> None:
    """Check that torch's weights-only loader is safe.

    Raises:
        InputError: torch is too old.
    """
    version = torch.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST_TORCH:
        raise InputError(
            f"torch {version} cannot read a pickle safely.", "upgrade it: pip install --upgrade 'torch>=2.6'"
        )


def read_pickle(path: Path) -> dict[str, Array]:
    """Return the tensors of a pickle by name.

    Raises:
        InputError: it holds anything but tensors, or is damaged.
    """
    _check_torch()
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise errors of many kinds
        raise InputError(
            f"{path} cannot be read: it is damaged, or holds more than weights ({str(error).splitlines()[0]}).",
            "download it again, or use another checkpoint",
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise InputError(f"{path} holds more than tensors.", "use another checkpoint")
    return {str(name): value.float().numpy() for name, value in found.items()}


def _load_model(checkpoint: Checkpoint) -> Any:  # noqa: ANN401
    given: dict[str, Any] = {
        "dtype": torch.float32,
        "use_safetensors": not checkpoint.is_pickled,
        "weights_only": True,
        "trust_remote_code": False,
    }
    if checkpoint.is_pickled:
        _check_torch()
    if checkpoint.is_traced:
        # Others decide by the size of a batch, which a trace would freeze.
        given["attn_implementation"] = "eager"
    loader: Any = transformers.AutoModelForSeq2SeqLM if checkpoint.kind == "generator" else transformers.AutoModel
    # Earlier releases lack GTE, and describe rotary positions otherwise.
    if checkpoint.config["model_type"] in rotary.MODEL_TYPES and not hasattr(transformers, "GteModel"):
        raise InputError(
            f"transformers {transformers.__version__} lacks the architecture of {checkpoint.source}.",
            "upgrade it: pip install --upgrade transformers",
        )
    if checkpoint.config["model_type"] == "new":
        loader = transformers.GteModel
        given["config"] = transformers.GteConfig(**rotary.translate_config(checkpoint.config))
    try:
        model, found = loader.from_pretrained(checkpoint.path, output_loading_info=True, **given)
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            f"transformers cannot load {checkpoint.source}: {error}.", "check its files, or download it again"
        ) from error
    if checkpoint.is_pickled:
        _save_beside(checkpoint.path, model)
    # transformers initialises missing weights at random. The pooler's are not used.
    missing = sorted(name for name in found["missing_keys"] if not name.startswith(POOLERS))
    if missing:
        raise InputError(
            f"{checkpoint.source} lacks {len(missing)} of the weights of a {checkpoint.config['model_type']}, such as "
            f"{missing[0]}.",
            "export a complete checkpoint of that architecture",
        )
    return model.eval()


def _save_beside(folder: Path, model: Any) -> None:  # noqa: ANN401
    """Write a pickle's weights to safetensors in its folder, if it may be written to."""
    unfinished = folder / "model.safetensors.unfinished"
    with suppress(OSError):
        save_model(model, str(unfinished), metadata={"format": "pt"})
        unfinished.replace(folder / "model.safetensors")


def load_tokenizer(checkpoint: Checkpoint) -> tuple[Tokenizer, str]:
    """Return the tokenizer, without padding and truncation, and the side to truncate at."""
    path = checkpoint.path
    file = path / TOKENIZER_FILE
    tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else None
    # transformers may rebuild a tokenizer from its vocabulary; other libraries run the file as it is, and so does this.
    # Except for BERT's: whether it lowercases is in tokenizer_config.json, which takes precedence.
    if tokenizer is None or isinstance(tokenizer.model, WordPiece):
        loaded: Any = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        tokenizer = getattr(loaded, "backend_tokenizer", None)
        if tokenizer is None:
            raise InputError(
                f"transformers cannot write the tokenizer of {checkpoint.source} as {TOKENIZER_FILE}.",
                f"add a {TOKENIZER_FILE} to the checkpoint",
            )
    apply_settings(tokenizer, read_tokenizer_changes(checkpoint))
    side = (tokenizer.truncation or {}).get("direction", "right")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, side
