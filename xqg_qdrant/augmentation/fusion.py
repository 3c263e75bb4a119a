"""The fusion of a passage's vector with those of its generated queries, and which take part. Numpy only, no I/O.

Source of the formulas: Zhuang, Shou, Zuccon, "Augmenting Passage Representations with Query Generation for Enhanced
Cross-Lingual Dense Retrieval", SIGIR 2023: `E = (1 - alpha) * E(p) + alpha * sum_i E(q_i)`, scored by dot product.
Of the filter: Gospodinov, MacAvaney, Macdonald, "Doc2Query--: When Less is More", ECIR 2023; there a cross-encoder
judges which queries are relevant to their passage, here it is the encoder.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from xqg_qdrant.errors import InputError, ModelError
from xqg_qdrant.records import FloatArray

FUSIONS = ("sum", "mean")
PUBLISHED_ALPHA = 0.01


def fuse(
    passage: FloatArray, queries: FloatArray, alpha: float, fusion: str = "sum", renormalise: bool = False
) -> FloatArray:
    """Augment one passage vector.

    Args:
        passage: the passage's vector, shape `(dim,)`.
        queries: the vectors of its generated queries, shape `(n, dim)`; the mean of none leaves the passage as it is.
        alpha: the weight of the queries, from 0 to 1.
        fusion: `sum` as published; `mean` makes the weight independent of the number of queries.
        renormalise: give the result the length of the passage's vector. As published it is not: then a passage whose
            queries agree with each other is longer, and scores higher for any question.

    Returns:
        float32 array of shape `(dim,)`, computed in float64.

    Raises:
        InputError: alpha is out of its range, or the fusion is unknown.
    """
    check_fusion(alpha, fusion)
    if fusion == "mean" and len(queries) == 0:
        return passage
    total = queries.astype(np.float64).sum(axis=0)
    weighted = total if fusion == "sum" else total / len(queries)
    fused = (1 - alpha) * passage.astype(np.float64) + alpha * weighted
    length = np.linalg.norm(fused)
    if renormalise and length > 0:
        fused *= np.linalg.norm(passage.astype(np.float64)) / length
    with np.errstate(over="ignore"):  # what becomes infinite is the caller's to refuse
        result: FloatArray = fused.astype(np.float32)
    return result


def keep_relevant(passage: FloatArray, queries: FloatArray, min_score: float | None) -> FloatArray:
    """Return, in their order, the queries that are near enough to their passage.

    Args:
        passage: the passage's vector, shape `(dim,)`.
        queries: the vectors of its generated queries, shape `(n, dim)`.
        min_score: the least dot product with the passage's vector, computed in float64; None keeps all.

    Returns:
        array of shape `(kept, dim)`.
    """
    if min_score is None:
        return queries
    kept: FloatArray = queries[score_queries(passage, queries) >= min_score]
    return kept


def score_queries(passage: FloatArray, queries: FloatArray) -> npt.NDArray[np.float64]:
    """Return the dot products of queries, shape `(n, dim)`, with their passage, shape `(dim,)`, in float64."""
    # Not a product of matrices: there the last bits of a row may depend on how many there are.
    scores: npt.NDArray[np.float64] = (queries.astype(np.float64) * passage.astype(np.float64)).sum(axis=1)
    return scores


def check_fusion(alpha: float, fusion: str, min_score: float | None = None) -> None:
    """Refuse settings that `fuse` and `keep_relevant` cannot use.

    Raises:
        InputError: alpha is out of its range, the fusion is unknown, or the least score is no number.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must be between 0 and 1 (inclusive), was: {alpha}")
    if fusion not in FUSIONS:
        raise InputError(f"fusion must be one of {', '.join(FUSIONS)}, was: {fusion!r}")
    if min_score is not None and not math.isfinite(min_score):
        raise InputError(f"min_score must be a finite number, was: {min_score}")


def check_vectors(vectors: FloatArray, texts: int, dim: int) -> FloatArray:
    """Return what an encoder made of so many texts, one vector for each: one too many would move to another passage.

    Raises:
        ModelError: the array has another shape.
    """
    if vectors.shape != (texts, dim):
        cure = "export it again with xqg export"
        raise ModelError(f"the encoder made {vectors.shape} of {texts} texts, not {(texts, dim)}.", cure)
    return vectors


def find_fault(name: str, vectors: FloatArray) -> str:
    """Say why one of these vectors, shape `(n, dim)`, cannot be stored; empty where all can."""
    if not np.isfinite(vectors).all():
        return f"{name} is not finite"
    return "" if vectors.any(axis=1).all() else f"{name} is all zeros"
