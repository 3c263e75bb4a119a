"""The `xqg` command: parses, calls, prints. Data goes to stdout, progress and messages to stderr.

Everything heavy is imported by the command that needs it, so that `xqg --help` starts at once.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xqg_qdrant.errors import INTERRUPTED_EXIT_CODE, ROWS_REJECTED_EXIT_CODE, InputError, XqgError

if TYPE_CHECKING:
    from xqg_qdrant.encoder import Encoder
    from xqg_qdrant.evaluation.official import WordRules
    from xqg_qdrant.evaluation.report import Report
    from xqg_qdrant.generator import Generator
    from xqg_qdrant.records import Query
    from xqg_qdrant.stores import Store

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

DEFAULT_STORE = "./xqg_data"
DEMO_COLLECTION = "xqg_demo"
# Chosen on other passages than the demo's; see the card of the demo generator.
DEMO_RECIPE: dict[str, Any] = {"fusion": "mean", "alpha": 0.1, "renormalise": True}
DEMO_LANGUAGES_SHOWN = ("fi", "ja", "ru")
EVALUATION_DEPTH = 100


class _Group(click.Group):
    """Turns the package's errors into one message and an exit code, at this one place."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        try:
            return super().invoke(ctx)
        except XqgError as error:
            if ctx.params.get("verbose"):
                traceback.print_exc()
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(INTERRUPTED_EXIT_CODE)
        except (click.exceptions.Exit, click.ClickException, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params.get("verbose"):
                traceback.print_exc()
            click.echo(
                f"Error: this is a bug in xqg: {type(error).__name__}: {error}. "
                "Run again with `xqg -v …` for the traceback, and report it.",
                err=True,
            )
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "XQG"})
@click.version_option(package_name="xqg-qdrant")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no messages besides errors.")
@click.option("-v", "--verbose", is_flag=True, help="A traceback with every error.")
@click.pass_context
def main(ctx: click.Context, quiet: bool, verbose: bool) -> None:
    """Make a Qdrant collection answer questions asked in languages its passages are not written in.

    Every option can also be set in the environment: XQG_INGEST_ALPHA=0.02 is `xqg ingest --alpha 0.02`.
    """
    ctx.obj = quiet


def _store_option(command: F) -> F:
    return click.option(
        "--store",
        "location",
        envvar=["XQG_STORE", "QDRANT_URL"],
        default=DEFAULT_STORE,
        show_default=True,
        help="Where the collection lives: a directory (embedded), edge:DIR, local:DIR, :memory:, or a server's URL "
        "(with its key in QDRANT_API_KEY).",
    )(command)


def _collection_option(**settings: Any) -> Callable[[F], F]:
    return click.option("--collection", metavar="NAME", help="The collection's name.", **settings)


def _encoder_option(command: F) -> F:
    return click.option(
        "--encoder",
        "encoder_folder",
        type=click.Path(path_type=Path),
        help="Model folder of the encoder.  [default: the demo encoder]",
    )(command)


def _quantisation_option(command: F) -> F:
    return click.option(
        "--quantisation",
        type=click.Choice(["int8"]),
        help="Index int8 codes, a quarter of the size; the best are scored again with the stored vectors.",
    )(command)


def _device_option(command: F) -> F:
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
        help="Where the models run; cuda fails rather than fall back.",
    )(command)


def _device_options(command: F) -> F:
    threads = click.option("--threads", type=click.IntRange(min=0), default=0, help="CPU threads.  [default: all]")
    return _device_option(threads(command))


@main.command()
@click.argument("file")
@_collection_option(required=True)
@click.option("--languages", help="Languages to generate queries in, such as ar,ja,ru.  [default: all the generator's]")
@_store_option
@_encoder_option
@click.option(
    "--generator",
    "generator_folder",
    type=click.Path(path_type=Path),
    help="Model folder of the generator.  [default: the demo generator]",
)
@click.option(
    "--queries",
    metavar="corpus|PATH",
    help="Generate none, take queries that are there: corpus for the field generated_queries of FILE, or a JSONL file "
    "of rows {id, language, text} in any order.",
)
@click.option("--queries-per-language", type=int, help="Queries generated a language.  [default: 5]")
@click.option(
    "--fusion",
    type=click.Choice(["sum", "mean"]),
    default="sum",
    show_default=True,
    help="sum as published; mean makes alpha independent of the number of queries.",
)
@click.option(
    "--alpha",
    type=float,
    default=0.01,
    show_default=True,
    help="Weight of the generated queries, from 0 to 1; with --fusion mean try 0.2.",
)
@click.option(
    "--renormalise",
    is_flag=True,
    help="Give augmented vectors the length of the plain ones; for encoders made for cosine. Not so published.",
)
@click.option("--top-k", type=int, help="Sample among the k most probable tokens; 1 is greedy.  [default: the model's]")
@click.option("--temperature", type=float, help="Sampling temperature.  [default: the model's]")
@click.option("--max-new-tokens", type=int, help="Longest query, in tokens.  [default: the model's]")
@click.option(
    "--vocabulary",
    type=click.Choice(["full", "restricted"]),
    help="Draw from all tokens, or from those that the language is written in, where the generator was exported with "
    "--restrict-vocabulary.  [default: restricted, where it was]",
)
@click.option("--seed", type=int, help="Seed of the sampling.  [default: 0]")
@click.option("--id-field", help="Field of the passage id, where it is none of id, _id, passage_id, docid.")
@click.option(
    "--dead-letters",
    type=click.Path(path_type=Path),
    help="File for the rows that were rejected, rewritten by each run.  [default: ./NAME.rejected.jsonl]",
)
@_quantisation_option
@_device_option
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    help="CPU threads: as many chunks of passages are in work at once.  [default: one a core]",
)
@click.pass_obj
def ingest(
    quiet: bool,
    /,
    file: str,
    collection: str,
    languages: str | None,
    location: str,
    encoder_folder: Path | None,
    generator_folder: Path | None,
    queries: str | None,
    device: str,
    threads: int,
    id_field: str | None,
    dead_letters: Path | None,
    quantisation: str | None,
    **settings: Any,
) -> None:
    """Store the passages of FILE with augmented vectors.

    FILE is JSONL, TSV or Parquet, a BEIR folder, or - for JSONL on standard input. Interrupted and run again, it goes
    on where it stopped; run on an edited file, it redoes what changed. Rows that cannot be used are written to the
    dead-letter file with their line and the reason; then the exit code is 3.
    """
    from xqg_qdrant.corpus import count_rows, read_generated_queries, read_passages, read_queried_passages
    from xqg_qdrant.indexing import EXACT_UP_TO, measure_recall
    from xqg_qdrant.ingest import Row, make_recipe
    from xqg_qdrant.languages import parse_languages
    from xqg_qdrant.progress import run_ingest, run_optimise
    from xqg_qdrant.query_index import QueryIndex

    if queries is not None and generator_folder is not None:
        raise click.UsageError("Give --generator or --queries, not both.")
    index = None
    rows: Iterator[Row]
    if queries == "corpus":
        rows = read_queried_passages(file, id_field=id_field)
    else:
        rows = passages = read_passages(file, id_field=id_field)
        if queries is not None:
            index = QueryIndex(read_generated_queries(queries, id_field=id_field))
            rows = index.join(passages)
    with _opened_store(location) as store:
        # One thread an operator: the workers of the ingest are the threads.
        encoder = _load_encoder(encoder_folder, device, 1)
        generator = _load_generator(generator_folder, device, 1) if queries is None else None
        named: tuple[str, ...] = ()
        if languages is not None:
            named = parse_languages(languages, generator.languages) if generator else (languages,)
        recipe = make_recipe(generator, named, **settings)
        total = None if quiet else count_rows(file)
        letters = dead_letters or Path(f"{collection}.rejected.jsonl")
        totals = run_ingest(rows, total, store, collection, encoder, generator, recipe, threads, letters, quiet)
        if quantisation:
            store.quantise(collection)
        indexed = (totals.stored or quantisation) and run_optimise(store, collection, EXACT_UP_TO, quiet)
        if indexed and not quiet:
            click.echo(measure_recall(store, collection), err=True)
    if index is not None and index.left_over:
        click.echo(f"Queries of {queries} that belong to no passage of {file}: {index.left_over}", err=True)
    if totals.rejected:
        click.echo(f"{totals.rejected} rejected rows, with their reasons, are in {letters}", err=True)
        sys.exit(ROWS_REJECTED_EXIT_CODE)


@main.command()
@_collection_option(required=True)
@_store_option
@_quantisation_option
@click.pass_obj
def optimise(quiet: bool, /, collection: str, location: str, quantisation: str | None) -> None:
    """Index a collection, and tell how many of the exact best passages a search then finds.

    xqg ingest indexes a collection of the embedded store by itself when it holds more than 50,000 passages. A server
    indexes in the background, whenever it wants: there only the recall is measured.
    """
    from xqg_qdrant.indexing import measure_recall
    from xqg_qdrant.progress import run_optimise

    with _opened_store(location) as store:
        if quantisation:
            store.quantise(collection)
        run_optimise(store, collection, 0, quiet)
        click.echo(measure_recall(store, collection))


@main.command()
@click.argument("questions", metavar="QUESTION...", nargs=-1)
@_collection_option(required=True)
@_store_option
@_encoder_option
@click.option("--limit", type=click.IntRange(min=1), default=5, show_default=True, help="Passages for each question.")
@click.option(
    "--vector",
    type=click.Choice(["xqg", "passage"]),
    default="xqg",
    show_default=True,
    help="Search the augmented vectors, or the plain ones to compare.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line for each question.")
@_device_options
def query(
    questions: tuple[str, ...],
    collection: str,
    location: str,
    encoder_folder: Path | None,
    limit: int,
    vector: str,
    as_json: bool,
    device: str,
    threads: int,
) -> None:
    """Find the passages that answer a QUESTION, asked in any language.

    With - in its place, questions are read from standard input, one a line.
    """
    from xqg_qdrant.printing import format_hits, hits_to_json
    from xqg_qdrant.search import answer, check_collection

    if not questions:
        raise click.UsageError("Missing argument 'QUESTION...'; give - to read questions from standard input.")
    lines: Iterable[str] = map(_decode_line, sys.stdin.buffer) if questions == ("-",) else questions
    with _opened_store(location) as store:
        encoder = _load_encoder(encoder_folder, device, threads)
        check_collection(store, collection, encoder)
        for question in (line.strip() for line in lines if line.strip()):
            hits = answer(store, collection, encoder, question, limit, vector)
            click.echo(hits_to_json(question, vector, hits) if as_json else f"{question}\n{format_hits(hits)}")


@main.command()
@_collection_option()
@click.option("--questions", type=click.Path(path_type=Path), help="Questions, or a BEIR folder that holds them.")
@click.option("--qrels", type=click.Path(path_type=Path), help="Judgements.  [default: those of a BEIR folder]")
@click.option("--predictions", type=click.Path(path_type=Path), help="Score this prediction file instead.")
@click.option("--gold", type=click.Path(path_type=Path), help="Questions with answers, for --predictions.")
@_store_option
@_encoder_option
@click.option(
    "--vector",
    type=click.Choice(["both", "xqg", "passage"]),
    default="both",
    show_default=True,
    help="Compare augmented vectors with plain ones, or measure one of them.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=EVALUATION_DEPTH,
    show_default=True,
    help="Passages for each question.",
)
@click.option(
    "--word-rules",
    type=click.Choice(["installed", "published"]),
    default="installed",
    show_default=True,
    help="Words of R@kt: as the installed NLTK splits them, or as NLTK did up to 3.9.2, to compare with the paper.",
)
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
@click.option(
    "--write-run", type=click.Path(path_type=Path), help="Write the TREC run (of xqg, where both are searched)."
)
@click.option("--write-predictions", type=click.Path(path_type=Path), help="Write the run in XOR-Retrieve's format.")
@_device_options
@click.pass_obj
def evaluate(
    quiet: bool,
    collection: str | None,
    questions: Path | None,
    qrels: Path | None,
    predictions: Path | None,
    gold: Path | None,
    location: str,
    encoder_folder: Path | None,
    vector: str,
    limit: int,
    word_rules: WordRules,
    as_json: bool,
    write_run: Path | None,
    write_predictions: Path | None,
    device: str,
    threads: int,
) -> None:
    """Measure retrieval: R@2kt and R@5kt where there are answers, recall, MRR and nDCG where there are judgements.

    Either search a --collection with --questions, or score a file of --predictions against its --gold questions
    exactly as the official XOR-Retrieve script does.
    """
    from xqg_qdrant.corpus import read_queries
    from xqg_qdrant.evaluation import files
    from xqg_qdrant.evaluation.report import evaluate_runs, predictions_of_run, report_predictions
    from xqg_qdrant.progress import search_all
    from xqg_qdrant.search import check_collection

    if (predictions is None) != (gold is None) or (predictions is None) == (collection is None):
        raise click.UsageError("Give --collection and --questions, or --predictions and --gold.")
    if predictions is not None and gold is not None:
        _echo_report(report_predictions(files.read_predictions(predictions), read_queries(gold), word_rules), as_json)
        return
    if questions is None or collection is None:
        raise click.UsageError("Missing option '--questions'.")
    queries = read_queries(questions)
    if qrels is None and questions.is_dir() and (questions / "qrels" / "test.tsv").is_file():
        qrels = questions
    judgements = files.read_qrels(qrels) if qrels else []
    with _opened_store(location) as store:
        encoder = _load_encoder(encoder_folder, device, threads)
        check_collection(store, collection, encoder)
        names = ["passage", "xqg"] if vector == "both" else [vector]
        runs = search_all(store, collection, encoder, queries, limit, names, quiet)
    report = evaluate_runs(
        queries, judgements, runs, recall_at=[k for k in (1, 5, 10, 20, 100) if k <= limit], rules=word_rules
    )
    written = runs[names[-1]]
    if write_run:
        scored = {name: [(hit.passage.passage_id, hit.score) for hit in hits] for name, hits in written.items()}
        files.write_run(write_run, scored)
    if write_predictions:
        files.write_predictions(write_predictions, predictions_of_run(queries, written))
    _echo_report(report, as_json)


@main.command()
@click.argument("checkpoint")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "int8", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="int8 for CPUs, float16 and bfloat16 for GPUs. xqg.json holds the measured loss.",
)
@click.option("--pooling", type=click.Choice(["cls", "mean", "last"]), help="Encoder: pooling, where no file tells it.")
@click.option("--normalise/--no-normalise", default=None, help="Encoder: vectors of length 1.")
@click.option("--query-prefix", help="Encoder: text before each query, such as 'query: '.")
@click.option("--passage-prefix", help="Encoder: text before each passage, such as 'passage: '.")
@click.option("--max-query-tokens", type=click.IntRange(min=4), help="Encoder: longest query.")
@click.option("--max-passage-tokens", type=click.IntRange(min=4), help="Encoder: longest passage.")
@click.option("--prompt", help="Generator: template with {text}, and if the model wants them {title} and {language}.")
@click.option("--languages", help="Generator: the languages it writes, such as ar,bn,fi,ja,ko,ru,te.")
@click.option("--max-input-tokens", type=click.IntRange(min=4), help="Generator: longest prompt.  [default: 256]")
@click.option("--top-k", type=click.IntRange(min=1), help="Generator: sampling default.  [default: 10]")
@click.option(
    "--temperature", type=click.FloatRange(min=0, min_open=True), help="Generator: sampling default.  [default: 1]"
)
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Generator: longest query.  [default: 32]")
@click.option(
    "--restrict-vocabulary",
    type=click.Path(path_type=Path, exists=True),
    metavar="SAMPLE",
    help="Generator: also write an output projection for each language, of the tokens that its writing can use; much "
    "faster where the vocabulary is large. SAMPLE: some hundred questions in each, as for `xqg evaluate`.",
)
@click.pass_obj
def export(
    quiet: bool,
    /,
    checkpoint: str,
    folder: Path | None,
    revision: str | None,
    dtype: str,
    languages: str | None,
    **given: Any,
) -> None:
    """Export a Hugging Face CHECKPOINT (local folder or hub id) to a model FOLDER, by default onnx/NAME.

    Encoders: BERT, MiniLM, XLM-R. Generators: T5, mT5. The result is checked against transformers; a model that does
    not compute the same leaves no folder behind. Needs: pip install 'xqg-qdrant[export]'
    """
    try:
        from xqg_qdrant.export import export_checkpoint
    except ModuleNotFoundError as error:
        raise InputError(f"xqg export needs {error.name}: install it with: pip install 'xqg-qdrant[export]'") from error
    from xqg_qdrant.languages import LANGUAGES, parse_languages

    given["languages"] = parse_languages(languages, tuple(LANGUAGES)) if languages is not None else None
    if not quiet:
        click.echo(f"exporting {checkpoint}; the check against transformers takes a while …", err=True)
    start = time.perf_counter()
    exported = export_checkpoint(checkpoint, folder, revision=revision, dtype=dtype, **given)
    for measured in dict.fromkeys(("float32", dtype)):
        figures = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in exported.parity[measured].items())
        click.echo(
            f"{measured} against {exported.parity['reference']} on {exported.parity['inputs']} inputs: {figures}"
        )
    click.echo(f"{exported.folder}: {exported.kind}, exported in {time.perf_counter() - start:.0f} s")


@main.command()
@_store_option
@_collection_option(default=DEMO_COLLECTION, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON.")
@_device_options
@click.pass_obj
def demo(quiet: bool, location: str, collection: str, as_json: bool, device: str, threads: int) -> None:
    """Ingest the demo corpus with the shipped models, search it, and measure what the augmentation gave."""
    from xqg_qdrant.demo import DEMO_FOLDER, read_demo_passages, read_demo_qrels, read_demo_queries
    from xqg_qdrant.evaluation.report import evaluate_runs
    from xqg_qdrant.ingest import make_recipe
    from xqg_qdrant.progress import run_ingest, search_all

    def tell(message: str) -> None:
        click.echo(message, err=as_json)

    passages, queries = read_demo_passages(), read_demo_queries()
    with _opened_store(location) as store:
        encoder, generator = _load_encoder(None, device, 1), _load_generator(None, device, 1)
        recipe = make_recipe(generator, **DEMO_RECIPE)
        tell(
            f"Ingesting {len(passages)} English passages into {collection!r} ({store.location}), each with "
            f"{recipe.queries_per_language} generated queries in each of {', '.join(recipe.languages)} "
            f"({recipe.fusion} fusion, alpha {recipe.alpha}, renormalised)."
        )
        letters = Path(f"{collection}.rejected.jsonl")
        run_ingest(passages, len(passages), store, collection, encoder, generator, recipe, threads, letters, quiet)
        tell("")
        for language in DEMO_LANGUAGES_SHOWN:
            tell(_show_question(store, collection, encoder, next(q for q in queries if q.language == language)))
        runs = search_all(store, collection, encoder, queries, EVALUATION_DEPTH, ["passage", "xqg"], quiet)
    report = evaluate_runs(queries, read_demo_qrels(), runs, recall_at=(1, 10))
    tell(
        f"{len(queries)} questions in {len(report.questions)} languages, plain vectors (passage) and augmented (xqg):\n"
    )
    _echo_report(report, as_json)
    tell(
        f"\nThe collection {collection!r} lies in {store.location}. Try next:\n"
        f"  xqg query --collection {collection} --store {location} 'Какая река самая длинная в Африке?'\n"
        f"  xqg ingest YOUR_FILE.jsonl --collection docs --languages ja,ru\n"
        f"  xqg evaluate --collection {collection} --store {location} --questions {DEMO_FOLDER}\n"
        "The demo models are small; for production export larger ones: see `xqg export --help`."
    )


def _show_question(store: Store, collection: str, encoder: Encoder, question: Query) -> str:
    from xqg_qdrant.search import search

    found = search(store, collection, encoder, [question.text], 3, ["passage", "xqg"])
    lines = [f"{question.language}: {question.text}  (answer: {question.answers[0]})"]
    for name, label in (("passage", "plain    "), ("xqg", "augmented")):
        titles = (
            f"{hit.passage.title}{' ✓' if any(answer in hit.passage.text for answer in question.answers) else ''}"
            for hit in found[name][0]
        )
        lines.append(f"  {label}  {' | '.join(titles)}")
    return "\n".join(lines) + "\n"


def _decode_line(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8: {line!r}; convert it with iconv") from error


def _echo_report(report: Report, as_json: bool) -> None:
    import json

    from xqg_qdrant.evaluation.report import format_table

    click.echo(
        json.dumps(report.to_json(), ensure_ascii=False, indent=2) if as_json else format_table(report), nl=as_json
    )


@contextmanager
def _opened_store(location: str) -> Iterator[Store]:
    from xqg_qdrant.stores import open_store

    store = open_store(location, os.environ.get("QDRANT_API_KEY"))
    try:
        yield store
    finally:
        store.close()


def _load_encoder(folder: Path | None, device: str, threads: int) -> Encoder:
    from xqg_qdrant.encoder import Encoder
    from xqg_qdrant.model_folder import DEMO_ENCODER, shipped_model

    return Encoder(folder or shipped_model(DEMO_ENCODER), device, threads)


def _load_generator(folder: Path | None, device: str, threads: int) -> Generator:
    from xqg_qdrant.generator import Generator
    from xqg_qdrant.model_folder import DEMO_GENERATOR, shipped_model

    return Generator(folder or shipped_model(DEMO_GENERATOR), device, threads)
