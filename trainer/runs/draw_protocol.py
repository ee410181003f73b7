"""A drawing that the page asks for: how it is told, followed, cancelled and answered, by whoever draws it.

{"kind": "draw", "id": "...", "request": {"prompts": [...], "strengths": [...], ...}, "out": "/.../drawn/<id>"}     it is told
{"kind": "cancel", "id": "..."}
{"kind": "drawing", "id": "...", "done": 3, "total": 16}                                                            it says
{"kind": "drawn", "id": "...", "pictures": ["p00_s0.00.png", ...]}, or "cancelled", or "failed" with a message
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError, lacks_memory
from trainer.runs.run import Run
from trainer.sampling_config import SamplingConfig, sampling_config_from

FRAME = "frame.png"  # in `out` while it is drawn: a rough picture of what is coming
OUTCOMES = ("drawn", "cancelled", "failed")
OnStep = Callable[[int, int], None]


class Cancelled(Exception):
    """Raised between two denoising steps of a drawing that is no longer wanted."""


def serve_request(
    owner: Run,
    wish: dict[str, Any],
    is_cancelled: Callable[[str], bool],
    draw: Callable[[SamplingConfig, Path, OnStep], list[Path]],
) -> None:
    """Draws one wish and says how it goes in the owner's events; whatever is wrong with it, the caller goes on.

    Args:
        is_cancelled: asked between denoising steps.
        draw: of a request, into a folder; the pictures' paths.
    """
    name = str(wish["id"])

    def on_step(done: int, total: int) -> None:
        if is_cancelled(name):
            raise Cancelled
        owner.emit("drawing", id=name, done=done, total=total)

    try:
        request = sampling_config_from(wish["request"])
        on_step(0, request.steps)
        paths = draw(request, Path(wish["out"]), on_step)
        owner.emit("drawn", sync=True, id=name, pictures=[path.name for path in paths])
    except Cancelled:
        owner.emit("cancelled", sync=True, id=name)
    except TrainerError as error:
        owner.emit("failed", sync=True, id=name, message=str(error))
    except Exception as error:  # one bad wish must cost neither the warm base nor a training
        lacked = "memory" if lacks_memory(error) else "disk" if isinstance(error, OSError) else ""
        words = (
            f"the {lacked} did not suffice for these pictures; ask for fewer or smaller ones"
            if lacked
            else ""
        )
        owner.emit(
            "failed",
            sync=True,
            id=name,
            message=words or f"the drawing failed ({type(error).__name__}); try other settings",
        )
