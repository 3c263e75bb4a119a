"""Two saved runs side by side: of different results folders, or of one.

Refuses what was measured on different data; tells what made the two differ. Knows results folders. Computes no measure.
"""

from __future__ import annotations

from typing import NamedTuple

from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.comparison import Report, SystemRun, languages_of, make_report, with_passages
from xqg_qdrant.evaluation.results import PASSAGES, Results
from xqg_qdrant.evaluation.significance import TestName
from xqg_qdrant.records import XQG_VECTOR, Passage, ScoredPassage


class Pair(NamedTuple):
    """The second run against the first, and what both found, by the names that they have in the report."""

    report: Report
    runs: dict[str, SystemRun]


def pair_results(first: Results, second: Results, runs: tuple[str, str] | None, test: TestName) -> Pair:
    """Compare a run of each of two results folders; where none are named, `xqg` or the last of each.

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
        raise InputError(f"{first.folder}: a run is compared with itself.", "name two with --runs.")
    values = {label: results.values[name] for label, (results, name) in zip(names, chosen, strict=True)}
    report = make_report(languages_of(first.queries), values, test, _note_differences(first, second))
    return Pair(report, {label: _load_run(*side) for label, side in zip(names, chosen, strict=True)})


def _find_run(results: Results, name: str) -> str:
    if not results.values:
        kind = results.manifest["kind"]
        raise InputError(f"{results.folder}: holds the results of a {kind}.", "give those of xqg evaluate --save.")
    if name and name not in results.values:
        raise InputError(f"{results.folder}: has no run {name!r}.", f"name one of {', '.join(results.values)}.")
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
    return f"{found['path']} ({rows} rows, sha256 {found['sha256'][:12]}…)" if found else f"{rows} rows"


def _note_differences(first: Results, second: Results) -> list[str]:
    """Say in what the two differ besides the run: the models and the recipe, the depth, the tokenizer."""
    notes = []
    for part in ("fingerprint", "settings", "versions"):
        left, right = first.manifest.get(part, {}), second.manifest.get(part, {})
        names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
        names = [name for name in names if part == "fingerprint" or name in ("limit", "nltk")]
        notes += [f"{name} is {left.get(name)!r} in the first and {right.get(name)!r} in the second" for name in names]
    return notes
