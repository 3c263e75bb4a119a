"""What a program asks for, each in one call: ingest a corpus, search a collection, evaluate it.

Knows what the commands of the same names put together, with the same defaults. Prints nothing but a progress bar, on a
terminal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias, overload

from tqdm import tqdm

from xqg_qdrant.augmentation.pipeline import Progress, Row
from xqg_qdrant.augmentation.pipeline import ingest as ingest_chunks
from xqg_qdrant.augmentation.recipe import make_recipe
from xqg_qdrant.corpus.inputs import CORPUS, Inputs
from xqg_qdrant.corpus.passages import check_passages
from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation import EVALUATION_DEPTH
from xqg_qdrant.evaluation.comparison import Report, evaluate_runs
from xqg_qdrant.evaluation.files import read_judged_questions, read_qrels
from xqg_qdrant.evaluation.significance import TestName
from xqg_qdrant.generation.lexicon import Lexicon
from xqg_qdrant.generation.onnx import QueryGenerator
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.lifecycle.status import EXACT_UP_TO
from xqg_qdrant.records import Qrel, Query, ScoredPassage
from xqg_qdrant.retrieval import Hit, answer, answer_all, check_collection, check_rankings, search_runs
from xqg_qdrant.stores import Store
from xqg_qdrant.streams import count_workers

Corpus: TypeAlias = str | Path | Iterable[Mapping[str, Any]]


def ingest(
    corpus: Corpus,
    store: Store,
    collection: str,
    encoder: Encoder,
    generator: QueryGenerator | Lexicon | None,
    *,
    languages: Sequence[str] = (),
    id_field: str | None = None,
    **settings: Any,
) -> Progress:
    """Store the passages of a corpus with augmented vectors, and index the collection where it is large.

    Run again after an interruption it goes on where it stopped, and on an edited corpus it redoes what changed. A row
    that cannot be used is no error: it comes back among the `rejects`, and the rest is stored.

    Args:
        corpus: a file or folder as `xqg ingest` takes it, or rows `{"id": …, "text": …, "title": …, …}`.
        store: where the collection is; it is created where it does not exist.
        collection: its name.
        encoder: of passages and queries.
        generator: writes the queries. None where the rows bring them, in the field `generated_queries`.
        languages: to write queries in, such as `("ja", "ru")`; all of the generator's where none is named.
        id_field: the field of the passage id, where it is none of `id`, `_id`, `passage_id` and `docid`.
        **settings: of `xqg_qdrant.augmentation.recipe.Recipe` and `xqg_qdrant.generation.onnx.Sampling`, such as
            `queries_per_language`, `alpha`, `fusion`, `seed`, `sparse`, `top_k`; as published where they are not given.

    Returns:
        The sum over all chunks. `xqg_qdrant.augmentation.pipeline.ingest` yields them one by one.

    Raises:
        InputError: the corpus or a setting cannot be used.
        MismatchError: the collection was made with other models or another recipe.
        StoreError: the database cannot be reached, or refuses.
        ModelError: a model fails.
    """
    recipe = make_recipe(generator, languages, **settings)
    rows: Iterable[Row]
    total = None
    queries = CORPUS if generator is None else None
    if isinstance(corpus, str | Path):
        inputs = Inputs([str(corpus)], queries, id_field)
        rows, total = inputs.read(), inputs.count()
    else:
        rows = check_passages(corpus, id_field=id_field, queried=generator is None)
    workers = count_workers(encoder.device)
    done = []
    with (
        tqdm(total=total, unit=" passages", disable=None) as bar,
        closing(ingest_chunks(rows, store, collection, encoder, generator, recipe, workers)) as steps,
    ):
        for progress in steps:
            done.append(progress)
            bar.update(progress.rows)
    result = _sum(done)
    if result.stored:
        for _ in store.optimise(collection, EXACT_UP_TO):
            pass
    return result


@overload
def search(
    questions: str, store: Store, collection: str, encoder: Encoder, *, limit: int = ..., ranking: str = ...
) -> list[Hit]: ...


@overload
def search(
    questions: list[str] | tuple[str, ...],
    store: Store,
    collection: str,
    encoder: Encoder,
    *,
    limit: int = ...,
    ranking: str = ...,
) -> list[list[Hit]]: ...


def search(
    questions: str | list[str] | tuple[str, ...],
    store: Store,
    collection: str,
    encoder: Encoder,
    *,
    limit: int = 5,
    ranking: str = "xqg",
) -> list[Hit] | list[list[Hit]]:
    """Find the passages that answer a question, asked in any language.

    Args:
        questions: one question, or several.
        store: where the collection is.
        collection: its name.
        encoder: the one that it was made with.
        limit: how many passages are wanted.
        ranking: `xqg` (augmented vectors), `passage` (plain ones), `hybrid` or `max-sim`; see `xqg_qdrant.retrieval`.

    Returns:
        The hits of the question, best first, each with its passage, its score, and the generated query that is nearest
        to the question; of several questions a list of them for each.

    Raises:
        InputError: there is no such collection or ranking, or the limit is below 1.
        MismatchError: the collection was made with another encoder.
        StoreError: the database cannot be reached, or refuses.
    """
    if limit < 1:
        raise InputError(f"limit must be at least 1, was: {limit}")
    check_rankings([ranking])
    check_collection(store, collection, encoder)
    if isinstance(questions, str):
        return answer(store, collection, encoder, questions, limit, ranking)
    return answer_all(store, collection, encoder, questions, limit, ranking)


def evaluate(
    questions: str | Path | Sequence[Query],
    store: Store,
    collection: str,
    encoder: Encoder,
    *,
    qrels: str | Path | Iterable[Qrel] | None = None,
    rankings: Sequence[str] = ("passage", "xqg"),
    test: TestName = "randomisation",
) -> Report:
    """Measure how good the results for questions are, by language, and what each ranking gains over the first.

    Args:
        questions: a file or folder as `xqg evaluate --questions` takes it, or questions.
        store: where the collection is.
        collection: its name.
        encoder: the one that it was made with.
        qrels: which passages answer which question: a file, or judgements. Of questions in a file those that it holds,
            or that lie beside it, where none are given.
        rankings: `passage` (plain vectors), `xqg` (augmented ones), `hybrid` and `max-sim`.
        test: the paired test of a difference: `randomisation`, `t` or `mcnemar`.

    Returns:
        Recall@k, MRR@10 and nDCG@10 where there are judgements, R@2kt and R@5kt where the questions have answers;
        `format_table` makes it readable, `Report.to_json` a dictionary.

    Raises:
        InputError: a file cannot be used, or there is no such collection or ranking.
        MismatchError: the collection was made with another encoder.
        StoreError: the database cannot be reached, or refuses.
    """
    check_rankings(rankings)
    if isinstance(questions, str | Path):
        if qrels is not None and not isinstance(qrels, str | Path):
            raise InputError("judgements are given as records, so the questions must be, too")
        queries, judgements = read_judged_questions([questions], qrels)
    else:
        queries = list(questions)
        judgements = read_qrels(qrels) if isinstance(qrels, str | Path) else list(qrels or ())
    check_collection(store, collection, encoder)
    runs: dict[str, dict[str, list[ScoredPassage]]] = {name: {} for name in rankings}
    with tqdm(total=len(queries), unit=" questions", disable=None) as bar:
        for part in search_runs(store, collection, encoder, queries, EVALUATION_DEPTH, rankings):
            for name, found in part.items():
                runs[name].update(found)
            bar.update(len(found))
    return evaluate_runs(queries, judgements, runs, test=test)


def _sum(done: Sequence[Progress]) -> Progress:
    asked, kept, wrong_script = Counter[str](), Counter[str](), Counter[str]()
    for progress in done:
        asked.update(progress.asked)
        kept.update(progress.kept)
        wrong_script.update(progress.wrong_script)
    return Progress(
        sum(progress.stored for progress in done),
        sum(progress.unchanged for progress in done),
        tuple(reject for progress in done for reject in progress.rejects),
        asked,
        kept,
        sum(progress.bare for progress in done),
        sum(progress.left_out for progress in done),
        wrong_script,
    )
