"""The `xqg` command: parses, calls, prints. Data goes to stdout, progress and messages to stderr.

Everything heavy is imported by the command that needs it, so that `xqg --help` starts at once.
"""

from xqg_qdrant.cli import (
    collections,
    compare,
    copy,
    demo,
    describe,
    evaluation,
    generate,
    ingest,
    models,
    pilot,
    report,
    retrieval,
    robustness,
    serve,
    sweep,
)
from xqg_qdrant.cli.group import main

__all__ = [
    "collections",
    "compare",
    "copy",
    "demo",
    "describe",
    "evaluation",
    "generate",
    "ingest",
    "main",
    "models",
    "pilot",
    "report",
    "retrieval",
    "robustness",
    "serve",
    "sweep",
]
