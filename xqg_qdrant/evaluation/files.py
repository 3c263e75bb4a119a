"""Read and write judgements, runs and predictions, in the formats of TREC, BEIR and XOR-Retrieve.

An unusable row is an error, because a figure over half a file looks like any other figure.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple, cast

import numpy as np

from xqg_qdrant.atomic import replaced
from xqg_qdrant.corpus import datasets
from xqg_qdrant.corpus.files import existing_file, file_lines, is_cut, opened_file
from xqg_qdrant.corpus.questions import QuestionSet, may_hold_questions, read_questions
from xqg_qdrant.errors import InputError
from xqg_qdrant.records import Qrel, Query
from xqg_qdrant.text import count_of, show

Run = dict[str, list[tuple[str, float]]]
"""The results of a search: for each query id the passage ids and scores, best first."""

LARGEST_SCORE = 1e38
# Scorers keep a relevance in 32 bits.
LARGEST_RELEVANCE = 2**31 - 1
QRELS = ("qrels/test.tsv", "qrels/test.tsv.gz", "qrels.tsv", "qrels.tsv.gz")
# Other white space may be part of an id.
BLANKS = " \t\r\n"
RUN_COLUMNS = 6


class Prediction(NamedTuple):
    """The results for a question of XOR-Retrieve: the texts of passages, best first, without titles."""

    query_id: str
    language: str
    contexts: tuple[str, ...]


def read_qrels(path: str | Path) -> list[Qrel]:
    """Read judgements in three columns (BEIR) or four (TREC), with or without a header line.

    The file of a BEIR folder is `qrels/test.tsv`. Columns are separated by tabs, or by spaces in a line without tabs.
    The first line is a header if its last column is not a number.

    Raises:
        InputError: The file or one of its rows cannot be used, or two judgements contradict each other.
    """
    file = str(_find_qrels(Path(path)) or existing_file(path, "qrels/test.tsv"))
    qrels: dict[tuple[str, str], Qrel] = {}
    for line, cells in _table(file):
        if len(cells) not in (3, 4):
            raise InputError(
                f"{file}, line {line}: {count_of(len(cells), 'column')}.", "give query id, passage id and relevance"
            )
        if line == 1 and not _is_number(cells[-1]):
            continue  # the header
        qrel = Qrel(cells[0], cells[-2], _read_relevance(cells[-1], f"{file}, line {line}"))
        if qrels.setdefault(qrel[:2], qrel) != qrel:
            raise InputError(
                f"{file}, line {line}: contradicts an earlier judgement of {cells[-2]!r}.", "remove one of the two"
            )
    if not qrels:
        raise InputError(f"{file}: no judgements.", "give lines of query id, passage id and relevance")
    return list(qrels.values())


def _find_qrels(folder: Path) -> Path | None:
    return next((folder / name for name in QRELS if (folder / name).is_file()), None)


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", cell, re.ASCII | re.IGNORECASE) is not None


def _read_relevance(cell: str, where: str) -> int:
    # No number is made of many digits, which would take long.
    value = float(cell) if _is_number(cell) else 0.5
    if not value.is_integer():
        raise InputError(f"{where}: the relevance {show(cell)} is not a whole number.", "write it as 0, 1, 2 and so on")
    if abs(value) > LARGEST_RELEVANCE:
        raise InputError(
            f"{where}: the relevance {show(cell)} does not fit into 32 bits.", "write it as 0, 1, 2 and so on"
        )
    return int(value)


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read predictions in the format of XOR-Retrieve: one JSON list of `{"id", "lang", "ctxs": [text, ...]}`.

    Languages and texts are not normalised.

    Raises:
        InputError: The file is not such a list.
    """
    file = str(existing_file(path, "predictions.json"))
    try:
        with opened_file(file) as opened:  # one line, however long
            items = json.loads(opened.read())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid JSON ({error}).", "give one JSON list of predictions") from error
    if not isinstance(items, list):
        raise InputError(f"{file}: not a JSON list.", "give one list of {id, lang, ctxs}")
    predictions = []
    for number, item in enumerate(items, start=1):
        match item:
            case {"id": str() | int() as id_, "lang": str() as language, "ctxs": list() as contexts} if all(
                isinstance(context, str) for context in contexts
            ):
                predictions.append(Prediction(str(id_), language, tuple(contexts)))
            case _:
                raise InputError(
                    f"{file}, prediction {number}: id, lang or ctxs is missing or has the wrong type.",
                    "give an id, a lang, and ctxs as a list of texts",
                )
    return predictions


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions in the format of XOR-Retrieve, gzipped if the name ends in `.gz`."""
    items = [{"id": p.query_id, "lang": p.language, "ctxs": list(p.contexts)} for p in predictions]
    with _created(path) as file:
        json.dump(items, file, ensure_ascii=False)
        file.write("\n")


def ranked(results: Sequence[tuple[str, float]], query_id: str = "") -> list[tuple[str, float]]:
    """Order passage ids by descending score, and make the scores strictly descending in single precision.

    Equal scores keep their order. Scorers store scores in single precision and break ties by passage id, each in its
    own way; with strictly descending scores they all see the same ranking.

    Raises:
        InputError: A passage occurs twice, or a score is not a number or too large for single precision.
    """
    if len({passage_id for passage_id, _ in results}) < len(results):
        raise InputError(f"query {query_id!r}: a passage occurs twice in its results.", "remove one of the two")
    ordered: list[tuple[str, float]] = []
    previous = np.float32(np.inf)
    for passage_id, score in sorted(results, key=lambda result: -result[1]):
        if not abs(score) < LARGEST_SCORE:
            raise InputError(
                f"query {query_id!r}: the score of {passage_id!r} is {score}.",
                f"use scores between -{LARGEST_SCORE:g} and {LARGEST_SCORE:g}",
            )
        previous = min(np.float32(score), np.nextafter(previous, np.float32(-np.inf)))
        ordered.append((passage_id, float(previous)))
    return ordered


def write_run(
    path: str | Path,
    run: Mapping[str, Sequence[tuple[str, float]]],
    tag: str = "xqg",
    separator: Literal[" ", "\t"] = " ",
) -> None:
    """Write a TREC run: query id, `Q0`, passage id, rank from 1, score, tag; see `ranked` for the scores.

    With tabs as separators, ids may contain spaces; `read_run` reads both, other programs may not.

    Raises:
        InputError: An id contains white space that the format cannot represent.
    """
    white = None if separator == " " else separator
    with _created(path) as file:
        for query_id, results in run.items():
            for rank, (passage_id, score) in enumerate(ranked(results, query_id), start=1):
                for name in (query_id, passage_id):
                    if name.split(white) != [name] or name != name.strip() or not name or "\n" in name:
                        raise InputError(
                            f"{path}: the id {name!r} is empty or contains white space.",
                            "rename it, as a run cannot represent it",
                        )
                cells = (query_id, "Q0", passage_id, str(rank), f"{score:.9g}", tag)
                file.write(separator.join(cells) + "\n")


def read_run(path: str | Path) -> Run:
    """Read a TREC run, best score first; equal scores follow the ranks of the file.

    Its six columns are separated by tabs, or by spaces in a line without tabs.

    Raises:
        InputError: The file or one of its rows cannot be used.
    """
    rows: dict[str, list[tuple[float, int, str]]] = {}
    for line, cells in _table(str(existing_file(path, "run.trec"))):
        if len(cells) != RUN_COLUMNS:
            raise InputError(
                f"{path}, line {line}: {count_of(len(cells), 'column')}; a TREC run has {RUN_COLUMNS}.",
                "give query id, Q0, passage id, rank, score and tag, separated by tabs if ids contain spaces",
            )
        try:
            query_id, _, passage_id, rank, score, _ = cells
            rows.setdefault(query_id, []).append((-float(score), int(rank), passage_id))
        except ValueError:
            raise InputError(
                f"{path}, line {line}: not a line of a TREC run.",
                "give query id, Q0, passage id, rank, score and tag",
            ) from None
    return {query_id: [(name, -score) for score, _, name in sorted(found)] for query_id, found in rows.items()}


@contextmanager
def _created(path: str | Path) -> Iterator[IO[str]]:
    """Yield a text file, gzipped if the name ends in `.gz`, that replaces the file of this name once it is whole."""
    with replaced(Path(path)) as unfinished:
        if str(path).endswith(".gz"):
            with gzip.open(unfinished, "wt", encoding="utf-8") as zipped:
                yield cast("IO[str]", zipped)
        else:
            with unfinished.open("w", encoding="utf-8") as file:
                yield file


def _table(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the cells of each line that is not blank, split at tabs, or at blanks if it has no tabs."""
    for number, line in enumerate(file_lines(path), start=1):
        if is_cut(line):
            raise InputError(
                f"{path}, line {number}: the line has {len(line):,} bytes or more.",
                "check that this is the right file, with one row per line",
            )
        try:
            text = line.decode("utf-8").strip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number}: {error}.", "save the file as UTF-8") from error
        if "\t" in text.rstrip(BLANKS):
            yield number, [cell.strip(BLANKS) for cell in text.split("\t")]
        elif text.strip(BLANKS):
            yield number, re.split(f"[{BLANKS}]+", text.strip(BLANKS))


def read_judged_questions(
    sources: Sequence[str | Path], qrels: str | Path | None = None, language: str = ""
) -> tuple[list[Query], list[Qrel]]:
    """Read questions as `read_questions` does, and their judgements, if any.

    Args:
        sources: The files of questions.
        qrels: The judgements: a file for `read_qrels`, `ir_datasets:` and an id, or a file of questions with the same
            ids, which replaces their answers too. The default is the judgements in the files of questions, and in
            their BEIR folder or a file `qrels.tsv` or `qrels.tsv.gz` beside them.
        language: The language of questions whose file names none.

    Raises:
        InputError: A file cannot be used, or no judgement belongs to a question.
    """
    found = read_questions(sources, language)
    if qrels is None:
        return found.queries, found.qrels + _judge(found, _read_beside(sources))
    answers: dict[str, tuple[str, ...]] = {}
    if datasets.is_catalogued(qrels):
        judged = datasets.catalogued_judgements(str(qrels))
    elif may_hold_questions(qrels):
        original = read_questions([qrels])
        judged, answers = original.qrels, {query.query_id: query.answers for query in original.queries}
    else:
        judged = read_qrels(qrels)
    queries = [
        query._replace(answers=answers.get(found.file_ids[query.query_id], query.answers)) for query in found.queries
    ]
    of_these = _judge(found, judged)
    if not of_these:
        raise InputError(
            f"{qrels}: no judgement is for any of the questions ({len(queries)} given).",
            "give the judgements of these questions, and check that the ids agree",
        )
    return queries, of_these


def _read_beside(sources: Sequence[str | Path]) -> list[Qrel]:
    """Read the judgements in the folders of questions, or beside their files."""
    paths = [Path(source) for source in sources if not datasets.is_catalogued(source)]
    folders = dict.fromkeys(path if path.is_dir() else path.parent for path in paths)
    return [qrel for folder in folders if _find_qrels(folder) for qrel in read_qrels(folder)]


def _judge(found: QuestionSet, qrels: Iterable[Qrel]) -> list[Qrel]:
    """Return the judgements of these questions, by their own ids."""
    by_id: dict[str, list[Qrel]] = defaultdict(list)
    for qrel in qrels:
        by_id[qrel.query_id].append(qrel)
    return [
        qrel._replace(query_id=query_id) for query_id, name in found.file_ids.items() for qrel in by_id.get(name, ())
    ]
