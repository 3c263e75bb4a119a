"""What was found → the page: the rankings side by side, with the generated query that speaks for each passage.

Knows the templates beside it, and the style that it shares with the report. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple

from xqg_qdrant.ranking import HYBRID
from xqg_qdrant.records import PASSAGE_VECTOR, XQG_VECTOR, GeneratedQuery
from xqg_qdrant.retrieval import Hit
from xqg_qdrant.templates import open_templates

# So much stands there at once, and so much where a passage is opened; the JSON has all.
SHOWN_CHARACTERS, MOST_CHARACTERS = 240, 5000
HEADINGS = {
    PASSAGE_VECTOR: ("Without augmentation", "by the plain vectors (passage)"),
    XQG_VECTOR: ("With augmentation", "by the vectors that generated queries are part of (xqg)"),
    HYBRID: ("With terms, too", "by augmented vectors and by terms, half and half (hybrid)"),
}


class Shown(NamedTuple):
    """A passage found; `rest` is the part of its text that is folded away.

    `query` is its generated query that is nearest to the question, `moved` what became of its rank.
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
    """A ranking, and what it found; `augmented` where generated queries took part in it."""

    heading: str
    explanation: str
    augmented: bool
    hits: Sequence[Shown]


class SearchPage:
    """The page of one collection."""

    def __init__(self, collection: str, location: str, longest: int, most: int) -> None:
        """Open the templates; `longest` is the length of a question, `most` the limit, that the form lets pass.

        Raises:
            InputError: Jinja2 is not installed.
        """
        templates = open_templates("serve", "evaluation/report", needed_by="the search page", extra="serve")
        self._template = templates.get_template("search.html.j2")
        self._fixed = {"collection": collection, "location": location, "longest": longest, "most": most}

    def render(
        self, question: str, limit: int, found: Mapping[str, Sequence[Hit]] | None, problem: Mapping[str, str] | None
    ) -> str:
        """Return the HTML for a question, for the problem that there was, or of the empty form."""
        columns = [] if found is None else view_rankings(found)
        return self._template.render(
            question=question, limit=limit, columns=columns, problem=problem, asked=found is not None, **self._fixed
        )


def read_style() -> str:
    """Return the style sheet: that of the report, and what only the search page has."""
    package = files("xqg_qdrant")
    return (package / "evaluation/report/page.css").read_text("utf-8") + (package / "serve/search.css").read_text(
        "utf-8"
    )


def view_rankings(found: Mapping[str, Sequence[Hit]]) -> list[Column]:
    """Return the columns of the page; all but that of the plain vectors say from where a passage came."""
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
    """Return the beginning of a text, which ends between words where there are any, and the rest."""
    if len(text) <= SHOWN_CHARACTERS:
        return text, ""
    end = text.rfind(" ", SHOWN_CHARACTERS // 2, SHOWN_CHARACTERS)
    end = SHOWN_CHARACTERS if end < 0 else end
    return text[:end], f"{text[end:MOST_CHARACTERS]}{'…' if len(text) > MOST_CHARACTERS else ''}"


def _move(rank: int, before: int | None) -> str:
    if before is None:
        return "↑ not found without"
    return f"{'↑' if rank < before else '↓'} from rank {before}" if rank != before else ""
