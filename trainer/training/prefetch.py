"""Reading before it is asked for, writing after it was: a thread beside the one that computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

_Thing = TypeVar("_Thing")
_Made = TypeVar("_Made")


def prefetch(
    work: Callable[[_Thing], _Made], things: Iterable[_Thing], depth: int = 1
) -> Generator[tuple[_Thing, Future[_Made]]]:
    """Each thing with `work(thing)`, in order; one thread is at most `depth` things ahead of whoever takes them.

    What `work` raises, the future's `result()` raises. Nothing more is begun once the iterator is closed.
    """
    waiting: deque[tuple[_Thing, Future[_Made]]] = deque()
    thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        for thing in things:
            waiting.append((thing, thread.submit(work, thing)))
            if len(waiting) > depth:
                yield waiting.popleft()
        yield from waiting
    finally:
        thread.shutdown(wait=True, cancel_futures=True)


class BackgroundWriter:
    """`with Behind() as behind`: calls done in order by one thread, at most `depth` of them waiting; all are done at the end.

    What a call raises, the next `do` or the end of the block raises.
    """

    def __init__(self, depth: int = 2) -> None:
        self._depth, self._waiting = depth, deque[Future[None]]()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="behind")

    def do(self, call: Callable[..., None], *values: Any) -> None:
        self._waiting.append(self._thread.submit(call, *values))
        while len(self._waiting) > self._depth:
            self._waiting.popleft().result()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            for call in self._waiting:
                call.result()
