"""Background prefetching and write-behind, one thread each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def prefetch(
    work: Callable[[_Item], _Result], items: Iterable[_Item], depth: int = 1
) -> Generator[tuple[_Item, Future[_Result]]]:
    """Yields each item with the future of `work(item)`; one thread computes at most `depth` items ahead.

    `result()` of a future raises what `work` has raised. Once the generator is closed, no further item is
    begun.
    """
    pending: deque[tuple[_Item, Future[_Result]]] = deque()
    thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        for item in items:
            pending.append((item, thread.submit(work, item)))
            if len(pending) > depth:
                yield pending.popleft()
        yield from pending
    finally:
        thread.shutdown(wait=True, cancel_futures=True)


class BackgroundWriter:
    """Runs calls in order in one thread, at most `depth` of them pending; the block's end waits for all.

        with BackgroundWriter() as writer:
            writer.submit(path.write_bytes, data)

    The next `submit` or the end of the block raises what a call has raised.
    """

    def __init__(self, depth: int = 2) -> None:
        self._depth, self._pending = depth, deque[Future[None]]()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")

    def submit(self, call: Callable[..., None], *arguments: Any) -> None:
        """Queues a call, and waits while more than `depth` are pending."""
        self._pending.append(self._thread.submit(call, *arguments))
        while len(self._pending) > self._depth:
            self._pending.popleft().result()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            for call in self._pending:
                call.result()
