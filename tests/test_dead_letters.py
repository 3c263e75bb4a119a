from __future__ import annotations

import json
from pathlib import Path

import pytest

from xqg_qdrant.corpus.dead_letters import MOST_KINDS, DeadLetters, Reasons
from xqg_qdrant.errors import InputError
from xqg_qdrant.records import Reject

FIRST, SECOND = Reject("c.jsonl", 3, "no id", '{"text": "ä\u2028\x1b"}'), Reject("c.jsonl", 9, "no text", "\\xff")


def letters_in(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def test_rejects_can_be_read_as_jsonl_as_soon_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    with DeadLetters(path) as dead_letters:
        dead_letters.write([FIRST])
        assert letters_in(path) == [FIRST._asdict()]
        dead_letters.write(iter([SECOND]))
        assert letters_in(path) == [FIRST._asdict(), SECOND._asdict()]
    assert letters_in(path) == [FIRST._asdict(), SECOND._asdict()]


def write_earlier(path: Path) -> str:
    with DeadLetters(path) as dead_letters:
        dead_letters.write([FIRST])
    return path.read_text()


def test_those_of_an_earlier_run_stay_until_this_one_has_something_to_say(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    earlier = write_earlier(path)
    dead_letters = DeadLetters(path)
    dead_letters.write([])
    dead_letters.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert path.read_text() == earlier
    with DeadLetters(path) as dead_letters:
        dead_letters.write([SECOND])
    assert letters_in(path) == [SECOND._asdict()]


def test_a_run_without_rejects_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    for prepare in (write_earlier, Path.touch, lambda path: None):
        prepare(path)
        with DeadLetters(path) as dead_letters:
            dead_letters.write([])
        assert not path.exists()


def test_runs_at_the_same_time_keep_all_rejects_of_both(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    for earlier in (False, True):
        if earlier:
            write_earlier(path)
        with DeadLetters(path) as without, DeadLetters(path) as one, DeadLetters(path) as other:
            one.write([FIRST])
            other.write([SECOND])
            one.write([SECOND])
            without.write([])
        assert letters_in(path) == [FIRST._asdict(), SECOND._asdict(), SECOND._asdict()]
        path.unlink()


def test_a_file_of_the_user_is_replaced_only_if_that_was_said(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    for content in ('{"id": "a", "text": "a corpus"}\n', "notes", "{", "[" * 100_000):
        path.write_text(content)
        with pytest.raises(InputError, match=r"holds no rejected rows\. Cure: .*--overwrite"):
            DeadLetters(path)
        assert path.read_text() == content
    with DeadLetters(path, overwrite=True) as dead_letters:
        dead_letters.write([FIRST])
    assert letters_in(path) == [FIRST._asdict()]


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    path, target = tmp_path / "dead.jsonl", tmp_path / "precious"
    target.touch()
    path.symlink_to(target)
    with pytest.raises(InputError, match="is a symbolic link"):
        DeadLetters(path, overwrite=True)
    path.unlink()
    with DeadLetters(path) as dead_letters:
        path.symlink_to(target)
        with pytest.raises(InputError, match="cannot write rejected rows"):
            dead_letters.write([FIRST])
    assert target.read_text() == ""


def test_a_device_is_not_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[Path] = []
    # A mistake must not cost the machine its device.
    monkeypatch.setattr(Path, "unlink", lambda path, **_: removed.append(path))
    with DeadLetters(Path("/dev/null")) as dead_letters:
        dead_letters.write([])
    assert removed == []


def test_of_a_long_row_the_beginning_is_kept_and_the_reason_says_so(tmp_path: Path) -> None:
    path = tmp_path / "dead.jsonl"
    with DeadLetters(path) as dead_letters:
        dead_letters.write([Reject("c", 1, "no id", "x" * 10_000), Reject("c", 2, "no id", "y" * 10_001)])
    assert letters_in(path) == [
        {"source": "c", "line": 1, "reason": "no id", "row": "x" * 10_000},
        {"source": "c", "line": 2, "reason": "no id (row: its first 10,000 characters)", "row": "y" * 10_000},
    ]


def test_a_file_that_cannot_be_written_is_an_error_with_its_cure(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "dead.jsonl"):
        with pytest.raises(InputError, match=r"cannot write rejected rows to .* Cure: "):
            DeadLetters(path)


def test_a_full_disk_is_an_error_with_its_cure() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no device that is always full")
    with (
        pytest.raises(InputError, match=r"rejected rows to /dev/full \(No space left on device\)\. Cure: free space"),
        DeadLetters(Path("/dev/full")) as dead_letters,
    ):
        dead_letters.write([FIRST])


def test_the_commonest_reasons_are_counted_whatever_values_they_hold() -> None:
    reasons = Reasons()
    found = ["the id 'a' occurred before"] * 2 + ["the id 'b' occurred before", "not UTF-8: byte 0xff at position 3"]
    found += ["not UTF-8: byte 0xfe at position 0", "no id", "text is empty"]
    for line, reason in enumerate(found, start=1):
        reasons.add(Reject("corpus", line, reason, ""))
    assert [(count, first.line) for count, first in reasons.commonest()] == [(3, 1), (2, 4), (1, 6)]


def test_reasons_without_number_take_bounded_memory() -> None:
    reasons = Reasons()
    for number in range(MOST_KINDS + 10):
        reasons.add(Reject("corpus", 1, "x" * number, ""))
    reasons.add(Reject("corpus", 1, "x", ""))
    assert reasons.commonest()[0][0] == 2
    assert len(reasons._counts) == MOST_KINDS
