"""Reading ahead and writing behind keep the order, the bounds and every fault."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from trainer.training.prefetch import BackgroundWriter, prefetch


def test_things_come_in_order_and_few_are_read_before_they_are_asked_for():
    begun: list[int] = []

    def read(number: int) -> int:
        begun.append(number)
        return number * number

    taken = prefetch(read, range(10), depth=2)
    for expected in range(4):
        number, found = next(taken)
        assert (number, found.result()) == (expected, expected * expected)
        time.sleep(0.02)
        assert len(begun) <= expected + 3
    taken.close()
    assert len(begun) < 10


def test_a_picture_that_cannot_be_read_is_told_in_its_place_and_the_others_come():
    def read(number: int) -> int:
        return 1 // number

    found = [future.exception() for _, future in prefetch(read, [1, 0, 1])]
    assert [type(fault) for fault in found] == [type(None), ZeroDivisionError, type(None)]


def test_no_thread_goes_on_reading_when_what_is_done_with_things_fails():
    begun: list[int] = []
    with pytest.raises(ZeroDivisionError), contextlib.closing(prefetch(begun.append, range(100))) as things:
        for _ in things:
            raise ZeroDivisionError
    so_far = len(begun)
    assert so_far <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_everything_is_written_before_the_block_ends_and_in_order():
    written, gate = [], threading.Event()

    def write(number: int) -> None:
        gate.wait(5)
        written.append(number)

    with BackgroundWriter(depth=3) as behind:
        for number in range(3):
            behind.do(write, number)
        assert written == []
        gate.set()
    assert written == [0, 1, 2]


@pytest.mark.parametrize("calls", [1, 6])
def test_a_full_disk_is_not_lost_in_the_thread(calls: int):
    def write() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), BackgroundWriter() as behind:
        for _ in range(calls):
            behind.do(write)
