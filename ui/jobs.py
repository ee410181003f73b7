"""Starts, stops and follows trainings and drawings: child processes that speak through files. No gradio, no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer import events, run
from trainer.bases import found_bases, is_small
from trainer.config import config_from
from trainer.dataset.scan import scan
from trainer.errors import RunError, TrainerError
from trainer.presets import preset_values

_ROOT = Path(__file__).resolve().parent.parent
BUNDLED = "tiny-sdxl"


@dataclass
class Jobs:
    """Runs are folders under `outputs`. What is held here is only a cache of what is on disk."""

    outputs: Path
    models: Path
    _views: dict[tuple[str, int], tuple[int, events.View]] = field(default_factory=dict)
    _drawer: subprocess.Popen[bytes] | None = None  # until it has claimed its folder

    def names(self) -> list[str]:
        """Runs, newest first."""
        found = [p.parent for p in self.outputs.glob("*/config.toml") if not p.parent.name.startswith(".")]
        return [p.name for p in sorted(found, key=lambda p: (p / "config.toml").stat().st_mtime, reverse=True)]

    def bases(self) -> list[str]:
        """Base models that there are, the bundled one first."""
        found = found_bases(self.models)
        return sorted(found, key=lambda name: name != BUNDLED) or [BUNDLED]

    def finished(self) -> list[str]:
        """Runs that have a file."""
        return [name for name in self.names() if self.run(name).lora_file.is_file()]

    def file(self, name: str) -> str:
        """Path of a run's LoRA. Raises RunError."""
        found = self.run(name).lora_file
        if not found.is_file():
            raise RunError(f"“{name}” has no file yet; wait until it has ended")
        return str(found.resolve())

    def run(self, name: str) -> run.Run:
        """Raises RunError for a name that is none of ours, paths included."""
        if name not in self.names():
            raise RunError("that training is not there any more; choose another")
        return run.Run(self.outputs / name)

    def busy(self) -> str | None:
        """The name of the run that trains now."""
        return next((name for name in self.names() if self.run(name).is_alive()), None)

    def start(self, folder: Path, settings: dict[str, Any]) -> str:
        """Makes a run of a picture folder and starts its process; the run's name. Raises TrainerError."""
        busy = self.busy()
        if busy:
            raise RunError(f"“{busy}” is still training; stop it, or wait until it ends")
        preset = settings.get("preset", "style")
        config_from({**settings, "preset": preset})
        manifest = scan(folder, trigger=settings.get("trigger", ""))
        values = preset_values(
            preset, sum(item.repeats for item in manifest.items), settings, small=is_small(settings.get("base", BUNDLED), self.models)
        )
        name = self._free_name(settings["name"])
        made = run.create(self.outputs / name, config_from(values), manifest)
        for problem in manifest.problems:
            made.say("problem", message=problem)
        self._spawn(made, "resume", str(made.path))
        return name

    def resume(self, name: str) -> None:
        """Goes on with a stopped or killed run. Raises TrainerError."""
        busy = self.busy()
        if busy:
            raise RunError(f"“{busy}” is still training; stop it, or wait until it ends")
        self._spawn(self.run(name), "resume", str(self.run(name).path))

    def stop(self, name: str) -> None:
        events.append(self.run(name).commands, "stop", sync=True)

    def view(self, name: str) -> tuple[events.View, bool]:
        """What a page shows of a run, and whether its process lives (asked before the events are read)."""
        opened = self.run(name)
        alive = opened.is_alive()
        this = (name, (opened.path / "config.toml").stat().st_mtime_ns)  # a run made anew under an old name is another
        offset, view = self._views.get(this, (0, events.View()))
        fresh, offset = events.read(opened.events, offset)
        view = events.fold(view, fresh)
        self._views[this] = (offset, view)
        return view, alive

    def draw(self, name: str, prompts: list[str], strengths: list[float], seed: int) -> str:
        """Asks the warm drawing process for pictures of a run's file; the request's id. Raises TrainerError."""
        opened = self.run(name)
        if not opened.lora_file.is_file():
            raise RunError("this training has no file yet; wait until it has ended")
        if not prompts or any(not 0 < len(prompt) <= 1000 for prompt in prompts):
            raise TrainerError("write a prompt of at most 1000 characters")
        session = run.Run(self.outputs / ".drawing")
        session.path.mkdir(parents=True, exist_ok=True)
        request = uuid.uuid4().hex
        facts = {"prompts": prompts, "strengths": strengths, "seed": seed, "base": opened.config.base}
        out = opened.samples / f"own-{request}"
        events.append(
            session.commands, "draw", sync=True, id=request, file=str(opened.lora_file.resolve()), out=str(out.resolve()), **facts
        )
        if not session.is_alive():
            self._drawer = self._spawn(session, "session", str(session.path))
        return request

    def drawn(self, request: str) -> dict[str, Any] | None:
        """The answer to a drawing request; None while there is none."""
        session = run.Run(self.outputs / ".drawing")
        starting = self._drawer is not None and self._drawer.poll() is None
        alive = session.is_alive() or starting  # asked first: what it said before it died is there to read
        said, _ = events.read(session.events)
        answer = next((event for event in said if event.get("id") == request and event["kind"] in ("drawn", "failed")), None)
        if answer is None and not alive:
            return {"kind": "failed", "id": request, "message": "the drawing process ended before it answered; press Draw again"}
        return answer

    def _free_name(self, name: str) -> str:
        taken = {path.name for path in self.outputs.glob("*")}
        return next(n for n in (name, *(f"{name}-{i}" for i in range(2, 10_000))) if n not in taken)

    def _spawn(self, owner: run.Run, *command: str) -> subprocess.Popen[bytes]:
        """A process of its own session, so that it outlives the server; returns once it has claimed its folder."""
        arguments = [sys.executable, "-m", "trainer", *command, "--models", str(self.models.resolve())]
        with (owner.path / "trainer.log").open("ab") as log:
            child = subprocess.Popen(
                arguments, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        for _ in range(200):
            if owner.is_alive() or child.poll() is not None:
                break
            time.sleep(0.05)
        return child


def status_words(view: events.View, alive: bool) -> str:
    """One sentence on how a run stands."""
    if view.ended == "failed":
        return f"Stopped by a fault: {view.message}"
    if view.ended == "finished":
        advice = f" Advice: {view.advice}." if view.advice else ""
        takes = f" Checked: {', '.join(view.takes)} take all of it." if view.takes else ""
        return f"Finished. Find the strength you like below, then download the file.{takes}{advice}"
    if not alive and view.ended == "stopped":
        return f"Stopped at step {view.step} of {view.steps}. The last checkpoint is kept; Continue goes on."
    if not alive:
        return "Interrupted. The last checkpoint is kept; Continue goes on."
    if view.stage == "training":
        left = f", about {_minutes(view.seconds_left)} left" if view.seconds_left is not None else ""
        return f"Training: step {view.step} of {view.steps} ({100 * view.step // max(1, view.steps)} %){left}."
    takes = f" It will take {view.plan}." if view.plan else ""
    if view.stage_total:
        return f"{view.stage.capitalize()}: {view.stage_done} of {view.stage_total}.{takes}"
    return f"{(view.stage or 'starting').capitalize()}…{takes}"


def _minutes(seconds: float) -> str:
    return f"{round(seconds)} s" if seconds < 90 else f"{round(seconds / 60)} min"
