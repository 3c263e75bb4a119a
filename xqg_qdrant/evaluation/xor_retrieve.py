"""Compute the official score of XOR-Retrieve: R@2kt and R@5kt, an answer in the first 2,000 or 5,000 tokens.

This counts like `eval_xor_retrieve.py` of AkariAsai/XORQA, including its oddities, so that figures are comparable. It
iterates over the predictions, so a question without one is not counted. The answers `yes` and `no` are dropped.
Contexts are tokenised, which changes their quotation marks, amounts and commas, but answers are not.

The script uses the installed NLTK's `word_tokenize`, and so does this by default. Since 3.9.3 NLTK splits words at
dashes (`1914–1918`); this alone makes 17 of the 1,928 dev questions unanswerable. The rules `published` reproduce the
older behaviour, for comparisons with older figures.

NLTK and its English sentence splitter are required, and neither is downloaded. The parameters of the splitter come from
a folder of NLTK data or from the files of llama-index-core, which is never imported.
"""

from __future__ import annotations

import importlib.util
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from statistics import mean
from typing import Any, Literal, NamedTuple, TypeAlias

from xqg_qdrant.errors import InputError
from xqg_qdrant.evaluation.files import Prediction
from xqg_qdrant.records import Query, ScoredPassage
from xqg_qdrant.text import agree, count_of

TOKEN_BUDGETS = (2000, 5000)
WordRules: TypeAlias = Literal["installed", "published"]
"""The rules of `word_tokenize`: those of the installed NLTK, or those of NLTK up to 3.9.2."""

INSTALL = "pip install xqg-qdrant[xor]"


class _Tokenised(NamedTuple):
    """Tokens joined by spaces, which takes a tenth of the memory of a list, and their number."""

    text: str
    tokens: int


def is_available() -> bool:
    """Return whether NLTK and its English sentence splitter are installed."""
    try:
        load_tokenizer()
    except InputError:
        return False
    return True


@cache
def load_tokenizer(rules: WordRules = "installed") -> Callable[[str], list[str]]:
    """Return a function that tokenises English like `nltk.word_tokenize`.

    Raises:
        InputError: NLTK or the parameters of its sentence splitter are not installed.
    """
    try:
        import nltk.data
        from nltk.tokenize import NLTKWordTokenizer
        from nltk.tokenize.punkt import PunktTokenizer
    except ImportError as error:
        raise InputError("the official score needs NLTK 3.9 or later.", INSTALL) from error
    folders = _bundled_data()
    nltk.data.path.extend(folders)
    try:
        split_sentences = PunktTokenizer("english").tokenize
    except LookupError as error:
        raise InputError("NLTK's English sentence splitter is not installed.", INSTALL) from error
    finally:
        for folder in folders:
            nltk.data.path.remove(folder)
    words = NLTKWordTokenizer()
    if rules == "published":
        words.PUNCTUATION = [rule for rule in words.PUNCTUATION if rule[0].pattern != r"[\u2012-\u2015]"]
        one_letter_in_quotes = re.compile(r"(?i)(')(?!re|ve|ll|m|t|s|d|n)(\w)\b")
        words.STARTING_QUOTES = [*words.STARTING_QUOTES[:-1], (one_letter_in_quotes, r"\1 \2")]

    def tokenize(text: str) -> list[str]:
        return [token for sentence in split_sentences(text) for token in words.tokenize(sentence)]

    return tokenize


def score_predictions(
    predictions: Iterable[Prediction],
    gold: Iterable[Query],
    token_budgets: Sequence[int] = TOKEN_BUDGETS,
    rules: WordRules = "installed",
) -> dict[str, dict[str, Any]]:
    """Score predictions like the official script, in percent.

    Returns:
        For each budget, under a name such as `R@2kt`: `macro`, the mean over languages; `per_language`; and
        `questions`, the number counted in each language. The dev set of XOR-Retrieve has 309 in ar, 304 in bn, 314 in
        fi, 241 in ja, 285 in ko, 237 in ru and 238 in te; other numbers mean missing predictions or wrong labels.

    Raises:
        InputError: No prediction belongs to a question with an answer, or the tokenizer is not installed.
    """
    answers = {query.query_id: span_answers(query) for query in gold}
    hits: dict[str, list[Sequence[bool]]] = defaultdict(list)
    for prediction in predictions:
        if answers.get(prediction.query_id):
            found = answer_hits(prediction.contexts, answers[prediction.query_id], token_budgets, rules)
            hits[prediction.language].append(found)
    if not hits:
        raise InputError(
            "no prediction belongs to a question with an answer.", "check that the ids of both files agree"
        )
    scores = {}
    for at, budget in enumerate(token_budgets):
        per_language = {
            language: sum(row[at] for row in rows) / len(rows) * 100 for language, rows in sorted(hits.items())
        }
        scores[measure_name(budget)] = {
            "macro": mean(per_language.values()),
            "per_language": per_language,
            "questions": {language: len(hits[language]) for language in per_language},
        }
    return scores


def measure_name(token_budget: int, lenient: bool = False) -> str:
    """Return the name of a measure: `R@2kt` for 2,000 tokens, `R@500t` for 500, `lenient@2kt` for tokenised answers."""
    tokens = f"{token_budget // 1000}kt" if token_budget % 1000 == 0 else f"{token_budget}t"
    return f"{'lenient' if lenient else 'R'}@{tokens}"


def span_answers(query: Query) -> list[str]:
    """Return the answers to search for in texts: all but exactly `yes` and `no`."""
    return [answer for answer in query.answers if answer not in ("yes", "no")]


def add_tokenised(answers: Sequence[str], rules: WordRules = "installed") -> list[str]:
    """Return the answers, and each one tokenised like the contexts, so that `$5` is found as `$ 5`.

    This is not the official score; measures that use it are called lenient.
    """
    tokenised = (_tokenised(answer, rules).text for answer in answers)
    return list(dict.fromkeys((*answers, *filter(None, tokenised))))


def answer_hits(
    contexts: Iterable[str],
    answers: Sequence[str],
    token_budgets: Sequence[int] = TOKEN_BUDGETS,
    rules: WordRules = "installed",
) -> tuple[bool, ...]:
    """Return for each token budget whether the contexts, joined and truncated to it, contain an answer.

    Reading stops at the largest budget, or at the first budget with an answer, since larger ones start with the same
    text.
    """
    parts: list[_Tokenised] = []
    count = 0
    remaining = iter(contexts)
    hits: dict[int, bool] = {}
    for budget in sorted(token_budgets):
        if any(hits.values()):
            hits[budget] = True
            continue
        while count < budget and (context := next(remaining, None)) is not None:
            parts.append(_tokenised(context, rules))
            count += parts[-1].tokens
        text = _first_tokens(parts, budget)
        hits[budget] = any(answer in text for answer in answers)
    return tuple(hits[budget] for budget in token_budgets)


def token_count(contexts: Iterable[str], limit: int, rules: WordRules = "installed") -> int:
    """Return the number of tokens in the contexts, at most `limit`."""
    count = 0
    for context in contexts:
        count += _tokenised(context, rules).tokens
        if count >= limit:
            return limit
    return count


# Many questions find the same passages. 2**16 passages of 100 words take some 60 MB.
@lru_cache(maxsize=1 << 16)
def _tokenised(text: str, rules: WordRules) -> _Tokenised:
    tokens = load_tokenizer(rules)(text)
    return _Tokenised(" ".join(tokens), len(tokens))


def _first_tokens(parts: Sequence[_Tokenised], limit: int) -> str:
    """Join the first tokens of all parts with single spaces; splitting is safe, as no token contains white space."""
    kept: list[str] = []
    for text, count in parts:
        if count:
            kept.append(text if count <= limit else " ".join(text.split()[:limit]))
        limit -= count
        if limit <= 0:
            break
    return " ".join(kept)


def _bundled_data() -> list[str]:
    """Return the folders of NLTK data in llama-index-core."""
    spec = importlib.util.find_spec("llama_index")
    roots = (spec.submodule_search_locations if spec else None) or ()
    folders = [Path(root, "core", "_static", "nltk_cache") for root in roots]
    return [str(folder) for folder in folders if folder.is_dir()]


Found: TypeAlias = Mapping[str, Sequence[ScoredPassage]]
"""A run: for each query id the passages found, best first. A run whose passages lack ids has no recall, and one whose
passages lack texts has no R@kt."""


def find_answer_hits(
    queries: Iterable[Query],
    run: Found,
    token_budgets: Sequence[int],
    rules: WordRules,
    lenient: bool = False,
) -> dict[str, dict[str, float]]:
    """Return by measure R@kt and question 1 if an answer is among the retrieved tokens, else 0."""
    hits: dict[str, dict[str, float]] = {}
    for query in queries:
        texts = (found.passage.text for found in run.get(query.query_id, ()))
        answers = span_answers(query)
        if lenient:
            answers = add_tokenised(answers, rules)
        found = answer_hits(texts, answers, token_budgets, rules)
        for budget, hit in zip(token_budgets, found, strict=True):
            hits.setdefault(measure_name(budget, lenient), {})[query.query_id] = float(hit)
    return hits


def note_short_results(
    name: str,
    queries: Sequence[Query],
    run: Found,
    hits: Mapping[str, Mapping[str, float]],
    token_budgets: Sequence[int],
    rules: WordRules,
) -> list[str]:
    """Return notes on misses caused by too few results: R@5kt of ten passages is in fact R@1kt."""
    notes = []
    for budget in token_budgets:
        measure = measure_name(budget)
        short = 0
        for query in queries:
            texts = (found.passage.text for found in run.get(query.query_id, ()))
            if not hits[measure][query.query_id] and token_count(texts, budget, rules) < budget:
                short += 1
        if short:
            notes.append(
                f"{measure} of {name}: {count_of(short, 'missed question')} {agree(short, 'has', 'have')} results of "
                f"fewer than {budget:,} tokens; search with a higher limit"
            )
    return notes
