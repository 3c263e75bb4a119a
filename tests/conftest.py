"""Fixtures that several test modules share: the shipped models, on one thread."""

from __future__ import annotations

import pytest

from xqg_qdrant.encoder import Encoder
from xqg_qdrant.generator import Generator
from xqg_qdrant.model_folder import DEMO_ENCODER, DEMO_GENERATOR, shipped_model


@pytest.fixture(scope="session")
def demo_encoder() -> Encoder:
    return Encoder(shipped_model(DEMO_ENCODER), "cpu", threads=1)


@pytest.fixture(scope="session")
def demo_generator() -> Generator:
    return Generator(shipped_model(DEMO_GENERATOR), "cpu", threads=1)
