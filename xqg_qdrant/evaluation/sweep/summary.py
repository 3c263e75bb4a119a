"""Describe a sweep as text: the table of settings, the gain of the best one, and the options that apply it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xqg_qdrant.evaluation import FEWEST_QUESTIONS
from xqg_qdrant.evaluation.baselines import CALIBRATED
from xqg_qdrant.evaluation.comparison import SIGNIFICANT, Difference, describe_content, is_gain
from xqg_qdrant.evaluation.results import new_results
from xqg_qdrant.evaluation.sweep.bench import Bench
from xqg_qdrant.evaluation.sweep.settings import ALPHA, FILTER, GAMMA, LANGUAGES, QUERIES, Setting, name_languages
from xqg_qdrant.evaluation.sweep.trial import Measured, Sweep
from xqg_qdrant.text import agree, count_of

HEADINGS = {
    ALPHA: "weight of the queries",
    QUERIES: "queries in each language",
    LANGUAGES: "languages of the queries ({})",
    FILTER: "filter by the encoder's own score ({})",
    GAMMA: "calibration ({}, or no queries)",
}
LEAST_DETECTABLE = 0.1


def format_points(sweep: Sweep) -> str:
    """Return a table of the settings by axis: the macro average, its interval, and each language."""
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


def format_gains(sweep: Sweep) -> str:
    """Return what each run gains over the plain vectors, and the best setting with queries over its control."""
    gains = {f"{run} against passage": found[sweep.measure] for run, found in sweep.report.comparisons.items()}
    if sweep.content:
        gains[f"{'xqg' if sweep.chosen.alpha else 'best with queries'} against control"] = sweep.content
    width = max(map(len, gains))
    return "\n".join(f"{name:<{width}}  {describe_gain(sweep.measure, found.overall)}" for name, found in gains.items())


def describe(setting: Setting) -> str:
    """Return a setting in words: `mean fusion, alpha 0.1, 5 queries in each of ar, ja`."""
    if not setting.alpha:
        return f"no queries, calibrated with gamma {setting.gamma:g}" if setting.gamma else "no queries"
    parts = [f"{setting.fusion} fusion", f"alpha {setting.alpha:g}"]
    if setting.renormalise:
        parts.append("renormalised")
    if setting.gamma:
        parts.append(f"calibrated with gamma {setting.gamma:g}")
    if setting.queries_per_language is not None and setting.languages is not None:
        number = count_of(setting.queries_per_language, "query", "queries")
        parts.append(f"{number} in each of {', '.join(setting.languages)}")
    if setting.min_score is not None:
        parts.append(f"only queries that score {setting.min_score:g} or more")
    return ", ".join(parts)


def judge_sweep(sweep: Sweep) -> str:
    """Return whether the chosen setting of a sweep is worth it, and how much of it the content of the queries gives."""
    content = sweep.content.overall if sweep.content and sweep.chosen.alpha else None
    what = "xQG" if content else "Calibration without queries"
    verdict = judge(sweep.measure, sweep.gained, len(sweep.halves[1]), content, what)
    if needs_no_queries(sweep):
        alone = sweep.report.comparisons[CALIBRATED][sweep.measure].overall
        verdict += f" Calibration without queries gains {alone.points:+.2f} points and needs no generator."
    return verdict


def needs_no_queries(sweep: Sweep) -> bool:
    """Return whether calibrated plain vectors surely gain, and queries do not surely gain beyond their control."""
    alone = sweep.report.comparisons.get(CALIBRATED, {}).get(sweep.measure)
    if alone is None or sweep.content is None:
        return False
    gained, content = alone.overall, sweep.content.overall
    return is_gain(gained) and not is_gain(content)


def is_worth_it(sweep: Sweep) -> bool:
    """Return whether the chosen setting surely gains."""
    return is_gain(sweep.gained)


def judge(
    measure: str, gained: Difference, questions: int, content: Difference | None = None, what: str = "xQG"
) -> str:
    """Return whether xQG is worth it, judged by its gain on questions not used for the choice.

    Args:
        measure: The name of the measure.
        gained: The gain over the plain vectors.
        questions: The number of questions.
        content: The gain over the control, if it was measured.
        what: What gains.
    """
    gain = describe_gain(measure, gained)
    few = questions < FEWEST_QUESTIONS
    asked = count_of(questions, "question")
    are = agree(questions, "is", "are")
    caveat = f" {asked} {are} too few to rely on; ask {FEWEST_QUESTIONS} or more." if few else ""
    if not is_sure(gained):
        width = max((gained.interval[1] - gained.interval[0]) / 2, LEAST_DETECTABLE)
        begins = "There are too few questions to tell" if few else f"Nothing shows that {what} is worth it here"
        return f"{begins}: {gain}. On {asked}, differences below about {width:.1f} points cannot be detected.{caveat}"
    if gained.points > 0:
        owed = f" {describe_content(gained, content)}" if content else ""
        return f"{what} is worth it here: {gain}.{owed}{caveat}"
    return f"{what} does harm here: {gain}. Search the plain vectors, or try another generator.{caveat}"


def is_sure(gained: Difference) -> bool:
    """Return whether a difference is significant."""
    return gained.p is not None and gained.p < SIGNIFICANT


def describe_gain(measure: str, gained: Difference) -> str:
    """Return a difference with its interval and p-value."""
    low, high = gained.interval
    p = "" if gained.p is None else f", p = {gained.p:.4f}"
    return f"{measure} {gained.points:+.2f} points, 95% interval {low:+.2f} to {high:+.2f}{p}"


def compare_encoders(encoder: str, first: str, measure: str, gained: Difference) -> str:
    """Return what xqg's vectors of an encoder gain over those of the first one, each with its best setting."""
    verdict = "no difference beyond chance" if not is_sure(gained) else "better" if gained.points > 0 else "worse"
    return f"xqg with {encoder} against {first}: {describe_gain(measure, gained)}: {verdict}."


def make_options(chosen: Setting, base: Setting) -> list[str]:
    """Return the options of `xqg retune` and `xqg ingest` that turn the base into the chosen setting."""
    options: list[str] = []
    if chosen.fusion != base.fusion:
        options += ["--fusion", chosen.fusion]
    if chosen.alpha != base.alpha:
        options += ["--alpha", repr(chosen.alpha)]
    if chosen.renormalise != base.renormalise:
        # Only vectors of one length can be calibrated.
        options += ["--renormalise"] if chosen.renormalise else ["--no-renormalise", "--no-calibrate"]
    if chosen.gamma != base.gamma and chosen.renormalise:
        options += ["--gamma", repr(chosen.gamma)] if chosen.gamma else ["--no-calibrate"]
    if chosen.min_score != base.min_score:
        options += ["--no-min-score"] if chosen.min_score is None else ["--min-score", repr(chosen.min_score)]
    if chosen.languages != base.languages and chosen.languages is not None:
        options += ["--languages", ",".join(chosen.languages)]
    if chosen.queries_per_language != base.queries_per_language:
        options += ["--queries-per-language", str(chosen.queries_per_language)]
    return options


def _row(label: str, found: Measured) -> str:
    low, high = found.interval
    figures = "".join(f"{figure:>7.2f}" for figure in found.values.per_language.values())
    return f"{label}{found.values.macro:>7.2f}{f'{low:.2f}–{high:.2f}':>16}{figures}"


def _label(setting: Setting, axis: str, base: Setting) -> str:
    """Return the value of a setting on its axis, or for a combination its differences from the base."""
    if not setting.alpha:
        return describe(setting)
    parts = []
    if axis == GAMMA:
        return f"gamma {setting.gamma:g}"
    if axis not in (LANGUAGES, FILTER):
        parts.append(_describe_weight(setting))
    if not axis and setting.gamma != base.gamma:
        parts.append(f"gamma {setting.gamma:g}")
    if axis == QUERIES or (not axis and setting.queries_per_language != base.queries_per_language):
        parts.append(f"{setting.queries_per_language} a language")
    if axis == LANGUAGES or (not axis and setting.languages != base.languages):
        parts.append(name_languages(setting.languages or (), base.languages or ()))
    if axis == FILTER or (not axis and setting.min_score != base.min_score):
        share = "" if setting.percentile is None else f" (without {setting.percentile}%)"
        parts.append("none" if setting.min_score is None else f"from {setting.min_score:g}{share}")
    return ", ".join(parts)


def _describe_weight(setting: Setting) -> str:
    scaled = " calibrated" if setting.gamma else " renormalised" if setting.renormalise else ""
    return f"{setting.fusion} {setting.alpha:g}{scaled}"


def save_sweep(
    folder: Path, manifest: Mapping[str, Any], bench: Bench, sweep: Sweep, pilot: Mapping[str, Any] | None = None
) -> None:
    """Write the results folder of a sweep, or of a pilot if its JSON values are given.

    Raises:
        InputError: Something else has the folder's name.
    """
    name, value = ("sweep.json", sweep.to_json()) if pilot is None else ("pilot.json", pilot)
    with new_results(folder, manifest, bench.queries, bench.qrels) as final:
        (final / name).write_text(f"{json.dumps(value, ensure_ascii=False, indent=2)}\n", encoding="utf-8")
