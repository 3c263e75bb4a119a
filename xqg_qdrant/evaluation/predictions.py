"""Runs as predictions for XOR-Retrieve, and predictions of any system under the official score.

Here alone a question without a prediction is left out, as in the official script.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from xqg_qdrant.evaluation import official
from xqg_qdrant.evaluation.answers import Found
from xqg_qdrant.evaluation.comparison import Report, Values
from xqg_qdrant.evaluation.files import Prediction
from xqg_qdrant.records import Query


def predictions_of_run(queries: Iterable[Query], run: Found) -> list[Prediction]:
    """Return what a run found as predictions for XOR-Retrieve: the passages' texts, without their titles."""
    return [
        Prediction(query.query_id, query.language, tuple(found.passage.text for found in run.get(query.query_id, ())))
        for query in queries
    ]


def report_predictions(
    predictions: Mapping[str, Iterable[Prediction]], gold: Sequence[Query], rules: official.WordRules = "installed"
) -> Report:
    """Report the official score of systems' predictions, by the systems' names; questions that have none are left out.

    As each system may leave out others, nothing is compared.
    """
    scores = {name: official.score_predictions(found, gold, rules=rules) for name, found in predictions.items()}
    values = {
        name: {measure: Values(score["macro"], score["per_language"], {}) for measure, score in scored.items()}
        for name, scored in scores.items()
    }
    counted = {name: next(iter(scored.values()))["questions"] for name, scored in scores.items()}
    expected = sum(1 for query in gold if official.span_answers(query))
    notes = tuple(
        f"{name}: {expected - sum(questions.values())} questions have no prediction and are not counted, "
        "as in the official script"
        for name, questions in counted.items()
        if expected > sum(questions.values())
    )
    languages = sorted({language for questions in counted.values() for language in questions})
    most = {language: max(questions.get(language, 0) for questions in counted.values()) for language in languages}
    return Report(most, values, {}, notes)
