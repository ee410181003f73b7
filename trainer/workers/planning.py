"""What trainings would take, told before they begin: a process that stays warm while somebody changes settings.

{"kind": "plan", "id": "...", "folder": "/.../pictures", "settings": {...}}                             it is told
{"kind": "planned", "id", "seconds", "peak", "budget", "file"}                                          it says
{"kind": "refused", "id", "message", "cause", "remedy"}

Of several questions about a folder that wait, only the newest is answered: whoever asks changes a setting and asks again.
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
from trainer.errors import DatasetError, TrainerError
from trainer.runs import events
from trainer.runs.failures import failure_fields
from trainer.runs.run import Run, claim
from trainer.training.preflight import preflight

IDLE_SECONDS = 60.0


def serve(folder: Path, models: Path, *, idle_seconds: float = IDLE_SECONDS) -> None:
    """Answers the questions of a directory; returns after `idle_seconds` without one."""
    asked = Run(folder)
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)  # a training comes first
    with claim(asked):
        answered = {event.get("id") for event in events.read(asked.events)[0]}
        offset, last = 0, time.monotonic()
        while time.monotonic() - last < idle_seconds:
            commands, offset = events.read(asked.commands, offset)
            waiting = [
                command
                for command in commands
                if command["kind"] == "plan" and command.get("id") not in answered
            ]
            for question in {command["folder"]: command for command in waiting}.values():
                asked.emit(**answer(question, models, folder.parent))
                answered.add(question["id"])
                last = time.monotonic()
            time.sleep(0.1)


def answer(question: dict[str, Any], models: Path, kept: Path) -> dict[str, Any]:
    """The event that answers a question.

    Args:
        kept: the folder of caches, where what was counted is kept.
    """
    config = None
    try:
        config = config_from(
            {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in question["settings"].items()
            }
        )
        manifest = quick_scan(Path(question["folder"]), trigger=config.trigger)
        if not manifest.items:
            raise DatasetError("there is no picture to train on; add some under Artwork")
        found = preflight(config, with_class_and_validation(manifest, config), models, kept)
    except TrainerError as error:
        return {"kind": "refused", "id": question["id"], **failure_fields(error, config)}
    except Exception as error:  # one question must not end the others
        return {"kind": "refused", "id": question["id"], **failure_fields(error, config)}
    return {
        "kind": "planned",
        "id": question["id"],
        "seconds": round(found.seconds, 1),
        "peak": found.peak,
        "budget": found.budget,
        "file": found.file_bytes,
    }
