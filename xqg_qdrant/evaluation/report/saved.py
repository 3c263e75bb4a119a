"""A comparison that was saved as JSON → the comparison.

Some cannot be made again from the values of each question: that of a sweep is of half of them, and areas under curves
have a test of their own. Knows what `Report.to_json` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xqg_qdrant.evaluation.comparison import Comparison, Difference, Report, Values

Json = Mapping[str, Any]


def load_report(saved: Json, notes: Sequence[str] = ()) -> Report:
    """Return a report on several runs from its JSON; the values of single questions are not in there."""
    values = {
        run: {measure: Values(of["macro"], of["per_language"], {}) for measure, of in measures.items()}
        for run, measures in saved.items()
        if run != "comparison"
    }
    comparisons = {
        run: {measure: _load_comparison(of) for measure, of in measures.items()}
        for run, measures in saved["comparison"].items()
    }
    of_languages = [found.per_language for measures in comparisons.values() for found in measures.values()]
    questions = {language: of.won + of.lost + of.tied for found in of_languages for language, of in found.items()}
    return Report(questions, values, comparisons, tuple(notes))


def _load_comparison(saved: Json) -> Comparison:
    per_language = {language: _load_difference(of) for language, of in saved["per_language"].items()}
    return Comparison(_load_difference(saved), per_language)


def _load_difference(saved: Json) -> Difference:
    low, high = saved["interval"]
    return Difference(
        saved["difference"], saved["won"], saved["lost"], saved["tied"], (low, high), saved["p"], saved["p_holm"]
    )
