"""Copy a collection to another store or name, as it is or with another encoder. No query is generated again.

The target is the checkpoint: only points that it lacks or that differ are written, so an interrupted copy resumes where
it stopped. At the end both are read again and compared: point by point, or by count if the copy was encoded again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from threading import Event
from typing import Any, NamedTuple

from xqg_qdrant.augmentation.fusion import Fusion
from xqg_qdrant.augmentation.pipeline import StoredRow
from xqg_qdrant.augmentation.recipe import Recipe, read_recipe
from xqg_qdrant.errors import InputError, MismatchError, StoreError
from xqg_qdrant.fingerprint import Fingerprint, hash_plain, hash_recipe, refuse_mismatch, without_progress
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.records import XQG_VECTOR, AugmentedPassage, Reject
from xqg_qdrant.stores import read_existing_fingerprint, read_target_fingerprint
from xqg_qdrant.stores.points import make_names, make_payload, make_point_id
from xqg_qdrant.stores.protocol import Store
from xqg_qdrant.streams import batched
from xqg_qdrant.text import count_of

BATCH = 256
EXAMPLES = 5  # passages listed in a message
OTHER_TARGET = "choose another name (--as), or delete the target first (xqg delete)"
# Qdrant returns a neighbour of a float with more than 15 digits; the largest difference measured was 1.2e-14.
FLOAT_TOLERANCE = {"rel_tol": 1e-13, "abs_tol": 1e-300}


class Copying(NamedTuple):
    """The result of one batch.

    Attributes:
        read: Points read from the source.
        written: Points of these that were written.
        verified: Points read back from the target.
        rounded: Verified points whose payload has a number with other last bits in the target.
    """

    read: int = 0
    written: int = 0
    verified: int = 0
    rounded: int = 0


class _Checksum:
    """A checksum that does not depend on the order of points, and their number."""

    def __init__(self) -> None:
        self.total = self.count = 0

    def add(self, point: AugmentedPassage) -> None:
        self.total = (self.total + int.from_bytes(_digest(point))) % 2**128
        self.count += 1


def copy_collection(
    source: Store, collection: str, target: Store, name: str, stop: Event
) -> Generator[Copying, None, None]:
    """Copy every point, then verify; yield after each batch.

    Args:
        source: the store of `collection`.
        collection: its name.
        target: the store to copy to; the same object as `source` for a copy beside the original.
        name: of the copy, which is created, or resumed if its fingerprint is the source's.
        stop: once set, the copy ends after the current batch.

    Raises:
        InputError: there is no such collection, or source and target are the same.
        MismatchError: the target was made differently, or has passages that the source has not.
        StoreError: the source changed during the copy, or the points read back differ from it.
    """
    if source is target and collection == name:
        raise InputError(f"{collection!r} in {source.location} would be copied to itself.", "choose another name")
    fingerprint = read_existing_fingerprint(source, collection)
    dim = source.read_dim(collection)
    stored = read_target_fingerprint(target, name)
    if stored is None:
        target.create_collection(name, dim, fingerprint)
    else:
        refuse_mismatch(name, stored, fingerprint, cure=OTHER_TARGET)
        if extra := list(islice(_find_extra(source, collection, target, name), EXAMPLES)):
            raise MismatchError(
                f"collection {name!r} in {target.location} has passages that {collection!r} in {source.location} "
                f"has not, such as {_list(extra)}. Nothing was changed.",
                OTHER_TARGET,
            )

    checksum = _Checksum()
    with target.bulk_load(name, fast=True):
        for batch in batched(source.scroll(collection), BATCH):
            copies = target.read_points(name, [point.passage.passage_id for point in batch])
            missing = [point for point in batch if _differs(point, copies.get(point.passage.passage_id))]
            if missing:
                target.upsert(name, missing)
            for point in batch:
                checksum.add(point)
            yield Copying(read=len(batch), written=len(missing))
            if stop.is_set():
                return
    _check_source(source, collection, fingerprint, checksum)
    yield from _verify(source, collection, target, name, checksum, stop)


def _check_source(source: Store, collection: str, fingerprint: Fingerprint, copied: _Checksum) -> None:
    """Refuse a source that was changed during the copy; it is read again from beginning to end."""
    now = _Checksum()
    if source.read_fingerprint(collection) == fingerprint:
        for point in source.scroll(collection):
            now.add(point)
    if (now.total, now.count) != (copied.total, copied.count):
        raise StoreError(
            f"collection {collection!r} in {source.location} was changed during the copy.",
            "stop all writes to it, and run the copy again",
        )


def _verify(
    source: Store, collection: str, target: Store, name: str, expected: _Checksum, stop: Event
) -> Generator[Copying, None, None]:
    found = _Checksum()
    for batch in batched(target.scroll(name), BATCH):
        for point in batch:
            found.add(point)
        yield Copying(verified=len(batch))
        if stop.is_set():
            return
    count = target.count(name)
    if found.total == expected.total and found.count == expected.count == count:
        return
    # Rounded numbers change the checksum too, so compare point by point.
    different, rounded = [], 0
    for batch in batched(source.scroll(collection), BATCH):
        copies = target.read_points(name, [point.passage.passage_id for point in batch])
        for point in batch:
            copied = copies.get(point.passage.passage_id)
            if copied is None or _differs(point, copied):
                different.append(point.passage.passage_id)
            else:
                rounded += _digest(point) != _digest(copied)
    different += _find_extra(source, collection, target, name)
    if different or count != expected.count:
        named = (_list(different[:EXAMPLES]) or "none") + (" …" if len(different) > EXAMPLES else "")
        raise StoreError(
            f"the copy {name!r} in {target.location} is not equal to {collection!r} in {source.location}: "
            f"{count_of(count, 'point')} for {expected.count}; passages that differ: {len(different)} ({named}).",
            "stop all writes to both, and run the copy again",
        )
    yield Copying(rounded=rounded)


def _find_extra(source: Store, collection: str, target: Store, name: str) -> Iterator[str]:
    """Yield the ids of the target's passages that the source has not."""
    for batch in batched(target.scroll_stored(name), BATCH):
        passage_ids = [stored.passage_id for stored in batch]
        known = source.read_content_hashes(collection, passage_ids)
        yield from (passage_id for passage_id in passage_ids if passage_id not in known)


def _list(passage_ids: Iterable[str]) -> str:
    return ", ".join(map(repr, passage_ids))


def _digest(point: AugmentedPassage) -> bytes:
    """Return a hash of a point: its id, payload as canonical JSON, vectors bit for bit, and terms."""
    payload = json.dumps(make_payload(point), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    digest = hashlib.blake2b(make_point_id(point.passage.passage_id).encode(), digest_size=16)
    digest.update(payload.encode())
    for name in sorted(point.vectors):
        digest.update(name.encode() + point.vectors[name].tobytes())
    if point.terms is not None:
        digest.update(repr(point.terms).encode())
    return digest.digest()


def _differs(point: AugmentedPassage, copied: AugmentedPassage | None) -> bool:
    """Return whether a copy is missing or differs, except in the last bits of the payload's numbers."""
    if copied is None:
        return True
    if _digest(copied) == _digest(point):
        return False
    same_bits = all(copied.vectors[name].tobytes() == vector.tobytes() for name, vector in point.vectors.items())
    return not (same_bits and copied.terms == point.terms and _is_near(make_payload(copied), make_payload(point)))


def _is_near(left: Any, right: Any) -> bool:  # noqa: ANN401
    """Return whether two JSON values are equal, floats within the tolerance."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return math.isclose(left, right, **FLOAT_TOLERANCE)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_is_near(value, right[key]) for key, value in left.items())
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_is_near, left, right))
    return bool(left == right)


class Part(NamedTuple):
    """A share of the passages: number `number`, from 1, of `parts`; the same in every process."""

    number: int = 1
    parts: int = 1

    def holds(self, passage_id: str) -> bool:
        """Return whether a passage belongs to this share."""
        # The id is a hash, so the parts are equally large.
        return self.parts == 1 or int(make_point_id(passage_id)[-12:], 16) % self.parts == self.number - 1


ALL = Part()


class Reencoding(NamedTuple):
    """A copy with another encoder: the source's fingerprint, and the copy's with its recipe."""

    before: Fingerprint
    after: Fingerprint
    recipe: Recipe


def plan_reencoding(
    collection: str, stored: Fingerprint, name: str, encoder: TextEncoder, suited: Recipe, sparse: bool = False
) -> Reencoding:
    """Plan a copy with another encoder; the settings of the queries stay, the fusion is that of `suited`.

    Args:
        collection: name of the source.
        stored: its fingerprint.
        name: of the copy.
        encoder: of the copy.
        suited: a recipe for given queries, chosen for the encoder.
        sparse: whether to add the sparse vector `terms`; one that the source has is kept.

    Raises:
        InputError: both collections have the same name.
        MismatchError: the source is being retuned.
    """
    if name == collection:
        raise InputError(f"{collection!r} would be encoded into itself.", "choose another name (--to)")
    before = without_progress(stored)
    refuse_mismatch(collection, stored, before)
    old = read_recipe(before)
    names = make_names("mcp", encoder.source) if "fast-" in str(old.names.get(XQG_VECTOR)) else old.names
    fusion = {field: getattr(suited, field) for field in Fusion._fields}
    recipe = old._replace(**fusion, sparse=sparse or old.sparse, names=names)
    kept = {field: value for field, value in before.items() if not field.startswith(("encoder.", "recipe."))}
    described = {"encoder": encoder.describe(), "recipe": recipe.describe()}
    made = {f"{part}.{field}": value for part, fields in described.items() for field, value in fields.items()}
    return Reencoding(before, kept | made, recipe)


def read_stored_rows(
    points: Iterable[AugmentedPassage | Reject], collection: str, plan: Reencoding, part: Part = ALL
) -> Iterator[StoredRow | Reject]:
    """Yield the points of a source with their queries, for `ingest` into the copy.

    Raises:
        MismatchError: a point was made by an earlier recipe, so its queries are not those that the copy is to have.
    """
    # Points of another program that were not augmented yet have no recipe.
    made_by = {hash_recipe(plan.before): False, hash_plain(plan.before): True, "": True}
    for point in points:
        if isinstance(point, Reject):
            yield point
            continue
        if point.recipe not in made_by:
            raise MismatchError(
                f"passage {point.passage.passage_id!r} of {collection!r} was made by an earlier recipe.",
                f"finish the change first: xqg enrich --collection {collection}",
            )
        if part.holds(point.passage.passage_id):
            yield StoredRow(point, point.generated_queries, plain=made_by[point.recipe])


def is_complete(source_count: int, target: Store, name: str, rejected: int, part: Part) -> bool:
    """Return whether a copy has all passages of its source but those rejected; other parts may be unfinished.

    Raises:
        StoreError: it has more or fewer although all were copied.
    """
    count = target.count(name)
    if count == source_count - rejected:
        return True
    if part.parts > 1 and count < source_count:
        return False
    raise StoreError(
        f"{name!r} in {target.location} has {count} passages, not {source_count - rejected}.",
        "stop all writes to the source, and run the same again",
    )
