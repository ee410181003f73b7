"""How a running training learns that it should stop."""

from __future__ import annotations

import signal
import threading
from typing import Any

from trainer import events
from trainer.run import Run


class StopSignal:
    """Told to stop by the system (SIGTERM, Ctrl-C) or by the page (a line in commands.jsonl)."""

    def __init__(self, run: Run, heard: int | None = None) -> None:
        self.run, self.by_signal, self.by_page = run, False, False
        self.offset = events.read(run.commands)[1] if heard is None else heard
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._heard)
            signal.signal(signal.SIGINT, self._heard)

    def _heard(self, number: int, frame: Any) -> None:
        if self.by_signal:  # the second time means now
            raise KeyboardInterrupt
        self.by_signal = True

    def asked(self) -> bool:
        commands, self.offset = events.read(self.run.commands, self.offset)
        self.by_page = self.by_page or any(command["kind"] == "stop" for command in commands)
        return self.by_signal or self.by_page
