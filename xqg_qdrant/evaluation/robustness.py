"""Measure whether rankings follow the meaning of a question, on pairs of sentences as in PAWS-X.

The two sentences of a paraphrase should find the same passages. Those of a near-miss, which says something else in the
same words, should not. The area under the ROC curve of the agreement measures how well it separates the two kinds; its
test and interval are those of DeLong, DeLong and Clarke-Pearson 1988.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from xqg_qdrant.corpus.datasets import language_in_name
from xqg_qdrant.corpus.files import existing_file
from xqg_qdrant.corpus.tables import table_rows
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation import comparison
from xqg_qdrant.evaluation.comparison import Comparison, Difference, Report, Values
from xqg_qdrant.evaluation.measures import OVERLAP_AT, overlap, rank_biased_overlap
from xqg_qdrant.evaluation.results import VALUES, new_results
from xqg_qdrant.evaluation.significance import Shares, normal_test, place
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.records import Query
from xqg_qdrant.retrieval import search
from xqg_qdrant.stores.protocol import Store
from xqg_qdrant.text import is_blank

RANKED = 100
PAIRS_FILE = "test_2k.tsv"
NOT_TRANSLATED = "NS"
PAIRS_AT_ONCE = 32
VECTORS = ("passage", "xqg")
AGREEMENTS: Mapping[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "RBO": rank_biased_overlap,
    f"overlap@{OVERLAP_AT}": overlap,
}
AREA = "AUC of "
KINDS = {True: "of paraphrases", False: "of near-misses"}


class Pair(NamedTuple):
    """Two sentences, and whether they mean the same; `pair_id` is the file and the line."""

    pair_id: str
    language: str
    first: str
    second: str
    is_paraphrase: bool


class Agreement(NamedTuple):
    """How much the rankings of a pair agree, from 0 to 1, by named vector and measure."""

    pair: Pair
    values: Mapping[str, Mapping[str, float]]


def read_pairs(sources: Sequence[str | Path], language: str = "") -> tuple[list[Pair], int]:
    """Read pairs from TSV files with the columns `id`, `sentence1`, `sentence2` and `label` (1 is a paraphrase).

    Args:
        sources: The files; a path `LANGUAGE/test_2k.tsv` names the language.
        language: The language of the other files.

    Returns:
        The pairs, and how many were left out because a sentence is `NS`: PAWS-X could not translate it.

    Raises:
        InputError: A file or one of its rows cannot be used.
    """
    pairs: list[Pair] = []
    left_out = 0
    for source in sources:
        file = str(existing_file(source, PAIRS_FILE))
        code = language_in_name(file) or language or comparison.UNKNOWN_LANGUAGE
        count = len(pairs) + left_out
        for row in table_rows(file, ("sentence1",), ("label",)):
            first, second, label = (row.fields.get(name, "") for name in ("sentence1", "sentence2", "label"))
            problem = row.problem
            if not problem and label not in ("0", "1"):
                problem = f"the label is {label!r}, neither 0 nor 1"
            if not problem and (is_blank(first) or is_blank(second)):
                problem = "a sentence is empty"
            if problem:
                raise InputError(f"{file}, line {row.line}: {problem}.", "correct or remove this row")
            if NOT_TRANSLATED in (first.strip(), second.strip()):
                left_out += 1
            else:
                pairs.append(Pair(f"{file}, line {row.line}", code, first, second, label == "1"))
        if len(pairs) + left_out == count:
            raise InputError(
                f"{file}: no pairs.", "give a TSV file with the columns id, sentence1, sentence2 and label"
            )
    return pairs, left_out


def compare_rankings(store: Store, collection: str, encoder: TextEncoder, pairs: Iterable[Pair]) -> Iterator[Agreement]:
    """Search for both sentences of each pair, and yield how much the rankings agree."""
    remaining = iter(pairs)
    while batch := list(islice(remaining, PAIRS_AT_ONCE)):
        sentences = [sentence for pair in batch for sentence in (pair.first, pair.second)]
        found = search(store, collection, encoder, sentences, RANKED, VECTORS)
        ids = {name: [[hit.passage.passage_id for hit in hits] for hits in found[name]] for name in VECTORS}
        for number, pair in enumerate(batch):
            ranked = {name: ids[name][2 * number : 2 * number + 2] for name in VECTORS}
            yield Agreement(pair, {n: {m: agree(*two) for m, agree in AGREEMENTS.items()} for n, two in ranked.items()})


def report_agreements(agreements: Iterable[Agreement], left_out: int = 0) -> Report:
    """Report the agreement of paraphrases and of near-misses, and the AUC, for plain and augmented vectors.

    Raises:
        InputError: There are no pairs.
    """
    languages: dict[str, str] = {}
    shares: dict[str, dict[str, Shares]] = {name: {} for name in VECTORS}
    for pair, agreed in agreements:
        languages[pair.pair_id] = pair.language
        for name, measures in agreed.items():
            for measure, value in measures.items():
                shares[name].setdefault(f"{measure} {KINDS[pair.is_paraphrase]}", {})[pair.pair_id] = 100 * value
    if not languages:
        raise InputError(f"no pairs: all {left_out} are {NOT_TRANSLATED}, not translated.", "give another --pairs file")
    notes = ["paraphrases should agree much and near-misses little; AUC is how often a paraphrase agrees more"]
    if left_out:
        notes.append(f"pairs left out because a sentence is {NOT_TRANSLATED}, not translated: {left_out}")
    values = {
        name: {key: comparison.average(of, languages) for key, of in kinds.items()} for name, kinds in shares.items()
    }
    report = comparison.make_report(languages, values, notes=notes)
    compared = dict(report.comparisons[VECTORS[1]])
    for measure in AGREEMENTS:
        if placements := _place_all(measure, languages, shares):
            for name in VECTORS:
                areas = {language: fmean(found[name][0].values()) for language, found in placements.items()}
                per_pair = {id_: v for found in placements.values() for kind in found[name] for id_, v in kind.items()}
                values[name][AREA + measure] = Values(fmean(areas.values()), areas, per_pair)
            compared[AREA + measure] = compare_areas(placements)
    return Report(report.questions, values, {VECTORS[1]: compared}, report.notes)


def save_robustness(folder: Path, manifest: Mapping[str, Any], pairs: Iterable[Pair], report: Report) -> None:
    """Write a results folder: the report in `robustness.json`, and each pair as a question of two lines.

    `values.json` has no areas: the part of a pair in an area cannot be compared like the value of a question.

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


def _place_all(
    measure: str, languages: Mapping[str, str], shares: Mapping[str, Mapping[str, Shares]]
) -> dict[str, dict[str, tuple[Shares, Shares]]]:
    """Return the placements by language and vector, for languages with at least two pairs of either kind."""
    found: dict[str, dict[str, tuple[Shares, Shares]]] = {}
    for language in sorted(set(languages.values())):
        for name in VECTORS:
            kinds = (shares[name].get(f"{measure} {kind}", {}) for kind in KINDS.values())
            same, other = ({id_: v for id_, v in of.items() if languages[id_] == language} for of in kinds)
            if len(same) > 1 and len(other) > 1:
                found.setdefault(language, {})[name] = place(same, other)
    return found


def compare_areas(placements: Mapping[str, Mapping[str, tuple[Shares, Shares]]]) -> Comparison:
    """Compare the areas of the augmented vectors with those of the plain ones, in each language and on average."""
    per_language: dict[str, Difference] = {}
    variances, gained = [], []
    for language, found in placements.items():
        plain, augmented = (found[name] for name in VECTORS)
        gains = [np.array([augmented[kind][id_] - v for id_, v in plain[kind].items()]) for kind in (0, 1)]
        variances.append(sum(float(np.var(of, ddof=1)) / len(of) for of in gains))
        gained.append(np.concatenate(gains))
        per_language[language] = _difference(float(np.mean(gains[0])), gained[-1], variances[-1])
    macro = fmean(found.points for found in per_language.values())
    overall = _difference(macro, np.concatenate(gained), sum(variances) / len(variances) ** 2)
    return Comparison(overall, comparison.adjust_languages(per_language))


def _difference(points: float, gains: npt.NDArray[np.float64], variance: float) -> Difference:
    won, lost, tied = (int(np.sum(of)) for of in (gains > 0, gains < 0, gains == 0))
    return Difference(points, won, lost, tied, *normal_test(points, variance))
