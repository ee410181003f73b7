"""Runs a list of trainer commands in one process: `python -m tests.golden.worker COMMANDS.json DONE.json`.

COMMANDS.json  {"style": {"arguments": ["train", ...], "stop_after": null}, ...}
DONE.json      {"style": {"status": 0, "out": "...", "err": "..."}, ...}
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conftest import trainer


@contextlib.contextmanager
def stopped_after(run: Path, step: int) -> Iterator[None]:
    """Sends SIGTERM to this process once the run's events report `step`, as a system that shuts down does."""
    ended = threading.Event()

    def watch() -> None:
        events = run / "events.jsonl"
        while not ended.wait(0.01):
            if events.exists() and f'"step": {step},' in events.read_text(encoding="utf-8"):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def execute(command: dict[str, Any]) -> dict[str, Any]:
    """Exit status, output and messages of one command."""
    arguments: list[str] = command["arguments"]
    stopping: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if command["stop_after"] is not None:
        run = Path(arguments[arguments.index("--output") + 1])
        stopping = stopped_after(run, command["stop_after"])
    with stopping:
        done = trainer(*arguments, check=False)
    return {"status": done.returncode, "out": done.stdout, "err": done.stderr}


def main(asked: Path, answered: Path) -> None:
    """Executes all commands in order and writes how each ended."""
    commands = json.loads(asked.read_text())
    answered.write_text(json.dumps({name: execute(command) for name, command in commands.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
