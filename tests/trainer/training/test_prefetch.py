"""Prefetching and background writing keep the order and the depth, and lose no error."""

from __future__ import annotations

import contextlib
import threading

import pytest

from trainer.training.prefetch import BackgroundWriter, prefetch


def test_items_come_in_order_and_at_most_depth_are_read_ahead():
    begun: list[int] = []

    def read(number: int) -> int:
        begun.append(number)
        return number * number

    taken = prefetch(read, range(10), depth=2)
    for expected in range(4):
        number, future = next(taken)
        assert (number, future.result()) == (expected, expected * expected)
        assert len(begun) <= expected + 3
    taken.close()  # waits for the thread, so that a read too many would be in the list
    assert len(begun) <= 6


def test_an_item_that_cannot_be_read_raises_in_its_place_and_the_others_come():
    def read(number: int) -> int:
        return 1 // number

    errors = [future.exception() for _, future in prefetch(read, [1, 0, 1])]
    assert [type(error) for error in errors] == [type(None), ZeroDivisionError, type(None)]


def test_the_thread_ends_when_the_consumer_fails():
    begun: list[int] = []

    def consume() -> None:
        with contextlib.closing(prefetch(begun.append, range(100))) as items:
            for item, _ in items:
                raise ZeroDivisionError(item)

    with pytest.raises(ZeroDivisionError):
        consume()
    assert len(begun) <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_all_calls_are_done_in_order_before_the_block_ends():
    written, gate = [], threading.Event()

    def write(number: int) -> None:
        assert gate.wait(30)
        written.append(number)

    with BackgroundWriter(depth=3) as writer:
        for number in range(3):
            writer.submit(write, number)
        assert written == []
        gate.set()
    assert written == [0, 1, 2]


@pytest.mark.parametrize("calls", [1, 6])
def test_an_error_in_the_thread_is_raised_to_the_caller(calls: int):
    def write() -> None:
        raise OSError(28, "No space left on device")

    def write_all() -> None:
        with BackgroundWriter() as writer:
            for _ in range(calls):
                writer.submit(write)

    with pytest.raises(OSError, match="No space"):
        write_all()
