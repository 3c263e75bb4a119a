"""Baselines for augmented vectors, searched exactly in memory.

`calibrated` is the plain vectors with the collection's calibration, or the default one. `control` puts the mean of the
collection's generated queries in the place of each query: same fusion, same weight, no content. `centred` subtracts the
corpus mean from the plain vectors and each language's mean from its questions. `passage-hybrid` is a hybrid search
without generated queries: plain vectors, and the terms of each passage's title and text. All are for evaluation only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from xqg_qdrant.augmentation.calibration import DEFAULT_GAMMA
from xqg_qdrant.augmentation.fusion import fuse
from xqg_qdrant.augmentation.recipe import Recipe, add_bank, read_recipe
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.sweep.vectors import StoredVectors
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.records import FloatArray, Passage, Query, ScoredPassage
from xqg_qdrant.retrieval import CANDIDATES, fuse_scores
from xqg_qdrant.stores import read_existing_fingerprint
from xqg_qdrant.stores.protocol import Store
from xqg_qdrant.streams import Bars
from xqg_qdrant.text import find_term_ids

CALIBRATED, CONTROL, CENTRED, PASSAGE_HYBRID = "calibrated", "control", "centred", "passage-hybrid"
BASELINES = (CALIBRATED, CONTROL, CENTRED, PASSAGE_HYBRID)
MOST_PASSAGES = 200_000
SAMPLED_QUERIES = 1000
QUESTIONS_AT_ONCE = 256

Run = dict[str, list[ScoredPassage]]


def search_baselines(
    names: Sequence[str],
    store: Store,
    collection: str,
    encoder: TextEncoder,
    queries: Sequence[Query],
    limit: int,
    bars: Bars,
) -> dict[str, Run]:
    """Return the run of each baseline: the `limit` best passages by query id.

    The hits of all runs share their passages.

    Raises:
        InputError: the collection is too large for a search in memory, has no generated queries, or its encoder cannot
            be calibrated.
    """
    if not names:
        return {}
    count = store.count(collection)
    if count > MOST_PASSAGES:
        raise InputError(
            f"collection {collection!r} has {count} passages, too many for {', '.join(names)} in memory.",
            f"leave out {' and '.join(names)}, or evaluate a sample of at most {MOST_PASSAGES} passages",
        )
    stored = StoredVectors(Path())
    with bars(count, " passages read") as bar:
        for read in stored.read(store, collection):
            bar.update(read)
    fingerprint = read_existing_fingerprint(store, collection)
    questions = encoder.encode_queries([query.text for query in queries])
    runs = {}
    for name in names:
        if name == CALIBRATED:
            found = _search(stored, calibrate_plain(stored.plain, read_recipe(fingerprint), encoder), questions, limit)
        elif name == CONTROL:
            found = _search(stored, _make_control(stored, read_recipe(fingerprint), encoder), questions, limit)
        elif name == CENTRED:
            centred = centre_by_language(questions, [query.language for query in queries])
            found = _search(stored, _centre(stored.plain), centred, limit)
        else:
            found = _search_hybrid(stored, questions, queries, limit)
        runs[name] = dict(zip((query.query_id for query in queries), found, strict=True))
    return runs


def calibrate_plain(plain: FloatArray, recipe: Recipe, encoder: TextEncoder) -> FloatArray:
    """Return plain vectors, shape `(n, dim)`, calibrated as by the recipe, or with the shipped bank.

    Raises:
        InputError: the recipe does not calibrate and the encoder is not normalised or can read no language of the bank.
    """
    if not recipe.gamma and not encoder.describe()["normalise"]:
        raise InputError("vectors of a raw dot-product encoder cannot be calibrated.", f"leave out {CALIBRATED}")
    settings = add_bank(recipe, encoder)._replace(fusion="mean", renormalise=True).fusion_settings
    settings = settings._replace(gamma=recipe.gamma or DEFAULT_GAMMA)
    none = np.empty((0, plain.shape[1]), dtype=np.float32)
    return np.stack([fuse(vector, none, settings) for vector in plain])


def _make_control(stored: StoredVectors, recipe: Recipe, encoder: TextEncoder) -> FloatArray:
    mean, settings = mean_query(stored, encoder), recipe.fusion_settings
    counts = map(len, stored.queries)
    return np.stack([
        fuse(plain, np.tile(mean, (count, 1)), settings) for plain, count in zip(stored.plain, counts, strict=True)
    ])  # fmt: skip


def mean_query(stored: StoredVectors, encoder: TextEncoder) -> FloatArray:
    """Return the mean vector of the stored queries, float32 of shape `(dim,)`, from an even sample of them.

    Raises:
        InputError: no passage has a query.
    """
    texts = [query.text for queries in stored.queries for query in queries]
    if not texts:
        raise InputError("the passages have no generated queries to take the mean of.", f"leave out {CONTROL}")
    sample = texts[:: -(-len(texts) // SAMPLED_QUERIES)]
    mean: FloatArray = encoder.encode_queries(sample).astype(np.float64).mean(axis=0).astype(np.float32)
    return mean


def _centre(plain: FloatArray) -> FloatArray:
    passages = plain - plain.mean(axis=0)
    # A passage at the mean itself keeps its zeros.
    centred: FloatArray = passages / np.maximum(np.linalg.norm(passages, axis=1, keepdims=True), np.float32(1e-12))
    return centred


def centre_by_language(vectors: FloatArray, languages: Sequence[str]) -> FloatArray:
    """Return vectors, shape `(n, dim)`, minus the mean of those in the same language."""
    centred, codes = vectors.copy(), np.array(languages)
    for language in set(languages):
        centred[codes == language] -= vectors[codes == language].mean(axis=0)
    return centred


def _search(
    stored: StoredVectors, passages: FloatArray, questions: FloatArray, limit: int
) -> Iterator[list[ScoredPassage]]:
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        for scores in questions[start : start + QUESTIONS_AT_ONCE] @ passages.T:
            yield _take_best(stored, scores, limit)


def _search_hybrid(
    stored: StoredVectors, questions: FloatArray, queries: Sequence[Query], limit: int
) -> Iterator[list[ScoredPassage]]:
    candidates = max(limit, CANDIDATES)
    terms = TermIndex(stored.passages)
    for query, by_vector in zip(queries, _search(stored, stored.plain, questions, candidates), strict=True):
        by_terms = _take_best(stored, terms.score(query.text), candidates + 1, least=0.0)
        # As in a store: of hits with equal scores, all are returned or none.
        cut = by_terms[candidates].score if len(by_terms) > candidates else 0.0
        yield fuse_scores(by_vector, [hit for hit in by_terms if hit.score > cut], limit)


class TermIndex:
    """The terms of passages, scored as by Qdrant's sparse vectors with the modifier IDF."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        found: dict[int, list[int]] = {}
        for place, passage in enumerate(passages):
            for term in find_term_ids([passage.title, passage.text]):
                found.setdefault(term, []).append(place)
        self._count = len(passages)
        self._places = {term: np.array(places) for term, places in found.items()}

    def score(self, question: str) -> npt.NDArray[np.float64]:
        """Return the sum of the weights of the terms that each passage shares with a question."""
        scores = np.zeros(self._count)
        for term in find_term_ids([question]):
            places = self._places.get(term)
            if places is not None:
                scores[places] += np.log((self._count - len(places) + 0.5) / (len(places) + 0.5) + 1)
        return scores


def _take_best(
    stored: StoredVectors, scores: npt.NDArray[np.floating], limit: int, least: float = -np.inf
) -> list[ScoredPassage]:
    """Return the passages with the highest scores above `least`."""
    # Stable, so that ties go to the lower id, as in a store.
    best = np.argsort(-scores, kind="stable")[:limit]
    return [
        ScoredPassage(stored.passages[place], float(scores[place]), stored.queries[place])
        for place in best
        if scores[place] > least
    ]
