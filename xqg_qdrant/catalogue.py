"""The one door to ir_datasets: its corpora, questions and judgements by id, such as `ir_datasets:mr-tydi/ar/test`.

Knows which of a record's fields is its title. The package downloads what it does not have yet; nothing else does, and
only when it is asked so by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xqg_qdrant.errors import InputError
from xqg_qdrant.lines import CATALOGUE
from xqg_qdrant.records import Qrel
from xqg_qdrant.rows import FileRow


def is_catalogued(source: str | Path) -> bool:
    """Say whether this names a data set of ir_datasets and no file."""
    return str(source).startswith(CATALOGUE)


def passage_rows(source: str) -> Iterator[FileRow]:
    """Yield a row `{id, title, text}` for each document."""
    dataset = _load(source, "docs")
    with _explained(source):
        for number, document in enumerate(dataset.docs_iter(), start=1):
            text = document.text if hasattr(document, "text") else document.default_text()
            fields = {"id": document.doc_id, "title": getattr(document, "title", None), "text": text}
            yield FileRow(number, "", fields)


def question_rows(source: str) -> Iterator[FileRow]:
    """Yield a row `{id, text, lang}` for each question; of a topic with several texts it is what the package names."""
    dataset = _load(source, "queries")
    with _explained(source):
        language = dataset.queries_lang() or ""
        for number, question in enumerate(dataset.queries_iter(), start=1):
            fields = {"id": question.query_id, "text": question.default_text(), "lang": language}
            yield FileRow(number, "", fields)


def read_judgements(source: str, required: bool = True) -> list[Qrel]:
    """Return the judgements; none where the data set has none and they are not `required`."""
    dataset = _load(source, "qrels" if required else "")
    with _explained(source):
        found = dataset.qrels_iter() if dataset.has_qrels() else ()
        return [Qrel(qrel.query_id, qrel.doc_id, int(qrel.relevance)) for qrel in found]


def _load(source: str, part: str) -> Any:  # noqa: ANN401
    """Return a data set that has this part.

    Raises:
        InputError: The package is not installed, knows no such id, or the data set lacks the part.
    """
    try:
        import ir_datasets
    except ImportError as error:
        raise InputError(f"{source}: needs an extra. Cure: pip install 'xqg-qdrant[datasets]'.") from error
    try:
        dataset = ir_datasets.load(source.removeprefix(CATALOGUE))
    except KeyError as error:
        raise InputError(f"{source}: ir_datasets knows no such id. Cure: look it up with ir_datasets list.") from error
    if part and not getattr(dataset, f"has_{part}")():
        raise InputError(f"{source}: has no {part}. Cure: give an id that has, such as that of a split or of all.")
    return dataset


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turn what goes wrong in the package, its downloads above all, into an error that says where."""
    try:
        yield
    except (InputError, GeneratorExit):
        raise
    except Exception as error:
        cure = "Cure: check the network, or put the files where ir_datasets says that it looks for them"
        raise InputError(f"{source}: ir_datasets cannot read it ({error!r:.300}). {cure}.") from error
