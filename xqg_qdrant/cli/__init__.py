"""The `xqg` command: parses, calls, prints. Data goes to stdout, progress and messages to stderr.

Each command imports what is heavy when it runs, so `xqg --help` starts at once.
"""

from xqg_qdrant.cli import collections, compare, demo, evaluation, ingest, models, pilot, retrieval, sweep
from xqg_qdrant.cli.shared import main

__all__ = ["collections", "compare", "demo", "evaluation", "ingest", "main", "models", "pilot", "retrieval", "sweep"]
