"""Captions by a model, as a job of a process of its own: started, followed and stopped from the page. No torch here.

outputs/.captioning/<id>/    the job's folder (trainer/captioning/job.py) and project.json {"project": name}
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import events
from trainer.captioning import job
from trainer.captioning.models import found_captioners
from trainer.captioning.options import options_from
from trainer.errors import CaptionerError, RunError
from trainer.run import Run, write_atomically
from ui.caption_edits import remember
from ui.jobs import Jobs
from ui.projects import Projects

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Captioning:
    """One artist's captionings."""

    projects: Projects
    jobs: Jobs

    @property
    def folder(self) -> Path:
        return self.jobs.outputs / ".captioning"

    def models(self) -> list[str]:
        return list(found_captioners(self.jobs.models))

    def latest(self, project: str) -> Run | None:
        """A project's last captioning, running or not."""
        made = sorted(self._of(project), key=lambda path: (path / "job.json").stat().st_mtime)
        return Run(made[-1]) if made else None

    def _of(self, project: str) -> list[Path]:
        return [path.parent for path in self.folder.glob("*/job.json") if _project(path.parent) == project]

    def start(self, project: str, model: str, values: dict[str, Any]) -> None:
        """Starts a model on a project's pictures. Raises TrainerError."""
        folder, options = self.projects.folder(project), options_from(values)
        if model not in self.models():
            raise CaptionerError("that captioning model is not there any more; choose another")
        busy = self.jobs.busy()
        if busy:
            raise RunError(f"“{busy}” is training; let it end or stop it, then let the model write captions")
        running = self.latest(project)
        if running and running.is_alive():
            raise RunError("a model is writing captions for this project already")
        for old in self._of(project):
            shutil.rmtree(old, ignore_errors=True)
        remember(self.projects, project)
        made = job.create(self.folder / uuid.uuid4().hex, folder, model, options)
        write_atomically(made.path / "project.json", json.dumps({"project": project}, ensure_ascii=False).encode())
        _spawn(made, self.jobs.models)

    def stop(self, project: str) -> None:
        running = self.latest(project)
        if running:
            events.append(running.commands, "stop", sync=True)

    def view(self, project: str) -> tuple[job.View, bool] | None:
        """How the last captioning stands and whether its process lives; None when there was none."""
        running = self.latest(project)
        if running is None:
            return None
        alive = running.is_alive()
        return job.fold(job.View(), events.read(running.events)[0]), alive

    def forget(self, project: str) -> None:
        """Removes what is kept of a project's captionings. Raises RunError while one runs."""
        running = self.latest(project)
        if running and running.is_alive():
            raise RunError("a model is writing captions for this project; stop it first")
        for old in self._of(project):
            shutil.rmtree(old, ignore_errors=True)


def _project(path: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return json.loads((path / "project.json").read_text(encoding="utf-8")).get("project")
    return None


def _spawn(owner: Run, models: Path) -> None:
    """A process of its own session, so that it outlives the server; returns once it has claimed its folder or ended."""
    command = [sys.executable, "-m", "trainer", "caption-job", str(owner.path.resolve()), "--models", str(models.resolve())]
    with (owner.path / "trainer.log").open("ab") as log:
        child = subprocess.Popen(
            command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    for _ in range(200):
        if owner.is_alive() or child.poll() is not None:
            break
        time.sleep(0.05)
