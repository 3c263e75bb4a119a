"""Real data that lies beside the checkout, where it does; tests that need it are skipped where it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_file(name: str) -> Path:
    """Return the path of a file of the shared data, or skip the test that asks for it."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(os.environ.get("XQG_SHARED_DATA", beside)) / name
    if not path.exists():
        pytest.skip(f"{path} is not there; XQG_SHARED_DATA may name another folder")
    return path


def shared_case(name: str) -> Path:
    """Return the path of a file of the shared cases, or skip the test that asks for it."""
    path = Path(__file__).resolve().parents[3] / "shared" / "cases" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path
