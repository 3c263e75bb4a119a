"""A sweep kept as a results folder, for a report.

Knows files. What else a results folder holds is told in `evaluation.results`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xqg_qdrant.evaluation.results import new_results
from xqg_qdrant.sweep.choosing import Sweep
from xqg_qdrant.sweep.measuring import Bench


def save_sweep(
    folder: Path, manifest: Mapping[str, Any], bench: Bench, sweep: Sweep, pilot: Mapping[str, Any] | None = None
) -> None:
    """Write the results folder of a sweep, with the questions that were asked, or of a pilot, which tells more.

    Raises:
        InputError: something else has the folder's name.
    """
    name, value = ("sweep.json", sweep.to_json()) if pilot is None else ("pilot.json", pilot)
    with new_results(folder, manifest, bench.queries, bench.qrels) as final:
        (final / name).write_text(f"{json.dumps(value, ensure_ascii=False, indent=2)}\n", encoding="utf-8")
