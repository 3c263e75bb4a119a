"""The emulation of `rest_qdrant` answers as a real Qdrant 1.19.0 did, to each request that the commands sent it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import closing

import httpx
from qdrant_client import models
from rest_qdrant import Json, RestQdrant
from shared_data import shared_file


def test_recorded_requests_are_answered_with_the_same_status_and_shape() -> None:
    with gzip.open(shared_file("server/recorded-1.19.0.jsonl.gz"), "rt", encoding="utf-8") as file:
        exchanges = [line for line in map(json.loads, file) if "path" in line]
    assert len(exchanges) == 186
    differences: set[str] = set()
    with closing(RestQdrant()) as rest, httpx.Client(base_url=rest.url, trust_env=False) as client:
        rest.version = "1.19.0"
        params = models.VectorParams(size=4, distance=models.Distance.COSINE)
        rest.client.create_collection("theirs", params)
        texts = ("Helsinki is the capital of Finland.", "Lake Baikal is deep.")
        points = [
            models.PointStruct(id=i, vector=[1.0, i, 0, 0], payload={"page_content": text, "metadata": {"title": "T"}})
            for i, text in enumerate(texts)
        ]
        rest.client.upsert("theirs", points)
        for line in exchanges:
            found = client.request(line["method"], line["path"], json=line["request"])
            assert found.status_code == line["status"], line["path"]
            place = f"{line['method']} {line['path']}"
            differences |= set(compare(place, line["answer"], found.json()))
    assert sorted(differences) == []


def compare(place: str, real: Json, ours: Json) -> Iterator[str]:
    """Yield where two answers differ in their fields or in the types of these."""
    if isinstance(real, dict) and isinstance(ours, dict):
        for name in real.keys() | ours.keys():
            if name in real and name in ours:
                yield from compare(f"{place} {name}", real[name], ours[name])
            else:
                yield f"{place} {name}: only {'there' if name in real else 'here'}"
    elif isinstance(real, list) and isinstance(ours, list):
        if len(real) != len(ours):
            yield f"{place}: {len(real)} elements, not {len(ours)}"
        for pair in zip(real, ours, strict=False):
            yield from compare(place, *pair)
    elif kind(real) != kind(ours):
        yield f"{place}: {kind(real)}, not {kind(ours)}"


def kind(value: Json) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
