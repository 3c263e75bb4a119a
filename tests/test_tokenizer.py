from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from xqg_qdrant.cli import main
from xqg_qdrant.inference import tokenizer as module
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.inference.tokenizer import ReadCount, encode_ids, open_tokenizer
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


def test_the_text_that_a_model_does_not_read_is_counted() -> None:
    path = shipped_model(DEMO_ENCODER) / TOKENIZER_FILE
    whole = Tokenizer.from_file(str(path))
    whole.no_truncation()
    texts = ["a lake", "Oulu is a city in Finland. " * 20, "The Danube is a river. " * 9]
    lengths = [len(encoding.ids) - 2 for encoding in whole.encode_batch(texts)]
    counting = ReadCount("encoder", "passage", 16)
    encode_ids(open_tokenizer(path, 16), texts, counting)
    encode_ids(open_tokenizer(path, 16), ["", "b"], counting)
    count = counting.reading
    read = [min(length, 14) for length in lengths]
    assert (count.texts, count.cut, count.unread) == (5, 2, sum(lengths) - sum(read))
    assert count.share_unread == pytest.approx(count.unread / (sum(lengths) + count.tokens - sum(read)))


def test_an_ingest_says_how_much_its_encoder_did_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": 1, "text": "A short one."}, {"id": 2, "text": "The Danube is a river. " * 400}]
    Path("corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = [{"id": number, "language": "fi", "text": "Mik\u00e4 joki?"} for number in (1, 2)]
    Path("given.jsonl").write_text("\n".join(map(json.dumps, given)))
    words = ["ingest", "corpus.jsonl", "--collection", "c", "--store", str(tmp_path / "s"), "--queries", "given.jsonl"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    longest = Encoder(None, "cpu", 1).reading.longest
    assert f"Longer than the {longest} tokens that the encoder reads: 1 of 2 passages." in done.stderr
    assert "of their text is not read" in done.stderr
