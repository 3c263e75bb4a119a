"""Rewrite the tables of docs/results.md about the shipped models: `python benchmarks/results.py DATA`.

Each table follows a comment with its name. Every figure comes from an `xqg` command, which is printed before it runs.
DATA is the folder that training/README.md describes, with `dev` and `question-match`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
PAGE = CHECKOUT / "docs" / "results.md"
DEMO = CHECKOUT / "xqg_qdrant" / "demo"
LEXICON = DEMO / "lexicon.tsv.gz"
LANGUAGES = ("ar", "bn", "fi", "ja", "ko", "ru", "te")
DEV_LANGUAGES = ("ar", "ru")
# The demo's recipe, for the collections that are ingested with the lexicon.
RECIPE = ("--fusion", "mean", "--alpha", "0.1", "--renormalise")
SURE = 0.05
# Xin et al. 2023 (arXiv 2305.03950), table 1.
PAPER = (
    "| paper: mBERT | 41.10 | 49.01 | 52.23 | 37.34 | 48.07 | 33.33 | 48.32 | 44.20 | | |",
    "| paper: mBERT + xQG | 42.39 | 54.93 | 54.14 | 33.61 | 52.28 | 33.76 | 52.52 | 46.23 | +2.03 | < 0.05 |",
)

Figures = Mapping[str, Any]


class Bench:
    """A runner of `xqg` commands on the data, in a temporary folder."""

    def __init__(self, folder: Path, data: Path) -> None:
        self._folder = folder
        self._ingested: set[str] = set()
        self.dev = data / "dev"
        self.question_match = data / "question-match"
        # An empty file of queries: an ingest without any.
        self.none = folder / "none.jsonl"
        self.none.touch()

    def run(self, *command: str | Path) -> Figures:
        """Run `xqg`; return its JSON output, empty without --json."""
        words = list(map(str, command))
        print("xqg", *words, file=sys.stderr, flush=True)
        program = Path(sys.executable).with_name("xqg")
        environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
        done = subprocess.run(
            [program, *words], cwd=self._folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        figures: Figures = json.loads(done.stdout) if "--json" in words else {}
        return figures

    def ingest(self, corpus: Path, collection: str, *options: str | Path) -> None:
        """Ingest a corpus with the demo's recipe, unless this run already has."""
        if collection in self._ingested:
            return
        self._ingested.add(collection)
        self.run("ingest", corpus, "--collection", collection, *RECIPE, *options)

    def evaluate(self, collection: str, questions: Path, rankings: Sequence[str], qrels: Path | None = None) -> Figures:
        """Search a collection with several rankings, and compare each with the first."""
        ranked = [word for ranking in rankings for word in ("--rank", ranking)]
        judged = ["--qrels", str(qrels)] if qrels else []
        return self.run("evaluate", "--collection", collection, "--questions", questions, *judged, *ranked, "--json")

    def questions(self, folder: Path, languages: Sequence[str]) -> Path:
        """Return a file with the questions of these languages, the first of each id."""
        path = self._folder / f"{folder.name}-{'-'.join(languages)}.jsonl"
        parts = [gzip.decompress((folder / f"queries.{language}.jsonl.gz").read_bytes()) for language in languages]
        rows = {json.loads(line)["id"]: line for line in reversed(b"".join(parts).splitlines())}
        path.write_bytes(b"\n".join(reversed(rows.values())) + b"\n")
        return path


def make_paper_table(bench: Bench) -> list[str]:
    """Return the table of R@2kt, with the paper's rows."""
    generated, lexicon = bench.run("demo", "--json"), bench.run("demo", "--lexicon", "--json")
    rows = [
        ("demo encoder", generated, "passage"),
        ("+ queries of the demo generator (`xqg`)", generated, "xqg"),
        ("+ words of the lexicon (`xqg`)", lexicon, "xqg"),
        ("+ words of the lexicon, terms too (`hybrid`)", lexicon, "hybrid"),
    ]
    # The average comes after the languages, as in the paper.
    cells = [(name, format_row(figures, run, "R@2kt", LANGUAGES)) for name, figures, run in rows]
    lines = [format_line([name, *row[1:-2], row[0], *row[-2:]]) for name, row in cells]
    return [*format_head(["", *LANGUAGES, "avg", "difference", "p"]), *PAPER, *lines]


def make_number_table(bench: Bench) -> list[str]:
    """Return the gain of hybrid search for each number of the lexicon's queries."""
    lines = []
    for number in range(1, 6):
        bench.ingest(DEMO, f"k{number}", "--generator", LEXICON, "--sparse", "--queries-per-language", str(number))
        figures = bench.evaluate(f"k{number}", DEMO, ("passage", "hybrid"))
        cells = [str(number)]
        for measure in ("R@2kt", "MRR@10"):
            cells.append(f"{figures['hybrid'][measure]['macro']:.2f}")
            cells += format_difference(figures["comparison"]["hybrid"][measure])
        lines.append(format_line(cells))
    measures = [cell for measure in ("R@2kt", "MRR@10") for cell in (measure, "difference", "p")]
    return [*format_head(["queries a language", *measures]), *lines]


def make_sweep_table(bench: Bench) -> list[str]:
    """Return the gain of one half's best setting on the other half of the questions."""
    bench.run("demo", "--json")
    bench.ingest(bench.dev / "corpus.jsonl.gz", "dev-generator", "--sparse")
    every = sorted(path.name.split(".")[1] for path in bench.dev.glob("queries.*.jsonl.gz"))
    swept = [
        ("demo corpus, 840 in seven languages", "xqg_demo", DEMO, False),
        ("XQuAD's half, 1,224 in Arabic and Russian", "dev-generator", bench.questions(bench.dev, DEV_LANGUAGES), True),
        ("XQuAD's half, 7,344 in twelve languages", "dev-generator", bench.questions(bench.dev, every), True),
    ]
    lines = []
    for name, collection, questions, judged in swept:
        qrels = ["--qrels", str(bench.dev / "qrels.tsv.gz")] if judged else []
        sweep = bench.run("sweep", "--collection", collection, "--questions", questions, *qrels, "--json")
        best = next(point for point in sweep["points"] if point["setting"] == sweep["chosen"]["setting"])
        gained = format_difference(sweep["chosen"]["on_other_half"])
        lines.append(format_line([name, f"{sweep['plain']['macro']:.2f} → {best['macro']:.2f}", *gained]))
    heading = ["questions", "plain → best, on the half chosen on", "the same setting on the other half", "p"]
    return [*format_head(heading), *lines]


def make_demo_table(bench: Bench) -> list[str]:
    """Return MRR of each ranking of the demo corpus, with the lexicon and with generated queries."""
    bench.ingest(DEMO, "demo-lexicon", "--generator", LEXICON, "--sparse")
    bench.ingest(DEMO, "demo-generator", "--sparse")
    found = {
        name: bench.evaluate(f"demo-{name}", DEMO, ("passage", "xqg", "hybrid", "max-sim"))
        for name in ("lexicon", "generator")
    }
    rows = [
        ("plain vectors (`passage`)", found["lexicon"], "passage"),
        *(
            (f"{prefix}{name}, {label}", found[name], run)
            for name, prefix in (("lexicon", ""), ("generator", "demo "))
            for label, run in (("mean (`xqg`)", "xqg"), ("`hybrid`", "hybrid"), ("`max-sim`", "max-sim"))
        ),
    ]
    lines = [format_line([name, *format_row(figures, run, "MRR@10", LANGUAGES)]) for name, figures, run in rows]
    return [*format_head(["", "avg", *LANGUAGES, "difference", "p"]), *lines]


def make_dev_table(bench: Bench) -> list[str]:
    """Return MRR of each ranking of XQuAD's half, with the lexicon, no queries and generated ones."""
    corpus = bench.dev / "corpus.jsonl.gz"
    bench.ingest(corpus, "dev-generator", "--sparse")
    bench.ingest(corpus, "dev-lexicon", "--generator", LEXICON, "--languages", ",".join(DEV_LANGUAGES), "--sparse")
    bench.ingest(corpus, "dev-text", "--queries", bench.none, "--sparse")
    questions = bench.questions(bench.dev, DEV_LANGUAGES)
    found = {
        name: bench.evaluate(f"dev-{name}", questions, ("passage", "xqg", "hybrid"), bench.dev / "qrels.tsv.gz")
        for name in ("lexicon", "text", "generator")
    }
    rows = [
        ("plain vectors (`passage`)", "lexicon", "passage"),
        ("lexicon, mean (`xqg`)", "lexicon", "xqg"),
        ("lexicon, `hybrid`", "lexicon", "hybrid"),
        ("no queries, `hybrid` over the text alone", "text", "hybrid"),
        ("demo generator, mean (`xqg`)", "generator", "xqg"),
        ("demo generator, `hybrid`", "generator", "hybrid"),
    ]
    lines = [format_line([name, *format_row(found[key], run, "MRR@10", DEV_LANGUAGES)]) for name, key, run in rows]
    return [*format_head(["", "avg", *DEV_LANGUAGES, "difference", "p"]), *lines]


def make_target_table(bench: Bench) -> list[str]:
    """Return the encoder's figures for its targets, with plain vectors."""
    folder = bench.question_match
    bench.ingest(folder / "corpus.jsonl.gz", "questions", "--queries", bench.none)
    bench.ingest(bench.dev / "corpus.jsonl.gz", "dev-text", "--queries", bench.none, "--sparse")
    # One language at a time: questions in several languages share an id.
    matched = {
        language: bench.evaluate(
            "questions", bench.questions(folder, (language,)), ("passage",), folder / "qrels.tsv.gz"
        )["recall@1"]["macro"]
        for language in LANGUAGES
    }
    questions = bench.questions(bench.dev, DEV_LANGUAGES)
    found = bench.evaluate("dev-text", questions, ("passage",), bench.dev / "qrels.tsv.gz")
    rows = [
        ("the right one first among 42,646 questions; aim 60 in each", matched),
        ("R@2kt on XQuAD's half; aim 45 in ar, 50 in ru", found["R@2kt"]["per_language"]),
    ]
    lines = [format_line([name, *(f"{of[code]:.1f}" if code in of else "" for code in LANGUAGES)]) for name, of in rows]
    return [*format_head(["plain vectors", *LANGUAGES]), *lines]


def format_row(figures: Figures, run: str, measure: str, languages: Sequence[str]) -> list[str]:
    """Return a run's average, value in each language (starred if significant), difference and p."""
    found = figures[run][measure]
    compared = figures["comparison"].get(run, {}).get(measure)
    cells = [f"{found['macro']:.2f}"]
    for language in languages:
        p = compared["per_language"][language]["p_holm"] if compared else None
        cells.append(f"{found['per_language'][language]:.2f}{'*' if p is not None and p < SURE else ''}")
    return [*cells, *([_signed(compared["difference"]), _p(compared["p"])] if compared else ["", ""])]


def format_difference(compared: Figures) -> list[str]:
    """Return a difference with its interval, and p."""
    low, high = compared["interval"]
    return [f"{_signed(compared['difference'])} ({_signed(low)} to {_signed(high)})", _p(compared["p"])]


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _p(value: float) -> str:
    return f"{value:.4f}" if value < 0.01 else f"{value:.2f}"


def format_head(names: Sequence[str]) -> list[str]:
    """Return the first two lines of a Markdown table."""
    return [format_line(names), "|" + "---|" * len(names)]


def format_line(cells: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return re.sub(r" +\|", " |", "| " + " | ".join(cells) + " |")


TABLES: dict[str, Callable[[Bench], list[str]]] = {
    "paper": make_paper_table,
    "number": make_number_table,
    "sweep": make_sweep_table,
    "demo": make_demo_table,
    "dev": make_dev_table,
    "targets": make_target_table,
}


def replace_table(page: str, name: str, table: Sequence[str]) -> str:
    """Return the page with the table after the comment of this name replaced.

    Raises:
        ValueError: there is no such comment, or no table after it, or there are several.
    """
    place = re.compile(rf"(<!-- table: {name} -->\n\n?)(?:\|.*\n)+")
    if len(place.findall(page)) != 1:
        raise ValueError(f"the page has no table after <!-- table: {name} -->, or several")
    return place.sub(lambda found: found[1] + "\n".join(table) + "\n", page)


def main() -> None:
    """Rewrite the tables one by one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", default=",".join(TABLES), help="tables to rewrite, such as dev,targets")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.data.resolve())
        for name in given.only.split(","):
            table = TABLES[name](bench)
            PAGE.write_text(replace_table(PAGE.read_text(encoding="utf-8"), name, table), encoding="utf-8")
            print("\n".join([f"\n{name}", *table]), flush=True)


if __name__ == "__main__":
    main()
