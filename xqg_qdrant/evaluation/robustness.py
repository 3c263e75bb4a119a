"""Does the ranking follow the meaning of a question? Pairs of sentences as PAWS-X has them → a report.

Of a paraphrase both sentences should find the same passages; of a near-miss, which says another thing in the same
words, they should not. How much two rankings agree is told by the share of passages among the first ten of both, and
by rank-biased overlap (Webber, Moffat and Zobel 2010, A similarity measure for indefinite rankings). How well the two
kinds of pairs are told apart is told by the area under the ROC curve of that agreement, with the test and the interval
of DeLong, DeLong and Clarke-Pearson 1988. Knows nothing of passages beyond their ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import erfc, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xqg_qdrant.corpus.datasets import language_in_name
from xqg_qdrant.corpus.files import existing_file
from xqg_qdrant.corpus.formats import tsv_rows
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.comparison import (
    UNKNOWN_LANGUAGE,
    Comparison,
    Difference,
    Report,
    Values,
    average,
    make_report,
)
from xqg_qdrant.evaluation.results import VALUES, new_results
from xqg_qdrant.evaluation.significance import adjust_by_holm
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import Query
from xqg_qdrant.retrieval import search
from xqg_qdrant.stores.protocol import Store
from xqg_qdrant.text import is_blank

RANKED = 100
PERSISTENCE = 0.9
"""The weight of each rank in rank-biased overlap against that of the rank before; the first ten have 86% of it all."""
AT = 10
PAIRS_FILE = "test_2k.tsv"
NOT_TRANSLATED = "NS"
PAIRS_AT_ONCE = 32
VECTORS = ("passage", "xqg")
AREA = "AUC of "
KINDS = {True: "of paraphrases", False: "of near-misses"}


class Pair(NamedTuple):
    """Two sentences, and whether they mean the same; `pair_id` is where they stand."""

    pair_id: str
    language: str
    first: str
    second: str
    is_paraphrase: bool


class Agreement(NamedTuple):
    """How much the rankings of a pair agree, by each measure, from 0 to 1; for each named vector."""

    pair: Pair
    values: Mapping[str, Mapping[str, float]]


def read_pairs(sources: Sequence[str | Path], language: str = "") -> tuple[list[Pair], int]:
    """Read pairs from TSV files with the columns `id`, `sentence1`, `sentence2` and `label` (1 is a paraphrase).

    Args:
        sources: The files; as `LANGUAGE/test_2k.tsv` they tell their language.
        language: The language of those that do not.

    Returns:
        The pairs, and how many were left out because a sentence is `NS`: PAWS-X could not translate it.

    Raises:
        InputError: A file or one of its rows cannot be used.
    """
    pairs: list[Pair] = []
    left_out = 0
    for source in sources:
        file = str(existing_file(source, PAIRS_FILE))
        code = language_in_name(file) or language or UNKNOWN_LANGUAGE
        count = len(pairs) + left_out
        for row in tsv_rows(file, ("sentence1",), ("label",)):
            where = f"{file}, line {row.line}"
            first, second, label = (row.fields.get(name, "") for name in ("sentence1", "sentence2", "label"))
            problem = row.problem
            if not problem and label not in ("0", "1"):
                problem = f"the label is {label!r}, neither 0 nor 1"
            if not problem and (is_blank(first) or is_blank(second)):
                problem = "a sentence is empty"
            if problem:
                raise InputError(f"{where}: {problem}.", "correct or remove this row.")
            if NOT_TRANSLATED in (first.strip(), second.strip()):
                left_out += 1
            else:
                pairs.append(Pair(where, code, first, second, label == "1"))
        if len(pairs) + left_out == count:
            raise InputError(f"{file}: holds no pairs.", "give a TSV file with sentence1, sentence2 and label.")
    return pairs, left_out


def compare_rankings(store: Store, collection: str, encoder: Encoder, pairs: Iterable[Pair]) -> Iterator[Agreement]:
    """Search for both sentences of each pair, and yield how much the rankings agree; the rankings are not kept."""
    remaining = iter(pairs)
    while batch := list(islice(remaining, PAIRS_AT_ONCE)):
        sentences = [sentence for pair in batch for sentence in (pair.first, pair.second)]
        found = search(store, collection, encoder, sentences, RANKED, VECTORS)
        for number, pair in enumerate(batch):
            values = {}
            for name in VECTORS:
                first, second = ([hit.passage.passage_id for hit in found[name][2 * number + n]] for n in (0, 1))
                values[name] = {"RBO": rank_biased_overlap(first, second), f"overlap@{AT}": overlap(first, second)}
            yield Agreement(pair, values)


def rank_biased_overlap(first: Sequence[str], second: Sequence[str], persistence: float = PERSISTENCE) -> float:
    """Return how much two rankings of one length agree, from 0 to 1, the first ranks counting most.

    This is the extrapolated form, RBO_ext: beyond the last rank the agreement is taken to stay as it is there.

    >>> round(rank_biased_overlap(["a", "b", "c"], ["a", "c", "b"]), 6)
    0.955
    """
    if not first:
        return 1.0
    seen: tuple[set[str], set[str]] = (set(), set())
    shared, weight, total, agreement = 0, 1.0, 0.0, 0.0
    for depth, (one, other) in enumerate(zip(first, second, strict=True), start=1):
        seen[0].add(one)
        seen[1].add(other)
        shared += (one in seen[1]) + (other in seen[0]) - (one == other)
        agreement = shared / depth
        total += weight * agreement
        weight *= persistence
    return (1 - persistence) * total + weight * agreement


def overlap(first: Sequence[str], second: Sequence[str], k: int = AT) -> float:
    """Return the share of passages that are among the first k of both rankings.

    >>> overlap(["a", "b", "c"], ["c", "d", "a"], 2)
    0.0
    """
    k = min(k, len(first))
    return len(set(first[:k]) & set(second[:k])) / k if k else 1.0


def report_agreements(agreements: Iterable[Agreement], left_out: int = 0) -> Report:
    """Report, for the plain and the augmented vectors, how much paraphrases agree, near-misses agree, and the AUC.

    Raises:
        InputError: There are no pairs.
    """
    languages: dict[str, str] = {}
    shares: dict[str, dict[str, dict[str, float]]] = {name: {} for name in VECTORS}
    for pair, agreed in agreements:
        languages[pair.pair_id] = pair.language
        for name, measures in agreed.items():
            for measure, value in measures.items():
                shares[name].setdefault(f"{measure} {KINDS[pair.is_paraphrase]}", {})[pair.pair_id] = 100 * value
    if not languages:
        raise InputError(f"no pair is left: all {left_out} are {NOT_TRANSLATED}.", "give another file.")
    notes = ["paraphrases should agree much and near-misses little; AUC is how often a paraphrase agrees more"]
    if left_out:
        notes.append(f"pairs left out because a sentence is {NOT_TRANSLATED}, not translated: {left_out}")
    values = {
        name: {measure: average(by_pair, languages) for measure, by_pair in of.items()} for name, of in shares.items()
    }
    report = make_report(languages, values, notes=notes)
    return _with_separation(report, languages, shares)


def save_robustness(folder: Path, manifest: Mapping[str, Any], pairs: Iterable[Pair], report: Report) -> None:
    """Write a results folder: the report in `robustness.json`, and a pair as a question of two lines.

    `values.json` has no areas: what a pair adds to one cannot be compared as the values of questions are.

    Raises:
        InputError: Something else has the folder's name.
    """
    queries = [Query(pair.pair_id, f"{pair.first}\n{pair.second}", pair.language) for pair in pairs]
    values = {
        run: {measure: found.per_query for measure, found in measures.items() if not measure.startswith(AREA)}
        for run, measures in report.values.items()
    }
    files = {VALUES: values, "robustness.json": {"report": report.to_json(), "notes": report.notes}}
    with new_results(folder, manifest, queries) as final:
        for name, value in files.items():
            (final / name).write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _with_separation(
    report: Report, languages: Mapping[str, str], shares: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> Report:
    """Add the areas under the ROC curves, for the languages that have at least two pairs of either kind."""
    values = {name: dict(measures) for name, measures in report.values.items()}
    comparisons = {name: dict(measures) for name, measures in report.comparisons.items()}
    for measure in ("RBO", f"overlap@{AT}"):
        placements: dict[str, dict[str, tuple[dict[str, float], dict[str, float]]]] = {}
        for name in VECTORS:
            kinds = [shares[name].get(f"{measure} {kind}", {}) for kind in KINDS.values()]
            for language in sorted(set(languages.values())):
                same, other = ({id_: v for id_, v in of.items() if languages[id_] == language} for of in kinds)
                if len(same) > 1 and len(other) > 1:
                    placements.setdefault(language, {})[name] = place(same, other)
        if not placements:
            continue
        title = f"{AREA}{measure}"
        for name in VECTORS:
            areas = {language: fmean(found[name][0].values()) for language, found in placements.items()}
            per_pair = {id_: v for found in placements.values() for kind in found[name] for id_, v in kind.items()}
            values[name][title] = Values(fmean(areas.values()), areas, per_pair)
        comparisons[VECTORS[1]][title] = compare_areas(placements)
    return Report(report.questions, values, comparisons, report.notes)


def place(same: Mapping[str, float], other: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return of each paraphrase the share of near-misses below it, and of each near-miss that of paraphrases above.

    In percent; equal values count half. The mean of either is the area under the ROC curve.
    """

    def shares_below(values: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        ordered = np.sort(others)
        found = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
        return 50 * found / len(others)

    above, below = (np.round(list(of.values()), 9) for of in (same, other))
    return (
        dict(zip(same, shares_below(above, below).tolist(), strict=True)),
        dict(zip(other, shares_below(-below, -above).tolist(), strict=True)),
    )


def compare_areas(
    placements: Mapping[str, Mapping[str, tuple[dict[str, float], dict[str, float]]]],
) -> Comparison:
    """Compare the areas of the augmented vectors with those of the plain ones, in each language and on average."""
    per_language: dict[str, Difference] = {}
    variances = []
    total = [0, 0, 0]
    for language, found in placements.items():
        gains = [
            np.array([found[VECTORS[1]][kind][id_] - before for id_, before in found[VECTORS[0]][kind].items()])
            for kind in (0, 1)
        ]
        variances.append(sum(float(np.var(of, ddof=1)) / len(of) for of in gains))
        both = np.concatenate(gains)
        counts = [int(np.sum(both > 0)), int(np.sum(both < 0)), int(np.sum(both == 0))]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        per_language[language] = _difference(float(np.mean(gains[0])), counts, variances[-1])
    adjusted = adjust_by_holm([found.p for found in per_language.values() if found.p is not None])
    for (language, difference), p in zip(per_language.items(), adjusted, strict=True):
        per_language[language] = difference._replace(p_holm=p)
    macro = fmean(found.points for found in per_language.values())
    return Comparison(_difference(macro, total, sum(variances) / len(variances) ** 2), per_language)


def _difference(points: float, counts: Sequence[int], variance: float) -> Difference:
    error = sqrt(variance)
    p = erfc(abs(points) / error / sqrt(2)) if error else float(points == 0)
    won, lost, tied = counts
    return Difference(points, won, lost, tied, (points - 1.959964 * error, points + 1.959964 * error), p)
