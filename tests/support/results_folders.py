"""Results folders as commands save them, made of the demo's texts: of every kind, and of hostile content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from writing import lines_of

from xqg_qdrant.demo import read_demo_passages, read_demo_qrels, read_demo_queries

LANGUAGES = ("ar", "bn", "fi", "ja", "ko", "te")
QUESTIONS_A_LANGUAGE = 12
# What somebody may have written into a corpus, each in every field of the data.
HOSTILE = (
    "<script>window.hacked=1</script>",
    "</style><script>window.hacked=1</script>",
    "</title><img src=x onerror=window.hacked=1>",
    "\"'><svg onload=window.hacked=1>",
    "{{ 7 * 7 }}{% include 'page.css' %}",
    "<a href='javascript:window.hacked=1'>x</a><iframe src='http://example.org/'></iframe>",
    "evil\u202etxt.exe\u2066\x00\x1b[2J\x9b31m",
    "<!--",
    "]]></svg><style>body{display:none}</style>",
)


def manifest(kind: str, **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "command": [
            "xqg",
            "evaluate",
            "--collection",
            "my docs",
            "--questions",
            "questions.jsonl",
            "--save",
            "results",
        ],
        "created": "2026-11-21T12:00:00+00:00",
        "versions": {"python": "3.11.7", "xqg_qdrant": "0.1.0", "numpy": "2.4.6"},
        "seed": 0,
        "fingerprint": {"encoder.model.onnx": "0" * 64, "fusion": "mean", "alpha": 0.1, "languages": list(LANGUAGES)},
        "collection": "my docs",
        "store": "edge:xqg_data",
        "data": {"questions": {"path": "questions.jsonl", "sha256": "1" * 64, "rows": 72}},
        "machine": {"processor": "x86_64", "instructions": ["avx2"], "cores": 2, "device": "cpu"},
        "settings": {"limit": 100, "word_rules": "installed", "test": "randomisation"},
        "yields": {},
        **more,
    }


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=True), encoding="utf-8")


def demo_questions() -> list[dict[str, Any]]:
    rows = []
    for language in LANGUAGES:
        asked = [query for query in read_demo_queries() if query.language == language][:QUESTIONS_A_LANGUAGE]
        rows += [{"id": q.query_id, "lang": q.language, "text": q.text, "answers": list(q.answers)} for q in asked]
    return rows


def write_evaluation(folder: Path, shift: int = 0) -> Path:
    """Write an evaluation of two runs: of twelve questions a language xqg wins three and loses one in R@2kt."""
    folder.mkdir()
    questions = demo_questions()
    passages = {passage.passage_id: passage for passage in read_demo_passages()}
    judged = {qrel.query_id: qrel.passage_id for qrel in read_demo_qrels()}
    names = list(passages)
    hits: dict[str, dict[str, float]] = {"passage": {}, "xqg": {}}
    for number, row in enumerate(questions):
        place = (number + shift) % QUESTIONS_A_LANGUAGE
        hits["passage"][row["id"]] = 100.0 if place >= 6 else 0.0
        hits["xqg"][row["id"]] = 100.0 if place >= 7 or place < 3 else 0.0
    halves = {run: {name: value / 2 for name, value in of.items()} for run, of in hits.items()}
    write_json(folder / "values.json", {run: {"R@2kt": hits[run], "MRR@10": halves[run]} for run in hits})
    changes = []
    for row in questions:
        before, after = hits["passage"][row["id"]], hits["xqg"][row["id"]]
        if before == after:
            continue
        right = judged[row["id"]]
        other = names[(names.index(right) + 1) % len(names)]
        orders = {"passage": [other, right], "xqg": [right, other]}
        if after < before:
            orders = {"passage": [right, other], "xqg": [other, right]}
        changes.append(
            {
                **row,
                "measure": "R@2kt",
                "before": before,
                "after": after,
                "hits": {
                    run: [
                        {
                            "rank": rank,
                            "passage_id": name,
                            "score": 0.7 - rank / 10,
                            "title": passages[name].title,
                            "text": passages[name].text,
                            "relevant": name == right,
                            "best_query": {"language": row["lang"], "text": row["text"]},
                        }
                        for rank, name in enumerate(order, start=1)
                    ]
                    for run, order in orders.items()
                },
            }
        )
    (folder / "questions.jsonl").write_text(lines_of(*questions), encoding="utf-8")
    (folder / "changes.jsonl").write_text(lines_of(*changes), encoding="utf-8")
    yields = {
        language: {"asked": 400, "kept": 390 - 20 * n, "wrong_script": 3 * n, "duplicate": n}
        for n, language in enumerate(LANGUAGES)
    }
    write_json(folder / "manifest.json", manifest("evaluation", yields=yields))
    return folder


def write_hostile_evaluation(folder: Path) -> Path:
    """Write an evaluation in which every id, text, name and language is hostile."""
    folder.mkdir()
    bad = "".join(HOSTILE)
    ids = [f"{text} {number}" for number, text in enumerate(HOSTILE)]
    questions = [
        {"id": name, "lang": text, "text": text, "answers": [text]} for name, text in zip(ids, HOSTILE, strict=True)
    ]
    runs = [f"a{bad}", f"b{bad}"]
    values = {run: {f"R@2kt{bad}": dict.fromkeys(ids, 100.0 * n)} for n, run in enumerate(runs)}
    changes = [
        {
            **row,
            "measure": f"R@2kt{bad}",
            "before": 0.0,
            "after": 100.0,
            "hits": {
                run: [
                    {
                        "rank": 1,
                        "passage_id": bad,
                        "score": 0.5,
                        "title": bad,
                        "text": f"{bad} {row['text']} {bad}",
                        "relevant": n == 1,
                        "best_query": {"language": row["lang"], "text": bad},
                    }
                ]
                for n, run in enumerate(runs)
            },
        }
        for row in questions
    ]
    write_json(folder / "values.json", values)
    (folder / "questions.jsonl").write_text(lines_of(*questions), encoding="utf-8")
    (folder / "changes.jsonl").write_text(lines_of(*changes), encoding="utf-8")
    hostile = manifest("evaluation", command=["xqg", bad], collection=bad, yields={bad: {"asked": 1, "kept": 1}})
    write_json(folder / "manifest.json", {**hostile, "versions": {bad: bad}})
    return folder


def saved_difference(points: float, interval: list[float], p: float, p_holm: float | None) -> dict[str, Any]:
    return {
        "difference": points, "won": 30, "lost": 12, "tied": 8, "interval": interval, "p": p, "p_holm": p_holm,
    }  # fmt: skip


def saved_report(gains: dict[str, float]) -> dict[str, Any]:
    """Return what `Report.to_json` gives of two runs: the second gains so many points in each language."""
    values = {
        run: {
            measure: {"macro": 44 + gain * n, "per_language": dict.fromkeys(LANGUAGES, 44 + gain * n)}
            for measure, gain in gains.items()
        }
        for n, run in enumerate(("passage", "xqg"))
    }
    comparison = {
        measure: saved_difference(gain, [gain - 1, gain + 1], 0.018, None)
        | {"per_language": {name: saved_difference(gain, [gain - 2, gain + 2], 0.001, 0.006) for name in LANGUAGES}}
        for measure, gain in gains.items()
    }
    return {**values, "comparison": {"xqg": comparison}}


def write_robustness(folder: Path) -> Path:
    """Write a robustness result: near-misses agree more by one point, which is no gain."""
    folder.mkdir()
    gains = {"RBO of paraphrases": 2.0, "RBO of near-misses": 1.0, "AUC of RBO": -0.5}
    notes = ["paraphrases should agree much and near-misses little"]
    write_json(folder / "robustness.json", {"report": saved_report(gains), "notes": notes})
    (folder / "questions.jsonl").write_text("", encoding="utf-8")
    write_json(folder / "manifest.json", manifest("robustness", command=["xqg", "robustness"]))
    return folder


def write_pilot(folder: Path) -> Path:
    """Write a pilot of 500 of 100,000 passages that took a minute and 2 MB."""
    write_sweep(folder)
    measured = {"passages": 500, "seconds": 60.0, "bytes": 2_000_000}
    cost = {"passages": 100_000, "measured": measured, "seconds": 12_000.0, "bytes": 400_000_000, "price": 4.0}
    sweep = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    (folder / "sweep.json").unlink()
    pilot = {"held_back": True, "verdict": "Worth it: significantly better.", "cost": cost, "sweep": sweep}
    write_json(folder / "pilot.json", pilot)
    write_json(folder / "manifest.json", manifest("pilot", command=["xqg", "pilot", "corpus.jsonl"]))
    return folder


def write_sweep(folder: Path) -> Path:
    """Write a sweep of all four axes whose best setting is alpha 0.1 with mean fusion."""
    folder.mkdir()
    base = {
        "fusion": "mean", "alpha": 0.1, "renormalise": False, "queries_per_language": 5, "languages": list(LANGUAGES),
        "min_score": None, "percentile": None,
    }  # fmt: skip
    points: list[dict[str, Any]] = []
    curves: dict[str, list[int]] = {}

    def add(curve: str, macro: float, **changed: Any) -> None:
        curves.setdefault(curve, []).append(len(points))
        per_language = {language: macro - 2 + n for n, language in enumerate(LANGUAGES)}
        interval = [macro - 2.5, macro + 2.4]
        points.append({"setting": base | changed, "macro": macro, "per_language": per_language, "interval": interval})

    for n, alpha in enumerate((0.02, 0.05, 0.1, 0.2, 0.5)):
        add("alpha", (44.5, 45.5, 47.25, 46.0, 41.0)[n], alpha=alpha)
        add("alpha", (44.2, 45.0, 45.6, 45.0, 38.0)[n], alpha=round(alpha / 30, 5), fusion="sum")
    for count in range(1, 6):
        add("queries", 44 + 0.6 * count, queries_per_language=count)
        add("queries", 44.5 + 0.3 * count, queries_per_language=count, fusion="sum", alpha=0.003)
    for n, language in enumerate(LANGUAGES):
        add("languages", 44.5 + n / 4, languages=[language])
        add("languages", 46.5 - n / 4, languages=[other for other in LANGUAGES if other != language])
    for percentile in (10, 30, 50, 70, 90):
        add("filter", 47 - percentile / 40, percentile=percentile, min_score=0.3 + percentile / 200)
    plain = {"macro": 44.0, "per_language": dict.fromkeys(LANGUAGES, 44.0), "interval": [41.5, 46.4]}
    gained = saved_difference(2.5, [0.4, 4.6], 0.018, None)
    per_language = {name: saved_difference(2.5, [-1.0, 6.0], 0.1, 0.2) for name in LANGUAGES}
    write_json(
        folder / "sweep.json",
        {
            "measure": "R@2kt",
            "halves": {"chosen_on": ["a"] * 210, "reported_on": ["b"] * 212},
            "base": base,
            "plain": plain,
            "points": points,
            "curves": curves,
            "chosen": {"setting": base, "on_other_half": gained | {"per_language": per_language}},
            "report": saved_report({"nDCG@10": 0.5, "R@2kt": 2.5}),
        },
    )
    (folder / "questions.jsonl").write_text(lines_of(*demo_questions()), encoding="utf-8")
    write_json(folder / "manifest.json", manifest("sweep", command=["xqg", "sweep", "--collection", "my docs"]))
    return folder
