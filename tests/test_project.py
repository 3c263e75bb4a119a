"""The files around the package: packaging, containers, the shipped models, the demo corpus."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from xqg_qdrant.corpus.passages import read_generated_queries
from xqg_qdrant.demo import DEMO_QUERIES, read_demo_passages, read_demo_qrels, read_demo_queries
from xqg_qdrant.languages import is_written_in
from xqg_qdrant.model_folders import DEMO_ENCODER, DEMO_GENERATOR, read_model_folder
from xqg_qdrant.records import Reject

ROOT = Path(__file__).parent.parent
LANGUAGES = {"ar", "bn", "fi", "ja", "ko", "ru", "te"}
SHIPPED_MODELS_BYTES = 90_000_000


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def test_every_package_of_the_checkout_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "xqg_qdrant").rglob("__init__.py")}
    assert set(listed) == found | {"xqg_qdrant.models"}


def test_every_server_of_the_compose_file_is_pinned_and_has_a_volume_and_a_health_check(
    compose: dict[str, Any],
) -> None:
    servers = {name: service for name, service in compose["services"].items() if "image" in service}
    assert set(servers) == {"qdrant", "node-1", "node-2", "node-3"}
    for service in servers.values():
        assert re.fullmatch(r"qdrant/qdrant:v\d+\.\d+\.\d+", service["image"])
        assert service["healthcheck"]["test"]
        places = dict(volume.split(":") for volume in service["volumes"])
        assert list(places.values()) == ["/qdrant/storage", "/qdrant/snapshots"]
        assert places.keys() <= compose["volumes"].keys()
    volumes = [volume.split(":")[0] for service in servers.values() for volume in service["volumes"]]
    assert len(set(volumes)) == len(volumes), "two nodes share a volume"


def test_the_compose_file_has_a_cluster_of_three_and_an_ingest_on_a_gpu(compose: dict[str, Any]) -> None:
    by_profile: dict[str, list[str]] = {}
    for name, service in compose["services"].items():
        for profile in service.get("profiles", ["default"]):
            by_profile.setdefault(profile, []).append(name)
    assert by_profile == {"default": ["qdrant"], "cluster": ["node-1", "node-2", "node-3"], "gpu": ["ingest"]}
    # Each node is reachable if another one is lost, but only from this machine.
    published = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert len({port.split(":")[1] for port in published}) == len(published)
    for number in (1, 2, 3):
        node = compose["services"][f"node-{number}"]
        assert [port.split(":")[2] for port in node["ports"]] == ["6333"]
        assert node["environment"]["QDRANT__CLUSTER__ENABLED"] == "true"
        bootstrap = [] if number == 1 else ["--bootstrap", "http://node-1:6335"]
        assert node["command"] == ["./qdrant", *bootstrap, "--uri", f"http://node-{number}:6335"]
    ingest = compose["services"]["ingest"]
    assert ingest["entrypoint"] == ["xqg", "ingest"]
    (device,) = ingest["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_one_onnx_runtime_is_installed_and_never_two() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    runtimes = [Requirement(text) for text in project["dependencies"] if text.startswith("onnxruntime")]
    for system, machine, name in (
        ("linux", "x86_64", "onnxruntime-gpu"),
        ("win32", "AMD64", "onnxruntime-gpu"),
        ("darwin", "arm64", "onnxruntime"),
        ("darwin", "x86_64", "onnxruntime"),
        ("linux", "aarch64", "onnxruntime"),
        ("win32", "ARM64", "onnxruntime"),
    ):
        environment = {"sys_platform": system, "platform_machine": machine}
        installed = [runtime.name for runtime in runtimes if runtime.marker and runtime.marker.evaluate(environment)]
        assert installed == [name], (system, machine)


def test_the_shipped_models_are_whole_and_within_their_budget() -> None:
    folders = [ROOT / "onnx" / DEMO_ENCODER, ROOT / "onnx" / DEMO_GENERATOR]
    read_model_folder(folders[0], "encoder")
    generator = read_model_folder(folders[1], "generator")
    assert set(generator.description["languages"]) == LANGUAGES
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) <= SHIPPED_MODELS_BYTES
    for folder in folders:
        card = (folder / "README.md").read_text()
        for heading in ("## Data and licences", "## Figures", "## Limits"):
            assert heading in card


def test_the_wheel_carries_every_file_of_the_package_the_shipped_models_and_nothing_else(tmp_path: Path) -> None:
    # Build from a copy: leftovers of an earlier build in build/ would be packed too.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("xqg_qdrant", "onnx"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True)
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        about = f"xqg_qdrant-{path.name.split('-')[1]}.dist-info"
        names = {name for name in wheel.namelist() if not name.startswith(f"{about}/")}
        assert f"{about}/licenses/LICENSE" in wheel.namelist()
        assert "xqg = xqg_qdrant.cli:main" in wheel.read(f"{about}/entry_points.txt").decode()
        assert "Requires-Python: >=3.11\n" in wheel.read(f"{about}/METADATA").decode()
    package = {path.relative_to(source).as_posix() for path in (source / "xqg_qdrant").rglob("*") if path.is_file()}
    folders = [source / "onnx" / DEMO_ENCODER, source / "onnx" / DEMO_GENERATOR]
    models = {f"xqg_qdrant/models/{folder.name}/{path.name}" for folder in folders for path in folder.iterdir()}
    assert names == package | models


def test_the_demo_corpus_has_500_passages_of_80_to_150_words() -> None:
    passages = read_demo_passages()
    assert len(passages) >= 500
    assert len({passage.title for passage in passages}) == len(passages)
    for passage in passages:
        assert 80 <= len(passage.text.split()) <= 150, passage.passage_id


def test_each_demo_question_is_asked_in_seven_languages_each_in_its_script() -> None:
    queries = read_demo_queries()
    asked: dict[str, set[str]] = {}
    for query in queries:
        assert is_written_in(query.text, query.language), query
        asked.setdefault(query.query_id.rsplit("-", 1)[0], set()).add(query.language)
    assert len(asked) >= 100
    assert all(languages == LANGUAGES for languages in asked.values())


def test_each_demo_passage_has_two_questions_in_each_language_none_of_which_is_an_evaluation_question() -> None:
    rows = list(read_generated_queries(DEMO_QUERIES))
    generated = [row for row in rows if not isinstance(row, Reject)]
    assert generated == rows
    asked = {(query.language, query.text) for query in read_demo_queries()}
    counts = Counter((passage_id, query.language) for passage_id, queries in generated for query in queries)
    assert {passage_id for passage_id, _ in counts} == {passage.passage_id for passage in read_demo_passages()}
    assert Counter(counts.values())[2] >= 535 * 7 - 2
    assert {query.language for _, queries in generated for query in queries} == LANGUAGES
    assert not [query for _, queries in generated for query in queries if (query.language, query.text) in asked]


def test_each_demo_answer_occurs_only_in_the_judged_passage() -> None:
    texts = {passage.passage_id: passage.text for passage in read_demo_passages()}
    judged = {qrel.query_id: qrel.passage_id for qrel in read_demo_qrels()}
    queries = read_demo_queries()
    assert judged.keys() == {query.query_id for query in queries}
    for query in queries:
        for answer in query.answers:
            assert [name for name, text in texts.items() if answer in text] == [judged[query.query_id]], answer
            assert answer not in query.text


def test_running_a_model_sends_no_telemetry_and_leaves_no_files(tmp_path: Path) -> None:
    program = "from xqg_qdrant import Encoder; Encoder(threads=1).encode_queries(['a'])"
    # ONNX Runtime sends nothing if one of these is set.
    silent = {"ORT_DISABLE_TELEMETRY", "GITHUB_ACTIONS", "TF_BUILD", "XDG_CACHE_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in silent} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, cwd=ROOT, timeout=120)
    assert list(tmp_path.iterdir()) == []


def test_only_the_tests_of_a_real_server_know_of_it() -> None:
    code = "import os, conftest\nprint(*sorted(name for name in os.environ if 'QDRANT' in name or name == 'XQG_STORE'))"
    given = {"QDRANT_URL": "http://localhost:6333", "QDRANT_API_KEY": "some-key", "XQG_STORE": "http://localhost:6333"}
    environment = {**os.environ, **given, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=ROOT / "tests", capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["XQG_TEST_QDRANT_API_KEY", "XQG_TEST_QDRANT_URL"]
