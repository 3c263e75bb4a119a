"""Check that an encoder made the vectors of another program's collection, before questions are added to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xqg_qdrant.augmentation.fusion import check_vectors
from xqg_qdrant.errors import InputError, MismatchError
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.records import Passage, QueriedPassage, Reject
from xqg_qdrant.text import count_of

COMPARED = 20
# Of every try that fails, only these: most tries fail.
FIRST_COMPARED = 3
LEAST_COSINE = 0.99
SAME_COSINE = 0.9999
# A passage cut at another length, or edited since, is no other model.
LEAST_SHARE = 0.9
# Lengths are compared where dot products are.
LENGTH_TOLERANCE = 0.02

TEMPLATES = ("{title} {text}", "{text}", "{title}\n{text}", "{title}\n\n{text}", "{title}: {text}", "{title}. {text}")
PREFIXES = ("", "passage: ", "query: ", "search_document: ", "title: none | text: ")


class Fit(NamedTuple):
    """How near an encoder comes to stored vectors.

    Attributes:
        template: How title and text were joined.
        prefix: What stood before them.
        cosines: With the stored vector, of each compared passage.
        lengths: Of the encoder's vectors, divided by those of the stored ones.
    """

    template: str
    prefix: str
    cosines: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.float64]

    @property
    def good(self) -> bool:
        """Return whether the encoder made the vectors."""
        return float((self.cosines >= LEAST_COSINE).mean()) >= LEAST_SHARE

    def __str__(self) -> str:
        figures = f"cosine {np.median(self.cosines):.4f} (median), {self.cosines.min():.4f} (lowest)"
        passages = count_of(len(self.cosines), "passage")
        return f"{figures} over {passages}, with the prefix {self.prefix!r} and {self.template!r}"


def check_space(
    rows: Iterable[Passage | QueriedPassage | Reject], encoder: TextEncoder, dim: int, cosine: bool, vector: str
) -> Fit:
    """Return how the stored vectors were made, after comparing them with the encoder's.

    Args:
        rows: of the collection; the first usable ones are encoded.
        encoder: said to have made the vectors.
        dim: the length of the stored vectors.
        cosine: whether the collection compares by cosine.
        vector: the name of the stored vector.

    Raises:
        MismatchError: another encoder made the vectors; nothing was changed.
        InputError: no point has a text and this vector.
    """
    check_dim(encoder, dim, vector)
    normalised = bool(encoder.describe()["normalise"])
    if cosine and not normalised:
        raise InputError(
            f"vector {vector!r} is compared by cosine, and the encoder's vectors are not scaled to length 1.",
            "describe the encoder again with: xqg describe FOLDER --normalise",
        )
    embedded = (row for row in rows if isinstance(row, QueriedPassage) and row.vector is not None)
    sample = list(islice(embedded, COMPARED))
    if not sample:
        raise InputError(f"no point has both a text and the vector {vector!r}.", "check --text-field and --vector")
    fit = find_fit(sample, encoder)
    if not fit.good:
        raise MismatchError(
            f"the encoder did not make vector {vector!r}: at best {fit}; {LEAST_COSINE} is needed for "
            f"{LEAST_SHARE:.0%} of them. Nothing was changed.",
            "name the encoder that made the vectors (--encoder), and the fields of the text that it read",
        )
    if not cosine and np.median(np.abs(fit.lengths - 1)) > LENGTH_TOLERANCE:
        raise MismatchError(
            f"vector {vector!r} is compared by dot product, and the encoder's vectors are {np.median(fit.lengths):.3f} "
            "times as long. Nothing was changed.",
            f"describe the encoder again with: xqg describe FOLDER --{'no-' if normalised else ''}normalise",
        )
    return fit


def check_dim(encoder: TextEncoder, dim: int, vector: str) -> None:
    """Raise a MismatchError if the encoder's vectors are not as long as those stored with a name."""
    if encoder.dim != dim:
        raise MismatchError(
            f"vector {vector!r} has {dim} numbers, and the encoder makes {encoder.dim}. Nothing was changed.",
            "name the encoder that made the vectors (--encoder)",
        )


def find_fit(sample: Sequence[QueriedPassage], encoder: TextEncoder) -> Fit:
    """Return the best of the common ways to make vectors from passages; the encoder's own comes first."""
    templates = TEMPLATES if any(row.passage.title for row in sample) else ("{text}",)
    prefixes = dict.fromkeys([str(encoder.describe()["passage_prefix"]), *PREFIXES])
    tries = [(prefix, template) for prefix in prefixes for template in templates[:2]]
    best = _find_best(sample[:FIRST_COMPARED], encoder, tries)
    best = _find_best(sample[:FIRST_COMPARED], encoder, [(best.prefix, template) for template in templates])
    return _compare(sample, encoder, best.template, best.prefix)


def _find_best(sample: Sequence[QueriedPassage], encoder: TextEncoder, tries: Iterable[tuple[str, str]]) -> Fit:
    """Return the first of these prefixes and templates that makes the same vectors, else the best."""
    tried = []
    for prefix, template in tries:
        tried.append(_compare(sample, encoder, template, prefix))
        if tried[-1].cosines.min() >= SAME_COSINE:
            break
    return max(tried, key=lambda fit: float(np.median(fit.cosines)))


def _compare(sample: Sequence[QueriedPassage], encoder: TextEncoder, template: str, prefix: str) -> Fit:
    texts = [template.format(title=row.passage.title, text=row.passage.text).strip() for row in sample]
    made = check_vectors(encoder.encode_passages(texts, prefix), len(texts), encoder.dim).astype(np.float64)
    stored = np.stack([row.vector for row in sample if row.vector is not None]).astype(np.float64)
    lengths, kept = (np.maximum(np.linalg.norm(vectors, axis=1), 1e-30) for vectors in (made, stored))
    cosines = (made * stored).sum(axis=1) / (lengths * kept)
    return Fit(template, prefix, cosines, lengths / kept)
