"""Format what the command line prints as strings: hits, yields, summaries, reports."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill, shorten
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from xqg_qdrant.augmentation.calibration import AskedLanguage
from xqg_qdrant.augmentation.pipeline import Totals
from xqg_qdrant.evaluation import FEWEST_QUESTIONS
from xqg_qdrant.evaluation.comparison import SIGNIFICANT, Comparison, Report, describe_content, is_gain
from xqg_qdrant.evaluation.hubs import NEIGHBOURS, Hub, Hubs
from xqg_qdrant.evaluation.significance import stars_of
from xqg_qdrant.fingerprint import LONGEST_SHOWN, PROGRESS_FIELDS, describe_retune, show_field
from xqg_qdrant.generation import Usage
from xqg_qdrant.generation.checks import DUPLICATE, EMPTY, MALFORMED, NO_QUESTION, WRONG_LANGUAGE, WRONG_SCRIPT, Dropped
from xqg_qdrant.inference import ENCODER, Reading
from xqg_qdrant.lifecycle.status import SAMPLED_PASSAGES, Status
from xqg_qdrant.lifecycle.verify import Verification
from xqg_qdrant.retrieval import Hit
from xqg_qdrant.stores import DEFAULT_PORT
from xqg_qdrant.stores.protocol import describe_pause
from xqg_qdrant.text import agree, count_of, one_line, show

if TYPE_CHECKING:
    from pathlib import Path

    from xqg_qdrant.doctor import Check
    from xqg_qdrant.stores.protocol import Snapshot

DROPPED_FOR = {
    WRONG_SCRIPT: "in another script",
    WRONG_LANGUAGE: "in another language",
    MALFORMED: "malformed",
    DUPLICATE: "repeated",
    EMPTY: "empty",
    NO_QUESTION: "no question",
}
SUMMARY_MEASURES = ("MRR@10", "R@2kt")
SUMMARY_WIDTH = 8
SNIPPET_CHARACTERS = 160
LONGEST_REASON = 200
LISTED = 10
DIFFERENCE_ROWS = ("difference", "95% from", "95% to", "p, Holm")


def format_totals(totals: Totals, seconds: float) -> str:
    """Return what an ingest did, and which part of the generated queries was kept in each language."""
    lines = [
        f"{count_of(totals.stored, 'passage')} stored, {totals.unchanged} unchanged, "
        f"{count_of(totals.rejected, 'row')} rejected, in {format_seconds(seconds)}."
    ]
    if totals.asked:
        yields = "  ".join(f"{name} {100 * totals.kept[name] / asked:.0f}%" for name, asked in totals.asked.items())
        rate = totals.asked.total() / seconds
        lines.append(
            f"{totals.kept.total()} of {totals.asked.total()} generated queries kept ({rate:.0f} generated a second): "
            f"{yields}"
        )
        if totals.dropped:
            lines.append(f"Dropped: {format_dropped(totals.dropped)}.")
    elif totals.kept:
        counts = "  ".join(
            f"{one_line(name) or 'of no language'} {count}" for name, count in sorted(totals.kept.items())
        )
        lines.append(f"{totals.kept.total()} given queries encoded: {counts}")
    if totals.awaited:
        keep = agree(totals.awaited, "keeps its", "keep their")
        lines.append(f"{count_of(totals.awaited, 'passage')} without a result {keep} queries.")
    if totals.usage.calls:
        lines.append(f"{format_usage(totals.usage)}.")
    if totals.left_out:
        lines.append(format_left_out(totals.left_out, totals.kept.total()))
    if totals.bare:
        lines.append(f"{totals.bare} of the stored passages {agree(totals.bare, 'has', 'have')} no query.")
    return "\n".join(lines)


def format_rejected(totals: Totals, path: Path) -> str:
    """Return how many rows were rejected, the commonest reasons, and what probably helps if all were."""
    lines = [f"{path} lists {count_of(totals.rejected, 'rejected row')} with the reasons:"]
    for count, first in totals.reasons.commonest():
        where = f"{first.source}, line {first.line}" if first.line else first.source
        lines.append(one_line(f"  {count} × {first.reason[:LONGEST_REASON]} (first: {where})"))
    if totals.rejected == totals.rows and (cure := totals.reasons.suggest_cure()):
        lines += ["No row could be used, and nothing was stored.", f"Cure: {one_line(cure)}."]
    return "\n".join(lines)


def format_unread(reading: Reading | None, sampled: bool = False) -> str:
    """Return how many texts are longer than a model reads, and how much of the text it does not read; empty if none."""
    if reading is None or not reading.cut:
        return ""
    texts = count_of(reading.texts, f"sampled {reading.noun}" if sampled else reading.noun)
    shorter = "" if reading.model == ENCODER else f", and with --split-tokens below {reading.longest}"
    share = "Less than 1" if reading.share_unread < 0.01 else f"{100 * reading.share_unread:.0f}"
    return (
        f"Longer than the {reading.longest} tokens that the {reading.model} reads: {reading.cut} of {texts}. "
        f"{share}% of their text is not read. Ingest with --split, which makes passages of them{shorter}."
    )


def format_dropped(dropped: Mapping[Dropped, int]) -> str:
    """Return how many generated queries were dropped for each reason, and of which languages."""
    parts = []
    for reason in DROPPED_FOR:
        counts = {language: count for (language, why), count in sorted(dropped.items()) if why == reason and count}
        if counts:
            languages = ", ".join(f"{one_line(language)} {count}" for language, count in counts.items())
            parts.append(f"{sum(counts.values())} {DROPPED_FOR[reason]} ({languages})")
    return "; ".join(parts)


def format_usage(usage: Usage) -> str:
    """Return the calls and tokens of a language model."""
    return f"{count_of(usage.calls, 'call')}, tokens: {usage.tokens_in:,} in, {usage.tokens_out:,} out"


def format_check(check: Check) -> str:
    """Return a check as one line: its state, its finding, the duration of its steps, and the cure."""
    times = ", ".join(f"{step} {1000 * seconds:.0f} ms" for step, seconds in check.seconds.items())
    line = f"{check.state:<8} {check.name:<10} {check.detail}{f'; {times}' if times else ''}"
    line = one_line(line)  # it may quote a server
    return f"{line.removesuffix('.')}. Cure: {check.cure.removesuffix('.')}." if check.cure else line


def format_left_out(left_out: int, queries: int) -> str:
    """Return how many queries the filter excludes."""
    return f"Queries excluded by --min-score: {left_out} of {queries}."


def format_seconds(seconds: float) -> str:
    """Return a duration with its units: `8.1 s`, `2 min 05 s`, `3 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_status(status: Status) -> str:
    """Return the contents of a collection and the fields of its fingerprint, one per line."""
    if status.in_use:
        counted = f"not counted, as {one_line(status.in_use)}"
    elif status.points is not None:
        counted = f"another program's, {count_of(status.points, 'point')}"
    else:
        counted = count_of(status.passages, "passage")
    lines = [f"collection {status.collection!r} in {status.store}: {counted}"]
    lines += [f"  alias {alias!r} names {named!r}" for alias, named in status.aliases.items()]
    if status.missing:
        lines.append(f"  {format_missing(status.collection, status.missing)}")
    if status.paused:
        lines.append(f"  {format_pause(status.collection)}")
    if status.retuned is not None:
        are = agree(status.retuned, "is", "are")
        command = f"xqg retune --collection {status.collection}"
        lines.append(f"  {status.retuned} of them {are} retuned; finish it: {command}")
        lines += [f"  {one_line(line)}" for line in describe_retune(status.fingerprint)]
    enrich = f"xqg enrich --collection {status.collection}"
    if status.plain:
        verb = agree(status.plain, "has", "have")
        lines.append(f"  {status.plain} of them {verb} no queries yet; write them: {enrich}")
    lines += [f"  {kind}: {one_line(_name_model(about))}" for kind, about in status.models.items()]
    if unread := format_unread(status.reading, sampled=status.passages > SAMPLED_PASSAGES):
        lines.append(f"  {unread}")
    if status.earlier:
        verb = agree(status.earlier, "was", "were")
        lines.append(f"  {count_of(status.earlier, 'passage')} {verb} made by another recipe than this one:")
    lines += [
        f"  {name}: {one_line(value if isinstance(value, str) and len(value) <= LONGEST_SHOWN else show_field(value))}"
        for name, value in status.fingerprint.items()
        if name not in PROGRESS_FIELDS
    ]
    return "\n".join(lines)


def format_missing(collection: str, missing: int) -> str:
    """Return that passages of a collection were lost, and what tells more."""
    verb = agree(missing, "is", "are")
    return (
        f"{count_of(missing, 'passage')} that xqg stored {verb} missing: xqg verify --collection {one_line(collection)}"
    )


def format_verification(found: Verification) -> str:
    """Return what is wrong with a collection; of the damaged points, the first ones."""
    state = "damaged" if found.damaged or found.missing else "as stored"
    counted = count_of(found.points, "point" if found.foreign else "passage")
    lines = [f"collection {found.collection!r} in {found.store}: {counted}, {state}"]
    if found.unchecked:
        verb = agree(found.unchecked, "has", "have")
        unchecked = f"{found.unchecked} of them {verb} no checksum, as they were stored by an earlier version"
        lines.append(f"  {unchecked}: only their texts were compared")
    if found.unrecorded:
        verb, them = agree(found.unrecorded, "is", "are"), agree(found.unrecorded, "its", "their")
        lines.append(
            f"  {found.unrecorded} of them {verb} not in the recorded number, so {them} loss would not be noticed: "
            "a command was interrupted, is still running, or may not record it. Run it again"
        )
    lines += [f"  {one_line(repr(point.passage_id))}: {', '.join(point.faults)}" for point in found.damaged[:LISTED]]
    if len(found.damaged) > LISTED:
        lines.append(f"  and {len(found.damaged) - LISTED} more: --json lists all")
    return "\n".join(lines)


def _name_model(about: object) -> str:
    """Return a model's name, and its folder or URL; what is stored may be anything."""
    if not isinstance(about, Mapping):
        return show(about)
    places = [str(about[name]) for name in ("folder", "url") if about.get(name)]
    return f"{about.get('source', 'unknown')}{f' ({places[0]})' if places else ''}"


def format_pause(collection: str) -> str:
    """Return that the indexing of a collection is paused, and the cure."""
    return "; ".join(one_line(part) for part in describe_pause(collection))


def format_snapshot(location: str, snapshot: Snapshot, has_key: bool) -> str:
    """Return the name of a snapshot and the command that restores it; the command reads a key from QDRANT_API_KEY.

    The command has the server's URL as seen from here, which need not be the one by which the server reaches itself.
    """
    # As a new collection: into an existing one a server restores no metadata, hence no fingerprint.
    restored = quote(f"{snapshot.collection}-restored", safe="")
    url = _with_port(location)
    taken_of, name = quote(snapshot.collection, safe=""), quote(snapshot.name, safe="")
    body = {
        # The server downloads it from itself: only the server knows in which folder it is.
        "location": f"{url}/collections/{taken_of}/snapshots/{name}",
        "priority": "snapshot",  # not the empty replicas on the other nodes
    }
    words = ["curl", "-X", "PUT", f"{url}/collections/{restored}/snapshots/recover"]
    words += ["-H", "Content-Type: application/json", "-d"]
    data = shlex.quote(json.dumps(body))
    if has_key:
        data = f'{data[:-2]}, "api_key": "\'"$QDRANT_API_KEY"\'"}}\' -H "api-key: $QDRANT_API_KEY"'
    return (
        f"Snapshot {one_line(snapshot.name)} taken. Restore it with:\n  {one_line(shlex.join(words))} {data}\n"
        'The server itself downloads from "location". If a container or a proxy maps its port, put its own address '
        "there, such as http://localhost:6333."
    )


def _with_port(location: str) -> str:
    """Return a server's URL with a port; the default is that of qdrant-client."""
    parts = urlsplit(location.rstrip("/"))
    return parts.geturl() if parts.port else parts._replace(netloc=f"{parts.netloc}:{DEFAULT_PORT}").geturl()


def format_hits(hits: Sequence[Hit]) -> str:
    """Return one paragraph per hit: rank, score, title, snippet, and the generated query that matched best."""
    if not hits:
        return "  nothing found: the collection is empty"
    paragraphs = []
    for rank, (found, best_query) in enumerate(hits, start=1):
        passage = found.passage
        passage_id = one_line(passage.passage_id)
        lines = [f"{rank:>3}  {found.score:.4f}  {one_line(passage.title) or passage_id}  [{passage_id}]"]
        # Shortening a whole megabyte would be slow.
        lines.append(f"     {shorten(passage.text[: 10 * SNIPPET_CHARACTERS], SNIPPET_CHARACTERS, placeholder=' …')}")
        if best_query is not None:
            language = f"  ({one_line(best_query.language)})" if best_query.language else ""
            lines.append(f"     matched best: {one_line(best_query.text)}{language}")
        paragraphs.append("\n".join(lines))
    return "\n".join(paragraphs)


def format_change(change: Mapping[str, Any]) -> str:
    """Return a question won or lost, from `find_changes`, with the first hits of both runs."""
    verdict = "won " if change["after"] > change["before"] else "lost"
    language = f" ({one_line(change['lang'])})" if change["lang"] else ""
    lines = [
        f"{verdict} {one_line(change['id'])}{language}  "
        f"{change['measure']} {change['before']:.2f} to {change['after']:.2f}",
        f"     {one_line(change['text'])}",
    ]
    if change["answers"]:
        lines.append(f"     answers: {one_line(', '.join(change['answers']))}")
    for run, hits in change["hits"].items():
        lines.append(f"     {run}{'' if hits else ': nothing found'}")
        for hit in hits:
            text = hit["title"] or shorten(hit["text"][: 10 * SNIPPET_CHARACTERS], SNIPPET_CHARACTERS, placeholder=" …")
            name = f"[{one_line(hit['passage_id'])}]" if hit["passage_id"] else ""
            cells = (one_line(text), name, "relevant" if hit["relevant"] else "")
            lines.append(f"     {hit['rank']:>5}  " + "  ".join(filter(None, cells)))
    return "\n".join(lines)


def format_asked_language(asked: AskedLanguage) -> str:
    """Return the language of a question, and how it is known."""
    if not asked.code:
        return "language: unknown; no language's offset is subtracted"
    if not asked.in_bank:
        return f"language: {one_line(asked.code)} (not in the question bank)"
    return f"language: {one_line(asked.code)}{' (identified)' if asked.identified else ''}"


def format_asked_languages(asked: Sequence[AskedLanguage]) -> str:
    """Return how many questions have an identified language, and how many an unknown one; empty if neither."""
    counts = Counter(one.code for one in asked if one.identified)
    unknown = sum(not one.code for one in asked)
    named = ", ".join(f"{one_line(code)} {count}" for code, count in sorted(counts.items()))
    parts = ([f"identified for {count_of(counts.total(), 'question')} ({named})"] if counts else []) + (
        [f"unknown for {unknown}"] if unknown else []
    )
    return f"The language is {' and '.join(parts)}." if parts else ""


def hits_to_json(question: str, ranking: str, hits: Sequence[Hit], asked: AskedLanguage | None = None) -> str:
    """Return a question and its hits as one line of JSON; with its language, if an offset was subtracted."""
    return json.dumps(
        {
            "question": question,
            "ranking": ranking,
            **({"language": asked.code, "identified": asked.identified} if asked else {}),
            "hits": [hit_to_json(rank, hit) for rank, hit in enumerate(hits, start=1)],
        },
        ensure_ascii=False,
    )


def hit_to_json(rank: int, hit: Hit) -> dict[str, Any]:
    """Return a hit as JSON values."""
    passage = hit.found.passage
    return {
        "rank": rank,
        "score": hit.found.score,
        "passage_id": passage.passage_id,
        "title": passage.title,
        "text": passage.text,
        "metadata": dict(passage.metadata),
        "best_query": {"language": hit.best_query.language, "text": hit.best_query.text} if hit.best_query else None,
    }


def format_table(report: Report) -> str:
    """Return a report as a plain table; below each compared run is its difference from the first."""
    languages = list(report.questions)
    measure_width = max(10, *map(len, report.measures))
    width = max(map(len, (*DIFFERENCE_ROWS, *report.values)))
    head = f"{'measure':<{measure_width}} {'run':<{width}} " + "".join(f"{name:>7}" for name in ("macro", *languages))
    lines = [head + ("   won  lost      p" if report.comparisons else "")]
    lines.append("-" * len(lines[0]))
    counts = "".join(f"{report.questions[language]:>7}" for language in languages)
    lines.append(f"{'questions':<{measure_width}} {'':<{width}} {sum(report.questions.values()):>7}{counts}")
    for measure in report.measures:
        rows: list[tuple[str, str]] = []
        for run, measures in report.values.items():
            if measure in measures:
                found = measures[measure]
                cells = [found.macro, *map(found.per_language.get, languages)]
                rows.append((run, "".join(map(_cell, cells))))
            if comparison := report.comparisons.get(run, {}).get(measure):
                rows += zip(DIFFERENCE_ROWS, _compared(comparison, languages), strict=True)
        lines += [
            f"{'' if number else measure:<{measure_width}} {name:<{width}} {cells}".rstrip()
            for number, (name, cells) in enumerate(rows)
        ]
    lines += [fill(f"Note: {note}.", width=100, subsequent_indent="  ") for note in report.notes]
    return "\n".join(lines) + "\n"


def format_summary(report: Report, measures: Sequence[str] = SUMMARY_MEASURES) -> str:
    """Return the main measures of a report, a line a run, with stars where it differs from the first."""
    languages = list(report.questions)
    width = max(map(len, report.values))
    lines = [f"{'':<{SUMMARY_WIDTH + width}}" + "".join(f"{name:>10}" for name in ("macro", *languages))]
    for measure in (name for name in measures if name in report.measures):
        measured = [(run, found) for run, found in report.values.items() if measure in found]
        for number, (run, found) in enumerate(measured):
            compared = report.comparisons.get(run, {}).get(measure)
            cells = [_starred(found[measure].macro, compared and compared.overall.p)]
            for language in languages:
                difference = compared.per_language.get(language) if compared else None
                p = difference and (difference.p if difference.p_holm is None else difference.p_holm)
                cells.append(_starred(found[measure].per_language.get(language), p))
            lines.append(f"{'' if number else measure:<{SUMMARY_WIDTH}}{run:<{width}}" + "".join(cells))
    lines += [fill(f"Note: {note}.", width=100, subsequent_indent="  ") for note in report.notes]
    return "\n".join(lines) + "\n"


def format_conclusion(report: Report, run: str, measure: str, against_control: Comparison | None) -> str:
    """Return in words what a run gains over the first, and how much of it the content of the queries brings."""
    compared = report.comparisons.get(run, {}).get(measure)
    if compared is None:
        return ""
    first = next(iter(report.values))
    gain, before, after = compared.overall, report.values[first][measure].macro, report.values[run][measure].macro
    asked = sum(report.questions.values())
    if asked < FEWEST_QUESTIONS:
        few = f"{count_of(asked, 'question')} {agree(asked, 'is', 'are')}"
        caveat = f" {few} too few to tell; ask {FEWEST_QUESTIONS} or more."
    else:
        caveat = ""
    if gain.p is None or gain.p >= SIGNIFICANT:
        verdict = "no difference beyond chance" if not caveat else "no verdict"
        return f"{run} against {first}: {measure} {before:.1f} and {after:.1f}, {verdict} ({_p_value(gain.p)}).{caveat}"
    verb = "lifts" if gain.points > 0 else "lowers"
    line = f"{run} {verb} {measure} from {before:.1f} to {after:.1f} ({gain.points:+.1f}, {_p_value(gain.p)})."
    if against_control is not None and is_gain(gain):
        line += f" {describe_content(gain, against_control.overall)}"
    return line + caveat


def format_hubs(hubs: Hubs) -> str:
    """Return the hubness by each vector side by side, then the passages found most often by each."""
    names = list(hubs.hubness)
    lines = [
        f"{count_of(hubs.questions, 'question')}, the {NEIGHBOURS} best passages of each, "
        f"in {count_of(hubs.passages, 'passage')}\n",
        f"{'':<28}" + "".join(f"{name:>16}" for name in names),
    ]
    rows = {
        "never found": [f"{of.never} ({of.never / hubs.passages:.1%})" for of in hubs.hubness.values()],
        "most often found": [f"{of.most} ({of.most / hubs.questions:.1%})" for of in hubs.hubness.values()],
        f"skewness of N{NEIGHBOURS}": [f"{of.skewness:.2f}" for of in hubs.hubness.values()],
    }
    lines += [f"{label:<28}" + "".join(f"{cell:>16}" for cell in cells) for label, cells in rows.items()]
    for name in names:
        head = f"worst by {name}"
        lines += ["", f"{head:<28}" + "".join(f"{other:>16}" for other in names)]
        lines += [_hub_line(hub, names) for hub in hubs.worst[name]]
    unreached = hubs.passages - NEIGHBOURS * hubs.questions
    if unreached > 0:
        lines += ["", f"Note: so few questions cannot find {unreached} of the passages by any vector; ask more."]
    return "\n".join(lines)


def _hub_line(hub: Hub, names: Iterable[str]) -> str:
    passage_id = one_line(hub.passage.passage_id)
    label = one_line(hub.passage.title) or passage_id
    counts = "".join(f"{hub.found[name]:>16}" for name in names)
    return f"{shorten(label, 27, placeholder='…'):<28}{counts}  [{passage_id}]"


def _starred(value: float | None, p: float | None) -> str:
    return f"{'-':>7}   " if value is None else f"{value:7.1f}{stars_of(p):<3}"


def _p_value(p: float | None) -> str:
    return "untested" if p is None else f"p = {p:.4f}"


def _compared(comparison: Comparison, languages: Iterable[str]) -> tuple[str, str, str, str]:
    """Return the cells of `DIFFERENCE_ROWS`."""
    overall = comparison.overall
    found = [comparison.per_language.get(language) for language in languages]
    tail = f"{overall.won:>6}{overall.lost:>6}" + _p(overall.p)
    return (
        _cell(overall.points, "+") + "".join(_cell(d and d.points, "+") for d in found) + tail,
        "".join(_cell(d and d.interval[0], "+", 1) for d in (overall, *found)),
        "".join(_cell(d and d.interval[1], "+", 1) for d in (overall, *found)),
        " " * 7 + "".join(_p(d and d.p_holm) for d in found),
    )


def _cell(value: float | None, sign: str = "-", digits: int = 2) -> str:
    return f"{'-':>7}" if value is None else f"{value:{sign}7.{digits}f}"


def _p(value: float | None) -> str:
    return f"{'-':>7}" if value is None else f"{value:>7.4f}"
