"""Questions and a source of judgements → the questions to measure and their judgements.

Judgements stand in a file of their own, beside the questions, or in the file of the same questions in the language of
the passages: then that file has the answers that can be looked for, too. Knows nothing of measures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from xqg_qdrant import catalogue
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.files import read_qrels
from xqg_qdrant.questions import may_hold_questions, read_questions
from xqg_qdrant.records import Qrel, Query

QRELS = ("qrels/test.tsv", "qrels/test.tsv.gz")


def read_judged_questions(
    sources: Sequence[str | Path], qrels: str | Path | None = None, language: str = ""
) -> tuple[list[Query], list[Qrel]]:
    """Read questions as `read_questions` does, and their judgements; there may be none.

    Args:
        sources: The files of questions.
        qrels: The judgements: as `read_qrels` takes them, `ir_datasets:` and an id, or a file of the same questions by
            id, which brings their answers, too. Without it they are those that the files of questions hold, or that
            lie in the same BEIR folder.
        language: The language of questions for which nothing else has one.

    Raises:
        InputError: A file cannot be used, or none of the judgements is of one of the questions.
    """
    found = read_questions(sources, language)
    if qrels is None:
        folders = [Path(source) for source in sources if not catalogue.is_catalogued(source)]
        beside = [folder for folder in folders if any((folder / name).is_file() for name in QRELS)]
        return found.queries, found.qrels + [qrel for folder in beside for qrel in read_qrels(folder)]
    answers: dict[str, tuple[str, ...]] = {}
    if catalogue.is_catalogued(qrels):
        judged = catalogue.read_judgements(str(qrels))
    elif may_hold_questions(qrels):
        original = read_questions([qrels])
        judged, answers = original.qrels, {query.query_id: query.answers for query in original.queries}
    else:
        judged = read_qrels(qrels)
    by_id: dict[str, list[Qrel]] = defaultdict(list)
    for qrel in judged:
        by_id[qrel.query_id].append(qrel)
    queries = [
        query._replace(answers=answers.get(found.file_ids[query.query_id], query.answers)) for query in found.queries
    ]
    of_these = [
        qrel._replace(query_id=query_id) for query_id, name in found.file_ids.items() for qrel in by_id.get(name, ())
    ]
    if not of_these:
        raise InputError(
            f"{qrels}: judges none of the {len(queries)} questions. Cure: give the judgements of these questions, and "
            "check that the ids agree."
        )
    return queries, of_these
