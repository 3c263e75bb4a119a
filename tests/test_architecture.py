"""The rooms of the package: who may import whom, inside and outside. `docs` draws the same table for people."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from xqg_qdrant.cli import main

CHECKOUT = Path(__file__).resolve().parents[1]
PACKAGE = CHECKOUT / "xqg_qdrant"

FOUNDATION = {"records", "errors"}
# room → the rooms it may import besides records and errors
MAY_IMPORT: dict[str, set[str]] = {
    "terminal": set(),
    "remote": set(),
    "lines": {"remote"},
    "rows": {"lines", "remote"},
    "fields": set(),
    "catalogue": {"lines", "rows"},
    "documents": {"lines", "rows"},
    "datasets": {"languages"},
    "corpus": {"catalogue", "datasets", "documents", "fields", "lines", "rows"},
    "questions": {"catalogue", "datasets", "documents", "fields", "lines", "rows"},
    "dead_letters": set(),
    "query_index": set(),
    "inputs": {"corpus", "query_index", "rows"},
    "external_data": set(),
    "model_files": {"external_data"},
    "model_description": {"languages", "model_files"},
    "sentence_modules": {"model_description", "model_files"},
    "foreign_folder": {"external_data", "model_description", "model_files", "sentence_modules"},
    "generator_settings": {"model_description"},
    "foreign_generator": {
        "foreign_folder",
        "generator_settings",
        "model_description",
        "model_files",
        "sentence_modules",
    },
    "model_folder": {"foreign_folder", "foreign_generator", "model_description", "model_files"},
    "pooling": {"model_files"},
    "tokenizer": set(),
    "languages": set(),
    "presets": set(),
    "machine": set(),
    "integer_products": {"external_data"},
    "session": {"external_data", "integer_products"},
    "budget": set(),
    "augment": set(),
    "words": set(),
    "lexicon": {"lines", "words"},
    "fingerprint": set(),
    "stores": {"fields", "fingerprint", "rows"},
    "workers": set(),
    "encoder": {"budget", "model_description", "model_folder", "pooling", "session", "tokenizer"},
    "prompt_batches": set(),
    "decoder_step": {"decoding", "session"},
    "decoder": {"decoder_step", "decoding", "model_description", "model_folder", "prompt_batches", "session"},
    "foreign_decoder": {"decoding", "model_folder", "prompt_batches", "session"},
    "generator": {
        "budget",
        "decoder",
        "decoding",
        "foreign_decoder",
        "languages",
        "model_description",
        "model_folder",
        "prompt_batches",
        "session",
        "tokenizer",
    },
    "recipe": {"augment", "fingerprint", "generator", "lexicon", "stores"},
    "pipeline": {
        "augment",
        "encoder",
        "fingerprint",
        "generator",
        "lexicon",
        "recipe",
        "stores",
        "words",
        "workers",
    },
    "alias": {"stores"},
    "ray_cluster": {"workers"},
    "ray_engine": {
        "encoder",
        "fingerprint",
        "generator",
        "inputs",
        "lexicon",
        "pipeline",
        "ray_cluster",
        "recipe",
        "stores",
    },
    "status": {"fingerprint", "stores"},
    "ranking": {"encoder", "stores", "words"},
    "retrieval": {"encoder", "fingerprint", "ranking", "status", "stores"},
    "api": {
        "corpus",
        "encoder",
        "evaluation",
        "generator",
        "indexing",
        "inputs",
        "lexicon",
        "pipeline",
        "ranking",
        "recipe",
        "retrieval",
        "stores",
        "workers",
    },
    "text_set": set(),
    "sync": {"fingerprint", "pipeline", "stores", "text_set"},
    "retune": {"augment", "encoder", "fingerprint", "pipeline", "recipe", "retrieval", "status", "stores", "workers"},
    "indexing": {"stores"},
    "copying": {"fingerprint", "status", "stores"},
    "aside": set(),
    "sample": set(),
    "estimate": set(),
    "pilot": {"evaluation", "sweep"},
    "templates": {"terminal"},
    "evaluation": {"aside", "catalogue", "lines", "machine", "questions", "templates", "terminal"},
    "sweep": {
        "augment",
        "encoder",
        "evaluation",
        "fingerprint",
        "recipe",
        "retune",
        "retrieval",
        "status",
        "stores",
        "workers",
    },
    "robustness": {"datasets", "encoder", "evaluation", "fields", "lines", "rows", "retrieval", "stores"},
    "demo": {"corpus", "evaluation", "questions"},
    "export": {
        "aside",
        "demo",
        "encoder",
        "generator",
        "generator_settings",
        "languages",
        "model_description",
        "model_folder",
        "presets",
        "questions",
        "sentence_modules",
        "session",
    },
    "doctor": {
        "augment",
        "demo",
        "encoder",
        "fingerprint",
        "generator",
        "machine",
        "model_folder",
        "recipe",
        "retrieval",
        "session",
        "stores",
    },
    "printing": {"doctor", "fingerprint", "pipeline", "retrieval", "status", "stores", "terminal"},
    "serve": {"encoder", "fingerprint", "printing", "ranking", "retrieval", "status", "stores", "templates"},
    "progress": {
        "copying",
        "dead_letters",
        "encoder",
        "fingerprint",
        "generator",
        "pipeline",
        "lexicon",
        "printing",
        "ranking",
        "recipe",
        "retune",
        "robustness",
        "retrieval",
        "status",
        "stores",
        "sweep",
        "sync",
        "terminal",
        "text_set",
        "workers",
    },
}
# The package itself names what is public, wherever it lies.
ANYTHING = {"cli", "__init__"}
# These import nothing of ours.
ALONE = {"records", "errors", "decoding"}

CLI_MODULES = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.glob("cli/[a-z]*.py")}

# outside package → the modules that may import it; each is the one place to change when it changes
OWNERS: dict[str, set[str]] = {
    "onnxruntime": {"session"},
    "ml_dtypes": {"export/bert", "export/graph"},
    "onnx": {"export/bert", "export/emulate", "export/graph", "export/pooling", "export/rotary", "export/t5"},
    "safetensors": {"export/encoder_settings"},
    "torch": {"export/reference"},
    "transformers": {"export/reference"},
    "huggingface_hub": {"export/checkpoint"},
    "qdrant_edge": {"stores/edge", "stores/edge_index"},
    "qdrant_client": {
        "stores/client",
        "stores/cluster",
        "stores/foreign",
        "stores/grpc_upserts",
        "stores/limits",
        "stores/server_load",
        "stores/wire",
    },
    "tokenizers": {"export/reference", "export/vocabulary", "tokenizer"},
    "pytrec_eval": {"evaluation/measures"},
    "nltk": {"evaluation/official"},
    "ir_datasets": {"catalogue"},
    "pyarrow": {"ray_engine", "remote", "rows", "stores/parquet"},
    "ray": {"ray_cluster", "ray_engine"},
    "httpx": {"stores/wire"},
    "click": {*CLI_MODULES, "terminal"},
    "jinja2": {"templates"},
    "starlette": {"serve/app"},
    "tqdm": {"api", "progress"},
    "uvicorn": {"serve/app"},
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


@pytest.mark.parametrize("module", list(imports()))
def test_a_module_imports_only_the_rooms_below_its_own(module: str) -> None:
    if room(module) in ANYTHING:
        return
    allowed = set() if room(module) in ALONE else FOUNDATION | MAY_IMPORT[room(module)]
    assert imported_rooms(module) <= allowed


def test_nothing_imports_the_command_line() -> None:
    assert [module for module in imports() if "cli" in imported_rooms(module)] == []


def test_the_rooms_have_an_order() -> None:
    order: list[str] = [*ALONE]
    while len(order) < len(ALONE) + len(MAY_IMPORT):
        ready = [name for name in MAY_IMPORT if name not in order and MAY_IMPORT[name] <= set(order)]
        assert ready, "these rooms import each other in a circle"
        order += ready


@pytest.mark.parametrize("module", list(imports()))
def test_an_outside_package_has_one_owner(module: str) -> None:
    outside = {name.split(".")[0] for name in imports()[module]} - set(sys.stdlib_module_names) - EVERYWHERE
    assert {name for name in outside if module not in OWNERS.get(name, set())} == set()


def test_every_owner_imports_what_it_owns() -> None:
    for package, owners in OWNERS.items():
        for module in owners:
            assert package in {name.split(".")[0] for name in imports()[module]}


PRINTS = {"click.echo", "click.secho", "click.confirm", "click.prompt", "click.echo_via_pager", "print", "input"}
WRITES = ("sys.stdout.", "sys.stderr.write", "sys.stderr.buffer", "traceback.print_", "warnings.warn")


@pytest.mark.parametrize("module", [name for name in imports() if name != "terminal"])
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
    "huggingface_hub", "ir_datasets", "jinja2", "nltk", "numpy", "onnx", "onnxruntime", "pyarrow", "pytrec_eval",
    "qdrant_client", "qdrant_edge", "ray", "starlette", "tokenizers", "torch", "tqdm", "transformers", "uvicorn",
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
    rooms = ("encoder", "generator", "pipeline", "retrieval", "cli", "stores", "corpus", "evaluation.comparison")
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
