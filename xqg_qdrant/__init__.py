"""Make a Qdrant collection answer questions asked in languages its passages are not written in (xQG, SIGIR 2023).

The Python interface, in five lines:

    from xqg_qdrant import Encoder, QueryGenerator, ingest, open_store, search

    encoder, generator = Encoder(), QueryGenerator()
    with open_store("./my_data") as store:
        ingest("corpus.jsonl", store, "docs", encoder, generator)
        print(search("Какая река самая длинная в Африке?", store, "docs", encoder)[0].passage.title)

Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xqg_qdrant.api import evaluate, ingest, search
    from xqg_qdrant.augmentation.pipeline import Progress
    from xqg_qdrant.errors import DamageError, InputError, MismatchError, ModelError, StoreError, XqgError
    from xqg_qdrant.evaluation.comparison import Report
    from xqg_qdrant.generation.lexicon import Lexicon
    from xqg_qdrant.generation.llm import LanguageModelGenerator
    from xqg_qdrant.generation.onnx import QueryGenerator
    from xqg_qdrant.inference import open_encoder
    from xqg_qdrant.inference.encoder import Encoder
    from xqg_qdrant.printing import format_table
    from xqg_qdrant.records import GeneratedQuery, Passage, Qrel, Query, Reject
    from xqg_qdrant.retrieval import Hit
    from xqg_qdrant.stores import Sharding, Store, open_store

# Importing a record alone must not load ONNX Runtime.
_MODULES = {
    "DamageError": "errors",
    "Encoder": "inference.encoder",
    "GeneratedQuery": "records",
    "Hit": "retrieval",
    "InputError": "errors",
    "LanguageModelGenerator": "generation.llm",
    "Lexicon": "generation.lexicon",
    "MismatchError": "errors",
    "ModelError": "errors",
    "Passage": "records",
    "Progress": "augmentation.pipeline",
    "Qrel": "records",
    "Query": "records",
    "QueryGenerator": "generation.onnx",
    "Reject": "records",
    "Report": "evaluation.comparison",
    "Sharding": "stores",
    "Store": "stores",
    "StoreError": "errors",
    "XqgError": "errors",
    "evaluate": "api",
    "format_table": "printing",
    "ingest": "api",
    "open_encoder": "inference",
    "open_store": "stores",
    "search": "api",
}

__all__ = [
    "DamageError",
    "Encoder",
    "GeneratedQuery",
    "Hit",
    "InputError",
    "LanguageModelGenerator",
    "Lexicon",
    "MismatchError",
    "ModelError",
    "Passage",
    "Progress",
    "Qrel",
    "Query",
    "QueryGenerator",
    "Reject",
    "Report",
    "Sharding",
    "Store",
    "StoreError",
    "XqgError",
    "evaluate",
    "format_table",
    "ingest",
    "open_encoder",
    "open_store",
    "search",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'xqg_qdrant' has no attribute {name!r}")
    return getattr(import_module(f"xqg_qdrant.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
