"""The user's files are the user's: no output is an input, a part of a store, or a file that xqg did not write.

Each case names a file that a command would have overwritten, by its own name or another that leads to it.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from xqg_qdrant.atomic import exchange
from xqg_qdrant.cli import main
from xqg_qdrant.cli.arguments import INPUTS, OUTPUTS, STORES
from xqg_qdrant.errors import InputError, StoreError
from xqg_qdrant.evaluation import results
from xqg_qdrant.evaluation.files import write_run
from xqg_qdrant.evaluation.results import check_folder, make_manifest, new_results
from xqg_qdrant.records import AugmentedPassage, Passage, Query
from xqg_qdrant.stores import open_store

ROW = json.dumps({"id": "a", "text": "Rivers flow."}) + "\n"
EVALUATE = ("evaluate", "--collection", "docs", "--questions", "q.jsonl", "--qrels", "qrels.tsv")
INGEST = ("ingest", "--collection", "docs")
# What would have been destroyed, and the command line that would have done it.
CASES = [
    ("beir/corpus.jsonl", (*INGEST, "beir", "--dead-letters", "beir/corpus.jsonl")),
    ("beir/corpus.jsonl", (*INGEST, "beir", "--dead-letters", "to-beir/corpus.jsonl")),
    ("c.jsonl", (*INGEST, "file://{}/c.jsonl", "--dead-letters", "c.jsonl")),
    ("c.jsonl", (*INGEST, "c.jsonl", "--dead-letters", "beir/../c.jsonl")),
    ("c.jsonl", (*INGEST, "c.jsonl", "--dead-letters", "link.jsonl")),
    ("c.jsonl", (*INGEST, "c.jsonl", "--dead-letters", "hard.jsonl")),
    ("docs.rejected.jsonl", (*INGEST, "docs.rejected.jsonl")),
    ("docs.rejected.jsonl", ("sync", "docs.rejected.jsonl", "--collection", "docs")),
    ("parts/a.parquet", (*INGEST, "parts", "--dead-letters", "parts/a.parquet")),
    ("lex.tsv", (*INGEST, "c.jsonl", "--generator", "lex.tsv", "--dead-letters", "lex.tsv")),
    ("queries.jsonl", (*INGEST, "c.jsonl", "--queries", "queries.jsonl", "--dead-letters", "queries.jsonl")),
    ("store/docs/collection.json", (*INGEST, "c.jsonl", "--dead-letters", "store/docs/collection.json")),
    ("store/docs/new", (*INGEST, "c.jsonl", "--dead-letters", "store/docs/new")),
    ("store/docs", ("describe", "http://localhost:1", "--model", "m", "--out", "store/docs")),
    ("local/new", (*INGEST, "c.jsonl", "--store", "local:local", "--dead-letters", "local/new")),
    ("beir/corpus.jsonl", ("generate", "beir", "--out", "new", "--dead-letters", "beir/corpus.jsonl")),
    ("beir/corpus.jsonl", ("generate", "beir/corpus.jsonl", "--out", "beir")),
    ("q.jsonl", (*EVALUATE, "--write-predictions", "{}/q.jsonl")),
    ("qrels.tsv", (*EVALUATE, "--write-run", "qrels.tsv")),
    ("run.trec", (*EVALUATE, "--run", "theirs=run.trec", "--write-run", "run.trec")),
    ("qrels.tsv", (*EVALUATE, "--save", "{}")),
    ("new", (*EVALUATE, "--write-run", "new", "--write-predictions", "new")),
    ("results/manifest.json", ("report", "results", "--output", "results/manifest.json")),
]
# Without --overwrite these are refused, too.
THEIRS = [
    ("notes.md", ("report", "results", "--output", "notes.md")),
    ("notes.md", (*EVALUATE, "--write-run", "notes.md")),
    ("run.trec", (*EVALUATE, "--write-run", "run.trec")),
    ("notes.md", (*EVALUATE, "--write-predictions", "notes.md")),
    ("notes.md", (*INGEST, "c.jsonl", "--dead-letters", "notes.md")),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("beir", "parts", "results", "store/docs", "local"):
        Path(name).mkdir(parents=True)
    for name in ("beir/corpus.jsonl", "c.jsonl", "docs.rejected.jsonl", "queries.jsonl", "q.jsonl", "qrels.tsv"):
        Path(name).write_text(ROW)
    for name in ("parts/a.parquet", "lex.tsv", "notes.md", "store/docs/edge_config.json", "store/docs/collection.json"):
        Path(name).write_text("precious")
    Path("run.trec").write_text("q Q0 a 1 0.5 theirs\n")
    Path("results/manifest.json").write_text('{"kind": "evaluation"}')
    Path("to-beir").symlink_to("beir")
    Path("link.jsonl").symlink_to("c.jsonl")
    os.link("c.jsonl", "hard.jsonl")
    return tmp_path


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def xqg(place: Path, *line: str) -> Result:
    return CliRunner().invoke(main, [word.format(place) for word in line])


@pytest.mark.parametrize(("name", "line"), CASES)
def test_no_output_is_an_input_or_a_part_of_a_store(place: Path, name: str, line: tuple[str, ...]) -> None:
    before = read_all(place)
    known = {option for parameter in main.commands[line[0]].params for option in parameter.opts}
    for more in ((), ("--overwrite",) if "--overwrite" in known else ()):
        result = xqg(place, *line, *more)
        assert result.exit_code == 2, result.output
        assert "input" in result.output or "part of the store" in result.output or "are both" in result.output
        assert read_all(place) == before, name


@pytest.mark.parametrize(("name", "line"), THEIRS)
def test_a_file_that_xqg_did_not_write_is_not_replaced_unasked(place: Path, name: str, line: tuple[str, ...]) -> None:
    before = read_all(place)
    result = xqg(place, *line)
    assert result.exit_code == 2
    assert f"{name} exists and was not written by xqg" in result.output
    assert "--overwrite" in result.output
    assert read_all(place) == before


def test_every_path_of_a_command_is_known_as_an_input_an_output_or_a_store() -> None:
    unknown = {
        (name, parameter.name)
        for name, command in main.commands.items()
        for parameter in command.params
        if isinstance(parameter.type, click.Path) and parameter.name not in (*INPUTS, *OUTPUTS, *STORES)
    }
    assert unknown == set()


def save(folder: Path, text: str) -> None:
    manifest = make_manifest("evaluation", ["xqg"], {}, {})
    with new_results(folder, manifest, [Query("q", text, "fi")]) as final:
        (final / "values.json").write_text(json.dumps({text: {}}))
        (final / f"{text}.trec").write_text("")


def test_saving_over_results_replaces_them_and_keeps_what_the_user_put_there(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save(folder, "first")
    (folder / "notes.md").write_text("mine")
    (folder / "figures").mkdir()
    (folder / "figures" / "a.png").write_text("mine, too")
    save(folder, "second")
    assert read_all(folder).keys() == {
        *(
            "manifest.json",
            "questions.jsonl",
            "values.json",
            "second.trec",
            "notes.md",
            os.path.join("figures", "a.png"),
        )
    }
    assert (folder / "notes.md").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_saving_over_results_changes_no_owner_and_no_permissions(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save(folder, "first")
    group = os.getgid() if os.getuid() else 12345
    os.chown(folder, -1, group)
    folder.chmod(0o2730)
    (folder / "values.json").chmod(0o600)
    save(folder, "second")
    assert (stat.S_IMODE(folder.stat().st_mode), folder.stat().st_gid) == (0o2730, group)
    assert stat.S_IMODE((folder / "values.json").stat().st_mode) == 0o600


def test_saving_over_results_keeps_links_pipes_and_a_log_that_is_being_written(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save(folder, "first")
    (folder / "link").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    (folder / "logs").mkdir()
    (folder / "logs").chmod(0o555)
    with (folder / "log").open("w") as log, (tmp_path / "elsewhere").open("w") as other:
        os.link(tmp_path / "elsewhere", folder / "other")
        save(folder, "second")
        log.write("written after the saving")
        other.write("too")
    assert (folder / "log").read_text() == "written after the saving"
    assert (folder / "other").read_text() == "too"
    assert (folder / "link").is_symlink()
    assert (folder / "pipe").is_fifo()
    assert stat.S_IMODE((folder / "logs").stat().st_mode) == 0o555
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "saved"]


@pytest.mark.parametrize("name", ["values.json", "passages.jsonl", "first.trec", "mine.trec", "hubs.json"])
def test_a_file_of_the_user_that_is_named_as_results_are_is_not_replaced(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "saved"
    manifest = make_manifest("sweep", ["xqg"], {}, {})
    with new_results(folder, manifest, []):
        pass
    (folder / name).write_text('{"first": {}}')
    before = read_all(tmp_path)
    with pytest.raises(InputError, match=f"{name} is not in the list of files that xqg wrote. Cure: move it"):
        check_folder(folder)
    with pytest.raises(InputError, match=name):
        save(folder, "first")
    assert read_all(tmp_path) == before


@pytest.mark.parametrize("swaps", [True, False])
def test_at_no_moment_are_old_and_new_results_away(
    swaps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step of a second saving fails once, with an error and as by Ctrl-C."""
    steps = ("fsync", "rename", "mkdir", "open")
    if not swaps:
        monkeypatch.setattr("xqg_qdrant.atomic.sys.platform", "other")
    for failure in (OSError(5, "I/O error"), KeyboardInterrupt()):
        for at in range(1, 60):
            folder = tmp_path / f"{type(failure).__name__}{at}" / "saved"
            save(folder, "first")
            left, failed = at, False
            with monkeypatch.context() as patch:
                for name in steps:

                    def fail(
                        *given: object, real: object = getattr(os, name), what: BaseException = failure, **more: object
                    ) -> object:
                        nonlocal left, failed
                        left -= 1
                        if left == 0:
                            failed = True
                            raise what
                        return real(*given, **more)  # type: ignore[operator]

                    patch.setattr(os, name, fail)
                with suppress(OSError, KeyboardInterrupt, InputError):
                    save(folder, "second")
            saved = results.read_results(folder)
            assert saved.queries[0].text in ("first", "second")
            assert (folder / f"{saved.queries[0].text}.trec").exists()
            if not failed:
                break
        assert not failed


def kill_at_every_call(kind: str, place: Path) -> list[dict[str, Any]]:
    """Return what `killed_calls.py` prints."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("needs Linux and a C compiler")
    support, library = Path(__file__).parents[1] / "support", place / "faulty_disk.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, support / "faulty_disk.c", "-ldl"], check=True)
    command = [sys.executable, str(support / "killed_calls.py"), kind, str(place / "place")]
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    return [json.loads(line) for line in said.stdout.splitlines()]


def test_killed_at_any_moment_a_saving_leaves_the_old_results_or_the_new_ones(tmp_path: Path) -> None:
    *kills, last = kill_at_every_call("save", tmp_path)
    found = [kill["found"] for kill in kills]
    before = found.count("first")
    assert before > 10
    assert len(found) - before > 2
    assert found == ["first"] * before + ["second"] * (len(found) - before)
    assert last == {"call": len(kills) + 1, "killed": False, "found": "second"}


def test_killed_at_any_moment_a_local_store_is_opened_by_the_same_command(tmp_path: Path) -> None:
    kills = kill_at_every_call("local", tmp_path)
    assert [kill["killed"] for kill in kills] == [True] * (len(kills) - 1) + [False]
    assert len(kills) > 3
    assert {kill["found"] for kill in kills} == {"Collections"}


def test_an_exchange_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    monkeypatch.setattr("xqg_qdrant.atomic.sys.platform", "other")
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="No space"):
        exchange(tmp_path / "new", tmp_path / "old")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "new",
        "new/new",
        "old",
        "old/old",
    ]


def test_a_run_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    path.write_text("earlier")
    with pytest.raises(InputError, match="white space"):
        write_run(path, {"q": [("a", 1.0), ("a b", 0.5)]})
    assert read_all(tmp_path) == {"run.trec": b"earlier"}


def fill(location: Path) -> None:
    vectors = dict.fromkeys(("xqg", "passage"), np.ones(4, np.float32))
    with open_store(str(location)) as store:
        store.create_collection("docs", 4, {})
        store.upsert("docs", [AugmentedPassage(Passage("a", "text"), (), vectors, "hash", "recipe")])


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_store_from_elsewhere_cannot_have_another_file_emptied(link: object, tmp_path: Path) -> None:
    fill(tmp_path / "s")
    victim, holder = tmp_path / "victim", tmp_path / "s" / "docs" / "holder.json"
    victim.write_text("something precious")
    holder.unlink()
    link(victim, holder)  # type: ignore[operator]
    with open_store(str(tmp_path / "s")) as store, pytest.raises(StoreError, match="is a link to another file"):
        store.count("docs")
    assert victim.read_text() == "something precious"


def test_a_collection_behind_a_symbolic_link_is_deleted_with_nothing_left(tmp_path: Path) -> None:
    fill(tmp_path / "s")
    (tmp_path / "s" / "docs").rename(tmp_path / "elsewhere")
    (tmp_path / "s" / "docs").symlink_to("../elsewhere")
    with open_store(str(tmp_path / "s")) as store:
        store.delete_collection("docs")
        assert store.collections() == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["s"]


def test_a_local_store_whose_first_list_of_collections_was_cut_recovers(tmp_path: Path) -> None:
    for content in ("", '{"collections'):
        (tmp_path / "meta.json").write_text(content)
        with open_store(f"local:{tmp_path}") as store:
            assert store.collections() == []
            store.create_collection("docs", 4, {})
            store.delete_collection("docs")
    with open_store(f"local:{tmp_path}") as store:
        store.create_collection("docs", 4, {})
    (tmp_path / "meta.json").write_text("")
    with pytest.raises(StoreError, match=r"meta\.json is damaged .* Cure: restore it"):
        open_store(f"local:{tmp_path}")
