"""Choose the generated queries that count, and fuse their vectors with the passage's.

The fusion is from Zhuang, Shou, Zuccon, "Augmenting Passage Representations with Query Generation for Enhanced
Cross-Lingual Dense Retrieval", SIGIR 2023: `E = (1 - alpha) * E(p) + alpha * sum_i E(q_i)`, scored by dot product.
The filter is from Gospodinov, MacAvaney, Macdonald, "Doc2Query--: When Less is More", ECIR 2023. There a cross-encoder
judges which queries are relevant to their passage; here the encoder does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xqg_qdrant.augmentation.calibration import unpack_mean
from xqg_qdrant.errors import InputError, ModelError
from xqg_qdrant.records import FloatArray
from xqg_qdrant.text import show

FUSIONS = ("sum", "mean")
PUBLISHED_ALPHA = 0.01


class Fusion(NamedTuple):
    """The settings that turn a passage's vector and its queries' vectors into one.

    Attributes:
        alpha: Weight of the queries, from 0 to 1.
        fusion: `sum` as published; `mean` makes the weight independent of the number of queries.
        renormalise: Scale the result to the length of the passage's vector. The paper does not: there, a passage whose
            queries agree with each other gets a longer vector, and scores higher for any question.
        min_score: Least dot product of a query with its passage; queries below it are excluded. None keeps all.
        gamma: Weight of the question bank's mean, which calibrates the result; 0 leaves it out.
        question_bank: SHA-256 of the bank, for the fingerprint.
        bank_mean: The bank's mean vector, from `calibration.pack_mean`.
    """

    alpha: float = PUBLISHED_ALPHA
    fusion: str = "sum"
    renormalise: bool = False
    min_score: float | None = None
    gamma: float = 0.0
    question_bank: str = ""
    bank_mean: str = ""


def make_plain(settings: Fusion) -> Fusion:
    """Return the settings of a passage without queries: its plain vector, calibrated if the others are."""
    return settings._replace(fusion="mean", min_score=None)


def check_fusion(settings: Fusion) -> None:
    """Refuse settings that cannot be used.

    Raises:
        InputError: alpha is out of range, the fusion is unknown, or the least score is not finite.
    """
    if not 0 <= settings.alpha <= 1:
        raise InputError(
            f"alpha must be between 0 and 1 (inclusive), was: {show(settings.alpha)}.",
            f"choose a number in this range, such as {PUBLISHED_ALPHA}",
        )
    if settings.fusion not in FUSIONS:
        raise InputError(
            f"fusion must be one of {', '.join(FUSIONS)}, was: {show(settings.fusion)}.",
            "choose sum for the published fusion, or mean",
        )
    if settings.min_score is not None and not math.isfinite(settings.min_score):
        raise InputError(
            f"min_score must be a finite number, was: {show(settings.min_score)}.",
            "choose a dot product, or leave it out to keep all queries",
        )
    if not (settings.gamma >= 0 and math.isfinite(settings.gamma)):
        raise InputError(
            f"gamma must be a finite number of at least 0, was: {show(settings.gamma)}.", "choose a number such as 0.5"
        )
    if settings.gamma and not settings.renormalise:
        raise InputError("calibration needs vectors of one length.", "use --renormalise, or --no-calibrate")


def augment_passage(passage: FloatArray, queries: FloatArray, settings: Fusion) -> tuple[FloatArray, int]:
    """Fuse a passage with those of its queries that are relevant.

    Args:
        passage: the passage's vector, shape `(dim,)`.
        queries: the vectors of its generated queries, shape `(n, dim)`.
        settings: which queries take part, and how they are fused.

    Returns:
        The augmented vector, float32 of shape `(dim,)`, and how many queries were filtered out.

    Raises:
        InputError: the settings cannot be used.
    """
    relevant = keep_relevant(passage, queries, settings.min_score)
    return fuse(passage, relevant, settings), len(queries) - len(relevant)


def augment_passages(
    passages: FloatArray, queries: Sequence[FloatArray], settings: Fusion
) -> tuple[FloatArray, list[int]]:
    """Do with each passage what `augment_passage` does; those without queries take one computation.

    Args:
        passages: the passages' vectors, shape `(n, dim)`.
        queries: of each passage, the vectors of its generated queries, shape `(m, dim)`.
        settings: as in `augment_passage`.

    Returns:
        The augmented vectors, float32 of shape `(n, dim)`, and how many queries of each were filtered out.

    Raises:
        InputError: the settings cannot be used.
    """
    augmented, filtered = np.empty(passages.shape, np.float32), [0] * len(passages)
    alone = [place for place, own in enumerate(queries) if len(own) == 0 and settings.fusion == "mean"]
    augmented[alone] = calibrate(passages[alone], settings)
    for place in sorted(set(range(len(passages))).difference(alone)):
        augmented[place], filtered[place] = augment_passage(passages[place], queries[place], settings)
    return augmented, filtered


def fuse(passage: FloatArray, queries: FloatArray, settings: Fusion) -> FloatArray:
    """Fuse a passage with all of these queries.

    Args:
        passage: the passage's vector, shape `(dim,)`.
        queries: the vectors of its generated queries, shape `(n, dim)`. With no queries, `mean` returns the passage.
        settings: all but `min_score` is used.

    Returns:
        float32 array of shape `(dim,)`, computed in float64.

    Raises:
        InputError: the settings cannot be used.
    """
    if settings.fusion == "mean" and len(queries) == 0:
        calibrated: FloatArray = calibrate(passage[None], settings)[0]
        return calibrated
    check_fusion(settings)
    total = queries.astype(np.float64).sum(axis=0)
    weighted = total if settings.fusion == "sum" else total / len(queries)
    fused = (1 - settings.alpha) * passage.astype(np.float64) + settings.alpha * weighted
    if settings.renormalise:
        fused = _scale(fused, float(np.linalg.norm(passage.astype(np.float64))))
    return _to_float32(_calibrate(fused[None], settings)[0] if settings.gamma else fused)


def calibrate(passages: FloatArray, settings: Fusion) -> FloatArray:
    """Return what the fusion `mean` makes of passages without queries; no row depends on the others.

    Args:
        passages: the vectors of passages, shape `(n, dim)`.
        settings: as for `fuse`; without `gamma` the vectors stay as they are.

    Returns:
        float32 array of shape `(n, dim)`, computed in float64.

    Raises:
        InputError: the settings cannot be used.
    """
    check_fusion(settings)
    return _to_float32(_calibrate(passages.astype(np.float64), settings)) if settings.gamma else passages


def _calibrate(fused: npt.NDArray[np.float64], settings: Fusion) -> npt.NDArray[np.float64]:
    """Add the bank's mean to the unit vectors, and return the sums with the lengths that the vectors had."""
    lengths = _measure(fused)
    moved = fused / np.where(lengths > 0, lengths, 1.0)
    moved += settings.gamma * unpack_mean(settings.bank_mean)
    present = _measure(moved)
    moved *= lengths / np.where(present > 0, present, 1.0)
    return moved


def _measure(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the lengths of vectors, shape `(n, 1)`."""
    # Not a product of matrices, as in `score_queries`.
    lengths: npt.NDArray[np.float64] = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
    return lengths


def _scale(vector: npt.NDArray[np.float64], length: float) -> npt.NDArray[np.float64]:
    present = np.linalg.norm(vector)
    return vector * (length / present) if present > 0 else vector


def _to_float32(vector: npt.NDArray[np.float64]) -> FloatArray:
    with np.errstate(over="ignore"):  # callers refuse infinite vectors
        result: FloatArray = vector.astype(np.float32)
    return result


def keep_relevant(passage: FloatArray, queries: FloatArray, min_score: float | None) -> FloatArray:
    """Return the queries whose score reaches the least one, in order.

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
    """Return the float64 dot products of queries, shape `(n, dim)`, with their passage, shape `(dim,)`."""
    # Not a matrix product: there the last bits of a row may depend on the number of rows.
    scores: npt.NDArray[np.float64] = (queries.astype(np.float64) * passage.astype(np.float64)).sum(axis=1)
    return scores


def check_vectors(vectors: FloatArray, texts: int, dim: int) -> FloatArray:
    """Return an encoder's vectors if there is one for each text.

    One vector too many would shift the following ones to the wrong passages.

    Raises:
        ModelError: the array's shape is not `(texts, dim)`.
    """
    if vectors.shape != (texts, dim):
        raise ModelError(
            f"the encoder returned vectors of shape {vectors.shape} for {texts} texts, not {(texts, dim)}.",
            "export it again with xqg export",
        )
    return vectors


def find_faults(name: str, vectors: FloatArray) -> list[str]:
    """Return why each of these vectors, shape `(n, dim)`, cannot be stored; empty if it can."""
    finite, filled = np.isfinite(vectors).all(axis=1), vectors.any(axis=1)
    if finite.all() and filled.all():
        return [""] * len(vectors)
    faults = np.where(finite, np.where(filled, "", f"{name} is all zeros"), f"{name} is not finite")
    found: list[str] = faults.tolist()
    return found
