"""Jobs that create or change LoRA files, run by child processes (trainer/workers/lora_tools.py). No gradio, no torch.

outputs/.making-<id>/
  job.json         {"tool": "merge", ...} with the tool's arguments
  events.jsonl     ends with {"kind": "ended", "how": "finished"} or {"kind": "ended", "how": "failed", "message": "..."}
"""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import dataclass
from typing import Any

from trainer.atomic_files import write_atomically
from trainer.runs import events
from trainer.runs.job import FILES
from trainer.runs.run import Run
from ui.store.runs import Runs

_PREFIX = ".making-"
_MAX_FOLDERS = 20  # of jobs that have ended


@dataclass(frozen=True)
class FileJobs:
    """One artist's jobs on LoRA files."""

    runs: Runs

    def start(self, tool: str, **arguments: Any) -> str:
        """Queues a job with the arguments that `trainer/workers/lora_tools.py` lists for each tool; returns its id."""
        job = uuid.uuid4().hex
        self._remove_old()
        folder = self.runs.outputs / f"{_PREFIX}{job}"
        folder.mkdir(parents=True)
        record = {"tool": tool, **arguments}
        write_atomically(folder / "job.json", json.dumps(record, ensure_ascii=False).encode())
        self.runs.queue.submit(folder, "lora", ["make", str(folder.resolve())], lane=FILES)
        return job

    def status(self, job: str) -> tuple[str, str]:
        """Returns ("working" | "finished" | "failed", message of the failure)."""
        folder = self.runs.outputs / f"{_PREFIX}{job}"
        if not job.isalnum() or not folder.is_dir():
            return "failed", "that job no longer exists; start it again"
        queued = self.runs.queue.find(folder)
        # Before the events are read, so that the last event of a process that ends now is not missed.
        is_alive = Run(folder).is_alive() or (queued is not None and queued.state in ("waiting", "running"))
        job_events, _ = events.read(folder / "events.jsonl")
        ended = next((event for event in job_events if event["kind"] == "ended"), None)
        if ended and ended["how"] == "finished":
            return "finished", ""
        if ended:
            return "failed", str(ended.get("message", ""))
        return ("working", "") if is_alive else ("failed", "the job ended before it was done; start it again")

    def all(self) -> list[tuple[str, str, str]]:
        """Returns (id, state, message) of every job whose folder exists."""
        jobs = sorted(path.name.removeprefix(_PREFIX) for path in self.runs.outputs.glob(f"{_PREFIX}*"))
        return [(job, *self.status(job)) for job in jobs if job.isalnum()]

    def _remove_old(self) -> None:
        """Removes the folders of old jobs; the files that they created are elsewhere."""
        folders = sorted(self.runs.outputs.glob(f"{_PREFIX}*"), key=lambda path: -path.stat().st_mtime)
        for folder in folders[_MAX_FOLDERS:]:
            if self.status(folder.name.removeprefix(_PREFIX))[0] != "working":
                shutil.rmtree(folder, ignore_errors=True)
