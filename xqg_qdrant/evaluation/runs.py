"""Collect runs and compare them: of a collection, of any system's files, of saved results."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from xqg_qdrant.corpus.inputs import DOCUMENT_ID
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.baselines import BASELINES, search_baselines
from xqg_qdrant.evaluation.comparison import Report, evaluate_runs, languages_of, make_report, measured_questions
from xqg_qdrant.evaluation.files import Prediction, ranked, read_predictions, read_run
from xqg_qdrant.evaluation.results import (
    PASSAGES,
    MatchQueries,
    Results,
    describe_file,
    make_manifest,
    save_evaluation,
)
from xqg_qdrant.evaluation.significance import TestName
from xqg_qdrant.evaluation.xor_retrieve import Found, WordRules
from xqg_qdrant.fingerprint import is_split
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.records import XQG_VECTOR, Passage, Qrel, Query, ScoredPassage
from xqg_qdrant.retrieval import search_runs
from xqg_qdrant.stores.protocol import Store
from xqg_qdrant.streams import Bars
from xqg_qdrant.text import agree, count_of, show

SystemRun: TypeAlias = dict[str, list[ScoredPassage]]

RECALL_AT = (1, 5, 10, 20, 100)
PASSAGES_AT_ONCE = 1000
JUDGED_AT_ONCE = 100


class Rules(NamedTuple):
    """How runs are measured; see `evaluate_runs`."""

    word_rules: WordRules = "installed"
    lenient: bool = False
    test: TestName = "randomisation"


class RunFiles(NamedTuple):
    """Files that hold runs, by the names of the runs: TREC runs, and predictions in XOR-Retrieve's format."""

    trec: Mapping[str, Path]
    predictions: Mapping[str, Path]

    def read(self, queries: Iterable[Query]) -> dict[str, SystemRun]:
        """Read all runs, restricted to the questions.

        Raises:
            InputError: A file cannot be used; see `read_system_run` and `read_system_predictions`.
        """
        ids = {query.query_id for query in queries}
        runs = {name: read_system_run(path, ids) for name, path in self.trec.items()}
        return runs | {name: read_system_predictions(path, ids) for name, path in self.predictions.items()}


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
        raise InputError(f"{path}: {error.message}", error.cure) from error
    return _checked(path, run)


def read_system_predictions(path: Path, query_ids: Collection[str]) -> SystemRun:
    """Read predictions in XOR-Retrieve's format; the order of the contexts is the ranking.

    Raises:
        InputError: The file cannot be used, holds nothing for any of the questions, or two predictions for one.
    """
    run: SystemRun = {}
    for query_id, _, contexts in read_predictions(path):
        if query_id in run:
            raise InputError(
                f"{path}: two predictions for question {query_id!r}.",
                "remove one, or use xqg score --gold, which counts both as the official script does",
            )
        if query_id in query_ids:
            run[query_id] = [ScoredPassage(Passage("", text), 1 / rank) for rank, text in enumerate(contexts, start=1)]
    return _checked(path, run)


def check_judged_passages(runs: Mapping[str, SystemRun], qrels: Iterable[Qrel]) -> None:
    """Check that runs of files rank the judged corpus: ids of another one would give 0.00.

    Raises:
        InputError: A run with passage ids has neither a judged passage nor one of a run that has.
    """
    judged = {qrel.passage_id for qrel in qrels}
    ids_by_run = {
        name: {hit.passage.passage_id for found in run.values() for hit in found} - {""} for name, run in runs.items()
    }
    known = judged.copy()
    for _ in runs:
        known |= {passage_id for ids in ids_by_run.values() if ids & known for passage_id in ids}
    for name, ids in ids_by_run.items():
        if judged and ids and not ids & known:
            raise InputError(
                f"{_none_of(len(judged))} in the run {name}: it has {show(min(ids))}, the judgements have "
                f"{show(min(judged))}.",
                "check that run and judgements use the same passage ids",
            )


def check_collection_is_judged(store: Store, collection: str, qrels: Iterable[Qrel]) -> bool:
    """Check that a collection has judged passages; return whether the judgements name documents that were split.

    Raises:
        InputError: It has none of them.
    """
    judged = sorted({qrel.passage_id for qrel in qrels})

    def holds(ids: Sequence[str]) -> bool:
        parts = (ids[start : start + JUDGED_AT_ONCE] for start in range(0, len(ids), JUDGED_AT_ONCE))
        return any(store.read_points(collection, part) for part in parts)

    if judged and is_split(store.read_fingerprint(collection) or {}) and holds([f"{name}#1" for name in judged]):
        return True
    if judged and not holds(judged):
        raise InputError(
            f"{_none_of(len(judged))} in the collection {collection!r}: the judgements have {show(judged[0])}.",
            "check that corpus and judgements use the same passage ids",
        )
    return False


def _none_of(judged: int) -> str:
    return agree(judged, "the only judged passage is not", f"none of the {judged} judged passages is")


def rank_documents(runs: Mapping[str, SystemRun]) -> dict[str, SystemRun]:
    """Return runs of documents that were split: each with its best passage, which gets the document's id."""
    return {name: {query_id: _rank_documents(found) for query_id, found in run.items()} for name, run in runs.items()}


def _rank_documents(found: Iterable[ScoredPassage]) -> list[ScoredPassage]:
    best: dict[str, ScoredPassage] = {}
    for hit in found:
        document = str(hit.passage.metadata.get(DOCUMENT_ID, hit.passage.passage_id))
        best.setdefault(document, replace(hit, passage=replace(hit.passage, passage_id=document)))
    return list(best.values())


def note_documents(report: Report, runs: Mapping[str, SystemRun], limit: int) -> Report:
    """Add to a report of `rank_documents` how few documents the `limit` passages of a question are."""
    fewest = min((len(found) for run in runs.values() for found in run.values()), default=0)
    note = (
        f"documents are judged, each by its best passage; the {count_of(limit, 'passage')} of a question are as few as "
        f"{count_of(fewest, 'document')}, so figures beyond that rank may be too low"
    )
    return replace(report, notes=(*report.notes, note))


def _checked(path: Path, run: SystemRun) -> SystemRun:
    if not run:
        raise InputError(f"{path}: no results for any of the questions.", "check that the ids of both files agree")
    return run


def with_passages(run: SystemRun, passages: Mapping[str, Passage]) -> SystemRun:
    """Return a run with the titles and texts of the passages that are known."""
    return {
        query_id: [ScoredPassage(passages.get(hit.passage.passage_id, hit.passage), hit.score) for hit in found]
        for query_id, found in run.items()
    }


def add_texts(runs: Mapping[str, SystemRun], store: Store, collection: str) -> dict[str, SystemRun]:
    """Return runs with the titles and texts that a collection has of their passages."""
    hits = (hit.passage.passage_id for run in runs.values() for found in run.values() for hit in found)
    ids = list(dict.fromkeys(filter(None, hits)))
    passages: dict[str, Passage] = {}
    for start in range(0, len(ids), PASSAGES_AT_ONCE):
        points = store.read_points(collection, ids[start : start + PASSAGES_AT_ONCE])
        passages |= {passage_id: point.passage for passage_id, point in points.items()}
    return {name: with_passages(run, passages) for name, run in runs.items()}


def search_all(
    store: Store,
    collection: str,
    encoder: TextEncoder,
    queries: Sequence[Query],
    limit: int,
    rankings: Sequence[str],
    bars: Bars,
) -> dict[str, SystemRun]:
    """Search a collection for all questions; return a run for each ranking."""
    stored = [name for name in rankings if name not in BASELINES]
    baselines = [name for name in rankings if name in BASELINES]
    with bars(len(queries), " questions") as bar:
        runs = search_runs(store, collection, encoder, queries, limit, stored, bar.update)
    runs |= search_baselines(baselines, store, collection, encoder, queries, limit, bars)
    return {name: runs[name] for name in rankings}


def measure_runs(
    queries: Sequence[Query], qrels: Sequence[Qrel], runs: Mapping[str, SystemRun], rules: Rules, limit: int = 0
) -> Report:
    """Measure runs, with recall up to the longest result or `limit`, and compare each with the first.

    Where some questions have judgements, those with neither judgements nor answers are left out.

    Raises:
        InputError: No question has a judgement or an answer.
    """
    depth = max(limit, *(len(found) for run in runs.values() for found in run.values()))
    recall_at = [k for k in RECALL_AT if k <= depth]
    word_rules, lenient, test = rules
    measured = measured_questions(queries, qrels)
    left_out = len(queries) - len(measured)
    return evaluate_runs(
        measured, qrels, runs, recall_at=recall_at, rules=word_rules, lenient=lenient, test=test, left_out=left_out
    )


def save_runs(
    folder: Path,
    command: Sequence[str],
    data: Mapping[str, Mapping[str, Any]],
    queries: Sequence[Query],
    qrels: Sequence[Qrel],
    runs: Mapping[str, SystemRun],
    report: Report,
    files: RunFiles,
    rules: Rules,
    limit: int,
    match_queries: MatchQueries | None = None,
    **searched: Any,
) -> None:
    """Write the results folder of measured runs; `data` and `searched` are those of `make_manifest`.

    Raises:
        InputError: Something else has the folder's name, or a passage's id cannot stand in a run.
    """
    paths = {**files.trec, **files.predictions}
    described = {f"run {name}": describe_file(path, len(runs[name])) for name, path in paths.items()}
    settings = {"limit": limit, **rules._asdict()}
    manifest = make_manifest("evaluation", command, {**data, **described}, settings, **searched)
    save_evaluation(folder, manifest, queries, qrels, report, runs, match_queries)


def scores_of_run(run: Found) -> dict[str, list[tuple[str, float]]]:
    """Return a run as passage ids and scores."""
    return {query_id: [(hit.passage.passage_id, hit.score) for hit in found] for query_id, found in run.items()}


def predictions_of_run(queries: Iterable[Query], run: Found) -> list[Prediction]:
    """Return a run as predictions for XOR-Retrieve: the passages' texts, without their titles."""
    return [
        Prediction(query.query_id, query.language, tuple(found.passage.text for found in run.get(query.query_id, ())))
        for query in queries
    ]


class Pair(NamedTuple):
    """The second run against the first, and the results of both, by their names in the report."""

    report: Report
    runs: dict[str, SystemRun]


def pair_files(first: Path, second: Path, queries: Sequence[Query], qrels: Iterable[Qrel], rules: Rules) -> Pair:
    """Compare two files of any systems: TREC runs, or predictions where the name ends in .json or .json.gz.

    Raises:
        InputError: Both are one file, or one of them cannot be used.
    """
    names = [first.name, second.name] if first.name != second.name else [str(first), str(second)]
    if names[0] == names[1]:
        raise InputError(f"FIRST and SECOND are one file ({first}).", "give two different files")
    qrels = list(qrels)
    measured = measured_questions(queries, qrels)
    query_ids = {query.query_id for query in measured}
    runs = {}
    for name, path in zip(names, (first, second), strict=True):
        read = read_system_predictions if path.name.endswith((".json", ".json.gz")) else read_system_run
        runs[name] = read(path, query_ids)
    check_judged_passages(runs, qrels)
    left_out = len(queries) - len(measured)
    report = evaluate_runs(measured, qrels, runs, rules=rules.word_rules, test=rules.test, left_out=left_out)
    return Pair(report, runs)


def pair_results(first: Results, second: Results, runs: tuple[str, str] | None, test: TestName) -> Pair:
    """Compare one run from each of two results folders; the default is `xqg`, else the last run.

    Raises:
        InputError: They were measured on different data, or one has no such run.
    """
    _refuse_other_data(first, second)
    sides = [(first, ""), (second, "")] if runs is None else list(zip((first, second), runs, strict=True))
    chosen = [(results, _find_run(results, name)) for results, name in sides]
    names = [name for _, name in chosen]
    if names[0] == names[1]:
        short = first.folder.resolve().name != second.folder.resolve().name
        names = [f"{r.folder.resolve().name if short else r.folder}/{name}" for r, name in chosen]
    if names[0] == names[1]:
        raise InputError(f"{first.folder}: a run is compared with itself.", "name two different runs with --runs")
    values = {label: results.values[name] for label, (results, name) in zip(names, chosen, strict=True)}
    report = make_report(languages_of(first.queries), values, test, _note_differences(first, second))
    return Pair(report, {label: _load_run(*side) for label, side in zip(names, chosen, strict=True)})


def _find_run(results: Results, name: str) -> str:
    if not results.values:
        kind = results.manifest["kind"]
        raise InputError(
            f"{results.folder}: holds the results of a {kind}, which has no runs.",
            "give a folder written by xqg evaluate --save or xqg score --save",
        )
    if name and name not in results.values:
        raise InputError(f"{results.folder}: no run {name!r}.", f"choose from {', '.join(results.values)}")
    return name or (XQG_VECTOR if XQG_VECTOR in results.values else list(results.values)[-1])


def _load_run(results: Results, name: str) -> SystemRun:
    passages = {row["id"]: Passage(row["id"], row["text"], row["title"]) for row in results.read_rows(PASSAGES)}
    run = {
        query_id: [ScoredPassage(Passage(passage_id, ""), score) for passage_id, score in found]
        for query_id, found in results.read_run(name).items()
    }
    return with_passages(run, passages)


def _refuse_other_data(first: Results, second: Results) -> None:
    lines = []
    if sorted(first.queries) != sorted(second.queries):
        sides = (_describe(results, "questions", len(results.queries)) for results in (first, second))
        lines.append("  data.questions: {}, now {}".format(*sides))
    if sorted(first.qrels) != sorted(second.qrels):
        sides = (_describe(results, "qrels", len(results.qrels)) for results in (first, second))
        lines.append("  data.qrels: {}, now {}".format(*sides))
    rules = [results.manifest.get("settings", {}).get("word_rules") for results in (first, second)]
    if rules[0] != rules[1]:
        lines.append(f"  settings.word_rules: {rules[0]!r}, now {rules[1]!r}")
    if lines:
        raise InputError(
            f"{first.folder} and {second.folder} were measured on different data:\n" + "\n".join(lines),
            "evaluate both with the same --questions, --qrels and --word-rules",
        )


def _describe(results: Results, name: str, rows: int) -> str:
    found = results.manifest.get("data", {}).get(name)
    counted = count_of(rows, "row")
    return f"{found['path']} ({counted}, sha256 {found['sha256'][:12]}…)" if found else counted


def _note_differences(first: Results, second: Results) -> list[str]:
    """Return what differs besides the run: the models and the recipe, the depth, the tokenizer."""
    notes = []
    for part in ("fingerprint", "settings", "versions"):
        left, right = first.manifest.get(part, {}), second.manifest.get(part, {})
        names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
        names = [name for name in names if part == "fingerprint" or name in ("limit", "nltk")]
        notes += [f"{name} is {left.get(name)!r} in the first and {right.get(name)!r} in the second" for name in names]
    return notes
