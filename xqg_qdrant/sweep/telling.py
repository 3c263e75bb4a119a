"""A sweep in words: the table of what was tried, what the best setting gained, and the command that applies it.

Knows plain text. Prints nothing itself.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from xqg_qdrant.evaluation.comparison import Difference
from xqg_qdrant.sweep.choosing import Measured, Sweep
from xqg_qdrant.sweep.settings import ALPHA, FILTER, LANGUAGES, QUERIES, Setting

HEADINGS = {
    ALPHA: "weight of the queries",
    QUERIES: "queries in each language",
    LANGUAGES: "languages of the queries ({})",
    FILTER: "filter by the encoder's own score ({})",
}
SURE = 0.05


def format_points(sweep: Sweep) -> str:
    """Return a row for each setting, by axis: its macro average, the interval of that, and each language."""
    rows: list[tuple[str, Measured | None]] = [("plain vectors", sweep.plain)]
    left = dict(sweep.points)
    for axis, curve in sweep.curves.items():
        rows.append((HEADINGS[axis].format(_describe_weight(curve[0])), None))
        for setting in curve:
            rows.append((f"  {_label(setting, axis, sweep.base)}", sweep.points[setting]))
            left.pop(setting, None)
    if left:
        rows.append(("the best of each together", None))
        rows += [(f"  {_label(setting, '', sweep.base)}", found) for setting, found in left.items()]
    languages = list(sweep.plain.values.per_language)
    width = max(len(label) for label, _ in rows) + 1
    head = f"{sweep.measure:<{width}}{'macro':>7}{'95% interval':>16}" + "".join(f"{name:>7}" for name in languages)
    lines = [head, "-" * len(head)]
    return "\n".join([*lines, *(label if found is None else _row(label.ljust(width), found) for label, found in rows)])


def describe(setting: Setting) -> str:
    """Return a setting in words: `mean fusion, alpha 0.1, 5 queries in each of ar, ja`."""
    parts = [f"{setting.fusion} fusion", f"alpha {setting.alpha:g}"]
    if setting.renormalise:
        parts.append("renormalised")
    if setting.queries_per_language is not None and setting.languages is not None:
        number = "1 query" if setting.queries_per_language == 1 else f"{setting.queries_per_language} queries"
        parts.append(f"{number} in each of {', '.join(setting.languages)}")
    if setting.min_score is not None:
        parts.append(f"only queries that score {setting.min_score:g} or more")
    return ", ".join(parts)


def describe_gain(measure: str, gained: Difference) -> str:
    """Return what a setting gained over the plain vectors, and whether that could be chance."""
    low, high = gained.interval
    p = 1.0 if gained.p is None else gained.p
    told = f"{measure} {gained.points:+.2f} points (95% interval {low:+.2f} to {high:+.2f}, p = {p:.4f})"
    if p >= SURE:
        return f"{told}: this could be chance"
    return f"{told}: {'better' if gained.points > 0 else 'worse'} than the plain vectors, and hardly by chance"


def make_command(sweep: Sweep, collection: str, options: Sequence[str]) -> str:
    """Return the `xqg retune` that gives the collection the chosen setting; empty where it has it.

    Args:
        sweep: what was chosen, from what.
        collection: what it was chosen for.
        options: further options, such as where the collection lives.
    """
    base, chosen = sweep.base, sweep.chosen
    changes: list[str] = []
    if chosen.fusion != base.fusion:
        changes += ["--fusion", chosen.fusion]
    if chosen.alpha != base.alpha:
        changes += ["--alpha", repr(chosen.alpha)]
    if chosen.renormalise != base.renormalise:
        changes.append("--renormalise" if chosen.renormalise else "--no-renormalise")
    if chosen.min_score != base.min_score:
        changes += ["--no-min-score"] if chosen.min_score is None else ["--min-score", repr(chosen.min_score)]
    if chosen.languages != base.languages and chosen.languages is not None:
        changes += ["--languages", ",".join(chosen.languages)]
    if chosen.queries_per_language != base.queries_per_language:
        changes += ["--queries-per-language", str(chosen.queries_per_language)]
    return shlex.join(["xqg", "retune", "--collection", collection, *options, *changes]) if changes else ""


def _row(label: str, found: Measured) -> str:
    low, high = found.interval
    figures = "".join(f"{figure:>7.2f}" for figure in found.values.per_language.values())
    return f"{label}{found.values.macro:>7.2f}{f'{low:.2f}–{high:.2f}':>16}{figures}"


def _label(setting: Setting, axis: str, base: Setting) -> str:
    """Return what a setting has along its axis, or, where several come together, in what it differs from the base."""
    parts = []
    if axis not in (LANGUAGES, FILTER):
        parts.append(_describe_weight(setting))
    if axis == QUERIES or (not axis and setting.queries_per_language != base.queries_per_language):
        parts.append(f"{setting.queries_per_language} a language")
    if axis == LANGUAGES or (not axis and setting.languages != base.languages):
        parts.append(_name_languages(setting.languages or (), base.languages or ()))
    if axis == FILTER or (not axis and setting.min_score != base.min_score):
        share = "" if setting.percentile is None else f" (without {setting.percentile}%)"
        parts.append("none" if setting.min_score is None else f"from {setting.min_score:g}{share}")
    return ", ".join(parts)


def _describe_weight(setting: Setting) -> str:
    return f"{setting.fusion} {setting.alpha:g}{' renormalised' if setting.renormalise else ''}"


def _name_languages(languages: Sequence[str], every: Sequence[str]) -> str:
    missing = [language for language in every if language not in languages]
    if len(missing) == 1 and len(languages) > 1:
        return f"all but {missing[0]}"
    return ", ".join(languages) if missing else "all"
