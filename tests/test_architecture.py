"""The rooms of the package: who may import whom, inside and outside. `docs` draws the same table for people."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from xqg_qdrant.cli import main

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = CHECKOUT / "xqg_qdrant"

# These import each other and nothing else of ours.
GROUND = {"atomic", "errors", "fingerprint", "languages", "machine", "records", "secrets", "streams", "text"}
# room → the rooms it may import besides the ground, all of them above it here
MAY_IMPORT: dict[str, set[str]] = {
    "corpus": set(),
    "model_folders": set(),
    "stores": {"corpus"},
    "inference": {"model_folders"},
    "generation": {"corpus", "inference", "model_folders"},
    "augmentation": {"corpus", "generation", "inference", "stores"},
    "retrieval": {"augmentation", "inference", "stores"},
    "lifecycle": {"augmentation", "corpus", "generation", "inference", "model_folders", "retrieval", "stores"},
    "evaluation": {"augmentation", "corpus", "generation", "inference", "lifecycle", "retrieval", "stores"},
    "demo": {"corpus", "evaluation"},
    "export": {"corpus", "demo", "generation", "inference", "model_folders"},
    "api": {"augmentation", "corpus", "evaluation", "generation", "inference", "lifecycle", "retrieval", "stores"},
    "doctor": {"augmentation", "demo", "generation", "inference", "model_folders", "retrieval", "stores"},
    "printing": {"augmentation", "doctor", "evaluation", "generation", "inference", "lifecycle", "retrieval", "stores"},
    "pages": {"augmentation", "evaluation", "inference", "lifecycle", "printing", "retrieval", "stores"},
}
ANYTHING = {"cli", "__init__"}

# outside package → the modules or folders that may import it; each is the one place to change when it changes
OWNERS: dict[str, set[str]] = {
    "onnxruntime": {"inference/session"},
    "semantic_text_splitter": {"inference/splitting"},
    "tokenizers": {"inference/tokenizer", "export"},
    "ml_dtypes": {"export"},
    "onnx": {"export"},
    "safetensors": {"export"},
    "torch": {"export"},
    "transformers": {"export"},
    "huggingface_hub": {"export"},
    "optimum": {"export"},
    "qdrant_edge": {"stores/edge"},
    "qdrant_client": {"stores/server"},
    "orjson": {"stores/server"},
    "httpx": {"inference/endpoint", "stores/server"},
    "pytrec_eval": {"evaluation/measures"},
    "nltk": {"evaluation/xor_retrieve"},
    "ir_datasets": {"corpus/datasets"},
    "pyarrow": {"augmentation/ray_engine", "corpus/files", "corpus/parquet", "stores/parquet"},
    "ray": {"augmentation/ray_cluster", "augmentation/ray_engine"},
    "langcodes": {"languages"},
    "py3langid": {"languages"},
    "click": {"cli"},
    "tqdm": {"api", "cli/progress"},
    "jinja2": {"pages/templates"},
    "starlette": {"pages/server"},
    "uvicorn": {"pages/server"},
}
EVERYWHERE = {"numpy", "xqg_qdrant"}


@cache
def imports() -> dict[str, set[str]]:
    """Return every module of the package, such as `stores/edge`, with the full names that it imports anywhere."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        found[name] = set(imported_names(ast.parse(path.read_text(encoding="utf-8"))))
    return found


def imported_names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    return module.split("/")[0]


def imported_rooms(module: str) -> set[str]:
    ours = (name.split(".") for name in imports()[module] if name.startswith("xqg_qdrant."))
    return {parts[1] for parts in ours} - {room(module)}


def owns(owner: str, module: str) -> bool:
    return module == owner or module.startswith(f"{owner}/")


@pytest.mark.parametrize("module", list(imports()))
def test_a_module_imports_only_the_rooms_below_its_own(module: str) -> None:
    if room(module) in ANYTHING:
        return
    allowed = set() if room(module) in GROUND else MAY_IMPORT[room(module)]
    assert imported_rooms(module) <= GROUND | allowed


def test_nothing_imports_the_command_line() -> None:
    assert [module for module in imports() if "cli" in imported_rooms(module)] == []


def test_a_room_stands_below_those_it_imports() -> None:
    above: set[str] = set()
    for name, allowed in MAY_IMPORT.items():
        assert allowed <= above, name
        above.add(name)


def test_the_ground_imports_itself_in_no_circle() -> None:
    left = {name: imported_rooms(name) for name in GROUND}
    while ready := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in ready:
            del left[name]
    assert left == {}


def test_the_house_is_small() -> None:
    modules = list(imports())
    assert len([name for name in modules if "/" not in name]) <= 14
    assert len(modules) <= 145
    folders = Counter(name.rpartition("/")[0] for name in modules)
    assert max(count for folder, count in folders.items() if folder) <= 15


@pytest.mark.parametrize("module", list(imports()))
def test_an_outside_package_has_one_owner(module: str) -> None:
    outside = {name.split(".")[0] for name in imports()[module]} - set(sys.stdlib_module_names) - EVERYWHERE
    assert {name for name in outside if not any(owns(owner, module) for owner in OWNERS.get(name, ()))} == set()


def test_every_owner_imports_what_it_owns() -> None:
    for package, owners in OWNERS.items():
        importing = [name for name, taken in imports().items() if package in {each.split(".")[0] for each in taken}]
        assert [owner for owner in owners if not any(owns(owner, module) for module in importing)] == []


CURED = {"InputError", "MismatchError", "StoreError", "ModelError", "OutOfMemoryError"}


@pytest.mark.parametrize("module", list(imports()))
def test_every_error_a_user_can_cause_has_a_cure(module: str) -> None:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    uncured = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in CURED
        and len(node.args) < 2
        and not any(keyword.arg == "cure" for keyword in node.keywords)
    ]
    assert uncured == []


PRINTS = {"click.echo", "click.secho", "click.confirm", "click.prompt", "click.echo_via_pager", "print", "input"}
WRITES = ("sys.stdout.", "sys.stderr.write", "sys.stderr.buffer", "traceback.print_", "warnings.warn")


@pytest.mark.parametrize("module", [name for name in imports() if name != "cli/terminal"])
def test_nothing_is_printed_past_the_room_that_makes_control_characters_visible(module: str) -> None:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert [name for name in called if name in PRINTS or name.startswith(WRITES)] == []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "click":
            assert PRINTS.isdisjoint(f"click.{alias.name}" for alias in node.names)


def test_the_folder_of_models_never_becomes_a_package() -> None:
    # With an __init__.py it would hide the package of the same name from everything run in the checkout.
    assert not (CHECKOUT / "onnx" / "__init__.py").exists()
    import onnx

    assert onnx.__file__ is not None
    assert not Path(onnx.__file__).is_relative_to(CHECKOUT / "onnx")


HEAVY = {
    "huggingface_hub", "ir_datasets", "jinja2", "langcodes", "nltk", "numpy", "onnx", "onnxruntime", "py3langid",
    "pyarrow", "pytrec_eval", "qdrant_client", "qdrant_edge", "ray", "starlette", "tokenizers", "torch", "tqdm",
    "transformers", "uvicorn",
}  # fmt: skip


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys; print(json.dumps(list(sys.modules)))"
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, check=True, cwd=CHECKOUT, timeout=120).stdout
    return {name.split(".")[0] for name in json.loads(output.splitlines()[-1])}


def test_help_is_printed_without_anything_heavy() -> None:
    run = "from xqg_qdrant.cli import main\nmain(['--help'], standalone_mode=False)"
    assert modules_after(run) & HEAVY == set()


def test_a_word_is_completed_without_anything_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COMP_WORDS": "xqg ingest --al", "COMP_CWORD": "2", "_XQG_COMPLETE": "bash_complete"}.items():
        monkeypatch.setenv(name, value)
    run = "from xqg_qdrant.cli import main\ntry: main([], prog_name='xqg')\nexcept SystemExit: pass"
    assert modules_after(run) & HEAVY == set()


def test_inference_and_ingest_import_nothing_of_the_export() -> None:
    rooms = (
        "inference.encoder", "generation.onnx", "augmentation.pipeline", "retrieval", "cli", "stores",
        "corpus.passages", "evaluation.comparison",
    )  # fmt: skip
    loaded = modules_after("import " + ", ".join(f"xqg_qdrant.{name}" for name in rooms))
    assert loaded & {"torch", "transformers", "onnx", "huggingface_hub"} == set()


def commands(group: click.Group = main, path: str = "xqg") -> Iterator[tuple[str, click.Command]]:
    yield path, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


@pytest.mark.parametrize(("path", "command"), list(commands()))
def test_every_command_and_every_option_has_help(path: str, command: click.Command) -> None:
    assert command.help, path
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []
    assert all(option.help and option.help.rstrip().endswith((".", "]")) for option in options)
