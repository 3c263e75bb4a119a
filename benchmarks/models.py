"""Make the checkpoints of `shapes` and each library's converted models, in a cache folder.

Each is made once, under `$XDG_CACHE_HOME/xqg-benchmarks`, in a folder with a hash of its sources in the name. Run as a
command, this module makes all models that the benchmarks need.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shapes

import xqg_qdrant
from xqg_qdrant.demo import DEMO_FOLDER

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "xqg-benchmarks"


def cached(name: str, made_from: object, make: Callable[[Path], None]) -> Path:
    """Return the cached folder that `make` fills, made if missing."""
    key = hashlib.sha256(repr(made_from).encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{key}"
    if not folder.exists():
        print(f"making {folder}", flush=True)
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        make(unfinished)
        unfinished.rename(folder)
    return folder


def checkpoint(name: str, language_tokens: bool = False) -> Path:
    """Return a checkpoint of `shapes`."""
    return cached(
        f"{name}{'-language-tokens' if language_tokens else ''}",
        (language_tokens, Path(shapes.__file__).read_text()),
        lambda folder: shapes.save_checkpoint(folder, name, language_tokens),
    )


def exported(name: str, dtype: str, language_tokens: bool = False, restricted: bool = False) -> Path:
    """Return the model folder that `xqg export` writes, in one of its dtypes.

    With `restricted` it also has an output projection for the tokens of each language.
    """
    from xqg_qdrant import export

    # For random weights a short check and a small sample are enough; the usual ones take minutes for a large model.
    if name in shapes.GENERATORS or name == shapes.LARGE:
        export.CHECKED_INPUTS = export.SAMPLED_INPUTS = 14
    source = checkpoint(name, language_tokens)
    options: dict[str, Any] = {}
    if name in shapes.GENERATORS:
        options = {"max_new_tokens": 28, "top_k": 10, "max_input_tokens": 256}
        if not language_tokens:
            options |= {"prompt": shapes.PROMPT, "languages": shapes.LANGUAGES}
        if restricted:
            options["restrict_vocabulary"] = DEMO_FOLDER / "queries.jsonl"
    code = [path.read_text() for path in sorted((Path(xqg_qdrant.__file__).parent / "export").glob("*.py"))]
    return cached(
        f"{source.name}-xqg-{dtype}{'-restricted' if restricted else ''}",
        (code, options),
        lambda folder: export.export_checkpoint(str(source), folder, dtype=dtype, **options),
    )


def ctranslate2_model(name: str, dtype: str) -> Path:
    """Return CTranslate2's conversion of a generator; `dtype` is `float32` or `int8`."""
    from ctranslate2.converters import TransformersConverter

    source = checkpoint(name)
    return cached(
        f"{source.name}-ctranslate2-{dtype}",
        dtype,
        lambda folder: TransformersConverter(str(source)).convert(str(folder), quantization=dtype),
    )


def optimum_model(name: str) -> Path:
    """Return optimum's export of a model: plain fp32 graphs; for a generator, a second decoder with caches."""
    from optimum.exporters.onnx import main_export

    source = checkpoint(name)
    task = "text2text-generation-with-past" if name in shapes.GENERATORS else "feature-extraction"
    return cached(
        f"{source.name}-optimum",
        (task, "transformers"),
        lambda folder: main_export(
            str(source), folder, task=task, library_name="transformers", no_post_process=True, do_validation=False
        ),
    )


def main() -> None:
    """Make every checkpoint and its converted models, except the largest."""
    for name in ("mt5-small-32k", "mt5-small-250k", *shapes.USUAL_ENCODERS):
        optimum_model(name)
        for dtype in ("float32", "int8"):
            exported(name, dtype)
            if name in shapes.GENERATORS:
                ctranslate2_model(name, dtype)
    exported("mt5-small-32k", "int8", language_tokens=True)


if __name__ == "__main__":
    main()
