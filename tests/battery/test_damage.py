"""A damaged embedded store is refused when it is opened, or seen by `xqg verify`, or returns what was stored."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

VERIFIED = Path(__file__).resolve().parents[1] / "support" / "verified.py"
DAMAGES = 11
REFUSED, DAMAGED = (4, 5), 7
# The index is built from the points; a search that does not use it is not affected.
IN_AN_INDEX = ("vector_index", "payload_index")


def run(*arguments: object) -> list[dict[str, Any]]:
    command = [sys.executable, str(VERIFIED), *map(str, arguments)]
    output = subprocess.run(command, capture_output=True, check=True, timeout=300).stdout
    return [json.loads(line) for line in output.splitlines()]


def copy(store: Path, target: Path) -> Path:
    # The engine's files are mostly holes.
    subprocess.run(["cp", "-r", "--sparse=always", store, target], check=True, timeout=60)
    return target


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("damage") / "store"
    run("make", store)
    return store


@pytest.fixture(scope="module")
def values(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    [found] = run("look", copy(whole, tmp_path_factory.mktemp("damage") / "copy"))
    assert found["code"] == 0, found
    return str(found["values"])


def flip(path: Path, chance: random.Random) -> None:
    """Change one bit of a byte that was written."""
    with path.open("r+b") as file:
        content = file.read(2**16)
        place = chance.choice([place for place, byte in enumerate(content) if byte] or [0])
        file.seek(place)
        file.write(bytes([content[place] ^ (1 << chance.randrange(8))]))


def cut(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def remove(path: Path, _: random.Random) -> None:
    path.unlink()


def blank(path: Path, _: random.Random) -> None:
    with path.open("r+b") as file:
        file.write(bytes(min(path.stat().st_size, 4096)))


def list_files(store: Path, part: str = "") -> list[Path]:
    files = [path for path in sorted(store.rglob("*")) if path.is_file() and path.stat().st_size]
    return [path for path in files if part in str(path) and not any(name in str(path) for name in IN_AN_INDEX)]


def test_damage_is_refused_or_seen_or_does_not_matter(seed: int, whole: Path, values: str, tmp_path: Path) -> None:
    chance, damages, stores = random.Random(seed), list[str](), list[Path]()
    for number in range(DAMAGES):
        store = copy(whole, tmp_path / str(number))
        how: Callable[[Path, random.Random], None] = chance.choice([flip, flip, flip, cut, remove, blank])
        path = chance.choice(list_files(store))
        how(path, chance)
        damages.append(f"{how.__name__} {path.relative_to(store)}")
        stores.append(store)
    silent = [
        (damage, found)
        for damage, found in zip(damages, run("look", *stores), strict=True)
        if found["code"] not in (*REFUSED, DAMAGED) and found["values"] != values
    ]
    assert silent == []


@pytest.mark.parametrize("name", ["xqg", "passage"])
def test_a_bit_of_a_vector_is_seen_with_the_passage(name: str, whole: Path, tmp_path: Path) -> None:
    store = copy(whole, tmp_path / "store")
    for path in list_files(store, f"vector_storage-{name}/"):
        if path.name in ("matrix.dat", "chunk_0.mmap"):
            flip(path, random.Random(1))
    [found] = run("look", store)
    assert found["code"] == DAMAGED
    assert "is damaged: of 30 passages, 2 damaged.\nCure: delete the damaged passages" in found["output"]
    assert found["output"].count('"vectors"') == 2


def test_passages_that_an_id_tracker_lost_are_counted(whole: Path, tmp_path: Path) -> None:
    store = copy(whole, tmp_path / "store")
    for path in list_files(store, "id_tracker"):
        path.unlink()
    [found] = run("look", store)
    assert found["code"] == DAMAGED, found
    assert '"missing": 26' in found["output"]
