"""Measure how good a search is: judgements, runs, measures, significance, saved results."""

from __future__ import annotations

FEWEST_QUESTIONS = 100
"""For a verdict without a caveat."""
EVALUATION_DEPTH = 100
"""The default number of passages retrieved for each question."""
