"""What is done about answers that a real Qdrant 1.19.0 gave, which `rest_qdrant` gives in the same words."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest
from rest_qdrant import RestQdrant

from xqg_qdrant.records import AugmentedPassage, Passage
from xqg_qdrant.stores import Store, open_store
from xqg_qdrant.stores.server import requests as wire_module

DIM = 8
FINGERPRINT = {"recipe.alpha": 0.01}


@pytest.fixture
def store(rest: RestQdrant, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store with an empty collection `docs`."""
    monkeypatch.setattr(wire_module, "FIRST_DELAY_SECONDS", 0.01)
    opened = open_store(rest.url)
    opened.create_collection("docs", DIM, FINGERPRINT)
    yield opened
    opened.close()


def make_points(count: int, text: str = "text") -> list[AugmentedPassage]:
    vectors = np.random.default_rng(7).standard_normal((count, DIM)).astype(np.float32)
    return [
        AugmentedPassage(Passage(f"p{i}", text), (), {"xqg": vector, "passage": -vector}, f"hash {i}", "recipe")
        for i, vector in enumerate(vectors)
    ]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# --- keys for one collection


def test_a_key_that_may_not_pause_indexing_loads_nevertheless_and_is_told_once(
    rest: RestQdrant, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    rest.global_access = False
    for _ in range(2):
        with store.bulk_load("docs", fast=True):
            pass
    with store.bulk_load("docs", fast=True):
        store.upsert("docs", make_points(3))
    assert store.count("docs") == 3
    assert rest.settings["docs"].indexing_threshold == 10_000
    [told] = warnings(caplog)
    assert told.startswith("cannot pause the indexing of 'docs' in http://127.0.0.1:")
    assert "HTTP 403: Forbidden: Global access is required. It is indexed while it is filled" in told


def test_a_key_that_may_not_resume_indexing_after_a_kill_writes_nevertheless(
    rest: RestQdrant, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    rest.client.update_collection("docs", metadata={"xqg_bulk_load": {"indexing_threshold": 10_000}})
    rest.settings["docs"].indexing_threshold = 0
    rest.global_access = False
    with open_store(rest.url) as later:
        later.upsert("docs", make_points(3))
    assert store.count("docs") == 3
    [told] = warnings(caplog)
    assert "cannot restore the indexing of 'docs'" in told
