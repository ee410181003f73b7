"""Jobs of the queue (trainer/runs/queue.py) and the devices on which they run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("train", "caption", "lora", "draw")
FILES = "files"  # a lane for work on files, which needs no device


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device that runs one job at a time."""

    id: str  # "cpu", "mps", or the number of a CUDA device
    words: str  # a description for the user, such as "CUDA (NVIDIA H200)"
    visible: str | None = None  # CUDA_VISIBLE_DEVICES of a child process on this device; None leaves it unset


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """One row of the queue's database."""

    id: str
    kind: str  # one of KINDS
    key: str  # the job's folder, relative to the outputs folder
    arguments: tuple[str, ...]  # of `python -m trainer`
    state: str  # waiting, running, finished, stopped, failed or interrupted
    position: float  # waiting jobs start in this order
    events_offset: int  # byte offset in events.jsonl; events before it belong to an earlier process
    token: str | None = None  # of the click that created the job
    lane: str = ""
    device: str = ""
    pid: int | None = None
    process_started: float | None = None  # seconds since 1970
    stops: int = 0
    signal: int = 0
    changed: float = 0.0  # when the state changed, seconds since 1970

    def marker(self) -> dict[str, Any]:
        """Content of `.queue.json`, from which a lost database is rebuilt."""
        return {
            "id": self.id,
            "token": self.token,
            "kind": self.kind,
            "lane": self.lane,
            "state": self.state,
            "position": self.position,
            "said": self.events_offset,
            "arguments": list(self.arguments),
        }


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the page shows it."""

    id: str
    kind: str  # one of KINDS
    folder: Path
    state: str  # waiting, running, finished, stopped, failed or interrupted
    lane: str  # id of the device that the job requires; "" for any; FILES for none
    device: str  # id of the device on which it runs; "" while it waits
    queue_position: int = 0  # 1 is next; 0 for jobs that do not wait
    stops: int = 0  # number of times that Stop was pressed
    signal: int = 0  # signal that killed the process, if this process was its parent
    pid: int | None = None  # of the process that this queue started
