"""The Python interface: ingest a corpus, search a collection, evaluate it, each in one call.

The functions have the defaults of the commands of the same names. They print only a progress bar, on a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias, cast, overload

from tqdm import tqdm

from xqg_qdrant.augmentation.pipeline import Progress, Row, Totals, describe
from xqg_qdrant.augmentation.pipeline import ingest as ingest_chunks
from xqg_qdrant.augmentation.recipe import choose_recipe
from xqg_qdrant.corpus.inputs import CORPUS, split_documents
from xqg_qdrant.corpus.passages import check_passages
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation import EVALUATION_DEPTH
from xqg_qdrant.evaluation.comparison import Report, evaluate_runs, measured_questions
from xqg_qdrant.evaluation.files import read_judged_questions, read_qrels
from xqg_qdrant.evaluation.runs import check_collection_is_judged, note_documents, rank_documents
from xqg_qdrant.evaluation.significance import TestName
from xqg_qdrant.generation import Generator
from xqg_qdrant.generation.questions import open_inputs
from xqg_qdrant.inference import TextEncoder
from xqg_qdrant.inference.splitting import choose_splitter
from xqg_qdrant.lifecycle.status import EXACT_UP_TO
from xqg_qdrant.records import Passage, Qrel, Query, Reject
from xqg_qdrant.retrieval import Hit, check_collection, check_rankings, search_hits, search_runs
from xqg_qdrant.stores import Store, read_target_fingerprint
from xqg_qdrant.streams import count_workers
from xqg_qdrant.text import show

Corpus: TypeAlias = str | Path | Iterable[Mapping[str, Any]]


def ingest(
    corpus: Corpus,
    store: Store,
    collection: str,
    encoder: TextEncoder,
    generator: Generator | None,
    *,
    languages: Sequence[str] = (),
    queries: str | Path | None = None,
    id_field: str | None = None,
    plain: bool = False,
    split: bool = False,
    split_tokens: int | None = None,
    split_overlap: int | None = None,
    **settings: Any,
) -> Progress:
    """Store a corpus with augmented vectors; index a large collection.

    After an interruption, call it again to resume; on an edited corpus it redoes what changed. A row that cannot be
    used raises nothing: it is returned in `rejects`, and the rest is stored.

    Args:
        corpus: a file or folder as `xqg ingest` takes it, or rows `{"id": …, "text": …, "title": …, …}`.
        store: the store of the collection, which is created if missing.
        collection: its name.
        encoder: of passages and queries.
        generator: writes the queries. None with `queries`, with `plain`, or if each row has its own, in the field
            `generated_queries`.
        languages: of the queries, such as `("ja", "ru")`; by default all of the generator's.
        queries: a file of the corpus's queries, or of the results of a language model's batch, as
            `xqg ingest --queries` takes it.
        id_field: the field of the passage id, if not `id`, `_id`, `passage_id`, `pid` or `docid`.
        plain: store passages without queries, to be searched at once; another ingest adds them.
        split: split long documents into passages `ID#1`, `ID#2`, … that the encoder reads in full.
        split_tokens: longest passage, in tokens of the encoder; by default all that it reads.
        split_overlap: tokens of a passage that the next one repeats; by default an eighth of a passage.
        **settings: fields of `xqg_qdrant.augmentation.recipe.Recipe` and `xqg_qdrant.generation.onnx.Sampling`, such
            as `queries_per_language`, `alpha`, `fusion`, `seed`, `sparse`, `top_k`. Defaults suit the
            encoder; `recipe_name="paper"` gives the published ones.

    Returns:
        The sum over all chunks. `xqg_qdrant.augmentation.pipeline.ingest` yields each chunk.

    Raises:
        InputError: the corpus or a setting cannot be used.
        MismatchError: the collection was made with other models or another recipe.
        StoreError: the database cannot be reached, or refuses.
        ModelError: a model fails.
    """
    if queries is not None and (generator is not None or plain):
        raise InputError("there are queries, and a generator or plain.", "pass only one of them")
    if queries is not None and not isinstance(corpus, str | Path):
        raise InputError("queries are in a file, but the corpus is rows.", "pass both as files")
    stored = read_target_fingerprint(store, collection)
    queried = generator is None and not plain and queries is None
    if split and queried:
        raise InputError("the rows' queries are of whole documents, which are to be split.", "leave out split")
    splitter = choose_splitter(encoder.folder, stored, split_tokens, split_overlap) if split else None
    if splitter:
        settings |= {"split_tokens": splitter.tokens, "split_overlap": splitter.overlap}
    chosen = choose_recipe(encoder, generator, languages, stored=stored, **settings).recipe
    rows: Iterable[Row]
    total = None
    source = CORPUS if queried else None if queries is None else str(queries)
    fingerprint = describe(encoder, generator, chosen, plain)
    if isinstance(corpus, str | Path):
        inputs = open_inputs([str(corpus)], source, id_field)
        inputs.splitter = splitter
        rows, total = inputs.read(), inputs.count()
    else:
        checked = check_passages(corpus, id_field=id_field, queried=queried)
        rows = split_documents(cast("Iterator[Passage | Reject]", checked), splitter) if splitter else checked
    workers = count_workers(encoder.device)
    totals, rejects = Totals(), list[Reject]()
    with (
        tqdm(total=total, unit=" passages", disable=None) as bar,
        closing(
            ingest_chunks(rows, store, collection, encoder, generator, chosen, workers, fingerprint=fingerprint)
        ) as steps,
    ):
        for progress in steps:
            totals.add(progress)
            rejects += progress.rejects
            bar.update(progress.rows)
    if totals.stored:
        for _ in store.optimise(collection, EXACT_UP_TO):
            pass
    return totals.to_progress(rejects)


@overload
def search(
    questions: str,
    store: Store,
    collection: str,
    encoder: TextEncoder,
    *,
    limit: int = ...,
    ranking: str = ...,
    language: str = ...,
) -> list[Hit]: ...


@overload
def search(
    questions: list[str] | tuple[str, ...],
    store: Store,
    collection: str,
    encoder: TextEncoder,
    *,
    limit: int = ...,
    ranking: str = ...,
    language: str = ...,
) -> list[list[Hit]]: ...


def search(
    questions: str | list[str] | tuple[str, ...],
    store: Store,
    collection: str,
    encoder: TextEncoder,
    *,
    limit: int = 5,
    ranking: str = "xqg",
    language: str = "",
) -> list[Hit] | list[list[Hit]]:
    """Find the passages that answer a question, asked in any language.

    Args:
        questions: one question, or several.
        store: the store of the collection.
        collection: its name.
        encoder: the one that the collection was made with.
        limit: number of passages for each question.
        ranking: `xqg` (augmented vectors), `passage` (plain ones), or another of `xqg_qdrant.retrieval.RANKINGS`.
        language: of the questions, such as `fi`, for the rankings `offset` and `passage-offset`; by default it is
            identified, if the extra `languages` is installed.

    Returns:
        The question's hits, best first: passage, score, and the generated query nearest to the question. For several
        questions, one such list each.

    Raises:
        InputError: there is no such collection or ranking, or the limit is below 1.
        MismatchError: the collection was made with another encoder.
        StoreError: the database cannot be reached, or refuses.
    """
    if limit < 1:
        raise InputError(f"limit must be at least 1, was: {show(limit)}.", "ask for 1 passage or more")
    check_rankings([ranking])
    check_collection(store, collection, encoder)
    if isinstance(questions, str):
        return search_hits(store, collection, encoder, [questions], limit, ranking, language)[0]
    return search_hits(store, collection, encoder, questions, limit, ranking, language)


def evaluate(
    questions: str | Path | Sequence[Query],
    store: Store,
    collection: str,
    encoder: TextEncoder,
    *,
    qrels: str | Path | Iterable[Qrel] | None = None,
    rankings: Sequence[str] = ("passage", "xqg"),
    test: TestName = "randomisation",
) -> Report:
    """Measure each ranking by language, and its gain over the first.

    Args:
        questions: a file or folder as `xqg evaluate --questions` takes it, or questions.
        store: the store of the collection.
        collection: its name.
        encoder: the one that the collection was made with.
        qrels: which passages answer which question: a file, or judgements. By default those in the questions' file,
            or beside it.
        rankings: names of `xqg_qdrant.retrieval.RANKINGS`; the others are compared with the first.
        test: the paired test of a difference: `randomisation`, `t` or `mcnemar`.

    Returns:
        If documents were split and the judgements name them, each document counts with its best passage.
        Recall@k, MRR@10 and nDCG@10 if there are judgements; R@2kt and R@5kt if the questions have answers. Format the
        report with `format_table`, or convert it with `Report.to_json`.

    Raises:
        InputError: a file cannot be used, or there is no such collection or ranking.
        MismatchError: the collection was made with another encoder.
        StoreError: the database cannot be reached, or refuses.
    """
    check_rankings(rankings)
    if isinstance(questions, str | Path):
        if qrels is not None and not isinstance(qrels, str | Path):
            raise InputError(
                "qrels are records, but questions are a file.", "pass both as records, or qrels as a file too"
            )
        queries, judgements = read_judged_questions([questions], qrels)
    else:
        queries = list(questions)
        judgements = read_qrels(qrels) if isinstance(qrels, str | Path) else list(qrels or ())
    check_collection(store, collection, encoder)
    by_document = check_collection_is_judged(store, collection, judgements)
    measured = measured_questions(queries, judgements)
    with tqdm(total=len(measured), unit=" questions", disable=None) as bar:
        runs = search_runs(store, collection, encoder, measured, EVALUATION_DEPTH, rankings, bar.update)
    left_out = len(queries) - len(measured)
    if not by_document:
        return evaluate_runs(measured, judgements, runs, test=test, left_out=left_out)
    ranked = rank_documents(runs)
    report = evaluate_runs(measured, judgements, ranked, test=test, left_out=left_out)
    return note_documents(report, ranked, EVALUATION_DEPTH)
