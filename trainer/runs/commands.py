"""The commands that a running job receives: from the operating system by signals, from the page by
`commands.jsonl`.

Lines of commands.jsonl, one JSON object each (trainer/runs/events.py), appended by the page and never
removed:

{"kind": "stop", "time": 1795500000.0}                          end after the current step and save
{"kind": "draw", "id": "...", "request": {...}, "out": "..."}   sample images (trainer/runs/draw_protocol.py)
{"kind": "cancel", "id": "..."}                                 cancel one draw request

SIGTERM and SIGINT (Ctrl-C) count as "stop" once; the second signal raises KeyboardInterrupt at once.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from trainer.runs import events
from trainer.runs.run import Run


class CommandInbox:
    """Collects the commands of one run: stop, draw requests and cancellations.

    Attributes:
        stopped_by_signal: SIGTERM or SIGINT was received.
        stopped_by_command: a "stop" line was read from commands.jsonl.
        draw_requests: "draw" commands that nobody has served yet; the consumer removes what it takes.
        cancelled: ids of cancelled draw requests.
    """

    def __init__(self, run: Run, commands_offset: int | None = None) -> None:
        """Installs handlers of SIGTERM and SIGINT when called in the main thread.

        Args:
            commands_offset: byte offset in commands.jsonl; commands before it are ignored. None: its current
                end.
        """
        self.run = run
        self.stopped_by_signal = False
        self.stopped_by_command = False
        self.draw_requests: list[dict[str, Any]] = []
        self.cancelled: set[str] = set()
        self._offset = events.read(run.commands)[1] if commands_offset is None else commands_offset
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by_signal:
            raise KeyboardInterrupt
        self.stopped_by_signal = True

    def stop_requested(self) -> bool:
        """Reads new commands and returns True once the run must stop."""
        commands, self._offset = events.read(self.run.commands, self._offset)
        for command in commands:
            if command["kind"] == "stop":
                self.stopped_by_command = True
            elif command["kind"] == "draw" and "id" in command:
                self.draw_requests.append(command)
            elif command["kind"] == "cancel":
                self.cancelled.add(str(command.get("id")))
        return self.stopped_by_signal or self.stopped_by_command
