"""How a running training hears what it is told: to stop, and to draw."""

from __future__ import annotations

import signal
import threading
from typing import Any

from trainer.runs import events
from trainer.runs.run import Run


class StopSignal:
    """Told to stop by the system (SIGTERM, Ctrl-C) or by the page (a line in commands.jsonl)."""

    def __init__(self, run: Run, heard: int | None = None) -> None:
        self.run, self.by_signal, self.by_page = run, False, False
        self.wishes: list[dict[str, Any]] = []  # pictures that are asked for (trainer/runs/draw_protocol.py)
        self.cancelled: set[str] = set()
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
        self.wishes += [command for command in commands if command["kind"] == "draw" and "id" in command]
        self.cancelled |= {str(command.get("id")) for command in commands if command["kind"] == "cancel"}
        return self.by_signal or self.by_page
