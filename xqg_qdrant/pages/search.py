"""Search a collection and render the rankings side by side, with the generated query that matched each passage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.resources import files
from threading import Lock
from typing import NamedTuple

from xqg_qdrant.augmentation.calibration import AskedLanguage
from xqg_qdrant.errors import InputError
from xqg_qdrant.fingerprint import is_calibrated, is_sparse
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.pages.templates import open_templates
from xqg_qdrant.printing import format_asked_language
from xqg_qdrant.records import PASSAGE_VECTOR, XQG_VECTOR, GeneratedQuery
from xqg_qdrant.retrieval import HYBRID, OFFSET, Hit, Ranker, check_collection, match_queries
from xqg_qdrant.stores import is_server, read_existing_fingerprint
from xqg_qdrant.stores.protocol import Store

# The text shown at first, and when a passage is opened; the JSON has all of it.
SHOWN_CHARACTERS, MOST_CHARACTERS = 240, 5000
HEADINGS = {
    PASSAGE_VECTOR: ("Without augmentation", "by the plain vectors (passage)"),
    XQG_VECTOR: ("With augmentation", "by vectors that include generated queries (xqg)"),
    OFFSET: ("With the language's offset subtracted", "by augmented vectors, without what the language adds (offset)"),
    HYBRID: ("With terms too", "by augmented vectors and by terms, half and half (hybrid)"),
}


class Shown(NamedTuple):
    """A passage found; `rest` is the part of its text that is hidden at first.

    `query` is its generated query that is nearest to the question, `moved` the change of its rank.
    """

    rank: int
    score: float
    title: str
    passage_id: str
    text: str
    rest: str
    query: GeneratedQuery | None
    moved: str


class Column(NamedTuple):
    """A ranking with its hits; `augmented` if it uses generated queries."""

    heading: str
    explanation: str
    augmented: bool
    hits: Sequence[Shown]


class SearchPage:
    """The page of one collection."""

    def __init__(self, collection: str, location: str, longest: int, most: int) -> None:
        """Open the templates; `longest` and `most` are the form's bounds for the length of a question and the limit.

        Raises:
            InputError: Jinja2 is not installed.
        """
        templates = open_templates(needed_by="the search page", extra="serve")
        self._template = templates.get_template("search.html.j2")
        self._fixed = {"collection": collection, "location": location, "longest": longest, "most": most}

    def render(
        self,
        question: str,
        limit: int,
        found: Mapping[str, Sequence[Hit]] | None,
        problem: Mapping[str, str] | None,
        asked_in: AskedLanguage | None = None,
    ) -> str:
        """Return the HTML of the hits, of a problem, or of the empty form."""
        columns = [] if found is None else view_rankings(found)
        return self._template.render(
            question=question,
            limit=limit,
            columns=columns,
            problem=problem,
            asked=found is not None,
            language=asked_in and format_asked_language(asked_in),
            **self._fixed,
        )


def read_style() -> str:
    """Return the style sheet: that of the report, and the rules of the search page."""
    return "".join((files(__package__) / name).read_text("utf-8") for name in ("page.css", "search.css"))


def view_rankings(found: Mapping[str, Sequence[Hit]]) -> list[Column]:
    """Return the columns of the page; all but the plain vectors' show how each rank changed."""
    plain = {hit.found.passage.passage_id: rank for rank, hit in enumerate(found[PASSAGE_VECTOR], start=1)}
    return [
        Column(
            *HEADINGS[name],
            name != PASSAGE_VECTOR,
            [
                _show(hit, rank, "" if name == PASSAGE_VECTOR else _move(rank, plain.get(hit.found.passage.passage_id)))
                for rank, hit in enumerate(hits, start=1)
            ],
        )
        for name, hits in found.items()
    ]


def _show(hit: Hit, rank: int, moved: str) -> Shown:
    passage, query = hit.found.passage, hit.best_query
    query = query and query._replace(text=_shorten(query.text))
    text, rest = _cut(passage.text)
    return Shown(rank, hit.found.score, _shorten(passage.title), passage.passage_id, text, rest, query, moved)


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _cut(text: str) -> tuple[str, str]:
    """Split a text into its beginning and the rest, between words if possible."""
    if len(text) <= SHOWN_CHARACTERS:
        return text, ""
    end = text.rfind(" ", SHOWN_CHARACTERS // 2, SHOWN_CHARACTERS)
    end = SHOWN_CHARACTERS if end < 0 else end
    return text[:end], f"{text[end:MOST_CHARACTERS]}{'…' if len(text) > MOST_CHARACTERS else ''}"


def _move(rank: int, before: int | None) -> str:
    if before is None:
        return "↑ not found without"
    return f"{'↑' if rank < before else '↓'} from rank {before}" if rank != before else ""


class Finder:
    """One collection and the encoder that it was made with."""

    def __init__(self, store: Store, collection: str, encoder: TextEncoder) -> None:
        """Check that the collection can be searched.

        Raises:
            InputError: There is no such collection.
            MismatchError: It was made with another encoder.
            StoreError: It cannot be opened, or another process holds it.
        """
        check_collection(store, collection, encoder)
        store.count(collection)  # opens it, which the first question would do otherwise
        fingerprint = read_existing_fingerprint(store, collection)
        self.collection = collection
        self.location = store.location
        self._calibrated = is_calibrated(fingerprint)
        offset, hybrid = [OFFSET] * self._calibrated, [HYBRID] * is_sparse(fingerprint)
        self._rankings = (PASSAGE_VECTOR, XQG_VECTOR, *offset, *hybrid)
        self._store = store
        self._encoder = encoder
        self._ranker = Ranker(store, collection, encoder)
        # A server answers many at once, and one question must not wait for another that it does not answer.
        self._lock: AbstractContextManager[object] = nullcontext() if is_server(store.location) else Lock()

    def find_language(self, question: str) -> AskedLanguage | None:
        """Return the language whose offset is subtracted; None if the collection is not calibrated."""
        return self._ranker.find_languages([question])[0] if self._calibrated else None

    def find(self, question: str, limit: int) -> dict[str, list[Hit]]:
        """Return the `limit` best passages of each ranking, each with its query nearest to the question.

        The ranking by plain vectors comes first.
        """
        vector = self._ranker.encode([question])
        with self._lock:
            found = {name: self._ranker.rank([question], vector, name, limit)[0] for name in self._rankings}
        # In one call, because the rankings share many passages.
        matched = iter(match_queries(self._encoder, vector[0], [scored for hits in found.values() for scored in hits]))
        return {name: [Hit(scored, next(matched)) for scored in hits] for name, hits in found.items()}


def choose_collection(store: Store) -> str:
    """Return the only collection of a store.

    Raises:
        InputError: There is none, or there are several.
    """
    names = store.collections()
    if not names:
        raise InputError(f"there are no collections in {store.location}.", "make one with xqg ingest")
    if len(names) > 1:
        raise InputError(
            f"there are several collections in {store.location}: {', '.join(names)}.", "choose one with --collection"
        )
    return names[0]
