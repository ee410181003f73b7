"""A warm drawing process: it keeps a base loaded and draws what `commands.jsonl` asks for, until nobody asks.

The wishes of `trainer/runs/draw_protocol.py`, and what only this process draws from:

{"kind": "draw", ..., "base": "tiny-sdxl", "files": [["/.../ink.safetensors", 1.0], ...]}
{"kind": "grid", ..., "run": "/.../outputs/ink", "steps": [100, 200]}             a row of pictures for each checkpoint
{"kind": "stop"}
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import RunError
from trainer.runs import events
from trainer.runs.draw_protocol import OUTCOMES, OnStep, serve_request
from trainer.runs.queue_store import others_wait
from trainer.runs.run import Run, claim
from trainer.sampling_config import MAX_FILES, SamplingConfig, checked_weight

if TYPE_CHECKING:
    from trainer.sampling.pipeline import WarmBase

IDLE_SECONDS = 600.0
_LOOK_SECONDS = 1.0  # between two looks at the line


def serve(folder: Path, models: Path, *, idle_seconds: float = IDLE_SECONDS) -> None:
    """Answers every unanswered command of a session directory.

    Returns after `idle_seconds` without one, when it is told to stop, or when others wait for the device and nobody for it.
    """
    session = Run(folder)
    with claim(session):  # before torch is loaded, so that whoever started it sees it at once
        desk = _Desk(session, models)
        last = looked = time.monotonic()
        while time.monotonic() - last < idle_seconds and not desk.is_told_to_stop:
            wish = desk.next()
            if wish:
                desk.answer(wish)
                last = time.monotonic()
            elif time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                if others_wait(folder):
                    return
            else:
                time.sleep(0.1)


class _Desk:
    """What is still to be drawn, and the base that is warm."""

    def __init__(self, session: Run, models: Path) -> None:
        self.session, self.models = session, models
        said = events.read(session.events)[0]
        self.answered = {event["id"] for event in said if event["kind"] in OUTCOMES and "id" in event}
        self.cancelled: set[str] = set()
        self.waiting: list[dict[str, Any]] = []
        self.is_told_to_stop = False
        self._warm: WarmBase | None = None
        self._offset = 0
        for command in self._heard():
            self._take(command)
        self.is_told_to_stop = False  # told to an earlier process

    def _heard(self) -> list[dict[str, Any]]:
        commands, self._offset = events.read(self.session.commands, self._offset)
        return commands

    def _take(self, command: dict[str, Any]) -> None:
        if command["kind"] == "stop":
            self.is_told_to_stop = True
        elif command["kind"] == "cancel":
            self.cancelled.add(command["id"])
        elif command["kind"] in ("draw", "grid") and command["id"] not in self.answered:
            self.waiting.append(command)

    def next(self) -> dict[str, Any] | None:
        for command in self._heard():
            self._take(command)
        return self.waiting.pop(0) if self.waiting else None

    def is_cancelled(self, name: str) -> bool:
        for command in self._heard():
            self._take(command)
        return name in self.cancelled or self.is_told_to_stop

    def answer(self, wish: dict[str, Any]) -> None:
        self.answered.add(wish["id"])
        serve_request(
            self.session,
            wish,
            self.is_cancelled,
            lambda request, out, on_step: self._drawn(wish, request, out, on_step),
        )

    def _drawn(self, wish: dict[str, Any], request: SamplingConfig, out: Path, on_step: OnStep) -> list[Path]:
        from trainer.sampling.pipeline import generate_and_save

        if wish["kind"] == "grid":
            return self._grid(wish, request, out, on_step)
        files = [(Path(file), checked_weight(weight)) for file, weight in wish["files"]][:MAX_FILES]
        return generate_and_save(self._base(wish["base"]), files, request, out, on_step)[:-1]

    def _grid(self, wish: dict[str, Any], request: SamplingConfig, out: Path, on_step: OnStep) -> list[Path]:
        """Each checkpoint as the file that would be made of it, at all strengths."""
        from trainer.sampling.pipeline import generate_and_save
        from trainer.training.export_checkpoint import export_checkpoint

        run, steps, paths = Run(Path(wish["run"])), [int(step) for step in wish["steps"]], []
        if not steps:
            raise RunError(
                "this training has kept no checkpoints; train again, with Checkpoint every and Keep checkpoints set"
            )
        warm = self._base(run.config.base)
        out.mkdir(parents=True, exist_ok=True)
        for number, step in enumerate(steps):
            file = out / f".{run.config.name}-{step}.safetensors"
            export_checkpoint(run, step, file, self.models)
            try:
                part = generate_and_save(
                    warm,
                    file,
                    request,
                    out,
                    lambda done, total, n=number: on_step(n * total + done, len(steps) * total),
                    f"step-{step:06d}_",
                )
            finally:
                file.unlink()
            paths += part[:-1]
        return paths

    def _base(self, name: str) -> WarmBase:
        """One base at a time."""
        from trainer.sampling.pipeline import WarmBase
        from trainer.sdxl.base import open_base

        if self._warm is None or self._warm_name != name:
            self._warm = None
            self._warm, self._warm_name = WarmBase(open_base(name, self.models)), name
        return self._warm
