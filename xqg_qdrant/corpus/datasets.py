"""What a row of a known data set holds: the passage, or the questions with their answers and judgements.

Knows the fields of SQuAD and its translations, MKQA, AfriQA, SWIM-IR, Mr. TyDi and MIRACL, by which a row tells
whose it is, and the files that tell the language of their questions only by their names. A row of no known data set
is returned as it is. Knows nothing of how files are read.

Answers are those in the language of the passages, where a data set has several: R@kt looks for them there.
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
from xqg_qdrant.corpus.formats import FileRow
from xqg_qdrant.errors import InputError
from xqg_qdrant.languages import LANGUAGES
from xqg_qdrant.records import Qrel

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
    """A question, under the field names that any file of questions may have.

    Attributes:
        fields: `id`, `text`, `lang` and `answers`, or what the file calls them.
        relevant: How relevant passages are to it, where the row says so.
        is_id_shared: The data set uses the same ids in each of its languages.
    """

    fields: Mapping[str, Any]
    relevant: Mapping[str, int] = {}
    is_id_shared: bool = False


def language_in_name(path: str | Path) -> str:
    """Return the language of the questions of a data set's file, where its own name tells it; otherwise nothing."""
    name = Path(path).absolute().as_posix()
    found = next(filter(None, (pattern.search(name) for pattern in FILE_NAMES)), None)
    codes = {language.name.lower(): code for code, language in LANGUAGES.items()}  # mrtydi-v1.1-arabic
    return codes.get(found[1], found[1]) if found else ""


def context_id(context: str) -> str:
    """Return an id for a passage that has none: its text's, so that it is the same in each file that holds the text."""
    return blake2b(context.encode("utf-8", "surrogatepass"), digest_size=10).hexdigest()


def is_id_derived(fields: Mapping[str, Any]) -> bool:
    """Say whether the passage of a row has no id of its own, as in SQuAD and in the gold passages of AfriQA."""
    return "context" in fields and ("qas" in fields or "question_lang" in fields)


def passage_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the passage of a row, without those of the questions beside it.

    Raises:
        ValueError: The row is of a known data set, and cannot be used; the message says why.
    """
    if is_id_derived(fields):
        context = _context(fields)
        return {"id": context_id(context), "title": fields.get("title"), "text": context}
    dropped = ("lang", "code", "query") if _is_swim_ir(fields) else ()
    return {name: value for name, value in fields.items() if name not in dropped}


def question_rows(fields: Mapping[str, Any]) -> Iterator[QuestionRow]:
    """Yield the questions of a row.

    Raises:
        ValueError: The row is of a known data set, and cannot be used; the message says why.
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
    """Return the fields of a query that was generated for the passage of a row: SWIM-IR spells languages out."""
    return {**fields, "lang": fields["code"]} if _is_swim_ir(fields) else fields


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
            raise ValueError(f"the answers of {question.get('id')!r} are not a list of objects")
        texts = list(dict.fromkeys(_texts([answer.get("text") for answer in answers], "answers")))
        # One that SQuAD 2.0 calls impossible stays a question, which nothing answers.
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
        # Unanswerable questions have the text null; an empty one would be found in every passage.
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
    """Read AfriQA's answers, which are a list as Python would write it, but for quotes within them."""
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


def is_catalogued(source: str | Path) -> bool:
    """Say whether this names a data set of ir_datasets and no file."""
    return str(source).startswith(CATALOGUE)


def catalogued_passages(source: str) -> Iterator[FileRow]:
    """Yield a row `{id, title, text}` for each document."""
    dataset = _load(source, "docs")
    with _explained(source):
        for number, document in enumerate(dataset.docs_iter(), start=1):
            text = document.text if hasattr(document, "text") else document.default_text()
            fields = {"id": document.doc_id, "title": getattr(document, "title", None), "text": text}
            yield FileRow(number, "", fields)


def catalogued_questions(source: str) -> Iterator[FileRow]:
    """Yield a row `{id, text, lang}` for each question; of a topic with several texts it is what the package names."""
    dataset = _load(source, "queries")
    with _explained(source):
        language = dataset.queries_lang() or ""
        for number, question in enumerate(dataset.queries_iter(), start=1):
            fields = {"id": question.query_id, "text": question.default_text(), "lang": language}
            yield FileRow(number, "", fields)


def catalogued_judgements(source: str, required: bool = True) -> list[Qrel]:
    """Return the judgements; none where the data set has none and they are not `required`."""
    dataset = _load(source, "qrels" if required else "")
    with _explained(source):
        found = dataset.qrels_iter() if dataset.has_qrels() else ()
        return [Qrel(qrel.query_id, qrel.doc_id, int(qrel.relevance)) for qrel in found]


def _load(source: str, part: str) -> Any:  # noqa: ANN401
    """Return a data set that has this part.

    Raises:
        InputError: The package is not installed, knows no such id, or the data set lacks the part.
    """
    try:
        import ir_datasets
    except ImportError as error:
        raise InputError(f"{source}: needs an extra.", "pip install 'xqg-qdrant[datasets]'.") from error
    try:
        dataset = ir_datasets.load(source.removeprefix(CATALOGUE))
    except KeyError as error:
        raise InputError(f"{source}: ir_datasets knows no such id.", "look it up with ir_datasets list.") from error
    if part and not getattr(dataset, f"has_{part}")():
        raise InputError(f"{source}: has no {part}.", "give an id that has, such as that of a split or of all.")
    return dataset


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turn what goes wrong in the package, its downloads above all, into an error that says where."""
    try:
        yield
    except (InputError, GeneratorExit):
        raise
    except Exception as error:
        cure = "check the network, or put the files where ir_datasets says that it looks for them"
        raise InputError(f"{source}: ir_datasets cannot read it ({error!r:.300}).", cure) from error
