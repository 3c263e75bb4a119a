"""Batches, and results in order from worker threads; `test_pipeline` tests them as the ingest uses them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from threading import Event

import pytest

from xqg_qdrant.streams import CUDA_WORKERS, batched, count_workers, work_in_order


def test_batches_hold_all_items_in_order_and_the_last_may_be_shorter() -> None:
    assert list(batched(iter(range(7)), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batched([], 3)) == []


def test_results_come_in_the_order_of_the_items() -> None:
    batches = list(work_in_order(lambda number: number * number, range(50), workers=3))
    assert [result for batch in batches for result in batch] == [number * number for number in range(50)]
    assert all(batches)


def test_no_items_give_nothing() -> None:
    assert list(work_in_order(str, [], workers=2)) == []


def test_nothing_is_taken_when_it_is_to_stop_from_the_start() -> None:
    stop = Event()
    stop.set()

    def take() -> Iterator[int]:
        raise AssertionError("taken")
        yield 1

    assert list(work_in_order(str, take(), 2, stop)) == []


def test_an_error_of_the_items_surfaces() -> None:
    def take() -> Iterator[int]:
        yield 1
        raise ValueError("unreadable")

    with pytest.raises(ValueError, match="unreadable"):
        list(work_in_order(str, take(), workers=1))


def test_what_was_finished_before_a_failed_item_is_yielded_first() -> None:
    ended = [Event() for _ in range(4)]

    def work(number: int) -> int:
        if number == 0:
            ended[3].wait(10)  # so that all are finished when the first one is
        ended[number].set()
        if number == 2:
            raise ValueError("failed")
        return number

    results = itertools.chain.from_iterable(work_in_order(work, range(4), workers=2))
    assert list(itertools.islice(results, 2)) == [0, 1]
    with pytest.raises(ValueError, match="failed"):
        next(results)


def test_a_cpu_gets_a_worker_for_each_thread_and_a_gpu_two() -> None:
    assert count_workers("cpu", 3) == 3
    assert count_workers("cpu") >= 1
    assert count_workers("cuda", 3) == CUDA_WORKERS == 2
