"""The comparison of runs: each measure for each language, with what was won and lost and whether it could be chance.

Knows questions, judgements and what searches found, and puts the measures together. All values are percentages. A
question for which a run holds nothing counts as a miss; only the official score (`official.score_predictions`) leaves
it out. Knows nothing of how the runs came about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from textwrap import fill
from typing import Any, NamedTuple

from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation import official
from xqg_qdrant.evaluation.files import Prediction
from xqg_qdrant.evaluation.measures import per_query_values
from xqg_qdrant.evaluation.significance import paired_randomisation_test
from xqg_qdrant.records import Qrel, Query, ScoredPassage

UNKNOWN_LANGUAGE = "und"
"""Where the file names no language; the code that BCP 47 has for it."""


class Values(NamedTuple):
    """One measure of one run, in percent; `macro` is the mean over languages."""

    macro: float
    per_language: Mapping[str, float]
    per_query: Mapping[str, float]


class Difference(NamedTuple):
    """The second run against the first: points gained, questions won, lost and tied, and the p-value over them.

    Over all languages, `points` is the difference of the macro averages, and the p-value is of the mean over all
    questions.
    """

    points: float
    won: int
    lost: int
    tied: int
    p: float

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"difference": self.points, "won": self.won, "lost": self.lost, "tied": self.tied, "p": self.p}


class Comparison(NamedTuple):
    """One measure, the second run against the first."""

    overall: Difference
    per_language: Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class Report:
    """One run, or two compared.

    Attributes:
        questions: How many questions there are in each language.
        values: For each run, by its name, and each measure, by its name, the values.
        comparisons: For each measure the second run against the first; empty where there is one run.
        notes: What a reader of the figures should know.
    """

    questions: Mapping[str, int]
    values: Mapping[str, Mapping[str, Values]]
    comparisons: Mapping[str, Comparison]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return `{measure: {macro, per_language}}`; for two runs one of these under each name, and `comparison`."""
        runs = {
            run: {name: {"macro": v.macro, "per_language": dict(v.per_language)} for name, v in measures.items()}
            for run, measures in self.values.items()
        }
        if len(runs) == 1:
            return next(iter(runs.values()))
        return runs | {
            "comparison": {
                name: overall.to_json() | {"per_language": {lang: d.to_json() for lang, d in per_language.items()}}
                for name, (overall, per_language) in self.comparisons.items()
            }
        }


def evaluate_runs(
    queries: Sequence[Query],
    qrels: Iterable[Qrel],
    runs: Mapping[str, Mapping[str, Sequence[ScoredPassage]]],
    *,
    recall_at: Sequence[int] = (1, 5, 10, 20, 100),
    mrr_at: Sequence[int] = (10,),
    ndcg_at: Sequence[int] = (10,),
    token_budgets: Sequence[int] = official.TOKEN_BUDGETS,
    rules: official.WordRules = "installed",
) -> Report:
    """Measure one run, or two and what the second gains over the first.

    Recall, MRR and nDCG are measured on the questions with judgements, R@kt on those with an answer other than `yes`
    and `no`, from the passages' texts without their titles.

    Args:
        queries: The questions. Judgements and results of others are passed over.
        qrels: The judgements; may be empty.
        runs: For each run, by its name such as `passage` or `xqg`, and each query id the passages found, best first.
        recall_at: The ranks k for recall@k.
        mrr_at: The ranks k for MRR@k.
        ndcg_at: The ranks k for nDCG@k.
        token_budgets: The numbers of tokens for R@kt; empty leaves it out.
        rules: The word rules of the tokenizer; see `official`.

    Raises:
        InputError: No question has a judgement, nor an answer that could be looked for.
    """
    languages = {query.query_id: query.language or UNKNOWN_LANGUAGE for query in queries}
    judged = [qrel for qrel in qrels if qrel.query_id in languages]
    answerable = [query for query in queries if official.span_answers(query)] if token_budgets else []
    notes: list[str] = []
    if answerable and not official.is_available():
        notes.append(f"R@kt is left out: its tokenizer is not installed; install it with: {official.INSTALL}")
        answerable = []
    if not judged and not answerable:
        reason = notes[0] if notes else "give judgements or answers, and check that their ids agree with the questions'"
        raise InputError(f"none of the {len(languages)} questions has anything to be measured by: {reason}")
    values: dict[str, dict[str, Values]] = {}
    for name, results in runs.items():
        hits = _answer_hits(answerable, results, token_budgets, rules)
        plain = {
            query_id: [(hit.passage.passage_id, hit.score) for hit in found] for query_id, found in results.items()
        }
        figures = per_query_values(judged, plain, recall_at=recall_at, mrr_at=mrr_at, ndcg_at=ndcg_at) if judged else {}
        values[name] = {measure: _averaged(per_query, languages) for measure, per_query in (hits | figures).items()}
        notes += _short_results(name, answerable, results, hits, token_budgets, rules)
        longest = max(map(len, results.values()), default=0)
        if judged and longest < max([*recall_at, *mrr_at, *ndcg_at], default=0):
            notes.append(
                f"{name}: no question has more than {longest} results, so figures beyond that rank are too low"
            )
    first, second = [*values.values(), None, None][:2]
    comparisons = {name: _compared(first[name], second[name], languages) for name in first} if first and second else {}
    questions = dict(sorted(Counter(languages.values()).items()))
    return Report(questions, values, comparisons, tuple(notes))


def predictions_of_run(queries: Iterable[Query], run: Mapping[str, Sequence[ScoredPassage]]) -> list[Prediction]:
    """Return what a run found as predictions for XOR-Retrieve: the passages' texts, without their titles."""
    return [
        Prediction(query.query_id, query.language, tuple(found.passage.text for found in run.get(query.query_id, ())))
        for query in queries
    ]


def report_predictions(
    predictions: Iterable[Prediction], gold: Sequence[Query], rules: official.WordRules = "installed"
) -> Report:
    """Report the official score of predictions, which leaves out questions that have none."""
    scores = official.score_predictions(predictions, gold, rules=rules)
    values = {name: Values(score["macro"], score["per_language"], {}) for name, score in scores.items()}
    questions = next(iter(scores.values()))["questions"]
    missing = sum(1 for query in gold if official.span_answers(query)) - sum(questions.values())
    notes = (
        (f"{missing} questions have no prediction and are not counted, as in the official script",) if missing else ()
    )
    return Report(questions, {"predictions": values}, {}, notes)


def format_table(report: Report) -> str:
    """Set a report as a plain table: a column for each language, a row for each measure and run."""
    languages = list(report.questions)
    runs = list(report.values)
    measures = list(report.values[runs[0]])
    width = max(len(name) for name in ("difference", *runs))
    head = f"{'measure':<10} {'run':<{width}} " + "".join(f"{name:>7}" for name in ("macro", *languages))
    lines = [head + ("   won  lost      p" if report.comparisons else "")]
    lines.append("-" * len(lines[0]))
    counts = "".join(f"{report.questions[language]:>7}" for language in languages)
    lines.append(f"{'questions':<10} {'':<{width}} {sum(report.questions.values()):>7}{counts}")
    for measure in measures:
        for number, run in enumerate(runs):
            v = report.values[run][measure]
            cells = [v.macro, *(v.per_language.get(language) for language in languages)]
            lines.append(f"{'' if number else measure:<10} {run:<{width}} " + "".join(map(_cell, cells)))
        if measure in report.comparisons:
            overall, per_language = report.comparisons[measure]
            points = [overall.points, *(d and d.points for d in map(per_language.get, languages))]
            lines.append(
                f"{'':<10} {'difference':<{width}} "
                + "".join(_cell(value, "+") for value in points)
                + f"{overall.won:>6}{overall.lost:>6}{overall.p:>7.4f}"
            )
    lines += [fill(f"Note: {note}.", width=100, subsequent_indent="  ") for note in report.notes]
    return "\n".join(lines) + "\n"


def _cell(value: float | None, sign: str = "-") -> str:
    return f"{'-':>7}" if value is None else f"{value:{sign}7.2f}"


def _answer_hits(
    queries: Iterable[Query],
    run: Mapping[str, Sequence[ScoredPassage]],
    token_budgets: Sequence[int],
    rules: official.WordRules,
) -> dict[str, dict[str, float]]:
    """Return for each measure R@kt and each question 1 where an answer is among the tokens found, and 0 elsewhere."""
    hits: dict[str, dict[str, float]] = {}
    for query in queries:
        texts = (found.passage.text for found in run.get(query.query_id, ()))
        found = official.answer_hits(texts, official.span_answers(query), token_budgets, rules)
        for budget, hit in zip(token_budgets, found, strict=True):
            hits.setdefault(official.measure_name(budget), {})[query.query_id] = float(hit)
    return hits


def _short_results(
    name: str,
    queries: Sequence[Query],
    run: Mapping[str, Sequence[ScoredPassage]],
    hits: Mapping[str, Mapping[str, float]],
    token_budgets: Sequence[int],
    rules: official.WordRules,
) -> list[str]:
    """Say where misses may come from too few results: R@5kt of ten passages is R@1kt under another name."""
    notes = []
    for budget in token_budgets:
        measure = official.measure_name(budget)
        short = 0
        for query in queries:
            texts = (found.passage.text for found in run.get(query.query_id, ()))
            if not hits[measure][query.query_id] and official.token_count(texts, budget, rules) < budget:
                short += 1
        if short:
            notes.append(
                f"{measure} of {name}: {short} of the questions missed have results of fewer than {budget:,} tokens; "
                "search with a higher limit"
            )
    return notes


def _averaged(per_query: Mapping[str, float], languages: Mapping[str, str]) -> Values:
    """Average over the questions of each language, then over languages, in percent."""
    grouped: dict[str, list[float]] = {}
    for query_id, value in per_query.items():
        grouped.setdefault(languages[query_id], []).append(100 * value)
    per_language = {language: fmean(grouped[language]) for language in sorted(grouped)}
    return Values(fmean(per_language.values()), per_language, {name: 100 * value for name, value in per_query.items()})


def _compared(first: Values, second: Values, languages: Mapping[str, str]) -> Comparison:
    def difference(points: float, query_ids: Sequence[str]) -> Difference:
        before = [first.per_query[query_id] for query_id in query_ids]
        after = [second.per_query[query_id] for query_id in query_ids]
        won = sum(b > a for a, b in zip(before, after, strict=True))
        lost = sum(b < a for a, b in zip(before, after, strict=True))
        return Difference(points, won, lost, len(before) - won - lost, paired_randomisation_test(before, after))

    query_ids = list(first.per_query)
    per_language = {
        language: difference(
            second.per_language[language] - first.per_language[language],
            [query_id for query_id in query_ids if languages[query_id] == language],
        )
        for language in first.per_language
    }
    return Comparison(difference(second.macro - first.macro, query_ids), per_language)
