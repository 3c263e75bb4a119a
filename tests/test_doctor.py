"""What `xqg doctor` promises: each part really used, a line each, nothing left behind, and no secret shown."""

from __future__ import annotations

import json
import shutil
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rest_qdrant import RestQdrant, answer
from scripted_chat import embed, refused, said, scripted

from xqg_qdrant import doctor
from xqg_qdrant.augmentation.fusion import Fusion, augment_passage
from xqg_qdrant.augmentation.recipe import choose_recipe
from xqg_qdrant.cli import main
from xqg_qdrant.doctor import LEAST_MEMORY, Check, check_disk, check_memory, check_packages
from xqg_qdrant.errors import ModelError, StoreError
from xqg_qdrant.inference.encoder import Encoder
from xqg_qdrant.inference.remote_encoder import describe_endpoint
from xqg_qdrant.inference.session import Session, is_cuda_at_hand
from xqg_qdrant.machine import free_memory
from xqg_qdrant.model_folders import DEMO_ENCODER, shipped_model
from xqg_qdrant.printing import format_check
from xqg_qdrant.records import FloatArray
from xqg_qdrant.stores import open_store
from xqg_qdrant.stores.edge.store import EdgeStore

STEPS = ["read", "generate", "encode", "augment", "upsert", "query"]
KEY = "a-key-that-nobody-may-see"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("QDRANT_URL", "QDRANT_API_KEY", "XQG_STORE"):
        monkeypatch.delenv(name, raising=False)


def run_doctor(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["doctor", "--device", "cpu", *map(str, arguments)])


def read_checks(result: Result) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def test_all_is_well_with_the_shipped_models_and_an_embedded_store_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = []

    def remember(passage: FloatArray, queries: FloatArray, settings: Fusion) -> tuple[FloatArray, int]:
        used.append(settings)
        return augment_passage(passage, queries, settings)

    monkeypatch.setattr(doctor, "augment_passage", remember)
    result = run_doctor()
    # The recipe is that of an ingest with this encoder.
    [settings] = used
    assert settings == choose_recipe(Encoder(None, "cpu", threads=1), None).recipe.fusion_settings
    assert settings.gamma == 0.5
    assert result.exit_code == 0, result.stdout
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines] == [
        "python", "packages", "memory", "integers", "disk", "encoder", "generator", "store", "passage"
    ]  # fmt: skip
    assert {line.split()[0] for line in lines} <= {"ok", "warning"}
    assert list(Path().iterdir()) == []


def test_a_store_that_was_there_keeps_its_collections_and_no_other() -> None:
    EdgeStore("there").create_collection("docs", 4, {"encoder.dim": 4})
    checks = read_checks(run_doctor("--store", "there", "--json"))
    assert "; 1 collection; " in checks["store"]["detail"]
    assert EdgeStore("there").collections() == ["docs"]


def test_the_same_as_json_with_the_time_of_each_step() -> None:
    result = run_doctor("--json", "--store", ":memory:")
    told = json.loads(result.stdout)
    assert (told["exit_code"], result.exit_code) == (0, 0)
    checks = read_checks(result)
    assert list(checks["passage"]["seconds"]) == STEPS
    assert all(seconds >= 0 for seconds in checks["passage"]["seconds"].values())
    # five queries in each of seven languages
    assert " of 21 generated queries kept, found by its title" in checks["passage"]["detail"]
    assert "disk" not in checks
    folder = shipped_model(DEMO_ENCODER)
    assert str(folder) in checks["encoder"]["detail"]
    assert "int8" in checks["encoder"]["detail"]
    assert "ran on cpu (model.onnx: " in checks["encoder"]["detail"]


def test_endpoints_are_asked_and_it_is_told_what_answers_with_which_key(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = said({"ja": ["ドナウ川はどこで海に注ぎますか？", "ドナウ川の長さは？", "ドナウ川はどこを流れる？"]})
    with scripted(lambda call, _: embed(call) if "input" in call.body else asked) as endpoint:
        describe_endpoint(endpoint.url, Path("e"), "small")
        source = ("--json", "--encoder", "e", "--generator", endpoint.url, "--model", "m")
        monkeypatch.setenv("XQG_LLM_API_KEY", KEY)
        endpoint.reset(endpoint.script)
        result = run_doctor(*source)
        checks = read_checks(result)
        assert (result.exit_code, checks["passage"]["state"]) == (0, "ok"), result.stdout
        assert f"{endpoint.url}/embeddings, model 'small', no key; dim 8" in checks["encoder"]["detail"]
        url = f"{endpoint.url}/chat/completions"
        assert checks["generator"]["detail"] == (
            f"{url}, model 'scripted', key of XQG_LLM_API_KEY; 1 call, 1000 tokens in, 50 out; "
            "wrote 'ドナウ川はどこで海に注ぎますか？'"
        )
        assert sum(len(call.body.get("input", [])) for call in endpoint.calls) < 20
        assert len([call for call in endpoint.calls if "messages" in call.body]) == 2

        endpoint.reset(lambda call, _: embed(call) if "input" in call.body else said(None, refusal="no"))
        checks = read_checks(run_doctor(*source))
        assert (checks["generator"]["state"], "the model refused: no" in checks["generator"]["detail"]) == (
            "warning",
            True,
        )
        endpoint.reset(lambda *_: refused(f"bad key {KEY}", 401))
        result = run_doctor(*source)
        checks = read_checks(result)
        assert {checks[name]["state"] for name in ("encoder", "generator")} == {"failed"}
        assert "set XQG_LLM_API_KEY to a key of that server" in checks["generator"]["cure"]
        assert (result.exit_code, KEY in result.output) == (6, False)
    result = run_doctor(*source)
    assert (result.exit_code, "no answer from" in read_checks(result)["generator"]["detail"]) == (6, True)
    assert [path.name for path in Path().iterdir()] == ["e"]


@pytest.mark.parametrize("listed", [True, False])
def test_a_model_that_is_still_loading_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch, listed: bool) -> None:
    monkeypatch.setattr(doctor, "ASKING_SECONDS", 0.2)
    loading = refused({"message": "Loading model", "code": 503}, 503)
    with scripted(lambda call, _: embed(call)) as endpoint:
        describe_endpoint(endpoint.url, Path("e"), "small")
        endpoint.reset(lambda *_: loading)
        endpoint.models = endpoint.models if listed else loading
        started = time.monotonic()
        result = run_doctor("--json", "--encoder", "e", "--generator", endpoint.url, "--model", "m")
    assert time.monotonic() - started < 10
    for name in ("encoder", "generator"):
        check = read_checks(result)[name]
        assert check["state"] == "failed"
        assert "still loading the model (HTTP 503: Loading model)" in check["detail"]
        assert check["cure"].startswith("wait until the server has loaded it")


def test_a_lexicon_is_a_generator_too() -> None:
    Path("words.tsv").write_text("fi\tvolcano\ttulivuori\n")
    checks = read_checks(run_doctor("--json", "--generator", "words.tsv"))
    assert (checks["generator"]["state"], checks["generator"]["detail"]) == ("ok", "words.tsv; writes fi")


def test_a_broken_encoder_is_told_with_its_cure_and_the_store_is_checked_all_the_same() -> None:
    folder = shutil.copytree(shipped_model(DEMO_ENCODER), "broken")
    with (Path(folder) / "model.onnx").open("ab") as file:
        file.write(b"x")
    result = run_doctor("--json", "--encoder", "broken")
    checks = read_checks(result)
    assert result.exit_code == json.loads(result.stdout)["exit_code"] == checks["encoder"]["exit_code"] == 6
    assert checks["encoder"]["state"] == "failed"
    assert "has sha256" in checks["encoder"]["detail"]
    assert checks["encoder"]["cure"].startswith("export it again: xqg export CHECKPOINT ")
    assert {checks[name]["state"] for name in ("generator", "store")} == {"ok"}
    assert "passage" not in checks


def test_a_store_that_cannot_be_reached_gives_exit_code_5_and_a_failure_before_it_its_own() -> None:
    result = run_doctor("--store", "http://127.0.0.1:1")
    assert result.exit_code == 5
    assert "failed   store" in result.stdout
    assert "Cure: check that the server runs" in result.stdout
    assert run_doctor("--store", "http://127.0.0.1:1", "--generator", "nowhere").exit_code == 6


def test_a_directory_that_cannot_be_written_is_told() -> None:
    Path("file").write_text("not a directory")
    result = run_doctor("--store", "file/data")
    assert result.exit_code == 5
    assert "failed   store" in result.stdout


def test_a_server_is_written_to_searched_and_left_as_it_was(rest: RestQdrant) -> None:
    result = run_doctor("--store", rest.url)
    assert result.exit_code == 0, result.stdout
    assert rest.client.get_collections().collections == []
    assert any("/points" in path for _, path, _ in rest.requests)


def test_a_server_that_is_too_old_is_told(rest: RestQdrant) -> None:
    rest.version = "1.15.2"
    result = run_doctor("--store", rest.url)
    assert result.exit_code == 5
    assert "is Qdrant 1.15.2; fingerprints need 1.16 or later" in result.stdout


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_no_key_and_no_password_is_ever_shown(
    form: tuple[str, ...], rest: RestQdrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", KEY)
    rest.script = [answer(401, f"wrong key {KEY}")]
    outputs = [run_doctor("--store", rest.url, *form)]
    for location in ("http://me:pass-word@host:6333", "http://host?api_key=pass-word", "htp://me:pass-word@host"):
        outputs.append(run_doctor("--store", location, *form))
        assert outputs[-1].exit_code == 2
    assert outputs[0].exit_code == 5
    for output in outputs:
        assert KEY not in output.output
        assert "pass-word" not in output.output


def test_the_scratch_collection_is_deleted_where_a_check_of_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, **more: object) -> None:
        raise StoreError("cannot search.", "none")

    monkeypatch.setattr(EdgeStore, "search", fail)
    result = run_doctor("--store", "data")
    assert result.exit_code == 5
    assert not Path("data").exists()


def test_a_server_that_does_not_find_what_it_has_stored_is_told(
    rest: RestQdrant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does a replica that is behind."""
    honest = rest.respond

    def respond(method: str, path: str, body: Any) -> Any:  # noqa: ANN401
        result = honest(method, path, body)
        for found in result if path.endswith("/points/query/batch") else ():
            found.points.clear()
        return result

    monkeypatch.setattr(rest, "respond", respond)
    with pytest.raises(StoreError, match="does not find a passage that it has just stored"):
        doctor._use_store(lambda: open_store(rest.url))
    assert rest.client.get_collections().collections == []


def test_a_store_that_gives_back_something_else_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = EdgeStore.search

    def search(store: EdgeStore, *given: Any, **more: Any) -> Any:  # noqa: ANN401
        [[hit]] = real(store, *given, **more)
        object.__setattr__(hit.passage, "text", "another text")
        return [[hit]]

    monkeypatch.setattr(EdgeStore, "search", search)
    result = run_doctor("--store", "data")
    assert result.exit_code == 5
    [line] = [line for line in result.stdout.splitlines() if line.startswith("failed")]
    assert line.startswith("failed   store      edge:data returned another passage than was stored")


def test_two_runtimes_beside_each_other_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: "1.31")
    found = check_packages()
    assert found.state == "warning"
    assert "onnxruntime 1.31" in found.detail
    assert "pip uninstall onnxruntime onnxruntime-gpu" in found.cure

    def one(name: str) -> str:
        if name == "onnxruntime":
            raise PackageNotFoundError
        return "1.31"

    monkeypatch.setattr(doctor, "version", one)
    assert check_packages().state == "ok"


def test_little_memory_and_little_disk_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_memory(LEAST_MEMORY - 1).state == "warning"
    assert check_memory(LEAST_MEMORY).state == "ok"
    assert check_memory(None).state == "ok"
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5 << 20))
    assert check_disk(Path("not/there/yet")).state == "warning"


def test_the_free_memory_is_less_than_the_memory() -> None:
    free = free_memory()
    assert free is not None
    assert 0 < free < 1 << 50


def test_cuda_that_was_asked_for_and_does_not_run_is_a_failure() -> None:
    if is_cuda_at_hand():
        pytest.skip("CUDA may run here")
    result = run_doctor("--device", "cuda", "--store", ":memory:")
    assert result.exit_code == 6
    assert "failed   encoder    CUDA was asked for" in result.stdout


def test_cuda_that_opens_a_model_but_runs_no_operator_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = shipped_model(DEMO_ENCODER) / "model.onnx"
    monkeypatch.setattr(doctor, "Session", lambda path, device, profile: Session(path, "cpu", profile=profile))
    with pytest.raises(ModelError, match=r"operators on cpu\), although CUDA was requested. Cure: install CUDA's"):
        doctor._check_device("encoder", "", graph, "cuda", "cuda", 0.1)
    # auto is allowed to fall back, but not in silence
    monkeypatch.setattr(doctor, "is_cuda_at_hand", lambda: True)
    assert doctor._check_device("encoder", "", graph, "auto", "cpu", 0.1).state == "warning"
    monkeypatch.setattr(doctor, "is_cuda_at_hand", lambda: False)
    assert doctor._check_device("encoder", "", graph, "auto", "cpu", 0.1).state == "ok"


def test_a_line_holds_no_control_characters() -> None:
    check = Check("store", "failed", "a\x1b[2Jb\r\nc.", "try again.", 5, {"write": 0.0123})
    assert format_check(check) == "failed   store      a\\u001b[2Jb\\u000d\\u000ac.; write 12 ms. Cure: try again."
    assert format_check(Check("python", "ok", "3.11")) == "ok       python     3.11"


def test_the_directory_of_a_store_that_is_elsewhere_is_none() -> None:
    from xqg_qdrant.stores import find_directory

    assert find_directory("http://localhost:6333") is None
    assert find_directory(":memory:") is None
    assert [find_directory(form) for form in ("data", "edge:data", "local:data")] == [Path("data")] * 3
    open_store(":memory:").close()
