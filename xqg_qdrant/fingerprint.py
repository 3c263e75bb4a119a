"""What made a collection's vectors: models, recipe; told apart field by field.

A fingerprint is a flat mapping of dotted names (`encoder.pooling`, `recipe.alpha`) to JSON values, stored with the
collection. Knows how to hash and to compare. Knows nothing of models or stores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from xqg_qdrant.errors import MismatchError
from xqg_qdrant.records import GeneratedQuery, Passage, PayloadLayout

Fingerprint: TypeAlias = dict[str, Any]

# Which queries a collection was made with; written down for given ones alone.
QUERIES_FIELD = "queries"
GIVEN, GENERATED = "given", "generated"
# There, and true, where the points have a sparse vector.
SPARSE_FIELD = "recipe.sparse"
# While a retune is unfinished, the whole fingerprint that the collection is on its way to.
RETUNING_FIELD = "retuning"

# Of collections of other programs alone, to which `xqg augment` only adds.
LAYOUT_PREFIX = "layout."
FOREIGN, OWN, OTHER_FIELDS = "another program's", "xqg's own", "other fields"

CURES = {
    FOREIGN: "it belongs to another program: add to it with xqg augment, or ingest into a new collection",
    OWN: "it is one of xqg's own: add to it with xqg ingest",
    OTHER_FIELDS: "name the fields that it was augmented by (--text-field, --title-field, --id-field)",
    GIVEN: "give this corpus's queries too (--queries), or ingest into a new collection",
    GENERATED: "leave --queries out to generate queries here too, or ingest into a new collection",
    "encoder": "use the encoder that the collection was made with (--encoder), or ingest into a new collection",
    "generator": "use the generator that the collection was made with (--generator), or ingest into a new collection",
    "recipe": "repeat the setting that the collection was made with, or ingest into a new collection",
}


def make_fingerprint(
    encoder: Mapping[str, Any], generator: Mapping[str, Any] | None, recipe: Mapping[str, Any]
) -> Fingerprint:
    """Join what describes the two models and the recipe into one flat fingerprint; no generator: queries are given."""
    parts = {"encoder": encoder, "generator": generator or {}, "recipe": recipe}
    given = {QUERIES_FIELD: GIVEN} if generator is None else {}
    return given | {f"{part}.{name}": value for part, fields in parts.items() for name, value in fields.items()}


def describe_layout(layout: PayloadLayout) -> Fingerprint:
    """Return what tells a collection of another program: where in its payload the passages stand."""
    return {LAYOUT_PREFIX + name: value for name, value in layout._asdict().items()}


def read_layout(fingerprint: Mapping[str, Any]) -> PayloadLayout | None:
    """Return where in the payload of another program's collection the passages stand, None for one of xqg's own."""
    fields = {name: fingerprint.get(LAYOUT_PREFIX + name, "") for name in PayloadLayout._fields}
    return PayloadLayout(**fields) if fields["text"] else None


def is_sparse(fingerprint: Mapping[str, Any]) -> bool:
    """Tell whether the points of a collection have a sparse vector."""
    return fingerprint.get(SPARSE_FIELD) is True


def hash_json(value: object) -> str:
    """Return the first 32 hex digits of the SHA-256 of a value's canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def hash_recipe(fingerprint: Mapping[str, Any]) -> str:
    """Return the hash of everything that decides the vectors of passages that are not retuned yet."""
    return hash_json({name: value for name, value in fingerprint.items() if name != RETUNING_FIELD})


def hash_content(passage: Passage, recipe_hash: str, given: Sequence[GeneratedQuery] | None = None) -> str:
    """Return the hash by which a stored point shows that it is up to date; it covers queries that were given."""
    content = [passage.passage_id, passage.title, passage.text, dict(passage.metadata), recipe_hash]
    return hash_json(content if given is None else [*content, given])


def find_differing(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields in which two fingerprints differ."""
    return [name for name in {**stored, **wanted} if stored.get(name) != wanted.get(name)]


def refuse_mismatch(
    collection: str,
    stored: Mapping[str, Any],
    wanted: Mapping[str, Any],
    part: str | None = None,
    cure: str | None = None,
) -> None:
    """Raise for the first field in which two fingerprints differ.

    With `part` (`"encoder"` for a search) only its fields are compared. Another layout, and given queries against
    generated ones, are named alone: settings that one side does not have would only hide it. So is an unfinished
    retune. `cure` is said in the place of what cures a mismatch of the models or the recipe at hand.

    Raises:
        MismatchError: names every field that differs, both values, and the cure.
    """
    differing = [name for name in find_differing(stored, wanted) if part is None or name.startswith(f"{part}.")]
    if not differing:
        return
    if RETUNING_FIELD in differing and RETUNING_FIELD in stored:
        raise MismatchError(
            f"collection {collection!r} is being retuned:\n"
            + "\n".join(describe_retune(stored))
            + "\nNothing was changed.",
            f"wait for it, or if it was interrupted finish it: xqg retune --collection {collection}",
        )
    if layouts := [name for name in differing if name.startswith(LAYOUT_PREFIX)]:
        differing = layouts
    elif QUERIES_FIELD in differing:
        differing = [QUERIES_FIELD]
        stored, wanted = ({QUERIES_FIELD: side.get(QUERIES_FIELD, GENERATED)} for side in (stored, wanted))
    lines = [f"  {name}: stored {stored.get(name)!r}, now {wanted.get(name)!r}" for name in differing]
    topic = stored[QUERIES_FIELD] if QUERIES_FIELD in differing else differing[0].split(".")[0]
    if layouts:
        topic = OTHER_FIELDS if read_layout(wanted) else FOREIGN
        topic = topic if read_layout(stored) else OWN
    cure = cure or CURES.get(topic, "ingest into a new collection")
    raise MismatchError(
        f"collection {collection!r} was made differently:\n" + "\n".join(lines) + "\nNothing was changed.", cure
    )


def describe_retune(stored: Mapping[str, Any]) -> list[str]:
    """Return a line for each field that the unfinished retune of a collection changes."""
    wanted = stored[RETUNING_FIELD]
    return [
        f"  {name}: from {stored.get(name)!r} to {wanted.get(name)!r}"
        for name in find_differing(stored, wanted)
        if name != RETUNING_FIELD
    ]
