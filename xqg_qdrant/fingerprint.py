"""Hash and compare fingerprints: the models and the recipe that made a collection's vectors.

A fingerprint is a flat mapping of dotted names (`encoder.pooling`, `recipe.alpha`) to JSON values, stored with the
collection.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from xqg_qdrant.errors import MismatchError
from xqg_qdrant.records import FloatArray, GeneratedQuery, Passage, PayloadLayout, Space

Fingerprint: TypeAlias = dict[str, Any]

# Which queries a collection was made with: given ones, or none yet. Not stored for generated queries.
QUERIES_FIELD = "queries"
GIVEN, GENERATED, PLAIN = "given", "generated", "plain"
# Present and true if the points have a sparse vector.
SPARSE_FIELD = "recipe.sparse"
# Present and above 0 if the vectors are calibrated.
GAMMA_FIELD = "recipe.gamma"
# Present if documents were split into passages, by the length and the overlap in tokens.
SPLIT_FIELDS = ("recipe.split_tokens", "recipe.split_overlap")
# During an unfinished retune: the whole fingerprint that the collection will have.
RETUNING_FIELD = "retuning"
# While an enrichment replaces queries: the fingerprints by which some points may still be made.
EARLIER_FIELD = "earlier"
# These describe an unfinished change, not how points are made.
PROGRESS_FIELDS = frozenset({RETUNING_FIELD, EARLIER_FIELD})
# Besides the encoder, these decide the vectors of a passage without queries.
PLAIN_FIELDS = (
    *("recipe.gamma", "recipe.question_bank", "recipe.bank_mean", "recipe.sparse", "recipe.names"),
    *SPLIT_FIELDS,
)

# Only in collections of other programs, to which `xqg augment` only adds.
LAYOUT_PREFIX = "layout."
# Only in those that are augmented in the space of a vector of their own.
SPACE_PREFIX = "space."
FOREIGN, OWN, OTHER_FIELDS = "another program's", "xqg's own", "other fields"

CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))

LONGEST_SHOWN, SHOWN_OF_LONG = 400, 24

CURES = {
    FOREIGN: "use xqg augment, as another program owns the collection, or ingest into a new collection",
    OWN: "use xqg ingest, as xqg made the collection",
    "space": "repeat --vector and --replace as before, or undo it first (--undo)",
    OTHER_FIELDS: "repeat the fields that it was augmented with (--text-field, --title-field, --id-field), or first "
    "remove what was added: xqg augment --undo",
    GIVEN: "give this corpus's queries too (--queries), or ingest into a new collection",
    GENERATED: "leave --queries out to generate queries here too, or ingest into a new collection",
    PLAIN: "leave --queries out, or use xqg ingest",
    "encoder": "use the encoder that the collection was made with (--encoder), or ingest into a new collection",
    "generator": "use the generator that the collection was made with (--generator), or ingest into a new collection",
    "recipe": "repeat the setting that the collection was made with, or ingest into a new collection",
    "split": "split as before (--split, --split-tokens, --split-overlap), or ingest into a new collection",
    "fusion": "repeat the setting that the collection was made with, or change the stored collection: xqg retune",
}
# What a retune can change.
FUSION_FIELDS = {"recipe.alpha", "recipe.fusion", "recipe.renormalise", "recipe.min_score", GAMMA_FIELD}


def make_fingerprint(
    encoder: Mapping[str, Any], generator: Mapping[str, Any] | None, recipe: Mapping[str, Any]
) -> Fingerprint:
    """Join encoder, generator and recipe fields into one fingerprint.

    Without a generator, the queries are given.
    """
    parts = {"encoder": encoder, "generator": generator or {}, "recipe": recipe}
    given = {QUERIES_FIELD: GIVEN} if generator is None else {}
    return given | {f"{part}.{name}": value for part, fields in parts.items() for name, value in fields.items()}


def describe_layout(layout: PayloadLayout) -> Fingerprint:
    """Return the fields that mark another program's collection: its payload layout."""
    return {LAYOUT_PREFIX + name: value for name, value in layout._asdict().items()}


def read_layout(fingerprint: Mapping[str, Any]) -> PayloadLayout | None:
    """Return the payload layout of another program's collection, None for xqg's own."""
    fields = {name: fingerprint.get(LAYOUT_PREFIX + name, "") for name in PayloadLayout._fields}
    return PayloadLayout(**fields) if fields["text"] else None


def describe_space(space: Space | None) -> Fingerprint:
    """Return the fields that name the vector in whose space a collection was augmented; none without one."""
    return {} if space is None else {SPACE_PREFIX + name: value for name, value in space._asdict().items()}


def read_space(fingerprint: Mapping[str, Any]) -> Space | None:
    """Return the vector in whose space a collection was augmented, None if it got a space of its own."""
    vector = fingerprint.get(f"{SPACE_PREFIX}vector")
    return None if vector is None else Space(vector, fingerprint.get(f"{SPACE_PREFIX}replaced") is True)


def is_sparse(fingerprint: Mapping[str, Any]) -> bool:
    """Return whether the points of a collection have a sparse vector."""
    return fingerprint.get(SPARSE_FIELD) is True


def is_split(fingerprint: Mapping[str, Any]) -> bool:
    """Return whether the passages of a collection are parts of documents."""
    return bool(fingerprint.get(SPLIT_FIELDS[0]))


def is_calibrated(fingerprint: Mapping[str, Any]) -> bool:
    """Return whether a question bank calibrated the vectors of a collection."""
    return bool(fingerprint.get(GAMMA_FIELD))


def hash_json(value: object) -> str:
    """Return the first 32 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(CANONICAL.encode(value).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def hash_recipe(fingerprint: Mapping[str, Any]) -> str:
    """Return the hash of all that determines the vectors of passages not yet retuned."""
    return hash_json(without_progress(fingerprint))


def without_progress(fingerprint: Mapping[str, Any]) -> Fingerprint:
    """Return a fingerprint without its unfinished changes."""
    return {name: value for name, value in fingerprint.items() if name not in PROGRESS_FIELDS}


def is_plain(fingerprint: Mapping[str, Any]) -> bool:
    """Return whether no passage of a collection has queries yet."""
    return fingerprint.get(QUERIES_FIELD) == PLAIN


def pick_plain(fingerprint: Mapping[str, Any]) -> Fingerprint:
    """Return the fields that decide the vectors of passages without queries."""
    fields = {name: value for name, value in fingerprint.items() if name.startswith("encoder.")}
    return fields | {name: fingerprint[name] for name in PLAIN_FIELDS if name in fingerprint}


def hash_plain(fingerprint: Mapping[str, Any]) -> str:
    """Return the recipe hash of points that were stored without queries, to be enriched later.

    It is the same whoever writes the queries.
    """
    return hash_json(pick_plain(fingerprint) | {QUERIES_FIELD: PLAIN})


def hash_content(
    passage: Passage,
    recipe_hash: str,
    given: Sequence[GeneratedQuery] | None = None,
    vector: FloatArray | None = None,
) -> str:
    """Return the hash that shows whether a stored point is up to date.

    It covers the passage, the recipe, any given queries, and a vector that the passage already had.
    """
    content: list[Any] = [passage.passage_id, passage.title, passage.text, dict(passage.metadata), recipe_hash]
    content += [] if given is None else [given]
    content += [] if vector is None else [hashlib.sha256(vector.astype("<f4", copy=False).tobytes()).hexdigest()]
    return hash_json(content)


def find_differing(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields in which two fingerprints differ; earlier fingerprints are not compared."""
    names = {**stored, **wanted}
    return [name for name in names if name != EARLIER_FIELD and stored.get(name) != wanted.get(name)]


def refuse_mismatch(
    collection: str,
    stored: Mapping[str, Any],
    wanted: Mapping[str, Any],
    part: str | None = None,
    cure: str | None = None,
    find_encoders: Callable[[], tuple[str, str] | None] | None = None,
) -> None:
    """Raise an error if two fingerprints differ.

    A different layout, given instead of generated queries, and an unfinished retune are each reported alone: settings
    that only one side has would hide them.

    Args:
        collection: its name, for the message.
        stored: the fingerprint of the collection.
        wanted: the fingerprint of the current run.
        part: compare only the fields of this part, such as `"encoder"` for a search.
        cure: replaces the default cure, except for an unfinished retune.
        find_encoders: returns the names of the stored encoder and the current one, None if unknown.

    Raises:
        MismatchError: names every field that differs, and both values.
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
    lines = [
        f"  {name}: stored {show_field(stored.get(name))}, now {show_field(wanted.get(name))}" for name in differing
    ]
    others = any(name.startswith("encoder.") for name in differing)
    if others and find_encoders is not None and (encoders := find_encoders()):
        lines.insert(0, "  encoder: stored {}, now {}".format(*encoders))
    topic = stored[QUERIES_FIELD] if QUERIES_FIELD in differing else differing[0].split(".")[0]
    topic = "fusion" if set(differing) <= FUSION_FIELDS and not read_layout(stored) else topic
    topic = "split" if set(differing) <= set(SPLIT_FIELDS) else topic
    if layouts:
        topic = OTHER_FIELDS if read_layout(wanted) else FOREIGN
        topic = topic if read_layout(stored) else OWN
    cure = cure or CURES.get(topic, "ingest into a new collection")
    raise MismatchError(
        f"collection {collection!r} was made with other settings:\n" + "\n".join(lines) + "\nNothing was changed.", cure
    )


def show_field(value: object) -> str:
    """Return a field's value for a message; a packed vector is cut."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:SHOWN_OF_LONG]}…"


def describe_retune(stored: Mapping[str, Any]) -> list[str]:
    """Return one line per field that the unfinished retune of a collection changes."""
    wanted = stored[RETUNING_FIELD]
    return [
        f"  {name}: from {show_field(stored.get(name))} to {show_field(wanted.get(name))}"
        for name in find_differing(stored, wanted)
        if name != RETUNING_FIELD
    ]
