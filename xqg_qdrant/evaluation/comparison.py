"""Compare runs: each measure by language, with questions won and lost, intervals and p-values.

All values are percentages. A question without results counts as a miss; only the official score
(`report_predictions`) leaves it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation import xor_retrieve as official
from xqg_qdrant.evaluation.files import Prediction
from xqg_qdrant.evaluation.measures import per_query_values
from xqg_qdrant.evaluation.significance import (
    TESTS,
    TestName,
    adjust_by_holm,
    bootstrap_means,
    is_hit_or_miss,
    percentile_interval,
)
from xqg_qdrant.evaluation.xor_retrieve import Found, find_answer_hits, note_short_results
from xqg_qdrant.records import Qrel, Query
from xqg_qdrant.text import agree, count_of

SIGNIFICANT = 0.05
UNKNOWN_LANGUAGE = "und"
"""The BCP 47 code for an undetermined language."""


class Values(NamedTuple):
    """One measure of one run, in percent; `macro` is the mean over languages."""

    macro: float
    per_language: Mapping[str, float]
    per_query: Mapping[str, float]


class Difference(NamedTuple):
    """A run against the first.

    Attributes:
        points: The difference of the means; over all languages, of the macro averages.
        won: The number of questions on which the run is better.
        lost: The number on which it is worse.
        tied: The number on which both are equal.
        interval: The 95% bootstrap interval of `points`, from low to high.
        p: The p-value over the questions; None if the test does not apply to the measure.
        p_holm: For one of several languages, the p-value corrected for their number by Holm.
    """

    points: float
    won: int
    lost: int
    tied: int
    interval: tuple[float, float]
    p: float | None
    p_holm: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the difference as JSON values."""
        fields = self._asdict() | {"interval": list(self.interval)}
        return {"difference": fields.pop("points"), **fields}


class Comparison(NamedTuple):
    """One measure of a run against the first run."""

    overall: Difference
    per_language: Mapping[str, Difference]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        per_language = {language: difference.to_json() for language, difference in self.per_language.items()}
        return self.overall.to_json() | {"per_language": per_language}


@dataclass(frozen=True, slots=True)
class Report:
    """The measures of runs on the same questions.

    Attributes:
        questions: The number of questions in each language.
        values: The values by run and measure.
        comparisons: Each run against the first, by run and measure; the first run and measures that either of the two
            lacks are left out.
        notes: Remarks for readers of the figures.
    """

    questions: Mapping[str, int]
    values: Mapping[str, Mapping[str, Values]]
    comparisons: Mapping[str, Mapping[str, Comparison]]
    notes: tuple[str, ...] = ()

    @property
    def measures(self) -> list[str]:
        """Return the names of all measures, in the order of the runs."""
        return list({name: None for measures in self.values.values() for name in measures})

    def to_json(self) -> dict[str, Any]:
        """Return `{measure: {macro, per_language}}`; several runs have one of these each, and `comparison`.

        `comparison` has `{measure: {difference, …, per_language}}` for each run but the first.
        """
        runs = {
            run: {name: {"macro": v.macro, "per_language": dict(v.per_language)} for name, v in measures.items()}
            for run, measures in self.values.items()
        }
        if len(runs) == 1:
            return next(iter(runs.values()))
        comparison = {
            run: {name: found.to_json() for name, found in measures.items()}
            for run, measures in self.comparisons.items()
        }
        return runs | {"comparison": comparison}


def evaluate_runs(
    queries: Sequence[Query],
    qrels: Iterable[Qrel],
    runs: Mapping[str, Found],
    *,
    recall_at: Sequence[int] = (1, 5, 10, 20, 100),
    mrr_at: Sequence[int] = (10,),
    ndcg_at: Sequence[int] = (10,),
    token_budgets: Sequence[int] = official.TOKEN_BUDGETS,
    rules: official.WordRules = "installed",
    lenient: bool = False,
    test: TestName = "randomisation",
    left_out: int = 0,
) -> Report:
    """Measure runs, and compare each with the first.

    Recall, MRR and nDCG are measured on the questions with judgements, R@kt on those with an answer other than `yes`
    and `no`, from the passages' texts without their titles.

    Args:
        queries: The questions. Judgements and results of others are ignored.
        qrels: The judgements; may be empty.
        runs: The runs, by a name such as `passage` or `xqg`. One without passage ids has no recall, one without texts
            has no R@kt.
        recall_at: The ranks k for recall@k.
        mrr_at: The ranks k for MRR@k.
        ndcg_at: The ranks k for nDCG@k.
        token_budgets: The numbers of tokens for R@kt; empty skips it.
        rules: The word rules of the tokenizer; see `xor_retrieve`.
        lenient: Also measure `lenient@2kt` and so on: R@kt with answers tokenised like the texts.
        test: The paired test of the p-values.
        left_out: How many questions `measured_questions` left out, for a note.

    Raises:
        InputError: No question has a judgement or an answer to search for.
    """
    languages = languages_of(queries)
    judged = [qrel for qrel in qrels if qrel.query_id in languages]
    answerable = [query for query in queries if official.span_answers(query)] if token_budgets else []
    notes: list[str] = []
    if left_out:
        given = len(languages) + left_out
        notes.append(f"{left_out} of the {count_of(given, 'question')} left out, without judgements")
    if answerable and not official.is_available():
        notes.append(f"R@kt is left out: its tokenizer is not installed; install it with: {official.INSTALL}")
        answerable = []
    if not judged and not answerable:
        lacking = "judgements, and the tokenizer of R@kt is not installed" if notes else "judgements or answers"
        raise InputError(
            f"no question has {lacking} ({len(languages)} given).",
            official.INSTALL if notes else "give --qrels or questions with answers, and check that their ids agree",
        )
    values: dict[str, dict[str, Values]] = {}
    for name, run in runs.items():
        if without := sum(1 for query_id in languages if not run.get(query_id)):
            counts = agree(without, "has no results and counts as a miss", "have no results and count as misses")
            notes.append(f"{name}: {without} of the {count_of(len(languages), 'question')} {counts}")
        passages = [hit.passage for found in run.values() for hit in found]
        has_ids = all(passage.passage_id for passage in passages)
        figures: dict[str, dict[str, float]] = {}
        if answerable and (not has_ids or all(passage.text for passage in passages)):
            figures = find_answer_hits(answerable, run, token_budgets, rules)
            notes += note_short_results(name, answerable, run, figures, token_budgets, rules)
            if lenient:
                figures |= find_answer_hits(answerable, run, token_budgets, rules, lenient=True)
        elif answerable:
            notes.append(f"{name}: R@kt is left out, because the texts of its passages are unknown")
        if judged and has_ids:
            plain = {
                query_id: [(hit.passage.passage_id, hit.score) for hit in found] for query_id, found in run.items()
            }
            figures |= per_query_values(judged, plain, recall_at=recall_at, mrr_at=mrr_at, ndcg_at=ndcg_at)
            longest = max(map(len, run.values()), default=0)
            if longest < max([*recall_at, *mrr_at, *ndcg_at], default=0):
                most = count_of(longest, "result")
                notes.append(f"{name}: no question has more than {most}, so figures beyond that rank are too low")
        elif judged:
            notes.append(f"{name}: recall, MRR and nDCG are left out, because the ids of its passages are unknown")
        percent = {name: {id_: 100 * value for id_, value in of.items()} for name, of in figures.items()}
        values[name] = {measure: average(per_query, languages) for measure, per_query in percent.items()}
    return make_report(languages, values, test, notes)


def measured_questions(queries: Sequence[Query], qrels: Iterable[Qrel]) -> list[Query]:
    """Return the questions that can be measured: where some have judgements, only those with judgements or answers."""
    ids = {query.query_id for query in queries}
    judged = {qrel.query_id for qrel in qrels} & ids
    return [query for query in queries if not judged or query.query_id in judged or official.span_answers(query)]


def make_report(
    languages: Mapping[str, str],
    values: Mapping[str, Mapping[str, Values]],
    test: TestName = "randomisation",
    notes: Iterable[str] = (),
) -> Report:
    """Compare each run with the first, by every measure that both have.

    Args:
        languages: The language of each question, by its id.
        values: The values by run and measure.
        test: The paired test of the p-values.
        notes: Remarks for readers of the figures.
    """
    first, *others = values
    comparisons = {
        run: {
            measure: compare_values(values[first][measure], found, languages, test)
            for measure, found in values[run].items()
            if measure in values[first]
        }
        for run in others
    }
    untested = {
        measure: None
        for measures in comparisons.values()
        for measure, (overall, _) in measures.items()
        if overall.p is None
    }
    if untested:
        notes = [*notes, f"McNemar's test needs hits and misses; no p for {', '.join(untested)}"]
    return Report(dict(sorted(Counter(languages.values()).items())), values, comparisons, tuple(notes))


def compare_values(
    first: Values, second: Values, languages: Mapping[str, str], test: TestName = "randomisation"
) -> Comparison:
    """Compare one measure of two runs on the same questions."""
    tested = test != "mcnemar" or is_hit_or_miss(list(first.per_query.values()), list(second.per_query.values()))

    def difference(points: float, query_ids: Sequence[str], interval: tuple[float, float]) -> Difference:
        before, after = ([values.per_query[query_id] for query_id in query_ids] for values in (first, second))
        won = sum(b > a for a, b in zip(before, after, strict=True))
        lost = sum(b < a for a, b in zip(before, after, strict=True))
        p = TESTS[test](before, after) if tested else None
        return Difference(points, won, lost, len(before) - won - lost, interval, p)

    grouped = _by_language(first.per_query, languages)
    means = bootstrap_means(
        [[second.per_query[id_] - first.per_query[id_] for id_ in query_ids] for query_ids in grouped.values()]
    )
    per_language = {
        language: difference(
            second.per_language[language] - first.per_language[language],
            query_ids,
            percentile_interval(means[number]),
        )
        for number, (language, query_ids) in enumerate(grouped.items())
    }
    if tested:
        per_language = adjust_languages(per_language)
    overall = difference(second.macro - first.macro, list(first.per_query), percentile_interval(means.mean(axis=0)))
    return Comparison(overall, per_language)


def adjust_languages(per_language: Mapping[str, Difference]) -> dict[str, Difference]:
    """Return tested differences with p-values corrected for the number of languages by Holm."""
    adjusted = adjust_by_holm([found.p for found in per_language.values() if found.p is not None])
    return {
        language: found._replace(p_holm=p) for (language, found), p in zip(per_language.items(), adjusted, strict=True)
    }


def average(per_query: Mapping[str, float], languages: Mapping[str, str]) -> Values:
    """Average over the questions of each language, then over languages."""
    grouped = _by_language(per_query, languages)
    per_language = {
        language: fmean(per_query[query_id] for query_id in query_ids) for language, query_ids in grouped.items()
    }
    return Values(fmean(per_language.values()), per_language, per_query)


def compare_runs(report: Report, first: str, second: str, measure: str, queries: Iterable[Query]) -> Comparison | None:
    """Compare two runs of a report by one measure; None if one of them lacks it."""
    values = [report.values.get(run, {}).get(measure) for run in (first, second)]
    if values[0] is None or values[1] is None:
        return None
    return compare_values(values[0], values[1], languages_of(queries))


def is_gain(difference: Difference) -> bool:
    """Return whether a difference is significant and positive."""
    return difference.p is not None and difference.p < SIGNIFICANT and difference.points > 0


def describe_content(gain: Difference, content: Difference) -> str:
    """Return in a sentence how much of a gain the content of the queries brings.

    Args:
        gain: The augmented vectors against the plain ones.
        content: The augmented vectors against the control.
    """
    p = "untested" if content.p is None else f"p = {content.p:.4f}"
    if is_gain(content):
        return (
            f"The content of the queries gives {content.points:+.1f} of {gain.points:+.1f} ({p}); the control, with "
            "the same mean query for every passage, gives the rest."
        )
    return (
        f"The content of the queries gives {content.points:+.1f} of {gain.points:+.1f}, which could be chance ({p}): "
        "the control, with the same mean query for every passage, does about as well."
    )


def languages_of(queries: Iterable[Query]) -> dict[str, str]:
    """Return the language of each question, by its id."""
    return {query.query_id: query.language or UNKNOWN_LANGUAGE for query in queries}


def _by_language(query_ids: Iterable[str], languages: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for query_id in query_ids:
        grouped.setdefault(languages[query_id], []).append(query_id)
    return dict(sorted(grouped.items()))


def report_predictions(
    predictions: Mapping[str, Iterable[Prediction]], gold: Sequence[Query], rules: official.WordRules = "installed"
) -> Report:
    """Report the official score of each system's predictions; questions without one are left out.

    Systems may leave out different questions, so they are not compared.
    """
    scores = {name: official.score_predictions(found, gold, rules=rules) for name, found in predictions.items()}
    values = {
        name: {measure: Values(score["macro"], score["per_language"], {}) for measure, score in scored.items()}
        for name, scored in scores.items()
    }
    counted = {name: next(iter(scored.values()))["questions"] for name, scored in scores.items()}
    expected = sum(1 for query in gold if official.span_answers(query))
    notes = tuple(
        f"{name}: {count_of(missing, 'question')} {agree(missing, 'has', 'have')} no prediction and "
        f"{agree(missing, 'is', 'are')} not counted, as in the official script"
        for name, questions in counted.items()
        if (missing := expected - sum(questions.values())) > 0
    )
    languages = sorted({language for questions in counted.values() for language in questions})
    most = {language: max(questions.get(language, 0) for questions in counted.values()) for language in languages}
    return Report(most, values, {}, notes)
