"""A sampling worker: keeps a base model loaded and serves draw requests of the page until none come any more.

The protocol is the one of `trainer/runs/draw_protocol.py`, with fields and commands that only this process
serves:

{"kind": "draw", ..., "base": "tiny-sdxl", "files": [["/.../ink.safetensors", 1.0], ...]}
{"kind": "grid", ..., "run": "/.../outputs/ink", "steps": [100, 200]}    a row of images for each checkpoint
{"kind": "stop"}                                                         ends the process
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
_POLL_SECONDS = 0.1  # between two reads of the commands
_QUEUE_POLL_SECONDS = 1.0  # between two looks into the queue of jobs


def serve(folder: Path, models: Path, *, idle_seconds: float = IDLE_SECONDS) -> None:
    """Serves all requests of a session directory that have no outcome yet.

    Returns after `idle_seconds` without a request, after a stop command, or when a queued job waits for the
    device while there is no request.

    Raises:
        RunError: another process serves this session.
    """
    session = Run(folder)
    # Claimed before torch is loaded, so that the server that started this process sees it at once.
    with claim(session):
        requests = _RequestQueue(session)
        models_in_memory = _ModelHolder(models)
        last_request = last_queue_poll = time.monotonic()
        while time.monotonic() - last_request < idle_seconds and not requests.is_stopped:
            command = requests.next()
            if command:
                models_in_memory.serve(session, command, requests)
                last_request = time.monotonic()
            elif time.monotonic() - last_queue_poll > _QUEUE_POLL_SECONDS:
                last_queue_poll = time.monotonic()
                if others_wait(folder):
                    return
            else:
                time.sleep(_POLL_SECONDS)


class _RequestQueue:
    """Requests of a session that have no outcome yet, in order of their commands."""

    def __init__(self, session: Run) -> None:
        self.session = session
        past = events.read(session.events)[0]
        self.served = {event["id"] for event in past if event["kind"] in OUTCOMES and "id" in event}
        self.cancelled: set[str] = set()
        self.pending: list[dict[str, Any]] = []
        self.is_stopped = False
        self._offset = 0
        self._read()
        self.is_stopped = False  # a stop command from before the start ended an earlier process

    def _read(self) -> None:
        commands, self._offset = events.read(self.session.commands, self._offset)
        for command in commands:
            if command["kind"] == "stop":
                self.is_stopped = True
            elif command["kind"] == "cancel":
                self.cancelled.add(command["id"])
            elif command["kind"] in ("draw", "grid") and command["id"] not in self.served:
                self.pending.append(command)

    def next(self) -> dict[str, Any] | None:
        """Returns the next request, or None."""
        self._read()
        if not self.pending:
            return None
        command = self.pending.pop(0)
        self.served.add(command["id"])
        return command

    def is_cancelled(self, request_id: str) -> bool:
        """Returns True when a request is cancelled or the process must stop."""
        self._read()
        return request_id in self.cancelled or self.is_stopped


class _ModelHolder:
    """The base model that is in memory; at most one at a time."""

    def __init__(self, models: Path) -> None:
        self.models = models
        self._warm: WarmBase | None = None
        self._name = ""

    def serve(self, session: Run, command: dict[str, Any], requests: _RequestQueue) -> None:
        """Samples the images of one request and emits its events."""
        sample = self._sample_grid if command["kind"] == "grid" else self._sample
        serve_request(
            session,
            command,
            requests.is_cancelled,
            lambda config, out, on_step: sample(command, config, out, on_step),
        )

    def _sample(
        self, command: dict[str, Any], config: SamplingConfig, out: Path, on_step: OnStep
    ) -> list[Path]:
        from trainer.sampling.pipeline import generate_and_save

        files = [(Path(file), checked_weight(weight)) for file, weight in command["files"]][:MAX_FILES]
        return generate_and_save(self._base(command["base"]), files, config, out, on_step)[:-1]

    def _sample_grid(
        self, command: dict[str, Any], config: SamplingConfig, out: Path, on_step: OnStep
    ) -> list[Path]:
        """Samples each checkpoint, as the LoRA file that would be made of it, at all strengths."""
        from trainer.sampling.pipeline import generate_and_save
        from trainer.training.export_checkpoint import export_checkpoint

        run, steps = Run(Path(command["run"])), [int(step) for step in command["steps"]]
        if not steps:
            raise RunError(
                "this training has no checkpoints; "
                "train again, with Checkpoint every and Keep checkpoints set"
            )
        warm = self._base(run.config.base)
        out.mkdir(parents=True, exist_ok=True)
        paths: list[Path] = []
        for number, step in enumerate(steps):

            def on_step_of_grid(done: int, total: int, number: int = number) -> None:
                on_step(number * total + done, len(steps) * total)

            file = out / f".{run.config.name}-{step}.safetensors"
            export_checkpoint(run, step, file, self.models)
            try:
                prefix = f"step-{step:06d}_"
                row = generate_and_save(warm, file, config, out, on_step_of_grid, prefix)
            finally:
                file.unlink()
            paths += row[:-1]
        return paths

    def _base(self, name: str) -> WarmBase:
        from trainer.sampling.pipeline import WarmBase
        from trainer.sdxl.base import open_base

        if self._warm is None or self._name != name:
            self._warm = None  # frees the memory before the next base is loaded
            self._warm, self._name = WarmBase(open_base(name, self.models)), name
        return self._warm
