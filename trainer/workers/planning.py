"""Estimates of trainings before they begin: a process that stays alive while a user changes settings.

Its directory has the protocol of a run, one JSON object in a line:

    commands.jsonl   {"kind": "plan", "id": "1", "folder": "/pictures", "settings": {"steps": 500}}
    events.jsonl     {"kind": "planned", "id": "1", "seconds": 840, "peak": 62e8, "budget": 8e9, "file": 4e7}
                     {"kind": "refused", "id": "1", "message": "", "cause": "memory", "remedy": {"batch": 2}}

If several requests for one folder wait, only the newest gets an estimate: each replaces the earlier ones.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from trainer.config import config_from
from trainer.dataset.quick_scan import quick_scan
from trainer.dataset.sources import with_class_and_validation
from trainer.errors import DatasetError
from trainer.runs import events
from trainer.runs.failures import failure_fields
from trainer.runs.run import Run, claim
from trainer.training.preflight import preflight

IDLE_SECONDS = 60.0


def serve(folder: Path, models: Path, *, idle_seconds: float = IDLE_SECONDS) -> None:
    """Writes an estimate for each request in a directory; returns after `idle_seconds` without a request."""
    directory = Run(folder)
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)  # lower priority than a training
    with claim(directory):
        finished = {event.get("id") for event in events.read(directory.events)[0]}
        offset, last = 0, time.monotonic()
        while time.monotonic() - last < idle_seconds:
            commands, offset = events.read(directory.commands, offset)
            waiting = [
                command
                for command in commands
                if command["kind"] == "plan" and command.get("id") not in finished
            ]
            for request in {command["folder"]: command for command in waiting}.values():
                directory.emit(**estimate(request, models, folder.parent))
                finished.add(request["id"])
                last = time.monotonic()
            time.sleep(0.1)


def estimate(request: dict[str, Any], models: Path, cache_folder: Path) -> dict[str, Any]:
    """Returns the event for a request: `planned`, or `refused` if the training can't start."""
    config = None
    try:
        settings = request["settings"]
        config = config_from(
            {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        )
        manifest = quick_scan(Path(request["folder"]), trigger=config.trigger)
        if not manifest.items:
            raise DatasetError("there is no picture to train on; add some under Artwork")
        plan = preflight(config, with_class_and_validation(manifest, config), models, cache_folder)
    except Exception as error:  # noqa: BLE001 - an unforeseen error in one request must not end the process for all others
        return {"kind": "refused", "id": request["id"], **failure_fields(error, config)}
    return {
        "kind": "planned",
        "id": request["id"],
        "seconds": round(plan.seconds, 1),
        "peak": plan.peak,
        "budget": plan.budget,
        "file": plan.file_bytes,
    }
