"""What other systems found, as if a search here had found it: TREC runs, and predictions of XOR-Retrieve.

A run tells passage ids without texts, predictions tell texts without ids; a passage lacks what its file does not tell.
Results of questions that are not asked are passed over. Knows nothing of measures.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeAlias

from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.files import ranked, read_predictions, read_run
from xqg_qdrant.records import Passage, ScoredPassage

SystemRun: TypeAlias = dict[str, list[ScoredPassage]]


def read_system_run(path: Path, query_ids: Collection[str]) -> SystemRun:
    """Read a TREC run.

    Raises:
        InputError: The file cannot be used, or holds nothing for any of the questions.
    """
    found = {query_id: results for query_id, results in read_run(path).items() if query_id in query_ids}
    try:
        run = {
            query_id: [ScoredPassage(Passage(passage_id, ""), score) for passage_id, score in ranked(results, query_id)]
            for query_id, results in found.items()
        }
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return _checked(path, run)


def read_system_predictions(path: Path, query_ids: Collection[str]) -> SystemRun:
    """Read predictions of XOR-Retrieve; the order of the contexts is the ranking.

    Raises:
        InputError: The file cannot be used, holds nothing for any of the questions, or two predictions for one.
    """
    run: SystemRun = {}
    for query_id, _, contexts in read_predictions(path):
        if query_id in run:
            raise InputError(
                f"{path}: two predictions for question {query_id!r}. Cure: remove one, or score the file with --gold, "
                "which counts both as the official script does."
            )
        if query_id in query_ids:
            run[query_id] = [ScoredPassage(Passage("", text), 1 / rank) for rank, text in enumerate(contexts, start=1)]
    return _checked(path, run)


def with_passages(run: SystemRun, passages: Mapping[str, Passage]) -> SystemRun:
    """Return a run with the titles and texts of the passages that are known."""
    return {
        query_id: [ScoredPassage(passages.get(hit.passage.passage_id, hit.passage), hit.score) for hit in found]
        for query_id, found in run.items()
    }


def _checked(path: Path, run: SystemRun) -> SystemRun:
    if not run:
        raise InputError(
            f"{path}: holds nothing for any of the questions. Cure: check that the ids of both files agree."
        )
    return run
