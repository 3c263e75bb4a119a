"""The demo corpus: English passages, and questions about them in the seven languages of the paper, as a BEIR folder.

`corpus.jsonl` holds the passages, `queries.jsonl` the questions with their English answers, `qrels/test.tsv` which
passage answers which question, and `generated_queries.jsonl.gz` two questions in each language that were written from
each passage alone. `lexicon.tsv.gz` is a lexicon that can be used as a generator.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from xqg_qdrant.corpus.passages import read_passages
from xqg_qdrant.corpus.questions import read_queries
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.files import read_qrels
from xqg_qdrant.records import Passage, Qrel, Query

DEMO_FOLDER = Path(__file__).resolve().parent
DEMO_LEXICON = DEMO_FOLDER / "lexicon.tsv.gz"
DEMO_QUERIES = DEMO_FOLDER / "generated_queries.jsonl.gz"


def read_demo_passages() -> list[Passage]:
    """Return the passages of the demo corpus."""
    return [row for row in read_passages(str(DEMO_FOLDER)) if isinstance(row, Passage)]


def read_demo_queries() -> list[Query]:
    """Return the questions of the demo corpus, each in all seven languages, one after the other."""
    return read_queries(DEMO_FOLDER)


def read_demo_qrels() -> list[Qrel]:
    """Return which passage answers which question."""
    return read_qrels(DEMO_FOLDER)


def write_demo(folder: Path) -> dict[str, Path]:
    """Write the demo corpus as files to try the commands with; return them by what they hold.

    Raises:
        InputError: a file of such a name is there already, or none can be written.
    """
    originals = {
        "passages": (DEMO_FOLDER / "corpus.jsonl", "passages.jsonl"),
        "questions": (DEMO_FOLDER / "queries.jsonl", "questions.jsonl"),
        "judgements": (DEMO_FOLDER / "qrels" / "test.tsv", "qrels.tsv"),
        "queries": (DEMO_QUERIES, "generated_queries.jsonl.gz"),
        "lexicon": (DEMO_LEXICON, "lexicon.tsv.gz"),
    }
    written = {what: folder / name for what, (_, name) in originals.items()}
    for path in written.values():
        if path.exists():
            raise InputError(f"{path} is there already.", "name another folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for what, (original, _) in originals.items():
            shutil.copyfile(original, written[what])
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}.", "name another folder.") from error
    return written
