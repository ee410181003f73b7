"""One artist's runs: trainings are created, queued, stopped and followed. No gradio, no torch.

A training is a child process that the queue starts; it communicates through the files of its run directory (trainer/runs/).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.atomic_files import write_atomically
from trainer.config import TrainConfig, config_from
from trainer.errors import RunError
from trainer.headers.base_model import BUNDLED_BASE, list_base_models
from trainer.json_files import read_object
from trainer.runs import events, run
from trainer.runs.job import Job
from trainer.runs.queue import Queue
from ui.store.estimates import Estimates
from ui.store.naming import create_folder
from ui.store.project_settings import training_values

STUCK_SECONDS = 300.0  # without an event before a training counts as stuck, at least
_STUCK_STEPS = 20  # or this many of its own steps, if that is longer


class Runs:
    """One artist's runs: folders under `outputs`. What is held in memory is only a cache of what is on disk."""

    def __init__(self, outputs: Path, models: Path, queue: Queue | None = None) -> None:
        """Opens the runs of a folder.

        Args:
            queue: the studio's queue; without one the runs have a queue of their own.
        """
        self.outputs, self.models = outputs, models
        self.queue = queue or Queue(outputs, models)
        self.estimates = Estimates(outputs / ".cache", models, self._is_card_in_use)
        # Keys are (name, modification time in ns): a new run under the name of a deleted one has another time.
        self._views: dict[
            tuple[str, int], tuple[int, events.View]
        ] = {}  # offset in the events, and their fold
        self._projects: dict[tuple[str, int], str | None] = {}

    def _is_card_in_use(self) -> bool:
        """True if a process beside the training would take memory from it."""
        has_card = any(device.visible is not None for device in self.queue.devices or ())
        return has_card and self.queue.blocking_job() is not None

    def names(self, project: str | None = None) -> list[str]:
        """Returns the names of all runs, or of those of a project, newest first."""
        configs = [
            path for path in self.outputs.glob("*/config.toml") if not path.parent.name.startswith(".")
        ]
        newest = sorted(configs, key=lambda path: path.stat().st_mtime, reverse=True)
        names = [path.parent.name for path in newest]
        return [name for name in names if project is None or self.project_of(name) == project]

    def project_of(self, name: str) -> str | None:
        """Returns the project of a run; None for a run that was started on the command line."""
        path = self.outputs / name / "project.json"
        try:
            version = (name, path.stat().st_mtime_ns)
        except OSError:
            return None
        if version not in self._projects:
            self._projects[version] = read_object(path).get("project")
        return self._projects[version]

    def latest(self, project: str | None) -> str | None:
        """Returns a project's newest run."""
        return next(iter(self.names(project)), None) if project else None

    def bases(self) -> list[str]:
        """Returns the names of the base models on disk, the bundled one first."""
        names = list_base_models(self.models)
        return sorted(names, key=lambda name: name != BUNDLED_BASE) or [BUNDLED_BASE]

    def finished(self) -> list[str]:
        """Returns the names of the runs that have a LoRA file."""
        return [name for name in self.names() if self.run(name).lora_file.is_file()]

    def run(self, name: str) -> run.Run:
        """Returns a run by its name.

        Raises:
            RunError: there is no run of this name; a path is not a name.
        """
        if name not in self.names():
            raise RunError("that training no longer exists; choose another")
        return run.Run(self.outputs / name)

    def busy(self) -> str | None:
        """Returns the name of the artist's run that is training now."""
        return next((job.folder.name for job in self.queued() if job.state == "running"), None)

    def queued(self) -> list[Job]:
        """Returns the artist's trainings that are running or waiting, in the order of the queue."""
        outputs = self.outputs.absolute()
        trainings = [job for job in self.queue.active() if job.kind == "train"]
        return [job for job in trainings if job.folder.parent.absolute() == outputs]

    def active(self, project: str) -> str | None:
        """Returns the run of a project that is running or waiting."""
        names = (job.folder.name for job in self.queued())
        return next((name for name in names if self.project_of(name) == project), None)

    def start(self, folder: Path, settings: dict[str, Any], *, token: str = "", another: bool = False) -> str:
        """Creates a run of a picture folder and queues it; returns the run's name.

        Args:
            token: of one click. A token that arrives again returns the same run.
            another: queue one more run although the project has a run that is running or waiting.

        Raises:
            TrainerError: invalid settings, too few pictures, or a run that is active.
        """
        with self.queue.lock:
            existing = self.queue.find_by_token(token)
            if existing:
                return existing.folder.name
            active = self.active(folder.name)
            if active and not another:
                raise RunError(
                    f"“{active}” is training already; stop it, wait until it ends, or add another training to the queue"
                )
            config = config_from(training_values(folder, settings, self.models))
            created = self._create(config, [folder], folder.name)
            self.queue.submit(created.path, "train", ["resume", str(created.path.resolve())], token=token)
            return created.path.name

    def retry(self, name: str, change: dict[str, Any]) -> str:
        """Starts the same training again with some settings changed; returns the new run's name.

        Raises:
            TrainerError: there is no such run, or the changed settings are invalid.
        """
        failed = self.run(name)
        sources_file = failed.path / "sources.json"
        if sources_file.exists():
            sources = [Path(folder) for folder in json.loads(sources_file.read_text(encoding="utf-8"))]
        else:
            sources = [Path(failed.manifest.folder)]
        config = config_from({**dataclasses.asdict(failed.config), **change})
        with self.queue.lock:
            created = self._create(config, sources, self.project_of(name))
            self.queue.submit(created.path, "train", ["resume", str(created.path.resolve())])
        return created.path.name

    def resume(self, name: str) -> None:
        """Queues a stopped or killed run to continue from its last checkpoint.

        Raises:
            RunError: there is no such run, or it is active.
        """
        resumed = self.run(name)
        # Commands before this offset, such as the one that stopped the run, are not meant for the new process.
        commands_offset = resumed.commands.stat().st_size if resumed.commands.exists() else 0
        arguments = ["resume", str(resumed.path.resolve()), "--commands-offset", str(commands_offset)]
        self.queue.submit(resumed.path, "train", arguments)

    def stop(self, name: str) -> None:
        """Stops a run after its current step, or removes it from the queue; kills it at once if it is stuck.

        Raises:
            RunError: there is no such run, or it has ended.
        """
        self.queue.stop(self.run(name).path, at_once=self.status(name).is_stuck)

    def move(self, name: str, by: int) -> None:
        """Swaps a waiting run with the artist's previous (-1) or next (1) one. Raises RunError."""
        self.queue.move(self.run(name).path, by)

    def status(self, name: str) -> RunStatus:
        """Returns the status of a run. Raises RunError."""
        job = self.queue.find(self.run(name).path)
        view, alive = self.view(name)
        return run_status(view, alive, job, time.time())

    def view(self, name: str) -> tuple[events.View, bool]:
        """Returns the fold of a run's events, and True if its process is alive. Raises RunError."""
        opened = self.run(name)
        alive = (
            opened.is_alive()
        )  # before the events are read, so that none of a process that ends now is missed
        version = (name, (opened.path / "config.toml").stat().st_mtime_ns)
        offset, view = self._views.get(version, (0, events.View()))
        new_events, offset = events.read(opened.events, offset)
        view = events.fold(view, new_events)
        self._views[version] = (offset, view)
        return view, alive

    def _create(self, config: TrainConfig, sources: list[Path], project: str | None) -> run.Run:
        """Creates a run directory; its name has a number if the config's name is taken."""
        folder = create_folder(self.outputs, config.name)
        try:
            created = run.create(folder, config, sources)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        text = json.dumps({"project": project}, ensure_ascii=False)
        write_atomically(created.path / "project.json", text.encode())
        return created


@dataclass(frozen=True)
class RunStatus:
    """The state of a run, from its events, its process and its job in the queue."""

    view: events.View
    state: str  # "waiting", "starting", "running", "finished", "stopped", "failed", "interrupted"
    queue_position: int = 0  # 1 is next; 0 if it is not waiting
    was_killed: bool = False  # by the system, as when memory runs out
    silent_seconds: float = 0.0  # since the last event of a running training

    @property
    def is_active(self) -> bool:
        """True while the run is running or waiting."""
        return self.state in ("waiting", "starting", "running")

    @property
    def is_stuck(self) -> bool:
        """True if the training has sent no event for much longer than a step takes."""
        view = self.view
        step_seconds = view.seconds_left / max(1, view.steps - view.step) if view.seconds_left else 0.0
        return self.silent_seconds > max(STUCK_SECONDS, _STUCK_STEPS * step_seconds)

    @property
    def key(self) -> tuple[Any, ...]:
        """A value that changes whenever the page should."""
        return self.view.rev, self.state, self.queue_position


def run_status(view: events.View, alive: bool, job: Job | None, now: float = 0.0) -> RunStatus:
    """Combines the three sources of a run's state, which can disagree: a process can die without a last event.

    Args:
        view: of the run's events.
        alive: its process exists; read before the events.
        job: its job in the queue, if there is one.
        now: in seconds since 1970.
    """
    if job and job.state == "waiting":
        return RunStatus(view, "waiting", job.queue_position)
    if alive and view.stage and not view.ended:
        silent_seconds = max(0.0, now - view.last_event_at) if view.last_event_at else 0.0
        return RunStatus(view, "running", silent_seconds=silent_seconds)
    if alive or (job and job.state == "running"):
        return RunStatus(view, "starting")
    if view.ended:
        return RunStatus(view, view.ended)
    if job and (job.state == "stopped" or job.stops):
        # The run was removed from the queue before it began, or was stuck and killed by Stop.
        return RunStatus(view, "stopped")
    return RunStatus(view, "interrupted", was_killed=bool(job and job.signal == signal.SIGKILL))
