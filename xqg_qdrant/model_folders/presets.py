"""List known checkpoints: a short name, the hub id, and the options that each needs.

Dense layers are not listed: a checkpoint's own files describe them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from xqg_qdrant.errors import InputError

XOR_TYDI = ("ar", "bn", "fi", "ja", "ko", "ru", "te")
XQG_PROMPT = "Generate a {language} question for this passage: {title} {text}"
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
E5_PREFIXES = {"query_prefix": "query: ", "passage_prefix": "passage: "}
SEE_CARD = "see its card"
SAFETENSORS, PICKLE = "safetensors", "pickle"
COMPARED = "normalised here, because it is trained for cosine similarity"


class Preset(NamedTuple):
    """A known checkpoint.

    Attributes:
        kind: `encoder` or `generator`.
        source: Its hub id.
        licence: As its card names it.
        options: Those of `xqg export`.
        note: For people.
        revision: Of the hub; None is the latest.
        weights: How they are published: `safetensors` or `pickle`.
    """

    kind: str
    source: str
    licence: str
    options: Mapping[str, Any]
    note: str = ""
    revision: str | None = None
    weights: str = SAFETENSORS


def _encoder(
    source: str, licence: str, pooling: str, longest: int, note: str = "", weights: str = SAFETENSORS, **options: Any
) -> Preset:
    own = {
        "pooling": pooling, "normalise": True, "query_prefix": "", "passage_prefix": "",
        "max_query_tokens": longest, "max_passage_tokens": longest,
    }  # fmt: skip
    return Preset("encoder", source, licence, {**own, **options}, note, weights=weights)


def _generator(
    source: str,
    licence: str,
    prompt: str,
    note: str = "",
    revision: str | None = None,
    weights: str = PICKLE,
    **options: Any,
) -> Preset:
    return Preset("generator", source, licence, {"prompt": prompt, "top_k": 10, **options}, note, revision, weights)


PRESETS: dict[str, Preset] = {
    "xqg-paper": _generator(
        "ielabgroup/xor-tydi-docTquery-mt5-base", "apache-2.0", XQG_PROMPT, languages=XOR_TYDI,
        max_input_tokens=256, max_new_tokens=32, note="the paper's generator",
    ),
    "xqg-paper-large": _generator(
        "ielabgroup/xor-tydi-docTquery-mt5-large", "apache-2.0", XQG_PROMPT, languages=XOR_TYDI,
        max_input_tokens=256, max_new_tokens=32, note="the paper's generator, large",
    ),
    "doc2query-14langs": _generator(
        "doc2query/msmarco-14langs-mt5-base-v1", "apache-2.0", "{text}", revision="refs/pr/3", weights=SAFETENSORS,
        max_input_tokens=320, max_new_tokens=64, note="writes in the passage's language: set --languages to it",
    ),
    "doc2query-t5": _generator(
        "castorini/doc2query-t5-base-msmarco", SEE_CARD, "{text}", languages=("en",),
        max_input_tokens=512, max_new_tokens=64, note="English",
    ),
    "beir-query-gen": _generator(
        "BeIR/query-gen-msmarco-t5-base-v1", SEE_CARD, "{text}", languages=("en",),
        max_input_tokens=512, max_new_tokens=64, note="English",
    ),
    "beir-query-gen-large": _generator(
        "BeIR/query-gen-msmarco-t5-large-v1", SEE_CARD, "{text}", languages=("en",),
        max_input_tokens=512, max_new_tokens=64, note="English",
    ),
    "xqg-paper-retriever": _encoder(
        "ielabgroup/bert-base-multilingual-cased-xor-tydi", SEE_CARD, "cls", 128, normalise=False, max_query_tokens=32,
        note="the paper's retriever, mBERT", weights=PICKLE,
    ),
    "mdpr": _encoder("castorini/mdpr-tied-pft-msmarco", SEE_CARD, "cls", 512, normalise=False, weights=PICKLE),
    "mcontriever": _encoder("facebook/mcontriever-msmarco", SEE_CARD, "mean", 512, normalise=False, weights=PICKLE),
    "e5-small": _encoder("intfloat/multilingual-e5-small", "mit", "mean", 512, **E5_PREFIXES),
    "e5-base": _encoder("intfloat/multilingual-e5-base", "mit", "mean", 512, **E5_PREFIXES),
    "e5-large": _encoder("intfloat/multilingual-e5-large", "mit", "mean", 512, **E5_PREFIXES),
    "e5-large-instruct": _encoder(
        "intfloat/multilingual-e5-large-instruct", "mit", "mean", 512,
        query_prefix="Instruct: {task}\nQuery: ", task=WEB_SEARCH, note="another --task for other questions",
    ),
    "bge-m3": _encoder("BAAI/bge-m3", "mit", "cls", 8192, note="its dense vectors"),
    "gte-multilingual-base": _encoder("Alibaba-NLP/gte-multilingual-base", "apache-2.0", "cls", 8192),
    "arctic-embed-l-v2": _encoder(
        "Snowflake/snowflake-arctic-embed-l-v2.0", "apache-2.0", "cls", 8192, query_prefix="query: "
    ),
    "arctic-embed-m-v2": _encoder(
        "Snowflake/snowflake-arctic-embed-m-v2.0", "apache-2.0", "cls", 8192, query_prefix="query: "
    ),
    "qwen3-embedding-0.6b": _encoder(
        # It can read 32,768 tokens, but attention grows with the square of a text's length.
        "Qwen/Qwen3-Embedding-0.6B", "apache-2.0", "last", 8192,
        query_prefix="Instruct: {task}\nQuery:", task=WEB_SEARCH, note="another --task for other questions",
    ),
    "embeddinggemma-300m": _encoder(
        "google/embeddinggemma-300m", "gemma", "mean", 2048, query_prefix="task: {task} | query: ",
        passage_prefix="title: none | text: ", task="search result", note="the hub asks to accept its terms first",
    ),
    "minilm-l12": _encoder(
        "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2", "apache-2.0", "mean", 128, note=COMPARED
    ),
    "mpnet": _encoder(
        "sentence-transformers/paraphrase-multilingual-mpnet-base-v2", "apache-2.0", "mean", 128, note=COMPARED
    ),
    "labse": _encoder("sentence-transformers/LaBSE", "apache-2.0", "cls", 256),
}  # fmt: skip


def find_preset(name: str) -> Preset:
    """Return the preset of a name.

    Raises:
        InputError: there is none.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}.", "choose one that `xqg export --list` shows")
    return PRESETS[name]


def preset_options(name: str) -> dict[str, Any]:
    """Return the options of a preset, with its task filled in.

    Raises:
        InputError: there is no such preset.
    """
    options = dict(find_preset(name).options)
    task = options.pop("task", "")
    return {
        option: value.replace("{task}", task) if option == "query_prefix" else value
        for option, value in options.items()
    }
