from __future__ import annotations

import subprocess
import sys

import pytest
from tokenizers import Tokenizer

from xqg_qdrant.inference import tokenizer as module
from xqg_qdrant.inference.tokenizer import encode_ids
from xqg_qdrant.model_folders import DEMO_ENCODER, shipped_model
from xqg_qdrant.model_folders.description import TOKENIZER_FILE


def test_texts_have_the_same_ids_tokenised_together_or_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.from_file(str(shipped_model(DEMO_ENCODER) / TOKENIZER_FILE))
    tokenizer.enable_truncation(16)
    texts = ["Oulu is a city.", "", "a" * 200, "пример " * 50, "\0\x1b\u0301"]
    together = encode_ids(tokenizer, texts)
    monkeypatch.setattr(module, "CHARACTERS_AT_ONCE", 10)
    assert encode_ids(tokenizer, texts) == together
    assert max(map(len, together)) == 16


def test_many_passages_of_a_megabyte_are_tokenised_in_the_memory_of_one() -> None:
    # Of what a process once took, the operating system tells the most: it must be one of its own.
    code = """
import resource
from tokenizers import Tokenizer
from xqg_qdrant.model_folders.description import TOKENIZER_FILE
from xqg_qdrant.model_folders import DEMO_ENCODER, shipped_model
from xqg_qdrant.inference.tokenizer import encode_ids

tokenizer = Tokenizer.from_file(str(shipped_model(DEMO_ENCODER) / TOKENIZER_FILE))
tokenizer.enable_truncation(256)
peaks = []
for count in (1, 4):
    encode_ids(tokenizer, ["word " * 210_000] * count)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] / peaks[0])
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(output) < 1.3
