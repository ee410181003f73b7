"""Starts, stops and follows trainings: child processes that speak through files. No gradio, no torch."""

from __future__ import annotations

import contextlib
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
from trainer.runs import events, run
from trainer.runs.job import Job
from trainer.runs.queue import Queue
from ui.store.estimates import Estimates
from ui.store.naming import new_folder
from ui.store.project_settings import training_values

LONG_SILENCE = 300.0  # seconds without a word before a training is said to be stuck, at least


class Runs:
    """One artist's runs: folders under `outputs`. What is held in memory is only a cache of what is on disk."""

    def __init__(self, outputs: Path, models: Path, queue: Queue | None = None) -> None:
        """Args:
        queue: the studio's queue; without one the runs have a queue of their own.
        """
        self.outputs, self.models = outputs, models
        self.queue = queue or Queue(outputs, models)
        self.estimates = Estimates(outputs / ".cache", models, self._card_is_taken)
        # Folded events by (name, time of config.toml): a new run under an old name has another time.
        self._views: dict[tuple[str, int], tuple[int, events.View]] = {}
        self._projects: dict[tuple[str, int], str | None] = {}

    def _card_is_taken(self) -> bool:
        """Whether a process beside the training would take memory from it."""
        return (
            any(device.visible is not None for device in self.queue.devices or ())
            and self.queue.blocking_job() is not None
        )

    def names(self, project: str | None = None) -> list[str]:
        """Runs, newest first: all, or those of a project."""
        found = [p.parent for p in self.outputs.glob("*/config.toml") if not p.parent.name.startswith(".")]
        newest = sorted(found, key=lambda p: (p / "config.toml").stat().st_mtime, reverse=True)
        return [p.name for p in newest if project in (None, self.project_of(p.name))]

    def project_of(self, name: str) -> str | None:
        """The project that a run was made of; None for one made on the command line."""
        path = self.outputs / name / "project.json"
        with contextlib.suppress(OSError, ValueError, AttributeError):
            this = (name, path.stat().st_mtime_ns)
            if this not in self._projects:
                self._projects[this] = json.loads(path.read_text(encoding="utf-8")).get("project")
            return self._projects[this]
        return None

    def latest(self, project: str | None) -> str | None:
        """A project's newest run."""
        return next(iter(self.names(project)), None) if project else None

    def bases(self) -> list[str]:
        """Base models that there are, the bundled one first."""
        found = list_base_models(self.models)
        return sorted(found, key=lambda name: name != BUNDLED_BASE) or [BUNDLED_BASE]

    def finished(self) -> list[str]:
        """Runs that have a file."""
        return [name for name in self.names() if self.run(name).lora_file.is_file()]

    def run(self, name: str) -> run.Run:
        """Raises RunError for a name that is none of ours, paths included."""
        if name not in self.names():
            raise RunError("that training is not there any more; choose another")
        return run.Run(self.outputs / name)

    def busy(self) -> str | None:
        """The name of one's own run that trains now."""
        return next((job.folder.name for job in self.queued() if job.state == "running"), None)

    def queued(self) -> list[Job]:
        """One's own trainings that run or wait, in order."""
        mine = self.outputs.absolute()
        return [
            job for job in self.queue.active() if job.kind == "train" and job.folder.parent.absolute() == mine
        ]

    def active(self, project: str) -> str | None:
        """The run of a project that trains or waits."""
        return next(
            (job.folder.name for job in self.queued() if self.project_of(job.folder.name) == project), None
        )

    def start(self, folder: Path, settings: dict[str, Any], *, token: str = "", another: bool = False) -> str:
        """Makes a run of a picture folder and puts it into the line; the run's name. Raises TrainerError.

        Args:
            token: of one click, which makes one run however often it arrives.
            another: put one more into the line while the project has one there.
        """
        with self.queue.lock:
            known = self.queue.find_by_token(token)
            if known:
                return known.folder.name
            active = self.active(folder.name)
            if active and not another:
                raise RunError(
                    f"“{active}” is training already; stop it, wait until it ends, or put another training into the line"
                )
            config = config_from(training_values(folder, settings, self.models))
            made = self._made(config, [folder], folder.name)
            self.queue.submit(made.path, "train", ["resume", str(made.path.resolve())], token=token)
            return made.path.name

    def retry(self, name: str, change: dict[str, Any]) -> str:
        """The same training again with one setting changed; the new run's name. Raises TrainerError."""
        failed = self.run(name)
        sources = (
            [Path(failed.manifest.folder)]
            if not (failed.path / "sources.json").exists()
            else _sources(failed)
        )
        with self.queue.lock:
            made = self._made(
                config_from({**dataclasses.asdict(failed.config), **change}), sources, self.project_of(name)
            )
            self.queue.submit(made.path, "train", ["resume", str(made.path.resolve())])
        return made.path.name

    def resume(self, name: str) -> None:
        """Goes on with a stopped or killed run when its turn comes. Raises TrainerError."""
        found = self.run(name)
        commands_offset = found.commands.stat().st_size if found.commands.exists() else 0
        self.queue.submit(
            found.path,
            "train",
            ["resume", str(found.path.resolve()), "--commands-offset", str(commands_offset)],
        )

    def stop(self, name: str) -> None:
        """Stops a run, or takes it out of the line; one that seems to be stuck is ended at once when asked again."""
        self.queue.stop(self.run(name).path, at_once=self.status(name).seems_stuck)

    def move(self, name: str, by: int) -> None:
        """Lets a waiting run change places with one's own before (-1) or behind (1)."""
        self.queue.move(self.run(name).path, by)

    def status(self, name: str) -> RunStatus:
        """How a run stands."""
        job = self.queue.find(self.run(name).path)
        view, alive = self.view(name)
        return run_status(view, alive, job, time.time())

    def _made(self, config: TrainConfig, sources: list[Path], project: str | None) -> run.Run:
        """A new run under a free name."""
        folder = new_folder(self.outputs, config.name)
        try:
            made = run.create(folder, config, sources)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        write_atomically(
            made.path / "project.json", json.dumps({"project": project}, ensure_ascii=False).encode()
        )
        return made

    def view(self, name: str) -> tuple[events.View, bool]:
        """What a page shows of a run, and whether its process lives (asked before the events are read)."""
        opened = self.run(name)
        alive = opened.is_alive()
        this = (
            name,
            (opened.path / "config.toml").stat().st_mtime_ns,
        )  # a run made anew under an old name is another
        offset, view = self._views.get(this, (0, events.View()))
        fresh, offset = events.read(opened.events, offset)
        view = events.fold(view, fresh)
        self._views[this] = (offset, view)
        return view, alive


@dataclass(frozen=True)
class RunStatus:
    """A run, its place in the line and its process, told as one."""

    view: events.View
    state: str  # "waiting", "starting", "running", "finished", "stopped", "failed", "interrupted"
    place: int = 0  # in the line, 1 being next
    killed: bool = False  # by the system, as far as it was seen
    silent_seconds: float = 0.0  # since its last word, while it runs

    @property
    def is_active(self) -> bool:
        return self.state in ("waiting", "starting", "running")

    @property
    def seems_stuck(self) -> bool:
        """Whether it has said nothing for far longer than its steps take."""
        view = self.view
        step_seconds = view.seconds_left / max(1, view.steps - view.step) if view.seconds_left else 0.0
        return self.silent_seconds > max(LONG_SILENCE, 20 * step_seconds)

    @property
    def can_go_on(self) -> bool:
        return self.state in ("stopped", "failed", "interrupted")

    @property
    def key(self) -> tuple[Any, ...]:
        """Another one whenever there is something new to show."""
        return self.view.rev, self.state, self.place


def run_status(view: events.View, alive: bool, job: Job | None, now: float = 0.0) -> RunStatus:
    """
    Args:
        now: in seconds since 1970.
    """
    if job and job.state == "waiting":
        return RunStatus(view, "waiting", job.queue_position)
    if alive:
        if not view.stage or view.ended:
            return RunStatus(view, "starting")
        return RunStatus(
            view, "running", silent_seconds=max(0.0, now - view.last_event_at) if view.last_event_at else 0.0
        )
    if job and job.state == "running":
        return RunStatus(view, "starting")
    if view.ended:
        return RunStatus(view, view.ended)
    if job and (
        job.state == "stopped" or job.stops
    ):  # taken out of the line before it began, or ended when it was stuck
        return RunStatus(view, "stopped")
    return RunStatus(view, "interrupted", killed=bool(job and job.signal == signal.SIGKILL))


def _sources(found: run.Run) -> list[Path]:
    return [Path(folder) for folder in json.loads((found.path / "sources.json").read_text(encoding="utf-8"))]
