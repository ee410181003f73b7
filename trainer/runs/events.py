"""What the trainer says (`events.jsonl`) and what it is told (`commands.jsonl`): one JSON object a line, append-only.

{"kind": "stage", "time": 1795500000.0, "stage": "caching", "done": 3, "total": 24}
{"kind": "step", "step": 10, "steps": 300, "loss": 0.21, "learning_rate": 0.001, "seconds_left": 41.0}
{"kind": "saved", "file": "ink.safetensors", "step": 300}
{"kind": "validation", "step": 50, "loss": 0.19}
{"kind": "advice", "step": 250, "strength": 0.75, "losses": {"0": 0.2, "0.25": 0.19, ...}, "message": "..."}
{"kind": "ended", "how": "finished" | "stopped" | "failed", "message": "...", "cause": "memory", "remedy": {"batch": 2}}
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def append(path: Path, kind: str, *, sync: bool = False, **facts: Any) -> None:
    """One line, written by one `write`, so that writers never mix; `sync` makes it survive a power cut."""
    line = (
        json.dumps({"kind": kind, "time": time.time(), **facts}, ensure_ascii=False, allow_nan=False) + "\n"
    )
    # A line that a killed writer left half-written must not swallow this one.
    if path.exists() and path.stat().st_size and not _ends_with_newline(path):
        line = "\n" + line
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Complete lines from a byte offset on, and the offset to go on from. Unreadable lines are passed over."""
    try:
        with path.open("rb") as file:
            # A file that became shorter was written anew.
            offset = file.seek(offset if offset <= file.seek(0, os.SEEK_END) else 0)
            data = file.read()
    except FileNotFoundError:
        return [], 0
    complete = data.rfind(b"\n") + 1
    return list(_parsed(data[:complete])), offset + complete


def _parsed(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("kind"), str):
            yield event


POINTS = 400  # of a loss curve, at least: when there are twice as many, neighbours become their mean


@dataclass(frozen=True, kw_only=True)
class View:
    """What a page shows of a run, folded from its events."""

    plan: str = ""  # what it will take
    planned_seconds: float | None = None  # of its steps and pictures
    stage: str = ""
    stage_done: int = 0
    stage_total: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    losses: tuple[tuple[int, float], ...] = ()  # (last step, mean loss) of each `loss_span` steps
    loss_span: int = 1
    seconds_left: float | None = None
    samples: tuple[dict[str, Any], ...] = ()
    problems: tuple[str, ...] = ()
    validation: tuple[tuple[int, float], ...] = ()  # (step, loss)
    advice: str = ""
    saved: str | None = None
    takes: tuple[str, ...] = ()  # tools that will take the whole file
    strip: tuple[dict[str, Any], ...] = ()
    ended: str | None = None
    message: str = ""
    cause: str = ""  # of a failure, one of trainer/runs/failures.py's
    remedy: dict[str, Any] = field(default_factory=dict)  # {setting: value} that would mend it
    last_event_at: float = 0.0  # seconds since 1970
    rev: int = field(default=0)


def fold(view: View, events: list[dict[str, Any]]) -> View:
    """The view after `events`."""
    facts = {name: getattr(view, name) for name in View.__dataclass_fields__}
    losses = list(view.losses)
    for event in events:
        facts["rev"] += 1
        facts["last_event_at"] = event.get("time", 0.0)
        match event["kind"]:
            case "started":
                facts |= {"ended": None, "message": "", "cause": "", "remedy": {}, "stage": "starting"}
            case "planned":
                facts |= {"plan": event["words"], "planned_seconds": event.get("seconds")}
            case "stage":
                facts |= {
                    "stage": event["stage"],
                    "stage_done": event.get("done", 0),
                    "stage_total": event.get("total", 0),
                }
            case "problem":
                facts["problems"] += (event["message"],)
            case "step":
                facts |= {name: event.get(name) for name in ("step", "steps", "loss", "seconds_left")}
                facts["stage"] = "training"
                facts["loss_span"] = _add_loss(losses, facts["loss_span"], event["step"], event["loss"])
            case "sample":
                facts["samples"] += (event,)
            case "validation":
                earlier = (
                    point for point in facts["validation"] if point[0] < event["step"]
                )  # a resumed run measures again
                facts["validation"] = (*earlier, (event["step"], event["loss"]))
            case "advice":
                facts["advice"] = event["message"]
            case "saved":
                facts["saved"] = event["file"]
            case "checked":
                facts["takes"] = tuple(event["takes"])
            case "strip":
                facts["strip"] = tuple(event["pictures"])
            case "ended":
                facts |= {"ended": event["how"], "message": event.get("message", "")}
                facts |= {"cause": event.get("cause", ""), "remedy": event.get("remedy", {})}
    facts["losses"] = tuple(losses)
    return View(**facts)


def _add_loss(losses: list[tuple[int, float]], span: int, step: int, loss: float) -> int:
    """Puts a step's loss into the mean of its span; the span, which doubles when there are too many."""
    while losses and losses[-1][0] >= step:  # a resumed run takes them again
        losses.pop()
    before = (step - 1) // span * span
    if losses and losses[-1][0] > before:
        count = losses[-1][0] - before
        losses[-1] = (step, (losses[-1][1] * count + loss) / (count + 1))
    else:
        losses.append((step, loss))
    if len(losses) > 2 * POINTS:
        pairs = [
            (second[0], (first[1] + second[1]) / 2)
            for first, second in zip(losses[::2], losses[1::2], strict=False)
        ]
        losses[:] = pairs + (losses[-1:] if len(losses) % 2 else [])
        return 2 * span
    return span
