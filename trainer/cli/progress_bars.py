"""Progress bars on the terminal, from the run's events, with rate and time left."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from trainer.runs import events
from trainer.runs.run import Run


@contextlib.contextmanager
def progress_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """Shows one bar on the terminal from the first step on; yields a function of (steps done, steps in all)."""
    # Standard output is for results, which rich would otherwise print on standard error, beside the bar.
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), redirect_stdout=False)
    task = progress.add_task(name, total=None)

    def on_step(done: int, total: int) -> None:
        progress.start()  # a second call has no effect
        progress.update(task, completed=done, total=total)

    try:
        yield on_step
    finally:
        if progress.live.is_started:
            progress.stop()


class Bars:
    """Context manager that shows a run's new events as progress bars, from a thread of its own."""

    def __init__(self, run: Run) -> None:
        self.run = run
        _, self.offset = events.read(run.events)
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.tasks: dict[str, TaskID] = {}
        self.progress = Progress(
            TextColumn("{task.description:18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )

    def __enter__(self) -> Bars:
        self.progress.start()
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.done.set()
        self.thread.join(timeout=5)
        self._show_new_events()
        self.progress.stop()

    def _follow(self) -> None:
        while not self.done.wait(0.3):
            self._show_new_events()

    def _show_new_events(self) -> None:
        new_events, self.offset = events.read(self.run.events, self.offset)
        for event in new_events:
            match event["kind"]:
                case "problem" | "advice":
                    self.progress.console.print(f"note: {event['message']}", markup=False, highlight=False)
                case "stage" if event.get("total"):
                    self._show(event["stage"], event["done"], event["total"], "")
                case "step":
                    self._show("training", event["step"], event["steps"], f"loss {event['loss']:.4f}")

    def _show(self, name: str, done: int, total: int, note: str) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, completed=done, total=total, note=note)
        self.progress.update(self.tasks[name], completed=done, total=total, note=note)
