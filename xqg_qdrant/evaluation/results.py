"""Write and read results folders: the figures of a command, and what is needed to repeat, compare and show them.

    manifest.json    the command, the models and the data: see `make_manifest`
    questions.jsonl  the questions, in the format of `read_queries`
    qrels.tsv        the judgements, if any
    values.json      an evaluation's {run: {measure: {query id: percent}}}
    NAME.trec        each run of an evaluation that has passage ids
    passages.jsonl   title and text of the first passages of the runs
    changes.jsonl    the questions won and lost by the last run against the first

Other kinds of results add files of their own. An API key cannot end up in a folder: none is passed in, a URL contains
none, and the manifest is written through `secrets.hide`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from xqg_qdrant.atomic import built_aside, check_writable
from xqg_qdrant.corpus.datasets import is_catalogued
from xqg_qdrant.corpus.files import existing_file, opened_file
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.comparison import Report, Values, average, languages_of
from xqg_qdrant.evaluation.files import Run, read_qrels, read_run, write_run
from xqg_qdrant.evaluation.xor_retrieve import Found, span_answers
from xqg_qdrant.machine import integer_instructions, processor_name
from xqg_qdrant.records import GeneratedQuery, Qrel, Query, ScoredPassage
from xqg_qdrant.secrets import hide

Kind: TypeAlias = Literal["evaluation", "sweep", "robustness", "pilot", "hubs"]
KINDS = ("evaluation", "sweep", "robustness", "pilot", "hubs")

MANIFEST = "manifest.json"
QUESTIONS = "questions.jsonl"
QRELS = "qrels.tsv"
VALUES = "values.json"
PASSAGES = "passages.jsonl"
CHANGES = "changes.jsonl"

# What any kind of results may hold besides runs.
RESULTS = frozenset({MANIFEST, QUESTIONS, QRELS, VALUES, PASSAGES, CHANGES}).union(f"{kind}.json" for kind in KINDS)

HITS_SHOWN = 3
REPEAT = "run the command again with --save"

MatchQueries: TypeAlias = Callable[[str, Sequence[ScoredPassage]], Sequence[GeneratedQuery | None]]
"""Returns for each passage its generated query that is nearest to a question, or None."""

PACKAGES = (
    "xqg-qdrant", "numpy", "onnxruntime-gpu", "onnxruntime", "tokenizers", "qdrant-client", "qdrant-edge-py",
    "pytrec_eval-terrier", "nltk", "ir_datasets",
)  # fmt: skip


class Results(NamedTuple):
    """The contents of a results folder; `qrels` and `values` are empty if this kind of results has none."""

    folder: Path
    manifest: dict[str, Any]
    queries: list[Query]
    qrels: list[Qrel]
    values: dict[str, dict[str, Values]]

    def read_run(self, name: str) -> Run:
        """Return a run of an evaluation as passage ids and scores; empty if it has no passage ids."""
        path = self.folder / f"{name}.trec"
        return read_run(path) if path.exists() and path.stat().st_size else {}

    def read_rows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a file of JSON lines, such as `CHANGES`; empty if there is no such file."""
        path = self.folder / name
        return list(_read_rows(path)) if path.exists() else []

    def read_json(self, name: str) -> Any:  # noqa: ANN401
        """Return the value in a JSON file, such as `sweep.json`."""
        return _read_json(self.folder / name)


def make_manifest(
    kind: Kind,
    command: Sequence[str],
    data: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    *,
    seed: int = 0,
    collection: str = "",
    store: str = "",
    fingerprint: Mapping[str, Any] | None = None,
    device: str = "",
    yields: Mapping[str, Mapping[str, int]] | None = None,
) -> dict[str, Any]:
    """Return a manifest, as JSON values.

    Args:
        kind: The kind of results.
        command: The command with its arguments that repeats them.
        data: The data that was measured on, such as `questions`, each described by `describe_file`.
        settings: The settings, defaults included: the depth of the search, the test, the word rules.
        seed: The seed of all random draws.
        collection: The collection that was searched, if any.
        store: The location of its store.
        fingerprint: Its fingerprint: the models with their checksums, and the recipe.
        device: The device of the models.
        yields: For each language how many generated queries were `asked` for, `kept`, and dropped for each of the
            `REASONS` of `generation.checks`, if known.
    """
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "kind": kind,
        "command": list(command),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "seed": seed,
        "collection": collection,
        "store": store,
        "fingerprint": dict(fingerprint or {}),
        "data": {name: dict(found) for name, found in data.items()},
        "machine": {
            "processor": processor_name(),
            "instructions": integer_instructions(),
            "cores": os.cpu_count(),
            "device": device,
        },
        "settings": dict(settings),
        "yields": {language: dict(counts) for language, counts in (yields or {}).items()},
    }


def describe_file(path: Path, rows: int) -> dict[str, Any]:
    """Return the name, checksum and number of rows of a file, for a manifest."""
    return describe_sources([path], "", rows)


def describe_sources(sources: Sequence[Path], in_folder: str, rows: int) -> dict[str, Any]:
    """Return the names of sources, the checksum of all their files in sequence, and the number of rows.

    A folder stands for its file `in_folder`. A data set of ir_datasets contributes only its id.
    """
    checksum = hashlib.sha256()
    files = [source if is_catalogued(source) else existing_file(source, in_folder) for source in sources]
    for path in (file for file in files if not is_catalogued(file)):
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: checksum)
    names = (str(file) if is_catalogued(file) else file.name for file in files)
    return {"path": ", ".join(names), "sha256": checksum.hexdigest(), "rows": rows}


def describe_asked(
    questions: Sequence[Path], queries: Sequence[Query], qrels: Path | None, judgements: Sequence[Qrel]
) -> dict[str, dict[str, Any]]:
    """Describe the files of questions and judgements for a manifest."""
    data = {"questions": describe_sources(questions, "queries.jsonl", len(queries))}
    if qrels:
        data["qrels"] = describe_sources([qrels], "qrels/test.tsv", len(judgements))
    return data


def check_folder(folder: Path) -> None:
    """Check that results may be written to a folder: it is missing, empty, or holds results to replace.

    Raises:
        InputError: There is something else, or a file of the user has a name that results have.
    """
    check_writable(folder)
    if not folder.exists() and not folder.is_symlink():
        return
    another = "choose another folder"
    try:
        paths = list(folder.iterdir())
        written = _written_files(folder)
    except (InputError, OSError):
        paths, written = [], None
    if written is None or folder.is_symlink():
        raise InputError(f"{folder} exists and is not a results folder of xqg.", another)
    if any(os.path.ismount(path) for path in (folder, *paths)):
        raise InputError(f"{folder} cannot be replaced: a file system is mounted there.", another)
    for path in paths:
        if _may_be_results(path.name) and path.name not in written:
            raise InputError(f"{path} is not in the list of files that xqg wrote.", f"move it, or {another}")


@contextmanager
def new_results(
    folder: Path, manifest: Mapping[str, Any], queries: Iterable[Query], qrels: Sequence[Qrel] = ()
) -> Iterator[Path]:
    """Yield a temporary folder with the files common to all results, to add others to.

    On a normal exit it replaces any results in `folder`, whose other files are kept.

    Raises:
        InputError: Something else has the folder's name.
    """
    check_folder(folder)
    with built_aside(folder, _written_files) as temporary:
        final = temporary / "final"
        final.mkdir()
        _write_rows(
            final / QUESTIONS,
            (
                {"id": query.query_id, "lang": query.language, "text": query.text, "answers": list(query.answers)}
                for query in queries
            ),
        )
        if qrels:
            rows = (f"{query_id}\t{passage_id}\t{relevance}\n" for query_id, passage_id, relevance in qrels)
            (final / QRELS).write_text("query-id\tcorpus-id\tscore\n" + "".join(rows), encoding="utf-8")
        yield final
        _write_json(final / MANIFEST, {**manifest, "files": sorted(path.name for path in final.iterdir())})


def _written_files(folder: Path) -> set[str]:
    """Return the names of the files of an empty folder or a results folder that xqg wrote."""
    if not any(folder.iterdir()):
        return set()
    files = _read_manifest(folder).get("files")
    # Manifests had no list at first.
    written = files if isinstance(files, list) else []
    return {MANIFEST, *(name for name in written if isinstance(name, str) and _may_be_results(name))}


def _may_be_results(name: str) -> bool:
    return name in RESULTS or name.endswith(".trec")


def save_evaluation(
    folder: Path,
    manifest: Mapping[str, Any],
    queries: Sequence[Query],
    qrels: Sequence[Qrel],
    report: Report,
    runs: Mapping[str, Found],
    match_queries: MatchQueries | None = None,
) -> None:
    """Write the results folder of an evaluation.

    Raises:
        InputError: Something else has the folder's name, or a passage's id cannot stand in a run.
    """
    with new_results(folder, manifest, queries, qrels) as final:
        per_query = {
            run: {measure: values.per_query for measure, values in measures.items()}
            for run, measures in report.values.items()
        }
        _write_json(final / VALUES, per_query)
        for name, run in runs.items():
            scored = {id_: [(hit.passage.passage_id, hit.score) for hit in found] for id_, found in run.items()}
            if all(passage_id for found in scored.values() for passage_id, _ in found):
                write_run(final / f"{name}.trec", scored, tag=name, separator="\t")
        first = {
            hit.passage.passage_id: hit.passage
            for run in runs.values()
            for found in run.values()
            for hit in found[:HITS_SHOWN]
            if hit.passage.passage_id and hit.passage.text
        }
        _write_rows(
            final / PASSAGES,
            ({"id": id_, "title": p.title, "text": p.text} for id_, p in first.items()),
        )
        _write_rows(final / CHANGES, find_changes(queries, qrels, report, runs, match_queries))


def read_results(folder: Path) -> Results:
    """Read a results folder.

    Raises:
        InputError: It is not a results folder, or one of its files is damaged.
    """
    manifest = _read_manifest(folder)
    try:
        queries = [
            Query(row["id"], row["text"], row["lang"], tuple(row["answers"])) for row in _read_rows(folder / QUESTIONS)
        ]
        languages = languages_of(queries)
        found = _read_json(folder / VALUES) if (folder / VALUES).exists() else {}
        values = {
            run: {measure: average(per_query, languages) for measure, per_query in measures.items()}
            for run, measures in found.items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: the questions or values are damaged ({error!r}).", REPEAT) from error
    qrels = read_qrels(folder / QRELS) if (folder / QRELS).exists() else []
    return Results(folder, manifest, queries, qrels, values)


def is_results(folder: Path) -> bool:
    """Return whether a folder has a manifest."""
    return (folder / MANIFEST).is_file()


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not is_results(folder):
        raise InputError(
            f"{folder} is not a results folder: there is no {MANIFEST}.", "give a folder that was written with --save"
        )
    manifest = _read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("kind") not in KINDS:
        raise InputError(f"{folder / MANIFEST}: the kind of results is missing or unknown to this version.", REPEAT)
    return manifest


def _read_json(path: Path) -> Any:  # noqa: ANN401
    try:
        with opened_file(str(path)) as file:
            return json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}).", REPEAT) from error


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    with opened_file(str(path)) as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number} is damaged ({error}).", REPEAT) from error


def _write_json(path: Path, value: object) -> None:
    path.write_text(hide(json.dumps(value, ensure_ascii=False, indent=2)) + "\n", encoding="utf-8")


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def find_changes(
    queries: Iterable[Query],
    qrels: Iterable[Qrel],
    report: Report,
    runs: Mapping[str, Found],
    match_queries: MatchQueries | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield, as JSON values, each question the last run wins or loses against the first, in their first common measure.

    `hits` are the first three passages of each of the two runs, and the first relevant one if it comes later.
    """
    relevant = {(qrel.query_id, qrel.passage_id) for qrel in qrels if qrel.relevance > 0}
    judged = {query_id for query_id, _ in relevant}
    if not report.comparisons:
        return
    first, *_, last = report.values
    for measure in list(report.comparisons[last])[:1]:
        before, after = (report.values[run][measure].per_query for run in (first, last))
        for query in queries:
            if before.get(query.query_id) == after.get(query.query_id):
                continue

            def is_relevant(found: ScoredPassage, query: Query = query) -> bool:
                if query.query_id in judged:
                    return (query.query_id, found.passage.passage_id) in relevant
                return any(answer in found.passage.text for answer in span_answers(query))

            yield {
                "id": query.query_id,
                "lang": query.language,
                "text": query.text,
                "answers": list(query.answers),
                "measure": measure,
                "before": before[query.query_id],
                "after": after[query.query_id],
                "hits": {
                    run: _first_hits(query.text, runs[run].get(query.query_id, ()), is_relevant, match_queries)
                    for run in (first, last)
                },
            }


def _first_hits(
    question: str,
    found: Sequence[ScoredPassage],
    is_relevant: Callable[[ScoredPassage], bool],
    match_queries: MatchQueries | None,
) -> list[dict[str, Any]]:
    shown = dict(enumerate(found[:HITS_SHOWN], start=1))
    if first := next(((rank, hit) for rank, hit in enumerate(found, start=1) if is_relevant(hit)), None):
        shown |= [first]
    hits = list(shown.values())
    best = match_queries(question, hits) if match_queries else [None] * len(hits)
    return [
        {
            "rank": rank,
            "passage_id": hit.passage.passage_id,
            "score": hit.score,
            "title": hit.passage.title,
            "text": hit.passage.text,
            "relevant": is_relevant(hit),
            "best_query": {"language": query.language, "text": query.text} if query else None,
        }
        for (rank, hit), query in zip(shown.items(), best, strict=True)
    ]
