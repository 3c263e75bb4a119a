"""Render results folders as one self-contained HTML file: no scripts, no network, no other files."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from xqg_qdrant.atomic import replaced
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.comparison import languages_of, make_report
from xqg_qdrant.evaluation.hubs import HUBS_FILE
from xqg_qdrant.evaluation.results import CHANGES, REPEAT, Results
from xqg_qdrant.evaluation.significance import TestName
from xqg_qdrant.pages.changes import Changes, view_changes
from xqg_qdrant.pages.evaluations import (
    Evaluation,
    HubsView,
    SideBySide,
    view_evaluation,
    view_hubs,
    view_robustness,
    view_side_by_side,
)
from xqg_qdrant.pages.sweeps import Pilot, Sweep, load_report, view_pilot, view_sweep
from xqg_qdrant.pages.templates import open_templates
from xqg_qdrant.secrets import hide

# As in the manifest, in the order of the page's columns.
DROPPED = ("wrong_script", "wrong_language", "malformed", "duplicate", "empty")


class Yield(NamedTuple):
    """Generated queries of a language: requested, kept, and dropped for each reason (None: unknown)."""

    language: str
    asked: int
    kept: int
    dropped: Sequence[int | None]


class Section(NamedTuple):
    """What the page shows of one folder; parts that its kind lacks are None or empty."""

    name: str
    kind: str
    facts: Sequence[tuple[str, str]]
    command: str
    yields: Sequence[Yield]
    evaluation: Evaluation | None
    changes: Sequence[Changes]
    sweep: Sweep | None
    pilot: Pilot | None
    hubs: HubsView | None


def render_report(results: Sequence[Results]) -> str:
    """Return a report on results folders as HTML, in the order given.

    Raises:
        InputError: Jinja2 is not installed.
    """
    environment = open_templates(needed_by="a report", extra="report")
    names = _distinct_names(results)
    return environment.get_template("page.html.j2").render(
        title=f"xqg report: {', '.join(names)}",
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        side_by_side=list(_side_by_side(results, names)),
        sections=[_section(one, name) for one, name in zip(results, names, strict=True)],
    )


def write_page(path: Path, page: str) -> None:
    """Write a page atomically, replacing an existing file.

    Raises:
        InputError: The file cannot be written.
    """
    with replaced(path) as unfinished:
        unfinished.write_text(hide(page), encoding="utf-8")


def _distinct_names(results: Sequence[Results]) -> list[str]:
    """Return the names of the folders, or their paths where names clash."""
    names = [one.folder.resolve().name for one in results]
    return [name if names.count(name) == 1 else str(one.folder) for name, one in zip(names, results, strict=True)]


def _section(one: Results, name: str) -> Section:
    manifest = one.manifest
    kind = manifest["kind"]
    try:
        pilot = one.read_json("pilot.json") if kind == "pilot" else None
        sweep = one.read_json("sweep.json") if kind == "sweep" else pilot and pilot["sweep"]
        facts = {key: value for key, value in manifest.items() if key not in ("kind", "command", "yields")}
        yields = sorted(manifest["yields"].items())
        return Section(
            name,
            kind,
            list(_facts(facts)),
            shlex.join(manifest["command"]),
            [
                Yield(language, found["asked"], found["kept"], [found.get(reason) for reason in DROPPED])
                for language, found in yields
            ],
            _evaluation(one),
            view_changes(rows) if (rows := one.read_rows(CHANGES)) else [],
            None if sweep is None else view_sweep(sweep),
            None if pilot is None else view_pilot(pilot),
            view_hubs(one.read_json(HUBS_FILE)) if kind == "hubs" else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"{one.folder} is damaged ({error!r}).", REPEAT) from error


def _evaluation(one: Results) -> Evaluation | None:
    if one.manifest["kind"] == "robustness":
        saved = one.read_json("robustness.json")
        return view_robustness(load_report(saved["report"], saved["notes"]))
    if not one.values:
        return None
    languages, test = languages_of(one.queries), _test_of(one)
    return view_evaluation(make_report(languages, one.values, test), languages, test)


def _test_of(one: Results) -> TestName:
    found: TestName = one.manifest.get("settings", {}).get("test", "randomisation")
    return found


def _side_by_side(results: Sequence[Results], names: Sequence[str]) -> Iterator[SideBySide]:
    """Yield the runs of evaluations of the same questions side by side, for every measure of the first."""
    alike: dict[tuple[tuple[str, str], ...], list[tuple[str, Results]]] = {}
    for one, name in zip(results, names, strict=True):
        if one.manifest["kind"] == "evaluation" and one.values:
            asked = tuple(sorted((query.query_id, query.text) for query in one.queries))
            alike.setdefault(asked, []).append((name, one))
    for group in alike.values():
        if len(group) == 1:
            continue
        first = group[0][1]
        found = [(name, run, measures) for name, one in group for run, measures in one.values.items()]
        for measure, reference in next(iter(first.values.values())).items():
            # A measure covers the questions with judgements or answers, which may differ for the same questions.
            runs = [
                (name, run, measures[measure])
                for name, run, measures in found
                if measure in measures and measures[measure].per_query.keys() == reference.per_query.keys()
            ]
            if len(runs) > 1:
                yield view_side_by_side(runs, measure, languages_of(first.queries), _test_of(first))


def _facts(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of a manifest with their dotted names, such as `data.qrels.rows`."""
    match value:
        case dict() if value:
            for key, inner in value.items():
                yield from _facts(inner, f"{name}.{key}" if name else str(key))
        case list() if value and not any(isinstance(item, dict | list) for item in value):
            yield name, ", ".join(map(str, value))
        case None | {} | []:
            yield name, "–"
        case _:
            yield name, str(value)
