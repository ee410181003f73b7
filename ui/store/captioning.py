"""Captioning jobs: a model writes captions in a child process, started, followed and stopped from the page. No torch.

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
from ui.store.caption_undo import record_captions
from ui.store.projects import Projects
from ui.store.runs import Runs


@dataclass(frozen=True)
class CaptioningStatus:
    """The progress of a captioning job and the state of its process."""

    view: job.CaptioningView
    is_running: bool
    is_waiting: bool  # in the queue


@dataclass(frozen=True)
class Captioning:
    """One artist's captioning jobs."""

    projects: Projects
    runs: Runs

    @property
    def folder(self) -> Path:
        """The folder of all jobs."""
        return self.runs.outputs / ".captioning"

    def models(self) -> list[str]:
        """Returns the names of the captioning models on disk."""
        return list(list_captioners(self.runs.models))

    def latest(self, project: str) -> Run | None:
        """Returns the run directory of a project's latest job, running or not."""
        folders = sorted(self._folders(project), key=lambda path: (path / "job.json").stat().st_mtime)
        return Run(folders[-1]) if folders else None

    def _folders(self, project: str) -> list[Path]:
        folders = (path.parent for path in self.folder.glob("*/job.json"))
        return [
            folder for folder in folders if read_object(folder / "project.json").get("project") == project
        ]

    def start(self, project: str, model: str, values: dict[str, Any]) -> None:
        """Queues a job that captions a project's pictures; the captions before it can be restored with Undo.

        Args:
            values: fields of `CaptionOptions`.

        Raises:
            TrainerError: invalid values, no such project or model, or a job of the project that has not ended.
        """
        folder, options = self.projects.folder(project), options_from(values)
        if model not in self.models():
            raise CaptionerError("that captioning model no longer exists; choose another")
        with self.runs.queue.lock:
            self.remove_jobs(project)
            record_captions(self.projects, project)
            run = job.create(self.folder / uuid.uuid4().hex, folder, model, options)
            text = json.dumps({"project": project}, ensure_ascii=False)
            write_atomically(run.path / "project.json", text.encode())
            self.runs.queue.submit(run.path, "caption", ["caption-job", str(run.path.resolve())])

    def stop(self, project: str) -> None:
        """Stops the latest job after the current batch of pictures, or removes it from the queue."""
        run = self.latest(project)
        if run:
            self.runs.queue.stop(run.path)

    def status(self, project: str) -> CaptioningStatus | None:
        """Returns the status of the latest job; None if there is none."""
        run = self.latest(project)
        if run is None:
            return None
        # Before the events are read, so that the last events of a process that ends now are not missed.
        queued = self.runs.queue.find(run.path)
        is_running = run.is_alive() or (queued is not None and queued.state == "running")
        is_waiting = queued is not None and queued.state == "waiting"
        view = job.fold(job.CaptioningView(), events.read(run.events)[0])
        return CaptioningStatus(view, is_running, is_waiting)

    def remove_jobs(self, project: str) -> None:
        """Removes the folders of a project's jobs.

        Raises:
            RunError: a job is running or waiting.
        """
        status = self.status(project)
        if status and (status.is_running or status.is_waiting):
            raise RunError("a model is writing captions for this project; stop it, or wait until it ends")
        for folder in self._folders(project):
            shutil.rmtree(folder, ignore_errors=True)
