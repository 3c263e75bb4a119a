"""Measure time and memory to export a large encoder, and to open it afterwards.

The checkpoint has random weights in the published shape, vocabulary included. Its tokenizer is byte-level without
merges, so texts have more tokens than with the published one; the parity check reads 16 of them. Every step runs in its
own process. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

END = "<|endoftext|>"
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-embedding-0.6b": (
        "Qwen3Config",
        {
            "vocab_size": 151_669, "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "max_position_embeddings": 32_768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "xlm-roberta-large": (
        "XLMRobertaConfig",
        {
            "vocab_size": 250_002, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
            "intermediate_size": 4096, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1,
        },
    ),
}  # fmt: skip


def main() -> None:
    """Make a checkpoint, export it, open it, and print a row for each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen3-embedding-0.6b")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        start = time.perf_counter()
        figures = STEPS[options.step](options.folder, options.shape, options.dtype)
        used = resource.getrusage(resource.RUSAGE_SELF)
        took = {"seconds": time.perf_counter() - start, "processor seconds": used.ru_utime + used.ru_stime}
        print(json.dumps({**figures, **took, "peak MiB": used.ru_maxrss / 1024}))
        return
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step, "--folder", folder]
            command += ["--shape", options.shape, "--dtype", options.dtype]
            output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
            print(f"{options.shape} {options.dtype} {step}: {output.splitlines()[-1]}", flush=True)


def make(folder: Path, shape: str, dtype: str) -> dict[str, Any]:
    """Write the checkpoint."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    config, fields = SHAPES[shape]
    torch.manual_seed(1)
    model = transformers.AutoModel.from_config(getattr(transformers, config)(**fields))
    model.save_pretrained(folder / "checkpoint")
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE({**vocabulary, END: len(vocabulary)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([END])
    ends = [(END, tokenizer.token_to_id(END))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=ends)
    tokenizer.save(str(folder / "checkpoint" / "tokenizer.json"))
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def export(folder: Path, shape: str, dtype: str) -> dict[str, Any]:
    """Export the checkpoint, parity check included."""
    from xqg_qdrant.export import export_checkpoint

    pooling = "last" if shape.startswith("qwen3") else "mean"
    done = export_checkpoint(
        str(folder / "checkpoint"), folder / "model", dtype=dtype, pooling=pooling, normalise=True,
        max_query_tokens=16, max_passage_tokens=16,
    )  # fmt: skip
    files = {file.name: file.stat().st_size for file in done.folder.iterdir()}
    return {"parity": done.parity, "bytes": files}


def load(folder: Path, shape: str, dtype: str) -> dict[str, Any]:
    """Open the model folder and encode one question."""
    from xqg_qdrant.inference.encoder import Encoder

    start = time.perf_counter()
    encoder = Encoder(folder / "model", "cpu")
    opened = time.perf_counter() - start
    encoder.encode_queries(["Mikä on maailman syvin järvi?"])
    return {"opened in": opened}


STEPS = {"make": make, "export": export, "load": load}

if __name__ == "__main__":
    main()
