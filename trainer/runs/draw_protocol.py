"""Draw requests: sample images that the page requests from a process with a loaded base model.

The page appends commands to the process's `commands.jsonl`; the process appends events to its `events.jsonl`.
The same protocol is served by the sampling worker (trainer/workers/sampling.py), which also reads the base
and the LoRA files from the command, and by a running training between two steps
(trainer/training/live_preview.py).

Commands:

{"kind": "draw", "id": "...", "request": {...}, "out": "/.../drawn/<id>"}   request: fields of SamplingConfig
{"kind": "cancel", "id": "..."}

Events, of which the last is one of OUTCOMES:

{"kind": "drawing", "id": "...", "done": 3, "total": 16}                    denoising steps
{"kind": "drawn", "id": "...", "pictures": ["p00_s0.00.png"]}               names of the images in `out`
{"kind": "cancelled", "id": "..."}
{"kind": "failed", "id": "...", "message": "..."}

While images are sampled, `out` holds FRAME, a rough preview. Each id is served once. A process that restarts
finds unserved requests in commands.jsonl by their ids.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError, lacks_memory
from trainer.runs.run import Run
from trainer.sampling_config import SamplingConfig, sampling_config_from

FRAME = "frame.png"
OUTCOMES = ("drawn", "cancelled", "failed")
OnStep = Callable[[int, int], None]  # (denoising steps done, total)


class Cancelled(Exception):
    """Raised between two denoising steps of a cancelled request."""


def serve_request(
    owner: Run,
    command: dict[str, Any],
    is_cancelled: Callable[[str], bool],
    sample: Callable[[SamplingConfig, Path, OnStep], list[Path]],
) -> None:
    """Samples the images of one "draw" command and emits its events. Errors become a "failed" event.

    Args:
        owner: run whose events report the progress.
        is_cancelled: from an id to whether that request is cancelled; called between denoising steps.
        sample: writes the images of a request into a folder and returns their paths.
    """
    request_id = str(command["id"])

    def on_step(done: int, total: int) -> None:
        if is_cancelled(request_id):
            raise Cancelled
        owner.emit("drawing", id=request_id, done=done, total=total)

    try:
        config = sampling_config_from(command["request"])
        on_step(0, config.steps)
        paths = sample(config, Path(command["out"]), on_step)
        owner.emit("drawn", sync=True, id=request_id, pictures=[path.name for path in paths])
    except Cancelled:
        owner.emit("cancelled", sync=True, id=request_id)
    except Exception as error:  # noqa: BLE001 - a failed request must not end the warm process or the training
        owner.emit("failed", sync=True, id=request_id, message=_message(error))


def _message(error: Exception) -> str:
    if isinstance(error, TrainerError):
        return str(error)
    if lacks_memory(error):
        return "not enough memory for these pictures; choose fewer or smaller ones"
    if isinstance(error, OSError):
        return "not enough disk space for these pictures; choose fewer or smaller ones"
    return f"sampling failed ({type(error).__name__}); try other settings"
