"""What made a collection's vectors: models, recipe; told apart field by field.

A fingerprint is a flat mapping of dotted names (`encoder.pooling`, `recipe.alpha`) to JSON values, stored with the
collection. Knows how to hash and to compare. Knows nothing of models or stores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from xqg_qdrant.errors import MismatchError
from xqg_qdrant.records import Passage

Fingerprint: TypeAlias = dict[str, Any]

CURES = {
    "encoder": "use the encoder that the collection was made with (--encoder), or ingest into a new collection",
    "generator": "use the generator that the collection was made with (--generator), or ingest into a new collection",
    "recipe": "repeat the setting that the collection was made with, or ingest into a new collection",
}


def make_fingerprint(
    encoder: Mapping[str, Any], generator: Mapping[str, Any], recipe: Mapping[str, Any]
) -> Fingerprint:
    """Join what describes the two models and the recipe into one flat fingerprint."""
    parts = {"encoder": encoder, "generator": generator, "recipe": recipe}
    return {f"{part}.{name}": value for part, fields in parts.items() for name, value in fields.items()}


def hash_json(value: object) -> str:
    """Return the first 32 hex digits of the SHA-256 of a value's canonical JSON."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def hash_recipe(fingerprint: Mapping[str, Any]) -> str:
    """Return the hash of everything that decides the vectors."""
    return hash_json(fingerprint)


def hash_content(passage: Passage, recipe_hash: str) -> str:
    """Return the hash by which a stored point shows that it is up to date."""
    return hash_json([passage.passage_id, passage.title, passage.text, dict(passage.metadata), recipe_hash])


def refuse_mismatch(
    collection: str, stored: Mapping[str, Any], wanted: Mapping[str, Any], part: str | None = None
) -> None:
    """Raise for the first field in which two fingerprints differ.

    With `part` (`"encoder"` for a search) only its fields are compared.

    Raises:
        MismatchError: names every field that differs, both values, and the cure.
    """
    fields = [name for name in {**stored, **wanted} if part is None or name.startswith(f"{part}.")]
    differing = [name for name in fields if stored.get(name) != wanted.get(name)]
    if not differing:
        return
    lines = [f"  {name}: stored {stored.get(name)!r}, now {wanted.get(name)!r}" for name in differing]
    cure = CURES.get(differing[0].split(".")[0], "ingest into a new collection")
    raise MismatchError(
        f"collection {collection!r} was made differently:\n"
        + "\n".join(lines)
        + f"\nCure: {cure}. Nothing was changed."
    )
