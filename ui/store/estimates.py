"""Minutes, memory and file size of a training that has not begun: asked of a child process, remembered on disk. No gradio, no torch.

outputs/.cache/planning/    commands.jsonl: questions; events.jsonl: answers, by a hash of all that decides them
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
from typing import Any

from trainer.dataset.quick_scan import quick_scan
from trainer.runs import events
from trainer.runs.run import Run

_ROOT = Path(__file__).resolve().parents[2]
# What changes neither time nor memory nor file size.
_ELSEWHERE = frozenset(
    {"name", "trigger", "title", "author", "licence", "seed", "save_captions", "pace", "preset"}
)
STALE_SECONDS = 60.0  # a refusal may be over by then: memory was freed, a file is back
_LARGEST = 1_000_000  # bytes of remembered answers


@dataclass
class Estimates:
    cache: Path  # the folder of caches
    models: Path
    is_busy: Callable[[], bool] = lambda: (
        False
    )  # whether asking would take memory from a training on the same card
    _answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    _read: int = 0
    _asked: dict[str, float] = field(default_factory=dict)
    _woken: dict[str, int] = field(default_factory=dict)  # how often for a question, after it was asked
    _newest: dict[Path, str] = field(default_factory=dict)  # question about a folder
    _child: subprocess.Popen[bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, folder: Path, values: dict[str, Any]) -> str:
        """The key under which `answer` will have it; asks the child process when nobody has yet."""
        key = self._key(folder, values)
        if self._needs_asking(key) and not self.is_busy():
            with self._lock:
                self._asked.pop(
                    self._newest.get(folder, ""), None
                )  # it may never be answered: asked again, it is a new question
                self._newest[folder] = key
                self._asked[key] = time.monotonic()
                self._woken[key] = 0
                place = self._place()
                place.path.mkdir(parents=True, exist_ok=True)
                for file in (place.commands, place.events):
                    if file.exists() and file.stat().st_size > _LARGEST and not place.is_alive():
                        file.unlink()
                events.append(
                    place.commands, "plan", id=self._id(key), folder=str(folder.resolve()), settings=values
                )
                self._wake(place)
        return key

    def answer(self, key: str) -> dict[str, Any] | None:
        """{"kind": "planned", ...} or {"kind": "refused", ...}; None while there is none."""
        with self._lock:
            said, self._read = events.read(self._place().events, self._read)
            for event in said:
                if event["kind"] in ("planned", "refused"):
                    self._answers[str(event.get("id")).split("/")[0]] = event
            return self._answers.get(key)

    def is_pending(self, key: str) -> bool:
        """Whether it is worth waiting for an answer; a process that went idle just before it was asked is woken again."""
        if key not in self._asked:
            return False
        with self._lock:
            if not self._lives() and self._woken[key] < 1:
                self._woken[key] += 1
                self._wake(self._place())
            return self._lives()

    def mark(self) -> tuple[int, bool]:
        """Another one whenever an answer has come, or none will any more."""
        self.answer("")
        return len(self._answers), self._lives()

    def _needs_asking(self, key: str) -> bool:
        known = self.answer(key)
        if known is not None and (known["kind"] == "planned" or time.time() - known["time"] < STALE_SECONDS):
            return False
        return time.monotonic() - self._asked.get(key, -1e9) > STALE_SECONDS or not self._lives()

    def _key(self, folder: Path, values: dict[str, Any]) -> str:
        sizes = sorted((item.width, item.height) for item in quick_scan(folder).items)
        facts = {name: value for name, value in sorted(values.items()) if name not in _ELSEWHERE}
        return hashlib.sha256(
            json.dumps([os.fspath(folder), sizes, facts], default=str).encode()
        ).hexdigest()[:32]

    def _id(self, key: str) -> str:
        """A refusal may be asked again under the same key."""
        return f"{key}/{time.time_ns()}"

    def _place(self) -> Run:
        return Run(self.cache / "planning")

    def _lives(self) -> bool:
        return (self._child is not None and self._child.poll() is None) or self._place().is_alive()

    def _wake(self, place: Run) -> None:
        if self._lives():
            return
        arguments = [
            sys.executable,
            "-m",
            "trainer",
            "planner",
            str(place.path.resolve()),
            "--models",
            str(self.models.resolve()),
        ]
        with (place.path / "trainer.log").open("wb") as log:
            self._child = subprocess.Popen(
                arguments,
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
            )
