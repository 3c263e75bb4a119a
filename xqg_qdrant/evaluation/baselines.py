"""Baselines for augmented vectors, searched exactly in memory: what a gain owes to content, and what centring gives.

`control` puts the mean of the collection's generated queries in the place of each passage's own: same fusion, same
weight, no content. `centred` subtracts the corpus mean from the plain vectors and each language's mean from its
questions. Both are for evaluation only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xqg_qdrant.augmentation.fusion import fuse
from xqg_qdrant.augmentation.recipe import read_recipe
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.sweep.vectors import StoredVectors
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import FloatArray, Query, ScoredPassage
from xqg_qdrant.stores import read_existing_fingerprint
from xqg_qdrant.stores.protocol import Store
from xqg_qdrant.streams import Bars

CONTROL, CENTRED = "control", "centred"
BASELINES = (CONTROL, CENTRED)
MOST_PASSAGES = 200_000
SAMPLED_QUERIES = 1000
QUESTIONS_AT_ONCE = 256


def search_baseline(
    name: str, store: Store, collection: str, encoder: Encoder, queries: Sequence[Query], limit: int, bars: Bars
) -> dict[str, list[ScoredPassage]]:
    """Return the run of a baseline: the `limit` best passages by query id.

    Raises:
        InputError: the collection is too large for a search in memory, or has no generated queries.
    """
    count = store.count(collection)
    if count > MOST_PASSAGES:
        raise InputError(
            f"collection {collection!r} has {count} passages, too many for {name} in memory.",
            f"leave out {name}, or evaluate a sample of at most {MOST_PASSAGES} passages",
        )
    stored = StoredVectors(Path())
    with bars(count, " passages read") as bar:
        for read in stored.read(store, collection):
            bar.update(read)
    questions = encoder.encode_queries([query.text for query in queries])
    if name == CONTROL:
        recipe = read_recipe(read_existing_fingerprint(store, collection))
        mean = mean_query(stored, encoder)[None]
        passages = np.stack([fuse(plain, mean, recipe.fusion_settings) for plain in stored.plain])
    else:
        passages = stored.plain - stored.plain.mean(axis=0)
        # A passage at the mean itself keeps its zeros.
        passages = passages / np.maximum(np.linalg.norm(passages, axis=1, keepdims=True), np.float32(1e-12))
        questions = centre_by_language(questions, [query.language for query in queries])
    return _search(stored, passages, questions, queries, limit)


def mean_query(stored: StoredVectors, encoder: Encoder) -> FloatArray:
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


def centre_by_language(vectors: FloatArray, languages: Sequence[str]) -> FloatArray:
    """Return vectors, shape `(n, dim)`, minus the mean of those in the same language."""
    centred, codes = vectors.copy(), np.array(languages)
    for language in set(languages):
        centred[codes == language] -= vectors[codes == language].mean(axis=0)
    return centred


def _search(
    stored: StoredVectors, passages: FloatArray, questions: FloatArray, queries: Sequence[Query], limit: int
) -> dict[str, list[ScoredPassage]]:
    found = {}
    for start in range(0, len(queries), QUESTIONS_AT_ONCE):
        scores = questions[start : start + QUESTIONS_AT_ONCE] @ passages.T
        # Stable, so that ties go to the lower id, as in a store.
        best = np.argsort(-scores, axis=1, kind="stable")[:, :limit]
        for query, row, places in zip(queries[start : start + QUESTIONS_AT_ONCE], scores, best, strict=True):
            found[query.query_id] = [
                ScoredPassage(stored.passages[place], float(row[place]), stored.queries[place]) for place in places
            ]
    return found
