"""A warm drawing process: it keeps the base loaded and draws what `commands.jsonl` asks for, until nobody asks.

{"kind": "draw", "id": "...", "file": "/.../ink.safetensors", "base": "tiny-sdxl", "prompts": [...],
 "strengths": [...], "seed": 0, "out": "/.../drawn/<id>"}                                          it is told
{"kind": "drawn", "id": "...", "pictures": ["p00_s0.00.png", ...]} or {"kind": "failed", "id", "message"}   it says
"""

from __future__ import annotations

import time
from pathlib import Path

from trainer import events
from trainer.draw import Request
from trainer.errors import TrainerError
from trainer.preview import WarmBase, save_all
from trainer.run import Run, claim
from trainer.sdxl.base import open_base

IDLE_SECONDS = 600.0


def serve(folder: Path, models: Path, *, idle_seconds: float = IDLE_SECONDS) -> None:
    """Answers every unanswered command of a session directory; returns after `idle_seconds` without one."""
    session = Run(folder)
    warm: dict[str, WarmBase] = {}
    offset, last = 0, time.monotonic()
    with claim(session):
        answered = {event["id"] for event in events.read(session.events)[0] if "id" in event}
        while time.monotonic() - last < idle_seconds:
            commands, offset = events.read(session.commands, offset)
            for command in commands:
                if command["kind"] != "draw" or command["id"] in answered:
                    continue
                session.say("drawing", id=command["id"])
                _answer(session, command, warm, models)
                last = time.monotonic()
            time.sleep(0.1)


def _answer(session: Run, command: dict, warm: dict[str, WarmBase], models: Path) -> None:
    try:
        name = command["base"]
        if name not in warm:
            warm.clear()  # one base at a time
            warm[name] = WarmBase(open_base(name, models))
        request = Request(
            prompts=tuple(command["prompts"]), strengths=tuple(command["strengths"]),
            seed=command["seed"], steps=command.get("steps", 16), guidance=command.get("guidance", 5.0),
        )  # fmt: skip
        paths = save_all(warm[name], Path(command["file"]), request, Path(command["out"]))
        session.say("drawn", sync=True, id=command["id"], pictures=[path.name for path in paths[:-1]])
    except TrainerError as error:
        session.say("failed", sync=True, id=command["id"], message=str(error))
    except Exception as error:  # one bad request must not cool the base
        session.say("failed", sync=True, id=command["id"], message=f"the drawing failed ({type(error).__name__})")
