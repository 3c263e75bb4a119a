"""Read the rows of known data sets: passages, questions, answers and judgements.

Rows of SQuAD and its translations, MKQA, AfriQA, SWIM-IR, Mr. TyDi and MIRACL are recognised by their fields; other
rows are returned unchanged. Some files give the language of their questions only in their name. Data sets of
`ir_datasets` are read through that package.

If a data set has answers in several languages, those in the language of the passages are used: R@kt looks for them
there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from xqg_qdrant.corpus.files import CATALOGUE
from xqg_qdrant.corpus.rows import FileRow
from xqg_qdrant.errors import InputError
from xqg_qdrant.languages import LANGUAGES
from xqg_qdrant.records import Qrel
from xqg_qdrant.text import show

FILE_NAMES = tuple(
    re.compile(pattern)
    for pattern in (
        r"/[^/]*-context-[a-z]{2}-question-([a-z]{2})\.json(?:\.gz)?$",  # MLQA
        r"/xquad\.([a-z]{2})\.json(?:\.gz)?$",
        r"/topics\.miracl-v[\d.]+-([a-z]{2})-[^/]*$",
        r"/(?:topics\.)?mrtydi-v[\d.]+-([a-z]+)[./-].*$",
        r"/(?:queries|gold_span_passages)\.(?:afriqa|xqa)\.([a-z]{3})\.[^/]*$",
        r"/([a-z]{2})/(?:dev_2k|test_2k|translated_train)\.tsv(?:\.gz)?$",  # PAWS-X
    )
)


class QuestionRow(NamedTuple):
    """A question, under the field names of any file of questions.

    Attributes:
        fields: `id`, `text`, `lang` and `answers`, or the file's own names for them.
        relevant: Relevance by passage id; empty if the row has no judgements.
        is_id_shared: Whether the data set uses the same ids in each language.
    """

    fields: Mapping[str, Any]
    relevant: Mapping[str, int] = {}
    is_id_shared: bool = False


def language_in_name(path: str | Path) -> str:
    """Return the question language that a known file name contains; otherwise an empty string."""
    name = Path(path).absolute().as_posix()
    found = next(filter(None, (pattern.search(name) for pattern in FILE_NAMES)), None)
    codes = {language.name.lower(): code for code, language in LANGUAGES.items()}  # mrtydi-v1.1-arabic
    return codes.get(found[1], found[1]) if found else ""


def context_id(context: str) -> str:
    """Return an id derived from a passage's text, the same in every file with that text."""
    return blake2b(context.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()


def is_id_derived(fields: Mapping[str, Any]) -> bool:
    """Return whether a row's passage lacks an id, as in SQuAD and AfriQA's gold passages."""
    return "context" in fields and ("qas" in fields or "question_lang" in fields)


def passage_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the passage fields of a row, without those of its questions.

    Raises:
        ValueError: the row belongs to a known data set but cannot be used; the message says why.
    """
    if is_id_derived(fields):
        context = _context(fields)
        return {"id": context_id(context), "title": fields.get("title"), "text": context}
    dropped = ("lang", "code", "query") if _is_swim_ir(fields) else ()
    return {name: value for name, value in fields.items() if name not in dropped}


def question_rows(fields: Mapping[str, Any]) -> Iterator[QuestionRow]:
    """Yield the questions of a row.

    Raises:
        ValueError: the row belongs to a known data set but cannot be used; the message says why.
    """
    if "qas" in fields:
        yield from _squad(fields)
    elif is_id_derived(fields):
        question = {"id": fields.get("id"), "text": fields["question_lang"]}
        answer = fields.get("answer_pivot")
        answers = _texts(answer.get("text") if isinstance(answer, dict) else None, "answer_pivot.text")
        yield QuestionRow(question | {"answers": answers}, {context_id(_context(fields)): 1}, is_id_shared=True)
    elif "example_id" in fields and isinstance(fields.get("queries"), dict):
        yield from _mkqa(fields)
    elif "translated_answer" in fields:
        answers = _listed_answers(fields["translated_answer"])
        yield QuestionRow({**fields, "answers": answers}, is_id_shared=True)
    elif _is_swim_ir(fields):
        question = {"id": fields["_id"], "text": fields["query"], "lang": fields["code"]}
        yield QuestionRow(question, {str(fields["_id"]): 1}, is_id_shared=True)
    elif isinstance(fields.get("positive_passages"), list):
        relevant = _docids(fields, "negative_passages", 0) | _docids(fields, "positive_passages", 1)
        yield QuestionRow(fields, relevant)
    else:
        yield QuestionRow(fields)


def generated_query_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of a generated query; SWIM-IR's `lang` is replaced by its language code."""
    return {**fields, "lang": fields["code"]} if _is_swim_ir(fields) else fields


def is_catalogued(source: str | Path) -> bool:
    """Return whether a source names a data set of ir_datasets, not a file."""
    return str(source).startswith(CATALOGUE)


def catalogued_passages(source: str) -> Iterator[FileRow]:
    """Yield one row `{id, title, text}` per document."""
    dataset = _load(source, "docs")
    with _explained_errors(source):
        for number, document in enumerate(dataset.docs_iter(), start=1):
            text = document.text if hasattr(document, "text") else document.default_text()
            fields = {"id": document.doc_id, "title": getattr(document, "title", None), "text": text}
            yield FileRow(number, "", fields)


def catalogued_questions(source: str) -> Iterator[FileRow]:
    """Yield one row `{id, text, lang}` per question, with the package's default text for topics."""
    dataset = _load(source, "queries")
    with _explained_errors(source):
        language = dataset.queries_lang() or ""
        for number, question in enumerate(dataset.queries_iter(), start=1):
            fields = {"id": question.query_id, "text": question.default_text(), "lang": language}
            yield FileRow(number, "", fields)


def catalogued_judgements(source: str, required: bool = True) -> list[Qrel]:
    """Return the judgements; empty if the data set has none and they are not `required`."""
    dataset = _load(source, "qrels" if required else "")
    with _explained_errors(source):
        found = dataset.qrels_iter() if dataset.has_qrels() else ()
        return [Qrel(qrel.query_id, qrel.doc_id, int(qrel.relevance)) for qrel in found]


def _is_swim_ir(fields: Mapping[str, Any]) -> bool:
    return fields.keys() == {"_id", "lang", "code", "query", "title", "text"}


def _squad(paragraph: Mapping[str, Any]) -> Iterator[QuestionRow]:
    context, questions = _context(paragraph), paragraph["qas"]
    if not isinstance(questions, list):
        raise ValueError("qas is not a list")
    for question in questions:
        if not isinstance(question, dict):
            raise ValueError("qas holds something that is not an object")
        answers = question.get("answers") or ()
        if not isinstance(answers, list | tuple) or not all(isinstance(answer, dict) for answer in answers):
            raise ValueError(f"the answers of {show(question.get('id'))} are not a list of objects")
        texts = list(dict.fromkeys(_texts([answer.get("text") for answer in answers], "answers")))
        # A question that SQuAD 2.0 calls impossible is kept, without a relevant passage.
        relevant = {} if question.get("is_impossible") else {context_id(context): 1}
        yield QuestionRow({**question, "answers": texts}, relevant, is_id_shared=True)


def _mkqa(fields: Mapping[str, Any]) -> Iterator[QuestionRow]:
    answers = fields.get("answers")
    english = answers.get("en") if isinstance(answers, dict) else None
    if not isinstance(english, list) or not all(isinstance(answer, dict) for answer in english):
        raise ValueError("answers holds no list of objects for en")
    texts: dict[str, None] = {}
    for answer in english:
        aliases = answer.get("aliases") or ()
        # Unanswerable questions have a null text; an empty answer would be found in every passage.
        texts |= dict.fromkeys(_texts([text for text in (answer.get("text"), *aliases) if text], "answers"))
    for language, text in fields["queries"].items():
        question = {"id": f"{fields['example_id']}-{language}", "text": text, "lang": language}
        yield QuestionRow(question | {"answers": list(texts)})


def _context(fields: Mapping[str, Any]) -> str:
    context = fields.get("context")
    if not isinstance(context, str):
        raise ValueError("context is not a string")
    return context


def _listed_answers(value: object) -> list[str]:
    """Parse AfriQA's answers: a Python list literal, except that inner quotes may be unescaped."""
    if not isinstance(value, str):
        return _texts(value, "translated_answer")
    try:
        return _texts(ast.literal_eval(value), "translated_answer")
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        if not (value.startswith("['") and value.endswith("']")):
            raise ValueError("translated_answer is not a list of strings") from None
        return value[2:-2].split("', '")


def _texts(value: object, name: str) -> list[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name} is not a list of strings")
    return list(value)


def _docids(fields: Mapping[str, Any], name: str, relevance: int) -> dict[str, int]:
    passages: Sequence[Any] = fields.get(name) or ()
    if not isinstance(passages, list | tuple) or not all(isinstance(passage, dict) for passage in passages):
        raise ValueError(f"{name} is not a list of objects")
    ids = [passage.get("docid") for passage in passages]
    if not all(isinstance(docid, str) and docid for docid in ids):
        raise ValueError(f"{name} holds a passage without docid")
    return {str(docid): relevance for docid in ids}


def _load(source: str, part: str) -> Any:  # noqa: ANN401
    """Load a data set, and check that it has this part.

    Raises:
        InputError: the package is not installed, the id is unknown, or the part is missing.
    """
    try:
        import ir_datasets
    except ImportError as error:
        raise InputError(f"{source}: ir_datasets is not installed.", "pip install 'xqg-qdrant[datasets]'") from error
    try:
        dataset = ir_datasets.load(source.removeprefix(CATALOGUE))
    except KeyError as error:
        raise InputError(f"{source}: unknown id of ir_datasets.", "look it up with ir_datasets list") from error
    if part and not getattr(dataset, f"has_{part}")():
        raise InputError(f"{source}: the data set has no {part}.", "name another id, such as one of its splits")
    return dataset


@contextmanager
def _explained_errors(source: str) -> Iterator[None]:
    """Turn failures of the package, mostly of its downloads, into an InputError with the source."""
    try:
        yield
    except (InputError, GeneratorExit):
        raise
    except Exception as error:
        cure = "check the network, or put the files where ir_datasets looks for them"
        raise InputError(f"{source}: ir_datasets cannot read it ({error!r:.300}).", cure) from error
