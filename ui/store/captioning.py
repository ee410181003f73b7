"""Captions by a model, as a job of a process of its own: started, followed and stopped from the page. No torch here.

outputs/.captioning/<id>/    the job's folder (trainer/runs/captioning_job.py) and project.json {"project": name}
"""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.atomic_files import write_atomically
from trainer.captioning_config import options_from
from trainer.errors import CaptionerError, RunError
from trainer.headers.captioner import list_captioners
from trainer.json_files import read_object
from trainer.runs import captioning_job as job
from trainer.runs import events
from trainer.runs.run import Run
from ui.store.caption_edits import record_captions
from ui.store.projects import Projects
from ui.store.runs import Runs


@dataclass(frozen=True)
class Captioning:
    """One artist's captionings."""

    projects: Projects
    runs: Runs

    @property
    def folder(self) -> Path:
        return self.runs.outputs / ".captioning"

    def models(self) -> list[str]:
        return list(list_captioners(self.runs.models))

    def latest(self, project: str) -> Run | None:
        """A project's last captioning, running or not."""
        made = sorted(self._of(project), key=lambda path: (path / "job.json").stat().st_mtime)
        return Run(made[-1]) if made else None

    def _of(self, project: str) -> list[Path]:
        return [path.parent for path in self.folder.glob("*/job.json") if _project(path.parent) == project]

    def start(self, project: str, model: str, values: dict[str, Any]) -> None:
        """Puts a model's work on a project's pictures into the line. Raises TrainerError."""
        folder, options = self.projects.folder(project), options_from(values)
        if model not in self.models():
            raise CaptionerError("that captioning model is not there any more; choose another")
        with self.runs.queue.lock:
            self.forget(project)
            record_captions(self.projects, project)
            made = job.create(self.folder / uuid.uuid4().hex, folder, model, options)
            write_atomically(
                made.path / "project.json", json.dumps({"project": project}, ensure_ascii=False).encode()
            )
            self.runs.queue.submit(made.path, "caption", ["caption-job", str(made.path.resolve())])

    def stop(self, project: str) -> None:
        """Ends the work after the pictures at hand, or takes it out of the line."""
        running = self.latest(project)
        if running:
            self.runs.queue.stop(running.path)

    def status(self, project: str) -> CaptioningStatus | None:
        """How the last captioning stands; None when there was none."""
        running = self.latest(project)
        if running is None:
            return None
        queued = self.runs.queue.find(running.path)  # asked before the events are read
        alive = running.is_alive() or (queued is not None and queued.state == "running")
        waits = queued is not None and queued.state == "waiting"
        return CaptioningStatus(job.fold(job.CaptioningView(), events.read(running.events)[0]), alive, waits)

    def forget(self, project: str) -> None:
        """Removes what is kept of a project's captionings. Raises RunError while one runs or waits."""
        stands = self.status(project)
        if stands and (stands.alive or stands.waits):
            raise RunError("a model is writing captions for this project; stop it, or wait until it ends")
        for old in self._of(project):
            shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class CaptioningStatus:
    view: job.CaptioningView
    alive: bool
    waits: bool


def _project(path: Path) -> str | None:
    return read_object(path / "project.json").get("project")
