"""Estimates of a training before it begins: minutes, memory and file size. No gradio, no torch.

A child process (trainer/workers/planning.py) computes them, so that torch stays out of the server. Its results are kept on disk:

outputs/.cache/planning/    commands.jsonl: requests; events.jsonl: results, each under a hash of everything it depends on
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from trainer.dataset.quick_scan import quick_scan
from trainer.runs import events
from trainer.runs.run import Run

_ROOT = Path(__file__).resolve().parents[2]
# Settings that change neither time nor memory nor file size.
_IRRELEVANT = frozenset(
    {"name", "trigger", "title", "author", "licence", "seed", "save_captions", "pace", "preset"}
)
STALE_SECONDS = 60.0  # after that a refusal is computed again: memory may be free, or a file restored
_MAX_FILE_BYTES = (
    1_000_000  # of requests or results; a larger file is deleted while the process is not running
)
_MAX_RESTARTS = 1  # of the process for one request


class Process(Protocol):
    """The part of `subprocess.Popen` that estimates need."""

    def poll(self) -> int | None:
        """Returns the exit status; None while the process is running."""
        ...


def start_planner(run: Run, models: Path) -> Process:
    """Starts the child process that computes the estimates requested in a run directory."""
    arguments = [
        sys.executable,
        "-m",
        "trainer",
        "planner",
        str(run.path.resolve()),
        "--models",
        str(models.resolve()),
    ]
    with (run.path / "trainer.log").open("wb") as log:
        return subprocess.Popen(
            arguments,
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
        )


@dataclass
class _Request:
    """A submitted request."""

    submitted: float = field(default_factory=time.monotonic)
    restarts: int = 0  # of the process since then


@dataclass
class Estimates:
    """Requests estimates and returns their results.

    `is_busy()` is True while the child process would take memory from a training on the same card; nothing is requested then.
    """

    cache: Path
    models: Path
    is_busy: Callable[[], bool] = lambda: False
    start_process: Callable[[Run, Path], Process] = start_planner
    _results: dict[str, dict[str, Any]] = field(default_factory=dict)
    _offset: int = 0  # in the file of results
    _requests: dict[str, _Request] = field(default_factory=dict)
    _newest: dict[Path, str] = field(default_factory=dict)  # picture folder -> key of its latest request
    _process: Process | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def _run(self) -> Run:
        return Run(self.cache / "planning")

    def submit(self, folder: Path, values: dict[str, Any]) -> str:
        """Requests an estimate unless a current one is known or requested; returns the key for `result`.

        Args:
            folder: the project's pictures.
            values: all settings of the training.
        """
        key = _key(folder, values)
        if self._is_needed(key) and not self.is_busy():
            with self._lock:
                # The process skips all but the newest request about a folder. The earlier one is forgotten, so that
                # submitting its settings again makes a new request.
                self._requests.pop(self._newest.get(folder, ""), None)
                self._newest[folder] = key
                self._requests[key] = _Request()
                run = self._run
                run.path.mkdir(parents=True, exist_ok=True)
                for file in (run.commands, run.events):
                    if file.exists() and file.stat().st_size > _MAX_FILE_BYTES and not run.is_alive():
                        file.unlink()
                # The time makes the id unique: an estimate that was refused may be requested again under its key.
                command = {
                    "id": f"{key}/{time.time_ns()}",
                    "folder": str(folder.resolve()),
                    "settings": values,
                }
                events.append(run.commands, "plan", **command)
                self._ensure_process()
        return key

    def result(self, key: str) -> dict[str, Any] | None:
        """Returns {"kind": "planned", ...} or {"kind": "refused", ...}; None if there is no result yet."""
        with self._lock:
            new_events, self._offset = events.read(self._run.events, self._offset)
            for event in new_events:
                if event["kind"] in ("planned", "refused"):
                    self._results[str(event.get("id")).split("/")[0]] = event
            return self._results.get(key)

    def is_pending(self, key: str) -> bool:
        """True if a result can still come. A process that exited just before the request arrived is started again."""
        request = self._requests.get(key)
        if request is None:
            return False
        with self._lock:
            if not self._is_running() and request.restarts < _MAX_RESTARTS:
                request.restarts += 1
                self._ensure_process()
            return self._is_running()

    def revision(self) -> tuple[int, bool]:
        """Returns a value that changes when a result arrives, or when none can arrive any more."""
        self.result("")
        return len(self._results), self._is_running()

    def _is_needed(self, key: str) -> bool:
        known = self.result(key)
        if known is not None and (known["kind"] == "planned" or time.time() - known["time"] < STALE_SECONDS):
            return False
        request = self._requests.get(key)
        is_recent = request is not None and time.monotonic() - request.submitted <= STALE_SECONDS
        return not is_recent or not self._is_running()

    def _is_running(self) -> bool:
        return (self._process is not None and self._process.poll() is None) or self._run.is_alive()

    def _ensure_process(self) -> None:
        if not self._is_running():
            self._process = self.start_process(self._run, self.models)


def _key(folder: Path, values: dict[str, Any]) -> str:
    """Returns a hash of everything that an estimate depends on: picture sizes and relevant settings."""
    sizes = sorted((item.width, item.height) for item in quick_scan(folder).items)
    relevant = {name: value for name, value in sorted(values.items()) if name not in _IRRELEVANT}
    text = json.dumps([os.fspath(folder), sizes, relevant], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
